"""LightningCLI builds the callback from YAML."""

from __future__ import annotations

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from models import Classifier, loader

from lightning_info import FisherTraceCallback


def adapter(module, batch):
    x, y = batch
    return module(x), y


def cli(tmp_path, arguments):
    config = {
        "trainer": {
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "accelerator": "cpu",
            "callbacks": [{"class_path": "lightning_info.FisherTraceCallback", "init_args": arguments}],
        }
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return LightningCLI(Classifier, run=False, args=["--config", str(path)], save_config_callback=None)


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
    (callback,) = (c for c in built.trainer.callbacks if isinstance(c, FisherTraceCallback))
    assert callback.adapter is adapter
    assert callback.also == ("exact", "empirical")
    built.trainer.fit(built.model, loader())
    assert callback.history["x/fisher/trace"][0][0] == 0
    assert callback.plan.engine == "func"


def test_a_value_that_is_not_a_choice_is_a_clear_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli(tmp_path, {"estimator": "label"})
    assert "importance" in capsys.readouterr().err
