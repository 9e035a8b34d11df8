"""A row for each reference sample: its gradient norms, and what else is used to find hard or mislabelled samples.

The plain loss is always among the columns: gradient norms and margins often order the samples no better.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_info.gradients import Plan
from lightning_info.quantities.fisher_trace.sampling import COTANGENT, Estimator, sample_norms
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import ModelSnapshot


def sample_table(snapshot: ModelSnapshot, plan: Plan, estimator: Estimator, generator: Generator) -> dict[str, Tensor]:
    """Return columns ``(P,)`` float64, in the order of the samples.

    - ``loss``: training loss at the label of the data, nats; positions are summed.
    - ``model_gradient_norm``: square root of the sample's part of tr F, ``E ‖∇ log p(y|x)‖²`` over labels of the model.
      With an estimator other than ``"exact"`` the square is from one draw: unbiased, with the noise of that draw.
    - ``data_gradient_norm``: norm of the gradient of the loss ("GraNd").
    - ``margin``: logit of the label minus the largest other one; of labels 0 and 1, the logit with the label's sign.
    - ``el2n``: ``‖p - y‖₂``, the length of the error of the probabilities. Both are means over positions.

    Columns that there is no label, or no gradient of a single sample, for are left out. Source: Paul, Ganguli &
    Dziugaite (2021); Pleiss et al. (2020).

    Raises:
        Unavailable: Outputs or gradients are not finite.
        NotCovered: The plan's engine no longer fits the replica.
    """
    parts: list[dict[str, Tensor]] = []
    for batch in snapshot.parts():
        parts.append(_of_outputs(snapshot.predictor(snapshot.module, batch)))
    known = [name for name in parts[0] if all(name in part for part in parts)]
    table = {name: torch.cat([part[name] for part in parts]) for name in known}
    if plan.engine == COTANGENT:
        return table
    by_model: Estimator = "importance" if estimator == "empirical" else estimator
    table["model_gradient_norm"] = sample_norms(snapshot, plan, by_model, generator).sqrt()
    if "loss" in table:
        table["data_gradient_norm"] = sample_norms(snapshot, plan, "empirical", generator).sqrt()
    return table


def _of_outputs(prediction: Prediction) -> dict[str, Tensor]:
    if not prediction.has_loss:
        return {}
    z, found = prediction.outputs.detach(), {"loss": _losses(prediction).cpu()}
    y, kind = prediction.targets, getattr(prediction.likelihood, "name", prediction.likelihood)
    if y is None or tuple(y.shape) != prediction.positions or kind not in ("categorical", "bernoulli"):
        return found
    mask = torch.ones(prediction.positions, device=z.device) if prediction.mask is None else prediction.mask
    mask, z = mask.to(z.device).double().reshape(len(z), -1), z.double()
    if kind == "categorical":
        if y.is_floating_point():
            return found
        label = y.clamp(0, z.shape[-1] - 1).unsqueeze(-1)
        others = z.scatter(-1, label, -torch.inf).amax(-1)
        margin = z.gather(-1, label).squeeze(-1) - others
        error = z.softmax(-1).scatter_add(-1, label, -torch.ones_like(label, dtype=torch.float64)).norm(dim=-1)
        found["el2n"] = _mean(error, mask)
    else:
        margin = (2 * y.double() - 1) * z
        found["el2n"] = ((z.sigmoid() - y.double()).reshape(len(z), -1).square() * mask).sum(1).sqrt().cpu()
    found["margin"] = _mean(margin, mask)
    return found


def _losses(prediction: Prediction) -> Tensor:
    """Return the training loss of each sample, by masks of all others."""
    z, whole = prediction.outputs.detach(), prediction.mask
    whole = torch.ones(prediction.positions, dtype=torch.bool, device=z.device) if whole is None else whole.to(z.device)
    found = []
    for number in range(len(z)):
        own = torch.zeros_like(whole)
        own[number] = whole[number]
        found.append(prediction.summed_of(z, own).detach().double().reshape(()))
    return torch.stack(found)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the kept positions of each sample, NaN where there is none."""
    values = torch.where(mask > 0, values.reshape(len(values), -1), 0.0)
    return (values.sum(1) / mask.sum(1)).cpu()
