"""Two CPU processes (gloo): every process measures the reference samples of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import Classifier
from oracle import fisher_trace_by_definition

SCRIPT = """
import json, sys, torch, lightning.pytorch as pl
from models import Classifier, data, trainer
from torch.utils.data import DataLoader
from lightning_info import FisherTraceCallback

pl.seed_everything(3)
seen = []

class Watch(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if len(seen) < 2:
            seen.append(batch[0].tolist())

gathered = FisherTraceCallback("exact", num_samples=16, every_n_train_steps=2, on_error="raise", summary=False)
timed = FisherTraceCallback(num_samples=16, prefix="timed", on_error="raise", summary=False)
fit = trainer(Watch(), gathered, timed, max_epochs=2, strategy="ddp", devices=2)
module = Classifier()
start = {name: value.clone() for name, value in module.state_dict().items()}
fit.fit(module, DataLoader(data(), 4, shuffle=True))

with open(f"{sys.argv[1]}/rank{fit.global_rank}.json", "w") as file:
    json.dump({
        "history": gathered.history,
        "timed": [step for step, _ in timed.history["timed/fisher/trace"]],
        "metric": fit.callback_metrics["fisher/trace"].item(),
        "seen": seen,
        "start": {name: value.tolist() for name, value in start.items()},
    }, file)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, check=True, timeout=240, capture_output=True
    )
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_the_pool_is_that_of_both_processes(ranks):

    module = Classifier()
    module.load_state_dict({name: torch.tensor(value) for name, value in ranks[0]["start"].items()})
    x = torch.tensor([batch for rank in ranks for batch in rank["seen"]]).flatten(0, 1)
    assert x.shape == (16, 6)
    truth = sum(fisher_trace_by_definition(module.net, x, "categorical").values())
    assert ranks[0]["history"]["fisher/trace"][0] == [0, pytest.approx(truth, rel=1e-5)]


def test_both_processes_have_the_same_curve(ranks):
    # 64 samples, two processes, batches of 4: 8 steps an epoch; the pool is complete in the second batch
    assert [step for step, _ in ranks[0]["history"]["fisher/trace"]] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert ranks[0]["history"] == ranks[1]["history"]
    assert ranks[0]["metric"] == ranks[1]["metric"]


def test_both_processes_decide_alike_by_the_clock(ranks):
    assert ranks[0]["timed"] == ranks[1]["timed"]
    assert ranks[0]["timed"][0] == 0
    assert ranks[0]["timed"][-1] == 16
