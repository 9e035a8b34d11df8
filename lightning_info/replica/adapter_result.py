"""What an adapter returns, read as the prediction for a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_info.functional.likelihoods import Likelihood, OfParameters, PerOutput
from lightning_info.replica.loss_recognition import BY_NAME, of_parameters, values
from lightning_info.replica.predicted import NoPrediction, Prediction


def from_adapter(returned: Any, samples: int) -> Prediction:
    """What an adapter's answer says of a batch.

    Args:
        returned: ``(outputs, targets)`` or ``(outputs, targets, likelihood)``.
        samples: In the batch.

    Raises:
        NoPrediction: It is something else, or leaves the likelihood open.
    """
    forms = "(outputs, targets) or (outputs, targets, likelihood)"
    if not isinstance(returned, (tuple, list)) or len(returned) not in (2, 3):
        raise NoPrediction(f"the adapter returned {_describe(returned)} instead of {forms}")
    outputs, targets = returned[:2]
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        is_complex = isinstance(outputs, Tensor) and outputs.is_complex()
        raise NoPrediction(
            f"the adapter's outputs are {_describe(outputs)}; they must be a floating-point tensor"
            + (", of complex ones torch.view_as_real(outputs)" if is_complex else "")
        )
    if not isinstance(targets, (Tensor, type(None))):
        raise NoPrediction(f"the adapter's targets are {_describe(targets)}; they must be a tensor or None")
    if len(returned) == 3:
        likelihood = returned[2]
        if isinstance(likelihood, OfParameters):
            return of_parameters(likelihood, outputs, targets, samples)
        if isinstance(likelihood, PerOutput):
            return values({"input": outputs, "target": targets}, samples, likelihood)
        likelihood = likelihood.name if isinstance(likelihood, Likelihood) else likelihood
        if likelihood not in BY_NAME:
            raise NoPrediction(f"the adapter named the likelihood {likelihood!r}; choose one of {', '.join(BY_NAME)}")
    elif targets is not None and not targets.is_floating_point() and outputs.dim() == targets.dim() + 1:
        likelihood = "categorical"
    else:
        raise NoPrediction(
            f"outputs of shape {tuple(outputs.shape)} from the adapter leave the likelihood open; return it too, for "
            f'example (outputs, targets, "gaussian")'
        )
    return BY_NAME[likelihood]({"input": outputs, "target": targets}, samples)


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
