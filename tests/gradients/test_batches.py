from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_info.gradients.batches import concatenate, num_samples, split_samples, take


@dataclass
class Pair:
    x: Tensor
    y: Tensor
    name: str = "pair"


class Named(NamedTuple):
    x: Tensor
    y: Tensor


def nested(n=4, offset=0):
    """Every kind of leaf: with the sample axis, without it, without any axis, and no tensor at all."""
    x = torch.arange(offset, offset + 3 * n).reshape(n, 3)
    return {
        "inputs": [x, {"mask": x[:, :1] > 4}],
        "labels": (x.sum(1),),
        "pair": Pair(x.float(), x[:, 0]),
        "named": Named(x + 1, x[:, 1]),
        "weight": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
        "scale": torch.tensor(2.0),
        "text": ["a", "b"],
        "nothing": None,
        "count": 7,
    }


def tensors(batch):
    return [
        batch["inputs"][0],
        batch["inputs"][1]["mask"],
        batch["labels"][0],
        batch["pair"].x,
        batch["pair"].y,
        batch["named"].x,
        batch["named"].y,
    ]


def assert_rest_is_whole(batch):
    assert batch["weight"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert batch["scale"].item() == 2.0
    assert (batch["text"], batch["nothing"], batch["count"]) == (["a", "b"], None, 7)
    assert isinstance(batch["pair"], Pair)
    assert isinstance(batch["named"], Named)
    assert batch["pair"].name == "pair"


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(5, 2), 5),
        ([torch.tensor(1.0), torch.zeros(3)], 3),
        (("text", {"x": torch.zeros(2, 7)}), 2),
        (Pair(torch.zeros(6), torch.zeros(6)), 6),
        (torch.zeros(0, 2), 0),
        (nested(), 4),
    ],
)
def test_the_first_tensor_with_an_axis_tells_the_number_of_samples(batch, expected):
    assert num_samples(batch) == expected


@pytest.mark.parametrize("batch", [torch.tensor(1.0), {"x": "text"}, [], None, 3])
def test_a_batch_without_a_sample_axis_is_refused(batch):
    with pytest.raises(ValueError, match=f"no tensor with a sample axis in a batch of type {type(batch).__name__}"):
        num_samples(batch)


@pytest.mark.parametrize(
    "index", [slice(0, 2), slice(1, None), slice(2, 100), slice(0, 0), torch.tensor([3, 0, 3]), torch.tensor([2])]
)
def test_take_indexes_what_has_the_sample_axis_and_nothing_else(index):
    batch = nested()
    taken = take(batch, index)
    for found, full in zip(tensors(taken), tensors(batch), strict=True):
        assert torch.equal(found, full[index])
    assert_rest_is_whole(taken)
    assert torch.equal(batch["inputs"][0], nested()["inputs"][0])


def test_take_changes_no_container_of_the_batch():
    batch = nested()
    take(batch, slice(0, 1))["inputs"].append("more")
    assert len(batch["inputs"]) == 2
    assert len(batch["pair"].x) == 4


def test_concatenate_joins_what_take_split():
    batch = nested(7)
    parts = [take(batch, slice(start, start + 3)) for start in (0, 3, 6)]
    (joined,) = concatenate(parts)
    for found, full in zip(tensors(joined), tensors(batch), strict=True):
        assert torch.equal(found, full)
        assert found.dtype == full.dtype
    assert_rest_is_whole(joined)


def test_concatenate_keeps_samples_of_different_shape_and_type_apart_and_in_order():
    short, long = torch.zeros(2, 3), torch.zeros(2, 5)
    groups = concatenate([[short], [short + 1], [long], [short + 2], [short.long()], [short.long()]])
    assert [group[0].shape for group in groups] == [(4, 3), (2, 5), (2, 3), (4, 3)]
    assert [group[0].dtype for group in groups] == [torch.float32] * 3 + [torch.int64]
    assert groups[0][0][:, 0].tolist() == [0, 0, 1, 1]


def test_concatenate_of_nothing_and_of_one():
    batch = nested()
    assert concatenate([]) == []
    assert concatenate([batch])[0] is batch


def test_split_gives_the_tensors_with_the_sample_axis_and_puts_others_in_their_place():
    batch = nested()
    leaves, rebuild = split_samples(batch)
    for found, expected in zip(leaves, tensors(batch), strict=True):
        assert found is expected
    rebuilt = rebuild([leaf[:1] for leaf in leaves])
    for found, full in zip(tensors(rebuilt), tensors(batch), strict=True):
        assert torch.equal(found, full[:1])
    assert_rest_is_whole(rebuilt)


def test_rebuilding_twice_gives_two_batches():
    leaves, rebuild = split_samples([torch.arange(3), torch.arange(3)])
    first, second = rebuild(leaves), rebuild([leaf + 1 for leaf in leaves])
    assert [t.tolist() for t in first] == [[0, 1, 2]] * 2
    assert [t.tolist() for t in second] == [[1, 2, 3]] * 2
