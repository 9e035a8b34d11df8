"""What a neural network learns, live in TensorBoard: callbacks for a PyTorch Lightning ``Trainer``.

A name is imported when it is first used: TensorBoard, which only wants the tab, does not wait for torch.
"""

from typing import TYPE_CHECKING

from lightning_info.lazy import lazily

if TYPE_CHECKING:
    from lightning_info.callbacks.base import InfoCallback
    from lightning_info.callbacks.effective_info import EffectiveInfoCallback
    from lightning_info.callbacks.fisher_trace import FisherTraceCallback
    from lightning_info.callbacks.gradient_noise import GradientNoiseCallback
    from lightning_info.callbacks.info_plane import InfoPlaneCallback
    from lightning_info.callbacks.stability import StabilityCallback
    from lightning_info.callbacks.weight_info import WeightInfoCallback
    from lightning_info.comparison import RunComparison, compare_runs
    from lightning_info.offline.measure import MeasureResult, measure
    from lightning_info.replica.likelihood_choice import LikelihoodCall

__version__ = "0.1.0.dev0"

__all__ = [
    "EffectiveInfoCallback",
    "FisherTraceCallback",
    "GradientNoiseCallback",
    "InfoCallback",
    "InfoPlaneCallback",
    "LikelihoodCall",
    "MeasureResult",
    "RunComparison",
    "StabilityCallback",
    "WeightInfoCallback",
    "__version__",
    "compare_runs",
    "measure",
]

_HOMES = {
    "EffectiveInfoCallback": "callbacks.effective_info",
    "FisherTraceCallback": "callbacks.fisher_trace",
    "GradientNoiseCallback": "callbacks.gradient_noise",
    "InfoCallback": "callbacks.base",
    "InfoPlaneCallback": "callbacks.info_plane",
    "LikelihoodCall": "replica.likelihood_choice",
    "MeasureResult": "offline",
    "RunComparison": "comparison",
    "StabilityCallback": "callbacks.stability",
    "WeightInfoCallback": "callbacks.weight_info",
    "compare_runs": "comparison",
    "measure": "offline",
}

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
