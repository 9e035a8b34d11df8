"""The reproduction of figure 1 of Achille et al. (2020): its criteria on curves that are known, and one short run."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import scipy.stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.append(str(Path(__file__).parents[2] / "examples" / "achille2020"))

import feature_learning as fl

GRID, POINTS = 41, 101
TIME = np.linspace(0, 1, POINTS)
AT = (25, 50, 75)  # of the bumps
FEATURES = sum(1 / (1 + np.exp(-(np.arange(POINTS) - at) / 1.5)) for at in AT)  # learned so far


def run(log_det: np.ndarray, learned: np.ndarray = FEATURES) -> fl.Curves:
    """Logits of a wave that grows by one period with each feature: the boundary is longer the more is learned."""
    x, y = np.meshgrid(np.linspace(0, 1, GRID), np.linspace(0, 1, GRID))
    logits = np.stack([y - 0.5 - 0.12 * n * np.sin(2 * np.pi * n * x) for n in learned])
    return fl.Curves(list(range(POINTS)), log_det, logits, 0.5 + learned / 6, 1.0)


def bumpy(at=AT) -> np.ndarray:
    return sum(4 * np.exp(-(((np.arange(POINTS) - one) / 2) ** 2)) for one in at)


def outcome(*curves: fl.Curves) -> dict[str, str]:
    rows = fl.verdicts(curves)
    return {letter: fl.summary(rows, letter) for letter in "abc"}


class TestVerdicts:
    def test_rising_with_bumps_where_features_are_learned(self):
        assert set(outcome(run(20 + 60 * TIME + bumpy())).values()) == {fl.REPRODUCED}

    def test_bumps_elsewhere(self):
        assert outcome(run(20 + 60 * TIME + bumpy((12, 37, 62)))) == {
            "a": fl.REPRODUCED,
            "b": fl.REPRODUCED,
            "c": fl.NOT,
        }

    @pytest.mark.parametrize("curve", [np.full(POINTS, 20.0), 80 - 60 * TIME], ids=["flat", "falling"])
    def test_flat_or_falling(self, curve):
        assert set(outcome(run(curve)).values()) == {fl.NOT}

    def test_rising_and_falling_back(self):
        assert outcome(run(20 + 60 * np.sin(np.pi * TIME)))["a"] == fl.IN_PART

    def test_one_seed_of_two(self):
        assert set(outcome(run(20 + 60 * TIME + bumpy()), run(np.full(POINTS, 20.0))).values()) == {fl.IN_PART}

    def test_values_that_are_missing_do_not_hold(self):
        assert set(outcome(run(np.full(POINTS, math.nan))).values()) == {fl.NOT}

    def test_nothing_learned(self):
        assert outcome(run(20 + 60 * TIME + bumpy(), np.ones(POINTS)))["c"] == fl.NOT


class TestParts:
    def test_bumps_are_those_of_scipy(self):
        curve = np.random.default_rng(0).standard_normal(400).cumsum()
        tops, _ = scipy.signal.find_peaks(curve, prominence=fl.PROMINENCE * np.ptp(curve))
        widths = scipy.signal.peak_widths(curve, tops, rel_height=0.5)
        bumps = fl.bumps(curve)
        assert len(tops) > 10
        assert [bump.top for bump in bumps] == tops.tolist()
        for bump, left, right in zip(bumps, *widths[2:], strict=True):  # scipy's lie between two points
            assert 0 <= left - bump.left < 1
            assert 0 <= bump.right - right < 1

    def test_rank_correlation_is_that_of_scipy(self):
        a, b = np.random.default_rng(0).integers(0, 20, (2, 50))  # with ties
        assert fl.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)

    def test_length_of_a_circle(self):
        ends = np.linspace(-2, 2, 201)
        x, y = np.meshgrid(ends, ends)
        assert fl.zero_level_length(ends, np.hypot(x, y) - 1.5) == pytest.approx(3 * np.pi, rel=1e-3)
        assert fl.zero_level_length(ends, np.ones((201, 201))) == 0

    def test_contrast(self):
        movement = np.array([1.0, 1, 1, 1, 3, 3, 1, 1, 1, 1])
        assert fl.contrast(movement, fl.Bump(4, 5, 6)) == 3
        assert math.isnan(fl.contrast(0 * movement, fl.Bump(4, 5, 6)))


def test_a_short_run(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("achille2020_figure1", Path(fl.__file__).with_name("figure1.py"))
    figure1 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figure1)
    figure1.main(["--seeds", "1", "--steps", "20", "--every", "10", "--out", str(tmp_path)])

    assert (tmp_path / "figure1.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "figure1" / "seed0")).Reload()
    log_det = events.Scalars("weight_info/log_det")
    assert [point.step for point in log_det] == [0, 10, 20]
    assert all(math.isfinite(point.value) for point in log_det)
    assert "achille2020/figure1" in events.Tags()["images"]
    said = re.findall(r"^\(([abc])\) .*: (reproduced|in part|not reproduced)$", capsys.readouterr().out, re.MULTILINE)
    assert [letter for letter, _ in said] == ["a", "b", "c"]
