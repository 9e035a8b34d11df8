"""The code of ``docs/measure.md`` runs, in its order, and its commands have the options that they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from lightning_info.__main__ import parser

TEXT = (Path(__file__).parents[2] / "docs" / "measure.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)


def is_of_transformers(block):
    return "import TrainerCallback" in block


def test_the_code_runs_and_writes_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    for block in BLOCKS:
        if not is_of_transformers(block):
            exec(compile(block, "docs/measure.md", "exec"), names)
    assert [step for step, _ in names["result"].history["weight_info/kl"]] == [8, 16]
    assert [step for step, _ in names["curve"].history["fisher/trace"]] == [0, 4, 8]
    for written in ("curves.png", "layers.png", "values.csv", "logs/measured"):
        assert (tmp_path / written).exists()


def test_the_recipe_for_transformers_gives_a_curve_and_leaves_training_as_it_is(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    names: dict = {}
    exec("from lightning_info import FisherTraceCallback, measure", names)
    (block,) = filter(is_of_transformers, BLOCKS)
    exec(compile(block, "docs/measure.md", "exec"), names)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    torch.manual_seed(0)
    ids = torch.randint(20, (16, 5))
    training_set = [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i.sum() % 3} for i in ids]
    options = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, logging_steps=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    weights = []
    for callbacks in ([], [names["MeasureCallback"](training_set, every_n_steps=2)]):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
        trainer = transformers.Trainer(model, options, train_dataset=training_set, callbacks=callbacks)
        trainer.train()
        weights.append(model.state_dict())
    curve = callbacks[0].result.history["fisher/trace"]
    assert [step for step, _ in curve] == [0, 2, 4]
    assert trainer.state.log_history[0]["fisher/trace"] == curve[1][1]
    assert all(torch.equal(value, weights[0][name]) for name, value in weights[1].items())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_have_these_options(command):
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "lightning_info"]
    parser().parse_args(words[3:])
