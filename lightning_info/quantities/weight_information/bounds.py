"""The bounds that a point logs: what they need, what they cost, and why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.contract import NotCovered
from lightning_info.quantities.quantity import Point, Record
from lightning_info.quantities.weight_information.certificate import (
    SAMPLES,
    SEARCH_DRAWS,
    Certificate,
    NoCertificate,
    refusal,
    validation_bound,
)
from lightning_info.quantities.weight_information.classification import labels_of
from lightning_info.quantities.weight_information.curvature import (
    Curvature,
    CurvaturePlan,
    DiagonalCurvature,
    choose_curvature,
    num_weights,
)
from lightning_info.quantities.weight_information.gibbs_error import (
    FEWEST_DRAWS,
    MOST_PARTS,
    PART,
    NoisyErrors,
    affordable,
)
from lightning_info.quantities.weight_information.initial_weights import InitialWeights
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.replica.timing import trial

TAGS = ("weight_info/pac_bayes_bound", "weight_info/gibbs_error", "weight_info/gibbs_error_stderr")
TEST_TAG = "weight_info/test_bound"
VACUOUS = 0.995
MOST_WEIGHTS = 1 << 24
"""Largest number of weights with a PAC-Bayes bound, which takes some 100 bytes of memory for each."""
TRIED = 30
"""Number of Q that the search tries, about."""


class Bounds:
    """The PAC-Bayes bound and the test-set bound of a run.

    Args:
        delta: Probability that each of them fails.
        from_zero: Whether the mean of the prior is 0, not the weights at the start.
    """

    def __init__(self, delta: float, from_zero: bool) -> None:
        self._certificate, self._from_zero = Certificate(delta), from_zero
        self._plan: CurvaturePlan | None = None  # of the diagonal of F; None if there is no PAC-Bayes bound
        self._has_labels = False

    def prepare(self, snapshot: ModelSnapshot, samples: int) -> str:
        """Find out on a few samples whether there can be bounds; return the row of the summary."""
        self._plan, delta = None, self._certificate.delta
        batch = snapshot.first_chunk()
        self._has_labels = labels_of(snapshot.predictor(snapshot.module, batch)) is not None
        if not self._has_labels:
            return "none, as the targets are no labels"
        if reason := refusal(snapshot):
            return f"none: {reason}"
        if num_weights(snapshot) > MOST_WEIGHTS:
            return f"none: it is not computed for more than {MOST_WEIGHTS} weights"
        try:
            self._plan = choose_curvature(snapshot, samples, "diagonal")
        except NotCovered as error:
            return f"none: {error}"
        return (
            f"PAC-Bayes, of the Gibbs classifier, once fit has seen a whole epoch, delta = {delta:g}; "
            f"up to {self._certificate.draws} weight draws on up to {SAMPLES} samples of that epoch"
        )

    def cost(self, snapshot: ModelSnapshot, samples: int, training_samples: float) -> float:
        """Forecast the seconds of a point once the first epoch is over, from trials on a few samples.

        Args:
            snapshot: The samples, and a private replica.
            samples: Number of reference samples.
            training_samples: N; NaN if it is not known.
        """
        if self._plan is None:
            return 0.0
        few, draws = num_samples(snapshot.groups[0]), SEARCH_DRAWS
        weights, generator, trying = num_weights(snapshot), Generator().manual_seed(0), NoisyErrors(snapshot)

        def draw() -> None:
            trying.at(1e-6 * torch.randn(draws, weights, generator=generator, dtype=torch.float64).to(snapshot.device))

        draw()  # it finds the direct call
        each = trial(draw, snapshot.device) / draws
        there = SAMPLES if math.isnan(training_samples) else min(SAMPLES, training_samples)
        parts = max(1, min(MOST_PARTS, there // PART))
        shares = 1 if trying.runs_many else SEARCH_DRAWS
        search = TRIED * SEARCH_DRAWS * each * max(1.0, samples / shares / few)
        made = self._certificate.draws = affordable(self._certificate.draws, weights, trying.runs_many)
        measuring = trial(lambda: self._diagonal(snapshot, Generator()), snapshot.device) * samples / few
        return measuring + search + made * each * max(1.0, there / parts / few)

    def cheaper(self) -> str:
        """Halve the draws; return what is reduced, in words, or nothing."""
        before = self._certificate.draws
        if self._plan is None or before <= FEWEST_DRAWS:
            return ""
        self._certificate.draws = before // 2
        return f"{before // 2} draws of the Gibbs error instead of {before}"

    def measure(
        self, curvature: Curvature, snapshot: ModelSnapshot, initial: InitialWeights, point: Point
    ) -> dict[str, float]:
        """Return the bounds of a point by tag; what has none is left out, with one warning."""
        found: dict[str, float] = {}
        data, fresh = point.training_set, point.validation_set
        if self._plan is not None and data is not None:

            def bound() -> dict[str, float]:
                if isinstance(curvature, DiagonalCurvature):
                    diagonal = curvature.diagonal
                else:
                    diagonal = self._diagonal(snapshot, point.generator)
                return self._certificate.bound(snapshot, diagonal, initial, self._from_zero, data, point.generator)

            found |= _or_none(bound, "weight_info/pac_bayes_bound", point)
        if self._has_labels and fresh is not None:
            delta = self._certificate.delta
            found |= _or_none(lambda: {TEST_TAG: validation_bound(snapshot, fresh, delta)}, TEST_TAG, point)
        return found

    def text(self, record: Record) -> str:
        """Return what the bounds of the last point say."""
        found = {
            tag: curve[-1][1]
            for tag, curve in record.curves.items()
            if tag in (*TAGS, TEST_TAG)
            and curve[-1] == (record.last_step, curve[-1][1])
            and math.isfinite(curve[-1][1])
        }
        parts = []
        if (bound := found.get(TAGS[0])) is not None:
            parts.append(f"{bound:.3g}{' (vacuous)' if bound > VACUOUS else ''} for weights drawn from Q")
        if (bound := found.get(TEST_TAG)) is not None:
            parts.append(f"{bound:.3g} for the network")
        sure = f"With probability {1 - self._certificate.delta:g}, errors on new samples are at most "
        return f"{sure}{', '.join(parts)}." if parts else ""

    def state(self) -> list[int]:
        """Return where the next search begins, for a checkpoint."""
        return list(self._certificate.place)

    def restore(self, place: Sequence[int]) -> None:
        """Restore what :meth:`state` returned."""
        self._certificate.place = place[0], place[1]

    def _diagonal(self, snapshot: ModelSnapshot, generator: Generator) -> Tensor:
        assert self._plan is not None
        try:
            return self._plan.diagonal(snapshot, generator)
        except (NotCovered, Unavailable) as error:
            raise NoCertificate(str(error)) from error


def _or_none(measure: Callable[[], dict[str, float]], tag: str, point: Point) -> dict[str, float]:
    try:
        return measure()
    except NoCertificate as error:
        point.warn(f"no {tag}: {error}", tag)
        return {}
