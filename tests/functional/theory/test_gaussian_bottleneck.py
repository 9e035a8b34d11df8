from __future__ import annotations

import math

import pytest
import torch

from lightning_info.functional.linear_gaussian import linear_information
from lightning_info.functional.theory.gaussian_bottleneck import gaussian_bottleneck


def task(d=5, o=3, noise=0.4):
    generator = torch.Generator().manual_seed(d + o)
    root = torch.randn(d, d, dtype=torch.float64, generator=generator)
    return root @ root.T / d + 0.1 * torch.eye(d), torch.randn(o, d, dtype=torch.float64, generator=generator), noise


def remaining(cov, teacher, noise):
    """Eigenvalues of Σ_{X|Y} Σ⁻¹, as they are written, the smallest first."""
    y_cov = teacher @ cov @ teacher.T + noise * torch.eye(len(teacher))
    given = cov - cov @ teacher.T @ torch.linalg.inv(y_cov) @ teacher @ cov
    return torch.linalg.eigvals(given @ torch.linalg.inv(cov)).real.sort().values


def best_layer(beta, cov, teacher, noise):
    """The layer of least I(X;T) - β I(T;Y), by descent on its weights from a random start; unit noise."""
    y_cov = teacher @ cov @ teacher.T + noise * torch.eye(len(teacher))
    given = cov - cov @ teacher.T @ torch.linalg.inv(y_cov) @ teacher @ cov
    w = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimiser = torch.optim.LBFGS([w], lr=1, max_iter=400, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def lagrangian():
        optimiser.zero_grad()
        whole, rest = (torch.logdet(torch.eye(5) + w @ matrix @ w.T) / 2 for matrix in (cov, given))
        value = whole - beta * (whole - rest)
        value.backward()
        return value

    optimiser.step(lagrangian)
    return w.detach()


@pytest.mark.parametrize("beta", [1.5, 2.0, 5.0, 30.0])
def test_a_layer_found_by_descent_reaches_it(beta):
    cov, teacher, noise = task()
    found = linear_information(best_layer(beta, cov, teacher, noise), cov, 1.0, teacher, noise, unit="nats")
    assert found.I_XT > 0.05
    bound = gaussian_bottleneck(torch.tensor([found.I_XT]), cov, teacher, noise, unit="nats").item()
    assert bound == pytest.approx(found.I_TY, abs=1e-6)


def test_no_layer_is_above_it():
    cov, teacher, noise = task()
    generator = torch.Generator().manual_seed(1)
    closest = math.inf
    for i in range(300):
        w = 10 ** (i / 100 - 1.5) * torch.randn(i % 5 + 1, 5, dtype=torch.float64, generator=generator)
        i_xt, i_ty = linear_information(w, cov, 1.0, teacher, noise)
        gap = gaussian_bottleneck(torch.tensor(i_xt), cov, teacher, noise).item() - i_ty
        assert gap > -1e-12
        closest = min(closest, gap / i_ty)
    assert closest < 0.1  # the bound is near enough that a wrong one would show


@pytest.mark.parametrize(("d", "o"), [(5, 1), (5, 3), (3, 3), (2, 6)])
def test_ends_and_slopes(d, o):
    cov, teacher, noise = task(d, o)
    left = remaining(cov, teacher, noise)
    about_y = -left[left < 1 - 1e-9].log().sum() / 2  # I(X;Y) = -½ Σ log λ_i
    i_xt = torch.linspace(0, 12, 4001, dtype=torch.float64)
    bound = gaussian_bottleneck(i_xt, cov, teacher, noise, unit="nats")
    slopes = bound.diff() / i_xt.diff()
    assert abs(bound[0]) < 1e-15
    assert gaussian_bottleneck(torch.tensor(60.0), cov, teacher, noise, unit="nats").item() == pytest.approx(about_y)
    assert slopes[0].item() == pytest.approx(1 - left[0].item(), abs=0.01)
    assert (slopes > 0).all()
    assert slopes.diff().max() < 1e-9  # concave


def test_slope_is_one_over_beta():
    """Where two of three directions take part: I(X;T) by β, and there dI(T;Y) / dI(X;T) = 1 / β."""
    cov, teacher, noise = task()
    rho = 1 / remaining(cov, teacher, noise)[:3] - 1
    beta = 1 + 2 / (rho[1] + rho[2])
    i_xt = ((beta - 1) * rho[:2]).log().sum() / 2
    near = gaussian_bottleneck(torch.stack([i_xt - 1e-4, i_xt + 1e-4]), cov, teacher, noise, unit="nats")
    assert (near.diff() / 2e-4).item() == pytest.approx(1 / beta.item(), rel=1e-6)


def test_one_output_in_closed_form():
    teacher, noise = torch.tensor([[1.0, 2.0]]), 0.5
    rho, i_xt = 5 / 2 / noise, torch.tensor([[0.0, 0.3], [2.0, 300.0]])
    expected = -0.5 * torch.log2((1 + rho * 2 ** (-2 * i_xt)) / (1 + rho))
    assert torch.allclose(gaussian_bottleneck(i_xt, torch.eye(2) / 2, teacher, noise), expected.double(), atol=1e-7)


def test_units():
    cov, teacher, noise = task()
    bits = gaussian_bottleneck(torch.tensor(1.0), cov, teacher, noise)
    nats = gaussian_bottleneck(torch.tensor(math.log(2), dtype=torch.float64), cov, teacher, noise, unit="nats")
    assert bits.item() * math.log(2) == pytest.approx(nats.item())


def test_a_teacher_that_does_not_listen_tells_nothing():
    assert gaussian_bottleneck(torch.tensor([0.0, 3.0]), torch.eye(2), torch.zeros(2, 2), 1.0).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("i_xt", "teacher", "noise", "message"),
    [
        (torch.tensor(1.0), torch.ones(1, 2), 0.0, "teacher_noise_variance=0.0"),
        (torch.tensor(-1.0), torch.ones(1, 2), 1.0, "not negative, in bits"),
        (torch.tensor(math.nan), torch.ones(1, 2), 1.0, "not negative"),
        (torch.tensor(1.0), torch.ones(1, 3), 1.0, "D = 2 inputs"),
    ],
)
def test_what_makes_no_sense_is_refused(i_xt, teacher, noise, message):
    with pytest.raises(ValueError, match=message):
        gaussian_bottleneck(i_xt, torch.eye(2), teacher, noise)
