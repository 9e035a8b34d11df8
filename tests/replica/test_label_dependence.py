"""Outputs that depend on the label of their sample are told apart from those that predict it."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, Classifier, loader, trainer

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    InfoPlaneCallback,
    StabilityCallback,
    WeightInfoCallback,
)


class Margin(Classifier):
    """CosFace: the label's own logit is lowered, by nothing where there is no margin."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x) - self.margin * F.one_hot(y, CLASSES), y)


class NoisyMargin(Margin):
    """The noise of a sample is seeded by its values, of which the label is one."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step((x + 0.1 * torch.randn_like(x), y), batch_idx)


class LabelGoesIn(Classifier):
    """The label is looked at, and changes nothing in the outputs."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y) + 0.1 * F.one_hot(y, CLASSES).double().std()


def trained(module, kind=FisherTraceCallback, **options):
    torch.manual_seed(0)
    callback = kind(num_samples=16, every_n_epochs=9, on_error="raise", summary=False, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback, max_epochs=1).fit(module, loader(16))
    return callback, [str(w.message) for w in caught if "depend on its label" in str(w.message)]


def with_margin(module, batch):
    x, y = batch
    return module(x) - F.one_hot(y, CLASSES), y, "categorical"


def test_the_gradients_of_the_loss_are_measured_instead_and_the_fix_is_said():
    callback, said = trained(Margin(1.0), draws=None)
    assert len(said) == 1
    assert "the outputs of Margin.training_step for a sample depend on its label" in said[0]
    assert "FisherTraceCallback(adapter=...)" in said[0]
    assert "fisher/trace" not in callback.history
    torch.manual_seed(0)
    module = Margin(1.0)
    squares = []
    for row, label in zip(*loader(16).dataset.tensors, strict=True):
        loss = module.training_step((row[None], label[None]), 0)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        squares.append(sum(g.double().square().sum() for g in gradients))
    assert callback.history["fisher/loss_gradient_trace"][0][1] == pytest.approx(float(sum(squares) / 16), rel=1e-5)


@pytest.mark.parametrize("kind", [WeightInfoCallback, EffectiveInfoCallback, StabilityCallback])
def test_what_needs_a_likelihood_is_refused(kind):
    with pytest.raises(MisconfigurationException, match=r"depend on its label.*give the logits without it"):
        trained(Margin(1.0), kind)


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_noise_of_a_sample_is_no_dependence_on_its_label(margin):
    _, said = trained(NoisyMargin(margin))
    assert len(said) == bool(margin)


def test_an_adapter_with_a_margin_is_refused_too():
    with pytest.raises(MisconfigurationException, match="the outputs of the adapter for a sample depend on its label"):
        trained(Margin(1.0), adapter=with_margin)


def test_the_plane_says_it():
    callback, said = trained(Margin(1.0), InfoPlaneCallback)
    assert len(said) == 1
    assert "layers=[...]" in said[0]
    assert callback.history["info_plane/I_XT/net.2"]


def test_an_adapter_without_the_margin_measures_what_a_module_without_it_has():
    torch.manual_seed(0)
    module = Margin(1.0)
    callback, said = trained(
        module, estimator="exact", adapter=lambda module, batch: (module(batch[0]), batch[1], "categorical")
    )
    torch.manual_seed(0)
    plain, said_of_plain = trained(Margin(0.0), estimator="exact")
    assert said == said_of_plain == []
    assert callback.history["fisher/trace"][0][1] == pytest.approx(plain.history["fisher/trace"][0][1], rel=1e-6)


@pytest.mark.parametrize("module", [Classifier, LabelGoesIn])
def test_nothing_is_said_of_outputs_that_do_not_depend_on_labels(module):
    callback, said = trained(module())
    assert said == []
    assert callback.history["fisher/trace"]
