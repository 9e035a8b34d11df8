"""Lightning's own demonstration modules."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Run, case, loader, run

WORDS, LENGTH = 60, 12


def vectors(n: int = 64) -> list[Tensor]:
    return list(torch.randn(n, 32))


def without_download(kind: type) -> type:
    """The class without the download of its own data."""
    return type(kind.__name__, (kind,), {"prepare_data": lambda self: None})


@case("BoringModel", "lightning", "demo", "squared error")
def boring() -> Run:
    from lightning.pytorch.demos.boring_classes import BoringModel

    module = BoringModel()
    return run(module, loader(vectors()), lambda m, b: (m(b)[0], "gaussian"), max_epochs=4)


@case("ManualOptimBoringModel", "lightning", "demo", "squared error, manual optimisation")
def manual() -> Run:
    from lightning.pytorch.demos.boring_classes import ManualOptimBoringModel

    module = ManualOptimBoringModel()
    return run(module, loader(vectors()), lambda m, b: (m(b)[0], "gaussian"), max_epochs=4)


@case("LightningTransformer", "lightning", "demo", "cross entropy of the words")
def transformer() -> Run:
    from lightning.pytorch.demos import LightningTransformer

    text = torch.randint(0, WORDS, (48, LENGTH + 1))
    module = without_download(LightningTransformer)(vocab_size=WORDS)
    rows = [(line[:-1], line[1:]) for line in text]
    return run(module, loader(rows, 8), lambda m, b: (m(b[0], b[1]).reshape(-1, WORDS).T, "categorical"))


@case("LightningLSTM", "lightning", "demo", "negative log-likelihood, state kept on the module")
def lstm() -> Run:
    from lightning.pytorch.demos.lstm import LightningLSTM

    text = torch.randint(0, WORDS, (48, LENGTH + 1))
    module = without_download(LightningLSTM)(vocab_size=WORDS)
    rows = [(line[:-1], line[1:]) for line in text]
    return run(module, loader(rows, 8))
