"""The rate-distortion curve of the weights: the nats that they hold, against the loss under the noise that this allows.

At each level β the weights hold KL(Q‖P) nats, and cost the expected loss under the noise ``N(0, Σ*)``. To second order
it rises by ``½ tr(HΣ*)``; where the measured rise differs, β is not small, and neither Σ* nor the KL should be
interpreted.

Source: Achille, Paolini & Soatto, Definition 2.1 and the remarks that follow it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

TOLERANCE = 0.1
"""Share of the predicted rise by which the measured one may differ, beyond twice its standard error."""


class RatePoint(NamedTuple):
    """One level of the curve; losses are means over the samples, nats.

    Attributes:
        beta: The level.
        lambda_: Standard deviation of the prior.
        information: KL(Q‖P) in nats, NaN where it is not known.
        displacement: The part ``‖w - w_ref‖² / 2λ²`` of it, the same for all levels at one λ.
        loss: Loss under the weight noise, measured.
        stderr: Standard error of this loss over the draws, NaN if it is not known.
        predicted: Loss under the weight noise, to second order.
        quiet: Loss without noise.
    """

    beta: float
    lambda_: float
    information: float
    displacement: float
    loss: float
    stderr: float
    predicted: float
    quiet: float

    @property
    def parts(self) -> bool:
        """Whether measured and predicted rise differ by more than :data:`TOLERANCE` and twice the standard error."""
        error = 0.0 if math.isnan(self.stderr) else 2 * self.stderr
        return not abs(self.loss - self.predicted) <= TOLERANCE * abs(self.predicted - self.quiet) + error


def parting(curve: Sequence[RatePoint]) -> float | None:
    """Return the lowest level at which measured and predicted rise differ; None if there is none.

    If it is the lowest of the curve, a smaller β does not help: noise of size λ in directions that hold no information
    then changes the loss by more than F says, and λ is not small.

    Args:
        curve: Levels in rising order.
    """
    return next((point.beta for point in curve if point.parts), None)
