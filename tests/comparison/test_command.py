from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparison.training import SAMPLES, lacking, module, reference
from models import Classifier

import lightning_info
from lightning_info.__main__ import main
from lightning_info.comparison import compare_runs


@pytest.fixture
def files(tmp_path):
    """Checkpoints of two runs of two steps, and samples."""
    for name, factor in (("a", 1.1), ("b", 1.11)):
        (tmp_path / name).mkdir()
        model = module()
        for step in range(2):
            checkpoint = {"state_dict": model.state_dict(), "global_step": step, "pytorch-lightning_version": "2.5.0"}
            torch.save(checkpoint, tmp_path / name / f"{step}.ckpt")
            for p in model.parameters():
                p.data *= factor
    torch.save(reference(), tmp_path / "data.pt")
    torch.save(lacking(), tmp_path / "alone.pt")
    return tmp_path


def arguments(files: Path, **instead: str) -> list[str]:
    options = {
        "module": "models:Classifier",
        "reference": f"{files}/data.pt",
        "run": f"{files}/a",
        "twin": f"{files}/b",
    }
    return [part for name, value in (options | instead).items() for part in (f"--{name}", *value.split())]


def test_the_command_prints_a_table_and_writes_figure_and_events(files):
    paths = [str(files / "a" / "0.ckpt"), str(files / "a" / "1.ckpt")]
    command = arguments(files, run=" ".join(paths), replaced=f"{files}/alone.pt", out=f"{files}/out", beta="0.5")
    root, tests = Path(lightning_info.__file__).parents[1], Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_info", "compare", *command, "--training-samples", str(SAMPLES)],
        cwd=tests, env={**os.environ, "PYTHONPATH": f"{root}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Warning" not in done.stderr
    options = {"replaced": lacking(), "training_samples": SAMPLES, "beta": 0.5}
    found = compare_runs(Classifier(), files / "a", files / "b", reference(), **options)
    assert done.stdout.startswith(found.table())
    assert (files / "out" / "figure.png").stat().st_size > 10_000
    assert list((files / "out").glob("events.*"))


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ({"module": "models:Unknown"}, "there is no 'Unknown' in models; it has "),
        ({"module": "Classifier"}, "give package.module:Name"),
        ({"twin": "nowhere.ckpt"}, "nowhere.ckpt"),
        ({"beta": "-1"}, "beta must be a positive"),
        ({"reference": "{files}/a/0.ckpt"}, "torch.save((x, y)"),
        ({"adapter": "models.unknown"}, "--adapter models.unknown"),
    ],
)
def test_what_cannot_be_done_ends_with_what_to_type(files, instead, message, capsys):
    instead = {name: value.format(files=files) for name, value in instead.items()}
    with pytest.raises(SystemExit):
        main(["compare", *arguments(files, **instead)])
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
