"""Figure 2D: information of one binned ReLU unit with its Gaussian input, against its weight.

The paper: it "increases without bound. Half of all inputs land in the bin corresponding to zero activity, while the
other half have information that scales with the size of the weights".

Exact (eq. 3-4 with mass 1/2 in the bin of zero), X ~ N(0, 1), bins of one width, 2/30 as in 2C, over (0, 8 w). A range
that follows the weight instead, with a fixed number of bins, cannot see the growth; it is drawn too. Nothing is
trained.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from claims import Claim
from matplotlib.figure import Figure
from script import Result, main

from lightning_info.functional import one_unit_information, one_unit_probabilities

WIDTH = 2 / 30
claim = partial(Claim, "2D", unit="bits")
SIGMAS = 8  # of the input, up to where the bins reach


def fixed_width(weight: float) -> float:
    bins = math.ceil(SIGMAS * weight / WIDTH)
    return one_unit_information(weight, "relu", bins, (0.0, bins * WIDTH))


def run(full: bool = False) -> Result:
    """Compute the closed form; ``full`` changes nothing."""
    weights = torch.logspace(-1, 2, 121, dtype=torch.float64).tolist()
    fixed = [fixed_width(w) for w in weights]
    adaptive = [one_unit_information(w, "relu", 30, (0.0, 4 * w)) for w in weights]
    claims = [
        claim("information always increases: smallest step", (torch.tensor(fixed).diff().min().item(),), 0),
        claim(
            "without bound, half a bit each time that the weight doubles (w = 50 to 100)",
            (fixed_width(100) - fixed_width(50),),
            0.48,
            0.52,
        ),
        claim(
            "half of all inputs land in the bin of zero (w = 100)",
            (one_unit_probabilities(100, "relu", 12_000, (0, 800))[0].item(),),
            0.499,
            0.501,
            unit="of inputs",
        ),
        claim(
            "a range that follows the weight hides it: largest change",
            (max(adaptive) - min(adaptive),),
            at_most=1e-6,
            source="here",
        ),
    ]
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot(
        title="One ReLU unit, exact", xlabel="weight $w_1$", ylabel="I(X;T) [bits]", xscale="log", xlim=(0.1, 100)
    )
    axes.plot(weights, fixed, label="bins of width 2/30")
    axes.plot(weights, adaptive, "--", label="30 bins over a range that follows the weight")
    axes.set_ylim(0)
    axes.legend(frameon=False, fontsize=8)
    return Result(claims, figure, "nothing is trained", trained=False)


if __name__ == "__main__":
    main(__doc__, run, "figure2d")
