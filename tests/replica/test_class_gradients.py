"""Targets and weights of a cross entropy from its gradients, against those that autograd took the gradients of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_info.replica.class_gradients import of_labels, of_probabilities, of_smoothed_labels

N, C = 8, 4
GENERATOR = torch.Generator().manual_seed(0)
Y = torch.randint(C, (N,), generator=GENERATOR)
KINDS = pytest.mark.parametrize("kind", ["categorical", "bernoulli"])


def logits():
    return torch.randn(N, C, generator=GENERATOR, dtype=torch.float64, requires_grad=True)


def each(kind, z, q):
    """Of every row, from PyTorch's own functions."""
    if kind == "categorical":
        return F.cross_entropy(z, q, reduction="none")
    return F.binary_cross_entropy_with_logits(z, q, reduction="none")


def gradient(kind, z, q, weight):
    (found,) = torch.autograd.grad((weight * each(kind, z, q)).sum(), z)
    return found


def targets_and_weights(kind):
    rows = (N,) if kind == "categorical" else (N, C)
    q, weight = (torch.rand(shape, generator=GENERATOR, dtype=torch.float64) for shape in ((N, C), rows))
    weight[1] = 0.0
    return q / q.sum(-1, keepdim=True) if kind == "categorical" else q, weight


@KINDS
def test_two_gradients_tell_any_targets_and_weights(kind):
    q, weight = targets_and_weights(kind)
    pairs = [(gradient(kind, z, q, weight), z.detach()) for z in (logits(), logits(), logits())]
    found = of_probabilities(kind, *pairs[:2])
    assert torch.equal(found.kept, weight != 0)
    torch.testing.assert_close(found.weight, weight)
    torch.testing.assert_close(found.q[found.kept], q[found.kept])
    assert found.holds(kind, *pairs[2], 1e-6)
    assert found.smoothing(kind) is None
    assert found.scale is None


@KINDS
def test_a_third_gradient_shows_weights_that_depend_on_the_logits(kind):
    def focal(z):
        loss = each(kind, z, F.one_hot(Y, C).double())
        (found,) = torch.autograd.grad(((1 - (-loss).exp()) * loss).sum(), z)
        return found, z.detach()

    found = of_probabilities(kind, focal(logits()), focal(logits()))
    assert found is None or not found.holds(kind, *focal(logits()), 1e-2)


@KINDS
def test_weights_below_zero_are_refused(kind):
    q, weight = targets_and_weights(kind)
    weight[2] *= -1
    one, other = ((gradient(kind, z, q, weight), z.detach()) for z in (logits(), logits()))
    assert of_probabilities(kind, one, other) is None


def test_the_smoothing_of_labels_is_found_and_tells_them_from_one_gradient():
    q = 0.7 * F.one_hot(Y, C).double() + 0.3 / C
    one, other = ((gradient("categorical", z, q, torch.tensor(0.1)), z.detach()) for z in (logits(), logits()))
    found = of_probabilities("categorical", one, other)
    assert found.smoothing("categorical") == pytest.approx(0.3)
    assert found.scale == pytest.approx(0.1)
    again = of_smoothed_labels(*one, 0.3, found.scale, 1e-3)
    torch.testing.assert_close(again.q, q)
    assert of_smoothed_labels(*one, 0.3, 2 * found.scale, 1e-3) is None
    assert of_smoothed_labels(*one, 0.1, found.scale, 1e-3) is None


@KINDS
def test_a_sure_output_among_others_counts_and_an_ignored_one_does_not(kind):
    z, q = torch.randn(N, C, generator=GENERATOR), F.one_hot(Y, C)
    z[0] = -200.0
    z[0, Y[0]] = 200.0
    z.requires_grad_()
    weight = torch.ones(N) if kind == "categorical" else torch.ones(N, C)
    weight[-1] = 0.0
    g = gradient(kind, z, q.float(), weight)
    found = of_labels(kind, g.double(), z.detach().double(), 1e-3)
    assert bool(found.kept[:-1].all())
    assert not found.kept[-1].any()
    assert torch.equal(found.q[0], q[0].double())
