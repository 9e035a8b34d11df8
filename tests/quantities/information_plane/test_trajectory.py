"""Activations of a run: thinned to a budget, the range over all of training, and the way through a checkpoint."""

from __future__ import annotations

import io
import math

import pytest
import torch

from lightning_info.quantities.information_plane import trajectory as module
from lightning_info.quantities.information_plane.estimates import Estimate, EstimatorSettings
from lightning_info.quantities.information_plane.labels import Labels
from lightning_info.quantities.information_plane.trajectory import Trajectory

N, BINS = 40, 6
LABELS = Labels(torch.arange(N) % 3)
METHOD = EstimatorSettings(BINS)


def estimate(bin_range):
    return Estimate("", "binning", bin_range)


def point(step):
    """Activations of two layers that grow and shrink with the step."""
    generator = torch.Generator().manual_seed(step)
    scale = 1 + math.sin(step)
    return {
        "a": scale * torch.randn(N, 2, generator=generator),
        "b": 3 - scale * torch.rand(N, 1, generator=generator),
    }


def run(steps, budget=None, labels=LABELS, monkeypatch=None):
    if budget is not None:
        monkeypatch.setattr(module, "LARGEST", budget * sum(4 * values.numel() for values in point(0).values()))
    trajectory = Trajectory()
    for step in steps:
        trajectory.add(step, point(step), labels, N)
    return trajectory


def ends(steps, layer):
    values = torch.cat([point(step)[layer].flatten() for step in steps])
    return values.min().item(), values.max().item()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 16, 17, 40, 100])
def test_every_second_point_is_let_go_beyond_the_budget_and_first_and_last_are_kept(budget, count, monkeypatch):
    steps = [10 * i for i in range(count)]
    trajectory = run(steps, budget, monkeypatch=monkeypatch)
    kept = list(trajectory.points)
    assert len(kept) <= max(budget, 2)
    assert (kept[0], kept[-1]) == (steps[0], steps[-1])
    gaps = torch.tensor(kept).diff()
    if len(gaps) > 1:
        assert len(gaps[:-1].unique()) == 1  # evenly spread but for the last
        assert gaps[-1] <= gaps[0]
    if budget >= 4:
        assert len(kept) >= min(count, budget // 2)
    assert all(equal(trajectory.points[step], point(step)) for step in kept)


def test_the_first_and_the_last_are_there_at_any_time(monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 3 * 4 * 3 * N)
    trajectory = Trajectory()
    for step in range(50):
        trajectory.add(step, point(step), LABELS, N)
        assert (next(iter(trajectory.points)), next(reversed(trajectory.points))) == (0, step)


@pytest.mark.parametrize("budget", [2, 5])
def test_ranges_are_those_of_all_points_whatever_was_let_go(budget, monkeypatch):
    steps = range(60)
    assert run(steps, budget, monkeypatch=monkeypatch).ranges == {layer: ends(steps, layer) for layer in ("a", "b")}


@pytest.mark.parametrize("budget", [None, 4])
def test_global_curves_are_those_of_all_activations_in_bins_of_one_range(budget, monkeypatch):
    steps = range(12)
    trajectory = run(steps, budget, monkeypatch=monkeypatch)
    plane = trajectory.curves(estimate("global"), METHOD)
    assert plane.keys() == {"a", "b"}
    for layer, curve in plane.items():
        one_range = Estimate("", "binning", ends(steps, layer))
        expected = [one_range.read(point(step)[layer], LABELS, (0, 1), METHOD)[:2] for step, *_ in curve]
        assert [pair for _, *pair in curve] == [list(pair) for pair in expected]
        assert [step for step, *_ in curve] == sorted(trajectory.points)


def test_curves_differ_under_other_ranges():
    trajectory = run(range(6))
    planes = [trajectory.curves(estimate(name), METHOD) for name in ("fixed", "global", "adaptive", (-9.0, 9.0))]
    assert all(planes[i] != planes[j] for i in range(4) for j in range(i))


def test_long_curves_are_computed_at_every_second_point_and_the_last():
    steps = list(range(2 * module.MOST_POINTS + 2))
    trajectory = Trajectory()
    for step in steps:
        trajectory.add(step, {"a": torch.randn(4, 1)}, None, 4)
    (curve,) = trajectory.curves(estimate("global"), METHOD).values()
    found = [step for step, *_ in curve]
    assert len(found) <= module.MOST_POINTS + 1
    assert (found[0], found[-1]) == (steps[0], steps[-1])
    assert len(set(torch.tensor(found[:-1]).diff().tolist())) == 1


def test_points_without_a_layer_or_with_values_that_are_not_finite_are_gaps_of_it():
    trajectory = Trajectory()
    spoilt = torch.full((N, 2), math.nan)
    for step, a in enumerate([torch.zeros(N, 2), None, spoilt, torch.ones(N, 2)]):
        layers = {"b": torch.rand(N, 1)} if a is None else {"a": a, "b": torch.rand(N, 1)}
        trajectory.add(step, layers, None, N)
    plane = trajectory.curves(estimate("global"), METHOD)
    assert [step for step, *_ in plane["a"]] == [0, 2, 3]
    assert [math.isnan(x) for _, x, _ in plane["a"]] == [False, True, False]
    assert len(plane["b"]) == 4
    assert trajectory.ranges["a"] == (0.0, 1.0)


def test_values_that_are_not_finite_take_no_part_in_the_range():
    trajectory = Trajectory()
    trajectory.add(0, {"a": torch.tensor([[1.0, math.inf], [-math.inf, 3.0], [math.nan, 2.0]])}, None, 3)
    assert trajectory.ranges == {"a": (1.0, 3.0)}
    assert math.isnan(trajectory.curves(estimate("global"), METHOD)["a"][0][1])


def test_a_layer_that_was_never_finite_has_a_curve_of_gaps():
    trajectory = Trajectory()
    trajectory.add(0, {"a": torch.full((N, 2), math.nan)}, LABELS, N)
    assert trajectory.ranges == {}
    for name in ("global", "fixed", "adaptive"):
        ((_, x, y),) = trajectory.curves(estimate(name), METHOD)["a"]
        assert math.isnan(x)
        assert math.isnan(y)


def test_curves_go_by_step_also_after_a_return_to_earlier_weights():
    trajectory = run([0, 4, 8, 2, 6])
    assert [step for step, *_ in trajectory.curves(estimate("fixed"), METHOD)["a"]] == [0, 2, 4, 6, 8]


def test_activations_are_copied():
    trajectory, values = Trajectory(), torch.ones(N, 2)
    trajectory.add(0, {"a": values}, None, N)
    values.zero_()
    assert trajectory.points[0]["a"].min() == 1


@pytest.mark.parametrize(
    ("labels", "samples", "fits"),
    [
        (Labels(LABELS.y.clone()), N, True),
        (Labels(LABELS.y.flip(0)), N, False),
        (LABELS, N + 1, False),
        (None, N, False),
    ],
)
def test_points_of_other_samples_do_not_go_on_with_a_trajectory(labels, samples, fits):
    assert run([0, 1]).fits(labels, samples) is fits
    assert Trajectory().fits(labels, samples)


def test_points_without_labels_go_on_with_points_without_labels():
    assert run([0], labels=None).fits(None, N)
    assert not run([0], labels=None).fits(LABELS, N)


@pytest.mark.parametrize("labels", [LABELS, None])
def test_a_checkpoint_takes_the_run_up_where_it_was(labels, monkeypatch):
    before = run(range(23), 5, labels, monkeypatch)
    file = io.BytesIO()
    torch.save(before.state(), file)
    file.seek(0)
    after = Trajectory.restored(torch.load(file, weights_only=True))
    for step in range(23, 60):
        for trajectory in (before, after):
            trajectory.add(step, point(step), labels, N)
    assert before.points.keys() == after.points.keys()
    assert all(equal(before.points[step], after.points[step]) for step in before.points)
    assert before.ranges == after.ranges
    assert after.fits(labels, N)
    curves = [trajectory.curves(estimate("global"), METHOD) for trajectory in (before, after)]
    assert repr(curves[0]) == repr(curves[1])  # NaN without labels


def test_a_checkpoint_does_not_change_with_the_run_that_wrote_it():
    trajectory = run(range(3))
    state = trajectory.state()
    trajectory.add(3, point(3), LABELS, N)
    assert list(state["points"]) == [0, 1, 2]
    restored = Trajectory.restored(state)
    restored.add(9, point(9), LABELS, N)
    assert list(state["points"]) == [0, 1, 2]


def test_a_checkpoint_of_an_empty_trajectory_is_one():
    restored = Trajectory.restored(Trajectory().state())
    assert restored.curves(estimate("global"), METHOD) == {}
    assert restored.fits(LABELS, N)
