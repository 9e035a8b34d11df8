import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from lightning_info.replica.isolation import isolated

CPU = torch.device("cpu")


def draw():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002 (the global one)


def seed_all():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)


def test_all_generators_go_on_as_if_nothing_had_been_drawn():
    seed_all()
    expected = draw()
    seed_all()
    with isolated(CPU):
        draw()
    assert draw() == expected


def test_generators_are_restored_after_reseeding_and_an_exception():
    seed_all()
    expected = draw()
    seed_all()
    with suppress(KeyError), isolated(CPU):
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002
        random.seed(7)
        raise KeyError
    assert draw() == expected


def test_a_normal_number_kept_back_by_a_generator_is_kept():
    """numpy and random make Gaussian numbers in pairs; the second one is part of the state."""
    seed_all()
    np.random.randn(), random.gauss(0, 1)  # noqa: NPY002
    expected = np.random.randn(), random.gauss(0, 1)  # noqa: NPY002
    seed_all()
    np.random.randn(), random.gauss(0, 1)  # noqa: NPY002
    with isolated(CPU):
        np.random.randn(), random.gauss(0, 1)  # noqa: NPY002
    assert (np.random.randn(), random.gauss(0, 1)) == expected  # noqa: NPY002


@pytest.mark.parametrize("surrounding", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_gradients_are_on_inside_and_the_surrounding_mode_is_back_after(surrounding):
    layer = nn.Linear(2, 2)
    with surrounding():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with isolated(CPU):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            x = torch.ones(1, 2)
            assert not x.is_inference()
            (gradient,) = torch.autograd.grad(layer(x).sum(), layer.bias)
            assert torch.equal(gradient, torch.ones(2))
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


def test_autocast_is_off_inside_and_on_again_after():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with isolated(CPU):
            assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16


def test_nothing_is_compiled_inside():
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph

    function = torch.compile(lambda x: x.sin() + 1, backend=backend)
    with isolated(CPU):
        function(torch.ones(2))
    assert compilations == []
    function(torch.ones(2))
    assert len(compilations) == 1


def test_all_modes_are_back_after_an_exception():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with suppress(KeyError), isolated(CPU):
            raise KeyError
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
