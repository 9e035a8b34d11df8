"""Which positions of a padded batch are padding, as the batch, or a call of the module, tells by name.

A mean over the positions of a layer leaves them out, as the code of a sample would otherwise depend on how long the
others of its batch are. Nothing is guessed from values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from lightning_info.gradients.layout import GO_ON, Batch, Path, bare, describe, rebuilt

REAL_WHERE_TRUE = ("attention_mask", "mask")
PADDED_WHERE_TRUE = ("padding_mask", "key_padding_mask", "src_key_padding_mask")
LENGTHS = ("lengths",)


signature_of = cache(inspect.signature)
"""Of a function of PyTorch; made anew it takes longer than many a call."""


@dataclass(frozen=True)
class Padding:
    """Where the padding of a batch is.

    Attributes:
        name: What tells it, in words.
        kept: ``(N, T)``, False where a position is padding.
    """

    name: str
    kept: Tensor


def in_batch(batch: Any, samples: int) -> list[Padding]:
    """What the entries of a batch tell: masks ``(N, T)`` and lengths ``(N,)``, by their names.

    Lengths are taken where a tensor of the batch has a second axis, of the T positions, that is long enough.
    """
    named = [(name, leaf) for name, leaf in _named(batch) if leaf.dim() > 0 and len(leaf) == samples]
    found = []
    for name, leaf in named:
        if leaf.dim() == 2 and name in REAL_WHERE_TRUE:
            found.append(Padding(f"the batch's {name!r} (real where it is not 0)", leaf != 0))
        elif leaf.dim() == 2 and name in PADDED_WHERE_TRUE:
            found.append(Padding(f"the batch's {name!r} (padding where it is not 0)", leaf == 0))
        elif leaf.dim() == 1 and name in LENGTHS and not leaf.is_floating_point():
            for length in sorted({other.shape[1] for _, other in named if other.dim() > 1}):
                if length >= int(leaf.max()):
                    kept = torch.arange(length, device=leaf.device) < leaf[:, None]
                    found.append(Padding(f"the batch's {name!r}", kept))
    return found


def in_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Padding | None:
    """What a call tells: an embedding's ``padding_idx``, or the ``key_padding_mask`` of attention; axis 0 as it is."""
    if func not in (F.embedding, F.multi_head_attention_forward):
        return None
    arguments = signature_of(func).bind(*args, **kwargs).arguments
    if func is F.embedding:
        index, ids = arguments.get("padding_idx"), arguments["input"]
        if index is None or ids.dim() != 2 or is_functorch_wrapped_tensor(ids):
            return None
        index = index + len(arguments["weight"]) if index < 0 else index
        return Padding(f"the embedding's padding_idx={index}", ids != index)
    mask = arguments.get("key_padding_mask")
    if mask is None or mask.dim() != 2 or is_functorch_wrapped_tensor(mask):
        return None
    kept = mask != -torch.inf if mask.is_floating_point() else mask == 0
    return Padding("the attention's key_padding_mask", kept)


def in_layout(batch: Any) -> list[Padding]:
    """What the lengths tell that experiments have found in batches of this form, see :class:`~.layout.Layout`."""
    path = batch.layout.lengths if isinstance(batch, Batch) else None
    found: list[Padding] = []

    def visit(at: Path, value: Any) -> Any:
        if at == path:
            kept = torch.arange(int(value.max()), device=value.device) < value[:, None]
            found.append(Padding(f"the lengths in {describe(at)}", kept))
        return GO_ON

    if path is not None:
        rebuilt(bare(batch), visit)
    return found


def of_positions(masks: list[Padding], samples: int, positions: int) -> Padding | None:
    """The first that has as many positions of a sample, or more, of which those behind are padding of all samples.

    A mask of sequence-first tokens is turned.
    """
    for mask in masks:
        kept = mask.kept
        if kept.dim() == 2 and kept.shape == (positions, samples) != (samples, positions):
            kept = kept.T
        if len(kept) == samples and kept.numel() == samples * positions:
            return Padding(mask.name, kept.reshape(samples, positions))
    for mask in masks:
        kept = mask.kept
        is_longer = kept.dim() == 2 and len(kept) == samples and 0 < positions < kept.shape[1]
        if is_longer and not bool(kept[:, positions:].any()):
            return Padding(mask.name, kept[:, :positions])
    return None


def of_samples(masks: list[Padding], samples: int, index: Tensor) -> list[Padding]:
    """The masks of some samples of a batch of so many."""
    found = []
    for mask in masks:
        kept = mask.kept.T if mask.kept.dim() == 2 and len(mask.kept) != samples else mask.kept
        if len(kept) == samples:
            found.append(Padding(mask.name, kept[index.to(kept.device)]))
    return found


def _named(batch: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch with the name of the entry that they are, empty without one."""
    entries: list[tuple[str, Any]] = []
    if isinstance(batch, Mapping):
        entries = [(str(name), value) for name, value in batch.items()]
    elif isinstance(batch, tuple) and hasattr(batch, "_fields"):
        entries = list(zip(batch._fields, batch, strict=True))
    elif isinstance(batch, (tuple, list)):
        entries = [("", value) for value in batch]
    elif is_dataclass(batch):
        entries = [(field.name, getattr(batch, field.name)) for field in fields(batch)]
    for name, value in entries:
        if isinstance(value, Tensor):
            yield name, value
        else:
            yield from _named(value)
