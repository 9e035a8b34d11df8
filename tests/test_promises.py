"""Every promise of the documentation names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "promises.md").read_text())


@pytest.mark.parametrize(("path", "test"), NAMED)
def test_a_promise_is_kept_by_a_test(path, test):
    assert (ROOT / path).is_file()
    assert not test or f"def {test}(" in (ROOT / path).read_text()
