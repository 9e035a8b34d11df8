"""Whether a sample has the same prediction beside other samples as in its batch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_info.replica.predicted import Prediction

_EXCLUDED = 5e3
"""Outputs beyond are stand-ins for infinity and tell nothing about the scale of the others."""


def disagreement(part: Prediction, whole: Prediction, index: Tensor, tolerance: float) -> str | None:
    """What in the prediction for some samples is not that of their rows in a larger batch.

    Only counted positions are compared, as padding may be as long as the longest sample of a batch; without a
    likelihood, those that the samples have in the smaller batch.

    Args:
        part: Of the samples.
        whole: Of the larger batch.
        index: Their rows in it.
        tolerance: Relative, and a tenth of it in units of the largest output.
    """
    index = index.to(whole.outputs.device)
    z, expected = part.outputs.detach(), whole.outputs.detach()[index].to(part.outputs)
    y, labels = part.targets, whole.targets[index] if whole.targets is not None else None
    told = f"outputs of shape {tuple(z.shape)} for {tuple(expected.shape)} in the larger batch"
    if (y is None) != (labels is None):
        return "no targets"
    if part.mask is not None or whole.mask is not None:
        here, there = _mask(part), _mask(whole)[index]
        if z.dim() == expected.dim() - 1:  # one position a sample, folded into the sample axis
            z, here = z.unsqueeze(1), here.unsqueeze(1)
            y = None if y is None else y.unsqueeze(1)
        if z.dim() != expected.dim() or here.dim() != there.dim():
            return told
        common = tuple(slice(0, min(pair)) for pair in zip(here.shape, there.shape, strict=True))
        is_complete = here[common].sum() == here.sum() and there[common].sum() == there.sum()
        if not is_complete or z[common].shape != expected[common].shape:
            return told
        is_each = y is not None and y.shape[: here.dim()] == here.shape
        here, there, z, expected = here[common], there[common], z[common], expected[common]
        if not torch.equal(here, there):
            return "other ignored positions"
        z, expected = z[here], expected[here]
        if is_each and y is not None and labels is not None:
            y, labels = y[common][here], labels[common][here]
    elif whole.unknown and z.dim() == expected.dim() > 2:  # nobody counts positions; units are on the last axis
        expected = expected[tuple(slice(0, length) for length in z.shape[:-1])]
    if z.shape != expected.shape:
        return told
    if not alike(z, expected, tolerance):
        return "other outputs than in the larger batch"
    if y is not None and labels is not None and (y.shape != labels.shape or not alike(y, labels, tolerance)):
        return "other targets than in the larger batch"
    return None


def _mask(prediction: Prediction) -> Tensor:
    if prediction.mask is not None:
        return prediction.mask
    return torch.ones(prediction.positions, dtype=torch.bool, device=prediction.outputs.device)


def alike(values: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Within a relative tolerance, and a tenth of it in units of the largest; integers must be equal."""
    if not values.is_floating_point():
        return torch.equal(values, expected.to(values))
    expected = expected.to(values)
    sizes = expected.abs()
    scale = sizes.masked_fill(~(sizes < _EXCLUDED), 0.0).max().item() if sizes.numel() else 1.0
    return torch.allclose(values, expected, rtol=tolerance, atol=0.1 * tolerance * scale, equal_nan=True)
