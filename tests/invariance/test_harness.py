"""The proof that the harness can fail: whatever a callback disturbs is caught, and named."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from harness import assert_identical, differences, run
from lightning.pytorch import Callback
from models import Classifier
from torch import nn


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
    module.net[4].bias.data[0] += 1e-7


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


SABOTAGE = {
    "torch.rand": (lambda *_: torch.rand(1), "rng/torch"),
    "numpy": (lambda *_: np.random.rand(), "rng/numpy"),  # noqa: NPY002
    "random": (lambda *_: random.random(), "rng/python"),
    "eval": (lambda trainer, module, batch: module.eval(), "training/net.3"),
    "a submodule trained": (lambda trainer, module, batch: module.frozen.train(), "training/frozen"),
    "grad": (leave_a_gradient, "grad/net.0.bias"),
    "train-mode forward": (run_in_train_mode, "buffer/net.1.running_mean"),
    "weight": (nudge_a_weight, "weight/net.4.bias"),
    "weight, so the loss": (nudge_a_weight, "loss/training_step"),
    "requires_grad": (lambda trainer, module, batch: module.net[0].requires_grad_(False), "requires_grad/net.0.bias"),
    "learning rate": (change_the_learning_rate, "optimizer/0"),
    "optimiser state": (change_the_optimiser_state, "optimizer/0"),
    "scheduler": (advance_the_scheduler, "scheduler/0"),
    "logged value": (log_another_value, "metric/train_loss"),
    "batch": (lambda trainer, module, batch: batch[0].mul_(2.0), "batch/tensors"),
    "attribute": (lambda trainer, module, batch: module.seen.append(1), "attribute/.seen"),
    "hook": (lambda trainer, module, batch: module.net.register_forward_hook(lambda *_: None), "hooks/net"),
}


class Victim(Classifier):
    def __init__(self):
        super().__init__(dropout=0.5, batch_norm=True)
        self.seen = []
        self.frozen = nn.Linear(1, 1).requires_grad_(False)

    def on_train_epoch_start(self):
        self.frozen.eval()


@pytest.mark.parametrize("kind", SABOTAGE)
def test_the_harness_names_what_a_saboteur_disturbs(kind):
    disturb, name = SABOTAGE[kind]
    plain, disturbed = run(Victim), run(Victim, Saboteur(disturb))
    assert name in differences(plain, disturbed)
    with pytest.raises(AssertionError, match=name):
        assert_identical(plain, disturbed)


@pytest.mark.parametrize(
    ("name", "change", "undo"),
    [
        ("mode/grad", partial(torch.set_grad_enabled, False), partial(torch.set_grad_enabled, True)),
        (
            "mode/dtype",
            partial(torch.set_default_dtype, torch.float64),
            partial(torch.set_default_dtype, torch.float32),
        ),
    ],
)
def test_the_harness_names_a_global_mode_left_changed(name, change, undo):
    class AtTheEnd(Callback):
        def on_train_end(self, trainer, pl_module):
            change()

    try:
        disturbed = run(Victim, AtTheEnd())
    finally:
        undo()
    assert differences(run(Victim), disturbed) == [name]


def test_the_harness_finds_nothing_in_a_repeated_run_or_in_metrics_that_a_callback_adds():
    class Logs(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.logger.log_metrics({"other": 1.0}, step=batch_idx)

    assert differences(run(Victim), run(Victim)) == []
    assert differences(run(Victim), run(Victim, Logs())) == []
