"""The plane of a module whose loss is not known is that of the same net with a loss that is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, data, trainer
from torch.utils.data import DataLoader

from lightning_info import FisherTraceCallback, InfoPlaneCallback

X, Y = data(64).tensors


def dice(module, x, y):
    p = module(x).softmax(1)
    return 1 - 2 * (p * F.one_hot(y, CLASSES)).sum() / (p.sum() + len(y))


def quantile(module, x, y):
    error = F.one_hot(y, CLASSES) - module(x)
    return torch.maximum(0.9 * error, -0.1 * error).mean()


def contrastive(module, x, y):
    features = F.normalize(module(x))
    return ((features @ features.T) - (y[:, None] == y).float()).square().mean()


def two_heads(module, x, y):
    z = module(x)
    return F.cross_entropy(z, y) + F.cross_entropy(2 * z, y)


def triplet(module, x, y):
    z = module(x)
    return F.triplet_margin_loss(z, z.roll(1, 0), z.roll(2, 0))


def taught(module, x, y):
    return 1 - F.cosine_similarity(module(x), module.teacher(x)).mean()


def known(module, x, y):
    return F.cross_entropy(module(x), y)


def without_rows(module, x, y):
    return module.net[0].weight.square().sum() + 0 * x.sum()


class Net(Classifier):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss
        self.teacher = torch.nn.Linear(FEATURES, CLASSES).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch[:2]
        return self.loss(self, x, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def plane(loss, rows=None, **options):
    torch.manual_seed(3)
    given = {"bins": 4, "num_samples": 64, "every_n_epochs": 1, "summary": False, "on_error": "raise"}
    callback = InfoPlaneCallback(**{**given, **options})
    trainer(callback, max_epochs=1).fit(Net(loss), DataLoader(rows or list(zip(X, Y, strict=True)), 8))
    return callback


def values(callback):
    return {tag: curve for tag, curve in callback.history.items() if "/I_" in tag}


@pytest.mark.parametrize("loss", [dice, quantile, contrastive, two_heads, triplet, taught])
def test_a_net_has_the_plane_that_it_has_with_a_known_loss(loss):
    callback = plane(loss)
    assert values(callback) == values(plane(known))
    report = " ".join(callback.report().split())
    assert "the integers of the batch, one for each sample" in report
    assert f"no likelihood, as Net.training_step calls {2 if loss is two_heads else 'no'} likelihood" in report


def test_what_a_point_costs_is_known_where_the_only_outputs_are_those_of_a_teacher():
    callback = plane(
        lambda m, x, y: 1 - F.cosine_similarity(x @ m.net[0].weight.T, m.teacher(x).repeat(1, 8)[:, :8]).mean()
    )
    report = " ".join(callback.report().split())
    assert "cost about" in report
    assert values(callback)


def test_of_several_integers_none_is_taken_for_the_label():
    rows = [(x, y, torch.tensor(n)) for n, (x, y) in enumerate(zip(X, Y, strict=True))]
    found = values(plane(dice, rows))
    assert found
    assert {tag: curve for tag, curve in values(plane(known)).items() if "I_XT" in tag} == found


def test_an_adapter_is_asked_all_the_same():
    with pytest.raises(MisconfigurationException, match="the adapter returned NoneType"):
        plane(dice, adapter=lambda module, batch: None)


def test_a_sample_that_depends_on_the_others_is_refused_all_the_same():
    def mixing(module, x, y):
        return (module(x + x.mean(0)) - 1).abs().mean()

    with pytest.raises(MisconfigurationException, match="must not depend on the others of its batch"):
        plane(mixing)


def test_who_needs_a_likelihood_never_has_the_outputs_for_one():
    """A loss that becomes unknown later: the plane goes on, and the trace beside it, on the same snapshot, is a gap."""

    class Switches(Net):
        def training_step(self, batch, batch_idx):
            loss = known if self.global_step < 4 else dice
            return loss(self, *batch)

    torch.manual_seed(3)
    ours = InfoPlaneCallback(bins=4, num_samples=16, every_n_train_steps=2, summary=False)
    fisher = FisherTraceCallback("exact", num_samples=16, every_n_train_steps=2, summary=False)
    with pytest.warns(
        UserWarning, match=r"no value at step 4 \(NaN\): .*calls no likelihood that is known here"
    ) as said:
        trainer(ours, fisher, max_epochs=1).fit(Switches(known), DataLoader(list(zip(X, Y, strict=True)), 8))
    assert all(value == value for tag, curve in values(ours).items() for _, value in curve)
    trace = dict(fisher.history["fisher/trace"])
    assert [step for step, value in trace.items() if value == value] == [0, 2]
    assert set(trace) == {0, 2, 4, 6, 8}
    (text,) = (str(w.message) for w in said if "no value" in str(w.message))
    assert "FisherTraceCallback(adapter=...)" in text
    assert "Traceback" not in text


def test_modules_that_give_packed_sequences_are_looked_through():
    from torch.nn.utils.rnn import pack_sequence

    class Packed(Net):
        def __init__(self, loss):
            super().__init__(loss)
            self.rnn = torch.nn.GRU(2, 4, batch_first=True)
            self.net = torch.nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.net(self.rnn(pack_sequence(list(x.view(len(x), 3, 2))))[1][-1])

    def fit(loss):
        torch.manual_seed(3)
        callback = InfoPlaneCallback(bins=4, num_samples=64, every_n_epochs=1, summary=False, on_error="raise")
        trainer(callback, max_epochs=1).fit(Packed(loss), DataLoader(list(zip(X, Y, strict=True)), 8))
        return values(callback)

    assert fit(dice) == fit(known)


def test_a_step_without_outputs_of_samples_is_told_so():
    callback = InfoPlaneCallback(num_samples=16, every_n_epochs=1, on_error="raise")
    with pytest.raises(MisconfigurationException, match=r"no module of Net gives real numbers of shape \(N, ...\) for"):
        trainer(callback, max_epochs=1).fit(Net(without_rows), DataLoader(data(64), 8))
