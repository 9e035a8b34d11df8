"""Means over several sets of random combinations, their errors, and verdicts that hold for the mean."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from models import trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import InfoPlaneCallback
from lightning_info.functional import binned_information
from lightning_info.functional.information_estimator import LayerInformation
from lightning_info.functional.standard_error import student_factor
from lightning_info.quantities.information_plane.estimates import Estimate, EstimatorSettings
from lightning_info.quantities.information_plane.projections import averaged, averaged_plane, errors_of_plane, keys_of
from lightning_info.quantities.information_plane.trajectory import Trajectory
from lightning_info.quantities.information_plane.verdicts import DEAD, judge

GLOBAL, METHOD = Estimate("info_plane", "binning", "global"), EstimatorSettings(16)


def test_a_mean_has_the_errors_of_the_readings_and_of_their_spread():
    readings = [LayerInformation(x, 2 * x, 0.5, stderr=(0.3, 0.4)) for x in (1.0, 2.0, 6.0)]
    found = averaged(readings)
    assert found[:3] == (3.0, 6.0, 0.5)
    spread = stdev([1.0, 2.0, 6.0]) / math.sqrt(3) * student_factor(2)
    assert found.stderr == pytest.approx(
        (math.hypot(0.3 / math.sqrt(3), spread), math.hypot(0.4 / math.sqrt(3), 2 * spread))
    )
    alone = LayerInformation(1.0, 2.0, 0.5)
    assert averaged([alone]) is alone
    bounded = averaged([LayerInformation(1.0, 1.0, low=(x, 0.0), high=(2 * x, 1.0)) for x in (1.0, 3.0)])
    assert (bounded.low, bounded.high) == ((2.0, 0.0), (4.0, 1.0))


def test_curves_are_means_of_those_that_are_there():
    first, second = keys_of("a", 2)
    plane = {first: [(0, 1.0, 0.0), (5, 2.0, 1.0)], second: [(0, 3.0, 1.0), (5, 4.0, 2.0)], "b": [(0, 7.0, 7.0)]}
    parts = {"a": [first, second], "b": ["b"], "lost": ["lost"]}
    assert averaged_plane(plane, parts) == {"a": [(0, 2.0, 0.5), (5, 3.0, 1.5)], "b": [(0, 7.0, 7.0)]}
    error = math.sqrt(2) / math.sqrt(2) * student_factor(1)
    assert errors_of_plane(plane, parts) == {"a": [(0, pytest.approx(error)), (5, pytest.approx(error))]}


class Wide(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(projections, seed=0):
    torch.manual_seed(0)
    callback = InfoPlaneCallback(
        every_n_epochs=1, on_error="raise", summary=False, projections=projections, seed=seed, bin_range="fixed", bins=8
    )
    data = TensorDataset(torch.randn(128, 6), torch.arange(128) % 3)
    trainer(callback, max_epochs=2).fit(Wide(), DataLoader(data, 32))
    return callback


def test_the_value_is_the_mean_over_projections_and_the_first_is_that_of_one():
    one, eight = run(1), run(8)
    assert "info_plane_stderr/I_XT/net.1" not in one.history
    assert [step for step, _ in eight.history["info_plane_stderr/I_XT/net.1"]] == [0, 4, 8]
    torch.manual_seed(0)
    x, net = torch.randn(128, 6), Wide().net
    with torch.no_grad():
        t = net[:2](x)
    features = eight.quantity._features
    truth = [binned_information(features.project(t, number), None, 8, "fixed").I_XT for number in range(8)]
    assert one.history["info_plane/I_XT/net.1"][0][1] == pytest.approx(truth[0])
    assert eight.history["info_plane/I_XT/net.1"][0][1] == pytest.approx(fmean(truth))
    error = stdev(truth) / math.sqrt(8) * student_factor(7)
    assert eight.history["info_plane_stderr/I_XT/net.1"][0][1] == pytest.approx(error)
    assert "as 8 times 2 random combinations" in " ".join(eight.report().split())


def test_other_projections_agree_within_the_errors():
    """Eight pairs of seeds, the difference of two means over eight projections: at most one beyond two errors."""
    runs = [run(8, seed) for seed in range(0, 16)]
    ends = [(r.history["info_plane/I_XT/net.1"][0][1], r.history["info_plane_stderr/I_XT/net.1"][0][1]) for r in runs]
    off = [abs(a - b) > 2 * math.hypot(ea, eb) for (a, ea), (b, eb) in zip(ends[::2], ends[1::2], strict=True)]
    assert sum(off) <= 1


def trajectory(falls):
    """A layer with projections whose entropies fall by so many bits of 4."""
    points, n = Trajectory(), 64
    keys = keys_of("a", len(falls))
    for step in (0, 1):
        levels = [4 - (fall if step else 0) for fall in falls]
        points.add(
            step, {k: (torch.arange(n) % 2**b).double()[:, None] for k, b in zip(keys, levels, strict=True)}, None, n
        )
    return points, {"a": keys}


@pytest.mark.parametrize(
    ("falls", "verdict"),
    [
        ([1, 1, 1, 1], "compresses"),
        ([0, 0, 0, 0], "does not compress"),
        ([2, 0, 0, 0], "cannot be told"),
        ([2, 2, 2, 3], "compresses"),
    ],
)
def test_a_verdict_holds_for_the_mean_over_projections_or_cannot_be_told(falls, verdict):
    points, parts = trajectory(falls)
    found = judge(points, [GLOBAL], METHOD, {}, parts)["a"]
    assert found.falls["global"] == pytest.approx(fmean(falls))
    error = stdev(falls) / 2 * student_factor(3)
    assert found.errors["global"] == pytest.approx(error, abs=1e-12)
    assert found.verdict.partition(":")[0] == verdict


def test_a_layer_whose_only_point_is_no_longer_kept_has_no_values():
    """It ran once, and that point was let go: its range is known, its curve is not."""
    points = Trajectory()
    for step in (0, 1):
        points.add(step, {"a": torch.rand(64, 1), "b": torch.rand(64, 1)}, None, 64)
    for point in points.points.values():
        del point["b"]
    assert judge(points, [GLOBAL], METHOD, {})["b"].verdict == "no values"


def test_a_dead_layer_does_not_compress():
    points = Trajectory()
    for step, t in enumerate([torch.arange(64.0)[:, None], torch.full((64, 1), 3.0)]):
        points.add(step, {"a": t}, None, 64)
    found = judge(points, [GLOBAL], METHOD, {})["a"]
    assert found.falls["global"] > 1
    assert found.verdict == DEAD


def test_a_quantised_net_is_measured_exactly_whatever_its_width():
    """Forty units of three bits together, not random combinations of them; a net in single precision is at log2 N."""
    torch.manual_seed(0)

    class Levels(nn.Module):
        def forward(self, t):
            return t + (t.mul(4).round().div(4) - t).detach()

    module = Wide()
    module.net = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), Levels(), nn.Linear(40, 3))
    x = torch.linspace(-1, 1, 128)[:, None]
    callback = InfoPlaneCallback(
        layers=["net.1", "net.2"], estimator="exact", every_n_epochs=9, on_error="raise", summary=False
    )
    with torch.no_grad():
        t = [module.net[:2](x), module.net[:3](x)]
    trainer(callback, max_epochs=1).fit(module, DataLoader(TensorDataset(x, torch.arange(128) % 3), 32))
    for layer, values in zip(("net.1", "net.2"), t, strict=True):
        truth = binned_codes_entropy(values)
        assert callback.history[f"info_plane/I_XT/{layer}"][0] == (0, pytest.approx(truth))
    assert callback.history["info_plane/I_XT/net.1"][0][1] == pytest.approx(7.0)
    assert callback.history["info_plane/I_XT/net.2"][0][1] < 6.9
    assert set(callback.verdicts["net.2"].falls) == {"exact"}


def binned_codes_entropy(t):
    counts = torch.unique(t, dim=0, return_counts=True)[1].double() / len(t)
    return -(counts * counts.log2()).sum().item()
