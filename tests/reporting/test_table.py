from __future__ import annotations

import math

from lightning_info.reporting.table import curves_table, lost_since, summary_table, verdict_table


def test_start_peak_end_and_error():
    history = {
        "a/trace": [(0, 1.0), (10, 30.0), (20, math.nan), (30, 4.5)],
        "a/trace_stderr": [(0, 0.1), (10, 3.0), (20, math.nan), (30, 0.45)],
        "b/trace": [(0, math.nan)],
    }
    header, first, second = summary_table(history, [("a/trace", "a/trace_stderr"), ("b/trace", None)]).splitlines()
    assert header.split() == ["start", "peak", "(step)", "end", "±", "stderr", "points"]
    assert first.split() == ["a/trace", "1", "30", "(10)", "4.5", "0.45", "3"]
    assert second.split() == ["b/trace", "-", "-", "-", "-", "0"]
    assert len(header) == len(first) == len(second)


def test_a_curve_that_is_lost_does_not_end_in_its_last_value():
    history = {
        "switched": [(0, 6.367), (4, math.nan), (8, math.nan), (12, math.nan)],
        "switched_stderr": [(0, 0.27), (4, math.nan), (8, math.nan), (12, math.nan)],
        "diverged": [(0, 1.0), (4, math.nan), (8, 2.0), (12, math.inf)],
        "back": [(0, 1.0), (4, math.nan), (12, 2.0)],
    }
    rows = [("switched", "switched_stderr"), ("diverged", None), ("back", None)]
    _, switched, diverged, back = summary_table(history, rows).splitlines()
    assert switched.split()[1:] == ["6.367", "6.367", "(0)", *["lost", "since", "4", "(6.367", "at", "0)", "-", "1"]]
    assert diverged.split()[1:] == ["1", "2", "(8)", *["lost", "since", "12", "(2", "at", "8)", "-", "2"]]
    assert back.split()[-3:] == ["2", "-", "2"]
    assert [lost_since(curve) for curve in history.values()] == [4, 4, 12, None]


def test_verdicts_by_layer_and_policy():
    falls = {
        "net.0": {"fixed": 0.0, "global": 0.004},
        "net.10": {"fixed": 12.346, "adaptive": 3.0},
        "head": {"global": math.nan},
    }
    table = verdict_table(falls, {"net.10": "compresses under every range", "net.0": "no compression"})
    header, *rows = table.splitlines()
    assert header.split("  ")[0] == "fall from peak to end (bits)"
    assert header.split()[-4:] == ["fixed", "global", "adaptive", "verdict"]
    assert [row.split(maxsplit=4) for row in rows] == [
        ["net.0", "0.00", "0.00", "-", "no compression"],
        ["net.10", "12.35", "-", "3.00", "compresses under every range"],
        ["head", "-", "-", "-", "-"],
    ]
    ends = [header.index(name) + len(name) for name in ("fixed", "global", "adaptive")]
    assert all(row[end - 1] != " " and row[end : end + 2] == "  " for row in rows for end in ends)
    assert {row.index(verdict) for row, verdict in zip(rows[:2], ("no comp", "compresses"), strict=True)} == {
        header.index("verdict")
    }
    assert "(nats)" in verdict_table({"a": {"fixed": 1.0}}, {}, "nats")


def test_tables_of_nothing():
    assert verdict_table({}, {}).split("  ") == ["fall from peak to end (bits)", "verdict"]
    assert curves_table({}) == "step"
    assert summary_table({"a": []}, [("a", None)]).splitlines()[1].split() == ["a", "-", "-", "-", "-", "0"]
