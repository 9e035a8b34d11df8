"""Whether Markov chains have converged: split R-hat, effective sample size, Monte-Carlo error and drift.

Source: Gelman et al., *Bayesian Data Analysis* (3rd ed.), section 11.4-11.5; Geyer (1992) for the truncation of the
autocorrelations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ChainDiagnostics(NamedTuple):
    """Diagnostics of one number along chains.

    Attributes:
        mean: Mean over all draws.
        stderr: Its Monte-Carlo error, ``sd / sqrt(effective_samples)``.
        r_hat: Split R-hat: 1 if the halves of all chains agree, larger if they do not.
        effective_samples: Number of independent draws with the same error.
        drift: Mean of the second halves minus that of the first.
        drift_stderr: Its Monte-Carlo error.
    """

    mean: float
    stderr: float
    r_hat: float
    effective_samples: float
    drift: float
    drift_stderr: float


def chain_diagnostics(draws: Tensor) -> ChainDiagnostics:
    """Return the diagnostics of draws ``(chains, steps)``.

    Raises:
        ValueError: Fewer than 8 steps, or not two axes.
    """
    if draws.dim() != 2 or draws.shape[1] < 8:
        raise ValueError(
            f"chain_diagnostics: draws of shape {tuple(draws.shape)}; give (chains, steps), 8 or more steps"
        )
    draws = draws.detach().double()
    half = draws.shape[1] // 2
    halves = torch.cat([draws[:, :half], draws[:, -half:]])
    within, total = _variances(halves)
    r_hat = math.sqrt(total / within) if within > 0 else (1.0 if total == 0 else math.inf)
    effective = _effective_samples(halves, within, total)
    parts = [draws[:, :half], draws[:, -half:]]
    errors = [math.sqrt(part.var().item() / _effective_samples(part, *_variances(part))) for part in parts]
    drift = (parts[1].mean() - parts[0].mean()).item()
    stderr = math.sqrt(max(total, 0.0) / effective)
    return ChainDiagnostics(draws.mean().item(), stderr, r_hat, effective, drift, math.hypot(*errors))


def _variances(chains: Tensor) -> tuple[float, float]:
    """Return the mean variance within chains, and the estimate of the whole variance."""
    steps = chains.shape[1]
    within = chains.var(1).mean().item()
    between = chains.mean(1).var().item() if len(chains) > 1 else 0.0
    return within, (steps - 1) / steps * within + between


def _effective_samples(chains: Tensor, within: float, total: float) -> float:
    """Return the number of independent draws, at most all of them; autocorrelations end where a pair is negative."""
    count, steps = chains.shape
    if total <= 0:
        return float(count * steps)
    centred = chains - chains.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, 2 * steps)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), 2 * steps)[:, :steps].mean(0) / steps
    correlation = 1 - (within - covariance * steps / (steps - 1)) / total
    correlation[0] = 1.0
    pairs = correlation[: steps // 2 * 2].view(-1, 2).sum(1)
    negative = (pairs < 0).nonzero().flatten().tolist()
    pairs = pairs[: negative[0]] if negative else pairs
    time = -1 + 2 * pairs.cummin(0).values.sum().item()  # of the pairs none is larger than the one before
    return float(count * steps / max(time, 1.0))
