r"""Products with the Fisher information itself, ``v -> F v``, by plain autograd: no rows, no matrix.

With the Jacobian ``J_n`` of sample n's outputs and their Fisher information ``H_n``,

.. math:: F v = \frac1N \sum_n J_n^\top H_n J_n v .

For some samples at a time that is one forward pass, one backward pass that can be differentiated, one through it (which
gives ``J v``, see :mod:`~.row_products`) and an ordinary one. Memory is that of the largest part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info.functional.fisher import output_fisher_product
from lightning_info.functional.likelihoods import LikelihoodLike
from lightning_info.gradients.contract import NotCovered, first_line, trainable
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.real import as_real, flat, sizes

PredictLikelihood = Callable[[nn.Module, Any], tuple[Tensor, LikelihoodLike, Tensor | None]]
"""``(module, part) -> (outputs (N, ...), likelihood, mask or None)``, laid out as in :mod:`~..functional.fisher`."""


class FisherProducts:
    """F, over all samples of all parts, as a function of vectors.

    The weights are those of :func:`~.contract.trainable` one after the other, flat (:mod:`~.real`).

    Args:
        module: The module, twice differentiable; never changed. It does not mix samples.
        predict: Gives the outputs with their likelihood.
        parts: Called for every product: gives the batches that the samples stand in, of any sizes.
    """

    def __init__(self, module: nn.Module, predict: PredictLikelihood, parts: Callable[[], Iterable[Any]]) -> None:
        self.module, self.predict, self.parts = module, predict, parts
        self.parameters = list(trainable(module).values())
        if not self.parameters:
            raise NotCovered("the module trains none of its parameters")

    @property
    def weights(self) -> int:
        """Number of them, k."""
        return sum(sizes(self.parameters))

    def __call__(self, v: Tensor) -> Tensor:
        """``F v``: ``(k,) -> (k,)``, summed in float64.

        Raises:
            NotCovered: An operator of the module has no second derivative.
        """
        total, samples = torch.zeros(self.weights, dtype=torch.float64, device=self.parameters[0].device), 0
        for part in self.parts():
            outputs, likelihood, mask = self._forward(part)
            (tangent,) = self._tangents(outputs, v[None])
            cotangent = output_fisher_product(outputs, likelihood, tangent, mask)
            gradients = self._gradients(outputs, cotangent.to(outputs))
            for slot, gradient in zip(self._split(total), gradients, strict=True):
                if gradient is not None:
                    slot += flat(gradient.detach())
            samples += len(outputs)
        return total / samples

    def gram(self, vectors: Tensor) -> Tensor:
        """``V F Vᵀ`` of some vectors ``(m, k)``: ``(m, m)`` float64.

        Raises:
            NotCovered: An operator of the module has no second derivative.
        """
        total, samples = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=vectors.device), 0
        for part in self.parts():
            outputs, likelihood, mask = self._forward(part)
            tangents = self._tangents(outputs, vectors)
            products = [output_fisher_product(outputs, likelihood, tangent, mask) for tangent in tangents]
            total += torch.stack(tangents).double().flatten(1) @ torch.stack(products).flatten(1).T
            samples += len(outputs)
        return total / samples

    def check(self, seed: int = 0) -> None:
        """Compare ``uᵀ(J v)`` with ``(Jᵀu)ᵀ v`` on the first part, where every parameter has its share of v.

        A derivative that autograd takes for constant would go missing without a word.

        Raises:
            NotCovered: They differ, or an operator of the module has no second derivative.
        """
        outputs, _, _ = self._forward(next(iter(self.parts())))
        generator = torch.Generator().manual_seed(seed)
        u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        pairs = zip(self._gradients(outputs, u, retain_graph=True), self.parameters, strict=True)
        gradients = [flat(torch.zeros_like(p) if g is None else g.detach()).double() for g, p in pairs]
        squares = [g.square().sum() for g in gradients]
        shares = 0.5 + torch.rand(len(gradients), generator=generator, dtype=torch.float64)
        scaled = [share * g / max(square, 1e-300) for share, g, square in zip(shares, gradients, squares, strict=True)]
        expected = shares[torch.stack(squares).cpu() > 0].sum().item()
        (tangent,) = self._tangents(outputs, torch.cat(scaled)[None])
        found = (u.double() * tangent).sum().item()
        if not abs(found - expected) <= 1e-2 + 1e-4 * expected:  # no parameter's share is below 0.5
            raise NotCovered(
                f"uᵀJv is {found:.4g} by a second derivative and {expected:.4g} without; an operator of the module has "
                "no second derivative"
            )

    def _forward(self, part: Any) -> tuple[Tensor, LikelihoodLike, Tensor | None]:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            return self.predict(self.module, part)

    def _tangents(self, outputs: Tensor, vectors: Tensor) -> list[Tensor]:
        """``J v`` of each vector, of the shape of the outputs."""
        u = torch.zeros_like(outputs, requires_grad=True)
        try:
            gradients = self._gradients(outputs, u, create_graph=True)
            return [self._tangent(u, gradients, v) for v in vectors]
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise NotCovered(f"the module has no second derivative ({first_line(error)})") from error

    def _tangent(self, u: Tensor, gradients: Sequence[Tensor | None], v: Tensor) -> Tensor:
        terms = [
            (flat(gradient) * part.to(gradient.device, as_real(gradient).dtype)).sum()
            for gradient, part in zip(gradients, self._split(v), strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not terms:
            return torch.zeros_like(u).detach()
        (tangent,) = torch.autograd.grad(torch.stack(terms).sum(), u, retain_graph=True)
        return tangent.detach()

    def _gradients(self, outputs: Tensor, u: Tensor, **options: bool) -> tuple[Tensor | None, ...]:
        gradients = torch.autograd.grad(outputs, self.parameters, u, allow_unused=True, **options)
        return tuple(g.to_dense() if g is not None and g.is_sparse else g for g in gradients)

    def _split(self, v: Tensor) -> tuple[Tensor, ...]:
        return torch.split(v, sizes(self.parameters))
