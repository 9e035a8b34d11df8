"""A number for each sample of a batch that its own values tell, wherever it stands and whoever stands beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_info.gradients.batches import num_samples, split_samples, take, tensors
from lightning_info.gradients.contract import NotCovered

_AT_ONCE = 1 << 22
"""Elements that are read at once."""


def sample_keys(batch: Any) -> list[int]:
    """Keys of 64 bits, the same for equal samples, whatever their precision and device.

    Args:
        batch: N samples; tensors tell them apart, other leaves do not.
    """
    try:
        leaves, _ = split_samples(batch)
    except NotCovered:
        alone = (tensors(take(batch, torch.tensor([n]))) for n in range(num_samples(batch)))
        return [_keys([leaf.unsqueeze(0) for leaf in some], 1)[0] for some in alone]
    return _keys(leaves, num_samples(batch))


def _keys(leaves: list[Tensor], samples: int) -> list[int]:
    total = torch.zeros(samples, dtype=torch.int64)
    for place, leaf in enumerate(leaves):
        if leaf.layout != torch.strided or leaf.is_quantized or leaf.is_nested or leaf.numel() == 0:
            continue
        width = leaf.numel() // samples
        generator = torch.Generator().manual_seed(place)
        factors = torch.randint(-(1 << 62), 1 << 62, (width * (1 + leaf.is_complex()),), generator=generator)
        factors = (2 * factors + 1).to(leaf.device)
        parts = torch.split(leaf.detach(), max(1, _AT_ONCE // width))
        total += torch.cat([(_bits(part) * factors).sum(1) for part in parts]).cpu()  # modulo 2**64
    return total.tolist()


def _bits(rows: Tensor) -> Tensor:
    """``(rows, elements)`` integers, the same for float32 and float64 that are equal."""
    if rows.is_complex():
        rows = torch.view_as_real(rows.resolve_conj())
    flat = rows.reshape(len(rows), -1)
    bits = flat.double().contiguous().view(torch.int64) if flat.is_floating_point() else flat.to(torch.int64)
    return bits ^ (bits >> 31)
