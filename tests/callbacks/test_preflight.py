"""What the check before the first step finds besides a missing likelihood; see test_bad_input.py for that."""

from __future__ import annotations

import re
import weakref

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, data, loader, trainer
from oracle import fisher_trace_by_definition
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback


def fit(module, **options):
    callback = FisherTraceCallback(every_n_train_steps=4, num_samples=8, on_error="raise", summary=False, **options)
    run = trainer(callback, max_epochs=1)
    run.fit(module, loader())
    return callback


class Closure(Classifier):
    def __init__(self):
        super().__init__()
        self.encode = lambda x: self.net(x)

    def forward(self, x):
        return self.encode(x)


class WeakReference(Classifier):
    """Its copy's training_step would compute with the original's weights, whose gradients would be missing."""

    def __init__(self):
        super().__init__()
        self.owner = weakref.ref(self)

    def forward(self, x):
        return self.owner().net(x)


def test_a_closure_over_the_module_computes_with_the_weights_of_the_copy():
    torch.manual_seed(0)
    plain = Classifier()
    closure = Closure()
    closure.load_state_dict(plain.state_dict())
    assert fit(closure).history["fisher/trace"] == fit(plain).history["fisher/trace"]


def test_a_copy_that_computes_with_the_originals_weights_is_refused():
    with pytest.raises(MisconfigurationException, match=r"'owner' of WeakReference is a function .* make it a method"):
        fit(WeakReference())
    original = Classifier()
    with pytest.raises(MisconfigurationException, match="a copy of Classifier still computes with the original's"):
        fit(original, adapter=lambda module, batch: (original(batch[0]), batch[1]))


class Penalised(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.net[0].weight.square().sum()


def test_a_penalty_is_named_once(monkeypatch):
    said = []
    monkeypatch.setattr("lightning_info.callbacks.preparing.rank_zero_info", said.append)
    module = Penalised()
    penalty = module.net[0].weight.square().sum().item()
    fit(module)
    (summary,) = [text for line in said if "beyond the likelihood" in (text := " ".join(line.split()))]
    assert f"{penalty:.4g} of the loss of Penalised.training_step" in summary


@pytest.mark.parametrize(("batch_norm", "statistics"), [(True, "running"), (True, "reference"), (False, "running")])
def test_running_statistics_are_named_where_they_are_used(monkeypatch, batch_norm, statistics):
    said = []
    monkeypatch.setattr("lightning_info.callbacks.preparing.rank_zero_info", said.append)
    fit(Classifier(batch_norm=batch_norm), batch_norm=statistics, verbose=True)
    text = " ".join(said[0].split())
    assert ("running statistics, which lag" in text) == (batch_norm and statistics == "running")
    assert ("statistics of the reference samples" in text) == (batch_norm and statistics == "reference")


class Tokens(Classifier):
    """An embedding that renormalises the rows it reads: the forward pass writes to the weights."""

    def __init__(self, max_norm):
        super().__init__(nn.Sequential(nn.Embedding(10, 4, max_norm=max_norm), nn.Linear(4, CLASSES)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x.abs().sum(1).long() % 10), y)


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_a_module_that_writes_to_its_weights_is_measured_on_private_ones(max_norm):
    trained = []
    for callbacks in ([], [FisherTraceCallback(every_n_train_steps=1, num_samples=32, on_error="raise")]):
        torch.manual_seed(0)
        module = Tokens(max_norm)
        trainer(*callbacks, max_epochs=1).fit(module, loader())
        trained.append(module.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())
    assert [step for step, _ in callbacks[0].history["fisher/trace"]] == [0, 3, 4, 5, 6, 7, 8]


class Checkpointed(nn.Module):
    def __init__(self, reentrant, leaf):
        super().__init__()
        self.first, self.block = (
            nn.Linear(FEATURES, 5),
            nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, CLASSES)),
        )
        self.reentrant, self.leaf = reentrant, leaf

    def forward(self, x):
        h = x[:, :5].clone().requires_grad_() if self.leaf else self.first(x)
        return checkpoint(self.block, h, use_reentrant=self.reentrant)


@pytest.mark.parametrize("leaf", [False, True])
def test_reentrant_checkpointing_hides_parameters_and_is_refused(leaf):
    with pytest.raises(MisconfigurationException, match="use_reentrant=False"):
        fit(Classifier(Checkpointed(True, leaf)))


@pytest.mark.parametrize("leaf", [False, True])
def test_other_checkpointing_is_measured_right(leaf):
    net = Checkpointed(False, leaf)
    truth = sum(fisher_trace_by_definition(net, data().tensors[0][:8], "categorical").values())
    assert fit(Classifier(net), estimator="exact").history["fisher/trace"][0] == (0, pytest.approx(truth, rel=1e-5))


class Positions(Classifier):
    """Several positions a sample, classes last: a loss that is not recognised."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return -self(x).log_softmax(-1).gather(-1, y.unsqueeze(-1)).mean()


def classes_last(module, batch):
    return module(batch[0]), batch[1], "categorical"


def classes_on_axis_1(module, batch):
    return module(batch[0]).movedim(-1, 1), batch[1], "categorical"


def test_logits_of_an_adapter_have_their_classes_on_axis_1():
    x, y = torch.randn(16, 5, FEATURES), torch.randint(0, CLASSES, (16, 5))
    callback = FisherTraceCallback("exact", num_samples=8, adapter=classes_last, on_error="raise")
    with pytest.raises(MisconfigurationException, match="classes are on axis 1"):
        trainer(callback).fit(Positions(), DataLoader(TensorDataset(x, y), 8))
    module = Positions()
    truth = sum(fisher_trace_by_definition(Flat(module.net), x[:8], "categorical").values())
    callback = FisherTraceCallback("exact", num_samples=8, adapter=classes_on_axis_1, on_error="raise", summary=False)
    trainer(callback, max_epochs=1).fit(module, DataLoader(TensorDataset(x, y), 8))
    assert callback.history["fisher/trace"][0] == (0, pytest.approx(truth, rel=1e-5))


class Flat(nn.Module):
    """All joint labels of five positions as classes: log p(y_1..y_5) is the sum over the positions."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        joint = self.net(x).log_softmax(-1)  # (1, 5, C)
        total = joint[:, 0]
        for position in range(1, joint.shape[1]):
            total = (total.unsqueeze(-1) + joint[:, position].unsqueeze(1)).flatten(1)
        return total


class Counting(pl.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.seen, self.sizes = 0, []

    def train_dataloader(self):
        return loader()


class Counted(Classifier):
    def training_step(self, batch, batch_idx):
        self.trainer.datamodule.seen += 1
        self.trainer.datamodule.sizes.append(len(batch[0]))
        return super().training_step(batch, batch_idx)


def test_the_datamodule_does_not_notice():
    source = Counting()
    callback = FisherTraceCallback(every_n_train_steps=1, num_samples=8, on_error="raise", summary=False)
    trainer(callback, max_epochs=1).fit(Counted(), datamodule=source)
    assert source.seen == 8
    assert len(source.sizes) == 8


class Early(Classifier):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 3 else None


@pytest.mark.parametrize("interval", [{"every_n_epochs": 1}, {"max_overhead": 1.0}])
def test_the_end_of_an_epoch_that_is_ended_early_is_measured(interval):
    callback = FisherTraceCallback(num_samples=8, on_error="raise", summary=False, **interval)
    trainer(callback, max_epochs=3).fit(Early(), loader())
    steps = [step for step, _ in callback.history["fisher/trace"]]
    assert steps == ([0, 3, 6, 9] if "every_n_epochs" in interval else [0, 1, 2, 3, 4, 6, 8, 9])


class Opaque:
    """A batch of the user's own class, which Lightning moves by its ``to``."""

    def __init__(self, samples):
        self.x, self.y = torch.utils.data.default_collate(samples)

    def to(self, *args, **kwargs):
        return self


class OnOpaque(Classifier):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch.x), batch.y)


def plain(module, batch):
    return module(batch[0]), batch[1]


def test_a_batch_of_an_own_class_needs_reference_and_adapter():
    batches = DataLoader(data(), 8, collate_fn=Opaque)
    with pytest.raises(MisconfigurationException, match=r"reference=\(x, y\) with an adapter"):
        trainer(FisherTraceCallback(on_error="raise")).fit(OnOpaque(), batches)
    module = OnOpaque()
    x, y = data().tensors
    truth = sum(fisher_trace_by_definition(module.net, x[:16], "categorical").values())
    callback = FisherTraceCallback("exact", reference=(x[:16], y[:16]), adapter=plain, on_error="raise", summary=False)
    trainer(callback, max_epochs=1).fit(module, batches)
    assert callback.history["fisher/trace"][0] == (0, pytest.approx(truth, rel=1e-5))


@pytest.mark.parametrize("seed", [None, 1.5, True])
def test_a_seed_that_is_not_an_integer_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed must be an integer, got .*; for example seed=0"):
        FisherTraceCallback(seed=seed)


def test_a_batch_whose_samples_cannot_be_kept_does_not_end_the_run(monkeypatch):
    def full_disk(self, batch):
        raise RuntimeError("no memory for it")

    monkeypatch.setattr("lightning_info.replica.reference_samples.ReferenceSamples.add", full_disk)
    callback = FisherTraceCallback(num_samples=8, summary=False)
    run = trainer(callback, max_epochs=1)
    with pytest.warns(UserWarning, match="keeping reference samples failed and training goes on"):
        run.fit(Classifier(), loader())
    assert run.global_step == 8


class OwnGradients(Classifier):
    """Differentiates its own loss with functions that free the graph."""

    def __init__(self, differentiate):
        super().__init__()
        self.automatic_optimization = False
        self.differentiate = differentiate

    def training_step(self, batch, batch_idx):
        self.differentiate(F.cross_entropy(self(batch[0]), batch[1]), self)
        self.optimizers().step()


@pytest.mark.parametrize("name", ["backward", "grad"])
def test_a_step_that_frees_its_graph_is_refused(name):
    differentiate = {
        "backward": lambda loss, module: torch.autograd.backward(loss),
        "grad": lambda loss, module: torch.autograd.grad(loss, list(module.parameters())),
    }[name]
    with pytest.raises(
        MisconfigurationException, match=r"frees it; use self\.manual_backward\(loss\) or loss\.backward"
    ):
        fit(OwnGradients(differentiate))
    fit(OwnGradients(lambda loss, module: loss.backward()))


def test_the_summary_tells_what_is_measured_on_what_when_by_whom_and_what_it_costs(monkeypatch):
    said = []
    monkeypatch.setattr("lightning_info.callbacks.preparing.rank_zero_info", said.append)
    callback = fit(Classifier(nn.Linear(FEATURES, CLASSES)), also=["exact"], draws=5, prefix="mine", verbose=True)
    summary, values = callback.report().split("\n\n")
    head, *lines = re.split(r"\n  (?=\S)", summary)
    assert head == "FisherTraceCallback(prefix='mine')"
    rows = dict(" ".join(line.split()).split(maxsplit=1) for line in lines)
    assert rows["measures"].endswith("(importance estimator, 5 draws; also exact)")
    assert rows["samples"] == "8 reference samples: the first that pass in training; eval mode"
    assert rows["steps"] == "0, 4, 8, ..., and the end of fit"
    assert rows["engine"].startswith("'backpack', exact for all trainable weights")
    assert rows["module"] == "Classifier, 21 trainable weights, categorical outputs (3,) a sample"
    assert "forward and backward passes of 8 samples (a trial)" in rows["cost"]
    assert "fisher_layers/net" in values
    (printed,) = [" ".join(text.split()) for text in said]
    for title in ("measures", "samples", "steps", "cost"):
        assert rows[title] in printed
    assert "'backpack'" not in printed


def test_the_report_tells_why_a_faster_engine_does_not_do():
    report = " ".join(fit(Scaled()).report().split())
    assert "'backpack', exact" not in report
    assert "not 'backpack': no rule for the operator that uses scale" in report


class Scaled(Classifier):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(CLASSES))

    def forward(self, x):
        return self.net(x) * self.scale
