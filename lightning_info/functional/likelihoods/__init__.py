"""The predictive distributions ``p(y | z)`` of outputs z: one file each, and the names by which users choose them.

A new one is a subclass of :class:`Likelihood` in a file of its own and a line in :data:`LIKELIHOODS` (and its name in
:data:`LikelihoodName`, which the type checker reads).
"""

from __future__ import annotations

from typing import Literal

from lightning_info.functional.likelihoods.base import CotangentEstimator, Likelihood
from lightning_info.functional.likelihoods.bernoulli import Bernoulli
from lightning_info.functional.likelihoods.categorical import Categorical
from lightning_info.functional.likelihoods.gaussian import Gaussian
from lightning_info.validation import one_of

LikelihoodName = Literal["categorical", "bernoulli", "gaussian"]
LIKELIHOODS: dict[str, Likelihood] = {one.name: one for one in (Categorical(), Bernoulli(), Gaussian())}

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "CotangentEstimator",
    "Gaussian",
    "Likelihood",
    "LikelihoodName",
    "likelihood_named",
]


def likelihood_named(name: str, owner: str) -> Likelihood:
    """The predictive distribution of a name.

    Args:
        name: One of :data:`LIKELIHOODS`.
        owner: Who asks, for the message.

    Raises:
        ValueError: There is none of that name; the message has all names.
    """
    one_of(owner, "likelihood", name, tuple(LIKELIHOODS))
    return LIKELIHOODS[name]
