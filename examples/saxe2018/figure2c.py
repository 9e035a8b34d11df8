"""Figure 2C: information of one binned tanh unit with its Gaussian input, against its weight.

The paper: "Information increases for small w1 and then decreases for large w1 as all inputs land in one of the two bins
corresponding to the saturation regions", with "approximately 1 bit".

Exact (eq. 3-4), X ~ N(0, 1), 30 bins over (-1, 1), in bits. 30 bins are an even number: one edge lies at 0, and a
vanishing weight gives 1 bit, the sign, where the paper's curve starts at 0. The published code has 29 bins, which give
0; both are drawn. Nothing is trained.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from claims import Claim
from matplotlib.figure import Figure
from script import Result, main

from lightning_info.functional import binned_information, one_unit_information

SAMPLES = 100_000
claim = partial(Claim, "2C", unit="bits")


def sampled(weight: float, bins: int = 30) -> float:
    """Return the same from samples, by the binning that networks are measured with."""
    x = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return binned_information(torch.tanh(weight * x), None, bins, "fixed").I_XT


def run(full: bool = False) -> Result:
    """Compute the closed form; ``full`` changes nothing."""
    weights = torch.logspace(-2, 3, 251, dtype=torch.float64).tolist()
    curves = {bins: [one_unit_information(w, "tanh", bins) for w in weights] for bins in (30, 29)}
    peak = max(range(len(weights)), key=lambda i: curves[30][i])
    steps = torch.tensor(curves[29]).diff()
    odd_peak = steps.gt(0).sum().item()
    claims = [
        claim("information falls from its peak to large weights", (curves[30][peak] - curves[30][-1],), 3),
        claim("at large weights about one bit is left (w = 1000)", (curves[30][-1],), 0.97, 1.03),
        claim(
            "it first rises, then falls, and turns once (29 bins): largest step against that",
            (max((-steps[:odd_peak]).max().item(), steps[odd_peak:].max().item()),),
            at_most=1e-9,
        ),
        claim(
            "a vanishing weight has no information (29 bins)", (one_unit_information(1e-6, "tanh", 29),), at_most=0.01
        ),
        claim(
            "the same with the 30 bins of the text",
            (one_unit_information(1e-6, "tanh", 30),),
            at_most=0.01,
            why="An even number of bins has an edge at 0, and the sign of the input is a bit however small the weight; "
            "the published code has 29 bins.",
        ),
        claim(
            f"binning {SAMPLES} samples agrees with the closed form: largest difference",
            (max(abs(sampled(w) - one_unit_information(w)) for w in (0.1, weights[peak], 5.0, 100.0)),),
            at_most=0.01,
            source="here",
        ),
    ]
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot(
        title="One tanh unit, exact", xlabel="weight $w_1$", ylabel="I(X;T) [bits]", xscale="log", xlim=(0.01, 1000)
    )
    axes.plot(weights, curves[30], label=f"30 bins: peak {curves[30][peak]:.2f} at $w_1$ = {weights[peak]:.2f}")
    axes.plot(weights, curves[29], "--", label="29 bins, as in the published code")
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set_ylim(0, math.ceil(curves[30][peak]))
    axes.legend(frameon=False, fontsize=8)
    return Result(claims, figure, "nothing is trained", trained=False)


if __name__ == "__main__":
    main(__doc__, run, "figure2c")
