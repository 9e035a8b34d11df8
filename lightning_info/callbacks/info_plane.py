"""``InfoPlaneCallback``: the information plane, live, with its artefacts named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import Unpack

from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.options import CommonOptions
from lightning_info.functional.information_estimators import EstimatorName
from lightning_info.quantities.information_plane.estimates import BinRange
from lightning_info.quantities.information_plane.quantity import InformationPlane
from lightning_info.quantities.information_plane.trajectory import Plane
from lightning_info.quantities.information_plane.verdicts import CompressionVerdict
from lightning_info.replica.layer_selection import LayerNames


class InfoPlaneCallback(InfoCallback):
    r"""Logs the information plane: I(X;T) and I(T;Y) of the layers T, in bits, over training.

    A network is deterministic, so the information of its continuous activations about the input is infinite (or that of
    the input itself); what is measured is what **bins** or **added noise** leave of it, and it moves with them. The
    callback says so where it matters: it knows the ceilings, warns of the known artefacts, and at the end of fit tells
    for every layer how far I(X;T) fell from its peak under each choice of the bins' range, and whether the verdict
    survives the choice. Source: Saxe et al., *On the information bottleneck theory of deep learning* (2018);
    ``docs/info_plane.md``.

    Nothing in the user's code changes: layers, also activation functions that are no modules, and labels are found in a
    replica's ``training_step`` in eval mode, so that training is bit-identical to training without the callback. Images
    and sequences are reduced to one value a channel, their mean over positions; layers with more than 12 units to
    ``directions`` random orthonormal combinations of them, the same at every point. The labels are the classes;
    continuous targets are cut into ``bins`` intervals; several labels of a sample are taken together. No likelihood is
    needed: where the loss is not known, the labels are the integers of the batch, if there is one for each sample.

    Layers that give integers or booleans (codes, masks, gates) are measured exactly, whatever the estimator: T is the
    codes of a sample at all positions together. They are not taken unless named, or activation functions. Complex units
    count as two, real and imaginary part.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured):

    - ``info_plane/I_XT/<layer>``, ``info_plane/I_TY/<layer>``: by the first estimator and range; without one label a
      sample, I(X;T) only.
    - ``info_plane_<name>/...``: further estimators and ranges, ``binning_adaptive`` or ``mixture``, say;
      ``..._lower`` and ``..._upper`` are Kolchinsky and Tracey's bounds for the mixture, ``..._stderr`` is the standard
      error of the estimate between them.
    - ``info_plane_final/...``: for the global range, at the end of fit, the whole curve in the bins of the range over
      all of training; the values above were logged before it was known.
    - ``info_plane_shuffled/I_TY/<layer>``: what I(T;Y) reads with shuffled labels, if the first estimate is by bins; so
      much of it comes from the number of samples, not from the layer.
    - ``info_plane/overhead``: share of the run's time that this callback took so far.
    - histograms ``activations/<layer>``: of 10,000 activations, at most 64 of a sample.
    - figure ``info_plane/plane``: I(T;Y) against I(X;T), colour = epoch, layers of one epoch joined.

    Args:
        layers: Dotted names of modules or functions (``"net.1"``; ``"act:2"`` for the third call of one), or classes of
            modules or their names (``"ReLU"``). None: after the activation functions (without any, after the layers
            with weights), at most eight evenly over depth. The outputs (logits) are among them only for estimators
            without bins, as bins tell nearly all samples apart by the outputs.
        estimator: ``"binning"``; ``"mixture"``: noise is added and the information of the Gaussian mixture over the
            samples is estimated by sampling, with bounds; ``"gaussian"``: noise is added and the activations are taken
            for Gaussian (exact for linear networks of Gaussian inputs, for all others an approximation). One or a list.
        bins: Intervals that a unit's range is cut into. (The paper's "30 bins" are 29 intervals.)
        bin_range: What they cover: ``"global"``, each layer's smallest to largest activation over training;
            ``"fixed"``, (-1, 1); ``"adaptive"``, each layer's range at each point, which makes growing activations look
            like compression; or ``(low, high)``. One or a list.
        noise: Standard deviation of the noise in units of the layer's own at the measured weights.
        noise_variance: Variance of the noise instead, for all layers and points (the paper's form).
        directions: Random combinations that a layer with more than 12 units is reduced to. 1024 samples resolve no more
            than two or three: of a trained ResNet, ten read log2 N in the deep layers, and shuffled labels read as much
            as the true ones (``docs/info_plane.md``).
        num_samples: Reference samples: the first that pass in training. They set the ceiling, log2 of their number.
        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.

    Raises:
        ValueError: An argument makes no sense.
        MisconfigurationException: Before the first step: ``layers`` that are not there or do not run; and with
            ``on_error="raise"`` (else a warning, and the callback is off) sharded strategy, samples that are mixed, no
            outputs found.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import InfoPlaneCallback

        trainer = Trainer(callbacks=[InfoPlaneCallback()])
    """

    quantity: InformationPlane

    def __init__(
        self,
        layers: LayerNames | None = None,
        estimator: EstimatorName | Sequence[EstimatorName] = "binning",
        bins: int = 30,
        bin_range: BinRange | Sequence[BinRange] = "global",
        noise: float = 0.1,
        noise_variance: float | None = None,
        directions: int = 2,
        num_samples: int = 1024,
        **common: Unpack[CommonOptions],
    ) -> None:
        plane = InformationPlane(
            layers, estimator, bins, bin_range, noise, noise_variance, directions, common.get("seed", 0)
        )
        super().__init__(plane, num_samples=num_samples, **common)

    @property
    def verdicts(self) -> Mapping[str, CompressionVerdict]:
        """Layer -> how far I(X;T) fell under each range or estimator, known at the end of fit, and in words."""
        return self.quantity.verdicts

    def curves(self, bin_range: BinRange) -> Plane:
        """The curves by binning under any range, computed anew from the activations that were kept.

        Args:
            bin_range: See the class; ``"global"`` is the range over all points so far.

        Returns:
            ``layer -> [(step, I(X;T), I(T;Y)), ...]`` in bits.
        """
        return self.quantity.planes(bin_range)
