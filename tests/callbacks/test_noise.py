"""Noise in the ``training_step`` is fixed for each sample: F at it is that of plain autograd on one sample."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, curves, data, loader, trainer
from torch import nn
from torch.distributions import Normal, kl_divergence

from lightning_info import EffectiveInfoCallback, FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback
from lightning_info.replica.noise import Noise
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

LATENT = 3
SEEN: list[tuple[torch.Tensor, torch.Tensor]] = []
"""Samples that went through any step, and their noise."""


class Draws(Classifier):
    """A module whose step draws noise for its samples; ``outputs`` gives what is predicted at a given noise."""

    def draw(self, x):
        return torch.randn_like(x)

    def outputs(self, x, noise):
        return self.net(x + 0.3 * noise)

    def loss(self, z, x, y, noise):
        return F.cross_entropy(z, y)

    def training_step(self, batch, batch_idx):
        x, y = batch
        noise = self.draw(x)
        SEEN.append((x.detach().clone(), noise.detach().clone()))
        return self.loss(self.outputs(x, noise), x, y, noise)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


class VAE(Draws):
    def __init__(self):
        super().__init__(nn.Linear(LATENT, FEATURES))
        self.encoder = nn.Linear(FEATURES, 2 * LATENT)

    def draw(self, x):
        return torch.randn(len(x), LATENT, dtype=x.dtype)

    def outputs(self, x, noise):
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return self.net(mean + noise * (log_variance / 2).exp())

    def loss(self, z, x, y, noise):
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return F.mse_loss(z, x) - 0.1 * (1 + log_variance - mean.square() - log_variance.exp()).mean()


class KLOfTorch(VAE):
    def loss(self, z, x, y, noise):
        mean, log_variance = self.encoder(x).chunk(2, -1)
        penalty = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean()
        return F.binary_cross_entropy_with_logits(z, x.sigmoid()) + penalty


class DDPM(Draws):
    """Predicts the noise that was mixed into a sample at a time step of its own."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(FEATURES + 1, 8), nn.SiLU(), nn.Linear(8, FEATURES)))

    def draw(self, x):
        time = torch.randint(0, 10, (x.shape[0],))
        return torch.cat([time[:, None].to(x), torch.randn_like(x)], 1)

    def outputs(self, x, noise):
        kept = (1 - noise[:, :1] / 10).sqrt()
        return self.net(torch.cat([kept * x + (1 - kept**2).sqrt() * noise[:, 1:], noise[:, :1] / 10], 1))

    def loss(self, z, x, y, noise):
        return F.mse_loss(z, noise[:, 1:])


class Masked(Draws):
    """Half of the inputs are hidden, others for every sample."""

    def draw(self, x):
        return (torch.rand(x.shape).argsort(1) < FEATURES // 2).to(x)

    def outputs(self, x, noise):
        return self.net(x * noise)


class Dropped(Draws):
    """Dropout that does not ask whether the module trains."""

    def draw(self, x):
        return F.dropout(torch.ones_like(x), 0.4, training=True)

    def outputs(self, x, noise):
        return self.net(x * noise)


class SamplesSecond(Draws):
    """Noise that has its samples on axis 1, of the length of axis 0."""

    def draw(self, x):
        return torch.randn(8, len(x), FEATURES).mean(0).to(x)


class Rows(Draws):
    """Noise for all positions of all samples in one axis."""

    def draw(self, x):
        return torch.empty(len(x) * FEATURES).uniform_(-1, 1).view(len(x), FEATURES).to(x)


class Sampled(Draws):
    """Samples of distributions, with parameters of each sample."""

    def draw(self, x):
        scale = Normal(x, 1.0).sample()
        return scale * torch.distributions.Categorical(logits=x).sample()[:, None].to(x)


class OneForAll(Draws):
    """A level of noise for the whole batch, one by torch and one by numpy."""

    def draw(self, x):
        level = torch.rand(()) + float(np.random.beta(2.0, 2.0))  # noqa: NPY002
        return level.to(x) * torch.ones_like(x)


class OfItsOwn(Draws):
    """A generator on the module, which the global state does not show."""

    def __init__(self):
        super().__init__()
        self.source = torch.Generator().manual_seed(5)

    def draw(self, x):
        return torch.randn(x.shape, generator=self.source, dtype=x.dtype)


NOISY = [Draws, VAE, KLOfTorch, DDPM, Masked, Dropped, SamplesSecond, Rows, Sampled, OneForAll, OfItsOwn]


def fit(module, *callbacks, **options):
    SEEN.clear()
    trainer(*callbacks, max_epochs=1, **options).fit(module, loader(16))
    return callbacks[0]


def fisher(**options):
    return FisherTraceCallback(every_n_train_steps=2, num_samples=16, on_error="raise", summary=False, **options)


def made(kind, seed=0):
    torch.manual_seed(seed)
    return kind()


def noise_of(x, least=2):
    """The noise that most passes gave a sample; all but the training's own are the same."""
    pairs = [(some.to(x), noise.double()) for some, noise in SEEN]
    found = torch.cat([noise[(some - x).abs().amax(1) < 1e-6] for some, noise in pairs])
    counts = ((found[:, None] - found).abs().amax(2) < 1e-5).sum(1).tolist()
    others = 7  # the training itself, before it is known, and five rows of sample 0 that tell the sample axis
    assert max(counts) >= max(least, len(found) - others)
    return found[counts.index(max(counts))]


def trace_at(module, x, noise, likelihood):
    """``tr F`` by plain autograd, one sample and one output at a time."""
    module, weights = copy.deepcopy(module).double(), 0.0
    parameters = list(module.parameters())
    for row, drawn in zip(x.double(), noise.double(), strict=True):
        z = module.outputs(row[None], drawn[None])[0]
        if likelihood == "categorical":
            pairs = [(z.log_softmax(-1)[c], z.softmax(-1)[c].item()) for c in range(len(z))]
        elif likelihood == "bernoulli":
            pairs = [(one, (one.sigmoid() * (1 - one.sigmoid())).item()) for one in z]
        else:
            pairs = [(one, 1.0) for one in z]
        for value, weight in pairs:
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            weights += weight * sum(g.square().sum().item() for g in gradients if g is not None)
    return weights / len(x)


LIKELIHOODS = {"VAE": "gaussian", "KLOfTorch": "bernoulli", "DDPM": "gaussian"}


@pytest.mark.parametrize("kind", NOISY)
def test_the_trace_is_that_of_plain_autograd_at_the_same_noise(kind):
    module = made(kind)
    start = copy.deepcopy(module)
    callback = fit(module, fisher(estimator="exact"))
    x = data(16).tensors[0]
    noise = torch.stack([noise_of(row) for row in x])
    if kind is not OneForAll:
        assert len(noise.unique(dim=0)) > len(noise) / 2  # each has its own; masks may be equal
    expected = trace_at(start, x, noise, LIKELIHOODS.get(kind.__name__, "categorical"))
    assert dict(callback.history["fisher/trace"])[0] == pytest.approx(expected, rel=1e-5)
    assert "eval mode; a sample's is drawn anew from seed 0" in " ".join(callback.report().split())


@pytest.mark.parametrize("engine", ["backpack", "loop"])
def test_engines_agree(engine):
    whole = fit(made(VAE), fisher()).history["fisher/trace"]
    assert fit(made(VAE), fisher(engine=engine)).history["fisher/trace"] == [
        (step, pytest.approx(value, rel=1e-4)) for step, value in whole
    ]


def test_weights_that_stay_have_the_same_value_at_every_point():
    module = made(DDPM)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.0)
    callback = FisherTraceCallback(every_n_train_steps=1, num_samples=16, estimator="exact", on_error="raise")
    SEEN.clear()
    trainer(callback, max_epochs=2).fit(module, loader(16))
    values = [value for _, value in callback.history["fisher/trace"]]
    assert len(values) >= 3
    assert values == pytest.approx([values[0]] * len(values), rel=1e-6)


@pytest.mark.parametrize("kind", [VAE, DDPM])
def test_over_seeds_the_mean_is_that_over_noise(kind):
    module, batch = made(kind), data(16).tensors
    stand_in = StandInTrainer(types.SimpleNamespace(optimizers=[0], lr_scheduler_configs=[]))
    found = []
    for seed in range(12):
        replica = replicate(module)
        outputs = Predictor(stand_in, noise=Noise(seed))(replica, batch).outputs
        parameters = list(replica.parameters())
        pairs = [torch.autograd.grad(z, parameters, retain_graph=True, allow_unused=True) for z in outputs.flatten()]
        found.append(sum(g.square().sum().item() for one in pairs for g in one if g is not None) / len(outputs))
    torch.manual_seed(100)
    truth = [trace_at(module, batch[0], module.draw(batch[0]), "gaussian") for _ in range(12)]
    error = np.sqrt(np.var(found, ddof=1) / 12 + np.var(truth, ddof=1) / 12)
    assert len(set(found)) == len(found)
    assert abs(np.mean(found) - np.mean(truth)) < 3.5 * error < 0.5 * np.mean(truth)


@pytest.mark.parametrize("kind", [VAE, KLOfTorch])
def test_the_penalty_of_a_vae_is_named_beside_its_decoder(kind):
    callback = fit(made(kind), fisher())
    report = " ".join(callback.report().split())
    assert "gaussian outputs (6,)" in report or "bernoulli outputs (6,)" in report
    assert "of the loss of " in report
    assert "beyond the likelihood" in report


@pytest.mark.parametrize("kind", [VAE, OneForAll, OfItsOwn])
def test_training_does_not_notice(kind):
    def weights(*callbacks):
        np.random.seed(1)  # noqa: NPY002
        module = made(kind)
        torch.manual_seed(1)
        trainer(*callbacks, max_epochs=1).fit(module, loader(16))
        states = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002
        return [p.detach() for p in module.parameters()], states

    plain, states = weights()
    measured, others = weights(fisher(), InfoPlaneCallback(num_samples=16, on_error="raise", summary=False))
    assert all(map(torch.equal, plain, measured))
    assert states == others


@pytest.mark.parametrize(
    ("callback", "options"),
    [
        (WeightInfoCallback, {"num_samples": 8}),
        (EffectiveInfoCallback, {"draws": 8, "distortion": 0.5}),
        (InfoPlaneCallback, {}),
    ],
)
def test_other_callbacks_measure_at_the_same_noise(callback, options):
    one = callback(every_n_train_steps=2, on_error="raise", summary=False, **{"num_samples": 16, **options})
    fit(made(Draws), one)
    values = [value for curve in curves(one).values() for _, value in curve]
    assert values
    assert sum(np.isfinite(values)) > len(values) / 2
    for row in data(16).tensors[0][:2]:
        noise_of(row)


class Mixup(Draws):
    def training_step(self, batch, batch_idx):
        x, y = batch
        order, share = torch.randperm(len(x)), torch.rand(()).to(x)
        z = self(share * x + (1 - share) * x[order])
        return share * F.cross_entropy(z, y) + (1 - share) * F.cross_entropy(z, y[order])


class Rolled(Draws):
    """As torchvision's MixUp does it: no order is drawn."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        share = torch.distributions.Beta(0.4, 0.4).sample().to(x)
        y = F.one_hot(y, CLASSES).to(x)
        x, y = share * x + (1 - share) * x.roll(1, 0), share * y + (1 - share) * y.roll(1, 0)
        return F.cross_entropy(self(x), y)


class Negatives(Draws):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x - x[torch.randint(len(x), (len(x),))]), y)


class SampleBySample(Draws):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(torch.stack([row + torch.randn(FEATURES).to(x) for row in x])), y)


class ByNumpy(Draws):
    def draw(self, x):
        return torch.from_numpy(np.random.normal(size=tuple(x.shape))).to(x)  # noqa: NPY002


class Unseen(Draws):
    def draw(self, x):
        return torch.from_numpy(np.random.default_rng().normal(size=tuple(x.shape))).to(x)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Mixup, r"draws numbers of samples of its batch \(test_noise.py:\d+, in training_step\), as mixup"),
        (Negatives, r"draws numbers of samples of its batch \(test_noise.py:\d+, in training_step\)"),
        (Rolled, "must not depend on the others of its batch.* mixup"),
        (SampleBySample, r"draws noise sample by sample \(test_noise.py:\d+.*draw it for all samples at once"),
        (ByNumpy, "draws from numpy or random, whose noise depends on a sample's place"),
        (Unseen, "gives other outputs in a second pass .* cannot be seeded"),
    ],
)
def test_noise_that_is_not_a_samples_own_is_refused(kind, told):
    with pytest.raises(MisconfigurationException, match=f"(?s){told}.*def adapter"):
        fit(made(kind), fisher())


class Late(Draws):
    """Noise begins after four steps."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        noise = torch.randn_like(x) if self.global_step >= 4 else torch.zeros_like(x)
        SEEN.append((x, noise))
        return F.cross_entropy(self.outputs(x, noise), y)


def test_noise_that_begins_in_training_is_fixed_too():
    callback, module = fisher(estimator="exact"), made(Late)
    SEEN.clear()
    trainer(callback, max_epochs=4).fit(module, loader(16))
    x = data(16).tensors[0]
    last = [(some[n].float(), noise[n]) for some, noise in SEEN[-6:] for n in range(len(some))]
    noise = torch.stack([[drawn for row, drawn in last if torch.equal(row, one)][-1] for one in x])
    assert dict(callback.history["fisher/trace"])[8] == pytest.approx(
        trace_at(module, x, noise, "categorical"), rel=1e-4
    )
