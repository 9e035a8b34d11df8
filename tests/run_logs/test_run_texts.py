"""What is read out of the texts of a run is what its callbacks write into them."""

import math

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from logs import run_log
from models import Classifier, loader, trainer

from lightning_info import FisherTraceCallback, InfoPlaneCallback
from lightning_info.run_logs.provided import of_folders
from lightning_info.run_logs.run_log import RunLog
from lightning_info.run_logs.run_texts import ceilings, result, sections


def test_of_a_real_run(tmp_path):
    options = {"num_samples": 16, "every_n_epochs": 1, "summary": False}
    callbacks = [FisherTraceCallback(**options), InfoPlaneCallback(**options)]
    trainer(*callbacks, max_epochs=1, logger=TensorBoardLogger(tmp_path)).fit(Classifier(), loader())
    (run,) = of_folders({"": tmp_path}).logs()
    assert [section.title for section in sections(run)] == ["FisherTraceCallback", "InfoPlaneCallback"]
    assert [section.samples for section in sections(run)] == [16, 16]
    classes = sections(run)[1].classes
    assert ceilings(run, "info_plane") == (4.0, pytest.approx(math.log2(classes)))
    assert "info_plane_final/I_XT" in result(run)
    assert "```" not in result(run)


def test_without_texts_nothing_is_made_up():
    run = RunLog("run", run_log().curves)
    assert (sections(run), result(run)) == ([], "")
    assert ceilings(run, "info_plane") == (math.inf, math.inf)
    assert ceilings(run_log(), "effective_info") == (math.inf, math.inf)
