"""The experiment on proposition 3.2 of Achille et al. (2020): its verdicts, its measures, and one short run."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.append(str(Path(__file__).parents[2] / "examples" / "achille2020"))

import representation as rep
from feature_learning import NOT, REPRODUCED, summary

# tests/invariance has its name
SPEC = importlib.util.spec_from_file_location(
    "achille2020_invariance", rep.__file__.replace("representation", "invariance")
)
invariance = sys.modules[SPEC.name] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(invariance)


def points(trace, information, response) -> list[invariance.Point]:
    columns = zip(invariance.BATCHES, trace, information, response, strict=True)
    return [invariance.Point(b, 0, 100, 0.02, 0.9, t, i, *[r] * 8) for b, t, i, r in columns]


def outcome(*values) -> dict[str, str]:
    rows = invariance.judge(points(*values))
    return {letter: summary(rows, letter) for letter in "abcde"}


class TestVerdicts:
    def test_everything_rises_with_the_batch(self):
        assert set(outcome((1, 2, 3, 4), (5, 6, 7, 8), (0.1, 0.2, 0.3, 0.4)).values()) == {REPRODUCED}

    @pytest.mark.parametrize(
        ("values", "not_reproduced"),
        [
            (((4, 3, 2, 1), (5, 6, 7, 8), (4, 3, 2, 1)), "ab"),
            (((1, 2, 3, 4), (5, 6, 7, 8), (4, 3, 2, 1)), "cde"),
            (((1, 1, 1, 1), (5, 5, 5, 5), (2, 2, 2, 2)), "abcde"),
            ([[math.nan] * 4] * 3, "abcde"),
        ],
        ids=["less information with the batch", "less response with the batch", "constant", "missing"],
    )
    def test_not_reproduced(self, values, not_reproduced):
        found = outcome(*values)
        assert {letter for letter, verdict in found.items() if verdict == NOT} == set(not_reproduced)


class TestMeasures:
    def test_a_shift_is_that_of_scipy(self):
        images = torch.rand(3, 8, 8)
        ways = [scipy.ndimage.shift(images.numpy(), (0, *way), order=0) for way in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        for found, expected in zip(rep.shifted(images), ways, strict=True):
            assert np.array_equal(found.numpy(), expected)

    def test_a_rotation_is_that_of_scipy(self):
        images = torch.rand(3, 8, 8, dtype=torch.float64)
        assert torch.allclose(rep.rotated(images, 0), images)
        assert torch.allclose(rep.rotated(images, 90), images.rot90(1, (1, 2)))
        turned = scipy.ndimage.rotate(images[0].numpy(), 15, reshape=False, order=1)
        assert np.allclose(rep.rotated(images, 15)[0, 2:6, 2:6], turned[2:6, 2:6])

    def test_responses_of_a_linear_map_do_not_depend_on_its_scale(self):
        x = torch.rand(20, 64)
        one, ten = torch.nn.Linear(64, 5, bias=False), torch.nn.Linear(64, 5, bias=False)
        with torch.no_grad():
            ten.weight.copy_(10 * one.weight)
            slope, shift, rotation = rep.responses(one, x)
            assert rep.responses(ten, x) == pytest.approx((slope, shift, rotation), rel=1e-4)
            assert slope == pytest.approx((one.weight.norm() / one(x).var(0).sum().sqrt()).item(), rel=1e-4)

    def test_diagonal_of_the_fisher_information_by_plain_autograd(self):
        net, x = invariance.Net().double(), torch.rand(3, 64, dtype=torch.float64)
        expected = {name: torch.zeros_like(weight) for name, weight in net.named_parameters()}
        for one in x:
            log_p = net(one).log_softmax(0)
            for c in range(10):
                net.zero_grad()
                log_p[c].backward(retain_graph=True)
                for name, weight in net.named_parameters():
                    expected[name] += log_p[c].exp().detach() * weight.grad.square() / 3
        found = rep.fisher_diagonal(net, x)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], expected[name]) for name in expected)

    def test_less_noise_leaves_more_information_and_response(self):
        torch.manual_seed(0)
        net, x = invariance.Net().requires_grad_(False).double(), torch.rand(300, 64, dtype=torch.float64)
        found = []
        for beta in (0.1, 0.001):
            covariance = rep.noise_covariance(net, x, beta)
            of_noise = rep.information(net.features, x, covariance), *rep.noisy_responses(net.features, x, covariance)
            found.append(of_noise)
        assert all(small > large > 0 for large, small in zip(*found, strict=True))

    def test_responses_under_noise_are_those_of_sampled_noise(self):
        """One linear layer, of which z is exactly Gaussian: standard deviations from draws of the weights."""
        torch.manual_seed(0)
        layer, x = torch.nn.Linear(64, 3).requires_grad_(False).double(), torch.rand(4, 64, dtype=torch.float64)
        deviation = 0.3 * layer.weight.abs()  # and no noise on the biases, so that units are independent
        noise = torch.cat([deviation.flatten(), torch.zeros(3)])
        found = rep.noisy_responses(layer, x, lambda jacobian: (jacobian * noise.square()) @ jacobian.mT)
        drawn = layer.weight + deviation * torch.randn(20_000, 3, 64, dtype=torch.float64)
        sd = torch.einsum("mdp,np->mnd", drawn, x).std(0)
        expected = [((change / sd).norm(dim=2).mean() / 3**0.5).item() for change in rep.changes(layer, x)]
        assert found == pytest.approx(expected, rel=0.02)


def test_a_short_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(invariance, "BATCHES", (8, 512))
    invariance.main(["--seeds", "1", "--loss", "1.5", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert (tmp_path / "invariance.png").read_bytes().startswith(b"\x89PNG")
    assert "achille2020/invariance" in EventAccumulator(str(tmp_path / "invariance/figure")).Reload().Tags()["images"]
    for batch in (8, 512):
        events = EventAccumulator(str(tmp_path / "invariance" / f"batch{batch}_seed0")).Reload()
        loss = events.Scalars("invariance/loss")[-1].value
        assert 0.5 < loss <= 1.5
        assert events.Scalars("fisher/trace")[-1].value == pytest.approx(events.Scalars("invariance/trace")[-1].value)
    verdicts = re.findall(r"^\(([abcde])\) .*: (reproduced|in part|not reproduced)$", said, re.MULTILINE)
    assert [letter for letter, _ in verdicts] == list("abcde")


def test_a_loss_that_is_not_reached_ends_it_with_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(invariance, "MOST_STEPS", 40)
    with pytest.raises(SystemExit, match=r"batches of 8, seed 0: training loss .* after 40 steps"):
        invariance.main(["--seeds", "1", "--loss", "1e-9", "--out", str(tmp_path)])
