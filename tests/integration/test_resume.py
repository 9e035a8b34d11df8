"""A run that goes on from a checkpoint goes on with its curve."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from models import Classifier, loader, trainer

from lightning_info import FisherTraceCallback


def callbacks():
    return [
        FisherTraceCallback(
            "exact", every_n_train_steps=2, num_samples=12, prefix=prefix, on_error="raise", summary=False
        )
        for prefix in (None, "second")
    ]


class Stop(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [5, 8, 11])
def test_curves_go_on_at_the_right_steps_with_the_same_samples(tmp_path, stop, accumulate):
    options = {"max_steps": 14, "max_epochs": -1, "accumulate_grad_batches": accumulate}
    data = loader(64 * accumulate, shuffle=True)  # 8 steps an epoch
    torch.manual_seed(0)
    start = Classifier().state_dict()

    def fit(*others, path=None):
        module, ours = Classifier(), callbacks()
        module.load_state_dict(start)
        run = trainer(*ours, *others, enable_checkpointing=True, default_root_dir=tmp_path, **options)
        torch.manual_seed(1)
        run.fit(module, data, ckpt_path=path)
        return ours

    whole = fit()
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, save_top_k=0)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(saving, Stop(stop))
    path = tmp_path / "last.ckpt"
    torch.load(path, weights_only=True)
    resumed = fit(path=path)
    for one, other, tag in zip(whole, resumed, ("fisher/trace", "second/fisher/trace"), strict=True):
        assert [step for step, _ in other.history[tag]] == [0, 2, 4, 6, 8, 10, 12, 14]
        before = sum(step < stop for step, _ in one.history[tag])
        assert other.history[tag][:before] == one.history[tag][:before]
        (pool,), (again,) = one._samples.groups, other._samples.groups
        assert torch.equal(pool[0], again[0])
        assert torch.equal(pool[1], again[1])


def test_samples_that_do_not_travel_are_collected_anew_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_info.probing.reference.LARGEST_STATE", 10)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_last=True)
    trainer(*callbacks(), saving, enable_checkpointing=True, max_epochs=1).fit(Classifier(), loader())
    resumed = callbacks()
    with pytest.warns(UserWarning, match="goes on with other reference samples"):
        trainer(*resumed, max_epochs=2).fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert [step for step, _ in resumed[0].history["fisher/trace"]][-3:] == [12, 14, 16]


def test_a_callback_of_an_earlier_run_starts_anew_on_another_trainer():
    ours = callbacks()
    for _ in range(2):
        trainer(*ours, max_epochs=1).fit(Classifier(), loader())
        assert [step for step, _ in ours[0].history["fisher/trace"]] == [0, 2, 4, 6, 8]


def test_a_callback_that_took_up_a_checkpoint_starts_anew_on_another_trainer(tmp_path):
    ours, saving = callbacks(), ModelCheckpoint(tmp_path, every_n_train_steps=4, save_last=True)
    trainer(*ours, saving, enable_checkpointing=True, max_epochs=1).fit(Classifier(), loader())
    trainer(*ours, max_epochs=2).fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert [step for step, _ in ours[0].history["fisher/trace"]] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    trainer(*ours, max_epochs=1).fit(Classifier(), loader())
    assert [step for step, _ in ours[0].history["fisher/trace"]] == [0, 2, 4, 6, 8]
