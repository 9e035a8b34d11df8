"""Runs as they stand in logs, written by what users write them with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from torch.utils.tensorboard import SummaryWriter

from lightning_info.run_logs.run_log import RunLog

STEPS = (0, 10, 20, 30)
LAYERS = ("net.0", "net.2")
TRACE = "Trace of the Fisher information [nats]. A rise: sharper. A fall: flatter. Not to be trusted."
GUIDE = """### InfoPlaneCallback
- `info_plane*/I_XT*/*`: words

```
  measures   I_XT, I_TY in bits: binning, global range (over training so far); 30 bins
  samples    256 reference samples: the first that pass in training; eval mode
  module     Net, 14,458 trainable weights, categorical outputs (10,) a sample
```

"""
RESULT = "```\nfisher/trace fell\nnet.0 does not compress\n```"


def values(seed: int = 0) -> dict[str, list[tuple[int, float]]]:
    """Curves of all callbacks, and of the user's own, a little different for each seed."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for i, step in enumerate(STEPS):
        row = {
            "fisher/trace": 100.0 / (i + 1) + seed,
            "fisher/trace_stderr": 2.0,
            "fisher/coverage": 1.0,
            "stability/output_kl": 0.01 * i,
            "stability/fisher_distance": 0.011 * i,
            "stability/kl_ratio": 1.1,
            "weight_info/kl_precision": 50.0 - 10 * i,
            "weight_info/expected_loss": 3.0 - 0.5 * i,
            "weight_info/expected_loss_stderr": 0.1,
            "weight_info/predicted_loss": 2.9 - 0.5 * i,
            "train_loss": 2.0 / (i + 1),
            "val_accuracy": 0.5 + 0.1 * i,
            "epoch": float(i),
        }
        for depth, layer in enumerate(LAYERS):
            row[f"fisher_layers/{layer}"] = 10.0 ** (1 - depth) / (i + 1)
            row[f"info_plane/I_XT/{layer}"] = (7.5 if depth == 0 else 4.0) + 0.1 * i
            row[f"info_plane/I_TY/{layer}"] = 1.0 + 0.2 * i + 0.01 * seed
            row[f"info_plane_shuffled/I_TY/{layer}"] = 0.5
        for tag, value in row.items():
            curves.setdefault(tag, []).append((step, value))
    return curves


def run_log(name: str = "run", seed: int = 0) -> RunLog:
    """A run as it is read."""
    texts = {"lightning_info/how_to_read/text_summary": GUIDE, "lightning_info/result/text_summary": RESULT}
    return RunLog(name, values(seed), {"fisher/trace": TRACE}, texts, {"lr": 0.1, "seed": seed})


def write_run(folder: Path, seed: int = 0, curves: dict[str, list[tuple[int, float]]] | None = None) -> None:
    """A run in an event file."""
    with SummaryWriter(str(folder)) as writer:
        metadata = SummaryMetadata(
            summary_description=TRACE, plugin_data=SummaryMetadata.PluginData(plugin_name="scalars")
        )
        if curves is None or "fisher/trace" in curves:
            described = Summary(value=[Summary.Value(tag="fisher/trace", metadata=metadata)])
            writer._get_file_writer().add_summary(described, 0)
        for tag, curve in (values(seed) if curves is None else curves).items():
            for step, value in curve:
                writer.add_scalar(tag, value, step)
        if curves is None:
            writer.add_text("lightning_info/how_to_read", GUIDE, 0)
            writer.add_text("lightning_info/result", RESULT, 30)
            picture = np.zeros((8, 8, 3), np.uint8)
            writer.add_image("fisher/layers", picture, 30, dataformats="HWC")


def write_csv(folder: Path, seed: int = 0) -> None:
    """A run as Lightning's CSVLogger writes it."""
    folder.mkdir(parents=True)
    curves = values(seed)
    lines = [",".join(["step", *curves])]
    for i, step in enumerate(STEPS):
        lines.append(",".join([str(step), *(repr(curve[i][1]) for curve in curves.values())]))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "hparams.yaml").write_text(f"lr: 0.1\nseed: {seed}\n")
