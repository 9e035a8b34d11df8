"""The twin trains with the package of the user's Trainer, ``lightning.pytorch`` or ``pytorch_lightning``."""

import importlib

import pytest
import torch
from models import CLASSES, FEATURES, Classifier, loader
from torch import nn
from twin.driver import Drive, live_threads

from lightning_info.twin import NotSupported

pytest.importorskip("pytorch_lightning")

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{category}:{package}")
    for category in ("UserWarning", "FutureWarning", "DeprecationWarning")
    for package in ("pytorch_lightning", "lightning_fabric")
]

BOTH = pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])


def fit(package, *callbacks, path=None, **options):
    pl = importlib.import_module(package)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, CLASSES))

        forward, training_step, validation_step = (
            Classifier.forward,
            Classifier.training_step,
            Classifier.validation_step,
        )
        configure_optimizers = Classifier.configure_optimizers

    defaults = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    torch.manual_seed(1)
    run = pl.Trainer(**{**defaults, **options}, callbacks=list(callbacks))
    run.fit(Module(), loader(shuffle=True), loader(16), ckpt_path=path)
    return run


@BOTH
def test_the_null_twin_stays_and_the_other_does_not(package, tmp_path):
    null, other, resumed = Drive(), Drive(5, 17), Drive()
    fit(package, null, max_epochs=1).save_checkpoint(tmp_path / "end.ckpt")
    fit(package, other, precision="bf16-mixed", accumulate_grad_batches=3)
    fit(package, resumed, path=tmp_path / "end.ckpt")
    assert set(null.distances) == set(resumed.distances) == {0.0}
    assert (resumed.steps[0], resumed.steps[-1]) == (8, 16)
    assert other.distances[0] == 0.0 < other.distances[-1]
    assert live_threads() == []


@BOTH
def test_the_packages_own_callbacks_are_judged_by_name(package):
    theirs = importlib.import_module(f"{package}.callbacks")
    stopping = theirs.EarlyStopping("val_loss")
    saving = theirs.ModelCheckpoint(every_n_train_steps=3, save_top_k=0)
    drive = Drive()
    fit(package, drive, stopping, saving, enable_checkpointing=True)
    assert set(drive.distances) == {0.0}
    with pytest.raises(NotSupported, match="StochasticWeightAveraging changes what is trained"):
        fit(package, Drive(), theirs.StochasticWeightAveraging(1e-2))
