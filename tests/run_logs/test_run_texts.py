"""What is read out of the texts of a run is what its callbacks write into them."""

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from logs import run_log
from models import Classifier, loader, trainer

from lightning_info import FisherTraceCallback, InfoPlaneCallback
from lightning_info.run_logs.provided import of_folders
from lightning_info.run_logs.run_log import RunLog
from lightning_info.run_logs.run_texts import RESULT, ceilings, result, sections


def label_entropy(samples):
    """H(Y) in bits of the first samples that training takes."""
    counts = torch.unique(torch.cat([y for _, y in loader()])[:samples], return_counts=True)[1]
    shares = counts.double() / samples
    return -(shares * shares.log2()).sum().item()


def test_of_a_real_run(tmp_path):
    options = {"num_samples": 16, "every_n_epochs": 1, "summary": False}
    callbacks = [FisherTraceCallback(**options), InfoPlaneCallback(**options)]
    trainer(*callbacks, max_epochs=1, logger=TensorBoardLogger(tmp_path)).fit(Classifier(), loader())
    (run,) = of_folders({"": tmp_path}).logs()
    assert [section.title for section in sections(run)] == ["FisherTraceCallback", "InfoPlaneCallback"]
    assert [section.samples for section in sections(run)] == [16, 16]
    entropy = label_entropy(callbacks[1].num_samples)
    assert entropy < math.log2(sections(run)[1].classes)
    assert ceilings(run, "info_plane") == (4.0, pytest.approx(entropy, rel=1e-3), True, 1.0)
    assert any(line.startswith(f"H(Y) = {entropy:.4g} bits: ") for line in result(run).splitlines())
    assert "info_plane_final/I_XT" in result(run)
    assert "```" not in result(run)


def test_without_texts_nothing_is_made_up():
    run = RunLog("run", run_log().curves)
    assert (sections(run), result(run)) == ([], "")
    assert ceilings(run, "info_plane") == (math.inf, math.inf, False, 1.0)
    assert ceilings(run_log(), "effective_info") == (math.inf, math.inf, False, 1.0)


def test_until_a_run_ends_its_labels_are_at_most_its_classes():
    run = run_log()
    assert ceilings(run, "info_plane") == (8.0, pytest.approx(math.log2(10)), False, 1.0)
    ended = replace(run, texts={**run.texts, RESULT: "```\nH(Y) = 3.25 bits: no layer can.\n```"})
    assert ceilings(ended, "info_plane") == (8.0, 3.25, True, 1.0)


def test_in_nats_the_ceilings_are_too(tmp_path):
    plane = InfoPlaneCallback(unit="nats", num_samples=16, every_n_epochs=1, summary=False)
    trainer(plane, max_epochs=1, logger=TensorBoardLogger(tmp_path)).fit(Classifier(), loader())
    (run,) = of_folders({"": tmp_path}).logs()
    entropy = label_entropy(16) * math.log(2)
    assert ceilings(run, "info_plane") == (
        pytest.approx(math.log(16)),
        pytest.approx(entropy, rel=1e-3),
        True,
        pytest.approx(math.log(2)),
    )
