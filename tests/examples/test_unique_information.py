"""The example of unique information and corrupted labels: its criteria on scores that are known, and one short run."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import unique_information as ui
from achille2020.feature_learning import IN_PART, NOT, REPRODUCED

CORRUPTED = torch.arange(20) < 4
HIGH = torch.where(CORRUPTED, 10.0, 1.0) + torch.arange(20) / 100
MISLED = 12 - HIGH


def found(information, loss, ratio=1.0):
    scores = {ui.INFORMATION: information, ui.LOSS: loss, ui.GAP: loss}
    return ui.Found(torch.arange(20), torch.arange(20) + 1, CORRUPTED, scores, torch.full((20,), ratio))


def outcome(*runs) -> list[str]:
    return [row.verdict for row in ui.verdicts(runs)]


class TestVerdicts:
    def test_better_than_the_loss(self):
        assert outcome(found(HIGH, MISLED)) == [REPRODUCED] * 4

    def test_no_better_than_the_loss(self):
        assert outcome(found(HIGH, HIGH)) == [REPRODUCED, REPRODUCED, NOT, REPRODUCED]

    def test_clean_samples_hold_more(self):
        assert outcome(found(MISLED, HIGH, ratio=3.0)) == [NOT] * 4

    def test_one_seed_of_two(self):
        assert outcome(found(HIGH, MISLED), found(MISLED, HIGH, ratio=3.0)) == [IN_PART] * 4

    def test_values_that_are_missing_do_not_hold(self):
        missing = torch.full((20,), math.nan)
        assert outcome(found(missing, HIGH, ratio=math.nan))[0::3] == [NOT, NOT]

    def test_no_corrupted_sample_was_drawn(self):
        none = found(HIGH, MISLED)._replace(corrupted=torch.zeros(20, dtype=torch.bool))
        assert outcome(none)[:3] == [NOT] * 3


def test_precision_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    scores, corrupted = torch.rand(50, generator=generator), torch.rand(50, generator=generator) < 0.3
    chosen = scores >= scores.sort(descending=True).values[int(corrupted.sum()) - 1]
    assert 0 < ui.precision(scores, corrupted) < 1
    assert ui.precision(scores, corrupted) == pytest.approx(precision_score(corrupted, chosen))


def test_one_label_in_five_is_wrong():
    data = ui.digits(0, 100)
    bunch = load_digits()
    images = {bunch.data[i].tobytes(): bunch.target[i] for i in range(len(bunch.target))}
    pixels = torch.tensor(bunch.data).float()
    scale = (data.x.max() - data.x.min()) / (pixels.max() - pixels.min())
    back = ((data.x - data.x.min()) / scale).round().double().numpy()
    right = [images[row.tobytes()] == label for row, label in zip(back, data.y.tolist(), strict=True)]
    assert right == (~data.corrupted).tolist()
    assert data.corrupted.sum() == 20


def test_a_short_run(tmp_path, capsys):
    sizes = ["--samples", "60", "--twins", "6", "--epochs", "2", "--seeds", "1"]
    ui.main([*sizes, "--out", str(tmp_path)])
    assert (tmp_path / "unique_information.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "seed0")).Reload()
    each = [events.Scalars(f"stability_twin{number}/unique_information")[-1] for number in range(1, 7)]
    assert {point.step for point in each} == {4}
    assert all(0 < point.value < math.inf for point in each)
    mean = events.Scalars("stability/unique_information")[-1].value
    assert mean == pytest.approx(sum(point.value for point in each) / 6, rel=1e-5)
    assert "unique_information/ranking" in events.Tags()["images"]
    said = re.findall(r"^\(([a-d])\) .*: (reproduced|in part|not reproduced)$", capsys.readouterr().out, re.MULTILINE)
    assert [letter for letter, _ in said] == ["a", "b", "c", "d"]
