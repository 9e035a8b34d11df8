"""``GradientNoiseCallback``: the noise of the gradients of training, and the temperature that it makes."""

from __future__ import annotations

from typing_extensions import Unpack

from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.options import CommonOptions
from lightning_info.gradients import EngineName, Plan
from lightning_info.quantities.gradient_noise.quantity import GradientNoiseScale


class GradientNoiseCallback(InfoCallback):
    r"""Logs the noise of the training loss's gradients: whether the batch is too small or too large.

    .. math:: B_{\text{noise}} = \frac{\operatorname{tr} \Sigma}{|G|^2}, \qquad
              T = \frac{\eta}{2 B} \cdot \frac{\operatorname{tr} \Sigma}{k}

    with the mean G and the covariance Σ of the gradient of one sample, learning rate η, batch size B and k weights. In
    a batch of ``B_noise`` samples noise and signal are of equal size. Source: McCandlish et al. (2018);
    ``docs/gradient_noise.md``.

    The gradients are those of the user's own loss, with its weights, at the labels of the data, on a replica in eval
    mode (dropout off, BatchNorm as ``batch_norm`` says), so training is bit-identical to training without the callback.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured):

    - ``gradient_noise/scale``: the noise scale in samples; infinite where ``|G|²`` is not positive.
    - ``gradient_noise/scale_low``, ``gradient_noise/scale_high``: its 95 % interval, with an infinite upper end where
      ``|G|²`` is not resolved: the scale is then above ``scale_low``.
    - ``gradient_noise/trace``, ``gradient_noise/squared_norm``, each with ``_stderr``: ``tr Σ`` and ``|G|²``, both
      unbiased; the latter can be negative.
    - ``gradient_noise/temperature`` and ``_stderr``: the temperature of SGD from the measured noise, with momentum and
      dampening. Absent for other optimisers, as Adam scales every gradient and has no one temperature.
    - ``gradient_noise_layers/<module>``, ``gradient_noise_trace_layers/<module>``: noise scale and ``tr Σ`` of each
      module's own parameters; always in ``history``, in the loggers with ``per_layer=True``.
    - figure ``gradient_noise/layers``: heat map of the noise scale by module.

    Where a ``WeightInfoCallback`` comes after it in the Trainer's list, ``weight_info/temperature`` and
    ``weight_info/free_energy`` take the measured temperature.

    Args:
        per_layer: Whether the values of modules go to the loggers too.
        engine: How per-sample gradients are computed, see :class:`~.FisherTraceCallback`.
        num_samples: Number of reference samples: the first that training uses, kept on the CPU; with several processes
            an equal number from each, which every process then measures. Noise scales up to about this number are
            resolved.
        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.

    Raises:
        ValueError: An argument is invalid.
        MisconfigurationException: With ``on_error="raise"``, before the first step (else a warning, and the callback
            is off), for a sharded strategy, a loss that is neither known nor a mean or sum over samples, or a module
            without exact per-sample gradients.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import GradientNoiseCallback

        trainer = Trainer(callbacks=[GradientNoiseCallback()])
    """

    quantity: GradientNoiseScale

    def __init__(
        self,
        per_layer: bool = False,
        engine: EngineName = "auto",
        num_samples: int = 256,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(GradientNoiseScale(per_layer, engine), num_samples=num_samples, **common)

    @property
    def plan(self) -> Plan | None:
        """The engine in use, and why faster ones are not; None before the first batch."""
        return self.quantity.plan
