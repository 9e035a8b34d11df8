"""The samples of an offline measurement, as the batches that a training would see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_info.offline.likelihood import described


def loader_of(owner: str, data: Any, batch_size: int) -> Any:
    """Return batches in the order of the data.

    Args:
        owner: Name of the caller, for messages.
        data: Tensors that share axis 0, a Dataset (collated as a DataLoader does by default; anything with a length and
            items is one), a DataLoader, or a LightningDataModule, whose training loader is used.
        batch_size: Batch size for tensors and a Dataset.

    Raises:
        ValueError: The data are none of these, or have no length.
    """
    if hasattr(data, "train_dataloader") and hasattr(data, "setup"):
        data.prepare_data()
        data.setup("fit")
        data = data.train_dataloader()
    if isinstance(data, Sequence) and data and all(isinstance(part, Tensor) for part in data):
        if len({len(part) for part in data}) > 1:
            raise ValueError(
                f"{owner}: the tensors of data have {', '.join(str(len(part)) for part in data)} samples; they share "
                f"axis 0, for example data=(x, y)"
            )
        data = TensorDataset(*data)
    is_data_set = isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__"))
    is_other = isinstance(data, (Tensor, str, Mapping, Sequence)) and not isinstance(data, Dataset)
    if is_other or not (is_data_set or hasattr(data, "__iter__")):
        raise ValueError(
            f"{owner}: data is {described(data)}; give tensors such as (x, y), a Dataset, a DataLoader, or a "
            f"LightningDataModule; DataLoader(samples, batch_size=64) takes a list of samples, torch.as_tensor an array"
        )
    loader = DataLoader(data, batch_size) if is_data_set else data
    try:
        len(loader)
    except TypeError as error:
        raise ValueError(
            f"{owner}: data is {described(data)} without a length, which tells N; give a Dataset or DataLoader that "
            f"has __len__, or tensors of it, (x, y)"
        ) from error
    return loader


def batches_of(loader: Any, module: nn.Module, device: torch.device) -> Iterator[Any]:
    """Yield batches as ``training_step`` gets them: on the device, through the module's transfer hooks, if any."""
    hooks: Any = module
    for batch in loader:
        if hasattr(module, "transfer_batch_to_device"):
            batch = hooks.on_before_batch_transfer(batch, 0)
            batch = hooks.transfer_batch_to_device(batch, device, 0)
            batch = hooks.on_after_batch_transfer(batch, 0)
        else:
            batch = move_data_to_device(batch, device)
        yield batch
