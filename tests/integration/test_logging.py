"""What reaches the loggers and the history, at which steps, and what the rest of Lightning makes of it."""

from __future__ import annotations

import csv
import itertools
import math
import warnings
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from models import Classifier, curves, data, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_info import FisherTraceCallback
from lightning_info.quantities.fisher_trace.quantity import FisherTrace
from lightning_info.replica.snapshot import Unavailable

EPOCH = 10  # batches of 8 in the 80 training samples
X, Y = data(80).tensors


def fisher(**options) -> FisherTraceCallback:
    return FisherTraceCallback(**{"num_samples": 8, "on_error": "raise", "summary": False, **options})


def fit(callback: Callback, *others: Callback, size: int = 8 * EPOCH, batch_size: int = 8, model=None, **options):
    run = trainer(callback, *others, **options)
    run.fit(Classifier() if model is None else model, loader(size, batch_size))
    return run


def steps(callback: FisherTraceCallback, tag: str = "fisher/trace") -> list[int]:
    return [step for step, _ in callback.history[tag]]


def read_events(logger: TensorBoardLogger) -> EventAccumulator:
    return EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "images": 0}).Reload()


def read_scalars(logger: TensorBoardLogger) -> dict[str, list[tuple[int, float]]]:
    events = read_events(logger)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_csv(logger: CSVLogger) -> dict[str, list[tuple[int, float]]]:
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return {tag: [(int(row["step"]), float(row[tag])) for row in rows if row[tag]] for tag in rows[0]}


def float32(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, float(np.float32(value))) for step, value in curve]


def gradient_norm(scalar: torch.Tensor, model: torch.nn.Module) -> float:
    gradients = torch.autograd.grad(scalar, list(model.parameters()), retain_graph=True)
    return sum(g.double().square().sum().item() for g in gradients)


def exact_trace(model: Classifier, x: torch.Tensor) -> float:
    """The definition of tr F, one backward per sample and class."""
    model.eval()
    per_label = (
        log_p.exp().item() * gradient_norm(log_p, model) for row in x for log_p in model(row[None]).log_softmax(1)[0]
    )
    return sum(per_label) / len(x)


class Recorder(Callback):
    """Keeps the weights and buffers before the first micro-batch of every step, and those at the end."""

    def __init__(self, optimizers: int = 1):
        self.optimizers = optimizers
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        state = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}
        self.states.setdefault(trainer.global_step // self.optimizers, state)

    def on_train_end(self, trainer, pl_module):
        self.on_train_batch_start(trainer, pl_module, None, 0)


class Poison(Callback):
    """Makes the weights NaN after some number of batches."""

    def __init__(self, batches: int):
        self.batches, self.seen = batches, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen += 1
        if self.seen == self.batches:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(math.nan)


# ---- loggers

SCHEDULES = [
    ({"every_n_train_steps": 6}, {"max_epochs": 2}, [0, 6, 12, 18, 20]),
    ({"every_n_train_steps": 5}, {"max_epochs": 2}, [0, 5, 10, 15, 20]),
    ({"every_n_train_steps": 100}, {"max_epochs": 2}, [0, 20]),
    ({"every_n_train_steps": 4}, {"max_epochs": 2, "max_steps": 13}, [0, 4, 8, 12, 13]),
    ({"every_n_epochs": 1}, {"max_epochs": 3}, [0, 10, 20, 30]),
    ({"every_n_epochs": 2}, {"max_epochs": 3}, [0, 20, 30]),
    ({"every_n_epochs": 1}, {"max_epochs": 2, "max_steps": 13}, [0, 10, 13]),
]


@pytest.mark.parametrize(("interval", "length", "expected"), SCHEDULES)
def test_loggers_get_exactly_the_points_of_the_schedule(tmp_path, interval, length, expected):
    board, table = TensorBoardLogger(tmp_path), CSVLogger(tmp_path)
    callback = fisher(**interval)
    fit(callback, logger=[board, table], **length)
    in_events, in_csv = read_scalars(board), read_csv(table)
    for tag in callback.tags:
        assert steps(callback, tag) == expected
        assert in_events[tag] == float32(callback.history[tag])
        assert in_csv[tag] == callback.history[tag]


def test_every_one_of_several_loggers_gets_everything(tmp_path):
    boards = [TensorBoardLogger(tmp_path, name=name) for name in ("a", "b", "c")]
    callback = fisher(every_n_train_steps=4)
    fit(callback, logger=boards, max_epochs=1)
    expected = {tag: float32(callback.history[tag]) for tag in callback.tags}
    for board in boards:
        found = read_scalars(board)
        assert {tag: found[tag] for tag in found if tag.startswith("fisher")} == expected
        assert read_events(board).Tags()["images"] == ["fisher/layers"]


@pytest.mark.parametrize("per_layer", [False, True])
def test_layers_are_always_in_history_and_in_loggers_if_asked(tmp_path, per_layer):
    board, table = TensorBoardLogger(tmp_path), CSVLogger(tmp_path)
    callback = fisher(every_n_train_steps=5, per_layer=per_layer)
    run = fit(callback, logger=[board, table], max_epochs=1)
    layers = [tag for tag in callback.history if tag.startswith("fisher_layers")]
    assert layers == ["fisher_layers/net.0", "fisher_layers/net.4"]
    for tag in layers:
        assert steps(callback, tag) == [0, 5, 10]
    sums = [sum(values) for values in zip(*([v for _, v in callback.history[tag]] for tag in layers), strict=True)]
    assert sums == pytest.approx([value for _, value in callback.history["fisher/trace"]], rel=1e-9)
    for found in (read_scalars(board), read_csv(table), run.callback_metrics):
        assert [tag for tag in found if tag.startswith("fisher_layers")] == layers * per_layer


def test_figure_is_an_image_in_the_event_file(tmp_path):
    board = TensorBoardLogger(tmp_path)
    callback = fisher(every_n_train_steps=2)
    fit(callback, logger=board, max_epochs=1)
    images = read_events(board).Images("fisher/layers")
    drawn = [image.step for image in images]
    assert drawn[-1] == 10
    assert drawn == sorted({*drawn} & {*steps(callback)})  # earlier ones depend on the clock
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in images)


def test_prefix_stands_in_front_of_every_tag(tmp_path):
    board = TensorBoardLogger(tmp_path)
    plain = fisher(every_n_train_steps=5)
    prefixed = fisher(every_n_train_steps=5, prefix="mine", per_layer=True)
    run = fit(plain, prefixed, logger=board, max_epochs=1)
    assert curves(prefixed) == {f"mine/{tag}": curve for tag, curve in curves(plain).items()}
    found = {tag: curve for tag, curve in read_scalars(board).items() if "fisher" in tag}
    logged = {tag: plain.history[tag] for tag in plain.tags} | curves(prefixed)
    assert found == {tag: float32(curve) for tag, curve in logged.items()}
    assert set(read_events(board).Tags()["images"]) == {"fisher/layers", "mine/fisher/layers"}
    assert {tag for tag in run.callback_metrics if "fisher" in tag} == set(logged)


def test_further_traces_are_logged_and_right(tmp_path):
    board, recorder = TensorBoardLogger(tmp_path), Recorder()
    callback = fisher(also=("empirical", "exact"), every_n_train_steps=5, draws=None)
    fit(callback, recorder, logger=board, max_epochs=1)
    model = Classifier()
    for i, step in enumerate([0, 5, 10]):
        model.load_state_dict(recorder.states[step])
        losses = F.cross_entropy(model(X[:8]), Y[:8], reduction="none")
        empirical = sum(gradient_norm(loss, model) for loss in losses) / 8
        point = {tag: curve[i] for tag, curve in callback.history.items()}
        assert point["fisher/empirical_trace"] == (step, pytest.approx(empirical, rel=1e-4))
        assert point["fisher/exact_trace"] == (step, pytest.approx(exact_trace(model, X[:8]), rel=1e-4))
        assert point["fisher/exact_trace_stderr"] == (step, 0.0)
        assert point["fisher/empirical_trace_stderr"][1] > 0
    found = read_scalars(board)
    for name, suffix in itertools.product(("empirical", "exact"), ("", "_stderr")):
        tag = f"fisher/{name}_trace{suffix}"
        assert found[tag] == float32(callback.history[tag])


def test_layer_unfrozen_during_training_joins_the_history(tmp_path):
    class Unfreeze(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net[0].requires_grad_(trainer.current_epoch > 0)

    callback = fisher(every_n_train_steps=5)
    board = TensorBoardLogger(tmp_path)
    fit(callback, Unfreeze(), logger=board, max_epochs=2)
    assert steps(callback) == [0, 5, 10, 15, 20]
    assert steps(callback, "fisher_layers/net.4") == [0, 5, 10, 15, 20]
    measured = [step for step, value in callback.history["fisher_layers/net.0"] if math.isfinite(value)]
    assert measured == [10, 15, 20]
    assert read_events(board).Images("fisher/layers")[-1].step == 20


# ---- the step rule


@pytest.mark.parametrize("batch_norm", [False, True])
def test_accumulated_batches_count_as_one_step_and_a_point_describes_its_weights(batch_norm):
    recorder, callback = Recorder(), fisher(every_n_train_steps=1, estimator="exact", batch_norm="running")
    run = fit(callback, recorder, model=Classifier(batch_norm=batch_norm), max_epochs=2, accumulate_grad_batches=4)
    assert run.global_step == 6  # batches 4 + 4 + 2 of each epoch
    assert steps(callback) == [0, 1, 2, 3, 4, 5, 6]
    model, truth = Classifier(batch_norm=batch_norm), []
    for step in steps(callback):
        model.load_state_dict(recorder.states[step])
        truth.append(exact_trace(model, X[:8]))
    assert len({round(value, 4) for value in truth}) == 7
    assert [value for _, value in callback.history["fisher/trace"]] == pytest.approx(truth, rel=1e-4)


def test_run_that_stops_within_accumulated_batches_measures_its_last_step_once():
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = batch_idx == 5  # the second of the four batches of step 1

    callback = fisher(every_n_train_steps=1)
    run = fit(callback, Stop(), accumulate_grad_batches=4)
    assert run.global_step == 1
    assert steps(callback) == [0, 1]


class TwoOptimizers(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[i].parameters(), 0.3) for i in (0, 4)]


def test_manual_optimisation_with_two_optimizers_counts_a_batch_once():
    recorder, callback = Recorder(optimizers=2), fisher(every_n_train_steps=3, estimator="exact")
    run = fit(callback, recorder, model=TwoOptimizers(), max_epochs=2)
    assert run.global_step == 40
    assert steps(callback) == [0, 3, 6, 9, 12, 15, 18, 20]
    model = Classifier()
    for step, value in callback.history["fisher/trace"]:
        model.load_state_dict(recorder.states[step])
        assert value == pytest.approx(exact_trace(model, X[:8]), rel=1e-4)


@pytest.mark.parametrize(
    ("max_overhead", "expected"),
    [(1.0, [0, 1, 2, 4, 8, 10, 16, 20, 30]), (1e-9, [0, 1, 2, 4, 8, 16, 30])],  # the floor is for the early ones
    ids=["huge", "tiny"],
)
def test_default_schedule_doubles_and_keeps_within_the_overhead(max_overhead, expected):
    callback = fisher(max_overhead=max_overhead)
    fit(callback, max_epochs=3)
    assert steps(callback) == expected


@pytest.mark.parametrize(("max_overhead", "expected"), [(1.0, [0, 3, 6, 9, 10]), (1e-9, [0, 10])], ids=["huge", "tiny"])
def test_explicit_interval_is_thinned_only_by_an_explicit_overhead(max_overhead, expected):
    callback = fisher(every_n_train_steps=3, max_overhead=max_overhead)
    fit(callback, max_epochs=1)
    assert steps(callback) == expected


# ---- callback_metrics and the callbacks that read them


def test_early_stopping_stops_on_the_trace():
    callback = fisher(every_n_train_steps=1)
    stopping = EarlyStopping("fisher/trace", mode="max", patience=1, min_delta=1e9)
    run = fit(callback, stopping, max_epochs=5)
    assert stopping.stopped_epoch == 1
    assert run.global_step == 2 * EPOCH
    assert steps(callback) == list(range(2 * EPOCH + 1))
    # the end of an epoch sees the point before its last step
    assert stopping.best_score.item() == float(np.float32(callback.history["fisher/trace"][EPOCH - 1][1]))


def test_early_stopping_finds_the_trace_after_one_epoch_of_fewer_samples_than_asked():
    callback = FisherTraceCallback(on_error="raise", summary=False)  # asks for 256 of 80
    stopping = EarlyStopping("fisher/trace", mode="max", patience=1, min_delta=1e9)
    run = fit(callback, stopping, max_epochs=5)
    assert run.global_step == 2 * EPOCH


def test_checkpoint_is_saved_on_the_trace(tmp_path):
    callback = fisher(every_n_train_steps=1)
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}", monitor="fisher/trace", mode="max")
    fit(callback, checkpoint, max_epochs=3, enable_checkpointing=True)
    trace = dict(callback.history["fisher/trace"])
    seen = [trace[EPOCH * epoch - 1] for epoch in (1, 2, 3)]
    assert len(set(seen)) == 3
    assert checkpoint.best_model_score.item() == float(np.float32(max(seen)))
    assert [path.name for path in tmp_path.glob("*.ckpt")] == [f"epoch={seen.index(max(seen))}.ckpt"]


class Plateau(Classifier):
    """Its learning rate falls where the trace does not."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "fisher/trace"}}


@pytest.mark.parametrize("who", [None, "EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau"])
def test_callback_metrics_say_that_a_curve_is_lost_to_all_but_who_would_act_on_it(tmp_path, who):
    board, callback = TensorBoardLogger(tmp_path), fisher(every_n_train_steps=4)
    others = {
        "EarlyStopping": EarlyStopping("fisher/trace", patience=100, check_finite=True),
        "ModelCheckpoint": ModelCheckpoint(tmp_path, monitor="fisher/trace"),
    }
    monitors = [others[who]] if who in others else []
    model = Plateau() if who == "ReduceLROnPlateau" else None
    options = {"enable_checkpointing": who == "ModelCheckpoint", "logger": board, "max_epochs": 2}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(callback, Poison(14), *monitors, model=model, **options)
    assert run.global_step == 20
    values = dict(callback.history["fisher/trace"])
    assert [step for step in values if math.isfinite(values[step])] == [0, 4, 8, 12]
    assert list(values) == [0, 4, 8, 12, 16, 20]
    kept = run.callback_metrics["fisher/trace"].item()
    said = [str(w.message) for w in caught if "callback_metrics keeps" in str(w.message)]
    if who is None:
        assert math.isnan(kept)
        assert said == []
    else:
        assert kept == float(np.float32(values[12]))
        (message,) = said
        assert f"{who} monitors 'fisher/trace', which has no value at step 16 (NaN)" in message
        assert "keeps that of step 12" in message
    assert all(math.isnan(run.callback_metrics[tag]) for tag in callback.tags if tag != "fisher/trace")
    logged = read_scalars(board)["fisher/trace"]
    assert [step for step, value in logged if math.isnan(value)] == [16, 20]


@pytest.mark.parametrize(
    "monitor",
    [
        ModelCheckpoint(monitor="fisher/trace"),
        EarlyStopping("fisher/trace", strict=False),
        EarlyStopping("fisher/trace", check_finite=False, patience=9),
    ],
    ids=["ModelCheckpoint", "tolerant", "indifferent"],
)
def test_a_trace_without_any_value_does_not_end_the_run_of_who_monitors_it(tmp_path, monkeypatch, monitor):
    monkeypatch.setattr(FisherTrace, "measure", Mock(side_effect=Unavailable("none")))
    saving = {"enable_checkpointing": isinstance(monitor, ModelCheckpoint), "default_root_dir": tmp_path}
    run = trainer(fisher(every_n_train_steps=4), monitor, max_epochs=2, **saving)
    run.fit(Classifier(), loader(80), loader(8))
    assert run.global_step == 20


def test_going_on_fills_in_no_value_that_is_lost():
    callback = fisher(every_n_train_steps=100)
    run = fit(callback, Poison(4), max_epochs=1)

    class Look(Callback):
        def on_train_start(self, trainer, module):
            self.found = trainer.callback_metrics["fisher/trace"].item()

    look = Look()
    run.callbacks.append(look)
    run.fit_loop.max_epochs = 2
    run.fit(Classifier(), loader(80))
    assert math.isnan(look.found)


class Freezing(Classifier):
    """Trains its last layer only from step 5 on, and Lightning's Adam does not mind."""

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 5:
            self.net[0].requires_grad_(False)


def test_the_curve_of_a_layer_that_is_frozen_ends_in_nan():
    callback = fisher(every_n_train_steps=4, per_layer=True)
    run = fit(callback, model=Freezing(), max_epochs=1)
    frozen = callback.history["fisher_layers/net.0"]
    assert [(step, math.isnan(value)) for step, value in frozen] == [(0, False), (4, False), (8, True), (10, True)]
    assert math.isnan(run.callback_metrics["fisher_layers/net.0"])
    assert math.isfinite(run.callback_metrics["fisher_layers/net.4"])


# ---- kinds of runs


@pytest.mark.parametrize("prefixes", [(None,), (None, "second")])
def test_without_logger_history_goes_on_after_one_warning(prefixes):
    callbacks = [fisher(every_n_train_steps=5, prefix=prefix) for prefix in prefixes]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(*callbacks, logger=False, max_epochs=2)
    ours = [str(w.message) for w in caught if "FisherTraceCallback" in str(w.message)]
    assert len(ours) == 1
    assert "no logger" in ours[0]
    for callback, prefix in zip(callbacks, prefixes, strict=True):
        tag = f"{prefix}/fisher/trace" if prefix else "fisher/trace"
        assert steps(callback, tag) == [0, 5, 10, 15, 20]
        assert run.callback_metrics[tag].item() == float(np.float32(callback.history[tag][-1][1]))


def test_with_a_logger_nothing_is_warned_about(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(fisher(every_n_train_steps=5), logger=TensorBoardLogger(tmp_path), max_epochs=1)
    assert not [w for w in caught if "FisherTraceCallback" in str(w.message) or "lightning_info" in w.filename]


@pytest.mark.parametrize("batches", [True, 3])
@pytest.mark.parametrize("num_samples", [8, 256])
def test_fast_dev_run_measures_once(batches, num_samples):
    callback = fisher(every_n_train_steps=1, num_samples=num_samples)
    run = fit(callback, fast_dev_run=batches)
    assert run.global_step == int(batches)
    assert steps(callback) == [0]


def test_barebones_measures_nothing(capsys):
    callback = fisher(every_n_train_steps=1, summary=True)
    run = fit(callback, barebones=True, max_epochs=1)
    assert run.global_step == EPOCH
    assert callback.history == {}
    assert "fisher/trace" not in run.callback_metrics
    assert "fisher" not in capsys.readouterr().out


def test_validation_before_and_after_fit_gives_no_points():
    callback, model = fisher(every_n_train_steps=5), Classifier()
    run = trainer(callback, max_epochs=1)
    (before,) = run.validate(model, loader(16), verbose=False)
    assert callback.history == {}
    run.fit(model, loader(80), loader(16))
    assert steps(callback) == [0, 5, 10]
    (after,) = run.validate(model, loader(16), verbose=False)
    assert steps(callback) == [0, 5, 10]
    assert after["val_loss"] < before["val_loss"]


def test_sanity_check_gives_no_point():
    class Spy(Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            self.seen = dict(callback.history)

    callback, spy = fisher(every_n_train_steps=5), Spy()
    trainer(callback, spy, max_epochs=1, num_sanity_val_steps=2).fit(Classifier(), loader(80), loader(16))
    assert spy.seen == {}
    assert steps(callback) == [0, 5, 10]


def test_fit_with_a_new_trainer_starts_a_new_history_on_its_own_samples():
    callback = fisher(every_n_train_steps=5, estimator="exact")
    fit(callback, max_epochs=1)
    model = Classifier()
    expected = exact_trace(model, X[8:16])
    trainer(callback, max_epochs=2).fit(model, DataLoader(TensorDataset(X[8:64], Y[8:64]), 8))
    assert steps(callback) == [0, 5, 10, 14]
    assert callback.history["fisher/trace"][0][1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("interval", [{"every_n_train_steps": 5}, {"every_n_epochs": 1}, {"max_overhead": 1.0}])
def test_going_on_with_the_same_trainer_repeats_no_step(tmp_path, interval):
    board, callback, model = TensorBoardLogger(tmp_path), fisher(**interval), Classifier()
    run = trainer(callback, logger=board, max_epochs=1)
    run.fit(model, loader(80))
    first = steps(callback)
    assert first[-1] == 10
    run.fit_loop.max_epochs = 2
    run.fit(model, loader(80))
    expected = {"every_n_train_steps": [15, 20], "every_n_epochs": [20], "max_overhead": [16, 20]}
    assert steps(callback) == first + expected[next(iter(interval))]
    assert [step for step, _ in read_scalars(board)["fisher/trace"]] == steps(callback)


def test_pytorch_lightning_namespace_gives_the_same_values(tmp_path):
    other = pytest.importorskip("pytorch_lightning")

    class Foreign(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Classifier().net

        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return Classifier.configure_optimizers(self)

    torch.manual_seed(1)
    here = fisher(every_n_train_steps=4)
    fit(here, model=Classifier(), max_epochs=1)
    torch.manual_seed(1)
    there, board = fisher(every_n_train_steps=4), other.loggers.TensorBoardLogger(tmp_path)
    run = other.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=board,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[there],
    )
    run.fit(Foreign(), loader(80))
    assert steps(there) == [0, 4, 8, 10]
    assert curves(there) == curves(here)
    assert read_scalars(board)["fisher/trace"] == float32(there.history["fisher/trace"])


# ---- reference samples


@pytest.mark.parametrize("batch_norm", [False, True])
def test_initialisation_is_measured_later_on_the_weights_of_then(batch_norm):
    def run(**options):
        torch.manual_seed(1)
        callback = fisher(num_samples=20, estimator="exact", every_n_train_steps=1, **options)
        fit(callback, model=Classifier(batch_norm=batch_norm), max_epochs=1)
        return callback

    waits, given = run(), run(reference=(X[:20], Y[:20]))
    assert steps(given) == list(range(EPOCH + 1))
    assert steps(waits) == [0, *range(2, EPOCH + 1)]  # batches 0, 1 and half of 2 make 20 samples
    for tag, curve in curves(waits).items():
        assert curve == [(step, pytest.approx(dict(given.history[tag])[step], rel=1e-6)) for step, _ in curve]
    first, later = waits.history["fisher/trace"][:2]
    assert abs(first[1] / later[1] - 1) > 1e-3


def test_points_that_had_to_wait_are_named_once(monkeypatch):
    said = []
    monkeypatch.setattr("lightning_info.callbacks.preparing.rank_zero_info", said.append)
    fit(fisher(num_samples=32, every_n_train_steps=1), max_epochs=1)
    (left_out,) = [message for message in said if "left out" in message]
    assert "the 2 points due at steps 1 to 2 were left out" in left_out
    assert "32 reference samples" in left_out


class Stream(IterableDataset):
    def __init__(self, start: int, stop: int):
        self.samples = slice(start, stop)

    def __iter__(self):
        return zip(X[self.samples], Y[self.samples], strict=True)


@pytest.mark.parametrize("training_set", [TensorDataset(X[:20], Y[:20]), Stream(0, 20)], ids=["data set", "stream"])
@pytest.mark.parametrize(("epochs", "expected"), [(1, [0, 2, 3]), (2, [0, 2, 3, 4, 5, 6])])
def test_smaller_training_set_is_used_whole(epochs, expected, training_set):
    model = Classifier()
    truth = exact_trace(model, X[:20])
    callback = fisher(num_samples=256, estimator="exact", every_n_train_steps=1)
    trainer(callback, max_epochs=epochs).fit(model, DataLoader(training_set, 8))
    assert steps(callback) == expected  # all samples have passed with the third batch, at step 2
    assert callback.history["fisher/trace"][0][1] == pytest.approx(truth, rel=1e-4)


def test_batches_of_one_sample_work():
    model = Classifier()
    truth = exact_trace(model, X[:4])
    callback = fisher(num_samples=4, estimator="exact", every_n_train_steps=5)
    trainer(callback, max_epochs=1).fit(model, DataLoader(TensorDataset(X[:12], Y[:12]), 1))
    assert steps(callback) == [0, 5, 10, 12]
    assert callback.history["fisher/trace"][0][1] == pytest.approx(truth, rel=1e-4)
    assert callback.plan.checked == 1  # one sample at a time: nothing to mix


@pytest.mark.parametrize(
    "reference",
    [
        (X[40:52], Y[40:52]),
        [X[40:], Y[40:]],
        TensorDataset(X[40:], Y[40:]),
        TensorDataset(X[40:52], Y[40:52]),
        Stream(40, 80),
    ],
    ids=["tensors", "more tensors", "longer data set", "data set", "iterable data set"],
)
def test_given_reference_samples_are_used_instead(reference):
    model = Classifier()
    truth = exact_trace(model, X[40:52])
    callback = fisher(num_samples=12, estimator="exact", every_n_train_steps=5, reference=reference)
    fit(callback, model=model, max_epochs=1)
    assert steps(callback) == [0, 5, 10]
    assert callback.history["fisher/trace"][0][1] == pytest.approx(truth, rel=1e-4)


# ---- the table at the end


@pytest.mark.parametrize("summaries", list(itertools.product([True, False], repeat=2)))
def test_table_is_printed_once_for_all_that_want_it(capsys, summaries):
    callbacks = [
        fisher(every_n_train_steps=5, prefix=prefix, summary=summary)
        for prefix, summary in zip((None, "second"), summaries, strict=True)
    ]
    fit(*callbacks, max_epochs=1)
    printed = capsys.readouterr().out
    assert printed.count("peak (step)") == any(summaries)
    rows = [line.split() for line in printed.splitlines() if "fisher/trace" in line]
    assert [row[0] for row in rows] == [
        tag for tag, summary in zip(("fisher/trace", "second/fisher/trace"), summaries, strict=True) if summary
    ]
    for row in rows:
        curve = dict(callbacks[row[0].startswith("second")].history[row[0]])
        assert row[-5] == f"{curve[0]:.4g}"
        assert row[-2] == f"{curve[10]:.4g}"


class Switches(Classifier):
    """Its loss is none that is known from epoch 1 on."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) if self.current_epoch < 1 else self(batch[0]).square().mean()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_table_tells_since_when_a_curve_is_lost(capsys):
    callback = fisher(every_n_epochs=1, summary=True, on_error="warn")
    run = fit(callback, model=Switches(), max_epochs=3)
    first = callback.history["fisher/trace"][0][1]
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("fisher/trace")]
    assert row.split()[-2:] == ["lost", "-"]
    assert f"lost since step 10 (the last is {first:.4g}, at step 0)" in " ".join(printed.split())
    assert math.isnan(run.callback_metrics["fisher/trace"])
