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
        claim = partial(Claim, f"7{panel}")
        networks = sgd(activation, full)
        curves = learning_curves(networks)
        loss = curves["test loss"]
        rise = (loss[-1] / loss.min(0).values).tolist()
        claims += [
            claim(f"{activation}: good generalisation; test accuracy", curves["test accuracy"][-1].tolist(), least),
            claim(
                f"{activation}: nor does the test loss rise; last / least",
                rise,
                at_most=1.25,
                source="here",
                learned=learned(networks),
                why="Mistakes become fewer and more certain: accuracy, which the paper shows, does not tell.",
            ),
        ]
        epochs = list(networks.epochs(networks.snapshots).values())
        shown = {name: 100 * curves[f"{name} accuracy"] for name in ("train", "test")}
        draw_curves(axes, epochs, shown, f"{panel}  {activation}, SGD", "% correct")
        said.append(f"{activation}: {runs(networks)}")
    return Result(claims, figure, "; ".join(said))


if __name__ == "__main__":
    main(__doc__, run, "figure7")
