r"""Products with the Fisher information and with its factor, by plain autograd; for few weights, both as matrices.

With the Jacobian ``J_n`` of sample n's outputs, their Fisher information ``H_n`` and all columns ``s_nc`` of a root of
it (:func:`~lightning_info.functional.exact_cotangents`), the factor A ``(N C, k)`` has the per-output gradients
``J_nᵀ s_nc`` as rows, in the order (n, c), and

.. math:: F = A^\top A / N = \frac1N \sum_n J_n^\top H_n J_n .

``Aᵀv`` is one ordinary backward pass from the cotangent ``sum_c v_nc s_nc``. It is linear in that cotangent, so its
derivative gives ``J w`` and with it ``A w``: a second backward pass, through the first. ``F v`` is both in turn, for
some samples at a time. No row of A is made, and memory is that of the largest part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info.functional.fisher import output_fisher_product
from lightning_info.functional.likelihoods import LikelihoodLike
from lightning_info.gradients import func, loop
from lightning_info.gradients.contract import NotCovered, Predict, first_line, trainable
from lightning_info.gradients.memory import gradients_at_once, is_out_of_memory
from lightning_info.gradients.real import as_real, flat, sizes

PredictLikelihood = Callable[[nn.Module, Any], tuple[Tensor, LikelihoodLike, Tensor | None]]
"""``(module, part) -> (outputs (N, ...), likelihood, mask or None)``, laid out as in :mod:`~..functional.fisher`."""

FactorEngineName = Literal["func", "loop"]

ROUNDING = 100
"""A parameter's gradient whose share of the whole norm is less than so many units of rounding is none."""


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
            gradients = _gradients(outputs, self.parameters, cotangent.to(outputs))
            for slot, gradient in zip(torch.split(total, sizes(self.parameters)), gradients, strict=True):
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
        """Compare ``uᵀ(J v)`` with ``(Jᵀu)ᵀ v`` on the first part.

        Every parameter has its share of v whose gradient is more than rounding (that of the bias of an attention's keys
        is 0).
        A derivative that autograd takes for constant would go missing without a word.

        Raises:
            NotCovered: They differ, or an operator of the module has no second derivative.
        """
        outputs, _, _ = self._forward(next(iter(self.parts())))
        generator = torch.Generator().manual_seed(seed)
        u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        pairs = zip(_gradients(outputs, self.parameters, u, retain_graph=True), self.parameters, strict=True)
        gradients = [flat(torch.zeros_like(p) if g is None else g.detach()).double() for g, p in pairs]
        squares = torch.stack([g.square().sum() for g in gradients]).cpu()
        rounding = ROUNDING * max(torch.finfo(p.dtype).eps for p in self.parameters)
        shares = 0.5 + torch.rand(len(gradients), generator=generator, dtype=torch.float64)
        shares[squares <= rounding**2 * squares.sum()] = 0.0
        scales = (shares / squares.clamp_min(1e-300)).tolist()
        scaled = [scale * g for scale, g in zip(scales, gradients, strict=True)]
        expected = shares.sum().item()
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
            gradients = _gradients(outputs, self.parameters, u, create_graph=True)
            return [_tangent(u, gradients, torch.split(v, sizes(self.parameters))) for v in vectors]
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise NotCovered(f"the module has no second derivative ({first_line(error)})") from error


class RowProducts:
    """The factor A ``(N C, k)``, as two functions.

    The weights are those of :func:`~.contract.trainable` one after the other, flat (:mod:`~.real`). The graph of one
    forward pass is kept as long as the object. The module has to be twice differentiable for ``A w`` alone.

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
        weights = v.to(self.columns).view(self.columns.shape[1], -1).T
        weights = weights.reshape(*weights.shape, *(1,) * (self.columns.dim() - 2))
        gradients = _gradients(self.outputs, self.parameters, (weights * self.columns).sum(0), retain_graph=True)
        pairs = zip(gradients, self.parameters, strict=True)
        return torch.cat([flat((torch.zeros_like(p) if g is None else g).detach()) for g, p in pairs])

    def __call__(self, w: Tensor) -> Tensor:
        """``A w``: ``(k,) -> (N C,)``."""
        u = torch.zeros_like(self.outputs, requires_grad=True)
        gradients = _gradients(self.outputs, self.parameters, u, retain_graph=True, create_graph=True)
        products = self.columns * _tangent(u, gradients, torch.split(w, sizes(self.parameters)))
        return products.reshape(*products.shape[:2], -1).sum(2).T.flatten()


def with_all_outputs(cotangents: Tensor, count: int, outputs: Sequence[int]) -> Tensor:
    """Columns of a root of H for the outputs of a larger batch, where the module cuts them to the longest sample.

    Those of outputs that none of the samples has are zero.

    Args:
        cotangents: ``(C, N, ...)`` of the samples, the columns in the order of the outputs.
        count: Columns in the larger batch.
        outputs: Shape of a sample's outputs there.
    """
    if len(cotangents) == count:
        return cotangents
    places, fewer = outputs[:-1], cotangents.shape[2:-1]
    each = (count // math.prod(places), len(cotangents) // math.prod(fewer))
    numbers = torch.arange(count).reshape(*places, each[0])[tuple(slice(0, n) for n in (*fewer, each[1]))]
    padded = cotangents.new_zeros(count, *cotangents.shape[1:])
    padded[numbers.flatten().to(padded.device)] = cotangents
    return padded


def factor_matrix(
    module: nn.Module, predict: Predict, batch: Any, cotangents: Tensor, engine: FactorEngineName
) -> Tensor:
    """The factor A itself, ``(N C, k)`` float64; arguments of :func:`outer_products`.

    Raises:
        NotCovered: The engine cannot give it exactly.
    """
    return torch.cat(list(_some_rows(module, predict, batch, cotangents, engine)))


def outer_products(
    module: nn.Module, predict: Predict, batch: Any, cotangents: Tensor, engine: FactorEngineName
) -> Tensor:
    """``AᵀA``, the sum of the outer products of all per-output gradients: N times F if the cotangents are exact.

    Args:
        module: The module; never changed.
        predict: Gives the outputs ``(N, ...)``.
        batch: N samples.
        cotangents: ``(C, *outputs.shape)``.
        engine: Makes the gradients; one that :func:`~.gram.choose_gram_engine` found right.

    Returns:
        ``(k, k)`` float64; the weights are those of :func:`~.contract.trainable` one after the other, a complex one as
        two (:mod:`~.real`).

    Raises:
        NotCovered: The engine cannot give them exactly.
    """
    k = sum(sizes(trainable(module).values()))
    total = torch.zeros(k, k, dtype=torch.float64, device=cotangents.device)
    for rows in _some_rows(module, predict, batch, cotangents, engine):
        total.addmm_(rows.T, rows)
    return total


def _some_rows(
    module: nn.Module, predict: Predict, batch: Any, cotangents: Tensor, engine: FactorEngineName
) -> Iterator[Tensor]:
    """Rows of A, ``(some, k)`` float64 each time."""
    gradients = {"func": func, "loop": loop}[engine].output_gradients(module, predict, batch, cotangents)
    parameters = trainable(module)
    widths = dict(zip(parameters, sizes(parameters.values()), strict=True))
    for numbers in torch.split(torch.arange(cotangents.shape[0] * cotangents.shape[1]), gradients_at_once(module)):
        rows = gradients(numbers)
        parts = [
            rows[name] if name in rows else torch.zeros(len(numbers), width, device=cotangents.device)
            for name, width in widths.items()
        ]
        yield torch.cat([part.double() for part in parts], 1)


def _gradients(
    outputs: Tensor, parameters: list[nn.Parameter], u: Tensor, **options: bool
) -> tuple[Tensor | None, ...]:
    """``Jᵀu`` by parameter, for a cotangent u of the shape of the outputs."""
    gradients = torch.autograd.grad(outputs, parameters, u, allow_unused=True, **options)
    return tuple(g.to_dense() if g is not None and g.is_sparse else g for g in gradients)


def _tangent(u: Tensor, gradients: Sequence[Tensor | None], parts: Sequence[Tensor]) -> Tensor:
    """``J v``, of the shape of the outputs: the derivative of ``<Jᵀu, v>`` in u.

    Args:
        u: The cotangent, which requires a gradient.
        gradients: ``Jᵀu`` by parameter.
        parts: v by parameter, flat.
    """
    terms = [
        (flat(gradient) * part.to(gradient.device, as_real(gradient).dtype)).sum()
        for gradient, part in zip(gradients, parts, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    if not terms:
        return torch.zeros_like(u).detach()
    (tangent,) = torch.autograd.grad(torch.stack(terms).sum(), u, retain_graph=True)
    return tangent.detach()
