"""What documentation, docstrings and comments name is there, under that name."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted((ROOT / "lightning_info").rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TEXTS = [*CODE, *PAGES, *sorted((ROOT / "examples").rglob("*.py"))]
ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([\w.]+)`")
PYTHON = re.compile(r"`(lightning_info(?:\.\w+)+)")
FILE = re.compile(r"`((?:lightning_info|tests|docs|examples)/[\w/.]+\.(?:py|md))")
LINK = re.compile(r"\]\((?!http)([^)#\s]+)(?:#[\w-]+)?\)")


def defined() -> set[str]:
    """Names of files, classes, functions, variables and attributes."""
    names = {part for path in CODE for part in (path.stem, path.parent.name)}
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {str(getattr(target, "id", getattr(target, "attr", ""))) for target in targets}
    return names


def is_there(dotted: str) -> bool:
    parts = dotted.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for name in parts[size:]:
            found = getattr(found, name, None)
        return found is not None
    return False


NAMES = defined()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_files_are_there(path):
    text = path.read_text()
    roles = [target for target in ROLE.findall(text) if not target.startswith(("torch.", "torchmetrics.", "nn."))]
    assert not [target for target in roles if target.rpartition(".")[2] not in NAMES]
    assert not [dotted for dotted in PYTHON.findall(text) if not is_there(dotted)]
    assert not [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    if path in PAGES:
        assert not [link for link in LINK.findall(text) if not (path.parent / link).exists()]
