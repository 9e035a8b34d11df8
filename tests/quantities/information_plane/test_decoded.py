"""What decoders see of a layer, and what the plane says of the label with them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from models import trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import InfoPlaneCallback
from lightning_info.functional import usable_information
from lightning_info.quantities.information_plane import label_information
from lightning_info.quantities.information_plane.decoded import CLASSES, TOKENS, grouped, sketched
from lightning_info.quantities.information_plane.label_information import FOLDS, LabelDecoders, decoded
from lightning_info.quantities.information_plane.labels import IGNORED
from lightning_info.quantities.quantity import Record

BIT = math.log(2)


def plane(**options):
    defaults = {"every_n_epochs": 1, "on_error": "raise", "summary": False}
    return InfoPlaneCallback(**{**defaults, **options})


def fit(callback, module, *tensors, epochs=1):
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(*tensors), 32)
    trainer(callback, max_epochs=epochs).fit(module, data)
    return {tag: curve for tag, curve in callback.history.items() if "decoder" in tag}


class Small(LightningModule):
    """A net of the user's, and the loss of its outputs."""

    def __init__(self, net, loss=F.cross_entropy):
        super().__init__()
        self.net, self.loss = net, loss

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


# ---- sums of many activations


def test_sums_keep_products_of_samples_and_do_not_depend_on_how_long_rows_are():
    """The SD of a product of k = 1024 sums is at most sqrt(2 / k) = 0.04 of the lengths; 0.2 is five of them.

    With signs that are all alike, those of the second half, which are positive, would be twenty times too large.
    """
    rows = torch.randn(6, 20_000, generator=torch.Generator().manual_seed(0))
    rows[3:] = rows[3:].abs()
    found = sketched(rows, 1024)
    assert found.shape == (6, 1024)
    products, truth = found @ found.T / 20_000, rows @ rows.T / 20_000
    assert (products - truth).abs().max() < 0.2
    longer = sketched(F.pad(rows, (0, 500)), 1024)
    torch.testing.assert_close(longer, found)
    short = rows[:, :300]
    assert torch.equal(sketched(short, 1024), short)
    padded = sketched(F.pad(short, (0, 5000)), 1024)
    torch.testing.assert_close(padded, F.pad(short, (0, 724)))


# ---- in a run


class WhereIsIt(nn.Module):
    """The mean of each channel says nothing of the label, the place does."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.out = nn.Conv1d(1, 4, 1, bias=False), nn.ReLU(), nn.Linear(32, 2)
        nn.init.constant_(self.conv.weight, 1.0)

    def forward(self, x):
        return self.out(self.act(self.conv(x)).flatten(1))


def test_all_positions_are_seen():
    """Decoders prove nearly the whole bit that the mean over positions, and so the bins, hold nothing of."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (400,), generator=generator)
    x = 0.05 * torch.rand(400, 1, 8, generator=generator)
    x[torch.arange(400), 0, torch.where(y == 1, 6, 2)] += 1.0
    callback = plane(layers="net.act")
    found = fit(callback, Small(WhereIsIt()), x, y)
    assert found["info_plane_decoder/I_TY/net.act"][0][1] > 0.9
    assert callback.history["info_plane/I_TY/net.act"][0][1] < 0.6


def test_values_are_those_of_the_function_on_the_activations():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(200, 6, generator=generator), torch.randint(3, (200,), generator=generator)
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))
    with torch.no_grad():
        truth = usable_information(net[:2](x), y, folds=FOLDS)
    found = fit(plane(every_n_epochs=9), Small(net), x, y)
    assert found["info_plane_decoder/I_TY/net.1"][0] == (0, pytest.approx(truth.information, abs=1e-5))
    assert found["info_plane_decoder_stderr/I_TY/net.1"][0] == (0, pytest.approx(truth.stderr, abs=1e-5))


def test_continuous_targets_have_gaussian_decoders():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 3, generator=generator)
    y = x @ torch.tensor([[1.0], [1.0], [0.0]]) + torch.randn(500, 1, generator=generator)
    module = Small(nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.Linear(5, 1)), F.mse_loss)
    found = fit(plane(layers="net.1"), module, x, y)
    (_, value), (_, error) = (found[f"info_plane_decoder{end}/I_TY/net.1"][0] for end in ("", "_stderr"))
    assert value == pytest.approx(math.log2(3) / 2, abs=3 * error)


class Language(LightningModule):
    """The next token of a chain with known probabilities, from the embedding of this one."""

    def __init__(self, trimmed):
        super().__init__()
        self.trimmed = trimmed
        self.table, self.mix, self.out = nn.Embedding(4, 8), nn.ReLU(), nn.Linear(8, 4)

    def training_step(self, batch, batch_idx):
        (tokens,) = batch
        if self.trimmed:  # positions of the layer are those of the labels
            return F.cross_entropy(
                self.out(self.mix(self.table(tokens[:, :-1]))).flatten(0, 1), tokens[:, 1:].flatten()
            )
        logits = self.out(self.mix(self.table(tokens)))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.parametrize("trimmed", [True, False])
def test_in_a_language_model_it_is_the_information_of_a_position_about_its_next_token(trimmed):
    """Of a chain that goes on by one with probability 0.7, else anywhere: 2 bits less the entropy of a step."""
    generator = torch.Generator().manual_seed(0)
    chain = [torch.randint(4, (256,), generator=generator)]
    for _ in range(12):
        stays = torch.rand(256, generator=generator) < 0.6
        chain.append(torch.where(stays, (chain[-1] + 1) % 4, torch.randint(4, (256,), generator=generator)))
    shares = torch.tensor([0.7, 0.1, 0.1, 0.1])
    truth = 2 + (shares * shares.log2()).sum().item()
    callback = plane(layers="table", num_samples=256)  # four positions of each
    found = fit(callback, Language(trimmed), torch.stack(chain, 1))
    (_, value), (_, error) = (found[f"info_plane_decoder{end}/I_TY/table"][0] for end in ("", "_stderr"))
    assert error < 0.08
    assert truth - 0.1 - 3 * error < value < truth + 3 * error
    assert "labels" in callback.report()
    assert "positions a sample" in " ".join(callback.report().split())
    axes = callback.drawings()["info_plane/plane"]().axes[0]
    (most,) = [float(text.get_text().partition(" = ")[2]) for text in axes.texts if "H(Y)" in text.get_text()]
    assert most == pytest.approx(2, abs=0.02)
    assert f"H(Y) = {most:.4g} bits" in callback.quantity.closing_text(Record(callback.history))


def test_rare_tokens_are_one_label_and_ignored_ones_stay_so():
    tokens = torch.cat([torch.arange(40).repeat_interleave(torch.arange(1, 41)), torch.tensor([IGNORED])])
    labels = grouped(tokens)
    assert labels[-1] == IGNORED
    frequent = set(range(40 - CLASSES, 40))
    assert set(labels[:-1].tolist()) - frequent == {40}
    assert all((labels[tokens == token] == token).all() for token in frequent)


@pytest.mark.parametrize("label_information", ["decoder", "binned"])
def test_with_bins_alone_loggers_have_the_baseline_of_shuffled_labels_instead(label_information):
    x, y = torch.randn(64, 6), torch.arange(64) % 3
    callback = plane(label_information=label_information)
    found = fit(callback, Small(nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))), x, y)
    by_decoders = label_information == "decoder"
    assert bool(found) == by_decoders
    for tag in ("info_plane_shuffled/I_TY/net.1", "info_plane_final/I_TY/net.1"):
        assert tag in callback.history
        assert callback.quantity.is_logged(tag) != by_decoders
    assert ("by decoders" in callback.report()) == by_decoders
    axes = callback.drawings()["info_plane/plane"]().axes[0]
    assert ("decoders" in axes.get_title()) == by_decoders


def test_few_samples_are_a_gap_with_a_word():
    said = []
    values = decoded(
        [torch.randn(7, 3)], torch.arange(7) % 2, None, 4, "I_TY", "a", lambda text, kind: said.append(text)
    )
    assert all(math.isnan(value) for value in values.values())
    assert said == ["info_plane_decoder/I_TY is NaN: decoders need 8 samples with a label, not 7"]


def test_samples_without_a_label_are_left_out():
    t, y = torch.randn(60, 3), torch.arange(60) % 3
    some = y.masked_fill(torch.arange(60) % 5 == 0, IGNORED)
    known = some != IGNORED
    found = decoded([t], some, None, 10, "I_TY", "a", print)
    truth = usable_information(t[known], y[known], folds=FOLDS, components=10)
    assert list(found.values()) == [truth.information, truth.stderr]


def test_nothing_is_decoded_without_layers_or_targets():
    assert LabelDecoders().tags == ()
    assert LabelDecoders({"long/all/a": torch.randn(4, 3)}).measure({}, None, print) == {}


@pytest.mark.parametrize(("width", "most"), [(2000, 512), (33_000, 1024)])
def test_the_budget_makes_decoders_see_less_and_of_small_nets_they_see_less_anyway(width, most):
    callback = plane(every_n_epochs=9)
    quantity = callback.quantity
    x, y = torch.randn(256, 6), torch.arange(256) % 3
    fit(callback, Small(nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))), x, y)
    said = []
    while word := quantity.cheaper():
        said.append(word)
    assert said[0] == f"decoders of {most // 2} units of a layer instead of {most}"
    assert said[-2].startswith("decoders of 64 units")
    assert said[-1] == "no decoders of the label"
    assert not [tag for tag in quantity.tags if "decoder" in tag]
    assert not any(reader.everywhere for reader in quantity.statistics())


def test_the_forecast_is_of_the_components_that_are_used(monkeypatch):
    asked = []

    def noted(rows, y, *, components, **options):
        asked.append(components)

    monkeypatch.setattr(label_information, "usable_information", noted)
    LabelDecoders({"long/all/a": torch.randn(8, 300)}, 512).seconds(1024, 10)
    assert set(asked) == {128}


def test_positions_of_a_sequence_are_judged_together():
    """All positions alike, labels at random: copies of a sequence in other folds would give its label away."""
    generator = torch.Generator().manual_seed(0)
    t, y = torch.randn(120, 20, generator=generator), torch.randint(3, (120, 1), generator=generator)
    read = {"long/all/a": t.repeat(1, 4), TOKENS: y.expand(-1, 4)}
    values = LabelDecoders(read).measure(read, None, print)
    assert abs(values["info_plane_decoder/I_TY/a"]) < 3 * values["info_plane_decoder_stderr/I_TY/a"]
