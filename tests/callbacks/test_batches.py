"""Batches that fall into samples along no axis, or along one that is declared: exact values, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from harness import assert_identical
from harness import run as recorded
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import trainer
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    InfoPlaneCallback,
    LikelihoodCall,
    StabilityCallback,
    WeightInfoCallback,
    measure,
)

SIZES = [3, 5, 4, 2, 6, 3, 3, 1, 7, 4, 2, 5]
N, BATCH, WIDTH, CLASSES = len(SIZES), 6, 4, 3
_generator = torch.Generator().manual_seed(0)
ROWS = [torch.randn(size, WIDTH, generator=_generator) for size in SIZES]
EDGES = [torch.randint(0, size, (2, 2 * size), generator=_generator) for size in SIZES]
TYPES = [torch.rand(2 * size, 1, generator=_generator) for size in SIZES]
LABELS = torch.arange(N) % CLASSES


class Graph:
    """One graph, in the form of PyTorch Geometric's."""

    def __init__(self, x: Tensor, edge_index: Tensor, y: Tensor):
        self.x, self.edge_index, self.y = x, edge_index, y

    @property
    def num_nodes(self) -> int:
        return len(self.x)


class GraphBatch(Graph):
    """Several graphs as one."""

    @classmethod
    def from_data_list(cls, graphs):
        batch = cls.__new__(cls)
        starts = [0]
        for graph in graphs:
            starts.append(starts[-1] + graph.num_nodes)
        batch.x, batch.y = torch.cat([g.x for g in graphs]), torch.cat([g.y for g in graphs])
        batch.edge_index = torch.cat([g.edge_index + s for g, s in zip(graphs, starts, strict=False)], 1)
        batch.edges = [g.edge_index.shape[1] for g in graphs]
        batch.ptr = torch.tensor(starts)
        batch.batch = torch.repeat_interleave(torch.arange(len(graphs)), batch.ptr.diff())
        return batch

    @property
    def num_graphs(self) -> int:
        return len(self.ptr) - 1

    def to_data_list(self):
        nodes, edges = self.ptr.diff().tolist(), torch.split(self.edge_index, self.edges, 1)
        parts = zip(torch.split(self.x, nodes), edges, self.ptr.tolist(), self.y[:, None], strict=False)
        return [Graph(x, edge_index - start, y) for x, edge_index, start, y in parts]

    def to(self, device):
        return self


class Net(nn.Module):
    """One round of messages along the edges, and the sum over the nodes of a graph."""

    def __init__(self):
        super().__init__()
        self.node, self.edge, self.out = nn.Linear(WIDTH, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x, edge_index, numbers, count):
        h = torch.tanh(self.node(x))
        h = h + torch.zeros_like(h).index_add(0, edge_index[1], torch.tanh(self.edge(h[edge_index[0]])))
        return self.out(torch.zeros(count, 5).to(h).index_add(0, numbers, h))


class Module(pl.LightningModule):
    def __init__(self, step, net):
        super().__init__()
        self.step, self.net = step, net

    def training_step(self, batch, batch_idx):
        return self.step(self.net, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def loader(collate):
    return DataLoader(range(N), BATCH, collate_fn=collate)


def fisher(**options):
    defaults = {"num_samples": N, "every_n_train_steps": 100, "summary": False, "on_error": "raise"}
    return FisherTraceCallback("exact", **{**defaults, **options})


def trace(step, net, make_batch, **options):
    callback = fisher(**options)
    trainer(callback, max_epochs=1).fit(Module(step, copy.deepcopy(net)), loader(make_batch))
    return callback.history["fisher/trace"][0][1]


def truth(net, logits):
    """One sample and one label at a time, plain autograd in float64."""
    net, total = copy.deepcopy(net).double(), 0.0
    for n in range(N):
        for log_p in logits(net, n).reshape(CLASSES).log_softmax(-1):
            gradients = torch.autograd.grad(log_p, list(net.parameters()), retain_graph=True)
            total += log_p.exp().item() * sum(g.square().sum().item() for g in gradients) / N
    return total


def graphs(numbers):
    return GraphBatch.from_data_list([Graph(ROWS[i], EDGES[i], LABELS[i : i + 1]) for i in numbers])


def graph_step(net, batch):
    return F.cross_entropy(net(batch.x, batch.edge_index, batch.batch, batch.num_graphs), batch.y)


def graph_alone(net, n):
    return net(ROWS[n].double(), EDGES[n], torch.zeros(SIZES[n], dtype=torch.long), 1)


# ---- graphs

HELD = {
    "alone": (graph_step, graphs),
    "tuple": (
        lambda m, b: F.cross_entropy(m(b[0].x, b[0].edge_index, b[0].batch, len(b[1])), b[1]),
        lambda i: (graphs(i), LABELS[i]),
    ),
    "dict": (
        lambda m, b: F.cross_entropy(m(b["g"].x, b["g"].edge_index, b["g"].batch, len(b["y"])) - b["w"], b["y"]),
        lambda i: {"g": graphs(i), "y": LABELS[i], "w": torch.zeros(CLASSES)},
    ),
}


@pytest.mark.parametrize("form", HELD)
def test_a_batch_of_graphs_is_measured_graph_by_graph(form):
    net = Net()
    assert trace(*[HELD[form][0], net, HELD[form][1]]) == pytest.approx(truth(net, graph_alone), rel=1e-5)


def test_every_callback_measures_graphs_and_training_does_not_notice():
    def make():
        return Module(graph_step, Net())

    callbacks = [
        fisher(),
        InfoPlaneCallback(every_n_train_steps=100, summary=False),
        WeightInfoCallback(num_samples=4, every_n_train_steps=100, summary=False),
        EffectiveInfoCallback(num_samples=4, draws=4, beta=1.0, every_n_train_steps=100, summary=False),
        StabilityCallback(index=1, replacement=2, every_n_train_steps=100, summary=False),
    ]
    plain = recorded(make, data=lambda: loader(graphs), max_epochs=1)
    assert_identical(plain, recorded(make, *callbacks, data=lambda: loader(graphs), max_epochs=1))
    for callback in callbacks:
        for tag in callback.tags:
            assert all(value == value for _, value in callback.history[tag]), tag
    assert callbacks[-1].history["stability/param_distance"][-1][1] > 0


def test_the_nodes_of_one_graph_are_refused_and_the_whole_graph_is_one_sample():
    def step(net, graph):
        return F.cross_entropy(nodes(net, graph), graph.labels)

    def nodes(net, graph):
        return net(graph.x, graph.edge_index, torch.arange(len(graph.x)), len(graph.x))

    def one(_):
        graph = Graph(ROWS[4], EDGES[4], LABELS[:6])
        graph.labels = LABELS[:6]
        return graph

    def adapter(module, graph):
        return nodes(module.net, graph).T[None], graph.labels[None], "categorical"

    with pytest.raises(MisconfigurationException, match=r"(?s)one graph of 6 nodes.*depends on its neigh.*\.T\[None\]"):
        trace(step, Net(), one)
    net = Net()
    found = trace(step, net, one, adapter=adapter, split=lambda graph: [graph], collate=lambda graphs: graphs[0])
    net, total = copy.deepcopy(net).double(), 0.0
    graph = one(0)
    graph.x = graph.x.double()
    for z in nodes(net, graph):
        for log_p in z.log_softmax(-1):
            gradients = torch.autograd.grad(log_p, list(net.parameters()), retain_graph=True)
            total += log_p.exp().item() * sum(g.square().sum().item() for g in gradients)
    assert found == pytest.approx(total, rel=1e-5)


# ---- flat tensors


@dataclass
class Flat:
    x: Tensor
    edges: Tensor
    back: Tensor
    kinds: Tensor
    number: Tensor


def flat(numbers):
    sizes = torch.tensor([SIZES[i] for i in numbers])
    starts = [0, *sizes.cumsum(0).tolist()]
    edges = torch.cat([EDGES[i] + start for i, start in zip(numbers, starts, strict=False)], 1)
    numbering = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    last = torch.cat([torch.arange(2 * SIZES[i]).flip(0) + 2 * s for i, s in zip(numbers, starts, strict=False)])
    parts = Flat(torch.cat([ROWS[i] for i in numbers]), edges, last, torch.cat([TYPES[i] for i in numbers]), numbering)
    return parts, LABELS[numbers]


def apart(numbers):
    """The ends of the edges in tensors of their own, and the number of each sample, which no rows begin at."""
    parts, y = flat(numbers)
    ends = {"from": parts.edges[0], "to": parts.edges[1]}
    return {"id": torch.arange(len(y)), **{k: v for k, v in vars(parts).items() if k != "edges"}, **ends, "y": y}


def step_of_ends(net, batch):
    edges = torch.stack([batch["from"], batch["to"]])
    return flat_step(net, (Flat(batch["x"], edges, batch["back"], batch["kinds"], batch["number"]), batch["y"]))


def flat_step(net, batch):
    parts, y = batch
    h = torch.tanh(net.node(parts.x))
    sent = torch.tanh(net.edge(h[parts.edges[0]])) * (parts.kinds + parts.kinds[parts.back])
    h = h + torch.zeros_like(h).index_add(0, parts.edges[1], sent)
    return F.cross_entropy(net.out(torch.zeros(len(y), 5).to(h).index_add(0, parts.number, h)), y)


def flat_alone(net, n):
    h, kinds = torch.tanh(net.node(ROWS[n].double())), TYPES[n].double()
    sent = torch.tanh(net.edge(h[EDGES[n][0]])) * (kinds + kinds.flip(0))
    return net.out((h + torch.zeros_like(h).index_add(0, EDGES[n][1], sent)).sum(0))


def bag(numbers):
    sizes = torch.tensor([SIZES[i] for i in numbers])
    return torch.cat([ROWS[i] for i in numbers]), sizes, sizes.cumsum(0), LABELS[numbers]


def bag_alone(net, n):
    return net.out(torch.tanh(net.edge(torch.tanh(net.node(ROWS[n].double())).sum(0))))


def bag_step(net, x, numbers, y):
    h = torch.tanh(net.node(x))
    return F.cross_entropy(net.out(torch.tanh(net.edge(torch.zeros(len(y), 5).to(h).index_add(0, numbers, h)))), y)


def numbered(sizes):
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes)


FLAT = {
    "the number of each row's sample": (flat_step, flat, flat_alone),
    "ends of edges apart": (step_of_ends, apart, flat_alone),
    "lengths": (
        lambda m, b: bag_step(m, b[0], numbered(b[1]), b[2]),
        lambda i: (bag(i)[0], bag(i)[1], bag(i)[3]),
        bag_alone,
    ),
    "where each begins": (
        lambda m, b: bag_step(m, b["x"], numbered(F.pad(b["at"], (0, 1), value=len(b["x"])).diff()), b["y"]),
        lambda i: {"x": bag(i)[0], "at": bag(i)[2] - bag(i)[1], "y": bag(i)[3]},
        bag_alone,
    ),
    "where each begins and ends": (
        lambda m, b: bag_step(m, b[0], numbered(b[1].diff()), b[2]),
        lambda i: [bag(i)[0], F.pad(bag(i)[2], (1, 0)), bag(i)[3]],
        bag_alone,
    ),
}


@pytest.mark.parametrize("form", FLAT)
def test_flat_tensors_are_measured_sample_by_sample(form):
    step, collate, alone = FLAT[form]
    net = Net()
    net.requires_grad_(True)
    assert trace(step, net, collate) == pytest.approx(truth(net, alone), rel=1e-5)


def test_packed_sequences_are_measured_sequence_by_sequence():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = nn.GRU(WIDTH, 5, batch_first=True), nn.Linear(5, CLASSES)

        def forward(self, packed):
            h, lengths = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
            return self.out(h[torch.arange(len(h)), lengths - 1])

    def collate(numbers):
        return pack_sequence([ROWS[i] for i in numbers], enforce_sorted=False), LABELS[numbers]

    net = Reader()
    found = trace(lambda m, b: F.cross_entropy(m(b[0]), b[1]), net, collate)
    assert found == pytest.approx(truth(net, lambda m, n: m(pack_sequence([ROWS[n].double()]))), rel=1e-5)
    assert isinstance(collate([0, 1])[0], PackedSequence)


# ---- what is declared


class Opaque:
    def __init__(self, numbers):
        self.rows, self.y = [ROWS[i] for i in numbers], LABELS[numbers]


def opaque_step(net, batch):
    pooled = torch.stack([torch.tanh(net.node(rows)).sum(0) for rows in batch.rows])
    return F.cross_entropy(net.out(torch.tanh(net.edge(pooled))), batch.y)


def opaque_samples(batch):
    return list(zip(batch.rows, batch.y, strict=True))


def opaque_batch(samples):
    batch = Opaque([])
    batch.rows, batch.y = [rows for rows, _ in samples], torch.stack([y for _, y in samples])
    return batch


def test_a_class_of_ones_own_is_split_and_joined_as_declared():
    net, declared = Net(), {"split": opaque_samples, "collate": opaque_batch}
    expected = truth(net, bag_alone)
    assert trace(opaque_step, net, Opaque, **declared) == pytest.approx(expected, rel=1e-5)
    result = measure(Module(opaque_step, net), loader(Opaque), fisher(**declared))
    assert result.history["fisher/trace"][0][1] == pytest.approx(expected, rel=1e-5)
    given = [(ROWS[i], LABELS[i]) for i in range(N)]
    reference = torch.utils.data.StackDataset([r for r, _ in given], [y for _, y in given])
    of = fisher(reference=reference, **declared)
    trainer(of, max_epochs=1).fit(Module(opaque_step, copy.deepcopy(net)), loader(Opaque))
    assert of.history["fisher/trace"][0][1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("axes", [{"x": 1, "y": 0}, {"x": 1}, {"x": 1, "table": None}])
def test_the_axes_of_the_samples_are_those_that_are_declared(axes):
    x = torch.randn(BATCH, N, WIDTH, generator=torch.Generator().manual_seed(1))
    table = torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH)

    def step(net, batch):  # as many positions as samples
        h = torch.tanh(net.node(batch["x"] + batch["table"][:, None])).sum(0)
        return F.cross_entropy(net.out(torch.tanh(net.edge(h))), batch["y"])

    def alone(net, n):
        h = torch.tanh(net.node((x[:, n] + table).double())).sum(0)
        return net.out(torch.tanh(net.edge(h)))

    def collate(numbers):
        return {"x": x[:, numbers], "table": table, "y": LABELS[numbers]}

    net = Net()
    if "table" in axes:
        assert trace(step, net, collate, batch_axes=axes) == pytest.approx(truth(net, alone), rel=1e-5)
    else:  # what is not named and as long carries samples: the experiment says that this is not so
        with pytest.raises(MisconfigurationException, match=r"cut: batch\['x'\] \(6, 6, 4\) along axis 1, batch\['tab"):
            trace(step, net, collate, batch_axes=axes)
    assert trace(step, net, collate) == pytest.approx(truth(net, alone), rel=1e-5)  # found by experiment as well


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 3}, "split must be a function"),
        ({"collate": "mine"}, "collate must be a function"),
        ({"split": list}, "split= needs collate="),
        ({"split": list, "collate": list, "batch_axes": {0: 1}}, "exclude each other"),
        ({"batch_axes": [1]}, "batch_axes must map"),
        ({"batch_axes": {}}, "batch_axes must map"),
        ({"batch_axes": {0: "first"}}, r"batch_axes\[0\] must be an axis"),
        ({"batch_axes": {("x",): 1}}, "has the key"),
        ({"batch_axes": {"x": True}}, r"batch_axes\['x'\] must be an axis"),
    ],
)
def test_a_wrong_declaration_is_an_error_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=f"FisherTraceCallback: .*{message}"):
        FisherTraceCallback(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_axes": {"x": 0}}, r"names 'x', and the batch has no such tensor; it has '0' \(6, 4\), '1' \(6,\)"),
        ({"batch_axes": {1: 1}}, r"batch_axes\['1'\] is 1, and batch\[1\] has the shape \(6,\)"),
        ({"batch_axes": {0: 1, 1: 0}}, r"batch\[0\] has 4 on axis 1, batch\[1\] has 6 on axis 0"),
        ({"batch_axes": {0: None, 1: None}}, r"no samples are left: '0' \(6, 4\), '1' \(6,\)"),
        ({"split": lambda b: b[0][:0], "collate": list}, "split= gives no samples"),
        ({"split": lambda b: b.rows, "collate": list}, "split= fails on a batch of type list: AttributeError"),
        ({"split": lambda b: b[0], "collate": lambda s: s[7]}, "collate= fails on the 6 samples"),
        (
            {
                "split": lambda b: list(zip(*b, strict=True)),
                "collate": lambda s: [torch.stack([x for x, _ in s]), torch.tensor([0])],
            },
            r"does not make the batch again .* batch\[1\] has the shape \(1,\), not \(6,\)",
        ),
    ],
)
def test_a_declaration_that_does_not_fit_the_batch_ends_the_run_before_the_first_step(options, message):
    x = torch.randn(N, WIDTH)

    def step(net, batch):
        raise AssertionError("a step was taken")

    with pytest.raises(MisconfigurationException, match=f"FisherTraceCallback: .*{message}"):
        trace(step, Net(), lambda i: [x[i], LABELS[i]], on_error="warn", **options)


# ---- loaders


class Two(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(WIDTH, CLASSES)

    def training_step(self, batch, batch_idx):
        return sum(F.cross_entropy(self.net(part[0]), part[1]) for part in batch.values() if part is not None)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class TakesIterator(Two):
    def training_step(self, dataloader_iter):
        (x, y), _, _ = next(dataloader_iter)
        return F.cross_entropy(self.net(x), y)


X = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(3))
Y = torch.arange(24) % CLASSES


def linear_truth(net, x):
    p, features = net(x).softmax(1), x.square().sum(1) + 1
    return (features * (1 - p.square().sum(1))).mean().item()


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
@pytest.mark.parametrize("other", [4, 8])
def test_a_head_of_a_combined_loader_is_measured_in_every_mode(mode, other):
    data = torch.utils.data.TensorDataset
    loaders = {"a": DataLoader(data(X, Y), 8), "b": DataLoader(data(X[:8].flip(0), Y[:8]), other)}
    module, callback = Two(), fisher(adapter=LikelihoodCall(0), num_samples=8)
    expected = linear_truth(module.net, X[:8])
    trainer(callback, max_epochs=1).fit(module, CombinedLoader(loaders, mode))
    assert callback.history["fisher/trace"][0][1] == pytest.approx(expected, rel=1e-4)


def test_heads_of_a_combined_loader_are_listed():
    loaders = {name: DataLoader(torch.utils.data.TensorDataset(X, Y), 8) for name in "ab"}
    with pytest.raises(MisconfigurationException, match="calls 2 likelihoods"):
        trainer(fisher(), max_epochs=1).fit(Two(), CombinedLoader(loaders, "min_size"))


def test_with_dataloader_iter_the_samples_are_to_be_given_and_each_step_has_one_point():
    loader = DataLoader(torch.utils.data.TensorDataset(X, Y), 8)
    with pytest.raises(MisconfigurationException, match=r"dataloader_iter; give the samples to measure, reference="):
        trainer(fisher(), max_epochs=1).fit(TakesIterator(), loader)
    module = TakesIterator()
    callback = FisherTraceCallback(
        "exact", reference=(X, Y), adapter=lambda m, b: (m.net(b[0]), b[1]), every_n_train_steps=1, on_error="raise"
    )
    expected = linear_truth(module.net, X)
    trainer(callback, max_epochs=2).fit(module, loader)
    steps, values = zip(*callback.history["fisher/trace"], strict=True)
    assert steps == tuple(range(7))
    assert values[0] == pytest.approx(expected, rel=1e-4)
    assert values[-1] == pytest.approx(linear_truth(module.net, X), rel=1e-4)
