"""Reproduce Saxe et al. (2018), figure by figure, and write docs/reproductions/saxe.md.

python examples/saxe2018/all.py             # all figures, short runs
python examples/saxe2018/all.py --full      # as long as the paper's: half an hour of one core
python examples/saxe2018/all.py figure6     # some of them; the rest of the page is what --out has of them

An interrupted run goes on where it was: finished trainings are read back from --out, and an unfinished one continues
from its last checkpoint.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import training
from claims import NOT, REPRODUCED, difference, markdown, report
from PIL import Image
from script import load, parser, save

FIGURES = (
    *("figure2c", "figure2d", "same_function", "figure6", "figure1a", "figure8", "figure1b", "figure7", "figure9"),
    *("figure5", "figure3", "figure4ab", "figure4cd", "figure10", "slowing"),
)  # those that share networks together
PAGE = Path(__file__).parents[2] / "docs" / "reproductions" / "saxe.md"
IMAGES = PAGE.parents[1] / "images" / "saxe"
CAPTIONS = {
    "figure1a": "1A: tanh, SGD. Colour: epoch; numbers: layers, 6 is the output; the layers of one epoch are joined",
    "figure1b": "1B: ReLU, SGD, the same",
    "figure2c": "2C: one tanh unit",
    "figure2d": "2D: one ReLU unit",
    "figure3": "3C-D: linear networks, full batch; right, not in the paper: below the information-bottleneck bound",
    "figure4ab": "4A-B: linear networks, SGD; right, not in the paper: below the information-bottleneck bound",
    "figure4cd": "4C-D: tanh networks that see 30 % of the patterns",
    "figure5": "5: with and without noise in the gradient",
    "figure6": "6: relevant and irrelevant inputs of a linear network; signal-to-noise ratio 100, of our choice",
    "figure7": "7: learning curves of the networks of figure 1",
    "figure8": "8: activations of one tanh network of figure 1A",
    "figure9": "9: activations of one ReLU network of figure 1B",
    "figure10": "10: a linear network with five hidden layers; each is measured with a noise of its own",
    "same_function": "Section 2: the same function, different information",
    "slowing": "Section 2: training loss of the networks of figure 1, and where their compression begins",
}
INTRODUCTION = """# Saxe et al. (2018), figure by figure

*On the information bottleneck theory of deep learning*. Written by `python examples/saxe2018/all.py`; every verdict is
computed from the values beside it: **reproduced** if all of them meet the criterion, **in part** if some do, **not
reproduced** if none does. There is a value for each seed (or layer and seed) unless it is called a mean or a largest
one. What a network that has not learned would meet, such as "no compression", counts for networks that learned only.

A layer compresses if I(X;T) ends 0.5 bits or more below its peak: one threshold for all figures with bins. Where no
bins are needed and all is exact, no compression is a fall of at most 0.01 bits.

*Said by*: the paper, or this page. *Run*: full (the paper's length, more seeds), quick (shorter or fewer seeds; the
default of the scripts), or exact, where nothing is trained; seeds and lengths are at the end. Each script says where
its set-up differs from the paper's text and code. In the figures, lines and points are means over the seeds, bands
reach from the least seed to the largest.
"""


def page(out: Path) -> str:
    """Return the results in a folder, in the order of the paper."""
    names = sorted(FIGURES, key=lambda name: (not name.startswith("figure"), len(name.rstrip("abcd")), name))
    found = {name: told for name in names if (told := load(name, out)) is not None}
    rows = [(told.length, claim) for told in found.values() for claim in told.claims]
    open_ones = [claim for _, claim in rows if claim.verdict != REPRODUCED]
    shown = {name: caption for name, caption in CAPTIONS.items() if name in found}
    missing = [name for name in names if name not in found]
    lines = [
        INTRODUCTION,
        "## Where the results and the paper part",
        "",
        *(difference(claim) for claim in open_ones if claim.source == "paper"),
        "",
        "Of the criteria that are this page's own:",
        "",
        *(difference(claim) for claim in open_ones if claim.source == "here"),
        "",
        f"Of {len(rows)} criteria, {len(rows) - len(open_ones)} are met and "
        f"{sum(claim.verdict == NOT for claim in open_ones)} are not met by any value.",
        "",
        "## Figures",
        "",
        *(f"![{caption}](../images/saxe/{name}.png)\n\n*{caption}.*\n" for name, caption in shown.items()),
        "## All criteria",
        "",
        markdown(rows),
        "",
        "## Runs",
        "",
        *(f"- `{name}.py`, {told.length}: {told.runs}" for name, told in found.items()),
        *(f"- `{name}.py`: not run" for name in missing),
    ]
    return "\n".join(lines) + "\n"


def write(out: Path) -> None:
    """Write the page and its pictures from a folder of results."""
    for folder in (PAGE.parent, IMAGES):
        folder.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(out))
    for name in CAPTIONS:
        if (out / f"{name}.png").exists():
            picture = Image.open(out / f"{name}.png").convert("RGB").quantize()  # a third of the size
            picture.save(IMAGES / f"{name}.png", optimize=True)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("figures", nargs="*", help=f"some of {', '.join(FIGURES)}; all by default")
    arguments = options.parse_args()
    unknown = set(arguments.figures) - set(FIGURES)
    if unknown:
        options.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(FIGURES)}")
    training.OUT = arguments.out
    for name in arguments.figures or FIGURES:
        result = import_module(name).run(arguments.full)
        save(result, name, arguments.out, arguments.full)
        print(f"{name}: {result.runs}\n{report(result.claims)}\n", flush=True)
        write(arguments.out)


if __name__ == "__main__":
    main()
