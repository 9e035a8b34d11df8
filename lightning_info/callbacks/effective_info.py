"""``EffectiveInfoCallback``: the information that layers keep under the weight noise that the task tolerates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from typing_extensions import Unpack

from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.options import CommonOptions
from lightning_info.quantities.effective_information.quantity import EffectiveInformationOfLayers, LabelInformation


class EffectiveInfoCallback(InfoCallback):
    r"""Logs the effective information I(X;Z), I(Z;Y) of layers: under the weight noise that the task itself tolerates.

    A deterministic layer keeps all of its input, and bins measure the bins. Here the weights are drawn from
    ``N(w, Σ*)``, ``Σ* = β (N F + diag(β/λ²))⁻¹`` with the Fisher information F or its diagonal and ``λ_i = |w_i|`` for
    each weight, and z is the layer's output under these draws: all layers share the noise scale at which the loss rises
    by a stated **distortion**. Rescaling layers of a ReLU network does not change the result. A weight that is exactly
    0, such as a bias at the start, has no noise.

    The estimates are **lower bounds**, from Gaussians fitted to some of the draws and evaluated on others, with their
    standard error (:func:`~lightning_info.functional.effective_information`). Layers are measured before their
    activation function, as the bound behind it is loose; layers with positions are averaged over them, as in
    :class:`~lightning_info.InfoPlaneCallback`. Source: Achille, Paolini & Soatto, Definition 3.1.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured), in
    nats, for the first distortion (or ``beta``):

    - ``effective_info/I_XZ/<layer>``, ``effective_info/I_ZY/<layer>``: at most log N and H(Y); the latter only if a
      sample has one target.
    - ``effective_info_stderr/I_XZ/<layer>``, ``effective_info_stderr/I_ZY/<layer>``: standard error from the draws and
      from the search for the level, without that from the choice of samples.
    - ``effective_info/beta``, ``effective_info/noisy_loss`` (each with ``_stderr``: for the level from the search for
      the distortion, 0 with ``beta=``; for the loss over draws at the level in use), ``effective_info/loss``: the
      level, and the mean loss of a sample with and without noise.
    - ``effective_info/crossing``: largest amount by which a layer's bound lies below that of a later one. The true
      information cannot do so for layers through which everything passes, so this shows how loose the bounds are. A
      layer more than 0.1 nats and three standard errors below a later one is NaN.
    - ``effective_info/overhead``: share of the run's time that this callback has taken so far; in ``history`` only.
    - ``effective_info_decoder/I_TY/<layer>`` and ``effective_info_decoder_stderr/I_TY/<layer>``: with
      ``label_information="decoder"``.
    - figure ``effective_info/plane``.

    Further distortions have ``effective_info_<distortion>/...``. A distortion that no level reaches is NaN, with a
    warning.

    Args:
        layers: Layers to measure, as for :class:`~lightning_info.InfoPlaneCallback`. By default the layers that feed
            the activation functions, named after the function if that is invertible (the same information), at most
            eight including the outputs.
        beta: A level to use at all points, instead of distortions.
        distortion: Rise of the expected loss, nats per sample, at which to measure; one or several. The results depend
            on it. The level is searched in 16 passes over the samples (and four for its error), starting from that of
            the last point, at first from that of a quadratic loss. Without targets the distortion is the mean KL
            divergence of the predictions, and there is neither I(Z;Y) nor a loss.
        draws: Half the number of weight draws; there are ``2 · draws`` in all.
        noise: The form of F in ``Σ*``: its ``"diagonal"``; ``"low_rank"``, F itself over as many reference samples as
            there is memory for their rows (142 of ten classes, up to 100,000 weights); or ``"full"``, F over all
            reference samples, up to 2048 weights. The diagonal ignores that errors of weights may cancel.
        label_information: What figures show upwards: ``"noisy"``, I(Z;Y) under the same noise; ``"decoder"``, I(T;Y) of
            the layers as they are, by the cross-fitted decoders of :class:`~lightning_info.InfoPlaneCallback`, so
            the plane's axes have neither bins nor, upwards, noise. They want more samples (``num_samples=1024``).
        num_samples: Number of reference samples: the first that training uses, kept on the CPU; with several processes
            an equal number from each, which every process then measures.
        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.

    Raises:
        ValueError: An argument is invalid.
        MisconfigurationException: Before the first step, if ``layers`` do not exist; and with ``on_error="raise"``
            (else a warning, and the callback is off) for a sharded strategy, no likelihood found, a module without
            exact per-sample gradients, or too many weights for ``noise``.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import EffectiveInfoCallback

        trainer = Trainer(callbacks=[EffectiveInfoCallback()])
    """

    quantity: EffectiveInformationOfLayers

    def __init__(
        self,
        layers: str | list[str] | None = None,
        beta: float | None = None,
        distortion: float | Sequence[float] = (0.05, 0.5),
        draws: int = 64,
        noise: Literal["diagonal", "low_rank", "full"] = "diagonal",
        label_information: LabelInformation = "noisy",
        num_samples: int = 256,
        **common: Unpack[CommonOptions],
    ) -> None:
        seed = common.get("seed", 0)
        quantity = EffectiveInformationOfLayers(layers, beta, distortion, draws, noise, label_information, seed)
        super().__init__(quantity, num_samples=num_samples, **common)
