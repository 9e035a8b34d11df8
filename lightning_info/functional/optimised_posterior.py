r"""Weights Q that are trained for a PAC-Bayes bound, in place of those of an ordinary training.

Mean and per-weight standard deviation of Q minimise, by Adam over batches with one draw of the weights for each, a
differentiable relaxation of the kl form,

.. math:: \bigl(\sqrt{\tilde R + B} + \sqrt{B}\bigr)^2, \qquad
          B = \frac{\mathrm{KL}(Q\|P_\lambda) + \log(2 \sqrt N J / \delta)}{2N},

in which a surrogate loss replaces the 0-1 error, and λ of each group of weights takes its best value for the present Q.
It only finds Q. The bound of what is found is computed afterwards, from the 0-1 error of fresh draws, with
:func:`~.pac_bayes.seeger_bound` and the nearest of the J priors (:meth:`~.DiagonalGaussian.nearest_prior`).

This certifies another classifier than the one that was trained: Q is trained again, with the bound as its loss.
``prior_mean`` may be any weights that do not depend on the N samples: those at initialisation, or a network trained on
**other** samples, such as one half of the data with the bound from the other half. The second is a much smaller bound
of another kind, as most of the learning is then in the prior; say so beside it. With Q at that prior it is a hold-out
bound.

Source: Dziugaite & Roy (2017); the relaxation is ``f_quad`` of Rivasplata et al. (2019) and Pérez-Ortiz et al. (2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from lightning_info.functional.diagonal_gaussian import DiagonalGaussian
from lightning_info.functional.pac_bayes import PRIOR_STDS


class Step(NamedTuple):
    """One step of the optimisation.

    Attributes:
        number: Steps taken.
        objective: The relaxed bound on this batch, before the step.
        information: KL(Q‖P), nats, before the step.
    """

    number: int
    objective: float
    information: float


def optimise_posterior(
    loss: Callable[[Tensor, Tensor], Tensor],
    prior_mean: Tensor,
    start: Tensor,
    samples: int,
    *,
    steps: int,
    batch_size: int,
    generator: Generator,
    sizes: Sequence[int] | None = None,
    std: float = 0.03,
    learning_rate: float = 1e-3,
    std_learning_rate: float = 1e-2,
    delta: float = 0.05,
    watch: Callable[[Step], None] | None = None,
) -> DiagonalGaussian:
    """Return Q, with mean and standard deviations that make a bound small.

    Args:
        loss: Surrogate of the error, ``(weights (k,), numbers of samples (B,)) -> mean loss``, differentiable in the
            weights, not below 0. The cross-entropy over ``log 2`` is never below the 0-1 error.
        prior_mean: Mean of the priors, ``(k,)``, independent of the samples.
        start: First mean of Q, ``(k,)``; a trained network, for example.
        samples: N, those that the bound counts.
        steps: Number of steps; the learning rates fall to 0 over them as a cosine.
        batch_size: Samples in a step, drawn without replacement in every epoch.
        generator: Generator of batches and draws, on the CPU.
        sizes: Number of weights in each group that has a λ of its own; by default all weights are one group.
        std: First standard deviation of every weight.
        learning_rate: Of Adam, for the mean.
        std_learning_rate: Of Adam, for the logarithms of the standard deviations.
        delta: Probability that the bound may fail.
        watch: Called before each step.

    Raises:
        ValueError: The shapes of the means differ, or a number is out of range.
    """
    if prior_mean.shape != start.shape or start.dim() != 1:
        raise ValueError(
            f"optimise_posterior: prior_mean of shape {tuple(prior_mean.shape)}, start of shape {tuple(start.shape)}; "
            f"give both as (k,)"
        )
    if not (samples >= 1 and steps >= 1 and 1 <= batch_size <= samples and std > 0 and 0 < delta < 1):
        raise ValueError(
            f"optimise_posterior: samples={samples}, steps={steps}, batch_size={batch_size}, std={std}, delta={delta}; "
            f"the first three are at least 1, a batch has no more than all samples, std is positive, delta between 0 "
            f"and 1"
        )
    prior_mean, weights = prior_mean.detach(), len(start)
    groups = [weights] if sizes is None else list(sizes)
    if sum(groups) != weights:
        raise ValueError(f"optimise_posterior: sizes of {sum(groups)} weights in all; there are {weights}")
    counts = torch.tensor(groups, dtype=start.dtype, device=start.device)
    mean = start.detach().clone().requires_grad_()
    log_std = torch.full_like(mean, math.log(std)).detach().requires_grad_()
    optimiser = torch.optim.Adam(
        [{"params": [mean], "lr": learning_rate}, {"params": [log_std], "lr": std_learning_rate}]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    price = math.log(2 * math.sqrt(samples) / delta) + len(groups) * math.log(len(PRIOR_STDS))
    order = torch.empty(0, dtype=torch.long)
    for number in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(samples, generator=generator)
        batch, order = order[:batch_size], order[batch_size:]
        noise = torch.randn(weights, generator=generator, dtype=mean.dtype).to(mean.device)
        risk = loss(mean + log_std.exp() * noise, batch)
        # at the best λ of a group, λ² = (‖μ - m‖² + tr Σ) / k, its squares add up to k
        squares = torch.split((mean - prior_mean).square() + (2 * log_std).exp(), groups)
        best = torch.stack([part.sum() for part in squares]) / counts
        information = (counts * best.log()).sum() / 2 - log_std.sum()
        rate = (information + price) / (2 * samples)
        objective = ((risk + rate).sqrt() + rate.sqrt()).square()
        if watch is not None:
            watch(Step(number, objective.item(), information.item()))
        optimiser.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return DiagonalGaussian(mean.detach(), log_std.detach().exp())
