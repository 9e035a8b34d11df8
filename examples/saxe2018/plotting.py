"""The paper's kinds of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

Path = Sequence[tuple[int, float, float]]
"""A point ``(step, I(X;T), I(T;Y))``."""


def mean_plane(planes: Sequence[Mapping[str, Path]]) -> dict[str, Path]:
    """Return the mean of the planes of several networks, point by point."""
    return {
        layer: [tuple(np.mean(points, 0)) for points in zip(*(plane[layer] for plane in planes), strict=True)]
        for layer in planes[0]
    }


def draw_plane(figure: Figure, axes: Axes, plane: Mapping[str, Path], epochs: Mapping[int, float], title: str) -> None:
    """Draw I(T;Y) against I(X;T): a path for each layer, colour = epoch, the layers of one epoch joined."""
    last = max(epochs.values())
    scale = ScalarMappable(PowerNorm(0.4, 0, last), matplotlib.colormaps["gnuplot"])
    steps = [int(step) for step, *_ in next(iter(plane.values()))]
    values = np.array([[point[1:] for point in path] for path in plane.values()])
    colours = scale.to_rgba([epochs[step] for step in steps])
    axes.add_collection(LineCollection(list(values.swapaxes(0, 1)), colors=colours, linewidths=0.6, alpha=0.4))
    axes.scatter(*values.reshape(-1, 2).T, s=16, c=np.tile(colours, (len(plane), 1)), zorder=2)
    groups: list[tuple[np.ndarray, list[str]]] = []  # layers that end together have one label
    for layer, end in zip(plane, values[:, -1], strict=True):
        if groups and (abs(end - groups[-1][0]) < 0.03 * np.ptp(values, (0, 1))).all():
            groups[-1][1].append(layer.removeprefix("layer"))
        else:
            groups.append((end, [layer.removeprefix("layer")]))
    for end, names in groups if len(plane) > 1 else ():
        axes.annotate(", ".join(names), end, (4, 4), textcoords="offset points", fontsize=8)
    axes.set(title=title, xlabel="I(X;T) [bits]", ylabel="I(T;Y) [bits]")
    axes.margins(0.07)
    figure.colorbar(scale, ax=axes, label="epoch")


def draw_bound(axes: Axes, bound: Path) -> None:
    """Draw the bound that no layer can exceed into a plane."""
    x, y = np.array(sorted(point[1:] for point in bound)).T
    axes.plot(x, y, "--", color="0.3", linewidth=1, label="information-bottleneck bound")
    axes.legend(frameon=False, fontsize=8)


def draw_curves(axes: Axes, epochs: Sequence[float], curves: Mapping[str, np.ndarray], title: str, ylabel: str) -> None:
    """Draw the mean over the networks and the band from the smallest to the largest, ``(steps, S)``."""
    for name, values in curves.items():
        networks = np.asarray(values)
        axes.fill_between(epochs, networks.min(1), networks.max(1), alpha=0.2, linewidth=0)
        axes.plot(epochs, networks.mean(1), label=name)
    axes.set(title=title, xlabel="epoch", ylabel=ylabel)
    axes.legend(frameon=False, fontsize=8)


def draw_histograms(
    axes: Axes, epochs: Sequence[float], density: np.ndarray, ends: tuple[float, float], title: str
) -> None:
    """Draw the density of activations, ``(steps, bins)``: epochs to the right, activations upwards."""
    shown = np.asarray(density).T
    edges = np.linspace(*ends, len(shown) + 1)
    right = np.array([*epochs[1:], epochs[-1] * 1.02])
    mesh = axes.pcolormesh(
        [epochs[0], *right], edges, shown, norm=PowerNorm(0.4, 0, 1), cmap="viridis", rasterized=True
    )
    axes.set(title=title.replace("layer", "layer "), xlabel="epoch", ylabel="activation")
    axes.figure.colorbar(mesh, ax=axes, label="share of the activations")
