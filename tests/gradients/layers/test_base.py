"""The registry: a layer type is one file, here ``scaled.py``, and every engine that reads layers then knows it."""

from __future__ import annotations

import pytest
import torch
from gradients.cases import Net, bare, call, check, check_rules, head, prepared, real
from gradients.layers.scaled import Scaled, scaled, scaled_by_operator
from torch import nn

from lightning_info.gradients import choose_engine
from lightning_info.gradients.gram import choose_gram_engine

FUNCTIONS = {"function": scaled, "operator": scaled_by_operator}


@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 6), (5, 2, 3, 6)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_rules_of_a_new_layer_type_equal_one_backward_per_sample(function, shape):
    layer = Scaled(6, FUNCTIONS[function], bias=function == "function")
    check_rules(layer, torch.randn(shape))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_engines_take_them_by_name(function):
    net = nn.Sequential(nn.Linear(5, 6), Scaled(6, FUNCTIONS[function], bias=False), nn.Tanh(), head(6))
    net, x = prepared(net, real(5))
    plan = choose_engine(net, call, x)
    assert plan.engine == "backpack"
    assert plan.routes["1.weight"] == "rule: scaled"
    assert choose_gram_engine(net, call, x).engine == "taps"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_several_uses_are_joined_and_bare_parameters_may_stand_beside_them(function):
    parts = {"a": Scaled(6, FUNCTIONS[function], bias=False), "head": head(6)}
    check(Net(lambda m, x: m.head(m.a(m.a(x).tanh())), **parts), real(6), "backpack")
    check(Net(lambda m, x: m.head(m.a(x * m.g)), **parts, **bare(g=6)), real(6), "backpack_vmap")
