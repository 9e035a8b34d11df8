"""Reproduce Saxe et al. (2018), figure by figure, and write docs/reproductions/saxe.md.

python examples/saxe2018/all.py             # all figures, short runs
python examples/saxe2018/all.py --full      # as long as the paper's
python examples/saxe2018/all.py figure6     # some of them anew; the rest of the page is what --out has of them
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import training
from claims import NOT, REPRODUCED, markdown, report
from PIL import Image
from script import load, save

FIGURES = (
    *("figure2c", "figure2d", "same_function", "figure6", "figure1a", "figure8", "figure1b", "figure7", "figure9"),
    *("figure5", "figure3", "figure4ab", "figure4cd", "figure10"),
)  # those that share networks together
PAGE = Path(__file__).parents[2] / "docs" / "reproductions" / "saxe.md"
IMAGES = PAGE.parents[1] / "images" / "saxe"
SHOWN = {
    "figure1a": "1A: tanh, SGD",
    "figure1b": "1B: ReLU, SGD",
    "figure2c": "2C: one tanh unit",
    "figure5": "5: with and without noise in the gradient",
    "figure6": "6: relevant and irrelevant inputs",
    "figure8": "8: activations of the tanh network",
}
"""Of the page; the others are in --out."""
INTRODUCTION = """# Saxe et al. (2018), figure by figure

*On the information bottleneck theory of deep learning*. Written by `python examples/saxe2018/all.py`; every verdict is
computed from the values beside it: **reproduced** if all of them meet the criterion, **in part** if some do, **not
reproduced** if none does. There is a value for each seed (or layer and seed) unless it is called a mean or a largest
one. *Said by*: the paper, or this page. Each script says where its set-up differs from the paper's text and code.
"""


def page(out: Path) -> str:
    """The results in a folder, in the order of the paper."""
    names = sorted(FIGURES, key=lambda name: (not name.startswith("figure"), len(name.rstrip("abcd")), name))
    found = {name: told for name in names if (told := load(name, out)) is not None}
    claims = [claim for _, told in found.values() for claim in told]
    against = [claim for claim in claims if claim.source == "paper" and claim.verdict != REPRODUCED]
    missing = [name for name in names if name not in found]
    lines = [
        INTRODUCTION,
        "## Where the results and the paper part",
        "",
        *(f"- {c.figure}, {c.text}: **{c.verdict}** ({c.criterion}; {c.measured})." for c in against),
        "",
        f"Of {len(claims)} criteria, {sum(c.verdict == REPRODUCED for c in claims)} are met and "
        f"{sum(c.verdict == NOT for c in claims)} are not met by any value.",
        "",
        "## Figures",
        "",
        *(f"![{caption}](../images/saxe/{name}.png)\n" for name, caption in SHOWN.items() if name in found),
        "## All criteria",
        "",
        markdown(claims),
        "",
        "## Runs",
        "",
        *(f"- `{name}.py`: {runs}" for name, (runs, _) in found.items()),
        *(f"- `{name}.py`: not run" for name in missing),
    ]
    return "\n".join(lines) + "\n"


def write(out: Path) -> None:
    """The page and its pictures from a folder of results."""
    for folder in (PAGE.parent, IMAGES):
        folder.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(out))
    for name in SHOWN:
        if (out / f"{name}.png").exists():
            picture = Image.open(out / f"{name}.png").convert("RGB").quantize()  # a third of the size
            picture.save(IMAGES / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", help=f"some of {', '.join(FIGURES)}; all by default")
    parser.add_argument("--full", action="store_true", help="the paper's length and more seeds")
    parser.add_argument("--out", type=Path, default=Path("runs/saxe2018"), help="folder of the figures")
    arguments = parser.parse_args()
    unknown = set(arguments.figures) - set(FIGURES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(FIGURES)}")
    training.TENSORBOARD = arguments.out / "callbacks"
    for name in arguments.figures or FIGURES:
        result = import_module(name).run(arguments.full)
        save(result, name, arguments.out)
        print(f"{name}: {result.runs}\n{report(result.claims)}\n", flush=True)
        write(arguments.out)


if __name__ == "__main__":
    main()
