"""Figure 7: learning curves of the networks of figure 1.

The paper: "Both networks show good generalization with regards to the test data". So they do by accuracy. Their test
loss rises again; the paper shows no loss.
"""

from __future__ import annotations

from functools import partial

from claims import Claim
from matplotlib.figure import Figure
from plotting import draw_curves
from script import Result, main
from twelve_bit import learned, learning_curves, runs, sgd


def run(full: bool = False) -> Result:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    claims, said = [], []
    both = figure.subplots(1, 2, sharey=True)
    for panel, axes, activation, least in zip("AB", both, ("tanh", "relu"), (0.93, 0.9), strict=True):
        claim, name = partial(Claim, f"7{panel}"), {"tanh": "tanh", "relu": "ReLU"}[activation]
        networks = sgd(activation, full)
        curves = learning_curves(networks)
        loss = curves["test loss"]
        rise = (loss[-1] / loss.min(0).values).tolist()
        claims += [
            claim(f"{name}: good generalisation; test accuracy", curves["test accuracy"][-1].tolist(), least),
            claim(
                f"{name}: nor does the test loss rise; last / least",
                rise,
                at_most=1.25,
                source="here",
                learned=learned(networks),
                why="From the least loss to the end of 8000 epochs the accuracy changes by less than 2 points: "
                "mistakes become not more, but more certain.",
            ),
        ]
        epochs = list(networks.epochs(networks.snapshots).values())
        shown = {part: 100 * curves[f"{part} accuracy"] for part in ("train", "test")}
        draw_curves(axes, epochs, shown, f"{panel}  {name}, SGD", "% correct")
        said.append(f"{name}: {runs(networks)}")
    return Result(claims, figure, "; ".join(said))


if __name__ == "__main__":
    main(__doc__, run, "figure7")
