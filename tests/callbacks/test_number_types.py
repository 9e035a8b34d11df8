"""Callbacks on nets with complex weights, a parameter without axes, and layers of integers."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from gradients.test_real import Net, spectral
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    GradientNoiseCallback,
    InfoPlaneCallback,
    StabilityCallback,
    WeightInfoCallback,
)


class Regression(LightningModule):
    """Spectral convolution and a learnable scale without axes."""

    def __init__(self, is_real: bool):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        values = {
            "w": 0.5 * torch.randn(3, 2, 5, dtype=torch.cfloat, generator=g),
            "head": torch.randn(16, 2, generator=g),
            "scale": torch.randn((), generator=g),
        }
        body = lambda x, w, head, scale: torch.tanh(spectral(x, w, head)) * scale  # noqa: E731
        self.net = Net(body, values, is_real)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


CALLBACKS = {
    "fisher/hessian_trace": lambda **o: FisherTraceCallback("exact", also=["empirical", "hessian"], **o),
    "gradient_noise/trace": lambda **o: GradientNoiseCallback(**o),
    "weight_info/kl": lambda **o: WeightInfoCallback(draws=2, **o),
    "effective_info/I_XZ/net.tanh": lambda **o: EffectiveInfoCallback(beta=1.0, draws=2, **o),
    "stability/fisher_distance": lambda **o: StabilityCallback(index=1, replacement=5, **o),
}


@cache
def without_callback():
    return list(fit(False).parameters())


def fit(is_real, *callbacks):
    g = torch.Generator().manual_seed(1)
    samples = TensorDataset(torch.randn(8, 3, 8, generator=g), torch.randn(8, 2, generator=g))
    module = Regression(is_real)
    trainer(*callbacks, max_epochs=1).fit(module, DataLoader(samples, 4))
    return module


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_reads_of_complex_weights_what_it_reads_of_real_ones_and_leaves_training_alone(name):
    options = {"num_samples": 8, "every_n_train_steps": 2, "on_error": "raise", "summary": False}
    there, here = CALLBACKS[name](**options), CALLBACKS[name](**options)
    fit(True, there)
    trained = fit(False, here)
    assert all(torch.equal(p, q) for p, q in zip(trained.parameters(), without_callback(), strict=True))
    found, truth = (
        {tag: [v for _, v in curve] for tag, curve in callback.history.items() if "overhead" not in tag}
        for callback in (here, there)
    )
    assert found.keys() == truth.keys()
    assert all(map(math.isfinite, truth[name]))
    for tag, values in truth.items():
        assert found[tag] == pytest.approx(values, rel=1e-3, abs=1e-6, nan_ok=True), tag


def test_complex_outputs_are_refused_before_the_first_step_with_the_fix():
    adapter = lambda module, batch: (torch.fft.rfft(module.net(batch[0])), batch[1], "gaussian")  # noqa: E731
    with pytest.raises(MisconfigurationException, match=r"of complex ones torch.view_as_real\(outputs\)"):
        fit(False, FisherTraceCallback(adapter=adapter, num_samples=8, on_error="raise"))


# ---- layers of integers


class Codes(nn.Module):
    """One of four patterns of twenty integers."""

    def forward(self, h):
        return (h[:, :2] > 0).long().repeat(1, 10) * 2**60


class Coded(LightningModule):
    def __init__(self):
        super().__init__()
        self.body, self.codes, self.head = nn.Linear(4, 20), Codes(), nn.Linear(20, 2)

    def training_step(self, batch, batch_idx):
        h = self.body(batch[0])
        return F.cross_entropy(self.head(torch.tanh(h) + 0 * self.codes(h)), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit_coded(callback):
    g = torch.Generator().manual_seed(0)
    samples = TensorDataset(torch.randn(16, 4, generator=g), torch.arange(16) % 2)
    module = Coded()
    trainer(callback, max_epochs=1).fit(module, DataLoader(samples, 8))
    return module, samples.tensors[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("estimator", ["binning", "mixture", "gaussian"])
def test_the_entropy_of_codes_is_exact_and_said_to_be(estimator, capsys):
    callback = InfoPlaneCallback(["codes"], estimator, num_samples=16, every_n_train_steps=2, on_error="raise")
    module, x = fit_coded(callback)
    counts = torch.unique(module.body(x)[:, :2] > 0, dim=0, return_counts=True)[1].double() / 16
    assert dict(callback.history["info_plane/I_XT/codes"])[2] == pytest.approx(-(counts * counts.log2()).sum().item())
    assert "codes (Codes, exact codes of 20 integers together" in callback.report()
    if estimator == "binning":
        assert math.isfinite(callback.history["info_plane_shuffled/I_TY/codes"][0][1])
        assert callback.verdicts["codes"].verdict


def test_codes_under_weight_noise_are_refused_before_the_first_step():
    with pytest.raises(MisconfigurationException, match="'codes' cannot be measured here: it gives integers"):
        fit_coded(EffectiveInfoCallback(["codes"], draws=2, num_samples=8, on_error="raise"))
