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
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from lightning_info.functional import draws as random
from lightning_info.functional.likelihoods import CotangentEstimator, Likelihood, LikelihoodLike, likelihood_named
from lightning_info.functional.standard_error import standard_error
from lightning_info.validation import one_of

MOST_NUMBERS = 1 << 19
"""Largest number of logits in float64 at once (4 MiB), if there are many classes."""


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


def output_fisher_trace(outputs: Tensor, likelihood: LikelihoodLike, mask: Tensor | None = None) -> Tensor:
    """Return the trace of the output Fisher information, ``tr H(z_n)``, of each sample.

    Args:
        outputs: Logits or means, see the module's layout.
        likelihood: The predictive distribution.
        mask: Optional boolean ``(N, *positions)``; positions that are False count zero.

    Returns:
        ``(N,)``, float64: ``sum p (1 - p)`` for categorical and Bernoulli, the number of outputs for Gaussian.

    Raises:
        ValueError: There is no likelihood of that name.
    """
    distribution = likelihood_named(likelihood, "output_fisher_trace")
    per_output = _by_rows(distribution, distribution.fisher_trace, outputs.detach())
    if mask is not None:  # a predicted variance has the mask of its mean
        per_output = per_output * mask.reshape(*mask.shape, *(1,) * (per_output.dim() - mask.dim()))
    return per_output.flatten(1).sum(1) if per_output.dim() > 1 else per_output


def fisher_cotangent(
    outputs: Tensor,
    likelihood: LikelihoodLike,
    estimator: CotangentEstimator = "importance",
    *,
    generator: Generator | None = None,
    mask: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Draw one ``u`` per sample with ``E[u uᵀ] = H(z)``, so ``‖Jᵀu‖²`` estimates ``tr JᵀHJ`` without bias.

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
        estimator: The kind of ``u``.
        generator: Source of all draws; the global generator of the CPU if None; :class:`~.draws.EachSample` for one of
            each sample.
        mask: Optional boolean ``(N, *positions)``; positions that are False get ``u = 0``.
        dtype: Dtype of the result, which is computed in float64.

    Returns:
        Tensor of the shape of ``outputs``, on their device.

    Raises:
        ValueError: There is no likelihood or estimator of that name.
    """
    one_of("fisher_cotangent", "estimator", estimator, get_args(CotangentEstimator))
    distribution = likelihood_named(likelihood, "fisher_cotangent")

    def draw(z: Tensor, source: Generator | None) -> Tensor:
        return _by_rows(distribution, lambda rows: distribution.cotangent(rows, estimator, source).to(dtype), z)

    z = outputs.detach()
    if isinstance(generator, random.EachSample) and distribution.has_class_axis and z.numel() > MOST_NUMBERS:
        u = torch.cat([draw(one, source) for one, source in zip(torch.split(z, 1), generator.of, strict=True)])
    else:
        u = draw(z, generator)
    return _masked(distribution, u, mask)


def exact_cotangents(outputs: Tensor, likelihood: LikelihoodLike, mask: Tensor | None = None) -> Iterator[Tensor]:
    """Yield all columns of a square root of ``H(z)``: the sum of ``‖Jᵀu‖²`` over them is ``tr JᵀHJ`` without error.

    Args:
        outputs: Logits or means, see the module's layout.
        likelihood: The predictive distribution.
        mask: Optional boolean ``(N, *positions)``; positions that are False count zero.

    Returns:
        An iterator over tensors of the shape of ``outputs`` (float64), as a rule as many as one sample has outputs; of
        C classes C - 1, times the number of positions where there are several.

    Raises:
        ValueError: There is no likelihood of that name.
    """
    distribution = likelihood_named(likelihood, "exact_cotangents")
    return (_masked(distribution, u, mask) for u in distribution.fisher_root(outputs.detach().double()))


def output_fisher_product(
    outputs: Tensor, likelihood: LikelihoodLike, tangent: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return ``H(z_n) t_n`` of each sample, without forming H.

    Args:
        outputs: Logits or means, see the module's layout.
        likelihood: The predictive distribution.
        tangent: t, like ``outputs``.
        mask: Optional boolean ``(N, *positions)``; positions that are False give zero.

    Returns:
        Like ``outputs``, float64: ``p∘t - p (pᵀt)`` at each position; Bernoulli ``p (1 - p) t``; Gaussian ``t``.

    Raises:
        ValueError: There is no likelihood of that name.
    """
    distribution = likelihood_named(likelihood, "output_fisher_product")
    product = _by_rows(distribution, distribution.fisher_product, outputs.detach(), tangent.detach())
    return _masked(distribution, product, mask)


def sampling_probabilities(scores: Tensor, admixture: float = 0.1) -> Tensor:
    """Return probabilities for drawing samples of a pool, proportional to a score, mixed with the uniform distribution.

    On a confident network one per cent of the samples hold a fifth of the trace; drawing in proportion to
    ``tr H(z_n)`` keeps the error small, the uniform part keeps it bounded where the score is misleading.

    Args:
        scores: ``(P,)``, finite and not negative.
        admixture: Share of the uniform distribution, from 0 to 1.

    Returns:
        ``(P,)``, float64, summing to one; uniform if all scores are zero.

    Raises:
        ValueError: A score is negative or not finite; ``admixture`` is not between 0 and 1.
    """
    scores = scores.double()
    if not (scores.isfinite() & (scores >= 0)).all():
        raise ValueError(
            f"sampling_probabilities: scores must be finite and not negative, got {scores.min().item():.4g} to "
            f"{scores.max().item():.4g}; for example scores=output_fisher_trace(outputs, 'categorical')"
        )
    if not 0 <= admixture <= 1:
        raise ValueError(f"sampling_probabilities: admixture={admixture} is a share; for example admixture=0.1")
    uniform = torch.full_like(scores, 1 / len(scores))
    total = scores.sum()
    return uniform if total <= 0 else (1 - admixture) * scores / total + admixture * uniform


def draw_samples(probabilities: Tensor, draws: int, *, generator: Generator | None = None) -> Tensor:
    """Draw indices of a pool with replacement.

    Args:
        probabilities: ``(P,)``, as from :func:`sampling_probabilities`.
        draws: Number of draws.
        generator: Source of the draws; the global generator of the CPU if None.

    Returns:
        ``(draws,)`` int64.
    """
    return random.index(probabilities.double().expand(draws, -1), generator).squeeze(-1)


def trace_estimate(values: Tensor, probabilities: Tensor | None = None, pool: int | None = None) -> TraceEstimate:
    """Return the mean over a pool and its standard error, from per-sample values drawn with known probabilities.

    With draws ``n = 1..D`` of probability ``π_n`` from a pool of P samples, ``d_n = t_n / (P π_n)``, the trace is
    ``mean(d)`` and its standard error ``sd(d) / sqrt(D)``, by Student's factor larger (:mod:`~.standard_error`).
    Without probabilities every sample of the pool stands in ``values`` once; the same formula is then an upper bound of
    the error, as only the cotangents are random.
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
    return TraceEstimate(d.mean().item(), standard_error(d))


def fisher_trace(
    outputs: Tensor,
    squared_norms: Callable[[Tensor], Tensor],
    likelihood: LikelihoodLike,
    estimator: CotangentEstimator | Literal["exact"] = "importance",
    *,
    generator: Generator | None = None,
) -> TraceEstimate:
    """Estimate the trace of the Fisher information over a batch, every sample taken once.

    Args:
        outputs: Logits or means ``(N, ...)``, see the module's layout.
        squared_norms: Maps cotangents of the shape of ``outputs`` to ``‖J_nᵀ u_n‖²``, ``(N,)``; for example
            ``lambda u: lightning_info.gradients.squared_norms(net, x, u)``.
        likelihood: The predictive distribution.
        estimator: A cotangent of :func:`fisher_cotangent`, or ``"exact"`` for all of :func:`exact_cotangents`.
        generator: Source of all draws; the global generator of the CPU if None.

    Returns:
        The trace of F (mean over the batch) and its standard error: 0 for ``"exact"``, otherwise an upper bound.

    Raises:
        ValueError: There is no likelihood or estimator of that name.
    """
    one_of("fisher_trace", "estimator", estimator, (*get_args(CotangentEstimator), "exact"))
    if estimator == "exact":
        values = torch.stack([squared_norms(u).double() for u in exact_cotangents(outputs, likelihood)]).sum(0)
        return TraceEstimate(values.mean().item(), 0.0)
    return trace_estimate(squared_norms(fisher_cotangent(outputs, likelihood, estimator, generator=generator)))


def _by_rows(distribution: Likelihood, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply a function to float64 tensors with classes on the last axis, some rows at a time if there are many."""
    shape = tensors[0].shape
    if not distribution.has_class_axis or tensors[0].numel() <= MOST_NUMBERS or len(shape) < 2:
        return function(*(tensor.double() for tensor in tensors))
    many = max(1, MOST_NUMBERS // shape[-1])
    blocks = zip(*(torch.split(tensor.flatten(0, -2), many) for tensor in tensors), strict=True)
    if len(shape) > 2:  # positions of a sample, each with a sign of its own
        found = [function(*(part.unsqueeze(0).double() for part in parts)).squeeze(0) for parts in blocks]
    else:
        found = [function(*(part.double() for part in parts)) for parts in blocks]
    whole = torch.cat(found)
    return whole.reshape(*shape[:-1], *whole.shape[1:])


def _masked(distribution: Likelihood, u: Tensor, mask: Tensor | None) -> Tensor:
    return u if mask is None else distribution.masked(u, mask)
