"""The predictive distributions ``p(y | z)`` of outputs z: one file each, and the names by which users choose them.

A new one is a subclass of :class:`Likelihood` in a file of its own and a line in :data:`LIKELIHOODS` (and its name in
:data:`LikelihoodName`, which the type checker reads).
"""

from __future__ import annotations

from typing import Literal

from lightning_info.functional.likelihoods.base import CotangentEstimator, Likelihood, PerOutput
from lightning_info.functional.likelihoods.bernoulli import Bernoulli
from lightning_info.functional.likelihoods.categorical import Categorical
from lightning_info.functional.likelihoods.gaussian import Gaussian
from lightning_info.functional.likelihoods.huber import Huber
from lightning_info.functional.likelihoods.laplace import Laplace
from lightning_info.functional.likelihoods.poisson import Poisson
from lightning_info.functional.likelihoods.product import Product
from lightning_info.validation import one_of

LikelihoodName = Literal["categorical", "bernoulli", "gaussian", "laplace", "huber", "poisson"]
LikelihoodLike = LikelihoodName | Likelihood
"""A name, or a distribution that has parameters of its own, such as ``Huber(delta=0.5)``."""
LIKELIHOODS: dict[str, Likelihood] = {
    one.name: one for one in (Categorical(), Bernoulli(), Gaussian(), Laplace(), Huber(), Poisson())
}

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "CotangentEstimator",
    "Gaussian",
    "Huber",
    "Laplace",
    "Likelihood",
    "LikelihoodLike",
    "LikelihoodName",
    "PerOutput",
    "Poisson",
    "Product",
    "likelihood_named",
]


def likelihood_named(name: str | Likelihood, owner: str) -> Likelihood:
    """The predictive distribution of a name.

    Args:
        name: One of :data:`LIKELIHOODS`; a distribution is given back.
        owner: Who asks, for the message.

    Raises:
        ValueError: There is none of that name; the message has all names.
    """
    if isinstance(name, Likelihood):
        return name
    one_of(owner, "likelihood", name, tuple(LIKELIHOODS))
    return LIKELIHOODS[name]
