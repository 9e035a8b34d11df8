"""A run that goes on from a checkpoint goes on with its curve."""

from __future__ import annotations

import csv
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from models import FEATURES, Classifier, data, loader, trainer
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    InfoPlaneCallback,
    StabilityCallback,
    WeightInfoCallback,
)
from lightning_info.gradients.batches import num_samples


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
        (pool,), (again,) = ([group.bare for group in c.groups] for c in (one, other))
        assert torch.equal(pool[0], again[0])
        assert torch.equal(pool[1], again[1])


def test_samples_that_do_not_travel_are_collected_anew_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_info.replica.reference_samples.LARGEST_STATE", 10)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_last=True)
    trainer(*callbacks(), saving, enable_checkpointing=True, max_epochs=1).fit(Classifier(), loader())
    resumed = callbacks()
    with pytest.warns(UserWarning, match="goes on with other reference samples"):
        trainer(*resumed, max_epochs=2).fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert [step for step, _ in resumed[0].history["fisher/trace"]][-3:] == [12, 14, 16]


def test_samples_stay_out_of_checkpoints_if_asked(tmp_path):
    batches = [batch[0].numpy().tobytes() for batch in loader()]
    path = saved(tmp_path, fisher(prefix="with"), fisher(prefix="without", save_samples=False))
    states = torch.load(path, weights_only=True)["callbacks"]
    kept, left_out = (next(s for key, s in states.items() if repr(prefix) in key) for prefix in ("with", "without"))
    assert kept["samples"][0]["tensors"][0].numpy().tobytes().startswith(batches[0])
    assert left_out["samples"] is None
    assert not any(isinstance(value, torch.Tensor) for value in flat(left_out))
    resumed = fisher(prefix="without", save_samples=False)
    with pytest.warns(UserWarning, match="as save_samples=False keeps them out of checkpoints"):
        trainer(resumed, max_epochs=2).fit(Classifier(), loader(shuffle=True), ckpt_path=path)
    (pool,) = resumed.groups
    assert len(pool) == 12
    assert not torch.equal(pool.bare[0], data().tensors[0][:12])


def flat(value):
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if parts is None else [leaf for part in parts for leaf in flat(part)]


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


@pytest.mark.parametrize("samples", ["the same", "others", "more"])
def test_the_final_curves_of_the_information_plane_hold_the_points_before_a_resume(tmp_path, samples):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, save_top_k=0)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(plane(), saving, Stop(5), enable_checkpointing=True, max_steps=10).fit(Classifier(), loader())
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    ours = plane()
    if samples != "the same":  # what was kept of those before says nothing of them
        given, number = [part[30:] for part in data(64).tensors], 20 if samples == "more" else 12
        ours = InfoPlaneCallback(
            bins=6, every_n_train_steps=2, reference=given, num_samples=number, on_error="raise", summary=False
        )
    run = trainer(ours, enable_checkpointing=True, default_root_dir=tmp_path, max_steps=10)
    run.fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
    live, final = (ours.history[f"{family}/I_XT/net.2"] for family in ("info_plane", "info_plane_final"))
    whole, anew = [0, 2, 4, 6, 8, 10], [4, 6, 8, 10]
    assert [step for step, _ in live] == (anew if samples == "more" else whole)
    assert [step for step, _ in final] == (whole if samples == "the same" else anew)
    assert final[-1] == live[-1]
    assert list(ours.record().epochs) == [step for step, _ in live]


# ---- other settings


DEFAULTS = {"num_samples": 12, "every_n_train_steps": 2, "on_error": "raise", "summary": False}


def resumed(tmp_path, kind, before, after, *others, **options):
    """A callback that went on from step 8 to 12 with other arguments, the run, and what was said of the arguments."""
    path = saved(tmp_path, kind(**{**DEFAULTS, **before}))
    callback = kind(**{**DEFAULTS, **after})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(callback, *others, max_steps=12, max_epochs=-1, val_check_interval=2, **options)
        run.fit(Classifier(), loader(), loader(8), ckpt_path=path)
    return callback, run, [str(w.message) for w in caught if "in the checkpoint" in str(w.message)]


def double(module, batch):
    return 2 * module(batch[0]), batch[1], "categorical"


PLANE, WEIGHTS, EFFECTIVE, STABILITY = InfoPlaneCallback, WeightInfoCallback, EffectiveInfoCallback, StabilityCallback


@pytest.mark.parametrize(
    ("kind", "before", "after", "said"),
    [
        (
            FisherTraceCallback,
            {},
            {"estimator": "exact"},
            "estimator was 'importance' in the checkpoint and is 'exact'",
        ),
        (FisherTraceCallback, {}, {"num_samples": 16}, "num_samples was 12 in the checkpoint and is 16 now"),
        (PLANE, {}, {"bins": 8}, "bins was 30 in the checkpoint and is 8 now"),
        (WEIGHTS, {"draws": 2}, {"draws": 2, "beta": 0.5}, "beta was 1.0 in the checkpoint and is 0.5 now"),
    ],
)
def test_with_another_setting_the_curves_start_anew_and_this_is_said(tmp_path, kind, before, after, said):
    callback, _, (message,) = resumed(tmp_path, kind, before, after)
    assert re.match(f"{kind.__name__}: {said}.* start anew at step 8", message)
    steps = [10, 12] if "num_samples" in after else [8, 10, 12]  # a larger set has not passed at 8
    curves = dict(callback.history)
    assert [step for step, _ in curves.pop("weight_info/test_bound", [(10, 0), (12, 0)])] == [10, 12]  # validated at 10
    ends = {"weight_info/prequential": [8], "weight_info/prequential_excess": [12]}  # the first epoch had 8 steps
    assert all([step for step, _ in curves.pop(tag, [(steps[0], 0)])] == steps for tag, steps in ends.items())
    assert {tuple(step for step, _ in curve) for curve in curves.values()} == {tuple(steps)}
    assert sum(map(num_samples, callback.groups)) == callback.num_samples
    assert set(callback.record().epochs) == set(steps)
    assert math.isfinite(callback.history[callback.tags[0]][0][1])


@pytest.mark.parametrize(
    ("kind", "before", "after", "changes"),
    [
        (FisherTraceCallback, {}, {"draws": 7, "engine": "loop", "also": ["exact"], "seed": 3, "per_layer": True}, ""),
        (FisherTraceCallback, {}, {"every_n_train_steps": 5, "max_overhead": 1.0, "reference": data(8).tensors}, ""),
        (FisherTraceCallback, {}, {"adapter": double, "batch_norm": "running"}, "adapter batch_norm"),
        (PLANE, {}, {"bin_range": ["global", "fixed"], "noise": 0.2}, ""),
        (PLANE, {}, {"bin_range": "fixed"}, "estimator"),
        (PLANE, {"estimator": "mixture"}, {"estimator": "mixture", "noise": 0.2, "bins": 8}, "noise"),
        (PLANE, {}, {"seed": 1, "directions": 3}, "directions seed"),  # which combinations of the units are looked at
        (WEIGHTS, {"beta": 1}, {"beta": 1.0, "draws": 4}, ""),
        (WEIGHTS, {}, {"prior": "zero", "lambda_": 1, "max_rows": 64}, "prior lambda_ max_rows"),
        (EFFECTIVE, {"distortion": 1}, {"distortion": (1.0, 2.0)}, ""),
        (EFFECTIVE, {}, {"distortion": 0.1, "noise": "full", "draws": 32}, "distortion draws noise"),
        (STABILITY, {}, {"num_twins": 2, "beta": 2}, "num_twins beta"),
    ],
)
def test_only_settings_that_change_what_values_mean_end_a_curve(kind, before, after, changes):
    callback, old, new = kind(**after), {}, {}
    kind(**before).on_save_checkpoint(None, None, old)
    callback.on_save_checkpoint(None, None, new)
    ((key, state),), ((_, other),) = old["callbacks"].items(), new["callbacks"].items()
    was, now = state["settings"], other["settings"]
    assert {name for name in was if now.get(name, was[name]) != was[name]} == set(changes.split())
    state["history"] = {"a/tag": [[0, 1.0]]}
    callback.on_load_checkpoint(None, None, {"callbacks": {key: state}})
    assert callback.history == ({} if changes else {"a/tag": [(0, 1.0)]})


def test_loggers_and_monitors_are_told_where_the_old_curve_ends(tmp_path):
    logger, stopping = CSVLogger(tmp_path), EarlyStopping("fisher/trace", patience=100)
    after = {"estimator": "exact", "every_n_train_steps": 3}
    callback, run, _ = resumed(tmp_path, FisherTraceCallback, {}, after, stopping, logger=logger)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [(int(row["step"]), float(row["fisher/trace"])) for row in csv.DictReader(file) if row["fisher/trace"]]
    assert rows[0][0] == 8
    assert math.isnan(rows[0][1])
    assert rows[1:] == callback.history["fisher/trace"]
    assert run.global_step == 12  # EarlyStopping saw no NaN


def test_a_checkpoint_from_before_settings_were_kept_goes_on(tmp_path):
    path = saved(tmp_path, fisher())
    checkpoint = torch.load(path, weights_only=True)
    (state,) = (value for key, value in checkpoint["callbacks"].items() if key.startswith("FisherTrace"))
    assert state.pop("settings")["estimator"] == "'exact'"
    torch.save(checkpoint, path)
    ours = fisher(num_samples=16)
    trainer(ours, max_epochs=2).fit(Classifier(), loader(), ckpt_path=path)
    assert measured(ours) == [0, 2, 4, 6, 8, 10, 12, 14, 16]


def test_another_class_does_not_go_on_with_a_curve(tmp_path):
    class Mine(FisherTraceCallback):
        pass

    path = saved(tmp_path, fisher())
    ours = Mine(**DEFAULTS)
    trainer(ours, max_epochs=2).fit(Classifier(), loader(), ckpt_path=path)
    assert measured(ours) == [10, 12, 14, 16]


def test_nothing_of_a_resumed_run_looks_like_a_restart_to_tensorboard(tmp_path):
    """Its data server drops all points of a tag from the step of a later event on: none may lie before the resume."""
    kept = ModelCheckpoint(tmp_path / "kept", save_last=True)
    for epochs, path in ((1, None), (2, tmp_path / "kept" / "last.ckpt")):
        logger = TensorBoardLogger(tmp_path, name="run", version=0)
        ours = FisherTraceCallback(every_n_train_steps=4, num_samples=12, on_error="raise", summary=False)
        run = trainer(ours, kept, max_epochs=epochs, logger=logger, enable_checkpointing=True)
        run.fit(Classifier(), loader(64), ckpt_path=path)
    files = sorted(Path(logger.log_dir).glob("events*"), key=lambda file: file.stat().st_mtime_ns)
    assert len(files) == 2
    events = [list(EventFileLoader(str(file)).Load()) for file in files]
    steps = [[e.step for e in part for value in e.summary.value if value.tag == "fisher/trace"] for part in events]
    assert set(steps[0]) == {0, 4, 8}
    assert min(steps[1]) == 8
