"""Modules that differ in what their ``training_step`` does besides the loss."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassPrecision, MulticlassRecall

from invariance.networks import Everything


class Busy(Classifier):
    """Reads and acts on all that Lightning offers to a training_step, and keeps state of its own."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.save_hyperparameters({"steps": 0})
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
        self.hparams.steps += 1
        self.mean(loss)
        self.accuracy(logits, y)
        self.log_dict({"mean": self.mean, "accuracy": self.accuracy, "loss": loss}, on_step=True, on_epoch=True)
        self.log("lr", self.optimizers().param_groups[0]["lr"], prog_bar=True)
        self.log("last_lr", self.lr_schedulers().get_last_lr()[0])
        self.log("progress", self.trainer.global_step / self.trainer.estimated_stepping_batches + self.current_epoch)
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


class LogsMetrics(Classifier):
    """Logs torchmetrics as objects, in training and in the sanity check before it."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.train_accuracy, self.val_accuracy = MulticlassAccuracy(CLASSES), MulticlassAccuracy(CLASSES)

    def training_step(self, batch, batch_idx):
        self.train_accuracy(self(batch[0]), batch[1])
        self.log("train_accuracy", self.train_accuracy, on_step=True, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.val_accuracy.update(self(batch[0]), batch[1])
        self.log("val_accuracy", self.val_accuracy)


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


class StopsTheRun(Classifier):
    def training_step(self, batch, batch_idx):
        self.trainer.should_stop = self.trainer.global_step >= 4
        return super().training_step(batch, batch_idx)


class EndsEpochs(Classifier):
    """Ends every epoch before its last batch."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 2 else None


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


class OwnGenerators(Classifier):
    """Draws from generators that it holds."""

    def __init__(self):
        super().__init__()
        self.torch, self.numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.training:
            x = x + torch.randn(x.shape, generator=self.torch) + self.numpy.normal()
        return super().training_step((x, y), batch_idx)


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
    """Takes one part of a batch that several loaders give."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch["labelled"] if isinstance(batch, dict) else batch[0], batch_idx)
