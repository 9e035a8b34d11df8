"""Callbacks that may change what is trained: every call of their hooks is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from lightning_info.replica.blame import text_of
from lightning_info.twin.certificate import comparable, equal, fingerprint
from lightning_info.twin.copying import tensors_of
from lightning_info.twin.randomness import random_state

IN_STEP = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end",
)  # fmt: skip
"""Hooks around and within a step: the state after them is compared with the state before.

Between two steps a callback may exchange the weights for a validation and put them back; there only the module's
attributes are compared at each call, and the weights and optimisers from one step to the next (see ``Twin``).
"""


class Watch:
    """Checks the hooks of other callbacks for one twin; several may check the same.

    Attributes:
        found: The first change by one of them, in a sentence; None as long as there was none.
    """

    def __init__(self) -> None:
        self.found: str | None = None
        self._hooks: list[WatchedHook] = []

    @property
    def names(self) -> list[str]:
        """Names of the watched hooks, as ``Class.hook``."""
        return [hook.name for hook in self._hooks]

    def install(self, hooks: Iterable[tuple[Any, str]]) -> None:
        """Check these hooks from now on, each a callback and a name."""
        self.uninstall()
        self.found = None
        for callback, name in hooks:
            hook = vars(callback).get(name)
            if not isinstance(hook, WatchedHook):
                hook = vars(callback)[name] = WatchedHook(callback, name)
            hook.watches.append(self)
            self._hooks.append(hook)

    def uninstall(self) -> None:
        """Leave the callbacks as they were."""
        for hook in self._hooks:
            hook.watches.remove(self)
            if not hook.watches:
                hook.remove()
        self._hooks = []


class WatchedHook:
    """Wraps a hook of one callback, and reports what a call of it has changed.

    Attributes:
        own: The callback's own attribute of this name, if it had one; else its class's method is called.
        watches: Receivers of the reports.
    """

    def __init__(self, callback: Any, hook: str) -> None:
        self.own = vars(callback).get(hook)
        self.name, self.watches = f"{type(callback).__name__}.{hook}", list[Watch]()
        self._callback, self._hook = callback, hook
        self._function: Callable[..., Any] = getattr(callback, hook)

    def __call__(self, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the hook, and compare the states before and after."""
        before = self._state(trainer, args)
        result = self._function(trainer, *args, **kwargs)
        after = self._state(trainer, args)
        if before is not None and after is not None:
            changed = [what for what in {**before, **after} if before.get(what) != after.get(what)]
            if changed:
                self._tell(f"changed {', '.join(changed)}, which the twin does not follow")
        return result

    def _state(self, trainer: Any, args: Any) -> dict[str, Any] | None:
        if all(watch.found is not None for watch in self.watches):
            return None
        try:
            state = _attributes(trainer.lightning_module)
            return state | _of_step(trainer, args, self._hook) if self._hook in IN_STEP else state
        except Exception as error:
            self._tell(f"cannot be watched ({text_of(error)})")
            return None

    def _tell(self, what: str) -> None:
        name = type(self._callback).__name__
        for watch in self.watches:
            watch.found = watch.found or (
                f"{self.name} {what}; remove {name} or this callback, or, if it does not matter, say so by "
                f"StabilityCallback(trust=[{name!r}])"
            )

    def remove(self) -> None:
        """Restore the callback's own attribute."""
        del vars(self._callback)[self._hook]
        if self.own is not None:
            vars(self._callback)[self._hook] = self.own


def _of_step(trainer: Any, args: Any, hook: str) -> dict[str, Any]:
    module = trainer.lightning_module
    state = {
        "the gradients": [comparable(parameter.grad) for parameter in module.parameters()],
        **fingerprint(module, trainer.optimizers),
    }
    if hook in ("on_train_batch_start", "on_before_backward"):
        state["the batch" if hook == "on_train_batch_start" else "the loss"] = list(map(_Copy, tensors_of(args[1])))
    if hook != "on_train_batch_end":  # the next step starts with them
        state["random numbers within a step"] = random_state(trainer.strategy.root_device).comparable()
    return state


def _attributes(module: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if type(value) in (int, float, bool, str):
                found[f"the module's attribute {f'{path}.{name}'.lstrip('.')!r}"] = repr(value)
            elif name.endswith("_hooks") and isinstance(value, dict):
                found[f"the hooks of {path or 'the module'} ({name})"] = len(value)
    return found


class _Copy:
    """Copy of a tensor, equal to the copy of another if all numbers are."""

    def __init__(self, tensor: Tensor) -> None:
        self.values = tensor.detach().clone()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Copy) and equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]
