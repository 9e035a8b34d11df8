"""The ResNet example, at its smallest: generated images, an npz file, and what its event file holds."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SPEC = importlib.util.spec_from_file_location(
    "cifar_resnet", Path(__file__).parents[2] / "examples" / "cifar_resnet.py"
)
cifar_resnet = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cifar_resnet)


def test_event_file_holds_all_callbacks(tmp_path, capsys):
    cifar_resnet.main(["--width", "4", "--train-size", "64", "--epochs", "1", "--logdir", str(tmp_path)])
    events = EventAccumulator(str(tmp_path / "cifar_resnet" / "version_0")).Reload()
    for tag in (
        "fisher/trace",
        "weight_info/kl",
        "weight_info/log_det",
        "weight_info/expected_loss",
        "stability/param_distance",
        "stability/output_kl",
        "val_accuracy",
    ):
        points = events.Scalars(tag)
        assert points, tag
        assert all(math.isfinite(point.value) for point in points), tag
    assert {point.step for point in events.Scalars("weight_info/log_det")} == {0, 1}
    assert events.Scalars("effective_info/beta")
    said = capsys.readouterr().out
    assert f"tensorboard --logdir {tmp_path}" in said
    for image in said.split("Images: ")[1].splitlines()[0].split(", "):
        assert image in events.Tags()["images"]


def test_resnet_18_has_its_number_of_weights():
    net = cifar_resnet.ResNet18(64, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    assert sum(weight.numel() for weight in net.parameters()) == 11_173_962  # with the stem for CIFAR and ten classes


def test_npz(tmp_path):
    rng, arrays = np.random.default_rng(0), {}
    for split, number in (("train", 6), ("test", 3)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = rng.integers(0, 10, number, dtype=np.uint8)
    np.savez(tmp_path / "few.npz", **arrays)
    train, test = cifar_resnet.load(None, tmp_path / "few.npz", 4)
    assert (len(train), len(test)) == (4, 3)
    image, label = train[2]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), arrays["x_train"][2])
    assert label.dtype == torch.long
    assert label == arrays["y_train"][2]


def test_torchvision_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(SystemExit, match="pip install torchvision"):
        cifar_resnet.load(tmp_path, None, None)


def test_gratings_show_every_class():
    x, y = cifar_resnet.gratings(200, torch.Generator().manual_seed(0))
    assert x.shape == (200, 32, 32, 3)
    assert x.dtype == np.uint8
    assert set(y) == set(range(10))
