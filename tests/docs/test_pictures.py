"""Every picture of the documentation can be drawn anew, and is shown somewhere."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"effective_information", "memorise"}
"""Drawn by examples."""


def test_there_is_a_command_for_every_picture_and_a_place(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # the module adds the folder of the examples
    from pictures import PICTURES, VIEWS

    there = {file.stem for file in (ROOT / "docs" / "images").glob("*.png")}
    assert {*PICTURES, *VIEWS} == there - ELSEWHERE
    texts = "\n".join(file.read_text() for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert set(re.findall(r"images/([\w.]+)\.png", texts)) == there
