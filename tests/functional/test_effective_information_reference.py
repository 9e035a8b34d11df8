"""The fast estimate against a slow one, written out: every draw at every input, Gaussians refit for each fold."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from lightning_info.functional import input_classifiers
from lightning_info.functional.effective_information import effective_information
from lightning_info.functional.shrinkage import shrunk_correlation

estimates = importlib.import_module("lightning_info.functional.effective_information")


def slow_information(z, y, folds=8, given_below=None):
    """Means and standard errors of I(X;Z), I(Z;Y), fold by fold and input by input; all units with noise of size 1."""
    m, n, d = z.shape
    fold, same, temperatures = torch.arange(m) % folds, y[:, None] == y, torch.arange(16).double() / 10
    values = torch.empty(m, 2, 16, dtype=torch.float64)
    for k in range(folds):
        others = fold != k
        scores = torch.empty(int((~others).sum()), n, n, dtype=torch.float64)
        if given_below is not None:
            mean, variance = given_below[0][others], given_below[1][others].mean(0)
            correlations = torch.stack([torch.corrcoef(mean[:, j].T) for j in range(n)])
            correlations = (correlations + correlations.mean(0)) / 2
        for j in range(n):
            draws = z[others, j] if given_below is None else mean[:, j]
            deviation = draws.std(0)
            if given_below is not None:
                covariance = correlations[j] * deviation[:, None] * deviation + variance[j].diag()
                covariance.diagonal().copy_(deviation.square() + variance[j])
            elif 2 * d <= m:
                covariance = shrunk_correlation(draws)[0] * deviation[:, None] * deviation
            else:
                covariance = deviation.square().diag()
            scores[:, :, j] = MultivariateNormal(draws.mean(0), covariance).log_prob(z[~others])
        for i, tau in enumerate(temperatures):
            joint = tau * scores
            whole = joint.logsumexp(2)
            own = joint.diagonal(dim1=1, dim2=2)
            within = joint.masked_fill(~same, -math.inf).logsumexp(2)
            values[~others, 0, i] = (own - whole).mean(1) + math.log(n)
            values[~others, 1, i] = (within - whole - (same.sum(1) / n).log()).mean(1)
    best = torch.stack([values[fold != k, 0].sum(0).argmax() for k in range(folds)])[fold]
    values = values[torch.arange(m), :, best]
    return values.mean(0), values.std(0) / m**0.5


def network(m, n, d, seed):
    """Draws of ``(W + noise) tanh(x + noise)``, classes by the first unit, and what is known given the inner noise."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(n, 5, generator=generator).double(), torch.randn(d, 5, generator=generator).double()
    h = torch.tanh(x + 0.3 * torch.randn(m, 1, 5, generator=generator))
    mean, variance = h @ w.T, 0.3 * h.square().sum(2, keepdim=True).expand(m, n, d)
    z = mean + torch.einsum("mdp,mnp->mnd", 0.3**0.5 * torch.randn(m, d, 5, generator=generator).double(), h)
    scale = z.var(0).median(0).values.sqrt()
    return z / scale, (mean[0, :, 0] > 0).long(), (mean / scale, variance / scale.square())


@pytest.mark.parametrize(("d", "known"), [(4, False), (4, True), (20, False)])
def test_at_all_inputs_it_is_the_slow_one_in_every_digit(monkeypatch, d, known):
    monkeypatch.setattr(estimates, "_PAIRS", 1 << 40)
    z, y, given = network(32, 40, d, 0)
    mean, error = slow_information(z, y, 4, given if known else None)
    found = effective_information(z, y, given if known else None)
    assert found[:2] == pytest.approx(mean.tolist(), abs=1e-6)
    assert 0.2 < found.I_ZY < found.I_XZ < found.ceiling - 0.2
    factor = found.I_XZ_stderr / error[0].item()
    assert 1 < factor < 1.1  # Student's
    assert found.I_ZY_stderr == pytest.approx(factor * error[1].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("m", "d", "known"), [(32, 4, True), (32, 12, False), (16, 20, False), (96, 4, True), (96, 6, False)]
)
def test_at_a_part_of_the_inputs_it_agrees_within_the_errors(m, d, known):
    """Three networks of 160 inputs, a draw at a half or third; means to 0.02 and two errors, which are 1.6 at most.

    Of 96 draws the temperatures are chosen on some, and the products are in single precision.
    """
    differences, errors, ratios = [], [], []
    for seed in range(3):
        z, y, given = network(m, 160, d, seed)
        mean, error = slow_information(z, y, 8, given if known else None)
        found = effective_information(z, y, given if known else None)
        stated = torch.tensor([found.I_XZ_stderr, found.I_ZY_stderr])
        differences.append(torch.tensor(found[:2]) - mean)
        errors.append(torch.hypot(stated, error))
        ratios.append(stated / error)
    differences, errors = torch.stack(differences), torch.stack(errors)
    assert (differences.abs() < 3 * errors).all()
    assert (differences.mean(0).abs() < 0.02 + 2 * errors.square().mean(0).sqrt() / 3**0.5).all()
    assert torch.stack(ratios).mean() < 1.6


def test_the_errors_of_a_part_of_the_inputs_are_the_scatter_over_draws():
    """60 sets of draws of one layer, 128 inputs in two blocks: SD by mean error, 0.8 to 1.25."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(128, 4, generator=generator), torch.randn(2, 4, generator=generator)
    found = []
    for _ in range(60):
        z = torch.einsum("mdp,np->mnd", w + 0.8 * torch.randn(64, 2, 4, generator=generator), x)
        found.append(effective_information(z, (x @ w[0] > 0).long()))
    for value, error in (("I_XZ", "I_XZ_stderr"), ("I_ZY", "I_ZY_stderr")):
        values = torch.tensor([getattr(one, value) for one in found])
        stated = torch.tensor([getattr(one, error) for one in found])
        assert 0.8 < values.std() / stated.mean() < 1.25


def test_single_precision_is_taken_where_it_agrees_and_only_there(monkeypatch):
    z, y, _ = network(64, 96, 6, 0)
    near = z.clone()
    near[:, :, 5] = near[:, :, 4] + 3e-4 * torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    near[:, :, 4:] += 300 * torch.randn(1, 96, 1, generator=torch.Generator().manual_seed(1))
    for values, is_single in ((z, True), (near, False)):
        double = effective_information(values, y)
        products = []
        with monkeypatch.context() as patched:
            patched.setattr(input_classifiers, "_SMALL", 0)
            density = input_classifiers.PackedGaussians.log_density

            def watched(self, fold, z, dtype, wider=1.0, density=density, products=products):
                products.append(dtype)
                return density(self, fold, z, dtype, wider)

            patched.setattr(input_classifiers.PackedGaussians, "log_density", watched)
            found = effective_information(values, y)
        assert (products[-1] == torch.float32) is is_single
        assert found[:4] == pytest.approx(double[:4], abs=1e-3)
