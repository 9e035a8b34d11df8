"""The twin's module trains on weights of its own, whatever leads to them."""

import pytest
import torch
from models import Classifier, data
from torch import nn

from lightning_info.replica.replicate import NotCopyable
from lightning_info.twin.copying import copy_module

X, _ = data(8).tensors


class Teacher(Classifier):
    """A closure over pairs of parameters, and hooks that compute, count and keep."""

    def __init__(self):
        super().__init__()
        self.teacher, self.seen = Classifier().net, []
        pairs, seen = list(zip(self.teacher.parameters(), self.net.parameters(), strict=True)), self.seen

        @torch.no_grad()
        def follow():
            for follower, parameter in pairs:
                follower.lerp_(parameter, 0.5)

        self.follow, self.scale = follow, nn.Parameter(torch.full((8,), 2.0))
        self.net[0].register_forward_hook(lambda module, args, output: seen.append(output) or output * self.scale)
        self.net[2].register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))


def test_closures_and_hooks_act_on_the_twin():
    module = Teacher()
    module(X).sum().backward()
    before, seen = {name: value.clone() for name, value in module.state_dict().items()}, len(module.seen)
    twin = copy_module(module, None)
    twin.follow()
    twin(X).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert len(module.seen) == seen
    assert len(twin.seen) == seen + 2
    assert not torch.equal(twin.teacher[0].weight, module.teacher[0].weight)
    module.follow()
    assert torch.equal(twin.teacher[0].weight, module.teacher[0].weight)
    assert torch.equal(twin(X), module(X))


def test_a_compiled_function_that_leads_back_is_refused():
    """An eager one in its place would round otherwise."""
    module = Classifier()
    module.own = torch.compile(lambda x: module.net(x), backend="eager")
    with pytest.raises(NotCopyable, match="'own' of Classifier"):
        copy_module(module, None)
