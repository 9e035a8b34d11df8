"""Cost of a point where two CPU processes share its work, and where one does all of it.

    python tests/benchmarks/processes.py

ResNet-18 on images of 32x32 under DDP, batches of 8, ``batch_norm="running"``: CPU seconds of each process for a point
of FisherTrace (64 samples, 32 draws) and of InfoPlane without decoders (64 samples), medians of three points.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback, InfoPlaneCallback

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from engines import resnet18
from models import Classifier


def run(processes: int) -> None:
    """Train for four steps and print the seconds of each callback in this process."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    common = {"reference": (x, y), "every_n_train_steps": 1, "batch_norm": "running", "summary": False}
    ours = [
        FisherTraceCallback(draws=32, **common),
        InfoPlaneCallback(label_information="binned", projections=1, **common),
    ]
    seconds: dict[str, list[float]] = {}
    for one in ours:

        def timed(*args: object, name: str = one.family, measure: object = one.quantity.measure) -> object:
            before = time.process_time()
            values = measure(*args)
            seconds.setdefault(name, []).append(time.process_time() - before)
            return values

        one.quantity.measure = timed
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    strategy = "ddp" if processes > 1 else "auto"
    trainer = Trainer(accelerator="cpu", devices=processes, strategy=strategy, max_steps=2, callbacks=[*ours], **silent)
    trainer.fit(Classifier(resnet18()), DataLoader(TensorDataset(x, y), 8))
    for name, found in seconds.items():
        print(f"{processes} process{number()} {name}: {statistics.median(found):.2f} s", flush=True)


def number() -> str:
    """Return which process this is."""
    return f" (rank {os.environ.get('LOCAL_RANK', 0)})"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        run(int(sys.argv[1]))
    else:
        for processes in ("1", "2"):
            subprocess.run([sys.executable, __file__, processes], check=True)
