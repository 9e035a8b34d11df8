"""The callback's numbers, through a real Trainer, against an explicit k x k matrix; what a user reads beside them."""

from __future__ import annotations

import math
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, data, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.func import functional_call, jacrev

from lightning_info import WeightInfoCallback
from lightning_info.quantities.training_setup import TrainingSetup
from lightning_info.quantities.weight_information import curvature as curvature_module
from lightning_info.quantities.weight_information.quantity import GRID

SAMPLES, REFERENCE = 64, 24
X, Y = (part[:REFERENCE] for part in data(SAMPLES).tensors)


class Net(Classifier):
    """Two layers of float64, trained by SGD with momentum."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double())

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0].double()), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Logistic(Net):
    """Convex: F is the Hessian of the loss, exactly."""

    def __init__(self):
        pl.LightningModule.__init__(self)
        self.net = nn.Linear(FEATURES, CLASSES).double()


class Weights(Callback):
    """Flat weights at every step."""

    def __init__(self):
        self.seen: dict[int, torch.Tensor] = {}

    def on_train_batch_start(self, run, module, *args):
        self.seen[run.global_step] = nn.utils.parameters_to_vector(module.parameters()).detach().clone()

    def on_train_end(self, run, module):
        self.on_train_batch_start(run, module)


def weight_info(**options) -> WeightInfoCallback:
    defaults = {"reference": (X, Y), "every_n_train_steps": 8, "draws": 4, "on_error": "raise", "summary": False}
    return WeightInfoCallback(**{**defaults, **options})


def fit(*callbacks, module=None, **options) -> Net:
    module = module or Net()
    trainer(*callbacks, **options).fit(module, loader(SAMPLES))
    return module


def value(callback, name: str, step: int = 16) -> float:
    return dict(callback.history[f"weight_info/{name}"])[step]


def fisher(module, weights) -> torch.Tensor:
    """F at some weights, by its definition."""
    names, shapes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)

    def outputs(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        return functional_call(module, {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}, X.double())

    j, p = jacrev(outputs)(weights), outputs(weights).softmax(1)
    h = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return torch.einsum("nck,ncd,ndl->kl", j, h, j).detach() / len(X)


@pytest.mark.parametrize("curvature", ["matrix", "gram"])
@pytest.mark.parametrize("prior", ["init", "zero"])
@pytest.mark.parametrize("lambda_", ["init_std", 0.3])
def test_everything_equals_an_explicit_computation(curvature, prior, lambda_):
    callback, watch = weight_info(curvature=curvature, prior=prior, lambda_=lambda_, beta=0.5), Weights()
    module = fit(callback, watch)
    for step in (0, 8, 16):
        w, f = watch.seen[step], fisher(module, watch.seen[step])
        std = 0.3 if lambda_ == 0.3 else watch.seen[0].std(correction=0).item()
        eye, reference = torch.eye(len(w), dtype=torch.float64), watch.seen[0] if prior == "init" else 0 * w
        precision = SAMPLES * f + 0.5 / std**2 * eye
        q = MultivariateNormal(w, precision_matrix=precision / 0.5)
        kl = kl_divergence(q, MultivariateNormal(reference, covariance_matrix=std**2 * eye)).item()
        eigenvalues = torch.linalg.eigvalsh(f).clamp_min(0)
        share = eigenvalues / eigenvalues.sum()
        expected = {
            "lambda": std,
            "kl": kl,
            "kl_precision": kl_divergence(q, MultivariateNormal(w, covariance_matrix=std**2 * eye)).item(),
            "kl_displacement": (w - reference).square().sum().item() / (2 * std**2),
            "log_det": torch.logdet(precision).item(),
            "effective_dimension": SAMPLES * torch.linalg.solve(precision, f).trace().item(),
            "trace": f.trace().item(),
            "top_eigenvalue": eigenvalues.max().item(),
            "effective_rank": torch.special.entr(share).sum().exp().item(),
            "beta": 0.5,
            "temperature": 0.1 / (2 * 8 * (1 - 0.9)),
        }
        assert {name: value(callback, name, step) for name in expected} == pytest.approx(expected, rel=1e-8)
        loss = value(callback, "loss", step)
        rise = 0.5 * torch.trace(f @ q.covariance_matrix).item()
        assert value(callback, "predicted_loss", step) == pytest.approx(loss + rise, rel=1e-8)
        complexity = SAMPLES * value(callback, "expected_loss", step) + 0.5 * value(callback, "kl", step)
        assert value(callback, "complexity", step) == pytest.approx(complexity, rel=1e-12)
        free = loss + value(callback, "temperature") / 2 * torch.logdet(f + eye).item()
        assert value(callback, "free_energy", step) == pytest.approx(free, rel=1e-8)
    others = {"weight_info/overhead", "weight_info/prequential", "weight_info/prequential_excess"}
    assert set(callback.history) == {*callback.tags, *others}


def test_a_module_of_single_precision_agrees_to_four_digits():
    class Single(Net):
        def __init__(self):
            super().__init__()
            self.float()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

    for curvature in ("matrix", "gram"):
        callback, watch = weight_info(curvature=curvature), Weights()
        module = fit(callback, watch, module=Single()).double()
        f = fisher(module, watch.seen[16].double())
        assert value(callback, "trace") == pytest.approx(f.trace().item(), rel=1e-4)
        log_det = torch.logdet(SAMPLES * f + value(callback, "lambda") ** -2 * torch.eye(len(f)).double()).item()
        assert value(callback, "log_det") == pytest.approx(log_det, rel=1e-4)
        prior = torch.diag(value(callback, "lambda") ** 2 * torch.ones(len(f))).double()
        q = MultivariateNormal(watch.seen[16].double(), precision_matrix=SAMPLES * f + torch.linalg.inv(prior))
        kl = kl_divergence(q, MultivariateNormal(watch.seen[0].double(), covariance_matrix=prior)).item()
        assert value(callback, "kl") == pytest.approx(kl, rel=1e-4)


def test_of_a_convex_loss_measured_and_predicted_rise_agree_at_small_levels_and_part_at_large_ones():
    callback = weight_info(lambda_=3.0, draws=100, every_n_train_steps=None, every_n_epochs=20)
    fit(callback, module=Logistic(), max_epochs=20)
    curve = callback.rate_distortion[max(callback.rate_distortion)]
    assert [point.beta for point in curve] == pytest.approx(GRID)
    for point in curve[:2]:
        assert point.loss - point.quiet == pytest.approx(point.predicted - point.quiet, rel=0.1)
        assert not point.parts
    assert curve[-1].parts
    assert "the loss is not as F predicts" in callback.quantity.closing_text(callback.record())
    assert [p.information for p in curve] == sorted((p.information for p in curve), reverse=True)


def test_a_tanh_net_parts_at_every_level_where_lambda_is_large_and_it_is_said():
    callback = weight_info(lambda_=3.0, draws=20)
    fit(callback)
    assert callback.rate_distortion[16][0].parts
    assert "at no beta (from 0.001 on)" in callback.quantity.closing_text(callback.record())


def test_the_optimal_lambda_minimises_the_lagrangian_of_each_level_and_has_a_floor_at_the_start():
    callback = weight_info(lambda_="optimal", beta=0.5)
    with pytest.warns(UserWarning, match="optimal lambda is 0 while the .*; 0.001 is used"):
        module = fit(callback)
    assert value(callback, "lambda", 0) == 1e-3
    weights = nn.utils.parameters_to_vector(module.parameters()).detach()
    h, k = SAMPLES * fisher(module, weights), len(weights)
    for point in callback.rate_distortion[16]:
        distance = 2 * point.lambda_**2 * point.displacement

        def lagrangian(lambda_, beta=point.beta, distance=distance):
            sigma = beta * torch.linalg.inv(h + beta / lambda_**2 * torch.eye(k).double())
            kl = 0.5 * (k * math.log(lambda_**2) - torch.logdet(sigma) - k + (distance + sigma.trace()) / lambda_**2)
            return (0.5 * (h @ sigma).trace() + beta * kl).item()

        best = lagrangian(point.lambda_)
        assert best < lagrangian(1.03 * point.lambda_)
        assert best < lagrangian(0.97 * point.lambda_)


def test_lanczos_logs_its_errors_and_agrees_within_them():
    exact, random = weight_info(), weight_info(curvature="lanczos", prefix="random")
    fit(exact, random)
    sums = ("kl", "log_det", "trace", "effective_rank", "effective_dimension")
    for name in (*sums, "complexity", "predicted_loss", "free_energy"):
        stderr = dict(random.history[f"random/weight_info/{name}_stderr"])[16]
        found = dict(random.history[f"random/weight_info/{name}"])[16]
        assert found == pytest.approx(value(exact, name), abs=5 * stderr + 1e-6)


@pytest.mark.parametrize("lambda_", ["init_std", "optimal"])
def test_an_error_of_lanczos_at_a_low_level_holds_that_of_its_rule(lambda_, monkeypatch):
    """With two steps and β = 1e-5 the rule is off by more than the probes scatter: 1.96 errors cover all the same."""
    monkeypatch.setattr(curvature_module, "STEPS", 2)
    exact = weight_info(beta=1e-5, lambda_=lambda_, draws=16)
    random = weight_info(beta=1e-5, lambda_=lambda_, draws=16, curvature="lanczos", prefix="random")
    fit(exact, random)
    for name in ("kl", "log_det", "effective_rank", "effective_dimension", "complexity", "lambda"):
        found, stderr = (dict(random.history[f"random/weight_info/{name}{tail}"])[16] for tail in ("", "_stderr"))
        own = value(exact, "complexity_stderr") if name == "complexity" else 0.0  # its draws of weights are others
        assert abs(found - value(exact, name)) <= 1.96 * math.hypot(stderr, own) + 1e-9
        assert stderr > 0 or (name, lambda_) == ("lambda", "init_std")


def test_the_error_of_the_complexity_is_that_of_both_terms():
    callback = weight_info()
    fit(callback)
    loss = value(callback, "expected_loss_stderr")
    assert value(callback, "complexity_stderr") == pytest.approx(SAMPLES * loss, rel=1e-12)  # the KL is exact


def test_the_report_counts_the_samples_that_there_are():
    callback = weight_info(num_samples=256)
    fit(callback)
    assert f"all elements of F of {REFERENCE} samples, exact" in callback.report()


def test_what_is_written_can_be_read_back_from_tensorboard(tmp_path):
    callback = weight_info(draws=2)
    fit(callback, logger=TensorBoardLogger(tmp_path), max_epochs=3)
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"), {"images": 0, "histograms": 0}).Reload()
    for tag in callback.tags:
        read = {event.step: event.value for event in events.Scalars(tag)}
        assert read == pytest.approx(dict(callback.history[tag]), rel=1e-5, nan_ok=True)
    assert "weight_info/rate_distortion" in events.Tags()["images"]
    assert [h.step for h in events.Histograms("weight_info/log10_eigenvalues")] == [0, 8, 16, 24]


def test_the_figure_keeps_the_first_the_last_and_some_between():
    callback = weight_info(every_n_train_steps=1, draws=2)
    fit(callback, max_epochs=3)
    steps = sorted(callback.rate_distortion)
    assert (steps[0], steps[-1], len(steps)) == (0, 24, 6)
    figure = callback.drawings()["weight_info/rate_distortion"]()
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert legend[0] == "epoch 0, 0 nats displaced"
    assert legend[-1].startswith("epoch 3, ")


# ---- the start, and resuming


class Stop(Callback):
    def on_train_batch_end(self, run, *args):
        if run.global_step == 11:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("prior", ["init", "zero"])
def test_the_weights_at_the_start_travel_in_the_checkpoint(tmp_path, prior):
    torch.manual_seed(0)
    start = Net().state_dict()

    def run(*others, path=None):
        callback, module = weight_info(prior=prior), Net()
        module.load_state_dict(start)
        run = trainer(callback, *others, enable_checkpointing=True, default_root_dir=tmp_path)
        run.fit(module, loader(SAMPLES), ckpt_path=path)
        return callback

    whole = run()
    saving = ModelCheckpoint(tmp_path, every_n_epochs=1, save_last=True)
    with pytest.raises(RuntimeError, match="power cut"):
        run(saving, Stop())
    path = tmp_path / "last.ckpt"
    torch.load(path, weights_only=True)
    resumed = run(path=path)
    for tag in whole.tags:
        assert dict(resumed.history[tag]) == pytest.approx(dict(whole.history[tag]), rel=1e-12)
    assert resumed.rate_distortion == whole.rate_distortion


def test_without_the_weights_at_the_start_the_kl_is_nan_with_the_reason_and_the_spectrum_is_not(tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=8, save_last=True, save_top_k=0)
    trainer(saving, enable_checkpointing=True, max_epochs=1).fit(Net(), loader(SAMPLES))
    for options, finite in [({}, ()), ({"lambda_": 0.1}, ("log_det", "expected_loss"))]:
        callback = weight_info(**options)
        with pytest.warns(UserWarning, match=r"no KL \(NaN\): the weights at the start are not known.*prior='zero'"):
            trainer(callback).fit(Net(), loader(SAMPLES), ckpt_path=tmp_path / "last.ckpt")
        assert math.isnan(value(callback, "kl"))
        assert all(math.isfinite(value(callback, name)) for name in ("trace", "effective_rank", "loss", *finite))
    known = weight_info(prior="zero", lambda_=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="WeightInfoCallback: no KL")
        trainer(known).fit(Net(), loader(SAMPLES), ckpt_path=tmp_path / "last.ckpt")
    assert math.isfinite(value(known, "kl"))


def test_parameters_that_are_unfrozen_later_are_no_part_of_what_was_kept():
    class Unfreezing(Net):
        def __init__(self):
            super().__init__()
            self.net[0].requires_grad_(False)

        def on_train_epoch_start(self):
            self.net[0].requires_grad_(self.current_epoch > 0)

    callback = weight_info(curvature="gram", draws=2)
    with pytest.warns(UserWarning, match="parameters that were added later"):
        fit(callback, module=Unfreezing())
    assert math.isfinite(value(callback, "kl", 0))
    assert math.isnan(value(callback, "kl", 16))


# ---- what is asked of the run


def test_a_run_is_read_as_it_is():
    facts = {}

    class Reading(Callback):
        def on_train_batch_start(self, run, *args):
            facts[run.accumulate_grad_batches, run.limit_train_batches] = TrainingSetup.of(run, 8)

    for options in ({}, {"accumulate_grad_batches": 4}, {"limit_train_batches": 3}):
        trainer(Reading(), max_epochs=1, **options).fit(Net(), loader(SAMPLES))
    assert [(f.training_samples, f.batch_size) for f in facts.values()] == [(64, 8), (64, 32), (24, 8)]
    assert facts[1, 1.0].temperature == pytest.approx(0.1 / (2 * 8 * 0.1))


def test_data_without_a_length_are_said_and_the_reference_samples_stand_for_them():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data(SAMPLES))

    callback, run = weight_info(), trainer(max_epochs=1)
    run.callbacks.append(callback)
    with pytest.warns(UserWarning, match="no length; N = 24"):
        run.fit(Net(), torch.utils.data.DataLoader(Stream(), 8))
    assert math.isfinite(value(callback, "kl", 8))


# ---- refusals


@pytest.mark.parametrize(
    ("options", "match"),
    [
        *(({"beta": v}, r"beta must be a positive, finite number, got .*=1.0") for v in (0, -1.0, math.nan, math.inf)),
        ({"prior": "data"}, "unknown prior 'data'; choose one of 'init', 'zero'"),
        ({"lambda_": "best"}, "unknown lambda_ 'best'; choose one of 'init_std', 'optimal'"),
        ({"lambda_": 0.0}, "lambda_ must be a positive, finite number"),
        ({"lambda_": math.inf}, "lambda_=inf has no KL; .*log_det of two networks"),
        ({"curvature": "kfac"}, "unknown curvature 'kfac'"),
        ({"max_rows": 0}, "max_rows must be a positive integer"),
        ({"draws": 3}, "draws=3; they come in opposite pairs"),
    ],
)
def test_senseless_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=f"WeightInfoCallback: {match}"):
        WeightInfoCallback(**options)


def test_a_start_without_spread_is_refused_before_the_first_step():
    class Zero(Logistic):
        def __init__(self):
            super().__init__()
            nn.init.zeros_(self.net.weight)
            nn.init.zeros_(self.net.bias)

    with pytest.raises(MisconfigurationException, match=r"all equal, .*lambda_=0.1"):
        fit(weight_info(), module=Zero())
    callback = weight_info(lambda_=0.1)
    fit(callback, module=Zero())
    assert value(callback, "kl", 0) > 0


@pytest.mark.parametrize("curvature", ["matrix", "gram", "lanczos", "diagonal"])
def test_without_targets_all_is_measured_but_the_loss(curvature):
    """Nothing else depends on labels: the values are those of the same run with them."""
    adapters = [
        lambda module, batch: (module(batch[0].double()), None, "categorical"),
        lambda module, batch: (module(batch[0].double()), batch[1], "categorical"),
    ]
    found, known = (weight_info(adapter=adapter, curvature=curvature) for adapter in adapters)
    for callback in (found, known):
        torch.manual_seed(0)
        fit(callback, module=Net())
    of_loss = {"loss", "expected_loss", "predicted_loss", "complexity", "free_energy"}
    names = {tag.removeprefix("weight_info/") for tag in known.history if not tag.endswith("overhead")}
    of_labels = {"pac_bayes_bound", "gibbs_error"}
    left_out = {name for name in names if name.removesuffix("_stderr") in of_loss | of_labels}
    assert of_loss | of_labels < left_out
    assert {tag.removeprefix("weight_info/") for tag in found.history} - {"overhead"} == names - left_out
    for name in names - left_out:
        assert [point[0] for point in found.history[f"weight_info/{name}"]] == [0, 8, 16]
        for step in (0, 8, 16):
            assert value(found, name, step) == pytest.approx(value(known, name, step), rel=1e-6, nan_ok=True), name
    assert value(found, "kl", 16) > 0
    assert "none, so loss, expected_loss, predicted_loss, complexity, free_energy" in " ".join(found.report().split())
    assert not found.rate_distortion


def test_targets_of_another_shape_are_refused():
    def adapter(module, batch):
        return module(batch[0].double()), batch[1][:, None].double(), "gaussian"

    with pytest.raises(MisconfigurationException, match="do not match outputs"):
        fit(weight_info(adapter=adapter))


def test_a_loss_that_is_not_finite_is_a_gap():
    class Breaking(Net):
        def on_train_batch_end(self, *args):
            if self.trainer.global_step == 8:
                nn.init.constant_(self.net[2].bias, math.nan)

    callback = weight_info()
    with pytest.warns(UserWarning, match="no value at step 8"):
        fit(callback, module=Breaking())
    assert math.isfinite(value(callback, "kl", 0))
    assert math.isnan(value(callback, "kl", 8))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("is_lost", [False, True])
def test_nothing_is_said_of_the_end_where_the_last_point_has_no_value(capsys, is_lost):
    class Poison(Callback):
        def on_train_batch_end(self, run, module, *args):
            if is_lost and run.global_step == 12:
                module.net[0].weight.data.fill_(math.nan)

    fit(Poison(), weight_info(reference=(X[:8], Y[:8]), draws=2, summary=True))
    printed = capsys.readouterr().out
    assert ("The loss under weight noise" in printed) is not is_lost
    assert ("is lost since step 16 (" in printed) is is_lost
