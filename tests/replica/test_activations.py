"""What is seen in a forward pass, against the same forward pass written out."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn
from torch.nn.modules import activation

from lightning_info.replica.activations import Capture, Layer, LayerCapture
from lightning_info.replica.layer_selection import find_layers
from lightning_info.replica.loss_recognition import categorical, gaussian, gaussian_with_variance
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.unit_rows import SHOWN_UNITS

N = 4


def calls(net, *inputs, call=None):
    """Every call of a pass with a copy of its output, in order."""
    seen = []
    with Capture(net, lambda call, tensor, before: seen.append((call, tensor.clone()))) as capture:
        (call or net)(*inputs)
    assert capture.error is None
    return seen


def names(seen):
    return [(call.name, call.index) for call, _ in seen]


def activations(seen):
    return {(call.name, call.index): tensor for call, tensor in seen if call.is_activation}


def layer(name, size, axis="first", index=0):
    return Layer(name, name, index, "", axis, size, True)


def units(net, x, *layers, samples=N):
    """The units of layers over a batch, by label."""
    with LayerCapture(net, layers, samples) as seen:
        net(x)
    assert seen.error is None
    return {label: found.units for label, found in seen.activations.items()}


# ---- which calls


FUNCTIONS = {
    function.__name__.strip("_"): function
    for function in (
        F.celu, F.elu, F.gelu, F.glu, F.hardshrink, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.logsigmoid,
        F.mish, F.relu, F.relu6, F.rrelu, F.selu, F.sigmoid, F.silu, F.softplus, F.softshrink, F.softsign, F.tanh,
        F.tanhshrink, torch.relu, torch.relu_, torch.tanh_, torch.Tensor.relu, torch.Tensor.sigmoid_, F.relu_, F.elu_,
    )
}  # fmt: skip
FUNCTIONS["threshold"] = lambda x: F.threshold(x, 0.1, 0.0)
FUNCTIONS["prelu"] = lambda x: F.prelu(x, torch.tensor([0.2]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_activation_function_is_seen_once_with_its_values(name):
    x = torch.randn(N, 6)
    ((call, tensor),) = calls(None, x.clone(), call=FUNCTIONS[name])
    assert (call.name, call.kind, call.index, call.is_activation, call.has_weights) == (name, name, 0, True, False)
    assert torch.equal(tensor, FUNCTIONS[name](x.clone()))


@pytest.mark.parametrize("function", [torch.exp, torch.softmax, F.normalize, F.log_softmax, torch.add])
def test_other_functions_are_not_activations(function):
    arguments = {torch.softmax: (1,), F.log_softmax: (1,), torch.add: (1.0,)}.get(function, ())
    assert calls(None, torch.randn(N, 6), *arguments, call=function) == []


def test_all_activation_modules_of_torch_are_activations_and_softmax_and_attention_are_not():
    needs = {
        "Threshold": (0.1, 0.0),
        "MultiheadAttention": (4, 2),
        "Softmax": (1,),
        "LogSoftmax": (1,),
        "Softmin": (1,),
    }
    others = {"MultiheadAttention", "Softmax", "LogSoftmax", "Softmax2d", "Softmin"}
    for kind in activation.__all__:
        part = getattr(nn, kind)(*needs.get(kind, ()))
        inputs = (torch.randn(N, 4, 4),) * (3 if kind == "MultiheadAttention" else 1)
        (call,) = [call for call, _ in calls(nn.ModuleList([part]), *inputs, call=part) if call.name == "0"]
        assert (call.kind, call.is_activation) == (kind, kind not in others)


class Reused(nn.Module):
    """One nn.ReLU called twice, in place; a functional one; in-place additions afterwards; a block around one."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(6, 5), nn.Linear(5, 5), nn.ReLU(inplace=True)
        self.block = Block()

    def forward(self, x):
        h = self.act(self.first(x))
        h += 1
        h = F.relu(self.act(self.second(h)).sub_(0.1), inplace=True)
        h *= 2
        return self.block(h)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 5), nn.Tanh())

    def forward(self, x):
        return torch.tanh(F.relu(self.body(x)) + x).relu_()


def test_calls_are_named_by_module_function_and_number_and_keep_values_from_before_in_place_changes():
    net, x = Reused(), torch.randn(N, 6)
    seen = calls(net, x)
    assert names(seen) == [
        ("first", 0), ("act", 0), ("second", 0), ("act", 1), ("relu", 0),
        ("block.body.0", 0), ("block.body.1", 0), ("block.body", 0), ("block.relu", 0), ("block.tanh", 0),
        ("block.relu", 1), ("block", 0),
    ]  # fmt: skip
    a = (x @ net.first.weight.T + net.first.bias).clamp_min(0)
    b = ((a + 1) @ net.second.weight.T + net.second.bias).clamp_min(0)
    c = (b - 0.1).clamp_min(0)
    d = (2 * c @ net.block.body[0].weight.T + net.block.body[0].bias).tanh()
    e = (d.clamp_min(0) + 2 * c).tanh()
    truth = {("act", 0): a, ("act", 1): b, ("relu", 0): c, ("block.body.1", 0): d, ("block.relu", 0): d.clamp_min(0)}
    truth |= {("block.tanh", 0): e, ("block.relu", 1): e.clamp_min(0)}
    found = activations(seen)
    assert found.keys() == truth.keys()
    for call, value in truth.items():
        torch.testing.assert_close(found[call], value, msg=str(call))


def test_a_module_without_submodules_has_its_functions_under_their_own_names():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 3))

        def forward(self, x):
            return torch.tanh(torch.tanh(x @ self.w) @ self.w.T)

    net, x = Bare(), torch.randn(N, 6)
    assert names(calls(net, x)) == [("tanh", 0), ("tanh", 1)]
    within = calls(nn.Sequential(net), x)
    assert names(within) == [("0.tanh", 0), ("0.tanh", 1), ("0", 0)]
    assert [(call.is_activation, call.has_weights) for call, _ in within] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    torch.testing.assert_close(within[0][1], (x @ net.w).tanh())


class NewGELU(nn.Module):
    """As models of language have it: an activation function that no module of torch is."""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3)))


class Leaky(nn.ReLU):
    def forward(self, x):
        return super().forward(x) - 0.01 * F.relu(-x)


@pytest.mark.parametrize("kind", [NewGELU, Leaky])
def test_an_activation_function_written_as_a_module_is_one_layer(kind):
    x = torch.randn(N, 6)
    ((call, tensor),) = calls(nn.Sequential(kind()), x)
    assert (call.name, call.kind, call.is_activation) == ("0", kind.__name__, True)
    assert torch.equal(tensor, kind()(x))


def test_modules_without_an_activation_function_are_none():
    net = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.Identity(), nn.LayerNorm(6), nn.Softmax(1))
    seen = [call for call, _ in calls(net, torch.randn(N, 6))]
    assert not any(call.is_activation for call in seen)
    assert [call.name for call in seen if call.has_weights] == ["0", "3"]


def test_a_forward_that_is_called_directly_shows_its_functions_but_not_the_module():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.act = nn.Linear(6, 3), nn.ReLU()

        def forward(self, x):
            return self.act.forward(self.linear.forward(x))

    net, x = nn.Sequential(Direct()), torch.randn(N, 6)
    seen = calls(net, x)
    assert names(seen) == [("0.relu", 0), ("0", 0)]
    torch.testing.assert_close(seen[0][1], net[0].linear(x).clamp_min(0))


def test_a_module_that_raises_and_is_caught_does_not_name_later_calls():
    class Fragile(nn.Module):
        def forward(self, x):
            raise ValueError("no such input")

    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.fragile, self.sound = Fragile(), nn.Linear(6, 3)

        def forward(self, x):
            try:
                return self.fragile(x)
            except ValueError:
                return torch.relu(self.sound(x))

    net = nn.Sequential(Careful(), nn.Linear(3, 2))
    assert names(calls(net, torch.randn(N, 6))) == [("0.sound", 0), ("0.relu", 0), ("0", 0), ("1", 0)]
    assert names(calls(net, torch.randn(N, 6), call=lambda x: net(x).relu()))[-1] == ("relu", 0)


@dataclass
class Plain:
    steps: int
    hidden: torch.Tensor


class ModelOutput(OrderedDict):
    """As transformers' one: a mapping whose first value may be a loss."""


OUTPUTS = {
    "tuple": lambda t: (t, None),
    "dict": lambda t: {"lengths": torch.arange(N), "hidden": t, "more": 2 * t},
    "ModelOutput": lambda t: ModelOutput(loss=t.sum(), logits=t),
    "dataclass": lambda t: Plain(3, t),
    "nested": lambda t: [None, {"states": (torch.ones(0), t)}],
}


@pytest.mark.parametrize("form", OUTPUTS)
def test_the_first_activations_of_an_output_in_any_form_are_its_own(form):
    class Formed(nn.Module):
        def forward(self, x):
            return OUTPUTS[form](2 * x)

    net, x = nn.ModuleList([Formed()]), torch.randn(N, 6)
    ((call, tensor),) = calls(net, x, call=net[0])
    assert call.kind == "Formed"
    assert torch.equal(tensor, 2 * x)


NOTHING = {
    "a loss": lambda x: x.sum(),
    "None": lambda x: None,
    "text": lambda x: "text",
    "an empty list": lambda x: [],
    "no units": lambda x: x[:, :0],
    "a sparse tensor": lambda x: x.to_sparse(),
}


@pytest.mark.parametrize("what", NOTHING)
def test_outputs_without_activations_are_passed_over(what):
    class Other(nn.Module):
        def forward(self, x):
            return NOTHING[what](x)

    net = nn.ModuleList([Other()])
    assert calls(net, torch.randn(N, 6), call=net[0]) == []


OTHER_NUMBERS = {
    "integers": (lambda x: x.argmax(1), lambda x: x.argmax(1, keepdim=True)),
    "booleans": (lambda x: x > 0, lambda x: (x > 0).byte()),
    "codes at positions": (lambda x: x.view(N, 3, 2).argmax(2), lambda x: x.view(N, 3, 2).argmax(2)),
    "a map of codes": (lambda x: (x > 0).long().view(N, 2, 1, 3), lambda x: (x > 0).long()),
    "complex numbers": (torch.fft.rfft, lambda x: torch.view_as_real(torch.fft.rfft(x)).flatten(1)),
    "real numbers behind integers": (lambda x: (x.argmax(1), x + 1j, 2 * x), lambda x: 2 * x),
}


@pytest.mark.parametrize("what", OTHER_NUMBERS)
def test_integers_are_kept_as_they_are_and_complex_units_are_two(what):
    class Other(nn.Module):
        def forward(self, x):
            return OTHER_NUMBERS[what][0](x)

    x = torch.randn(N, 6)
    expected = OTHER_NUMBERS[what][1](x)
    found = units(nn.Sequential(Other()), x, Layer("0", "0", 0, "", "first", expected.shape[1], False))["0"]
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_complex_channels_are_averaged_over_positions():
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x)

    x = torch.randn(N, 2, 8)  # channels on the last axis
    found = units(nn.Sequential(Spectrum()), x, Layer("0", "0", 0, "", "first", 16, True))["0"]
    torch.testing.assert_close(found, torch.view_as_real(torch.fft.fft(x).mean(1)).flatten(1))


def test_calls_under_vmap_are_passed_over():
    net, x = nn.Sequential(nn.Linear(6, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU())), torch.randn(N, 6)
    assert names(calls(net, x, call=lambda x: torch.vmap(net[1])(net[0](x)))) == [("0", 0)]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda part: torch.jit.trace(part, torch.randn(N, 3))])
def test_torchscript_is_run_and_not_seen(compiled):
    inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    net, x = nn.Sequential(nn.Linear(6, 3), compiled(inner), nn.Linear(3, 2)), torch.randn(N, 6)
    seen = calls(net, x)
    assert names(seen) == [("0", 0), ("2", 0)]
    torch.testing.assert_close(seen[1][1], net[2](inner(net[0](x))))


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_layer_that_is_frozen_still_shows_its_parts(batch_first):
    net = nn.TransformerEncoderLayer(6, 2, 8, batch_first=batch_first).eval().requires_grad_(False)
    x = torch.randn(N, 3, 6)
    found = {call.name: tensor for call, tensor in calls(net, x)}
    attention = net.self_attn(x, x, x)[0]
    hidden = net.linear1(net.norm1(x + attention)).clamp_min(0)
    torch.testing.assert_close(found["self_attn"], attention)
    torch.testing.assert_close(found["relu"], hidden)


# ---- layers whose channels are known


def read(net, x, layers):
    """What a pass gives of layers, the calls that gave it, and the modules that it hooked."""
    with LayerCapture(net, layers, len(x)) as seen:
        net(x)
        hooked = {name for name, part in net.named_modules() if part._forward_pre_hooks}
    assert seen.error is None
    return seen.activations, seen.calls, hooked


@pytest.mark.parametrize("name", zoo.NAMES)
def test_layers_whose_channels_are_known_are_read_the_same_without_looking_at_other_calls(name):
    net, x, likelihood, _ = zoo.make(name)
    first, _ = find_layers(net, lambda net, x: Prediction(net(x), likelihood), x, None)
    modules = dict(net.named_modules())
    layers = [one for one in first if one.name in modules]
    expected, calls_seen, hooked = read(net, x, layers)
    assert hooked == modules.keys() - {""}
    known = [replace(one, channels_first=calls_seen[one.name, one.index]) for one in layers]
    found, calls_again, hooked = read(net, x, known)
    assert known == layers  # what is known of a layer does not make it another one
    assert calls_again == calls_seen
    assert hooked == {one.name for one in layers}
    assert found.keys() == expected.keys() != set()
    for label, one in expected.items():
        assert torch.equal(found[label].units, one.units)
        assert torch.equal(found[label].shown, one.shown)


@pytest.mark.parametrize("missing", [Layer("relu", "relu", 0, "relu", "first", 6, False, channels_first=False), None])
def test_all_calls_are_looked_at_where_a_layer_is_a_function_or_its_channels_are_not_known(missing):
    def relu(net, x):
        return torch.relu(net(x))

    net, x = nn.Sequential(nn.Linear(6, 6)), torch.randn(N, 6)
    layers = [Layer("0", "0", 0, "Linear", "first", 6, False, channels_first=False if missing else None)]
    with LayerCapture(net, layers + ([missing] if missing else []), N) as seen:
        expected = relu(net, x)
    assert torch.equal(seen.activations["0"].units, net(x))
    assert seen.activations.keys() == {"0", *(["relu"] if missing else [])}
    if missing:
        assert torch.equal(seen.activations["relu"].units, expected)


# ---- leaving nothing behind


def hooks(net):
    tables = [table for part in net.modules() for name, table in vars(part).items() if "_hooks" in name]
    return sum(map(len, tables))


def test_the_pass_gives_the_same_and_leaves_no_hook_or_mode_behind():
    net, x = Reused(), torch.randn(N, 6)
    expected, seen = net(x), []
    with Capture(net, lambda call, tensor, before: seen.append(call)):
        assert torch.equal(net(x), expected)
    before = len(seen)
    net(x)
    assert hooks(net) == 0
    assert len(seen) == before > 0


def test_nothing_is_left_behind_by_a_pass_that_fails():
    net, seen = Reused(), []
    with pytest.raises(RuntimeError), Capture(net, lambda call, tensor, before: seen.append(call)):
        net(torch.randn(N, 7))
    net(torch.randn(N, 6))
    assert hooks(net) == 0
    assert seen == []


def test_what_the_watcher_raises_is_kept_and_the_pass_goes_on():
    net, x, seen = Reused(), torch.randn(N, 6), []

    def see(call, tensor, before):
        seen.append(call)
        raise KeyError(call.name)

    with Capture(net, see) as capture:
        assert torch.equal(net(x), Reused.forward(net, x))
    assert capture.error.args == ("first",)
    assert len(seen) == 2 * len(calls(net, x))


def test_activations_carry_no_graph_and_do_not_follow_later_writes():
    net, x = nn.Sequential(nn.Linear(6, 3)), torch.randn(N, 6)
    with LayerCapture(net, [layer("0", 3)], N) as seen:
        out = net(x)
        expected = out.detach().clone()
        out.data.zero_()
    (found,) = seen.activations.values()
    for values in (found.units, found.shown):
        assert torch.equal(values, expected)
        assert not values.requires_grad


# ---- reduced to units


class Pixels(nn.Module):
    """ConvNeXt's order: convolution, channels last, LayerNorm, GELU, and back."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, channels, 3, padding=1), nn.LayerNorm(channels)
        self.wide, self.act, self.narrow = nn.Linear(channels, 7), nn.GELU(), nn.Linear(7, channels)

    def forward(self, x):
        h = self.conv(x).permute(0, 2, 3, 1)
        return self.narrow(self.act(self.wide(self.norm(h)))).permute(0, 3, 1, 2)


def test_channels_are_found_on_either_side_and_averaged_over_pixels():
    net, x = nn.Sequential(Pixels(), nn.ReLU()), torch.randn(N, 2, 5, 7)
    found = units(net, x, layer("0.conv", 3), layer("0.norm", 3), layer("0.act", 7), layer("0", 3), layer("1", 3))
    block = net[0]
    conv = block.conv(x)
    norm = block.norm(conv.permute(0, 2, 3, 1))
    act = F.gelu(block.wide(norm))
    narrow = block.narrow(act)
    truth = {"0.conv": conv.mean((2, 3)), "0.norm": norm.mean((1, 2)), "0.act": act.mean((1, 2))}
    truth |= {"0": narrow.mean((1, 2)), "1": narrow.clamp_min(0).mean((1, 2))}
    assert found.keys() == truth.keys()
    for label, value in truth.items():
        torch.testing.assert_close(found[label], value, msg=label)


def moved(function):
    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv1d(2, 3, 3), nn.GroupNorm(1, 3), nn.GELU()

        def forward(self, x):
            return self.act(function(self.norm(self.conv(x))))

    return Moved()


@pytest.mark.parametrize(
    "function",
    [lambda h: h.transpose(1, 2), lambda h: h.permute(0, 2, 1), lambda h: torch.movedim(h, 1, -1), lambda h: h],
)
def test_channels_of_a_convolution_in_time_are_followed_through_a_transposition(function):
    net, x = moved(function), torch.randn(N, 2, 8)
    h = F.gelu(net.norm(net.conv(x)))
    torch.testing.assert_close(units(net, x, layer("act", 3))["act"], h.mean(2))


def test_a_norm_over_channels_and_pixels_says_nothing_of_where_the_channels_are():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.LayerNorm([3, 4, 5]), nn.ReLU())
    x = torch.randn(N, 2, 4, 5)
    torch.testing.assert_close(units(net, x, layer("2", 3))["2"], net(x).mean((2, 3)))


class Patches(nn.Module):
    """A convolution into tokens and a transformer layer with its norm last, the sequence first."""

    def __init__(self):
        super().__init__()
        self.conv, self.encoder = nn.Conv2d(1, 6, 2, 2), nn.TransformerEncoderLayer(6, 2, 10)

    def forward(self, x):
        return self.encoder(self.conv(x).flatten(2).permute(2, 0, 1))


def test_tokens_of_a_sequence_first_transformer_are_averaged_sample_by_sample():
    net, x = Patches().eval(), torch.randn(N, 1, 6, 6)
    tokens = net.conv(x).flatten(2).permute(2, 0, 1)
    attention = net.encoder.self_attn(tokens, tokens, tokens)[0]
    hidden = net.encoder.linear1(net.encoder.norm1(tokens + attention)).clamp_min(0)
    found = units(net, x, layer("encoder.self_attn", 6, "second"), layer("encoder.relu", 10, "second"))
    torch.testing.assert_close(found["encoder.self_attn"], attention.mean(0))
    torch.testing.assert_close(found["encoder.relu"], hidden.mean(0))


def test_attention_has_its_channels_last_however_the_axes_before_it_were_moved():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.attention = nn.Conv1d(2, 6, 1), nn.MultiheadAttention(6, 2)

        def forward(self, x):
            h = self.conv(x).mT
            return self.attention(h, h, h)[0]

    net, x = Attends(), torch.randn(5, 2, N)
    torch.testing.assert_close(units(net, x, layer("attention", 6, "second"))["attention"], net(x).mean(0))


def test_axes_that_were_not_moved_are_told_by_the_layer_and_not_by_their_length():
    class Grows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, x):
            return torch.relu(torch.cat([x, self.conv(x)], 1))  # five channels of 4 x 3 pixels

    net, x = Grows(), torch.randn(N, 2, 4, 3)
    found = units(net, x, layer("conv", 3), layer("relu", 5))
    torch.testing.assert_close(found["relu"], net(x).mean((2, 3)))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_give_their_outputs_averaged_over_time(kind, batch_first):
    net = nn.Sequential(kind(3, 4, bidirectional=True, batch_first=batch_first))
    x = torch.randn(N, 5, 3) if batch_first else torch.randn(5, N, 3)
    found = units(net, x, layer("0", 8, "first" if batch_first else "second"))["0"]
    torch.testing.assert_close(found, net[0](x)[0].mean(1 if batch_first else 0))


def test_positions_that_are_folded_into_the_batch_come_back_sample_by_sample():
    net, x = nn.Sequential(nn.Flatten(0, 1), nn.Conv1d(2, 3, 1), nn.Tanh()), torch.randn(N, 5, 2, 6)
    found = units(net, x, layer("2", 3, "folded"))["2"]
    truth = torch.stack([net[1](sample).tanh().mean((0, 2)) for sample in x])
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("name", ["residual", "encoder", "recurrent", "depthwise", "tied"])
def test_units_do_not_depend_on_how_the_samples_are_split(name):
    net, x, *_ = zoo.make(name)
    layers = []
    with Capture(net.eval(), lambda call, t, before: layers.append((call, t.shape))):
        net(x)
    wanted = [layer(c.name, s[1] if len(s) == 2 or c.channels_first else s[-1], index=c.index) for c, s in layers]
    wanted = [w for w in wanted if w.index == 0]
    whole = units(net, x, *wanted, samples=len(x))
    assert len(whole) == len(wanted)
    one = units(net, x[2:3], *wanted, samples=1)
    for label, value in whole.items():
        torch.testing.assert_close(one[label], value[2:3], msg=label, rtol=1e-4, atol=1e-5)


def test_a_layer_whose_units_are_others_than_at_the_start_is_left_out():
    net = nn.Sequential(nn.Linear(3, 1), nn.Flatten(), nn.Tanh())
    wanted = [layer("0", 1), layer("2", 5)]
    assert units(net, torch.randn(N, 5, 3), *wanted).keys() == {"0", "2"}
    assert units(net, torch.randn(N, 8, 3), *wanted).keys() == {"0"}


def test_rows_that_are_not_the_samples_are_left_out():
    net = nn.Sequential(nn.Linear(3, 2))
    assert units(net, torch.randn(7, N, 3), layer("0", 2)) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_units_keep_the_precision_of_the_layer(dtype):
    net, x = nn.Sequential(nn.Linear(6, 3), nn.ReLU()).to(dtype), torch.randn(N, 6, dtype=dtype)
    found = units(net, x, layer("1", 3))["1"]
    assert found.dtype == dtype
    assert torch.equal(found, net(x))


def test_activations_that_are_not_finite_stay_what_they_are():
    net = nn.Sequential(nn.Identity())
    x = torch.tensor([[1.0, torch.nan], [torch.inf, 2.0]])
    found = units(net, x, layer("0", 2), samples=2)["0"]
    torch.testing.assert_close(found, x, equal_nan=True)


# ---- what histograms show


def shown(net, x, size):
    with LayerCapture(net, [layer("0", size)], N) as seen:
        net(x)
    return seen.activations["0"].shown


def test_small_layers_are_shown_as_they_are():
    x = torch.randn(N, 5)
    assert torch.equal(shown(nn.Sequential(nn.Identity()), x, 5), x)


@pytest.mark.parametrize("shape", [(100,), (64, 128), (64, 32), (3, 5), (16, 16, 64)])
def test_large_layers_show_values_of_many_channels_and_positions(shape):
    grid = torch.arange(torch.tensor(shape).prod()).reshape(shape)
    x = grid.double() + 1e7 * torch.arange(N).reshape(N, *(1,) * len(shape))
    found = shown(nn.Sequential(nn.Identity()), x, x.shape[-1])
    assert found.shape == (N, SHOWN_UNITS)
    for n in range(N):
        places = [(grid == value).nonzero().squeeze(0).tolist() for value in (found[n] - 1e7 * n).long()]
        for axis, length in zip(zip(*places, strict=True), shape, strict=True):
            assert len(set(axis)) > 0.4 * min(length, SHOWN_UNITS)
            assert max(axis) - min(axis) >= 0.6 * (length - 1)


def test_sequences_of_any_length_show_as_many():
    net = nn.Sequential(nn.Linear(3, 2))
    widths = {shown(net, torch.randn(N, length, 3), 2).shape[1] for length in (1, 5, 40, 100)}
    assert widths == {SHOWN_UNITS}


# ---- what is predicted


def outputs(prediction, size):
    seen = LayerCapture(nn.Identity(), [Layer("outputs", "", 0, "", "first", size, True)], N)
    seen.take_outputs(prediction)
    return seen.activations["outputs"].units


def test_outputs_are_averaged_over_positions_with_the_classes_as_units():
    logits = torch.randn(N, 3, 5)  # three classes at five positions
    prediction = categorical({"input": logits, "target": torch.zeros(N, 5).long()}, N)
    torch.testing.assert_close(outputs(prediction, 3), logits.mean(2))


def test_outputs_of_a_regression_keep_every_component():
    means = torch.randn(N, 3)
    assert torch.equal(outputs(gaussian({"input": means, "target": means}, N), 3), means)


def test_a_predicted_variance_does_not_mix_the_means_of_several_outputs():
    mean, variance = torch.randn(N, 3), (0.1 + torch.rand(N, 3)).requires_grad_()
    prediction = gaussian_with_variance({"input": mean, "target": mean, "var": variance}, N)
    torch.testing.assert_close(outputs(prediction, 6)[:, ::2], mean / variance.detach().sqrt())


# ---- what an invertible function took


def seen_before(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
    layers, _ = find_layers(net, lambda net, x: Prediction(net(x), "gaussian"), x, None)
    with LayerCapture(net, layers, len(x)) as seen:
        net(x)
    return {label: activation.before for label, activation in seen.activations.items()}


@pytest.mark.parametrize("function", [nn.Tanh(), nn.LeakyReLU(), torch.sigmoid, F.elu])
def test_what_an_invertible_function_took_is_kept_beside_what_it_gave(function):
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 2)
            self.act = function if isinstance(function, nn.Module) else None

        def forward(self, x):
            return self.last((self.act or function)(self.first(x)))

    net, x = Body(), torch.randn(N, 6)
    before = seen_before(net, x)
    inner = next(label for label in before if label != "last")
    assert torch.equal(before[inner], net.first(x))
    assert before["last"] is None


@pytest.mark.parametrize("function", [nn.ReLU(), nn.ELU(inplace=True), nn.GELU()])
def test_nothing_is_kept_of_a_function_without_inverse_or_that_writes_over_its_input(function):
    net = nn.Sequential(nn.Linear(6, 4), function, nn.Linear(4, 2))
    assert seen_before(net, torch.randn(N, 6)) == {"1": None, "2": None}


def test_nothing_is_kept_where_a_mean_over_positions_was_taken():
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    assert seen_before(net, torch.randn(N, 2, 6)) == {"1": None, "3": None}


@pytest.mark.parametrize("known", [None, {}])
def test_nothing_stays_behind_where_there_are_no_layers(known):
    before = torch.overrides._get_current_function_mode_stack()
    with LayerCapture(nn.Linear(2, 2), [], 4, known) as seen:
        pass
    assert torch.overrides._get_current_function_mode_stack() == before
    assert seen.activations == {}
