"""The example of nuisances: its verdicts on curves that are known, the nuisances, and one short run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import nuisance_curves as curves
import nuisances as example
from saxe2018.claims import NOT, REPRODUCED

STEPS = [0, 1, 2, 4]


def run(first: float, last: list[float], label: list[float], trace: list[float]) -> curves.Run:
    """A run whose first layer holds the same at all points, and whose last hidden layer what is given."""
    values = {}
    for nuisance in curves.NUISANCES:
        values[nuisance, "value"] = np.full((len(STEPS), len(curves.LAYERS)), first)
        values[nuisance, "value"][:, curves.LAST] = last
        values[nuisance, "error"] = np.full((len(STEPS), len(curves.LAYERS)), 0.03)
    values["I_TY", "value"] = np.tile(np.array(label)[:, None], len(curves.LAYERS))
    values["I_TY", "error"] = np.zeros((len(STEPS), len(curves.LAYERS)))
    return curves.Run(STEPS, values, np.array(trace), 0.9)


class TestVerdicts:
    def verdicts(self, plain, augmented):
        return {(claim.text[:3], claim.verdict) for claim in curves.judge({"plain": [plain], "augmented": [augmented]})}

    def test_invariance_that_goes_with_the_fisher_information(self):
        plain = run(1.9, [1.5, 1.4, 1.3, 1.2], [1, 2, 2, 3], [9, 8, 7, 6])
        augmented = run(1.9, [1.5, 0.9, 0.8, 0.1], [1, 2, 2, 3], [9, 8, 7, 6])
        assert self.verdicts(plain, augmented) == {(f"({letter})", REPRODUCED) for letter in "abcd"}

    def test_none_of_it(self):
        one = run(1.5, [1.5, 1.6, 1.7, 1.8], [3, 2, 2, 1], [9, 8, 7, 6])
        assert self.verdicts(one, one) == {(f"({letter})", NOT) for letter in "abcd"}

    def test_one_kind_of_training_has_no_comparison(self):
        one = run(1.5, [1.5, 1.6, 1.7, 1.8], [3, 2, 2, 1], [9, 8, 7, 6])
        assert not any(claim.text.startswith("(c)") for claim in curves.judge({"plain": [one]}))


def test_the_table_has_the_change_with_its_error():
    def rows(*runs):
        return curves.table({"plain": runs}).splitlines()[2:]

    one, two = (run(1.9, [1.0, 0, 0, end], [1, 1, 1, 3], [1, 1, 1, 1]) for end in (0.5, 0.7))
    assert rows(one)[curves.LAST] == "| plain | rotation | hidden | 1.00 | 0.50 | -0.50 ± 0.04 |"
    assert rows(one, two)[curves.LAST] == "| plain | rotation | hidden | 1.00 | 0.60 | -0.40 ± 0.10 |"
    assert rows(one)[-1] == "| plain | label | logits | 1.00 | 3.00 | +2.00 ± 0.00 |"


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("nuisance", example.NUISANCES.values())
def test_the_label_of_a_nuisance_says_how_to_undo_it(nuisance, size):
    image = torch.rand(3, size, size)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        moved, quarters = nuisance(image)
        back = moved.rot90(-quarters, (1, 2)) if nuisance is example.rotated else moved.roll(-quarters * size // 4, 2)
        assert torch.equal(back, image)
        seen.add(quarters)
    assert seen == {0, 1, 2, 3}


def test_augmented_images_are_those_of_the_data_in_other_places():
    train, _ = example.load(None, None, 20)
    images, labels = example.Augmented(train)[[3, 5]]
    assert labels.tolist() == train.tensors[1][[3, 5]].tolist()
    assert torch.equal(images.flatten(1).sort()[0], train.tensors[0][[3, 5]].flatten(1).sort()[0])


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32)])
def test_images_of_both_sizes(channels, side):
    assert example.Net(channels, side)(torch.zeros(2, channels, side, side)).shape == (2, 10)


def test_a_short_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example, "REPRODUCTIONS", tmp_path / "docs" / "reproductions")
    example.main(
        ["--seeds", "1", "--steps", "2", "--samples", "80", "--augment", "yes", "--out", str(tmp_path), "--page"]
    )
    said, out = capsys.readouterr().out, tmp_path / "nuisances"
    assert said.count("\n     ") == 8  # criteria
    assert "nuisances/digits" in EventAccumulator(str(out / "figure")).Reload().Tags()["images"]
    events = EventAccumulator(str(out / "digits_augmented_seed0")).Reload()
    for tag in ("fisher/trace", "info_plane_decoder/I_TN_rotation/act1", "info_plane_decoder/I_TN_shift/head"):
        assert [point.step for point in events.Scalars(tag)] == [0, 1, 2]
    page = (tmp_path / "docs/reproductions/nuisances.md").read_text()
    assert "(../images/nuisances/digits.png)" in page
    assert (tmp_path / "docs/images/nuisances/digits.png").read_bytes().startswith(b"\x89PNG")
    assert "{" not in page


def test_images_of_a_file_as_the_resnet_takes_it(tmp_path):
    rng, arrays = np.random.default_rng(0), {}
    for split, number in (("train", 6), ("test", 3)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = rng.integers(0, 10, number, dtype=np.uint8)
    np.savez(tmp_path / "few.npz", **arrays)
    train, test = example.load(None, tmp_path / "few.npz", 4)
    assert train.tensors[0].shape == (4, 3, 32, 32)
    assert len(test) == 3
    assert train.tensors[0].mean((0, 2, 3)).abs().max() < 1e-5
