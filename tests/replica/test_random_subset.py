from __future__ import annotations

import pytest
import torch

from lightning_info.replica import random_subset
from lightning_info.replica.random_subset import RandomSubset


def passed(size: int, most: int, seed: int, batch: int = 7) -> RandomSubset:
    """A subset of the numbers from 0, which passed in batches."""
    subset = RandomSubset(most, seed)
    for part in torch.arange(size).split(batch):
        subset.add((part, {"y": 10 * part}))
    subset.close()
    return subset


def numbers(subset: RandomSubset) -> list[int]:
    found = subset.set()
    assert found is not None
    assert all(torch.equal(10 * x, more["y"]) for x, more in found.groups)
    return [number for x, _ in found.groups for number in x.tolist()]


@pytest.mark.parametrize("size", [1, 9, 10, 11, 35, 1000])
def test_it_holds_as_many_as_it_may_each_once(size):
    subset = passed(size, 10, 0)
    found = numbers(subset)
    assert len(found) == len(set(found)) == min(size, 10)
    assert set(found) <= set(range(size))
    assert (subset.set().total, subset.set().size, subset.set().missing) == (size, min(size, 10), "")


def test_every_pair_of_samples_is_as_likely():
    # 800 subsets of 8 of 40 numbers: a pair is in each with probability 8 · 7 / (40 · 39), so 28.7 times, ± 5.3
    size, most, runs = 40, 8, 800
    together = torch.zeros(size, size)
    for seed in range(runs):
        found = torch.tensor(numbers(passed(size, most, seed)))
        together[found.unsqueeze(1), found] += 1
    pairs = together[~torch.eye(size, dtype=torch.bool)]
    p = most * (most - 1) / (size * (size - 1))
    error = (runs * p * (1 - p)) ** 0.5
    assert pairs.mean().item() == pytest.approx(runs * p, rel=1e-5)
    assert 0.8 * error < pairs.std().item() < 1.2 * error
    assert ((pairs - runs * p).abs() < 4.5 * error).all()


def test_the_choice_does_not_depend_on_the_samples_and_draws_nothing_from_others():
    state = torch.get_rng_state()
    one, other = passed(100, 10, 3), RandomSubset(10, 3)
    for part in torch.arange(100).split(7):
        other.add((1000 + part, {"y": 10 * (1000 + part)}))
    other.close()
    assert [number + 1000 for number in numbers(one)] == numbers(other)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_keeps_no_more_than_its_memory_holds(monkeypatch):
    monkeypatch.setattr(random_subset, "LARGEST_STATE", 5 * 16)  # two int64 a sample
    assert len(numbers(passed(100, 10, 0))) == 5


def test_samples_are_copies_and_of_several_shapes():
    subset, batch = RandomSubset(100, 0), torch.zeros(3, 4)
    subset.add((batch, torch.arange(3)))
    subset.add((torch.ones(2, 6), torch.arange(2)))
    assert subset.set() is None
    batch += 7
    subset.close()
    found = subset.set()
    assert [tuple(x.shape) for x, _ in found.groups] == [(3, 4), (2, 6)]
    assert found.groups[0][0].abs().sum() == 0
