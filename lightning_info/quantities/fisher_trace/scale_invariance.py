r"""What of the Fisher information does not depend on how the weights are scaled.

A ReLU network computes the same if a layer's weights are multiplied by a factor and those of the next divided by it,
and so does any layer in front of BatchNorm; tr F moves by the square of the factor. Each of these stays:

.. math:: \sum_t \|w_t\|^2 \operatorname{tr} F_t, \qquad w^\top F w = \mathbb{E} (Jw)^\top H (Jw),

the first over parameter tensors t (a bias is one of its own), the second the squared Fisher-Rao norm of Liang et al.
(2019), which for a bias-free ReLU network of depth L is :math:`L^2 \mathbb{E} f^\top H f`, as :math:`Jw = L f`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info.functional.fisher import output_fisher_product
from lightning_info.gradients.contract import NotCovered, trainable
from lightning_info.gradients.graph import graph_of
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.real import as_real
from lightning_info.quantities.fisher_trace.hessian import NO_DERIVATIVE
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable


def squared_weight_norms(module: nn.Module) -> dict[str, float]:
    """Return the squared norm of every trained tensor, by name."""
    return {name: as_real(p.detach()).double().square().sum().item() for name, p in trainable(module).items()}


def rao_norm(snapshot: ModelSnapshot) -> float:
    """Return ``wᵀ F w`` in nats, the mean over all reference samples: nothing is drawn.

    Raises:
        Unavailable: It is not finite.
    """

    def of_part() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for batch in snapshot.parts(groups=snapshot.workers.part_of(snapshot.groups)[1]):
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                prediction = snapshot.predictor(snapshot.module, batch)
                tangent = _along_weights(prediction.outputs, snapshot.module)
            product = output_fisher_product(prediction.outputs, prediction.likelihood, tangent, prediction.mask)
            total += (product * tangent.double()).sum().cpu()
        return total

    total = torch.stack(snapshot.workers.gather("the derivative along the weights", of_part)).sum()
    if not total.isfinite():
        raise Unavailable("the derivative of the outputs along the weights is not finite")
    return total.item() / snapshot.size


def check_rao_norm(snapshot: ModelSnapshot) -> None:
    """Differentiate twice on the snapshot's first samples.

    Raises:
        NotCovered: An operator has no second derivative.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            _along_weights(snapshot.outputs(snapshot.module, snapshot.first_chunk()), snapshot.module)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise NotCovered(f"also='rao_norm' needs second derivatives: {str(error).splitlines()[0]}") from error


def _along_weights(outputs: Tensor, module: nn.Module) -> Tensor:
    """Return ``J w``, the derivative of the outputs as all weights grow by one factor, by two backward passes.

    ``Jᵀu`` is linear in u, so the gradient of ``wᵀ Jᵀ u`` in u is ``J w``.
    """
    weights = list(trainable(module).values())
    u = torch.zeros_like(outputs, requires_grad=True)
    gradients = torch.autograd.grad(outputs, weights, u, create_graph=True, allow_unused=True)
    along = [(as_real(g) * as_real(w.detach())).sum() for g, w in zip(gradients, weights, strict=True) if g is not None]
    slope = torch.stack(along).sum() if along else torch.zeros(())
    if not slope.requires_grad:
        return torch.zeros_like(outputs)
    if {node.name() for node in graph_of(slope).nodes} & NO_DERIVATIVE:  # autograd would treat it as constant
        raise NotCovered("an operator of the module has no second derivative, which also='rao_norm' needs")
    (found,) = torch.autograd.grad(slope, u, allow_unused=True)
    return torch.zeros_like(outputs) if found is None else found.detach()
