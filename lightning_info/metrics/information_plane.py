"""The information plane as a torchmetrics ``Metric``."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_info.functional.binning import BinRange, Unit, as_rows, bin_codes, code_information, per_nat
from lightning_info.functional.linear_gaussian import gaussian_information
from lightning_info.functional.mixture import mixture_information


class InformationPlane(Metric):
    """I(X;T) and I(T;Y) of a layer, over all samples of all batches and processes.

    ``compute()`` gives both as float64 scalars; I(T;Y) is NaN without ``y``, both without samples. What is kept: one
    integer per sample for bins of a range that is known beforehand, otherwise all activations. The order of the samples
    matters to the mixture alone, whose noise is drawn for one after the other: it moves the estimate within its error.
    Every process needs a sample. Source: Saxe et al. (2018), section 2.

    Args:
        estimator: ``"binning"`` (:func:`~lightning_info.functional.binned_information`), ``"mixture"``
            (:func:`~lightning_info.functional.mixture_information`, the sampling estimate) or ``"gaussian"``
            (:func:`~lightning_info.functional.gaussian_information`).
        bins: Intervals a unit is cut into.
        bin_range: ``"fixed"`` is (-1, 1), ``"adaptive"`` is the range of all samples, or ``(low, high)``.
        noise_variance: Of the layer's noise; needed by the estimators without bins.
        seed: Of the mixture's noise; global random numbers are never touched.
        unit: Of the result.
        kwargs: Of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: Arguments out of their range.

    Example::

        plane = InformationPlane(bin_range="fixed")
        for x, y in loader:
            plane.update(torch.tanh(layer(x)), y)
        i_xt, i_ty = plane.compute()
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    seen: list[Tensor]
    labels: list[Tensor]
    widths: list[Tensor]

    def __init__(
        self,
        estimator: Literal["binning", "mixture", "gaussian"] = "binning",
        bins: int = 30,
        bin_range: BinRange = "adaptive",
        noise_variance: float | None = None,
        seed: int = 0,
        unit: Unit = "bits",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if estimator not in ("binning", "mixture", "gaussian"):
            raise ValueError(
                f"InformationPlane: unknown estimator {estimator!r}; choose 'binning', 'mixture', 'gaussian'"
            )
        if estimator != "binning" and not (noise_variance is not None and noise_variance > 0):
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

    def compute(self) -> tuple[Tensor, Tensor]:
        """I(X;T) and I(T;Y) over all samples of all processes."""
        if not len(self.seen):
            return self._scalar(math.nan), self._scalar(math.nan)
        self._one_width(self.widths)
        t, y = dim_zero_cat(self.seen), dim_zero_cat(self.labels) if len(self.labels) else None
        if y is not None and not y.numel():  # gathered from processes that have none
            y = None
        if self.noise_variance is None or self.estimator == "binning":
            codes = t if self._codes_only else bin_codes(t, self.bins, self.bin_range)
            found = code_information(codes, y, unit=self.unit)[:2]
        elif self.estimator == "gaussian":
            found = gaussian_information(t, y, self.noise_variance, unit=self.unit)
        else:
            generator = torch.Generator().manual_seed(self.seed)
            found = mixture_information(t, y, self.noise_variance, generator=generator, unit=self.unit)[:2]
        return self._scalar(found[0]), self._scalar(found[1])

    def _one_width(self, widths: list[Tensor]) -> None:
        """Codes of the bins do not tell whether they are of one layer."""
        found = sorted(set(dim_zero_cat(widths).tolist()))
        if len(found) > 1:
            raise ValueError(
                f"InformationPlane: batches of {' and '.join(map(str, found))} units; take one metric for each layer"
            )

    @property
    def _codes_only(self) -> bool:
        return self.estimator == "binning" and self.bin_range != "adaptive"

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)
