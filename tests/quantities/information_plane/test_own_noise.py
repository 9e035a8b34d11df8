"""The plane under the net's own dropout, through a real Trainer: values, refusals, and what stays untouched."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, data, loader, trainer
from torch import nn

from lightning_info import InfoPlaneCallback
from lightning_info.functional import DropoutNoise, dropout_information

N = 48
X, Y = (part[:N] for part in data(64).tensors)


class GaussianDropout(nn.Module):
    def __init__(self, sd):
        super().__init__()
        self.sd = sd

    def forward(self, x):
        return x * (1 + self.sd * torch.randn_like(x)) if self.training else x


def net(dropout, width=8):
    return nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), dropout, nn.Linear(width, CLASSES))


def dropout_plane(**options):
    defaults = {"reference": (X, Y), "every_n_epochs": 1, "on_error": "raise", "summary": False, "estimator": "dropout"}
    return InfoPlaneCallback(**{**defaults, **options})


def fit(callback, module, epochs=1):
    torch.manual_seed(0)
    trainer(callback, max_epochs=epochs).fit(Classifier(module), loader())
    return callback


@pytest.mark.parametrize(
    ("dropout", "noise"),
    [(nn.Dropout(0.6), DropoutNoise("bernoulli", 0.6)), (GaussianDropout(2.0), DropoutNoise("gaussian", 2.0))],
)
def test_values_are_those_of_the_function_at_the_noise_of_training(dropout, noise):
    """Other draws of the noise: within 4 errors of both; of 8 units none is kept with a probability of 1.7 %."""
    module = net(dropout)
    with torch.no_grad():
        t = module[:2](X)
    generator = torch.Generator().manual_seed(1)
    truth = dropout_information(t, Y, noise=noise, draws=100, generator=generator)
    callback = fit(dropout_plane(), module)
    for kind, value, error in (("I_XT", truth[0], truth[2]), ("I_TY", truth[1], truth[3])):
        found, stderr = (callback.history[f"info_plane{end}/{kind}/net.2"][0][1] for end in ("", "_stderr"))
        assert 0 < stderr < 0.3
        assert found == pytest.approx(value, abs=4 * math.hypot(error, stderr))
    assert truth[0] < math.log2(N) - 0.05
    assert "net.2" in callback.verdicts
    assert "by decoders, without dropout" in callback.drawings()["info_plane/plane"]().axes[0].get_title()


def test_many_units_are_several_sets_of_combinations():
    callback = fit(dropout_plane(bin_range="adaptive", estimator=["dropout", "binning"]), net(GaussianDropout(0.5), 40))
    (_, value), (_, error) = (callback.history[f"info_plane{end}/I_XT/net.2"][0] for end in ("", "_stderr"))
    assert 1 < value < math.log2(N) - 0.2
    assert 0 < error < 0.5
    assert "info_plane_binning_adaptive/I_XT/net.2" in callback.history


def test_training_is_the_same_to_the_last_bit_with_it():
    ends = []
    for callbacks in ([], [dropout_plane(every_n_epochs=None, every_n_train_steps=1)]):
        torch.manual_seed(3)
        module = Classifier(net(GaussianDropout(0.5), 20))
        trainer(*callbacks, max_epochs=2).fit(module, loader())
        ends.append([*module.parameters(), torch.get_rng_state()])
    for without, beside in zip(*ends, strict=True):
        assert torch.equal(without, beside)


def test_a_dropout_that_is_annealed_to_nothing_is_a_gap():
    class Annealed(Classifier):
        def on_train_epoch_end(self):
            self.net[2].p = 0.0

    callback = dropout_plane()
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback, max_epochs=2).fit(Annealed(net(nn.Dropout(0.5))), loader())
    values = [value for _, value in callback.history["info_plane/I_XT/net.2"]]
    assert values[0] > 3
    assert math.isnan(values[-1])
    assert sum("'net.2' has no noise any more" in str(w.message) for w in caught) == 1


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(nn.functional.dropout(self.layer(x).relu(), 0.5, self.training))


@pytest.mark.parametrize(
    ("module", "layers", "message"),
    [
        (net(nn.Identity()), None, "needs an nn.Dropout module that runs"),
        (net(nn.Dropout(0.0)), None, "'net.2': Dropout has no noise .* Add one, or take estimator='mixture'"),
        (Functional(), None, "calls of F.dropout are not seen"),
        (net(nn.Dropout(0.5)), ["net.1"], "no dropout in front of layer 'net.1': it is no dropout .*'net.2'"),
        (net(nn.AlphaDropout(0.5)), "net.2", "no dropout in front of layer 'net.2': AlphaDropout does not multiply"),
        (net(nn.Dropout(0.5), 9000), None, "has 9000 activations a sample, more than 8192"),
    ],
)
def test_what_has_no_dropout_is_refused_before_the_first_step(module, layers, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(dropout_plane(layers=layers), module)
