"""Effective information through a real Trainer: against an exact mixture, and the properties that it has to have."""

from __future__ import annotations

import copy
import math
import weakref
from contextlib import contextmanager

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

from lightning_info import EffectiveInfoCallback, InfoPlaneCallback
from lightning_info.functional import usable_information
from lightning_info.offline.measure import measure
from lightning_info.quantities.effective_information import noisy_activations, relative_curvature
from lightning_info.quantities.effective_information import quantity as module_of_quantity
from lightning_info.quantities.effective_information.noise_calibration import PASSES, POWER_PASSES
from lightning_info.quantities.information_plane.label_information import FOLDS
from lightning_info.quantities.weight_information import direct_call, loss_rise, noisy_loss
from lightning_info.quantities.weight_information.direct_call import DirectCalls

SAMPLES, REFERENCE = 64, 32
X, Y = (part[:REFERENCE] for part in data(SAMPLES).tensors)


class Net(Classifier):
    def __init__(self, act: type[nn.Module] = nn.Tanh):
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 6), act(), nn.Linear(6, CLASSES)))


def effective(**options) -> EffectiveInfoCallback:
    defaults = {
        "reference": (X, Y),
        "every_n_epochs": 100,
        "draws": 16,
        "on_error": "raise",
        "summary": False,
    }
    return EffectiveInfoCallback(**{**defaults, **options})


def fit(*callbacks, module=None, **options):
    torch.manual_seed(0)
    module = module or Net()
    trainer(*callbacks, **options).fit(module, loader(SAMPLES))
    return module


def value(callback, tag: str, step: int = 16) -> float:
    return dict(callback.history[tag])[step]


@pytest.mark.parametrize("level", [{"beta": 0.1}, {"distortion": 0.05}])
def test_without_targets_the_information_about_the_input_is_measured(level):
    """At a fixed level labels change nothing; a distortion is then one of the predictions."""
    known = effective(**level)
    module = fit(known)
    found = effective(adapter=lambda module, batch: (module(batch[0]), None, "categorical"), **level)
    fit(found)
    assert not any("I_ZY" in tag or "loss" in tag for tag in found.history)
    assert "none, so I_ZY, loss and noisy_loss are left out" in " ".join(found.report().split())
    layers = [tag for tag in known.history if tag.startswith("effective_info/I_XZ/")]
    assert len(layers) == 2
    for tag in layers:
        assert value(found, tag) > 0
        if "beta" in level:
            assert value(found, tag) == pytest.approx(value(known, tag), rel=1e-6)
    if "distortion" in level:
        rise = divergence_under_noise(module, value(found, "effective_info/beta"))
        assert rise == pytest.approx(0.05, rel=0.25)


def test_the_label_axis_can_be_that_of_decoders():
    """As the function finds it in the activations, in nats, beside the same information about the input."""
    noisy, told = effective(beta=0.1), effective(beta=0.1, label_information="decoder")
    module = [fit(one) for one in (noisy, told)][1]
    with torch.no_grad():
        for layer, t in (("net.1", module.net[:2](X)), ("net.2", module.net(X))):
            truth = usable_information(t, Y, folds=FOLDS, unit="nats")
            for tag, known in (("", truth.information), ("_stderr", truth.stderr)):
                assert value(told, f"effective_info_decoder{tag}/I_TY/{layer}") == pytest.approx(known, abs=1e-5)
            for tag in (f"effective_info/I_XZ/{layer}", f"effective_info/I_ZY/{layer}"):
                assert told.history[tag] == noisy.history[tag]
    assert not any("decoder" in tag for tag in noisy.history)
    drawn = [one.drawings()["effective_info/plane"]().axes[0] for one in (noisy, told)]
    assert [axes.get_ylabel() for axes in drawn] == ["I(Z;Y) [nats]", "I(T;Y) [nats]"]
    assert {axes.get_xlabel() for axes in drawn} == {"I(X;Z) [nats]"}
    heights = [[scatter.get_offsets()[:, 1].tolist() for scatter in axes.collections[1:3]] for axes in drawn]
    assert heights[0] != heights[1]
    (described,) = {told.quantity.describe(f"effective_info_decoder/I_TY/{layer}").unit for layer in ("net.1", "net.2")}
    assert described == "nats"


def divergence_under_noise(module, beta, draws=400):
    """Mean KL of the predictions from those with weight noise by the diagonal of F, in plain torch."""
    parameters = list(module.parameters())
    log_p = module(X).log_softmax(-1)
    diagonals = [torch.zeros_like(p) for p in parameters]
    for n in range(len(X)):
        for c in range(CLASSES):
            found = torch.autograd.grad(log_p[n, c], parameters, retain_graph=True)
            for total, g in zip(diagonals, found, strict=True):
                total += log_p[n, c].exp().detach() * g.square() * SAMPLES / len(X)
    weights, log_p = [p.detach().clone() for p in parameters], log_p.detach()
    deviations = [(beta / (h + beta / w.square())).sqrt() for h, w in zip(diagonals, weights, strict=True)]
    generator, total = torch.Generator().manual_seed(0), 0.0
    with torch.no_grad():
        for _ in range(draws):
            for p, w, s in zip(parameters, weights, deviations, strict=True):
                p.copy_(w + s * torch.randn(w.shape, generator=generator))
            total += (log_p.exp() * (log_p - module(X).log_softmax(-1))).sum(-1).mean().item() / draws
    return total


def test_a_linear_layer_agrees_with_the_exact_mixture():
    """Under Gaussian weight noise p(z|x) of one linear layer is Gaussian; the mixture by Monte Carlo in float64."""
    beta = 0.3

    class Linear(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(FEATURES, CLASSES).double()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0].double()), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.5)

    callback = effective(beta=beta, draws=100, layers="net")
    module = fit(callback, module=Linear(), max_epochs=4)
    x, w, b = X.double(), module.net.weight.detach(), module.net.bias.detach()
    p = (x @ w.T + b).softmax(1)
    h_outputs = p * (1 - p)  # diagonal of F: E p_c (1 - p_c) x_i²
    prior_w, prior_b = w.square(), b.square()
    h_w, h_b = SAMPLES * (h_outputs.T @ x.square()) / len(x), SAMPLES * h_outputs.mean(0)
    var_w, var_b = prior_w / (1 + h_w * prior_w / beta), prior_b / (1 + h_b * prior_b / beta)
    mean, variance = x @ w.T + b, x.square() @ var_w.T + var_b
    generator = torch.Generator().manual_seed(0)
    z = mean + variance.sqrt() * torch.randn(4000, *mean.shape, generator=generator, dtype=torch.float64)
    log_density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(z.unsqueeze(2)).sum(3)
    own = log_density.diagonal(dim1=1, dim2=2)
    exact = (own - log_density.logsumexp(2) + math.log(len(x))).mean().item()
    assert 0.5 < exact < 3.2
    found = value(callback, "effective_info/I_XZ/net", 32)
    assert found == pytest.approx(exact, abs=0.005 + 2 * value(callback, "effective_info_stderr/I_XZ/net", 32))
    assert callback.tags == tuple(tag for tag in callback.history if not tag.endswith("overhead"))


def test_what_is_known_of_the_own_noise_of_linear_layers_raises_the_bounds(monkeypatch):
    """The same draws at the same level, with the moments of the draws alone; of net.1 the input is fixed."""
    torch.manual_seed(0)
    module = Net()
    fit(module=module, max_epochs=6)
    found = []
    for seed in range(4):
        known, alone = (effective(beta=0.3, seed=seed), effective(beta=0.3, seed=seed))
        fit(known, module=copy.deepcopy(module), max_steps=1)
        with monkeypatch.context() as patched:
            patched.setattr(module_of_quantity, "find_linear_layers", lambda snapshot, layers: {})
            fit(alone, module=copy.deepcopy(module), max_steps=1)
        layers = ("net.1", "net.2")
        found.append([[value(c, f"effective_info/I_XZ/{layer}", 0) for c in (known, alone)] for layer in layers])
    gains = torch.tensor(found).diff(dim=2)[:, :, 0].neg()
    assert (gains.mean(0) > 2 * gains.std(0) / 4**0.5).all()
    assert (gains.mean(0) > 0.02).all()


def test_bounds_hold_and_more_distortion_leaves_less():
    callback = effective(distortion=(0.01, 0.05), draws=32)
    fit(callback, max_epochs=6)
    step = 48
    h_y = torch.distributions.Categorical(torch.bincount(Y).double()).entropy().item()
    for family in ("effective_info", "effective_info_0.05"):
        assert value(callback, f"{family}/crossing", step) <= 0.1
        for layer in ("net.1", "net.2"):
            xz, zy = (value(callback, f"{family}/{kind}/{layer}", step) for kind in ("I_XZ", "I_ZY"))
            assert 0 <= zy <= min(xz + 0.1, h_y + 1e-9)
            assert xz <= math.log(REFERENCE) + 1e-9
    for layer in ("net.1", "net.2"):
        less, more = (value(callback, f"{f}/I_XZ/{layer}", step) for f in ("effective_info_0.05", "effective_info"))
        assert less < more
    assert value(callback, "effective_info/beta", step) < value(callback, "effective_info_0.05/beta", step)


def test_the_level_is_that_of_the_distortion():
    """Over seeds the rise is off by 15 % in a net as small as this, of which half is the measurement's own."""
    callback = effective(distortion=0.05, draws=60)
    fit(callback, max_epochs=6)
    rise = value(callback, "effective_info/noisy_loss", 48) - value(callback, "effective_info/loss", 48)
    assert rise == pytest.approx(0.05, rel=0.45)


@pytest.mark.parametrize("noise", ["diagonal", "low_rank", "full"])
def test_rescaling_the_units_of_a_relu_net_changes_nothing_but_bins(noise):
    class Rescaled(Net):
        def __init__(self, factors):
            super().__init__(nn.ReLU)
            self.factors = factors

        def on_fit_start(self):
            with torch.no_grad():
                self.net[0].weight *= self.factors[:, None]
                self.net[0].bias *= self.factors
                self.net[2].weight /= self.factors

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    def measured(factors):
        ours = effective(distortion=0.02, noise=noise)
        binned = InfoPlaneCallback(
            bin_range=["fixed", "global"], bins=8, reference=(X, Y), every_n_epochs=100, summary=False, on_error="raise"
        )
        fit(ours, binned, module=(torch.manual_seed(5), Rescaled(factors).double())[1], precision="64-true")
        return [
            {tag: dict(curve)[16] for tag, curve in c.history.items() if "overhead" not in tag} for c in (ours, binned)
        ]

    (plain, bins), (again, other_bins) = (
        measured(torch.ones(6)),
        measured(torch.tensor([8.0, 0.3, 3.0, 0.07, 1.0, 5.0])),
    )
    assert all(math.isfinite(v) for v in plain.values())
    assert again == pytest.approx(plain, rel=1e-5, abs=1e-5)
    for family in ("info_plane", "info_plane_binning_global"):
        assert abs(bins[f"{family}/I_XT/net.1"] - other_bins[f"{family}/I_XT/net.1"]) > 0.1


def test_a_loss_that_is_not_finite_under_noise_is_no_level_and_no_error():
    class Fragile(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("start", self.net[0].weight.detach().clone())

        def forward(self, x):
            away = (self.net[0].weight - self.start).square().sum()
            return super().forward(x) / (away < 1e-3)  # infinite elsewhere

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    callback = effective(beta=1.0)
    fit(callback, module=Fragile())
    assert math.isnan(value(callback, "effective_info/noisy_loss"))
    assert math.isfinite(value(callback, "effective_info/I_XZ/net.1"))
    searched = effective(distortion=0.5)
    fit(searched, module=Fragile())
    level = value(searched, "effective_info/beta")
    assert math.isnan(level) or math.isfinite(value(searched, "effective_info/noisy_loss"))


def test_a_distortion_that_is_not_reached_is_nan_and_said():
    callback = effective(distortion=(0.02, 50.0))
    with pytest.warns(UserWarning, match=r"no value at step 0 \(NaN\): no level .* raises the loss by 50 nats"):
        fit(callback)
    assert math.isnan(value(callback, "effective_info_50/I_XZ/net.2"))
    assert math.isnan(value(callback, "effective_info_50/beta"))
    assert math.isfinite(value(callback, "effective_info_50/loss"))


@pytest.fixture
def drawn(monkeypatch):
    """Weak references to the draws of the weights at which points were measured, as they are made."""
    made, original = [], module_of_quantity.noisy_activations

    def noted(noises):
        for noise in noises:
            made.append(weakref.ref(noise))
            yield noise

    def watched(snapshot, reader, noises, linear):
        return original(snapshot, reader, noted(noises), linear)

    monkeypatch.setattr(module_of_quantity, "noisy_activations", watched)
    return made


def test_a_measurement_takes_299_passes_at_most(monkeypatch):
    rows, noisy = [], []

    class Counting(Net):
        def training_step(self, batch, batch_idx):
            if noisy:
                rows.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    @contextmanager
    def moved(snapshot, noise):
        noisy.extend([1] * bool(noise.any()))  # that of the forecast is 0
        with original(snapshot, noise):
            yield
        noisy.clear()

    def counted(calls, noises, body):
        rows.extend(sum(call.samples for call in calls.calls) for noise in noises if noise.any())
        return read(calls, noises, body)

    original, read = noisy_loss.moved, DirectCalls.read
    monkeypatch.setattr(DirectCalls, "read", counted)
    for module in (loss_rise, noisy_activations):
        monkeypatch.setattr(module, "moved", moved)
    torch.manual_seed(0)
    callback = effective(draws=64, distortion=(0.02, 0.03))
    fit(callback, module=Counting(), max_epochs=6)
    levels = [curve for tag, curve in callback.history.items() if tag.endswith("/beta")]
    reached = sum(math.isfinite(beta) for curve in levels for _, beta in curve)
    assert reached >= 2
    # two points, two distortions; one pass more at each level, and one for the search, sees whether a call is enough
    assert reached * 128 < sum(rows) / REFERENCE <= reached * 129 + 4 * (PASSES + POWER_PASSES) + 2
    assert 2 * (129 + PASSES + POWER_PASSES) + 1 <= 299


@pytest.mark.parametrize("most", [1, 4])
def test_the_draws_of_a_measurement_are_never_all_at_hand(monkeypatch, drawn, most):
    alive = []

    def counted(calls, noises, body):
        alive.append(sum(one() is not None for one in drawn))
        return read(calls, noises, body)

    read = DirectCalls.read
    monkeypatch.setattr(DirectCalls, "read", counted)
    monkeypatch.setattr(direct_call, "MOST_DRAWS", most)
    fit(effective(beta=0.1, draws=32))
    assert len(drawn) == 2 * 64
    assert most <= max(alive) <= most + 2


def test_weights_that_are_zero_dead_and_single_units_have_a_value():
    class Dead(Classifier):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Linear(FEATURES, 1), nn.ReLU(), nn.Linear(1, CLASSES)))
            nn.init.constant_(self.net[0].weight, -1.0)
            nn.init.constant_(self.net[0].bias, -100.0)  # off for every input
            nn.init.zeros_(self.net[2].weight)

    callback = effective(beta=0.01, layers=["net.1", "net.2"])
    fit(callback, module=Dead())
    assert value(callback, "effective_info/I_XZ/net.1", 0) == 0.0
    assert value(callback, "effective_info/I_XZ/net.2", 0) == 0.0


def test_what_is_written_can_be_read_back_and_the_figure_is_a_plane(tmp_path):
    callback = effective(distortion=(0.01, 0.02), summary=True)
    fit(callback, logger=TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"), {"images": 0}).Reload()
    written = set(events.Tags()["scalars"])
    assert written & {*callback.history} == {*callback.tags} - {"effective_info_0.02/loss"}  # the same at every level
    for tag in written & {*callback.tags}:
        read = {event.step: event.value for event in events.Scalars(tag)}
        assert read == pytest.approx(dict(callback.history[tag]), rel=1e-5, nan_ok=True)
    assert {"effective_info/plane", "effective_info_0.02/plane"} <= set(events.Tags()["images"])
    axes = callback.drawings()["effective_info/plane"]().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("I(X;Z) [nats]", "I(Z;Y) [nats]")


def test_the_search_goes_on_after_a_resume_from_the_level_that_it_had_found(tmp_path, monkeypatch):
    common = {"distortion": 0.01, "every_n_epochs": 1}
    first, saving = effective(**common), ModelCheckpoint(tmp_path, save_last=True)
    torch.manual_seed(0)
    trainer(first, saving, enable_checkpointing=True, max_epochs=3).fit(Net(), loader(SAMPLES))
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    known = value(first, "effective_info/beta", 16)  # the last point that the checkpoint of epoch 3 has
    starts = []
    original = module_of_quantity.find_level

    def search(rise, noise, seeds, target, start):
        starts.append(start)
        return original(rise, noise, seeds, target, start)

    monkeypatch.setattr(module_of_quantity, "find_level", search)
    trainer(effective(**common), max_epochs=4).fit(Net(), loader(SAMPLES), ckpt_path=tmp_path / "last.ckpt")
    assert starts[0] == known != starts[1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"beta": 0.0}, "beta must be a positive, finite number"),
        ({"distortion": -0.1}, "distortion must be a positive, finite number"),
        ({"distortion": ()}, "give one or several different ones"),
        ({"distortion": (0.1, 0.1)}, "give one or several different ones"),
        ({"draws": 1}, "a half needs at least 2"),
        ({"draws": 1.5}, "draws must be a positive integer"),
        ({"noise": "lowrank"}, "choose one of 'diagonal', 'low_rank', 'full'"),
    ],
)
def test_senseless_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=f"EffectiveInfoCallback: .*{match}"):
        EffectiveInfoCallback(**options)


@pytest.mark.parametrize(
    ("noise", "limit", "match"),
    [
        ("full", "FULL_WEIGHTS", r"done for up to 60, not for 63; choose noise='low_rank', or noise='diagonal'"),
        ("low_rank", "KEPT", r"with 63 numbers each: .* memory for 0 samples, .* choose noise='diagonal'"),
    ],
)
def test_noise_for_which_the_network_is_too_large_is_refused_before_the_first_step(noise, limit, match, monkeypatch):
    monkeypatch.setattr(relative_curvature, limit, 60)
    with pytest.raises(MisconfigurationException, match=f"EffectiveInfoCallback: noise='{noise}' .*{match}"):
        fit(effective(noise=noise))


def test_layers_that_are_not_there_are_refused_before_the_first_step():
    with pytest.raises(MisconfigurationException, match="there is no layer 'body'"):
        fit(effective(layers="body"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("is_lost", [False, True])
def test_nothing_is_said_of_the_end_where_the_last_point_has_no_value(capsys, is_lost):
    class Poison(Callback):
        def on_train_batch_end(self, run, module, *args):
            if is_lost and run.global_step == 12:
                module.net[0].weight.data.fill_(math.nan)

    few = {"reference": (X[:8], Y[:8]), "every_n_epochs": None, "every_n_train_steps": 8, "draws": 4}
    fit(Poison(), effective(**few, beta=1e-6, summary=True))
    printed = capsys.readouterr().out
    assert ("at log N, the most" in printed) is not is_lost
    assert ("lost since step 16" in printed) is is_lost


def test_a_searched_level_has_an_error_and_so_has_what_depends_on_it():
    """A level that is given has none; the same level, found, makes the errors larger."""
    torch.manual_seed(0)
    module = Net()
    fit(module=module, max_epochs=6)
    searched = effective(distortion=0.05)
    fit(searched, module=copy.deepcopy(module), max_steps=1)
    beta = value(searched, "effective_info/beta", 0)
    given = effective(beta=beta)
    fit(given, module=copy.deepcopy(module), max_steps=1)
    assert 0.01 < value(searched, "effective_info/beta_stderr", 0) / beta < 3  # where the rise hardly grows any more
    assert value(given, "effective_info/beta_stderr", 0) == 0
    for kind in ("I_XZ", "I_ZY"):
        tag = f"effective_info_stderr/{kind}/net.2"
        assert value(searched, tag, 0) > 1.1 * value(given, tag, 0) > 0
        assert value(searched, f"effective_info/{kind}/net.2", 0) == pytest.approx(
            value(given, f"effective_info/{kind}/net.2", 0), abs=1e-9
        )


@pytest.mark.slow
def test_the_errors_are_the_scatter_over_seeds():
    """40 seeds: SD by stated error, 0.8 to 1.25 in the mean over layers, 0.7 to 1.4 (two deviations more) of each."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x = torch.randn(96, 12, generator=generator)
    y = (3 * nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))(x)).argmax(1)
    net = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    found: dict[str, list[float]] = {}
    for seed in range(40):
        callback = effective(seed=seed, distortion=(0.05, 0.5), draws=32, reference=(x, y), num_samples=96)
        for tag, curve in measure(net, (x, y), callback, likelihood="categorical").history.items():
            found.setdefault(tag, []).append(curve[-1][1])
    for family in ("effective_info", "effective_info_0.5"):
        pairs = {f"{family}/beta": f"{family}/beta_stderr"}
        for kind in ("I_XZ", "I_ZY"):
            pairs |= {f"{family}/{kind}/{layer}": f"{family}_stderr/{kind}/{layer}" for layer in "134"}
        ratios = []
        for tag, error in pairs.items():
            values, errors = torch.tensor(found[tag]).double(), torch.tensor(found[error]).double()
            ratios.append((values.std() / errors.mean()).item())
            print(f"\n| {tag} | {values.mean():.3g} | {values.std():.2g} | {errors.mean():.2g} | {ratios[-1]:.2f} |")
        assert all(0.7 < ratio < 1.4 for ratio in ratios)
        assert 0.8 < sum(ratios) / len(ratios) < 1.25


def test_a_cheaper_point_has_half_the_draws_down_to_the_fewest_and_says_so(drawn):
    """A reset, as at the start of every fit, brings the user's number back."""
    quantity = effective(draws=20).quantity
    assert quantity.cheaper() == "20 draws of the weights instead of 40"
    assert quantity.cheaper() == "16 draws of the weights instead of 20"
    assert quantity.cheaper() == ""
    assert quantity.draws == 20
    quantity.reset()
    assert quantity.cheaper() == "20 draws of the weights instead of 40"
    assert effective(draws=4).quantity.cheaper() == ""

    errors = []
    torch.manual_seed(0)
    module = Net()
    fit(module=module, max_epochs=3)
    for halved in (0, 1, 2):
        drawn.clear()
        callback = effective(beta=0.3, draws=32)
        cheaper = [callback.quantity.cheaper for _ in range(halved)]

        class Cheaper(Callback):
            def on_train_batch_end(self, run, module, outputs, batch, batch_idx, cheaper=cheaper):
                for once in cheaper:
                    assert once()

        fit(Cheaper(), callback, module=copy.deepcopy(module), max_steps=1)
        assert len(drawn) == 64 + (64 >> halved)  # at the start and at the end
        errors.append(value(callback, "effective_info_stderr/I_XZ/net.2", 1))
    assert errors[2] > 1.3 * errors[0] > 0


class Rectified(Classifier):
    def __init__(self):
        super().__init__(
            nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        )


def test_a_relu_is_looked_at_from_before():
    callback = effective(distortion=0.05)
    fit(callback, module=Rectified())
    layers = [tag.split("/")[2] for tag in callback.tags if tag.startswith("effective_info/I_XZ/")]
    assert layers == ["net.0", "net.2", "net.4"]


def test_a_bound_far_below_a_later_one_is_no_value(monkeypatch):
    real, bounds = module_of_quantity.effective_information, iter([0.0, 2.0, 1.95] * 10)

    def bound(*args, **kwargs):
        return real(*args, **kwargs)._replace(I_XZ=next(bounds), I_XZ_stderr=0.1)

    monkeypatch.setattr(module_of_quantity, "effective_information", bound)
    callback = effective(beta=0.1, on_error="warn")
    with pytest.warns(UserWarning, match=r"no I\(X;Z\) of 'net.0' at step 0 \(NaN\): the bound is far below"):
        fit(callback, module=Rectified())
    assert math.isnan(value(callback, "effective_info/I_XZ/net.0"))
    assert math.isnan(value(callback, "effective_info_stderr/I_XZ/net.0"))
    assert value(callback, "effective_info/I_XZ/net.2") == 2.0  # not far above the outputs
    assert value(callback, "effective_info/I_ZY/net.0") >= 0
    assert value(callback, "effective_info/crossing") == 2.0


def test_each_layer_whose_bound_crosses_is_named_once(monkeypatch):
    real, points = module_of_quantity.effective_information, iter([0.0, 2.0, 1.9] + [3.0, 0.0, 1.9] * 20)

    def bound(*args, **kwargs):
        return real(*args, **kwargs)._replace(I_XZ=next(points), I_XZ_stderr=0.1)

    monkeypatch.setattr(module_of_quantity, "effective_information", bound)
    callback = effective(beta=0.1, on_error="warn")
    with pytest.warns(UserWarning, match="no I.X;Z. of") as said:
        fit(callback, module=Rectified())
    named = [str(w.message) for w in said if "no I(X;Z) of" in str(w.message)]
    assert ["'net.0'" in text for text in named] == [True, False]
    assert ["'net.2'" in text for text in named] == [False, True]
