"""A run that goes on from a checkpoint goes on with its twin."""

import math

import pytest
import torch
from invariance import networks, optimisation
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from models import Classifier, loader, trainer
from twin.driver import Drive, live_threads

from lightning_info.twin import Twin
from lightning_info.twin.state import TwinState


class Stop(Callback):
    changes_training = False

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")


class SavesItself(Classifier):
    """Calls for a checkpoint in the middle of a step."""

    path = None

    def training_step(self, batch, batch_idx):
        if self.path and self.global_step == 10:
            self.trainer.save_checkpoint(self.path)
        return super().training_step(batch, batch_idx)


SAVING = {
    "in the middle of an epoch": {"every_n_train_steps": 5},
    "at the last batch of an epoch": {"every_n_train_steps": 8},
    "at the end of validation": {"save_on_train_epoch_end": False},
    "at the end of an epoch": {"save_on_train_epoch_end": True},
}
MODULES = {
    "Adam": Classifier,
    "dropout": lambda: Classifier(dropout=0.5),
    "BatchNorm": networks.Everything,
    "manual": optimisation.Manual,
}


def fit(module, *callbacks, path=None, **options):
    torch.manual_seed(1)
    run = trainer(*callbacks, **{"max_epochs": 3, **options})
    run.fit(module, loader(shuffle=True), loader(16), ckpt_path=path)
    return run


def cut(module, drive, step, saving):
    with pytest.raises(RuntimeError, match="power cut"):
        fit(module, drive, Stop(step), saving, enable_checkpointing=True)
    assert live_threads() == []


@pytest.mark.parametrize(
    ("moment", "name"),
    [(moment, "dropout") for moment in SAVING] + [("in the middle of an epoch", name) for name in MODULES],
)
def test_the_null_twin_is_still_at_the_users_weights(tmp_path, moment, name):
    saving = ModelCheckpoint(tmp_path, save_last=True, save_top_k=1, **SAVING[moment])
    cut(MODULES[name](), Drive(), 18 if name != "manual" else 36, saving)
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    resumed = Drive()
    run = fit(MODULES[name](), resumed, path=tmp_path / "last.ckpt")
    assert not any(resumed.reasons), next(filter(None, resumed.reasons))
    assert set(resumed.distances) == {0.0}
    assert resumed.steps[-1] == 24
    assert run.current_epoch == 3
    assert live_threads() == []


@pytest.mark.parametrize("moment", ["at the end of validation", "at the end of an epoch"])
def test_the_distances_go_on_as_in_a_run_without_interruption(tmp_path, moment):
    def fit(drive, *others, path=None, **options):
        module = Classifier()
        module.load_state_dict(start)
        trainer(drive, *others, **{"max_epochs": 3, **options}).fit(module, loader(), loader(16), ckpt_path=path)

    start = Classifier().state_dict()
    whole, first, resumed = Drive(3, 40), Drive(3, 40), Drive(3, 40)
    fit(whole)
    saving = ModelCheckpoint(tmp_path, save_last=True, save_top_k=1, **SAVING[moment])
    with pytest.raises(RuntimeError, match="power cut"):
        fit(first, Stop(18), saving, enable_checkpointing=True)
    fit(resumed, path=tmp_path / "last.ckpt")
    assert resumed.twin.first_difference_step == whole.twin.first_difference_step == 0
    assert resumed.distances == whole.distances[16:]
    assert all(d > 0 for d in resumed.distances)


def test_a_checkpoint_saved_in_the_middle_of_a_step(tmp_path):
    module = SavesItself()
    module.path = tmp_path / "own.ckpt"
    fit(module, Drive())
    resumed = Drive()
    fit(SavesItself(), resumed, path=tmp_path / "own.ckpt")
    assert resumed.twin.reason is None
    assert set(resumed.distances) == {0.0}
    assert len(resumed.distances) > 10


def test_a_checkpoint_saved_after_training(tmp_path):
    first, resumed = Drive(3, 40), Drive(3, 40)
    fit(Classifier(), first, max_epochs=1).save_checkpoint(tmp_path / "end.ckpt")
    fit(Classifier(), resumed, path=tmp_path / "end.ckpt")
    assert resumed.distances[0] == first.distances[-1] > 0
    assert resumed.steps[0] == first.steps[-1] == 8


@pytest.mark.parametrize("before", [True, False])
def test_a_checkpoint_saved_by_an_exception(tmp_path, before):
    saving, drive, stop = OnExceptionCheckpoint(tmp_path), Drive(), Stop(11)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(Classifier(), *([drive, stop] if before else [stop, drive]), saving, enable_checkpointing=True)
    resumed = Drive()
    fit(Classifier(), resumed, path=saving.ckpt_path)
    assert resumed.twin.reason is None
    assert set(resumed.distances) == {0.0}


def test_a_run_that_goes_on_without_the_twin_of_its_checkpoint_has_none(tmp_path):
    fit(Classifier(), max_epochs=1).save_checkpoint(tmp_path / "without.ckpt")
    resumed = Drive()
    fit(Classifier(), resumed, path=tmp_path / "without.ckpt")
    assert all(map(math.isnan, resumed.distances))
    assert resumed.twin.reason.startswith("the run goes on at step 8 without the twin of that step; start anew")


def test_a_state_of_a_twin_with_other_samples_is_not_taken_up():
    trainer(first := Drive(3, 40), max_epochs=1).fit(Classifier(), loader())
    state = first.twin.state_dict()
    for index, replacement, same in ((3, 40, True), (None, None, True), (3, 41, False), (4, None, False)):
        assert TwinState(**state).belongs_to(index, replacement, 8) is same
    assert not TwinState(**state).belongs_to(3, 40, 7)
    assert Twin(3, 40).state_dict() == {}


def test_a_twin_that_was_lost_stays_lost(tmp_path):
    class Edits(Callback):
        changes_training = False

        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net[0].requires_grad_(trainer.current_epoch == 0)

    lost, resumed = Drive(), Drive()
    fit(Classifier(), lost, Edits(), max_epochs=2).save_checkpoint(tmp_path / "lost.ckpt")
    fit(Classifier(), resumed, path=tmp_path / "lost.ckpt")
    assert lost.twin.reason == resumed.twin.reason
    assert "requires_grad" in resumed.twin.reason
    assert all(map(math.isnan, resumed.distances))
