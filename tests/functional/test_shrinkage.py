from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from lightning_info.functional import shrinkage
from lightning_info.functional.shrinkage import (
    conditional_gaussians_without,
    gaussians_without,
    shrunk_correlation,
)


def plain_shrunk_correlation(x):
    """Schäfer & Strimmer (2005), Table 1 and section 2.4, term by term."""
    m, d = x.shape
    x = (x - x.mean(0)) / x.std(0, ddof=1)
    above = below = 0.0
    r = np.eye(d)
    for k in range(d):
        for j in range(d):
            w = x[:, k] * x[:, j]
            r[k, j] = m / (m - 1) * w.mean()
            if k != j:
                above += m / (m - 1) ** 3 * ((w - w.mean()) ** 2).sum()
                below += r[k, j] ** 2
    intensity = min(1.0, above / below)
    return (1 - intensity) * r + intensity * np.eye(d), intensity


@pytest.mark.parametrize(("m", "d"), [(5, 3), (40, 6), (6, 12)])
def test_correlation_is_that_of_the_paper(m, d):
    generator = torch.Generator().manual_seed(m)
    x = torch.randn(2, m, d, generator=generator) @ torch.randn(2, d, d, generator=generator)
    found, intensity = shrunk_correlation(x)
    for i in range(2):
        expected, expected_intensity = plain_shrunk_correlation(x[i].double().numpy())
        assert expected_intensity > 0
        assert intensity[i].item() == pytest.approx(expected_intensity, rel=1e-9)
        torch.testing.assert_close(found[i], torch.from_numpy(expected), atol=1e-9, rtol=0)


def test_correlation_does_not_depend_on_scale_and_has_an_inverse():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(shrunk_correlation(x * torch.tensor([1e-6, 1, 7, 1e9])), shrunk_correlation(x))
    signs = torch.tensor([1.0, -1.0]).repeat(8)[:, None].expand(16, 3)  # products without variance: nothing to shrink
    torch.linalg.cholesky(shrunk_correlation(signs)[0])


def test_dimension_without_variance_is_uncorrelated():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 3.0
    found, _ = shrunk_correlation(x)
    assert found[1].tolist() == [0, 1, 0]
    assert shrunk_correlation(x[:, 1:2])[0].tolist() == [[1]]


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_correlation_refuses(shape):
    with pytest.raises(ValueError, match="at least 2 draws"):
        shrunk_correlation(torch.zeros(shape))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("workspace", [1, 2**17])
def test_density_is_that_of_a_normal_distribution(monkeypatch, full, workspace):
    monkeypatch.setattr(shrinkage, "_WORKSPACE", workspace)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(30, 5, 3, generator=generator).double() @ torch.randn(3, 3, generator=generator).double()
    draws = draws / draws.var(0).mean(0).sqrt()
    z = torch.randn(5, 3, generator=generator).double()
    draws, out = torch.cat([draws, 7 + 3 * draws[:4]]), torch.tensor([1] * 30 + [0] * 4)  # a fold that is left out
    gaussians = gaussians_without(draws, out, full=full)
    found, draws = gaussians.log_density(0, z, torch.float64), draws[:30]
    correlation = shrunk_correlation(draws.transpose(0, 1))[0] if full else torch.eye(3).double()
    deviation = draws.var(0).sqrt()
    covariance = deviation[:, :, None] * correlation * deviation[:, None]
    expected = MultivariateNormal(draws.mean(0), covariance).log_prob(z[:, None])
    difference = found - expected
    torch.testing.assert_close(difference, difference[:1, :1].expand_as(difference), atol=1e-9, rtol=0)


def test_gaussians_of_conditional_ones_by_the_law_of_total_covariance():
    generator = torch.Generator().manual_seed(0)
    m, n, d = 20, 7, 4
    mean = torch.randn(m, n, d, generator=generator).double() @ torch.randn(n, d, d, generator=generator).double()[0]
    mean[:, :, 3] = 2.0  # nothing comes from below
    variance = torch.rand(m, n, d, generator=generator).double() + 0.1
    more, out = torch.cat([mean, 5 * mean[:3]]), torch.tensor([1] * m + [0] * 3)  # a fold that is left out
    found = conditional_gaussians_without(more, torch.cat([variance, 9 * variance[:3]]), out)
    torch.testing.assert_close(found.mean[0], mean.mean(0), rtol=0, atol=1e-12)
    points = torch.randn(n, d, generator=generator).double()
    densities = found.log_density(0, points, torch.float64)
    correlations = np.stack([np.corrcoef(mean[:, i, :3].numpy().T) for i in range(n)])
    for i in range(n):
        expected = np.zeros((d, d))
        deviation = mean[:, i, :3].std(0).numpy()
        expected[:3, :3] = (correlations[i] + correlations.mean(0)) / 2 * np.outer(deviation, deviation)
        expected += np.diag(variance[:, i].mean(0).numpy())
        exact = MultivariateNormal(mean[:, i].mean(0), torch.from_numpy(expected)).log_prob(points)
        if i == 0:
            constant = densities[0, 0] - exact[0]
        torch.testing.assert_close(densities[:, i], exact + constant, rtol=0, atol=1e-5)


def test_a_unit_without_any_variance_has_the_least():
    nothing = torch.zeros(6, 2, 3).double()
    found = conditional_gaussians_without(nothing, nothing, torch.arange(6) % 2)
    least = 0.5 * torch.ones(1, 3).square().sum() / shrinkage._LEAST_VARIANCE
    densities = found.log_density(1, torch.stack([torch.zeros(3), torch.ones(3)]), torch.float64)
    torch.testing.assert_close(densities[0] - densities[1], least.expand(2).double())


def test_a_wider_gaussian_is_that_of_a_multiple_of_the_covariance():
    generator = torch.Generator().manual_seed(0)
    draws, z = torch.randn(20, 4, 3, generator=generator).double(), torch.randn(5, 3, generator=generator).double()
    draws = draws / draws.var(0).mean(0).sqrt()
    centre = draws[1::2].mean(0)  # of the fold that counts
    fold = torch.arange(20) % 2
    one, other = (gaussians_without(centre + factor**0.5 * (draws - centre), fold, full=True) for factor in (1.0, 1.25))
    one, other = one.log_density(0, z, torch.float64, wider=1.25), other.log_density(0, z, torch.float64)
    torch.testing.assert_close(one - one[:1, :1], other - other[:1, :1])
