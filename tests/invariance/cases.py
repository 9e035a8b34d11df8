"""The configurations in which training must not notice the callbacks."""

from __future__ import annotations

from functools import partial

import torch
from lightning.pytorch import Callback
from lightning.pytorch import callbacks as builtin
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from models import Classifier, data, loader
from torch import nn
from torch.utils.data import DataLoader

from invariance import networks, optimisation, steps
from invariance.datasets import Epochs, OwnGenerators, Stream, noisy
from invariance.judge import Case


def dropout():
    return Classifier(dropout=0.5)


def case(module, callbacks=list, measure=None, **options):
    return Case(module, callbacks, measure or {}, options)


def validated(module=networks.Everything, callbacks=list, **options):
    return case(module, callbacks, val_data=lambda: loader(16), **options)


def beside(name, *args, module=networks.Everything, **options):
    """Beside one of Lightning's own callbacks, with a third epoch and validation for those that act on them."""
    return validated(module, lambda: [getattr(builtin, name)(*args)], **{"max_epochs": 3, **options})


def combined(mode, loaders=lambda: {"labelled": loader(24), "other": loader(40)}, measure=None):
    """Several loaders, of which the step takes one."""
    return case(steps.OnePart, measure=measure, data=lambda: CombinedLoader(loaders(), mode))


# ---- ways to fit


def twice(make_trainer, module, *data):
    trainer = make_trainer()
    trainer.fit(module, *data)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, *data)


def with_two_trainers(make_trainer, module, *data):
    make_trainer().fit(module, *data)
    make_trainer(max_epochs=1).fit(module, *data)


def resumed(make_trainer, module, *data):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, *data)
    trainer.save_checkpoint("first.ckpt")
    make_trainer(max_epochs=3).fit(module, *data, ckpt_path="first.ckpt")


def between_evaluations(make_trainer, module, data, val_data):
    trainer = make_trainer()
    trainer.validate(module, val_data, verbose=False)
    trainer.fit(module, data, val_data)
    trainer.validate(module, val_data, verbose=False)


def after_tuning(make_trainer, module, *data):
    trainer = make_trainer()
    Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=1)
    Tuner(trainer).lr_find(module, num_training=18, early_stop_threshold=None)
    trainer.fit(module)


class Draws(Callback):
    """Draws random numbers of its own, and with them changes the batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        batch[0].mul_(torch.rand(1))


# ---- the cases, by what they are about

OPTIMISATION = {
    "dropout, Adam, scheduler": case(dropout),
    "BatchNorm": case(networks.Everything),
    "BatchNorm, accumulation": case(networks.Everything, accumulate_grad_batches=2),
    "BatchNorm, accumulation, uneven last batch": case(
        networks.Everything, data=lambda: loader(28), accumulate_grad_batches=3
    ),
    "frozen BatchNorm": case(optimisation.FrozenPart),
    "gradients clipped by norm": case(Classifier, gradient_clip_val=0.05),
    "gradients clipped by value": case(Classifier, gradient_clip_val=0.05, gradient_clip_algorithm="value"),
    "bf16-mixed": case(dropout, precision="bf16-mixed"),
    "bf16-true": case(dropout, precision="bf16-true"),
    "64-true": case(dropout, precision="64-true"),
    "bf16-true, tensors of the default dtype": case(networks.OwnTensors, precision="bf16-true"),
    "64-true, tensors of the default dtype": case(networks.OwnTensors, precision="64-true"),
    "manual optimisation, two optimisers": case(optimisation.Manual),
    "manual optimisation, two players": case(optimisation.Adversarial, measure={"adapter": optimisation.discriminator}),
    "optimiser in the backward pass": case(optimisation.OptimizerInBackward),
    "parameters changed in training_step": case(optimisation.MeanTeacher),
    "parameters reset in training_step, after an epoch": case(optimisation.ResetsLater),
    "parameters clamped in training_step, after an epoch": case(optimisation.ClampsLater),
    "mean teacher over a list of pairs": case(optimisation.MeanTeacherOverPairs),
    **{
        f"parameters written by {name}, after an epoch": case(partial(optimisation.OperatorLater, write))
        for name, write in optimisation.OPERATORS.items()
    },
    "LBFGS": case(optimisation.Lbfgs),
    "own optimizer_step and clipping": case(optimisation.WarmUp),
    "ReduceLROnPlateau on a validation metric": validated(optimisation.OnPlateau, max_epochs=4),
    "deterministic=True": case(networks.Everything, deterministic=True),
    "detect_anomaly=True": case(Classifier, detect_anomaly=True),
}

STEPS = {
    "busy training_step": case(steps.Busy),
    "busy training_step, logged every 4 steps": case(steps.Busy, log_every_n_steps=4),
    "torchmetrics in containers": case(steps.KeepsMetrics),
    "torchmetrics logged as objects, sanity check": validated(steps.LogsMetrics, num_sanity_val_steps=2),
    "TensorBoard's writer used": case(steps.WritesToTensorBoard, loggers=lambda: [TensorBoardLogger(".", name="")]),
    "module reached through the trainer": case(steps.WritesThroughTrainer),
    "run stopped in training_step": case(steps.StopsTheRun),
    "epochs ended by on_train_batch_start": case(steps.EndsEpochs),
    "batch edited in place": case(steps.EditsBatch),
    "noise in on_after_batch_transfer": case(steps.NoisyTransfer),
    "random numbers in training_step": case(steps.DrawsNumbers),
    "generators held by the module": case(steps.OwnGenerators),
    "gradient in the input": case(steps.InputGradient),
    "tensors with a graph kept": case(steps.KeepsTensors),
    "train mode set in training_step": case(steps.SetsModes),
    "training_step without batch_idx": case(lambda: steps.OnlyBatch(dropout=0.5)),
    "batch skipped": case(lambda: steps.Skips(dropout=0.5)),
}

NETWORKS = {
    "layers made in setup": case(networks.MadeInSetup),
    "layers made in configure_model": case(networks.MadeInConfigureModel),
    "nested LightningModule": case(lambda: Classifier(networks.Everything())),
    "hooks on modules and parameters": case(networks.CountsCalls),
    "forward hook and pre-hook that compute": case(networks.ComputesInHooks),
    "head on features that a hook keeps": case(networks.HeadOnFeatures),
    "hooks that write down what they see": case(networks.Watched),
    "weight_norm, old": case(lambda: networks.normalised(nn.utils.weight_norm)),
    "weight_norm, parametrised": case(lambda: networks.normalised(nn.utils.parametrizations.weight_norm)),
    "spectral_norm": case(lambda: networks.normalised(nn.utils.spectral_norm)),
    "tied weights": case(networks.Tied),
    "convolutions, channels_last": case(networks.Convolutional),
    "LSTM": case(networks.Recurrent),
    "embedding with max_norm": case(lambda: networks.Tokens(max_norm=0.05)),
    "embedding that reaches max_norm later": case(lambda: networks.Tokens(1e-3, max_norm=0.05)),
    "embedding with sparse gradients": case(networks.SparseTokens),
    "gradient checkpointing": case(networks.Checkpointed),
    "functional_call": case(networks.Functional),
    "compiled module": case(lambda: torch.compile(networks.Uncompiled(dropout=0.5), backend="eager")),
    "compiled net": case(lambda: networks.Uncompiled(torch.compile(dropout().net, backend="eager"))),
    "compiled net, aot_eager": case(lambda: networks.Uncompiled(torch.compile(dropout().net, backend="aot_eager"))),
    "module compiled in place": case(lambda: networks.compiled_in_place("")),
    "net compiled in place": case(lambda: networks.compiled_in_place("net")),
}

LOOPS = {
    "max_steps": case(dropout, max_steps=4, max_epochs=-1),
    "max_time, not reached": case(dropout, max_time="00:01:00:00"),
    "limit_train_batches": case(dropout, limit_train_batches=2),
    "overfit_batches": case(dropout, data=lambda: loader(24, shuffle=True), overfit_batches=2),
    "fast_dev_run": validated(fast_dev_run=True),
    "fast_dev_run of 4 batches": validated(fast_dev_run=4),
    "validation every 2 batches": validated(val_check_interval=2),
    "validation every third of the epoch": validated(val_check_interval=0.34),
    "validation every second epoch": validated(check_val_every_n_epoch=2, max_epochs=4),
    "sanity check": validated(num_sanity_val_steps=2),
    "inference_mode=False": validated(inference_mode=False),
    "fit between two validations": validated(fit=between_evaluations),
    "two fits of one trainer": case(networks.Everything, fit=twice),
    "two trainers, the same callbacks": case(networks.Everything, fit=with_two_trainers),
    "resumed from a checkpoint": case(dropout, fit=resumed),
    "Tuner, then fit": case(optimisation.Tunable, data=lambda: None, fit=after_tuning, max_epochs=6),
}

DATA = {
    "shuffled": case(dropout, data=lambda: loader(24, shuffle=True)),
    "random augmentation": case(Classifier, data=noisy),
    "random augmentation, 2 workers": case(dropout, data=lambda: noisy(num_workers=2)),
    "random augmentation, 2 persistent workers": case(
        dropout, data=lambda: noisy(num_workers=2, persistent_workers=True)
    ),
    "data set with generators of its own": case(dropout, data=lambda: DataLoader(OwnGenerators(), 8)),
    "IterableDataset": case(dropout, data=lambda: DataLoader(Stream(), 8)),
    "IterableDataset, accumulation": case(dropout, data=lambda: DataLoader(Stream(), 8), accumulate_grad_batches=3),
    "IterableDataset, 2 workers": case(dropout, data=lambda: DataLoader(Stream(), 8, num_workers=2)),
    "CombinedLoader, max_size_cycle": combined("max_size_cycle"),
    "CombinedLoader, max_size_cycle, a tuple": combined("max_size_cycle", lambda: (loader(24), loader(40))),
    "CombinedLoader, max_size, one part ends early": combined(
        "max_size", lambda: {"labelled": loader(40), "other": loader(24)}
    ),
    "CombinedLoader, min_size": combined("min_size"),
    "CombinedLoader, the second part smaller": combined("min_size", lambda: [loader(24), loader(24, 4)]),
    "CombinedLoader, the first part smaller": combined(
        "min_size",
        lambda: {"other": loader(24, 4), "labelled": loader(24)},
        measure={"reference": data(12), "adapter": lambda module, batch: (module(batch[0]), batch[1])},
    ),
    "loaders made anew every epoch, datamodule": case(
        dropout, data=Epochs, reload_dataloaders_every_n_epochs=1, max_epochs=3
    ),
    "loaders made anew every epoch, module": case(
        optimisation.Tunable, data=lambda: None, reload_dataloaders_every_n_epochs=1, max_epochs=3
    ),
}

BESIDE = {
    "a callback that changes batches by random numbers": case(dropout, lambda: [Draws()]),
    "LearningRateMonitor": beside("LearningRateMonitor", "step"),
    "GradientAccumulationScheduler": beside("GradientAccumulationScheduler", {0: 1, 1: 2}),
    "EarlyStopping": beside("EarlyStopping", "val_loss", 0.0, 1, False, "max", max_epochs=6),
    "Timer": beside("Timer"),
    "ModelCheckpoint": validated(
        callbacks=lambda: [builtin.ModelCheckpoint(monitor="val_loss", save_top_k=2, save_last=True)],
        enable_checkpointing=True,
    ),
    "ModelPruning": beside("ModelPruning", "l1_unstructured"),
    "BackboneFinetuning": beside("BackboneFinetuning", 1, module=optimisation.Backbone),
    "StochasticWeightAveraging": beside("StochasticWeightAveraging", 1e-2, 1, 1),
    **{name: beside(name) for name in ("WeightAveraging", "EMAWeightAveraging") if hasattr(builtin, name)},
    "BatchSizeFinder": case(
        optimisation.Tunable, lambda: [builtin.BatchSizeFinder(max_trials=2, steps_per_trial=1)], data=lambda: None
    ),
    "LearningRateFinder": case(
        optimisation.Tunable,
        lambda: [builtin.LearningRateFinder(num_training_steps=18, early_stop_threshold=None)],
        data=lambda: None,
        max_epochs=6,
    ),
}

GROUPS = {
    "Optimisation and precision": OPTIMISATION,
    "What training_step does": STEPS,
    "Networks": NETWORKS,
    "Loops": LOOPS,
    "Data": DATA,
    "Beside other callbacks": BESIDE,
}
CASES = {name: case for group in GROUPS.values() for name, case in group.items()}

IN_CI = {
    "dropout, Adam, scheduler",
    "BatchNorm, accumulation, uneven last batch",
    "bf16-mixed",
    "manual optimisation, two optimisers",
    "parameters changed in training_step",
    "busy training_step",
    "TensorBoard's writer used",
    "batch edited in place",
    "noise in on_after_batch_transfer",
    "net compiled in place",
    "validation every 2 batches",
    "two fits of one trainer",
    "resumed from a checkpoint",
    "random augmentation",
    "data set with generators of its own",
    "IterableDataset, accumulation",
    "StochasticWeightAveraging",
}
"""Judged by every run of the tests; the others are marked slow, and all of them make docs/bit_identity.md."""
