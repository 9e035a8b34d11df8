"""The 0-1 error of predicted labels: a loss between 0 and 1, as PAC-Bayes bounds need it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_info.quantities.weight_information.direct_call import DirectCall, Run
from lightning_info.replica.predicted import NoPrediction, Prediction

KINDS = ("categorical", "bernoulli")


def labels_of(prediction: Prediction) -> Tensor | None:
    """Return the labels of a batch, ``(N, *positions)``; None if the module does not predict labels.

    Labels are classes, or 0 and 1 for each logit; soft ones (label mixing, probabilities) are none.
    """
    targets = prediction.targets
    kind = getattr(prediction.likelihood, "name", prediction.likelihood)
    if prediction.unknown or kind not in KINDS or targets is None or targets.numel() == 0:
        return None
    if tuple(targets.shape) != prediction.positions:
        return None
    if kind == "categorical":
        return None if targets.is_floating_point() else targets
    return targets if ((targets == 0) | (targets == 1)).all() else None


def errors(outputs: Tensor, prediction: Prediction, mask: Tensor | None) -> Tensor:
    """Return the share of wrong labels of each sample, ``(N,)`` float64: 0 or 1 where a sample has one label.

    Args:
        outputs: Outputs at any weights, in the layout of the prediction.
        prediction: The prediction that has the labels.
        mask: True where a position counts, ``(N, *positions)``; None: everywhere.

    Raises:
        NoPrediction: The module does not predict labels.
    """
    labels = labels_of(prediction)
    if labels is None:
        raise NoPrediction("the targets are no labels")
    is_joint = getattr(prediction.likelihood, "name", prediction.likelihood) == "categorical"
    wrong = (outputs.argmax(-1) != labels) if is_joint else ((outputs > 0) != (labels > 0))
    wrong = wrong.double().reshape(len(labels), -1)
    if mask is None:
        return wrong.mean(1)
    kept = mask.to(wrong.device).double().reshape(len(labels), -1)
    return (wrong * kept).sum(1) / kept.sum(1).clamp_min(1)


def errors_of_call(call: DirectCall, run: Run) -> dict[str, Tensor]:
    """Return the same for a direct call."""
    return {"errors": errors(run(), call.prediction, call.mask)}


def constant_error(labels: Tensor, kind: str) -> float:
    """Return the error of always predicting the commonest label, at each output of its own where they are 0 and 1."""
    if kind == "categorical":
        return 1 - torch.bincount(labels.flatten().clamp_min(0)).max().item() / labels.numel()
    ones = labels.double().mean(0)
    return torch.minimum(ones, 1 - ones).mean().item()
