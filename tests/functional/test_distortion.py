from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from lightning_info.functional.distortion import distortion_level, quadratic_level


class Counted:
    def __init__(self, rise):
        self.rise, self.levels = rise, []

    def __call__(self, beta):
        self.levels.append(beta)
        return self.rise(beta)


RISES = {
    "linear": (lambda beta: 20 * beta, lambda t: t / 20),
    "square": (lambda beta: beta**2, lambda t: t**0.5),
    "root": (lambda beta: beta**0.5, lambda t: t**2),
    "saturating": (lambda beta: 2.3 * beta / (beta + 0.3), lambda t: 0.3 * t / (2.3 - t)),
    "exponential": (lambda beta: math.expm1(min(3 * beta, 500)), lambda t: math.log1p(t) / 3),
    "tiny levels": (lambda beta: 1e4 * beta, lambda t: 1e-4 * t),
    "large levels": (lambda beta: 1e-5 * beta, lambda t: 1e5 * t),
}


@pytest.mark.parametrize("target", [0.05, 0.5])
@pytest.mark.parametrize("name", RISES)
def test_finds_the_level_from_anywhere_near(name, target):
    rise, inverse = RISES[name]
    for away in (1, 8, 1 / 8, 50, 1 / 50):
        counted = Counted(rise)
        found = distortion_level(counted, target, start=away * inverse(target))
        assert found.is_reached
        assert found.evaluations == len(counted.levels) == 11
        assert rise(found.beta) == pytest.approx(target, rel=0.05)
        assert all(abs(math.log(a / b)) <= math.log(4.001) for a, b in pairwise(counted.levels))


@pytest.mark.parametrize("away", [1.0, 50.0])
def test_the_draws_of_all_evaluations_near_the_level_count(away):
    """With an error of 40 % each the level of 400 searches is off by that of eight evaluations or more."""
    generator = torch.Generator().manual_seed(0)

    def noisy(beta):
        return 20 * beta * (1 + 0.4 * torch.randn((), generator=generator).item())

    found = [distortion_level(noisy, 0.05, start=away / 400) for _ in range(400)]
    errors = torch.tensor([20 * level.beta / 0.05 for level in found if level.is_reached]) - 1
    assert len(errors) > 395
    assert errors.square().mean().sqrt() < 1.1 * 0.4 / 8**0.5
    assert abs(errors.mean()) < 0.05


def test_out_of_reach_is_flagged_at_the_largest_level():
    counted = Counted(lambda beta: 0.03 * beta / (beta + 1))
    found = distortion_level(counted, 0.5)
    assert not found.is_reached
    assert found.beta == pytest.approx(1e6)
    again = distortion_level(counted, 0.5, start=found.beta)
    assert (again.evaluations, again.is_reached) == (1, False)
    assert again.rise == pytest.approx(0.03, rel=1e-5)


def test_out_of_reach_at_the_smallest_level():
    found = distortion_level(lambda beta: 1 + beta, 0.05, low=1e-3, high=10)
    assert (found.beta, found.is_reached) == (pytest.approx(1e-3), False)


def test_levels_stay_within_their_limits():
    counted = Counted(lambda beta: 1e-3 * beta)
    distortion_level(counted, 0.5, start=1e9, low=1e-2, high=1e2)
    distortion_level(counted, 1e-9, start=1e-9, low=1e-2, high=1e2)
    assert min(counted.levels) == pytest.approx(1e-2)
    assert max(counted.levels) == pytest.approx(1e2)


@pytest.mark.parametrize("worthless", [0.0, -0.01, math.nan, math.inf])
def test_rises_of_no_use_lead_on(worthless):
    """Few draws may give a fall; too much noise a loss that is infinite or no number."""
    below = worthless <= 0

    def rise(beta):
        return worthless if (beta < 0.01) == below and not 0.01 <= beta <= 1 else 0.5 * beta

    for start in (2e-3, 20.0):
        found = distortion_level(rise, 0.1, start=start)
        assert found.is_reached
        assert found.beta == pytest.approx(0.2, rel=0.02)
    assert not distortion_level(lambda beta: worthless, 0.1).is_reached


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 0.0}, "target=0.0"),
        ({"target": math.nan}, "target=nan"),
        ({"start": -1.0}, "start=-1.0"),
        ({"start": math.nan}, "start=nan"),
        ({"low": 0.0}, "0 < low < high"),
        ({"low": 2.0, "high": 1.0}, "0 < low < high"),
        ({"evaluations": 0}, "evaluations=0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        distortion_level(lambda beta: beta, **{"target": 0.1, **arguments})


def test_the_level_of_a_quadratic_loss_is_that_of_its_own_rise():
    h, lambda_ = torch.linspace(0, 50, 20), torch.linspace(0.1, 2, 20)
    for target in (1e-3, 0.05, 0.5):
        beta = quadratic_level(h, lambda_, 40.0, target)
        covariance = 1 / (h / beta + lambda_**-2)  # beta (H + beta/λ²)⁻¹
        assert 0.5 * (h * covariance).sum().item() / 40 == pytest.approx(target, rel=0.02)
    half = quadratic_level(h, lambda_, 40.0, (h * lambda_**2).sum().item() / 160)
    assert quadratic_level(h, lambda_, 40.0, 1e9) == half  # more than any level gives
    assert quadratic_level(h, 1e5 * lambda_, 40.0, 1e9) == 1e6
    assert quadratic_level(h, lambda_, 40.0, 1e-12) == pytest.approx(1e-6, rel=0.02)
