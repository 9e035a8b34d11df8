"""Ceilings of the planes to move in."""

import math
from dataclasses import replace

import pytest
from logs import run_log

from lightning_info.run_logs.groups import grouped
from lightning_info.run_logs.run_texts import RESULT
from lightning_info.views.panel import Contents
from lightning_info.views.planes import plans


def ended(run, entropy, unit="bits"):
    return replace(run, texts={**run.texts, RESULT: f"```\nH(Y) = {entropy} {unit}: no layer can tell more of Y.\n```"})


def ceilings(*runs):
    """Places and names of the dashed lines, of the input and of the label."""
    (plan,) = (plan for plan in plans(Contents.of(runs)) if plan.name == "info_plane/I_TY")
    drawn = plan.make(grouped(runs)).figure["layout"]
    lines = [line["x0"] if "yref" in line else line["y0"] for line in drawn["shapes"]]
    names = [note["text"] for note in drawn["annotations"] if "=" in note["text"]]
    return lines, names


def test_of_a_run_that_has_ended_the_entropy_of_its_labels_is_drawn():
    lines, names = ceilings(ended(run_log(), 3.25))
    assert lines == [8.0, 3.25]
    assert names == ["log2 of the samples = 8", "H(Y) = 3.25"]


def test_of_one_that_goes_on_the_classes_are():
    lines, names = ceilings(run_log("a"), ended(run_log("b"), 3.25))
    assert lines == pytest.approx([8.0, math.log2(10)])
    assert names[1] == "log2 of the classes = 3.322"


def test_in_nats_they_are_in_nats():
    meant = {"info_plane/I_XT/net.0": "I(X;T): information [nats]. A rise: more. A fall: less."}
    lines, names = ceilings(ended(replace(run_log(), descriptions=meant), 2.2, "nats"))
    assert lines == pytest.approx([8 * math.log(2), 2.2])
    assert names == ["log of the samples = 5.545", "H(Y) = 2.2"]
