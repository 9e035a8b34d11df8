"""An estimator that is only entered in the registry: the callback and the metric take it, wherever they use one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from models import FEATURES, Classifier, data, loader, trainer
from torch import nn

from lightning_info import InfoPlaneCallback
from lightning_info.functional.information_estimator import InformationEstimator, LayerInformation
from lightning_info.functional.information_estimators import ESTIMATORS
from lightning_info.metrics import InformationPlane

N, BINS, VARIANCE = 48, 5, 0.3
X, Y = (part[:N] for part in data(64).tensors)


class Hartley(InformationEstimator):
    """By the number of codes that there are, however often."""

    has_bins = True

    def __call__(self, t, y, noise_variance=0.0, generator=None):
        entropy = [math.log2(len(c.unique())) for c in ([t] if y is None else [t, y, t * 64 + y])]
        return LayerInformation(entropy[0], math.nan if y is None else sum(entropy[:2]) - entropy[2])


class LargestUnit(InformationEstimator):
    """Of the one unit with the best ratio of signal to noise; of Y it tells what is drawn."""

    has_ceiling = False
    has_bounds = True

    def __call__(self, t, y, noise_variance=0.0, generator=None):
        i_xt = 0.5 * math.log2(1 + t.double().var(0, correction=0).max().item() / noise_variance)
        i_ty = torch.rand((), generator=generator).item()
        return LayerInformation(i_xt, i_ty, low=(0.0, 0.0), high=(i_xt, 1.0), stderr=(0.0, 0.5))


@pytest.fixture(autouse=True)
def entered(monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "hartley", Hartley())
    monkeypatch.setitem(ESTIMATORS, "largest_unit", LargestUnit())


def hartley(t, low, high):
    """Bits of the bins and of bins and labels, by numpy."""
    low, high = float(low), float(high)
    index = np.clip(np.floor((t.double().numpy() - low) * (BINS / (high - low))), 0, BINS - 1)
    rows, both = np.unique(index, axis=0), np.unique(np.column_stack([index, Y]), axis=0)
    i_xt = math.log2(len(rows))
    return i_xt, i_xt + math.log2(len(Y.unique())) - math.log2(len(both))


def largest(t):
    return 0.5 * math.log2(1 + np.var(t.double().numpy(), axis=0).max() / VARIANCE)


def test_the_callback_measures_judges_and_draws_it():
    torch.manual_seed(0)
    module = Classifier(nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 3)))
    with torch.no_grad():
        t = module.net[:2](X)
    ours = InfoPlaneCallback(
        "net.1",
        ["hartley", "largest_unit", "binning"],
        BINS,
        ["global", "fixed"],
        noise_variance=VARIANCE,
        reference=(X, Y),
        every_n_train_steps=8,
        on_error="raise",
        summary=False,
    )
    seen = []

    class Range(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step % 8 == 0:
                seen.append(module.net[:2](X).detach())

        def on_train_end(self, trainer, module):
            seen.append(module.net[:2](X).detach())

    trainer(ours, Range()).fit(module, loader())
    seen_range = torch.stack(seen).aminmax()

    def first(tag):
        return ours.history[f"{tag}/net.1"][0][1]

    assert [first(f"info_plane/{kind}") for kind in ("I_XT", "I_TY")] == pytest.approx(hartley(t, t.min(), t.max()))
    fixed = [first(f"info_plane_hartley_fixed/{kind}") for kind in ("I_XT", "I_TY")]
    assert fixed == pytest.approx(hartley(t, -1.0, 1.0))
    assert first("info_plane_largest_unit/I_XT") == first("info_plane_largest_unit_upper/I_XT")
    assert first("info_plane_largest_unit/I_XT") == pytest.approx(largest(t))
    assert first("info_plane_largest_unit_stderr/I_TY") == 0.5
    assert first("info_plane_final/I_XT") == pytest.approx(hartley(t, *seen_range)[0])
    assert set(ours.verdicts["net.1"].falls) >= {"hartley_adaptive", "binning_adaptive", "largest_unit"}
    assert "hartley, fixed range" in ours.report()
    assert {f"info_plane{tail}/plane" for tail in ("", "_hartley_fixed", "_largest_unit")} <= set(ours.drawings())


def test_shuffled_labels_are_read_by_it():
    """With a code of its own for every sample: log2 of the classes, whatever the order, and twice the same."""
    module = Classifier()
    ours = InfoPlaneCallback("net.0", "hartley", 64, reference=(X, Y), every_n_train_steps=8, summary=False)
    with pytest.warns(UserWarning, match="almost every sample has its own code"):
        trainer(ours).fit(module, loader())
    assert ours.history["info_plane_shuffled/I_TY/net.0"][0][1] == pytest.approx(math.log2(len(Y.unique())))


@pytest.mark.parametrize("bin_range", ["fixed", "adaptive"])
def test_the_metric_takes_it(bin_range):
    t = X[:, :3].tanh()
    ends = (-1.0, 1.0) if bin_range == "fixed" else (t.min(), t.max())
    binned, noisy = (
        InformationPlane("hartley", BINS, bin_range),
        InformationPlane("largest_unit", noise_variance=VARIANCE, unit="nats"),
    )
    for part in range(0, N, 20):
        binned.update(t[part : part + 20], Y[part : part + 20])
        noisy.update(t[part : part + 20])
    assert [value.item() for value in binned.compute().values()] == pytest.approx(hartley(t, *ends))
    assert noisy.compute()["I_XT"].item() == pytest.approx(largest(t) * math.log(2))


def test_its_name_is_among_the_choices():
    for refused in (lambda: InfoPlaneCallback(estimator="hartly"), lambda: InformationPlane("hartly")):
        with pytest.raises(ValueError, match=r"unknown estimator 'hartly'; choose one of .*'largest_unit'"):
            refused()
    with pytest.raises(ValueError, match=r"noise_variance=0\.01"):
        InformationPlane("largest_unit")
