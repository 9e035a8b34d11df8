"""Likelihoods that a ``training_step`` writes as ``-log_prob`` of ``torch.distributions``."""

from __future__ import annotations

import threading
import types

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier, loader, trainer
from torch import nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Pareto,
    Poisson,
    StudentT,
    TransformedDistribution,
    Uniform,
    Weibull,
    transforms,
)

from lightning_info import FisherTraceCallback, LikelihoodCall
from lightning_info.functional.fisher import exact_cotangents, fisher_cotangent
from lightning_info.functional.likelihoods import StudentT as StudentTFamily
from lightning_info.gradients import choose_engine
from lightning_info.replica.distribution_calls import DISTRIBUTIONS
from lightning_info.replica.prediction import NoPrediction, Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

N, DRAWS = 4, 20_000
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, FEATURES, generator=GENERATOR, dtype=torch.float64)
Y = torch.randint(0, CLASSES, (N,), generator=GENERATOR)
VALUES = torch.randn(N, CLASSES, generator=GENERATOR, dtype=torch.float64)
COUNTS = torch.randint(0, 5, (N, CLASSES), generator=GENERATOR).double()
LABELS = torch.randint(0, 2, (N, CLASSES), generator=GENERATOR).double()
POSITIVE = VALUES.exp()


class Module(Classifier):
    """Minus the mean log-probability of ``distribution(module, x)``, or a step of one's own."""

    def __init__(self, distribution, step=None, outputs=CLASSES):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, outputs)).double())
        self.scale = nn.Parameter(torch.full((CLASSES,), 0.3, dtype=torch.float64))
        self.distribution, self.step = distribution, step

    def training_step(self, batch, batch_idx):
        if self.step is not None:
            return self.step(self, *batch)
        return -self.distribution(self, batch[0]).log_prob(batch[1]).mean()


def positive(module, x, parts=2):
    return [F.softplus(part) + 0.5 for part in module(x).chunk(parts, -1)]


def two(module, x):
    mean, scale = module(x).chunk(2, -1)
    return mean, F.softplus(scale)


CASES = {
    "Normal": (lambda m, x: Normal(*two(m, x)), VALUES),
    "Normal with one scale for all": (lambda m, x: Normal(m(x), m.scale), VALUES),
    "Normal with a known scale": (lambda m, x: Normal(m(x), 0.5), VALUES),
    "Independent Normal": (lambda m, x: Independent(Normal(*two(m, x)), 1), VALUES),
    "LogNormal": (lambda m, x: LogNormal(*two(m, x)), POSITIVE),
    "Laplace": (lambda m, x: Laplace(m(x), 2.0), VALUES),
    "Categorical": (lambda m, x: Categorical(logits=m(x)), Y),
    "Categorical of probabilities": (lambda m, x: Categorical(probs=m(x).softmax(-1)), Y),
    "Bernoulli": (lambda m, x: Bernoulli(logits=m(x)), LABELS),
    "Bernoulli of probabilities": (lambda m, x: Independent(Bernoulli(m(x).sigmoid()), 1), LABELS),
    "Poisson": (lambda m, x: Poisson(F.softplus(m(x))), COUNTS),
    "Laplace, doubled": (lambda m, x: Laplace(*two(m, x)), VALUES),
    "StudentT": (lambda m, x: StudentT(4.0, m(x), 0.5), VALUES),
    "StudentT, doubled": (lambda m, x: StudentT(F.softplus(m.scale) + 4.0, *two(m, x)), VALUES),
    "NegativeBinomial": (lambda m, x: NegativeBinomial(2.5, logits=m(x)), COUNTS),
    "NegativeBinomial of probabilities, doubled": (
        lambda m, x: NegativeBinomial(two(m, x)[1] + 0.5, probs=two(m, x)[0].sigmoid()),
        COUNTS,
    ),
    "Gamma, doubled": (lambda m, x: Independent(Gamma(*positive(m, x)), 1), POSITIVE),
    "Beta, doubled": (lambda m, x: Beta(*positive(m, x)), VALUES.sigmoid()),
    "Weibull, doubled": (lambda m, x: Weibull(*positive(m, x)), POSITIVE),
    "Pareto": (lambda m, x: Pareto(1.0, F.softplus(m(x)) + 0.5), POSITIVE + 1),
    "Dirichlet": (lambda m, x: Dirichlet(F.softplus(m(x)) + 0.5), VALUES.softmax(1)),
    "MultivariateNormal, doubled": (
        lambda m, x: normal_of_two(m(x)),
        VALUES[:, :2],
    ),
}
NAMES = {
    StudentT: ("df", "loc", "scale"),
    NegativeBinomial: ("total_count", "logits"),
    Gamma: ("concentration", "rate"),
    Beta: ("concentration1", "concentration0"),
    Weibull: ("scale", "concentration"),
    Dirichlet: ("concentration",),
    MultivariateNormal: ("loc", "scale_tril"),
}


def normal_of_two(z):
    return MultivariateNormal(z[:, :2], scale_tril=triangle(z[:, 2:5]))


def triangle(z):
    rows = [[F.softplus(z[:, 0]) + 0.5, 0 * z[:, 0]], [z[:, 1], F.softplus(z[:, 2]) + 0.5]]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def module_of(name):
    distribution, y = CASES[name]
    doubled = any(word in name for word in ("Independent Normal", "LogNormal", "doubled")) or name == "Normal"
    return Module(distribution, outputs=2 * CLASSES if doubled else CLASSES).eval(), (X, y)


def predictor(adapter=None):
    return Predictor(StandInTrainer(types.SimpleNamespace(optimizers=[0], lr_scheduler_configs=[])), adapter)


def predict(module, batch, adapter=None):
    return predictor(adapter)(replicate(module), batch)


def traces(module, batch, engine="loop"):
    one, replica = predictor(), replicate(module)
    prediction = one(replica, batch)
    plan = choose_engine(replica, one.outputs, batch, engine)
    columns = exact_cotangents(prediction.outputs, prediction.likelihood, prediction.mask)
    return sum(plan.squared_norms(replica, one.outputs, batch, columns).values())


@pytest.mark.parametrize("name", CASES)
def test_the_trace_is_the_mean_square_of_the_gradients_at_values_of_the_distribution(name):
    """20 000 values of the distribution itself at each input, seeded; within 4.5 standard errors.

    The gradient of log p is by the chain rule: in the parameters of the distribution by autograd on all values at once,
    and theirs in the weights one by one.
    """
    module, batch = module_of(name)
    found, weights = traces(module, batch), list(module.parameters())
    for n in range(N):
        given = module.distribution(module, X[n : n + 1])
        base = given if type(given) in NAMES else getattr(given, "base_dist", given)
        known = [key for key in ("loc", "scale", "logits", "rate") if key in base.arg_constraints]
        names = NAMES.get(type(base), known)
        parameters = [getattr(base, key) for key in names]
        rows = torch.cat([rows_of(one, weights) for one in parameters])
        free = [one.detach().expand(DRAWS, *one.shape[1:]).clone().requires_grad_() for one in parameters]
        again = type(base)(**dict(zip(names, free, strict=True)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(n)
            y = again.sample()
        scores = torch.autograd.grad(again.log_prob(y).sum(), free, allow_unused=True)
        scores = [torch.zeros_like(f) if s is None else s for s, f in zip(scores, free, strict=True)]
        squares = (torch.cat([score.flatten(1) for score in scores], 1) @ rows).square().sum(1)
        assert abs(squares.mean() - found[n]) < 4.5 * squares.std() / DRAWS**0.5, n


def rows_of(parameter, weights):
    if not parameter.requires_grad:
        return torch.zeros(parameter.numel(), sum(w.numel() for w in weights), dtype=torch.float64)
    rows = []
    for one in parameter.flatten():
        found = torch.autograd.grad(one, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def test_an_adapter_gives_parameters_and_their_family():
    module, batch = module_of("StudentT, doubled")
    given = module.distribution(module, X)
    family = StudentTFamily()

    def adapter(module, batch):
        given = module.distribution(module, batch[0])
        return torch.stack([given.df, given.loc, given.scale], -1), batch[1], family

    by_step, by_adapter = predict(module, batch), predict(module, batch, adapter)
    assert torch.equal(by_step.outputs, by_adapter.outputs)
    assert by_step.likelihood == by_adapter.likelihood == family
    mask = torch.ones_like(VALUES, dtype=torch.bool)
    mask[0, 1] = False
    truth = -given.log_prob(VALUES).detach()
    torch.testing.assert_close(by_step.summed_loss(), truth.sum())
    torch.testing.assert_close(by_step.summed_of(by_step.outputs.detach(), mask), truth[mask].sum())


TWINS = {
    "Normal": lambda m, x, y: F.gaussian_nll_loss(two(m, x)[0], y, two(m, x)[1].square(), eps=1e-30),
    "Categorical": lambda m, x, y: F.cross_entropy(m(x), y),
    "Categorical of probabilities": lambda m, x, y: F.nll_loss(m(x).log_softmax(1), y),
    "Bernoulli": lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), y),
    "Poisson": lambda m, x, y: F.poisson_nll_loss(F.softplus(m(x)), y, log_input=False, eps=0.0),
}


@pytest.mark.parametrize("name", TWINS)
def test_it_is_what_the_loss_function_gives(name):
    module, batch = module_of(name)
    other = Module(None, TWINS[name], module.net[2].out_features).eval()
    torch.testing.assert_close(traces(module, batch), traces(other, batch), rtol=1e-9, atol=0)
    torch.testing.assert_close(traces(module, batch, "auto"), traces(other, batch), rtol=1e-9, atol=0)
    mine, theirs = predict(module, batch), predict(other, batch)
    assert mine.extra_loss == 0.0
    torch.testing.assert_close(mine.loss_gradient(), theirs.loss_gradient(), rtol=1e-9, atol=1e-12)


def test_a_known_scale_is_no_convention():
    module, batch = module_of("Normal with a known scale")
    assert "convention" not in predict(module, batch).described
    plain = Module(None, lambda m, x, y: F.mse_loss(m(x), y)).eval()
    torch.testing.assert_close(traces(module, batch), 4 * traces(plain, batch), rtol=1e-9, atol=0)


def test_masked_values_count_nothing():
    kept = torch.rand(N, CLASSES, generator=torch.Generator().manual_seed(1)) < 0.6

    def step(module, x, y, kept):
        each = Normal(module(x), 1.0).log_prob(y)
        return -(each * kept).sum() / kept.sum()

    module = Module(None, step).eval()
    prediction = predict(module, (X, VALUES, kept))
    assert torch.equal(prediction.mask, kept)
    assert prediction.extra_loss == 0.0


# ---- by samples of it


def mixed(logits, means, widths):
    return MixtureSameFamily(Categorical(logits=logits), Normal(means, F.softplus(widths) + 0.3))


def shifted(location, width):
    base = StudentT(torch.full_like(location, 5.0))
    return TransformedDistribution(base, AffineTransform(location, F.softplus(width)))


BY_SAMPLES = {
    "mixture": (mixed, 9, lambda z: z.reshape(len(z), 3, 3).unbind(1)),
    "shifted": (shifted, 2, lambda z: z.unbind(1)),
}


@pytest.mark.parametrize("name", BY_SAMPLES)
def test_what_has_no_closed_form_is_measured_by_samples(name):
    """The mean of 60 estimates of one label a sample each, and of 20 000 labels: within 4.5 standard errors."""
    make, outputs, parts = BY_SAMPLES[name]
    module = Module(lambda m, x: make(*parts(m(x))), outputs=outputs).eval()
    batch, weights = (X, VALUES[:, 0]), list(module.parameters())
    one, replica = predictor(), replicate(module)
    prediction = one(replica, batch)
    assert not prediction.likelihood.is_exact
    assert "128 labels that are sampled from it, by convention" in prediction.described
    plan, generator = choose_engine(replica, one.outputs, batch), torch.Generator().manual_seed(0)
    columns = [fisher_cotangent(prediction.outputs, prediction.likelihood, generator=generator) for _ in range(60)]
    found = torch.stack([sum(plan.squared_norms(replica, one.outputs, batch, [u]).values()) for u in columns])
    for n in range(N):
        given = parts(module(X[n : n + 1]))
        rows = torch.cat([rows_of(part, weights) for part in given])
        free = [part.detach().expand(DRAWS, *part.shape[1:]).clone().requires_grad_() for part in given]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(n)
            y = make(*free).sample()
        scores = torch.autograd.grad(make(*free).log_prob(y).sum(), free)
        squares = (torch.cat([score.reshape(DRAWS, -1) for score in scores], 1) @ rows).square().sum(1)
        error = (squares.var() / DRAWS + found[:, n].var() / len(found)).sqrt()
        assert abs(squares.mean() - found[:, n].mean()) < 4.5 * error, n


# ---- what is no likelihood


def reinforce(module, x, y):
    given = Categorical(logits=module(x))
    return -(given.log_prob(Y[: len(x)]) * torch.arange(1.0, 1 + len(x))).mean()


def ascent(module, x, y):
    return Normal(module(x), 1.0).log_prob(y).mean()


def one_of_several(module, x, y):
    return -torch.logsumexp(Normal(module(x), 1.0).log_prob(y), 1).mean()


@pytest.mark.parametrize("step", [reinforce, ascent, one_of_several])
def test_another_function_of_log_probabilities_is_refused_with_the_reason(step):
    module = Module(None, step)
    with pytest.raises(NoPrediction, match=r"is not the mean of -log_prob \(\w+\.log_prob of outputs \(4, 3\) \(test_"):
        predict(module, (X, VALUES))


def test_a_policy_is_measured_where_it_is_asked_for():
    prediction = predict(Module(None, reinforce), (X, VALUES), LikelihoodCall(0))
    torch.testing.assert_close(prediction.outputs, Module(None)(X).log_softmax(1))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda m, x, y: -Normal(0.0, 1.0).log_prob(m(x)).mean(), "calls no likelihood .*log_prob of a distribution"),
        (
            lambda m, x, y: -Uniform(m(x) - 9, m(x) + 9).log_prob(y).mean(),
            "support depends on the parameters",
        ),
        (lambda m, x, y: -Pareto(F.softplus(m(x)), 1.0).log_prob(y.exp() + 9).mean(), "it has no Fisher"),
        (lambda m, x, y: -flow(m, x).log_prob(y[:, 0]).mean(), "depends on weights that are not its parameters"),
        (lambda m, x, y: -Normal(m(x), 1.0).log_prob(m(-x)).mean(), "both depend on the parameters"),
        (lambda m, x, y: -Normal(m(x), 1.0).log_prob(y[:, :1]).mean(), r"values of shape \(4, 1\)"),
        (lambda m, x, y: m(x).square().mean() + 0.0 * logged(m, x, y), "its loss depends on none of them"),
    ],
)
def test_the_rest_is_refused(step, message):
    with pytest.raises(NoPrediction, match=message):
        predict(Module(None, step), (X, VALUES)).check()


class Shift(transforms.Transform, nn.Module):
    domain = codomain = transforms.constraints.real
    bijective = True

    def __init__(self):
        nn.Module.__init__(self)
        transforms.Transform.__init__(self)
        self.by = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def _inverse(self, y):
        return y - self.by

    def log_abs_det_jacobian(self, x, y):
        return torch.zeros_like(x)


def flow(module, x):
    shift = AffineTransform(module(x)[:, 0], 1.0)
    return TransformedDistribution(Normal(torch.zeros(len(x)).double(), 1.0), [shift, Shift()])


def logged(module, x, y):
    return Normal(module(x), 1.0).log_prob(y).mean().item()


# ---- nothing is left behind


def test_the_methods_are_those_of_torch_again():
    methods = {kind: kind.__dict__["log_prob"] for kind in DISTRIBUTIONS}

    def step(module, x, y):
        seen = []

        def elsewhere():  # as a twin that trains meanwhile
            seen.append(Normal(torch.zeros(2, requires_grad=True), 1.0).log_prob(torch.ones(2)))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert seen[0].tolist() == Normal(torch.zeros(2), 1.0).log_prob(torch.ones(2)).tolist()
        return -Normal(module(x), 1.0).log_prob(y).mean()

    assert predict(Module(None, step), (X, VALUES)).likelihood == "gaussian"
    with pytest.raises(RuntimeError, match="own"):
        predict(Module(None, lambda m, x, y: (_ for _ in ()).throw(RuntimeError("own"))), (X, VALUES))
    assert {kind: kind.__dict__["log_prob"] for kind in DISTRIBUTIONS} == methods


class Forecast(Classifier):
    def training_step(self, batch, batch_idx):
        mean, scale = self(batch[0]).split((2, 1), -1)
        return -Independent(Normal(mean, F.softplus(scale)), 1).log_prob(batch[0][:, :2]).mean()


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_a_run_is_measured_and_not_changed(engine):
    callback = FisherTraceCallback(num_samples=8, every_n_train_steps=5, engine=engine, on_error="raise")
    weights = []
    for some in ([callback], []):
        torch.manual_seed(0)
        module = Forecast()
        trainer(*some, max_epochs=1).fit(module, loader())
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*weights)
    assert all(value > 0 for _, value in callback.history["fisher/trace"])
