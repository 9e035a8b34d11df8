"""State that a module keeps from batch to batch (hidden states, counters, queues): every pass starts from the same.

A pass over a replica works on copies of the tensors that it writes to, and what it binds anew is bound back: buffers,
attributes, and what is in containers and plain objects that hang on the module. Which these are the first pass shows.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_info.replica.stand_in_trainer import Silent

_LEAVES = (
    *(str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device, np.ndarray, Tensor, Silent),
    *(ModuleType, FunctionType, BuiltinFunctionType, MethodType),
)
_NO_STATE = {*vars(nn.Module()), "_trainer", "_fabric"} - {"_buffers"}
"""Attributes of modules that are not looked into."""
_GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
    np.random.Generator: (
        lambda one: one.bit_generator.state,
        lambda one, state: setattr(one.bit_generator, "state", state),
    ),
    np.random.RandomState: (np.random.RandomState.get_state, np.random.RandomState.set_state),
}
"""How to read and to put back what draws."""


@dataclass(eq=False)
class _Place:
    """A dict, list, deque or set, or the attributes of an object.

    Attributes:
        name: How a user would write it.
        owner: Itself.
        is_object: It holds attributes.
        before: What it held before a pass.
        given: Copies of its tensors that a pass has in their place, by key.
    """

    name: str
    owner: Any
    is_object: bool
    before: Any = None
    given: dict[Any, Tensor] = field(default_factory=dict)

    def lend_copies(self, copied: Callable[[Tensor], Tensor | None]) -> None:
        self.before, self.given = self.owner.copy(), {}
        for key, value in _items(self.before):
            if isinstance(value, Tensor) and (own := copied(value)) is not None:
                self.given[key] = self.owner[key] = own

    def named(self) -> dict[str, Any]:
        """Keys by the names of what they hold."""
        if isinstance(self.owner, set):
            return {}
        keys = dict(_items(self.owner))
        return {f"{self.name}.{key}" if self.is_object else f"{self.name}[{key!r}]": key for key in keys}

    def changed(self) -> dict[str, Any]:
        """What a pass has bound or written, by name."""
        if isinstance(self.owner, set):
            return {} if self.owner == self.before else {self.name: None}
        now, before = dict(_items(self.owner)), dict(_items(self.before))
        found = {}
        for key in dict.fromkeys((*before, *now)):
            own = self.given.get(key)
            is_bound = key not in now or key not in before or now[key] is not (before[key] if own is None else own)
            if is_bound or (own is not None and own._version > 0):
                found[f"{self.name}.{key}" if self.is_object else f"{self.name}[{key!r}]"] = now.get(key)
        return found

    def put_back(self) -> None:
        if self._is_as_before():  # it may be one that cannot be written to
            return
        if isinstance(self.owner, dict) and list(self.owner) == list(self.before):
            self.owner.update(self.before)
            return
        self.owner.clear()
        (self.owner.update if isinstance(self.owner, (dict, set)) else self.owner.extend)(self.before)

    def _is_as_before(self) -> bool:
        if isinstance(self.owner, set):
            return bool(self.owner == self.before)
        now, before = _items(self.owner), _items(self.before)
        return len(now) == len(before) and all(
            k is j and value is other for (k, value), (j, other) in zip(now, before, strict=True)
        )


class KeptState:
    """What passes over replicas change besides their weights, put back after each.

    Args:
        start: What every pass starts from in the place of what a replica has, by name; this dict is written to.

    Attributes:
        has_drawn: A generator of the module's own has drawn in the last pass.
    """

    def __init__(self, start: dict[str, Any] | None = None) -> None:
        self.has_drawn = False
        self.start = {} if start is None else start
        self._known: WeakKeyDictionary[nn.Module, tuple[list[_Place], list[Any]]] = WeakKeyDictionary()
        self._changed: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()
        self._is_lasting = False

    @contextmanager
    def passing(self, module: nn.Module) -> Iterator[None]:
        """One pass over a replica; whatever is inside of another one follows it as in training."""
        if self._is_lasting:
            yield
            return
        is_first = module not in self._known
        places, generators = found = _state_of(module) if is_first else self._known[module]
        states = [(one, *_GENERATORS[type(one)]) for one in generators]
        restore = [(put, one, get(one), get) for one, get, put in states]
        copied = _copier(module, places)
        for place in places:
            place.lend_copies(copied)
            for name, key in place.named().items() if self.start else ():
                if name in self.start:
                    place.owner[key] = copy.deepcopy(self.start[name])
        try:
            yield
        finally:
            changes = [place.changed() for place in places]
            self._changed[module] = {name: value for some in changes for name, value in some.items()}
            for place in places:
                place.put_back()
            self.has_drawn = any(pickle.dumps(get(one)) != pickle.dumps(state) for _, one, state, get in restore)
            for put, one, state, _ in restore:
                put(one, state)
            self._known[module] = [p for p, some in zip(places, changes, strict=True) if some], found[1]
            for place in places:
                place.before, place.given = None, {}

    @contextmanager
    def lasting(self, module: nn.Module) -> Iterator[None]:
        """Passes inside follow one another as in training; all is put back at the end."""
        with self.passing(module):
            self._is_lasting = True
            try:
                yield
            finally:
                self._is_lasting = False

    def now(self, module: nn.Module, names: Collection[str]) -> dict[str, Any]:
        """What a replica has at the names of things that its passes change."""
        places, _ = self._known[module]
        return {name: place.owner[key] for place in places for name, key in place.named().items() if name in names}

    def changed(self, module: nn.Module) -> dict[str, Any]:
        """What the last pass over a replica has changed: its value by name."""
        return self._changed.get(module, {})


def _state_of(module: nn.Module) -> tuple[list[_Place], list[Any]]:
    """What a module may keep state in, and what draws."""
    places: list[_Place] = []
    generators: list[Any] = []
    seen: set[int] = set()
    waiting: deque[tuple[str, Any]] = deque()
    for path, part in module.named_modules():
        if isinstance(part, (torch.jit.ScriptModule, _BatchNorm)) and (
            part.training or not isinstance(part, _BatchNorm)
        ):
            continue  # BatchNorm takes statistics where it is told to
        name = f"self.{path}" if path else "self"
        places += [_Place(name, vars(part), True), _Place(name, part._buffers, True)]
        seen |= {id(part), id(part._buffers)}
        waiting += [(f"{name}.{key}", value) for key, value in vars(part).items() if key not in _NO_STATE]
    while waiting:
        name, value = waiting.popleft()
        if isinstance(value, (*_LEAVES, nn.Module)) or id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) in _GENERATORS:
            generators.append(value)
        elif isinstance(value, (dict, list, set, deque)):
            places.append(_Place(name, value, False))
            waiting += [(f"{name}[{key!r}]", item) for key, item in _items(value)]
        elif isinstance(value, tuple):
            waiting += [(f"{name}[{place}]", item) for place, item in enumerate(value)]
        elif not hasattr(type(value), "__deepcopy__") and isinstance(getattr(value, "__dict__", None), dict):
            places.append(_Place(name, vars(value), True))
            waiting += [(f"{name}.{key}", item) for key, item in vars(value).items()]
    return places, generators


def _copier(module: nn.Module, places: list[_Place]) -> Callable[[Tensor], Tensor | None]:
    """Gives a copy of a tensor, the same for the same one; None for a weight and for what shares memory with others."""
    held = {id(v): v for place in places for _, v in _items(place.owner) if isinstance(v, Tensor)}
    weights = {_memory(p) for p in module.parameters()}
    owners = Counter(map(_memory, held.values()))
    copies: dict[int, Tensor] = {}

    def copied(tensor: Tensor) -> Tensor | None:
        memory = _memory(tensor)
        if tensor.requires_grad or memory is None or memory in weights or owners[memory] > 1:
            return None
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.clone()
        return copies[id(tensor)]

    return copied


def _memory(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() if tensor.numel() else id(tensor)
    except (RuntimeError, NotImplementedError):  # wrapped by torch.func, or not strided
        return None


def _items(content: Any) -> list[tuple[Any, Any]]:
    if isinstance(content, dict):
        return list(content.items())
    return [] if isinstance(content, set) else list(enumerate(content))
