"""Figure 10: the information plane of a linear network with five hidden layers.

The paper: "No compression is visible". Five hidden layers of 100 units, full-batch descent; step size 0.1, initial
weights of variance 0.49 / inputs, 300 examples and signal-to-noise ratio 1 are ours.

The noise of the measurement is added to each layer separately and not passed on: a later layer, whose activations are
larger, may therefore hold more than an earlier one, as layer 5 does here.
"""

from __future__ import annotations

from linear import errors, no_compression, planes, student
from matplotlib.figure import Figure
from networks import scaled_normal
from plotting import draw_curves, draw_plane, mean_plane
from script import Result, main
from twelve_bit import runs

DEPTH = 5
INIT = scaled_normal(0.7)


def run(full: bool = False) -> Result:
    seeds = tuple(range(440, 448 if full else 442))
    found = student(seeds, 300, 800, 0.1, hidden=(100,) * DEPTH, init=INIT)
    claims = no_compression("10", "five hidden layers", found, DEPTH)
    epochs = found.run.epochs(found.steps)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_curves(left, list(epochs.values()), errors(found), "A  linear, five hidden layers", "mean squared error")
    draw_plane(figure, right, mean_plane(planes(found, DEPTH)), epochs, "B")
    return Result(claims, figure, runs(found.run))


if __name__ == "__main__":
    main(__doc__, run, "figure10")
