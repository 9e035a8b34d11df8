from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_info.functional import (
    gaussian_information,
    generalisation_error,
    linear_information,
    linear_subset_information,
)

BITS = 1 / math.log(2)


def log_det(matrix):
    return np.linalg.slogdet(np.asarray(matrix, dtype=np.float64))[1] if len(matrix) else 0.0


def between(joint, first, second):
    """I between two groups of jointly Gaussian variables, nats: ``½ (log det of each - log det of both)``."""
    blocks = [list(first), list(second), [*first, *second]]
    a, b, both = (log_det(joint[np.ix_(block, block)]) for block in blocks)
    return (a + b - both) / 2


class Model:
    """A student and its teacher on correlated inputs, and the joint covariance of (X, T, Y)."""

    def __init__(self, d=7, h=4, o=2, noise=0.3, teacher_noise=0.5):
        root = torch.randn(d, d, dtype=torch.float64)
        self.cov = root @ root.T / d
        self.w, self.teacher = torch.randn(h, d, dtype=torch.float64), torch.randn(o, d, dtype=torch.float64)
        self.noise, self.teacher_noise = noise, teacher_noise
        stacked = torch.cat([torch.eye(d).double(), self.w, self.teacher])
        own = np.diag([0.0] * d + [noise] * h + [teacher_noise] * o)
        self.joint = (stacked @ self.cov @ stacked.T).numpy() + own
        self.x, self.t, self.y = range(d), range(d, d + h), range(d + h, d + h + o)


@pytest.mark.parametrize(("d", "h", "o"), [(7, 4, 2), (3, 8, 1), (5, 5, 5), (1, 1, 1)])
def test_both_informations_are_those_of_the_joint_covariance(d, h, o):
    model = Model(d, h, o)
    found = linear_information(model.w, model.cov, model.noise, model.teacher, model.teacher_noise, unit="nats")
    truth = between(model.joint, model.x, model.t), between(model.joint, model.t, model.y)
    assert found == pytest.approx(truth, abs=1e-10)
    bits = linear_information(model.w, model.cov, model.noise, model.teacher, model.teacher_noise)
    assert bits == pytest.approx([value * BITS for value in truth], abs=1e-10)


def test_a_teacher_without_noise_is_known_as_well_as_its_own_weights_allow():
    # Y = X: the layer tells of the teacher all that it tells of the input
    model = Model()
    found = linear_information(model.w, model.cov, 0.3, torch.eye(7))
    assert found[1] == pytest.approx(found[0], abs=1e-10)
    assert linear_information(model.w, model.cov, 0.3, torch.zeros(2, 7))[1] == pytest.approx(0, abs=1e-10)
    assert math.isnan(linear_information(model.w, model.cov, 0.3)[1])


def test_singular_inputs_and_layers():
    # two inputs that are one, and a unit twice: as one input of twice the weight and noise of half the variance
    cov, w = torch.ones(2, 2), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    truth = 0.5 * math.log2(1 + 4 / (0.1 / 2))
    assert linear_information(w, cov, 0.1)[0] == pytest.approx(truth, abs=1e-10)
    assert linear_information(w, cov, 0.1, w)[1] == pytest.approx(truth, abs=1e-10)
    assert linear_information(0 * w, cov, 0.1, w) == (0, 0)


@pytest.mark.parametrize("subset", [[0], [2, 5, 6], list(range(7)), []])
def test_information_with_some_inputs_is_that_of_the_joint_covariance(subset):
    model = Model()
    rest = [j for j in range(7) if j not in subset]
    alone = between(model.joint, subset, model.t)
    given = between(model.joint, model.x, model.t) - between(model.joint, rest, model.t)
    arguments = model.w, model.cov, model.noise, subset
    assert linear_subset_information(*arguments, unit="nats") == pytest.approx(alone, abs=1e-10)
    assert linear_subset_information(*arguments, conditional=True) == pytest.approx(given * BITS, abs=1e-10)


def test_chain_rule_of_subsets():
    model, known = Model(), torch.tensor([True, False, True, False, False, True, False])
    parts = linear_subset_information(model.w, model.cov, 0.3, known) + linear_subset_information(
        model.w, model.cov, 0.3, ~known, conditional=True
    )
    assert parts == pytest.approx(linear_information(model.w, model.cov, 0.3)[0], abs=1e-10)


def test_both_readings_of_a_subset_differ():
    # the rest is noise in the first and known in the second: ½ log2(1 + 1/(1 + 100)) against ½ log2(1 + 1)
    arguments = torch.tensor([[1.0, 10.0]]), torch.eye(2), 1.0, [0]
    assert linear_subset_information(*arguments) == pytest.approx(0.5 * math.log2(1 + 1 / 101), abs=1e-12)
    assert linear_subset_information(*arguments, conditional=True) == pytest.approx(0.5, abs=1e-12)


def test_generalisation_error_is_the_error_on_fresh_samples():
    # 200,000 samples: within 4 standard errors
    model = Model()
    w_total = torch.randn(2, 7, dtype=torch.float64)
    x = torch.randn(200_000, 7, dtype=torch.float64) @ torch.linalg.cholesky(model.cov + 1e-12 * torch.eye(7)).T
    y = x @ model.teacher.T + model.teacher_noise**0.5 * torch.randn(200_000, 2, dtype=torch.float64)
    errors = (y - x @ w_total.T).square().sum(1)
    found = generalisation_error(w_total, model.teacher, model.cov, model.teacher_noise)
    assert abs(errors.mean().item() - found) <= 4 * errors.std().item() / 200_000**0.5
    assert generalisation_error(model.teacher, model.teacher, model.cov, 0.5) == pytest.approx(1)


@pytest.mark.parametrize(("n", "d"), [(400, 6), (5, 12), (6, 6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_gaussian_information_is_that_of_the_samples_covariance(n, d, dtype):
    t = (torch.randn(n, d) @ torch.randn(d, d) + 3).to(dtype)
    cov = np.cov(t.double().T.numpy(), bias=True)
    truth = log_det(np.eye(d) + cov / 0.2) / 2
    assert gaussian_information(t, None, 0.2, unit="nats")[0] == pytest.approx(truth, abs=1e-10)
    linear = linear_information(torch.eye(d), torch.from_numpy(cov), 0.2)
    assert gaussian_information(t, None, 0.2)[0] == pytest.approx(linear[0], abs=1e-10)


def test_gaussian_information_about_classes_is_total_minus_conditional():
    y = torch.arange(300) % 3 - 1
    t = torch.randn(300, 4, dtype=torch.float64) * (1 + y.abs())[:, None] + 0.3 * y[:, None]

    def half(members):
        return log_det(np.cov(members.T.numpy(), bias=True) + 0.2 * np.eye(4)) / 2

    truth = half(t) - sum(half(t[y == label]) for label in (-1, 0, 1)) / 3
    assert 0.1 < truth < math.log(3)
    assert gaussian_information(t, y, 0.2, unit="nats")[1] == pytest.approx(truth, abs=1e-10)
    assert gaussian_information(t, y == 1, 0.2)[1] < gaussian_information(t, y, 0.2)[1]


def test_gaussian_information_about_classes_ends_at_their_entropy():
    y = torch.tensor([0, 0, 0, 1])
    t = torch.randn(4, 2) + 100 * y[:, None]
    assert gaussian_information(t, y, 0.01)[1] == pytest.approx(stats.entropy([0.75, 0.25], base=2))
    assert gaussian_information(t, torch.zeros(4, dtype=torch.long), 0.01)[1] == 0


@pytest.mark.parametrize("k", [None, 1, 3])
def test_gaussian_information_about_continuous_targets_is_that_of_the_joint_covariance(k):
    t, other = torch.randn(500, 4).double(), torch.randn(500, k or 1).double()
    y = t[:, : k or 1] * torch.tensor([1.0, 1e6, 1e-6][: k or 1]) + other * torch.tensor([1.0, 1e6, 1e-6][: k or 1])
    joint = np.cov(torch.cat([t, y], 1).T.numpy(), bias=True) + np.diag([0.2] * 4 + [0.0] * (k or 1))
    truth = between(joint, range(4), range(4, 4 + (k or 1)))
    found = gaussian_information(t, y if k else y[:, 0], 0.2, unit="nats")
    assert found[1] == pytest.approx(truth, abs=1e-9)


def test_constant_targets_and_targets_twice_add_nothing():
    t = torch.randn(200, 3)
    y = t[:, :1] + torch.randn(200, 1)
    plain = gaussian_information(t, y, 0.1)
    assert gaussian_information(t, torch.cat([y, torch.ones(200, 1), 2 * y], 1), 0.1) == pytest.approx(plain, abs=1e-9)
    assert gaussian_information(t, torch.ones(200), 0.1)[1] == pytest.approx(0, abs=1e-12)


def test_it_is_exact_for_a_gaussian_layer():
    # 100,000 samples of a linear layer and its teacher: within 0.01 bits of the population
    model = Model()
    x = torch.randn(100_000, 7, dtype=torch.float64) @ torch.linalg.cholesky(model.cov + 1e-12 * torch.eye(7)).T
    y = x @ model.teacher.T + model.teacher_noise**0.5 * torch.randn(100_000, 2, dtype=torch.float64)
    truth = linear_information(model.w, model.cov, model.noise, model.teacher, model.teacher_noise)
    assert gaussian_information(x @ model.w.T, y, model.noise) == pytest.approx(truth, abs=0.01)


def test_it_bounds_the_noisy_layer_from_above():
    # two points; close together they are as good as Gaussian
    for distance in (0.1, 1.0, 10.0):
        t = torch.tensor([0.0, distance])
        grid = torch.linspace(-12, distance + 12, 40_001, dtype=torch.float64)
        p = torch.from_numpy(stats.norm.pdf(grid.numpy()[:, None], t.numpy(), 1).mean(1))
        entropy = -torch.trapezoid(torch.xlogy(p, p), grid).item()
        exact = (entropy - 0.5 * math.log(2 * math.pi * math.e)) * BITS
        bound = gaussian_information(t, None, 1.0)[0]
        assert exact < bound
        assert (bound - exact < 1e-3 * exact) == (distance == 0.1)


@pytest.mark.parametrize("variance", [1e-300, 1e-13])
def test_noise_below_the_rounding_of_the_covariance(variance):
    t = torch.randn(50, 1).double() @ torch.ones(1, 6).double() * 1e3  # one direction of six
    spread = t[:, 0].var(correction=0).item() * 6
    assert gaussian_information(t, None, variance)[0] == pytest.approx(0.5 * math.log2(spread / variance), rel=1e-6)
    assert gaussian_information(t, t[:, 0], variance)[1] > 30


def test_a_constant_layer_knows_nothing():
    assert gaussian_information(torch.ones(20, 3), torch.arange(20) % 2, 0.1) == (0, 0)
    assert gaussian_information(torch.ones(1), torch.tensor([0.5]), 0.1) == (0, 0)


EYE = torch.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_information(EYE[:, :2], EYE, 0.1), r"w of shape \(3, 2\): expected \(units, D\) with D = 3"),
        (lambda: linear_information(EYE[0], EYE, 0.1), r"w of shape \(3,\)"),
        (lambda: linear_information(EYE, EYE[:2], 0.1), r"torch.eye\(D\) / D"),
        (lambda: linear_information(EYE, EYE, 0.1, EYE[:, :1]), r"teacher of shape \(3, 1\)"),
        (lambda: linear_information(EYE, EYE, 0.0), "without noise"),
        (lambda: linear_information(EYE, EYE, 0.1, EYE, -1.0), "teacher_noise_variance=-1.0"),
        (lambda: linear_subset_information(EYE, EYE, -0.1, [0]), "without noise"),
        (lambda: linear_subset_information(EYE[:, 1:], EYE, 0.1, [0]), "w of shape"),
        (lambda: generalisation_error(EYE[:, 1:], EYE, EYE), "w_total of shape"),
        (lambda: generalisation_error(EYE[:1], EYE, EYE), r"w_total of shape \(1, 3\) and teacher of shape \(3, 3\)"),
        (lambda: gaussian_information(EYE[None], None, 0.1), r"expected \(N,\) or \(N, d\)"),
        (lambda: gaussian_information(EYE, None, math.nan), "without noise"),
        (lambda: gaussian_information(EYE / 0, None, 0.1), "values of t are not finite"),
        (lambda: gaussian_information(EYE, EYE / 0, 0.1), "values of y are not finite"),
        (lambda: gaussian_information(EYE, torch.zeros(2), 0.1), "expected N = 3 rows"),
        (lambda: gaussian_information(EYE, torch.zeros(2, dtype=torch.long), 0.1), r"expected \(3,\)"),
        (lambda: gaussian_information(EYE, None, 0.1, unit="bit"), "'bits' or 'nats'"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
