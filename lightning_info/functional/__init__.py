"""The mathematics, as pure functions on tensors: no Lightning, no hooks, no state."""

from lightning_info.functional.binning import (
    CodeInformation,
    Information,
    ShuffledInformation,
    bin_codes,
    bin_targets,
    binned_information,
    code_information,
    shuffled_information,
    subset_information,
    unit_entropies,
)
from lightning_info.functional.fisher import (
    TraceEstimate,
    draw_samples,
    exact_cotangents,
    fisher_cotangent,
    fisher_trace,
    output_fisher_trace,
    sampling_probabilities,
    trace_estimate,
)
from lightning_info.functional.free_energy import free_energy, temperature
from lightning_info.functional.linear_gaussian import (
    gaussian_information,
    generalisation_error,
    linear_information,
    linear_subset_information,
)
from lightning_info.functional.mixture import MixtureInformation, mixture_information
from lightning_info.functional.one_unit import one_unit_information, one_unit_probabilities
from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.weight_information import (
    OptimalLambda,
    complexity,
    diagonal_weight_information,
    expected_loss_rise,
    optimal_lambda,
    posterior_trace,
    weight_information,
)
from lightning_info.functional.weight_noise import diagonal_noise, full_noise, low_rank_noise

__all__ = [
    "CodeInformation",
    "Information",
    "MixtureInformation",
    "OptimalLambda",
    "ShuffledInformation",
    "Spectrum",
    "TraceEstimate",
    "bin_codes",
    "bin_targets",
    "binned_information",
    "code_information",
    "complexity",
    "diagonal_noise",
    "diagonal_weight_information",
    "draw_samples",
    "exact_cotangents",
    "expected_loss_rise",
    "fisher_cotangent",
    "fisher_trace",
    "free_energy",
    "full_noise",
    "gaussian_information",
    "generalisation_error",
    "linear_information",
    "linear_subset_information",
    "low_rank_noise",
    "mixture_information",
    "one_unit_information",
    "one_unit_probabilities",
    "optimal_lambda",
    "output_fisher_trace",
    "posterior_trace",
    "sampling_probabilities",
    "shuffled_information",
    "subset_information",
    "temperature",
    "trace_estimate",
    "unit_entropies",
    "weight_information",
]
