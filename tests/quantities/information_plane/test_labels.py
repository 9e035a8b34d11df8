from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from sklearn.metrics import mutual_info_score

from lightning_info.quantities.information_plane.labels import IGNORED, Labels, describe_targets, labels_of


def entropy(y):
    return stats.entropy(torch.unique(y, return_counts=True)[1], base=2)


def same_classes(found, truth):
    """Whether two labelings are the same partition."""
    information = [mutual_info_score(found, truth), mutual_info_score(truth, truth), mutual_info_score(found, found)]
    return max(information) - min(information) < 1e-12


def test_classes_are_labels_as_they_are():
    y = torch.randint(5, (40,))
    labels = labels_of(y, 30)
    assert torch.equal(labels.y, y)
    assert labels.known is None
    assert labels.entropy == pytest.approx(entropy(y), abs=1e-12)


def test_every_class_may_be_another():
    assert labels_of(torch.arange(50), 30).entropy == pytest.approx(math.log2(50))


def test_ignored_samples_have_no_label_and_no_part_in_the_entropy():
    y = torch.randint(4, (40,))
    ignored = torch.where(torch.arange(40) % 3 == 0, IGNORED, y)
    labels = labels_of(ignored, 30)
    assert torch.equal(labels.known, torch.arange(40) % 3 != 0)
    assert labels.entropy == pytest.approx(entropy(y[labels.known]), abs=1e-12)
    assert Labels(torch.full((6,), IGNORED)).entropy == 0.0


def test_several_labels_of_a_sample_are_taken_together():
    y = torch.randint(2, (60, 3))
    assert same_classes(labels_of(y, 30).y, y @ torch.tensor([1, 2, 4]))


@pytest.mark.parametrize("bins", [1, 2, 5])
def test_continuous_targets_are_cut_into_equal_intervals_over_the_range_of_each_column(bins):
    y = torch.randn(200, 2, dtype=torch.float64) * torch.tensor([1.0, 1000.0])
    low, high = y.amin(0), y.amax(0)
    cells = ((y - low) / (high - low) * bins).long().clamp(max=bins - 1)
    assert same_classes(labels_of(y, bins).y, cells @ torch.tensor([1, bins]))


def test_a_regression_on_two_values_is_a_classification():
    y = torch.randint(2, (50, 1)).double()
    assert same_classes(labels_of(3 - 7 * y, 30).y, y.squeeze().long())


def test_constant_targets_are_one_class():
    labels = labels_of(torch.full((9, 2), 3.5), 30)
    assert labels.entropy == 0.0
    assert len(labels.y.unique()) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_targets_that_are_not_finite_give_no_labels(bad):
    y = torch.randn(20, 1)
    y[7] = bad
    assert labels_of(y, 3) is None


def test_targets_that_are_almost_all_different_give_no_labels():
    assert labels_of(torch.rand(40, 6), 30) is None
    assert labels_of(torch.randint(2, (40, 30)), 30) is None
    half = torch.tensor([0.0] * 20 + list(range(1, 21))).unsqueeze(1)
    assert labels_of(half, 1000) is not None  # just half of them
    assert labels_of(torch.cat([half, torch.tensor([[50.0]])]), 1000) is None


def test_labels_are_equal_by_value():
    y = torch.tensor([0, 1, 2])
    assert Labels(y).equal(Labels(y.clone()))
    assert not Labels(y).equal(Labels(torch.tensor([0, 1, 1])))
    assert not Labels(y).equal(Labels(y[:2]))
    assert not Labels(y).equal(None)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (None, "I(X;T) only"),
        (torch.zeros(4).long(), "classes"),
        (torch.zeros(4, 1).long(), "classes"),
        (torch.zeros(4, 3).long(), "3 labels of a sample"),
        (torch.zeros(4, 2), "each of 2 cut into 7 equal intervals"),
    ],
)
def test_what_becomes_of_targets_is_described(targets, words):
    assert words in describe_targets(targets, 7)
