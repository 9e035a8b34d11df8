"""The background of the picture of two paths in a plane: the loss on the plane, and ellipses of F."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Generator, Tensor, nn

from lightning_info.figures.stability_paths import Ellipse, LossLandscape, Paths
from lightning_info.gradients.batches import num_samples, take
from lightning_info.gradients.contract import NotCovered
from lightning_info.quantities.stability.trajectory_plane import WeightPlane
from lightning_info.quantities.stability.weight_change import flat_weights
from lightning_info.quantities.stability.weight_trajectory import WeightTrajectory
from lightning_info.quantities.weight_information.curvature import choose_curvature, fisher_products
from lightning_info.quantities.weight_information.noisy_loss import mean_loss, moved
from lightning_info.replica.predicted import NoPrediction
from lightning_info.replica.snapshot import ModelSnapshot

CELLS = 15
"""Number of points of the grid of losses in each direction."""
FEWEST_SAMPLES = 8
MARGIN = 0.12
"""Margin of the picture around its content, as a share."""
NARROWEST = 0.7
"""Smaller side of the picture as a share of the larger one."""
SMALLEST, LARGEST = 0.04, 1.5
"""Limits of an ellipse's size as a share of the paths' length; beyond them it is drawn at another size."""


def picture(
    snapshot: ModelSnapshot,
    plane: WeightPlane,
    paths: Paths,
    beta: float,
    training_samples: float,
    generator: Generator,
    most_seconds: float = 30.0,
) -> LossLandscape:
    """Measure all of it.

    Args:
        snapshot: A snapshot with a private replica at ``w_T``, and the reference samples; BatchNorm keeps the
            statistics of that replica all over the plane.
        plane: A plane through ``w_T``.
        paths: The paths in the plane.
        beta: Level of the unique information.
        training_samples: N of the summed loss.
        generator: Generator of random cotangents for the diagonal of F, if there are many outputs.
        most_seconds: Approximate time for the grid of losses; if all samples would take longer, fewer are used.

    Raises:
        Unavailable: Outputs or gradients are not finite.
    """
    fisher = projected_fisher(snapshot, plane, generator)
    points = torch.cat([paths.run, paths.twin])
    length = (points.amax(0) - points.amin(0)).max().item()
    ellipses = {name: ellipse(f, beta / training_samples, length) for name, f in fisher.items() if f.any()}
    x, y = window(points, plane.run, ellipses.values())
    loss, samples = None, 0
    with suppress(NoPrediction):
        some = _affordable(snapshot, len(x) * len(y), most_seconds)
        loss, samples = loss_grid(some, plane, x, y), some.size
    return LossLandscape(paths, ellipses, x, y, loss, samples, plane.second)


def picture_of_ends(
    snapshot: ModelSnapshot,
    twin: nn.Module,
    snapshots: WeightTrajectory,
    beta: float,
    training_samples: float,
    most_seconds: float = 30.0,
) -> LossLandscape:
    """Measure :func:`picture` for the plane through the first of the kept points and the current ends of both paths.

    Args:
        snapshot: A snapshot with a private replica at ``w_T``, and the reference samples.
        twin: A module with the weights ``w'_T``.
        snapshots: The paths; random draws use their seed.
        beta: See :func:`picture`.
        training_samples: See :func:`picture`.
        most_seconds: See :func:`picture`.

    Raises:
        ValueError: There is no plane.
        Unavailable: Outputs or gradients are not finite.
    """
    if snapshots.start is None:
        raise ValueError("no point of the paths was kept")
    ends = flat_weights(snapshot.module).cpu(), flat_weights(twin).cpu()
    plane = WeightPlane.through(snapshots.start, *ends, seed=snapshots.seed)
    generator = torch.Generator().manual_seed(snapshots.seed)
    return picture(snapshot, plane, snapshots.paths(plane), beta, training_samples, generator, most_seconds)


def projected_fisher(snapshot: ModelSnapshot, plane: WeightPlane, generator: Generator) -> dict[str, Tensor]:
    """Return ``P F Pᵀ (2, 2)`` at a replica's weights for ``"F"`` and ``"diag F"``, as far as they are exact.

    Args:
        snapshot: A snapshot with the reference samples.
        plane: The plane.
        generator: See :meth:`~.CurvaturePlan.diagonal`.

    Raises:
        Unavailable: Outputs or gradients are not finite.
    """
    found = {}
    with suppress(NotCovered):
        products = fisher_products(snapshot)
        products.check()
        found["F"] = products.gram(plane.basis.to(snapshot.device)).cpu()
    with suppress(NotCovered):
        diagonal = choose_curvature(snapshot, snapshot.size, "diagonal").diagonal(snapshot, generator)
        found["diag F"] = plane.project_diagonal(diagonal.cpu())
    return found


def ellipse(fisher: Tensor, level: float, length: float) -> Ellipse:
    """Return the ellipse of ``C = level * F⁻¹``, and the size at which it can be drawn.

    Args:
        fisher: ``P F Pᵀ``, ``(2, 2)``, not zero.
        level: ``β / N``.
        length: Length of the rest of the picture.
    """
    values, vectors = torch.linalg.eigh(fisher.double())
    values = values.clamp_min(1e-12 * values[-1].item())  # F is zero in this direction, so it is infinite
    axes = vectors * (level / values).sqrt()
    share = 2 * axes.norm(dim=1).max().item() / length
    return Ellipse(axes, _round_factor(min(max(share, SMALLEST), LARGEST) / share))


def window(points: Tensor, centre: Tensor, ellipses: Iterable[Ellipse]) -> tuple[Tensor, Tensor]:
    """Return columns and rows of a grid over all points and ellipses, with a margin, and not too narrow.

    Args:
        points: Points ``(n, 2)``.
        centre: Coordinates ``(2,)`` of ``w_T``.
        ellipses: Ellipses around the centre.
    """
    reaches = [found.factor * found.axes.norm(dim=1) for found in ellipses]
    ends = torch.cat([points, *(torch.stack([centre - reach, centre + reach]) for reach in reaches)])
    middle, half = 0.5 * (ends.amax(0) + ends.amin(0)), (0.5 + MARGIN) * (ends.amax(0) - ends.amin(0))
    half = half.clamp_min(NARROWEST * half.max().item())
    x, y = (torch.linspace(a, b, CELLS, dtype=torch.float64) for a, b in torch.stack([middle - half, middle + half]).T)
    return x, y


def loss_grid(snapshot: ModelSnapshot, plane: WeightPlane, x: Tensor, y: Tensor) -> Tensor:
    """Measure the mean loss of a sample on a grid, nats, ``(len(y), len(x))`` float64; NaN where it is not finite.

    Args:
        snapshot: A snapshot with a private replica at ``w_T``; its weights are restored bit by bit.
        plane: A plane through ``w_T``.
        x: First coordinates.
        y: Second coordinates.
    """
    basis = plane.basis.to(snapshot.device)
    losses = torch.full((len(y), len(x)), torch.nan, dtype=torch.float64)
    for row, column in torch.cartesian_prod(torch.arange(len(y)), torch.arange(len(x))).tolist():
        a, b = (torch.stack([x[column], y[row]]) - plane.run).tolist()
        with moved(snapshot, a * basis[0] + b * basis[1]):
            losses[row, column] = mean_loss(snapshot)
    return losses.where(losses.isfinite(), torch.nan)


def _affordable(snapshot: ModelSnapshot, cells: int, most_seconds: float) -> ModelSnapshot:
    """Return the snapshot with as many of the samples as the grid has time for."""
    started = time.perf_counter()
    mean_loss(snapshot)
    seconds = cells * (time.perf_counter() - started)
    if seconds <= most_seconds:
        return snapshot
    largest = max(snapshot.groups, key=num_samples)
    most = max(FEWEST_SAMPLES, int(snapshot.size * most_seconds / seconds))
    return snapshot.on([take(largest, slice(0, most))])


def _round_factor(factor: float) -> float:
    """Round to the nearest of ..., 0.1, 0.2, 0.5, 1, 2, 5, 10, ... that is as far from 1 or further."""
    if math.isclose(factor, 1):
        return 1.0
    decade = 10.0 ** math.floor(math.log10(factor))
    candidates = [digit * decade for digit in (1, 2, 5, 10)]
    return max(c for c in candidates if c <= factor) if factor < 1 else min(c for c in candidates if c >= factor)
