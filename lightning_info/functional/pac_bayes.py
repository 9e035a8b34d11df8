r"""PAC-Bayes bounds: how the information in the weights bounds the error on new data.

``R(Q)`` is the expected loss, between 0 and 1, of weights drawn anew from Q for every prediction (the Gibbs classifier,
and not the network with the mean weights). With N independent training samples, priors ``P_1 ... P_J`` fixed before
they were seen, and probability ``1 - δ`` over them, for every j and **every** Q at once:

.. math:: \mathrm{kl}\bigl(\hat R(Q)\,\|\,R(Q)\bigr) \le
          \frac{\mathrm{KL}(Q\|P_j) + \log(2\sqrt N J / \delta)}{N} \qquad\text{(Seeger, Maurer)},

.. math:: R(Q) \le \frac{1}{1 - 1/(2b)} \Bigl[\hat R(Q) + \frac{b}{N}
          \Bigl(\mathrm{KL}(Q\|P_j) + \log\frac{J |B|}{\delta}\Bigr)\Bigr] \qquad\text{(Theorem 2.2; } b \in B).

J and \|B\| pay for the choice among priors and prefactors; mean, covariance, β and the moment of stopping of Q are
free. The training loss of Q is an average over draws itself, with a bound of its own (:func:`gibbs_risk_bound`) and its
share of δ: both hold with probability ``1 - δ_1 - δ_2``.

:func:`binomial_tail_inverse` is the bound that needs no prior: from the errors of one network on samples that it was
neither trained on nor chosen by.

Source: Achille, Paolini & Soatto, Theorem 2.2; Maurer (2004); Langford & Caruana (2001); Langford (2005), Theorem 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

PRIOR_STDS = tuple(1000 ** (i / 300 - 1) for i in range(301))
"""Standard deviations λ of priors, from 0.001 to 1, among which a bound chooses for each group of weights. The choice
costs 5.7 nats, and the nearest of them at most 0.00014 k nats more than the best λ for k weights."""
PREFACTORS = tuple(100 ** (i / 30) for i in range(31))
"""B. The best b, ``(1 + √(1 + 2 R̂ N / (KL + ...))) / 2``, is never below 1."""


@dataclass(frozen=True)
class RiskBound:
    """A bound of the expected loss of the Gibbs classifier.

    Attributes:
        value: The bound; more than 1 in the form of Theorem 2.2 if it says nothing.
        prior: Index of the prior that gave it.
    """

    value: float
    prior: int

    @property
    def is_vacuous(self) -> bool:
        """Whether it is at least 1, which bounds every loss here anyway."""
        return self.value >= 1


def kl_inverse(q: float, c: float) -> float:
    """Return ``sup {p : kl(q‖p) <= c}``, the largest mean that an observed one of q leaves possible.

    Args:
        q: Observed mean, between 0 and 1.
        c: Relative entropy of two Bernoulli distributions, in nats.

    Returns:
        p, between q and 1, to 1e-12 or better.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"kl_inverse: q={q}; it is a mean of values between 0 and 1")
    if not c >= 0:
        raise ValueError(f"kl_inverse: c={c} nats; it must be at least 0")
    low, high = q, 1.0
    while high - low > 1e-13:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _kl(q, middle) <= c else (low, middle)
    return high


def gibbs_risk_bound(risk: float, draws: int, delta: float) -> float:
    """Return an upper bound of ``R̂(Q)``, the training loss of Q, from drawn weights: ``kl⁻¹(risk, log(1/δ) / M)``.

    Args:
        risk: Mean over the draws.
        draws: M, independent averages between 0 and 1 that have the same weight and together the mean ``R̂(Q)``:
            training losses of one draw of weights each, or losses of batches of equal size that make up the training
            set, with draws of their own. Q does not depend on them. M samples out of the training set, drawn at
            random without replacement and independently of Q, count as well, as their mean scatters less than that of
            independent ones (Hoeffding 1963, Theorem 4).
        delta: Probability that it fails.

    Raises:
        ValueError: An argument is out of range.
    """
    _check(risk, draws, delta)
    return kl_inverse(risk, math.log(1 / delta) / draws)


def binomial_tail_inverse(errors: int, samples: int, delta: float) -> float:
    """Return ``sup {p : P(Binomial(n, p) <= errors) >= δ}``, the test-set bound of a network's error.

    No bound from the number of errors alone is smaller. The samples are independent, and the network was neither
    trained on them nor chosen by them.

    Args:
        errors: Number of wrong predictions.
        samples: n, predictions in all.
        delta: Probability that it fails.

    Returns:
        p, to 1e-12.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 <= errors <= samples:
        raise ValueError(f"binomial_tail_inverse: {errors} errors of {samples} samples")
    _check(errors / max(1, samples), samples, delta)
    if errors == samples:
        return 1.0
    k = torch.arange(errors + 1, dtype=torch.float64)
    choose = math.lgamma(samples + 1) - torch.lgamma(k + 1) - torch.lgamma(samples - k + 1)
    low, high = errors / samples, 1.0
    while high - low > 1e-13:
        p = (low + high) / 2
        if p in (low, high):
            break
        tail = (choose + k * math.log(p) + (samples - k) * math.log1p(-p)).logsumexp(0).item()
        low, high = (p, high) if tail >= math.log(delta) else (low, p)
    return high


def seeger_bound(
    risk: float, information: Sequence[float], samples: int, delta: float, log_choices: float | None = None
) -> RiskBound:
    """Return ``min_j kl⁻¹(risk, (KL_j + log(2 √N J / δ)) / N)``.

    Args:
        risk: ``R̂(Q)``, or an upper bound of it.
        information: ``KL(Q‖P_j)`` for each of the J priors, fixed before the samples were seen; nats.
        samples: N.
        delta: Probability that it fails.
        log_choices: log J, if the priors given are the best of more; by default that of their number.

    Raises:
        ValueError: An argument is out of range.
    """
    _check(risk, samples, delta, information)
    prior = min(range(len(information)), key=information.__getitem__)
    price = math.log(2 * math.sqrt(samples) / delta) + _log_choices(information, log_choices)
    return RiskBound(kl_inverse(risk, (information[prior] + price) / samples), prior)


def mcallester_bound(
    risk: float, information: Sequence[float], samples: int, delta: float, log_choices: float | None = None
) -> RiskBound:
    """Return ``min_{j, b} [risk + b/N (KL_j + log(J |B| / δ))] / (1 - 1/(2b))``, the form of Theorem 2.2.

    The arguments are those of :func:`seeger_bound`; b is one of :data:`PREFACTORS`.
    """
    _check(risk, samples, delta, information)
    prior = min(range(len(information)), key=information.__getitem__)
    price = math.log(len(PREFACTORS) / delta) + _log_choices(information, log_choices)
    rate = (information[prior] + price) / samples
    return RiskBound(min((risk + b * rate) / (1 - 1 / (2 * b)) for b in PREFACTORS), prior)


def _kl(q: float, p: float) -> float:
    """Return the KL of two Bernoulli distributions, ``q < p < 1``; accurate also if they are close."""
    kl = -(1 - q) * math.log1p((q - p) / (1 - q))
    return kl - q * math.log1p((p - q) / q) if q > 0 else kl


def _log_choices(information: Sequence[float], log_choices: float | None) -> float:
    if log_choices is not None and not log_choices >= math.log(len(information)) - 1e-9:
        raise ValueError(f"PAC-Bayes: log_choices={log_choices}; there are {len(information)} priors at least")
    return math.log(len(information)) if log_choices is None else log_choices


def _check(risk: float, number: int, delta: float, information: Sequence[float] = (0.0,)) -> None:
    if not 0 <= risk <= 1:
        raise ValueError(f"PAC-Bayes: risk={risk}; the loss has to lie between 0 and 1, as the 0-1 error does")
    if number < 1:
        raise ValueError(f"PAC-Bayes: a mean over {number} values; there must be at least one")
    if not 0 < delta < 1:
        raise ValueError(f"PAC-Bayes: delta={delta}; it is a probability between 0 and 1, for example delta=0.05")
    if not information or not all(kl >= 0 for kl in information):
        raise ValueError(f"PAC-Bayes: KL(Q‖P) of {list(information)} nats; give one for each prior, none below 0")
