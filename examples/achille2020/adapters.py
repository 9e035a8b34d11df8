"""Scripts with verdicts of another form, as ``Result``: runs with their default lengths, and their rows as claims."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import figure1
import figure2
import pac_bayes_mnist
from feature_learning import Row
from lightning.pytorch.loggers import TensorBoardLogger
from results import Claim, Result

sys.path.append(str(Path(__file__).parents[1]))

import unique_information

LIMITS = re.compile(r"(.+?):? (?:(?P<sign>[≥≤]) (?P<limit>[\d.]+)|in (?P<least>[\d.]+) to (?P<most>[\d.]+))( nats)?")


def claim(row: Row, figure: str, source: str = "paper") -> Claim:
    """Return a row as a claim; its criterion ends with limits, as ``≤ 0.1 nats`` or ``in 0.8 to 1.25``."""
    found = LIMITS.fullmatch(row.criterion)
    if found is None:
        raise ValueError(f"criterion without limits: {row.criterion!r}")
    least = found["limit"] if found["sign"] == "≥" else found["least"]
    most = found["limit"] if found["sign"] == "≤" else found["most"]
    same = Claim(
        figure,
        f"{row.claim}: {found[1]}",
        row.values,
        float(least or -math.inf),
        float(most or math.inf),
        (found[6] or "").strip(),
        source,
    )
    if same.holding != row.holding:
        raise ValueError(f"{row.criterion!r}: {same.holding} values meet it, and {row.holding} did in the script")
    return same


def claims(rows: Iterable[Row], figure: str, ours: tuple[str, ...] = ()) -> list[Claim]:
    """Return rows as claims; those whose text begins with one of ``ours`` are not the paper's."""
    return [claim(row, figure, "here" if row.claim.startswith(ours) else "paper") for row in rows]


def boundary(full: bool, out: Path) -> Result:
    """Figure 1."""
    seeds, steps, every = (8, 6000, 25) if full else (3, 2000, 25)
    loggers = [TensorBoardLogger(out, name="figure1", version=f"seed{seed}") for seed in range(seeds)]
    runs = [figure1.train(seed, steps, every, logger) for seed, logger in enumerate(loggers)]
    found = claims(figure1.verdicts(runs), "1")
    return Result(found, figure1.draw(runs[0], *figure1.spirals(0)), f"seeds 0 to {seeds - 1}, {steps} steps")


def twin(full: bool, out: Path) -> Result:
    """Figure 2, on scikit-learn's digits."""
    seeds, width, every = (8 if full else 3), 16, 20
    x, y = figure2.load(None, None)
    loggers = [TensorBoardLogger(out, name="figure2", version=f"seed{seed}") for seed in range(seeds)]
    runs = [figure2.train(seed, x, y, width, figure2.EPOCHS, every, logger) for seed, logger in enumerate(loggers)]
    found = claims(figure2.verdicts(runs), "2", ("(c) ... though", "(d)", "(e)"))
    said = f"digits, width {width}, seeds 0 to {seeds - 1}, {figure2.EPOCHS} epochs of each training"
    return Result(found, figure2.draw(runs), said)


def invariant(full: bool, out: Path) -> Result:
    """Proposition 3.2 over batch sizes."""
    import invariance  # not above: in the tests another module has this name

    seeds, batches = (8, invariance.ALL_BATCHES) if full else (3, invariance.BATCHES)
    points = []
    for seed in range(seeds):
        for batch in batches:
            logger = TensorBoardLogger(out, name="invariance", version=f"batch{batch}_seed{seed}")
            points.append(invariance.measure(batch, seed, invariance.LOSS, logger))
    said = f"batches of {batches}, seeds 0 to {seeds - 1}, to a training loss of {invariance.LOSS}"
    return Result(claims(invariance.judge(points), "Prop. 3.2", ("(d)", "(e)")), invariance.draw(points), said)


def known(full: bool, out: Path) -> Result:
    """Information on single samples, ``examples/unique_information.py``."""
    samples, twins, seeds, epochs = (1000, 200, 5, 20) if full else (200, 60, 3, 20)
    runs = []
    for seed in range(seeds):
        logger = TensorBoardLogger(out, name="unique_information", version=f"seed{seed}")
        data = unique_information.digits(seed, samples)
        runs.append(unique_information.measure(data, seed, epochs, twins, logger))
    figure = unique_information.draw(runs, unique_information.digits(0, samples))
    found = claims(unique_information.verdicts(runs), "Unique information", ours=("(",))
    return Result(found, figure, f"{samples} digits, {twins} twins, seeds 0 to {seeds - 1}, {epochs} epochs")


def bounds(full: bool, out: Path) -> Result:
    """Theorem 2.2 on scikit-learn's digits. A bound that is not vacuous is below the error of guessing."""
    seeds, epochs, more = (3, 20, 1200) if full else (1, 20, 300)
    found = {}
    for seed in range(seeds):
        for task in pac_bayes_mnist.tasks(None):
            for row in pac_bayes_mnist.bounds_of(task, epochs, more, seed):
                found.setdefault((task.name, row.kind), []).append((row, 1 - 1 / task.classes))
    judged = []
    for (task, kind), its in found.items():
        tested = [row.bound - row.test_error for row, _ in its if not math.isnan(row.test_error)]
        if tested:
            text = f"{task}, {kind}: it is a bound; bound minus error of Q on the test images"
            judged.append(Claim("Thm. 2.2", text, tested, 0))
        text = f"{task}, {kind}: not vacuous; bound over the error of guessing"
        judged.append(Claim("Thm. 2.2", text, [row.bound / guess for row, guess in its], at_most=1, source="here"))
    rows = [its[0][0] for its in found.values()]
    said = f"digits, seeds 0 to {seeds - 1}, {epochs} epochs, {more} more of Q; δ = {pac_bayes_mnist.DELTA}"
    return Result(judged, pac_bayes_mnist.draw(rows), said, f"\n{pac_bayes_mnist.table(rows)}\n")


ADAPTED: dict[str, Callable[[bool, Path], Result]] = {
    "figure1": boundary,
    "figure2": twin,
    "invariance": invariant,
    "pac_bayes_mnist": bounds,
    "unique_information": known,
}


def adapted(name: str, full: bool, out: Path) -> Result:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return ADAPTED[name](full, out)
