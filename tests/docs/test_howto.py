"""The code of the pages that show how to do something runs as it stands, on a small module and its loader."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["start.md", *sorted(f"{path.parent.name}/{path.name}" for path in DOCS.glob("[hc]*/*.md"))]
WRITES = {"howto/monitor.md": "checkpoints", "howto/loggers.md": "runs", "concepts/seeds.md": "runs/lr0.1/seed2"}


class Net(LightningModule):
    def __init__(self, rate: float = 0.1):
        super().__init__()
        self.rate, self.layers = rate, nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.layers(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(32, 4), torch.randint(3, (32,)))
    names = {"Net": Net, "module": Net(), "train_loader": DataLoader(data, 16)}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    assert (tmp_path / WRITES.get(page, ".")).exists()
    if page == "howto/notebooks.md":
        assert len(names["fisher"].history["fisher/trace"]) == 4
        assert (tmp_path / "fisher.json").exists()


def test_the_yaml_builds_a_trainer(tmp_path):
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer

    (block,) = blocks("howto/yaml.md", "yaml")
    parser = ArgumentParser()
    parser.add_class_arguments(Trainer, "trainer")
    found = parser.instantiate(parser.parse_string(block)).trainer
    fisher, plane = [c for c in found.callbacks if type(c).__module__.startswith("lightning_info")]
    assert fisher.quantity.also == ("empirical",)
    assert plane.quantity.label_information == "binned"


@pytest.mark.parametrize(
    "page", ["fisher", "info_plane", "weight_info", "effective_info", "stability", "gradient_noise"]
)
def test_the_page_of_a_callback_begins_with_what_a_reader_asks(page):
    text = (DOCS / f"{page}.md").read_text()
    titles = ["The question", "Usage", "What you see", "How to read it", "When not to trust it", "Cost"]
    places = [text.find(f"**{title}.**") for title in titles]
    assert -1 not in places
    assert places == sorted(places)


def test_every_number_has_its_sentences(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import tags

    assert tags.PAGE.read_text() == tags.page()
