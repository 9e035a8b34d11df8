"""The paths of two runs through the space of weights, kept within bounded memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_info.figures.stability_paths import Paths
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.real import as_real, flat
from lightning_info.quantities.stability.trajectory_plane import WeightPlane
from lightning_info.quantities.stability.weight_change import flat_weights

POINTS = 32
"""Largest number of points that are kept; when there are more, every second one is dropped."""
BYTES = 1 << 26
"""Bytes of all points (64 MiB, a quarter of a million weights in single precision); they are saved in checkpoints."""


class WeightTrajectory:
    """Keeps pairs of weights, of a run and its twin, on the CPU: the first, the last, and some evenly between.

    Weights are those of :func:`~.weight_change.flat_weights`. For a large net every point holds a fixed random sample
    of them, one from each of m equal pieces, so every layer has its share. The first point is also kept whole. If other
    parameters become trainable, the paths start anew.

    Args:
        seed: Seed of the sample of weights.

    Attributes:
        start: The weights of the run at the first point, whole, ``(k,)``; None before.
    """

    start: Tensor | None
    _names: dict[str, tuple[int, ...]]  # shapes by name
    _index: Tensor  # indices of the weights that every point holds
    _points: list[_Point]
    _every: int  # points whose number is a multiple are kept
    _count: int  # points so far

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._reset()

    def __len__(self) -> int:
        return len(self._points)

    @property
    def share(self) -> float:
        """Share of the weights that every point holds."""
        return 1.0 if self.start is None else len(self._index) / len(self.start)

    def relative(self, distance: float, run: nn.Module) -> float | None:
        """Divide a distance by the run's distance from its start; 0 for 0, None if the first point is not step 0.

        The result is NaN if the run is at its start and its twin is not.
        """
        if distance == 0:
            return 0.0
        if self.start is None or self._points[0].step != 0:
            return None
        moved = (flat_weights(run).cpu() - self.start).norm().item()
        return distance / moved if moved else math.nan

    @property
    def last_step(self) -> int | None:
        """Step of the last point; None before."""
        return self._points[-1].step if self._points else None

    def add(self, step: int, run: nn.Module, twin: nn.Module) -> None:
        """Keep the current weights of two modules with the same parameters.

        Args:
            step: Optimiser steps taken; an existing point at this step is replaced.
            run: The user's module.
            twin: The twin's module.
        """
        names = {name: tuple(p.shape) for name, p in trainable(run).items()}
        if self.start is None or names != self._names:
            self._reset()
            self._names, self.start = names, flat_weights(run).to("cpu", _precision(run))
            self._index = _one_of_each_piece(len(self.start), _most(self.start), self.seed)
        pair = torch.stack([self._some(run), self._some(twin)])
        if self._points and self._points[-1].step == step:
            self._points[-1] = self._points[-1]._replace(pair=pair)
            return
        if self._points and self._points[-1].number % self._every:
            self._points.pop()  # it was kept only as the last
        self._points.append(_Point(self._count, step, pair))
        self._count += 1
        if len(self._points) > POINTS:
            self._every *= 2
            *others, last = self._points
            self._points = [point for point in others if point.number % self._every == 0] + [last]

    def paths(self, plane: WeightPlane) -> Paths:
        """Return both paths in a plane through the first point.

        Coordinates are fitted by least squares to the kept weights: exact for points in the plane, and for all points
        if all weights are kept.

        Args:
            plane: A plane in the space of the weights that are kept now.

        Raises:
            ValueError: There is no point.
        """
        if self.start is None:
            raise ValueError("WeightTrajectory: no point was added")
        sizes = _piece_sizes(len(self.start), len(self._index)).double()
        basis, start = plane.basis.cpu()[:, self._index].double(), self.start[self._index].double()
        weighted = basis * sizes
        # one weight from a piece of c: the variance of the estimated sum is c (c - 1) times its square
        variances = basis.square() * sizes * (sizes - 1)
        coordinates, spread, away = [], torch.zeros(2, dtype=torch.float64), 0.0
        for point in self._points:
            moved = point.pair.double() - start
            coordinates.append(torch.linalg.solve(weighted @ basis.T, moved @ weighted.T, left=False))
            rest = moved - coordinates[-1] @ basis
            spread = torch.maximum(spread, (rest.square() @ variances.T).amax(0))
            away = max(away, (rest[0].square() @ sizes).sqrt().item())
        run, twin = torch.stack(coordinates, 1)
        return Paths([point.step for point in self._points], run, twin, self.share, spread.sqrt(), away)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain Python values and tensors."""
        if self.start is None:
            return {}
        return {
            "names": {name: list(shape) for name, shape in self._names.items()},
            "start": self.start,
            "index": self._index,
            "every": self._every,
            "count": self._count,
            "numbers": [point.number for point in self._points],
            "steps": [point.step for point in self._points],
            "pairs": torch.stack([point.pair for point in self._points]),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._reset()
        if state_dict:
            self._names = {name: tuple(shape) for name, shape in state_dict["names"].items()}
            self.start, self._index = state_dict["start"].cpu(), state_dict["index"].cpu()
            self._every, self._count = int(state_dict["every"]), int(state_dict["count"])
            points = zip(state_dict["numbers"], state_dict["steps"], state_dict["pairs"].cpu(), strict=True)
            self._points = [_Point(int(number), int(step), pair) for number, step, pair in points]

    def _reset(self) -> None:
        self.start, self._names, self._points = None, {}, []
        self._index = torch.empty(0, dtype=torch.int64)
        self._every, self._count = 1, 0

    def _some(self, module: nn.Module) -> Tensor:
        """Return the weights that every point holds, ``(m,)``."""
        parts, first = [], 0
        for weights in (flat(p.detach()) for p in trainable(module).values()):
            ends = torch.searchsorted(self._index, torch.tensor([first, first + len(weights)]))
            index = self._index[int(ends[0]) : int(ends[1])] - first
            parts.append(weights[index.to(weights.device)].cpu())
            first += len(weights)
        assert self.start is not None
        return torch.cat(parts).to(self.start)


class _Point(NamedTuple):
    number: int  # how many were added before
    step: int
    pair: Tensor  # (2, m): of the run and the twin


def _precision(module: nn.Module) -> torch.dtype:
    doubles = any(as_real(p).dtype == torch.float64 for p in trainable(module).values())
    return torch.float64 if doubles else torch.float32


def _most(weights: Tensor) -> int:
    return min(len(weights), BYTES // (2 * POINTS * weights.element_size()))


def _piece_sizes(whole: int, pieces: int) -> Tensor:
    """Cut ``whole`` into pieces whose sizes differ by at most one."""
    return (torch.arange(pieces + 1) * whole // pieces).diff()


def _one_of_each_piece(whole: int, pieces: int, seed: int) -> Tensor:
    sizes = _piece_sizes(whole, pieces)
    places = torch.rand(pieces, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return sizes.cumsum(0) - sizes + (places * sizes).long()
