"""Linear layers on any number of positions, against one backward pass per sample, in float64."""

from __future__ import annotations

import pytest
import torch
from gradients.cases import check_rules
from torch import nn

from lightning_info.gradients.memory import LIMITS

LAYERS = {
    "linear": (nn.Linear(4, 3), (5, 4)),
    "linear on a sequence": (nn.Linear(4, 3), (5, 6, 4)),
    "linear on a short sequence of wide features": (nn.Linear(40, 30), (5, 2, 40)),
    "linear on a grid": (nn.Linear(4, 3), (5, 2, 3, 4)),
}


@pytest.mark.parametrize("chunk", [LIMITS.temporary, 64])
@pytest.mark.parametrize("name", LAYERS)
def test_the_rules_equal_one_backward_per_sample(name, chunk, monkeypatch):
    monkeypatch.setattr(LIMITS, "temporary", chunk)  # a small one makes every rule work in chunks
    layer, shape = LAYERS[name]
    check_rules(layer, torch.randn(shape))
