"""A loss that is summed some rows at a time is the same loss, and no block of it stays in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_info.functional import fisher
from lightning_info.replica.summed_by_rows import summed_by_rows

ROWS, CLASSES = 11, 7
TARGETS = {"classes": torch.randint(CLASSES, (ROWS,)), "probabilities": torch.rand(ROWS, CLASSES)}


def cross_entropy(z, y):
    return F.cross_entropy(z, y, reduction="sum", label_smoothing=0.1)


@pytest.mark.parametrize("y", TARGETS.values(), ids=TARGETS.keys())
def test_value_and_derivatives_are_those_of_the_whole(y, monkeypatch):
    w, x, v = torch.randn(5, CLASSES, requires_grad=True), torch.randn(ROWS, 5), torch.randn(5, CLASSES)
    found = []
    for most in (fisher.MOST_NUMBERS, 3 * CLASSES):
        monkeypatch.setattr(fisher, "MOST_NUMBERS", most)
        loss = summed_by_rows(cross_entropy, torch.tanh(x @ w), y)
        (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
        found.append((loss, gradient, torch.autograd.grad((gradient * v).sum(), w)[0]))
    for whole, by_rows in zip(*found, strict=True):
        torch.testing.assert_close(by_rows, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=0)


class Doubles(TorchDispatchMode):
    """Notes the largest tensor in float64."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor) and one.dtype == torch.float64:
                self.largest = max(self.largest, one.numel())
        return result


@pytest.mark.parametrize("y", TARGETS.values(), ids=TARGETS.keys())
def test_no_float64_tensor_is_larger_than_a_block(y, monkeypatch):
    monkeypatch.setattr(fisher, "MOST_NUMBERS", 3 * CLASSES)
    z = torch.randn(ROWS, CLASSES, requires_grad=True)
    with Doubles() as doubles:
        summed_by_rows(cross_entropy, z, y).backward()
    assert 0 < doubles.largest <= 3 * CLASSES
