r"""Local learning coefficient: how fast the volume of nearly as good weights shrinks as more loss is resolved.

.. math:: \hat\lambda = n\beta\,\bigl(\mathbb{E}_w[L(w)] - L(w^*)\bigr), \qquad n\beta = n / \log n,

with the mean loss L of n samples and w drawn from ``exp(-nβ L(w)) · prior(w)`` around the weights ``w*``. In the limit
of large n it is the exponent λ of the volume: half the number of weights in a regular model, less where directions are
flat. With the Gaussian prior of precision γ around ``w*``, a quadratic loss ``½ wᵀHw`` has exactly
``½ Σ h / (h + γ/(nβ))``, half the effective dimension (:func:`~.weight_information.effective_dimension`).

The weights are drawn by Langevin steps with a diagonal preconditioner and a test of acceptance (MALA), so that no step
size biases the result; the mean says nothing unless the chains have converged, which is checked. As all chains start
at ``w*``, they agree before they have explored anything: the distance from it is checked too.

Source: Watanabe, *Algebraic geometry and statistical learning theory* (2009); Lau et al., *The local learning
coefficient* (2023), whose sampler has no test of acceptance; Roberts & Tweedie (1996) for MALA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lightning_info.functional.mcmc_diagnostics import ChainDiagnostics, chain_diagnostics

LARGEST_R_HAT, FEWEST_EFFECTIVE, LARGEST_DRIFT = 1.05, 100.0, 3.0
"""Chains count as converged up to this split R-hat, from so many effective samples, and with a drift of at most so many
of its Monte-Carlo errors."""
ACCEPTANCE = 0.574
"""Share of accepted steps that the step size is brought to before the draws that count (Roberts & Rosenthal 1998)."""

Loss = Callable[[Tensor], Tensor]
"""Function ``(chains, k) -> (chains,)``, differentiable."""


@dataclass(frozen=True)
class LearningCoefficient:
    """A local learning coefficient, and whether the chains that it comes from have converged.

    Attributes:
        value: λ; NaN if it is refused.
        stderr: Monte-Carlo error of the value; it says nothing of other samples.
        chains: Diagnostics of λ along the chains, also where it is refused.
        distance: The same of ``‖w - w*‖²``, which shows directions that the loss does not, and are not yet explored.
        acceptance: Share of accepted steps.
        refused: Why there is no value; empty if there is one.
    """

    value: float
    stderr: float
    chains: ChainDiagnostics
    distance: ChainDiagnostics
    acceptance: float
    refused: str = ""


def local_learning_coefficient(
    loss: Loss,
    start: Tensor,
    samples: float,
    generator: Generator,
    *,
    localisation: float = 100.0,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    inverse_temperature: float | None = None,
    scale: Tensor | None = None,
    chains: int = 4,
    steps: int = 1000,
    burn_in: int = 500,
) -> LearningCoefficient:
    """Return the local learning coefficient at some weights, or why it is refused.

    Args:
        loss: Function of the weights of all chains ``(chains, k)`` that returns mean losses ``(chains,)``, nats.
        start: ``(k,)`` float64, ``w*``, where all chains start; a minimum of the loss, at least nearly.
        samples: n, at least 3.
        generator: Source of the draws, on the CPU.
        localisation: γ, precision of the Gaussian prior around ``w*``.
        log_prior: Log density ``(chains, k) -> (chains,)`` in place of the Gaussian; -inf outside its support.
        inverse_temperature: nβ; by default ``n / log n``.
        scale: ``(k,)``, standard deviations of the directions, to which steps are proportional; by default all equal.
        chains: Number of chains.
        steps: Steps of each that count.
        burn_in: Steps before these, in which the step size is found.

    Raises:
        ValueError: An argument is out of range.
    """
    _check(start, samples, localisation, chains, steps, burn_in)
    n_beta = samples / math.log(samples) if inverse_temperature is None else inverse_temperature
    here = start.detach().double()
    prior = log_prior or (lambda w: -0.5 * localisation * (w - here).square().sum(1))
    least = loss(here.expand(chains, -1))[0].detach().double().item()
    sampler = _Sampler(loss, prior, n_beta, torch.ones_like(here) if scale is None else scale.to(here), generator)
    state = sampler.at(here.expand(chains, -1))
    for step in range(burn_in):
        state, accepted = sampler.step(state)
        sampler.log_step += (accepted.double().mean().item() - ACCEPTANCE) * 10 / (step + 20) ** 0.6
    losses, distances, moved = [], [], 0.0
    for _ in range(steps):
        state, accepted = sampler.step(state)
        losses.append(state.loss)
        distances.append((state.weights - here).square().sum(1))
        moved += accepted.double().mean().item() / steps
    found = chain_diagnostics(n_beta * (torch.stack(losses, 1) - least))
    distance = chain_diagnostics(torch.stack(distances, 1))
    refused = _refusal(found, "loss", moved) or _refusal(distance, "distance from the start", moved)
    if not refused and found.mean < -2 * found.stderr:
        refused = f"the loss around the weights is lower than at them ({found.mean:.3g}): they are no minimum"
    value, stderr = (math.nan, math.nan) if refused else (found.mean, found.stderr)
    return LearningCoefficient(value, stderr, found, distance, moved, refused)


@dataclass(frozen=True)
class _State:
    """Weights of all chains, their losses, log densities and gradients."""

    weights: Tensor
    loss: Tensor
    density: Tensor
    gradient: Tensor


class _Sampler:
    def __init__(self, loss: Loss, prior: Loss, n_beta: float, scale: Tensor, generator: Generator) -> None:
        self._loss, self._prior, self._n_beta, self._scale, self._generator = loss, prior, n_beta, scale, generator
        self.log_step = -0.5 * math.log(max(1.0, len(scale) ** (1 / 3)))

    def at(self, weights: Tensor) -> _State:
        with torch.enable_grad():
            w = weights.detach().clone().requires_grad_()
            loss = self._loss(w).double()
            density = self._prior(w) - self._n_beta * loss
            (gradient,) = torch.autograd.grad(density.sum(), w)
        return _State(w.detach(), loss.detach(), density.detach(), gradient)

    def step(self, state: _State) -> tuple[_State, Tensor]:
        """Propose a step for each chain; return the next state, and where it was accepted."""
        size, shape = math.exp(self.log_step), state.weights.shape
        noise = torch.randn(shape, generator=self._generator, dtype=torch.float64).to(state.weights)
        width, pull = size * self._scale, 0.5 * (size * self._scale) ** 2
        found = self.at(state.weights + pull * state.gradient + width * noise)
        back = (state.weights - found.weights - pull * found.gradient) / width
        ratio = found.density - state.density + 0.5 * (noise.square() - back.square()).sum(1)
        drawn = torch.rand(shape[0], generator=self._generator, dtype=torch.float64).log().to(ratio)
        accepted = (drawn < ratio) & found.density.isfinite()  # NaN is never accepted
        rows = accepted.unsqueeze(1)
        kept = _State(
            torch.where(rows, found.weights, state.weights),
            torch.where(accepted, found.loss, state.loss),
            torch.where(accepted, found.density, state.density),
            torch.where(rows, found.gradient, state.gradient),
        )
        return kept, accepted


def _refusal(found: ChainDiagnostics, what: str, acceptance: float) -> str:
    if not math.isfinite(found.mean):
        return f"a {what} is not finite"
    if found.r_hat > LARGEST_R_HAT:
        return f"the chains disagree on the {what} (R-hat {found.r_hat:.3g}, at most {LARGEST_R_HAT})"
    if found.effective_samples < FEWEST_EFFECTIVE:
        few = f"{found.effective_samples:.3g} effective samples of the {what}"
        return f"{few} are too few (at least {FEWEST_EFFECTIVE:g})"
    if abs(found.drift) > LARGEST_DRIFT * found.drift_stderr:
        return f"the {what} still drifts, by {found.drift:.3g} from the first to the second half"
    if not 0.1 < acceptance < 0.95:
        return f"{acceptance:.0%} of the steps are accepted, so the step size was not found"
    return ""


def _check(start: Tensor, samples: float, localisation: float, chains: int, steps: int, burn_in: int) -> None:
    if start.dim() != 1 or len(start) == 0:
        raise ValueError(f"local_learning_coefficient: start has shape {tuple(start.shape)}; give all weights, (k,)")
    if not (3 <= samples < math.inf):
        raise ValueError(f"local_learning_coefficient: samples={samples}; give at least 3, as n / log n is the scale")
    if not (0 <= localisation < math.inf):
        raise ValueError(f"local_learning_coefficient: localisation={localisation}; give a precision, 0 or more")
    if chains < 2 or steps < 8 or burn_in < 1:
        raise ValueError(
            f"local_learning_coefficient: chains={chains}, steps={steps}, burn_in={burn_in}; give at least 2, 8 and 1"
        )
