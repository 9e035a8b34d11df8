"""The information of a layer z of a small net about its input under weight noise, and its response to nuisances.

The net is a module whose part ``features`` outputs z; its weights are frozen and of float64. The noise is that of
definition 3.1 of Achille, Paolini & Soatto, with the diagonal of F and ``lambda_i = |w_i|``; everything is to first
order in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from lightning_info.functional import diagonal_activation_covariance, gaussian_channel_information, layer_fisher

DEGREES = 15.0


def fisher_diagonal(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the diagonal of F at samples ``x``, by parameter: the mean of squared scores over x and model labels."""
    params = dict(net.named_parameters())
    log_p = lambda params, x: functional_call(net, params, (x,)).log_softmax(-1)  # noqa: E731
    scores, p = vmap(jacrev(log_p), (None, 0))(params, x), net(x).softmax(1)
    return {name: torch.einsum("nc,nc...->...", p, score.square()) / len(x) for name, score in scores.items()}


def noise_covariance(net: nn.Module, x: Tensor, beta: float) -> Callable[[Tensor], Tensor]:
    """Return the function from the Jacobian of z in the weights below it ``(..., d, k)`` to Σ_z, at level ``beta``.

    Args:
        net: The net, whose ``features`` output z.
        x: The training samples; F is taken from the first 256.
        beta: Level of the task.
    """
    diagonal, below = fisher_diagonal(net, x[:256]), dict(net.features.named_parameters())
    h = len(x) * torch.cat([diagonal[f"features.{name}"].flatten() for name in below])
    prior = torch.cat([weight.detach().flatten() for weight in below.values()]).abs()
    return lambda jacobian: diagonal_activation_covariance(jacobian, h, beta, prior)


def information(features: nn.Module, x: Tensor, covariance: Callable[[Tensor], Tensor]) -> float:
    """Return I(X;Z) in nats; the expectation is over the first 64 samples."""
    f = lambda params, x: functional_call(features, params, (x,))  # noqa: E731
    fisher = layer_fisher(f, dict(features.named_parameters()), x[:64], covariance)
    return gaussian_channel_information(fisher, x.T.cov())


def noisy_responses(features: nn.Module, x: Tensor, covariance: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Return the mean change of z under shifts and rotations of 128 images, in standard deviations of the weight noise.

    The change is the norm of ``Σ_z^-½ (z(x') - z(x))`` divided by ``√d``.
    """
    params, x = dict(features.named_parameters()), x[:128]
    jacobians = vmap(jacrev(lambda params, x: functional_call(features, params, (x,))), (None, 0))(params, x)
    factor = torch.linalg.cholesky(covariance(torch.cat([one.flatten(2) for one in jacobians.values()], 2)))
    whitened = [torch.linalg.solve_triangular(factor, c[..., None], upper=False)[..., 0] for c in changes(features, x)]
    return tuple((one.norm(dim=2).mean() / one.shape[2] ** 0.5).item() for one in whitened)


def responses(features: nn.Module, x: Tensor) -> tuple[float, float, float]:
    """Return mean norms of dz/dx and of the changes of z under shifts and rotations, in units of the spread of z."""
    spread = features(x).var(0).sum().sqrt()
    slope = vmap(jacrev(features))(x).flatten(1).norm(dim=1).mean()
    return tuple((value / spread).item() for value in (slope, *(c.norm(dim=2).mean() for c in changes(features, x))))


def changes(features: nn.Module, x: Tensor) -> list[Tensor]:
    """Return changes of z under shifts by a pixel ``(4, N, d)``, and under rotations ``(2, N, d)``."""
    images = x.view(-1, 8, 8)
    ways = shifted(images), [rotated(images, degrees) for degrees in (-DEGREES, DEGREES)]
    return [torch.stack([features(moved.flatten(1)) for moved in way]) - features(x) for way in ways]


def shifted(images: Tensor) -> list[Tensor]:
    """Return images ``(N, H, W)`` shifted by one pixel to each side, filled with 0."""
    padded, (height, width) = F.pad(images, (1, 1, 1, 1)), images.shape[1:]
    return [padded[:, i : i + height, j : j + width] for i, j in ((0, 1), (2, 1), (1, 0), (1, 2))]


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Return images ``(N, H, W)`` rotated anticlockwise about their middle, filled with 0."""
    a = math.radians(degrees)
    turn = torch.tensor([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0]], dtype=images.dtype)
    grid = F.affine_grid(turn.expand(len(images), 2, 3), [len(images), 1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
