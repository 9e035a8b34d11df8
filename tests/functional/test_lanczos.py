from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.linalg import eigh_tridiagonal

from lightning_info.functional.lanczos import Eigenpairs, converged, function_times, lanczos, quadrature, runs, spectra
from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.weight_information import weight_information

K = 120
DECAY = torch.cat([torch.linspace(40, 3, 5).double(), torch.logspace(0, -5, 45).double(), torch.zeros(K - 50).double()])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(eigenvalues):
    """Symmetric, with random eigenvectors."""
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64)).Q
    return basis @ torch.diag(eigenvalues) @ basis.T


def start():
    return torch.randn(K, dtype=torch.float64)


def form(f, a, b):
    """``bᵀ f(A) b`` from the eigenvectors."""
    values, vectors = torch.linalg.eigh(a)
    return ((vectors.T @ b).square() @ f(values.clamp_min(0))).item()


def seen(f, spectrum, b):
    """The same from a quadrature."""
    return spectrum.sum_over(f(spectrum.eigenvalues)) * b.square().sum().item() / spectrum.weights


def test_the_basis_is_orthonormal_and_turns_the_matrix_into_t():
    a, b = matrix(DECAY), start()
    run = lanczos(a.mv, b, 40)
    t = torch.diag(run.alpha) + torch.diag(run.beta[:-1], 1) + torch.diag(run.beta[:-1], -1)
    torch.testing.assert_close(run.basis @ run.basis.T, torch.eye(40, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(run.basis @ a @ run.basis.T, t, rtol=0, atol=1e-12)
    torch.testing.assert_close(run.norm * run.basis[0], b)
    rest = a @ run.basis[-1] - run.basis.T @ (run.basis @ a @ run.basis[-1])
    assert rest.norm().item() == pytest.approx(run.beta[-1].item(), rel=1e-9)
    values, vectors = run.eigh()
    truth, columns = eigh_tridiagonal(run.alpha.numpy(), run.beta[:-1].numpy())
    torch.testing.assert_close(values, torch.from_numpy(truth), rtol=0, atol=1e-12)
    torch.testing.assert_close(vectors[0].square(), torch.from_numpy(columns[0]).square(), rtol=0, atol=1e-10)


def test_the_first_steps_of_a_run_are_a_shorter_run():
    a, b = matrix(DECAY), start()
    long, short = lanczos(a.mv, b, 12).first(7), lanczos(a.mv, b, 7)
    for name in ("alpha", "beta", "basis"):
        torch.testing.assert_close(getattr(long, name), getattr(short, name))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_rule_is_exact_for_polynomials_up_to_twice_the_steps(steps):
    a, b = matrix(torch.linspace(0.5, 2, K).double()), start()
    found = quadrature(lanczos(a.mv, b, steps))
    assert found.multiplicities.sum().item() == pytest.approx(K, rel=1e-12)
    assert found.eigenvalues[-1] == 0
    for degree in range(2 * steps + 2):
        exact, rule = form(lambda x: x**degree, a, b), seen(lambda x: x**degree, found, b)  # noqa: B023
        assert (rule == pytest.approx(exact, rel=1e-10)) is (degree <= 2 * steps)


@pytest.mark.parametrize("damping", [1e-4, 1e-2, 1.0])
def test_the_log_determinant_is_never_too_large_and_comes_nearer_with_each_step(damping):
    a, b = matrix(DECAY), start()
    run = lanczos(a.mv, b, 50)
    log = lambda x: (x + damping).log()  # noqa: E731
    exact = form(log, a, b)
    errors = [exact - seen(log, quadrature(run.first(m)), b) for m in range(1, 51)]
    rounding = 1e-9 * abs(exact)
    assert all(later - rounding <= earlier for earlier, later in pairwise(errors))
    assert min(errors) >= -rounding
    assert errors[0] > 1
    assert abs(errors[-1]) <= rounding


def test_few_distinct_eigenvalues_are_found_and_the_run_ends():
    values = torch.tensor([5.0] * 8 + [1.0] * 12 + [0.25] * 30 + [0.0] * (K - 50)).double()
    a, b = matrix(values), start()
    run = lanczos(a.mv, b, 30)
    assert run.beta[-1] == 0
    assert len(run.alpha) == len(run.basis) == 4
    for tried in (run, run.first(3)):  # the node at 0 is known beforehand
        found = quadrature(tried)
        torch.testing.assert_close(found.eigenvalues, torch.tensor([5.0, 1.0, 0.25, 0.0]).double(), rtol=0, atol=1e-12)
    share = (torch.linalg.eigh(a).eigenvectors.T @ b)[-8:].square().sum() / b.square().sum()
    assert found.multiplicities[0].item() == pytest.approx(K * share.item(), rel=1e-9)
    truth = torch.linalg.eigh(a).eigenvectors
    root = (truth * (truth.T @ b) * (values.flip(0) + 0.1).rsqrt()).sum(1)
    torch.testing.assert_close(function_times(run, lambda x: (x + 0.1).rsqrt()), root, rtol=0, atol=1e-11)


@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_a_multiple_of_the_identity_takes_one_step(factor):
    found = quadrature(lanczos(lambda v: factor * v, start(), 20))
    assert found.log_det(0.5) == pytest.approx(K * math.log(factor + 0.5), rel=1e-12)
    assert found.trace == pytest.approx(factor * K, rel=1e-12)


def test_of_a_diagonal_matrix_signs_have_no_variance():
    found = spectra(lambda v: DECAY * v, K, 51, 2, generator())
    for one in found:
        assert one.log_det(1e-3) == pytest.approx(Spectrum(DECAY, K).log_det(1e-3), rel=1e-10)
        assert one.effective_rank == pytest.approx(Spectrum(DECAY, K).effective_rank, rel=1e-10)


def test_ritz_pairs_that_have_converged_are_eigenpairs():
    a = matrix(DECAY)
    for tolerance in (1e-2, 1e-6):
        found = converged(lanczos(a.mv, start(), 16), tolerance)
        assert 5 <= len(found.values) < 16
        rest = found.vectors @ a - found.values.unsqueeze(1) * found.vectors
        assert (rest.norm(dim=1) <= 1.001 * tolerance * found.values).all()
        nearest = (found.values.unsqueeze(1) - DECAY).abs().amin(1)
        assert (nearest <= tolerance * found.values).all()
        eye = torch.eye(len(found.values), dtype=torch.float64)
        torch.testing.assert_close(found.vectors @ found.vectors.T, eye, rtol=0, atol=1e-12)


def test_a_run_beside_known_eigenvectors_is_one_of_what_is_left():
    a, b = matrix(DECAY), start()
    values, vectors = torch.linalg.eigh(a)
    known = Eigenpairs(values[-5:], vectors[:, -5:].T)
    run = lanczos(a.mv, b, 50, known)
    left = vectors[:, :-5] @ vectors[:, :-5].T
    torch.testing.assert_close(run.basis @ known.vectors.T, torch.zeros(len(run.alpha), 5).double(), rtol=0, atol=1e-12)
    other = lanczos((left @ a @ left).mv, left @ b, 10)
    torch.testing.assert_close(run.first(10).alpha, other.alpha, rtol=1e-8, atol=0)
    found = quadrature(run)
    assert found.multiplicities[:5].tolist() == [1] * 5
    assert found.multiplicities.sum().item() == pytest.approx(K, rel=1e-12)
    root = lambda x: (x.clamp_min(0) + 1e-3).rsqrt()  # noqa: E731
    truth = vectors @ (root(values) * (vectors.T @ b))
    torch.testing.assert_close(function_times(run, root), truth, rtol=0, atol=1e-8)
    assert len(converged(run).values) > 5 + 20


def test_eigenvectors_found_beforehand_take_their_share_of_the_variance():
    a = matrix(DECAY)
    plain = torch.tensor([quadrature(lanczos(a.mv, start(), 32)).trace for _ in range(30)])
    assert torch.tensor([one.trace for one in spectra(a.mv, K, 32, 30, generator())]).std() < plain.std() / 50


def test_repeated_eigenvalues_count_as_often_as_they_are():
    values = torch.tensor([5.0] * 3 + [1.0] * 12 + [0.0] * (K - 15)).double()
    found = spectra(matrix(values).mv, K, 10, 200, generator())
    for low, high, truth in ((4, 6, 3), (0.5, 2, 12)):
        counts = torch.tensor(
            [one.sum_over(((one.eigenvalues > low) & (one.eigenvalues < high)).double()) for one in found]
        )
        assert abs(counts.mean().item() - truth) <= 3 * counts.std().item() / 200**0.5


def test_with_more_steps_than_weights_every_estimate_is_exact():
    a = matrix(torch.tensor([3.0, 2.0, 0.5]).double())
    for one in spectra(a.mv, 3, 8, 2, generator()):
        torch.testing.assert_close(one.eigenvalues[:3], torch.tensor([3.0, 2.0, 0.5]).double())
        assert one.log_det(0.1) == pytest.approx(math.log(3.1 * 2.1 * 0.6), rel=1e-12)


FUNCTIONALS = (
    lambda s: s.trace,
    lambda s: s.scaled(1000).log_det(0.3),
    lambda s: weight_information(s.scaled(1000), 2.0, 0.1, 0.3),
)


def test_the_mean_over_probes_is_within_three_standard_errors():
    # 8 seeds of 16 probes: each within 4 of its standard errors, all together within 3
    a = matrix(DECAY)
    found = [spectra(a.mv, K, 20, 16, generator(seed)) for seed in range(8)]
    for value in FUNCTIONALS:
        truth = value(Spectrum(DECAY, K))
        values = torch.tensor([[value(one) for one in some] for some in found], dtype=torch.float64)
        assert ((values.mean(1) - truth).abs() <= 4 * values.std(1) / 4).all()
        assert abs(values.mean().item() - truth) <= 3 * values.std().item() / 128**0.5


def test_a_normal_start_serves_as_well():
    a, truth = matrix(DECAY), Spectrum(DECAY, K).scaled(1000)
    values = torch.tensor(
        [quadrature(run).scaled(1000).log_det(0.3) for run in runs(a.mv, (start() for _ in range(101)), 20)],
        dtype=torch.float64,
    )
    assert len(values) == 100
    assert abs(values.mean().item() - truth.log_det(0.3)) <= 3 * values.std().item() / 10


def test_products_in_single_precision_give_a_spectrum_too():
    a, b = matrix(DECAY), start()
    single = a.float()
    found = quadrature(lanczos(lambda v: single @ v.float(), b, K))
    assert seen(lambda x: (x + 1e-3).log(), found, b) == pytest.approx(form(lambda x: (x + 1e-3).log(), a, b), rel=1e-4)


def test_a_function_comes_nearer_with_the_steps():
    a, b = matrix(DECAY), start()
    root = lambda x: (x.clamp_min(0) + 1e-3).rsqrt()  # noqa: E731
    values, vectors = torch.linalg.eigh(a)
    truth = vectors @ (root(values) * (vectors.T @ b))
    run = lanczos(a.mv, b, 50)
    errors = [((function_times(run.first(m), root) - truth).norm() / truth.norm()).item() for m in (4, 8, 16, 24, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < 1e-1 < errors[0]
    torch.testing.assert_close(function_times(run, root), truth, rtol=0, atol=1e-8)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="length 0"):
        lanczos(lambda v: v, torch.zeros(3), 2)
    one = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    with pytest.raises(ValueError, match="without known eigenvectors"):
        lanczos(lambda v: v, 3 * one[0], 2, Eigenpairs(torch.ones(1, dtype=torch.float64), one))
    with pytest.raises(ValueError, match="steps=0"):
        lanczos(lambda v: v, torch.ones(3), 0)
    with pytest.raises(ValueError, match="step 1 is not finite"):
        lanczos(lambda v: v * math.nan, torch.ones(3), 2)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        quadrature(lanczos(lambda v: v * torch.tensor([1.0, -1.0, 2.0]), torch.ones(3), 3))
