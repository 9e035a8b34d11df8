"""Figure 8: histograms of the activations of a tanh network over training, the one of figure 1A.

The paper: "The final three layers eventually saturate in the top and bottom bins". It counts six layers, so these are
layers 4, 5 and the output; layer 3 is judged, too, in case the output does not count. Judged by the share of
activations in the outermost of 30 bins over (-1, 1), |a| > 0.933; the output, whose softmax lies in (0, 1), saturates
in the top and bottom bins of its own range.
"""

from __future__ import annotations

from functools import partial

import torch
from claims import Claim
from data import patterns
from matplotlib.figure import Figure
from plotting import draw_histograms
from script import Result, main
from torch import Tensor
from training import Run
from twelve_bit import HIDDEN, OUTPUT, runs, sgd

TOP = 1 - 2 / 30
WHY = (
    "After 8000 epochs of SGD, 4 to 47 % of layer 4's activations and at most 5 % of layer 3's do; trained with the "
    "full batch for 8000 steps, as in figure 5B, 84 to 88 % and 28 to 44 %."
)
claim = partial(Claim, "8", unit="of activations")


def activations_at(run: Run, step: int) -> list[dict[str, Tensor]]:
    """Return the activations of every network, by layer."""
    networks = run.at(step)
    return [networks.activations(patterns(), number) for number in range(len(networks.seeds))]


def histograms(run: Run, layer: str, low: float, high: float, bins: int = 30) -> Tensor:
    """Return the density of the first network's activations, ``(steps, bins)``."""
    found = [run.at(step).activations(patterns())[layer].flatten() for step in run.snapshots]
    return torch.stack([torch.histc(values.clamp(low, high), bins, low, high) / len(values) for values in found])


def run(full: bool = False) -> Result:
    networks = sgd("tanh", full)
    ends = activations_at(networks, max(networks.snapshots))
    saturated = {layer: [(end[layer].abs() > TOP).double().mean().item() for end in ends] for layer in HIDDEN}
    outputs = [((end[OUTPUT] - 0.5).abs() > TOP / 2).double().mean().item() for end in ends]
    claims = [
        claim("layer 5 saturates", saturated["layer5"], 0.5),
        claim("layer 4 saturates", saturated["layer4"], 0.5, why=WHY),
        claim("layer 3 saturates, too", saturated["layer3"], 0.5, source="here", why=WHY),
        claim("the output saturates", outputs, 0.5),
    ]
    epochs = list(networks.epochs(networks.snapshots).values())
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    for axes, layer in zip(figure.subplots(2, 3).flatten(), (*HIDDEN, OUTPUT), strict=True):
        low, high = (0.0, 1.0) if layer == OUTPUT else (-1.0, 1.0)
        draw_histograms(axes, epochs, histograms(networks, layer, low, high), (low, high), layer)
    return Result(claims, figure, f"{runs(networks)}; drawn: seed {networks.networks.seeds[0]}")


if __name__ == "__main__":
    main(__doc__, run, "figure8")
