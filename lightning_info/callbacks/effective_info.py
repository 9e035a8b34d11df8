"""``EffectiveInfoCallback``: the information that layers keep under the weight noise that the task tolerates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from typing_extensions import Unpack

from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.options import CommonOptions
from lightning_info.quantities.effective_information.quantity import EffectiveInformationOfLayers


class EffectiveInfoCallback(InfoCallback):
    r"""Logs the effective information I(X;Z), I(Z;Y) of layers: under the weight noise that the task itself tolerates.

    A deterministic layer keeps all of its input, and bins measure the bins. Here the weights are drawn from
    ``N(w, Σ*)``, ``Σ* = β (N F + diag(β/λ²))⁻¹`` with the Fisher information F or its diagonal and ``λ_i = |w_i|`` for
    each weight, and z is what the layer gives under these draws: every layer is on the one noise scale at which the
    loss rises by a stated **distortion**. The result does not change where layers of a ReLU network are rescaled. A
    weight that is exactly 0, such as a bias at the start, has no noise.

    The estimates are **lower bounds**, from Gaussians fitted to some of the draws and evaluated on others, with their
    standard error (:func:`~lightning_info.functional.effective_information`). Layers are taken
    before their activation function, as the bound behind it is loose; of layers with positions the mean over them, as
    in :class:`~lightning_info.InfoPlaneCallback`. Source: Achille, Paolini & Soatto, Definition 3.1.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured), in
    nats; of the first distortion (or of ``beta``):

    - ``effective_info/I_XZ/<layer>``, ``effective_info/I_ZY/<layer>``: at most log N and H(Y); the latter where a
      sample has one target.
    - ``effective_info_stderr/I_XZ/<layer>``, ``effective_info_stderr/I_ZY/<layer>``: standard error over draws and of
      the level that was searched for, without that of the choice of samples.
    - ``effective_info/beta``, ``effective_info/noisy_loss`` (each with ``_stderr``: of the level as that of the
      distortion, 0 for ``beta``; over draws at the level in use), ``effective_info/loss``: the level, and the mean loss
      of a sample with and without noise.
    - ``effective_info/crossing``: by how much a layer's bound lies below that of a later one, at most. Of layers
      through which everything passes the true information cannot; so much the bounds are loose. A layer more than 0.1
      nats and three standard errors below a later one is NaN.
    - ``effective_info/overhead``: share of the run's time that this callback took so far.
    - figure ``effective_info/plane``.

    Further distortions have ``effective_info_<distortion>/...``. A distortion that no level reaches is NaN, and said.

    Args:
        layers: As for :class:`~lightning_info.InfoPlaneCallback`. By default the layers from which the activation
            functions take their input, under the name of the function where that is invertible (the same information),
            at most eight with the outputs.
        beta: A level to use at all points, instead of distortions.
        distortion: Rise of the expected loss, nats per sample, at which to measure; one or several. The story depends
            on it. The level is searched in 16 passes over the samples (and four for its error), from the last point's
            on, at first from that of a quadratic loss. Without targets it is that of the mean KL divergence of the
            predictions, and there is neither I(Z;Y) nor a loss.
        draws: Weights drawn for a half of them; ``2 · draws`` in all.
        noise: What stands for F in ``Σ*``: its ``"diagonal"``; ``"low_rank"``, F itself of as many reference samples as
            there is memory for their rows (142 of ten classes, up to 100,000 weights); or ``"full"``, that of all
            reference samples, up to 2048 weights. The diagonal does not know that errors of weights may cancel.
        num_samples: Reference samples: the first that pass in training, kept on the CPU; with several processes an
            equal number from each, which every process then measures.
        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.

    Raises:
        ValueError: An argument makes no sense.
        MisconfigurationException: Before the first step: ``layers`` that are not there; and with ``on_error="raise"``
            (else a warning, and the callback is off) sharded strategy, no likelihood found, module
            without exact per-sample gradients, too many weights for ``noise``.

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
        num_samples: int = 256,
        **common: Unpack[CommonOptions],
    ) -> None:
        quantity = EffectiveInformationOfLayers(layers, beta, distortion, draws, noise, common.get("seed", 0))
        super().__init__(quantity, num_samples=num_samples, **common)
