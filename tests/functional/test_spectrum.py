from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from lightning_info.functional.spectrum import Spectrum


def rows(count, weights):
    return torch.randn(count, weights, dtype=torch.float64)


@pytest.mark.parametrize(("count", "weights"), [(4, 9), (9, 4), (5, 5)])
def test_the_gram_matrix_gives_what_the_full_matrix_gives(count, weights):
    a = rows(count, weights)
    full = a.T @ a / 3
    found = Spectrum.of_matrix(a @ a.T / 3, weights)
    values = torch.linalg.eigvalsh(full).clamp_min(0)
    assert len(found.eigenvalues) == min(count, weights)
    assert found.trace == pytest.approx(full.trace().item(), rel=1e-12)
    assert found.top_eigenvalue == pytest.approx(values.max().item(), rel=1e-12)
    assert found.effective_rank == pytest.approx(math.exp(stats.entropy(values)), rel=1e-10)
    for damping in (1e-3, 1.0, 50.0):
        truth = torch.logdet(full + damping * torch.eye(weights, dtype=torch.float64)).item()
        assert found.log_det(damping) == pytest.approx(truth, rel=1e-9, abs=1e-9)
        assert Spectrum.of_matrix(full, weights).log_det(damping) == pytest.approx(truth, rel=1e-9, abs=1e-9)


def test_scaled_by_the_samples_it_is_the_spectrum_of_the_summed_loss():
    a = rows(4, 6)
    truth = torch.logdet(7 * a.T @ a + 0.3 * torch.eye(6, dtype=torch.float64)).item()
    assert Spectrum.of_matrix(a @ a.T, 6).scaled(7).log_det(0.3) == pytest.approx(truth, rel=1e-12)


def test_equal_eigenvalues_have_their_number_as_rank_and_the_zero_matrix_has_none():
    assert Spectrum(torch.full((7,), 0.2), 100).effective_rank == pytest.approx(7)
    zero = Spectrum(torch.zeros(3), 5)
    assert math.isnan(zero.effective_rank)
    assert zero.log_det(0.5) == pytest.approx(5 * math.log(0.5))
    assert Spectrum(torch.zeros(0), 5).top_eigenvalue == 0


def test_rounding_below_zero_is_clamped():
    found = Spectrum(torch.tensor([3.0, -1e-9, 1.0]), 8)
    assert found.eigenvalues.tolist() == [3, 1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0, -0.1], "not positive semi-definite"), ([1.0, math.nan], "1 of 2"), ([math.inf], "not finite")],
)
def test_a_spectrum_that_is_none_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Spectrum(torch.tensor(values), 8)


def test_bad_input_is_refused():
    found = Spectrum(torch.ones(2), 8)
    for damping in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="finite c > 0"):
            found.log_det(damping)
    for factor in (0.0, math.nan):
        with pytest.raises(ValueError, match="positive and finite"):
            found.scaled(factor)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        Spectrum.of_matrix(torch.ones(2, 3), 8)
    with pytest.raises(ValueError, match="entries"):
        Spectrum.of_matrix(torch.full((2, 2), math.nan), 8)
    with pytest.raises(ValueError, match="weights=0"):
        Spectrum(torch.ones(1), 0)
