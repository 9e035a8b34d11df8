"""Training runs nobody here wrote: what the five callbacks say of them, whether it is right, and what it costs.

    pip install -e . -r tests/benchmarks/requirements-runs.txt
    python tests/benchmarks/runs.py                        # writes docs/runs.md
    python tests/benchmarks/runs.py --only Bert NHITS      # runs those again whose names begin so
    python tests/benchmarks/runs.py --python venv/bin/python    # with another interpreter

Every case runs in a process of its own; what is found is kept in ``tests/benchmarks/runs.json``, from which the table
is written. Random weights, small made-up data, nothing is downloaded. One CPU thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "runs.json", HERE.parents[1] / "docs" / "runs.md"
SECONDS = 600
"""Of CPU time that a case may take."""


def results_of(case, logs: Path) -> dict:
    """Run a case in a process of its own; what it had found when its time was over."""
    from run_cases.child import judge

    stem = "".join(c if c.isalnum() else "_" for c in case.name)
    found = logs / f"{stem}.json"
    found.unlink(missing_ok=True)

    def child(folder: str) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        os.chdir(folder)
        log = os.open(logs / f"{stem}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        judge(case, found)

    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("fork").Process(target=child, args=(folder,))
        process.start()
        process.join()
    if process.exitcode == -signal.SIGXCPU:
        ended = f"not finished in {SECONDS} CPU s"
    else:
        ended = f"the process ended with {process.exitcode}" if process.exitcode else ""
    record = json.loads(found.read_text()) if found.exists() else {}
    return {**record, "ended": ended}


def kept() -> dict:
    """What was found so far, by case."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of names; default: all")
    parser.add_argument("--python", default=sys.executable, help="interpreter in which the packages are installed")
    parser.add_argument("--logs", default=Path(tempfile.gettempdir()) / "runs", type=Path, help="folder for outputs")
    parser.add_argument("--seconds", default=150, type=int, help="CPU seconds after which a fit is stopped")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    arguments = parser.parse_args()
    if Path(arguments.python) != Path(sys.executable):
        os.execv(arguments.python, [arguments.python, *sys.argv])
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(HERE.parents[1]))

    from run_cases import CASES, child
    from run_cases.table import line, table

    child.SECONDS = arguments.seconds

    if arguments.list:
        return print("\n".join(case.name for case in CASES))
    arguments.logs.mkdir(parents=True, exist_ok=True)
    for case in [] if arguments.table else CASES:
        if arguments.only and not case.name.startswith(tuple(arguments.only)):
            continue
        start = time.time()
        record = results_of(case, arguments.logs)
        print(f"{line(case, record)}  ({time.time() - start:.0f} s)", flush=True)
        if not record.get("missing"):
            known = {**kept(), case.name: record}
            RESULTS.write_text(json.dumps({c.name: known[c.name] for c in CASES if c.name in known}, indent=1) + "\n")
    results = kept()
    TABLE.write_text(table([(case, results[case.name]) for case in CASES if case.name in results]))


if __name__ == "__main__":
    main()
