"""The predictive distributions ``p(y | z)`` of outputs z: one file each, and the names by which users choose them.

A new one is a subclass of :class:`Likelihood` in its own file and a line in :data:`LIKELIHOODS` (and its name in
:data:`LikelihoodName`, which the type checker reads), or, if outputs are the parameters of a class of
``torch.distributions``, in :data:`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import distributions

from lightning_info.functional.likelihoods.asymmetric_laplace import AsymmetricLaplace
from lightning_info.functional.likelihoods.base import CotangentEstimator, Likelihood, NotRegular, PerOutput
from lightning_info.functional.likelihoods.bernoulli import Bernoulli
from lightning_info.functional.likelihoods.categorical import Categorical
from lightning_info.functional.likelihoods.family import Family
from lightning_info.functional.likelihoods.gaussian import Gaussian
from lightning_info.functional.likelihoods.huber import Huber
from lightning_info.functional.likelihoods.laplace import Laplace
from lightning_info.functional.likelihoods.laplace_with_scale import LaplaceWithScale
from lightning_info.functional.likelihoods.negative_binomial import NegativeBinomial
from lightning_info.functional.likelihoods.parameters import OfParameters
from lightning_info.functional.likelihoods.poisson import Poisson
from lightning_info.functional.likelihoods.product import Product
from lightning_info.functional.likelihoods.sampled import Sampled
from lightning_info.functional.likelihoods.student_t import StudentT
from lightning_info.functional.likelihoods.weibull import Weibull
from lightning_info.validation import one_of

LikelihoodName = Literal["categorical", "bernoulli", "gaussian", "laplace", "huber", "poisson"]
LikelihoodLike = LikelihoodName | Likelihood
"""A name, or a distribution with its own parameters, such as ``Huber(delta=0.5)``."""
LIKELIHOODS: dict[str, Likelihood] = {
    one.name: one for one in (Categorical(), Bernoulli(), Gaussian(), Laplace(), Huber(), Poisson())
}


_Maker = tuple[tuple[str, ...], Callable[..., Family]]


def _by_divergence(kind: type[distributions.Distribution], *names: str) -> _Maker:
    return names, partial(Family, kind, names)


FAMILIES: dict[type[distributions.Distribution], _Maker] = {
    distributions.StudentT: (("df", "loc", "scale"), StudentT),
    distributions.NegativeBinomial: (("total_count", "logits"), NegativeBinomial),
    distributions.Laplace: (("loc", "scale"), LaplaceWithScale),
    distributions.Weibull: (("scale", "concentration"), Weibull),
    distributions.Gamma: _by_divergence(distributions.Gamma, "concentration", "rate"),
    distributions.Beta: _by_divergence(distributions.Beta, "concentration1", "concentration0"),
    distributions.Dirichlet: _by_divergence(distributions.Dirichlet, "concentration"),
    distributions.Exponential: _by_divergence(distributions.Exponential, "rate"),
    distributions.Geometric: _by_divergence(distributions.Geometric, "logits"),
    distributions.Gumbel: _by_divergence(distributions.Gumbel, "loc", "scale"),
    distributions.Cauchy: _by_divergence(distributions.Cauchy, "loc", "scale"),
    distributions.MultivariateNormal: _by_divergence(distributions.MultivariateNormal, "loc", "scale_tril"),
}
"""Classes of torch: names of their parameters, and what makes the likelihood from ``predicted`` and ``shapes``."""

__all__ = [
    "FAMILIES",
    "LIKELIHOODS",
    "AsymmetricLaplace",
    "Bernoulli",
    "Categorical",
    "CotangentEstimator",
    "Family",
    "Gaussian",
    "Huber",
    "Laplace",
    "LaplaceWithScale",
    "Likelihood",
    "LikelihoodLike",
    "LikelihoodName",
    "NegativeBinomial",
    "NotRegular",
    "OfParameters",
    "PerOutput",
    "Poisson",
    "Product",
    "Sampled",
    "StudentT",
    "Weibull",
    "likelihood_named",
]


def likelihood_named(name: str | Likelihood, owner: str) -> Likelihood:
    """Return the predictive distribution with a name.

    Args:
        name: One of :data:`LIKELIHOODS`; a distribution is given back.
        owner: Name of the caller, for the message.

    Raises:
        ValueError: There is none of that name; the message has all names.
    """
    if isinstance(name, Likelihood):
        return name
    one_of(owner, "likelihood", name, tuple(LIKELIHOODS))
    return LIKELIHOODS[name]
