"""The mathematics, as pure functions on tensors: no Lightning, no hooks, no state."""

from lightning_info.functional.binning import (
    Information,
    bin_codes,
    bin_targets,
    binned_information,
    subset_information,
    unit_entropies,
)
from lightning_info.functional.code_information import (
    CodeInformation,
    ShuffledInformation,
    code_information,
    exact_information,
    shuffled_information,
)
from lightning_info.functional.codes import exact_codes
from lightning_info.functional.diagonal_gaussian import DiagonalGaussian, NearestPrior
from lightning_info.functional.distortion import DistortionLevel, distortion_level, quadratic_level
from lightning_info.functional.dropout_information import DropoutInformation, DropoutNoise, dropout_information
from lightning_info.functional.effective_information import (
    EffectiveInformation,
    effective_information,
    running_maximum,
)
from lightning_info.functional.fisher import (
    TraceEstimate,
    draw_samples,
    exact_cotangents,
    fisher_cotangent,
    fisher_trace,
    output_fisher_product,
    output_fisher_trace,
    sampling_probabilities,
    trace_estimate,
)
from lightning_info.functional.free_energy import free_energy, temperature
from lightning_info.functional.gradient_noise import GradientNoise, gradient_noise_scale, measured_temperature
from lightning_info.functional.lanczos import Eigenpairs, Tridiagonal, quadrature, runs, spectra
from lightning_info.functional.learning_coefficient import LearningCoefficient, local_learning_coefficient
from lightning_info.functional.linear_gaussian import (
    gaussian_information,
    generalisation_error,
    linear_information,
    linear_subset_information,
)
from lightning_info.functional.mixture import MixtureInformation, mixture_information
from lightning_info.functional.optimised_posterior import optimise_posterior
from lightning_info.functional.output_kl import output_kl
from lightning_info.functional.pac_bayes import (
    PRIOR_STDS,
    RiskBound,
    binomial_tail_inverse,
    gibbs_risk_bound,
    kl_inverse,
    mcallester_bound,
    seeger_bound,
)
from lightning_info.functional.prequential import code_excess, prequential_code
from lightning_info.functional.rate_distortion import RatePoint, parting
from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.stability import shannon_from_stability, unique_information
from lightning_info.functional.theory.activation_covariance import (
    activation_covariance,
    diagonal_activation_covariance,
    low_rank_activation_covariance,
)
from lightning_info.functional.theory.activation_fisher import (
    activation_fisher,
    brunel_nadal_information,
    gaussian_channel_information,
    layer_fisher,
)
from lightning_info.functional.theory.gaussian_bottleneck import gaussian_bottleneck
from lightning_info.functional.theory.one_unit import one_unit_information, one_unit_probabilities
from lightning_info.functional.theory.shannon_information import ShannonInformation, shannon_information
from lightning_info.functional.usable_information import UsableInformation, usable_information
from lightning_info.functional.weight_information import (
    OptimalLambda,
    complexity,
    diagonal_weight_information,
    effective_dimension,
    expected_loss_rise,
    optimal_lambda,
    posterior_trace,
    weight_information,
)
from lightning_info.functional.weight_noise import diagonal_noise, full_noise, lanczos_noise, low_rank_noise

__all__ = [
    "PRIOR_STDS",
    "CodeInformation",
    "DiagonalGaussian",
    "DistortionLevel",
    "DropoutInformation",
    "DropoutNoise",
    "EffectiveInformation",
    "Eigenpairs",
    "GradientNoise",
    "Information",
    "LearningCoefficient",
    "MixtureInformation",
    "NearestPrior",
    "OptimalLambda",
    "RatePoint",
    "RiskBound",
    "ShannonInformation",
    "ShuffledInformation",
    "Spectrum",
    "TraceEstimate",
    "Tridiagonal",
    "UsableInformation",
    "activation_covariance",
    "activation_fisher",
    "bin_codes",
    "bin_targets",
    "binned_information",
    "binomial_tail_inverse",
    "brunel_nadal_information",
    "code_excess",
    "code_information",
    "complexity",
    "diagonal_activation_covariance",
    "diagonal_noise",
    "diagonal_weight_information",
    "distortion_level",
    "draw_samples",
    "dropout_information",
    "effective_dimension",
    "effective_information",
    "exact_codes",
    "exact_cotangents",
    "exact_information",
    "expected_loss_rise",
    "fisher_cotangent",
    "fisher_trace",
    "free_energy",
    "full_noise",
    "gaussian_bottleneck",
    "gaussian_channel_information",
    "gaussian_information",
    "generalisation_error",
    "gibbs_risk_bound",
    "gradient_noise_scale",
    "kl_inverse",
    "lanczos_noise",
    "layer_fisher",
    "linear_information",
    "linear_subset_information",
    "local_learning_coefficient",
    "low_rank_activation_covariance",
    "low_rank_noise",
    "mcallester_bound",
    "measured_temperature",
    "mixture_information",
    "one_unit_information",
    "one_unit_probabilities",
    "optimal_lambda",
    "optimise_posterior",
    "output_fisher_product",
    "output_fisher_trace",
    "output_kl",
    "parting",
    "posterior_trace",
    "prequential_code",
    "quadratic_level",
    "quadrature",
    "running_maximum",
    "runs",
    "sampling_probabilities",
    "seeger_bound",
    "shannon_from_stability",
    "shannon_information",
    "shuffled_information",
    "spectra",
    "subset_information",
    "temperature",
    "trace_estimate",
    "unique_information",
    "unit_entropies",
    "usable_information",
    "weight_information",
]
