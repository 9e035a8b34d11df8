"""The information plane as a torchmetrics ``Metric``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_info.functional.binning import BinRange, as_rows, bin_codes
from lightning_info.functional.information_estimators import ESTIMATORS, EstimatorName, estimator_named
from lightning_info.functional.units import Unit, per_nat


class InformationPlane(Metric):
    """I(X;T) and I(T;Y) of a layer, over all samples of all batches and processes.

    ``compute()`` gives ``{"I_XT": ..., "I_TY": ...}``, float64 scalars; I(T;Y) is NaN without ``y``, both without
    samples. What is kept: one integer per sample for bins of a range that is known beforehand, otherwise all
    activations. The order of the samples matters only to the mixture, whose noise is drawn for one sample after the
    other: it moves the estimate within its error. Every process needs a sample. Lightning's ``self.log`` takes no
    metric with several values; log them with ``self.log_dict`` as below. Source: Saxe et al. (2018), section 2.

    Args:
        estimator: ``"binning"`` (:func:`~lightning_info.functional.binned_information`), ``"mixture"``
            (:func:`~lightning_info.functional.mixture_information`, the sampling estimate), ``"gaussian"``
            (:func:`~lightning_info.functional.gaussian_information`) or ``"exact"``
            (:func:`~lightning_info.functional.exact_information`).
        bins: Number of intervals that a unit is cut into.
        bin_range: ``"fixed"`` is (-1, 1), ``"adaptive"`` is the range of all samples, or ``(low, high)``.
        noise_variance: Variance of the layer's noise; needed by ``"mixture"`` and ``"gaussian"``.
        seed: Seed of the mixture's noise; global random numbers are never touched.
        unit: Unit of the result.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: An argument is out of range.

    Example::

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.plane.update(torch.tanh(self.layer(x)), y)  # self.plane = InformationPlane(bin_range="fixed")

        def on_validation_epoch_end(self):
            self.log_dict(self.plane.compute())
            self.plane.reset()
    """

    plot = Metric._plot  # draws what compute() returned, or a list of it over time
    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    seen: list[Tensor]
    labels: list[Tensor]
    widths: list[Tensor]

    def __init__(
        self,
        estimator: EstimatorName = "binning",
        bins: int = 30,
        bin_range: BinRange = "adaptive",
        noise_variance: float | None = None,
        seed: int = 0,
        unit: Unit = "bits",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        found = estimator_named(estimator, "InformationPlane")
        if found.has_own_noise:
            raise ValueError(
                f"InformationPlane: estimator={estimator!r} needs the noise of a dropout layer; call "
                "functional.dropout_information on the activations, or add InfoPlaneCallback to the Trainer"
            )
        if not found.has_bins and not found.is_exact and not (noise_variance is not None and noise_variance > 0):
            raise ValueError(
                f"InformationPlane: estimator={estimator!r} needs the variance of the noise, for example "
                "noise_variance=0.01"
            )
        per_nat(unit)
        bin_codes(torch.zeros(1), bins, bin_range)
        self.estimator, self.bins, self.bin_range = estimator, bins, bin_range
        self.noise_variance, self.seed, self.unit = noise_variance, seed, unit
        self.add_state("seen", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")
        self.add_state("widths", [], dist_reduce_fx="cat")

    def update(self, t: Tensor, y: Tensor | None = None) -> None:
        """Add the samples of a batch.

        Args:
            t: Activations ``(N, d)``, or ``(N,)`` for a single unit.
            y: Classes ``(N,)``, integer or bool; for ``"gaussian"`` also continuous targets; None if there are none.

        Raises:
            ValueError: Shapes, activations that are not finite, ``y`` in some batches only, another layer's width.
        """
        if self.seen and bool(self.labels) != (y is not None):
            raise ValueError("InformationPlane: y came with some batches only; give it with each of them or with none")
        rows = as_rows(t)
        if y is not None and len(y) != len(rows):
            raise ValueError(f"y of shape {tuple(y.shape)}: expected N = {len(rows)} rows")
        width = torch.tensor([rows.shape[1]], device=self.device)
        self._one_width([*self.widths, width])
        self.widths.append(width)
        if self._codes_only:
            self.seen.append(bin_codes(rows, self.bins, self.bin_range))
        else:
            self.seen.append(rows)
        if y is not None:
            self.labels.append(y.detach())

    def compute(self) -> dict[str, Tensor]:
        """Return I(X;T) and I(T;Y) over all samples of all processes."""
        if not len(self.seen):
            return self._values(math.nan, math.nan)
        self._one_width(self.widths)
        t, y = dim_zero_cat(self.seen), dim_zero_cat(self.labels) if len(self.labels) else None
        if y is not None and not y.numel():  # gathered from processes that have none
            y = None
        estimate, generator = ESTIMATORS[self.estimator], torch.Generator().manual_seed(self.seed)
        if estimate.has_bins and not self._codes_only:
            t = bin_codes(t, self.bins, self.bin_range)
        found, scale = estimate(t, y, self.noise_variance or 0.0, generator), per_nat(self.unit) / per_nat("bits")
        return self._values(scale * found.I_XT, scale * found.I_TY)

    def _one_width(self, widths: list[Tensor]) -> None:
        """Check that batches come from one layer, which codes of bins do not show."""
        found = sorted(set(dim_zero_cat(widths).tolist()))
        if len(found) > 1:
            raise ValueError(
                f"InformationPlane: batches of {' and '.join(map(str, found))} units; take one metric for each layer"
            )

    @property
    def _codes_only(self) -> bool:
        return ESTIMATORS[self.estimator].has_bins and self.bin_range != "adaptive"

    def _values(self, i_xt: float, i_ty: float) -> dict[str, Tensor]:
        pair = torch.tensor([i_xt, i_ty], dtype=torch.float64, device=self.device)
        return {"I_XT": pair[0], "I_TY": pair[1]}
