from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from models import CLASSES, FEATURES, Classifier, data

from lightning_info import FisherTraceCallback, measure
from lightning_info.__main__ import main

FILE = """
import lightning.pytorch as pl
import torch
from torch import nn
from models import data

class Net(pl.LightningModule):
    def __init__(self, width, depth=1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear({features}, width), nn.Tanh(), nn.Linear(width, {classes}))
        assert depth in (1, [2])
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

def plain():
    torch.manual_seed(0)
    return nn.Linear({features}, {classes})

class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(data(48), 8)

def broken():
    raise KeyError("no such split")

three = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A module, data, checkpoints of Lightning's form, and samples."""
    path = tmp_path_factory.mktemp("run")
    (path / "user_net.py").write_text(FILE.format(features=FEATURES, classes=CLASSES))
    torch.manual_seed(0)
    for step in (2, 1):
        net = torch.nn.Sequential(torch.nn.Linear(FEATURES, 5), torch.nn.Tanh(), torch.nn.Linear(5, CLASSES))
        state = {f"net.{name}": value for name, value in net.state_dict().items()}
        torch.save(
            {"state_dict": state, "global_step": step, "pytorch-lightning_version": "2.5.0",
             "hyper_parameters": {"width": 5, "depth": [2]}, "hparams_name": "kwargs"},
            path / f"{step}.ckpt",
        )  # fmt: skip
    torch.save(data(48).tensors, path / "data.pt")
    return path


def arguments(folder: Path, **instead: str | list[str] | None) -> list[str]:
    options = {"module": f"{folder}/user_net.py:plain", "data": f"{folder}/data.pt", "likelihood": "categorical"}
    options |= {"callback": "FisherTraceCallback"} | instead
    found = ["measure"]
    for name, values in options.items():
        if values is not None:
            found += [f"--{name.replace('_', '-')}", *([values] if isinstance(values, str) else values)]
    return found


def test_a_run_is_measured_with_the_arguments_that_its_checkpoints_hold(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    given = arguments(
        folder, module="user_net:Net", data="user_net:Data", likelihood=None, checkpoints="*.ckpt",
        callback="FisherTraceCallback(estimator='exact', seed=3)", output=f"{tmp_path}/o.csv",
        figure=f"{tmp_path}/o.png",
    )  # fmt: skip
    main(given)
    told = capsys.readouterr()
    assert not told.err
    net = torch.nn.Sequential(torch.nn.Linear(FEATURES, 5), torch.nn.Tanh(), torch.nn.Linear(5, CLASSES))
    options = {"checkpoints": ["2.ckpt", "1.ckpt"], "batch_size": 8}
    expected = measure(Classifier(net), data(48).tensors, FisherTraceCallback("exact", seed=3), **options)
    assert told.out.startswith(f"{expected.table()}\nwritten")
    rows = list(csv.DictReader((tmp_path / "o.csv").open()))
    values = {int(row["step"]): float(row["value"]) for row in rows if row["tag"] == "fisher/trace"}
    assert values == dict(expected.history["fisher/trace"])
    assert list(values) == [1, 2]
    assert (tmp_path / "o.png").stat().st_size > 10_000


def test_a_plain_module_is_measured_and_written_as_json(folder, tmp_path, capsys):
    main(arguments(folder, output=f"{tmp_path}/o.json", step="7"))
    torch.manual_seed(0)
    net = torch.nn.Linear(FEATURES, CLASSES)
    expected = measure(net, data(48).tensors, FisherTraceCallback(), likelihood="categorical", step=7)
    assert capsys.readouterr().out.startswith(repr(expected))
    (row,) = [row for row in json.loads((tmp_path / "o.json").read_text()) if row["tag"] == "fisher/trace"]
    assert row == {
        "tag": "fisher/trace", "step": 7, "value": expected["fisher/trace"],
        "stderr": expected["fisher/trace_stderr"],
    }  # fmt: skip


def test_given_arguments_make_the_module_and_its_weights_are_those_of_a_file(folder, capsys):
    module = f"{folder}/user_net.py:Net"
    main(
        arguments(folder, module=module, likelihood=None, init=["width=5", "depth=[2]"], checkpoints=f"{folder}/1.ckpt")
    )
    assert "fisher/trace" in capsys.readouterr().out


def test_a_warning_is_one_line(folder, capsys):
    main(arguments(folder, callback="WeightInfoCallback(num_samples=16)"))
    told = capsys.readouterr().err
    assert told.startswith("warning: WeightInfoCallback: no KL")
    assert "initial=..." in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ({"module": "user_net.py:Net"}, "no such file"),
        ({"module": "{folder}/user_net.py:Nett"}, "there is no 'Nett' in {folder}/user_net.py; it has Net, plain"),
        ({"module": "unknown_package:Net"}, "No module named 'unknown_package'"),
        ({"module": "{folder}/user_net.py:Net"}, "missing a required argument: 'width'; it takes width, depth"),
        ({"module": "{folder}/user_net.py:Net", "init": "width"}, "--init width is not key=value"),
        ({"module": "{folder}/user_net.py:Net", "init": "width=f(3)"}, "f(3) is not a literal"),
        ({"module": "{folder}/user_net.py:three"}, "is a int; give a class"),
        (
            {"module": "{folder}/user_net.py:Net", "init": "width=3", "checkpoints": "{folder}/*.ckpt"},
            "size mismatch for net.0.weight",
        ),
        ({"checkpoints": "{folder}/nowhere.ckpt"}, "there is no file {folder}/nowhere.ckpt; its folder holds 1.ckpt"),
        ({"checkpoints": "{folder}/no*.ckpt"}, "holds no file"),
        ({"data": "nowhere.pt"}, "there is no file nowhere.pt"),
        ({"data": "{folder}/1.ckpt"}, "give package.module:Name"),
        ({"data": "{folder}/user_net.py:broken"}, "broken fails (KeyError: 'no such split')"),
        ({"likelihood": "gaussian"}, "give likelihood='categorical'"),
        ({"callback": "Fisher()"}, "unknown callback 'Fisher'; choose one of EffectiveInfoCallback, Fisher"),
        ({"callback": "Trainer()"}, "unknown callback 'Trainer'"),
        ({"callback": "measure()"}, "unknown callback 'measure'"),
        ({"callback": "FisherTraceCallback("}, "is not a call"),
        ({"callback": "FisherTraceCallback(seeds=1)"}, "unexpected keyword argument 'seeds'; it takes estimator"),
        ({"callback": "FisherTraceCallback('nope')"}, "unknown estimator 'nope'"),
        ({"callback": "FisherTraceCallback(**{{'seed': 1}})"}, "without **"),
        ({"callback": "StabilityCallback"}, "cannot be measured, as it trains a second network"),
        ({"output": "o.txt"}, "--output o.txt must end in .csv or .json"),
        ({"figure": "no/such/o.png"}, "there is no folder no/such"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(folder, instead, message, capsys):
    instead = {name: value.format(folder=folder) for name, value in instead.items()}
    with pytest.raises(SystemExit) as ended:
        main(arguments(folder, **instead))
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("python -m lightning_info measure: error: ")
    assert message.format(folder=folder) in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "FisherTraceCallback(seed=open({path!r}, 'w').write('x'))",
        "open({path!r}, 'w')",
        "FisherTraceCallback().__class__(open({path!r}, 'w'))",
        "(lambda: open({path!r}, 'w'))()",
    ],
)
def test_a_callback_runs_no_code(folder, text, tmp_path, capsys):
    path = tmp_path / "touched"
    with pytest.raises(SystemExit):
        main(arguments(folder, callback=text.format(path=str(path))))
    assert not path.exists()
