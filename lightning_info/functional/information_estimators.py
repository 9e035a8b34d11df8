"""The estimators of the information plane, by the names that users choose them by.

A new one is a subclass of :class:`~.InformationEstimator` in its own file and a line in :data:`ESTIMATORS` (and
its name in :data:`EstimatorName`, which type checkers and the LightningCLI read).
"""

from __future__ import annotations

from typing import Literal

from lightning_info.functional.code_information import ExactEstimator, PlugInEstimator
from lightning_info.functional.dropout_information import DropoutEstimator
from lightning_info.functional.information_estimator import InformationEstimator
from lightning_info.functional.linear_gaussian import GaussianEstimator
from lightning_info.functional.mixture import MixtureEstimator
from lightning_info.validation import one_of

EstimatorName = Literal["binning", "mixture", "gaussian", "exact", "dropout"]
ESTIMATORS: dict[str, InformationEstimator] = {
    "binning": PlugInEstimator(),
    "mixture": MixtureEstimator(),
    "gaussian": GaussianEstimator(),
    "exact": ExactEstimator(),
    "dropout": DropoutEstimator(),
}


def estimator_named(name: str, owner: str) -> InformationEstimator:
    """Return the estimator with a name.

    Args:
        name: One of :data:`ESTIMATORS`.
        owner: Name of the caller, for the message.

    Raises:
        ValueError: There is none of that name; the message has all names.
    """
    one_of(owner, "estimator", name, tuple(ESTIMATORS))
    return ESTIMATORS[name]
