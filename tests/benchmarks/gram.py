"""Gram matrix of a ResNet-18's per-output gradients, as a ratio to a plain forward + backward pass of the same samples.

    python tests/benchmarks/gram.py [runs [samples]]

One thread; processor time, as cores are shared. 64 samples of 10 classes are 576 rows of 11.2 M weights; as a matrix
they would take 25.7 GB. Memory is the peak resident set of the process, before the first Gram matrix and behind the
last.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from engines import call, resnet18

from lightning_info.functional import exact_cotangents
from lightning_info.functional.spectrum import Spectrum
from lightning_info.gradients.gram import GramPlan


def seconds(run: Callable[[], object]) -> float:
    """Of the processor."""
    start = time.process_time()
    run()
    return time.process_time() - start


def peak() -> float:
    """GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runs, samples = (int(sys.argv[place]) if len(sys.argv) > place else default for place, default in ((1, 3), (2, 64)))
    net, x = resnet18().eval(), torch.randn(samples, 3, 32, 32)
    weights = sum(p.numel() for p in net.parameters())
    with torch.no_grad():
        columns = list(exact_cotangents(net(x), "categorical"))

    def plain() -> None:
        net.zero_grad(set_to_none=True)
        net(x).sum().backward()

    plain()
    net.zero_grad(set_to_none=True)
    print(f"{weights / 1e6:.1f} M weights, {samples * len(columns)} rows, peak after a plain pass {peak():.2f} GB")
    for _ in range(runs):
        base = min(seconds(plain) for _ in range(3))
        net.zero_grad(set_to_none=True)
        found: list[torch.Tensor] = []
        cost = seconds(lambda: found.append(GramPlan("taps", 0).gram(net, call, x, columns).matrix))  # noqa: B023
        spectrum = Spectrum.of_matrix(found[0] / samples, weights)
        print(
            f"plain {base:.2f} s, Gram {cost:.1f} s: {cost / base:.1f} times, peak {peak():.2f} GB; "
            f"trace {spectrum.trace:.5g}, effective rank {spectrum.effective_rank:.4g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
