from __future__ import annotations

import math

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
    for start in (inverse(target) * 8, inverse(target) / 8, inverse(target)):
        counted = Counted(rise)
        found = distortion_level(counted, target, start=start)
        assert found.is_reached
        assert found.rise == rise(found.beta)
        assert target / 1.1001 <= found.rise <= target * 1.1001
        assert found.evaluations == len(counted.levels) <= 5
    assert counted.levels == [pytest.approx(inverse(target), rel=1e-12)]  # a start that fits is all it takes


@pytest.mark.parametrize("target", [0.05, 0.5])
@pytest.mark.parametrize("name", ["linear", "square", "root", "tiny levels", "large levels"])
def test_a_power_law_is_found_without_a_start(name, target):
    found = distortion_level(RISES[name][0], target)
    assert found.is_reached
    assert found.evaluations <= 3


def test_out_of_reach_is_flagged_at_the_largest_level():
    counted = Counted(lambda beta: 0.03 * beta / (beta + 1))
    found = distortion_level(counted, 0.5)
    assert not found.is_reached
    assert found.beta == max(counted.levels) == 1e6
    assert len(counted.levels) <= 5
    again = distortion_level(counted, 0.5, start=found.beta)
    assert (again.beta, again.evaluations, again.is_reached) == (1e6, 1, False)


def test_out_of_reach_at_the_smallest_level():
    found = distortion_level(lambda beta: 1 + beta, 0.05, low=1e-3, high=10)
    assert (found.beta, found.is_reached) == (1e-3, False)


def test_levels_stay_within_their_limits():
    counted = Counted(lambda beta: 1e-3 * beta)
    distortion_level(counted, 0.5, start=1e9, evaluations=8, low=1e-2, high=1e2)
    distortion_level(counted, 1e-9, start=1e-9, evaluations=8, low=1e-2, high=1e2)
    assert min(counted.levels) == 1e-2
    assert max(counted.levels) == 1e2


@pytest.mark.parametrize("start", [None, 1e-3, 0.1, 20.0])
def test_not_monotone(start):
    counted = Counted(lambda beta: 0.3 * beta * (1.2 + math.sin(7 * math.log(beta))))
    found = distortion_level(counted, 0.05, start=start, evaluations=12)
    assert found.is_reached
    assert found.rise == counted.rise(found.beta)
    assert found.beta in counted.levels
    assert abs(math.log(found.rise / 0.05)) <= math.log(1.1) + 1e-12


@pytest.mark.parametrize("worthless", [0.0, -0.01, math.nan, math.inf])
def test_rises_without_a_logarithm(worthless):
    """Noise of a finite sample gives a small fall; too much noise a loss that is infinite or no number."""
    below = worthless <= 0

    def rise(beta):
        return worthless if (beta < 0.01) == below and not 0.01 <= beta <= 1 else 0.5 * beta

    for start in (1e-3, 1e3):
        found = distortion_level(rise, 0.1, start=start, evaluations=9)
        assert found.is_reached
        assert found.beta == pytest.approx(0.2, rel=0.11)
    nowhere = distortion_level(lambda beta: worthless, 0.1)
    assert not nowhere.is_reached
    assert nowhere.evaluations <= 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 0.0}, "target=0.0"),
        ({"target": math.nan}, "target=nan"),
        ({"start": -1.0}, "start=-1.0"),
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
    assert quadratic_level(h, lambda_, 40.0, 1e9) == 1e6
    assert quadratic_level(h, lambda_, 40.0, 1e-12) == pytest.approx(1e-6, rel=0.02)
