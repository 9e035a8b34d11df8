r"""Diagonal and Kronecker factors of the Fisher information by BackPACK's own rules, guarded.

.. math:: F = \mathbb{E}_x\, J^\top H(z)\, J

is the generalised Gauss-Newton matrix of the likelihood (definitions: ``docs/fisher.md``). BackPACK takes columns U
with ``E[U Uᵀ] = H / N`` back through the layers, here those of :mod:`lightning_info.functional` (its own exact
and sampled extensions differ in nothing else): no loss of the user and no reduction enters, and the mean over samples
is ours. It works on a private copy; the user's module gets no hook, attribute or gradient, and no global random number
is drawn.

BackPACK's second-order rules are silently wrong or partial in places. What is known of it is refused
(:mod:`~.obstacles`), and what is left is compared with plain autograd on two samples in float64, every time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from backpack import backpack, extend
from backpack.context import CTX
from backpack.extensions import KFAC, DiagGGNExact
from backpack.extensions.module_extension import ModuleExtension
from torch import Tensor, nn

from lightning_info.functional.fisher import exact_cotangents, fisher_cotangent
from lightning_info.functional.likelihoods import CotangentEstimator, LikelihoodLike, likelihood_named
from lightning_info.gradients.backpack.ggn_check import check_diagonal, check_factors
from lightning_info.gradients.backpack.supported_layers import POOLS, obstacles
from lightning_info.gradients.contract import NotCovered, first_line, trainable
from lightning_info.gradients.copies import deep_copy
from lightning_info.gradients.graph import leaf_uses
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.gradients.taps import listed
from lightning_info.validation import one_of

CurvatureEstimator = CotangentEstimator | Literal["exact"]


def ggn_diagonal(
    module: nn.Module,
    inputs: Tensor,
    likelihood: LikelihoodLike = "categorical",
    estimator: CurvatureEstimator = "exact",
    *,
    draws: int = 1,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information F, a mean over samples; its sum is ``tr F``.

    Memory grows with the number of samples times that of columns: all outputs of a sample for ``"exact"``, ``draws``
    otherwise.

    Args:
        module: Maps inputs to outputs ``(N, ...)``, in eval mode; never changed.
        inputs: ``(N, ...)``.
        likelihood: The predictive distribution; layout of the outputs as in :mod:`lightning_info.functional`.
        estimator: ``"exact"``, or random cotangents, which are unbiased (see
            :func:`~lightning_info.functional.fisher_cotangent`).
        draws: Cotangents per sample, unless exact.
        seed: Of the draws.

    Returns:
        A tensor of the parameter's shape (nats per unit of squared weight change) for every trainable parameter, in
        the module's precision, float32 at least; zero where the outputs do not depend on it.

    Raises:
        NotCovered: BackPACK has no right rule for the module; the message has every reason.
    """
    found = _by_backpack(DiagGGNExact, module, inputs, likelihood, estimator, draws, seed)
    return {
        name: found[name] if name in found else torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in trainable(module).items()
    }


def kfac(
    module: nn.Module,
    inputs: Tensor,
    likelihood: LikelihoodLike = "categorical",
    estimator: CurvatureEstimator = "exact",
    *,
    draws: int = 1,
    seed: int = 0,
) -> dict[str, list[Tensor]]:
    r"""Kronecker factors that approximate the blocks of the Fisher information F.

    With the input a and the gradients g at the output of a layer, at positions t,

    .. math:: G = \mathbb{E}\, \sum_t g_t \sum_{t'} g_{t'}^\top, \qquad A = \mathbb{E}\, \sum_t a_t a_t^\top .

    - Bias: ``[G]``, its block of F, exactly (up to the draws).
    - Weight of a linear layer: ``[G, A]``. ``G ⊗ A`` is its block of F for one sample; for several it is an
      approximation, the mean of products being replaced by the product of means.
    - Weight of a convolution: ``[G, A]``, a_t being the unfolded patch at t. Exact for one sample and one position
      only; with T output positions ``G ⊗ A`` is T times the approximation of Grosse & Martens, who take g at different
      positions to be uncorrelated. For a transposed convolution of ``weight.transpose(0, 1)``.

    Blocks of F between parameters are left out. ``G ⊗ A`` acts on the flattened weight: ``kron(G, A) @ w.flatten()``
    is ``G @ w.flatten(1) @ A``. Source: Martens & Grosse 2015; Grosse & Martens 2016 (their G is ours divided by T).

    Args:
        module: Maps inputs to outputs ``(N, ...)``, in eval mode; never changed.
        inputs: ``(N, ...)``.
        likelihood: As in :func:`ggn_diagonal`.
        estimator: As in :func:`ggn_diagonal`.
        draws: Cotangents per sample, unless exact.
        seed: Of the draws.

    Returns:
        The factors for every trainable parameter, in the module's precision, float32 at least.

    Raises:
        NotCovered: BackPACK has no right rule for the module; the message has every reason.
    """
    return _by_backpack(KFAC, module, inputs, likelihood, estimator, draws, seed)


def _by_backpack(
    kind: type[Any],
    module: nn.Module,
    inputs: Tensor,
    likelihood: LikelihoodLike,
    estimator: CurvatureEstimator,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    one_of("BackPACK's second-order rules", "estimator", estimator, (*get_args(CotangentEstimator), "exact"))
    with _apart(inputs.device):
        _guard(kind, module, inputs[:CHECK_SAMPLES], likelihood)
        net, inputs = _copy(module, inputs, torch.float32)
        outputs = net(inputs.clone()).detach()
        if estimator == "exact":
            columns = list(exact_cotangents(outputs, likelihood))
        else:
            generator = torch.Generator().manual_seed(seed)
            drawn = (fisher_cotangent(outputs, likelihood, estimator, generator=generator) for _ in range(draws))
            columns = [u / draws**0.5 for u in drawn]
        return _run(kind(), net, inputs, outputs, torch.stack(columns) / len(outputs) ** 0.5)


def _guard(kind: type[Any], module: nn.Module, inputs: Tensor, likelihood: LikelihoodLike) -> None:
    """Refuse what is known to be wrong, and compare the rest with plain autograd: the rules are those of any columns.

    Raises:
        NotCovered: With all reasons.
    """
    owner = type(module).__name__
    net, inputs = _copy(module, inputs, torch.float64)
    outputs = net(inputs.clone())
    reasons = obstacles(_copy(module, inputs, torch.float64)[0], inputs, kronecker=kind is KFAC)
    used = {id(leaf) for leaf in leaf_uses(outputs)}
    unused = {name for name, p in trainable(net).items() if id(p) not in used}
    if unused and kind is KFAC:
        reasons.append(f"{listed(sorted(unused))}: no part in the outputs; call .requires_grad_(False)")
    has_classes = likelihood_named(likelihood, "BackPACK's second-order rules").has_class_axis
    if len(outputs) != len(inputs) or (has_classes and (outputs.dim() < 2 or outputs.shape[-1] < 2)):
        layout = "(N, ..., classes)" if has_classes else "(N, ...)"
        reasons.append(f"outputs: {tuple(outputs.shape)} for {len(inputs)} samples; {likelihood} ones are {layout}")
    if reasons:
        raise NotCovered(f"BackPACK's second-order rules do not fit {owner} (docs/fisher.md). {'. '.join(reasons)}")
    columns = torch.zeros(2, *outputs.shape, dtype=torch.float64)
    columns[:, :2].normal_(generator=torch.Generator().manual_seed(0))
    columns = columns.to(outputs.device)
    found = _run(kind(), _copy(module, inputs, torch.float64)[0], inputs, outputs.detach(), columns)
    missing = trainable(net).keys() - found.keys() - unused
    if missing:
        raise NotCovered(f"BackPACK gives nothing for {listed(sorted(missing))} of {owner}")
    check = check_factors if kind is KFAC else check_diagonal
    check(net, inputs, columns, found)


def _run(extension: Any, net: nn.Module, inputs: Tensor, outputs: Tensor, columns: Tensor) -> dict[str, Any]:
    """What the extension gives for each parameter; ``net`` is used up.

    Args:
        extension: A new one.
        net: A private copy.
        inputs: ``(N, ...)``.
        outputs: Those of ``net``.
        columns: ``(V, *outputs.shape)``.
    """
    parameters = trainable(net)
    extension.set_module_extension(_Start, _Columns())
    for pool in POOLS:
        extension.set_module_extension(pool, _Average(), overwrite=True)
    try:
        start = extend(_Start(columns.to(outputs)))
        network = extend(nn.Sequential(net), use_converter=True)
        with backpack(extension):
            converted = network(inputs.clone())
            if converted.shape != outputs.shape or not torch.allclose(
                converted, outputs, rtol=1e-3, atol=1e-5, equal_nan=True
            ):
                raise NotCovered("with layers out of place outputs differ: is a value used again that one changed?")
            start(converted).backward()
    except NotCovered:
        raise
    except Exception as error:  # of BackPACK's own
        if is_out_of_memory(error):
            raise
        raise NotCovered(f"BackPACK fails ({first_line(error)})") from error
    field = extension.savefield
    return {name: getattr(p, field) for name, p in parameters.items() if hasattr(p, field)}


class _Start(nn.modules.loss._Loss):
    """Where BackPACK begins: in place of a loss, columns that are given."""

    def __init__(self, columns: Tensor) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.sum()


class _Columns(ModuleExtension):  # type: ignore[misc]
    def backpropagate(self, extension: Any, module: Any, g_inp: Any, g_out: Any, bp: Any) -> Tensor:
        columns: Tensor = module.columns
        return columns


class _Average(ModuleExtension):  # type: ignore[misc]
    """Averages by their own backward pass, of any settings.

    The stock rule makes a convolution of float32 with random weights: it fails in float64, advances the global random
    numbers, and is wrong for ``divisor_override``.
    """

    def backpropagate(self, extension: Any, module: Any, g_inp: Any, g_out: Any, bp: Tensor) -> Tensor:
        flat = bp.flatten(0, 1)
        x = flat.new_zeros(len(flat), *module.input0.shape[1:], requires_grad=True)
        with torch.enable_grad():
            averages = module.forward(x)
        (back,) = torch.autograd.grad(averages, x, flat)
        return back.view(*bp.shape[:2], *x.shape[1:])


def _copy(module: nn.Module, inputs: Tensor, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Private ones, of at least this precision."""
    for p in module.parameters():
        dtype = torch.promote_types(dtype, p.dtype)
    copied = deep_copy(module).to(dtype=dtype)
    inputs = inputs.detach()
    return copied, inputs.to(dtype) if inputs.is_floating_point() else inputs


@contextmanager
def _apart(device: torch.device) -> Iterator[None]:
    """Gradients on, inference mode and autocast off; BackPACK's list of hooks and the random numbers as they were."""
    handles = CTX.hook_handles
    CTX.hook_handles = []
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        CTX.hook_handles = handles
