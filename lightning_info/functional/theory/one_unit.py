r"""The exact one-unit model: a Gaussian input, one weight, one activation function, bins.

With ``X ~ N(0, σ²)`` and ``h = f(wX)`` in bins with edges ``b_i``, ``T = bin(h)`` has

.. math:: p_i = \Phi(f^{-1}(b_{i+1}) / |w| \sigma) - \Phi(f^{-1}(b_i) / |w| \sigma), \qquad
          I(T;X) = H(T) = -\sum_i p_i \log p_i .

Information first grows with the weight, then falls where f saturates on both sides (tanh) but not where it does on one
(ReLU). An even number of bins has an edge at 0, so a vanishing weight still gives 1 bit: the sign.

Source: Saxe et al. (2018), eq. 1-4 and figure 2. Their eq. 4 takes ``f⁻¹`` of every edge, which ReLU does not have up
to 0 and tanh not from 1 on: here it is ∓∞ there, so ReLU's bin of 0 holds half of the probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from lightning_info.functional.units import Unit, per_nat

Activation = Literal["tanh", "relu", "linear"] | Callable[[Tensor], Tensor]

_INVERSES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda h: h.clamp(-1, 1).atanh(),
    "relu": lambda h: torch.where(h > 0, h, -math.inf),
    "linear": lambda h: h,
}


def one_unit_probabilities(
    weight: float,
    activation: Activation = "tanh",
    bins: int = 30,
    bin_range: tuple[float, float] = (-1.0, 1.0),
    *,
    sigma: float = 1.0,
) -> Tensor:
    """Return the probabilities of the bins of one unit.

    Args:
        weight: w.
        activation: f: a name, or the inverse of a monotone function, which is given edges of bins, float64, and gives
            infinities beyond the image of f: for the sigmoid, ``lambda h: h.clamp(0, 1).logit()``.
        bins: Number of intervals, ``[b_i, b_{i+1})``.
        bin_range: Range that they cover; values outside fall into the outermost ones. For an unbounded f take a range
            that grows with the weight, for example up to ``8 |w| σ``, and bins of one width.
        sigma: Standard deviation of the input.

    Returns:
        ``(bins,)``, float64.

    Raises:
        ValueError: An unknown name, bins below 1, an empty range, sigma not positive, an inverse that gives NaN.
    """
    if isinstance(activation, str) and activation not in _INVERSES:
        raise ValueError(
            f"activation={activation!r}: choose 'tanh', 'relu', 'linear', or pass the inverse of a function"
        )
    if bins < 1:
        raise ValueError(f"bins={bins}: expected the number of intervals, at least 1, for example bins=30")
    low, high = bin_range
    if not low < high:
        raise ValueError(f"bin_range={bin_range}: expected low < high, for example bin_range=(-1.0, 1.0)")
    if not (sigma > 0 and math.isfinite(weight * sigma)):
        raise ValueError(f"weight={weight}, sigma={sigma}: expected a finite weight and a positive standard deviation")
    inverse = _INVERSES[activation] if isinstance(activation, str) else activation
    x = inverse(low + (high - low) * torch.arange(bins + 1, dtype=torch.float64) / bins)
    if x.isnan().any():
        raise ValueError("the inverse gives NaN; beyond the image of f it must be infinite: clamp its argument first")
    if x[0] > x[-1]:
        x = -x  # f decreases
    scale = abs(weight) * sigma
    below = torch.special.ndtr(x[1:-1] / scale) if scale > 0 else (x[1:-1] > 0).double()
    return torch.cat([torch.zeros(1), below, torch.ones(1)]).diff()


def one_unit_information(
    weight: float,
    activation: Activation = "tanh",
    bins: int = 30,
    bin_range: tuple[float, float] = (-1.0, 1.0),
    *,
    sigma: float = 1.0,
    unit: Unit = "bits",
) -> float:
    """Return I(T;X) of one binned unit with its Gaussian input.

    Args:
        weight: See :func:`one_unit_probabilities`.
        activation: See :func:`one_unit_probabilities`.
        bins: See :func:`one_unit_probabilities`.
        bin_range: See :func:`one_unit_probabilities`.
        sigma: See :func:`one_unit_probabilities`.
        unit: Unit of the result.

    Raises:
        ValueError: See :func:`one_unit_probabilities`.
    """
    p = one_unit_probabilities(weight, activation, bins, bin_range, sigma=sigma)
    return per_nat(unit) * float(torch.special.entr(p).sum())
