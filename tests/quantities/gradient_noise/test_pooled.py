"""Gradient noise of modules as they are trained, against plain autograd on each sample's own loss."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from models import trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import GradientNoiseCallback
from lightning_info.quantities.gradient_noise import pooled

N, BATCH = 48, 16


def tensors():
    """Inputs, classes, real targets, sample weights, and tokens of which one a sample is ignored."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 3, (N, 4), generator=g)
    tokens[torch.arange(N), torch.randint(0, 4, (N,), generator=g)] = -100
    return (
        torch.randn(N, 5, generator=g),
        torch.randint(0, 3, (N,), generator=g),
        torch.randn(N, 3, generator=g),
        torch.rand(N, generator=g),
        tokens,
    )


class Net(nn.Module):
    """Two layers and a scale of its own, which no rule fits."""

    def __init__(self, outputs=3, scale=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, outputs)
        self.scale = nn.Parameter(torch.tensor(1.5)) if scale else 1.5

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)) * self.scale)


class Trained(pl.LightningModule):
    """Trained with a given function of the net and the batch."""

    def __init__(self, loss, net=None, optimizer=torch.optim.SGD, **options):
        super().__init__()
        self.net, self.loss = net or Net(), loss
        self.optimizer, self.options = optimizer, {"lr": 0.1, **options}

    def training_step(self, batch, batch_idx):
        return self.loss(self.net, *batch)

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), **self.options)


def measured(module, batch_size=BATCH, **options):
    """Values at the start by tag, over all samples, and the callback."""
    options = {"num_samples": N, "every_n_epochs": 9, "on_error": "raise", "summary": False, **options}
    callback = GradientNoiseCallback(**options)
    loader = DataLoader(TensorDataset(*tensors()), batch_size)
    trainer(callback, max_epochs=1).fit(module, loader)
    return {tag: curve[0][1] for tag, curve in callback.history.items()}, callback


def truth(net, losses):
    """tr Σ and |G|² by parameter, from the gradients of ``losses(net, *batch)``, ``(N,)``."""
    net.double()
    batch = [t.double() if t.is_floating_point() else t for t in tensors()]
    each = losses(net, *batch)
    rows = [torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for loss in each]
    found = {}
    for name, column in zip(dict(net.named_parameters()), zip(*rows, strict=True), strict=True):
        g = torch.stack(column).reshape(N, -1)
        trace = (g - g.mean(0)).square().sum().item() / (N - 1)
        found[name] = trace, g.mean(0).square().sum().item() - trace / N
    return found


def squares(net):
    return sum(p.square().sum() for p in net.parameters())


def folded(net, x, y, t, w, tokens):
    return net(x).reshape(-1, 3), tokens.flatten()


POSITIVE = torch.tensor([3.0, 1.0, 0.5])
CASES = {
    "mean squared error": (
        lambda net, x, y, t, w, tokens: F.mse_loss(net(x), t),
        lambda net, x, y, t, w, tokens: (net(x) - t).square().mean(1),
    ),
    "its sum": (
        lambda net, x, y, t, w, tokens: F.mse_loss(net(x), t, reduction="sum"),
        lambda net, x, y, t, w, tokens: (net(x) - t).square().sum(1),
    ),
    "cross entropy with a factor and smoothed labels": (
        lambda net, x, y, t, w, tokens: 0.3 * F.cross_entropy(net(x), y, label_smoothing=0.2),
        lambda net, x, y, t, w, tokens: 0.3 * F.cross_entropy(net(x), y, label_smoothing=0.2, reduction="none"),
    ),
    "sample weights": (
        lambda net, x, y, t, w, tokens: (w * F.cross_entropy(net(x), y, reduction="none")).mean(),
        lambda net, x, y, t, w, tokens: w * F.cross_entropy(net(x), y, reduction="none"),
    ),
    "weighted labels": (
        lambda net, x, y, t, w, tokens: F.binary_cross_entropy_with_logits(
            net(x), (t > 0).to(t), pos_weight=POSITIVE.to(t)
        ),
        lambda net, x, y, t, w, tokens: F.binary_cross_entropy_with_logits(
            net(x), (t > 0).to(t), pos_weight=POSITIVE.to(t), reduction="none"
        ).mean(1),
    ),
    "poisson": (
        lambda net, x, y, t, w, tokens: F.poisson_nll_loss(net(x), t.abs().round(), full=True),
        lambda net, x, y, t, w, tokens: F.poisson_nll_loss(net(x), t.abs().round(), reduction="none").mean(1),
    ),
    "a penalty": (
        lambda net, x, y, t, w, tokens: F.cross_entropy(net(x), y) + 0.05 * squares(net),
        lambda net, x, y, t, w, tokens: F.cross_entropy(net(x), y, reduction="none") + 0.05 * squares(net),
    ),
    "written by hand": (
        lambda net, x, y, t, w, tokens: ((net(x) - t) ** 2).mean(),
        lambda net, x, y, t, w, tokens: (net(x) - t).square().mean(1),
    ),
    "two likelihoods": (
        lambda net, x, y, t, w, tokens: F.cross_entropy(net(x), y) + 2 * F.l1_loss(net.first(x)[:, :3], t),
        lambda net, x, y, t, w, tokens: (
            F.cross_entropy(net(x), y, reduction="none") + 2 * (net.first(x)[:, :3] - t).abs().mean(1)
        ),
    ),
    "a penalty on outputs": (
        lambda net, x, y, t, w, tokens: F.cross_entropy(net(x), y) + 0.1 * net(x).square().mean(),
        lambda net, x, y, t, w, tokens: F.cross_entropy(net(x), y, reduction="none") + 0.1 * net(x).square().mean(1),
    ),
}
ALONE = {"two likelihoods", "a penalty on outputs"}


def compare(found, expected, tolerance=1e-4):
    trace, signal = (sum(values) for values in zip(*expected.values(), strict=True))
    assert found["gradient_noise/trace"] == pytest.approx(trace, rel=tolerance)
    assert found["gradient_noise/squared_norm"] == pytest.approx(signal, rel=tolerance, abs=tolerance * trace)
    if signal > 0.01 * trace:
        assert found["gradient_noise/scale"] == pytest.approx(trace / signal, rel=1e-2)
    for module in ("first", "last"):
        parts = [value for name, value in expected.items() if name.startswith(module)]
        own = sum(trace for trace, _ in parts)
        assert found[f"gradient_noise_trace_layers/net.{module}"] == pytest.approx(own, rel=tolerance)
        square = sum(square for _, square in parts)
        if square > 0.01 * own:
            assert found[f"gradient_noise_layers/net.{module}"] == pytest.approx(own / square, rel=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_the_gradients_are_those_of_the_users_own_loss(name):
    loss, each = CASES[name]
    found, callback = measured(Trained(loss))
    assert (callback.plan is None) is (name in ALONE)
    compare(found, truth(Net(), each))


def test_tokens_folded_into_the_batch_are_those_of_their_sample_and_ignored_ones_count_nothing():
    def each(net, *batch):
        z, y = folded(net, *batch)
        return F.cross_entropy(z, y, reduction="none").reshape(N, 4).sum(1) / 3

    found, _ = measured(Trained(lambda net, *batch: F.cross_entropy(*folded(net, *batch)), Net(12)))
    compare(found, truth(Net(12), each))


@pytest.mark.parametrize("engine", ["backpack", "backpack_vmap", "func", "loop"])
def test_every_engine_gives_the_same(engine):
    loss, each = CASES["sample weights"]
    scale = engine != "backpack"
    found, callback = measured(Trained(loss, Net(scale=scale)), engine=engine)
    assert callback.plan.engine == engine
    compare(found, truth(Net(scale=scale), each))


def test_linear_regression_in_closed_form():
    """ℓ = (wx - y)²: the gradient of a sample is 2 (wx - y) x."""
    module = Trained(lambda net, x, y, t, w, tokens: F.mse_loss(net(x)[:, 0], t[:, 0]), nn.Linear(5, 1, bias=False))
    weight = module.net.weight.detach().double().numpy()[0]
    found, _ = measured(module)
    x, _, t, *_ = (value.double().numpy() for value in tensors())
    g = 2 * (x @ weight - t[:, 0])[:, None] * x
    trace = g.var(0, ddof=1).sum()
    assert found["gradient_noise/trace"] == pytest.approx(trace, rel=1e-5)
    assert found["gradient_noise/squared_norm"] == pytest.approx((g.mean(0) ** 2).sum() - trace / N, rel=1e-4)


def test_long_gradients_are_folded_for_the_errors_alone(monkeypatch):
    loss, _ = CASES["mean squared error"]
    whole, _ = measured(Trained(loss))
    monkeypatch.setattr(pooled, "WIDTH", 20)  # of 57
    less, _ = measured(Trained(loss))
    for tag, value in whole.items():
        if tag.endswith(("/scale", "/trace", "/squared_norm")) or "layers" in tag:
            assert less[tag] == pytest.approx(value, rel=1e-6, nan_ok=True), tag
    for name in ("trace", "squared_norm"):
        error = whole[f"gradient_noise/{name}_stderr"]
        assert 0.3 * error < less[f"gradient_noise/{name}_stderr"] < 3 * error
        assert less[f"gradient_noise/{name}_stderr"] != error


def test_the_temperature_is_that_of_the_measured_noise_and_a_sum_takes_larger_steps():
    mean, total = CASES["mean squared error"][0], CASES["its sum"][0]
    found, _ = measured(Trained(mean, momentum=0.9, dampening=0.5))
    k = sum(p.numel() for p in Net().parameters())
    expected = 0.1 * 0.5 / (1 - 0.9) * found["gradient_noise/trace"] / (2 * BATCH * k)
    assert found["gradient_noise/temperature"] == pytest.approx(expected, rel=1e-9)
    error = found["gradient_noise/trace_stderr"] / found["gradient_noise/trace"]
    assert found["gradient_noise/temperature_stderr"] == pytest.approx(error * expected, rel=1e-9)
    # in units in which both losses and temperatures are a mean over the three outputs, with lr that makes equal steps
    summed, _ = measured(Trained(total, lr=0.1 / BATCH / 3, momentum=0.9, dampening=0.5))
    assert summed["gradient_noise/temperature"] == pytest.approx(3 * expected, rel=1e-5)


def test_other_optimisers_have_none_and_it_is_said():
    adam, callback = measured(Trained(CASES["mean squared error"][0], optimizer=torch.optim.Adam))
    assert not [tag for tag in adam if "temperature" in tag]
    assert "Adam is not SGD" in callback.report()
    assert "Adam is not SGD" in callback.quantity.closing_text(callback.record())
    adapter = lambda module, batch: (module.net(batch[0]), batch[2], "gaussian")  # noqa: E731
    told, callback = measured(Trained(CASES["mean squared error"][0]), adapter=adapter)
    assert not [tag for tag in told if "temperature" in tag]
    assert "an adapter does not tell the scale" in callback.report()
    compare(told, truth(Net(), lambda net, x, y, t, w, tokens: (net(x) - t).square().sum(1) / 2))


def test_the_closing_sentence_says_on_which_side_the_batch_is():
    loss = CASES["mean squared error"][0]
    _, callback = measured(Trained(loss, lr=0.0))
    found = callback.quantity.conclusions(callback.record())
    assert found["scale_low"] < found["scale"] < found["scale_high"]
    text = callback.quantity.closing_text(callback.record())
    assert text.startswith(f"Gradient noise scale at the end: {found['scale']:.3g} samples (95 %")
    for size, side in ((1, "below"), (10_000, "above")):
        callback.quantity._batch_size = size
        assert callback.quantity.conclusions(callback.record())["batch"] == f"{side} the noise scale"
        assert f"The batch of {size} is {side} it" in callback.quantity.closing_text(callback.record())


def test_points_repeat_and_one_sample_has_no_noise():
    loss = CASES["mean squared error"][0]
    first, second = (measured(Trained(loss), seed=3)[0] for _ in range(2))
    for tag in first.keys() - {"gradient_noise/overhead"}:
        assert first[tag] == second[tag] or math.isnan(first[tag]), tag
    with pytest.warns(UserWarning, match="cannot be seen from a single sample"):
        one, _ = measured(Trained(loss), num_samples=1)
    assert math.isnan(one["gradient_noise/trace"])
