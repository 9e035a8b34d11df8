"""Networks that compute on a grid of numbers: weights and activations of 2, ..., 8 bits, by fake quantisation.

Of the S networks of ``saxe2018/networks.py``, as one LightningModule. The gradient passes the rounding unchanged
(straight-through), and is zero where an activation is cut off at the end of its range.

- Weights: ``2^bits - 1`` levels from minus to plus the largest absolute weight of a layer; biases are not rounded.
- tanh: ``2^bits - 1`` levels from -1 to 1. ReLU: ``2^bits`` levels from 0 to a moving average of the largest activation
  of a batch, which begins at that of all patterns at the initial weights (calibration). Softmax: ``2^bits`` levels from
  0 to 1; the loss takes the probabilities before they are rounded, as one of them may be rounded to 0.

These ranges do not depend on the samples that are looked at, so a sample has the same activations beside any others.
Sums are those of single precision. While biases are 0, many sums of ReLU networks lie halfway between two levels, and
a last bit decides: it moves I(X;T) at the initial weights by up to 0.1 bits of 4-bit and 0.002 of 8-bit networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from networks import Networks
from torch import Tensor

DECAY = 0.99
"""Of the moving average of the largest activation, a step."""


class QuantisedNetworks(Networks):
    """S networks with ``bits`` bits.

    Args:
        seeds: Seeds of their initial weights.
        widths: Widths of the layers, input first.
        activation: ``"tanh"`` or ``"relu"``.
        bits: Size of weights and activations.
        patterns: Inputs ``(N, inputs)`` that calibrate the ranges.
        lr: Step size.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        widths: Sequence[int],
        activation: str,
        bits: int,
        patterns: Tensor,
        lr: float = 4e-4,
    ):
        super().__init__(seeds, widths, activation, lr=lr)
        self.positive, self.levels = activation == "relu", 2**bits - 1
        self.largest = self.levels // 2  # of the integers of weights and of tanh, which have a sign
        self.register_buffer("top", torch.ones(len(widths) - 2, len(self.seeds)))
        self.register_buffer("zeros", torch.zeros(len(self.seeds), dtype=torch.int32))
        with torch.no_grad():
            self._all_outputs(patterns.T.expand(len(self.seeds), -1, -1), decay=0.0)

    def forward(self, x: Tensor, network: int = 0) -> Tensor:
        """Return one network's outputs before the softmax, ``(N, outputs)``, for ``x (N, inputs)``."""
        for i, name in enumerate(self.layers):
            weight = self._weight(self.weights[i])[network]
            x = F.linear(x, weight, self.biases[i][network, :, 0])
            if i + 1 < len(self.layers):
                x = self.get_submodule(name)(self._rounded(self.activation(x)[None], i, slice(network, network + 1))[0])
        shown = torch.fake_quantize_per_tensor_affine(x.softmax(1), 1 / self.levels, 0, 0, self.levels)
        self.get_submodule(name)(shown)
        return x

    def all_outputs(self, x: Tensor) -> Tensor:
        """Return all outputs, ``(S, outputs, N)``, for ``x (S, inputs, N)``; in training the ranges of ReLU follow."""
        return self._all_outputs(x, DECAY if self.training and torch.is_grad_enabled() else 1.0)

    def _all_outputs(self, x: Tensor, decay: float) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, self._weight(weight), x)
            if i + 1 < len(self.weights):
                x = self.activation(x)
                if self.positive and decay < 1:
                    self.top[i] = decay * self.top[i] + (1 - decay) * x.detach().amax((1, 2))
                x = self._rounded(x, i, slice(None))
        return x

    def _weight(self, weight: Tensor) -> Tensor:
        scale = weight.detach().abs().amax((1, 2)) / self.largest
        return torch.fake_quantize_per_channel_affine(weight, scale, self.zeros, 0, -self.largest, self.largest)

    def _rounded(self, x: Tensor, layer: int, networks: slice) -> Tensor:
        """Round activations ``(S, ...)`` of a layer."""
        if self.positive:
            scale = (self.top[layer, networks] / self.levels).clamp_min(1e-6)  # of a layer whose units are all off
            return torch.fake_quantize_per_channel_affine(x, scale, self.zeros[networks], 0, 0, self.levels)
        return torch.fake_quantize_per_tensor_affine(x, 1 / self.largest, 0, -self.largest, self.largest)
