"""The twin's batch is the user's with one sample in the place of another, and drawing it disturbs nobody."""

import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from harness import freeze
from invariance.datasets import NoisyData, OwnGenerators
from lightning.pytorch import LightningDataModule
from models import Classifier, data, trainer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate
from twin.driver import Drive

from lightning_info.twin.copying import LARGE, copy_batch, copy_data
from lightning_info.twin.handover import OutOfStep
from lightning_info.twin.replacing import Replacer, choose_samples

CPU = torch.device("cpu")
INDICES = [7, 2, 5]


def replace(loader, batch, indices=INDICES, visit=0, seed=0, transfer=lambda batch: batch):
    return Replacer(2, 9, seed, transfer, {})(loader, batch, indices, visit, CPU)


def of(dataset, indices=INDICES, collate=default_collate):
    return collate([dataset[i] for i in indices])


def same(one, other):
    return freeze(one) == freeze(other)


def global_state():
    return freeze([torch.get_rng_state(), np.random.get_state(), random.getstate()])  # noqa: NPY002


def test_data_without_randomness_are_collated_anew():
    loader = DataLoader(data(12), 3)
    assert same(replace(loader, of(data(12))), of(data(12), [7, 9, 5]))
    assert same(replace(loader, of(data(12), [2, 5, 2]), [2, 5, 2]), of(data(12), [9, 5, 9]))


class Texts(Dataset):
    """Samples of different lengths, padded to the longest of the batch."""

    def __getitem__(self, i):
        return torch.arange(1.0, 2.0 + i), {"name": f"text {i}", "label": i % 3}


def padded(samples):
    texts, rest = zip(*samples, strict=True)
    return pad_sequence(texts, batch_first=True), default_collate(list(rest))


def test_padding_is_that_of_the_new_batch():
    loader = DataLoader(Texts(), 3, sampler=range(12), collate_fn=padded)
    made = replace(loader, of(Texts(), collate=padded))
    assert made[0].shape == (3, 10)
    assert same(made, of(Texts(), [7, 9, 5], padded))


def test_whole_batches_are_asked_for_anew():
    class Whole(Dataset):
        def __getitem__(self, indices):
            return [column[indices] for column in data(12).tensors]

    loader = DataLoader(Whole(), batch_size=None, sampler=[INDICES])
    assert same(replace(loader, Whole()[INDICES]), Whole()[[7, 9, 5]])


class Batch(NamedTuple):
    x: Tensor
    names: list


@dataclass
class Fields:
    x: Tensor
    scale: Tensor
    kind: str = "fields"


def as_dict(samples):
    x, y = default_collate(samples)
    return {"x": x, "rest": [y, torch.tensor(3.0)], "kind": "dict"}


def as_tuple(samples):
    return Batch(default_collate(samples)[0], [str(int(y)) for _, y in samples])


def as_fields(samples):
    return Fields(default_collate(samples)[0], torch.tensor(2.0))


def as_list_of_images(samples):
    return [torch.full((1, 2 + int(y)), float(y)) for _, y in samples], [x for x, _ in samples]


class Augmented(Dataset):
    """Samples around the plain ones."""

    def __getitem__(self, i):
        x, y = data(12)[i]
        return x + 0.01 * torch.randn(len(x)), y

    def __len__(self):
        return 12


@pytest.mark.parametrize("collate", [default_collate, as_dict, as_tuple, as_fields, as_list_of_images])
def test_augmented_samples_stay_and_one_is_drawn_into_its_row(collate):
    loader = DataLoader(Augmented(), 3, collate_fn=collate)
    batch = of(Augmented(), collate=collate)
    before = freeze_any(batch)
    made, again, other = (replace(loader, batch, visit=visit) for visit in (0, 0, 1))
    assert freeze_any(batch) == before
    assert freeze_any(made) == freeze_any(again) != freeze_any(other)
    exact = of(data(12), [7, 9, 5], collate)
    assert type(made) is type(batch)
    for mine, user, plain in zip(leaves(made), leaves(batch), leaves(exact), strict=True):
        if not isinstance(mine, Tensor):
            assert mine == plain
        elif mine.dim() == 0:
            assert torch.equal(mine, user)
        else:
            torch.testing.assert_close(mine, plain, atol=0.06, rtol=0)  # the right samples
            if len(mine) == 3:
                assert torch.equal(mine[[0, 2]], user[[0, 2]])  # as the user saw them


def leaves(batch):
    if isinstance(batch, Fields):
        batch = vars(batch)
    if isinstance(batch, dict):
        batch = list(batch.values())
    return [leaf for part in batch for leaf in leaves(part)] if isinstance(batch, (list, tuple)) else [batch]


def freeze_any(batch):
    return freeze(leaves(batch))


def test_a_batch_of_one_sample():
    loader = DataLoader(Augmented(), 1)
    (x, _) = replace(loader, of(Augmented(), [2]), [2])
    torch.testing.assert_close(x, of(data(12), [9])[0], atol=0.06, rtol=0)


def test_augmented_samples_of_several_shapes_are_refused():
    class Noisy(Texts):
        def __getitem__(self, i):
            x, rest = super().__getitem__(i)
            return x + torch.rand(1), rest

    loader = DataLoader(Noisy(), 3, sampler=range(12), collate_fn=padded)
    with pytest.raises(OutOfStep, match=r"a sample of shape \(1, 10\) cannot be put into a batch of shape \(3, 8\)"):
        replace(loader, of(Noisy(), collate=padded))


def test_a_batch_of_an_unknown_kind_is_refused():
    class Graphs:
        pass

    loader = DataLoader(data(12), 3, collate_fn=lambda samples: Graphs())
    with pytest.raises(OutOfStep, match="a batch that holds Graphs"):
        replace(loader, Graphs())


@pytest.mark.parametrize("dataset", [NoisyData, OwnGenerators])
def test_drawing_leaves_generators_and_counters_alone(dataset):
    user = dataset()
    loader, batch = DataLoader(user, 3), of(user)
    before = global_state(), freeze(list(vars(user).values()))
    replace(loader, batch)
    assert (global_state(), freeze(list(vars(user).values()))) == before


def test_a_collate_function_with_state_is_copied():
    class Collate:
        calls = 0

        def __call__(self, samples):
            self.calls += 1
            return default_collate(samples)

    loader = DataLoader(data(12), 3, collate_fn=Collate())
    replace(loader, of(data(12)))
    assert loader.collate_fn.calls == 0


# ---- copies


def test_large_arrays_are_shared_and_small_ones_are_not():
    size = LARGE // 4 + 1
    holder = {"large": torch.zeros(size), "array": np.zeros(size, np.float32), "small": [torch.zeros(3), np.zeros(3)]}
    held = TensorDataset(holder["large"])
    held.extra = holder
    copied = copy_data(held, {})
    assert copied.tensors[0] is holder["large"]
    assert copied.extra["large"] is holder["large"]
    assert copied.extra["array"] is holder["array"]
    for mine, user in zip(copied.extra["small"], holder["small"], strict=True):
        assert mine is not user


def test_a_copied_view_does_not_copy_what_it_does_not_show():
    whole = torch.arange(1000.0)
    copied = copy_batch({"x": whole[10:20], "again": [whole[10:20]], "name": "n"})
    assert torch.equal(copied["x"], whole[10:20])
    assert copied["x"].untyped_storage().nbytes() == 40
    assert copied["name"] == "n"


def test_a_tensor_that_is_in_a_batch_twice_is_so_in_the_copy():
    x = torch.zeros(3)
    copied = copy_batch((x, x))
    assert copied[0] is copied[1] is not x


# ---- hooks of transfer


class Scaled(LightningDataModule):
    """Scales on the device, and counts."""

    def __init__(self, index=None):
        super().__init__()
        self.index, self.calls = index, 0

    def train_dataloader(self):
        x, y = (tensor.clone() for tensor in data(12).tensors)
        if self.index is not None:
            x[2], y[2] = x[9], y[9]
        return DataLoader(TensorDataset(x, y), 4)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 1, batch[1]]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.calls += 1
        return 3 * batch[0], batch[1]


def test_the_new_sample_goes_through_the_datamodules_hooks_which_are_not_called_more_often():
    def fit(datamodule, *callbacks):
        torch.manual_seed(1)
        module = Classifier()
        trainer(*callbacks).fit(module, datamodule=datamodule)
        return module.state_dict()

    drive, user = Drive(2, 9), Scaled()
    expected = fit(Scaled(2))
    fit(user, drive)
    assert user.calls == 6
    assert drive.distances[-1] > 0
    assert all(torch.equal(expected[name], drive.final[name]) for name in expected)


def test_pairs_of_one_seed_differ_as_long_as_there_are_others():
    pairs = [choose_samples(None, None, 3, 20, number) for number in range(20)]
    assert sorted(index for index, _ in pairs) == list(range(20))
    assert all(index != replacement for index, replacement in pairs)
    indices = [choose_samples(None, 4, 3, 20, number)[0] for number in range(19)]
    assert sorted([*indices, 4]) == list(range(20))
    replacements = [choose_samples(4, None, 3, 20, number)[1] for number in range(19)]
    assert sorted([*replacements, 4]) == list(range(20))
    assert choose_samples(None, 4, 3, 20, 19)[0] != 4
    assert choose_samples(None, None, 3, 20, 7) == pairs[7]
