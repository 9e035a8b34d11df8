"""The bounds of ``WeightInfoCallback``, through a real Trainer: they hold, and where they would not there are none."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from labelled import (
    BATCH,
    CLASSES,
    SAMPLES,
    Freezing,
    Labels,
    Learnt,
    Net,
    Regression,
    Stream,
    Unfreezing,
    data,
    loader,
)
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from models import trainer
from scipy import stats
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call
from torch.utils.data import DataLoader, RandomSampler

from lightning_info import WeightInfoCallback
from lightning_info.functional import gibbs_risk_bound, kl_inverse, seeger_bound
from lightning_info.functional.pac_bayes import PRIOR_STDS
from lightning_info.gradients.layout import bare
from lightning_info.quantities.weight_information import bounds as bounds_module
from lightning_info.quantities.weight_information import certificate


def weight_info(**options) -> WeightInfoCallback:
    defaults = {"every_n_epochs": 100, "num_samples": 64, "draws": 2, "on_error": "raise", "summary": False}
    return WeightInfoCallback(**{**defaults, **options})


def fit(callback, *others, module=None, train=None, validation=None, ckpt_path=None, **options) -> Net:
    module = module or Net()
    torch.manual_seed(0)
    run = trainer(callback, *others, **{"max_epochs": 3, **options})
    run.fit(module, loader() if train is None else train, validation, ckpt_path=ckpt_path)
    return module


def last(callback, name: str) -> float:
    return callback.history[f"weight_info/{name}"][-1][1]


@pytest.fixture
def certified(monkeypatch):
    """Every Q whose error is measured: with its samples, their number N, and the noise that was drawn."""
    seen = []
    original = certificate.gibbs_error

    def note(snapshot, posterior, draws, total, delta, generator):
        found = original(snapshot, posterior, draws, total, delta, generator)
        seen.append((posterior, [bare(group) for group in snapshot.groups], total, found, draws, delta))
        return found

    monkeypatch.setattr(certificate, "gibbs_error", note)
    return seen


def flat(module: Net) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().double()


def noisy_errors(module: Net, posterior, x: torch.Tensor, y: torch.Tensor, draws: int, seed: int) -> torch.Tensor:
    """Error of each draw from Q on some samples, ``(draws,)``, by functional_call."""
    weights = (posterior.mean + posterior.noise(draws, torch.Generator().manual_seed(seed))).float()
    names, shapes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)
    parts = [part.view(-1, *s) for part, s in zip(weights.split([s.numel() for s in shapes], 1), shapes, strict=True)]
    run = torch.vmap(lambda own: functional_call(module, dict(zip(names, own, strict=True)), x).argmax(-1))
    return (run(parts) != y).double().mean(1)


def test_the_bound_holds_on_fresh_data_in_each_of_20_trainings(certified, monkeypatch):
    monkeypatch.setattr(certificate, "DRAWS", 500)
    # with delta = 0.05 the smallest number of failures that would speak against it is 4 of 20 (p = 0.016)
    margins = []
    for seed in range(20):
        callback = weight_info(seed=seed, curvature="diagonal")
        module = fit(callback, module=Net(seed), train=loader(seed=seed), max_epochs=2 + seed % 4)
        posterior, *_ = certified[-1]
        x, y = data(5000, 1000 + seed).tensors
        margins.append(
            last(callback, "pac_bayes_bound") - noisy_errors(module, posterior, x, y, 50, seed).mean().item()
        )
    assert min(margins) > 0.02  # the error of a margin is below 0.01


def test_the_bound_is_that_of_its_parts_computed_apart(certified):
    callback, start = weight_info(delta=0.1), flat(Net())
    module = fit(callback)
    posterior, groups, total, _, draws, delta = certified[-1]
    ((x, y),) = groups
    assert (total, len(x), delta) == (SAMPLES, SAMPLES, pytest.approx(0.02))
    assert torch.equal(x.sort(0).values, data(SAMPLES, 1).tensors[0].sort(0).values)
    found = noisy_errors(module, posterior, x, y, 4000, 5)
    error = found.std().item() / 4000**0.5
    assert last(callback, "gibbs_error") == pytest.approx(found.mean().item(), abs=5 * error)
    assert last(callback, "gibbs_error_stderr") < 3 * error
    weights = flat(module)
    torch.testing.assert_close(posterior.mean, weights, rtol=0, atol=0)
    information, groups_of_weights = 0.0, [p.numel() for p in module.parameters()]
    for q_mean, q_std, w in zip(*(v.split(groups_of_weights) for v in (weights, posterior.std, start)), strict=True):
        q = Normal(q_mean, q_std)
        information += min(kl_divergence(q, Normal(w, torch.tensor(s).double())).sum().item() for s in PRIOR_STDS)
    choices = len(groups_of_weights) * math.log(len(PRIOR_STDS))
    # 5 parts of 60 samples with 820 draws each
    upper = gibbs_risk_bound(last(callback, "gibbs_error"), 5 * math.ceil(draws / 5), 0.02)
    expected = seeger_bound(upper, [information], SAMPLES, 0.08, choices).value
    assert last(callback, "pac_bayes_bound") == pytest.approx(expected, rel=1e-9)


def test_weights_are_drawn_with_the_standard_deviation_that_the_kl_has(certified, monkeypatch):
    drawn = []
    original = certificate.NoisyErrors.at
    monkeypatch.setattr(certificate.NoisyErrors, "at", lambda self, n: drawn.append(n) or original(self, n))
    fit(weight_info())
    posterior, _, _, _, draws, _ = certified[-1]
    noise = torch.cat(drawn)[-draws:]
    assert len(noise) == draws >= 4000
    # the standard error of a standard deviation of 4096 draws is 1.1 %
    assert (noise.std(0) / posterior.std - 1).abs().max() < 0.05
    # a draw replaces the weights of the replica by their sum: distances from them are as large
    assert noise.square().sum(1).mean().item() == pytest.approx(posterior.std.square().sum().item(), rel=0.01)


def test_it_is_logged_from_the_end_of_the_first_epoch_on_and_absent_before():
    callback = weight_info(every_n_epochs=None, every_n_train_steps=5)
    fit(callback, max_epochs=2)
    steps = [step for step, _ in callback.history["weight_info/pac_bayes_bound"]]
    assert steps == [10, 15, 20]
    assert [step for step, _ in callback.history["weight_info/kl"]] == [0, 5, 10, 15, 20]
    assert "weight_info/test_bound" not in callback.history
    assert all(0 < value <= 1 for _, value in callback.history["weight_info/pac_bayes_bound"])


@pytest.mark.parametrize(
    ("train", "options", "expected"),
    [
        ({}, {"limit_train_batches": 4}, 4 * BATCH),
        ({"batch_size": 70, "drop_last": True}, {}, 280),
        ({}, {"max_epochs": -1, "max_steps": 7}, 7 * BATCH),
    ],
    ids=["limited", "last batch dropped", "first epoch ended early"],
)
def test_n_is_the_number_of_samples_that_passed(certified, train, options, expected):
    fit(weight_info(), train=loader(**train), **options)
    _, groups, total, *_ = certified[-1]
    assert total == sum(len(x) for x, _ in groups) == expected


def test_of_a_large_training_set_a_random_part_is_measured(certified, monkeypatch):
    monkeypatch.setattr(certificate, "SAMPLES", 90)
    monkeypatch.setattr(type(weight_info().quantity), "evaluation_samples", 90)
    fit(weight_info())
    _, ((x, _),), total, found, _draws, delta = certified[-1]
    assert (len(x), total) == (90, SAMPLES)
    # 2 parts of 45 samples: each sample counts with one draw
    assert found.upper == pytest.approx(gibbs_risk_bound(found.mean, 90, delta), rel=1e-6)
    assert found.stderr == pytest.approx(math.sqrt(found.mean * (1 - found.mean) / 90 * (1 - 90 / SAMPLES)), rel=0.2)


def test_the_test_set_bound_is_the_exact_binomial_one():
    callback, validation = weight_info(delta=0.1), loader(200, seed=2, shuffle=False)
    module = fit(callback, validation=validation)
    x, y = data(200, 2).tensors
    wrong = (module(x).argmax(1) != y).sum().item()
    assert 0 < wrong < 200
    expected = stats.beta.ppf(0.9, wrong + 1, 200 - wrong)
    assert last(callback, "test_bound") == pytest.approx(expected, abs=1e-9)


def test_several_labels_a_sample_have_their_mean_error():
    callback = weight_info()
    module = fit(callback, module=Labels(), validation=loader(200, seed=2))
    x, y = data(200, 2).tensors
    wrong = ((module(x) > 0) != F.one_hot(y, CLASSES)).double().mean().item()
    assert last(callback, "test_bound") == pytest.approx(kl_inverse(wrong, math.log(20) / 200), abs=1e-9)
    x, y = data(SAMPLES, 1).tensors
    assert last(callback, "gibbs_error") > ((module(x) > 0) != F.one_hot(y, CLASSES)).double().mean().item() - 0.05


REPEATING = {"shuffle": False, "sampler": RandomSampler(range(200), replacement=True)}


def bounds(callback) -> set[str]:
    names = {tag.removeprefix("weight_info/") for tag in callback.history}
    return names & {"pac_bayes_bound", "gibbs_error", "gibbs_error_stderr", "test_bound"}


@pytest.mark.parametrize(
    ("module", "train", "reason"),
    [
        (Learnt, None, "net.1.scale has changed since the start and is no trainable weight"),
        (Freezing, None, "net.0.weight has changed since the start and is no trainable weight"),
        (Unfreezing, None, "not known for all trainable weights"),
        (Net, lambda: loader(**REPEATING), "RandomSampler may repeat samples"),
        (Net, lambda: DataLoader(Stream(), BATCH), "no data set with a length"),
    ],
    ids=["buffer", "frozen", "unfrozen", "with replacement", "stream"],
)
def test_where_it_would_not_hold_there_is_none_and_the_reason_is_said_once(module, train, reason):
    callback = weight_info()
    with pytest.warns(UserWarning, match="no weight_info/pac_bayes_bound") as warned:
        fit(callback, module=module(), train=train and train())
    (message,) = [str(w.message) for w in warned if "pac_bayes_bound" in str(w.message)]
    assert reason in message
    assert not bounds(callback)
    assert math.isfinite(last(callback, "trace"))


@pytest.mark.parametrize(
    ("module", "reason"),
    [(Regression, "the targets are no labels"), (lambda: Net(middle=nn.BatchNorm1d(8)), "BatchNorm puts statistics")],
    ids=["regression", "batch norm"],
)
def test_what_is_known_at_the_start_is_in_the_report_only(module, reason, recwarn):
    callback = weight_info()
    fit(callback, module=module())
    assert reason in " ".join(callback.report().split())
    assert not bounds(callback)
    assert not [w for w in recwarn if "pac_bayes_bound" in str(w.message)]


def test_batch_norm_has_a_test_set_bound():
    callback = weight_info()
    fit(callback, module=Net(middle=nn.BatchNorm1d(8)), validation=loader(200, seed=2))
    assert bounds(callback) == {"test_bound"}


def test_weights_that_have_seen_the_data_are_no_prior():
    module = fit(weight_info(), max_epochs=10)
    again = weight_info()
    with pytest.warns(UserWarning, match="classify the training samples already .*prior='zero'"):
        fit(again, module=module)
    assert not bounds(again)
    zero = weight_info(prior="zero")
    fit(zero, module=module)
    assert last(zero, "pac_bayes_bound") < 1


def test_a_run_that_goes_on_without_the_first_epoch_has_none(tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_epochs=1, save_last=True)
    fit(saving, max_epochs=1, enable_checkpointing=True)
    callback = weight_info()
    with pytest.warns(UserWarning, match="without the samples of its first epoch"):
        fit(callback, ckpt_path=tmp_path / "last.ckpt")
    assert not bounds(callback)


def test_a_run_that_goes_on_from_a_checkpoint_with_it_has_the_same_bound(tmp_path):
    whole, first, rest = (weight_info() for _ in range(3))
    fit(whole, train=loader(shuffle=False), max_epochs=2)
    saving = ModelCheckpoint(tmp_path, every_n_epochs=1, save_last=True)
    fit(first, saving, train=loader(shuffle=False), max_epochs=1, enable_checkpointing=True)
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    fit(rest, train=loader(shuffle=False), max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    # the search for Q begins where it ended in the first part
    assert last(rest, "gibbs_error") == pytest.approx(last(whole, "gibbs_error"), abs=0.05)
    assert last(rest, "pac_bayes_bound") == pytest.approx(last(whole, "pac_bayes_bound"), abs=0.02)


@pytest.mark.parametrize(
    ("others", "validation", "options", "reason"),
    [
        ([EarlyStopping("val_loss", patience=5)], {}, {}, r"EarlyStopping\(monitor='val_loss'\) decides"),
        ([], {}, {"overfit_batches": 4}, "overfit_batches validates on training samples"),
        ([], REPEATING, {}, "the sampler RandomSampler may repeat samples"),
    ],
    ids=["decides", "overfit batches", "with replacement"],
)
def test_validation_data_that_are_not_fresh_give_no_bound(others, validation, options, reason):
    callback = weight_info()
    with pytest.warns(UserWarning, match=f"no weight_info/test_bound: {reason}"):
        fit(callback, *others, validation=loader(200, seed=2, **validation), **options)
    assert bounds(callback) == {"pac_bayes_bound", "gibbs_error", "gibbs_error_stderr"}


def test_of_many_weights_there_is_no_pac_bayes_bound(monkeypatch):
    monkeypatch.setattr(bounds_module, "MOST_WEIGHTS", 50)
    callback = weight_info()
    fit(callback, validation=loader(200, seed=2))
    assert "none: it is not computed for more than 50 weights" in " ".join(callback.report().split())
    assert bounds(callback) == {"test_bound"}


def test_it_is_the_same_if_every_draw_takes_a_pass_of_its_own(certified, monkeypatch):
    """There are fewer draws then, for example where the module calls itself twice."""

    class Twice(Net):
        def training_step(self, batch, batch_idx):
            self(batch[0])
            return super().training_step(batch, batch_idx)

    values = {}
    for kind in (Net, Twice):
        callback = weight_info()
        fit(callback, module=kind())
        values[kind] = last(callback, "gibbs_error"), last(callback, "gibbs_error_stderr")
    (one, error), (other, larger) = values.values()
    assert larger > 2 * error  # 512 draws, not 4096
    # the search sees other errors, so that it may end at a neighbour
    assert other == pytest.approx(one, abs=0.05)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_delta_is_a_probability(delta):
    with pytest.raises(ValueError, match="WeightInfoCallback: delta="):
        WeightInfoCallback(delta=delta)


def test_bounds_are_explained():
    callback = weight_info()
    fit(callback, validation=loader(200, seed=2))
    assert all(callback.quantity.describe(f"weight_info/{name}") for name in ("gibbs_error", "test_bound"))
    both = [f"{last(callback, name):.3g}" for name in ("pac_bayes_bound", "test_bound")]
    told = callback.quantity.closing_text(callback.record())
    assert f"errors on new samples are at most {both[0]} for weights drawn from Q, {both[1]} for the network" in told
