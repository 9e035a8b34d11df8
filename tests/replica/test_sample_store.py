"""One store of samples for all who read: what each has is what it would have alone, and there is memory for it once."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from lightning_info.gradients.batches import concatenate, map_tensors, num_samples, take, tensors
from lightning_info.gradients.layout import Layout
from lightning_info.replica.reference_samples import ReferenceSamples
from lightning_info.replica.sample_store import SampleStore

LAYOUT = Layout({("x",): 0, ("t",): 1, ("names",): 0, ("ages",): 0}, frozenset({("scale",)}))


def batch(number, size, length=4, scale=1.0):
    generator = torch.Generator().manual_seed(number)
    return {
        "x": torch.randn(size, 2, length, length, generator=generator).to(memory_format=torch.channels_last),
        "t": torch.randn(3, size, generator=generator),
        "names": [f"{number}.{i}" for i in range(size)],
        "ages": np.arange(size) + 10 * number,
        "scale": torch.tensor(scale),
    }


STREAMS = {
    "alike": [batch(i, 8) for i in range(6)],
    "of other lengths": [batch(i, 5 + i % 2, length=3 + i // 2 % 2) for i in range(9)],
    "of other scales": [batch(i, 8, scale=float(i > 2)) for i in range(6)],
    "of one sample": [batch(i, 1) for i in range(40)],
}


def by_hand(batches, size, layout):
    """The first samples, each batch copied for itself and all joined at the end."""
    kept = []
    for one in batches:
        there = sum(map(num_samples, kept))
        if there < size:
            kept.append(map_tensors(take(layout.wrap(one), slice(0, size - there)), torch.clone))
    return concatenate(kept)


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.bare["names"] == b.bare["names"]
        assert a.bare["ages"].tolist() == b.bare["ages"].tolist()
        for x, y in zip(tensors(a), tensors(b), strict=True):
            assert torch.equal(x, y)
        assert a.bare["x"].is_contiguous(memory_format=torch.channels_last)
    return True


def collect(stream, sizes, store, layout=LAYOUT):
    readers = [ReferenceSamples(size, store) for size in sizes]
    for reader in readers:
        reader.lay(layout)
    for number, one in enumerate(stream):
        for reader in readers:
            reader.add(one, of=number)
    for reader in readers:
        reader.close()
    return readers


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("sizes", [[12, 30], [30, 12, 12], [48, 31], [7, 100]])
@pytest.mark.parametrize("stream", STREAMS)
def test_each_has_what_it_would_have_alone_and_memory_is_taken_once(stream, sizes, ordered):
    layout = Layout(LAYOUT.axes, LAYOUT.shared, ordered)
    store = SampleStore(wanted=max(sizes))
    readers = collect(STREAMS[stream], sizes, store, layout)
    for reader, size in zip(readers, sizes, strict=True):
        assert same(reader.groups, by_hand(STREAMS[stream], size, layout))
        assert [num_samples(one) for one in reader.apart()] == reader.parts
    largest = max(readers, key=len)
    if stream == "alike" or ordered:
        for reader in readers:
            for a, b in zip(reader.groups, largest.groups, strict=False):
                assert a.bare["x"].data_ptr() == b.bare["x"].data_ptr()
    assert store.limit - store.free == largest.bytes


def test_the_limit_is_one_for_all():
    each = sum(leaf.numel() * leaf.element_size() for leaf in tensors(batch(0, 8))[:2]) // 8
    first, second = collect(STREAMS["alike"], [12, 30], SampleStore(20 * each + 100, 30))
    assert (len(first), len(second), second.asked) == (12, 20, 30)
    assert first.bytes < second.bytes <= 20 * each + 100

    store = SampleStore(20 * each + 100, 30)  # two who see the samples at different places share nothing but the limit
    one, other = ReferenceSamples(30, store), ReferenceSamples(30, store)
    one.lay(LAYOUT)
    other.lay(
        Layout({path: axis for path, axis in LAYOUT.axes.items() if path != ("ages",)}, LAYOUT.shared | {("ages",)})
    )
    for number, piece in enumerate(STREAMS["alike"]):
        one.add(piece, of=number)
        other.add(piece, of=number)
    assert one.bytes + other.bytes <= 20 * each + 100
    assert len(one) + len(other) >= 19


def test_who_comes_late_or_misses_a_batch_goes_on_alone():
    store, stream = SampleStore(wanted=40), STREAMS["alike"]
    early, late, absent = (ReferenceSamples(40, store) for _ in range(3))
    for reader in (early, late, absent):
        reader.lay(LAYOUT)
    for number, one in enumerate(stream):
        early.add(one, of=number)
        if number > 0:
            late.add(one, of=number)
        if number != 2:
            absent.add(one, of=number)
    expected = {early: stream[:5], late: stream[1:], absent: [*stream[:2], *stream[3:]]}
    for reader, batches in expected.items():
        reader.close()
        (group,) = reader.groups
        assert torch.equal(group.bare["x"], torch.cat([one["x"] for one in batches])[:40])
        assert group.bare["names"] == [name for one in batches for name in one["names"]][:40]


def test_memory_is_free_again_when_nobody_reads():
    store = SampleStore(1 << 20)
    samples = ReferenceSamples(8, store)
    samples.add(batch(0, 8), of=0)
    assert store.free < 1 << 20
    samples.reopen()
    assert store.free == 1 << 20


class Counted(Dataset):
    def __init__(self, fails_at=1000):
        self.drawn, self.fails_at = [], fails_at

    def __len__(self):
        return 200

    def __getitem__(self, i):
        if i == self.fails_at:
            raise RuntimeError("no such file")
        self.drawn.append(i)
        return torch.full((3,), float(i)), i


def test_what_is_given_is_drawn_once_for_all():
    store, given = SampleStore(wanted=900), Counted()
    readers = [ReferenceSamples(size, store) for size in (100, 150, 20, 900)]
    for reader in readers:
        reader.fill(given)
    assert given.drawn == list(range(200))
    for reader, size in zip(readers, (100, 150, 20, 200), strict=True):
        (group,) = reader.groups
        assert group.bare[0][:, 0].tolist() == group.bare[1].tolist() == list(range(size))
        assert (reader.parts, reader.complete) == ([size], True)
    assert readers[0].groups[0].bare[0].data_ptr() == readers[2].groups[0].bare[0].data_ptr()


def test_a_sample_that_fails_is_the_fault_of_who_wants_it():
    store, given = SampleStore(), Counted(fails_at=120)
    small, large = ReferenceSamples(100, store), ReferenceSamples(150, store)
    small.fill(given)
    with pytest.raises(RuntimeError, match="no such file"):
        large.fill(given)
    assert small.groups[0].bare[1].tolist() == list(range(100))


def test_a_checkpoint_holds_no_more_than_the_samples_of_the_callback():
    small, _ = collect(STREAMS["alike"], [2, 48], SampleStore(wanted=1000))
    file = io.BytesIO()
    torch.save(small.state(), file)
    assert len(file.getvalue()) < small.bytes + 4000
