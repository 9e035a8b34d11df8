"""Information of activations as they are: to the bit, on any grid of numbers."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_info.functional import exact_information
from lightning_info.metrics import InformationPlane

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int64, torch.complex64]


def entropy(counts):
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    return -(shares * shares.log2()).sum().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_entropy_of_equal_rows_and_what_labels_share_with_them(dtype):
    """Three rows, by count; the label tells the first from the others."""
    rows = torch.tensor([[0, 1, 2], [0, 1, 3], [4, 1, 2]]).to(dtype)
    t = rows[torch.tensor([0] * 5 + [1] * 2 + [2])].reshape(8, 3, 1)
    y = torch.tensor([0] * 5 + [1] * 3)
    found = exact_information(t, y)
    assert pytest.approx(entropy([5, 2, 1])) == found.I_XT
    assert pytest.approx(entropy([5, 3])) == found.I_TY
    assert found.unique == 1 / 8
    assert pytest.approx(entropy([5, 2, 1]) * math.log(2)) == exact_information(t, y, unit="nats").I_XT
    assert math.isnan(exact_information(t).I_TY)


def test_neighbours_of_a_number_are_others_and_both_zeros_are_one():
    t = torch.tensor([[0.0], [-0.0], [1.0], [1.0 + 2**-23]])
    assert pytest.approx(entropy([2, 1, 1])) == exact_information(t).I_XT


def test_of_eight_bits_a_unit_it_is_the_information_in_its_bins():
    """A grid of 256 values: bins between them count the same."""
    t = torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)).mul(7).round().div(7)
    y = torch.arange(3000) % 2
    from lightning_info.functional import binned_information

    assert exact_information(t, y)[:2] == pytest.approx(binned_information(t, y, 8, (-1 / 14, 1 + 1 / 14)))


def test_the_metric_takes_it():
    t, y = torch.randn(50, 2).sign(), torch.arange(50) % 2
    metric = InformationPlane("exact")
    metric.update(t, y)
    assert [v.item() for v in metric.compute().values()] == pytest.approx(list(exact_information(t, y)[:2]))
