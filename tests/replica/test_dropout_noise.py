"""The noise of dropout modules as it acts in training, and the modules that have none that is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_info.functional import DropoutNoise
from lightning_info.replica.dropout_noise import UnknownNoise, dropout_noise, is_dropout


class GaussianDropout(nn.Module):
    def __init__(self, sd):
        super().__init__()
        self.sd = sd

    def forward(self, x):
        return x * self.factors(x) if self.training else x

    def factors(self, x):
        return 1 + self.sd * torch.randn_like(x)


class LogNormalDropout(GaussianDropout):
    def factors(self, x):
        return (self.sd * torch.randn_like(x)).exp()


class OwnDropout(GaussianDropout):
    def factors(self, x):
        return (torch.rand_like(x) > self.sd) * 3.0


class UniformDropout(GaussianDropout):
    def factors(self, x):
        return 1 + self.sd * (torch.rand_like(x) - 0.5)


class RowDropout(GaussianDropout):
    def factors(self, x):
        return 1 + self.sd * torch.randn_like(x[..., :1])


class InformationDropout(GaussianDropout):
    def factors(self, x):
        return 1 + x.abs() * torch.randn_like(x)


SHAPE = torch.Size((8, 5))


@pytest.mark.parametrize(
    ("module", "kind", "level"),
    [
        (nn.Dropout(0.3), "bernoulli", 0.3),
        (nn.Dropout(0.3, inplace=True), "bernoulli", 0.3),
        (GaussianDropout(0.5), "gaussian", 0.5),
        (GaussianDropout(0.02), "gaussian", 0.02),
        (LogNormalDropout(0.5), "lognormal", 0.5),
        (OwnDropout(0.25), "bernoulli", 0.25),
    ],
)
def test_the_noise_is_that_of_train_mode_and_nothing_is_moved(module, kind, level):
    module.eval()
    before = torch.get_rng_state()
    found = dropout_noise(module, SHAPE)
    assert found.kind == kind
    assert found.level == pytest.approx(level, rel=0.03)
    assert torch.equal(before, torch.get_rng_state())
    assert not module.training
    assert dropout_noise(module, SHAPE) == found


@pytest.mark.parametrize("module", [nn.Dropout(0.0), GaussianDropout(0.0), OwnDropout(-1.0)])
def test_without_noise_there_is_none(module):
    if isinstance(module, OwnDropout):
        module.factors = torch.ones_like
    assert dropout_noise(module, SHAPE) is None


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Dropout2d(0.3), "Dropout2d does not multiply every unit"),
        (nn.AlphaDropout(0.3), "AlphaDropout does not multiply every unit"),
        (nn.Dropout(1.0), "p = 1"),
        (UniformDropout(0.5), "neither of two values"),
        (RowDropout(0.5), "gives several units one factor"),
        (InformationDropout(0.5), "no factor that is drawn without looking at it"),
    ],
)
def test_noise_of_another_kind_is_told(module, message):
    assert is_dropout(module)
    with pytest.raises(UnknownNoise, match=message):
        dropout_noise(module, SHAPE)


def test_other_modules_are_no_dropout():
    assert not any(map(is_dropout, (nn.ReLU(), nn.Linear(2, 2), nn.Identity())))
    assert is_dropout(LogNormalDropout(0.1))
    assert dropout_noise(nn.Dropout(0.1), SHAPE) == DropoutNoise("bernoulli", 0.1)
