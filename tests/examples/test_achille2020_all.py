"""The page of Achille et al. (2020): verdicts of older scripts as claims, and what is written of results."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "examples" / "achille2020"))

import adapters
from feature_learning import Row
from results import Claim, Result, save
from statements import STATEMENTS

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("achille2020_all", ROOT / "examples" / "achille2020" / "all.py")
every = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(every)


class TestRows:
    @pytest.mark.parametrize(
        ("criterion", "text", "least", "most", "unit"),
        [
            ("peak - start ≥ 10 nats", "peak - start", 10, math.inf, "nats"),
            ("of prominence ≥ 2% of the range: ≥ 1", "of prominence ≥ 2% of the range", 1, math.inf, ""),
            ("‖δ‖ / ‖w - w_0‖ ≤ 0.1", "‖δ‖ / ‖w - w_0‖", -math.inf, 0.1, ""),
            ("output KL / ½ δᵀFδ in 0.8 to 1.25", "output KL / ½ δᵀFδ", 0.8, 1.25, ""),
        ],
    )
    def test_limits_are_those_of_the_criterion(self, criterion, text, least, most, unit):
        middle = next(end for end in (least, most) if math.isfinite(end))
        found = adapters.claim(Row("(a) it is so", criterion, [middle, math.nan], 1), "2")
        assert (found.text, found.unit) == (f"(a) it is so: {text}", unit)
        assert (found.at_least, found.at_most, found.verdict) == (least, most, "in part")

    def test_of_every_script(self):
        """All criteria of the older scripts have limits; of no runs, none holds."""
        scripts = (adapters.figure1, adapters.figure2, adapters.unique_information)
        rows = [row for script in scripts for row in script.verdicts([])]
        found = adapters.claims(rows, "1", ("(d)", "(e)"))
        assert len(found) == 6 + 8 + 4
        assert {claim.source for claim in found if claim.text.startswith(("(d)", "(e)"))} == {"here"}

    def test_another_verdict_than_that_of_the_script_is_refused(self):
        with pytest.raises(ValueError, match="1 values meet it, and 0 did"):
            adapters.claim(Row("a", "b ≥ 1", [2.0], 0), "2")
        with pytest.raises(ValueError, match="without limits"):
            adapters.claim(Row("a", "it looks right", [2.0], 1), "2")


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: f"{statement.section}: {statement.text}")
def test_statements_name_tests_that_are_there(statement):
    assert statement.tested
    for path, name in re.findall(r"`([\w/]+\.py)::(\w+)`", statement.tested):
        assert f"def {name}(" in (ROOT / path).read_text()


def result(value: float) -> Result:
    figure = Figure(figsize=(12, 3))
    figure.subplots().plot([0, 1], [0, value])
    return Result([Claim("4 left", "more", [1.0, value], 1.0, why="Because.")], figure, "seeds 0 and 1")


class TestPage:
    def test_what_was_run_and_what_not(self, tmp_path):
        save(result(0.5), "figure4", tmp_path, full=False)
        page = every.page(tmp_path)
        assert "- 4 left, more: **in part** (≥ 1, each; 1 0.5). Because." in page
        assert "| 4 left | more | paper | quick | ≥ 1, each | 1 0.5 | **in part** |" in page
        assert "Of 1 criteria, 0 are met and 0 are not met by any value." in page
        assert "- `figure4.py`, quick: seeds 0 and 1" in page
        assert "- `figure1.py`: not run" in page
        assert all(statement.text in page for statement in STATEMENTS)

    def test_the_command_writes_page_and_pictures(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(every, "PAGE", tmp_path / "docs" / "achille.md")
        monkeypatch.setattr(every, "IMAGES", tmp_path / "images")
        asked = []
        runs = {name: lambda full, out, name=name: asked.append(name) or result(2.0) for name in every.CAPTIONS}
        monkeypatch.setattr(every, "scripts", lambda: runs)
        every.main(["escape", "figure1", "--out", str(tmp_path / "out")])
        assert asked == ["figure1", "escape"]
        assert "Of 2 criteria, 2 are met" in every.PAGE.read_text()
        assert Image.open(every.IMAGES / "escape.png").size[0] == every.WIDTH
        assert "-> reproduced" in capsys.readouterr().out

    def test_names_that_are_none_are_refused(self, capsys):
        with pytest.raises(SystemExit):
            every.main(["figure5"])
        assert "choose from figure1" in capsys.readouterr().err
