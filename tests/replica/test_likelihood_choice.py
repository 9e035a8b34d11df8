"""The user names the likelihood call that is meant by the submodule that gives its outputs."""

from __future__ import annotations

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, data, loader, trainer
from oracle import fisher_trace_by_definition
from torch import nn

from lightning_info import FisherTraceCallback, LikelihoodCall

LATENT = 3


class GAN(pl.LightningModule):
    """The discriminator is called for real samples, for generated ones, and for the generator."""

    def __init__(self, one_call=False):
        super().__init__()
        self.automatic_optimization = False
        self.one_call = one_call
        self.generator = nn.Sequential(nn.Linear(LATENT, 8), nn.ReLU(), nn.Linear(8, FEATURES))
        self.discriminator = nn.Sequential(nn.Linear(FEATURES, 8), nn.LeakyReLU(), nn.Linear(8, 1))
        self.critic = nn.Linear(FEATURES, 1)

    def training_step(self, batch, batch_idx):
        x, _ = batch
        first, second = self.optimizers()
        judge = self.critic if self.one_call else self.discriminator
        fake = self.generator(torch.randn(len(x), LATENT, dtype=x.dtype))
        real = self.discriminator(x).squeeze(1)
        loss = F.binary_cross_entropy(real.sigmoid(), torch.ones_like(real))
        loss = loss + F.binary_cross_entropy_with_logits(judge(fake.detach()), torch.zeros(len(x), 1, dtype=x.dtype))
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        loss = F.binary_cross_entropy_with_logits(judge(fake), torch.ones(len(x), 1, dtype=x.dtype))
        second.zero_grad()
        self.manual_backward(loss)
        second.step()

    def configure_optimizers(self):
        parts = [*self.discriminator.parameters(), *self.critic.parameters()]
        return [torch.optim.SGD(parts, 0.1), torch.optim.SGD(self.generator.parameters(), 0.1)]


class Heads(Classifier):
    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(FEATURES, CLASSES)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y) + F.cross_entropy(self.aux(x), y)


def first_value(module, which):
    callback = FisherTraceCallback(
        every_n_train_steps=2,
        num_samples=16,
        estimator="exact",
        adapter=None if which is None else LikelihoodCall(which),
        on_error="raise",
        summary=False,
    )
    trainer(callback, max_epochs=1).fit(module, loader(16))
    return dict(callback.history["fisher/trace"])[0]


@pytest.mark.parametrize("which", [0, "discriminator", [0]])
def test_the_discriminator_of_a_gan_is_that_of_the_definition(which):
    torch.manual_seed(0)
    module = GAN(one_call=which == "discriminator")
    expected = sum(fisher_trace_by_definition(module.discriminator, data(16).tensors[0], "bernoulli").values())
    assert first_value(module, which) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["net", "net.4", "aux"])
def test_a_head_is_named(name):
    torch.manual_seed(0)
    module = Heads()
    net = copy.deepcopy(module.aux if name == "aux" else module.net)
    expected = sum(fisher_trace_by_definition(net, data(16).tensors[0], "categorical").values())
    assert first_value(module, name) == pytest.approx(expected, rel=1e-5)


def test_names_are_a_product_too():
    torch.manual_seed(0)
    module = Heads()
    parts = [first_value(copy.deepcopy(module), name) for name in ("net", "aux")]
    assert first_value(module, ["net", "aux"]) == pytest.approx(sum(parts), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "which", "told"),
    [
        (GAN, None, r"LikelihoodCall\(0\) of lightning_info.*LikelihoodCall\('classifier'\)"),
        (
            GAN,
            "discriminator",
            r"'discriminator' gives the outputs of 3 of the likelihoods .*LikelihoodCall\(0\): binary_cross_entropy of "
            r"outputs \(8,\) \(test_likelihood_choice.py:\d+, in training_step\).*LikelihoodCall\(\[0, 1, 2\]\)",
        ),
        (GAN, "generator", "'generator' gives the outputs of none of the 3 likelihoods"),
        (GAN, "judge", "has no submodule 'judge'; it has 'generator', 'discriminator', 'critic'"),
        (Heads, ["net", 0], r"LikelihoodCall\(\['net', 0\]\) means one likelihood call .* twice"),
    ],
)
def test_a_name_that_is_not_of_one_call_is_refused_with_what_is(make, which, told):
    with pytest.raises(MisconfigurationException, match=f"(?s){told}"):
        first_value(make(), which)


def test_it_is_written_as_it_was_given():
    assert repr(LikelihoodCall("discriminator")) == "LikelihoodCall('discriminator')"
    assert LikelihoodCall("a") == LikelihoodCall(["a"]) != LikelihoodCall("b")
    assert hash(LikelihoodCall(["a", 1])) == hash(LikelihoodCall(["a", 1]))
