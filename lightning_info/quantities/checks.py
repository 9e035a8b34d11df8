"""Checks of what a quantity returns: a mistake is reported in one sentence and never becomes a number."""

from __future__ import annotations

import copy
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.quantities.quantity import Point, Quantity
from lightning_info.replica.label_dependence import label_dependence
from lightning_info.replica.predicted import NoPrediction
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.reporting.table import Curve


class InvalidValues(ValueError):
    """A quantity did not return one number for each tag; the message says what to return."""


class WrongQuantity(ValueError):
    """A quantity itself is wrong, whatever it is measured on; the message says what to write."""


def check_quantity(owner: str, quantity: object) -> None:
    """Refuse what is not a quantity, one without a name, and invalid arguments of one.

    Raises:
        ValueError: It is refused; the message says what to write instead.
    """
    if isinstance(quantity, type) and issubclass(quantity, Quantity):
        raise ValueError(f"{owner}: {quantity.__name__} is a class; pass an instance, {owner}({quantity.__name__}())")
    if not isinstance(quantity, Quantity):
        raise ValueError(
            f"{owner}: {quantity!r} is not a Quantity; pass an instance of a subclass of "
            f"lightning_info.quantities.Quantity"
        )
    kind, name = type(quantity).__name__, getattr(quantity, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[^/\s]+", name) or name in (".", ".."):
        example = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
        problem = "has no name" if name is None else f"has the name {name!r}, which must be one word without slashes"
        raise ValueError(f"{owner}: {kind} {problem}; it is the first part of the tags, for example name = {example!r}")
    quantity.check(owner)


def prepared(quantity: Quantity, snapshot: ModelSnapshot, point: Point) -> dict[str, str]:
    """Return what :meth:`~.Quantity.prepare` returns, at least ``"measures"``; try a quantity that has no ``cost``.

    Raises:
        NotMeasurable: The quantity says so.
        NoPrediction: It needs a likelihood, and the outputs depend on what they should predict.
        WrongQuantity: It declares tags, or returns values on a few samples, that cannot be shown; or it changes the
            replica.
    """
    rows: Any = quantity.prepare(snapshot, point)
    if quantity.needs_likelihood and (reason := label_dependence(snapshot)):
        raise NoPrediction(reason)
    kind = type(quantity).__name__
    if rows is not None and not isinstance(rows, Mapping):
        raise WrongQuantity(f"{kind}.prepare returned {_described(rows)}; return a dict of texts, or nothing")
    if isinstance(quantity.tags, str):
        raise WrongQuantity(f"{kind}.tags is a string; give a tuple, tags = ({quantity.tags!r},)")
    try:
        check_tags(quantity, quantity.tags)
        _check_shown(quantity)
        if type(quantity).cost is Quantity.cost:
            _try(quantity, snapshot, point)
    except InvalidValues as error:
        raise WrongQuantity(str(error)) from error
    try:
        dict(quantity.settings())
    except Exception as error:
        raise WrongQuantity(f"{kind}.settings fails ({type(error).__name__}: {error}); return a dict") from error
    return {"measures": quantity.name} | {title: str(text) for title, text in (rows or {}).items()}


def check_tags(quantity: Quantity, tags: Iterable[object]) -> None:
    """Refuse tags that are not the quantity's, or that a logger cannot keep beside each other.

    Raises:
        InvalidValues: A tag is refused; the message has one that is accepted.
    """
    kind, name, known = type(quantity).__name__, quantity.name, set(tags)
    for tag in known:
        if not isinstance(tag, str):
            raise InvalidValues(f"{kind} gives {tag!r} as a tag; a tag is a string, for example '{name}/value'")
        first, _, rest = tag.partition("/")
        if not rest or not (first == name or first.startswith(f"{name}_")):
            raise InvalidValues(
                f"{kind} gives the tag {tag!r}; the first part of a tag is {name!r}, or begins with '{name}_', for "
                f"example '{name}/{tag.rpartition('/')[2] or 'value'}'"
            )
        if posixpath.normpath(tag) != tag:
            raise InvalidValues(f"{kind} gives the tag {tag!r}, which has an empty part; '{posixpath.normpath(tag)}'?")
        if tag == f"{name}/overhead":
            raise InvalidValues(f"{kind} gives the tag {tag!r}, which is that of the share of time; use another one")
        for folder in _folders(tag):
            if folder in known:
                raise InvalidValues(
                    f"{kind} gives the tags {folder!r} and {tag!r}; a logger that makes folders of tags cannot keep "
                    f"both, use, for example, '{folder}_all' in place of the first"
                )


def values_of(quantity: Quantity, found: object) -> dict[str, float]:
    """Return what :meth:`~.Quantity.measure` returned, as numbers.

    Raises:
        InvalidValues: It is not a dict, is empty, has a wrong tag, or a value is neither a number nor a tensor of one.
    """
    kind, name = type(quantity).__name__, quantity.name
    if not isinstance(found, Mapping):
        raise InvalidValues(
            f"{kind}.measure returned {_described(found)}; return a dict of numbers by tag, for example "
            f"{{'{name}/value': 1.5}}"
        )
    if not found:
        raise InvalidValues(f"{kind}.measure returned an empty dict; raise Unavailable with the reason instead")
    check_tags(quantity, found)
    return {tag: _number(kind, tag, value) for tag, value in found.items()}


def curves_of(quantity: Quantity, found: object) -> dict[str, Curve]:
    """Return what :meth:`~.Quantity.finish` returned, as steps and numbers.

    Raises:
        InvalidValues: It is not a dict of curves.
    """
    kind = type(quantity).__name__
    if not isinstance(found, Mapping):
        raise InvalidValues(f"{kind}.finish returned {_described(found)}; return a dict of curves [(step, value), ...]")
    check_tags(quantity, found)
    try:
        return {tag: [(int(s), _number(kind, tag, value)) for s, value in curve] for tag, curve in found.items()}
    except TypeError as error:
        raise InvalidValues(f"{kind}.finish gives no curves [(step, value), ...] by tag: {error}") from error


def _check_shown(quantity: Quantity) -> None:
    """Check table and charts, as those of all callbacks are shown together."""
    kind, name = type(quantity).__name__, quantity.name
    for row in quantity.table:
        if isinstance(row, str) or len(row) != 2:
            raise InvalidValues(
                f"{kind}.table holds {row!r}; a row is a tag and the tag of its error, or None, for example "
                f"('{name}/value', None)"
            )
    for title, chart in quantity.charts().items():
        form, tags = chart if len(chart) == 2 else (None, ())
        if form not in ("Margin", "Multiline") or isinstance(tags, str) or (form == "Margin" and len(tags) != 3):
            raise InvalidValues(
                f"{kind}.charts gives {chart!r} for {title!r}; a chart is ('Multiline', tags), or "
                f"('Margin', (tag, tag of the lower end, tag of the upper end))"
            )


def _number(kind: str, tag: str, value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value.detach())
    if not isinstance(value, (Tensor, str, bytes)):
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            pass
    raise InvalidValues(f"{kind} gives {tag!r} {_described(value)}; a value is one real number, or a tensor of one")


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    text = repr(value)
    return "None" if value is None else f"{text if len(text) <= 40 else 'a value'} ({type(value).__name__})"


def _folders(tag: str) -> list[str]:
    parts = tag.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _try(quantity: Quantity, snapshot: ModelSnapshot, point: Point) -> None:
    """Measure a few samples with a copy, on a replica that is thrown away; what fails here may succeed later."""
    before = _state(snapshot.module)
    silent = replace(point, generator=torch.Generator().manual_seed(0), warn=lambda message, kind: None)
    try:
        values_of(quantity, copy.deepcopy(quantity).measure(snapshot.on(snapshot.groups), silent))
    except InvalidValues:
        raise
    except Exception:
        return
    changed = [name for name, value in _state(snapshot.module).items() if not _same(value, before.get(name))]
    if not changed:
        return
    kind, what = type(quantity).__name__, f"changes {changed[0]!r} of the replica that it measures on"
    if quantity.moves_weights or changed[0] not in dict(snapshot.module.named_parameters()):
        raise InvalidValues(f"{kind}.measure {what}; put it back at the end, as other callbacks measure there too")
    raise InvalidValues(
        f"{kind}.measure {what}, whose weights are those of the run; work on a copy, or say moves_weights = True in "
        f"the class and put it back at the end"
    )


def _state(module: nn.Module) -> dict[str, Tensor]:
    tensors = {name: value.detach().clone() for name, value in (*module.named_parameters(), *module.named_buffers())}
    return tensors | {f"{name}.training": torch.tensor(part.training) for name, part in module.named_modules()}


def _same(value: Tensor, other: Tensor | None) -> bool:
    if other is None or value.shape != other.shape:
        return False
    return bool(((value == other) | ((value != value) & (other != other))).all())
