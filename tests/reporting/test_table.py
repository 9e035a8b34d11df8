from __future__ import annotations

import math

from lightning_info.reporting.table import summary_table


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
