"""The label axis of the plane of effective information, where decoders of the layers without noise give it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_info.gradients.batches import num_samples
from lightning_info.quantities.information_plane.decoded import CLASSES, most_seen, positions_seen
from lightning_info.quantities.information_plane.features import LayerFeatures
from lightning_info.quantities.information_plane.label_information import LabelDecoders
from lightning_info.quantities.information_plane.labels import Labels, targets_of
from lightning_info.quantities.quantity import Warn
from lightning_info.replica.activations import Layer, LayerCapture
from lightning_info.replica.snapshot import TARGETS, ModelSnapshot
from lightning_info.replica.timing import trial

FAMILY = "effective_info_decoder"
"""First part of the tags."""


class LabelAxis:
    """Targets of the samples, and decoders of them if they are asked for.

    Args:
        snapshot: A few samples; None before there are any.
        layers: The layers whose decoders are asked for; none, if no label information is.
        samples: Number of samples of a point.

    Attributes:
        tags: Tags of what decoders find, and of the errors.
    """

    def __init__(self, snapshot: ModelSnapshot | None = None, layers: Sequence[Layer] = (), samples: int = 0) -> None:
        self._features, self._decoders = LayerFeatures((), 1, 0), LabelDecoders()
        if snapshot is not None and layers:
            batch = snapshot.to_device(snapshot.groups[0])
            with LayerCapture(snapshot.module, layers, num_samples(batch), everywhere=True) as capture:
                prediction = snapshot.predictor(snapshot.module, batch)
            seen = positions_seen(prediction, targets_of(prediction), samples)
            most = most_seen(capture.activations.values())
            self._features = LayerFeatures(tuple(layers), 1, 0, decoded=seen, most=most)
            self._decoders = LabelDecoders(self._read(snapshot), most, FAMILY)
        self.tags = self._decoders.tags

    def _read(self, snapshot: ModelSnapshot) -> dict[str, Tensor]:
        return snapshot.on(snapshot.groups).read(self._features)

    def targets(self, snapshot: ModelSnapshot) -> Tensor | None:
        """Return the targets of the samples, see :func:`~.labels.targets_of`."""
        return self._read(snapshot).get(TARGETS)

    def measure(self, snapshot: ModelSnapshot, labels: Labels | None, warn: Warn) -> dict[str, float]:
        """Return what decoders find, and the errors, in nats by tag."""
        if not self.tags:
            return {}
        return self._decoders.measure(self._read(snapshot), labels, warn, "nats")

    def seconds(self, snapshot: ModelSnapshot, samples: int) -> float:
        """Return the seconds of a point, from trials on a few samples."""
        if not self.tags:
            return 0.0
        passes = trial(lambda: self._read(snapshot), snapshot.device) * samples / snapshot.size
        return passes + self._decoders.seconds(samples * max(1, self._features.decoded or 0), CLASSES)
