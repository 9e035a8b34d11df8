"""Lorenzen, Igel & Nielsen (2022): the exact information plane of quantised networks, beside that of bins.

    python examples/exact_plane.py                             # 3 seeds: two minutes of one core
    python examples/exact_plane.py --full --page               # 8 seeds, and docs/reproductions/exact_plane.md
    python examples/exact_plane.py --full --lr 1e-4 --epochs 8000      # as long as the authors'; 50 seeds in the paper

An interrupted run goes on where it was, as that of ``saxe2018/all.py``.

*Information bottleneck: exact analysis of (quantized) neural networks*. Where a network computes on a grid of numbers,
I(X;T) = H(T) and I(T;Y) over all patterns are counted, and nothing is estimated: ``InfoPlaneCallback`` with
``estimator="exact"``. The abstract says: "we observed a fitting phase for all layers and a compression phase for the
output layer in all experiments; the compression in the hidden layers was dependent on the type of activation function",
and "different ways of binning when computing the MI lead to qualitatively different results".

The networks are 12-10-7-5-4-3-2 with tanh or ReLU and softmax outputs, trained by Adam with batches of 256 on 80 % of
the 12-bit set; all 4096 patterns are measured. The authors' code takes steps of size 1e-4 in 8000 epochs; here they are
4 times as large in a quarter of the epochs with ``--full``, and otherwise 10 times in a tenth. Also different from that
code: ``quantised_networks.py`` rounds tanh on a fixed range, while theirs is that of the batch (a sample's T would
depend on the others), it rounds the weights of tanh networks too, and the loss takes probabilities before they are
rounded. Each seed has its own split.

Criteria, written before anything was measured. Fitting: I(T;Y) rises by 0.05 bits from the start to its peak.
Compression: I(X;T) ends 0.5 bits below its peak. Hidden layers: with tanh the layer that falls most compresses, with
ReLU the mean over seeds of no layer does, and the one falls 0.5 bits more than the other. By bins: the same verdict as
by counting for 90 % of the hidden layers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).with_name("saxe2018")))

import numpy as np
import torch
import training
from claims import NOT, REPRODUCED, Claim, chosen, difference, markdown, mean, report
from data import labels, patterns, split
from matplotlib.figure import Figure
from PIL import Image
from plotting import draw_plane, mean_plane
from quantised_networks import QuantisedNetworks
from results_page import REPRODUCTIONS, write
from torch.utils.tensorboard import SummaryWriter
from twelve_bit import BINS, HIDDEN, OUTPUT, RANGE, WIDTHS, learned, learning, runs

NAMES = {"tanh": "tanh", "relu": "ReLU"}
BITS = (8, 4)
FIRST = {"tanh": 700, "relu": 720}
"""Their first seeds, which are used nowhere else."""
RISE, FALL, AGREEMENT = 0.05, 0.5, 0.9
LABEL_ENTROPY = 0.9991
"""H(Y) of all patterns, in bits."""
LAYERS = (*HIDDEN, OUTPUT)
Key = tuple[str, int]
FULL = "Layers that tell all patterns apart hold H(Y) from the start and have nothing to fit."
FEW = "With 4 bits the output holds about 3 bits of information at its peak, with 8 bits 5 to 7: there is less to lose."
GROWING = (
    "With 8 bits, layer 5 of every network has its peak within the first 20 epochs, and the means of layers 4 and 5 "
    "rise again after epoch 100. The range of layer 5, and with it the grid, grows 50 to 550 times over training: it "
    "follows the activations as bins of the adaptive range do."
)
COARSE = "Bins are coarser than the grid, and those over the range of all of training miss peaks of small activations."
APART = "With 4 bits, tanh has 15 levels, which 30 bins tell apart, so that any way of binning gives the exact values."
OTHER = (
    "With 4 bits it is the other way round: layer 3 of ReLU networks falls by 1.1 bits, no layer of tanh by half a bit."
)
"""Explanations of verdicts of the full run."""


def trained(activation: str, bits: int, seeds: Sequence[int], epochs: int, lr: float, points: int) -> training.Run:
    """Train networks of some seeds and measure them, exactly and by the bins of the second paper."""
    x, y = patterns(), labels()
    sets = [split(seed)[0] for seed in seeds]
    return training.train(
        f"{activation}, {bits} bits",
        QuantisedNetworks(seeds, WIDTHS, activation, bits, x, lr),
        torch.stack([x[its].T for its in sets]),
        torch.stack([y[its] for its in sets]),
        epochs,
        (x, y),
        256,
        points,
        estimator=["exact", "binning"],
        bins=BINS[activation],
        bin_range=RANGE[activation],
        label_information="binned",
    )


def exact_curves(run: training.Run) -> list[dict[str, list[tuple[int, float, float]]]]:
    """Return the exact curves of each network, ``layer -> [(step, I(X;T), I(T;Y)), ...]``."""
    found = []
    for plane in run.planes:
        history = {tag.partition("/")[2]: curve for tag, curve in plane.history.items()}  # after the network's name
        pairs = {layer: [history[f"info_plane/{kind}/{layer}"] for kind in ("I_XT", "I_TY")] for layer in LAYERS}
        found.append(
            {layer: [(s, a, b) for (s, a), (_, b) in zip(*both, strict=True)] for layer, both in pairs.items()}
        )
    return found


def of_one(activation: str, bits: int, run: training.Run) -> list[Claim]:
    """Return the claims on networks of one kind."""
    panel = f"{NAMES[activation]}, {bits} bits"
    claim = partial(Claim, panel, unit="bits")
    curves, did = exact_curves(run), learned(run)
    told = [[y for _, _, y in plane[layer]] for plane in curves for layer in LAYERS]
    rises = [max(values) - values[0] for values in told]
    room = [rise for rise, values in zip(rises, told, strict=True) if values[0] < LABEL_ENTROPY - RISE]
    falls = {layer: run.falls(layer, "exact") for layer in LAYERS}
    hidden = "the hidden layer that falls most falls by"
    claims = [
        learning(panel, NAMES[activation], run),
        claim("fitting in all layers: I(T;Y) rises", rises, RISE, why=FULL),
        claim("fitting in layers that hold less than H(Y) at the start: I(T;Y) rises", room, RISE, source="here"),
        claim("the output compresses: I(X;T) falls", falls[OUTPUT], FALL, learned=did, why=FEW),
    ]
    if activation == "tanh":
        claims.append(
            claim(hidden, [max(its) for its in zip(*(falls[one] for one in HIDDEN), strict=True)], FALL, source="here")
        )
    else:
        means = [mean(chosen(falls[layer], did)) for layer in HIDDEN]
        claims.append(
            claim(
                "hidden layers do not compress: mean fall, layer by layer",
                means,
                at_most=FALL,
                source="here",
                why=GROWING,
            )
        )
    verdicts = {
        kind: [fall >= FALL for layer in HIDDEN for fall in run.falls(layer, kind)]
        for kind in ("exact", RANGE[activation], "adaptive")
    }
    for kind in (RANGE[activation], "adaptive"):
        same = [a == b for a, b in zip(verdicts["exact"], verdicts[kind], strict=True)]
        text = f"{BINS[activation]} bins, {kind} range: share of hidden layers with the exact verdict"
        claims.append(Claim(panel, text, [mean(same)], AGREEMENT, source="here", why=COARSE))
    ranges = sum(a != b for a, b in zip(verdicts[RANGE[activation]], verdicts["adaptive"], strict=True))
    claims.append(Claim(panel, "ways of binning disagree: number of hidden layers", [ranges], 1, why=APART))
    return claims


def judge(found: Mapping[Key, training.Run]) -> list[Claim]:
    """Return all claims."""
    claims = [claim for (activation, bits), run in found.items() for claim in of_one(activation, bits, run)]
    for bits in dict.fromkeys(bits for _, bits in found):
        falls = {}
        for activation in NAMES:
            run = found[activation, bits]
            falls[activation] = max(mean(chosen(run.falls(layer, "exact"), learned(run))) for layer in HIDDEN)
        text = "hidden layers depend on the activation: largest mean fall with tanh, less that with ReLU"
        claims.append(Claim(f"{bits} bits", text, [falls["tanh"] - falls["relu"]], FALL, unit="bits", why=OTHER))
    return claims


def table(found: Mapping[Key, training.Run]) -> str:
    """Return start, peak and end of each layer's exact I(X;T), and how far it falls by each kind, as Markdown."""
    rows = ["| net | layer | start | peak | end | fall | by bins | by bins, adaptive | I(T;Y), start | peak | end |"]
    rows.append("|---" * (rows[0].count("|") - 1) + "|")
    for (activation, bits), run in found.items():
        curves = exact_curves(run)
        for layer in LAYERS:
            cells = []
            for column in (1, 2):
                values = torch.tensor([[point[column] for point in plane[layer]] for plane in curves])
                its = [values[:, 0], values.amax(1), values[:, -1]]
                if column == 1:
                    kinds = ("exact", RANGE[activation], "adaptive")
                    its += [torch.tensor(run.falls(layer, kind)) for kind in kinds]
                cells += [f"{one.mean():.2f}" + (f" ± {one.std():.2f}" if len(one) > 1 else "") for one in its]
            rows.append(f"| {NAMES[activation]}, {bits} bits | {layer.removeprefix('layer')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(found: Mapping[Key, training.Run], bits: int) -> Figure:
    """Draw the planes of networks of a size: exact, by the second paper's bins, and by bins of each point's range."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    for row, activation in zip(figure.subplots(2, 3), NAMES, strict=True):
        run = found[activation, bits]
        planes = exact_curves(run), [plane.curves for plane in run.planes]
        ways = "exact", f"{BINS[activation]} bins, {RANGE[activation]} range"
        for ax, its, way in zip(row, planes, ways, strict=False):
            plane = mean_plane(its)
            epochs = run.epochs(int(step) for step, *_ in plane[OUTPUT])
            draw_plane(figure, ax, plane, epochs, f"{NAMES[activation]}, {bits} bits: {way}")
        for layer in LAYERS:
            curve = mean_plane(planes[0])[layer]
            steps, values, _ = zip(*curve, strict=True)
            row[2].plot(list(run.epochs(steps).values()), values, label=layer.removeprefix("layer"))
        row[2].set(title="exact I(X;T) over training", xlabel="epoch", ylabel="bits", xscale="symlog")
        row[2].legend(title="layer", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def page(found: Mapping[Key, training.Run], claims: Sequence[Claim], length: str) -> str:
    """Return the page of results."""
    open_ones = [claim for claim in claims if claim.verdict != REPRODUCED]
    introduction = """# Lorenzen, Igel & Nielsen (2022): the exact plane

*Information bottleneck: exact analysis of (quantized) neural networks*. Written by `python examples/exact_plane.py
--page`, whose docstring has the set-up, the criteria, and what differs from the authors' code; every verdict is
computed from the values beside it: **reproduced** if all of them meet the criterion, **in part** if some do, **not
reproduced** if none does. There is a value for each seed (or layer and seed) unless it is called a mean or a share.
*Said by*: the paper's abstract, or this page. In the figures, lines and points are means over the seeds; 6 is the
output.

## Where the results and the paper part
"""
    lines = [
        introduction,
        *(difference(claim) for claim in open_ones if claim.source == "paper"),
        "",
        "Of the criteria that are this page's own:",
        "",
        *(difference(claim) for claim in open_ones if claim.source == "here"),
        "",
        f"Of {len(claims)} criteria, {len(claims) - len(open_ones)} are met and "
        f"{sum(claim.verdict == NOT for claim in open_ones)} are not met by any value.",
        "\n## Figures\n",
        *(f"{{exact_plane_{bits}bits.png}}\n" for bits in dict.fromkeys(bits for _, bits in found)),
        "## All criteria\n",
        markdown((length, claim) for claim in claims),
        "\n## Each layer\n\nBits, mean and standard deviation over the seeds.\n",
        table(found),
        "\n## Runs\n",
        *(
            f"- {NAMES[activation]}, {bits} bits, {length}: {runs(run)}, step size {run.networks.lr:g}"
            for (activation, bits), run in found.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more seeds, epochs and points")
    parser.add_argument("--seeds", type=int, help="networks of each kind (default 3, with --full 8)")
    parser.add_argument("--epochs", type=int, help="a multiple of 25, with --full of 50 (default 800 and 2000)")
    parser.add_argument("--lr", type=float, help="step size (default 1e-3 and 4e-4)")
    parser.add_argument("--bits", type=int, nargs="+", choices=range(2, 9), default=list(BITS), help="default 8 and 4")
    parser.add_argument("--out", type=Path, default=Path("runs/exact_plane"), help="folder of figures and trainings")
    parser.add_argument("--page", action="store_true", help="write docs/reproductions/exact_plane.md")
    arguments = parser.parse_args(argv)
    full, training.OUT = arguments.full, arguments.out
    number, epochs = arguments.seeds or (8 if full else 3), arguments.epochs or (2000 if full else 800)
    lr, points = arguments.lr or (4e-4 if full else 1e-3), min(epochs, 50 if full else 25)

    found = {}
    for bits in arguments.bits:
        for activation, first in FIRST.items():
            run = trained(activation, bits, tuple(range(first, first + number)), epochs, lr, points)
            found[activation, bits] = run
            print(f"{NAMES[activation]}, {bits} bits: {runs(run)}", flush=True)
    claims, pictures = judge(found), {}
    with SummaryWriter(str(arguments.out / "figures")) as writer:
        for bits in arguments.bits:
            path = arguments.out / f"exact_plane_{bits}bits.png"
            draw(found, bits).savefig(path, dpi=90)
            writer.add_image(f"exact_plane/{bits}bits", np.asarray(Image.open(path)), dataformats="HWC")
            pictures[path] = f"Networks of {bits} bits: exact planes, the same by bins, and exact I(X;T) over training"
    print(f"\n{table(found)}\n\n{report(claims)}\n\nFigures: {', '.join(map(str, pictures))}")
    print(f"TensorBoard: tensorboard --logdir {arguments.out}")
    if arguments.page:
        text = page(found, claims, "full" if full else "quick")
        print(f"Page: {write(REPRODUCTIONS, 'exact_plane', text, pictures)}")


if __name__ == "__main__":
    main()
