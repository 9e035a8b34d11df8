"""Section 2's remark: the same function may come with different information.

The paper: networks "could compute exactly the same input-output map and therefore generalize identically" and differ in
how robust their inner representation is to noise, which is what bins stand for and training does not have.

Compared are a ReLU network trained on the 12-bit task, and the same with the weights and biases of layer 1 divided by
16 and the weights of layer 2 multiplied by 16: a positive factor passes through ReLU. The outputs are the same; the
binned information of layer 1 is not, with bins of the same width. A linear network in the paper's own form is computed
exactly.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import torch
from claims import Claim
from data import patterns
from linear import COVARIANCE, INPUTS, NOISE
from matplotlib.figure import Figure
from script import Result, main
from twelve_bit import runs, trained

from lightning_info.functional import binned_information, linear_information

FACTOR = 16.0  # a power of two: floating point does not round either
WIDTH = 2 / 30
claim = partial(Claim, "section 2", unit="bits")


def run(full: bool = False) -> Result:
    trainings = trained("relu", (500, 501, 502) if full else (500,), 400, points=10, lr=4e-3)
    networks, x = trainings.networks, patterns()
    same = deepcopy(networks)
    with torch.no_grad():
        same.weights[0] /= FACTOR
        same.biases[0] /= FACTOR
        same.weights[1] *= FACTOR
    information, outputs = [], []
    for number in range(len(networks.seeds)):
        pair = [network.activations(x, number)["layer1"] for network in (networks, same)]
        bins = int(pair[0].max().item() / WIDTH) + 1
        information.append([binned_information(t, None, bins, (0.0, bins * WIDTH)).I_XT for t in pair])
        outputs.append((networks(x, number) - same(x, number)).abs().max().item())
    w = torch.randn(INPUTS, INPUTS, generator=torch.Generator().manual_seed(500))
    linear = [linear_information(scale * w, COVARIANCE, NOISE).I_XT for scale in (1.0, 1 / FACTOR)]
    claims = [
        claim("ReLU: largest difference between the outputs", outputs, at_most=1e-5, unit=""),
        claim("ReLU: difference in I(X;T) of layer 1", [before - after for before, after in information], 1),
        claim("linear: W₁/16 and 16 W₂ have the same product, but I(X;T) differs by", [linear[0] - linear[1]], 1),
    ]
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot(title="Same function, different information", ylabel="I(X;T) of layer 1 [bits]")
    names = ("ReLU", "ReLU,\nW₁/16, 16 W₂", "linear", "linear,\nW₁/16, 16 W₂")
    bars = axes.bar(names, information[0] + linear, color=["C0", "C0", "C1", "C1"])
    axes.bar_label(bars, fmt="%.2f")
    axes.legend(bars[::2], ["binned; at most 12 bits", "exact, noise of variance 1"], frameon=False, fontsize=8)
    axes.margins(y=0.1)
    return Result(claims, figure, runs(trainings))


if __name__ == "__main__":
    main(__doc__, run, "same_function")
