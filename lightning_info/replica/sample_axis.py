"""The experiment that tells the sample axis of a batch: cut and permute samples, and see whether predictions follow.

A leaf is of samples if cutting and permuting it with the others cuts and permutes the predictions. A module whose
samples are independent predicts for a sample the same in its whole batch, beside other samples, and alone.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_info.gradients.batches import company, num_samples, shuffled, spread_index, take, tensors
from lightning_info.gradients.contract import first_line
from lightning_info.gradients.layout import (
    GO_ON,
    Batch,
    Layout,
    Path,
    by_length,
    describe,
    is_plain_list,
    objects_in,
    rebuilt,
)
from lightning_info.gradients.layout import lengths as tensor_lengths
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.plan import checked_samples, float64_copy, float64_tensors
from lightning_info.gradients.ragged import ragged_layouts
from lightning_info.gradients.sample_objects import Objects
from lightning_info.replica.disagreement import alike, disagreement
from lightning_info.replica.predicted import NoPrediction, Prediction
from lightning_info.replica.prediction import Predictor

MOST_TRIALS = 64
"""Ways to tell the leaves of samples from those of the batch that are tried for one number of samples."""
MOST_ALONE = 4
"""Samples of a batch that go through alone. Cut and permuted are twice as many as engines are compared on."""


class SamplesMixed(ValueError):
    """A sample's prediction depends on the others in its batch, as far as one can cut it.

    Args:
        whole: The batch, as it was cut.
        fault: What is seen then.
    """

    def __init__(self, whole: Batch, fault: str) -> None:
        super().__init__(_told(whole, fault))
        self.fault = fault


Layouts = dict[Hashable, Layout | SamplesMixed]
"""What experiments found, by what they looked at."""


def first_predictions(predict: Predictor, module: nn.Module, batch: Any) -> tuple[Batch, Prediction]:
    """The prediction for a whole batch, for the likeliest number of samples that it can be read with.

    Args:
        predict: The predictor.
        module: A replica.
        batch: On its device; a :class:`~.layout.Batch` has its number.

    Raises:
        NoPrediction: Of the likeliest number, if there is none for any.
    """
    error: NoPrediction | None = None
    without: tuple[Batch, Prediction] | None = None  # a likelihood, which there may be for another number
    for size in _sizes(batch):
        whole = batch if isinstance(batch, Batch) else Batch(batch, by_length(batch, size))
        if not whole.layout.axes and not whole.layout.objects:  # the length of a list that holds tensors
            continue
        try:
            prediction = predict(module, whole)
        except NoPrediction as one:
            error = error or one
            continue
        if not prediction.unknown or prediction.is_hand_written:
            return whole, prediction
        without = without or (whole, prediction)
    if without is not None:
        return without
    assert error is not None
    raise error


def sample_layout(
    module: nn.Module, predict: Predictor, whole: Batch, base: Prediction | None, is_given: bool = False
) -> Layout:
    """Find the leaves that carry samples, by experiment.

    Args:
        module: A private replica.
        predict: The predictor.
        whole: A training batch on its device, as :func:`first_predictions` gives it.
        base: The prediction for it; None if it is to be made anew.
        is_given: The layout is known, and only the samples' independence is looked at.

    Raises:
        SamplesMixed: There is no way to cut the batch into samples.
    """
    ordered: Layout | None = None
    first: tuple[Batch, str] | None = None
    sizes = [len(whole)] if is_given else [len(whole), *(n for n in _sizes(whole.bare) if n not in (1, len(whole)))]
    kinds = [lambda batch, size: [whole.layout]] if is_given else [_layouts, ragged_layouts]
    for layouts, size in itertools.product(kinds, sizes):
        trials = [Batch(whole.bare, layout) for layout in layouts(whole.bare, size)]
        if not trials:
            continue
        try:
            experiment = _Experiment(module, predict, trials[0], base if size == len(whole) else None)
        except _Fault as fault:
            first = first or (trials[0], str(fault))
            continue
        for trial in trials:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of shapes that do not fit one another in a wrong trial
                found, seen = experiment.look(trial)
            if found is not None and not found.ordered:
                return found
            ordered = ordered or found
            first = first or (trial, seen)
    if ordered is not None:
        return ordered
    assert first is not None
    raise SamplesMixed(*first)


def needs_order(module: nn.Module, predict: Predictor, batches: Iterable[Any]) -> bool:
    """Whether some batch goes through as it is and fails in another order, which the first one did not show."""
    for batch in batches:
        try:
            predict(module, batch)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return False
        try:
            predict(module, take(batch, shuffled(num_samples(batch))))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return True
    return False


class _Fault(Exception):
    """A trial that fails; the message tells what is seen."""


class _Experiment:
    """Trials on one batch, for one number of samples.

    Args:
        module: A replica.
        predict: The predictor.
        whole: The batch.
        base: The prediction for it, if it is there.
    """

    def __init__(self, module: nn.Module, predict: Predictor, whole: Batch, base: Prediction | None) -> None:
        self.module, self.predict = module, predict
        self.base = _predicted(predict, module, whole) if base is None else base
        self.precise = float64_copy(module)
        self.positions: dict[int, int] = {}  # of those of some samples that went through alone

    def look(self, whole: Batch) -> tuple[Layout | None, str]:
        """The layout of a trial, ordered if only permuted samples are not right; or None, and what is seen."""
        if len(whole) == 1:
            return whole.layout, ""
        index = spread_index(len(whole), 2 * checked_samples(self.module))
        try:
            some, cut = self._cut(take(whole, index))
            _compare(cut, self.base, index, 1e-2)
            fewest = self._fewest(some, cut)
            for start in (0, 1):
                part = torch.arange(start, len(index), 2)
                if len(part) >= fewest:
                    _compare(self._of(some, part), cut, part, self._tolerance)
        except _Fault as fault:
            return None, str(fault)
        layout = replace(whole.layout, fewest=max(fewest, whole.layout.fewest), lengths=self._lengths(some, cut))
        if layout.ordered:
            return layout, ""
        order = shuffled(len(index))
        try:
            permuted = self._of(some, order)
            _compare(permuted, cut, order, self._tolerance)
            _compare_gradients(permuted, cut, order, self._tolerance)
        except _Fault as fault:
            return replace(layout, ordered=True), str(fault)
        return layout, ""

    @property
    def _tolerance(self) -> float:
        return 1e-3 if self.precise is None else 1e-6

    def _cut(self, some: Batch) -> tuple[Batch, Prediction]:
        """Some samples and their prediction, in float64 if the module runs in it."""
        if self.precise is not None:
            doubled = float64_tensors(some)
            try:
                cut = self.predict(self.precise, doubled)
                if cut.outputs.dtype == torch.float64:
                    return doubled, cut
            except Exception as error:
                if is_out_of_memory(error):
                    raise
        cut = _predicted(self.predict, self.module, some)
        self.precise = None
        return some, cut

    def _of(self, some: Batch, index: Tensor) -> Prediction:
        return _predicted(self.predict, self.module if self.precise is None else self.precise, take(some, index))

    def _lengths(self, some: Batch, cut: Prediction) -> Path | None:
        """The leaf of integers that tells how many positions the samples have that went through alone."""
        if all(length == _positions(cut.outputs) for length in self.positions.values()):
            return None
        found: list[Path] = []

        def visit(path: Path, value: Any) -> Any:
            is_number = isinstance(value, Tensor) and value.dim() == 1 and not value.is_floating_point()
            if is_number and path in some.layout.axes and all(int(value[i]) == n for i, n in self.positions.items()):
                found.append(path)
            return GO_ON

        rebuilt(some.bare, visit)
        return found[0] if found else None

    def _fewest(self, some: Batch, cut: Prediction) -> int:
        """Samples that the module takes at least: one, or two where only a batch of one is special to it."""
        first: _Fault | None = None
        for fewest in (1, 2):
            try:
                for i in spread_index(len(some), MOST_ALONE).tolist():
                    few = company(i, len(some), fewest)
                    alone = self._of(some, few)
                    _compare(alone, cut, few, self._tolerance)
                    self.positions[i] = _positions(alone.outputs) if fewest == 1 else _positions(cut.outputs)
            except _Fault as fault:
                first = first or fault
            else:
                return fewest
        assert first is not None
        raise first


def _compare(part: Prediction, whole: Prediction, index: Tensor, tolerance: float) -> None:
    found = disagreement(part, whole, index, tolerance)
    if found is not None:
        raise _Fault(f"{_counted(len(index))} gave {found}")


def _compare_gradients(part: Prediction, whole: Prediction, order: Tensor, tolerance: float) -> None:
    """Of the loss in the outputs, which class weights enter."""
    try:
        expected = whole.loss_gradient()
    except Exception:  # there is none, whatever the reason
        return
    try:
        found = part.loss_gradient()
    except Exception as error:
        raise _Fault(f"the loss of permuted samples failed with {type(error).__name__}: {first_line(error)}") from error
    if found.shape != expected.shape or not alike(found, expected[order.to(expected.device)], tolerance):
        raise _Fault(f"{len(order)} permuted samples had another loss")


def _positions(outputs: Tensor) -> int:
    return outputs.shape[1] if outputs.dim() > 1 else 1


def _predicted(predict: Predictor, module: nn.Module, batch: Batch) -> Prediction:
    try:
        return predict(module, batch)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _Fault(f"{_counted(len(batch))} failed with {type(error).__name__}: {first_line(error)}") from error


def _counted(samples: int) -> str:
    return "one sample alone" if samples == 1 else f"{samples} samples"


def _sizes(batch: Any) -> list[int]:
    """Numbers of samples that a batch may have, the likeliest first."""
    if isinstance(batch, Batch):
        return [len(batch)]
    sizes = tensor_lengths(batch)

    def visit(path: Path, value: Any) -> Any:
        if path and is_plain_list(value) and len(value) > 1 and any(True for _ in tensors(value)):
            sizes.append(len(value))
        return GO_ON

    rebuilt(batch, visit)
    return list(dict.fromkeys(size for size in sizes if size > 0))


def _layouts(batch: Any, size: int) -> Iterator[Layout]:
    """Leaves that may carry so many samples: all whose axis 0 has the length, then fewer, and axis 1 beside them."""
    count = 0
    for whole_lists in (False, True):
        first, second, others, objects = _leaves(batch, size, whole_lists)
        if whole_lists and not any(_is_list_of_tensors(leaf) for leaf in first.values()):
            return
        beside: list[tuple[Path, ...]] = [(), tuple(second)] if second else [()]
        if 1 < len(second) < 4:
            beside += [(path,) for path in second]
        for left_out in range(len(first) + 1):
            for dropped, turned in itertools.product(itertools.combinations(first, left_out), beside):
                if any(path in turned for path in dropped):
                    continue
                axes = {path: 0 for path in first if path not in dropped} | dict.fromkeys(turned, 1)
                rest = (path for path in (*dropped, *second, *others) if path not in axes)
                if (axes or objects) and count < MOST_TRIALS:
                    count += 1
                    yield Layout(axes, frozenset(rest), objects=objects)


def _leaves(
    batch: Any, size: int, whole_lists: bool
) -> tuple[dict[Path, Any], list[Path], list[Path], dict[Path, Objects]]:
    """Leaves with so many entries on axis 0, and on axis 1; the other ones; and parts with so many graphs."""
    first: dict[Path, Any] = {}
    second: list[Path] = []
    known = objects_in(batch)
    objects = {path: found for path, (found, count) in known.items() if count == size}
    rest = [path for path in known if path not in objects]

    def visit(path: Path, value: Any) -> Any:
        if path in known:
            return value
        if isinstance(value, (Tensor, np.ndarray)):
            if value.ndim > 0 and len(value) == size:
                first[path] = value
            if value.ndim > 1 and value.shape[1] == size:
                second.append(path)
            if path not in first and path not in second:
                rest.append(path)
            return value
        if path and is_plain_list(value) and len(value) == size and (whole_lists or not _is_list_of_tensors(value)):
            first[path] = value
            return value
        return GO_ON

    rebuilt(batch, visit)
    return first, second, rest, objects


def _is_list_of_tensors(value: Any) -> bool:
    return is_plain_list(value) and any(True for _ in tensors(value))


def _told(whole: Batch, fault: str) -> str:
    """Which parts of the batch were cut, and which were not, with their shapes."""
    cut: list[str] = []
    kept: list[str] = []

    def visit(path: Path, value: Any) -> Any:
        if path in whole.layout.objects:
            cut.append(f"{describe(path)} (a {type(value).__name__})")
            return value
        axis = whole.layout.axes.get(path)
        if isinstance(value, (Tensor, np.ndarray)):
            text = f"{describe(path)} {tuple(value.shape)}"
            kept.append(text) if axis is None else cut.append(text + (f" along axis {axis}" if axis else ""))
        elif axis is not None:
            cut.append(f"{describe(path)} (a {type(value).__name__} of {len(value)})")
        return GO_ON if axis is None else value

    rebuilt(whole.bare, visit)
    rest = f"kept whole: {', '.join(kept)}" if kept else "nothing was kept whole"
    return f"of a batch of {len(whole)} samples these were cut: {', '.join(cut)}; {rest}; and {fault}"
