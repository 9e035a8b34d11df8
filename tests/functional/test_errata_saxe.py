"""Formulas of Saxe et al. (2018): the corrected form passes, the printed one fails the same test."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_info.functional import (
    binned_information,
    generalisation_error,
    linear_information,
    linear_subset_information,
    one_unit_information,
    one_unit_probabilities,
)

INPUTS, UNITS, SAMPLES = 20, 6, 200_000
NOISE, TEACHER_NOISE = 0.3, 0.5
COV = torch.eye(INPUTS, dtype=torch.float64) / INPUTS


@pytest.fixture(scope="module")
def world():
    """Weights, and samples of (X, T, Y) as section 3 describes them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    w, teacher, w_total = normal(UNITS, INPUTS), normal(UNITS, INPUTS), normal(UNITS, INPUTS)
    x = normal(SAMPLES, INPUTS) / INPUTS**0.5
    t = x @ w.T + NOISE**0.5 * normal(SAMPLES, UNITS)
    y = x @ teacher.T + TEACHER_NOISE**0.5 * normal(SAMPLES, UNITS)
    return w, teacher, w_total, x, t, y


def log_det(matrix):
    return torch.linalg.slogdet(matrix)[1].item()


def measured(a, b):
    """I(A;B) of jointly Gaussian samples from their covariance, nats; its error is about 0.004 here."""
    return (log_det(a.T.cov()) + log_det(b.T.cov()) - log_det(torch.cat([a, b], 1).T.cov())) / 2


def test_equation_6_lacks_the_variance_of_the_inputs(world):
    _, teacher, w_total, x, _, y = world
    errors = (y - x @ w_total.T).square().sum(1)
    error = 4 * errors.std().item() / SAMPLES**0.5
    truth = errors.mean().item()
    printed = (teacher - w_total).square().sum().item() + UNITS * TEACHER_NOISE
    assert generalisation_error(w_total, teacher, COV, TEACHER_NOISE) == pytest.approx(truth, abs=error)
    assert printed > 5 * truth


def test_equation_7_lacks_a_half_and_the_variance_of_the_inputs(world):
    w, _, _, x, t, _ = world
    truth, identity = measured(x, t), torch.eye(UNITS, dtype=torch.float64)
    printed = log_det(w @ w.T + NOISE * identity) - log_det(NOISE * identity)
    assert linear_information(w, COV, NOISE, unit="nats")[0] == pytest.approx(truth, abs=0.01)
    assert printed > 3 * truth
    assert printed / 2 > 1.5 * truth  # the half alone does not mend it
    assert log_det(w @ w.T / INPUTS + NOISE * identity) - log_det(NOISE * identity) == pytest.approx(
        2 * truth, abs=0.02
    )


def printed_8_to_11(w, teacher):
    identity = torch.eye(UNITS, dtype=torch.float64)
    t, y = w @ w.T + NOISE * identity, teacher @ teacher.T + TEACHER_NOISE * identity
    both = torch.cat([torch.cat([t, w @ teacher.T], 1), torch.cat([teacher @ w.T, y], 1)])
    return (log_det(t) + log_det(y) - log_det(both)) / 2


def test_equations_8_to_11_lack_the_variance_of_the_inputs(world):
    w, teacher, _, _, t, y = world
    truth = measured(t, y)
    found = linear_information(w, COV, NOISE, teacher, TEACHER_NOISE, unit="nats")[1]
    assert found == pytest.approx(truth, abs=0.01)
    assert printed_8_to_11(w, teacher) > 2 * truth
    assert printed_8_to_11(w / INPUTS**0.5, teacher / INPUTS**0.5) == pytest.approx(truth, abs=0.01)


def test_equation_10_has_the_units_where_the_outputs_belong():
    # the identity beside the outputs' block is I_{N_o}: with fewer outputs than units the printed sum does not exist
    w, teacher = torch.randn(UNITS, INPUTS), torch.randn(2, INPUTS)
    with pytest.raises(RuntimeError, match="size"):
        teacher @ teacher.T + TEACHER_NOISE * torch.eye(UNITS)
    assert linear_information(w, COV, NOISE, teacher, TEACHER_NOISE)[1] > 0


def test_the_signal_to_noise_ratio_of_section_3_needs_inputs_of_variance_one_over_their_number(world):
    _, teacher, _, x, _, _ = world
    per_output = (x @ teacher.T).var(0).mean().item()
    assert per_output == pytest.approx(teacher.square().mean().item(), rel=0.02)  # σ_w² = 1
    assert generalisation_error(0 * teacher, teacher, torch.eye(INPUTS)) > 15 * UNITS  # N_i σ_w² for an output


def test_equation_4_has_no_inverse_at_zero_for_relu():
    # the printed form with the inverse h of the rising part: the probabilities of 30 bins over (0, 4) add up to a half
    edges = torch.linspace(0, 4, 31, dtype=torch.float64)
    printed = torch.special.ndtr(edges / 1.5).diff()
    assert printed.sum().item() < 0.5
    p = one_unit_probabilities(1.5, "relu", 30, (0.0, 4.0))
    x = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = torch.relu(1.5 * x).histc(30, 0, 4) + 0.0
    share[-1] += (1.5 * x > 4).sum()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert (share / SAMPLES - p).abs().max() < 4 * 0.5 / SAMPLES**0.5
    assert (share / SAMPLES - printed).abs().max() > 0.4


def test_equation_3_is_in_nats_and_its_figures_are_in_bits():
    # "approximately 1 bit" for large weights
    assert one_unit_information(1e6) == pytest.approx(1, abs=1e-3)
    assert one_unit_information(1e6, unit="nats") == pytest.approx(math.log(2), abs=1e-3)


def test_thirty_equal_intervals_are_thirty_edges_in_the_published_code():
    t = torch.rand(4096, 1, dtype=torch.float64) * 2 - 1
    counts = np.bincount(np.digitize(t[:, 0].numpy(), np.linspace(-1, 1, 30)))
    p = counts[counts > 0] / 4096
    published = -(p * np.log2(p)).sum()
    found = {bins: binned_information(t, None, bins, "fixed")[0] for bins in (29, 30)}
    assert found[29] == pytest.approx(published, abs=1e-12)
    assert found[30] != pytest.approx(published, abs=0.02)


def test_section_5_leaves_two_readings_of_the_information_with_a_subset(world):
    w, _, _, x, t, _ = world
    relevant = list(range(6))
    rest = list(range(6, INPUTS))
    noisy = linear_subset_information(w, COV, NOISE, relevant, unit="nats")
    given = linear_subset_information(w, COV, NOISE, relevant, conditional=True, unit="nats")
    assert noisy == pytest.approx(measured(x[:, relevant], t), abs=0.01)
    assert given == pytest.approx(measured(x, t) - measured(x[:, rest], t), abs=0.01)
    assert given > 1.5 * noisy
