from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from models import CLASSES, FEATURES, Classifier
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import TensorDataset

from lightning_info import StabilityCallback
from lightning_info.comparison import compare_runs

sys.path.append(str(Path(__file__).parent))

from training import INDEX, REPLACEMENT, SAMPLES, lacking, module, reference, train

STEPS = [0, 3, 6, 9, 12]
TAGS = {"param_distance", "relative_distance", "fisher_distance", "output_kl", "loss_gap", "unique_information"}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "batch_norm"])
def runs(request, tmp_path_factory):
    """Folders of two runs, and the history of a callback that followed the first."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"index": INDEX, "replacement": REPLACEMENT, "every_n_train_steps": 3, "reference": reference()}
    callback = StabilityCallback(**options, on_error="raise", beta=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Trainers on a small net
        train(folder / "a", callback, batch_norm=request.param)
        train(folder / "b", replaced=True, batch_norm=request.param)
    return folder / "a", folder / "b", callback, request.param


def compare(runs, **options):
    options = {"training_samples": SAMPLES, "beta": 0.5, "replaced": lacking(), **options}
    return compare_runs(module(batch_norm=runs[3]), *runs[:2], reference(), **options)


@pytest.mark.filterwarnings("error:compare_runs")
def test_two_ordinary_runs_give_what_the_callback_logs_in_one(runs):
    found = compare(runs)
    assert {tag.removeprefix("stability/") for tag in found.history} == TAGS
    for tag, curve in found.history.items():
        expected = dict(runs[2].history[tag])
        assert [step for step, _ in curve] == STEPS
        for step, value in curve:
            assert value == pytest.approx(expected[step], rel=1e-4, abs=1e-10), (tag, step)
    assert found.history["stability/output_kl"][-1][1] > 1e-5
