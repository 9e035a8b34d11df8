"""Reproduce Achille, Paolini & Soatto, figure by figure, and write docs/reproductions/achille.md.

python examples/achille2020/all.py                  # all scripts, short runs
python examples/achille2020/all.py --full           # longer ones, of more seeds; figure 4 stays short without CIFAR-10
python examples/achille2020/all.py figure4 escape   # some of them; the rest of the page is what --out has of them
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

from adapters import ADAPTED, adapted
from PIL import Image
from results import Result, save
from statements import STATEMENTS

sys.path.append(str(Path(__file__).parents[1] / "saxe2018"))

from claims import NOT, REPRODUCED, difference, markdown, report
from script import load

PAGE = Path(__file__).parents[2] / "docs" / "reproductions" / "achille.md"
IMAGES = PAGE.parents[1] / "images" / "achille"
WIDTH = 1000
SEEDS = {"figure3": 3, "figure4": 3, "escape": 1, "lemma24": 3}
CAPTIONS = {
    "figure1": "1: log det of the Fisher information while a network learns two spirals, and its boundary; seed 0",
    "figure2": "2: a run and its twin with one sample replaced; how far they part, and F along this direction",
    "figure3": "3: one weight with many minima; where trainings end, what the weight tells, and the function",
    "figure4": "4: tr F and the scale-invariant trace against the batch size, after training and at the same loss, and "
    "against the number of classes",
    "pac_bayes_mnist": "Theorem 2.2: bounds on digits",
    "lemma24": "Lemma 2.4: traces of Hessian and Fisher information, and how far the matrices are apart",
    "escape": "Proposition 2.8: escape times from a sharp and a flat minimum, and which of them is preferred",
    "invariance": "Proposition 3.2: tr F, effective information and responses to nuisances; colour: batch size",
    "unique_information": "What the weights know of single samples, and whether this finds corrupted labels",
}
"""Of the figures, in the order of the page."""
INTRODUCTION = """# Achille, Paolini & Soatto (2020), figure by figure

*Where is the information in a deep neural network?* Written by `python examples/achille2020/all.py`; every verdict is
computed from the values beside it: **reproduced** if all of them meet the criterion, **in part** if some do, **not
reproduced** if none does. There is a value for each seed unless it is called a mean, or given in standard errors. The
paper states its results in words; all numbers in the criteria are ours, and each script's docstring gives them, with
what the paper leaves open.

*Said by*: the paper, or this page. *Run*: quick (the default) or full (`--full`); seeds and lengths are at the end. The
networks are small and learn scikit-learn's digits, spirals or toys, where the paper has a ResNet-18 and CIFAR-10: what
is judged here is the statement, not the scale. Formulas that are printed wrong are in the [errata](../errata.md).
"""


def scripts() -> dict[str, Callable[[bool, Path], Result]]:
    """Return how to run each script."""
    found = {}
    for name in CAPTIONS:
        if name in ADAPTED:
            found[name] = partial(adapted, name)
        else:
            run = import_module(name).run
            found[name] = lambda full, out, run=run, name=name: run(SEEDS[name], full and name != "figure4", out)
    return found


def page(out: Path) -> str:
    """Return the results in a folder, in the order of the captions."""
    found = {name: told for name in CAPTIONS if (told := load(name, out)) is not None}
    rows = [(told.length, claim) for told in found.values() for claim in told.claims]
    open_ones = [claim for _, claim in rows if claim.verdict != REPRODUCED]
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
        *(f"![{CAPTIONS[name]}](../images/achille/{name}.png)\n\n*{CAPTIONS[name]}.*\n" for name in found),
        "## All criteria",
        "",
        markdown(rows),
        "",
        "## Statements of sections 1 to 4 that no figure shows",
        "",
        "| section | statement | tested |",
        "|---|---|---|",
        *(f"| {section} | {statement} | {tested} |" for section, statement, tested in STATEMENTS),
        "",
        "## Runs",
        "",
        *(f"- `{name}.py`, {told.length}: {told.runs}" for name, told in found.items()),
        *(f"- `{name}.py`: not run" for name in CAPTIONS if name not in found),
    ]
    return "\n".join(lines) + "\n"


def write(out: Path) -> None:
    """Write the page and its pictures from a folder of results."""
    for folder in (PAGE.parent, IMAGES):
        folder.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(out))
    for name in CAPTIONS:
        if (out / f"{name}.png").exists():
            picture = Image.open(out / f"{name}.png").convert("RGB")
            picture.thumbnail((WIDTH, WIDTH))
            picture.quantize().save(IMAGES / f"{name}.png", optimize=True)  # a third of the size


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("scripts", nargs="*", help=f"some of {', '.join(CAPTIONS)}; all by default")
    options.add_argument("--full", action="store_true", help="longer runs, and more seeds")
    options.add_argument("--out", type=Path, default=Path("runs/achille2020"), help="folder of figures and results")
    arguments = options.parse_args(argv)
    unknown = set(arguments.scripts) - set(CAPTIONS)
    if unknown:
        options.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(CAPTIONS)}")
    for name, run in scripts().items():
        if arguments.scripts and name not in arguments.scripts:
            continue
        start = time.process_time()
        result = run(arguments.full, arguments.out)
        save(result, name, arguments.out, arguments.full and name != "figure4")
        print(f"{name}: {result.runs}; {time.process_time() - start:.0f} s of one core\n{result.told}")
        print(f"{report(result.claims)}\n", flush=True)
        write(arguments.out)


if __name__ == "__main__":
    main()
