"""``examples/memorise.py``: its verdicts and its figure, from made-up curves; its notebook's test trains."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import memorise

LEARNT = memorise.Run(0.98, 0.0, [(0, 100.0), (9, 5.0)], [(0, 30.0), (9, 1.0)], [3.1, 3.2])
BY_HEART = memorise.Run(0.1, 0.0, [(0, 100.0), (4, 900.0), (9, 50.0)], [(0, 30.0), (9, 12.0)], [0.0, 3.3])


def test_it_prints_verdicts_and_draws(monkeypatch, tmp_path, capsys):
    trained = []

    def train(labels, seed, epochs):
        trained.append((labels, seed, epochs))
        return LEARNT if labels == "true" else BY_HEART

    monkeypatch.setattr(memorise, "train", train)
    memorise.main(["--seeds", "2", "--epochs", "3", "--out", str(tmp_path)])
    assert trained == [("true", 1, 3), ("true", 2, 3), ("shuffled", 1, 3), ("shuffled", 2, 3)]
    assert (tmp_path / "memorise.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "shuffled, seed 2: training loss 0.0000, accuracy on others 0.100" in printed


def test_verdicts_tell_the_two_apart_and_do_not_where_nothing_does():
    assert all(row.holding == 2 for row in memorise.verdicts({"true": [LEARNT] * 2, "shuffled": [BY_HEART] * 2}))
    same = memorise.verdicts({"true": [LEARNT], "shuffled": [LEARNT]})
    assert [row.holding for row in same] == [1, 0, 1, 0, 0, 0]
