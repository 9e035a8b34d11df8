"""The example on Theorem 2.2: what it reads, its surrogate and Gibbs error, its verdicts, and one short run."""

from __future__ import annotations

import gzip
import importlib.util
import math
import struct
import sys
from pathlib import Path

import pytest
import torch

from lightning_info.functional import DiagonalGaussian

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("pac_bayes_mnist", ROOT / "examples/achille2020/pac_bayes_mnist.py")
example = sys.modules[SPEC.name] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)


def write(folder: Path, name: str, numbers: torch.Tensor, zipped: bool) -> None:
    head = struct.pack(f">HBB{numbers.dim()}I", 0, 8, numbers.dim(), *numbers.shape)
    raw = head + bytes(numbers.flatten().tolist())
    (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize("zipped", [False, True])
def test_it_reads_the_files_of_mnist_anywhere_in_the_folder(tmp_path, zipped):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = torch.randint(256, (7, 4, 5), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7) % 10
    for name in ("train", "t10k"):
        write(raw, f"{name}-images-idx3-ubyte", images, zipped)
        write(raw, f"{name}-labels-idx1-ubyte", labels, zipped)
    ten, two = example.tasks(tmp_path)
    assert torch.equal(ten.x, images.flatten(1) / 255)
    assert torch.equal(ten.test_y, labels)
    assert torch.equal(two.y, (labels > 4).long())
    with pytest.raises(SystemExit, match=r"no file train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        example.tasks(raw.parent.parent / "MNIST" / "none")


@pytest.mark.parametrize("classes", [2, 3])
def test_the_gibbs_error_is_the_mean_over_draws(classes):
    torch.manual_seed(0)
    net = example.Net(4, classes, 0.1, width=5)
    weights = example.Weights(net)
    w, x, y = weights.of(net), torch.randn(40, 4), torch.randint(classes, (40,))
    torch.testing.assert_close(weights(w, x), net(x))
    q = DiagonalGaussian(w, torch.full_like(w, 0.5))
    found, averages = example.gibbs(weights, q, x, y, torch.Generator().manual_seed(1))
    assert averages == 5 * len(x)
    many = [example.wrong(weights(q.mean + n, x), y).double().mean() for n in q.noise(500, torch.Generator())]
    # 200 averages of 0 or 1: standard error 0.035
    assert found == pytest.approx(torch.stack(many).mean().item(), abs=4 * 0.5 / math.sqrt(averages))


def test_verdicts():
    rows = [example.Row(task, kind, 1, *[0.2] * 7) for task, kind in example.TARGETS]
    words = [line.rpartition(" ")[2] for line in example.verdicts(rows)]
    assert words == ["reached", "reached", "missed", "reached", "missed"]


def test_a_short_run(tmp_path, capsys):
    example.main(["--epochs", "2", "--optimise", "2", "--out", str(tmp_path)])
    told = capsys.readouterr().out
    lines = [line for line in told.splitlines() if line.startswith(("ten classes", "0-4 against 5-9"))]
    assert [line[17:32].strip() for line in lines] == [kind for _, kind in example.TARGETS]
    assert all(0 < float(line.split()[-4]) <= 1 for line in lines)
    assert (tmp_path / "pac_bayes_seed0.png").stat().st_size > 0
    assert "target" not in told  # these are for MNIST
