from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from lightning_info.quantities.stability import weight_trajectory as weight_paths
from lightning_info.quantities.stability.trajectory_plane import WeightPlane
from lightning_info.quantities.stability.weight_change import flat_weights
from lightning_info.quantities.stability.weight_trajectory import WeightTrajectory

LENGTH = 41


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(60, 50), nn.Linear(50, 4)).to(dtype)


def walk(length: int = LENGTH, dtype: torch.dtype = torch.float64):
    """A random walk and one that drifts away from it; the layers move at different speeds."""
    generator = torch.Generator().manual_seed(0)
    run, twin = net(dtype=dtype), net(dtype=dtype)
    for step in range(length):
        yield step, run, twin
        with torch.no_grad():
            for speed, p, q in zip((1.0, 8.0, 0.1, 2.0), run.parameters(), twin.parameters(), strict=True):
                move, apart = (torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for _ in "ab")
                p += 0.1 * speed * (move + 0.3)
                q += 0.1 * speed * (move + 0.3 + 0.2 * apart)


def kept(length: int = LENGTH, seed: int = 0, **options):
    """The snapshots of a walk, its plane, and all its points."""
    snapshots, everything = WeightTrajectory(seed), []
    for step, run, twin in walk(length, **options):
        snapshots.add(step, run, twin)
        everything.append(torch.stack([flat_weights(run), flat_weights(twin)]))
    whole = torch.stack(everything)
    return snapshots, WeightPlane.through(snapshots.start, *whole[-1]), whole


@pytest.fixture
def few_weights(monkeypatch):
    """Room for 800 of the 3254 weights."""
    monkeypatch.setattr(weight_paths, "BYTES", 2 * weight_paths.POINTS * 8 * 800)


def test_all_weights_give_the_coordinates_of_every_point():
    snapshots, plane, whole = kept(20)
    paths = snapshots.paths(plane)
    torch.testing.assert_close(paths.run, plane.coordinates(whole[:, 0]))
    torch.testing.assert_close(paths.twin, plane.coordinates(whole[:, 1]))
    assert (paths.steps, paths.share, paths.stderr.tolist()) == (list(range(20)), 1.0, [0.0, 0.0])
    rest = whole[:, 0] - snapshots.start - paths.run @ plane.basis
    assert paths.away == pytest.approx(rest.norm(dim=1).max().item())


@pytest.mark.parametrize("length", [1, 2, 32, 33, 34, 49, 64, 65, 66, 200, 1000])
def test_thinning_keeps_the_first_the_last_and_even_gaps_in_order(length):
    module, snapshots = nn.Linear(1, 1), WeightTrajectory()
    for step in range(length):
        snapshots.add(3 * step, module, module)
    steps = snapshots.state_dict()["steps"]
    assert len(steps) == len(snapshots) <= weight_paths.POINTS
    assert steps[0] == 0
    assert steps[-1] == 3 * (length - 1)
    gaps = {b - a for a, b in itertools.pairwise(steps[:-1])}
    assert len(gaps) <= 1
    assert length <= 32 or len(steps) > weight_paths.POINTS // 2


def test_thinning_keeps_the_points_that_belong_to_the_steps():
    snapshots, plane, whole = kept(150)
    paths = snapshots.paths(plane)
    torch.testing.assert_close(paths.twin, plane.coordinates(whole[paths.steps, 1]))


def test_a_step_that_comes_again_replaces_the_last():
    snapshots, run, twin = WeightTrajectory(), net(0), net(1)
    snapshots.add(0, run, run)
    snapshots.add(5, run, run)
    snapshots.add(5, twin, run)
    paths = snapshots.paths(WeightPlane.through(snapshots.start, flat_weights(twin), flat_weights(run)))
    assert paths.steps == [0, 5]
    assert paths.run[1, 0].item() == pytest.approx((flat_weights(twin) - flat_weights(run)).norm().item())


@pytest.mark.usefixtures("few_weights")
def test_a_sample_of_the_weights_gives_points_of_the_plane_exactly():
    snapshots, plane, whole = kept()
    paths = snapshots.paths(plane)
    assert paths.share == 800 / whole.shape[-1]
    torch.testing.assert_close(paths.run[[0, -1]], plane.coordinates(whole[[0, -1], 0]))
    torch.testing.assert_close(paths.twin[-1:], plane.coordinates(whole[-1:, 1]))


@pytest.mark.usefixtures("few_weights")
def test_the_error_of_a_sample_of_the_weights_is_the_stated_one():
    """Root mean square error of the worst point over 100 samples of weights, itself known to 7 %."""
    errors, stated = [], []
    for seed in range(100):
        snapshots, plane, whole = kept(6, seed)
        paths = snapshots.paths(plane)
        errors.append(paths.run - plane.coordinates(whole[paths.steps, 0]))
        stated.append(paths.stderr)
    measured = torch.stack(errors).square().mean(0).sqrt().amax(0)
    ratio = measured / torch.stack(stated).square().mean(0).sqrt()
    assert (ratio > 0.75).all(), ratio
    assert (ratio < 1.25).all(), ratio


@pytest.mark.usefixtures("few_weights")
def test_memory_is_bounded_and_every_layer_has_its_share():
    snapshots, _, _ = kept(100)
    state = snapshots.state_dict()
    assert state["pairs"].nbytes <= weight_paths.BYTES
    sizes = [p.numel() for p in net().parameters()]
    in_layer = torch.bincount(torch.bucketize(state["index"], torch.tensor(sizes).cumsum(0), right=True), minlength=4)
    torch.testing.assert_close(in_layer, (torch.tensor(sizes) * 800 / sum(sizes)).round().long(), atol=1, rtol=0)
    assert len(state["index"].unique()) == 800


@pytest.mark.usefixtures("few_weights")
@pytest.mark.parametrize("way", ["pickle", "state", "file"])
def test_a_path_goes_on_after_a_resume(way, tmp_path):
    straight, plane, _ = kept(100)
    snapshots = WeightTrajectory()
    for step, run, twin in walk(100):
        if step == 61:
            if way == "pickle":
                snapshots = pickle.loads(pickle.dumps(snapshots))
            else:
                state = copy.deepcopy(snapshots.state_dict())
                if way == "file":
                    torch.save(state, tmp_path / "state.pt")
                    state = torch.load(tmp_path / "state.pt", weights_only=True)
                snapshots = WeightTrajectory(seed=7)
                snapshots.load_state_dict(state)
        snapshots.add(step, run, twin)
    ours, expected = snapshots.paths(plane), straight.paths(plane)
    assert ours.steps == expected.steps
    assert torch.equal(ours.run, expected.run)
    assert torch.equal(ours.twin, expected.twin)


def test_nothing_kept_gives_an_empty_state_and_no_paths():
    snapshots = WeightTrajectory()
    assert snapshots.state_dict() == {}
    snapshots.load_state_dict({})
    with pytest.raises(ValueError, match="no point was added"):
        snapshots.paths(kept(2)[1])


def test_paths_start_anew_where_other_parameters_become_trainable():
    run, twin, snapshots = net(0), net(0), WeightTrajectory()
    run[0].requires_grad_(False)
    twin[0].requires_grad_(False)
    snapshots.add(0, run, twin)
    assert len(snapshots.start) == 204
    run.requires_grad_()
    twin.requires_grad_()
    snapshots.add(1, run, twin)
    assert (len(snapshots.start), snapshots.state_dict()["steps"]) == (3254, [1])


def test_half_precision_is_kept_in_single():
    snapshots, _, _ = kept(3, dtype=torch.bfloat16)
    assert snapshots.start.dtype == torch.float32
