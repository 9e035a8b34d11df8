"""Outputs that depend on the label of their sample are told apart from those that predict it."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, Classifier, loader, trainer

from lightning_info import FisherTraceCallback


class Margin(Classifier):
    """CosFace: the label's own logit is lowered, by nothing where there is no margin."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x) - self.margin * F.one_hot(y, CLASSES), y)


class LabelGoesIn(Classifier):
    """The label is looked at, and changes nothing in the outputs."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y) + 0.1 * F.one_hot(y, CLASSES).double().std()


def trained(module, **options):
    torch.manual_seed(0)
    options = {"num_samples": 16, "every_n_epochs": 9, "on_error": "raise", "summary": False, **options}
    callback = FisherTraceCallback("exact", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback, max_epochs=1).fit(module, loader(16))
    return callback, [str(w.message) for w in caught if "depend on its label" in str(w.message)]


@pytest.mark.parametrize("source", ["Margin.training_step", "the adapter"])
def test_a_margin_on_the_labels_logit_is_said_with_the_fix(source):
    def adapter(module, batch):
        x, y = batch
        return module(x) - F.one_hot(y, CLASSES), y, "categorical"

    callback, said = trained(Margin(1.0), **({} if source.startswith("Margin") else {"adapter": adapter}))
    assert len(said) == 1
    assert f"the outputs of {source} for a sample depend on its label" in said[0]
    assert "FisherTraceCallback(adapter=...)" in said[0]
    assert f"labels the outputs of {source} depend on them" in " ".join(callback.report().split())


def test_an_adapter_without_the_margin_measures_what_a_module_without_it_has():
    torch.manual_seed(0)
    module = Margin(1.0)
    callback, said = trained(module, adapter=lambda module, batch: (module(batch[0]), batch[1], "categorical"))
    torch.manual_seed(0)
    plain, said_of_plain = trained(Margin(0.0))
    assert said == said_of_plain == []
    assert callback.history["fisher/trace"][0][1] == pytest.approx(plain.history["fisher/trace"][0][1], rel=1e-6)


@pytest.mark.parametrize("module", [Classifier, LabelGoesIn])
def test_nothing_is_said_of_outputs_that_do_not_depend_on_labels(module):
    callback, said = trained(module())
    assert said == []
    assert "labels the outputs" not in " ".join(callback.report().split())
