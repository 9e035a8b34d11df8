"""Information about nuisances: functions of a sample, and columns of the batch."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_info import InfoPlaneCallback
from lightning_info.quantities.information_plane import label_information
from lightning_info.quantities.information_plane.quantity import InformationPlane

N = 200


def turned(x):
    """A quarter turn, or not."""
    times = int(torch.randint(2, ()))
    return torch.rot90(x, times, (1, 2)), times


class Samples(Dataset):
    """Images with a bright stripe along an axis; their mean is that of the label."""

    def __init__(self, make):
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(N) % 2
        self.x = 0.1 * torch.rand(N, 1, 6, 6, generator=generator) + self.y[:, None, None, None]
        self.x[:, 0, 3] += 1.0
        self.camera = torch.randint(3, (N,), generator=generator)
        self.x[:, 0, 0, 0] += self.camera
        self.make = make

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.make(self.x[i], self.y[i], self.camera[i])


def as_tuple(x, y, camera):
    return x, y, camera


def as_dict(x, y, camera):
    return {"image": x, "label": y, "camera": camera, "name": f"camera {int(camera)}"}


class Net(LightningModule):
    """Two layers: one that sees places, and one behind the mean over them."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.pool = nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Identity()
        self.out = nn.Linear(4, 2)
        nn.init.constant_(self.conv.weight, 1.0)

    def training_step(self, batch, batch_idx):
        x, y = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch[:2]
        return F.cross_entropy(self.out(self.pool(self.act(self.conv(x)).mean((2, 3)))), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(make=as_tuple, epochs=1, **nuisances):
    torch.manual_seed(0)
    callback = InfoPlaneCallback(
        every_n_epochs=1, on_error="raise", summary=False, layers=["act", "pool"], nuisances=nuisances
    )
    trainer(callback, max_epochs=epochs).fit(Net(), DataLoader(Samples(make), 20))
    return callback


def value(callback, nuisance, layer, end=""):
    return callback.history[f"info_plane_decoder{end}/I_TN_{nuisance}/{layer}"][0][1]


def turned_entries(sample):
    image, times = turned(sample["image"])
    return {**sample, "image": image}, times


@pytest.mark.parametrize(("make", "transform"), [(as_tuple, turned), (as_dict, turned_entries)])
def test_a_layer_that_sees_places_tells_a_turn_and_one_behind_their_mean_does_not(make, transform):
    callback = run(make, rotation=transform)
    assert value(callback, "rotation", "act") > 0.9  # of one bit
    assert abs(value(callback, "rotation", "pool")) < 4 * value(callback, "rotation", "pool", "_stderr") + 0.01
    assert callback.history["info_plane_decoder/I_TY/pool"][0][1] > 0.9
    axes = callback.drawings()["info_plane_decoder/plane_rotation"]().axes[0]
    assert axes.get_xlabel() == "I(T;N) of rotation [bits]"


@pytest.mark.parametrize(("make", "entry"), [(as_tuple, 2), (as_dict, "camera"), (as_dict, "name")])
def test_a_column_of_the_batch(make, entry):
    callback = run(make, camera=entry)
    entropy = math.log2(3)
    assert 0.9 * entropy < value(callback, "camera", "act") < 1.05 * entropy


def test_points_see_the_same_transformed_samples_and_training_draws_as_without():
    """A learning rate of zero: all points are equal to the last digit."""
    torch.manual_seed(5)
    before = torch.get_rng_state()

    class Still(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    callback = InfoPlaneCallback(every_n_epochs=1, on_error="raise", summary=False, nuisances={"rotation": turned})
    net = Still()
    torch.set_rng_state(before)
    trainer(callback, max_epochs=2).fit(net, DataLoader(Samples(as_tuple), 20))
    with_callback = torch.get_rng_state()
    torch.set_rng_state(before)
    trainer(max_epochs=2).fit(net, DataLoader(Samples(as_tuple), 20))
    assert torch.equal(torch.get_rng_state(), with_callback)
    curve = callback.history["info_plane_decoder/I_TN_rotation/act"]
    assert len(curve) == 3
    assert len({v for _, v in curve}) == 1


def strength(x):
    amount = float(torch.rand(()))
    x[0, 5, 5] += amount
    return x, amount


def test_a_continuous_nuisance_has_gaussian_decoders():
    assert value(run(level=strength), "level", "act") > 1


def shrinks(x):
    return x[:, 1:], 0


def forgets(x):
    return x


def breaks(x):
    raise RuntimeError("no such image")


@pytest.mark.parametrize(
    ("nuisance", "message"),
    [
        (shrinks, r"a sample of shape \(1, 5, 6\); one of shape \(1, 6, 6\) was given to it"),
        (forgets, "the function returns no pair"),
        (breaks, "RuntimeError: no such image"),
        ("camera", "the batch has no entry 'camera'"),
        (7, "the batch has no entry 7"),
    ],
)
def test_what_is_no_nuisance_of_the_samples_is_told_before_the_first_step(nuisance, message):
    with pytest.raises(MisconfigurationException, match=message):
        run(wrong=nuisance)


@pytest.mark.parametrize("nuisances", [{"a/b": turned}, {"a": 1.5}, {"a": True}])
def test_what_names_no_nuisance_is_refused_at_once(nuisances):
    with pytest.raises(ValueError, match="nuisances"):
        InfoPlaneCallback(nuisances=nuisances)


def test_a_function_that_fails_later_is_a_gap_of_its_own():
    calls = []

    def fails(x):
        calls.append(0)
        if len(calls) > 150:
            raise RuntimeError("late")
        return turned(x)

    callback = InfoPlaneCallback(every_n_epochs=1, summary=False, nuisances={"rotation": fails}, layers="act")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback, max_epochs=1).fit(Net(), DataLoader(Samples(as_tuple), 20))
    assert sum("I(T;N) of the nuisance 'rotation' is NaN: RuntimeError: late" in str(w.message) for w in caught) == 1
    assert all(math.isnan(v) for _, v in callback.history["info_plane_decoder/I_TN_rotation/act"])
    assert all(math.isfinite(v) for _, v in callback.history["info_plane_decoder/I_TY/act"])


@pytest.mark.parametrize("of_label", ["decoder", "binned"])
def test_the_forecast_and_the_budget_have_the_decoders_of_nuisances_also_where_the_label_has_none(
    monkeypatch, of_label
):
    asked, costs, cost = [], [], InformationPlane.cost

    def noted(rows, y, **options):
        asked.append([len(y), *(view.shape[1] for view in rows)])

    def forecast(quantity, snapshot, samples):
        monkeypatch.setattr(label_information, "usable_information", noted)
        monkeypatch.setattr(label_information, "trial", lambda run, device: run() or 1.0)
        costs.append(cost(quantity, snapshot, 1024))
        monkeypatch.undo()
        return 0.0

    monkeypatch.setattr(InformationPlane, "cost", forecast)
    options = {"layers": ["act", "pool"], "nuisances": {"rotation": turned}, "label_information": of_label}
    callback = InfoPlaneCallback(summary=False, **options)
    trainer(callback, max_epochs=1).fit(Net(), DataLoader(Samples(as_tuple), 20))
    kinds = 2 if of_label == "decoder" else 1
    assert sorted(asked) == sorted(kinds * [[1024, 4], [1024, 144, 4]])
    assert costs[0] > 2 * kinds
    assert callback.quantity.cheaper() == "decoders of 256 units of a layer instead of 512"
