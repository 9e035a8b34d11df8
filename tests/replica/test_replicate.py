import functools
import threading
import types
import weakref
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.compile import from_compiled
from models import CLASSES, FEATURES, Classifier, data
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_info.replica.replicate import NotCopyable, replicate

X, Y = data(8).tensors


class Recurrent(Classifier):
    def __init__(self):
        super().__init__(nn.LSTM(FEATURES, CLASSES, 2, batch_first=True))

    def forward(self, x):
        return self.net(x.unsqueeze(1))[0].squeeze(1)


def one_layer(wrap):
    return Classifier(nn.Sequential(wrap(nn.Linear(FEATURES, 8)), nn.Tanh(), nn.Linear(8, CLASSES)))


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.4)
    return prune.random_unstructured(layer, "weight", 0.4)


def compiled():
    return from_compiled(torch.compile(Classifier(dropout=0.5), backend="eager"))


def compiled_net():
    return Classifier(torch.compile(Classifier(dropout=0.5).net, backend="eager"))


def compiled_in_place(name):
    module = Classifier(dropout=0.5)
    module.get_submodule(name).compile(backend="eager")
    return module


def patched_forward():
    module = Classifier()
    module.net.forward = types.MethodType(lambda net, x: 2 * type(net).forward(net, x), module.net)
    return module


MODULES = {
    "plain": Classifier,
    "dropout": lambda: Classifier(dropout=0.5),
    "BatchNorm": lambda: Classifier(batch_norm=True),
    "LSTM": Recurrent,
    "nested LightningModule": lambda: Classifier(Classifier()),
    "old weight_norm": lambda: one_layer(nn.utils.weight_norm),
    "old spectral_norm": lambda: one_layer(nn.utils.spectral_norm),
    "weight_norm": lambda: one_layer(parametrizations.weight_norm),
    "spectral_norm": lambda: one_layer(parametrizations.spectral_norm),
    "orthogonal": lambda: one_layer(parametrizations.orthogonal),
    "pruned": lambda: one_layer(pruned),
    "compiled": compiled,
    "compiled net": compiled_net,
    "net compiled in place": lambda: compiled_in_place("net"),
    "module compiled in place": lambda: compiled_in_place(""),
    "patched forward": patched_forward,
}

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def trained(module):
    """After a step, so that BatchNorm has statistics, hooks have written tensors, and gradients are there."""
    optimizer = torch.optim.SGD(module.parameters(), 0.1, weight_decay=0.1)
    F.cross_entropy(module(X), Y).backward()
    optimizer.step()
    return module


@pytest.fixture(params=MODULES)
def module(request):
    return trained(MODULES[request.param]())


def test_outputs_are_those_of_the_original_in_eval_mode(module):
    replica = replicate(module)
    expected = module.eval()(X)
    assert torch.equal(replica(X), expected)
    assert expected.std() > 0


def test_parameters_share_storage_but_no_gradients(module):
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
    replica = replicate(module)
    originals = dict(module.named_parameters())
    copies = dict(replica.named_parameters())
    assert copies.keys() == originals.keys()
    for name, copy in copies.items():
        assert copy is not originals[name]
        assert copy.data_ptr() == originals[name].data_ptr()
        assert copy.grad is None
        assert copy.is_leaf
    F.cross_entropy(replica(X), Y).backward()
    assert all(copy.grad is not None for copy in copies.values())
    assert all(torch.equal(p.grad, gradients[name]) for name, p in originals.items())


def test_only_the_replicas_parameters_enter_its_outputs(module):
    """A closure of torch.compile, a hook or a patched method must not lead back to the original."""
    replica = replicate(module)
    originals = list(module.parameters())
    assert torch.autograd.grad(replica(X).sum(), originals, allow_unused=True) == (None,) * len(originals)


def test_in_place_updates_of_the_original_are_seen(module):
    replica = replicate(module)
    before = replica(X).detach()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    assert torch.equal(replica(X), module.eval()(X))
    assert not torch.equal(replica(X), before)


def test_replaced_data_and_attributes_are_seen_when_rebuilt():
    module = Classifier(dropout=0.5)
    replicate(module)
    for parameter in module.parameters():
        parameter.data = parameter.data * 2
    module.temperature = 3.0
    replica = replicate(module)
    assert torch.equal(replica(X), module.eval()(X))
    assert replica.temperature == 3.0


def test_a_private_replica_keeps_the_weights_and_buffers_of_today(module):
    expected = replicate(module)(X).detach()
    replica = replicate(module, private=True)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.mul_(2)
    assert torch.equal(replica(X), expected)


def test_a_private_replica_may_write_to_its_weights(module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    replica = replicate(module, private=True)
    with torch.no_grad():
        for tensor in (*replica.parameters(), *replica.buffers()):
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("private", [False, True])
def test_a_forward_pass_in_train_mode_leaves_the_originals_buffers_alone(private):
    module = trained(one_layer(lambda layer: nn.Sequential(nn.utils.spectral_norm(layer), nn.BatchNorm1d(8))))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    replica = replicate(module, private=private).train()
    replica(X)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert not torch.equal(replica.net[0][1].running_mean, module.net[0][1].running_mean)


def test_the_users_hooks_do_nothing_to_him_and_stay_on_the_original():
    calls = []
    module = Classifier()
    module.register_forward_hook(lambda *_: calls.append("forward"))
    module.net[0].register_forward_pre_hook(lambda *_, **__: calls.append("pre"), with_kwargs=True)
    module.net[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    module.net[0].weight.register_hook(lambda gradient: calls.append("tensor"))
    module.net[0].register_state_dict_post_hook(lambda *_: calls.append("state_dict"))
    replica = replicate(module)
    replica(X).sum().backward()
    replica.state_dict()
    assert calls == []
    module(X).sum().backward()
    module.state_dict()
    assert sorted(calls) == ["backward", "forward", "pre", "state_dict", "tensor"]


def test_everything_is_in_eval_mode_and_the_originals_flags_stay():
    module = Classifier(batch_norm=True, dropout=0.5)
    module.net[1].eval()
    replica = replicate(module)
    assert not any(part.training for part in replica.modules())
    assert [name for name, part in module.named_modules() if not part.training] == ["net.1"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_upcast_to_a_copy(dtype):
    module = Classifier(batch_norm=True).to(dtype)
    replica = replicate(module)
    for copy, original in zip(replica.parameters(), module.parameters(), strict=True):
        assert copy.dtype == torch.float32
        assert torch.equal(copy, original.float())
    assert replica.net[1].running_mean.dtype == torch.float32
    assert replica.net[1].num_batches_tracked.dtype == torch.int64
    assert all(p.dtype == dtype for p in module.parameters())
    assert replica(X).dtype == torch.float32


def test_float64_stays_float64():
    assert {p.dtype for p in replicate(Classifier().double()).parameters()} == {torch.float64}


def test_tied_and_frozen_parameters_stay_tied_and_frozen():
    net = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES))
    net[1].weight = net[0].weight
    net[2].bias.requires_grad_(False)
    replica = replicate(Classifier(net))
    assert replica.net[0].weight is replica.net[1].weight
    assert [name for name, p in replica.named_parameters() if not p.requires_grad] == ["net.2.bias"]


def test_attributes_are_private_and_tensors_with_a_graph_are_detached():
    module = Classifier()
    logits = module(X)
    module.logits, module.history, module.by_name = logits, [logits.sum()], {"last": (logits,)}
    module.net[0].seen = logits
    replica = replicate(module)
    assert torch.equal(replica.logits, logits)
    assert not any(t.requires_grad for t in (replica.logits, *replica.history, *replica.by_name["last"]))
    replica.history.append(1)
    replica.logits.zero_()
    assert len(module.history) == 1
    assert module.logits is logits
    assert logits.abs().sum() > 0


@pytest.mark.parametrize("path", ["", "net.0"])
def test_an_attribute_that_cannot_be_copied_is_named(path):
    module = Classifier()
    module.get_submodule(path).lock = threading.Lock()
    with pytest.raises(NotCopyable, match=rf"attribute '{path and path + '.'}lock' of Classifier .*lock"):
        replicate(module)


@pytest.mark.parametrize("form", ["object", "closure"])
def test_what_holds_something_that_cannot_be_copied_is_named(form):
    module, lock = Classifier(), threading.Lock()
    module.cache = types.SimpleNamespace(lock=lock) if form == "object" else lambda: lock
    with pytest.raises(NotCopyable, match=r"attribute 'cache' of Classifier .*lock"):
        replicate(module)


def test_an_object_that_holds_tensors_with_a_graph_has_detached_copies():
    module = Classifier()
    module.cache = types.SimpleNamespace(logits=module(X))
    kept = replicate(module).cache.logits
    assert torch.equal(kept, module.cache.logits)
    assert not kept.requires_grad


def test_a_lazy_layer_that_saw_no_batch_is_named():
    with pytest.raises(NotCopyable, match="lazy parameter"):
        replicate(Classifier(nn.Sequential(nn.LazyLinear(CLASSES))))


def test_the_trainer_is_not_copied_but_replaced():
    trainer, stand_in = types.SimpleNamespace(lock=threading.Lock()), object()
    module = Classifier()
    module.boss = trainer
    replica = replicate(module, trainer=trainer, stand_in=stand_in)
    assert replica.boss is stand_in
    assert module.boss is trainer


def test_a_replica_made_in_inference_mode_can_be_differentiated():
    module = Classifier(batch_norm=True)
    with torch.inference_mode():
        replica = replicate(module)
        private = replicate(module, private=True)
    for copy in (replica, private):
        assert not any(t.is_inference() for t in (*copy.parameters(), *copy.buffers()))
        F.cross_entropy(copy(X), Y).backward()


def test_methods_that_compilation_bound_to_the_original_are_the_replicas_own():
    module = compiled()
    assert "training_step" in vars(module)
    replica = replicate(module)
    assert replica.training_step.__self__ is replica
    assert replica.forward.__self__ is replica
    assert replica._compiler_ctx is None
    assert module._compiler_ctx is not None


def test_a_scripted_net_keeps_what_is_trained():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[0].requires_grad_(False)
    replica = replicate(torch.jit.script(net))
    assert [p.requires_grad for p in replica.parameters()] == [False, False, True, True]


class Holder:
    def __init__(self, function):
        self.function = function


def pairs_of(module):
    """An update of one layer by the other, over a list of their parameters."""
    pairs = list(zip(module[0].parameters(), module[1].parameters(), strict=True))

    @torch.no_grad()
    def update():
        for one, other in pairs:
            one.lerp_(other, 0.5)

    return update


FORMS = {
    "a module": lambda module: lambda: module[0].weight.data.zero_(),
    "a list": pairs_of,
    "a dict": lambda module: (lambda by: lambda: by["w"].data.zero_())({"w": module[0].weight}),
    "a set of tuples": lambda module: (lambda some: lambda: [p.data.zero_() for (p,) in some])({(module[0].weight,)}),
    "an object": lambda module: (lambda some: lambda: some.function.zero_())(Holder(module[0].weight.data)),
    "a default": lambda module: lambda to=module[0]: to.weight.data.zero_(),
    "a keyword": lambda module: lambda *, to=[module[0]]: to[0].weight.data.zero_(),
    "a partial": lambda module: functools.partial(lambda w: w.data.zero_(), module[0].weight),
    "a bound method": lambda module: functools.partial(module[0].weight.data.mul_, 0.0),
    "a nested function": lambda module: (lambda inner: lambda: inner())(lambda: module[0].weight.data.zero_()),
    "another function's default": lambda module: lambda f=lambda w=module[0].weight: w.data.zero_(): f(),
    "an attribute": lambda module: Holder(lambda: module[0].weight.data.zero_()).function,
    "a decorator": lambda module: torch.no_grad()(lambda: module[0].weight.zero_()),
    "a compiled function": lambda module: torch.compile(lambda: module[0].weight.data.zero_(), backend="eager"),
}
PLACES = {
    "attribute": (lambda f: f, lambda own: own),
    "list": (lambda f: [f], lambda own: own[0]),
    "tuple in a dict": (lambda f: {"f": (f, 1)}, lambda own: own["f"][0]),
    "object": (Holder, lambda own: own.function),
    "patched method": (lambda f: types.MethodType(lambda held: held.function(), Holder(f)), lambda own: own),
}


def assert_acts_on_the_copies(form, place="attribute"):
    put, get = PLACES[place]
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module.own = put(FORMS[form](module))
    before = deepcopy(module.state_dict())
    replica = replicate(module, private=True)
    get(replica.own)()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not torch.equal(replica[0].weight, module[0].weight)


@pytest.mark.parametrize("form", FORMS)
def test_a_function_acts_on_the_replica_whatever_it_holds_the_module_in(form):
    assert_acts_on_the_copies(form)


@pytest.mark.parametrize("place", PLACES)
def test_a_function_acts_on_the_replica_wherever_it_is_held(place):
    assert_acts_on_the_copies("a list", place)


def test_functions_share_what_they_close_over_with_each_other_and_with_the_module():
    module, seen, count = nn.Sequential(nn.Linear(2, 2)), torch.zeros(2), 0

    def add(x):
        nonlocal count
        count += 1
        seen.add_(x)

    module.functions, module.seen = [add, lambda: (count, seen)], seen
    replica = replicate(module)
    replica.functions[0](torch.ones(2))
    assert replica.functions[1]()[0] == 1
    assert replica.functions[1]()[1] is replica.seen
    assert replica.seen.tolist() == [1.0, 1.0]
    assert (count, seen.tolist()) == (0, [0.0, 0.0])


def test_a_function_that_calls_itself_and_a_generator_of_numbers_are_the_replicas_own():
    module, rng = nn.Sequential(nn.Linear(2, 2)), np.random.default_rng(0)

    def total(module, depth=3):
        return sum(total(part) for part in module.children()) if depth else 0

    module.total, module.draw = lambda: total(module), rng.normal
    state = rng.bit_generator.state
    replica = replicate(module)
    assert replica.total() == 0
    replica.draw()
    assert rng.bit_generator.state == state


def test_functions_without_a_state_are_the_same():
    module = nn.Sequential(nn.Linear(2, 2))
    module.loss, module.activation = F.cross_entropy, [torch.tanh, F.relu]
    replica = replicate(module)
    assert replica.loss is F.cross_entropy
    assert replica.activation == [torch.tanh, F.relu]


REFUSED = {
    "weak reference": weakref.ref,
    "weak dictionary": lambda module: weakref.WeakValueDictionary(module=module),
    "cached function": lambda module: functools.lru_cache(lambda: module),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_leads_back_to_the_original_is_refused(form):
    module = nn.Sequential(nn.Linear(2, 2))
    module.own = REFUSED[form](module)
    with pytest.raises(NotCopyable, match="'own' of Sequential is a function"):
        replicate(module)
