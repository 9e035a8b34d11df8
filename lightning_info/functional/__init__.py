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
from lightning_info.functional.linear_gaussian import (
    gaussian_information,
    generalisation_error,
    linear_information,
    linear_subset_information,
)
from lightning_info.functional.mixture import MixtureInformation, mixture_information
from lightning_info.functional.one_unit import one_unit_information, one_unit_probabilities

__all__ = [
    "CodeInformation",
    "Information",
    "MixtureInformation",
    "ShuffledInformation",
    "TraceEstimate",
    "bin_codes",
    "bin_targets",
    "binned_information",
    "code_information",
    "draw_samples",
    "exact_cotangents",
    "fisher_cotangent",
    "fisher_trace",
    "gaussian_information",
    "generalisation_error",
    "linear_information",
    "linear_subset_information",
    "mixture_information",
    "one_unit_information",
    "one_unit_probabilities",
    "output_fisher_trace",
    "sampling_probabilities",
    "shuffled_information",
    "subset_information",
    "trace_estimate",
    "unit_entropies",
]
