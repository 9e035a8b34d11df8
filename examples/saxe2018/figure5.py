"""Figure 5: the information plane with SGD and with full-batch gradient descent, for tanh and for linear networks.

The paper: "Both random and non-random training procedures show similar information plane dynamics", "with robust
compression in tanh networks for both methods"; and linear networks do not compress under either.

A, B: the 12-bit task, tanh, batches of 256 and the full batch. Full batch means Adam without any noise (the authors'
optimiser is Adam), 2000 steps by default; SGD takes many more steps to get as far. A ReLU network trained with the full
batch is the control: it does not compress, under the range that the paper uses; with a range that follows each epoch's
activations it would seem to, and the callback says that its verdict depends on that.
C, D: the linear networks of figures 3 and 4 (the paper names no other task).
"""

from __future__ import annotations

from claims import Claim, mean
from linear import no_loss_of_information, student
from matplotlib.figure import Figure
from plotting import draw_plane, mean_plane
from script import Result, main
from training import Run
from twelve_bit import HIDDEN, OUTPUT, RANGE, trained

FULL_BATCH_SEEDS = (100, 101, 102, 103, 104)
RELU_SEEDS = (200, 201, 202, 203)


def tanh_full_batch(epochs: int = 2000, points: int = 25) -> Run:
    return trained("tanh", FULL_BATCH_SEEDS, epochs, points=points)


def relu_full_batch(epochs: int = 2000, points: int = 25) -> Run:
    return trained("relu", RELU_SEEDS, epochs, points=points)


def tanh_claims(run: Run, panel: str = "5B") -> list[Claim]:
    return [
        Claim(panel, "tanh, full batch: layer 5 compresses", run.falls("layer5", "fixed"), 3, unit="bits"),
        Claim(panel, "tanh, full batch: the output compresses", run.falls(OUTPUT, "fixed"), 1, unit="bits"),
    ]


def relu_claims(run: Run) -> list[Claim]:
    """Of the control: hidden layers under the global range, and what the callback says of the adaptive one."""
    falls = {kind: [f for layer in HIDDEN for f in run.falls(layer, kind)] for kind in ("global", "adaptive")}
    torn = [
        any("falls under adaptive" in plane.verdicts[layer].verdict for layer in HIDDEN) for plane in run.planes
    ]
    return [
        Claim("5", "ReLU, full batch: hidden layers do not compress, mean", (mean(falls["global"]),), at_most=0.3, unit="bits"),
        Claim("5", "ReLU, full batch: no hidden layer of any seed falls", falls["global"], at_most=0.1, unit="bits"),
        Claim("5", "the same networks under an adaptive range seem to: largest fall", (max(falls["adaptive"]),), 0.5, unit="bits", source="here"),
        Claim("5", "and the callback reports that the range decides (1: it does)", [float(said) for said in torn], 1, source="here"),
    ]
