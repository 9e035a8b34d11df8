"""Figure 1B: the information plane of a ReLU network on the 12-bit task, with SGD.

The paper: "mutual information with the input monotonically increases in all ReLU layers, with no apparent compression
phase", the output aside, whose units saturate.

Set-up: ``twelve_bit.py``; batches of 256, 100 bins from the smallest to the largest activation of each layer over
training (the paper: one range for all layers, which starves some of bins). The paper's statement holds for the mean
over layers and seeds; single layers of single seeds do fall, so "monotonically" is judged separately.
"""

from __future__ import annotations

import math
from functools import partial

from claims import COMPRESSES, Claim, chosen, mean
from figure1a import plane_figure
from script import Result, main
from twelve_bit import HIDDEN, OUTPUT, learned, learning, learning_curves, runs, sgd

MEAN = "Single layers of single seeds fall by more; what holds is the mean of each layer over the seeds."
claim = partial(Claim, "1B")


def run(full: bool = False) -> Result:
    networks = sgd("relu", full)
    tanh = mean(sgd("tanh", full).falls("layer5", "fixed"))
    falls = [networks.falls(layer, "global") for layer in HIDDEN]
    each = [fall for layer in falls for fall in layer]
    did = learned(networks)
    claims = [
        learning("1B", "ReLU, SGD", networks),
        claim(
            "hidden layers do not compress: mean fall, layer by layer, of networks that learned",
            [mean(chosen(layer, did)) for layer in falls],
            at_most=COMPRESSES,
            unit="bits",
        ),
        claim(
            "largest fall of a hidden layer, of networks that learned",
            [max(chosen(each, did * len(HIDDEN)), default=math.nan)],
            at_most=COMPRESSES,
            unit="bits",
            source="here",
            why=MEAN,
        ),
        claim(
            "information increases monotonically in all layers of all seeds",
            each,
            at_most=0.1,
            unit="bits",
            learned=did * len(HIDDEN),
            why=MEAN,
        ),
        claim("tanh compresses layer 5 more, by", [tanh - mean(falls[-1])], COMPRESSES, unit="bits"),
        claim("the output compresses", networks.falls(OUTPUT, "global"), COMPRESSES, unit="bits"),
        claim("the network generalises: test accuracy", learning_curves(networks)["test accuracy"][-1].tolist(), 0.9),
    ]
    figure = plane_figure(networks, "ReLU, mean of seeds, 100 bins over the range of training")
    return Result(claims, figure, runs(networks))


if __name__ == "__main__":
    main(__doc__, run, "figure1b")
