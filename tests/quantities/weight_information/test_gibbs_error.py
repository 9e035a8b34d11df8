"""The error of drawn weights, where it is known: one weight, and samples that are right up to a value of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal

from lightning_info.functional.diagonal_gaussian import DiagonalGaussian
from lightning_info.quantities.weight_information import gibbs_error as module
from lightning_info.quantities.weight_information.gibbs_error import gibbs_error

Q = DiagonalGaussian(torch.zeros(1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64))
RUNS = 600


class Steps:
    """Stands in for ``NoisyErrors``: sample i is wrong where the weight is above a threshold of its own."""

    def __init__(self, snapshot, numbers):
        self.thresholds = snapshot.thresholds[numbers]

    runs_many = True

    def at(self, noises):
        return (noises > self.thresholds).double()


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    monkeypatch.setattr(module, "NoisyErrors", Steps)


def thresholds(size: int, seed: int) -> torch.Tensor:
    return 0.6 + 0.6 * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth(of: torch.Tensor) -> float:
    return (1 - Normal(0.0, 0.5).cdf(of)).mean().item()


def measured(of: torch.Tensor, draws: int, total: int, delta: float, seed: int) -> module.GibbsError:
    snapshot = SimpleNamespace(size=len(of), thresholds=of)
    return gibbs_error(snapshot, Q, draws, total, delta, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kept", "total", "draws", "delta"),
    [(61, 61, 30, 0.2), (200, 200, 40, 0.3), (60, 400, 200, 0.2), (130, 400, 90, 0.3)],
    ids=["all of one part", "all of unequal parts", "a random part, many draws", "a random part, few draws"],
)
def test_its_bound_fails_less_often_than_delta(kept, total, draws, delta):
    whole, generator = thresholds(total, 0), torch.Generator().manual_seed(1)
    expected, failures, means = truth(whole), 0, []
    for seed in range(RUNS):
        some = whole[torch.randperm(total, generator=generator)[:kept]]
        found = measured(some, draws, total, delta, seed)
        failures += found.upper < expected
        means.append(found.mean)
    # of 600 runs delta · 600 may fail, and more by chance: 3 standard errors are 0.05 to 0.06
    assert failures <= delta * RUNS
    means = torch.tensor(means, dtype=torch.float64)
    assert means.mean().item() == pytest.approx(expected, abs=4 * means.std().item() / RUNS**0.5)


def test_its_standard_error_is_the_scatter():
    for kept, total in ((130, 130), (130, 400)):
        whole, generator, found = thresholds(total, 0), torch.Generator().manual_seed(1), []
        for seed in range(RUNS):
            found.append(measured(whole[torch.randperm(total, generator=generator)[:kept]], 90, total, 0.1, seed))
        scatter = torch.tensor([one.mean for one in found]).std().item()
        stated = (sum(one.stderr**2 for one in found) / RUNS) ** 0.5
        # the scatter of 600 runs has an error of 3 %; of a random part, that of the samples is the binomial one at most
        assert 0.9 * scatter < stated < (1.1 if kept == total else 1.5) * scatter


def test_with_many_draws_and_all_samples_it_is_exact(monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 100_000)
    whole = thresholds(300, 2)
    found = measured(whole, 100_000, 300, 0.01, 0)
    assert found.mean == pytest.approx(truth(whole), abs=5 * found.stderr)
    assert found.stderr < 2e-3
    assert truth(whole) < found.upper < truth(whole) + 0.01


@pytest.mark.parametrize(
    ("draws", "weights", "runs_many", "expected"),
    [
        (4096, 1000, True, 4096),
        (4096, 1000, False, 512),
        (256, 1000, False, 256),
        (4096, 400_000, True, 976),  # 25e9 / (64 · 400 000)
        (4096, 400_000, False, 128),
        (4096, 10_000_000, True, 128),
        (64, 10_000_000, True, 64),
    ],
)
def test_the_number_of_draws_depends_on_the_size_of_the_network(draws, weights, runs_many, expected):
    found = module.affordable(draws, weights, runs_many)
    assert found == expected == module.affordable(found, weights, runs_many)
