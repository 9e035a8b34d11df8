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


def test_multiplicities_stand_for_repeated_eigenvalues():
    values, counts = torch.tensor([0.3, 2.0, 0.0, 1.1]).double(), torch.tensor([2, 3, 1, 5])
    short, long = Spectrum(values, 20, counts), Spectrum(values.repeat_interleave(counts), 20)
    assert short.eigenvalues.tolist() == sorted(values.tolist(), reverse=True)
    assert short.multiplicities.tolist() == [3, 5, 2, 1]
    assert short.unlisted == long.unlisted == 9
    for one, other in ((short, long), (short.scaled(7), long.scaled(7))):
        assert one.trace == pytest.approx(other.trace, rel=1e-12)
        assert one.top_eigenvalue == other.top_eigenvalue
        assert one.effective_rank == pytest.approx(other.effective_rank, rel=1e-12)
        for damping in (1e-3, 1.0, 50.0):
            assert one.log_det(damping) == pytest.approx(other.log_det(damping), rel=1e-12)


def test_multiplicities_may_exceed_the_weights_by_rounding_only():
    values = torch.tensor([1.0, 2.0])
    full = Spectrum(values, 5, torch.tensor([2.5, 2.5]).double() * (1 + 1e-9))
    assert full.unlisted == 0
    assert full.log_det(0.5) == pytest.approx(2.5 * math.log(1.5 * 2.5), rel=1e-8)
    with pytest.raises(ValueError, match=r"add up to 5\.25"):
        Spectrum(values, 5, torch.tensor([2.5, 2.75]))


def test_a_sum_over_the_average_is_the_average_of_the_sums():
    first, second = Spectrum(torch.rand(4), 9), Spectrum(torch.rand(2), 9, torch.tensor([3.5, 0.25]))
    both = Spectrum.average([first, second])
    assert both.trace == pytest.approx((first.trace + second.trace) / 2, rel=1e-12)
    assert both.unlisted == pytest.approx((first.unlisted + second.unlisted) / 2, rel=1e-12)
    assert both.log_det(0.2) == pytest.approx((first.log_det(0.2) + second.log_det(0.2)) / 2, rel=1e-12)
    for spectra in ([], [first, Spectrum(torch.rand(4), 8)]):
        with pytest.raises(ValueError, match="the same number"):
            Spectrum.average(spectra)


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
    with pytest.raises(ValueError, match="2 multiplicities for 3 eigenvalues"):
        Spectrum(torch.ones(3), 8, torch.ones(2))
    for count in (-0.1, math.nan):
        with pytest.raises(ValueError, match="finite and not negative"):
            Spectrum(torch.ones(1), 8, torch.tensor([count]))
    with pytest.raises(ValueError, match="weights=0"):
        Spectrum(torch.ones(1), 0)
