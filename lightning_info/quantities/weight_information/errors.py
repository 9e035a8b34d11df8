"""Standard errors of the values that ``WeightInfoCallback`` logs from a spectrum by Lanczos' method."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning_info.functional.rate_distortion import RatePoint
from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.spectrum_bracket import Ends, bracketed_error, level_error, probe_error
from lightning_info.functional.weight_information import effective_dimension, expected_loss_rise, weight_information
from lightning_info.quantities.weight_information.curvature import LanczosCurvature


def spectrum_errors(curvature: LanczosCurvature, temperature: float) -> dict[str, float]:
    """Return standard errors, by tag, of the values that need no prior.

    Args:
        curvature: F of the mean loss.
        temperature: T of the free energy.
    """
    spectra, bracket = curvature.spectra, curvature.bracket
    free_energy = bracketed_error(lambda s: s.log_det(1.0), spectra, bracket.log_det(1.0))
    return {
        "weight_info/trace_stderr": probe_error(lambda s: s.trace, spectra),
        "weight_info/effective_rank_stderr": bracketed_error(
            lambda s: s.effective_rank, spectra, bracket.effective_rank
        ),
        "weight_info/free_energy_stderr": temperature / 2 * free_energy,
    }


def information_errors(
    curvature: LanczosCurvature,
    n: float,
    distance: float | None,
    here: RatePoint,
    prior_std: Callable[[Spectrum], float],
) -> dict[str, float]:
    """Return standard errors, by tag, of the values that depend on a level and a prior.

    Args:
        curvature: F of the mean loss.
        n: N training samples.
        distance: ``‖w - w_ref‖²``; None if it, and so the KL, is not known.
        here: The level, with the measured loss.
        prior_std: Function of the spectrum of N F that returns λ at this level.
    """
    summed, bracket = [one.scaled(n) for one in curvature.spectra], curvature.bracket.scaled(n)
    beta, rise = here.beta, bracket.expected_loss_rise(here.beta, here.lambda_)

    def error(value: Callable[[Spectrum, float], float], ends: Callable[[float], Ends]) -> float:
        return level_error(value, summed, bracket, ends, prior_std)

    def kl_error(squared_distance: float) -> float:
        return error(
            lambda s, std: weight_information(s, squared_distance, beta, std),
            lambda std: bracket.weight_information(squared_distance, beta, std),
        )

    return {
        # drawn with as many steps, the noise raises a quadratic loss by what Gauss' rule says
        "weight_info/expected_loss_stderr": math.hypot(here.stderr, rise.systematic(rise.high) / n),
        "weight_info/kl_stderr": math.nan if distance is None else kl_error(distance),
        "weight_info/kl_precision_stderr": kl_error(0.0),
        "weight_info/log_det_stderr": error(
            lambda s, std: s.log_det(beta / std**2), lambda std: bracket.log_det(beta / std**2)
        ),
        "weight_info/effective_dimension_stderr": error(
            lambda s, std: effective_dimension(s, beta / std**2), lambda std: bracket.effective_dimension(beta, std)
        ),
        "weight_info/predicted_loss_stderr": error(
            lambda s, std: expected_loss_rise(s, beta, std) / n,
            lambda std: Ends(*(end / n for end in bracket.expected_loss_rise(beta, std))),
        ),
        "weight_info/lambda_stderr": error(lambda s, std: std, lambda std: Ends(std, std)),
    }
