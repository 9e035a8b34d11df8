"""What StabilityCallback's twin costs: a whole fit with it, as a ratio to one without.

    python tests/benchmarks/twin.py [runs]

One thread; processor time of both threads, which take turns; runs with and without alternate, medians. Points are left
out but for the first and the last. Memory is the peak resident set of a process of its own (Linux), above that of a
process which imports and makes the same and does not train; of a twin with and without the figure at the end.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from engines import resnet18
from models import Classifier, trainer

from lightning_info import StabilityCallback

NETS = {
    "ResNet-18, 32x32, batches of 32": (resnet18, (3, 32, 32), 32, 8),
    "MLP 784-256-10, batches of 64": (
        lambda: nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)), (784,), 64, 400,
    ),
}  # fmt: skip
"""Name -> net, shape of a sample, samples of a batch, batches."""


class Trained(Classifier):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


def prepared(name: str):
    """A fit that is ready to start, without and with the twin."""
    make, shape, batch, batches = NETS[name]
    torch.manual_seed(0)
    x, y = torch.randn(batch * batches, *shape), torch.randint(0, 10, (batch * batches,))
    data = DataLoader(TensorDataset(x, y), batch, shuffle=True)

    def fit(*callbacks: StabilityCallback) -> None:
        trainer(*callbacks, max_epochs=1).fit(Trained(make()), data)

    return fit, (x[:2], y[:2])


class WithoutFigure(StabilityCallback):
    def _landscape(self, trainer):
        return None


def twin(reference, kind=StabilityCallback) -> StabilityCallback:
    return kind(0, 1, every_n_train_steps=10**9, reference=reference, summary=False, on_error="raise")


def seconds(run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def peak(name: str, mode: str) -> float:
    """MB, of a process of its own."""
    told = subprocess.run(
        [sys.executable, __file__, "memory", name, mode], capture_output=True, text=True, check=True
    ).stdout
    return float(told.split()[-1])


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["memory"]:
        name, mode = sys.argv[2:]
        fit, reference = prepared(name)
        if mode != "idle":
            kinds = {"twin": [WithoutFigure], "figure": [StabilityCallback]}.get(mode, [])
            fit(*[twin(reference, kind) for kind in kinds])
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(int(line.split()[1]) / 1e3)
        return
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print("| net | time with a twin / without | memory without, MB | with a twin | and the figure | weights, MB |")
    print("|---|---|---|---|---|---|")
    for name, (make, *_) in NETS.items():
        fit, reference = prepared(name)
        fit()
        ratios = []
        for _ in range(runs):
            plain = seconds(fit)
            ratios.append(seconds(lambda: fit(twin(reference))) / plain)  # noqa: B023
        idle, *trained = (peak(name, mode) for mode in ("idle", "plain", "twin", "figure"))
        weights = sum(p.numel() for p in make().parameters()) * 4e-6
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(
            f"| {name} | {ratio} | {' | '.join(f'{one - idle:.0f}' for one in trained)} | {weights:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
