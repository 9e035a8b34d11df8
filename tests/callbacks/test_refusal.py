"""What a module, batch or trainer does not allow is one warning before the first step; the run and the others go on."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import Classifier, curves, loader, trainer
from torch.utils.data import DataLoader, IterableDataset

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    GradientNoiseCallback,
    StabilityCallback,
    WeightInfoCallback,
)

KINDS = [FisherTraceCallback, GradientNoiseCallback, WeightInfoCallback, EffectiveInfoCallback, StabilityCallback]


class HandWritten(Classifier):
    """No likelihood that is known, and no terms by sample: it compares the samples of a batch."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return -self(x).log_softmax(0).gather(1, y[:, None]).mean()


class Stream(IterableDataset):
    def __iter__(self):
        yield from loader(64).dataset


def fit(model, *callbacks, data=None, **options):
    """What was warned of by us, and the weights after training."""
    torch.manual_seed(0)
    run = trainer(*callbacks, max_epochs=1, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(model, loader(64) if data is None else data)
    said = [str(w.message) for w in caught if "Callback" in str(w.message) and "no logger" not in str(w.message)]
    return run, said, [p.detach().clone() for p in model.parameters()]


def make(model):
    torch.manual_seed(1)
    return model()


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_is_one_warning_with_the_fix_and_training_does_not_notice(kind, tmp_path):
    options = {"num_samples": 16, "every_n_train_steps": 2}
    callback, logger = kind(**options), TensorBoardLogger(tmp_path)
    plain_run, _, plain = fit(make(HandWritten))
    run, said, weights = fit(make(HandWritten), callback, logger=logger)
    assert run.global_step == plain_run.global_step == 8
    assert all(map(torch.equal, weights, plain))
    assert len(said) == 1
    assert said[0].startswith(f"{kind.__name__}: HandWritten.training_step calls no likelihood that is known here")
    assert f"{kind.__name__}(adapter=" in said[0]
    assert f"{kind.__name__} is off, and training goes on" in said[0]
    assert callback.report().startswith(f"{kind.__name__} is off: {kind.__name__}: HandWritten.training_step")
    assert callback.history == {}
    assert not [tag for tag in run.callback_metrics if tag.startswith(callback.family)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_the_run_if_asked(kind):
    with pytest.raises(MisconfigurationException, match="calls no likelihood that is known here"):
        fit(make(HandWritten), kind(num_samples=16, on_error="raise"))


@pytest.mark.parametrize("refused_first", [True, False])
def test_one_that_is_refused_stops_no_other(refused_first):
    """An IterableDataset has no sample to replace; the others measure what they measure alone."""

    def fisher():
        return FisherTraceCallback("exact", num_samples=16, every_n_train_steps=2, on_error="raise")

    alone, beside, stability = fisher(), fisher(), StabilityCallback(num_samples=16)
    fit(make(Classifier), alone, data=DataLoader(Stream(), 8))
    pair = (stability, beside) if refused_first else (beside, stability)
    run, said, _ = fit(make(Classifier), *pair, data=DataLoader(Stream(), 8))
    assert run.global_step == 8
    assert len(said) == 1
    assert "StabilityCallback is off" in said[0]
    assert stability.history == {}
    assert curves(beside) == curves(alone)


def test_the_table_and_the_layout_are_those_of_the_others(tmp_path, capsys):
    off = FisherTraceCallback(num_samples=16, adapter=lambda module, batch: None)
    on = FisherTraceCallback("exact", num_samples=16, every_n_train_steps=4, prefix="on")
    fit(make(Classifier), on, off, logger=TensorBoardLogger(tmp_path, name="", version=""))
    printed = capsys.readouterr().out
    assert "on/fisher/trace" in printed
    assert printed.count("measured") <= 2
    layout = b"".join(path.read_bytes() for path in tmp_path.glob("events*"))
    assert b"on/Fisher trace (tr F) with its 95 % band" in layout


def test_a_second_fit_is_looked_at_anew():
    callback = FisherTraceCallback("exact", num_samples=16, every_n_train_steps=4)
    fit(make(HandWritten), callback)
    assert callback.history == {}
    fit(make(Classifier), callback)
    assert [step for step, _ in callback.history["fisher/trace"]] == [0, 4, 8]


def test_a_wrong_argument_still_raises():
    with pytest.raises(MisconfigurationException, match="give each a prefix"):
        fit(make(Classifier), FisherTraceCallback(), FisherTraceCallback())
    with pytest.raises(ValueError, match="num_samples must be a positive integer"):
        FisherTraceCallback(num_samples=0)
