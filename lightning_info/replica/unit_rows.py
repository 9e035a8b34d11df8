"""From the activations of a layer to one row of units for each sample."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lightning_info.gradients.real import as_real, in_double

SampleAxis = Literal["first", "second", "folded"]
"""Where the samples are: on axis 0, on axis 1 (sequence first), or with positions folded into axis 0."""

SHOWN_UNITS = 64
"""Activations of one sample that a histogram shows, evenly spread over the layer."""


def is_discrete(tensor: Tensor) -> bool:
    """Whether it holds integers or booleans."""
    return not tensor.is_floating_point() and not tensor.is_complex()


def by_sample(tensor: Tensor, samples: int, axis: SampleAxis) -> Tensor:
    """The tensor with its samples on axis 0 and positions that were folded into it on axis 1."""
    if axis == "second":
        return tensor.movedim(1, 0)
    if axis == "folded":
        return tensor.reshape(samples, len(tensor) // samples, *tensor.shape[1:])
    return tensor


def possible_axes(tensor: Tensor, samples: int) -> list[SampleAxis]:
    """Where the samples may be, by the shape; the likeliest first."""
    axes: list[SampleAxis] = []
    if len(tensor) == samples:
        axes.append("first")
    if tensor.dim() > 2 and tensor.shape[1] == samples:
        axes.append("second")
    if len(tensor) > samples and len(tensor) % samples == 0:
        axes.append("folded")
    return axes


def units(tensor: Tensor, channels_first: bool, axis: SampleAxis) -> Tensor:
    """One row of units a sample: the mean over positions of every channel, ``(N, units)``.

    Complex units become two, real and imaginary part. Integers and booleans are codes, which have no mean: the row
    holds those at all positions.

    Args:
        tensor: As :func:`by_sample` gives it.
        channels_first: Channels on the axis after the samples (and folded positions), otherwise on the last one.
        axis: Where the samples were.
    """
    if is_discrete(tensor):
        return (tensor.byte() if tensor.dtype == torch.bool else tensor).reshape(len(tensor), -1)
    if tensor.dim() > 2:
        tensor = by_channel(tensor, channels_first, axis).mean(2)
    return as_real(tensor).reshape(len(tensor), -1)


def by_channel(tensor: Tensor, channels_first: bool, axis: SampleAxis) -> Tensor:
    """``(N, channels, positions)`` of a tensor with positions; the arguments are those of :func:`units`."""
    channel = 1 + (axis == "folded") if channels_first else tensor.dim() - 1
    return tensor.movedim(channel, 1).flatten(2)


def all_rows(tensor: Tensor, channels_first: bool, axis: SampleAxis) -> Tensor | None:
    """A copy of all activations, ``(N, channels, positions)``, of a tensor as :func:`by_sample` gives it.

    Complex channels become two; None of codes.
    """
    if is_discrete(tensor):
        return None
    if tensor.dim() < 3:
        return as_real(tensor).reshape(len(tensor), -1, 1).clone()
    rows = by_channel(tensor, channels_first, axis)
    return as_real(rows).movedim(-1, 2).flatten(1, 2).clone() if rows.is_complex() else rows.clone()


def mean_of(rows: Tensor, kept: Tensor) -> Tensor:
    """Mean over the positions that are kept, ``(N, C, P), (N, P) -> (N, C)``; 0 where none is.

    In double precision, so that equal samples with more padding are equal.
    """
    kept = kept.to(rows.device)[:, None]
    total = in_double(torch.where(kept, rows, 0)).sum(2)
    mean = (total / kept.sum(2).clamp_min(1)).to(rows.dtype)
    return as_real(mean).reshape(len(mean), -1)


def shown_units(rows: Tensor) -> Tensor:
    """Values at single positions, ``(N, at most SHOWN_UNITS)``, of a tensor as :func:`by_sample` gives it.

    Of layers with positions always as many, whatever the length of a sequence; in no step with its axes.
    """
    flat = as_real(rows).reshape(len(rows), -1)
    width = flat.shape[1]
    if rows.dim() < 3 and width <= SHOWN_UNITS:
        return flat.clone()
    return flat.index_select(1, _places(width).to(flat.device))


@lru_cache(maxsize=64)
def _places(width: int) -> Tensor:
    golden = torch.arange(SHOWN_UNITS, dtype=torch.float64) * ((5**0.5 - 1) / 2) % 1
    return (golden * width).long()
