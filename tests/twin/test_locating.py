"""A recording sampler knows in which batch a sample is, and where."""

import pytest
import torch
from lightning.pytorch import Callback
from models import Classifier, data, loader, trainer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from lightning_info.twin.handover import OutOfStep
from lightning_info.twin.locating import Locator


class Numbered(Dataset):
    """Every sample holds its index."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        x, y = data(24)[i]
        return x, y, i

    def whole(self, numbers):
        return [torch.stack(column) for column in zip(*[(*self[i][:2], torch.tensor(i)) for i in numbers], strict=True)]


class Batched(Numbered):
    """Is asked for whole batches."""

    def __getitem__(self, numbers):
        return Numbered().whole(numbers)


class Pairs(Sampler):
    """A batch sampler of the user's own, with an order of its own in every epoch."""

    epoch = 0

    def __iter__(self):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for k in range(0, 24, 4):
            yield tuple(order[k : k + 4])

    def __len__(self):
        return 6

    def set_epoch(self, epoch):
        self.epoch = epoch


class Step(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


class Watches(Callback):
    def __init__(self):
        self.locator, self.told, self.seen = Locator(), [], []

    def setup(self, trainer, pl_module, stage):
        self.locator.install(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.told.append(self.locator.next_batch(trainer))
        self.seen.append(batch[2].tolist())

    def teardown(self, trainer, pl_module, stage):
        self.locator.uninstall()


LOADERS = {
    "in order": lambda: DataLoader(Numbered(), 8),
    "shuffled": lambda: DataLoader(Numbered(), 7, shuffle=True),
    "shuffled, last batch dropped": lambda: DataLoader(Numbered(), 7, shuffle=True, drop_last=True),
    "2 workers": lambda: DataLoader(Numbered(), 4, shuffle=True, num_workers=2),
    "2 persistent workers": lambda: DataLoader(
        Numbered(), 4, shuffle=True, num_workers=2, persistent_workers=True, prefetch_factor=4
    ),
    "with replacement": lambda: DataLoader(Numbered(), 4, sampler=WeightedRandomSampler(torch.arange(24.0) + 1, 30)),
    "batch sampler of its own": lambda: DataLoader(Numbered(), batch_sampler=Pairs()),
    "whole batches": lambda: DataLoader(
        Batched(), batch_size=None, sampler=BatchSampler(RandomSampler(range(24)), 5, drop_last=False)
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_indices_are_those_of_the_batches_and_the_loader_is_left_as_it_was(name):
    batches, watches = LOADERS[name](), Watches()
    sampler = batches.batch_sampler or batches.sampler
    cls = type(sampler)
    torch.manual_seed(2)
    fit = trainer(watches, max_epochs=3)
    fit.fit(Step(), batches)
    assert watches.told == watches.seen
    assert len(watches.told) == 3 * len(batches)
    assert type(sampler) is cls
    assert "process_dataloader" not in vars(fit.strategy)


def test_other_iterations_of_the_loader_are_not_counted():
    class Peeks(Callback):
        def on_train_start(self, trainer, *args):
            next(iter(trainer.train_dataloader))

        def on_train_epoch_start(self, trainer, pl_module):
            list(trainer.train_dataloader)

        on_train_batch_start = on_train_start

    watches = Watches()
    trainer(Peeks(), watches).fit(Step(), DataLoader(Numbered(), 8, shuffle=True))
    assert watches.told == watches.seen


def test_a_subset_numbers_its_own_samples():
    watches = Watches()
    trainer(watches, max_epochs=1).fit(Step(), DataLoader(Subset(Numbered(), range(10, 24)), 7))
    assert [[number + 10 for number in told] for told in watches.told] == watches.seen


def test_a_sampler_of_what_is_no_index_is_told():
    class Sized(Numbered):
        def __getitem__(self, key):
            return super().__getitem__(key[0])

    class Keys(SequentialSampler):
        def __iter__(self):
            return ((number, 32) for number in range(24))

    watches = Watches()
    with pytest.raises(OutOfStep, match="gives something that is not an index"):
        trainer(watches).fit(Step(), DataLoader(Sized(), 8, sampler=Keys(range(24))))


def test_the_recording_class_looks_like_the_original():
    batches, locator = loader(), Locator()
    original = type(batches.batch_sampler)
    locator.attach(batches)
    recording = type(batches.batch_sampler)
    assert recording is not original
    assert isinstance(batches.batch_sampler, BatchSampler)
    assert (recording.__qualname__, recording.__module__) == (original.__qualname__, original.__module__)
    locator.uninstall()
    assert type(batches.batch_sampler) is original
