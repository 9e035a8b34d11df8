"""One forward pass over the reference samples, for everything that reads from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from models import CLASSES, FEATURES
from torch import nn

from lightning_info.quantities.fisher_trace.sampling import SamplingScores
from lightning_info.quantities.information_plane.features import TARGETS, LayerFeatures
from lightning_info.replica.activations import Layer
from lightning_info.replica.layer_selection import find_layers
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.replica.stand_in_trainer import StandInTrainer


def adapter(module, batch):
    x, y = batch[:2]
    return module(x), y


class Counted(nn.Module):
    """Logits from the mean over tokens; notes how many samples each pass has."""

    def __init__(self):
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, CLASSES)
        type(self).passes = []  # not on the net: what is kept there is put back after a pass

    def forward(self, x):
        self.passes.append(len(x))
        h = self.act(self.inner(x))
        return self.head(h.mean(1) if h.dim() > 2 else h)

    def truth(self, x):
        with torch.no_grad():
            h = (x @ self.inner.weight.T + self.inner.bias).clamp_min(0)
            return h if h.dim() < 3 else h.mean(1)


def samples(*lengths_and_sizes):
    """Groups of samples with so many tokens, and so many of them; every sample its own number as third leaf."""
    groups, first = [], 0
    for length, size in lengths_and_sizes:
        x = torch.randn(size, length, FEATURES) if length else torch.randn(size, FEATURES)
        number = torch.arange(first, first + size)
        groups.append((x, number % CLASSES, number))
        first += size
    return groups


def snapshot(net, groups, chunk=4, *statistics):
    return ModelSnapshot(
        net, Predictor(StandInTrainer(None), adapter), groups, chunk, torch.device("cpu"), statistics=[*statistics]
    )


@dataclass(frozen=True)
class Reads:
    """What a function gives; counts its calls."""

    name: str
    give: Any = None
    layers: tuple[Layer, ...] = ()

    calls: ClassVar[list[str]] = []

    def __call__(self, prediction, activations):
        self.calls.append(self.name)
        return self.give(prediction, activations)


@pytest.fixture(autouse=True)
def no_calls():
    Reads.calls.clear()


def give_outputs(prediction, activations):
    return {"outputs": prediction.outputs.detach()}


def give_targets(prediction, activations):
    return {"targets": prediction.targets}


def fail(prediction, activations):
    raise ValueError("not this one")


def of_activations(net, groups, directions=2):
    layers, _ = find_layers(net, Predictor(StandInTrainer(None), adapter), groups[0], None)
    net.passes.clear()
    return LayerFeatures(tuple(layers), directions, 0)


# ---- one pass


def test_one_pass_serves_all_readers_and_each_reads_once():
    net, groups = Counted(), samples((0, 10))
    first, second = Reads("first", give_outputs), Reads("second", give_targets)
    equal = Reads("first", give_outputs)
    shared = snapshot(net, groups, 4, first, second, equal, SamplingScores("importance"))
    for _ in range(2):
        for reader in (second, first, equal, SamplingScores("importance")):
            shared.read(reader)
    assert net.passes == [4, 3, 3]
    assert sorted(Reads.calls) == ["first"] * 3 + ["second"] * 3


def test_a_reader_that_nobody_announced_takes_a_pass_of_its_own():
    net, groups = Counted(), samples((0, 10))
    shared = snapshot(net, groups, 5, Reads("first", give_outputs))
    shared.read(Reads("first", give_outputs))
    shared.read(Reads("late", give_targets))
    assert net.passes == [5, 5, 5, 5]
    assert Reads.calls == ["first", "first", "late", "late"]


def test_a_reader_that_raises_costs_only_itself():
    net, groups = Counted(), samples((0, 10))
    good, bad, rest = Reads("good", give_outputs), Reads("bad", fail), Reads("rest", give_targets)
    shared = snapshot(net, groups, 4, good, bad, rest)
    for _ in range(2):
        with pytest.raises(ValueError, match="not this one"):
            shared.read(bad)
    torch.testing.assert_close(shared.read(good)["outputs"], net(groups[0][0]).detach())
    assert torch.equal(shared.read(rest)["targets"], groups[0][1])
    assert net.passes[:-1] == [4, 3, 3]
    assert Reads.calls.count("bad") == 1


def test_rows_that_cannot_be_joined_cost_only_their_reader():
    net, groups = Counted(), samples((0, 10))
    ragged = Reads("ragged", lambda prediction, _: {"rows": torch.zeros(len(prediction.outputs), net.passes[-1])})
    good = Reads("good", give_outputs)
    shared = snapshot(net, groups, 4, ragged, good)
    assert len(shared.read(good)["outputs"]) == 10
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        shared.read(ragged)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_ends_the_pass_and_the_next_call_tries_again(error):
    net, groups = Counted(), samples((0, 10))
    errors = [error]

    def short_of_memory(prediction, activations):
        if errors:
            raise errors.pop()
        return give_outputs(prediction, activations)

    good, hungry = Reads("good", give_outputs), Reads("hungry", short_of_memory)
    shared = snapshot(net, groups, 4, good, hungry)
    with pytest.raises(type(error)):
        shared.read(good)
    shared.chunk = 2
    torch.testing.assert_close(shared.read(good)["outputs"], shared.read(hungry)["outputs"])
    assert net.passes == [4, 2, 2, 2, 2, 2]


def test_a_module_that_fails_fails_for_every_reader():
    net, groups = Counted(), samples((0, 10))
    groups[0] = (groups[0][0][:, :-1], *groups[0][1:])
    shared = snapshot(net, groups, 4, Reads("first", give_outputs), Reads("second", give_targets))
    for reader in list(shared.statistics):
        with pytest.raises(RuntimeError, match="shapes"):
            shared.read(reader)


def test_without_samples_there_is_nothing_to_read():
    with pytest.raises(Unavailable, match="no reference samples"):
        snapshot(Counted(), []).read(Reads("first", give_outputs))


# ---- rows


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 100])
def test_rows_stand_in_the_order_of_the_samples_of_all_groups(chunk):
    net, groups = Counted(), samples((2, 5), (7, 3), (2, 8), (30, 1))
    reader = of_activations(net, groups)
    read = snapshot(net, groups, chunk, reader).read(reader)
    assert read.keys() == {f"{kind}/{name}" for kind in ("units", "shown") for name in ("act", "head")} | {TARGETS}
    assert torch.equal(read[TARGETS], torch.cat([y for _, y, _ in groups]))
    hidden = torch.cat([net.truth(x) for x, *_ in groups])
    torch.testing.assert_close(read["units/act"], hidden)
    torch.testing.assert_close(read["units/head"], (hidden @ net.head.weight.T + net.head.bias).detach())
    assert {len(rows) for rows in read.values()} == {17}
    assert max(net.passes) <= chunk


def test_chunks_are_of_about_the_same_size_so_that_none_is_left_with_a_single_sample():
    net, groups = Counted(), samples((0, 9))
    snapshot(net, groups, 4).read(Reads("first", give_outputs))
    assert net.passes == [3, 3, 3]


@pytest.mark.parametrize("size", [1, 4, 6, 11, 12])
def test_a_smaller_pool_reads_the_first_rows_of_the_pass_over_the_larger_one(size):
    net, groups = Counted(), samples((0, 6), (0, 6))
    reader = Reads("first", give_outputs)
    whole = snapshot(net, groups, 4, reader)
    few = [tuple(leaf[:size] for leaf in groups[0])]
    if size > 6:
        few = [groups[0], tuple(leaf[: size - 6] for leaf in groups[1])]
    small = snapshot(net, few, 4)
    small.whole = whole
    found = small.read(reader)["outputs"]
    assert torch.equal(found, whole.read(reader)["outputs"][:size])
    assert len(found) == size == small.size
    assert net.passes == [3, 3, 3, 3]
    torch.testing.assert_close(found, torch.cat([net(x) for x, *_ in few]).detach())


def test_what_fails_in_the_larger_pool_fails_in_the_smaller():
    net, groups = Counted(), samples((0, 6))
    small = snapshot(net, groups, 4)
    small.whole = snapshot(net, groups, 4, Reads("bad", fail))
    with pytest.raises(ValueError, match="not this one"):
        small.read(Reads("bad", fail))


def test_a_layer_that_runs_for_some_of_the_samples_is_left_out_and_the_others_keep_their_rows():
    class Sometimes(Counted):
        def forward(self, x):
            self.passes.append(len(x))
            h = self.act(self.inner(x))
            return self.head(torch.tanh(h) if (x[:, 0] > 0).all() else h)

    net, (group,) = Sometimes(), samples((0, 8))
    group[0][:, 0].abs_()
    reader = of_activations(net, [group])
    assert [layer.label for layer in reader.layers] == ["act", "tanh", "head"]
    group[0][5, 0] = -1.0
    read = snapshot(net, [group], 4, reader).read(reader)
    assert read.keys() == {"units/act", "shown/act", "units/head", "shown/head", TARGETS}
    torch.testing.assert_close(read["units/act"], net.truth(group[0]))


def test_a_layer_with_a_unit_for_each_token_is_left_out_where_lengths_differ():
    class Scores(Counted):
        def forward(self, x):
            self.passes.append(len(x))
            h = self.act(self.inner(x))
            return self.head((torch.sigmoid(h.sum(2)).unsqueeze(2) * h).mean(1))

    net, groups = Scores(), samples((4, 5), (6, 5))
    reader = of_activations(net, groups)
    assert [(layer.label, layer.units) for layer in reader.layers] == [("act", 5), ("sigmoid", 4), ("head", CLASSES)]
    assert snapshot(net, groups[:1], 4, reader).read(reader).keys() >= {"units/sigmoid", "units/act", "units/head"}
    read = snapshot(net, groups, 4, reader).read(reader)
    assert "units/sigmoid" not in read
    assert {len(rows) for rows in read.values()} == {10}


# ---- side effects


def test_the_replica_has_no_hooks_left_and_reads_carry_no_graph():
    net, groups = Counted(), samples((3, 9))
    reader = of_activations(net, groups)
    shared = snapshot(net, groups, 4, reader, Reads("bad", fail))
    read = shared.read(reader)
    assert all(not table for part in net.modules() for name, table in vars(part).items() if "_hooks" in name)
    assert not any(rows.requires_grad or rows.grad_fn for rows in read.values())


def test_with_readers_of_outputs_only_no_module_is_hooked_and_the_samples_are_not_changed():
    class Asserts(Counted):
        def forward(self, x):
            assert not any(part._forward_hooks for part in self.modules())
            return super().forward(x.mul_(1.0).add_(0.0))

    net, groups = Asserts(), samples((0, 9))
    before = [leaf.clone() for leaf in groups[0]]
    snapshot(net, groups, 4).read(Reads("first", give_outputs))
    assert net.passes == [3, 3, 3]
    assert all(map(torch.equal, before, groups[0]))
