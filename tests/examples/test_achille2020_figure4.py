"""Figure 4 of Achille et al. (2020): its verdicts on points that are known, and a short run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

sys.path.append(str(Path(__file__).parents[2] / "examples" / "achille2020"))

import figure4


def point(trace: float, scale_invariant: float = 1.0, loss: float = 0.1, epoch: int = 1) -> figure4.Point:
    return figure4.Point(epoch, trace, scale_invariant, loss, 1.0, 1.0)


def judged(batches, classes) -> dict[str, str]:
    return {claim.text: claim.verdict for claim in figure4.judge(batches, classes)}


class TestVerdicts:
    def test_the_standard_error_is_that_of_the_difference_over_the_seeds(self):
        points = {16: [point(1), point(2), point(3)], 256: [point(4), point(7), point(7)]}
        gaps = torch.tensor([3.0, 5.0, 4.0])
        assert figure4.separation(points, "trace") == pytest.approx((gaps.mean() / (gaps.std() / math.sqrt(3))).item())
        assert math.isnan(figure4.separation({16: [point(1)], 256: [point(4)]}, "trace"))

    def test_an_order_of_trf_alone(self):
        batches = {16: [[point(1, 9)], [point(2, 9)]], 256: [[point(4, 8)], [point(6, 9)]]}
        classes = {2: [[point(1, 1)], [point(2, 1)]], 10: [[point(4, 8)], [point(6, 8)]]}
        found = judged(batches, classes)
        assert found["tr F: less with batches of 16 than of 256, by"] == "reproduced"
        assert found["tr F: rises with the batch size; rank correlation"] == "reproduced"
        assert found["scale-invariant trace: less with batches of 16 than of 256, by"] == "not reproduced"
        assert found["tr F: more after 10 classes than after 2; ratio"] == "reproduced"

    def test_the_same_loss_is_the_first_one_below_the_highest_of_all_ends(self):
        fast = [point(5, loss=0.3, epoch=1), point(3, loss=0.15, epoch=2), point(1, loss=0.01, epoch=3)]
        slow = [point(1, loss=2.0, epoch=1), point(2, loss=0.5, epoch=2), point(4, loss=0.2, epoch=3)]
        found = figure4.matched({16: [fast], 256: [slow]})
        assert {key: [one.epoch for one in its] for key, its in found.items()} == {16: [2], 256: [3]}


def test_looking_at_the_fit_does_not_change_the_training():
    task = figure4.digits()
    x, y = task.x[:64], task.y[:64]
    weights = []
    for looked in (False, True):
        pl.seed_everything(0, verbose=False)
        net = figure4.Digits(10)
        fit = figure4.Fit(x[:32], y[:32])
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, callbacks=[fit] if looked else [],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(net, DataLoader(TensorDataset(x, y), 16, shuffle=True))
        weights.append(net.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    loss, accuracy, norm = fit.found[8]
    z = net.train()(x[:32])
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(z, y[:32]).item(), rel=1e-5)
    assert accuracy == z.argmax(1).eq(y[:32]).double().mean().item()
    kernels = [p for name, p in net.named_parameters() if p.dim() == 4]
    assert norm == pytest.approx(sum(p.square().sum().item() for p in kernels), rel=1e-5)


def test_a_short_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figure4, "REFERENCE", 32)
    monkeypatch.setattr(figure4, "BATCH", 32)
    task = figure4.digits()
    few = task._replace(x=task.x[:60], y=task.y[:60])
    result = figure4.run(1, False, tmp_path, few, epochs=1, batches=(16, 32), classes=(2, 3))
    figure4.finish(result, "figure4", figure4.parser("", 1).parse_args(["--out", str(tmp_path)]))
    assert (tmp_path / "figure4.png").read_bytes().startswith(b"\x89PNG")
    claims = [figure4.Claim(**claim) for claim in json.loads((tmp_path / "figure4.json").read_text())["claims"]]
    assert [len(claim.values) for claim in claims] == [4] + [1] * 10
    assert all(math.isfinite(value) for claim in claims for value in claim.values if "more after" in claim.text)
    assert capsys.readouterr().out.count("seed 100,") == 3  # batches of 32 on all classes belong to both panels


def test_the_papers_network_needs_its_images(capsys):
    with pytest.raises(SystemExit):
        figure4.main(["--full"])
    assert "--data-root FOLDER or --npz FILE" in capsys.readouterr().err


def test_a_resnet_has_as_many_outputs_as_classes():
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    task = figure4.Task(images, torch.arange(6) % 3, width=4).first(2)
    assert task.net(2)(task.x).shape == (4, 2)
