"""Hooks compute on the replica what they compute in training, and act on copies only."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, data, loader, trainer
from torch import nn

from lightning_info import EffectiveInfoCallback, FisherTraceCallback
from lightning_info.gradients.backpack.ggn import ggn_diagonal
from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.copies import NotCopyable
from lightning_info.gradients.plan import squared_norms
from lightning_info.replica.replicate import replicate

X, Y = data(8).tensors
SEEN: list[torch.Size] = []
CALLS = 0
KEPT: dict[str, torch.Tensor] = {}
WRITER = threading.Lock()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


# ---- hooks that compute


def halve(module, args):
    return (0.5 * args[0],)


class Scale(nn.Module):
    """Has the hook and what it scales by."""

    def __init__(self, body):
        super().__init__()
        self.body, self.scale = body, nn.Parameter(torch.full((8,), 1.5))
        body[1].register_forward_hook(self.multiply)

    def multiply(self, module, args, output):
        return output * self.scale

    def forward(self, x):
        return self.body(x)


class Features(nn.Module):
    """Its head works on what a hook keeps."""

    def __init__(self, where):
        super().__init__()
        self.body, self.head, self.where = net(), nn.Linear(8, CLASSES), where
        self.features = features = {}
        keep = {
            "closure": lambda module, args, output: features.update(x=output),
            "method": self.keep,
            "global": keep_in_global,
        }[where]
        self.body[1].register_forward_hook(keep)

    def keep(self, module, args, output):
        self.features["x"] = output

    def forward(self, x):
        self.body(x)
        return self.head((KEPT if self.where == "global" else self.features)["x"])


def keep_in_global(module, args, output):
    KEPT["x"] = output


def with_pre_hook():
    module = net()
    module.register_forward_pre_hook(halve)
    return module


def with_hook_in_place():
    module = net()
    module[2].register_forward_hook(double_in_place)
    return module


def double_in_place(module, args, output):
    output.mul_(2.0)


def with_order():
    """Twice, and the one that was prepended runs first."""
    module = net()
    module[0].register_forward_hook(lambda module, args, output: 2.0 * output)
    module[0].register_forward_hook(lambda module, args, output: output + 1.0, prepend=True, always_call=True)
    return module


class WithKeywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()
        self.register_forward_pre_hook(lambda module, args, kwargs: (args, {"scale": 3.0}), with_kwargs=True)

    def forward(self, x, scale=1.0):
        return self.body(scale * x)


def with_partial():
    module, factors = net(), [torch.full((8,), 0.5)]
    module[0].register_forward_hook(partial(lambda by, module, args, output: output * by[0], factors))
    return module


COMPUTING = {
    "pre-hook": with_pre_hook,
    "in place": with_hook_in_place,
    "order": with_order,
    "keywords": WithKeywords,
    "partial": with_partial,
    "parameter of the owner": lambda: Scale(net()),
    "features in a closure": lambda: Features("closure"),
    "features by a method": lambda: Features("method"),
    "features in a global variable": lambda: Features("global"),
}


@pytest.mark.parametrize("kind", COMPUTING)
def test_a_replica_computes_with_its_own_weights_what_the_module_does(kind):
    module = COMPUTING[kind]()
    expected = module(X)
    replica = replicate(module)
    outputs = replica(X)
    assert torch.equal(outputs, expected)
    originals = list(module.parameters())
    assert torch.autograd.grad(outputs.sum(), originals, allow_unused=True) == (None,) * len(originals)


def truth(module):
    """Per-sample squared gradient norms of the sum of the outputs, by plain autograd in float64."""
    module, x = module.double(), X.double()
    rows = [
        torch.autograd.grad(module(x[n : n + 1]).sum(), list(module.parameters()), allow_unused=True) for n in range(8)
    ]
    return [sum(g.square().sum().item() for g in row if g is not None) for row in rows]


CANNOT = {("parameter of the owner", "backpack")}  # no rule for a bare parameter
"""Engines that refuse."""


@pytest.mark.parametrize("engine", ["auto", "backpack", "backpack_vmap", "func", "loop"])
@pytest.mark.parametrize("kind", COMPUTING)
def test_every_engine_is_right_or_refuses(kind, engine):
    replica, right = replicate(COMPUTING[kind]()), truth(COMPUTING[kind]())
    if (kind, engine) in CANNOT:
        with pytest.raises(NotCovered):
            squared_norms(replica, X, torch.ones(8, CLASSES), engine)
        return
    for _ in range(2):  # what the first pass keeps must not reach the second
        norms = squared_norms(replica, X, torch.ones(8, CLASSES), engine)
        assert torch.stack(list(norms.values())).sum(0).tolist() == pytest.approx(right, rel=1e-4)


@pytest.mark.parametrize("kind", COMPUTING)
def test_second_order_rules_are_right_or_refuse(kind):
    module = replicate(COMPUTING[kind]())
    if kind in ("order", "partial"):
        with pytest.raises(NotCovered, match="forward hook"):
            ggn_diagonal(module, X)
        return
    try:
        found = ggn_diagonal(module, X)
    except NotCovered:
        assert kind != "pre-hook", "torch.fx follows it"
        return
    precise, total = COMPUTING[kind]().double(), 0.0
    for n in range(8):
        log_p = precise(X[n : n + 1].double()).log_softmax(1)[0]
        for value in log_p:
            row = torch.autograd.grad(value, list(precise.parameters()), retain_graph=True, allow_unused=True)
            total += value.exp().item() * sum(g.square().sum().item() for g in row if g is not None) / 8
    assert sum(d.sum().item() for d in found.values()) == pytest.approx(total, rel=1e-4)


# ---- hooks that watch


class Recorder:
    """Keeps what it sees, and a file that cannot be copied."""

    def __init__(self, file):
        self.file, self.rows = file, []

    def save(self, module, args, output):
        with self.file:
            self.rows.append(output)


def note(module, args, output):
    global CALLS
    CALLS += 1
    SEEN.append(output.shape)
    remember(output)


def remember(output):
    SEEN.append(output)


class Builds(nn.Sequential):
    """Makes its hook in a method, and forgets in ``__init__`` what earlier ones saw."""

    def __init__(self):
        super().__init__(*net())
        SEEN.clear()
        self.build()

    def build(self):
        def hook(module, args, output):
            global CALLS
            CALLS += 1
            SEEN.append(output)

        self[1].register_forward_hook(hook)


def note_at_writer(module, args, output):
    with WRITER:
        SEEN.append(output)


@pytest.mark.parametrize("kind", ["closure", "nonlocal", "default", "method", "partial", "global", "lock", "builtin"])
def test_a_hook_that_watches_leaves_no_trace_of_the_replica(kind):
    SEEN.clear()
    module, rows, calls, recorder = net(), [], 0, Recorder(threading.Lock() if kind == "lock" else nullcontext())

    def count(module, args, output):
        nonlocal calls
        calls += 1

    append = rows.append
    hook = {
        "closure": lambda module, args, output: rows.append(output),
        "nonlocal": count,
        "default": lambda module, args, output, rows=rows: rows.append(output),
        "method": recorder.save,
        "partial": partial(lambda to, module, args, output: to.append(output), rows),
        "global": note,
        "lock": recorder.save,
        "builtin": lambda module, args, output: append(output),
    }[kind]
    module[1].register_forward_hook(hook)
    module[2].register_forward_hook(note_at_writer)
    for seen in range(1, 3):
        expected = module(X)
        before = (*map(len, (rows, SEEN, recorder.rows)), calls, CALLS)
        assert sum(before[:1] + before[2:4]) == seen or kind == "global"
        replica = replicate(module)  # while tensors with a graph are kept
        assert torch.equal(replica(X), expected)
        assert torch.equal(replica(X), expected)
        assert (*map(len, (rows, SEEN, recorder.rows)), calls, CALLS) == before


def test_a_hook_made_by_a_method_of_the_module_leaves_no_trace_either():
    module = Builds()
    module(X)
    before = len(SEEN), CALLS
    replicate(module)(X)
    assert (len(SEEN), CALLS) == before


def test_a_hook_that_computes_with_what_cannot_be_copied_is_refused_by_name():
    module, lock = net(), threading.Lock()

    def halve_alone(module, args, output):
        with lock:
            return 0.5 * output

    module[1].register_forward_hook(halve_alone)
    replica = replicate(module)
    with pytest.raises(NotCopyable, match=r"halve_alone' of 1 changes what the module computes"):
        replica(X)
    lit = Classifier(module)
    with pytest.raises(MisconfigurationException, match="halve_alone"):
        trainer(FisherTraceCallback(num_samples=8, on_error="raise")).fit(lit, loader(8))


def test_hooks_of_packages_that_only_watch_are_left_out():
    module, calls = net(), []
    hook = lambda module, args, output: calls.append(output)  # noqa: E731
    hook.__module__ = "wandb.integration.torch"
    module[1].register_forward_hook(hook)
    assert not replicate(module)[1]._forward_hooks


def test_a_handle_removes_the_hook_of_the_replica():
    module = net()
    module.handle = module[1].register_forward_hook(lambda module, args, output: 2 * output)
    replica = replicate(module)
    replica.handle.remove()
    assert not replica[1]._forward_hooks
    assert module[1]._forward_hooks


def test_a_linear_layer_with_a_hook_is_not_taken_for_what_its_weights_give():
    """``z = W h + b`` with noise on the weights has a closed form, twice it has not."""
    module = Classifier(net())
    module.net[0].register_forward_hook(lambda module, args, output: 2 * output)
    twice = Classifier(nn.Sequential(net()[0], Twice(), *net()[1:]))
    curves = []
    for one, layer in ((module, "net.0"), (twice, "net.1")):
        callback = EffectiveInfoCallback(beta=0.1, draws=8, num_samples=8, layers=[layer], every_n_train_steps=9)
        trainer(callback, max_steps=1).fit(one, loader(8))
        curves.append(callback.history[f"effective_info/I_XZ/{layer}"][0][1])
    assert curves[0] == pytest.approx(curves[1], rel=0.2)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x
