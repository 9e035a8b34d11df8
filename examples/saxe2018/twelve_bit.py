"""Sections 2 and 4: the 12-10-7-5-4-3-2 networks on the 12-bit task, as the authors' code trains them.

From the code, where it differs from the text: Adam with step size 4e-4 (text: SGD), five hidden layers (text: seven),
softmax outputs (text: sigmoid). From neither: every seed has its own random split. All 4096 patterns are measured.
"""

from __future__ import annotations

from functools import cache

import torch
from claims import Claim
from data import BITS, PATTERNS, labels, patterns, split
from networks import Networks
from torch import Tensor
from training import Run, train

WIDTHS = (BITS, 10, 7, 5, 4, 3, 2)
HIDDEN = ("layer1", "layer2", "layer3", "layer4", "layer5")
OUTPUT = "layer6"
BINS = {"tanh": 30, "relu": 100}
RANGE = {"tanh": "fixed", "relu": "global"}
"""Ranges of the paper: (-1, 1) for tanh, and for ReLU up to the largest activation over training."""
CHANCE = 2118 / PATTERNS
"""Accuracy of predicting 1 for every pattern."""
LEARNED = 0.5
"""Part of the way from chance to no error on the test patterns that a network must reach to have learned the task."""


@cache
def trained(
    activation: str,
    seeds: tuple[int, ...],
    epochs: int,
    batch_size: int | None = None,
    share: float = 0.8,
    points: int = 50,
    lr: float = 4e-4,
) -> Run:
    """Train networks of some seeds; ``batch_size`` None uses all patterns at once. A second call costs nothing."""
    x, y = patterns(), labels()
    train_sets = [split(seed, share)[0] for seed in seeds]
    how = "full batch" if batch_size is None else f"batch {batch_size}"
    return train(
        f"{activation}, {how}, {share:.0%}",
        Networks(seeds, WIDTHS, activation, lr=lr),
        torch.stack([x[chosen].T for chosen in train_sets]),
        torch.stack([y[chosen] for chosen in train_sets]),
        epochs,
        (x, y),
        batch_size,
        points,
        bins=BINS[activation],
        bin_range=RANGE[activation],
    )


def sgd(activation: str, full: bool) -> Run:
    """Train the networks of figures 1, 7, 8 and 9: batches of 256, the authors' 8000 epochs, or the first 1500."""
    first = {"tanh": 110, "relu": 120}[activation]
    return trained(activation, tuple(range(first, first + (8 if full else 3))), 8000 if full else 1500, 256)


def runs(run: Run) -> str:
    """Describe the runs in words."""
    seeds, epochs = run.networks.seeds, max(run.snapshots) / run.per_epoch
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} from {seeds[0]}, {epochs:g} epochs"


def learning_curves(run: Run, share: float = 0.8, last: bool = False) -> dict[str, Tensor]:
    """Return train and test loss (nats) and accuracy of every network at all snapshots or the last, ``(steps, S)``."""
    x, y = patterns(), labels()
    curves: dict[str, list[Tensor]] = {}
    for step in [max(run.snapshots)] if last else run.snapshots:
        networks = run.at(step)
        for part, name in enumerate(("train", "test")):
            sets = [split(seed, share)[part] for seed in networks.seeds]
            inputs, classes = torch.stack([x[chosen].T for chosen in sets]), torch.stack([y[chosen] for chosen in sets])
            with torch.no_grad():
                right = networks.all_outputs(inputs).argmax(1) == classes
                curves.setdefault(f"{name} loss", []).append(networks.losses(inputs, classes))
                curves.setdefault(f"{name} accuracy", []).append(right.double().mean(1))
    return {name: torch.stack(values) for name, values in curves.items()}


def gains(run: Run, share: float = 0.8) -> list[float]:
    """Return every network's test accuracy at the end, as a part of the way from chance to 1."""
    accuracies = learning_curves(run, share, last=True)["test accuracy"][-1]
    return ((accuracies - CHANCE) / (1 - CHANCE)).tolist()


def learned(run: Run, share: float = 0.8) -> list[bool]:
    return [gain >= LEARNED for gain in gains(run, share)]


def learning(panel: str, what: str, run: Run, share: float = 0.8, why: str = "") -> Claim:
    """Return the claim that the networks learned, which claims such as "no compression" need."""
    text = f"{what}: the networks learn; test accuracy, from 0 for chance to 1"
    return Claim(panel, text, gains(run, share), LEARNED, source="here", why=why)
