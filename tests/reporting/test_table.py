from __future__ import annotations

import math

from lightning_info.reporting.table import curves_table, lost_since, verdict_table


def test_a_curve_is_lost_where_its_last_points_have_no_value():
    curves = [
        [(0, 6.367), (4, math.nan), (8, math.nan), (12, math.nan)],
        [(0, 1.0), (4, math.nan), (8, 2.0), (12, math.inf)],
        [(0, 1.0), (4, math.nan), (12, 2.0)],
    ]
    assert [lost_since(curve) for curve in curves] == [4, 12, None]


def test_verdicts_by_layer_and_policy():
    falls = {
        "net.0": {"fixed": 0.0, "global": 0.004},
        "net.10": {"fixed": 12.346, "adaptive": 3.0},
        "head": {"global": math.nan},
    }
    table = verdict_table(falls, {"net.10": "compresses under every range", "net.0": "no compression"})
    header, *rows = table.splitlines()
    assert header.split("  ")[0] == "fall of I(X;T), bits"
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
    assert ", nats" in verdict_table({"a": {"fixed": 1.0}}, {}, "nats")


def test_tables_of_nothing():
    assert verdict_table({}, {}).split("  ") == ["fall of I(X;T), bits", "verdict"]
    assert curves_table({}) == "step"
