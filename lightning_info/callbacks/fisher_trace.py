"""``FisherTraceCallback``: the trace of the Fisher information during training, with its standard error."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import Unpack

from lightning_info.callbacks.options import CommonOptions
from lightning_info.callbacks.sample_table import TablesSamples
from lightning_info.gradients import Plan
from lightning_info.quantities.fisher_trace.quantity import Also, Engine, FisherTrace
from lightning_info.quantities.fisher_trace.sampling import Estimator


class FisherTraceCallback(TablesSamples):
    r"""Logs the trace of the Fisher information of the weights, ``tr F``, and where in the network it sits.

    .. math:: \mathrm{tr}\, F = \mathbb{E}_x\, \mathbb{E}_{y \sim p_w(y|x)} \|\nabla_w \log p_w(y|x)\|^2

    It is the curvature of the loss as the model itself sees it (nats per unit of squared weight change): how sensitive
    its predictions are to the weights. Labels come from the **model**, not from the data, so it does not vanish as the
    training loss does. Source: Achille, Paolini & Soatto, sections 1.2 and 4; ``docs/fisher.md``.

    Nothing in the user's code changes: outputs, targets and likelihood (``cross_entropy``, ``nll_loss``, ``kl_div``,
    ``binary_cross_entropy`` with or without logits, ``mse_loss``, ``gaussian_nll_loss``, ``l1_loss``, ``huber_loss``,
    ``smooth_l1_loss``, ``poisson_nll_loss``; ``log_prob`` of a distribution) are found in the module's
    ``training_step``. Everything is measured on a replica in eval mode (dropout off, BatchNorm as ``batch_norm`` says),
    so training is bit-identical to training without the callback.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured):

    - ``fisher/trace``: the trace over the reference samples, a mean per sample.
    - ``fisher/trace_stderr``, ``fisher/trace_low``, ``fisher/trace_high``: its standard error and 95 % band. They cover
      the draws and labels on the reference samples, not samples beyond them.
    - ``fisher/scale_invariant_trace`` and its ``_stderr``: the sum over tensors of weights of their squared norm times
      their trace, which rescaling layers without a change of the net leaves fixed.
    - ``fisher/coverage``: share of the trainable weights whose per-sample gradient norm was computed exactly.
    - ``fisher/overhead``: share of the run's time that this callback has taken so far; in ``history`` only.
    - ``fisher/rao_norm`` with ``also=["rao_norm"]``: wᵀFw over all reference samples.
    - ``fisher/empirical_trace``, ``fisher/exact_trace``, ``fisher/hessian_trace`` if requested with ``also``, each with
      ``_stderr``. The last is the trace of the Hessian of the training loss (at the labels of the data), which F
      approximates; it may be negative.
    - ``fisher_layers/<module>``: the share of each module's own parameters (``root`` for the LightningModule's);
      always in ``history``, in the loggers with ``per_layer=True``.
    - ``fisher/loss_gradient_trace`` and ``_stderr``, instead of all of these, if no likelihood is known and the loss is
      a mean or sum over samples: the mean of ``‖∇ loss‖²`` over samples, which is not the Fisher information.
    - figure ``fisher/layers``: heat map of these over training.

    At the end of fit every reference sample goes backward once more, if the time budget has room for it, for
    ``samples_to_pandas()``: a row for each with its gradient norms, loss and margin.

    Args:
        estimator: How the expectation over labels is taken. ``"importance"`` (default), ``"rademacher"`` and
            ``"sampled"`` are unbiased from one backward pass per draw; ``"sampled"`` is the textbook one, whose error
            explodes (and whose stderr is not to be trusted) once the network is confident. ``"exact"`` sums over all
            outputs for every reference sample. ``"empirical"`` uses the labels of the data: it is not the Fisher
            information, and vanishes with the training loss.
        draws: Number of samples for backward passes, drawn from the reference samples in proportion to the curvature of
            the outputs. None, or at least ``num_samples``: every sample once. ``"exact"`` always uses all of them.
        also: Other traces to log beside the main one.
        per_layer: Whether ``fisher_layers/<module>`` goes to the loggers too.
        engine: How per-sample gradients are computed: ``"backpack"`` (BackPACK rules fed by taps), ``"backpack_vmap"``
            (the same in a forward pass under ``torch.vmap``), ``"func"`` (``torch.func``), ``"loop"`` (one backward per
            sample), or ``"auto"``, the first of them that covers every parameter. Each is exact, and is compared with
            plain autograd before the first step. ``"cotangent"``, never chosen automatically, needs no per-sample
            gradients: one plain backward pass for every sixteenth of the draws, unbiased, with a larger error (in
            ``fisher/trace_stderr``) and ``fisher/coverage`` 0.
        num_samples: Number of reference samples: the first that training uses, kept on the CPU; with several processes
            an equal number from each, which every process then measures.
        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.

    Raises:
        ValueError: An argument is invalid.
        MisconfigurationException: With ``on_error="raise"``, before the first step (else a warning, and the callback
            is off), for a sharded strategy, no likelihood found, an adapter that returns something else, or a module
            without exact per-sample gradients.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import FisherTraceCallback

        trainer = Trainer(callbacks=[FisherTraceCallback()])
    """

    quantity: FisherTrace

    def __init__(
        self,
        estimator: Estimator = "importance",
        draws: int | None = 64,
        also: Sequence[Also] = (),
        per_layer: bool = False,
        engine: Engine = "auto",
        num_samples: int = 256,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(FisherTrace(estimator, draws, also, per_layer, engine), num_samples=num_samples, **common)

    @property
    def plan(self) -> Plan | None:
        """The engine in use, and why faster ones are not; None before the first batch."""
        return self.quantity.plan
