"""The table of samples: against autograd of single samples, and what there is where something is not known."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from labelled import CLASSES, Labels, Net, Regression, data
from models import trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback

pytest.importorskip("pandas")
P = 24


def fisher(**options) -> FisherTraceCallback:
    defaults = {"every_n_epochs": 1, "num_samples": P, "on_error": "raise", "summary": False}
    return FisherTraceCallback(**{**defaults, **options})


def fit(callback, module=None, shuffle=False, train=None, **options):
    module = module or Net()
    torch.manual_seed(0)
    loader = DataLoader(train or data(60, 1), 10, shuffle=shuffle)
    trainer(callback, max_epochs=3, **options).fit(module, loader)
    return module


def own_gradient(module, loss) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)])


def test_every_column_is_that_of_the_sample_alone():
    callback = fisher(estimator="exact", also=["empirical"], draws=None)
    module = fit(callback)
    table = callback.samples_to_pandas()
    assert list(table.index) == list(table["index"]) == list(range(P))
    x, y = (part[:P] for part in data(60, 1).tensors)
    for i, row in table.iterrows():
        z = module(x[i : i + 1])
        p, label = z.softmax(1)[0].detach(), int(y[i])
        losses = [F.cross_entropy(z, torch.tensor([c])) for c in range(CLASSES)]
        squares = torch.stack([own_gradient(module, loss).square().sum() for loss in losses])
        others = [z[0, c].item() for c in range(CLASSES) if c != label]
        expected = {
            "loss": losses[label].item(),
            "data_gradient_norm": squares[label].sqrt().item(),
            "model_gradient_norm": (p * squares).sum().sqrt().item(),
            "margin": z[0, label].item() - max(others),
            "el2n": (p - F.one_hot(y[i], CLASSES)).norm().item(),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    trace, empirical = (callback.history[f"fisher/{name}"][-1][1] for name in ("trace", "empirical_trace"))
    assert table["model_gradient_norm"].pow(2).mean() == pytest.approx(trace, rel=1e-5)
    assert table["data_gradient_norm"].pow(2).mean() == pytest.approx(empirical, rel=1e-5)


def test_one_draw_of_labels_is_unbiased():
    """Over 8 seeds at the same weights; 4 standard errors."""
    draws = []
    for seed in range(8):
        callback = fisher(seed=seed)
        fit(callback, max_steps=2)
        draws.append(torch.tensor(callback.samples_to_pandas()["model_gradient_norm"].to_numpy()).square())
    exact = fisher(estimator="exact")
    fit(exact, max_steps=2)
    truth = torch.tensor(exact.samples_to_pandas()["model_gradient_norm"].to_numpy()).square().mean()
    means = torch.stack(draws).mean(1)
    assert abs(means.mean() - truth) <= 4 * means.std() / len(means) ** 0.5


def test_labels_of_0_and_1_have_the_margin_of_their_sign_and_a_regression_has_its_loss():
    callback = fisher()
    module = fit(callback, Labels())
    x, y = (part[:P] for part in data(60, 1).tensors)
    z, labels = module(x).detach().double(), F.one_hot(y, CLASSES).double()
    table = callback.samples_to_pandas()
    assert table["margin"].to_list() == pytest.approx(((2 * labels - 1) * z).mean(1).tolist(), rel=1e-5)
    assert table["el2n"].to_list() == pytest.approx((z.sigmoid() - labels).norm(dim=1).tolist(), rel=1e-5)
    losses = F.binary_cross_entropy_with_logits(z, labels, reduction="none").sum(1)
    assert table["loss"].to_list() == pytest.approx(losses.tolist(), rel=1e-5)

    callback = fisher(engine="cotangent", draws=16)
    module = fit(callback, Regression(), shuffle=True)
    assert list(callback.samples_to_pandas().columns) == ["loss"]  # no norm of a sample, no index


def test_an_index_is_given_only_where_it_is_known():
    reference = fisher(reference=data(60, 1))
    for callback, shuffle, known in ((fisher(), True, False), (reference, True, True), (fisher(), False, True)):
        fit(callback, shuffle=shuffle)
        assert ("index" in callback.samples_to_pandas()) == known

    x, _ = data(60, 1).tensors

    class Skipping(Net):
        """The first ten are not trained on."""

        def training_step(self, batch, batch_idx):
            is_first = torch.isin(batch[0][:, 0], x[:10, 0]).any()
            return None if is_first else super().training_step(batch, batch_idx)

    callback = fisher()
    fit(callback, Skipping())
    table = callback.samples_to_pandas()
    assert len(table) == P
    assert "index" not in table


class Tokens(Net):
    """Two positions a sample, of which the second may be left out."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(torch.stack([self(x), self(-x)], 2), y)


def test_positions_that_the_loss_leaves_out_do_not_count():
    x, y = data(60, 1).tensors
    second = torch.where(x[:, 1] > 0, -100, y.roll(1))
    callback = fisher()
    module = fit(callback, Tokens(), train=TensorDataset(x, torch.stack([y, second], 1)))
    table = callback.samples_to_pandas()
    z = torch.stack([module(x), module(-x)], 2).detach()[:P]
    losses = F.cross_entropy(z, torch.stack([y, second], 1)[:P], reduction="none")
    assert table["loss"].to_list() == pytest.approx(losses.sum(1).tolist(), rel=1e-5)
    error = (z.softmax(1)[:, :, 0] - F.one_hot(y[:P], CLASSES)).norm(dim=1)
    alone = (second[:P] == -100).tolist()
    assert [v for v, one in zip(table["el2n"], alone, strict=True) if one] == pytest.approx(
        error[torch.tensor(alone)].tolist(), rel=1e-5
    )


def test_flipped_labels_stand_out_and_most_of_all_by_their_loss():
    x, _ = data(200, 1).tensors
    clean = (x @ torch.randn(x.shape[1], CLASSES, generator=torch.Generator().manual_seed(3))).argmax(1)
    flipped = torch.arange(200) % 20 == 0
    labels = torch.where(flipped, (clean + 1) % CLASSES, clean)
    callback = fisher(num_samples=200)
    fit(callback, train=TensorDataset(x, labels))
    table = callback.samples_to_pandas()
    worst = {name: table.nlargest(10, name)["index"].tolist() for name in ("loss", "data_gradient_norm", "el2n")}
    precision = {name: flipped[found].double().mean().item() for name, found in worst.items()}
    assert min(precision.values()) >= 0.4  # 0.05 by chance
    assert precision["loss"] == max(precision.values())


def test_without_a_table_the_reason_is_said(tmp_path, monkeypatch):
    callback = fisher()
    with pytest.raises(ValueError, match="as fit has not ended"):
        callback.samples_to_pandas()
    monkeypatch.setattr(type(callback.quantity), "passes_of_table", lambda *args: 1e9)
    limited = fisher(every_n_epochs=None, max_overhead=0.9)
    fit(limited)
    with pytest.raises(ValueError, match="did not fit into the time budget"):
        limited.samples_to_pandas()
    failing = fisher(on_error="warn")
    monkeypatch.undo()

    def broken(*args):
        raise RuntimeError("broken")

    monkeypatch.setattr(type(failing.quantity), "sample_table", broken)
    with pytest.warns(UserWarning, match="the table of samples failed and training goes on"):
        fit(failing)
    with pytest.raises(ValueError, match=r"report\(\) has the reason"):
        failing.samples_to_pandas()


def test_a_file_of_the_table(tmp_path, monkeypatch):
    callback = fisher()
    fit(callback)
    written = []
    monkeypatch.setattr("pandas.DataFrame.to_parquet", lambda frame, path: written.append((len(frame), path)))
    callback.save(tmp_path / "samples.parquet")
    assert written == [(P, tmp_path / "samples.parquet")]
    callback.save(tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text().startswith("tag,step,value,stderr")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError):
        callback.samples_to_pandas()
