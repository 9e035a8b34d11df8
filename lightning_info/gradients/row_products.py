"""Products with the matrix A of the rows of the Fisher information and with its transpose, by plain autograd.

``Aᵀv`` is one ordinary backward pass from the cotangent ``sum_c v_nc s_nc``. It is linear in that cotangent, so ``Av``
is its derivative: a second backward pass, through the first. Neither makes a row. The module has to be twice
differentiable for ``Av`` alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.contract import Predict, trainable
from lightning_info.gradients.real import as_real, flat, sizes


class RowProducts:
    """A ``(N C, k)``, of the rows ``J_nᵀ u_nc`` in the order (n, c), as two functions.

    The weights are those of :func:`~.contract.trainable` one after the other, flat (:mod:`~.real`). The graph of one
    forward pass is kept as long as the object.

    Args:
        module: The module; never changed.
        predict: Gives the outputs ``(N, ...)``.
        batch: N samples, which the module does not mix.
        cotangents: ``(C, *outputs.shape)``.
    """

    def __init__(self, module: nn.Module, predict: Predict, batch: Any, cotangents: Tensor) -> None:
        self.parameters = list(trainable(module).values())
        self.outputs = predict(module, batch)
        self.columns = cotangents.to(self.outputs.detach())

    @property
    def weights(self) -> int:
        """Number of them, k."""
        return sum(sizes(self.parameters))

    def transposed(self, v: Tensor) -> Tensor:
        """``Aᵀv``: ``(N C,) -> (k,)``."""
        return _flat(self._gradients(self._cotangent(v)), self.parameters)

    def __call__(self, w: Tensor) -> Tensor:
        """``A w``: ``(k,) -> (N C,)``."""
        u = torch.zeros_like(self.outputs, requires_grad=True)
        gradients = self._gradients(u, create_graph=True)
        parts = torch.split(w, sizes(self.parameters))
        terms = [
            (flat(gradient) * part.to(gradient.device, as_real(gradient).dtype)).sum()
            for gradient, part in zip(gradients, parts, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not terms:
            return w.new_zeros(self.columns.shape[0] * self.columns.shape[1])
        (tangent,) = torch.autograd.grad(torch.stack(terms).sum(), u, retain_graph=True)
        products = (self.columns * tangent).detach()
        return products.reshape(*products.shape[:2], -1).sum(2).T.flatten()

    def _cotangent(self, v: Tensor) -> Tensor:
        weights = v.to(self.columns).view(self.columns.shape[1], -1).T
        return (weights.reshape(*weights.shape, *(1,) * (self.columns.dim() - 2)) * self.columns).sum(0)

    def _gradients(self, u: Tensor, create_graph: bool = False) -> tuple[Tensor | None, ...]:
        gradients = torch.autograd.grad(
            self.outputs, self.parameters, u, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
        return tuple(g.to_dense() if g is not None and g.is_sparse else g for g in gradients)


def _flat(gradients: tuple[Tensor | None, ...], parameters: list[nn.Parameter]) -> Tensor:
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([flat((torch.zeros_like(p) if g is None else g).detach()) for g, p in pairs])
