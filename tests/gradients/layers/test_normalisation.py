"""Batch, group, layer and RMS norm, against one backward pass per sample, in float64."""

from __future__ import annotations

import pytest
import torch
from gradients.cases import check_rules
from torch import nn

from lightning_info.gradients.memory import LIMITS

LAYERS = {
    "batchnorm1d": (nn.BatchNorm1d(4), (5, 4)),
    "batchnorm1d on a sequence": (nn.BatchNorm1d(4), (5, 4, 6)),
    "batchnorm2d": (nn.BatchNorm2d(4, eps=0.1), (5, 4, 3, 2)),
    "batchnorm3d": (nn.BatchNorm3d(4), (5, 4, 3, 2, 2)),
    "batchnorm2d of many positions": (nn.BatchNorm2d(4, eps=0.1), (5, 4, 5, 4)),
    "layernorm": (nn.LayerNorm(4), (5, 4)),
    "layernorm on a sequence": (nn.LayerNorm(4, eps=0.1), (5, 6, 4)),
    "layernorm over two axes": (nn.LayerNorm((3, 4)), (5, 2, 3, 4)),
    "rmsnorm": (nn.RMSNorm(4), (5, 6, 4)),
    "rmsnorm over two axes": (nn.RMSNorm((3, 4), eps=0.1), (5, 2, 3, 4)),
    "groupnorm": (nn.GroupNorm(2, 4), (5, 4, 3, 3)),
    "groupnorm on features": (nn.GroupNorm(2, 6, eps=0.1), (5, 6)),
}


@pytest.mark.parametrize("chunk", [LIMITS.temporary, 64])
@pytest.mark.parametrize("name", LAYERS)
def test_the_rules_equal_one_backward_per_sample(name, chunk, monkeypatch):
    monkeypatch.setattr(LIMITS, "temporary", chunk)  # a small one makes every rule work in chunks
    layer, shape = LAYERS[name]
    check_rules(layer, torch.randn(shape))
