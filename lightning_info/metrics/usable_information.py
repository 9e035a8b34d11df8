"""Usable information as a torchmetrics ``Metric``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_info.functional.decoders import Family
from lightning_info.functional.units import Unit, per_nat
from lightning_info.functional.usable_information import usable_information


class UsableInformation(Metric):
    """Information about the label that cross-fitted decoders find in activations, over all batches and processes.

    ``compute()`` gives ``{"I_TY": ..., "I_TY_stderr": ...}``, float64 scalars, as
    :func:`~lightning_info.functional.usable_information` of all samples; both are NaN of fewer than two samples a fold.
    All activations are kept. Every process needs a sample.

    Args:
        families: Of decoders: ``"lda"``, ``"ridge"``, ``"knn"`` (classes only).
        folds: Parts that the samples fall into.
        components: Largest number of principal components; None: a quarter of the samples.
        seed: Deals the samples out; global random numbers are never touched.
        unit: Unit of the result.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example::

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.usable.update(self.backbone(x), y)  # self.usable = UsableInformation()

        def on_validation_epoch_end(self):
            self.log_dict(self.usable.compute())
            self.usable.reset()
    """

    plot = Metric._plot  # draws what compute() returned, or a list of it over time
    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    seen: list[Tensor]
    labels: list[Tensor]

    def __init__(
        self,
        families: Sequence[Family] = ("lda", "ridge"),
        folds: int = 5,
        components: int | None = None,
        seed: int = 0,
        unit: Unit = "bits",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        per_nat(unit)
        self.families, self.folds, self.components = families, folds, components
        self.seed, self.unit = seed, unit
        self.add_state("seen", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, t: Tensor, y: Tensor) -> None:
        """Add the samples of a batch.

        Args:
            t: Activations ``(N, ...)``, of one shape in all batches.
            y: Classes ``(N,)``, or floating targets ``(N,)`` or ``(N, m)``.

        Raises:
            ValueError: Another number of labels than of samples.
        """
        if len(t) != len(y):
            raise ValueError(f"UsableInformation: y of shape {tuple(y.shape)}: expected N = {len(t)} rows")
        self.seen.append(t.detach().flatten(1) if t.dim() > 1 else t.detach()[:, None])
        self.labels.append(y.detach())

    def compute(self) -> dict[str, Tensor]:
        """Return the information over all samples of all processes, and its standard error."""
        pair = math.nan, math.nan
        y = dim_zero_cat(self.labels) if len(self.labels) else torch.empty(0)
        if len(y) >= 2 * self.folds:
            generator, t = torch.Generator().manual_seed(self.seed), dim_zero_cat(self.seen)
            found = usable_information(
                t,
                y,
                families=self.families,
                folds=self.folds,
                components=self.components,
                generator=generator,
                unit=self.unit,
            )
            pair = found.information, found.stderr
        values = torch.tensor(pair, dtype=torch.float64, device=self.device)
        return {"I_TY": values[0], "I_TY_stderr": values[1]}
