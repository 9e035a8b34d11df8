"""The reproduction of figure 2 of Achille et al. (2020): its criteria on runs that are known, and one short run."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import global_state_kept
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.append(str(Path(__file__).parents[2] / "examples" / "achille2020"))

import feature_learning as fl

SPEC = importlib.util.spec_from_file_location("achille2020_figure2", Path(fl.__file__).with_name("figure2.py"))
figure2 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figure2)

EIGENVALUES = np.array([4.0, 1.0, 0.25, 0.0])
SAMPLES = 400


def run(change: list[float], way: float = 1.0, kl_ratio: float = 1.0, loss_gap: float = 0.0, accuracy: float = 1.0):
    """Run and twin that part by ``change``, under a diagonal F, after a ``way`` from the initial weights."""
    quadratic = float(EIGENVALUES @ np.square(change))
    distance = float(np.linalg.norm(change))
    ends = (distance, distance / way, quadratic / 2, kl_ratio * quadratic / 2, SAMPLES * quadratic / 2, loss_gap)
    curves = [np.array([0.0, end]) for end in ends]
    return figure2.Run(np.array([0, 10]), *curves, np.full(2, EIGENVALUES.sum()), len(EIGENVALUES), accuracy)


SLOPPY = [0.0, 0.0, 1e-3, 5e-3]
STIFF = [2.0, 0.0, 0.0, 0.0]


def outcome(*runs) -> dict[str, str]:
    rows = figure2.verdicts(runs)
    return {letter: fl.summary(rows, letter) for letter in "abcde"}


class TestVerdicts:
    def test_a_small_change_in_sloppy_directions(self):
        assert set(outcome(run(SLOPPY)).values()) == {fl.REPRODUCED}

    def test_a_large_change_in_the_stiffest_direction(self):
        assert set(outcome(run(STIFF, kl_ratio=8.0, loss_gap=3.0, accuracy=0.5)).values()) == {fl.NOT}

    def test_small_by_the_mean_loss_only(self):
        assert outcome(run([0.04, 0.0, 0.0, 0.0]))["b"] == fl.IN_PART  # 0.08 of the radius, but 1.28 nats
        assert outcome(run([0.02, 0.0, 0.0, 0.0]))["b"] == fl.REPRODUCED  # 0.32 nats

    def test_nothing_is_memorised_where_nothing_is_learned(self):
        assert outcome(run(SLOPPY, accuracy=0.5))["c"] == fl.IN_PART

    def test_one_seed_of_two(self):
        assert set(outcome(run(SLOPPY), run(STIFF, kl_ratio=0.1, loss_gap=3.0, accuracy=0.5)).values()) == {fl.IN_PART}

    def test_values_that_are_missing_do_not_hold(self):
        assert set(outcome(run([math.nan] * 4, loss_gap=math.nan, accuracy=math.nan)).values()) == {fl.NOT}


def test_curvature_along_an_eigenvector_is_its_eigenvalue():
    for direction, eigenvalue in zip(np.eye(4), EIGENVALUES, strict=True):
        one = run(0.3 * direction)
        assert one.curvature[-1] == pytest.approx(eigenvalue, abs=1e-12)
        assert one.radius[-1] == pytest.approx(0.3 * math.sqrt(eigenvalue), abs=1e-12)
        assert math.isnan(one.curvature[0])


@pytest.mark.parametrize("side", [8, 28])
def test_all_cnn(side):
    net = figure2.AllCNN(2)
    assert net(torch.zeros(3, 1, side, side)).shape == (3, 10)


def test_all_cnn_has_its_number_of_weights():
    weights = sum(p.numel() for p in figure2.AllCNN(96).parameters())
    assert weights == 1_369_738 - 2 * 9 * 96  # All-CNN-C of ten classes; images of one channel, not three


class TestMNIST:
    def test_images_and_labels(self, tmp_path, monkeypatch):
        images = torch.randint(256, (7, 28, 28), dtype=torch.uint8)
        asked = []

        def mnist(root, train, download):
            asked.append((root, train, download))
            return types.SimpleNamespace(data=images, targets=torch.arange(7))

        monkeypatch.setitem(sys.modules, "torchvision.datasets", types.SimpleNamespace(MNIST=mnist))
        x, y = figure2.load(tmp_path, 5)
        assert asked == [(tmp_path, True, True)]
        assert y.tolist() == [0, 1, 2, 3, 4]
        pixels = images[:5].double()
        assert x.shape == (5, 1, 28, 28)
        assert torch.allclose(x[:, 0].double(), (pixels - pixels.mean()) / pixels.std(), atol=1e-5)

    def test_torchvision_is_asked_for_by_name(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
        with pytest.raises(SystemExit, match="pip install torchvision"):
            figure2.load(tmp_path, None)

    def test_full_is_mnist(self, capsys):
        with pytest.raises(SystemExit):
            figure2.main(["--full"])
        assert "--data-root" in capsys.readouterr().err


def test_a_short_run(tmp_path, capsys):
    sizes = ["--width", "2", "--train-size", "240", "--epochs", "2", "--every", "2"]
    with global_state_kept():  # the example takes deterministic algorithms
        figure2.main(["--seeds", "1", *sizes, "--out", str(tmp_path)])
    assert (tmp_path / "figure2.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "figure2" / "seed0")).Reload()
    for tag in ("stability/param_distance", "stability/fisher_distance", "stability/loss_gap", "fisher/trace"):
        points = events.Scalars(tag)
        assert [point.step for point in points] == [0, 2, 4], tag
        assert all(math.isfinite(point.value) for point in points), tag
    assert events.Scalars("stability/param_distance")[-1].value > 0
    assert "achille2020/figure2" in events.Tags()["images"]
    said = re.findall(r"^\(([a-e])\) .*: (reproduced|in part|not reproduced)$", capsys.readouterr().out, re.MULTILINE)
    assert [letter for letter, _ in said] == ["a", "b", "c", "d", "e"]
