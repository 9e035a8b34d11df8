r"""Fisher information of a layer's activations about the input, and the information that follows from it.

Noise on the weights makes the activations of an input x random, to first order ``p(z|x) = N(f_w(x), Σ_z(x))``
(:mod:`~.activation_covariance`). With ``J`` the Jacobian of f in x, ``(d, p)``,

.. math:: F_{z|x} = J^\top \Sigma_z^{-1} J
          + \tfrac12 \operatorname{tr}(\Sigma_z^{-1} \partial_a \Sigma_z \, \Sigma_z^{-1} \partial_b \Sigma_z) .

The first term grows as 1/β, the second does not depend on β where Σ_z is proportional to it: the proposition, for small
β, leaves it out. As a Gaussian channel at every x, the layer holds the information

.. math:: I = \tfrac12\, \mathbb{E}_x \log\det(I + \mathrm{Cov}(x)\, F_{z|x}) ,

exact for Gaussian x, linear f and constant Σ_z, otherwise an approximation that is not a bound. For small noise it
tends to eq. 10 of the paper, which exists for ``d >= p`` only.

Source: Achille, Paolini & Soatto, Proposition 3.2, corrected (``docs/errata.md``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_info.functional.theory.activation_covariance import FOUR_DIGITS, scaled_eigenvalues


def activation_fisher(jacobian: Tensor, covariance: Tensor, covariance_derivative: Tensor | None = None) -> Tensor:
    """Return the Fisher information ``F_{z|x}`` of ``N(f(x), Σ_z(x))`` about x, at N inputs.

    Args:
        jacobian: Jacobian of f in x, ``(N, d, p)``.
        covariance: ``Σ_z(x)``, ``(N, d, d)``.
        covariance_derivative: ``∂Σ_z/∂x_a``, ``(N, p, d, d)``, for the second term; None leaves it out.

    Returns:
        ``(N, p, p)`` float64.

    Raises:
        ValueError: Invalid shapes; a Σ_z that is not finite or does not have the full rank d, at any of the inputs.
    """
    if jacobian.dim() != 3:
        raise ValueError(f"jacobian of shape {tuple(jacobian.shape)}: expected (N, d, p)")
    n, d, p = jacobian.shape
    _check("covariance", covariance, (n, d, d))
    sigma = covariance.double()
    rank = _ranks(sigma, covariance.dtype)
    if (rank < d).any():
        first = int((rank < d).nonzero()[0])
        still = int((sigma[first].diagonal() == 0).sum())
        raise ValueError(
            f"activation_fisher: the covariance of the activations is singular, to within rounding, at "
            f"{int((rank < d).sum())} of {n} inputs; at input {first} it has rank {int(rank[first])} of {d}; units "
            f"that do not move at all: {still}. F would be infinite. Leave such units out, or take the layer before "
            "its ReLU; there are no more independent units than weights with noise"
        )
    factor = torch.linalg.cholesky(sigma)
    root = torch.linalg.solve_triangular(factor, jacobian.double(), upper=False)
    fisher: Tensor = root.mT @ root
    if covariance_derivative is not None:
        _check("covariance_derivative", covariance_derivative, (n, p, d, d))
        half = torch.linalg.solve_triangular(factor[:, None], covariance_derivative.double(), upper=False)
        whole = torch.linalg.solve_triangular(factor[:, None], half.mT, upper=False).flatten(2)
        fisher = fisher + whole @ whole.mT / 2
    return fisher


def gaussian_channel_information(fisher: Tensor, input_cov: Tensor) -> float:
    """Return ``½ E_x log det(I + Cov(x) F_{z|x})``, in nats: not negative, and finite whatever the ranks.

    Args:
        fisher: ``F_{z|x}`` at N inputs, ``(N, p, p)``.
        input_cov: Cov(x), ``(p, p)``; it may be singular.

    Raises:
        ValueError: Invalid shapes; matrices that are not finite or not positive semi-definite.
    """
    p = fisher.shape[-1]
    _check("fisher", fisher, (len(fisher), p, p))
    _check("input_cov", input_cov, (p, p))
    f = fisher.detach().double()
    values, vectors = torch.linalg.eigh(input_cov.detach().double())
    root = vectors * values.clamp_min(0).sqrt()
    ratios = torch.linalg.eigvalsh(root.T @ f @ root)
    for name, spectrum in (("input_cov", values), ("fisher", ratios)):
        if (spectrum < -1e-6 * spectrum.abs().amax(-1, keepdim=True)).any():
            raise ValueError(f"gaussian_channel_information: {name} is not positive semi-definite")
    return float(ratios.clamp_min(0).log1p().sum(-1).mean()) / 2


def brunel_nadal_information(fisher: Tensor, input_entropy: float) -> float:
    """Return ``H(x) - E_x ½ log((2πe)^p / det F_{z|x})`` (eq. 10), in nats: its limit for small noise.

    For larger noise it is too small, and may be negative.

    Args:
        fisher: ``F_{z|x}`` at N inputs, ``(N, p, p)``.
        input_entropy: Differential entropy H(x), in nats.

    Raises:
        ValueError: F does not have the full rank p, so its log-determinant is -inf. This is always so for a layer
            of fewer units than inputs, ``d < p``, as ``J_xᵀ Σ_z⁻¹ J_x`` has at most rank d.
    """
    n, p = len(fisher), fisher.shape[-1]
    _check("fisher", fisher, (n, p, p))
    f = fisher.detach().double()
    rank = _ranks(f, fisher.dtype)
    if (rank < p).any():
        first = int((rank < p).nonzero()[0])
        raise ValueError(
            f"brunel_nadal_information: F is singular, to within rounding, at {int((rank < p).sum())} of {n} inputs; "
            f"at input {first} it has rank {int(rank[first])} of p = {p}, and eq. 10 would be -inf. A layer of d units "
            "gives F a rank of at most d, so eq. 10 needs dim z >= dim x; gaussian_channel_information does not"
        )
    return input_entropy + (torch.logdet(f).mean().item() - p * math.log(2 * math.pi * math.e)) / 2


def layer_fisher(
    f: Callable[[dict[str, Tensor], Tensor], Tensor],
    params: Mapping[str, Tensor],
    x: Tensor,
    covariance: Callable[[Tensor], Tensor],
    *,
    with_covariance_term: bool = False,
) -> Tensor:
    """Return ``F_{z|x}`` of a small layer by ``torch.func``.

    All weight Jacobians are held at once, ``N·d·k`` numbers of 8 bytes, in several copies. The covariance term costs
    about 1.5 times as much again for each of the p inputs. Parts of x give parts of the result. For a module,
    ``f = lambda params, x: functional_call(layer, params, (x,))`` and ``params = dict(layer.named_parameters())``.

    Args:
        f: Weights and one input ``(p,)`` to its activations, flattened here to ``(d,)``. It is run in float64, under
            ``torch.vmap``: no random numbers, no ``.item()``.
        params: Weights by name; in this order, flattened, they are the k columns of J.
        x: N inputs, ``(N, p)``.
        covariance: ``J -> Σ_z``, ``(N, d, k) -> (N, d, d)``: a function of :mod:`~.activation_covariance` with its
            other arguments filled in, such as ``lambda j: diagonal_activation_covariance(j, diagonal, beta, lambda_)``.
        with_covariance_term: Add ``½ tr(Σ_z⁻¹ ∂_aΣ_z Σ_z⁻¹ ∂_bΣ_z)``.

    Returns:
        ``(N, p, p)`` float64.

    Raises:
        ValueError: Whatever ``covariance`` or :func:`activation_fisher` refuse.
    """
    weights = {name: value.detach().double() for name, value in params.items()}
    inputs = x.detach().double()

    def flat(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return f(weights, x).flatten()

    def sigma(inputs: Tensor) -> Tensor:
        jacobians = torch.vmap(torch.func.jacrev(flat), (None, 0))(weights, inputs)
        return covariance(torch.cat([jacobian.flatten(2) for jacobian in jacobians.values()], 2))

    jacobian = torch.vmap(torch.func.jacrev(flat, argnums=1), (None, 0))(weights, inputs)
    derivative = None
    if with_covariance_term:
        axes = torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
        derivative = torch.stack([torch.func.jvp(sigma, (inputs,), (a.expand_as(inputs),))[1] for a in axes], 1)
    return activation_fisher(jacobian, sigma(inputs), derivative)


def _check(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ValueError(f"{name} of shape {tuple(values.shape)}: expected {shape}")
    if not values.isfinite().all():
        raise ValueError(f"some values of {name} are not finite")


def _ranks(matrices: Tensor, given: torch.dtype) -> Tensor:
    """Return ranks ``(N,)``, counting what keeps four digits in the precision of the given matrices."""
    return (scaled_eigenvalues(matrices, matrices) > FOUR_DIGITS * torch.finfo(given).eps).sum(-1)
