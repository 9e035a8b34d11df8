"""What ``EffectiveInfoCallback`` forecasts before the first step, by what the point at the end of a training takes.

    python tests/benchmarks/forecast.py [name of a net ...]

256 samples, two distortions, both reached at the end; five trainings each, CPU time of one thread. The median of the
ratio with its range, and the seconds of the forecast and of the point.
"""

from __future__ import annotations

import logging
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_info.callbacks.base import InfoCallback
from lightning_info.quantities.effective_information import cost_forecast
from lightning_info.replica import timing

sys.path.insert(0, str(Path(__file__).parent))
from effective_info import BATCH, EPOCHS, SAMPLES, DigitsNet, Mlp, Watched, cpu_seconds, loaders

TRIES = 5
CASES: dict[str, tuple[Callable[[], pl.LightningModule], int]] = {
    "MLP 64-32-16-10, 64 draws": (Mlp, 64),
    "MLP 64-32-16-10, 128 draws": (Mlp, 128),
    "quickstart's DigitsNet, 64 draws": (DigitsNet, 64),
}


def once(make: Callable[[], pl.LightningModule], draws: int) -> tuple[float, float]:
    """Seconds that are forecast, and that the last point takes."""
    watched = Watched(None, None, (0.05, 0.5), draws, "diagonal", 0)
    callback = InfoCallback(watched, every_n_epochs=EPOCHS, num_samples=SAMPLES, on_error="raise", summary=False)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        callbacks=[callback], max_epochs=EPOCHS, accelerator="cpu", enable_model_summary=False, **options
    )
    trainer.fit(make(), loaders(BATCH)[0])
    return watched.announced, watched.seconds


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    timing.seconds = cost_forecast.seconds = cpu_seconds
    print("| net | forecast, s | taken, s | forecast / taken |\n|---|---|---|---|", flush=True)
    for name, case in CASES.items():
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        found = [once(*case) for _ in range(TRIES)]
        ratios = sorted(forecast / taken for forecast, taken in found)
        forecast, taken = (statistics.median(values) for values in zip(*found, strict=True))
        print(
            f"| {name} | {forecast:.2f} | {taken:.2f} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f}-{ratios[-1]:.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
