"""The LightningModules that the cases train: each does one thing that a callback could disturb, or stumble over."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier, loader
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassPrecision, MulticlassRecall


class Everything(Classifier):
    """Dropout and BatchNorm."""

    def __init__(self):
        super().__init__(dropout=0.5, batch_norm=True)


# ---- optimisation


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
    """A generator and a discriminator, trained in turns by hand."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 1)))
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, FEATURES))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x = batch[0]
        of_net, of_generator = self.optimizers()
        ones, fake = torch.ones(len(x), 1), self.generator(torch.randn(len(x), 4))
        judge = F.binary_cross_entropy_with_logits
        for optimizer, loss in (
            (of_net, judge(self(x), ones) + judge(self(fake.detach()), 1 - ones)),
            (of_generator, judge(self(fake), ones)),
        ):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 1e-2), torch.optim.Adam(self.generator.parameters(), 1e-2)


class Lbfgs(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


class WarmUp(Classifier):
    """An ``optimizer_step`` of its own."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, (self.trainer.global_step + 1) / 4)
        optimizer.step(closure=optimizer_closure)


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


# ---- what a training_step does besides


class Busy(Classifier):
    """Reads and acts on all that Lightning offers to a training_step, and keeps state of its own."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.losses: list[float] = []
        self.recent = deque(maxlen=2)
        self._rng = np.random.default_rng(0)
        self.seen = 0
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.mean = MeanMetric()
        self.register_buffer("average", torch.zeros(FEATURES))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.average.mul_(0.9).add_(0.1 * x.mean(0))
        self.losses.append(loss.item())
        self.recent.append(self._rng.normal())
        self.seen += len(x)
        self.mean(loss)
        self.accuracy(logits, y)
        self.log_dict({"mean": self.mean, "accuracy": self.accuracy, "loss": loss}, on_step=True, on_epoch=True)
        self.log("lr", self.optimizers().param_groups[0]["lr"], prog_bar=True)
        self.log("last_lr", self.lr_schedulers().get_last_lr()[0])
        self.log("progress", self.trainer.global_step / self.trainer.max_epochs + self.current_epoch)
        self.logger.log_metrics({"direct": float(self.seen)}, step=self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["weight_decay"] += 1e-3
        self.trainer.strategy.barrier()
        self.print("")
        return {"loss": loss, "logits": logits.detach()}


class KeepsMetrics(Classifier):
    """Updates torchmetrics in a collection, and in containers where Lightning does not find them."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.collection = MetricCollection([MulticlassPrecision(CLASSES), MulticlassRecall(CLASSES)])
        self.hidden = {"mean": [MeanMetric()], "all": (MulticlassAccuracy(CLASSES),)}

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.collection(logits, y)
        self.hidden["mean"][0].update(loss.detach())
        self.hidden["all"][0].update(logits, y)
        self.log_dict(self.collection, on_step=False, on_epoch=True)
        self.log("hidden", self.hidden["mean"][0].compute())
        return loss


class WritesToTensorBoard(Classifier):
    """Writes to the logger's own writer."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        writer = self.logger.experiment
        writer.add_scalar("own/loss", loss.item(), self.global_step)
        writer.add_histogram("own/input", batch[0], self.global_step)
        writer.add_text("own/text", f"batch {batch_idx}", self.global_step)
        return loss


class WritesThroughTrainer(Classifier):
    """Keeps its count where ``self.trainer`` finds it: on the LightningModule itself."""

    count = 0

    def training_step(self, batch, batch_idx):
        self.trainer.lightning_module.count += 1
        self.log("count", float(self.count))
        return super().training_step(batch, batch_idx)


class EditsBatch(Classifier):
    def training_step(self, batch, batch_idx):
        batch[0].mul_(0.5).add_(1.0)
        return super().training_step(batch, batch_idx)


class EditsOwnCopy(Classifier):
    """What EditsBatch computes."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] * 0.5 + 1.0, batch[1]), batch_idx)


class NoisyTransfer(Classifier):
    """Augments on the device."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return x + 0.1 * torch.randn_like(x), y


class DrawsNumbers(Classifier):
    """Draws from all global generators, also in eval mode."""

    def training_step(self, batch, batch_idx):
        self.log("draws", torch.rand(1).item() + random.random() + np.random.rand())  # noqa: NPY002
        return super().training_step(batch, batch_idx)


class InputGradient(Classifier):
    """A penalty on the gradient in the input, so that the input requires grad and the step differentiates."""

    def training_step(self, batch, batch_idx):
        x, y = batch[0].clone().requires_grad_(), batch[1]
        logits = self(x)
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return F.cross_entropy(logits, y) + slope.square().mean()


class KeepsTensors(Classifier):
    """Keeps tensors with a graph, which cannot be deep-copied."""

    def training_step(self, batch, batch_idx):
        self.logits = self(batch[0])
        self.kept = {"loss": [F.cross_entropy(self.logits, batch[1])]}
        return self.kept["loss"][0]


class SetsModes(Everything):
    """Switches its net's mode in the step, as self-distillation does."""

    def training_step(self, batch, batch_idx):
        self.net.train()
        return super().training_step(batch, batch_idx)


class OnlyBatch(Classifier):
    def training_step(self, batch, **unused):
        return super().training_step(batch, 0)


class Skips(Classifier):
    """Returns None for a batch, which Lightning then leaves out."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class OnePart(Classifier):
    """Takes one part of a batch that several loaders give; any loader's in turn if they come one by one."""

    def training_step(self, batch, batch_idx, dataloader_idx=0):
        part = batch["labelled"] if isinstance(batch, dict) else batch[0] if isinstance(batch[0], (tuple, list)) else batch
        return super().training_step(part, batch_idx)


# ---- how a network is made


class Closure(Classifier):
    """A function attribute that holds on to the original module."""

    def __init__(self):
        super().__init__(batch_norm=True)
        self.encode = lambda x: self.net(x)

    def forward(self, x):
        return self.encode(x)


class MadeInSetup(Classifier):
    def __init__(self):
        super().__init__()
        self.net = None

    def setup(self, stage):
        self.net = self.net or Everything().net


class MadeInConfigureModel(MadeInSetup):
    def setup(self, stage):
        pass

    def configure_model(self):
        super().setup("fit")


class Tied(Classifier):
    def __init__(self):
        net = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES), nn.ReLU())
        net[2].weight = net[0].weight
        super().__init__(nn.Sequential(net, nn.Linear(FEATURES, CLASSES)))


class Checkpointed(Everything):
    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False)


class Tokens(Classifier):
    """An embedding that is renormalised in place whenever it is looked up and too long, or with sparse gradients."""

    def __init__(self, scale=1.0, **options):
        super().__init__(nn.Sequential(nn.Embedding(20, 8, **options), nn.Flatten(), nn.Linear(16, CLASSES)))
        self.net[0].weight.data.mul_(scale)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step(((x[:, :2].abs() * 6).long(), y), batch_idx)


class SparseTokens(Tokens):
    def __init__(self):
        super().__init__(sparse=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Recurrent(Classifier):
    """An LSTM with dropout between its layers."""

    def __init__(self):
        super().__init__(nn.Linear(4, CLASSES))
        self.lstm = nn.LSTM(2, 4, num_layers=2, batch_first=True, dropout=0.5)

    def forward(self, x):
        return self.net(self.lstm(x.reshape(len(x), 3, 2))[0][:, -1])


class OwnTensors(Classifier):
    """Makes tensors without a dtype, as the precision plugin's default dtype allows."""

    def forward(self, x):
        return self.net(x) @ torch.eye(CLASSES)


class CountsCalls(Classifier):
    def __init__(self):
        super().__init__(dropout=0.5)
        self.calls = {"forward": 0, "pre": 0, "backward": 0}
        self.net.register_forward_hook(lambda *_: self.count("forward"))
        self.net[0].register_forward_pre_hook(lambda *_: self.count("pre"))
        self.net[0].register_full_backward_hook(lambda *_: self.count("backward"))

    def count(self, kind):
        self.calls[kind] += 1


class Uncompiled(Classifier):
    """Without ``self.log``, which torch.compile does not take."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


def normalised(norm):
    return Classifier(nn.Sequential(norm(nn.Linear(FEATURES, 8)), nn.Tanh(), norm(nn.Linear(8, CLASSES))))


def compiled_in_place(name):
    module = Uncompiled(dropout=0.5, batch_norm=True)
    module.get_submodule(name).compile(backend="eager")
    return module


# ---- modules that make their loaders


class Tunable(Classifier):
    """Has a batch size and a learning rate that Lightning's tuner finds."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.batch_size, self.lr, self.made = 8, 1e-2, 0

    def train_dataloader(self):
        self.made += 1
        return loader(24, self.batch_size, shuffle=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)
