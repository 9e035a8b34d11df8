"""The mathematics, as pure functions on tensors: no Lightning, no hooks, no state."""

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

__all__ = [
    "TraceEstimate",
    "draw_samples",
    "exact_cotangents",
    "fisher_cotangent",
    "fisher_trace",
    "output_fisher_trace",
    "sampling_probabilities",
    "trace_estimate",
]
