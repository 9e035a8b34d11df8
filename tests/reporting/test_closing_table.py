"""The table at the end of fit: what a stranger reads without a manual, in a terminal of 80 columns."""

from __future__ import annotations

import math

import pytest

from lightning_info.reporting.closing_table import WIDTH, Row, closing_table, parts_of
from lightning_info.reporting.description import Description

KNOWN = Description("Something", "nats", rises="it is more", falls="it is less")


def told(curve, error=(), description=KNOWN):
    return closing_table([Row("a/trace", "", curve, error, description)]).splitlines()[1:]


def test_start_peak_end_and_error():
    curve = [(0, 1.0), (10, 30.0), (20, math.nan), (30, 4.5)]
    header = closing_table([]).split()
    line, *_ = told(curve, [(0, 0.1), (10, 3.0), (30, 0.45)])
    assert header == ["start", "peak", "(step)", "end", "±", "stderr"]
    assert line.split() == ["a/trace", "[nats]", "1", "30", "(10)", "4.5", "0.45"]


@pytest.mark.parametrize(
    ("curve", "errors", "sentence"),
    [
        ([(0, 220.0), (9, 5.0)], (), "Fell 44-fold: it is less."),
        ([(0, 2.0), (5, 9.0), (9, 6.0)], (), "Rose 3-fold after a peak of 9 at step 5: it is more."),
        ([(0, -2.0), (9, 1.0)], (), "Rose by 3: it is more."),
        ([(0, 10.0), (9, 8.0)], (), "Fell by 2: it is less."),
        ([(0, 10.0), (9, 8.0)], [(9, 1.5)], "It ends where it started."),  # within two errors
        ([(0, 10.0), (9, 9.9)], (), "It ends where it started."),
        ([(0, 10.0), (4, 30.0), (9, 9.9)], (), "It ends where it started after a peak of 30 at step 4."),
        ([(0, 6.4), (4, math.nan), (8, math.inf)], (), "It is lost since step 4 (the last is 6.4, at step 0)"),
        ([(3, 6.4)], (), "It has one point only."),
        ([(3, math.nan)], (), "It has no value at any point; the warnings tell why."),
        ([], (), "It has no value at any point"),
    ],
)
def test_a_sentence_says_what_the_curve_did_and_what_that_means(curve, errors, sentence):
    assert sentence in " ".join(map(str.strip, told(curve, errors)[1:]))


def test_a_curve_that_is_lost_has_neither_end_nor_error():
    line, *_ = told([(0, 6.4), (4, math.nan)], [(0, 0.2)])
    assert line.split() == ["a/trace", "[nats]", "6.4", "6.4", "(0)", "lost", "-"]


def test_layers_share_a_header_and_sentences():
    rows = [
        Row("plane/I_XT", layer, [(0, start), (9, end)], (), KNOWN)
        for layer, start, end in (("net.0", 6.0, 4.0), ("net.2", 1.0, 2.0), ("net.4", 1.0, 4.0))
    ]
    lines = closing_table(rows).splitlines()
    assert lines[1] == "plane/I_XT [nats]"
    assert [line.split()[0] for line in lines[2:5]] == ["net.0", "net.2", "net.4"]
    text = " ".join(map(str.strip, lines[5:]))
    assert text == "net.0 fell: it is less. net.2, net.4 rose: it is more."
    text = " ".join(map(str.strip, closing_table(rows[1:]).splitlines()[4:]))
    assert text == "All rose: it is more."


def test_layers_without_an_end():
    curves = {"a": [(0, 1.0)], "b": [(0, 1.0), (4, math.nan)], "c": [(0, math.nan)], "d": [(0, 1.0), (4, 1.0)]}
    text = closing_table([Row("plane/I_XT", layer, curve, (), KNOWN) for layer, curve in curves.items()])
    said = " ".join(line.strip() for line in text.splitlines()[6:])
    assert said == "a: one point only. b lost since step 4 (see the warnings). c: no value. d: steady."


def test_nothing_is_wider_than_the_terminal_and_long_names_have_a_line_of_their_own():
    name = "encoder.layers.11.attention.output.dense"
    rows = [Row("plane/I_XT", name, [(0, -1.2345e-10), (1234567, -9.8765e-10)], [(1234567, 1e-10)], KNOWN)]
    lines = closing_table(rows).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[2] == f"  {name}"
    assert lines[3].split() == ["-1.234e-10", "-1.234e-10", "(0)", "-9.876e-10", "1e-10"]


def test_what_is_not_described_is_told_without_meaning():
    assert told([(0, 1.0), (9, 4.0)], description=None)[1:] == ["    Rose 4-fold."]


def test_the_layer_of_a_tag():
    assert parts_of("fisher/trace") == ("fisher/trace", "")
    assert parts_of("info_plane/I_XT/net.0") == ("info_plane/I_XT", "net.0")
