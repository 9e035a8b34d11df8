"""The example of effective information: its verdicts on curves that are known, the pair of nets, and one short run."""

from __future__ import annotations

import math
import re
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import effective_curves as curves
import effective_information as example
from saxe2018.claims import NOT, REPRODUCED, Claim

STEPS = [0, 1, 2, 4, 8, 16, 32, 64]
RISING = np.array([math.nan, math.nan, 1.0, 2.0, 3.0, 4.0, 4.5, 4.5])
FALLING = np.array([math.nan, math.nan, 1.0, 2.0, 3.0, 4.0, 3.5, 3.0])
FOUR, TWO = ({level: np.full(3, value) for level in ("fixed", *curves.LEVELS)} for value in (4.0, 2.0))
PAIR = curves.Pair(1e-7, FOUR, TWO, 1e-6)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(example, "EffectiveInfoCallback", partial(example.EffectiveInfoCallback, draws=8))


def run(binned: np.ndarray, effective: np.ndarray, crossing: float = 0.0) -> curves.Run:
    values = {
        (level, kind): np.stack([curve] * 3, 1)
        for level, curve in (("binned", binned), ("0.05", effective), ("0.5", effective))
        for kind in ("input", "label")
    }
    return curves.Run(STEPS, values, {"0.05": crossing, "0.5": crossing})


def judge(tanh: curves.Run, relu: curves.Run, pair: curves.Pair = PAIR) -> list[Claim]:
    return curves.judge({"tanh": [tanh], "relu": [relu]}, [pair])


def verdicts(claims: list[Claim]) -> set[str]:
    return {claim.verdict for claim in claims}


class TestVerdicts:
    def test_what_the_claims_say(self):
        assert verdicts(judge(run(FALLING, FALLING), run(RISING, FALLING))) == {REPRODUCED}

    @pytest.mark.parametrize("curve", [np.full(8, 2.0), np.full(8, math.nan)], ids=["flat", "missing"])
    def test_nothing_is_reproduced(self, curve):
        other = curves.Pair(0.1, FOUR, FOUR, 0.5)
        assert verdicts(judge(run(curve, curve, 1.0), run(FALLING, curve, 1.0), other)) == {NOT}

    def test_a_rise_without_a_fall_and_a_fall_without_a_rise(self):
        claims = judge(run(FALLING, RISING), run(RISING, 5 - RISING))
        tanh, relu, rises, _ = (claim.values for claim in claims if claim.figure == "effective, 0.5")
        assert (tanh, relu, rises) == ([0.0], [3.5], [3.5, 0.0])


def test_the_table_has_first_peak_and_end_with_their_spread():
    seeds = [run(RISING, FALLING), run(RISING, FALLING + 1)]
    cells = curves.table({"tanh": seeds}, "input").splitlines()[-1].split(" | ")
    assert cells[:3] == ["| tanh", "0.5", "logits"]
    assert cells[3:] == ["1.50 ± 0.71 (2)", "4.50 ± 0.71", "3.50 ± 0.71", "3.00 ± 0.00", "1.00 ± 0.00 |"]


class TestPair:
    @pytest.fixture
    def net(self):
        torch.manual_seed(0)
        return example.Net(64, "relu")

    def test_the_twin_is_the_same_function_with_other_activations(self, net):
        twin, x = example.rescaled(net, 0), example.load(None).tensors[0][:200]
        assert (net(x) - twin(x)).abs().max() < 1e-5
        for layers in (2, 4):
            ratio = (twin.net[:layers](x).sum(0) / net.net[:layers](x).sum(0)).detach()
            ratio = ratio[ratio.isfinite()]
            assert 1 / 16 <= ratio.min() < 1 / 4
            assert 4 < ratio.max() <= 16

    def test_another_function_is_told_from_it(self, net):
        other = deepcopy(net)
        with torch.no_grad():
            other.net[0].weight *= 0.5
        pair = example.compare(net, other, example.load(None), 32)
        outputs, *_, effective = (c for c in judge(*[run(FALLING, FALLING)] * 2, pair) if c.figure == "same function")
        assert outputs.verdict == effective.verdict == NOT


def test_a_short_run(tmp_path, capsys):
    example.main(["--steps", "32", "--samples", "32", "--out", str(tmp_path)])
    out = tmp_path / "effective_information"
    assert (out / "effective_information.png").read_bytes().startswith(b"\x89PNG")
    assert "effective_information" in EventAccumulator(str(out / "figure")).Reload().Tags()["images"]
    for act in example.ACTIVATIONS:
        events = EventAccumulator(str(out / f"{act}_seed0")).Reload()
        for tag in ("info_plane/I_XT/net.4", "effective_info/I_XZ/net.4", "effective_info_0.5/I_ZY/net.4"):
            assert [point.step for point in events.Scalars(tag)] == [0, 1, 2, 4, 8, 16, 32]
    same = re.findall(r"^\[same function\].*\n.*: (\S+) -> (.*)$", capsys.readouterr().out, re.MULTILINE)
    (_, outputs), (_, fixed), _, (difference, effective) = same
    assert outputs == fixed == effective == REPRODUCED
    assert float(difference) < 1e-4


def test_torchvision_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(SystemExit, match="pip install torchvision"):
        example.load(tmp_path)
