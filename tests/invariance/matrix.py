"""Judge every case and write docs/bit_identity.md: ``python tests/invariance/matrix.py``, in about ten minutes."""

from __future__ import annotations

import io
import logging
import platform
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[0] = str(TESTS)

import lightning  # noqa: E402
import torch  # noqa: E402

from invariance.cases import GROUPS  # noqa: E402
from invariance.judge import Case, callbacks_under_test, judge  # noqa: E402

TEXT = """\
# Is training bit-identical?

These tables are the output of `python tests/invariance/matrix.py` (Python {python}, torch {torch}, Lightning
{lightning}, on the CPU). Every configuration (`tests/invariance/cases.py`) trains a small network from the same seeds

1. without our callbacks,
2. with {ours} at once, which end the run if a measurement fails; if there are other callbacks, once
   before and once after them,
3. with a *saboteur* instead, which in the middle of the run moves one weight to the next floating-point number and
   draws one random number.

Recorded at the start of every batch and at the end of training are: weights, gradients, buffers, `requires_grad`,
train or eval mode and the number of hooks; all attributes of the modules (including states of torchmetrics), loaders,
data sets and datamodule (for objects that hold no plain data only the type); the states of optimisers, schedulers and
the random number generators of torch, numpy and Python; global modes of torch, counters of the trainer, and the batch.
Also recorded are the loss of every backward pass, what every `training_step` and `validation_step` returns, the metrics
after every batch and validation, and what reaches loggers, TensorBoard's files and checkpoints. The metrics that our
callbacks add and the states of callbacks in checkpoints are left out.

Two runs are *identical* if all of this agrees in every bit. *Points measured* lists the points of each of our
callbacks; the last of them, `StabilityCallback`, is missing where it refuses a run that its twin could not follow, or
says that the twin was lost. The saboteur is *caught* if the recording that follows its acts differs in both.

{identical} of {total} configurations are identical, with points measured by every callback and the saboteur caught.
"""
HEAD = """
## {title}

| configuration | identical | points measured | saboteur caught |
|---|---|---|---|
"""


def main() -> int:
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    tables, passed = [], []
    for title, cases in GROUPS.items():
        rows = {name: row(case) for name, case in cases.items()}
        tables.append(HEAD.format(title=title) + "".join(f"| {name} | {text} |\n" for name, (_, text) in rows.items()))
        passed += [good for good, _ in rows.values()]
        print("".join(f"{name}: {text}\n" for name, (good, text) in rows.items() if not good), end="")
    text = TEXT.format(
        python=platform.python_version(),
        torch=torch.__version__,
        lightning=lightning.__version__,
        ours=counted([type(callback).__name__ for callback in callbacks_under_test()]),
        identical=sum(passed),
        total=len(passed),
    )
    (TESTS.parent / "docs" / "bit_identity.md").write_text(text + "".join(tables), encoding="utf-8")
    print(f"{sum(passed)} of {len(passed)} identical; written to docs/bit_identity.md")
    return 0 if all(passed) else 1


def row(case: Case) -> tuple[bool, str]:
    """Whether a case is as it should be, and its row without the name."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            verdict = judge(case)
    except Exception as error:
        return False, f"**failed: {type(error).__name__}** | | "
    kinds = sorted({name.partition("/")[0] for name in verdict.disturbed})
    identical = f"**no**: {', '.join(kinds)} differ" if kinds else "yes"
    points = ", ".join(map(str, verdict.points))
    return verdict.passed, f"{identical} | {points} | {'yes' if verdict.caught else '**no**'}"


def counted(names: list[str]) -> str:
    """``["A", "A", "B", "C"]`` as "2 `A`, 1 `B` and 1 `C`"."""
    *first, last = [f"{names.count(name)} `{name}`" for name in dict.fromkeys(names)]
    return f"{', '.join(first)} and {last}"


if __name__ == "__main__":
    sys.exit(main())
