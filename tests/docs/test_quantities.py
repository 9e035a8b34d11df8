"""The code of ``docs/quantities.md`` runs, in its order, and its quantity is right."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_info.quantities import Quantity

TEXT = (Path(__file__).parents[2] / "docs" / "quantities.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_worked_example_trains_and_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in BLOCKS:
        exec(compile(block, "docs/quantities.md", "exec"), names)
    tag, history = "effective_rank/activations/net.1", names["rank"].history
    assert [step for step, _ in history[tag]] == [0, 8, 16, 24]

    (folder,) = (tmp_path / "logs").glob("*/*")
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    shown = {scalar.step: scalar.value for scalar in events.Scalars(tag)}
    assert shown == {step: pytest.approx(value, rel=1e-6) for step, value in history[tag]}
    assert "effective_rank/by_layer" in events.Tags()["images"]

    printed = capsys.readouterr().out.splitlines()
    group, _, layer = tag.rpartition("/")
    header = next(number for number, line in enumerate(printed) if line.startswith(group))
    row = next(line.split() for line in printed[header:] if line.startswith(f"  {layer} "))
    assert float(row[-1]) == pytest.approx(history[tag.replace("rank/", "rank_stderr/")][-1][1], rel=0.1)

    result = names["result"]
    assert result.history[tag] == [(24, pytest.approx(history[tag][-1][1], rel=1e-12))]
    assert result.error(tag, 24) > 0
    assert (tmp_path / "rank.png").exists()

    units = torch.tanh(names["net"].net[0](names["x"][:32])).detach().double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(units.T))
    assert history[tag][-1][1] == pytest.approx((eigenvalues.sum() ** 2 / eigenvalues.square().sum()).item(), rel=1e-5)


def test_the_table_has_every_method_and_no_other():
    table = TEXT.split("## What a quantity may define")[1].split("**Snapshot.**")[0]
    named = set(re.findall(r"`(\w+)[(`= ]", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
    public = {name for name in (*vars(Quantity), *Quantity.__annotations__) if not name.startswith("_")}
    assert named == public - {"unit", "moves_weights"}


def test_the_methods_of_the_example_have_the_signatures_of_the_protocol():
    names: dict = {}
    exec(compile(BLOCKS[0], "docs/quantities.md", "exec"), names)
    for name, method in vars(names["EffectiveRank"]).items():
        if inspect.isfunction(method):
            assert [*inspect.signature(method).parameters] == [*inspect.signature(getattr(Quantity, name)).parameters]
