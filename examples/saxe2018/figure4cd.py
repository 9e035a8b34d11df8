"""Figure 4C-D: tanh networks that see 30 % of the patterns overtrain, and compress all the same.

The paper: "Average train and test accuracy for nonlinear tanh networks exhibiting modest overfitting (N = 8)";
"overfitting occurs despite continued compression".

Set-up: ``twelve_bit.py``; batches of 256, 30 bins over (-1, 1). --full has the paper's 8 networks and 3000 epochs.
"""

from __future__ import annotations

from functools import partial

import torch
from claims import COMPRESSES, Claim, mean
from matplotlib.figure import Figure
from plotting import draw_curves, draw_plane, mean_plane
from script import Result, main
from twelve_bit import OUTPUT, learning, learning_curves, runs, trained

SHARE = 0.3
claim = partial(Claim, "4C")


def run(full: bool = False) -> Result:
    networks = trained("tanh", tuple(range(430, 438 if full else 433)), 3000, 256, SHARE)
    curves = learning_curves(networks, SHARE)
    gap = 100 * (curves["train accuracy"][-1] - curves["test accuracy"][-1])
    ratio = curves["test loss"][-1] / curves["test loss"].min(0).values
    falls = networks.falls("layer5", "fixed")
    claims = [
        learning("4C", "tanh", networks, SHARE),
        claim("overfitting: mean gap between train and test accuracy", [gap.mean().item()], 4, unit="points"),
        claim("overfitting: last / least test loss", ratio.tolist(), 1.5),
        Claim("4D", "layer 5 compresses all the same", falls, COMPRESSES, unit="bits"),
        Claim("4D", "layer 5 compresses all the same, mean", [mean(falls)], COMPRESSES, unit="bits"),
    ]
    plane = mean_plane([plane.curves for plane in networks.planes])
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = {name: 100 * curves[f"{name} accuracy"] for name in ("train", "test")}
    epochs = list(networks.epochs(networks.snapshots).values())
    draw_curves(left, epochs, shown, f"C  tanh, {SHARE:.0%} of the patterns", "% correct")
    draw_plane(figure, right, plane, networks.epochs(int(step) for step, *_ in plane[OUTPUT]), "D")
    spread = torch.tensor(falls).std()
    said = (
        f"{runs(networks)}; mean ± standard deviation over the seeds: gap {gap.mean():.1f} ± {gap.std():.1f} points, "
        f"fall of layer 5 {mean(falls):.2f} ± {spread:.2f} bits"
    )
    return Result(claims, figure, said)


if __name__ == "__main__":
    main(__doc__, run, "figure4cd")
