"""The metric is the function of all samples, over batches and processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributed, multiprocessing

from lightning_info.functional import usable_information
from lightning_info.metrics import UsableInformation

GENERATOR = torch.Generator().manual_seed(0)
Y = torch.arange(80) % 3
T = torch.randn(80, 2, 4, generator=GENERATOR) + Y[:, None, None]


def update(metric, t, y, size):
    for part in range(0, len(t), size):
        metric.update(t[part : part + size], y[part : part + size])
    return metric


def values(metric):
    return [value.item() for value in metric.compute().values()]


@pytest.mark.parametrize(
    "options", [{}, {"families": ("knn",), "folds": 4}, {"components": 2, "unit": "nats"}, {"seed": 3}], ids=str
)
def test_it_is_the_function_of_all_samples(options):
    state = torch.get_rng_state()
    metric = update(UsableInformation(**options), T, Y, 17)
    given = {name: value for name, value in options.items() if name != "seed"}
    generator = torch.Generator().manual_seed(options.get("seed", 0))
    assert values(metric) == list(usable_information(T, Y, generator=generator, **given)[:2])
    metric.reset()
    targets = T.flatten(1)[:, :1] + 1
    truth = usable_information(T, targets, **{k: v for k, v in given.items() if k != "families"})[:2]
    if options.get("families") is None and "seed" not in options:
        assert values(update(metric, T, targets, 80)) == list(truth)
    assert torch.equal(state, torch.get_rng_state())


def test_of_few_samples_it_is_nan():
    metric = UsableInformation()
    metric.update(T[:9], Y[:9])
    assert all(math.isnan(value) for value in values(metric))
    with pytest.raises(ValueError, match="expected N = 9 rows"):
        metric.update(T[:9], Y[:8])


def _rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = slice(0, 30) if rank == 0 else slice(30, 80)
    torch.save(values(update(UsableInformation(), T[own], Y[own], 20)), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_values_of_one(tmp_path):
    multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    one = values(update(UsableInformation(), T, Y, 80))
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [pytest.approx(one)] * 2
