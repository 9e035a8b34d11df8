"""What the information plane takes from a pass: projections of units, and one target a sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier, data
from torch import nn

from lightning_info.quantities.information_plane.features import MOST_UNITS, TARGETS, LayerFeatures
from lightning_info.quantities.information_plane.labels import IGNORED
from lightning_info.replica.activations import Activation, Layer
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

N = 8
X, Y = data(N).tensors


def projection(width, directions=2, seed=0):
    """The matrix of a reader's projection, ``(width, d)``."""
    return LayerFeatures((), directions, seed).project(torch.eye(width, dtype=torch.float64))


# ---- projections


@pytest.mark.parametrize("width", [1, 2, MOST_UNITS])
def test_few_units_are_left_as_they_are(width):
    units = torch.randn(N, width)
    assert torch.equal(LayerFeatures((), 2, 0).project(units), units)


@pytest.mark.parametrize("directions", [1, 2, 10, 40])
@pytest.mark.parametrize("width", [MOST_UNITS + 1, 64, 512])
def test_many_units_are_projected_to_orthonormal_directions(width, directions):
    q = projection(width, directions)
    count = min(directions, width)
    assert q.shape == (width, count)
    torch.testing.assert_close(q.T @ q, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-12)


def test_directions_are_the_same_at_every_point_and_others_for_another_seed_or_width():
    q = projection(40)
    torch.manual_seed(123)
    assert torch.equal(q, projection(40))
    for other in (projection(40, seed=1), projection(41)[:40], projection(40, seed=2**32 - 1)):
        assert (q - other).abs().max() > 0.05


def test_directions_point_everywhere():
    mean = torch.stack([projection(20, 1, seed).squeeze(1) for seed in range(400)])
    second = mean.T @ mean / len(mean)
    torch.testing.assert_close(second, torch.eye(20, dtype=torch.float64) / 20, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_projections_keep_the_precision_and_leave_the_random_numbers_alone(dtype):
    before = torch.get_rng_state()
    units = torch.randn(N, 30, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = LayerFeatures((), 2, 7_654_321).project(units)
    assert found.dtype == dtype
    torch.testing.assert_close(found, (units.double() @ projection(30, seed=7_654_321)).to(dtype), rtol=1e-2, atol=1e-2)
    assert torch.equal(before, torch.get_rng_state())


def test_units_that_are_not_finite_stay_so():
    units = torch.ones(N, 30)
    units[3, 4] = torch.nan
    finite = LayerFeatures((), 2, 0).project(units).isfinite().all(1)
    assert finite.tolist() == [n != 3 for n in range(N)]


# ---- targets


def read(step, y, net=None, activations=(), layers=()):
    """What is read of a LightningModule with this training_step, a function ``(outputs, targets)``."""

    def training_step(self, batch, batch_idx):
        return step(self(batch[0]), batch[1])

    module = replicate(type("Custom", (Classifier,), {"training_step": training_step})(net))
    prediction = Predictor(StandInTrainer(None))(module, (X, y))
    return LayerFeatures(layers, 2, 0)(prediction, dict(activations))


POSITIONS = nn.Sequential(nn.Linear(FEATURES, CLASSES * 5), nn.Unflatten(1, (CLASSES, 5)))
SOFT = torch.rand(N, CLASSES).softmax(1)
MANY = (torch.rand(N, CLASSES) > 0.5).float()
EVERYWHERE = torch.rand(N, CLASSES, 5)
PARTLY = torch.where(torch.arange(N) % 2 == 0, Y, -100)

CASES = {
    "classes": (F.cross_entropy, Y, None, Y),
    "nll_loss": (lambda z, y: F.nll_loss(z.log_softmax(1), y), Y, None, Y),
    "probabilities (mixup)": (F.cross_entropy, SOFT, None, SOFT.argmax(1)),
    "ignored": (F.cross_entropy, PARTLY, None, torch.where(PARTLY >= 0, PARTLY, IGNORED)),
    "another ignored class": (
        lambda z, y: F.cross_entropy(z, y, ignore_index=1),
        Y,
        None,
        torch.where(Y == 1, IGNORED, Y),
    ),
    "a class for each position": (F.cross_entropy, Y.unsqueeze(1).expand(N, 5), POSITIONS, None),
    "a class for the only position": (
        lambda z, y: F.cross_entropy(z[..., :1], y),
        Y.unsqueeze(1),
        POSITIONS,
        Y,
    ),
    "positions in the batch axis": (
        lambda z, y: F.cross_entropy(z.movedim(1, 2).flatten(0, 1), y.flatten()),
        Y.unsqueeze(1).expand(N, 5),
        POSITIONS,
        None,
    ),
    "several labels": (F.binary_cross_entropy_with_logits, MANY, None, MANY.long()),
    "smoothed labels": (lambda z, y: F.binary_cross_entropy_with_logits(z, 0.8 * y + 0.1), MANY, None, MANY.long()),
    "one label": (
        lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y),
        MANY[:, 0],
        None,
        MANY[:, :1].long(),
    ),
    "binary_cross_entropy": (lambda z, y: F.binary_cross_entropy(z.sigmoid(), y), MANY, None, MANY.long()),
    "regression": (F.mse_loss, SOFT, None, SOFT.double()),
    "one regression target": (lambda z, y: F.mse_loss(z[:, 0], y), SOFT[:, 0], None, SOFT[:, :1].double()),
    "a regression target for each position": (
        F.mse_loss,
        torch.ones(N, CLASSES, 5),
        POSITIONS,
        torch.ones(N, 15).double(),
    ),
    "target first": (lambda z, y: F.mse_loss(y, z), SOFT, None, SOFT.double()),
    "variance predicted": (
        lambda z, y: F.gaussian_nll_loss(z[:, :1], y[:, :1], F.softplus(z[:, 1:2])),
        SOFT,
        None,
        SOFT[:, :1].double(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_there_is_one_target_a_sample_or_none(case):
    step, y, net, expected = CASES[case]
    found = read(step, y, net).get(TARGETS)
    if expected is None:
        assert found is None
    else:
        assert torch.equal(found, expected)
        assert not found.requires_grad


def test_an_adapter_without_targets_gives_none():
    prediction = Predictor(StandInTrainer(None), lambda module, x: (module(x), None, "categorical"))(
        nn.Linear(FEATURES, 3), X
    )
    assert LayerFeatures((), 2, 0)(prediction, {}) == {}


def test_activations_of_the_layers_that_ran_are_given_by_label():
    wide, narrow, shown = torch.randn(N, 30), torch.randn(N, 3), torch.randn(N, 64)
    activations = {
        "a.b": Activation(wide, shown),
        "c:1": Activation(narrow, shown),
        "of another": Activation(wide, shown),
    }
    layers = Layer("a.b", "a.b", 0, "", "first", 30, False), Layer("c:1", "c", 1, "", "first", 3, False)
    found = read(F.cross_entropy, Y, None, activations, layers)
    assert found.keys() == {"units/a.b", "shown/a.b", "units/c:1", "shown/c:1", TARGETS}
    assert found["units/a.b"].shape == (N, 2)
    assert torch.equal(found["units/c:1"], narrow)
    assert torch.equal(found["shown/a.b"], shown)


def test_readers_are_equal_by_what_they_read():
    assert len({LayerFeatures((), 2, 0), LayerFeatures((), 2, 0), LayerFeatures((), 3, 0)}) == 2


@pytest.mark.parametrize("width", [1, MOST_UNITS, MOST_UNITS + 1, 300])
def test_integers_are_kept_apart_row_by_row_whatever_their_number(width):
    rows = torch.randint(-3, 3, (50, width)) * 2**60
    rows[25:] = rows[:25]
    rows[7, -1] += 1
    found = LayerFeatures((), 2, 0).project(rows)
    assert found.shape == (50, width if width <= MOST_UNITS else 1)
    assert not found.is_floating_point()
    same, truth = (torch.unique(t, dim=0, return_inverse=True)[1] for t in (found, rows))
    assert torch.equal(same[:, None] == same, truth[:, None] == truth)
