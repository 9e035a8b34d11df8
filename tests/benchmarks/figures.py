"""What a figure costs: drawn from its values and handed to TensorBoard, or rendered to pixels alone.

    python tests/benchmarks/figures.py [folder for the pictures]

CPU time on one thread. *First* is the first figure of a process, with fonts and the layout yet to be loaded; the others
are medians of later ones. The values are made up, as many as a long run has.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_info.figures.curve_panels import curve_panels
from lightning_info.figures.information_plane import PlaneCurve, information_plane
from lightning_info.figures.layer_heat_map import layer_heat_map
from lightning_info.figures.rate_distortion import rate_distortion
from lightning_info.figures.stability_paths import stability_paths
from lightning_info.functional.rate_distortion import RatePoint
from lightning_info.quantities.stability.loss_landscape import Ellipse, LossLandscape
from lightning_info.quantities.stability.weight_trajectory import Paths
from lightning_info.reporting.figures import report_figure

REPEATS = 9


def plane() -> Figure:
    """Eight layers at 60 points, one of them at its ceiling."""
    steps = [0, *(2**i for i in range(10)), *range(600, 30_000, 600)]
    falls = [(0.9 * layer, 0.2 * layer) for layer in range(8)]
    curves = [
        PlaneCurve(
            f"features.{layer}.relu",
            [(s, 9.4 - fall * s / (s + 3000), 2.9 * s / (s + 200 + 90 * layer) - rise / 9) for s in steps],
            saturated=layer == 0,
        )
        for layer, (fall, rise) in enumerate(falls)
    ]
    return information_plane(
        curves,
        title="Information plane: binning, global range (over training), 30 bins, 1024 samples",
        ceiling_x=10.0,
        ceiling_y=math.log2(10),
        epochs={s: s / 600 for s in steps},
        caption="I(T;Y) at the end with shuffled labels: 2.9, 1.4, 1.2, 1.1, 0.8, 0.5, 0.4, 0.3",
    )


def heat_map() -> Figure:
    """The 62 parameter tensors' modules of a ResNet-18 at 60 points."""
    curves = {
        f"layer{1 + layer // 16}.{layer // 8 % 2}.conv{layer % 8}": [
            (600 * i, (1 + layer) * math.exp(-i / 20)) for i in range(60)
        ]
        for layer in range(62)
    }
    return layer_heat_map(curves, "Fisher trace by module", "nats per squared weight change")


def panels() -> Figure:
    """Nine quantities at 60 points, with bands."""
    curves = {f"fisher/quantity{k}": [(600 * i, math.exp(-i / (5 + k))) for i in range(60)] for k in range(9)}
    return curve_panels(curves, {tag: {step: 0.05 for step, _ in curve} for tag, curve in curves.items()})


def weights() -> Figure:
    """17 levels at four epochs."""
    curves = {
        epoch: [
            RatePoint(b, 0.1, 500 / b**0.5 / epoch, 3.0 * epoch, 0.1 + b * (1 + b), 0.01, 0.1 + b, 0.1)
            for b in (10 ** (i / 4 - 4) for i in range(17))
        ]
        for epoch in (1.0, 4.0, 16.0, 30.0)
    }
    main = curves[1.0][8].beta
    return rate_distortion(curves, main, caption="reference samples: 256; draws: 64; prior N(0, 0.01)")


def paths() -> Figure:
    """200 points of both runs, contours on a grid of 25, two ellipses."""
    along = torch.linspace(0, 8, 200).double()
    run, twin = torch.stack([along, 0 * along], 1), torch.stack([along, along / 10], 1)
    x, y = torch.linspace(-1, 11, 25).double(), torch.linspace(-5, 6, 25).double()
    loss = (x - 8).square() + 2 * y[:, None].square()
    ellipses = {"F": Ellipse(torch.diag(torch.tensor([1.0, 0.5])).double(), 1.0)}
    ellipses["diag F"] = Ellipse(torch.diag(torch.tensor([9.0, 5.0])).double(), 0.2)
    shown = Paths(list(range(200)), run, twin, 0.1, torch.tensor([0.01, 0.02]), 0.25)
    picture = LossLandscape(shown, ellipses, x, y, loss, 256, "twin")
    return stability_paths(picture, title="sample 3 replaced by sample 5; steps 0 to 1990", caption="β = 1")


FIGURES: dict[str, Callable[[], Figure]] = {
    "information plane": plane,
    "heat map of layers": heat_map,
    "curves, nine panels": panels,
    "rate-distortion": weights,
    "paths of two runs": paths,
}


def timed(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def costs(name: str, found: multiprocessing.Queue) -> None:
    """First and later seconds with TensorBoard, later ones of rendering alone; whether pyplot was imported."""
    torch.set_num_threads(1)
    draw = FIGURES[name]
    with TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder)
        trainer = SimpleNamespace(loggers=[logger], is_global_zero=True)

        def logged() -> None:
            errors = report_figure(trainer, "figure", draw(), 0)
            logger.experiment.flush()
            assert not errors

        logger.experiment.flush()
        already = "matplotlib.pyplot" in sys.modules
        first = timed(logged)
        later = statistics.median(timed(logged) for _ in range(REPEATS))
        rendered = statistics.median(timed(lambda: FigureCanvasAgg(draw()).draw()) for _ in range(REPEATS))
        found.put((first, later, rendered, already, "matplotlib.pyplot" in sys.modules))


def main() -> None:
    if sys.argv[1:]:
        for name, draw in FIGURES.items():
            draw().savefig(Path(sys.argv[1]) / f"{name.replace(' ', '_')}.png")
    print("| figure | first, s | later, s | rendering alone, s | imports pyplot |\n|---|---|---|---|---|", flush=True)
    processes = multiprocessing.get_context("spawn")
    for name in FIGURES:
        found = processes.Queue()
        process = processes.Process(target=costs, args=(name, found))
        process.start()
        first, later, rendered, already, now = found.get()
        process.join()
        pyplot = "before us" if already else "yes" if now else "no"
        print(f"| {name} | {first:.2f} | {later:.3f} | {rendered:.3f} | {pyplot} |", flush=True)


if __name__ == "__main__":
    main()
