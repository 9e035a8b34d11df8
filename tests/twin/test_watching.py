"""A callback of the user's own is let in, and every call of its hooks is looked at."""

import math

import pytest
import torch
from harness import assert_identical, run
from lightning.pytorch import Callback
from lightning.pytorch import callbacks as builtin
from models import Classifier, loader, trainer
from twin.driver import Drive, live_threads

from lightning_info import StabilityCallback
from lightning_info.twin.refusals import HOOKS, refuse_callback, watched_hooks


class Momentum(Classifier):
    temperature = 1.0

    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def training_step(self, batch, batch_idx):
        return self.scale * super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def weights(module, *_):
    module.net[0].weight.data.mul_(0.5)


def gradient(module, *_):
    module.net[0].weight.grad.data.clamp_(-1e-3, 1e-3)


def no_gradient(module, *_):
    module.net[0].bias.grad = None


def rate(module, *_):
    module.optimizers().param_groups[0]["lr"] *= 0.5


def velocity(module, *_):
    for state in module.optimizers().optimizer.state.values():
        state["momentum_buffer"].zero_()


def batch(module, batch, *_):
    batch[0].mul_(2.0)


def order(module, batch, *_):
    batch[0].copy_(batch[0].flip(0))


def loss(module, loss):
    loss.data.mul_(2.0)


def draw(module, *_):
    torch.rand(1)


def attribute(module, *_):
    module.scale = 0.5 * module.scale


def hook(module, *_):
    module.net[0].register_forward_hook(lambda part, inputs, output: 2 * output)


CHANGES = [
    ("on_train_batch_start", weights, "the weights"),
    ("on_train_batch_start", batch, "the batch"),
    ("on_train_batch_start", order, "the batch"),
    ("on_before_zero_grad", weights, "the weights"),
    ("on_before_backward", loss, "the loss"),
    ("on_before_backward", draw, "random numbers within a step"),
    ("on_after_backward", gradient, "the gradients"),
    ("on_after_backward", no_gradient, "the gradients"),
    ("on_before_optimizer_step", rate, "the optimisers"),
    ("on_train_batch_end", velocity, "the optimisers"),
    ("on_train_batch_end", weights, "the weights"),
    ("on_train_epoch_start", attribute, "the module's attribute 'scale'"),
    ("on_validation_end", hook, "the hooks of net.0 (_forward_hooks)"),
]  # fmt: skip


def calling(name, function):
    """A callback of the user's that calls a function in one hook, from the second step on."""

    def at(self, trainer, pl_module, *args):
        if trainer.global_step > 0:
            function(pl_module, *args)

    return type("Own", (Callback,), {name: at})()


@pytest.mark.parametrize(("name", "function", "what"), CHANGES)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_it_changes_ends_the_twin_and_is_named(name, function, what, is_first):
    drive = Drive(0, 1)
    callbacks = [calling(name, function), drive] if is_first else [drive, calling(name, function)]
    options = {"data": lambda: loader(24), "val_data": lambda: loader(8)}
    plain = run(Momentum, calling(name, function), **options)
    assert_identical(plain, run(Momentum, *callbacks, **options))
    assert drive.twin.reason.startswith(f"Own.{name} changed {what}, which the twin does not follow; remove Own or")
    assert not math.isnan(drive.distances[0])
    assert math.isnan(drive.distances[-1])
    assert all(name not in vars(callback) for callback in callbacks)
    assert live_threads() == []


@pytest.mark.parametrize(("name", "function", "what"), [("on_train_epoch_end", weights, "the weights"),
                                                         ("on_validation_end", rate, "the optimisers")])  # fmt: skip
def test_what_it_leaves_changed_between_two_steps_ends_the_twin(name, function, what):
    drive = Drive(0, 1)
    trainer(drive, calling(name, function)).fit(Momentum(), loader(24), loader(8))
    assert drive.twin.reason == f"something changed {what} between two batches, but not those of the twin"


class Average(Callback):
    """Keeps a running mean of the weights, and validates with it; reads and logs all there is; draws between steps."""

    def on_train_start(self, trainer, pl_module):
        self.mean = [p.detach().clone() for p in pl_module.parameters()]

    def on_after_backward(self, trainer, pl_module):
        pl_module.log("norm", torch.stack([p.grad.norm() for p in pl_module.parameters()]).norm())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.rand(3)
        for mean, p in zip(self.mean, pl_module.parameters(), strict=True):
            mean.lerp_(p.detach(), 0.1)

    def on_validation_epoch_start(self, trainer, pl_module):
        self._exchange(pl_module)

    def on_validation_epoch_end(self, trainer, pl_module):
        self._exchange(pl_module)

    def _exchange(self, pl_module):
        for mean, p in zip(self.mean, pl_module.parameters(), strict=True):
            kept = p.detach().clone()
            p.data.copy_(mean)
            mean.copy_(kept)


def test_one_that_only_watches_is_let_in_for_the_whole_run():
    drive, own = Drive(), Average()
    options = {"data": lambda: loader(24), "val_data": lambda: loader(8)}
    assert_identical(run(Momentum, Average(), **options), run(Momentum, drive, own, **options))
    assert drive.twin.reason is None
    assert set(drive.distances) == {0.0}
    assert drive.twin.first_difference_step is None
    assert not set(vars(own)) & set(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_of_training_is_watched(hook):
    own = type("Own", (builtin.EarlyStopping,), {hook: lambda *_: None})("loss")
    assert watched_hooks(own) == [hook]
    assert refuse_callback(own) is None


def test_a_hook_set_on_one_object_is_watched_and_put_back_with_several_twins():
    function = lambda *_: None  # noqa: E731
    own = builtin.LambdaCallback(on_after_backward=function, on_fit_start=lambda *_: None)
    assert watched_hooks(own) == ["on_after_backward"]
    ours = StabilityCallback(num_twins=2, num_samples=8, every_n_train_steps=4, on_error="raise", summary=False)
    trainer(ours, own, max_epochs=1).fit(Classifier(), loader())
    assert [twin.reason for twin in ours.twins] == [None, None]
    assert vars(own)["on_after_backward"] is function
    assert "LambdaCallback.on_after_backward could change what is trained" in ours.report()


class Unreadable:
    def __repr__(self):
        raise RuntimeError("not to be read")


def test_one_that_cannot_be_watched_ends_the_twin_not_the_run():
    class Keeps(Momentum):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.param_groups[0]["note"] = Unreadable()
            return optimizer

    drive, own = Drive(0, 1), calling("on_after_backward", lambda *_: None)
    fitted = trainer(drive, own, max_epochs=1)
    fitted.fit(Keeps(), loader(24))
    assert fitted.global_step == 3
    assert "not to be read" in drive.twin.reason
