from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_info.quantities.stability.trajectory_plane import WeightPlane, inner_products

K = 200


def points(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """w_0, w_T, w'_T."""
    return torch.randn(3, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plane(*args, **kwargs) -> WeightPlane:
    return WeightPlane.through(*(args or points()), **kwargs)


def test_distances_between_points_of_the_plane_are_those_of_their_coordinates():
    corners = points()
    mixtures = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    inside = torch.cat([corners, 5 * mixtures @ corners - 4 * corners[:1]])  # affine: weights sum to one
    coordinates = plane().coordinates(inside)
    torch.testing.assert_close(torch.cdist(coordinates, coordinates), torch.cdist(inside, inside), rtol=0, atol=1e-10)


def test_coordinates_are_those_of_the_nearest_point_of_the_plane():
    found, point = plane(), torch.randn(K, dtype=torch.float64)
    span = torch.stack([points()[1] - points()[0], points()[2] - points()[0]]).T
    nearest = span @ torch.linalg.lstsq(span, (point - points()[0])[:, None]).solution[:, 0]
    torch.testing.assert_close(found.coordinates(point[None])[0] @ found.basis, nearest)


def test_the_first_axis_goes_to_the_end_of_the_run_and_the_twin_is_on_the_positive_side():
    found = plane()
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(2).double())
    start, run, twin = points()
    torch.testing.assert_close(found.run, torch.tensor([(run - start).norm(), 0.0]).double(), rtol=0, atol=1e-12)
    assert found.twin[1] > 0
    torch.testing.assert_close(found.coordinates(torch.stack([run, twin])), torch.stack([found.run, found.twin]))
    assert found.second == "twin"


@pytest.mark.parametrize("at", [0.0, 0.3, 1.0, 2.0])
def test_where_the_three_lie_on_one_line_the_second_direction_is_random_and_said(at):
    start, run, _ = points(dtype=torch.float32)
    twin = start + at * (run - start)
    first, again, other = (plane(start, run, twin, seed=seed) for seed in (0, 0, 1))
    assert first.second == "random"
    torch.testing.assert_close(first.basis @ first.basis.T, torch.eye(2))
    assert first.twin.tolist() == pytest.approx([at * (run - start).norm().item(), 0.0], abs=1e-5)
    assert torch.equal(first.basis, again.basis)
    assert not torch.equal(first.basis, other.basis)


def test_a_twin_that_differs_by_little_more_than_rounding_gives_the_direction():
    start, run, _ = points(dtype=torch.float32)
    change = torch.zeros(K)
    change[3] = 1e-4
    found = plane(start, run, run + change)
    assert found.second == "twin"
    assert found.twin[1].item() == pytest.approx(1e-4, rel=1e-2)


def test_planes_that_are_none_are_refused():
    start, run, twin = points()
    with pytest.raises(ValueError, match="have not moved"):
        plane(start, start, twin)
    with pytest.raises(ValueError, match="not finite"):
        plane(start, run, twin * torch.inf)
    with pytest.raises(ValueError, match="one weight"):
        plane(start[:1], run[:1], twin[:1])


def test_a_diagonal_is_projected_as_the_matrix_it_stands_for():
    found, diagonal = plane(), torch.rand(K, dtype=torch.float64)
    torch.testing.assert_close(found.project_diagonal(diagonal), found.basis @ torch.diag(diagonal) @ found.basis.T)


def test_inner_products_in_pieces(monkeypatch):
    monkeypatch.setattr("lightning_info.quantities.stability.trajectory_plane.COLUMNS", 7)
    one, other = points(), points(1)
    torch.testing.assert_close(inner_products(one, other), one @ other.T)
