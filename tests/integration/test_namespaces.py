"""Both of Lightning's packages, ``lightning.pytorch`` and ``pytorch_lightning``; and pickling, as spawning does it."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle

import lightning.pytorch
import pytest
import torch
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, loader, public_callbacks
from torch import nn

from lightning_info import FisherTraceCallback

pytorch_lightning = pytest.importorskip("pytorch_lightning")
ours_of = pytest.importorskip("lightning_info.pytorch_lightning")

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{category}:{package}")
    for category in ("UserWarning", "FutureWarning", "DeprecationWarning")
    for package in ("pytorch_lightning", "lightning_fabric")
]

BOTH = pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
OPTIONS = {
    "accelerator": "cpu",
    "max_epochs": 2,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fisher(**options) -> FisherTraceCallback:
    given = {"num_samples": 12, "every_n_train_steps": 3, "on_error": "raise", "summary": False}
    return FisherTraceCallback(**{**given, **options})


def history(callback):
    """Without the share of the run's time, which no two runs have alike."""
    return {tag: curve for tag, curve in callback.history.items() if not tag.endswith("/overhead")}


class Steps:
    """What a module of either package does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        norm, dropout = nn.BatchNorm1d(8), nn.Dropout()
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), norm, nn.ReLU(), dropout, nn.Linear(8, CLASSES))

    forward, training_step, validation_step = Classifier.forward, Classifier.training_step, Classifier.validation_step
    test_step, configure_optimizers = Classifier.validation_step, Classifier.configure_optimizers

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


class Module(Steps, lightning.pytorch.LightningModule):
    pass


class ForeignModule(Steps, pytorch_lightning.LightningModule):
    def train_dataloader(self):
        return loader()


def of(package, *callbacks, **options):
    """A module and a Trainer."""
    module = {"lightning.pytorch": Module, "pytorch_lightning": ForeignModule}[package]()
    return module, importlib.import_module(package).Trainer(**{**OPTIONS, **options}, callbacks=list(callbacks))


def fit(package, *callbacks, resume=None, **options):
    module, run = of(package, *callbacks, **options)
    torch.manual_seed(2)
    run.fit(module, loader(shuffle=True), loader(16), ckpt_path=resume)
    return module, run


def test_the_history_is_the_same_in_both_packages():
    callbacks = {package: fisher(also=("exact",)) for package in ("lightning.pytorch", "pytorch_lightning")}
    for package, callback in callbacks.items():
        fit(package, callback)
    here, there = map(history, callbacks.values())
    assert [step for step, _ in there["fisher/trace"]] == [0, 3, 6, 9, 12, 15, 16]
    assert there == here
    values = [value for _, value in there["fisher/exact_trace"]]
    assert all(value > 0 for value in values)
    assert len(set(values)) == 7


@BOTH
def test_training_does_not_notice_the_callback(package):
    losses, states, numbers = [], [], []

    class Recorder(lightning.pytorch.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses[-1].append(outputs["loss"].item())

    for callbacks in ([], [fisher()]):
        losses.append([])
        module, run = fit(package, *callbacks, Recorder())
        states.append({**module.state_dict(), "val_loss": run.callback_metrics["val_loss"]})
        numbers.append(torch.get_rng_state())
    assert losses[0] == losses[1]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(*numbers)


@BOTH
def test_the_packages_own_callbacks_monitor_the_trace(package, tmp_path):
    theirs = importlib.import_module(f"{package}.callbacks")
    options = {"monitor": "fisher/trace", "mode": "max"}
    stopping = theirs.EarlyStopping(patience=1, min_delta=1e9, check_on_train_epoch_end=True, **options)
    saving = theirs.ModelCheckpoint(tmp_path, "{epoch}", **options)
    callback = fisher(every_n_train_steps=1)
    _, run = fit(package, callback, stopping, saving, enable_checkpointing=True, max_epochs=9)
    assert run.global_step == 16
    trace = dict(callback.history["fisher/trace"])
    last = [torch.tensor(trace[step]) for step in (7, 15)]
    assert stopping.best_score == last[0]
    assert saving.best_model_score == max(last)


@BOTH
def test_a_run_goes_on_from_a_checkpoint(package, tmp_path):
    whole, resumed = fisher(every_n_train_steps=4), fisher(every_n_train_steps=4)
    saving = importlib.import_module(f"{package}.callbacks").ModelCheckpoint(tmp_path, save_last=True)
    fit(package, whole, saving, enable_checkpointing=True, max_epochs=1)
    first = history(whole)
    fit(package, resumed, max_epochs=2, resume=tmp_path / "last.ckpt")
    assert [step for step, _ in resumed.history["fisher/trace"]] == [0, 4, 8, 12, 16]
    for tag, curve in history(resumed).items():
        assert curve[: len(first[tag])] == first[tag]


@BOTH
def test_validate_test_and_predict_measure_nothing(package):
    callback = fisher()
    module, run = of(package, callback)

    def other_loops():
        run.validate(module, loader(16), verbose=False)
        run.test(module, loader(16), verbose=False)
        assert len(run.predict(module, loader(16))) == 2

    other_loops()
    assert callback.history == {}
    run.fit(module, loader(), loader(16))
    measured = copy.deepcopy(callback.history)
    assert [step for step, _ in measured["fisher/trace"]] == [0, 3, 6, 9, 12, 15, 16]
    other_loops()
    assert callback.history == measured


@BOTH
def test_sharding_is_refused_by_the_name_of_the_packages_own_strategy(package):
    strategies = importlib.import_module(f"{package}.strategies")
    sharded = type(strategies.FSDPStrategy.__name__, (strategies.SingleDeviceStrategy,), {})  # the real one needs CUDA
    module, run = of(package, fisher(), strategy=sharded("cpu"))
    with pytest.raises(MisconfigurationException, match=r"FSDPStrategy shards the parameters.*strategy='ddp'"):
        run.fit(module, loader())


@BOTH
def test_a_module_that_cannot_be_measured_is_refused_before_the_first_step(monkeypatch, package):
    module, run = of(package, fisher())
    monkeypatch.setattr(type(module), "training_step", lambda self, batch, batch_idx: self(batch[0]).logsumexp(0).sum())
    with pytest.raises(MisconfigurationException, match=r"Tell it what the module predicts:\n\n(.*\n)*.*adapter="):
        run.fit(module, loader())
    assert run.global_step == 0


def test_the_other_packages_cli_builds_the_callback_that_is_also_its_own(tmp_path):
    cli = importlib.import_module("pytorch_lightning.cli").LightningCLI
    arguments = {"every_n_train_steps": 3, "num_samples": 8, "on_error": "raise", "summary": False}
    callbacks = [{"class_path": "lightning_info.pytorch_lightning.FisherTraceCallback", "init_args": arguments}]
    config = {"seed_everything": False, "trainer": {**OPTIONS, "max_epochs": 1, "callbacks": callbacks}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    built = cli(ForeignModule, args=["fit", "--config", str(path)], save_config_callback=None)
    (callback,) = (c for c in built.trainer.callbacks if isinstance(c, FisherTraceCallback))
    assert [step for step, _ in callback.history["fisher/trace"]] == [0, 3, 6, 8]


@pytest.mark.parametrize("kind", public_callbacks(), ids=lambda kind: kind.__name__)
def test_every_callback_is_there_as_one_of_the_other_package_too(kind):
    theirs = getattr(ours_of, kind.__name__)
    assert issubclass(theirs, kind)
    assert issubclass(theirs, pytorch_lightning.Callback)
    assert inspect.signature(theirs) == inspect.signature(kind)
    assert type(pickle.loads(pickle.dumps(theirs()))) is theirs


# ---- pickling


def adapter(module, batch):
    x, y = batch
    return module(x), y


def pickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
@pytest.mark.parametrize("given", ["nothing", "reference and adapter"])
def test_a_copy_measures_as_the_original(copied, given):
    reference = tuple(tensor[:12] for tensor in loader().dataset.tensors)
    options = {} if given == "nothing" else {"reference": reference, "adapter": adapter}
    copies = {}

    class Copying(lightning.pytorch.Callback):
        def setup(self, trainer, pl_module, stage):
            copies["after setup"] = copied(trainer.callbacks[:1])[0]

    original = fisher(**options)
    copies["before fit"] = copied(original)
    fit("lightning.pytorch", original, Copying(), max_epochs=1)
    copies["after fit"] = copied(original)
    assert history(copies["after fit"]) == history(original)
    assert len(copies) == 3
    for when, callback in copies.items():
        fit("lightning.pytorch", callback, max_epochs=1)
        assert history(callback) == history(original), when


@BOTH
def test_callbacks_that_write_the_same_tags_are_refused_with_the_fix(package):
    module, run = of(package, fisher(), fisher())
    with pytest.raises(MisconfigurationException, match="give each a prefix"):
        run.fit(module, loader())


@pytest.mark.parametrize("packages", [("lightning.pytorch", "pytorch_lightning"), ("pytorch_lightning",) * 2])
def test_a_curve_goes_on_in_either_package_and_starts_anew_with_other_settings(tmp_path, packages):
    first, same, other = fisher(), fisher(), fisher(estimator="exact")
    module, run = of(packages[0], first, max_epochs=1)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "end.ckpt")
    for callback in (same, other):
        module, run = of(packages[1], callback)
        run.fit(module, loader(), ckpt_path=tmp_path / "end.ckpt")
    before = len(first.history["fisher/trace"])
    assert same.history["fisher/trace"][:before] == first.history["fisher/trace"]
    steps = [[step for step, _ in callback.history["fisher/trace"]] for callback in (same, other)]
    assert steps == [[0, 3, 6, 8, 9, 12, 15, 16], [9, 12, 15, 16]]
