"""Several loggers at once, and what is read back from the stores of MLflow and W&B (not in the test extra)."""

from __future__ import annotations

import csv
import itertools
import json
import math
import struct
import warnings

import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from models import Classifier, loader, trainer
from models import curves as measured
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_info import FisherTraceCallback

STEPS = [0, 3, 6, 8]


def fit(*loggers, **options):
    """One epoch of 8 steps; the weights become NaN after the seventh, so that the last point has no value."""
    given = {"every_n_train_steps": 3, "num_samples": 8, "per_layer": True, "summary": False}
    callback = FisherTraceCallback(**{**given, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no value at step 8, and what Lightning, MLflow and W&B say
        trainer(callback, Poison(), logger=list(loggers), max_epochs=1, log_every_n_steps=1).fit(Classifier(), loader())
    assert all([step for step, _ in curve] == STEPS for curve in callback.history.values())
    assert any(math.isnan(curve[-1][1]) for curve in callback.history.values())
    return callback


class Poison(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 6:
            next(pl_module.parameters()).data.fill_(float("nan"))


class MemoryLogger(Logger):
    """The least that a logger can be: no experiment."""

    name = version = "memory"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


def assert_equal(found, history):
    """Curves by tag, NaN equal to NaN; what else was logged does not count."""
    assert set(history) <= set(found)
    for tag, curve in history.items():
        np.testing.assert_array_equal(found[tag], curve, err_msg=tag)


def curves(rows):
    """``tag -> [(step, value), ...]`` of ``(step, {tag: value})``."""
    found = {}
    for step, metrics in rows:
        for tag, value in metrics.items():
            found.setdefault(tag, []).append((step, value))
    return found


def test_every_logger_gets_every_scalar_and_none_can_change_what_the_next_gets(tmp_path):
    class Greedy(MemoryLogger):
        def log_metrics(self, metrics, step=None):
            super().log_metrics(dict(metrics), step)
            metrics.clear()

    board, table, memory = TensorBoardLogger(tmp_path), CSVLogger(tmp_path), MemoryLogger()
    callback = fit(Greedy(), board, table, memory)
    events = EventAccumulator(board.log_dir).Reload()
    in_events = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert_equal(in_events, {tag: [(s, np.float32(v)) for s, v in c] for tag, c in measured(callback).items()})
    with open(f"{table.log_dir}/metrics.csv") as file:
        rows = [(int(row.pop("step")), {tag: float(v) for tag, v in row.items() if v}) for row in csv.DictReader(file)]
    assert_equal(curves(rows), measured(callback))
    assert_equal(curves(memory.rows), measured(callback))


def test_csv_has_all_its_columns_from_the_first_point_on(tmp_path):
    headers = []

    class Reader(Callback):
        def on_train_batch_end(self, trainer, *args):
            with open(f"{trainer.logger.log_dir}/metrics.csv") as file:
                headers.append({tag for tag in next(csv.reader(file)) if "fisher" in tag})

        on_train_end = on_train_batch_end

    callback = FisherTraceCallback(every_n_train_steps=2, num_samples=8, per_layer=True, also=("exact",), summary=False)
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer(callback, Reader(), logger=logger, max_epochs=1).fit(Classifier(), loader())
    assert len(headers) == 9
    assert all(header == set(measured(callback)) for header in headers)


def test_no_tag_is_a_folder_of_another(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    also = ("empirical", "exact")
    callbacks = [FisherTraceCallback(num_samples=8, also=also, prefix=p, summary=False) for p in (None, "mine")]
    trainer(*callbacks, logger=logger, max_epochs=1).fit(Classifier(), loader())
    images = EventAccumulator(logger.log_dir).Reload().Tags()["images"]
    tags = {tag for callback in callbacks for tag in callback.history} | set(images)
    assert len(images) == 2
    assert not [pair for pair in itertools.permutations(tags, 2) if pair[0].startswith(f"{pair[1]}/")]


def test_dummy_logger_of_fast_dev_run_is_harmless(tmp_path):
    callback = FisherTraceCallback(num_samples=8, on_error="raise", summary=False)
    run = trainer(callback, logger=TensorBoardLogger(tmp_path), fast_dev_run=True)
    run.fit(Classifier(), loader())
    assert [type(logger).__name__ for logger in run.loggers] == ["DummyLogger"]
    assert [step for step, _ in callback.history["fisher/trace"]] == [0]
    assert not list(tmp_path.rglob("*"))


# ---- MLflow


def test_mlflow_stores_every_scalar_and_the_figure(tmp_path):
    pytest.importorskip("mlflow")
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/store.db", artifact_location=str(tmp_path / "artifacts"))
    callback = fit(logger, prefix="my run-1.0")
    store = logger.experiment
    tags = store.get_run(logger.run_id).data.metrics
    found = {tag: [(m.step, m.value) for m in store.get_metric_history(logger.run_id, tag)] for tag in tags}
    assert_equal(found, measured(callback))
    folder = "my run-1.0/fisher/layers"
    assert [a.path for a in store.list_artifacts(logger.run_id, folder)] == [f"{folder}/step=000008.png"]
    (image,) = (tmp_path / "artifacts").rglob("*.png")
    assert image.read_bytes().startswith(b"\x89PNG")


# ---- W&B


def wandb_rows(path):
    """``(step, {key: value})`` of every row of a .wandb file: records in blocks of 32 kB, each piece with a header."""
    from wandb.proto import wandb_internal_pb2

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # whole, or the last piece
            continue
        parsed, record = wandb_internal_pb2.Record.FromString(record), b""
        if parsed.HasField("history"):
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in parsed.history.item}
            row = {key: json.loads(value) for key, value in items.items()}
            yield row.get("trainer/global_step"), row


def test_wandb_stores_every_scalar_and_the_figure(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(offline=True, save_dir=tmp_path, settings=wandb.Settings(console="off"))
    logger.experiment.log({"of the user": 1.0}, step=1000)  # W&B's own step is ahead of the optimiser's
    callback = fit(logger, prefix="my run-1.0")
    folder = logger.experiment.dir
    wandb.teardown()  # closes the file, which finish() does not wait for
    (path,) = tmp_path.rglob("*.wandb")
    rows = list(wandb_rows(path))
    assert_equal(curves(rows), measured(callback))
    ((step, (name,)),) = curves(rows)["my run-1.0/fisher/layers/filenames"]
    assert step == 8
    with open(f"{folder}/{name}", "rb") as file:
        assert file.read().startswith(b"\x89PNG")
