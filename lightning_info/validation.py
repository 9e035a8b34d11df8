"""Validation of constructor arguments: what is wrong, where, and what to type instead."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence


def one_of(owner: str, name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        ValueError: It is refused; the message has all choices and an example.
    """
    if value not in choices:
        raise ValueError(
            f"{owner}: unknown {name} {value!r}; choose one of {', '.join(map(repr, choices))}, "
            f"for example {name}={choices[0]!r}"
        )


def integer(owner: str, name: str, value: object, example: int) -> None:
    """Refuse a value that is not an integer.

    Raises:
        ValueError: It is refused; the message has an example.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{owner}: {name} must be an integer, got {value!r}; for example {name}={example}")


def positive_integer(owner: str, name: str, value: object, example: int) -> None:
    """Refuse a value that is not a positive integer.

    Raises:
        ValueError: It is refused; the message has an example.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}: {name} must be a positive integer, got {value!r}; for example {name}={example}")


def natural_number(owner: str, name: str, value: object, example: int) -> None:
    """Refuse a value that is not an integer from 0 on.

    Raises:
        ValueError: It is refused; the message has an example.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{owner}: {name} must be an integer from 0 on, got {value!r}; for example {name}={example}")


def positive_number(owner: str, name: str, value: object, example: float) -> None:
    """Refuse a value that is not a positive, finite number.

    Raises:
        ValueError: It is refused; the message has an example.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(
            f"{owner}: {name} must be a positive, finite number, got {value!r}; for example {name}={example}"
        )


def layers(owner: str, value: object) -> None:
    """Refuse what names no layers.

    Raises:
        ValueError: It is refused; the message has an example.
    """
    names = [value] if value is None or isinstance(value, (str, type)) else value
    if not isinstance(names, Sequence) or not all(name is None or isinstance(name, (str, type)) for name in names):
        raise ValueError(
            f"{owner}: layers must be names of modules or classes, got {value!r}; for example layers=['net.1', 'ReLU']"
        )


def path(owner: str, name: str, value: object, example: str) -> None:
    """Refuse a value that loggers which make folders of tags (MLflow) do not take.

    Raises:
        ValueError: It is refused; the message has an example.
    """
    whole = f"{value}/tag"
    if not isinstance(value, str) or whole.startswith(("/", "..")) or posixpath.normpath(whole) != whole:
        raise ValueError(
            f"{owner}: {name} must be words with single slashes between them, got {value!r}; "
            f"for example {name}={example!r}"
        )


def intervals(owner: str, every_n_epochs: object, every_n_train_steps: object) -> None:
    """Refuse two intervals at once, and one that is not a positive integer.

    Raises:
        ValueError: It is refused; the message has an example.
    """
    if every_n_epochs is not None and every_n_train_steps is not None:
        raise ValueError(
            f"{owner}: every_n_epochs={every_n_epochs} and every_n_train_steps={every_n_train_steps} exclude each "
            f"other; give one, for example every_n_epochs=1"
        )
    for name, interval in (("every_n_epochs", every_n_epochs), ("every_n_train_steps", every_n_train_steps)):
        if interval is not None:
            positive_integer(owner, name, interval, 1)
