"""Whether passes over the same samples give the same: what they draw is fixed, and what they keep is put back."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.batches import num_samples, take
from lightning_info.gradients.layout import Batch
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.replica.predicted import NoPrediction, Prediction
from lightning_info.replica.prediction import Predictor

MOST_NAMED = 3
"""Attributes that are named."""


def repeated(
    predict: Predictor, module: nn.Module, batch: Any, first: Prediction, writes: bool
) -> tuple[Prediction, str]:
    """The prediction for a batch, once more, and what of the state that passes change it depends on, in words.

    Args:
        predict: The predictor.
        module: A private replica.
        batch: On its device.
        first: What it gave before.
        writes: The module writes to its parameters when it runs.

    Raises:
        NoPrediction: It is another one, or a part of the state belongs to the samples of the batch before.
    """
    second = predict(module, batch)
    if _is_same(first, second):
        return second, _kept_on_self(predict, module, batch, second)
    cause = "it draws numbers from a source that cannot be seeded here; torch's, numpy's global one and random can"
    if writes:
        cause = "it changes its parameters while it runs"
    raise NoPrediction(
        f"{type(module).__name__} gives other outputs in a second pass over the same samples in eval mode; {cause}"
    )


def _kept_on_self(predict: Predictor, module: nn.Module, batch: Any, last: Prediction) -> str:
    """After a pass over the batch; empty where there is no such state."""
    before = {name: value for name, value in predict.state.changed(module).items() if _is_state(value)}
    if not before:
        return ""
    with predict.state.lasting(module):
        predict(module, batch)
        try:
            if _is_same(last, predict(module, batch)):
                return ""
        except Exception as error:
            if is_out_of_memory(error):
                raise
    names = list(before)
    listed = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
    bound = _of_batch(predict, module, batch, before)
    start = predict.state.now(module, bound)
    if any(map(_shapes, start.values())):  # a batch has gone before
        raise NoPrediction(
            f"{predict.source(type(module).__name__)} computes with state kept on self that has a row for each sample "
            f"of the batch before ({', '.join(bound[:MOST_NAMED])}), so that what it predicts for a sample depends on "
            f"another one. An adapter predicts from a state of its own, zeros for example"
        )
    predict.state.start |= copy.deepcopy(start)
    text = f"kept on self from batch to batch ({listed}); every pass starts from what it is at the point"
    if bound:
        text += f"; of {', '.join(bound[:MOST_NAMED])}, with a row a sample, from what it is before the first step"
    return text


def _of_batch(predict: Predictor, module: nn.Module, batch: Any, before: dict[str, Any]) -> list[str]:
    """Names of tensors that have another shape after other numbers of samples."""
    size = num_samples(batch)
    fewest = batch.layout.fewest if isinstance(batch, Batch) else 1
    few = max(fewest, size - 1) if size > fewest else size + 1
    predict(module, take(batch, torch.arange(few) % size))
    after = predict.state.changed(module)
    return [name for name, value in before.items() if _shapes(value) != _shapes(after.get(name))]


def _is_state(value: Any) -> bool:
    """Something that a computation can depend on; not a graph that is held, or a record of values."""
    return not isinstance(value, nn.Module)


def _shapes(value: Any) -> list[torch.Size]:
    if isinstance(value, Tensor):
        return [value.shape]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [shape for item in items for shape in _shapes(item)]


def _is_same(first: Prediction, second: Prediction) -> bool:
    return first.outputs.shape == second.outputs.shape and torch.allclose(
        first.outputs, second.outputs, rtol=1e-3, atol=1e-4, equal_nan=True
    )
