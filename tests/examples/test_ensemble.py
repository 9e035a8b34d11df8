"""The ensemble of the examples of Achille et al. (2020): trained together is trained alone."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "examples" / "achille2020"))

from ensemble import Ensemble, train


def net():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


@pytest.mark.parametrize(
    "optimiser",
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
        partial(torch.optim.Adam, lr=0.01),
    ],
    ids=["SGD", "Adam"],
)
def test_trained_together_is_trained_alone(optimiser):
    modules = [net() for _ in range(4)]
    before = [p.clone() for p in modules[0].parameters()]
    x = torch.randn(25, 4, 7, 3, dtype=torch.float64)
    y = torch.randint(2, (25, 4, 7))
    ensemble = Ensemble(modules)
    train(ensemble, list(zip(x, y, strict=True)), F.cross_entropy, optimiser(ensemble.parameters.values()))
    outputs = ensemble(x[0])
    assert all(torch.equal(p, old) for p, old in zip(modules[0].parameters(), before, strict=True))
    for i, module in enumerate(modules):
        alone = optimiser(module.parameters())
        for step in range(len(x)):
            alone.zero_grad()
            F.cross_entropy(module(x[step, i]), y[step, i]).backward()
            alone.step()
        for name, p in module.named_parameters():
            torch.testing.assert_close(ensemble.parameters[name][i], p, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(outputs[i], module(x[0, i]), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ensemble.member(i)(x[0, i]), module(x[0, i]), rtol=1e-10, atol=1e-10)
    assert (outputs[0] - Ensemble([net()])(x[:1, 0])[0]).norm() > 1e-3


def test_buffers_are_those_of_each_network():
    modules = [nn.BatchNorm1d(3).double().eval() for _ in range(2)]
    modules[1].running_mean.fill_(2.0)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    for i in range(2):
        expected = modules[i](x[i])
        torch.testing.assert_close(Ensemble(modules)(x)[i], expected)
        torch.testing.assert_close(Ensemble(modules).member(i)(x[i]), expected)
