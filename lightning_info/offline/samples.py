"""The samples of an offline measurement, as the batches that a training would see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


def loader_of(owner: str, data: Any, batch_size: int) -> Any:
    """Batches in the order of the data.

    Args:
        owner: Who asks, for messages.
        data: Tensors that share axis 0, a Dataset (collated as a DataLoader does by default), a DataLoader, or a
            LightningDataModule, of which the training loader is taken.
        batch_size: Of tensors and of a Dataset.

    Raises:
        ValueError: It is none of these, or holds no sample.
    """
    if hasattr(data, "train_dataloader") and hasattr(data, "setup"):
        data.prepare_data()
        data.setup("fit")
        data = data.train_dataloader()
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size)
    if isinstance(data, Sequence) and data and all(isinstance(part, Tensor) for part in data):
        if len({len(part) for part in data}) > 1:
            raise ValueError(
                f"{owner}: the tensors of data have {', '.join(str(len(part)) for part in data)} samples; they share "
                f"axis 0, for example data=(x, y)"
            )
        return DataLoader(TensorDataset(*data), batch_size)
    if hasattr(data, "__iter__") and hasattr(data, "__len__") and not isinstance(data, (Tensor, str, dict, Sequence)):
        return data
    raise ValueError(
        f"{owner}: data is a {type(data).__name__}; give tensors such as (x, y), a Dataset, a DataLoader, or a "
        f"LightningDataModule"
    )


def batches_of(loader: Any, module: nn.Module, device: torch.device) -> Iterator[Any]:
    """Batches as ``training_step`` gets them: on the device, through the module's transfer hooks if it has any."""
    hooks: Any = module
    for batch in loader:
        if hasattr(module, "transfer_batch_to_device"):
            batch = hooks.on_before_batch_transfer(batch, 0)
            batch = hooks.transfer_batch_to_device(batch, device, 0)
            batch = hooks.on_after_batch_transfer(batch, 0)
        yield batch
