"""Modules that differ in how they are optimised."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier, loader
from torch import nn


class Manual(Classifier):
    """Two optimisers, a scheduler and clipping by hand."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        loss = super().training_step(batch, batch_idx)
        for optimizer in (first, second):
            optimizer.zero_grad()
        self.manual_backward(loss)
        self.untoggle_optimizer(first)
        self.clip_gradients(first, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        for optimizer in (first, second):
            optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self):
        first = torch.optim.SGD(self.net[0].parameters(), 0.1)
        second = torch.optim.Adam(self.net[4].parameters(), 1e-2)
        return [first, second], [torch.optim.lr_scheduler.ExponentialLR(first, 0.9)]


class Adversarial(Classifier):
    """A discriminator and a generator, trained in turns by hand."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 1)))
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, FEATURES))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x = batch[0]
        real, fake = torch.ones(len(x), 1), self.generator(torch.randn(len(x), 4))
        judge = F.binary_cross_entropy_with_logits
        first, second = self.optimizers()
        self._step(first, lambda: judge(self(x), real) + judge(self(fake.detach()), 1 - real))
        self._step(second, lambda: judge(self(fake), real))

    def _step(self, optimizer, loss):
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss())
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 1e-2), torch.optim.Adam(self.generator.parameters(), 1e-2)


def discriminator(module, batch):
    """An adapter: which of the losses is the prediction cannot be told from outside."""
    return module(batch[0]), torch.ones(len(batch[0]), 1), "bernoulli"


class Lbfgs(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


class OptimizerInBackward(Classifier):
    """Steps as soon as a gradient is there, and frees it."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.optimizer_of = {p: torch.optim.SGD([p], 0.1, momentum=0.9) for p in self.parameters()}
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(self.step)

    def step(self, parameter):
        self.optimizer_of[parameter].step()
        parameter.grad = None

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))

    def configure_optimizers(self):
        return None


class MeanTeacher(Classifier):
    """Follows its own weights with a second network, and trains a third by an optimiser that it hides."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.teacher, self.aside = Classifier().net.requires_grad_(False), nn.Linear(FEATURES, 1)
        self.hidden = torch.optim.Adam(self.aside.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            for follower, parameter in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                follower.lerp_(parameter, 0.1)
        self.hidden.zero_grad()
        self.aside(batch[0]).square().mean().backward()
        self.hidden.step()
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.1)


class MeanTeacherOverPairs(Classifier):
    """Follows its own weights by a function that closes over a list of pairs of parameters, and is pulled to it."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        pairs = list(zip(self.teacher.parameters(), self.net.parameters(), strict=True))

        @torch.no_grad()
        def follow():
            for follower, parameter in pairs:
                follower.lerp_(parameter, 0.1)

        self.follow = follow

    def training_step(self, batch, batch_idx):
        self.follow()
        with torch.no_grad():
            taught = self.teacher(batch[0]).softmax(1)
        return super().training_step(batch, batch_idx) + (self(batch[0]).softmax(1) - taught).square().mean()


@torch.library.custom_op("lightning_info_tests::decay", mutates_args={"weight"})
def decay(by: float, weight: torch.Tensor) -> None:
    weight.mul_(by)


class OperatorLater(Classifier):
    """Writes to its weights by an operator from the second epoch on."""

    def __init__(self, write):
        super().__init__()
        self.write = write

    def training_step(self, batch, batch_idx):
        if self.current_epoch > 0:
            with torch.no_grad():
                self.write(self.net[0].weight)
        return super().training_step(batch, batch_idx)


OPERATORS = {
    "a custom operator": lambda weight: decay(weight=weight, by=0.99),
    "an overload of torch.ops": lambda weight: torch.ops.aten.mul_.Tensor(weight, torch.tensor(0.99)),
    "torch.ops": lambda weight: torch.ops.aten.mul_(weight, 0.99),
    "torch._foreach_mul_": lambda weight: torch._foreach_mul_([weight], 0.99),
    ".data": lambda weight: weight.data.mul_(0.99),
    "torch.nn.init": lambda weight: nn.init.normal_(weight, 0.0, 0.1),
}


class ResetsLater(Classifier):
    """Resets a layer at the start of the second epoch."""

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 0:
            self.net[0].reset_parameters()
        return super().training_step(batch, batch_idx)


class ClampsLater(Classifier):
    """Keeps its weights small from the second epoch on."""

    def training_step(self, batch, batch_idx):
        if self.current_epoch > 0:
            with torch.no_grad():
                self.net[0].weight.clamp_(-0.3, 0.3)
        return super().training_step(batch, batch_idx)


class WarmUp(Classifier):
    """An ``optimizer_step`` and a ``configure_gradient_clipping`` of its own."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, (self.trainer.global_step + 1) / 4)
        optimizer.step(closure=optimizer_closure)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, 0.1 / (1 + self.current_epoch), "norm")


class OnPlateau(Classifier):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class FrozenPart(Classifier):
    """A BatchNorm that stays in eval mode, without gradients, while the rest trains."""

    def __init__(self):
        super().__init__(batch_norm=True, dropout=0.5)
        self.net[1].requires_grad_(False)

    def on_train_epoch_start(self):
        self.net[1].eval()


class Backbone(Classifier):
    """In the parts that ``BackboneFinetuning`` asks for."""

    def __init__(self):
        super().__init__(nn.Linear(8, CLASSES))
        self.backbone = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU())

    def forward(self, x):
        return self.net(self.backbone(x))

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 1e-2)


class Tunable(Classifier):
    """Has a batch size and a learning rate that Lightning's tuner finds."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.batch_size, self.lr, self.made = 8, 1e-2, 0

    def train_dataloader(self):
        self.made += 1
        return loader(24, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return loader(16, self.batch_size)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)
