"""Lower bounds of I(T;Y) by decoders, against Gaussian classes whose information is known."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_info.functional import usable_information
from lightning_info.functional.decoders import PENALTIES, Moments, principal_components, regressions

BIT = math.log(2)


def classes(n, d, count, seed, apart=1.0):
    """Gaussian classes with unit covariance, and their true posterior log probabilities."""
    means = apart * torch.randn(count, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(count, (n,), generator=generator)
    t = means[y] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return t, y, torch.log_softmax(-torch.cdist(t, means).square() / 2, 1)


def true_information(d, count, apart=1.0):
    """By 100,000 draws: its standard error is below 0.005 bits."""
    _, y, posterior = classes(100_000, d, count, 12345, apart)
    return (math.log(count) + posterior[torch.arange(len(y)), y].mean().item()) / BIT


@pytest.mark.parametrize(("d", "count", "apart", "n"), [(2, 2, 1.0, 600), (5, 4, 0.6, 600), (20, 6, 0.4, 1000)])
def test_of_gaussian_classes_the_bound_holds_and_is_tight(d, count, apart, n):
    """20 seeds: at the truth two errors would be exceeded in 0.5 of them on the average; more than one is a failure."""
    truth = true_information(d, count, apart)
    found = [usable_information(*classes(n, d, count, seed, apart)[:2]) for seed in range(20)]
    assert sum(one.information - 2 * one.stderr > truth for one in found) <= 1
    mean = sum(one.information for one in found) / 20
    assert truth - 0.1 < mean < truth + 0.02
    spread = torch.tensor([one.information for one in found]).std().item()
    error = sum(one.stderr for one in found) / 20
    assert 0.7 < error / spread < 2.0


@pytest.mark.parametrize("families", [("lda", "ridge"), ("knn",)])
@pytest.mark.parametrize("d", [3, 700])
def test_independent_labels_have_none(d, families):
    """Within four standard errors in each of six seeds, and on the average within 0.02 bits."""
    found = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        t, y = torch.randn(400, d, generator=generator), torch.randint(5, (400,), generator=generator)
        found.append(usable_information(t, y, families=families))
    assert all(one.information < 4 * one.stderr for one in found)
    assert abs(sum(one.information for one in found)) / 6 < 0.02


def test_an_invertible_linear_map_changes_nothing_for_the_linear_family_without_penalty():
    t, y, _ = classes(400, 12, 5, 0, 0.6)
    mix = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) @ torch.diag(
        torch.logspace(-2, 2, 12, dtype=torch.float64)
    )
    plain, mapped = (usable_information(x, y, families=("lda",)) for x in (t, 7.0 + t @ mix))
    assert mapped.information == pytest.approx(plain.information, abs=1e-6)
    assert mapped.stderr == pytest.approx(plain.stderr, abs=1e-6)


def test_it_finds_no_less_than_cross_validated_logistic_regression():
    datasets = pytest.importorskip("sklearn.datasets")
    model_selection, pipeline = pytest.importorskip("sklearn.model_selection"), pytest.importorskip("sklearn.pipeline")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    digits = datasets.load_digits()
    directions = torch.randn(64, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor(digits.data[:700]) @ directions, digits.target[:700]
    found, theirs = usable_information(t, torch.tensor(y)), []
    for strength in (0.1, 1.0, 10.0):
        model = pipeline.make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))
        told = model_selection.cross_val_predict(model, t.numpy(), y, cv=5, method="predict_proba")
        gain = torch.tensor(told)[torch.arange(700), torch.tensor(y)].log().mean().item() / BIT
        theirs.append(found.label_entropy + gain)
    assert max(theirs) - 2 * found.stderr < found.information < found.label_entropy


def test_neighbours_see_what_no_hyperplane_does():
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(800, 2, generator=generator)
    y = (t.square().sum(1) > 2 * BIT).long()  # the median
    by_plane = usable_information(t, y)
    by_neighbours = usable_information(t, y, families=("ridge", "knn"))
    assert by_plane.information < 0.1
    assert 0.7 < by_neighbours.information < 1
    assert set(by_neighbours.families) == {"knn"}


def test_a_regression_is_that_of_the_penalised_normal_equations():
    t, y, _ = classes(60, 4, 3, 0)
    y = torch.nn.functional.one_hot(y, 3).double()
    predict = regressions([Moments.of(t[part], y[part]) for part in (slice(0, 20), slice(20, 60))])(t[:7])
    rows, mean = t - t.mean(0), y.mean(0)
    largest = torch.linalg.eigvalsh(rows.T @ rows)[-1]
    for told, penalty in zip(predict, (0.0, *PENALTIES), strict=True):
        weights = torch.linalg.solve(rows.T @ rows + penalty * largest * torch.eye(4), rows.T @ (y - mean))
        torch.testing.assert_close(told, rows[:7] @ weights + mean)


@pytest.mark.parametrize("d", [20, 80])
@pytest.mark.parametrize("most", [18, 35])
def test_components_are_those_of_the_standardised_units_largest_last(d, most):
    t = torch.randn(60, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, d)
    rows = (t - t.mean(0)) / t.std(0, correction=0)
    u, s, _ = torch.linalg.svd(rows, full_matrices=False)
    u, s = u[:, :most], s[:most]
    found = principal_components(t, most)
    if min(60, d) <= 2 * most:
        torch.testing.assert_close(found.square().sum(0), s.flip(0).square())
        torch.testing.assert_close(found @ found.T, (u * s.square()) @ u.T)
    else:  # of a subspace that holds nearly all of their variance
        assert found.shape == (60, most)
        assert 0.97 * s.square().sum() < found.square().sum() < 1.0001 * s.square().sum()
        assert (found.square().sum(0).diff() > -1e-3).all()


def test_the_better_view_is_taken():
    """In every fold: the result is that of this view alone, to the last digit."""
    t, y, _ = classes(400, 5, 4, 0)
    noise = torch.randn(400, 30, generator=torch.Generator().manual_seed(1))
    assert usable_information([noise, t], y) == usable_information(t, y)


def test_samples_of_a_group_are_in_one_fold_and_count_once():
    """Ten copies of each sample: as if the sample was there once. Without groups its copies give it away."""
    generator = torch.Generator().manual_seed(0)
    t, y = torch.randn(100, 20, generator=generator), torch.randint(3, (100,), generator=generator)
    groups = torch.arange(100).repeat_interleave(10)
    apart = usable_information(t[groups], y[groups], groups=groups)
    assert abs(apart.information) < 3 * apart.stderr
    assert usable_information(t[groups], y[groups]).information > 5 * apart.stderr
    t, y, _ = classes(300, 4, 3, 1, 0.7)
    groups = torch.arange(300).repeat_interleave(4)
    once, four = usable_information(t, y), usable_information(t[groups], y[groups], groups=groups)
    assert four.information == pytest.approx(once.information, abs=once.stderr)
    assert four.stderr == pytest.approx(once.stderr, rel=0.3)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_of_gaussian_targets_it_is_the_information_of_the_channel(noise):
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(2000, 4, generator=generator, dtype=torch.float64)
    y = t @ torch.tensor([1.0, -1.0, 0.5, 0.0]).double() + noise * torch.randn(2000, generator=generator).double()
    found = usable_information(t, y)
    assert found.information == pytest.approx(math.log2(1 + 2.25 / noise**2) / 2, abs=3 * found.stderr)
    assert math.isnan(found.label_entropy)
    two = usable_information(t, torch.stack([y, torch.randn(2000, generator=generator).double()], 1))
    assert two.information == pytest.approx(found.information, abs=3 * found.stderr)


def test_units_positions_folds_and_seeds():
    t, y, _ = classes(200, 8, 3, 0)
    bits, nats = usable_information(t, y), usable_information(t.reshape(200, 2, 4), y, unit="nats")
    assert [value * BIT for value in bits[:3]] == pytest.approx(nats[:3])
    assert usable_information(t, y) == bits
    other = usable_information(t, y, generator=torch.Generator().manual_seed(5))
    assert other.information != bits.information
    assert other.information == pytest.approx(bits.information, abs=bits.stderr)
    assert len(usable_information(t, y, folds=3).families) == 3


def test_what_tells_nothing():
    t, y, _ = classes(100, 4, 3, 0)
    assert usable_information(t, torch.zeros(100, dtype=torch.int64))[:3] == (0.0, 0.0, 0.0)
    constant_layer = usable_information(torch.ones(100, 4), y)
    assert set(constant_layer.families) == {"none"}
    assert abs(constant_layer.information) < 3 * constant_layer.stderr
    rare = y.clone()
    rare[0] = 7  # a class with one sample, which no decoder has seen
    assert math.isfinite(usable_information(t, rare).information)
    wide = usable_information(torch.randn(100, 500, generator=torch.Generator().manual_seed(0)), y > 0)
    assert abs(wide.information) < 4 * wide.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": torch.zeros(9, dtype=torch.int64)}, "expected N = 20 labels"),
        ({"t": torch.full((20, 3), math.nan)}, "must be finite"),
        ({"families": ("svm",)}, "choose among 'lda', 'ridge', 'knn'"),
        ({"folds": 11}, "20 samples in 11 folds"),
        ({"y": torch.randn(20), "families": ("knn",)}, "'knn' decodes classes only"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    given = {"t": torch.randn(20, 3), "y": torch.arange(20) % 2, **options}
    with pytest.raises(ValueError, match=message):
        usable_information(given.pop("t"), given.pop("y"), **given)
