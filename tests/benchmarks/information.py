"""Cost of a point of the information plane, by binning and by the bounds of the mixture.

    python tests/benchmarks/information.py

Binning: I(X;T) and I(T;Y) of all six layers of the 12-10-7-5-4-3-2 tanh network on its 4096 patterns, against the
plain method in NumPy (``digitize`` and ``unique`` over rows, once for all samples and once for each class). Mixture:
the bounds, and with one draw of the sampling estimate, as a ratio to the matrix product of all pairs alone. All methods
of a table are interleaved in one process on one thread, each first in turn; CPU time, medians, with the quartiles of
the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_info.functional import binned_information, mixture_information

WIDTHS, BINS = (12, 10, 7, 5, 4, 3, 2), 30
SIZES = ((10_000, 1024), (10_000, 10), (1024, 1024))


def entropy(rows: np.ndarray) -> float:
    """Of the rows, in bits."""
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))
    p = np.unique(whole, return_counts=True)[1] / len(rows)
    return -(p * np.log2(p)).sum()


def plain(t: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """I(X;T) and I(T;Y) with the bins of every sample as a row of numbers."""
    bins = np.digitize(t, np.linspace(-1, 1, BINS + 1)[1:-1])
    whole = entropy(bins)
    given = sum((y == label).mean() * entropy(bins[y == label]) for label in np.unique(y))
    return whole, whole - given


def timed(methods: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each method, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(repeats):
        first = repeat % len(methods)
        for name, run in [*methods.items(), *methods.items()][first : first + len(methods)]:
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return times


def ratio(times: list[float], reference: list[float]) -> str:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(times, reference, strict=True)], n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def six_layers() -> None:
    x = torch.arange(4096).unsqueeze(1).bitwise_right_shift(torch.arange(12)).bitwise_and(1).float()
    y = (x.sum(1) + x[:, 0] > 6).long()
    layers, h = [], 2 * x - 1
    for width_in, width in pairwise(WIDTHS):
        h = torch.tanh(h @ (1.5 * torch.randn(width_in, width) / width_in**0.5))
        layers.append(h)
    arrays, labels = [t.numpy() for t in layers], y.numpy()
    for t, array in zip(layers, arrays, strict=True):
        assert np.allclose(binned_information(t, y, BINS, "fixed"), plain(array, labels), rtol=0, atol=1e-12)
    times = timed(
        {
            "fixed range": lambda: [binned_information(t, y, BINS, "fixed") for t in layers],
            "adaptive range": lambda: [binned_information(t, y, BINS) for t in layers],
            "plain NumPy": lambda: [plain(array, labels) for array in arrays],
        },
        repeats=101,
    )
    print("| six layers, 4096 patterns | median, ms | lowest, ms | plain NumPy takes times |\n|---|---|---|---|")
    for name, values in times.items():
        faster = ratio(times["plain NumPy"], values)
        print(f"| {name} | {1e3 * statistics.median(values):.2f} | {1e3 * min(values):.2f} | {faster} |")


def memory(field: str) -> float:
    """Resident memory now (``VmRSS``) or at its highest (``VmHWM``), MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def product(t: Tensor) -> None:
    """All pairs, as the bounds go through them: 512 samples at a time."""
    for rows in t.split(512):
        rows @ t.T


def peak(n: int, d: int) -> float:
    """What the bounds take beside their input, MB."""
    t, y = torch.randn(n, d), torch.randint(0, 10, (n,))
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = memory("VmRSS")
    mixture_information(t, y, 0.01, draws=0)
    return memory("VmHWM") - before


def mixture(n: int, d: int) -> str:
    t, y = torch.randn(n, d), torch.randint(0, 10, (n,))
    times = timed(
        {
            "product": lambda: product(t),
            "bounds": lambda: mixture_information(t, y, 0.01, draws=0),
            "draw": lambda: mixture_information(t, y, 0.01, draws=1),
        },
        repeats=7,
    )
    seconds = statistics.median(times["product"])
    ratios = " | ".join(ratio(times[name], times["product"]) for name in ("bounds", "draw"))
    return f"| {n} x {d} | {seconds:.2f} | {ratios} |"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    six_layers()
    print(f"\nPeak memory of the bounds of {SIZES[0]}: {peak(*SIZES[0]):.0f} MB\n")
    print("| mixture | product alone, s | bounds, times | with one draw, times |\n|---|---|---|---|")
    for n, d in SIZES:
        print(mixture(n, d))


if __name__ == "__main__":
    main()
