"""A process that is killed (SIGKILL) in training, and the run that goes on from its last checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERY, KILLED, STEPS = 2, 11, 24

SCRIPT = f"""
import json, os, signal, sys
import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from models import Classifier, loader, trainer
from lightning_info import FisherTraceCallback

folder, path = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None

class Kill(pl.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == {KILLED} and path is None:
            os.kill(os.getpid(), signal.SIGKILL)

pl.seed_everything(0, verbose=False)
ours = [
    FisherTraceCallback("exact", every_n_train_steps={EVERY}, num_samples=20, on_error="raise", summary=False),
    FisherTraceCallback(num_samples=20, prefix="second", on_error="raise", summary=False),
]
saving = ModelCheckpoint(folder, every_n_train_steps=3, save_last=True)
logger = TensorBoardLogger(folder, version=0)
run = trainer(*ours, saving, Kill(), logger=logger, enable_checkpointing=True, max_epochs=3)
run.fit(Classifier(), loader(shuffle=True), ckpt_path=path)
run.save_checkpoint(folder + "/end.ckpt")
with open(folder + "/curves.json", "w") as file:
    json.dump([callback.history for callback in ours], file)
"""


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    (folder / "script.py").write_text(SCRIPT)
    here = os.pathsep.join(map(str, Path(__file__).parents[1:3]))  # the tests, and the package beside them
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "script.py"), str(folder)]
    options = {"env": environment, "timeout": 120, "capture_output": True, "text": True, "check": False}
    killed = subprocess.run(command, **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    saved = torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]
    resumed = subprocess.run([*command, str(folder / "last.ckpt")], **options)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    ended = torch.load(folder / "end.ckpt", weights_only=True)["callbacks"]
    states, ends = (
        [state for key, state in found.items() if key.startswith("FisherTraceCallback")] for found in (saved, ended)
    )
    events = EventAccumulator(str(folder / "lightning_logs" / "version_0")).Reload()
    return states, ends, json.loads((folder / "curves.json").read_text()), events


def test_the_curve_goes_on_at_the_right_steps(killed_and_resumed):
    states, _, (curves, *_), _ = killed_and_resumed
    before = states[0]["history"]["fisher/trace"]
    assert [step for step, _ in before] == [0, 2, 4, 6, 8]  # 20 samples are complete in the third batch
    assert curves["fisher/trace"][: len(before)] == before
    assert [step for step, _ in curves["fisher/trace"]] == list(range(0, STEPS + 1, EVERY))


def test_the_event_file_has_every_point_after_the_checkpoint(killed_and_resumed):
    _, _, (curves, *_), events = killed_and_resumed
    written = {event.step: event.value for event in events.Scalars("fisher/trace")}
    after = [(step, value) for step, value in curves["fisher/trace"] if step >= 9]
    assert len(after) == 8
    assert [written[step] for step, _ in after] == pytest.approx([value for _, value in after], rel=1e-6)


def test_the_schedule_goes_on_with_the_time_already_spent(killed_and_resumed):
    states, ends, (_, curves), _ = killed_and_resumed
    for state, end in zip(states, ends, strict=True):
        assert 0 < state["spent"] < end["spent"] < end["elapsed"]
        assert state["elapsed"] < end["elapsed"]
    steps = [step for step, _ in curves["second/fisher/trace"]]
    assert (steps[0], steps[-1]) == (0, STEPS)
    assert set(steps) <= {0, 2, 4, 8, 16, 24}
