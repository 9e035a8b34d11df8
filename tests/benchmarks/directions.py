"""How many random directions of a wide layer a thousand samples resolve: binned information of the quickstart's net.

    python tests/benchmarks/directions.py

Trains the quickstart's net on scikit-learn's digits and prints I(X;T), I(T;Y) and, in brackets, what I(T;Y) reads with
shuffled labels, for 1024 samples in 30 bins over each layer's range, at initialisation and trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_info.functional import bin_codes, code_information, shuffled_information
from lightning_info.quantities.information_plane.features import LayerFeatures

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from quickstart import DigitsNet, loaders

DIRECTIONS, SAMPLES, LAYERS = (1, 2, 3, 5, 10), 1024, ("features.0", "features.1", "features.2")


class Wide(DigitsNet):
    """Four times as wide, so that the last layer has 256 channels."""

    def __init__(self):
        super().__init__(128)


def rows(module: nn.Module, x: torch.Tensor, y: torch.Tensor, when: str) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None
    with torch.no_grad():
        module.train()(x)  # statistics of the samples
        module.eval()
        for name in LAYERS:
            x = module.get_submodule(name)(x)
            means, cells = x.mean((2, 3)), []
            for directions in DIRECTIONS:
                codes = bin_codes(LayerFeatures((), directions, 0).project(means))
                i, chance = code_information(codes, y), shuffled_information(codes, y, repeats=3)
                cells.append(f"{i.I_XT:.1f}, {i.I_TY:.1f} ({chance.mean:.1f})")
            print(f"| {when} | {name}, {means.shape[1]} channels | " + " | ".join(cells) + " |")


def main() -> None:
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    train, _ = loaders(64)
    x, y = (part[:SAMPLES] for part in train.dataset.tensors)
    module = Wide()
    print("| | layer | " + " | ".join(map(str, DIRECTIONS)) + " |\n|" + "---|" * (2 + len(DIRECTIONS)))
    rows(module, x, y, "initial")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    pl.Trainer(max_epochs=10, accelerator="cpu", devices=1, **quiet).fit(module.train(), train)
    rows(module, x, y, "trained")


if __name__ == "__main__":
    main()
