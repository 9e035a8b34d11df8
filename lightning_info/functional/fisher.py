r"""Fisher information of a predictive distribution: output curvature, cotangents, and the trace with its error.

With outputs ``z = f_w(x)``, their Jacobian ``J`` in the weights and the Fisher information ``H(z)`` of
``p(y | z)``, the Fisher information of the weights is

.. math:: F = \mathbb{E}_x\, J^\top H(z)\, J .

For any random ``u`` with ``E[u uᵀ] = H(z)``, ``‖Jᵀu‖²`` is therefore an unbiased estimate of one sample's
contribution to ``tr F``. The functions here make such ``u`` (:func:`fisher_cotangent`), choose which samples to
spend a backward pass on (:func:`sampling_probabilities`) and put the pieces together (:func:`trace_estimate`).

Layout: axis 0 is the sample axis. Categorical outputs are logits ``(N, *positions, C)``, classes last; Bernoulli
outputs are logits ``(N, *)``; Gaussian outputs are means ``(N, *)`` with unit variance. A sample's positions (tokens,
pixels) are independent given ``x`` and are summed. Everything is computed in float64.

Source: Achille, Paolini & Soatto, sections 1.2 and 4; the corrected readings are in ``docs/fisher.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

Likelihood = Literal["categorical", "bernoulli", "gaussian"]
CotangentEstimator = Literal["importance", "rademacher", "sampled"]


class TraceEstimate(NamedTuple):
    """An estimate of a trace over a pool of samples (nats) and its standard error."""

    trace: float
    stderr: float

    @property
    def low(self) -> float:
        """Lower end of the normal 95 % band, ``trace - 1.96 stderr``."""
        return self.trace - 1.96 * self.stderr

    @property
    def high(self) -> float:
        """Upper end of the normal 95 % band, ``trace + 1.96 stderr``."""
        return self.trace + 1.96 * self.stderr


def output_fisher_trace(outputs: Tensor, likelihood: Likelihood, mask: Tensor | None = None) -> Tensor:
    """Trace of the output Fisher information, ``tr H(z_n)``, of each sample.

    Args:
        outputs: Logits or means, see the module's layout.
        likelihood: The predictive distribution.
        mask: Optional boolean ``(N, *positions)``; positions that are False count zero.

    Returns:
        ``(N,)``, float64: ``sum p (1 - p)`` for categorical and Bernoulli, the number of outputs for Gaussian.
    """
    if likelihood == "categorical":
        log_p = outputs.detach().double().log_softmax(-1)
        per_output = -(log_p.exp() * torch.expm1(log_p)).sum(-1)
    elif likelihood == "bernoulli":
        z = outputs.detach().double()
        per_output = z.sigmoid() * (-z).sigmoid()
    else:
        per_output = torch.ones_like(outputs.detach(), dtype=torch.float64)
    per_output = _masked(per_output, mask)
    return per_output.flatten(1).sum(1) if per_output.dim() > 1 else per_output


def fisher_cotangent(
    outputs: Tensor,
    likelihood: Likelihood,
    estimator: CotangentEstimator = "importance",
    *,
    generator: Generator | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Draw one ``u`` per sample with ``E[u uᵀ] = H(z)``, so that ``‖Jᵀu‖²`` estimates ``tr JᵀHJ`` without bias.

    - ``"importance"``: a label ``c ~ q``, ``q_c ∝ p_c ‖e_c - p‖²``, reweighted to ``u = sqrt(p_c/q_c) (e_c - p)``.
      Every draw has ``‖u‖² = tr H``, so a confident network costs no variance.
    - ``"rademacher"``: a random-sign combination of the columns of ``sqrt(H) = diag(sqrt p) - p sqrt(p)ᵀ``.
    - ``"sampled"``: ``u = p - e_y`` with a label from the model, ``y ~ p``. Its error explodes once the network is
      confident, because the trace is then carried by labels that are almost never drawn.

    For Bernoulli and Gaussian outputs the first two coincide: ``u = ± sqrt(H)`` with a sign per output. Several
    positions of one sample get independent signs, otherwise cross terms between positions would bias the estimate.

    Args:
        outputs: Logits or means, see the module's layout.
        likelihood: The predictive distribution.
        estimator: Which ``u``.
        generator: Source of all draws; the global generator of the CPU if None.
        mask: Optional boolean ``(N, *positions)``; positions that are False get ``u = 0``.

    Returns:
        Tensor of the shape of ``outputs``, float64, on their device.
    """
    z = outputs.detach().double()
    if likelihood == "categorical":
        u = _categorical_cotangent(z, estimator, generator)
    elif likelihood == "bernoulli":
        p = z.sigmoid()
        if estimator == "sampled":
            u = p - (_uniform(z.shape, z, generator) < p).double()
        else:
            u = _signs(z.shape, z, generator) * (p * (-z).sigmoid()).sqrt()
    elif estimator == "sampled":
        u = torch.randn(z.shape, generator=generator, device=_device(generator), dtype=z.dtype).to(z.device)
    else:
        u = _signs(z.shape, z, generator)
    return _masked(u, mask)


def _categorical_cotangent(z: Tensor, estimator: CotangentEstimator, generator: Generator | None) -> Tensor:
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    if estimator == "rademacher":
        weighted = p.sqrt() * _signs(z.shape, z, generator)
        return weighted - p * weighted.sum(-1, keepdim=True)
    one_minus_p = -torch.expm1(log_p)
    if estimator == "sampled":
        label = _draw(p, generator)
        return p.scatter(-1, label, -one_minus_p.gather(-1, label))
    # ‖e_c - p‖² = (1 - p_c)² + sum over the other classes of p²
    others = (p.square().sum(-1, keepdim=True) - p.square()).clamp_min(0)
    distance = one_minus_p.square() + others
    curvature = (p * one_minus_p).sum(-1, keepdim=True)
    label = _draw(p * distance, generator)
    direction = (-p).scatter(-1, label, one_minus_p.gather(-1, label))
    length = direction.norm(dim=-1, keepdim=True)
    scale = torch.where(length > 0, curvature.sqrt() / length.clamp_min(torch.finfo(z.dtype).tiny), 0)
    u = direction * scale
    return u if z.dim() <= 2 else u * _signs((*z.shape[:-1], 1), z, generator)


def exact_cotangents(outputs: Tensor, likelihood: Likelihood, mask: Tensor | None = None) -> Iterator[Tensor]:
    """All columns of a square root of ``H(z)``: the sum of ``‖Jᵀu‖²`` over them is ``tr JᵀHJ`` without error.

    Args:
        outputs: Logits or means, see the module's layout.
        likelihood: The predictive distribution.
        mask: Optional boolean ``(N, *positions)``; positions that are False count zero.

    Yields:
        As many tensors of the shape of ``outputs`` (float64) as one sample has outputs: C for a classifier, C times
        the number of positions where there are several.
    """
    z = outputs.detach().double()
    if likelihood == "categorical":
        p = z.softmax(-1).reshape(len(z), -1, z.shape[-1])
        for position in range(p.shape[1]):
            for c in range(p.shape[2]):  # column c of the root: sqrt(p_c) (e_c - p)
                u = torch.zeros_like(p)
                u[:, position] = -p[:, position] * p[:, position, c : c + 1].sqrt()
                u[:, position, c] += p[:, position, c].sqrt()
                yield _masked(u.reshape(z.shape), mask)
        return
    root = (z.sigmoid() * (-z).sigmoid()).sqrt() if likelihood == "bernoulli" else torch.ones_like(z)
    root = root.reshape(len(z), -1)
    for index in range(root.shape[1]):
        u = torch.zeros_like(root)
        u[:, index] = root[:, index]
        yield _masked(u.reshape(z.shape), mask)


def output_fisher_product(
    outputs: Tensor, likelihood: Likelihood, tangent: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``H(z_n) t_n`` of each sample, and never H.

    Args:
        outputs: Logits or means, see the module's layout.
        likelihood: The predictive distribution.
        tangent: t, like ``outputs``.
        mask: Optional boolean ``(N, *positions)``; positions that are False give zero.

    Returns:
        Like ``outputs``, float64: ``p∘t - p (pᵀt)`` at each position; Bernoulli ``p (1 - p) t``; Gaussian ``t``.
    """
    z, t = outputs.detach().double(), tangent.detach().double()
    if likelihood == "categorical":
        p = z.softmax(-1)
        t = p * (t - (p * t).sum(-1, keepdim=True))
    elif likelihood == "bernoulli":
        t = z.sigmoid() * (-z).sigmoid() * t
    return _masked(t, mask)


def sampling_probabilities(scores: Tensor, admixture: float = 0.1) -> Tensor:
    """Probabilities for drawing samples of a pool, proportional to a score, mixed with the uniform distribution.

    On a confident network one per cent of the samples hold a fifth of the trace; drawing in proportion to
    ``tr H(z_n)`` keeps the error small, the uniform part keeps it bounded where the score is misleading.

    Args:
        scores: ``(P,)``, non-negative.
        admixture: Share of the uniform distribution.

    Returns:
        ``(P,)``, float64, summing to one; uniform if all scores are zero.
    """
    scores = scores.double()
    uniform = torch.full_like(scores, 1 / len(scores))
    total = scores.sum()
    return uniform if total <= 0 else (1 - admixture) * scores / total + admixture * uniform


def draw_samples(probabilities: Tensor, draws: int, *, generator: Generator | None = None) -> Tensor:
    """Draw indices of a pool with replacement.

    Args:
        probabilities: ``(P,)``, as from :func:`sampling_probabilities`.
        draws: How many.
        generator: Source of the draws; the global generator of the CPU if None.

    Returns:
        ``(draws,)`` int64.
    """
    return _draw(probabilities.double().expand(draws, -1), generator).squeeze(-1)


def trace_estimate(values: Tensor, probabilities: Tensor | None = None, pool: int | None = None) -> TraceEstimate:
    """Mean over a pool and its standard error, from per-sample values drawn with known probabilities.

    With draws ``n = 1..D`` of probability ``π_n`` from a pool of P samples, ``d_n = t_n / (P π_n)``, the trace is
    ``mean(d)`` and its standard error ``sd(d) / sqrt(D)``. Without probabilities every sample of the pool stands in
    ``values`` once; the same formula is then an upper bound of the error, as only the cotangents are random.
    The error says nothing about samples beyond the pool.

    Args:
        values: ``(D,)`` per-sample values ``t_n = ‖J_nᵀ u_n‖²``.
        probabilities: ``(D,)``, the ``π_n`` of each draw; None if every sample was taken once.
        pool: P; needed with ``probabilities``.

    Returns:
        The estimate; its error is NaN for a single value.

    Raises:
        ValueError: ``probabilities`` without ``pool``.
    """
    d = values.detach().double()
    if probabilities is not None:
        if pool is None:
            raise ValueError("trace_estimate: probabilities need the size of the pool, for example pool=256")
        d = d / (pool * probabilities.double().to(d.device))
    stderr = (d.std() / len(d) ** 0.5).item() if len(d) > 1 else float("nan")
    return TraceEstimate(d.mean().item(), stderr)


def fisher_trace(
    outputs: Tensor,
    squared_norms: Callable[[Tensor], Tensor],
    likelihood: Likelihood,
    estimator: CotangentEstimator | Literal["exact"] = "importance",
    *,
    generator: Generator | None = None,
) -> TraceEstimate:
    """Trace of the Fisher information over a batch, every sample taken once.

    Args:
        outputs: Logits or means ``(N, ...)``, see the module's layout.
        squared_norms: Maps cotangents of the shape of ``outputs`` to ``‖J_nᵀ u_n‖²``, ``(N,)``; for example
            ``lambda u: lightning_info.gradients.squared_norms(net, x, u)``.
        likelihood: The predictive distribution.
        estimator: A cotangent of :func:`fisher_cotangent`, or ``"exact"`` for all of :func:`exact_cotangents`.
        generator: Source of all draws; the global generator of the CPU if None.

    Returns:
        The trace of F (mean over the batch) and its standard error: 0 for ``"exact"``, otherwise an upper bound.
    """
    if estimator == "exact":
        values = torch.stack([squared_norms(u).double() for u in exact_cotangents(outputs, likelihood)]).sum(0)
        return TraceEstimate(values.mean().item(), 0.0)
    return trace_estimate(squared_norms(fisher_cotangent(outputs, likelihood, estimator, generator=generator)))


def _device(generator: Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _uniform(shape: tuple[int, ...] | torch.Size, like: Tensor, generator: Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, device=_device(generator), dtype=torch.float64).to(like.device)


def _signs(shape: tuple[int, ...] | torch.Size, like: Tensor, generator: Generator | None) -> Tensor:
    bits = torch.randint(0, 2, shape, generator=generator, device=_device(generator))
    return (2 * bits - 1).to(like.device, like.dtype)


def _draw(weights: Tensor, generator: Generator | None) -> Tensor:
    """Index drawn with probability proportional to ``weights`` along the last axis, ``(..., 1)``."""
    cdf = weights.cumsum(-1)
    point = _uniform((*weights.shape[:-1], 1), weights, generator) * cdf[..., -1:]
    return torch.searchsorted(cdf, point, right=True).clamp_max(weights.shape[-1] - 1)


def _masked(u: Tensor, mask: Tensor | None) -> Tensor:
    return u if mask is None else u * mask.reshape(*mask.shape, *(1,) * (u.dim() - mask.dim()))
