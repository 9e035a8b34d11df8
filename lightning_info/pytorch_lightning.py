"""The callbacks for the LightningCLI of ``pytorch_lightning``, which builds only subclasses of its own ``Callback``.

With a ``pytorch_lightning.Trainer`` in Python the callbacks of :mod:`lightning_info` work as they are.
"""

from pytorch_lightning import Callback

from lightning_info.callbacks import effective_info, fisher_trace, gradient_noise, info_plane, stability, weight_info


class FisherTraceCallback(fisher_trace.FisherTraceCallback, Callback):  # type: ignore[misc]
    """See :class:`lightning_info.FisherTraceCallback`."""


class InfoPlaneCallback(info_plane.InfoPlaneCallback, Callback):  # type: ignore[misc]
    """See :class:`lightning_info.InfoPlaneCallback`."""


class WeightInfoCallback(weight_info.WeightInfoCallback, Callback):  # type: ignore[misc]
    """See :class:`lightning_info.WeightInfoCallback`."""


class EffectiveInfoCallback(effective_info.EffectiveInfoCallback, Callback):  # type: ignore[misc]
    """See :class:`lightning_info.EffectiveInfoCallback`."""


class StabilityCallback(stability.StabilityCallback, Callback):  # type: ignore[misc]
    """See :class:`lightning_info.StabilityCallback`."""


class GradientNoiseCallback(gradient_noise.GradientNoiseCallback, Callback):  # type: ignore[misc]
    """See :class:`lightning_info.GradientNoiseCallback`."""
