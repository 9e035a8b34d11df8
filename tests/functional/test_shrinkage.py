from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from lightning_info.functional import shrinkage
from lightning_info.functional.shrinkage import ShrunkGaussians, shrunk_correlation


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
    found = ShrunkGaussians.fit(draws, full=full).log_density(z)
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
    found = ShrunkGaussians.of_conditional(mean, variance)
    assert torch.equal(found.mean, mean.mean(0))
    correlations = np.stack([np.corrcoef(mean[:, i, :3].numpy().T) for i in range(n)])
    for i in range(n):
        expected = np.zeros((d, d))
        deviation = mean[:, i, :3].std(0).numpy()
        expected[:3, :3] = (correlations[i] + correlations.mean(0)) / 2 * np.outer(deviation, deviation)
        expected += np.diag(variance[:, i].mean(0).numpy())
        covariance = np.linalg.inv((found.whitening[i].T @ found.whitening[i]).numpy())
        np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-6 * expected.max())
        assert found.log_volume[i].item() == pytest.approx(0.5 * np.linalg.slogdet(expected)[1], abs=1e-6)


def test_a_unit_without_any_variance_has_the_least():
    found = ShrunkGaussians.of_conditional(torch.zeros(5, 2, 3).double(), torch.zeros(5, 2, 3).double())
    assert found.log_volume.tolist() == pytest.approx([1.5 * np.log(shrinkage._LEAST_VARIANCE)] * 2)
