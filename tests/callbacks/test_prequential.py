"""The prequential code of the labels, through a real Trainer: against the losses as training has them, and coins."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from labelled import BATCH, CLASSES, SAMPLES, Labels, Net, Regression, data, loader
from lightning.pytorch.callbacks import ModelCheckpoint
from models import trainer
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_info import WeightInfoCallback
from lightning_info.callbacks.first_losses import FirstLosses
from lightning_info.functional import prequential_code
from lightning_info.quantities.weight_information import bounds

TAG, EXCESS = "weight_info/prequential", "weight_info/prequential_excess"


def weight_info(**options) -> WeightInfoCallback:
    defaults = {"every_n_train_steps": 5, "num_samples": 64, "draws": 2, "on_error": "raise", "summary": False}
    return WeightInfoCallback(**{**defaults, **options})


@pytest.fixture(autouse=True)
def _without_bounds(monkeypatch):
    """They take most of the time."""
    monkeypatch.setattr(bounds, "MOST_WEIGHTS", 0)


class Watch(pl.Callback):
    """-log p of the labels of every batch, before it is trained on."""

    def __init__(self):
        self.nats: list[float] = []

    def on_train_batch_start(self, run, module, batch, batch_idx):
        with torch.no_grad():
            self.nats.append(F.cross_entropy(module(batch[0]).double(), batch[1], reduction="sum").item())


class Summed(Net):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], reduction="sum")


class Manual(Net):
    """Accumulates by itself, and returns the loss in a dict."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss / 2)
        optimizer.step()
        return {"loss": loss}


class Silent(Manual):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)


def fit(callback, module, train=None, *others, **options):
    torch.manual_seed(0)
    trainer(callback, *others, **{"max_epochs": 3, **options}).fit(module, loader() if train is None else train)
    return module


@pytest.mark.parametrize(
    ("kind", "accumulate", "samples"),
    [(Net, 1, SAMPLES), (Net, 4, SAMPLES - 7), (Summed, 1, SAMPLES - 7), (Manual, 1, SAMPLES)],
)
def test_it_is_the_sum_of_minus_log_p_before_each_batch_is_trained_on(kind, accumulate, samples):
    callback, watch = weight_info(), Watch()
    fit(callback, kind(), loader(samples), watch, accumulate_grad_batches=accumulate)
    epoch = math.ceil(samples / BATCH)
    curve = callback.history[TAG]
    for step, nats in curve:
        batches = min(epoch, step * accumulate)
        assert nats == pytest.approx(sum(watch.nats[:batches]), rel=1e-5)
    assert curve[-1][1] == pytest.approx(sum(watch.nats[:epoch]), rel=1e-5)
    assert [step for step, _ in curve if step * accumulate > epoch] in ([], [curve[-1][0]])  # it ends there
    assert len(curve) < len(callback.history["weight_info/kl"]) - 1
    final = callback.history["weight_info/loss"][-1][1]
    assert callback.history[EXCESS][0][1] == pytest.approx(curve[-1][1] - samples * final, rel=1e-9)
    text = callback.quantity.closing_text(callback.record())
    weights = callback.history["weight_info/complexity"][-1][1]
    others = f"{samples * math.log(CLASSES):.4g} uniform, {weights:.4g} by C_beta."
    assert f"Code of {samples} labels: {curve[-1][1]:.4g} nats prequential, {others}" in text


def test_several_labels_a_sample_all_count():
    callback = weight_info()
    fit(callback, Labels(), max_epochs=1)
    start, first = Labels(), []
    optimizer = start.configure_optimizers()
    torch.manual_seed(0)
    for batch in loader():
        loss = start.training_step(batch, 0)
        first.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    truth = prequential_code(torch.tensor(first), torch.full((len(first),), float(BATCH * CLASSES)))[-1].item()
    assert callback.history[TAG][-1][1] == pytest.approx(truth, rel=1e-5)


class Coin(pl.LightningModule):
    """The Krichevsky-Trofimov estimator of a coin: it counts instead of training its weights."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.register_buffer("counts", torch.full((2,), 0.5, dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        _, y = batch
        logits = (self.counts / self.counts.sum()).log() + self.shift
        return F.cross_entropy(logits.expand(len(y), 2), y)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.counts += torch.bincount(batch[1], minlength=2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def test_a_sequential_predictor_has_the_code_of_its_evidence():
    """KT: -log evidence of the Beta(½, ½) prior, ½ log n + ½ log(π/2) above the best coin up to 1/n."""
    n = 100
    y = (torch.rand(n, generator=torch.Generator().manual_seed(3)) < 0.3).long()
    callback = weight_info(every_n_epochs=1, every_n_train_steps=None, num_samples=8, lambda_=1.0)
    fit(callback, Coin(), DataLoader(TensorDataset(torch.zeros(n, 1), y), 1), max_epochs=1)
    ones = y.sum().double()
    half = torch.tensor(0.5, dtype=torch.float64)
    evidence = torch.lgamma(ones + half) + torch.lgamma(n - ones + half) - math.log(math.pi) - math.lgamma(n + 1)
    found = callback.history[TAG][-1][1]
    assert found == pytest.approx(-evidence.item(), rel=1e-6)
    best = -(ones * (ones / n).log() + (n - ones) * (1 - ones / n).log()).item()
    assert found - best == pytest.approx(0.5 * math.log(n) + 0.5 * math.log(math.pi / 2), abs=0.02)


class Weighted(Net):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], weight=torch.tensor([1.0, 1.0, 3.0]))


class Penalised(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0.01 * sum(p.square().sum() for p in self.parameters())


class SmoothedInTraining(Net):
    """As label mixing is done."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1 if self.training else 0.0)


class Ignoring(Net):
    """One label in thirty, none of the first reference samples."""

    def training_step(self, batch, batch_idx):
        y = torch.where(batch[0][:, 0] > 1.5, -100, batch[1])
        return F.cross_entropy(self(batch[0]), y)


class Closed(Net):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


REFUSED = [
    (Weighted, "not the mean or the sum of -log p"),
    (Penalised, "not the mean or the sum of -log p"),
    (SmoothedInTraining, "not the mean or the sum of -log p"),
    (Regression, "the targets are no labels"),
    (Silent, "not the mean or the sum of -log p"),
    (Ignoring, "leaves out labels"),
    (Closed, "several times"),
]


@pytest.mark.filterwarnings("ignore:.*no weight_info/prequential")
@pytest.mark.parametrize(("kind", "reason"), REFUSED)
def test_what_is_no_code_of_the_labels_is_absent_with_the_reason(kind, reason):
    callback = weight_info(every_n_train_steps=10)
    train = loader(shuffle=False) if kind is Ignoring else None
    if kind is Ignoring:
        x, y = data(SAMPLES, 1).tensors
        order = x[:, 0].argsort()  # the labels that are left out come last
        train = DataLoader(TensorDataset(x[order], y[order]), BATCH)
    fit(callback, kind(), train, max_epochs=2 if kind is Ignoring else 1)
    values = [v for _, v in callback.history.get(TAG, ())]
    assert EXCESS not in callback.history
    assert not values or (kind is Ignoring and math.isnan(values[-1]))
    assert reason in callback.report()


@pytest.mark.filterwarnings("ignore:.*no weight_info/p")
def test_repeated_samples_and_a_start_without_the_first_losses_have_no_code(tmp_path):
    callback = weight_info()
    train = DataLoader(data(SAMPLES, 1), BATCH, sampler=RandomSampler(range(SAMPLES), replacement=True))
    fit(callback, Net(), train)
    assert TAG not in callback.history
    assert "may repeat samples" in callback.report()

    save = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    whole = weight_info(every_n_train_steps=10)
    torch.manual_seed(0)
    trainer(whole, save, max_epochs=2, enable_checkpointing=True).fit(Net(), loader())
    for step, has_code in ((5, False), (15, True)):
        resumed = weight_info(every_n_train_steps=10)
        path = str(tmp_path / f"step={step}.ckpt")
        trainer(resumed, max_epochs=2).fit(Net(), loader(), ckpt_path=path, weights_only=True)
        assert (TAG in resumed.history) == (EXCESS in resumed.history) == has_code
        if has_code:
            last = resumed.history[TAG][-1][1]
            assert resumed.history[TAG] == whole.history[TAG]
            assert f"{last:.4g} nats prequential" in resumed.quantity.closing_text(resumed.record())
        else:
            assert "without all losses of its first epoch" in resumed.report()


def test_on_an_accelerator_the_sums_stay_on_it():
    losses = FirstLosses()
    for size in (4, 4, 3):
        losses.add(torch.tensor(2.0, device="meta"), 2, [torch.zeros(size, 5), torch.zeros(size)], None)
    assert {size: (total.device.type, total.dtype) for size, total in losses._sums.items()} == {
        4: ("meta", torch.float64),
        3: ("meta", torch.float64),
    }
