"""Masks behind the loss: F and the loss on the raw network in float64, over the positions that are kept."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier
from torch import nn

from lightning_info.functional.fisher import exact_cotangents, output_fisher_trace
from lightning_info.functional.output_kl import output_kl
from lightning_info.gradients import choose_engine
from lightning_info.replica.predicted import NoPrediction, Skipped
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

N, T = 5, 4
GENERATOR = torch.Generator().manual_seed(1)
X, TOKENS, VALUES, REAL = (
    torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)
    for shape in ((N, FEATURES), (N, T, FEATURES), (N, CLASSES), (N, T, CLASSES))
)
Y, WORDS, BITS = (
    torch.randint(high, shape, generator=GENERATOR)
    for high, shape in ((CLASSES, (N,)), (CLASSES, (N, T)), (2, (N, T, CLASSES)))
)
BITS, LABELS = BITS.double(), BITS[:, 0].double()
MASK = torch.arange(T) < torch.tensor([4, 1, 3, 2, 0])[:, None]
PER_SAMPLE = torch.tensor([True, False, True, True, False])
CELLS = torch.rand(N, CLASSES, generator=GENERATOR) > 0.4
MISSING = VALUES.masked_fill(~CELLS, torch.nan)


class Module(Classifier):
    """A training_step of one's own, ``step(module, *batch)``."""

    def __init__(self, step, outputs=CLASSES):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
        self.step = step

    def training_step(self, batch, batch_idx):
        return self.step(self, *batch)


def make_predictor():
    return Predictor(StandInTrainer(types.SimpleNamespace(optimizers=[0], lr_scheduler_configs=[])))


def traces(module, batch):
    """One sample's trace after the other, by the package."""
    predictor, replica = make_predictor(), replicate(module)
    prediction = predictor(replica, batch)
    plan = choose_engine(replica, predictor.outputs, batch, "loop")
    cotangents = exact_cotangents(prediction.outputs, prediction.likelihood, prediction.mask)
    return sum(plan.squared_norms(replica, predictor.outputs, batch, cotangents).values())


# ---- the truth: what the likelihood means, one position at a time


def gradient_square(module, value):
    gradients = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)
    return sum(g.square().sum().item() for g in gradients if g is not None)


def classes(module, z):
    return sum(p.exp().item() * gradient_square(module, p) for row in z.log_softmax(-1) for p in row)


def labels(module, z):
    pairs = [log_p for q in z.flatten() for log_p in (F.logsigmoid(q), F.logsigmoid(-q))]
    return sum(log_p.exp().item() * gradient_square(module, log_p) for log_p in pairs)


def means(module, z):
    return sum(gradient_square(module, mean) for mean in z.flatten())


def means_and_variances(module, mean, variance):
    pairs = zip(mean, variance, strict=True)
    return sum(
        gradient_square(module, m) / v.item() + gradient_square(module, v) / (2 * v.item() ** 2) for m, v in pairs
    )


def heteroscedastic(module, x):
    mean, scale = module(x).chunk(2, -1)
    return mean, F.softplus(scale)


# ---- every way to mask


def each(m, x, y, function=F.cross_entropy):
    return function(m(x).mT, y, reduction="none")


def focal(loss):
    return (1 - (-loss).exp()) ** 2 * loss


def in_place(m, x, y, k):
    loss = each(m, x, y)
    loss[~k] = 0
    return loss.sum()


def folded(m, x, y, k):
    loss = F.cross_entropy(m(x).flatten(0, 1), y.flatten(), reduction="none")
    return (loss * k.flatten()).sum() / k.sum()


def by_backward(m, x, y, k):
    m.automatic_optimization = False
    m.manual_backward((each(m, x, y) * k).sum())


def twice_backward(m, x, y, k):
    """The other loss makes up for what this one leaves out of the first token."""
    loss = each(m, x, y)
    (loss[:, 1:] * k[:, 1:]).sum().backward(retain_graph=True)
    (loss[:, 0] * k[:, 0]).sum().backward()


def nll(m, x, y, k):
    return (F.nll_loss(m(x).log_softmax(-1).mT, y, reduction="none") * k).sum()


def gaussian_nll(m, x, y, k):
    return F.gaussian_nll_loss(*heteroscedastic(m, x)[:1], y, heteroscedastic(m, x)[1], reduction="none")[k].mean()


TEXT = (TOKENS, WORDS, MASK)
MASKS = {
    "times": (lambda m, x, y, k: (each(m, x, y) * k).sum() / k.sum(), TEXT),
    "folded": (folded, TEXT),
    "mean over positions first": (lambda m, x, y, k: (each(m, x, y) * k).mean(1).mean(), TEXT),
    "mean of each sample first": (
        lambda m, x, y, k: ((each(m, x, y) * k).sum(1) / k.sum(1).clamp(min=1)).mean(),
        TEXT,
    ),
    "0 / 0 of a sample": (lambda m, x, y, k: ((each(m, x, y) * k).sum(1) / k.sum(1)).mean(), TEXT),
    "indexed": (lambda m, x, y, k: each(m, x, y)[k].mean(), TEXT),
    "masked_select": (lambda m, x, y, k: each(m, x, y).masked_select(k).mean(), TEXT),
    "where": (lambda m, x, y, k: torch.where(k, each(m, x, y), 0).sum(), TEXT),
    "in place": (in_place, TEXT),
    "weights": (lambda m, x, y, k: (each(m, x, y) * k * torch.rand(T).double()).mean(), TEXT),
    "focal": (lambda m, x, y, k: focal(each(m, x, y)).mul(k).sum(), TEXT),
    "manual_backward": (by_backward, TEXT),
    "two backwards": (twice_backward, TEXT),
    "nll_loss": (nll, TEXT),
    "of each sample": (lambda m, x, y, k: (each(m, x, y) * k[:, None]).mean(), (TOKENS, WORDS, PER_SAMPLE)),
    "none": (lambda m, x, y, k: each(m, x, y).mean(), (TOKENS, WORDS, torch.ones_like(MASK))),
    "ignored, and times": (lambda m, x, y, k: (each(m, x, torch.where(k, y, -100)) * k).sum() / k.sum(), TEXT),
    "a class of weight 0": (
        lambda m, x, y, k: F.cross_entropy(m(x).mT, torch.where(k, y, 2), torch.tensor([1.0, 3.0, 0.0]).double()),
        (TOKENS, WORDS % 2, MASK),
    ),
    "targets of no class": (
        lambda m, x, y, k: F.cross_entropy(m(x).mT, (F.one_hot(y, CLASSES) * k[..., None]).double().mT),
        TEXT,
    ),
}
CELLWISE = {
    "mse": (lambda m, x, y, k: (F.mse_loss(m(x), y, reduction="none") * k).sum() / k.sum(), VALUES, means),
    "mse of missing values": (
        lambda m, x, y, k: F.mse_loss(m(x), torch.where(k, y, torch.nan), reduction="none")[k].mean(),
        VALUES,
        means,
    ),
    "bce with logits": (
        lambda m, x, y, k: (F.binary_cross_entropy_with_logits(m(x), y, reduction="none") * k).mean(),
        LABELS,
        labels,
    ),
    "bce": (
        lambda m, x, y, k: F.binary_cross_entropy(m(x).sigmoid(), y, reduction="none")[k].mean(),
        LABELS,
        labels,
    ),
    "bce, weight": (lambda m, x, y, k: F.binary_cross_entropy_with_logits(m(x), y, k.double()), LABELS, labels),
    "bce of probabilities, weight": (
        lambda m, x, y, k: F.binary_cross_entropy(m(x).sigmoid(), y, k.double()),
        LABELS,
        labels,
    ),
    "bce, pos_weight 0": (
        lambda m, x, y, k: F.binary_cross_entropy_with_logits(
            m(x), torch.where(k, 0.0, 1.0).double(), pos_weight=torch.zeros(1).double()
        ),
        LABELS,
        labels,
    ),
}


def kept_rows(module, batch):
    """Logits of the kept positions of each sample."""
    x, _, mask = batch
    every = mask if mask.dim() > 1 else mask[:, None].expand(N, T)
    return [module(x[n])[every[n]] for n in range(N)]


@pytest.mark.parametrize("name", MASKS)
def test_what_a_mask_leaves_out_counts_zero(name):
    step, batch = MASKS[name]
    module = Module(step).eval()
    expected = [classes(module, rows) if len(rows) else 0.0 for rows in kept_rows(module, batch)]
    assert traces(module, batch).tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", MASKS)
def test_the_loss_is_that_of_what_is_kept(name):
    step, (x, y, mask) = MASKS[name]
    module = Module(step).eval()
    prediction = make_predictor()(replicate(module), (x, y, mask))
    every = mask if mask.dim() > 1 else mask[:, None].expand(N, T)
    weight = torch.tensor([1.0, 3.0, 0.0]).double() if name == "a class of weight 0" else None
    z = module(x).detach().requires_grad_()
    expected = F.cross_entropy(z[every], y[every], weight, reduction="sum")
    torch.testing.assert_close(prediction.summed_loss(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(prediction.loss_gradient(), torch.autograd.grad(expected, z)[0])
    assert torch.equal(prediction.mask if prediction.mask is not None else torch.ones_like(every), every)


@pytest.mark.parametrize("name", CELLWISE)
def test_outputs_that_a_mask_leaves_out_count_zero(name):
    step, y, definition = CELLWISE[name]
    module = Module(step).eval()
    z = module(X)
    expected = [definition(module, z[n][CELLS[n]]) if CELLS[n].any() else 0.0 for n in range(N)]
    assert traces(module, (X, y, CELLS)).tolist() == pytest.approx(expected, rel=1e-10)
    prediction = make_predictor()(replicate(module), (X, y, CELLS))
    assert torch.equal(prediction.mask, CELLS)
    gradient = prediction.loss_gradient()
    assert gradient[~CELLS].abs().sum() == 0
    assert (gradient[CELLS] != 0).all()
    assert prediction.summed_loss().isfinite()


def test_a_predicted_variance_is_masked_with_its_mean():
    module = Module(gaussian_nll, 2 * CLASSES).eval()
    mean, variance = heteroscedastic(module, X)
    expected = [
        means_and_variances(module, mean[n][CELLS[n]], variance[n][CELLS[n]]) if CELLS[n].any() else 0.0
        for n in range(N)
    ]
    batch = (X, MISSING, CELLS)
    assert traces(module, batch).tolist() == pytest.approx(expected, rel=1e-10)
    prediction = make_predictor()(replicate(module), batch)
    traced = output_fisher_trace(prediction.outputs, "gaussian", prediction.mask)
    torch.testing.assert_close(traced, 2.0 * CELLS.sum(1).double())
    assert prediction.loss_gradient()[~CELLS].abs().sum() == 0
    p, v = prediction.parameters
    assert output_kl(p, p + 1, "gaussian", prediction.mask, (v, v)).count_nonzero() == CELLS.any(1).sum()


def test_positions_of_several_outputs_are_masked_together_or_apart():
    for function, y, definition in (
        (F.binary_cross_entropy_with_logits, BITS, labels),
        (F.mse_loss, REAL, means),
    ):
        module = Module(lambda m, x, y, k, f=function: (f(m(x), y, reduction="none") * k[..., None]).mean()).eval()
        expected = [definition(module, rows) if len(rows) else 0.0 for rows in kept_rows(module, (TOKENS, y, MASK))]
        assert traces(module, (TOKENS, y, MASK)).tolist() == pytest.approx(expected, rel=1e-10)


def test_a_class_of_weight_0_is_trained_where_labels_are_smoothed():
    weight = torch.tensor([1.0, 3.0, 0.0]).double()
    module = Module(lambda m, x, y: F.cross_entropy(m(x), y, weight, label_smoothing=0.1)).eval()
    assert make_predictor()(replicate(module), (X, Y)).mask.all()


def test_a_loss_without_a_graph_leaves_the_mask_unknown():
    module = Module(lambda m, x, y, k: (each(m, x, y) * k).sum().detach().requires_grad_()).eval()
    prediction = make_predictor()(replicate(module), TEXT)
    assert prediction.has_unknown_weights
    assert prediction.mask.all()
    known = make_predictor()(replicate(Module(MASKS["times"][0])), TEXT)
    assert not known.has_unknown_weights
    assert not make_predictor()(replicate(Module(lambda m, x, y: F.cross_entropy(m(x), y))), (X, Y)).has_unknown_weights


@pytest.mark.parametrize("scale", [0.1, 1.0, 40.0])
@pytest.mark.parametrize("penalty", [0.0, 0.25])
def test_what_is_beyond_the_likelihood_is_told_from_its_weights(scale, penalty):
    module = Module(lambda m, x, y, k: scale * (each(m, x, y) * k).sum() / k.sum() + penalty).eval()
    assert make_predictor()(replicate(module), TEXT).extra_loss == pytest.approx(penalty, abs=1e-12)


def test_a_penalty_added_in_place_is_told():
    def step(m, x, y):
        loss = F.cross_entropy(m(x), y)
        loss += 0.25
        return loss

    assert make_predictor()(replicate(Module(step)), (X, Y)).extra_loss == pytest.approx(0.25)


# ---- batches that are skipped


def test_a_step_that_returns_none_is_skipped_unless_it_goes_backward_by_itself():
    def finite_only(m, x, y):
        loss = F.cross_entropy(m(x), y)
        return None if loss > 0 else loss

    with pytest.raises(Skipped, match=r"Module\.training_step returned None"):
        make_predictor()(replicate(Module(finite_only)), (X, Y))
    with pytest.raises(Skipped):
        make_predictor()(replicate(Module(lambda m, x, y: None)), (X, Y))
    for returned in ({}, {"loss": None}):
        with pytest.raises(NoPrediction, match="dict without 'loss'"):
            make_predictor()(replicate(Module(lambda m, x, y, r=returned: r)), (X, Y))

    manual = Module(by_backward)
    assert make_predictor()(replicate(manual), TEXT).outputs.shape == (N, T, CLASSES)
    manual = Module(lambda m, x, y: None)
    manual.automatic_optimization = False
    with pytest.raises(Skipped):
        make_predictor()(replicate(manual), (X, Y))
