"""Lemma 2.4 of Achille et al. (2020): both matrices against the library and autograd, and a short run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[2] / "examples" / "achille2020"))

import lemma24

from lightning_info.functional import Spectrum, exact_cotangents


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(lemma24, "WIDTH", 3)
    monkeypatch.setattr(lemma24, "REFERENCE", 64)


@pytest.mark.parametrize("activation", lemma24.ACTIVATIONS)
def test_matrices(small, activation):
    net = lemma24.Net(activation).double()
    x, y = torch.randn(6, 64, dtype=torch.float64), torch.randint(10, (6,))
    found = lemma24.matrices(net.net, x, y)
    parameters = list(net.parameters())

    loss = F.cross_entropy(net(x), y)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    h = [torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True) for one in slope]
    h = torch.stack([torch.cat([g.flatten() for g in row]) for row in h])
    z = net(x)
    rows = []
    for column in exact_cotangents(z, "categorical"):
        for sample in range(len(x)):
            grads = torch.autograd.grad(z[sample], parameters, column[sample], retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    f = torch.stack(rows).T @ torch.stack(rows) / len(x)

    assert found.hessian_trace == pytest.approx(h.trace().item(), rel=1e-8)
    assert found.fisher_trace == pytest.approx(Spectrum.of_matrix(f, len(f)).trace, rel=1e-8)
    assert found.residual == pytest.approx((h - f).norm().item(), rel=1e-8)
    assert found.fisher == pytest.approx(f.norm().item(), rel=1e-8)
    eigenvalues = torch.linalg.eigvalsh(h)
    assert found.lowest == pytest.approx((eigenvalues[0] / eigenvalues[-1]).item(), rel=1e-6)
    assert (found.hessian_trace == pytest.approx(found.fisher_trace, rel=1e-10)) == (activation == "ReLU")


def test_a_network_that_did_not_learn_agrees_with_nothing():
    point = lemma24.Matrices(1.0, 1.0, 0.01, 1.0, -0.1, 0.5)
    traces = np.array([[0, 1.0, 1.0, 0.1]])
    runs = [lemma24.Run(activation, {0: point}, traces) for activation in lemma24.ACTIVATIONS]
    verdicts = [claim.verdict for claim in lemma24.judge(runs)]
    assert verdicts[:3] == ["not reproduced"] * 3
    learned = [run._replace(exact={0: point._replace(accuracy=1.0)}) for run in runs]
    assert [claim.verdict for claim in lemma24.judge(learned)][:2] == ["reproduced"] * 2


def test_a_short_run(small, tmp_path, capsys):
    def briefly(seeds, full, out):
        return lemma24.run(seeds, full, out, epochs=1, every=20)

    lemma24.main(lemma24.__doc__, briefly, "lemma24", 3, ["--seeds", "1", "--out", str(tmp_path)])
    assert (tmp_path / "lemma24.png").read_bytes().startswith(b"\x89PNG")
    claims = [lemma24.Claim(**claim) for claim in json.loads((tmp_path / "lemma24.json").read_text())["claims"]]
    assert capsys.readouterr().out.count("->") == len(claims)
    agree = [claim for claim in claims if "callback" in claim.text]
    assert [claim.verdict for claim in agree] == ["reproduced"] * 2
