"""Cost and memory of a Fisher-trace point and of a loss of a language model with many words, by a plain training pass.

    python tests/benchmarks/vocabulary.py [words]

A decoder of two layers of width 64, sentences of 64 words, batches of 4, 16 reference samples, 4 draws, one thread. The
loss in float64 and its gradient, as weight information and the empirical trace take them, is of 4 samples.
Each method in a process of its own; medians of the CPU time of a call, and the highest memory beyond that before.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_info.gradients import Plan
from lightning_info.quantities.fisher_trace.sampling import pool_trace
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

WORDS, LENGTH, WIDTH, BATCH, POOL, DRAWS, REPEATS = 50_257, 64, 64, 4, 16, 4, 5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.parts, self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(self.first(x)) for part in self.parts)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.mlp(self.second(x))


class Decoder(pl.LightningModule):
    def __init__(self, words: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(words, WIDTH), Block(), Block(), nn.Linear(WIDTH, words, bias=False))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def measured(name: str, words: int, results: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, pool = Decoder(words), torch.randint(words, (POOL, LENGTH + 1))
    run: Callable[[], object]
    if name == "plain":

        def run() -> object:
            module.zero_grad()
            return module.training_step(pool[:BATCH], 0).backward()
    else:
        snapshot = ModelSnapshot(replicate(module), Predictor(StandInTrainer(None)), [pool], BATCH, torch.device("cpu"))
        plan = Plan("backpack", 2)  # without the check, whose memory would be in that before

        def run() -> object:
            if name == "loss":
                prediction = snapshot.predictor(module, pool[:BATCH])
                return prediction.summed_loss().detach(), prediction.loss_gradient()
            fresh = snapshot.on(snapshot.groups)
            return pool_trace(fresh, plan, "importance", DRAWS, torch.Generator().manual_seed(0))

    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(REPEATS):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((statistics.median(times), (after - before) / 1024))


def main(words: int) -> None:
    context, found = multiprocessing.get_context("spawn"), {}
    for name in ("plain", "point", "loss"):
        results = context.SimpleQueue()
        process = context.Process(target=measured, args=(name, words, results))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{name} failed")
        found[name] = results.get()
    (plain, plain_memory), (point, memory), (loss, loss_memory) = (found[name] for name in ("plain", "point", "loss"))
    print(
        "| words | plain pass, s | point, plain passes of its draws | plain, MiB | point, times plain memory | ", end=""
    )
    print("loss, plain passes | loss, times plain memory |\n|---|---|---|---|---|---|---|")
    ratio = point / plain * BATCH / DRAWS
    print(f"| {words} | {plain:.2f} | {ratio:.1f} | {plain_memory:.0f} | {memory / plain_memory:.1f} | ", end="")
    print(f"{loss / plain:.1f} | {loss_memory / plain_memory:.1f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else WORDS)
