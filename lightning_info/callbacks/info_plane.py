"""``InfoPlaneCallback``: the information plane during training, with warnings about its artefacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import Unpack

from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.options import CommonOptions
from lightning_info.functional.information_estimators import EstimatorName
from lightning_info.quantities.information_plane.estimates import BinRange
from lightning_info.quantities.information_plane.nuisances import Nuisances
from lightning_info.quantities.information_plane.quantity import InformationPlane, LabelInformation
from lightning_info.quantities.information_plane.trajectory import Plane
from lightning_info.quantities.information_plane.verdicts import CompressionVerdict
from lightning_info.replica.layer_selection import LayerNames


class InfoPlaneCallback(InfoCallback):
    r"""Logs the information plane: I(X;T) and I(T;Y) of the layers T, in bits, over training.

    A network is deterministic, so the information of its continuous activations about the input is infinite (or that of
    the input itself). The measured value is what **bins** or **added noise** leave of it, and it depends on them. The
    callback says so where it matters: it knows the ceilings, warns of the known artefacts, and at the end of fit
    reports for every layer how far I(X;T) fell from its peak under each choice of the bins' range, and whether the
    verdict depends on the choice. Source: Saxe et al., *On the information bottleneck theory of deep learning* (2018);
    ``docs/info_plane.md``.

    Nothing in the user's code changes: layers (including activation functions that are not modules) and labels are
    found in a replica's ``training_step`` in eval mode, so training is bit-identical to training without the callback.
    Images and sequences are reduced to one value per channel, the mean over positions; layers with more than 12 units
    to ``directions`` random orthonormal combinations of them, the same at every point, and that ``projections`` times:
    the values are means over these, with their error. The labels are the classes;
    continuous targets are cut into ``bins`` intervals; several labels of a sample are combined. No likelihood is
    needed: if the loss is not known, the labels are the integers of the batch, if there is one for each sample.

    Layers that give integers or booleans (codes, masks, gates) are measured exactly, whatever the estimator: T is the
    codes of a sample at all positions together. They are measured only if named, or if they are activation functions.
    Complex units count as two, real and imaginary part.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured):

    - ``info_plane/I_XT/<layer>``, ``info_plane/I_TY/<layer>``: by the first estimator and range; without one label
      per sample, I(X;T) only.
    - ``info_plane_decoder/I_TY/<layer>``, ``info_plane_decoder_stderr/I_TY/<layer>``: I(T;Y) without bins, the lower
      bound that cross-fitted decoders prove, and its standard error (:func:`~.usable_information`). They see all units
      at all positions. With a label for each position (language models) they see single positions, and tell the 15 most
      frequent labels and the rest apart.
    - ``info_plane_<name>/...``: other estimators and ranges, for example ``binning_adaptive`` or ``mixture``;
      ``..._lower`` and ``..._upper`` are Kolchinsky and Tracey's bounds for the mixture, ``..._stderr`` is the standard
      error of the estimate between them, as it is of ``dropout``.
    - ``info_plane_stderr/...``: standard errors of the first over the sets of random combinations.
    - ``info_plane_final/...``: for the global range, at the end of fit, the whole curve in bins over the range of all
      of training; the values above were logged before it was known.
    - ``info_plane_decoder/I_TN_<nuisance>/<layer>`` and its standard errors, for each of the ``nuisances``; figure
      ``info_plane_decoder/plane_<nuisance>``.
    - ``info_plane_shuffled/I_TY/<layer>``: I(T;Y) with shuffled labels, if the first estimate is by bins: the part that
      is due to the number of samples, not to the layer. With decoders in ``history`` only, as the I(T;Y) of
      ``info_plane_final``.
    - ``info_plane/overhead``: share of the run's time that this callback has taken so far; in ``history`` only.
    - histograms ``activations/<layer>``: 10,000 activations, at most 64 from one sample.
    - figure ``info_plane/plane``: I(T;Y) against I(X;T), colour = epoch, layers of one epoch joined.

    Args:
        layers: Dotted names of modules or functions (``"net.1"``; ``"act:2"`` for the third call of one), or classes of
            modules or their names (``"ReLU"``). None: after the activation functions (without any, after the layers
            with weights), at most eight, evenly spread over depth. The outputs (logits) are included only for
            estimators without bins, as binned outputs tell nearly all samples apart.
        estimator: ``"binning"``; ``"mixture"``: noise is added and the information of the Gaussian mixture over the
            samples is estimated by sampling, with bounds; ``"gaussian"``: noise is added and the activations are
            treated as Gaussian (exact for linear networks of Gaussian inputs, otherwise an approximation);
            ``"exact"``: all activations of a sample as they are, for quantised networks, where nothing is estimated
            (:func:`~.exact_information`); ``"dropout"``: T is what the net's own dropout gives in training
            (:func:`~.dropout_information`). The layers are then ``nn.Dropout`` modules, and others with *dropout* in
            the name of their class that multiply every unit by a Bernoulli, Gaussian or log-normal factor; by default
            all that run, at most eight. One or a list.
        bins: Number of intervals that a unit's range is cut into. (The paper's "30 bins" are 29 intervals.)
        bin_range: The range that they cover: ``"global"``, each layer's smallest to largest activation over training;
            ``"fixed"``, (-1, 1); ``"adaptive"``, each layer's range at each point, which makes growing activations look
            like compression; or ``(low, high)``. One or a list.
        noise: Standard deviation of the noise in units of the layer's own at the measured weights.
        noise_variance: Variance of the noise instead, for all layers and points (the paper's form).
        directions: Number of random combinations to which a layer with more than 12 units is reduced. 1024 samples
            resolve no more than two or three: with ten, the deep layers of a trained ResNet give log2 N, and shuffled
            labels give as much as the true ones (``docs/info_plane.md``).
        projections: Number of such sets of combinations; values and verdicts are of the mean over them.
        label_information: ``"decoder"``: I(T;Y) of the figure is the lower bound by decoders, logged beside that of the
            bins; ``"binned"``: only the latter, as in the paper.
        nuisances: What moves the inputs and says nothing of the label, by name: a function that takes a sample (the
            first entry of the batch at one place, or the dict of all entries) and returns it transformed, with the
            label of the nuisance (``lambda x: (torch.rot90(x, k, (1, 2)), k)`` with a random k); or the entry of the
            batch that holds the label (``"camera"``). A layer that has little of I(T;N) is invariant to it.
        num_samples: Number of reference samples: the first that training uses. They set the ceiling, log2 of it.
        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.

    Raises:
        ValueError: An argument is invalid.
        MisconfigurationException: Before the first step, if ``layers`` do not exist or do not run; and with
            ``on_error="raise"`` (else a warning, and the callback is off) for a sharded strategy, samples that are
            mixed, or no outputs found.

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
        projections: int = 8,
        label_information: LabelInformation = "decoder",
        nuisances: Nuisances | None = None,
        num_samples: int = 1024,
        **common: Unpack[CommonOptions],
    ) -> None:
        plane = InformationPlane(
            layers,
            estimator,
            bins,
            bin_range,
            noise,
            noise_variance,
            directions,
            projections,
            label_information,
            nuisances,
            common.get("seed", 0),
        )
        super().__init__(plane, num_samples=num_samples, **common)

    @property
    def verdicts(self) -> Mapping[str, CompressionVerdict]:
        """For each layer, how far I(X;T) fell under each range or estimator, also in words; known at the end of fit."""
        return self.quantity.verdicts

    def curves(self, bin_range: BinRange) -> Plane:
        """Compute the curves by binning under any range anew, from the activations that were kept.

        Args:
            bin_range: See the class; ``"global"`` is the range over all points so far.

        Returns:
            ``layer -> [(step, I(X;T), I(T;Y)), ...]`` in bits.
        """
        return self.quantity.planes(bin_range)
