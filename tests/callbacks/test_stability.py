"""The callback's numbers, through a real Trainer, against a second training written out; what is said beside them."""

from __future__ import annotations

import math
import re
import threading
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from harness import assert_identical, run
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, curves, data, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.func import functional_call, jacrev
from torch.utils.data import DataLoader, TensorDataset
from twin.driver import live_threads

from lightning_info import FisherTraceCallback, StabilityCallback
from lightning_info.functional.standard_error import student_factor

SAMPLES, BATCH, OLD, NEW = 24, 8, 11, 20
NAMES = ("param_distance", "relative_distance", "fisher_distance", "output_kl", "loss_gap", "unique_information")


class Net(Classifier):
    """Two tanh layers of float64, trained by SGD."""

    activation: type[nn.Module] = nn.Tanh

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 5), self.activation(), nn.Linear(5, CLASSES)).double())

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0].double()), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Kinked(Net):
    activation = nn.ReLU

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 3.0)


def stability(**options) -> StabilityCallback:
    given = {"index": OLD, "replacement": NEW, "every_n_train_steps": 1, "on_error": "raise", "summary": False}
    return StabilityCallback(**{**given, **options})


def fit(*callbacks, module=Net, seed=1, **options):
    pl.seed_everything(seed, verbose=False)
    module = module()
    trainer(*callbacks, **options).fit(module, loader(SAMPLES, BATCH))
    return module


def value(callback, name, step):
    return dict(callback.history[f"stability/{name}"])[step]


# ---- against a second training


def second_training(steps: int):
    """Weights of the run and of its twin after each step, by hand."""
    x, y = data(SAMPLES).tensors
    paths = []
    for replaced in (False, True):
        pl.seed_everything(1, verbose=False)
        module = Net()
        optimizer = module.configure_optimizers()
        order = [NEW if replaced and n == OLD else n for n in range(SAMPLES)]
        path = [{name: p.detach().clone() for name, p in module.net.named_parameters()}]
        for step in range(steps):
            batch = order[step * BATCH % SAMPLES :][:BATCH]
            optimizer.zero_grad()
            module.training_step((x[batch], y[batch]), 0).backward()
            optimizer.step()
            path.append({name: p.detach().clone() for name, p in module.net.named_parameters()})
        paths.append(path)
    return paths


def explicit(step: int, beta: float) -> dict[str, float]:
    """Every quantity from its definition, with a k x k Fisher matrix."""
    run_, twin = (path[step] for path in second_training(step))
    (start,) = (path[0] for path in second_training(0)[:1])
    x, y = data(SAMPLES).tensors
    x = x.double()
    net = Net().net
    flat = lambda w: torch.cat([p.flatten() for p in w.values()])  # noqa: E731
    logits = lambda w, x: functional_call(net, w, (x,))  # noqa: E731
    jacobian = jacrev(lambda w: logits(w, x))(run_)
    rows = torch.cat([j.flatten(2) for j in jacobian.values()], -1)
    p = logits(run_, x).softmax(-1)
    fisher = sum(j.T @ (torch.diag(q) - torch.outer(q, q)) @ j for j, q in zip(rows, p, strict=True)) / SAMPLES
    delta = flat(twin) - flat(run_)
    gap = [F.cross_entropy(logits(w, x[OLD : OLD + 1]), y[OLD : OLD + 1]).item() for w in (twin, run_)]
    quadratic = (delta @ fisher @ delta).item()
    kl = kl_divergence(Categorical(logits=logits(run_, x)), Categorical(logits=logits(twin, x))).mean()
    return {
        "param_distance": delta.norm().item(),
        "relative_distance": (delta.norm() / (flat(run_) - flat(start)).norm()).item(),
        "fisher_distance": quadratic / 2,
        "output_kl": kl.item(),
        "kl_ratio": kl.item() / (quadratic / 2),
        "loss_gap": gap[0] - gap[1],
        "unique_information": SAMPLES * quadratic / (2 * beta),
    }


@pytest.mark.parametrize("reference", [None, data(SAMPLES).tensors], ids=["first that pass", "given"])
def test_every_number_is_that_of_a_second_training(reference):
    callback = stability(beta=0.3, reference=reference)
    fit(callback)
    for step in (4, 6):
        for name, expected in explicit(step, 0.3).items():
            assert value(callback, name, step) == pytest.approx(expected, rel=1e-8), (name, step)
    assert 0.95 < value(callback, "kl_ratio", 6) < 1.05


def test_before_the_sample_appears_everything_is_zero_and_distances_do_not_wait_for_samples():
    callback = stability()
    fit(callback)
    first = callback.twins[0].first_difference_step
    assert first == OLD // BATCH == 1
    for name in NAMES:
        assert all(v == 0.0 for s, v in callback.history[f"stability/{name}"] if s <= first)
    distance = dict(callback.history["stability/param_distance"])
    assert list(distance) == list(range(7))
    assert all(distance[step] > 0 for step in range(first + 1, 7))
    # all samples have passed with the third batch, whose start is step 2
    assert [step for step, _ in callback.history["stability/output_kl"]] == list(range(7))
    late = stability(index=0, num_samples=1000)
    fit(late)
    assert value(late, "param_distance", 1) > 0
    assert [step for step, _ in late.history["stability/output_kl"]] == [0, 2, 3, 4, 5, 6]


def test_a_run_is_reproduced_to_the_bit():
    one, other = stability(), stability()
    fit(one)
    fit(other)
    assert _without_clock(one) == _without_clock(other)


def _without_clock(callback):
    return {tag: curve for tag, curve in curves(callback).items() if not tag.endswith("twin_overhead")}


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_the_null_test_reads_zero_at_every_step(options):
    callback = stability(replacement=OLD)
    fit(callback, module=lambda: Classifier(dropout=0.5, batch_norm=True), max_epochs=3, **options)
    for name in NAMES:
        curve = callback.history[f"stability/{name}"]
        assert len(curve) > 4
        assert {v for _, v in curve} == {0.0}


class LeastSquares(pl.LightningModule):
    rate = 0.05

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, FEATURES))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(batch[0] @ self.weight, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)


def test_full_batch_least_squares_is_the_closed_form():
    """w_t = w* + (I - 2 eta A)^t (w_0 - w*), A = X^T X / N; F = A, so that ½ δᵀFδ is the output KL exactly."""
    x = torch.randn(20, FEATURES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = x.sum(1) + torch.randn(20, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    others = [NEW - 10 if n == OLD else n for n in range(20)]

    def at(x, y, t):
        a = x.T @ x / len(x)
        best = torch.linalg.solve(a, x.T @ y / len(x))
        shrink = torch.eye(FEATURES, dtype=torch.float64) - 2 * LeastSquares.rate * a
        return best + torch.linalg.matrix_power(shrink, t) @ (torch.linspace(-1, 1, FEATURES).double() - best)

    callback = stability(replacement=NEW - 10, every_n_train_steps=10)
    trainer(callback, max_epochs=40, precision="64-true").fit(
        LeastSquares(), DataLoader(TensorDataset(x, y), 20, shuffle=True)
    )
    for step in (10, 40):
        delta = at(x[others], y[others], step) - at(x, y, step)
        assert value(callback, "param_distance", step) == pytest.approx(delta.norm().item(), rel=1e-6)
        half = 0.5 * (x @ delta).square().mean().item()
        assert value(callback, "fisher_distance", step) == pytest.approx(half, rel=1e-6)
        assert value(callback, "output_kl", step) == pytest.approx(half, rel=1e-6)


# ---- what is said


def said_by(callback, *others, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(callback, *others, **options)
    messages = [str(w.message) for w in caught]
    return [message for message in messages if "StabilityCallback" in message and "no logger" not in message]


def test_a_change_that_is_not_small_is_flagged_once():
    callback = stability(reference=data(SAMPLES).tensors)
    messages = [message for message in said_by(callback, module=Kinked) if "second-order" in message]
    ratios = [ratio for _, ratio in callback.history["stability/kl_ratio"]]
    assert any(not 0.8 <= ratio <= 1.25 for ratio in ratios)
    assert len(messages) == 1
    near = stability(reference=data(SAMPLES).tensors)
    assert not [message for message in said_by(near) if "second-order" in message]


class Edits(Callback):
    """Says that it changes nothing, and does from its second epoch on."""

    changes_training = False

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.net[0].weight.data.mul_(0.9)


class Freezes(Callback):
    changes_training = False

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.net[0].requires_grad_(trainer.current_epoch < 1)


@pytest.mark.parametrize("other", [Edits, Freezes])
def test_a_twin_that_is_lost_is_a_gap_with_its_reason_and_the_run_goes_on(other):
    callback = stability(on_error="warn")
    (message,) = said_by(callback, other(), max_epochs=3)
    assert (
        "the twin was lost at step 3 (until step 1 it was equal to the run), and has no values from there on" in message
    )
    curve = callback.history["stability/param_distance"]
    assert [math.isnan(v) for _, v in curve] == [False] * 3 + [True] * 7


class FailsInTheTwin(Net):
    at = 0

    def training_step(self, batch, batch_idx):
        if self.global_step == self.at and threading.current_thread() is not threading.main_thread():
            raise ValueError("of the\ntwin " * 50)
        return super().training_step(batch, batch_idx)


class FailsLate(FailsInTheTwin):
    at = 3


@pytest.mark.parametrize("module", [FailsInTheTwin, FailsLate])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every_n_train_steps": None},
        {"every_n_train_steps": None, "every_n_epochs": 2},
        {"reference": data(SAMPLES).tensors},
        {"index": 23},
        {"index": 23, "num_samples": 1000},
        {"replacement": OLD},
        {"num_twins": 2, "replacement": None},
    ],
    ids=["every step", "doubling", "rarely", "reference", "late sample", "late samples", "null", "two twins"],
)
def test_from_the_step_at_which_it_is_lost_every_curve_is_nan(module, options, capsys):
    callback = stability(**{"on_error": "warn", "summary": True, **options})
    messages = said_by(callback, module=module, max_epochs=3)
    (message,) = [message for message in messages if "lost at step" in message][:1]
    assert f"lost at step {module.at}" in message
    assert re.search(r"ValueError: of the twin .* \.\.\. \(test_stability.py:\d+, in training_step\)", message)
    assert len(message) < 700
    assert "\n" not in message
    curves = {tag: curve for tag, curve in callback.history.items() if "overhead" not in tag}
    assert len(curves) >= (2 if module is FailsInTheTwin else 6)
    for tag, curve in curves.items():
        later = [value for step, value in curve if step > module.at]
        assert later, tag
        assert all(map(math.isnan, later)), tag
        assert module.at + 1 in dict(curve), tag
        assert math.isnan(curve[-1][1]), tag
    assert f"lost at step {module.at}" in capsys.readouterr().out


def test_one_of_several_twins_that_is_lost_is_nan_and_the_mean_is_of_the_others():
    several = stability(replacement=None, num_twins=2, seed=4, on_error="warn")
    lost = several.twins[1]

    class Loses(Callback):
        changes_training = False

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 3:
                lost.weights().trainer.accumulate_grad_batches = 2

    (message,) = said_by(several, Loses())
    assert "twin 2: the twin was lost at step 4" in message
    own = [dict(several.history[f"stability_twin{k}/param_distance"]) for k in (1, 2)]
    mean, stderr = (dict(several.history[f"{family}/param_distance"]) for family in ("stability", "stability_stderr"))
    assert mean[3] == pytest.approx((own[0][3] + own[1][3]) / 2)
    assert mean[6] == own[0][6] > 0
    assert math.isnan(own[1][6])
    assert math.isnan(stderr[6])


@pytest.mark.parametrize(
    ("callbacks", "options", "match"),
    [
        ([StochasticWeightAveraging(0.1)], {}, "StochasticWeightAveraging changes what is trained"),
        ([], {"index": 24}, "index=24 is not one of the 24 training samples"),
    ],
)
def test_what_no_twin_follows_is_refused_before_the_first_step(callbacks, options, match):
    callback = stability(**options)
    with pytest.raises(MisconfigurationException, match=f"StabilityCallback: .*{match}"):
        fit(callback, *callbacks)
    assert callback.history == {}
    assert live_threads() == []


def test_several_processes_are_refused():
    with pytest.raises(MisconfigurationException, match=r"StabilityCallback: DDPStrategy.*one process"):
        stability().setup(pl.Trainer(strategy="ddp_spawn", devices=2, accelerator="cpu", logger=False), Net(), "fit")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"index": -1}, "index=-1"),
        ({"replacement": 0.5}, "replacement must be an integer"),
        ({"beta": 0}, "beta must be a positive"),
        ({"num_twins": 0}, "num_twins must be a positive integer"),
        ({"num_twins": 2}, "twins of the same sample"),
    ],
)
def test_bad_arguments_are_refused_with_the_fix(options, match):
    with pytest.raises(ValueError, match=match):
        stability(**options)


def test_the_paths_are_drawn_at_the_end(tmp_path):
    fit(stability(), logger=TensorBoardLogger(tmp_path))
    (folder,) = (path.parent for path in tmp_path.rglob("events*"))
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [image.step for image in events.Images("stability/paths")] == [6]
    assert "stability/output_kl" in events.Tags()["scalars"]


# ---- several twins


def test_of_several_twins_the_mean_and_its_error_are_logged():
    several = stability(replacement=None, num_twins=3, seed=4)
    fit(several)
    single = [stability(replacement=twin.replacement) for twin in several.twins]
    for callback in single:
        fit(callback)
    assert len({twin.replacement for twin in several.twins}) > 1
    for name in NAMES:
        each = torch.tensor([value(callback, name, 6) for callback in single], dtype=torch.float64)
        theirs = [dict(several.history[f"stability_twin{k}/{name}"])[6] for k in (1, 2, 3)]
        assert theirs == each.tolist()
        assert value(several, name, 6) == pytest.approx(each.mean().item(), rel=1e-12)
        stderr = dict(several.history[f"stability_stderr/{name}"])[6]
        assert stderr == pytest.approx(student_factor(2) * each.std().item() / math.sqrt(3), rel=1e-12)


# ---- harmless


def test_beside_our_other_callbacks_training_does_not_notice():
    ours = [stability(), FisherTraceCallback(every_n_train_steps=1, num_samples=8, on_error="raise", summary=False)]
    assert_identical(run(Net), run(Net, *ours))
    assert live_threads() == []


@pytest.mark.parametrize("replacement", [OLD, NEW])
def test_a_resumed_run_has_the_curves_of_an_uninterrupted_one(tmp_path, replacement):
    module = lambda: Classifier(dropout=0.3)  # noqa: E731
    whole, first, second = (stability(replacement=replacement, num_samples=12) for _ in range(3))
    save = lambda: ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)  # noqa: E731
    pl.seed_everything(1, verbose=False)
    trainer(whole, max_epochs=4).fit(module(), loader(SAMPLES, BATCH))
    pl.seed_everything(1, verbose=False)
    trainer(first, save(), max_epochs=4, enable_checkpointing=True).fit(module(), loader(SAMPLES, BATCH))
    path = str(next(tmp_path.glob("*step=8.ckpt")))
    torch.load(path, weights_only=True)
    state = torch.get_rng_state()
    trainer(second, max_epochs=4).fit(module(), loader(SAMPLES, BATCH), ckpt_path=path)
    torch.set_rng_state(state)
    assert _without_clock(first) == _without_clock(whole)
    assert second.history["stability/param_distance"][:8] == whole.history["stability/param_distance"][:8]
    later = [v for s, v in second.history["stability/param_distance"] if s > 8]
    assert len(later) == 4
    if replacement == OLD:
        assert set(later) == {0.0}
    else:
        assert all(v > 0 for v in later)


class Fails(Classifier):
    def training_step(self, batch, batch_idx):
        if self.global_step == 4:
            raise KeyboardInterrupt if self.interrupts else ArithmeticError("mine")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("interrupts", [False, True])
def test_an_exception_of_the_user_passes_unchanged_and_no_thread_survives(monkeypatch, interrupts):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Lightning ignores a second interrupt from then on
    module = Fails()
    module.interrupts = interrupts
    with pytest.raises((ArithmeticError, SystemExit, KeyboardInterrupt)) as caught:
        trainer(stability()).fit(module, loader(SAMPLES, BATCH))
    assert interrupts or str(caught.value) == "mine"
    assert live_threads() == []


class Late(StabilityCallback):
    """Its point at step 0 is left out, as a time budget may do."""

    def is_due(self, trainer, batch_idx):
        return trainer.global_step > 0 and super().is_due(trainer, batch_idx)


def test_distances_are_told_by_the_way_from_the_start_though_the_point_there_is_left_out(recwarn):
    found = []
    for kind in (StabilityCallback, Late):
        torch.manual_seed(0)
        callback = kind(OLD, NEW, every_n_train_steps=2, on_error="raise", summary=False)
        trainer(callback, max_epochs=2).fit(Net(), loader(SAMPLES, BATCH))
        found.append(callback)
    whole, late = (curves(callback)["stability/relative_distance"] for callback in found)
    assert late == whole[1:]
    assert late[-1][1] > 0
    assert len(found[1].trajectory) == len(found[0].trajectory)
    assert not [w for w in recwarn if "relative_distance" in str(w.message)]
