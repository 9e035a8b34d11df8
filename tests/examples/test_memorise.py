"""``examples/memorise.py``: trainings of an epoch, and the verdicts on made-up curves of which the answer is known."""

import pytest

pytest.importorskip("sklearn")


@pytest.fixture
def memorise(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "examples"))
    import memorise

    return memorise


def test_it_trains_measures_and_draws(memorise, monkeypatch, tmp_path, capsys):
    for name, value in {"SAMPLES": 64, "HELD": 8, "BATCH": 32}.items():
        monkeypatch.setattr(memorise, name, value)
    runs = memorise.main(["--epochs", "1", "--out", str(tmp_path)])
    assert set(runs) == {"true", "shuffled"}
    for (run,) in runs.values():
        assert [step for step, _ in run.trace] == [step for step, _ in run.precision] == [0, 2]
        assert len(run.known) == 3
    assert (tmp_path / "memorise.png").stat().st_size > 10_000
    assert "accuracy on others" in capsys.readouterr().out


def test_verdicts_tell_the_two_apart_and_do_not_where_nothing_does(memorise):
    learnt = memorise.Run(0.98, 0.0, [(0, 100.0), (9, 5.0)], [(0, 30.0), (9, 1.0)], [3.1, 3.2])
    by_heart = memorise.Run(0.1, 0.0, [(0, 100.0), (4, 900.0), (9, 50.0)], [(0, 30.0), (9, 12.0)], [0.0, 3.3])
    assert all(row.holding == 2 for row in memorise.verdicts({"true": [learnt] * 2, "shuffled": [by_heart] * 2}))
    same = memorise.verdicts({"true": [learnt], "shuffled": [learnt]})
    assert [row.holding for row in same] == [1, 0, 1, 0, 0, 0]
