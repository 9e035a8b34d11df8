"""Figure 1A: the information plane of a tanh network on the 12-bit task, with SGD.

The paper, after Shwartz-Ziv & Tishby: information about the input first rises, then falls: a fitting and a compression
phase. It falls in the last hidden layer and the output. Nothing is claimed here about layers 3 and 4, whose falls
differ between seeds from nothing to several bits.

Set-up: ``twelve_bit.py``; batches of 256, 30 bins over (-1, 1). The default trains 1500 of the 8000 epochs, after
which compression is under way but not over.
"""

from __future__ import annotations

from functools import partial

from claims import COMPRESSES, Claim
from matplotlib.figure import Figure
from plotting import draw_plane, mean_plane
from script import Result, main
from training import Run
from twelve_bit import OUTPUT, learned, learning, learning_curves, runs, sgd

claim = partial(Claim, "1A")


def plane_figure(run: Run, title: str) -> Figure:
    plane = mean_plane([one.curves for one in run.planes])
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    draw_plane(figure, figure.add_subplot(), plane, run.epochs(int(step) for step, *_ in plane[OUTPUT]), title)
    return figure


def run(full: bool = False) -> Result:
    networks = sgd("tanh", full)
    early = [fall for layer in ("layer1", "layer2") for fall in networks.falls(layer, "fixed")]
    claims = [
        claim("layer 5 compresses", networks.falls("layer5", "fixed"), COMPRESSES, unit="bits"),
        claim("the output compresses", networks.falls(OUTPUT, "fixed"), COMPRESSES, unit="bits"),
        claim(
            "layers 1 and 2 stay at the ceiling",
            early,
            at_most=0.1,
            unit="bits",
            learned=learned(networks) * 2,
            why="Layer 2 of single seeds leaves it by a fifth of a bit, of twelve.",
        ),
        learning("1A", "tanh, SGD", networks),
        claim("the network generalises: test accuracy", learning_curves(networks)["test accuracy"][-1].tolist(), 0.93),
    ]
    figure = plane_figure(networks, "tanh, mean of seeds, 30 bins over (-1, 1)")
    return Result(claims, figure, runs(networks))


if __name__ == "__main__":
    main(__doc__, run, "figure1a")
