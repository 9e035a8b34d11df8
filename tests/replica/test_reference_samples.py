"""What a batch holds besides tensors of samples, and which samples a checkpoint gives back."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier, data, trainer
from oracle import fisher_trace_by_definition
from torch.utils.data import DataLoader, Dataset

from lightning_info import FisherTraceCallback
from lightning_info.gradients.batches import concatenate, num_samples, take
from lightning_info.replica.reference_samples import ReferenceSamples
from lightning_info.replica.sample_store import SampleStore

X, Y = data(24).tensors


class Dictionaries(Dataset):
    """Samples whose other entries the training_step uses."""

    def __init__(self, entry):
        self.entry = entry

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"x": X[i], "y": Y[i], "entry": self.entry(i)}


class Uses(Classifier):
    """Scales its logits by what the batch says."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["x"]) * self.scale(batch["entry"]), batch["y"])

    @staticmethod
    def scale(entry) -> Any:
        if isinstance(entry, torch.Tensor) or np.isscalar(entry):
            return entry
        return torch.tensor([[3.0 if name == "cat" else 1.0] for name in entry])


def exact(module, loader, **options):
    callback = FisherTraceCallback(
        "exact", num_samples=24, every_n_epochs=9, on_error="raise", summary=False, **options
    )
    trainer(callback, max_epochs=1).fit(module, loader)
    return callback.history["fisher/trace"][0][1]


def truth(module, scales):
    def scaled(scale):
        net = torch.nn.Sequential(module.net, torch.nn.Linear(CLASSES, CLASSES, bias=False).requires_grad_(False))
        net[1].weight.data = scale * torch.eye(CLASSES)
        return net

    return sum(
        sum(fisher_trace_by_definition(scaled(scale), X[n : n + 1], "categorical").values()) / len(X)
        for n, scale in enumerate(scales)
    )


@pytest.mark.parametrize("cats", [range(0, 24, 2), range(8)])
def test_names_of_samples_stay_with_their_samples(cats):
    module = Uses()
    expected = truth(module, [3.0 if n in cats else 1.0 for n in range(24)])
    loader = DataLoader(Dictionaries(lambda i: "cat" if i in cats else "dog"), 8)
    assert exact(module, loader) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", [float, torch.tensor, lambda scale: torch.full((CLASSES,), scale)])
def test_what_belongs_to_a_batch_stays_with_its_batch(form):
    def collate(samples):
        batch = torch.utils.data.default_collate(samples)
        return {**batch, "entry": form(3.0 if batch["entry"][0] >= 16 else 1.0)}

    module = Uses()
    expected = truth(module, [3.0 if n >= 16 else 1.0 for n in range(24)])
    loader = DataLoader(Dictionaries(int), 8, collate_fn=collate)
    assert exact(module, loader) == pytest.approx(expected, rel=1e-5)


def test_the_sample_axis_is_that_of_most_tensors():
    batch = {"progress": torch.tensor([0.5]), "x": X, "y": Y}
    assert num_samples(batch) == 24
    assert take(batch, slice(0, 2))["progress"].shape == (1,)
    assert num_samples({"x": X[:5], "weight": torch.ones(3)}) == 5


def test_lists_and_arrays_are_taken_with_their_samples():
    batch = {
        "x": X[:3],
        "names": ["a", "b", "c"],
        "ages": np.array([1, 2, 3]),
        "pair": (X[:3], ("d", "e", "f")),
        "n": 3,
    }
    part = take(batch, torch.tensor([2, 0]))
    assert (part["names"], part["ages"].tolist(), part["pair"][1], part["n"]) == (["c", "a"], [3, 1], ("f", "d"), 3)
    assert torch.equal(part["pair"][0], X[[2, 0]])


def test_batches_join_if_they_agree_in_all_but_their_samples():
    def joined(*others):
        return len(concatenate([{"x": X[:4], "other": other} for other in others]))

    assert joined(1.0, 1.0) == joined(torch.ones(2), torch.ones(2)) == joined(X[:4], X[4:8]) == 1
    assert joined(["a"] * 4, ["b"] * 4) == joined(np.ones(4), np.zeros(4)) == 1
    assert joined(1.0, 2.0) == joined(torch.ones(2), torch.zeros(2)) == joined(["a"] * 2, ["b"] * 2) == 2
    assert joined(lambda: 1, lambda: 1) == 2  # which cannot be compared


# ---- checkpoints


def kept(*batches):
    samples = ReferenceSamples(100)
    for batch in batches:
        samples.add(batch)
    samples.close()
    return samples


def test_samples_come_back_in_the_precision_of_this_run():
    samples = ReferenceSamples(8)
    samples.restore(kept([X[:8], Y[:8]]).state(), [X[:4].double(), Y[:4]])
    (again,) = samples.groups
    assert [leaf.dtype for leaf in again.bare] == [torch.float64, torch.int64]
    assert torch.equal(again.bare[0], X[:8].double())


@pytest.mark.parametrize("like", [[X, Y, Y], [X, Y, "name"]])
def test_samples_do_not_come_back_in_another_form(like):
    with pytest.raises(ValueError, match="tensors"):
        ReferenceSamples(8).restore(kept([X[:8], Y[:8]]).state(), like)


def test_no_samples_are_no_state():
    assert kept().state() is None
    assert kept([X[:2], Y[:2]]).state() is not None


# ---- steps for one sample


def test_a_step_that_takes_the_one_sample_out_of_its_batch():
    class Single(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(FEATURES, CLASSES)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0][0]), batch[1][0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Single()
    expected = sum(fisher_trace_by_definition(module.net, X, "categorical").values())
    assert exact(module, DataLoader(data(24), 1)) == pytest.approx(expected, rel=1e-5)


def test_host_memory_is_limited_but_for_the_first_sample_and_for_what_is_given():
    each = 4 * 6 + 8  # bytes of a sample
    x, y = torch.randn(64, 6), torch.arange(64)
    samples = ReferenceSamples(32, SampleStore(11 * each))
    for start in range(0, 64, 8):
        samples.add((x[start : start + 8], y[start : start + 8]))
    assert samples.full
    samples.close()
    assert (len(samples), samples.asked, samples.bytes) == (11, 32, 11 * each)
    assert torch.equal(torch.cat([group[1] for group in samples.groups]), y[:11])

    samples = ReferenceSamples(32, SampleStore(1))
    samples.add((x, y))
    assert (len(samples), samples.full) == (1, True)
    given = ReferenceSamples(32, SampleStore(1))
    given.fill((x, y))
    assert len(given) == 32
