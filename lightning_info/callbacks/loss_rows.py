"""Summary rows about the parts of the loss besides the predictive distribution that was found in it."""

from __future__ import annotations

import torch

from lightning_info.replica.predicted import Prediction
from lightning_info.replica.reach import reach_of
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.user_warning import warn

UNEVEN = 1e-3
"""Weights of positions whose relative difference is smaller count as equal."""


def loss_rows(owner: str, name: str, snapshot: ModelSnapshot, prediction: Prediction) -> dict[str, str]:
    """Return rows of the summary; warn if the likelihood may not be the model's, or a mask cannot be seen.

    Args:
        owner: Name of the callback's class.
        name: Name of the module's class.
        snapshot: A snapshot with a few samples.
        prediction: The prediction for them.
    """
    step, likelihood = f"{name}.training_step", f"{prediction.likelihood} outputs {tuple(prediction.outputs.shape[1:])}"
    rows, batch = {}, snapshot.to_device(snapshot.groups[0])
    reach = reach_of(snapshot.module, snapshot.predictor, batch, prediction)
    if reach.beyond:
        rows["unmeasured"] = f"{reach}: the loss of {step} depends on them, the measured {likelihood} do not"
    extra, returned = prediction.extra_loss, prediction.returned
    is_most = returned is not None and abs(extra) > abs(returned.share) + 1e-5
    if reach.share > 0.5 or is_most:
        cause = f", which does not depend on {reach}" if reach.beyond else ""
        warn(
            f"{owner}: most of the loss of {step} does not come from the one known likelihood, {likelihood} a "
            f"sample{cause}. Only the predictive distribution of that likelihood is measured. If the rest is more than "
            f"a penalty, or if the likelihood belongs to an auxiliary head, say what the module predicts: "
            f"{owner}(adapter=...), as in the documentation"
        )
    elif reach.beyond:
        warn(
            f"{owner}: the loss of {step} depends on {reach}, but the measured predictive distribution, "
            f"{likelihood} a sample, does not, so the values say nothing about these weights. If they make a "
            f"prediction, say what the module predicts: {owner}(adapter=...), as in the documentation"
        )
    if abs(extra) > 1e-5:
        rows["not"] = (
            f"{extra:.4g} of the loss of {step}, which is beyond the likelihood as weighed there (penalties, "
            f"other functions of it); only the predictive distribution is measured"
        )
    return rows | _mask_rows(owner, step, prediction)


def _mask_rows(owner: str, step: str, prediction: Prediction) -> dict[str, str]:
    rows, mask, weights = {}, prediction.mask, prediction.weights
    what = "positions" if len(prediction.positions) > 1 else "samples"
    if prediction.has_unknown_weights or (weights is not None and bool(weights.isnan().all())):
        warn(
            f"{owner}: {step} computes its likelihood for each of the {what} apart (reduction='none'), and how its "
            f"loss combines them cannot be seen: {what} that a mask leaves out count as predicted. Return the loss "
            f"with its graph, or pass an adapter whose targets are -100 (classes) where the mask leaves them out"
        )
    if mask is not None and not bool(mask.all()):
        left_out = 1 - mask.double().mean().item()
        rows["mask"] = (
            f"{left_out:.0%} of the {what} of the first {len(mask)} samples, which the loss leaves out (ignored "
            f"targets, weights of 0, a mask), count as 0"
        )
    kept = None if weights is None or mask is None else weights[mask].abs().double()
    if kept is not None and len(kept) > 1 and bool(torch.isfinite(kept).all()):
        mean, low, high = kept.mean().item(), kept.min().item(), kept.max().item()
        if high - low > UNEVEN * mean:
            rows["weights"] = (
                f"the loss weighs the {what} differently, by {low / mean:.2g} to {high / mean:.2g} times the mean; "
                f"like class weights, these are not part of the predictive distribution"
            )
    return rows
