"""Each likelihood's Fisher trace against its definition on the raw network: float64, one Jacobian a sample."""

from __future__ import annotations

import math
import types
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier
from torch import nn
from torch.distributions import Categorical, Laplace, Poisson

from lightning_info.functional.fisher import exact_cotangents, fisher_cotangent
from lightning_info.gradients import NotCovered, choose_engine
from lightning_info.replica.prediction import NoPrediction, Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

N, T = 5, 4
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, FEATURES, generator=GENERATOR, dtype=torch.float64)
TOKENS = torch.randn(N, T, FEATURES, generator=GENERATOR, dtype=torch.float64)
Y, WORDS = torch.randint(0, CLASSES, (N,), generator=GENERATOR), torch.randint(0, CLASSES, (N, T), generator=GENERATOR)
IGNORED = WORDS.clone()
IGNORED[0], IGNORED[1, 1:] = -100, -100
SOFT = torch.rand(N, CLASSES, generator=GENERATOR, dtype=torch.float64).softmax(1)
LABELS = torch.randint(0, 2, (N, CLASSES), generator=GENERATOR).double()
VALUES = torch.randn(N, CLASSES, generator=GENERATOR, dtype=torch.float64)
COUNTS = torch.randint(0, 6, (N, CLASSES), generator=GENERATOR).double()
WEIGHT = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)


def net(outputs=CLASSES):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


class Module(Classifier):
    """A training_step of one's own, ``step(module, *batch)``."""

    def __init__(self, step, outputs=CLASSES):
        super().__init__(net(outputs))
        self.step = step

    def training_step(self, batch, batch_idx):
        return self.step(self, *batch) if isinstance(batch, (tuple, list)) else self.step(self, batch)


# ---- the truth: what the loss means, one sample at a time


def gradient_square(module, value):
    gradients = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)
    return sum(g.square().sum().item() for g in gradients if g is not None)


def classes(module, z):
    """``z`` of shape (*positions, C): independent positions."""
    rows = z.reshape(-1, z.shape[-1]).log_softmax(-1)
    return sum(log_p.exp().item() * gradient_square(module, log_p) for row in rows for log_p in row)


def labels(module, z):
    total = 0.0
    for q in z.flatten():
        for log_p in (F.logsigmoid(q), F.logsigmoid(-q)):
            total += log_p.exp().item() * gradient_square(module, log_p)
    return total


def means(module, z):
    return sum(gradient_square(module, mean) for mean in z.flatten())


def locations(information):
    return lambda module, z: information * means(module, z)


def rates(module, z):
    """Of the rates themselves, whose Fisher information is one over them."""
    return sum(gradient_square(module, rate) / rate.item() for rate in z.exp().flatten())


def huber_information(delta):
    """Mean square of the score under the density, summed over a grid."""
    y = torch.linspace(-80 / delta, 80 / delta, 400_001, dtype=torch.float64)
    p = (-F.huber_loss(y, torch.zeros_like(y), reduction="none", delta=delta)).exp()
    return ((p * y.clamp(-delta, delta).square()).sum() / p.sum()).item()


def means_and_variances(module, mean, variance):
    variance = variance.expand_as(mean)
    total = 0.0
    for m, v in zip(mean.flatten(), variance.flatten(), strict=True):
        total += gradient_square(module, m) / v.item()
        total += gradient_square(module, v) / (2 * v.item() ** 2) if v.requires_grad else 0.0
    return total


def heteroscedastic(module, x):
    mean, scale = module(x).chunk(2, -1)
    return mean, F.softplus(scale)


CASES = {
    "cross_entropy": (lambda m, x, y: F.cross_entropy(m(x), y), (X, Y), classes),
    "label smoothing": (lambda m, x, y: F.cross_entropy(m(x), y, label_smoothing=0.3), (X, Y), classes),
    "class weights": (lambda m, x, y: F.cross_entropy(m(x), y, WEIGHT), (X, Y), classes),
    "probability targets": (lambda m, x, y: F.cross_entropy(m(x), y), (X, SOFT), classes),
    "mean by hand": (lambda m, x, y: F.cross_entropy(m(x), y, reduction="none").mean(), (X, Y), classes),
    "sum by hand": (lambda m, x, y: F.cross_entropy(m(x), y, reduction="none").sum(), (X, Y), classes),
    "nll_loss": (lambda m, x, y: F.nll_loss(m(x).log_softmax(1), y), (X, Y), classes),
    "NLLLoss with weights": (lambda m, x, y: nn.NLLLoss(WEIGHT)(F.log_softmax(m(x), -1), y), (X, Y), classes),
    "positions": (lambda m, x, y: F.cross_entropy(m(x).transpose(1, 2), y), (TOKENS, WORDS), classes),
    "folded tokens": (lambda m, x, y: F.cross_entropy(m(x).view(-1, CLASSES), y.view(-1)), (TOKENS, WORDS), classes),
    "folded log-probabilities": (
        lambda m, x, y: F.nll_loss(m(x).log_softmax(-1).flatten(0, 1), y.flatten()),
        (TOKENS, WORDS),
        classes,
    ),
    "BCE with logits": (lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), y), (X, LABELS), labels),
    "pos_weight": (
        lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), y, pos_weight=WEIGHT),
        (X, LABELS),
        labels,
    ),
    "BCE of probabilities": (lambda m, x, y: F.binary_cross_entropy(m(x).sigmoid(), y), (X, LABELS), labels),
    "BCELoss, weighted": (lambda m, x, y: nn.BCELoss(WEIGHT)(torch.sigmoid(m(x)), y), (X, LABELS), labels),
    "folded labels": (
        lambda m, x: F.binary_cross_entropy_with_logits(m(x).flatten(0, 1), torch.ones(len(x) * T, CLASSES).double()),
        (TOKENS,),
        labels,
    ),
    "soft_margin_loss": (lambda m, x, y: F.soft_margin_loss(m(x), 2 * y - 1), (X, LABELS), labels),
    "MultiLabelSoftMarginLoss": (
        lambda m, x, y: nn.MultiLabelSoftMarginLoss(WEIGHT, reduction="none")(m(x), y).sum(),
        (X, LABELS),
        labels,
    ),
    "mse_loss": (lambda m, x, y: F.mse_loss(m(x), y), (X, VALUES), means),
    "mse_loss, summed": (lambda m, x, y: nn.MSELoss(reduction="sum")(m(x), y), (X, VALUES), means),
    "l1_loss": (lambda m, x, y: F.l1_loss(m(x), y), (X, VALUES), locations(1.0)),
    "L1Loss, swapped": (lambda m, x, y: nn.L1Loss(reduction="sum")(y, m(x)), (X, VALUES), locations(1.0)),
    "huber_loss": (lambda m, x, y: F.huber_loss(m(x), y), (X, VALUES), locations(huber_information(1.0))),
    "HuberLoss": (lambda m, x, y: nn.HuberLoss(delta=0.4)(m(x), y), (X, VALUES), locations(huber_information(0.4))),
    "smooth_l1_loss": (  # of residuals over sqrt(beta)
        lambda m, x, y: F.smooth_l1_loss(m(x), y, beta=0.25),
        (X, VALUES),
        locations(huber_information(0.5) / 0.25),
    ),
    "SmoothL1Loss, beta = 0": (lambda m, x, y: nn.SmoothL1Loss(beta=0.0)(m(x), y), (X, VALUES), locations(1.0)),
    "poisson_nll_loss": (lambda m, x, y: F.poisson_nll_loss(m(x), y), (X, COUNTS), rates),
    "PoissonNLLLoss of rates": (
        lambda m, x, y: nn.PoissonNLLLoss(log_input=False, full=True, eps=0.0)(m(x).exp(), y),
        (X, COUNTS),
        rates,
    ),
    "kl_div": (lambda m, x, y: F.kl_div(m(x).log_softmax(1), y, reduction="batchmean"), (X, SOFT), classes),
    "KLDivLoss of logarithms": (
        lambda m, x, y: nn.KLDivLoss(reduction="sum", log_target=True)(m(x).log_softmax(1), y.log()),
        (X, SOFT),
        classes,
    ),
    "kl_div, summed by hand": (
        lambda m, x, y: F.kl_div(m(x).log_softmax(1), y, reduction="none").sum(1).mean(),
        (X, SOFT),
        classes,
    ),
    "kl_div of positions, classes last": (
        lambda m, x: F.kl_div(m(x).log_softmax(-1), torch.ones_like(x[..., :CLASSES]) / CLASSES, reduction="sum"),
        (TOKENS,),
        classes,
    ),
}


def make_predictor():
    return Predictor(StandInTrainer(types.SimpleNamespace(optimizers=[0], lr_scheduler_configs=[])))


def traces(module, batch, engine="loop"):
    """One sample's trace after the other, by the package."""
    predictor, replica = make_predictor(), replicate(module)
    prediction = predictor(replica, batch)
    plan = choose_engine(replica, predictor.outputs, batch, engine)
    cotangents = exact_cotangents(prediction.outputs, prediction.likelihood, prediction.mask)
    return sum(plan.squared_norms(replica, predictor.outputs, batch, cotangents).values())


@pytest.mark.parametrize("engine", ["loop", "func"])
@pytest.mark.parametrize("name", CASES)
def test_the_trace_is_that_of_the_predictive_distribution(name, engine):
    step, batch, definition = CASES[name]
    module = Module(step).eval()
    expected = [definition(module, module(batch[0][n : n + 1])) for n in range(N)]
    error = 1e-6 if "huber" in name.lower() or "smooth_l1" in name else 1e-10  # theirs is the grid's
    assert traces(module, batch, engine).tolist() == pytest.approx(expected, rel=error)


def test_class_probabilities_of_positions_with_the_classes_first():
    """By the loop: an engine that cannot look at values takes the last axis, and is refused where that is wrong."""

    def step(module, x):
        target = torch.full_like(x[..., :CLASSES], 1 / CLASSES).mT
        return F.kl_div(module(x).mT.log_softmax(1), target, reduction="none").mean()

    module = Module(step).eval()
    expected = [classes(module, module(TOKENS[n : n + 1])) for n in range(N)]
    assert traces(module, (TOKENS,), "loop").tolist() == pytest.approx(expected, rel=1e-10)
    with pytest.raises(NotCovered):
        traces(module, (TOKENS,), "func")


@pytest.mark.parametrize("form", ["of each output", "of the sample", "constant"])
def test_a_gaussian_with_a_predicted_variance(form):
    def predict(module, x):
        mean, variance = heteroscedastic(module, x)
        if form == "of the sample":
            variance = variance[:, :1]
        return mean, torch.full_like(variance, 0.7) if form == "constant" else variance

    def step(module, x, y):
        mean, variance = predict(module, x)
        return F.gaussian_nll_loss(mean, y, variance)

    module = Module(step, 2 * CLASSES).eval()
    expected = [means_and_variances(module, *predict(module, X[n : n + 1])) for n in range(N)]
    assert traces(module, (X, VALUES)).tolist() == pytest.approx(expected, rel=1e-10)


def test_ignored_tokens_count_zero():
    def step(module, x, y):
        return F.cross_entropy(module(x).view(-1, CLASSES), y.view(-1))

    module = Module(step).eval()
    found = traces(module, (TOKENS, IGNORED)).tolist()
    kept = [TOKENS[n][IGNORED[n] != -100] for n in range(N)]
    assert found == pytest.approx([classes(module, module(rows)) if len(rows) else 0.0 for rows in kept], rel=1e-10)
    assert found[0] == 0.0


@pytest.mark.parametrize(
    ("step", "batch"),
    [
        (lambda m, x, y: F.cross_entropy(m(x).view(-1, CLASSES), y.view(-1), WEIGHT), (TOKENS, IGNORED)),
        (lambda m, x, y: F.nll_loss(m(x).log_softmax(1), y, WEIGHT), (X, Y)),
        (lambda m, x, y: F.binary_cross_entropy(m(x).sigmoid(), y, WEIGHT), (X, LABELS)),
        (lambda m, x, y: F.gaussian_nll_loss(*heteroscedastic(m, x)[:1], y, heteroscedastic(m, x)[1]), (X, VALUES)),
        (lambda m, x, y: F.soft_margin_loss(m(x), 2 * y - 1), (X, LABELS)),
        (lambda m, x, y: CLASSES * F.multilabel_soft_margin_loss(m(x), y, WEIGHT), (X, LABELS)),
        (lambda m, x, y: F.l1_loss(m(x), y), (X, LABELS)),
        (lambda m, x, y: F.huber_loss(m(x), y, delta=0.4), (X, LABELS)),
        (lambda m, x, y: F.smooth_l1_loss(m(x), y, beta=0.25), (X, LABELS)),
        (lambda m, x, y: F.poisson_nll_loss(m(x), y), (X, COUNTS)),
        (lambda m, x, y: F.poisson_nll_loss(m(x).exp(), y, log_input=False), (X, COUNTS)),
        (lambda m, x, y: F.kl_div(m(x).log_softmax(1), y), (X, SOFT)),
    ],
)
def test_the_gradient_of_the_loss_is_that_of_the_users_summed_loss(step, batch):
    """In the weights, as the outputs have another form than those of the user."""

    class Sum(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            return func(
                *args,
                **{**kwargs, "reduction": "sum"}
                if any(part in func.__name__ for part in ("loss", "entropy", "kl_div"))
                else kwargs,
            )

    outputs = 2 * CLASSES if batch[1] is VALUES else CLASSES
    module = Module(step, outputs).eval()
    replica = replicate(module)
    prediction = make_predictor()(replica, batch)
    found = torch.autograd.grad(prediction.outputs, list(replica.parameters()), prediction.loss_gradient())
    with Sum():
        loss = step(module, *batch)
    expected = torch.autograd.grad(loss, list(module.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


SAMPLED = {
    "l1_loss": (lambda m, x, y: F.l1_loss(m(x), y), VALUES, lambda z: Laplace(z, 1.0)),
    "poisson_nll_loss": (lambda m, x, y: F.poisson_nll_loss(m(x), y), COUNTS, lambda z: Poisson(z.exp())),
    "kl_div": (lambda m, x, y: F.kl_div(m(x).log_softmax(1), y), SOFT, lambda z: Categorical(logits=z)),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_the_trace_is_the_mean_square_of_the_gradients_at_labels_of_the_distribution(name):
    """20 000 labels of torch.distributions at one input, seeded; within 4 standard errors."""
    step, targets, distribution = SAMPLED[name]
    module = Module(step).eval()
    z = module(X[:1])[0]
    jacobian = [torch.autograd.grad(one, list(module.parameters()), retain_graph=True) for one in z]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in jacobian])
    free = z.detach().expand(20_000, CLASSES).clone().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        labels = distribution(free.detach()).sample()
    (scores,) = torch.autograd.grad(distribution(free).log_prob(labels).sum(), free)
    squares = (scores @ rows).square().sum(1)
    found = traces(module, (X, targets))[0].item()
    assert abs(squares.mean().item() - found) < 4 * squares.std().item() / len(squares) ** 0.5


def test_a_log_probability_along_no_axis_is_refused():
    with pytest.raises(NoPrediction, match="along none of its axes"):
        traces(Module(lambda m, x, y: F.kl_div(m(x), y)), (X, SOFT))


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda m, x, y: F.triplet_margin_loss(m(x), m(x + 1), m(-x)), "triplet_margin_loss is none: it compares"),
        (lambda m, x, y: F.multi_margin_loss(m(x), y), "multi_margin_loss is none: a margin belongs to no density"),
        (
            lambda m, x, y: F.ctc_loss(m(x)[:, None].log_softmax(-1), y[None, :2] % 2 + 1, (len(x),), (2,)),
            "ctc_loss is none: it sums over alignments",
        ),
    ],
)
def test_a_loss_that_is_no_likelihood_is_refused_with_the_reason(step, reason):
    with pytest.raises(NoPrediction, match=reason):
        traces(Module(step), (X, Y))


def test_a_policy_gradient_is_refused_with_the_reason():
    def step(module, x, y):
        return (F.cross_entropy(module(x), y, reduction="none") * torch.linspace(-1, 1, len(x))).mean()

    with pytest.raises(NoPrediction, match=r"falls as cross_entropy of outputs \(5, 3\) .* rises.*LikelihoodCall\(0\)"):
        make_predictor()(replicate(Module(step)), (X, Y))


def test_what_is_set_by_convention_is_said():
    def said(step):
        return make_predictor()(replicate(Module(step)), (X, VALUES)).described

    assert said(lambda m, x, y: F.l1_loss(m(x), y)) == "laplace outputs (3,) a sample (unit scale, by convention)"
    assert "huber (delta = 0.5) outputs (3,) a sample (unit scale in units of sqrt(beta) = 0.5, by convention)" in said(
        lambda m, x, y: F.smooth_l1_loss(m(x), y, beta=0.25)
    )
    assert "by convention" not in said(lambda m, x, y: F.gaussian_nll_loss(m(x), y, torch.ones_like(y)))


def test_probabilities_of_a_saturated_sigmoid_count_nothing():
    module = Module(lambda m, x, y: F.binary_cross_entropy(m(x).sigmoid(), y))
    module.net[2].bias.data = torch.tensor([0.0, 60.0, -800.0], dtype=torch.float64)  # p = 0.5, 1, 0
    found = traces(module, (X, LABELS))
    other = Module(lambda m, x, y: F.binary_cross_entropy(m(x)[:, :1].sigmoid(), y[:, :1]))
    other.net.load_state_dict(module.net.state_dict())
    torch.testing.assert_close(found, traces(other, (X, LABELS)), rtol=1e-9, atol=0)


def test_what_is_no_log_probability_is_refused():
    with pytest.raises(NoPrediction, match="after log_softmax"):
        traces(Module(lambda m, x, y: F.nll_loss(m(x), y)), (X, Y))


@pytest.mark.parametrize(
    "step",
    [
        lambda m, x, y: F.cross_entropy(m(x).transpose(0, 1).flatten(0, 1), y.T.flatten()),  # time first
        lambda m, x, y: F.cross_entropy(m(x[:, 0]).repeat(2, 1), y[:, 0].repeat(2)),  # views one after the other
    ],
)
def test_rows_in_another_order_than_sample_after_sample_are_refused(step):
    with pytest.raises(NotCovered, match="depend on the other samples"):
        traces(Module(step), (TOKENS, WORDS), "auto")


# ---- batches of any form


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor
    weight: float = 2.0


FORMS: dict[str, tuple[Any, Any]] = {
    "list": ([X, Y], lambda m, x, y: F.cross_entropy(m(x), y)),
    "nested": ([{"x": X}, (Y, "name")], lambda m, x, y: F.cross_entropy(m(x["x"]), y[0])),
    "dict": ({"x": X, "y": Y}, lambda m, batch: F.cross_entropy(m(batch["x"]), batch["y"])),
    "keywords": ({"x": X, "y": Y}, lambda m, batch: (lambda x, y: F.cross_entropy(m(x), y))(**batch)),
    "dataclass": (Batch(X, Y), lambda m, batch: F.cross_entropy(m(batch.x), batch.y)),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_form(form):
    batch, step = FORMS[form]
    module = Module(step).eval()
    expected = [classes(module, module(X[n : n + 1])) for n in range(N)]
    assert traces(module, batch, "auto").tolist() == pytest.approx(expected, rel=1e-10)


def test_a_module_that_computes_its_own_loss():
    """As those of transformers do: loss and logits from one forward pass."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, inputs, labels):
            logits = self.net(inputs)
            shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
            loss = F.cross_entropy(logits.float().double().view(-1, CLASSES), shifted.reshape(-1), ignore_index=-100)
            return {"loss": loss, "logits": logits}

    class Wrapped(Classifier):
        def __init__(self):
            super().__init__(Model())

        def training_step(self, batch, batch_idx):
            return self.net(**batch)["loss"]

    module = Wrapped().eval()
    expected = [classes(module, module.net.net(TOKENS[n, :-1])) for n in range(N)]  # the last token predicts nothing
    assert traces(module, {"inputs": TOKENS, "labels": WORDS}).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("penalty", [0.0, 0.25])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none, mean", "none, sum"])
def test_a_penalty_is_what_the_loss_holds_beyond_the_likelihood(penalty, reduction):
    def step(module, x, y):
        kind, _, by_hand = reduction.partition(", ")
        loss = F.cross_entropy(module(x), y, reduction=kind)
        return (getattr(loss, by_hand)() if by_hand else loss) + penalty

    prediction = make_predictor()(replicate(Module(step)), (X, Y))
    assert prediction.extra_loss == pytest.approx(penalty, abs=1e-12)


@pytest.mark.parametrize("estimator", ["importance", "rademacher"])
def test_the_cotangents_of_a_predicted_variance_have_the_right_scale(estimator):
    """E‖u‖² = tr H = 1/v + 1/(2v²) in the user's own units."""
    z = torch.tensor([[3.0, 0.5]], dtype=torch.float64)  # (mean / sqrt(v0), v / (sqrt(2) v0)) of any mean, v = v0
    u = fisher_cotangent(z, "gaussian", estimator, generator=torch.Generator().manual_seed(0))
    assert u.square().sum().item() == pytest.approx(2.0)
    assert math.isfinite(u.sum().item())


def test_excluded_classes_have_probability_zero():
    module = Module(lambda m, x, y: F.cross_entropy(m(x).masked_fill(EXCLUDED, -torch.inf), y))
    shown = Module(lambda m, x, y: F.cross_entropy(m(x)[:, :2], y))
    shown.net.load_state_dict(module.net.state_dict())
    batch = (X, torch.zeros_like(Y))
    torch.testing.assert_close(traces(module, batch), traces(shown, batch), rtol=1e-9, atol=0)


EXCLUDED = torch.tensor([False, False, True])


def test_a_gaussian_with_its_arguments_the_other_way_round():
    variance = torch.full((1,), 0.5, dtype=torch.float64)
    there = Module(lambda m, x, y: F.gaussian_nll_loss(m(x), y, variance.expand(len(x), 1)))
    back = Module(lambda m, x, y: F.gaussian_nll_loss(y, m(x), variance.expand(len(x), 1)))
    assert torch.equal(traces(there, (X, VALUES)), traces(back, (X, VALUES)))


def test_a_gaussian_whose_single_sample_was_squeezed():
    def step(squeeze):
        def of(module, x, y):
            mean, variance = heteroscedastic(module, x)
            return F.gaussian_nll_loss(squeeze(mean), squeeze(y), squeeze(variance))

        return of

    one = (X[:1], VALUES[:1])
    plain, squeezed = Module(step(lambda t: t), 2 * CLASSES), Module(step(lambda t: t.squeeze(0)), 2 * CLASSES)
    torch.testing.assert_close(traces(squeezed, one), traces(plain, one), rtol=1e-12, atol=0)


def test_targets_that_depend_on_the_parameters_are_refused():
    step = lambda m, x, y: F.binary_cross_entropy_with_logits(x[:, :CLASSES], m(x).sigmoid())  # noqa: E731
    with pytest.raises(NoPrediction, match="targets of binary_cross_entropy_with_logits"):
        traces(Module(step), (X, VALUES))
