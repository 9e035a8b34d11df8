"""The callbacks of a Trainer keep their reference samples once."""

from __future__ import annotations

import pytest
import torch
from models import Classifier, curves, data, loader, strict, trainer

from lightning_info import FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback, measure
from lightning_info.gradients.batches import num_samples, tensors
from lightning_info.replica import sample_store


def callbacks(**options):
    common = {"every_n_train_steps": 8, "summary": False, **options}
    return [
        FisherTraceCallback(num_samples=20, **common),
        InfoPlaneCallback(num_samples=44, **common),
        WeightInfoCallback(num_samples=20, **common),
    ]


def fit(*ours):
    torch.manual_seed(0)
    trainer(*strict(*ours), max_epochs=1).fit(Classifier(), loader())
    return ours


def places(callback):
    return [tensor.data_ptr() for group in callback.groups for tensor in tensors(group)]


def count(callback):
    return sum(map(num_samples, callback.groups))


def test_callbacks_share_their_samples_and_measure_what_they_measure_alone():
    together = fit(*callbacks())
    assert places(together[0]) == places(together[1]) == places(together[2])
    assert [count(c) for c in together] == [20, 44, 20]
    for ours, alone in zip(together, callbacks(), strict=True):
        fit(alone)
        theirs = curves(alone)
        for tag, curve in curves(ours).items():  # decoders see the rounding of passes of another size
            assert curve == [
                (step, pytest.approx(value, rel=1e-6 if "decoder" in tag else 0)) for step, value in theirs.pop(tag)
            ]
        assert not theirs
        assert places(alone) != places(ours)


@pytest.mark.parametrize("given", ["tensors", "data set"])
def test_what_is_given_to_several_is_kept_once(given):
    reference = data(50) if given == "data set" else data(50).tensors
    ours = fit(*callbacks(reference=reference))
    assert places(ours[0]) == places(ours[1])
    assert [count(c) for c in ours] == [20, 44, 20]
    other = fit(*callbacks(reference=data(50)))[0]
    assert curves(other) == curves(ours[0])


def test_of_two_adapters_each_has_its_samples_and_they_are_the_same():
    def adapter(module, batch):
        return module(batch[0]), batch[1], "categorical"

    one, other = fit(
        FisherTraceCallback(num_samples=20, every_n_train_steps=8),
        FisherTraceCallback(num_samples=20, every_n_train_steps=8, adapter=adapter, prefix="adapted"),
    )
    assert places(one) == places(other)
    assert one.history["fisher/trace"] == other.history["adapted/fisher/trace"]


def test_the_summary_tells_how_many_there_is_memory_for(monkeypatch):
    monkeypatch.setattr(sample_store, "LARGEST_STORE", 3 << 20)
    monkeypatch.setattr("lightning_info.callbacks.session.LARGEST_STORE", 3 << 20)
    x, y = torch.randn(32, 6 << 16), torch.arange(32) % 3  # 1.5 MiB a sample
    ours = FisherTraceCallback(num_samples=16, every_n_train_steps=8, on_error="raise", summary=False)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool1d(4), torch.nn.Linear(4, 3))
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 4)
    trainer(ours, max_epochs=1).fit(Classifier(net), batches)
    assert count(ours) == 1
    text = " ".join(ours.report().split())
    assert "1 of 16 reference samples (1.5 MiB of host memory), as those of all callbacks may take 3 MiB" in text


def test_measure_keeps_them_once_too(monkeypatch):
    pools, find = [], sample_store.SampleStore.pool

    def watched(self, *args):
        pools.append(find(self, *args))
        return pools[-1]

    monkeypatch.setattr(sample_store.SampleStore, "pool", watched)
    measure(Classifier(), loader(), *callbacks())
    assert len(pools) == 3
    assert len(set(map(id, pools))) == 1
    assert pools[0].count == 44
