"""Which layers are measured, where their samples are, and what is said where there are none."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
import zoo
from models import CLASSES, FEATURES, Classifier, data
from torch import nn

from lightning_info.replica.activations import LayerCapture
from lightning_info.replica.layer_selection import MOST, NoLayers, find_layers
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

N = 8
X, Y = data(N).tensors


def predictor(likelihood="categorical"):
    def adapter(module, batch):
        return module(batch[0]), batch[1], likelihood

    return Predictor(StandInTrainer(None), adapter)


def find(net, x=X, y=None, named=None, likelihood="categorical"):
    """Layers by label and why others are refused; targets that fit if none are given."""
    if y is None:
        out = net(x)
        y = torch.zeros(len(out)).long() if likelihood == "categorical" else out.detach().clone()
    found, refused = find_layers(net.eval(), predictor(likelihood), (x, y), named)
    return {layer.label: layer for layer in found}, refused


def labels(*arguments, **options):
    return list(find(*arguments, **options)[0])


def trained_by(step, net):
    """Labels for a LightningModule with this training_step, a function ``(self, x, y)``."""

    def training_step(self, batch, batch_idx):
        return step(self, *batch)

    module = replicate(type("Custom", (Classifier,), {"training_step": training_step})(net))
    return lambda x=X, y=Y, named=None: [
        layer.label for layer in find_layers(module, Predictor(StandInTrainer(None)), (x, y), named)[0]
    ]


def mlp(depth, act=nn.ReLU, width=5):
    parts = [part for i in range(depth) for part in (nn.Linear(width if i else FEATURES, width), act())]
    return nn.Sequential(*parts, nn.Linear(width if depth else FEATURES, CLASSES))


# ---- the automatic choice


@pytest.mark.parametrize("depth", [0, 1, 2, 6, 7, 8, 9, 13, 20, 49])
def test_at_most_eight_activations_are_chosen_evenly_from_first_to_last_and_the_logits(depth):
    *inner, final = labels(mlp(depth))
    assert final == str(2 * depth)
    places = [(int(label) - 1) // 2 for label in inner]
    assert len(places) == min(depth, MOST - 1)
    if depth:
        gaps = torch.tensor(places).diff()
        assert (places[0], places[-1]) == (0, depth - 1) or depth == 1
        assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


def test_without_activation_functions_layers_with_weights_are_chosen():
    net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Dropout(), nn.LayerNorm(4), nn.Identity(), nn.Linear(4, CLASSES))
    assert labels(net) == ["0", "2", "4"]


@pytest.mark.parametrize("end", [nn.Identity, nn.Dropout, nn.Flatten])
def test_logits_have_the_name_of_the_layer_that_computes_them(end):
    assert labels(nn.Sequential(nn.Sequential(mlp(1)), end())) == ["0.0.1", "0.0.2"]


def test_a_module_with_a_parameter_of_its_own_around_the_last_layer_does_not_take_its_name():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.body = nn.Parameter(torch.ones(FEATURES)), mlp(1)

        def forward(self, x):
            return self.body(x + self.shift)

    assert labels(nn.Sequential(Shifted())) == ["0.body.1", "0.body.2"]


def test_the_outputs_come_last_also_behind_a_module_that_ends_after_them():
    assert labels(nn.Sequential(mlp(1)), named=["0.2", "0", "0.0"]) == ["0.0", "0", "0.2"]


def test_logits_of_a_layer_that_starts_at_zero_are_not_taken_for_a_dead_layer_of_their_size():
    net = nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.ReLU(), nn.Linear(CLASSES, CLASSES))
    nn.init.constant_(net[0].bias, -100.0)
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    assert net(X).abs().sum() == net[:2](X).abs().sum() == 0
    assert labels(net) == ["1", "2"]


def test_activation_functions_after_the_logits_are_for_metrics_and_not_chosen():
    def step(self, x, y):
        logits = self(x)
        self.log("confident", (torch.sigmoid(logits) > 0.9).float().mean())
        return F.cross_entropy(logits, y)

    assert trained_by(step, mlp(2))() == ["net.1", "net.3", "net.4"]


LOSSES = {
    "cross_entropy": (lambda self, x, y: F.cross_entropy(self(x), y), "net.2"),
    "log_softmax and nll_loss": (lambda self, x, y: F.nll_loss(self(x).log_softmax(1), y), "outputs"),
    "sigmoid and BCE": (lambda self, x, y: F.binary_cross_entropy(self(x).sigmoid()[:, 0], 1.0 * (y > 0)), "outputs"),
    "BCE with logits": (
        lambda self, x, y: F.binary_cross_entropy_with_logits(self(x), F.one_hot(y, CLASSES).float()),
        "net.2",
    ),
    "squeezed": (
        lambda self, x, y: F.mse_loss(self(x).unsqueeze(1).squeeze(1), F.one_hot(y, CLASSES).float()),
        "net.2",
    ),
    "Gaussian NLL": (
        lambda self, x, y: F.gaussian_nll_loss(self(x)[:, 0], y.float(), F.softplus(self(x)[:, 1])),
        "outputs",
    ),
    "temperature": (lambda self, x, y: F.cross_entropy(self(x) / 2, y), "outputs"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_outputs_are_always_there_and_last(loss):
    step, name = LOSSES[loss]
    assert trained_by(step, mlp(1))()[-1] == name


def test_a_log_softmax_module_names_the_log_probabilities_that_it_gives():
    step = LOSSES["cross_entropy"][0]
    assert trained_by(step, nn.Sequential(mlp(1), nn.LogSoftmax(1)))() == ["net.0.1", "net.1"]


def test_a_module_called_outputs_does_not_stand_for_outputs_that_no_call_gives():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.outputs, self.head = nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)

        def forward(self, x):
            return 2 * self.head(torch.tanh(self.outputs(x)))

    found, _ = find(Net())
    assert list(found) == ["tanh", "outputs"]
    assert (found["outputs"].name, found["outputs"].units) == ("", CLASSES)


def test_outputs_that_no_call_gives_are_named_in_any_case():
    assert labels(mlp(2), named=["outputs"]) == ["4"]
    assert labels(mlp(2), named=["outputs", "1"]) == ["1", "4"]
    assert trained_by(LOSSES["temperature"][0], mlp(1))(named="outputs") == ["outputs"]


def test_a_module_with_bare_parameters_only_shows_its_functions():
    class Bare(Classifier):
        def __init__(self):
            super().__init__(nn.Identity())
            self.first = nn.Parameter(torch.randn(FEATURES, 4))
            self.second = nn.Parameter(torch.randn(4, CLASSES))

        def forward(self, x):
            return torch.tanh(torch.tanh(x @ self.first) @ self.second) @ self.second.T @ self.second

    layers, _ = find_layers(replicate(Bare()), Predictor(StandInTrainer(None)), (X, Y), None)
    assert [layer.label for layer in layers] == ["tanh:0", "tanh:1", "outputs"]
    assert [layer.units for layer in layers] == [4, CLASSES, CLASSES]


ZOO = {
    "mlp": ["1", "2"],
    "cnn": ["1", "4", "6"],
    "residual": ["relu:0", "relu:1", "relu:2", "head"],
    "depthwise": ["act", "head"],
    "tied": ["tanh", "decoder"],
    "encoder": ["encoder.layers.0.relu", "encoder.layers.1.relu", "head"],
    "recurrent": ["gru", "head"],
    "branching": ["tanh", "second"],
}


@pytest.mark.parametrize("name", ["residual", "depthwise", "tied", "encoder", "recurrent", "branching"])
def test_networks_of_many_kinds_have_their_activation_functions_chosen(name):
    net, x, likelihood, _ = zoo.make(name)
    assert labels(net, x, likelihood=likelihood) == ZOO[name]


# ---- what is named


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.act = mlp(2, nn.Tanh), nn.ReLU()
        self.unused, self.head = nn.Linear(3, 3), nn.Linear(CLASSES, CLASSES)
        self.table = nn.Embedding(5, CLASSES)

    def forward(self, x):
        h = self.act(F.gelu(self.act(self.body(x)))) + self.table(torch.arange(5)).mean(0)
        return self.head(F.gelu(h))


@pytest.mark.parametrize(
    ("named", "chosen"),
    [
        ("body.1", ["body.1"]),
        (["head", "body.1"], ["body.1", "head"]),
        ("act", ["act:0", "act:1"]),
        ("act:1", ["act:1"]),
        ("gelu", ["gelu:0", "gelu:1"]),
        (["gelu:1", "act:0", "act:0"], ["act:0", "gelu:1"]),
        ("Tanh", ["body.1", "body.3"]),
        (nn.Tanh, ["body.1", "body.3"]),
        ([nn.ReLU, "body.0"], ["body.0", "act:0", "act:1"]),
        ("torch.nn.ReLU", ["act:0", "act:1"]),
        ("torch.nn.modules.activation.ReLU", ["act:0", "act:1"]),
        (nn.Linear, ["body.0", "body.2", "body.4", "head"]),
        (nn.Sequential, ["body"]),
        (("body",), ["body"]),
    ],
)
def test_layers_are_named_by_module_call_function_class_and_class_name(named, chosen):
    assert labels(Net(), named=named) == chosen


def test_a_class_means_its_subclasses_too():
    class Special(nn.Linear):
        pass

    net = nn.Sequential(Special(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    assert labels(net, named=nn.Linear) == ["0", "2"]
    assert labels(net, named="Special") == ["0"]


def test_a_function_and_a_module_of_one_name_are_counted_together():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.head = nn.ReLU(), nn.Linear(FEATURES, CLASSES)

        def forward(self, x):
            return self.head(self.relu(F.relu(x) - 0.5))

    net = Both()
    found, _ = find(net, named="relu")
    assert [(layer.label, layer.kind) for layer in found.values()] == [("relu:0", "relu"), ("relu:1", "ReLU")]
    with LayerCapture(net, list(found.values()), N) as seen:
        net(X)
    torch.testing.assert_close(seen.activations["relu:1"].units, (X.clamp_min(0) - 0.5).clamp_min(0))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("body.7", "there is no layer 'body.7'; did you mean 'body.*'body"),
        ("haed", r"there is no layer 'haed'; did you mean 'head'\?"),
        ("TanH", r"did you mean .*'Tanh'"),
        ("gelu:2", "did you mean .*'gelu:1'"),
        ("head:0", "did you mean 'head'"),
        ("qqqqqqqq", "there is no layer 'qqqqqqqq'; those that ran: 'body.0', 'body.1'.*'head'"),
        (nn.Conv2d, "there is no layer 'Conv2d'"),
        (["head", "nowhere.at.all"], "there is no layer 'nowhere.at.all'"),
        ("unused", "'unused' did not run in the training_step; those that ran: 'body.0'"),
        ("table", r"layer 'table' cannot be measured: its shape \(5, 3\) has no axis along which its values move"),
        (nn.Embedding, "layer 'table' cannot be measured"),
        ([], "layers names none"),
        ([nn.ReLU()], "layers holds a ReLU; give names"),
        ([3], "layers holds a int; give names"),
    ],
)
def test_what_cannot_be_measured_is_told_with_what_can(named, message):
    with pytest.raises(NoLayers, match=message):
        find(Net(), named=named)


def test_many_layers_are_not_all_listed():
    with pytest.raises(NoLayers, match=r"'11' and \d+ more$"):
        find(mlp(20), named="qqqqqqqq")


def test_a_dotted_name_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "script_of_a_user.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NoLayers, match=r"there is no layer 'script_of_a_user\.net'"):
        find(Net(), named="script_of_a_user.net")
    assert "script_of_a_user" not in sys.modules


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_left_out_and_told():
    net = nn.Sequential(nn.Linear(FEATURES, 4), torch.jit.script(nn.Tanh()), nn.Linear(4, CLASSES))
    assert labels(net) == ["0", "2"]
    with pytest.raises(NoLayers, match="layer '1' belongs to TorchScript"):
        find(net, named="1")


def test_what_is_watched_leaves_no_hook_behind():
    net = Net()
    find(net)
    with pytest.raises(NoLayers):
        find(net, named="nowhere")
    assert all(not table for part in net.modules() for name, table in vars(part).items() if "_hooks" in name)


# ---- where the samples are


class Tokens(nn.Module):
    """T tokens of d units with a learned position, the sequence on axis 0 or 1; pooled into logits."""

    def __init__(self, batch_first, length, scale=1.0):
        super().__init__()
        self.batch_first = batch_first
        self.position = nn.Embedding(length, FEATURES)
        nn.init.normal_(self.position.weight, std=scale)
        self.layer = nn.TransformerEncoderLayer(FEATURES, 2, 10, batch_first=batch_first)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):  # (N, T, d)
        places = self.position(torch.arange(x.shape[1]))
        h = x + places if self.batch_first else x.transpose(0, 1) + places.unsqueeze(1)
        return self.head(self.layer(h).mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("length", [3, N, 2 * N, 4 * N])
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_sample_axis_is_found_also_where_there_are_as_many_tokens_as_samples(batch_first, length):
    net = Tokens(batch_first, length).eval()
    x = torch.randn(N, length, FEATURES)
    found, refused = find(net, x, named=["layer.self_attn", "layer.relu", "layer", "head"])
    axes = [layer.samples for layer in found.values()]
    assert axes == ["first" if batch_first else "second"] * 3 + ["first"]
    assert "position" in refused
    h = x + net.position.weight
    h = h if batch_first else h.transpose(0, 1)
    attended = net.layer.norm1(h + net.layer.self_attn(h, h, h)[0])
    hidden = net.layer.linear1(attended).clamp_min(0).mean(1 if batch_first else 0)
    with LayerCapture(net, list(found.values()), N) as seen:
        net(x)
    torch.testing.assert_close(seen.activations["layer.relu"].units, hidden)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_table_with_a_row_for_each_sample_by_accident_is_refused_however_small_its_values(scale):
    with pytest.raises(NoLayers, match="layer 'position' cannot be measured"):
        find(Tokens(True, N, scale).eval(), torch.randn(N, N, FEATURES), named="position")


def test_positions_in_the_batch_axis_are_unfolded():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)

        def forward(self, x):
            h = torch.relu(self.inner(x.flatten(0, 1)))
            return self.head(h.unflatten(0, x.shape[:2]).mean(1))

    found, refused = find(Windows(), torch.randn(N, 5, FEATURES), named=["inner", "relu", "head"])
    assert [layer.samples for layer in found.values()] == ["folded", "folded", "first"]
    assert [layer.positions for layer in found.values()] == [True, True, False]
    assert refused == {}


def test_positions_in_front_of_the_samples_are_refused_and_not_mixed():
    class TimeMajor(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)

        def forward(self, x):
            t = x.shape[1]
            return self.head(torch.relu(self.inner(x.transpose(0, 1).flatten(0, 1))).unflatten(0, (t, -1)).mean(0))

    found, refused = find(TimeMajor(), torch.randn(N, 5, FEATURES))
    assert list(found) == ["head"]
    assert refused.keys() == {"inner", "relu"}


def test_what_depends_on_the_whole_batch_is_refused():
    class First(nn.Module):
        def forward(self, x):
            return x[:1].expand_as(x)

    net = nn.Sequential(First(), nn.Tanh(), nn.Linear(FEATURES, CLASSES))
    _, refused = find(nn.ModuleList([net])[0])
    assert {"0", "1", "2"} <= refused.keys()
    assert labels(net) == ["outputs"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, 1e30, 1e-30])
def test_activations_that_are_dead_or_not_finite_keep_their_sample_axis(value):
    class Spoilt(nn.Module):
        def forward(self, x):
            return torch.where(x > 0, x, value) if value != 0 else 0 * x

    net = nn.Sequential(nn.Linear(FEATURES, 4), Spoilt(), nn.Linear(4, CLASSES))
    found, _ = find(net, named="1")
    assert (found["1"].samples, found["1"].units) == ("first", 4)


def test_a_single_sample_is_on_the_first_axis():
    found, refused = find(mlp(2), X[:1], Y[:1])
    assert list(found) == ["1", "3", "4"]
    assert {layer.samples for layer in found.values()} == {"first"}
    assert refused == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_precision_does_not_hide_the_sample_axis(dtype):
    assert labels(mlp(3).to(dtype), X.to(dtype), Y) == ["1", "3", "5", "6"]


def test_large_inputs_do_not_hide_the_sample_axis():
    net, x = mlp(3, width=64), 1e6 * torch.randn(N + 3, FEATURES) + 1e7
    assert labels(net, x) == ["1", "3", "5", "6"]


def test_shapes_are_told_after_the_mean_over_positions():
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES))
    found, _ = find(net, torch.randn(N, 2, 6, 6), named=["1", "2", "3", "4"])
    assert [(layer.units, layer.positions) for layer in found.values()] == [
        (5, True), (5, True), (5, False), (CLASSES, False)
    ]  # fmt: skip


def test_logits_for_each_position_are_averaged_over_them():
    net = nn.Sequential(nn.Embedding(7, 5), nn.Tanh(), nn.Linear(5, 7))

    def adapter(module, batch):
        return module(batch[0]).movedim(-1, 1), batch[1]

    tokens = torch.randint(7, (N, 4))
    found, _ = find_layers(net, Predictor(StandInTrainer(None), adapter), (tokens, tokens), None)
    assert [(layer.label, layer.units, layer.positions) for layer in found] == [("1", 5, True), ("2", 7, True)]


# ---- integers, booleans, complex numbers


class Act(nn.Module):
    """One function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Codebook(nn.Module):
    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(5, 4))

    def forward(self, h):
        return torch.cdist(h, self.codes).argmin(-1)


class Coded(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(FEATURES, 12), nn.Linear(12, CLASSES)
        self.book, self.folded, self.mask = Codebook(), Codebook(), Act(lambda h: h > 0)
        self.gate, self.spectrum = Act(lambda h: torch.relu(h) > 0.5), Act(torch.fft.rfft)
        self.complex = nn.Linear(7, 2, dtype=torch.cfloat)
        self.nothing, self.scalar, self.sparse = Act(lambda h: None), Act(torch.mean), Act(torch.Tensor.to_sparse)

    def forward(self, x):
        h = self.body(x)
        for part in (self.mask, self.nothing, self.scalar, self.sparse):
            part(h)
        patches = h.view(len(h), 3, 4)
        codes = self.book(patches), self.folded(patches.flatten(0, 1))
        noise = self.complex(self.spectrum(h)).abs().sum(1) + sum(c.view(len(h), -1).sum(1) for c in codes)
        return self.head(h * self.gate(h)) + 0 * noise[:, None]


@pytest.mark.parametrize(
    ("named", "units", "samples", "is_discrete"),
    [
        ("book", 3, "first", True),
        ("folded", 3, "folded", True),
        ("mask", 12, "first", True),
        ("gate", 12, "first", True),
        ("spectrum", 14, "first", False),
        ("complex", 4, "first", False),
    ],
)
def test_layers_of_integers_and_complex_numbers_are_found_and_kept(named, units, samples, is_discrete):
    net = Coded()
    layer = find(net, named=named)[0][named]
    assert (layer.units, layer.samples, layer.is_discrete, layer.positions) == (units, samples, is_discrete, False)
    with LayerCapture(net, [layer], N) as seen:
        net(X)
    assert seen.error is None
    found = seen.activations[named].units
    assert found.is_floating_point() != is_discrete
    h = net.body(X)
    truth = {
        "book": lambda: net.book(h.view(N, 3, 4)),
        "folded": lambda: net.folded(h.view(N, 3, 4)),
        "mask": lambda: (h > 0).byte(),
        "gate": lambda: (h > 0.5).byte(),
        "spectrum": lambda: torch.view_as_real(torch.fft.rfft(h)).flatten(1),
        "complex": lambda: torch.view_as_real(net.complex(torch.fft.rfft(h))).flatten(1),
    }[named]()
    assert torch.equal(found, truth)


def test_integers_are_chosen_as_activation_functions_only_and_are_not_said_to_be_left_out():
    found, refused = find(Coded())
    assert list(found) == ["gate", "head"]
    assert not refused.keys() & {"mask", "book", "folded"}
    net = nn.Sequential(
        nn.Linear(FEATURES, 4), Act(lambda h: h + 0j), nn.Linear(4, CLASSES, dtype=torch.cfloat), Act(torch.abs)
    )
    assert labels(net) == ["0", "3"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nothing", r"layer 'nothing' cannot be measured: it ran, and gave no tensor \(NoneType\); those that can: "),
        ("scalar", r"'scalar' cannot be measured: it ran, and gave a tensor of shape \(\), torch.float32"),
        ("sparse", "'sparse' cannot be measured: it ran, and gave a tensor with layout torch.sparse_coo"),
    ],
)
def test_what_ran_without_activations_is_told_so(named, message):
    with pytest.raises(NoLayers, match=message):
        find(Coded(), named=named)


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(FEATURES, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(torch.relu(h + self.second(h)))


CONVOLUTIONS = nn.Sequential(
    nn.Unflatten(1, (1, FEATURES, 1)), nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
    nn.Sequential(nn.Conv2d(4, 4, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(4 * FEATURES, CLASSES),
)  # fmt: skip


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (mlp(2), ["0", "2", "4"]),
        (mlp(2, nn.Tanh), ["1", "3", "4"]),  # the input of an invertible function is known by itself
        (mlp(2, nn.LeakyReLU), ["1", "3", "4"]),
        (mlp(1, nn.SELU), ["1", "2"]),
        (Skips(), ["first", "relu:1", "last"]),  # a sum has no name
        (CONVOLUTIONS, ["2", "4.0", "7"]),  # of positions the mean is taken, before the function
    ],
    ids=str,
)
def test_the_call_that_an_activation_function_takes_its_input_from(net, expected):
    found, _ = find_layers(net.eval(), predictor(), (X, Y), None, before=True)
    assert [layer.label for layer in found] == expected
