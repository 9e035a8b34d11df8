"""LightningCLI builds the callback from YAML and from the command line, and its configs run again."""

from __future__ import annotations

import inspect
import re

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from models import Classifier, data, loader, public_callbacks
from torch.utils.data import Dataset

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    GradientNoiseCallback,
    InfoPlaneCallback,
    StabilityCallback,
    WeightInfoCallback,
)

OPTIONS = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
KINDS = tuple(public_callbacks())
EACH = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def arguments_of(kind) -> dict[str, object]:
    """Every argument and its default."""
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


@pytest.fixture(autouse=True)
def own_seed(monkeypatch):
    """The CLI leaves its seed in the environment; take it away after the test."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


class Trained(Classifier):
    def train_dataloader(self):
        return loader()


class Samples(Dataset):
    def __init__(self, size: int = 1):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return data()[index]


def adapter(module, batch):
    x, y = batch
    return module(x), y


class Adapter:
    def __init__(self, likelihood: str):
        self.likelihood = likelihood

    def __call__(self, module, batch):
        return *adapter(module, batch), self.likelihood


def write(path, config):
    path.write_text(yaml.safe_dump(config))
    return str(path)


def entry(kind=FisherTraceCallback, **arguments):
    return {"class_path": f"lightning_info.{kind.__name__}", "init_args": arguments}


def callback_of(built):
    (callback,) = (c for c in built.trainer.callbacks if isinstance(c, KINDS))
    return callback


def cli(tmp_path, arguments, kind=FisherTraceCallback):
    options = {**OPTIONS, "logger": False, "enable_checkpointing": False, "callbacks": [entry(kind, **arguments)]}
    path = write(tmp_path / "config.yaml", {"trainer": options})
    return LightningCLI(Classifier, run=False, args=["--config", path], save_config_callback=None)


def test_every_kind_of_argument_parses_and_runs(tmp_path):
    arguments = {
        "estimator": "rademacher",
        "draws": None,
        "also": ["exact", "empirical"],
        "per_layer": True,
        "engine": "func",
        "every_n_train_steps": 4,
        "num_samples": 16,
        "adapter": f"{__name__}.adapter",
        "prefix": "x",
        "max_overhead": 0.5,
        "on_error": "raise",
        "summary": False,
    }
    built = cli(tmp_path, arguments)
    callback = callback_of(built)
    assert callback.adapter is adapter
    assert callback.also == ("exact", "empirical")
    built.trainer.fit(built.model, loader())
    assert callback.history["x/fisher/trace"][0][0] == 0
    assert callback.plan.engine == "func"


@pytest.mark.parametrize("lambda_", [0.1, "optimal"])
def test_the_prior_of_the_weights_parses_as_a_number_or_a_name_and_runs(tmp_path, lambda_):
    given = {"lambda_": lambda_, "prior": "zero", "curvature": "gram", "max_rows": 30, "draws": 2, "num_samples": 16}
    built = cli(
        tmp_path, {**given, "every_n_train_steps": 4, "on_error": "raise", "summary": False}, WeightInfoCallback
    )
    callback = callback_of(built)
    assert (callback.lambda_, callback.max_rows) == (lambda_, 30)
    built.trainer.fit(built.model, loader())
    assert [step for step, _ in callback.history["weight_info/kl"]] == [0, 4, 8]


def test_layers_estimators_and_ranges_of_the_information_plane_parse_and_run(tmp_path):
    arguments = {
        "layers": ["net.2", "torch.nn.Linear"],
        "estimator": ["binning", "mixture"],
        "bin_range": ["adaptive", [0.0, 2.5]],
        "bins": 7,
        "noise_variance": 0.2,
        "every_n_train_steps": 4,
        "num_samples": 16,
        "on_error": "raise",
        "summary": False,
    }
    built = cli(tmp_path, arguments, InfoPlaneCallback)
    built.trainer.fit(built.model, loader())
    families = {tag.split("/")[0] for tag in callback_of(built).history}
    assert families >= {"info_plane", "info_plane_binning_0_2.5", "info_plane_mixture"}
    layers = {tag.split("/")[-1] for tag in callback_of(built).history if tag.startswith("info_plane/I_XT")}
    assert layers == {"net.0", "net.2", "net.4"}


@pytest.mark.parametrize("given", [{"layers": "net.2"}, {"bin_range": [-1.0, 1.0]}, {"estimator": "gaussian"}])
def test_one_value_may_stand_for_a_list(tmp_path, given):
    built = cli(tmp_path, {**given, "every_n_train_steps": 4, "on_error": "raise", "summary": False}, InfoPlaneCallback)
    built.trainer.fit(built.model, loader())
    assert callback_of(built).history["info_plane/I_XT/net.2"]


def test_twins_run_from_a_configuration(tmp_path):
    given = {"index": 3, "num_twins": 2, "num_samples": 16, "every_n_train_steps": 4, "on_error": "raise"}
    built = cli(tmp_path, {**given, "summary": False}, StabilityCallback)
    built.trainer.fit(built.model, loader())
    assert [step for step, _ in callback_of(built).history["stability/output_kl"]] == [0, 4, 8]


def test_a_value_that_is_not_a_choice_is_a_clear_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli(tmp_path, {"estimator": "label"})
    assert "importance" in capsys.readouterr().err


def test_an_adapter_can_be_an_object_with_arguments(tmp_path):
    given = {"class_path": f"{__name__}.Adapter", "init_args": {"likelihood": "categorical"}}
    built = cli(tmp_path, {"adapter": given})
    assert isinstance(callback_of(built).adapter, Adapter)
    assert callback_of(built).adapter.likelihood == "categorical"


def test_a_reference_data_set_with_arguments(tmp_path):
    given = {"class_path": f"{__name__}.Samples", "init_args": {"size": 12}}
    built = cli(tmp_path, {"reference": given, "every_n_train_steps": 4, "on_error": "raise", "summary": False})
    built.trainer.fit(built.model, loader())
    assert isinstance(callback_of(built).reference, Samples)
    assert [step for step, _ in callback_of(built).history["fisher/trace"]] == [0, 4, 8]


def printed_config(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        LightningCLI(Trained, args=["fit", *arguments, "--print_config"])
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


@EACH
def test_printed_config_holds_every_argument_and_prints_itself_again(tmp_path, capsys, kind):
    given = {"every_n_train_steps": 3, "prefix": "x", "adapter": f"{__name__}.adapter"}
    given |= {
        FisherTraceCallback: {"also": ["exact"]},
        GradientNoiseCallback: {"per_layer": True},
        InfoPlaneCallback: {"layers": ["net.2"]},
        WeightInfoCallback: {"lambda_": "optimal"},
        EffectiveInfoCallback: {"distortion": [0.1, 0.2]},
        StabilityCallback: {"index": 3, "num_twins": 2},
    }[kind]
    start = write(tmp_path / "start.yaml", {"trainer": {**OPTIONS, "callbacks": [entry(kind, **given)]}})
    printed = printed_config(capsys, "--config", start)
    (callback,) = yaml.safe_load(printed)["trainer"]["callbacks"]
    assert callback["init_args"] == arguments_of(kind) | given
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert printed_config(capsys, "--config", str(again)) == printed


def test_saved_config_runs_again_to_the_same_curve(tmp_path):
    given = {"every_n_train_steps": 3, "num_samples": 16, "per_layer": True, "on_error": "raise", "summary": False}
    options = {**OPTIONS, "default_root_dir": str(tmp_path), "callbacks": [entry(**given)]}
    path = write(tmp_path / "first.yaml", {"seed_everything": 7, "trainer": options})
    curves = []
    for _ in range(2):
        built = LightningCLI(Trained, args=["fit", "--config", path])
        curves.append(callback_of(built).history)
        path = f"{built.trainer.log_dir}/config.yaml"
    first, again = ({tag: curve for tag, curve in c.items() if tag != "fisher/overhead"} for c in curves)
    assert path == f"{tmp_path}/lightning_logs/version_1/config.yaml"
    assert [step for step, _ in first["fisher/trace"]] == [0, 3, 6, 8]
    assert first == again


def test_command_line_alone_adds_the_callback(tmp_path):
    options = [f"--trainer.{name}={value}" for name, value in OPTIONS.items()]
    built = LightningCLI(
        Trained,
        save_config_callback=None,
        args=[
            "fit",
            *options,
            "--trainer.logger=false",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.callbacks+=lightning_info.FisherTraceCallback",
            "--trainer.callbacks.every_n_train_steps=4",
            "--trainer.callbacks.num_samples=8",
            "--trainer.callbacks.also=[exact]",
            "--trainer.callbacks.prefix=mine",
            "--trainer.callbacks.on_error=raise",
            "--trainer.callbacks.summary=false",
        ],
    )
    assert [step for step, _ in callback_of(built).history["mine/fisher/exact_trace"]] == [0, 4, 8]


@EACH
def test_help_shows_what_the_docstring_says_of_every_argument(capsys, monkeypatch, kind):
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit):
        LightningCLI(Trained, args=["fit", f"--trainer.callbacks.help=lightning_info.{kind.__name__}"])
    shown = re.split(r"^ +--trainer\.callbacks\.(?=\w+ )", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    lines = re.split("    (?:Raises|Attributes):\n", kind.__doc__.split("    Args:\n")[1])[0]
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", lines, re.MULTILINE)
    assert [text.split()[0] for text in shown] == [name for name, _ in entries] == list(arguments_of(kind))
    for text, (_, said) in zip(shown, entries, strict=True):
        assert " ".join(said.split()) in " ".join(text.split())
