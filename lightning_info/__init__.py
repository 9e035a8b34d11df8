"""What a neural network learns, live in TensorBoard: callbacks for a PyTorch Lightning ``Trainer``."""

from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.effective_info import EffectiveInfoCallback
from lightning_info.callbacks.fisher_trace import FisherTraceCallback
from lightning_info.callbacks.info_plane import InfoPlaneCallback
from lightning_info.callbacks.stability import StabilityCallback
from lightning_info.callbacks.weight_info import WeightInfoCallback
from lightning_info.comparison import RunComparison, compare_runs
from lightning_info.offline import MeasureResult, measure
from lightning_info.replica.likelihood_choice import LikelihoodCall

__version__ = "0.1.0.dev0"

__all__ = [
    "EffectiveInfoCallback",
    "FisherTraceCallback",
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
