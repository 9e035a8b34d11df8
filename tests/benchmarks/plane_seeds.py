"""Verdicts on the layers of a ResNet-18 over training seeds and over seeds of the random combinations.

    python tests/benchmarks/plane_seeds.py [--npz FILE] [--seeds N] [--projection-seeds N] [--projections N]

The narrow ResNet-18 of ``examples/cifar_resnet.py`` on its generated images, or on CIFAR-10 with ``--npz``. In each
training as many InfoPlaneCallbacks as there are projection seeds look at the same points. A layer is *contradicted* in
a training if one of them says that it compresses and another that it does not. Beside it the information about the
label by decoders at the end, and what scikit-learn's cross-validated logistic regression proves with the same
activations (the best of three penalties and of both views).
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_info import InfoPlaneCallback
from lightning_info.quantities.information_plane import label_information

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from cifar_resnet import ResNet18, load

Seen = dict[str, tuple[list[torch.Tensor], torch.Tensor]]


def trained(data: Any, seed: int, callbacks: list[InfoPlaneCallback], epochs: int) -> Seen:
    """Views of the layers at the last point, and the labels."""
    seen: Seen = {}
    original = label_information.decoded

    def noted(views: Any, targets: Any, groups: Any, components: int, kind: str, layer: str, warn: Any) -> Any:
        seen[layer] = views, targets
        return original(views, targets, groups, components, kind, layer, warn)

    torch.manual_seed(seed)
    pixels = data.tensors[0][:1000].double()
    mean, std = pixels.mean((0, 2, 3)).float()[:, None, None], pixels.std((0, 2, 3)).float()[:, None, None]
    with patch.object(label_information, "decoded", noted):
        Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(ResNet18(8, mean, std), DataLoader(data, 64, shuffle=True))  # fmt: skip
    return seen


def by_logistic_regression(views: list[torch.Tensor], y: torch.Tensor) -> float:
    """Usable information in bits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    shares = torch.bincount(y).double() / len(y)
    entropy, best = -(shares[shares > 0] * shares[shares > 0].log2()).sum().item(), -math.inf
    for view in views:
        for strength in (1e-4, 1e-3, 1e-2):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100))
            told = cross_val_predict(model, view.numpy(), y.numpy(), cv=4, method="predict_proba")
            best = max(best, entropy + float(np.log2(told[np.arange(len(y)), y.numpy()]).mean()))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npz", type=Path)
    for name, default in (("seeds", 5), ("projection-seeds", 8), ("projections", 8), ("size", 2048), ("epochs", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data, _ = load(None, options.npz, options.size)
    columns = ("seed", "layer", "verdicts", "fall, global", "I(X;T), SD over projection seeds", "decoder", "logistic")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    layers = contradicted = 0
    for seed in range(options.seeds):
        planes = [
            InfoPlaneCallback(
                every_n_train_steps=8, seed=number, projections=options.projections, prefix=f"p{number}",
                label_information="binned" if number else "decoder", summary=False,
            )
            for number in range(options.projection_seeds)
        ]  # fmt: skip
        seen = trained(data, seed, planes, options.epochs)
        for layer in planes[0].verdicts:
            said = Counter(one.verdicts[layer].verdict.partition(":")[0] for one in planes)
            falls = [one.verdicts[layer].falls["global"] for one in planes]
            ends = [one.history[f"p{i}/info_plane_final/I_XT/{layer}"][-1][1] for i, one in enumerate(planes)]
            value, error = (
                planes[0].history[f"p0/info_plane_decoder{end}/I_TY/{layer}"][-1][1] for end in ("", "_stderr")
            )
            layers += 1
            contradicted += "does not compress" in said and any(word.startswith("compresses") for word in said)
            verdicts = ", ".join(f"{word} {count}" for word, count in said.most_common())
            cells = (seed, layer, verdicts, f"{min(falls):.2f} to {max(falls):.2f}", f"{np.std(ends, ddof=1):.2f}",
                     f"{value:.2f} ± {error:.2f}", f"{by_logistic_regression(*seen[layer]):.2f}")  # fmt: skip
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\n{contradicted} of {layers} layers contradicted")


if __name__ == "__main__":
    main()
