"""Section 2: training slows down as tanh networks begin to compress.

The paper: "training slows down as tanh networks enter their compression phase (Shwartz-Ziv & Tishby, 2017): some
fraction of inputs have saturated the nonlinearities, reducing backpropagated error gradients". It has no figure of it.

The networks of figures 1 and 7. The compression of a network begins where I(X;T) of layer 5 has its peak. Speed is the
fall of the training loss per epoch. Any training that converges slows down, so the ReLU networks, which do not
compress, are looked at before and after the same epoch, the median of the peaks.

Criteria, written before the numbers: half the speed or less after the peak; ReLU keeps a larger part of its speed.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from claims import Claim
from matplotlib.figure import Figure
from script import Result, main
from training import Run
from twelve_bit import learned, learning_curves, runs, sgd

LAYER = "layer5"
claim = partial(Claim, "section 2")


def peaks(run: Run) -> list[int]:
    """Return the step at which I(X;T) of layer 5 is largest, for each network."""
    paths = [plane.curves[LAYER] for plane in run.planes]
    return [int(max(path, key=lambda point: point[1])[0]) for path in paths]


def kept(steps: np.ndarray, loss: np.ndarray, peak: int) -> float:
    """Return the speed after a step over that before it; NaN if one of them has no time."""
    if peak in (steps[0], steps[-1]):
        return math.nan
    at = np.interp(peak, steps, loss)
    return float((at - loss[-1]) / (steps[-1] - peak) / ((loss[0] - at) / (peak - steps[0])))


def run(full: bool = False) -> Result:
    networks, others = sgd("tanh", full), sgd("relu", full)
    steps, losses = np.array(list(networks.snapshots)), learning_curves(networks)["train loss"].numpy().T
    at = peaks(networks)
    middle = int(np.median(at))
    slower = [kept(steps, loss, peak) for loss, peak in zip(losses, at, strict=True)]
    other_steps, other_losses = np.array(list(others.snapshots)), learning_curves(others)["train loss"].numpy().T
    control = [kept(other_steps, loss, middle) for loss in other_losses]
    claims = [
        claim(
            "tanh: training slows down with compression; speed after the peak of layer 5 / before",
            slower,
            at_most=0.5,
            learned=learned(networks),
        ),
        claim(
            "ReLU, which does not compress, slows down less; its part of the speed minus the median of tanh",
            [value - float(np.median(slower)) for value in control],
            0,
            source="here",
            learned=learned(others),
        ),
    ]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot(
        xlabel="epochs", ylabel="training loss [nats]", title="Training loss; dots: peaks of I(X;T)"
    )
    for found, curves, name, colour in (
        (networks, losses, "tanh", "tab:blue"),
        (others, other_losses, "ReLU", "tab:orange"),
    ):
        epochs = np.array(list(found.epochs(found.snapshots).values()))
        for number, loss in enumerate(curves):
            axes.plot(epochs, loss, color=colour, linewidth=1, label=name if number == 0 else None)
            if name == "tanh":
                peak = at[number] / found.per_epoch
                axes.plot(peak, np.interp(peak, epochs, loss), "o", color=colour, markersize=4)
    axes.set_xscale("symlog", linthresh=1)
    axes.legend(frameon=False)
    first, last = min(at) / networks.per_epoch, max(at) / networks.per_epoch
    said = f"tanh: {runs(networks)}; ReLU: {runs(others)}; peaks after {first:.3g} to {last:.3g} epochs"
    return Result(claims, figure, said)


if __name__ == "__main__":
    main(__doc__, run, "slowing")
