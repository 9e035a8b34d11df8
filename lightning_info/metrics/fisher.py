"""The trace of the Fisher information as a torchmetrics ``Metric``."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_info.functional.fisher import exact_cotangents, fisher_cotangent
from lightning_info.functional.likelihoods import CotangentEstimator, LikelihoodLike, likelihood_named
from lightning_info.functional.standard_error import student_factor
from lightning_info.gradients import EngineName, Plan, choose_engine
from lightning_info.gradients.batches import tensors
from lightning_info.replica.isolation import isolated
from lightning_info.validation import one_of


class FisherTrace(Metric):
    r"""``tr F``, the trace of the Fisher information of a module's weights, over all samples it was given.

    .. math:: \mathrm{tr}\, F = \mathbb{E}_x\, \mathbb{E}_{y \sim p_w(y|x)} \|\nabla_w \log p_w(y|x)\|^2

    Every sample goes backward once, with one random cotangent (see :func:`~lightning_info.functional.fisher_cotangent`)
    or, for ``"exact"``, with all of them. ``compute()`` gives ``{"trace": ..., "trace_stderr": ...}``, float64 scalars
    in nats per squared weight change; the standard error is an upper bound, 0 for ``"exact"``, NaN of one sample. The
    weights must stay the same between ``reset()`` and ``compute()``. Lightning's ``self.log`` takes no metric with
    several values; log them with ``self.log_dict`` as below. Source: Achille, Paolini & Soatto, sections 1.2 and 4.

    Args:
        likelihood: Meaning of ``module(inputs)``: ``"categorical"`` logits ``(N, *positions, C)``, ``"bernoulli"``
            logits ``(N, *)``, ``"gaussian"`` means ``(N, *)`` of unit variance, ``"laplace"`` or ``"huber"`` locations
            of unit scale, or ``"poisson"`` log-rates; or a :class:`~.functional.likelihoods.Likelihood`.
        estimator: A cotangent, or ``"exact"``.
        engine: Engine of the per-sample gradients; see :func:`lightning_info.gradients.choose_engine`.
        seed: Seed of the cotangents; global random numbers are never touched.
        kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: An argument is not a known name.

    Example::

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.fisher.update(self, x)  # self.fisher = FisherTrace()

        def on_validation_epoch_end(self):
            self.log_dict(self.fisher.compute())
            self.fisher.reset()
    """

    plot = Metric._plot  # draws what compute() returned, or a list of it over time
    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(
        self,
        likelihood: LikelihoodLike = "categorical",
        estimator: CotangentEstimator | Literal["exact"] = "importance",
        engine: EngineName = "auto",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        likelihood_named(likelihood, "FisherTrace")
        one_of("FisherTrace", "estimator", estimator, (*get_args(CotangentEstimator), "exact"))
        one_of("FisherTrace", "engine", engine, get_args(EngineName))
        self.likelihood, self.estimator, self.engine, self.seed = likelihood, estimator, engine, seed
        self._plan: Plan | None = None
        self._made_for: tuple[Any, ...] = ()
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, module: nn.Module, inputs: Any) -> None:
        """Add the samples of a batch.

        Args:
            module: The module, in eval mode; it is never changed and not kept.
            inputs: Its inputs, sample axis first.

        Raises:
            ValueError: The module is in train mode.
            NotCovered: No engine gives exact per-sample gradients of the module.
        """
        if module.training:
            raise ValueError("FisherTrace: the module is in train mode; call module.eval() before")
        parameter = next(module.parameters())
        with isolated(parameter.device):
            inputs = apply_to_collection(inputs, Tensor, lambda leaf: leaf.clone() if leaf.is_inference() else leaf)
            outputs = module(inputs).detach()
            if self.estimator == "exact":
                cotangents = list(exact_cotangents(outputs, self.likelihood))
            else:
                cotangents = [fisher_cotangent(outputs, self.likelihood, self.estimator, generator=self._generator())]
            made_for = (weakref.ref(module), *_structure(module, inputs))
            if self._plan is None or self._made_for != made_for:
                self._plan = choose_engine(module, _call, inputs, self.engine)
            plan, self._plan = self._plan, None
            norms = plan.squared_norms(module, _call, inputs, cotangents)
        if plan.checked > 1:
            self._plan, self._made_for = plan, made_for
        values = torch.stack(list(norms.values())).sum(0)
        self.total += values.sum()
        self.squares += values.square().sum()
        self.count += len(values)

    def compute(self) -> dict[str, Tensor]:
        """Return the trace over all samples of all processes, and its standard error; NaN without samples."""
        trace = self.total / self.count
        variance = (self.squares / self.count - trace.square()).clamp_min(0) / (self.count - 1)
        freedom = int(self.count) - 1
        factor = student_factor(freedom) if freedom > 0 else math.nan
        stderr = torch.zeros_like(trace) if self.estimator == "exact" else factor * variance.sqrt()
        return {"trace": trace, "trace_stderr": stderr}

    def reset(self) -> None:
        """Forget the samples, and how their gradients were computed."""
        super().reset()
        self._plan = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the module that the plan was made for, as a copied metric will see another one."""
        return {**super().__getstate__(), "_made_for": ()}

    def _generator(self) -> torch.Generator:
        """Return a generator with other draws for every batch and process."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        return torch.Generator().manual_seed((1_000_003 * self.seed + 10_007 * rank + self._update_count) % 2**63)


def _call(module: nn.Module, inputs: Any) -> Tensor:
    outputs: Tensor = module(inputs)
    return outputs


_PLAIN = (bool, int, float, str, type(None))


def _structure(module: nn.Module, inputs: Any) -> Iterator[Any]:
    """Yield what decides which engine is exact: layers, their switches, trained weights, the form of the inputs."""
    for name, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, Metric):  # counts its updates
            continue
        yield name, type(layer), type(layer).forward
        for key, value in vars(layer).items():
            items = value if isinstance(value, tuple) else (value,)
            if all(isinstance(item, (*_PLAIN, type)) or inspect.isroutine(item) for item in items):
                yield key, value
            elif key.endswith("_hooks"):
                yield key, tuple(value)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield name, id(parameter), parameter.shape, parameter.dtype, parameter.requires_grad
    for leaf in tensors(inputs):
        yield leaf.shape[1:], leaf.dtype
