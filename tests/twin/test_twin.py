"""The twin with one sample replaced is the run on the data with this sample replaced."""

import copy
import logging
import math
import pickle
import re
import signal
import threading
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from harness import assert_identical, run
from invariance import networks, optimisation, steps
from invariance.cases import CASES
from lightning.pytorch import Callback
from lightning_utilities.core import rank_zero
from models import FEATURES, Classifier, data, loader, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from twin.driver import Drive, live_threads

from lightning_info.twin import NotSupported, OutOfStep, Twin

OLD, NEW = 5, 17


def replaced(size=24, i=OLD, j=NEW):
    x, y = (tensor.clone() for tensor in data(size).tensors)
    x[i], y[i] = x[j], y[j]
    return TensorDataset(x, y)


def dropout():
    return Classifier(dropout=0.5)


PAIRED = {
    "in order": (dropout, {}, {}),
    "shuffled": (dropout, {"shuffle": True}, {}),
    "shuffled, 2 workers": (dropout, {"shuffle": True, "num_workers": 2}, {}),
    "BatchNorm, uneven last batch, accumulation": (
        networks.Everything, {"batch_size": 10, "shuffle": True}, {"accumulate_grad_batches": 2},
    ),
    "bf16-mixed, clipped": (dropout, {"shuffle": True}, {"precision": "bf16-mixed", "gradient_clip_val": 0.05}),
    "bf16-true": (dropout, {"shuffle": True}, {"precision": "bf16-true"}),
    "manual optimisation": (optimisation.Manual, {"shuffle": True}, {}),
    "LBFGS": (optimisation.Lbfgs, {}, {}),
    "random numbers in the step": (steps.DrawsNumbers, {"shuffle": True}, {}),
    "noise on the device": (steps.NoisyTransfer, {"shuffle": True}, {}),
    "limited epochs": (dropout, {"shuffle": True}, {"limit_train_batches": 2}),
}  # fmt: skip
"""Module, options of the loader, options of the Trainer."""


@pytest.mark.parametrize("name", PAIRED)
def test_the_twin_is_the_run_on_the_data_with_the_sample_replaced(name):
    module, of_loader, of_trainer = PAIRED[name]
    of_loader = {"batch_size": 8, **of_loader}

    class Final(Callback):
        def on_train_end(self, trainer, pl_module):
            self.weights = copy.deepcopy(pl_module.state_dict())

    other, drive = Final(), Drive(OLD, NEW)
    run(module, other, data=lambda: DataLoader(replaced(), **of_loader), max_epochs=3, **of_trainer)
    options = {"data": lambda: DataLoader(data(24), **of_loader), "max_epochs": 3, **of_trainer}
    assert_identical(run(module, **options), run(module, drive, **options))
    assert drive.twin.reason is None
    if name != "noise on the device":  # that of the replaced row is drawn apart
        assert all(torch.equal(other.weights[key], drive.final[key]) for key in other.weights)
    first = drive.twin.first_difference_step
    before = [d for s, d in zip(drive.steps, drive.distances, strict=True) if s <= first]
    after = [d for s, d in zip(drive.steps, drive.distances, strict=True) if s > first]
    assert set(before) == {0.0}
    assert after
    assert all(d > 0 for d in after)
    again = Drive(OLD, NEW)
    run(module, again, **options)
    assert again.distances == drive.distances


def test_a_replacement_that_is_equal_changes_nothing():
    x, y = replaced().tensors
    drive = Drive(OLD, NEW)
    run(dropout, drive, data=lambda: DataLoader(TensorDataset(x, y), 8, shuffle=True))
    assert drive.twin.first_difference_step is not None
    assert set(drive.distances) == {0.0}


@pytest.mark.parametrize(
    "name", ["random augmentation", "random augmentation, 2 workers", "data set with generators of its own"]
)
def test_augmented_data_are_replaced_and_the_run_does_not_notice(name):
    followed, drive, again = CASES[name], Drive(OLD, NEW), Drive(OLD, NEW)
    assert_identical(run(followed.module, **followed.options), run(followed.module, drive, **followed.options))
    run(followed.module, again, **followed.options)
    assert drive.twin.reason is None
    assert drive.distances[0] == 0.0 < drive.distances[-1]
    assert again.distances == drive.distances


class Linear(pl.LightningModule):
    """Least squares by gradient descent on all data."""

    rate = 0.05

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, FEATURES))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(x @ self.weight, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)


def test_the_distance_of_least_squares_is_the_closed_form():
    """w_t = w* + (I - 2 eta A)^t (w_0 - w*) with A = X^T X / N."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20, FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randn(20, generator=generator, dtype=torch.float64)
    x_twin, y_twin = x.clone(), y.clone()
    x_twin[OLD], y_twin[OLD] = x[NEW], y[NEW]

    def path(x, y, steps):
        curvature = x.T @ x / len(x)
        optimum = torch.linalg.solve(curvature, x.T @ y / len(x))
        start = torch.linspace(-1, 1, FEATURES).double()
        shrink = torch.eye(FEATURES, dtype=torch.float64) - 2 * Linear.rate * curvature
        return [optimum + torch.linalg.matrix_power(shrink, t) @ (start - optimum) for t in range(steps)]

    drive = Drive(OLD, NEW)
    fit = trainer(drive, max_epochs=40, precision="64-true")
    fit.fit(Linear(), DataLoader(TensorDataset(x, y), 20, shuffle=True))
    pairs = zip(path(x, y, 41), path(x_twin, y_twin, 41), strict=True)
    expected = [float((w_twin - w).norm()) for w, w_twin in pairs]
    assert drive.distances == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert drive.distances[1] > 1e-3
    assert drive.twin.first_difference_step == 0


# ---- faults


class Boom(Callback):
    changes_training = False

    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            raise self.error


@pytest.mark.parametrize("before", [True, False])
def test_an_exception_of_the_user_passes_unchanged_and_the_thread_ends(before):
    drive, boom = Drive(), Boom(ValueError("the user's own"))
    module, batches = Classifier(), loader()
    cls = type(batches.batch_sampler)
    run = trainer(*([drive, boom] if before else [boom, drive]))
    with pytest.raises(ValueError, match="the user's own") as caught:
        run.fit(module, batches)
    assert caught.value is boom.error
    assert live_threads() == []
    assert type(batches.batch_sampler) is cls
    assert "process_dataloader" not in vars(run.strategy)


def test_an_exception_in_the_step_passes_unchanged():
    class Fails(Classifier):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise ValueError("in the step")
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="in the step"):
        trainer(Drive()).fit(Fails(), loader())
    assert live_threads() == []


def test_an_interrupt_ends_the_thread(monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Lightning switches Ctrl-C off for good
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(Drive(), Boom(KeyboardInterrupt())).fit(Classifier(), loader())
    assert live_threads() == []


class InterruptedInTheTwin(Classifier):
    """Ctrl-C while the user's run waits for the twin."""

    def __init__(self):
        super().__init__()
        asked, done = threading.Event(), threading.Event()
        InterruptedInTheTwin.asked, InterruptedInTheTwin.done = asked, done

        def interrupt():
            asked.wait()
            signal.raise_signal(signal.SIGINT)
            done.set()

        threading.Thread(target=interrupt, daemon=True).start()

    def training_step(self, batch, batch_idx):
        if batch_idx == 3 and threading.current_thread() is not threading.main_thread():
            self.asked.set()
            self.done.wait()
        return super().training_step(batch, batch_idx)


def test_an_interrupt_while_the_run_waits_for_the_twin_ends_the_thread(monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    drive = Drive()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(drive).fit(InterruptedInTheTwin(), loader())
    assert live_threads() == []
    assert drive.distances == [0.0] * 4


def test_the_twin_says_nothing_of_its_own(capsys):
    class Speaks(Classifier):
        def training_step(self, batch, batch_idx):
            self.print("a step")
            return super().training_step(batch, batch_idx)

    class Records(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    told, handler, logger = [], Records(), rank_zero.log  # of whichever of the two packages was imported last
    level = logger.level
    logger.addHandler(handler)
    for callbacks in ([], [Drive()]):
        messages = []
        logger.setLevel(logging.INFO)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            trainer(*callbacks, max_epochs=1).fit(Speaks(), loader())
        told.append((messages, [str(w.message) for w in warned], capsys.readouterr().out))
    logger.removeHandler(handler)
    logger.setLevel(level)
    assert told[0] == told[1]
    assert any("max_epochs=1" in message for message in told[0][0])
    assert told[0][2].count("a step") == 8


def test_a_step_that_saves_checkpoints_does_so_once(tmp_path):
    class Saves(Classifier):
        written = 0

        def training_step(self, batch, batch_idx):
            if batch_idx == 0:
                self.trainer.save_checkpoint(tmp_path / "own.ckpt")
            return super().training_step(batch, batch_idx)

        def on_save_checkpoint(self, checkpoint):
            if threading.current_thread() is not threading.main_thread():
                Saves.written += 1

    trainer(Drive(), max_epochs=1).fit(Saves(), loader())
    assert Saves.written == 0


class FailsInTheTwin(Classifier):
    at = 3

    def training_step(self, batch, batch_idx):
        if batch_idx == self.at and threading.current_thread() is not threading.main_thread():
            raise RuntimeError("only here")
        return super().training_step(batch, batch_idx)


def test_an_exception_of_the_twin_ends_the_twin_and_not_the_run():
    drive = Drive()
    assert_identical(run(FailsInTheTwin, data=loader), run(FailsInTheTwin, drive, data=loader))
    assert drive.distances[:4] == [0.0] * 4
    assert all(map(math.isnan, drive.distances[4:]))
    assert re.fullmatch(
        r"the twin failed: RuntimeError: only here \(test_twin.py:\d+, in training_step\)", drive.twin.reason
    )
    assert drive.twin.lost_at == 3
    assert live_threads() == []
    with pytest.raises(OutOfStep, match="only here"):
        drive.twin.weights()


def test_a_copy_that_cannot_be_trained_is_refused_before_the_first_step():
    class Once(Classifier):
        def configure_optimizers(self):
            if threading.current_thread() is not threading.main_thread():
                raise OSError("the file is locked")
            return super().configure_optimizers()

    with pytest.raises(NotSupported, match=r"a copy of Once cannot be trained: OSError: the file is locked"):
        trainer(Drive()).fit(Once(), loader())
    assert live_threads() == []


# ---- the check


class CountsInAGlobal(Classifier):
    """Trains by something that is not of the module."""

    calls = 0

    def training_step(self, batch, batch_idx):
        CountsInAGlobal.calls += 1
        return super().training_step(batch, batch_idx) * CountsInAGlobal.calls


def test_a_training_that_does_not_repeat_is_found_before_anything_is_replaced():
    drive = Drive(63, 0)
    trainer(drive).fit(CountsInAGlobal(), loader())
    assert drive.distances[0] == 0.0
    assert all(map(math.isnan, drive.distances[1:]))
    assert drive.twin.reason.startswith("the twin's weights differ though nothing has been replaced yet")


class Freezes(Callback):
    """Says that it changes nothing, and does."""

    changes_training = False

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.net[0].requires_grad_(False)


class Edits(Callback):
    changes_training = False

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            pl_module.net[0].weight.data.mul_(0.5)


def test_a_layer_frozen_by_a_callback_that_denies_it_is_found_after_the_replacement_too():
    drive = Drive(0, 1)
    trainer(drive, Freezes()).fit(Classifier(), loader())
    assert all(math.isfinite(d) for d in drive.distances[:8])
    assert all(map(math.isnan, drive.distances[8:]))
    assert "net.0.weight.requires_grad is False, and True in the twin" in drive.twin.reason


def test_weights_edited_by_a_callback_that_denies_it_are_found():
    drive = Drive(0, 1)
    trainer(drive, Edits(), max_epochs=3).fit(Classifier(), loader())
    assert all(math.isfinite(d) for d in drive.distances[:16])
    assert all(map(math.isnan, drive.distances[16:]))


# ---- use


def test_samples_that_are_not_given_are_drawn_by_the_seed():
    drawn = set()
    for seed in range(4):
        drive = Drive(None, None, seed)
        trainer(drive, max_epochs=1).fit(Classifier(), loader())
        assert drive.twin.index != drive.twin.replacement
        drawn.add((drive.twin.index, drive.twin.replacement))
    assert len(drawn) > 2
    again = Drive(None, None, 3)
    trainer(again, max_epochs=1).fit(Classifier(), loader())
    assert (again.twin.index, again.twin.replacement) == (drive.twin.index, drive.twin.replacement)


def test_two_twins_follow_one_run():
    drives = Drive(3, 3), Drive(OLD, NEW)
    batches = loader(shuffle=True)
    cls = type(batches.batch_sampler)
    fit = trainer(*drives)
    fit.fit(Classifier(), batches)
    assert set(drives[0].distances) == {0.0}
    assert drives[1].distances[-1] > 0
    assert type(batches.batch_sampler) is cls
    assert "process_dataloader" not in vars(fit.strategy)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_of_a_twin_follows_a_run_of_its_own(copied):
    copies = []

    class Copies(Callback):
        changes_training = False

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                copies.append(copied(drive.twin))

    drive = Drive(OLD, NEW)
    trainer(drive, Copies(), max_epochs=1).fit(Classifier(), loader())
    copies.append(copied(drive.twin))
    assert copies[-1].first_difference_step == 0
    for twin in copies:
        other = Drive()
        other.twin = twin
        trainer(other, max_epochs=1).fit(Classifier(), loader())
        assert other.twin.reason is None
        assert (twin.index, twin.replacement) == (OLD, NEW)


def test_the_twins_weights_are_there_only_while_it_follows():
    twin = Twin(0, 1)
    with pytest.raises(OutOfStep, match="no training runs"):
        twin.weights()
