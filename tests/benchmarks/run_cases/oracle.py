"""tr F by its definition, in plain autograd: one sample, one output at a time, float64, eval mode."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_info.gradients.copies import deep_copy

from .case import Predicted, Run, doubled


def fisher_trace(run: Run, module: Any, samples: int) -> float:
    """Mean over the first samples of training of ``sum_y p(y|x) |∇ log p(y|x)|²`` over the trainable weights.

    Args:
        run: That says what the module predicts.
        module: The trained module; it is not changed.
        samples: How many.
    """
    assert run.predicts is not None
    assert run.alone is not None
    module._trainer = None
    module = deep_copy(module).double().eval()
    weights = [p for p in module.parameters() if p.requires_grad]
    total = 0.0
    batches = list(islice(run.alone(), samples))
    torch.set_default_dtype(torch.float64)
    for batch in batches:
        heads = run.predicts(module, doubled(batch))
        for scores, shares in map(scored, [heads] if isinstance(heads, tuple) else heads):
            for score, share in zip(scores.flatten(), shares.flatten().tolist(), strict=True):
                gradients = torch.autograd.grad(score, weights, retain_graph=True, allow_unused=True)
                total += share * sum(g.square().sum().item() for g in gradients if g is not None)
    torch.set_default_dtype(torch.float32)
    return total / len(batches)


def loss_gradient_trace(run: Run, module: Any, samples: int) -> float:
    """Mean over the first samples of training of ``|∇ loss|²``, of the ``training_step`` of each sample alone."""
    assert run.alone is not None
    module._trainer = None
    module = deep_copy(module).double().eval()
    for name in ("log", "log_dict", "manual_backward"):
        vars(module)[name] = lambda *args, **kwargs: None
    weights = [p for p in module.parameters() if p.requires_grad]
    batches = list(islice(run.alone(), samples))
    torch.set_default_dtype(torch.float64)
    total = 0.0
    for batch in batches:
        loss = module.training_step(doubled(batch), 0)
        loss = loss["loss"] if isinstance(loss, dict) else loss
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        total += sum(g.square().sum().item() for g in gradients if g is not None)
    torch.set_default_dtype(torch.float32)
    return total / len(batches)


def scored(predicted: Predicted) -> tuple[Tensor, Tensor]:
    """Scalars ``s`` and weights ``w`` with ``tr F = sum w |∇ s|²``."""
    z, likelihood = predicted
    one = torch.ones_like(z)
    if likelihood == "categorical":  # E |∇ log p(y)|² over the classes on axis 0
        return z.log_softmax(0), z.detach().softmax(0)
    if likelihood == "bernoulli":
        p = z.detach().sigmoid()
        return z, p * (1 - p)
    if likelihood in ("gaussian", "laplace"):
        return z, one
    if likelihood == "huber":  # density exp(-rho(r)) / C with delta = 1
        inner = math.sqrt(2 * math.pi) * math.erf(math.sqrt(0.5))
        return z, one * inner / (inner + 2 * math.exp(-0.5))
    if likelihood == "poisson":  # log-rates
        return z, z.detach().exp()
    if likelihood == "normal":  # means and standard deviations on axis 0
        sigma = z.detach()[1]
        return z, torch.stack([sigma**-2, 2 * sigma**-2])
    raise ValueError(f"{likelihood!r} is no likelihood that is known here")


def impossible(history: dict[str, list[tuple[int, float]]]) -> list[str]:
    """What no information can be: tags with a value outside the bounds that its definition sets."""
    found = set()
    for tag, curve in history.items():
        family, _, rest = tag.partition("/")
        for step, value in curve:
            if not math.isfinite(value):
                continue
            if family == "info_plane" and rest.startswith("I_TY/"):
                whole = dict(history[tag.replace("I_TY", "I_XT")])[step]
                if not -1e-6 <= value <= whole + 1e-6:
                    found.add(tag)
            is_positive = tag in ("fisher/trace", "weight_info/trace", "weight_info/kl", "stability/param_distance")
            if is_positive and value < 0:
                found.add(tag)
    return sorted(found)


def relative(value: float, truth: float) -> float:
    """Relative difference."""
    return abs(value - truth) / max(abs(truth), 1e-30)
