"""``WeightInfoCallback``: how much information the weights hold, and at what precision."""

from __future__ import annotations

from typing import Literal

from typing_extensions import Unpack

from lightning_info.callbacks.first_losses import SeesFirstLosses
from lightning_info.callbacks.options import CommonOptions
from lightning_info.quantities.weight_information.quantity import WeightInformation


class WeightInfoCallback(SeesFirstLosses):
    r"""Logs the information in the weights: the spectrum of F, and the KL of the weights' distribution from the prior.

    With the prior ``P = N(w_ref, λ²I)`` and the distribution ``Q = N(w, Σ*)`` that the level β of the task tolerates,

    .. math:: \Sigma^* = \beta\,(N F + cI)^{-1}, \quad c = \beta / \lambda^2, \qquad
              \mathrm{KL}(Q \| P) = \tfrac12 \log\det(N F + cI) + \tfrac k2 \log\frac{\lambda^2}{\beta} - \tfrac k2
              + \frac{\|w - w_\mathrm{ref}\|^2 + \mathrm{tr}\,\Sigma^*}{2 \lambda^2}

    nats, for N training samples and k trainable weights. F is that of the reference samples in eval mode. Source:
    Achille, Paolini & Soatto, Definition 2.1, Proposition 2.5, eq. 8, with their constants corrected
    (``docs/errata.md``).

    One value at one β says little. What matters is the **rate-distortion curve**: for levels around ``beta`` the KL
    against the expected loss under the weight noise, measured by drawing weights, beside its quadratic prediction.
    Where the two differ, β is not small, and the report at the end of fit says from which level on.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured):

    - ``weight_info/kl_precision``: the part of KL(Q‖P) that says how precisely the task needs the weights, nats.
      ``weight_info/kl_displacement``: the other part, ``‖w - w_ref‖² / 2λ²``, usually the larger one.
      ``weight_info/kl``: both together. The last two are NaN if the prior's mean is not known.
    - ``weight_info/log_det``: log det(N F + (β/λ²) I).
    - ``weight_info/trace``, ``weight_info/top_eigenvalue``, ``weight_info/effective_rank``: properties of F.
    - ``weight_info/effective_dimension``: ``sum h / (h + c)`` over the eigenvalues h of N F, with ``c = β/λ²``: the
      number of directions that the data fix against the prior. Half of it is the local learning coefficient of the
      quadratic model.
    - ``_stderr`` of ``kl``, ``kl_precision``, ``log_det``, ``trace``, ``effective_rank``, ``effective_dimension``,
      ``lambda``, ``predicted_loss`` and ``free_energy``: with ``"lanczos"`` only, from its random probes and the
      bracket of its rule, see ``docs/errors.md`` (``top_eigenvalue`` is then never too large, and has no error);
      otherwise the values are exact for the samples of F, except ``"diagonal"`` with more than 32 outputs, which is
      random and has no known error.
    - ``weight_info/beta``, ``weight_info/lambda``: the level and the prior's standard deviation in use.
    - ``weight_info/expected_loss`` (with ``_stderr``, over pairs of draws; with ``"lanczos"`` also that of drawing the
      noise): mean loss of a sample under the weight noise, measured, nats.
    - ``weight_info/predicted_loss``: the same to second order; ``weight_info/loss``: without noise.
    - ``weight_info/complexity`` (with ``_stderr``, of both terms): ``C_β = N E_Q[loss] + β KL`` (eq. 2), nats.
    - ``weight_info/prequential``: code length of the labels in the first epoch, each by the network before it was
      trained on it, nats; it ends with the epoch. At the end ``weight_info/prequential_excess``, what it takes beyond
      the final loss. Absent where the returned loss is not the mean or sum of -log p of labels that come once.
    - ``weight_info/temperature``, ``weight_info/free_energy``: ``T = η / (2 B (1 - μ))`` of the optimiser, for gradient
      noise of unit variance (with Adam it only follows η), and ``loss + T/2 log det(F + I)``. With a
      ``GradientNoiseCallback`` before this callback in the Trainer's list T is that of the noise it measures.
    - ``weight_info/pac_bayes_bound``: largest error on new samples, with probability ``1 - delta``, of weights that are
      drawn for each prediction from a Q chosen for this bound; ``weight_info/gibbs_error`` (with ``_stderr``): its
      error on the training set. For labels only, once the first epoch is over, and where the bound is valid:
      ``docs/weight_info.md`` has the conditions. ``weight_info/test_bound``: largest error on new samples of the
      network itself, by the validation data alone.
    - ``weight_info/overhead``: share of the run's time that this callback has taken so far; in ``history`` only.
    - figure ``weight_info/rate_distortion``; histogram ``weight_info/log10_eigenvalues`` of F.

    With an adapter that returns no targets the losses, ``complexity``, ``free_energy`` and the figure are left out.

    Args:
        beta: Level of the task, for the summed loss.
        prior: Mean of the prior: the weights at the start of training (``"init"``), or 0 (``"zero"``, as in the paper).
        lambda_: Standard deviation of the prior: ``"init_std"``, that of the weights at the start, one number;
            ``"optimal"``, the one that minimises the Lagrangian at each point; or a number.
        curvature: How F is measured: ``"matrix"`` (k x k, for few weights), ``"gram"`` (the Gram matrix of the exact
            gradients of each output of each sample), ``"lanczos"`` (products with F, random probes), or ``"auto"``: by
            size, in this order. ``"diagonal"`` replaces F by its diagonal in everything that is logged;
            ``"auto"`` uses it if nothing else fits, and for modules without second derivatives that are too large for
            ``"matrix"``.
        max_rows: Largest size of the Gram matrix: with more gradients, fewer samples are used. The default is 1280, and
            less for more than three million weights.
        draws: Number of weight draws for each level, in opposite pairs; all levels use the same normal numbers.
        num_samples: Number of reference samples: the first that training uses, kept on the CPU; with several processes
            an equal number from each, which every process then measures.
        delta: Probability that ``pac_bayes_bound`` fails at a point, and that ``test_bound`` does.
        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.

    Raises:
        ValueError: An argument is invalid.
        MisconfigurationException: With ``on_error="raise"``, before the first step (else a warning, and the callback
            is off), for a sharded strategy, no likelihood found, a module without exact per-sample gradients, or
            weights that are all equal at the start with ``"init_std"``.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import WeightInfoCallback

        trainer = Trainer(callbacks=[WeightInfoCallback()])
    """

    quantity: WeightInformation

    def __init__(
        self,
        beta: float = 1.0,
        prior: Literal["init", "zero"] = "init",
        lambda_: float | Literal["init_std", "optimal"] = "init_std",
        curvature: Literal["auto", "matrix", "gram", "lanczos", "diagonal"] = "auto",
        max_rows: int | None = None,
        draws: int = 8,
        num_samples: int = 256,
        delta: float = 0.05,
        **common: Unpack[CommonOptions],
    ) -> None:
        quantity = WeightInformation(beta, prior, lambda_, curvature, max_rows, draws, delta)
        super().__init__(quantity, num_samples=num_samples, **common)
