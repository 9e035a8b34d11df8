"""What the callbacks read from a Trainer, for a module that is not being trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lightning_info.replica.stand_in_trainer import NullObject


class OfflineRun:
    """Replaces a Trainer for a callback: one process, no logger, no optimiser, a given step.

    Args:
        module: The module that is measured.
        loader: Loader of the samples; its length and that of its data set give the size of the training set.
        callbacks: All callbacks that are measured together.
        device: Device of the module.
    """

    accumulate_grad_batches = 1
    barebones = fast_dev_run = is_last_batch = sanity_checking = False
    is_global_zero = True
    world_size = 1
    datamodule = logger = None

    def __init__(self, module: nn.Module, loader: Any, callbacks: list[Any], device: torch.device) -> None:
        self.lightning_module = self.model = module
        self.train_dataloader, self.callbacks = loader, callbacks
        self.num_training_batches = len(loader)
        self.callback_metrics: dict[str, Any] = {}
        self.loggers: list[Any] = []
        self.optimizers: list[Any] = []
        self.lr_scheduler_configs: list[Any] = []
        self.strategy = SimpleNamespace(root_device=device)
        self.precision_plugin = SimpleNamespace(convert_input=lambda batch: batch)
        self.global_step = self.current_epoch = 0

    @property
    def fit_loop(self) -> Any:
        """Holds the optimiser steps taken."""
        return SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=self.global_step))

    def __getattr__(self, name: str) -> Any:
        """Return whatever else a ``training_step`` asks its trainer for."""
        if name.startswith("__"):
            raise AttributeError(name)
        return NullObject()
