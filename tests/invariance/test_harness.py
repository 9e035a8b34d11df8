"""The proof that the harness can fail: whatever a callback disturbs is caught, and named."""

import random
import re
from functools import cache, partial

import numpy as np
import pytest
import torch
from harness import assert_identical, differences, run
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from models import Classifier, loader
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection

from invariance.datasets import OwnGenerators
from invariance.optimisation import Manual
from invariance.steps import WritesToTensorBoard


class Saboteur(Callback):
    """Calls a function once, before the step of the fourth batch."""

    def __init__(self, disturb):
        self.disturb, self.batches = disturb, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches += 1
        if self.batches == 4:
            self.disturb(trainer, pl_module, batch)


def leave_a_gradient(trainer, module, batch):
    module.net[0].bias.grad = torch.ones(8)


def nudge_a_weight(trainer, module, batch):
    module.net[4].bias.data[0] += 1e-5


def run_in_train_mode(trainer, module, batch):
    with torch.no_grad(), torch.random.fork_rng():
        module(batch[0])


def change_the_learning_rate(trainer, module, batch):
    trainer.optimizers[0].param_groups[0]["lr"] *= 1.0001


def change_the_optimiser_state(trainer, module, batch):
    trainer.optimizers[0].state[module.net[0].weight]["exp_avg"][0, 0] += 1e-7


def advance_the_scheduler(trainer, module, batch):
    trainer.lr_scheduler_configs[0].scheduler.last_epoch += 1


def log_another_value(trainer, module, batch):
    trainer.logger.log_metrics({"train_loss": 0.0}, step=3)


def change_what_others_monitor(trainer, module, batch):
    trainer.callback_metrics["val_loss"] = torch.zeros(())


def count_an_update(trainer, module, batch):
    module.mean._update_count += 1


def draw_augmentation(trainer, module, batch):
    trainer.train_dataloader.dataset.numpy.normal()


SABOTAGE = {
    "torch.rand": (lambda *_: torch.rand(1), "rng/torch"),
    "numpy": (lambda *_: np.random.rand(), "rng/numpy"),  # noqa: NPY002
    "random": (lambda *_: random.random(), "rng/python"),
    "eval": (lambda trainer, module, batch: module.eval(), "training/net.3"),
    "a submodule trained": (lambda trainer, module, batch: module.frozen.train(), "training/frozen"),
    "grad": (leave_a_gradient, "grad/net.0.bias"),
    "train-mode forward": (run_in_train_mode, "buffer/net.1.running_mean"),
    "weight": (nudge_a_weight, "weight/net.4.bias", "loss/training_step", "metric/val_loss", "checkpoint/state_dict"),
    "requires_grad": (lambda trainer, module, batch: module.net[0].requires_grad_(False), "requires_grad/net.0.bias"),
    "learning rate": (change_the_learning_rate, "optimizer/0"),
    "optimiser state": (change_the_optimiser_state, "optimizer/0"),
    "scheduler": (advance_the_scheduler, "scheduler/0"),
    "logged value": (log_another_value, "metric/train_loss"),
    "batch": (lambda trainer, module, batch: batch[0].mul_(2.0), "batch/tensors"),
    "attribute": (lambda trainer, module, batch: module.seen.append(1), "attribute/.seen"),
    "hyperparameter": (lambda trainer, module, batch: module.hparams.update(size=1), "attribute/._hparams"),
    "metric": (lambda trainer, module, batch: module.mean.update(1.0), "attribute/mean.mean_value"),
    "metric's count": (count_an_update, "attribute/mean._update_count"),
    "metric in a collection": (lambda trainer, module, batch: module.all.update(1.0), "attribute/all.a.mean_value"),
    "metric in a container": (lambda trainer, module, batch: module.hidden["of"][0].update(1.0), "attribute/.hidden"),
    "module in a container": (lambda trainer, module, batch: module.nets[0].bias.data.add_(1), "attribute/.nets"),
    "generator of the module": (lambda trainer, module, batch: module.rng.random(), "attribute/.rng"),
    "generator of the data": (draw_augmentation, "attribute/dataset 0.numpy"),
    "monitored value": (change_what_others_monitor, "metric/callback_metrics/val_loss"),
    "end of training": (lambda trainer, module, batch: setattr(trainer, "should_stop", True), "progress"),
    "hook": (lambda trainer, module, batch: module.net.register_forward_hook(lambda *_: None), "hooks/net"),
}


class Victim(Classifier):
    def __init__(self):
        super().__init__(dropout=0.5, batch_norm=True)
        self.save_hyperparameters({"size": 0})
        self.seen = []
        self.rng = np.random.default_rng(0)
        self.mean, self.all = MeanMetric(), MetricCollection({"a": MeanMetric()})
        self.hidden, self.nets = {"of": (MeanMetric(),)}, [nn.Linear(1, 1)]
        self.frozen = nn.Linear(1, 1).requires_grad_(False)

    def on_train_epoch_start(self):
        self.frozen.eval()

    def on_train_epoch_end(self):
        self.trainer.save_checkpoint("now.ckpt")


def train(*callbacks, module=Victim):
    return run(module, *callbacks, data=lambda: DataLoader(OwnGenerators(), 8), val_data=lambda: loader(8))


@cache
def plain():
    return train()


@pytest.mark.parametrize("kind", SABOTAGE)
def test_the_harness_names_what_a_saboteur_disturbs(kind):
    disturb, *names = SABOTAGE[kind]
    disturbed = train(Saboteur(disturb))
    assert {*names} <= {*differences(plain(), disturbed)}
    with pytest.raises(AssertionError, match=re.escape(names[0])):
        assert_identical(plain(), disturbed)


def test_the_harness_sees_every_loss_of_manual_optimisation():
    assert "loss/backward" in differences(train(module=Manual), train(Saboteur(nudge_a_weight), module=Manual))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mode/grad", partial(torch.set_grad_enabled, False)),
        ("mode/dtype", partial(torch.set_default_dtype, torch.float64)),
        ("mode/kernels", partial(torch.use_deterministic_algorithms, True)),
    ],
)
def test_the_harness_names_a_global_mode_left_changed_and_puts_it_back(name, change):
    class AtTheEnd(Callback):
        def on_train_end(self, trainer, pl_module):
            change()

    assert differences(plain(), train(AtTheEnd())) == [name]
    assert differences(plain(), train()) == []


def test_the_harness_finds_nothing_in_metrics_that_a_callback_adds():
    class Logs(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.logger.log_metrics({"other": 1.0}, step=batch_idx)
            trainer.callback_metrics["other"] = torch.ones(())

    assert differences(plain(), train(Logs())) == []


def test_the_harness_reads_what_a_step_writes_to_tensorboard():
    writes = partial(run, WritesToTensorBoard, loggers=lambda: [TensorBoardLogger(".", name="")])

    class Writes(Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.logger.experiment.add_scalar("own/loss", 1.0, 6)

    names = {"metric/tensorboard/own/loss", "metric/tensorboard/own/input", "metric/tensorboard/own/text/text_summary"}
    untouched = writes()
    assert names <= untouched.keys()
    assert differences(untouched, writes(Writes())) == ["metric/tensorboard/own/loss"]
