"""Imports go down from room to room, never in a circle, and never to what another file keeps to itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_info"

FLOORS = (
    ("validation", "student", "lazy"),
    ("functional",),
    ("gradients",),
    ("replica", "checkpoints"),
    ("command_line", "metrics", "reporting", "twin"),
    ("figures", "run_logs"),
    ("quantities",),
    ("views",),
    ("tab",),
    ("report",),
    ("callbacks", "comparison"),
    ("offline",),
    ("lightning_info", "__main__", "pytorch_lightning"),
)
"""Files and folders of the package, from the ground up; rooms of a floor do not import each other."""

ASKS_THE_TOP = {"__main__", "offline.command"}
"""They read the version, and which callbacks users know by name, from the package itself."""

ORDER_WITHIN = {
    "functional": ("", "theory"),
    "gradients": ("", "backpack"),
}
"""Folders of a room that import from the rest of it (``""``), but the rest not from them."""


class Import(NamedTuple):
    """One name that a file takes from another, both by their dotted names without ``lightning_info.``."""

    file: str
    source: str
    name: str


def without_package(module: str) -> str:
    return module.removeprefix("lightning_info").lstrip(".")


def imports_of(path: Path) -> Iterator[Import]:
    file = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            if node.module and node.module.partition(".")[0] == "lightning_info":
                source = without_package(node.module)
                for alias in node.names:
                    inner = f"{source}.{alias.name}".lstrip(".")
                    place = PACKAGE.joinpath(*inner.split("."))
                    is_file = place.with_suffix(".py").exists() or place.is_dir()
                    yield Import(file, inner if is_file else source, "" if is_file else alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "lightning_info":
                    yield Import(file, without_package(alias.name), "")


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = [one for path in FILES for one in imports_of(path)]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(file: str) -> str:
    return file.partition(".")[0] or "lightning_info"


def test_every_room_has_its_floor():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} | {"lightning_info"} == set(FLOOR)


def test_imports_go_down():
    up = [
        one
        for one in IMPORTS
        if room_of(one.file) != room_of(one.source) and FLOOR[room_of(one.file)] <= FLOOR[room_of(one.source)]
        if not (one.source == "" and one.file in ASKS_THE_TOP)
    ]
    assert not up


@pytest.mark.parametrize("room", ORDER_WITHIN)
def test_imports_go_down_within_a_room(room):
    order = ORDER_WITHIN[room]

    def floor(file: str) -> int:
        part = file.removeprefix(f"{room}.").partition(".")[0]
        return order.index(part) if part in order else 0

    inside = [one for one in IMPORTS if room_of(one.file) == room_of(one.source) == room]
    assert not [one for one in inside if one.file != room and floor(one.file) < floor(one.source)]


def test_no_files_import_each_other_in_a_circle():
    needs: dict[str, set[str]] = {}
    for one in IMPORTS:
        if one.file != one.source and not (one.source == "" and one.file in ASKS_THE_TOP):
            needs.setdefault(one.file, set()).add(one.source)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_no_file_takes_what_another_keeps_to_itself():
    private = {(one.file, f"{one.source}.{one.name}") for one in IMPORTS if one.name.startswith("_")}
    private = {pair for pair in private if not pair[1].endswith("__")}
    assert not private, "a name that another file needs has no underscore"


def test_the_protocol_can_be_had_without_any_quantity():
    assert {one.source for one in IMPORTS if one.file == "quantities" and room_of(one.source) == "quantities"} == {
        "quantities.quantity"
    }


def test_only_what_is_above_the_callbacks_knows_one_of_them():
    """Within their room no callback knows another."""
    files = (PACKAGE / "callbacks").glob("*.py")
    made = re.compile(r"^class (?!InfoCallback)\w+Callback\(", re.MULTILINE)
    concrete = {f"callbacks.{path.stem}" for path in files if made.search(path.read_text())}
    assert len(concrete) >= 5
    assert not [one for one in IMPORTS if room_of(one.file) == "callbacks" and one.source in concrete]


def test_the_table_in_contributing_is_this_one():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    listed = [line.split("`")[1].strip("/") for line in text.splitlines() if line.startswith("| `")]
    rooms = [room for room in listed if room in FLOOR]
    assert set(rooms) == set(FLOOR) - {"lightning_info", "__main__", "pytorch_lightning"}
    assert all(FLOOR[upper] >= FLOOR[lower] for upper, lower in pairwise(rooms))
