"""The example of exact planes: the grid of its networks, its claims on curves that are known, and one short run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "saxe2018"))

import exact_plane as example
import training
from claims import REPRODUCED
from data import labels, patterns
from quantised_networks import QuantisedNetworks
from twelve_bit import WIDTHS

X = patterns()


@pytest.fixture(autouse=True)
def keep_nothing():
    yield
    training.OUT = None  # other examples' tests train in this process


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
class TestNetworks:
    def test_activations_are_on_the_grid(self, activation, bits):
        networks = QuantisedNetworks((0, 1), WIDTHS, activation, bits, X)
        levels = 2**bits - 1
        for layer, t in enumerate(networks.activations(X, 1).values()):
            step = (
                1 / levels
                if layer == 5
                else 1 / (levels // 2)
                if activation == "tanh"
                else networks.top[layer, 1] / levels
            )
            number = t / step
            assert torch.allclose(number, number.round(), atol=1e-3)
            assert len(t.unique()) <= levels + 1

    def test_one_network_is_as_in_the_stack(self, activation, bits):
        networks = QuantisedNetworks((0, 1, 2), WIDTHS, activation, bits, X).eval()
        for bias in networks.biases:  # if they are 0, many sums lie halfway between two levels, and a last bit decides
            torch.nn.init.uniform_(bias, -0.1, 0.1)
        together = networks.all_outputs(X.T.expand(3, -1, -1))
        alone = torch.stack([networks(X, number).T for number in range(3)])
        assert ((together - alone).abs() < 1e-4).double().mean() > 0.999


def test_the_gradient_passes_the_rounding_but_not_the_end_of_the_range():
    networks = QuantisedNetworks((0,), WIDTHS, "relu", 8, X)
    x = torch.tensor([[[0.3 * networks.top[0, 0], 1.5 * networks.top[0, 0]]]], requires_grad=True)
    networks._rounded(x, 0, slice(None)).sum().backward()
    assert x.grad.flatten().tolist() == [1, 0]


def test_ranges_begin_at_the_largest_activation_and_follow_in_training_only():
    networks = QuantisedNetworks((0,), WIDTHS, "relu", 8, X)
    largest = torch.relu(networks._weight(networks.weights[0])[0] @ X.T).max()
    assert networks.top[0, 0] == pytest.approx(largest.item(), rel=1e-5)
    before = networks.top.clone()
    with torch.no_grad():
        networks.all_outputs(2 * X.T[None])
    networks(2 * X)
    assert torch.equal(networks.top, before)
    networks.all_outputs(2 * X.T[None])
    assert networks.top[0, 0] == pytest.approx(1.01 * before[0, 0].item(), rel=1e-4)


class Known:
    """Two networks whose layers all end below the peak of their exact I(X;T) by so much, and by bins by so much."""

    def __init__(self, exact: float, output: float, by_bins: float):
        self.exact, self.output, self.by_bins, history = exact, output, by_bins, {}
        for layer in example.LAYERS:
            history[f"seed0/info_plane/I_XT/{layer}"] = [(0, 4.0), (1, 8.0), (2, 8 - self.falls(layer, "exact")[0])]
            history[f"seed0/info_plane/I_TY/{layer}"] = [(0, 0.2), (1, 0.9), (2, 0.9)]
        self.planes = [SimpleNamespace(history=history)] * 2

    def falls(self, layer, kind):
        if kind != "exact":
            return [self.by_bins] * 2
        return [self.output if layer == example.OUTPUT else self.exact] * 2


class TestClaims:
    @pytest.fixture(autouse=True)
    def all_learned(self, monkeypatch):
        monkeypatch.setattr(example, "learned", lambda run: [True, True])
        monkeypatch.setattr(example, "learning", lambda *_: example.Claim("", "learning", [1.0], 0.5))

    def judge(self, tanh, relu):
        claims = example.judge({("tanh", 8): tanh, ("relu", 8): relu})
        return {(claim.text.split(":")[0], claim.verdict) for claim in claims}

    def test_what_the_paper_says(self):
        found = self.judge(Known(2.0, 2.0, 2.0), Known(0.1, 1.0, 0.1))
        assert [text for text, verdict in found if verdict != REPRODUCED] == ["ways of binning disagree"]

    def test_the_opposite(self):
        found = self.judge(Known(0.1, 0.1, 2.0), Known(2.0, 0.1, 0.1))
        met = {text for text, verdict in found if verdict == REPRODUCED}
        assert {text for text in met if "fitting" not in text} == {"learning"}


def test_exact_curves_are_those_of_numpy():
    """Of the last weights: entropies of the rows of activations, counted by NumPy.

    tanh, as sums of weights on a grid lie between two levels of ReLU, and the processor decides which one it is.
    """
    run = example.trained("tanh", 4, (700,), 2, 1e-2, 2)
    activations, y = run.networks.activations(X), labels().numpy()
    curves = example.exact_curves(run)[0]
    for layer, t in activations.items():
        codes = np.unique(t.numpy(), axis=0, return_inverse=True)[1].ravel()
        entropy, joint, of_y = (entropy_of(keys) for keys in (codes, 2 * codes + y, y))
        assert curves[layer][-1][1:] == pytest.approx((entropy, entropy + of_y - joint), abs=1e-9)
    assert entropy_of(y) == pytest.approx(example.LABEL_ENTROPY, abs=1e-4)


def entropy_of(keys):
    shares = np.unique(keys, return_counts=True)[1] / len(keys)
    return float(-(shares * np.log2(shares)).sum())


def test_a_short_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example, "REPRODUCTIONS", tmp_path / "docs" / "reproductions")
    example.main(["--seeds", "1", "--epochs", "2", "--bits", "8", "--out", str(tmp_path), "--page"])
    said = capsys.readouterr().out
    assert said.count("\n     ") == 17  # criteria
    assert (tmp_path / "docs/images/exact_plane/exact_plane_8bits.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "docs/reproductions/exact_plane.md").read_text()
    assert "(../images/exact_plane/exact_plane_8bits.png)" in page
    assert page.count("| 8 bits") == 1
    assert 0 < float(page.split("| tanh, 8 bits | 6 | ")[1].split(" |")[0]) < 12
