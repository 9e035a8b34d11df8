from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_info.quantities.stability import loss_landscape as plane_picture
from lightning_info.quantities.stability.loss_landscape import (
    LARGEST,
    SMALLEST,
    ellipse,
    loss_grid,
    picture,
    projected_fisher,
    window,
)
from lightning_info.quantities.stability.trajectory_plane import WeightPlane
from lightning_info.quantities.stability.weight_change import flat_weights
from lightning_info.quantities.stability.weight_trajectory import WeightTrajectory
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

N = 40


def linear(module, batch):
    return module(batch[0]), batch[1], "gaussian"


def classes(module, batch):
    return module(batch[0]), batch[1].argmax(1), "categorical"


def case(net: nn.Module | None = None, adapter=linear, chunk: int = 16) -> ModelSnapshot:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = net or nn.Linear(4, 3).double()
    batch = tuple(torch.randn(N, size, generator=generator, dtype=torch.float64) for size in (4, 3))
    return ModelSnapshot(net.eval(), Predictor(StandInTrainer(None), adapter), [batch], chunk, torch.device("cpu"))


def plane_of(snapshot: ModelSnapshot, seed: int = 1) -> WeightPlane:
    """Its replica is at w_T; w_0 and w'_T are elsewhere."""
    run = flat_weights(snapshot.module)
    start, twin = torch.randn(2, len(run), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return WeightPlane.through(start, run, twin)


def deep() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def explicit_fisher(snapshot: ModelSnapshot) -> torch.Tensor:
    """F of a classifier from the definition: the gradients of the log-probability of every class."""
    x, _ = snapshot.groups[0]
    parameters, total = list(snapshot.module.parameters()), 0.0
    for one in x:
        log_p = snapshot.module(one[None]).log_softmax(1)[0]
        for value in log_p:
            gradients = torch.autograd.grad(value, parameters, retain_graph=True)
            g = torch.cat([part.flatten() for part in gradients])
            total = total + value.exp().detach() * torch.outer(g, g)
    return total / len(x)


def test_on_a_quadratic_loss_the_grid_is_the_closed_form():
    snapshot = case()
    plane, (x, y) = plane_of(snapshot), snapshot.groups[0]
    columns, rows = torch.linspace(-1, 3, 5).double(), torch.linspace(-2, 2, 4).double()
    before = [p.clone() for p in snapshot.module.parameters()]
    losses = loss_grid(snapshot, plane, columns, rows)
    for j, b in enumerate(rows):
        for i, a in enumerate(columns):
            w = plane.origin + a * plane.basis[0] + b * plane.basis[1]
            residual = x @ w[:12].view(3, 4).T + w[12:] - y
            assert losses[j, i].item() == pytest.approx(0.5 * residual.square().sum(1).mean().item(), rel=1e-12)
    assert all(map(torch.equal, before, snapshot.module.parameters()))


def test_on_a_quadratic_loss_f_in_the_plane_is_its_curvature():
    snapshot = case()
    plane, h = plane_of(snapshot), 1.0
    around = [plane.run[axis] + torch.tensor([-h, 0, h]).double() for axis in (0, 1)]
    losses = loss_grid(snapshot, plane, *around)
    across = (losses[0, 0] + losses[2, 2] - losses[0, 2] - losses[2, 0]) / 4
    second = losses[1].diff(n=2), losses[:, 1].diff(n=2)
    curvature = torch.stack([second[0][0], across, across, second[1][0]]).view(2, 2)
    fisher = projected_fisher(snapshot, plane, torch.Generator())
    torch.testing.assert_close(fisher["F"], curvature)


def test_projected_f_and_its_diagonal_are_those_of_the_definition():
    snapshot = case(deep(), classes)
    plane, whole = plane_of(snapshot), explicit_fisher(case(deep()))
    found = projected_fisher(snapshot, plane, torch.Generator())
    torch.testing.assert_close(found["F"], plane.basis @ whole @ plane.basis.T)
    torch.testing.assert_close(found["diag F"], plane.basis @ whole.diag().diag() @ plane.basis.T)


def test_a_module_without_second_derivative_has_the_diagonal_only():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * gradient

    def adapter(module, batch):
        return Once.apply(module(batch[0])), batch[1], "gaussian"

    snapshot = case(adapter=adapter)
    assert set(projected_fisher(snapshot, plane_of(snapshot), torch.Generator())) == {"diag F"}


def test_axes_of_an_ellipse_are_those_of_its_matrix():
    """diag(4, 25) turned by 30 degrees, at level 9: half-axes 3/2 and 3/5."""
    angle = math.radians(30)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    found = ellipse(turn @ torch.diag(torch.tensor([4.0, 25.0]).double()) @ turn.T, 9.0, 2.0)
    expected = turn @ torch.diag(torch.tensor([1.5, 0.6]).double())
    torch.testing.assert_close(found.axes * found.axes[0].sign(), expected * expected[0].sign())
    assert found.factor == 1


def test_points_of_an_ellipse_are_half_a_nat_of_unique_information():
    snapshot, beta, training_samples = case(deep(), classes), 0.3, 500.0
    plane, whole = plane_of(snapshot), explicit_fisher(case(deep()))
    fisher = projected_fisher(snapshot, plane, torch.Generator())["F"]
    found = ellipse(fisher, beta / training_samples, 1.0)
    for t in (0.0, 1.0, 4.0):
        delta = (found.axes @ torch.tensor([math.cos(t), math.sin(t)], dtype=torch.float64)) @ plane.basis
        assert (training_samples * delta @ whole @ delta / (2 * beta)).item() == pytest.approx(0.5, rel=1e-8)


@pytest.mark.parametrize(("level", "factor"), [(1.0, 1), (100.0, 0.5), (1e-4, 20), (1e-6, 200), (1e6, 0.005)])
def test_an_ellipse_out_of_proportion_is_drawn_at_another_size(level, factor):
    found = ellipse(torch.eye(2), level, 10.0)
    assert found.axes.norm(dim=0).tolist() == pytest.approx([math.sqrt(level)] * 2)
    assert found.factor == pytest.approx(factor)
    assert 0.04 <= found.factor * 2 * math.sqrt(level) / 10 <= 1.5


@pytest.mark.parametrize(("factor", "rounded"), [(1, 1), (1.1, 2), (1.9, 2), (60, 100), (0.9, 0.5), (0.012, 0.01)])
def test_factors_are_round_and_go_all_the_way(factor, rounded):
    share = 1.0 if factor == 1 else (SMALLEST if factor > 1 else LARGEST) / factor  # of the picture, at its own size
    assert ellipse(torch.eye(2), 1.0, 2 / share).factor == pytest.approx(rounded)


def test_a_direction_of_which_f_sees_nothing_has_an_endless_axis():
    found = ellipse(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1.0, 10.0)
    assert found.axes[1].abs().max() == pytest.approx(1e6)
    assert 0 < found.factor < 1e-4


def test_the_window_holds_points_and_ellipses_and_is_not_too_narrow():
    points, centre = torch.tensor([[0.0, 0.0], [10.0, 0.1]]).double(), torch.tensor([10.0, 0.0]).double()
    x, y = window(points, centre, [])
    assert (x[0].item(), x[-1].item()) == pytest.approx((-1.2, 11.2))
    assert (y[-1] - y[0]).item() == pytest.approx(0.7 * 12.4)
    wide = ellipse(torch.diag(torch.tensor([1.0, 0.04])), 1.0, 10.0)
    x, y = window(points, centre, [wide])
    assert x[-1] > 11
    assert y[0] < -5
    assert y[-1] > 5


def snapshots_of(snapshot: ModelSnapshot):
    """A straight path of three points to the replica's weights, and the plane of its end."""
    run, twin, snapshots = deep(), deep(), WeightTrajectory()
    for step, share in enumerate((0.0, 0.5, 1.0)):
        with torch.no_grad():
            for p, q, end in zip(run.parameters(), twin.parameters(), snapshot.module.parameters(), strict=True):
                p.copy_(share * end)
                q.copy_(share * (end + 0.1 * torch.linspace(-1, 1, end.numel()).view_as(end)))
        snapshots.add(step, run, twin)
    return snapshots, WeightPlane.through(snapshots.start, flat_weights(run), flat_weights(twin))


def test_a_picture_holds_what_its_parts_give():
    snapshot = case(deep(), classes)
    snapshots, plane = snapshots_of(snapshot)
    found = picture(snapshot, plane, snapshots.paths(plane), 2.0, 100.0, torch.Generator())
    assert set(found.ellipses) == {"F", "diag F"}
    assert torch.equal(found.loss, loss_grid(snapshot, plane, found.x, found.y))
    assert (found.samples, found.second) == (N, "twin")
    fisher = projected_fisher(snapshot, plane, torch.Generator())["F"]
    torch.testing.assert_close(found.ellipses["F"].axes @ found.ellipses["F"].axes.T, 0.02 * fisher.inverse())


def test_a_grid_that_would_take_too_long_is_of_fewer_samples():
    snapshot = case(deep(), classes)
    snapshots, plane = snapshots_of(snapshot)
    found = picture(snapshot, plane, snapshots.paths(plane), 1.0, 100.0, torch.Generator(), most_seconds=0.0)
    assert found.samples == plane_picture.FEWEST_SAMPLES
    some = case(deep(), classes)
    some.groups = [tuple(part[:8] for part in snapshot.groups[0])]
    torch.testing.assert_close(found.loss, loss_grid(some, plane, found.x, found.y))


def test_without_targets_there_is_no_loss_and_the_rest_stays():
    snapshot = case(deep(), lambda module, batch: (module(batch[0]), None, "categorical"))
    snapshots, plane = snapshots_of(snapshot)
    found = picture(snapshot, plane, snapshots.paths(plane), 1.0, 100.0, torch.Generator())
    assert found.loss is None
    assert set(found.ellipses) == {"F", "diag F"}


def test_a_loss_that_is_not_finite_is_a_gap():
    snapshot = case(nn.Linear(4, 3), lambda m, b: (m(b[0].float()) * 1e30, b[1].float() * 0, "gaussian"))
    plane = plane_of(snapshot)
    losses = loss_grid(snapshot, plane, torch.tensor([plane.run[0], 1e30]), torch.tensor([plane.run[1], 0.0]))
    assert losses.isnan().any()
    assert not losses.isinf().any()
