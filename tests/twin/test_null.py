"""The null test: with nothing replaced, the twin has the user's weights at every step, bit for bit.

And the user's run is what it is without: ``harness.differences`` compares weights, losses, optimisers, random numbers,
gradients, flags, loaders and logs.
"""

import math

import pytest
import torch
import torchmetrics
from harness import assert_identical, run
from invariance.cases import CASES, beside, case, validated
from lightning.pytorch import LightningDataModule
from models import CLASSES, Classifier, loader, trainer
from torch import nn
from twin.driver import Drive, live_threads

from lightning_info.twin import NotSupported

REFUSED = {
    "optimiser in the backward pass": r"parameter 'net.0.weight' has a hook",
    "hooks on modules and parameters": r"parameter 'net.0.weight' has a hook",
    "module compiled in place": r"the module is compiled in place; compile it with torch.compile",
    "net compiled in place": r"net is compiled in place; compile it with torch.compile",
    **{name: r"Stream has no indices.*__getitem__" for name in CASES if name.startswith("IterableDataset")},
    **{name: r"several training loaders" for name in CASES if name.startswith("CombinedLoader")},
    **{
        name: rf"{name} changes what is trained"
        for name in (
            "ModelPruning", "BackboneFinetuning", "StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging",
        )
        if name in CASES
    },
}  # fmt: skip
"""Name of a case -> why no twin follows it, said before the first step."""

LOST = {
    "loaders made anew every epoch, datamodule": (4, "an epoch of 4 batches has become one of 5"),
    "a callback that changes batches by random numbers": (1, "Draws.on_train_batch_start changed the batch"),
    "two fits of one trainer": (7, "the run goes on at step 6 without the twin of that step"),
}
"""Name of a case -> at how many points there is a twin, and why there is none later."""


class DrawsBetweenBatches(Classifier):
    """Changes its weights by random numbers at every hook of the module between two batches."""

    def _jitter(self):
        for parameter in self.parameters():
            parameter.data.add_(0.01 * torch.randn_like(parameter))

    def on_train_start(self):
        self._jitter()

    def on_train_epoch_start(self):
        self._jitter()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self._jitter()

    def on_train_epoch_end(self):
        self._jitter()


class ReadsTheDatamodule(Classifier):
    """Asks the Trainer for the datamodule, and changes it."""

    def training_step(self, batch, batch_idx):
        datamodule = self.trainer.datamodule
        datamodule.scale = 0.9 * getattr(datamodule, "scale", 1.0)
        return datamodule.scale * super().training_step(batch, batch_idx)


class Lengths(LightningDataModule):
    def train_dataloader(self):
        return loader(24, shuffle=True)

    def val_dataloader(self):
        return loader(16)


class Estimates(Classifier):
    """Asks for the training loader before the fit starts."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        total = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class EditsInValidation(Classifier):
    def on_validation_epoch_end(self):
        self.net[0].weight.data.mul_(0.9)


class LogsMetrics(Classifier):
    """Logs metric objects, which Lightning finds by their identity."""

    def __init__(self):
        super().__init__(dropout=0.5)
        options = {"task": "multiclass", "num_classes": CLASSES}
        self.accuracy = torchmetrics.Accuracy(**options)
        self.accuracy.update(torch.arange(CLASSES), torch.arange(CLASSES))
        self.by_stage = nn.ModuleDict({stage: torchmetrics.Accuracy(**options) for stage in ("fit", "check")})
        several = [torchmetrics.Precision(**options), torchmetrics.Recall(**options)]
        self.several = torchmetrics.MetricCollection(several, compute_groups=True)
        self.mean = torchmetrics.MeanMetric()

    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        for metric in (self.accuracy, self.by_stage["fit"], self.several):
            metric(outputs, batch[1])
        loss = nn.functional.cross_entropy(outputs, batch[1]) * (1 + 0.1 * self.accuracy.compute())
        self.mean(loss)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("fit/accuracy", self.by_stage["fit"], on_step=False, on_epoch=True)
        self.log("mean", self.mean, on_step=True)
        self.log_dict(self.several, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.by_stage["check"](self(batch[0]), batch[1])
        self.log("check/accuracy", self.by_stage["check"])


class KeepsByIdentity(Classifier):
    """Scales its loss by what it keeps by the identity of its own layers."""

    def __init__(self):
        super().__init__()
        self.scales = {id(layer): 1.0 + number for number, layer in enumerate(self.net)}
        self.chosen = {id(self.net[0])}

    def training_step(self, batch, batch_idx):
        scale = sum(self.scales[id(layer)] for layer in self.net if id(layer) in self.chosen)
        return (scale + self.scales[id(self.net[2])]) * super().training_step(batch, batch_idx)


OWN = {
    "metric objects that are logged": validated(LogsMetrics, max_epochs=3, num_sanity_val_steps=2),
    "random numbers in the hooks between batches": validated(DrawsBetweenBatches),
    "the datamodule asked for in the step": case(ReadsTheDatamodule, data=Lengths),
    "stopped within an epoch": beside("EarlyStopping", "val_loss", 0.0, 0, False, "max", val_check_interval=1),
    "accumulation and a scheduler by epoch": case(
        lambda: Classifier(dropout=0.5), data=lambda: loader(40), accumulate_grad_batches=3, max_epochs=3
    ),
    "steps counted from the number of batches": validated(Estimates, max_epochs=3, num_sanity_val_steps=2),
}
"""What the other configurations do not have."""

ALL = CASES | OWN
FOLLOWED = [name for name in ALL if name not in REFUSED and name not in LOST]

IN_CI = {
    "dropout, Adam, scheduler",
    "BatchNorm, accumulation, uneven last batch",
    "gradients clipped by norm",
    "bf16-mixed",
    "64-true",
    "manual optimisation, two optimisers",
    "manual optimisation, two players",
    "parameters changed in training_step",
    "LBFGS",
    "own optimizer_step and clipping",
    "busy training_step",
    "epochs ended by on_train_batch_start",
    "run stopped in training_step",
    "batch edited in place",
    "noise in on_after_batch_transfer",
    "generators held by the module",
    "layers made in setup",
    "gradient checkpointing",
    "max_steps",
    "limit_train_batches",
    "validation every 2 batches",
    "resumed from a checkpoint",
    "random augmentation, 2 workers",
    "GradientAccumulationScheduler",
    "EarlyStopping",
    "ReduceLROnPlateau on a validation metric",
}


def cases(names):
    return [pytest.param(name, marks=() if name in IN_CI | OWN.keys() else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", cases(FOLLOWED))
def test_the_twin_stays_at_the_users_weights(name):
    followed, drive = ALL[name], Drive()
    plain = run(followed.module, *followed.callbacks(), **followed.options)
    beside = run(followed.module, drive, *followed.callbacks(), **followed.options)
    assert_identical(plain, beside)
    assert not any(drive.reasons), next(filter(None, drive.reasons))
    assert len(drive.distances) > len(plain["batch/tensors"])
    assert set(drive.distances) == {0.0}
    assert drive.twin.first_difference_step is None
    assert live_threads() == []


def test_what_the_module_keeps_by_the_identity_of_its_parts_is_kept_by_that_of_the_copies():
    module, drive = KeepsByIdentity(), Drive()
    kept = dict(module.scales), set(module.chosen)
    trainer(drive).fit(module, loader())
    assert (module.scales, module.chosen) == kept
    assert drive.twin.reason is None
    assert set(drive.distances) == {0.0}


@pytest.mark.parametrize("name", LOST)
def test_a_run_that_the_twin_loses_goes_on(name):
    (points, reason), drive, lost = LOST[name], Drive(), CASES[name]
    assert_identical(
        run(lost.module, *lost.callbacks(), **lost.options), run(lost.module, drive, *lost.callbacks(), **lost.options)
    )
    assert drive.distances[:points] == [0.0] * points
    assert all(map(math.isnan, drive.distances[points:]))
    assert drive.twin.reason.startswith(reason)
    assert live_threads() == []


def test_weights_edited_in_validation_which_the_twin_has_not_are_found():
    drive = Drive(0, 1)
    options = {"data": lambda: loader(24), "val_data": lambda: loader(8)}
    assert_identical(run(EditsInValidation, **options), run(EditsInValidation, drive, **options))
    assert [math.isnan(d) for d in drive.distances] == [False] * 3 + [True] * 4
    assert drive.twin.reason == "something changed the weights between two batches, but not those of the twin"


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_twin_follows_is_refused_before_the_first_step(name):
    refused, drive = CASES[name], Drive()
    with pytest.raises(NotSupported, match=REFUSED[name]):
        run(refused.module, drive, *refused.callbacks(), **refused.options)
    assert drive.distances == []
    assert live_threads() == []


def test_every_case_is_followed_lost_or_refused_and_at_least_27_are_followed():
    assert len(FOLLOWED) >= 80
    assert {*FOLLOWED} >= IN_CI
    assert len(IN_CI | OWN.keys()) >= 27
