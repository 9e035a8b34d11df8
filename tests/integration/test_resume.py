"""A run that goes on from a checkpoint goes on with its curve."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from models import FEATURES, Classifier, data, loader, trainer

from lightning_info import FisherTraceCallback, InfoPlaneCallback


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
        (pool,), (again,) = ([group.bare for group in c._samples.groups] for c in (one, other))
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


# ---- checkpoints that do not quite fit


def saved(tmp_path, *ours, module=None, **options):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_last=True)
    trainer(*ours, saving, enable_checkpointing=True, max_epochs=1, **options).fit(module or Classifier(), loader())
    return tmp_path / "last.ckpt"


def fisher(**options):
    defaults = {"num_samples": 12, "every_n_train_steps": 2, "on_error": "raise", "summary": False}
    return FisherTraceCallback("exact", **{**defaults, **options})


def measured(callback):
    return [step for step, _ in callback.history["fisher/trace"]]


def test_whoever_monitors_the_trace_finds_it_at_once(tmp_path):
    path = saved(tmp_path, fisher())
    ours = fisher(every_n_train_steps=100)
    stopping = EarlyStopping("fisher/trace", patience=100)
    run = trainer(ours, stopping, max_epochs=3)
    run.fit(Classifier(), loader(), loader(8), ckpt_path=path)
    assert stopping.wait_count == 1  # of two validations
    run.fit_loop.max_epochs = 4
    run.fit(Classifier(), loader(), loader(8))
    assert measured(ours) == [0, 2, 4, 6, 24, 32]


@pytest.mark.parametrize("precisions", [("32-true", "64-true"), ("64-true", "32-true")])
def test_a_run_goes_on_in_another_precision(tmp_path, precisions):
    path = saved(tmp_path, fisher(), precision=precisions[0])
    ours = fisher()
    trainer(ours, max_epochs=2, precision=precisions[1]).fit(Classifier(), loader(), ckpt_path=path)
    assert measured(ours) == [0, 2, 4, 6, 8, 10, 12, 14, 16]


def test_given_samples_take_the_precision_of_the_run():
    ours = fisher(reference=data(12).tensors)
    trainer(ours, max_epochs=1, precision="64-true").fit(Classifier(), loader())
    assert ours.history["fisher/trace"][0][1] > 0


@pytest.mark.parametrize(
    "broken",
    [
        lambda state: state.pop("elapsed"),
        lambda state: state.update(elapsed="long"),
        lambda state: state.pop("samples"),
        lambda state: state.update(samples=[]),
        lambda state: state.update(history=None),
        lambda state: state["samples"][0].pop("tensors"),
    ],
)
def test_a_state_of_another_make_costs_the_curve_but_not_the_run(tmp_path, broken):
    path = saved(tmp_path, fisher())
    checkpoint = torch.load(path, weights_only=True)
    (state,) = (value for key, value in checkpoint["callbacks"].items() if key.startswith("FisherTrace"))
    broken(state)
    torch.save(checkpoint, path)
    ours = fisher(on_error="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(ours, max_epochs=2).fit(Classifier(), loader(), ckpt_path=path)
    assert measured(ours)[-4:] == [10, 12, 14, 16]
    assert all(math.isfinite(value) for _, value in ours.history["fisher/trace"])


def test_samples_that_the_module_does_not_take_any_more_are_collected_anew(tmp_path):
    class Wider(Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return super().training_step((x[:, :FEATURES], y), batch_idx)

    path = saved(tmp_path, fisher())
    checkpoint = torch.load(path, weights_only=True)
    (state,) = (value for key, value in checkpoint["callbacks"].items() if key.startswith("FisherTrace"))
    state["samples"][0]["tensors"][0] = torch.zeros(12, FEATURES - 1)
    torch.save(checkpoint, path)
    ours = fisher()
    with pytest.warns(UserWarning, match="goes on with other reference samples"):
        trainer(ours, max_epochs=2).fit(Wider(), loader(), ckpt_path=path)
    assert measured(ours) == [0, 2, 4, 6, 10, 12, 14, 16]  # 8: not complete


def test_other_samples_given_at_a_resume_are_said(tmp_path):
    given = data(24).tensors
    path = saved(tmp_path, fisher(reference=[t[:12] for t in given]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other reference samples")
        trainer(fisher(reference=[t[:12] for t in given]), max_epochs=2).fit(Classifier(), loader(), ckpt_path=path)
    with pytest.warns(UserWarning, match="goes on with other reference samples"):
        trainer(fisher(reference=[t[12:] for t in given]), max_epochs=2).fit(Classifier(), loader(), ckpt_path=path)


def test_a_used_callback_starts_anew_with_a_checkpoint_that_does_not_know_it(tmp_path):
    path, ours = saved(tmp_path), fisher()
    trainer(ours, max_epochs=1).fit(Classifier(), loader())
    trainer(ours, max_epochs=2).fit(Classifier(), loader(), ckpt_path=path)
    assert measured(ours) == [10, 12, 14, 16]


def test_monitoring_what_the_clock_may_leave_out_is_warned_of():
    with pytest.warns(UserWarning, match="EarlyStopping monitors 'fisher/trace'.*every_n_epochs=1"):
        trainer(fisher(every_n_train_steps=None), EarlyStopping("fisher/trace"), max_epochs=1).fit(
            Classifier(), loader()
        )


def plane():
    return InfoPlaneCallback(bins=6, every_n_train_steps=2, num_samples=12, on_error="raise", summary=False)


@pytest.mark.parametrize("anew", [False, True])
def test_the_final_curves_of_the_information_plane_hold_the_points_before_a_resume(tmp_path, monkeypatch, anew):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, save_top_k=0)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(plane(), saving, Stop(5), enable_checkpointing=True, max_steps=10).fit(Classifier(), loader())
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    ours = plane()
    if anew:  # other samples: what was kept of those before says nothing of them
        ours = InfoPlaneCallback(
            bins=6, every_n_train_steps=2, reference=loader(64).dataset, num_samples=20, on_error="raise", summary=False
        )
    run = trainer(ours, enable_checkpointing=True, default_root_dir=tmp_path, max_steps=10)
    run.fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
    live, final = (ours.history[f"{family}/I_XT/net.4"] for family in ("info_plane", "info_plane_final"))
    assert [step for step, _ in live] == [0, 2, 4, 6, 8, 10]
    assert [step for step, _ in final] == ([4, 6, 8, 10] if anew else [0, 2, 4, 6, 8, 10])
    assert final[-1] == live[-1]
    assert set(ours._epochs) == {0, 2, 4, 6, 8, 10}
