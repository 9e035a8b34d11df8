"""Figure 9: histograms of the activations of a ReLU network over training, the one of figure 1B.

The paper: "ReLU layers 1-5 have a roughly constant fraction of activities at zero"; "the nonzero activities disperse
over the course of training without bound"; the output layer "converges to its saturation limits".

The fraction at zero is roughly constant from the middle of training to its end, not from the start. "Disperse without
bound" is judged in the second half of training, too.
"""

from __future__ import annotations

from functools import partial

from claims import Claim
from data import patterns
from figure8 import TOP, activations_at, histograms
from matplotlib.figure import Figure
from plotting import draw_histograms
from script import Result, main
from training import Run
from twelve_bit import HIDDEN, OUTPUT, learned, learning, runs, sgd

SETTLED = (
    "In 8000 epochs, layers 1 to 3 of all networks come within 0.1 of their last value by epoch 160, some layers 5 "
    "only after 4000."
)
claim = partial(Claim, "9")


def zeros(run: Run, step: int) -> list[float]:
    """Return the fraction at zero, for each hidden layer and network."""
    found = activations_at(run, step)
    return [(activations[layer] == 0).double().mean().item() for layer in HIDDEN for activations in found]


def run(full: bool = False) -> Result:
    networks = sgd("relu", full)
    steps = sorted(networks.snapshots)
    middle = next(step for step in steps if step >= steps[-1] / 2)
    start, mid, end = (zeros(networks, step) for step in (0, middle, steps[-1]))
    ends, at_middle = activations_at(networks, steps[-1]), activations_at(networks, middle)
    growth = [
        (e[layer].max() / m[layer].max()).item() for layer in HIDDEN for e, m in zip(ends, at_middle, strict=True)
    ]
    outputs = [((end[OUTPUT] - 0.5).abs() > TOP / 2).double().mean().item() for end in ends]
    did = learned(networks) * len(HIDDEN)
    claims = [
        learning("9", "ReLU, SGD", networks),
        claim(
            "fraction at zero is constant: change from the middle to the end",
            [abs(a - b) for a, b in zip(mid, end, strict=True)],
            at_most=0.1,
            unit="of activations",
            learned=did,
            why=SETTLED,
        ),
        claim(
            "fraction at zero is constant: change from the start to the end",
            [abs(a - b) for a, b in zip(start, end, strict=True)],
            at_most=0.1,
            unit="of activations",
            learned=did,
            why=SETTLED,
        ),
        claim(
            "nonzero activations disperse: largest at the end / in the middle",
            growth,
            1.02,
            why="Of all layers it is at least 1.7 times that of the start after 8000 epochs, but in the second half of "
            "them only layer 5 still grows in every network.",
        ),
        claim("the output saturates", outputs, 0.5, unit="of activations"),
    ]
    epochs = list(networks.epochs(steps).values())
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    for axes, layer in zip(figure.subplots(2, 3).flatten(), (*HIDDEN, OUTPUT), strict=True):
        high = max(networks.at(step).activations(patterns())[layer].max().item() for step in steps)
        draw_histograms(axes, epochs, histograms(networks, layer, 0.0, high), (0.0, high), layer)
    return Result(claims, figure, f"{runs(networks)}; drawn: seed {networks.networks.seeds[0]}")


if __name__ == "__main__":
    main(__doc__, run, "figure9")
