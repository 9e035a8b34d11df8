"""What cannot work is refused before the first step, with the fix; what fails later costs a point, not the run."""

from __future__ import annotations

import csv
import math
import warnings
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import Classifier, curves, data, loader, strict, trainer
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_info import FisherTraceCallback, InfoPlaneCallback

STEPS = 10  # batches of 8 in the 80 training samples
X, Y = data(80).tensors


def fit(callback: Callback, *others: Callback, model=None, **options) -> pl.Trainer:
    run = trainer(callback, *others, **{"max_epochs": 1, **options})
    run.fit(model or Classifier(), loader(80))
    return run


def caught_warnings(caught: list[warnings.WarningMessage]) -> list[str]:
    """Ours, apart from the one about the missing logger."""
    messages = [str(warning.message) for warning in caught]
    return [m for m in messages if m.startswith("FisherTraceCallback") and "no logger" not in m]


def nan_steps(curve: list[tuple[int, float]]) -> list[int]:
    return [step for step, value in curve if math.isnan(value)]


def assert_refused(match: str, model: nn.Module, *callbacks: Callback, batches=None, error=MisconfigurationException):
    """The run ends before the first step, with weights and counters untouched; gives the message."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = trainer(*strict(*callbacks))
    with pytest.raises(error, match=match) as caught:
        run.fit(model, loader(80) if batches is None else batches)
    assert run.global_step == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    return str(caught.value)


def assert_refused_with_adapter_lines(match: str, model: nn.Module, **options):
    message = assert_refused(match, model, FisherTraceCallback(num_samples=8, **options))
    assert message.startswith("FisherTraceCallback: ")
    assert "def adapter(module, batch):" in message
    assert 'return module(x), y, "categorical"' in message
    assert "FisherTraceCallback(adapter=adapter)" in message


# ---- constructor

INTEGERS = [0, -1, 1.5, True, "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "label"}, r"unknown estimator 'label'; .*'sampled'.*'exact'.*, for example estimator='import"),
        ({"engine": "cuda"}, r"unknown engine 'cuda'; .*'backpack'.*'loop'.*, for example engine='auto'"),
        ({"on_error": "ignore"}, r"unknown on_error 'ignore'; choose one of 'warn', 'raise', for example on_error="),
        ({"batch_norm": "batch"}, r"unknown batch_norm 'batch'; choose one of 'running', 'reference', for example"),
        ({"also": ("exact", "spectrum")}, r"unknown also 'spectrum'; choose one of 'empirical', 'exact'"),
        ({"also": "spectrum"}, r"unknown also 'spectrum'; choose one of 'empirical', 'exact'"),
        ({"every_n_epochs": 1, "every_n_train_steps": 5}, r"every_n_epochs=1 and every_n_train_steps=5 exclude each"),
        *(({"every_n_epochs": v}, r"every_n_epochs must be a positive integer, got .*epochs=1") for v in INTEGERS),
        *(({"every_n_train_steps": v}, r"every_n_train_steps must be a positive integer, got .*=1") for v in INTEGERS),
        *(({"num_samples": v}, r"num_samples must be a positive integer, got .*num_samples=256") for v in INTEGERS),
        *(({"draws": v}, r"draws must be a positive integer, got .*draws=64") for v in INTEGERS),
        *(({"max_overhead": v}, r"max_overhead must be a positive, .*, got .*=0.05") for v in (-0.1, 0, "x", True)),
        *(({"max_overhead": v}, rf"max_overhead must be a positive, finite .* got {v}") for v in (math.nan, math.inf)),
        ({"adapter": "logits"}, r"adapter must be a function \(module, batch\) -> \(outputs, targets\), got 'logits'"),
    ],
)  # fmt: skip
def test_senseless_argument_is_refused_with_an_example(arguments, message):
    with pytest.raises(ValueError, match=f"^FisherTraceCallback: {message}"):
        FisherTraceCallback(**arguments)


@pytest.mark.parametrize("arguments", [{"draws": None}, {"also": "exact"}, {"max_overhead": 1}, {"every_n_epochs": 3}])
def test_sensible_argument_is_not_refused(arguments):
    FisherTraceCallback(**arguments)


# ---- set-up


class OwnTrace(FisherTraceCallback):
    """A user's subclass, which writes the tags of its parent."""


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize(
    ("prefixes", "kinds"),
    [
        ((None, None), [FisherTraceCallback, FisherTraceCallback]),
        (("a", "b", "a"), [FisherTraceCallback] * 3),
        ((None, ""), [FisherTraceCallback, OwnTrace]),
        (("a", "a"), [OwnTrace, FisherTraceCallback]),
        ((None, None), [InfoPlaneCallback, InfoPlaneCallback]),
    ],
)
def test_callbacks_that_write_the_same_tags_are_refused_with_the_fix(prefixes, kinds, configured):
    ours = [kind(prefix=prefix) for prefix, kind in zip(prefixes, kinds, strict=True)]

    class Configured(Classifier):
        def configure_callbacks(self):  # passes by the Trainer's own check of callbacks
            return ours if configured else []

    for _ in range(2):  # those of a Trainer that was refused are no others
        run = trainer(*([] if configured else ours))
        with pytest.raises(MisconfigurationException) as refused:
            run.fit(Configured(), loader(80))
        assert str(refused.value).startswith(f"{kinds[0].__name__}: 2 of them write the same tags")
        assert f"give each a prefix, for example {kinds[-1].__name__}(prefix='second')" in str(refused.value)
        assert run.global_step == 0


def stub_trainer(strategy: str, callback: Callback) -> SimpleNamespace:
    return SimpleNamespace(strategy=type(strategy, (), {})(), callbacks=[callback])


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"])
def test_sharded_strategy_is_refused(strategy):
    callback = FisherTraceCallback(on_error="raise")
    with pytest.raises(MisconfigurationException, match=f"{strategy} shards the parameters.*strategy='ddp'"):
        callback.setup(stub_trainer(strategy, callback), Classifier(), "fit")


class Mesh(dict):
    """Of so many processes in two dimensions."""

    mesh_dim_names = ("data_parallel", "tensor_parallel")

    def size(self):
        return math.prod(axis.size() for axis in self.values())


@pytest.mark.parametrize(("data_parallel", "tensor_parallel"), [(2, 1), (1, 2), (2, 2)])
def test_tensor_parallel_processes_are_refused(data_parallel, tensor_parallel):
    callback = FisherTraceCallback(on_error="raise")
    sizes = {"data_parallel": torch.Size([data_parallel]), "tensor_parallel": torch.Size([tensor_parallel])}
    run = stub_trainer("ModelParallelStrategy", callback)
    run.strategy._device_mesh = Mesh({name: SimpleNamespace(size=size.numel) for name, size in sizes.items()})
    if tensor_parallel == 1:
        callback.setup(run, Classifier(), "fit")
        return
    size = data_parallel * tensor_parallel
    with pytest.raises(MisconfigurationException, match=f"tensor_parallel_size=1 and data_parallel_size={size}"):
        callback.setup(run, Classifier(), "fit")


@pytest.mark.parametrize("strategy", ["SingleDeviceStrategy", "DDPStrategy"])
def test_other_strategy_is_accepted(strategy):
    callback = FisherTraceCallback()
    callback.setup(stub_trainer(strategy, callback), Classifier(), "fit")


# ---- adapters


def logits(module, batch):
    return module(batch[0])


def broken(module, batch):
    raise KeyError("label")


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (lambda m, b: None, r"returned NoneType instead of \(outputs, targets\) or \(outputs, targets, likelihood\)"),
        (logits, r"returned a tensor of shape \(8, 3\) instead of \(outputs, targets\)"),
        (lambda m, b: (logits(m, b),), r"returned tuple instead of"),
        (lambda m, b: (logits(m, b), b[1], "categorical", 1.0), r"returned tuple instead of"),
        (lambda m, b: (logits(m, b).argmax(1), b[1], "categorical"), r"outputs are a tensor of .*floating-point"),
        (lambda m, b: ({"z": logits(m, b)}, b[1], "categorical"), r"outputs are dict; they must be"),
        (lambda m, b: (logits(m, b), b[1].tolist(), "categorical"), r"targets are list; they must be a tensor or None"),
        (lambda m, b: (logits(m, b), b[1], "softmax"), r"'softmax'; choose one of categorical, bernoulli, gaussian"),
        (lambda m, b: (logits(m, b), b[0][:, :3]), r"outputs of shape \(8, 3\) .* leave the likelihood open"),
        (lambda m, b: (logits(m, b).T, b[1], "categorical"), r"shape \(3, 8\) for 8 samples; axis 0 must be the"),
        (lambda m, b: (logits(m, b).mean(), b[1], "gaussian"), r"shape \(\) for 8 samples; axis 0 must be the sample"),
        (lambda m, b: (logits(m, b)[:, 0], b[1], "categorical"), r"shape \(8,\) have no class axis"),
        (broken, r"adapter fails on a copy of the module .*: KeyError: 'label'"),
    ],
)  # fmt: skip
def test_adapter_that_returns_something_else_is_refused(adapter, message):
    assert_refused_with_adapter_lines(message, Classifier(), adapter=adapter)


def test_adapter_without_targets_is_refused_where_targets_are_needed():
    def adapter(module, batch):
        return module(batch[0]), None, "categorical"

    fit(FisherTraceCallback(num_samples=8, adapter=adapter, on_error="raise", max_overhead=1.0))
    for options in ({"also": "empirical"}, {"estimator": "empirical"}):
        assert_refused("no targets to take the loss at", Classifier(), FisherTraceCallback(adapter=adapter, **options))


# ---- modules


class HandWritten(Classifier):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return -self(x).log_softmax(0).gather(1, y[:, None]).mean()


class TwoHeads(Classifier):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y) + F.cross_entropy(self(-x), y)


class Consistency(Classifier):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), self(-batch[0]))


class Crash(Classifier):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("no such table")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (HandWritten, r"HandWritten.training_step calls no likelihood that is known here, such as cross_entropy"),
        (TwoHeads, r"TwoHeads.training_step calls 2 likelihoods"),
        (Consistency, r"Consistency.training_step compares two quantities that both depend on the parameters"),
        (Crash, r"Crash.training_step fails on a copy of the module .*: RuntimeError: no such table"),
    ],
)
def test_module_whose_likelihood_is_not_clear_is_refused(module, message):
    assert_refused_with_adapter_lines(message, module())


@pytest.mark.parametrize("module", [HandWritten, TwoHeads, Consistency])
def test_adapter_lines_of_the_message_help(module):
    def adapter(module, batch):
        x, y = batch
        return module(x), y, "categorical"

    torch.manual_seed(1)
    plain = FisherTraceCallback(num_samples=8, on_error="raise", every_n_train_steps=5)
    fit(plain, model=Classifier())
    torch.manual_seed(1)
    helped = FisherTraceCallback(num_samples=8, on_error="raise", every_n_train_steps=5, adapter=adapter)
    fit(helped, model=module())
    assert [step for step, _ in helped.history["fisher/trace"]] == [0, 5, 10]
    assert helped.history["fisher/trace"][0] == plain.history["fisher/trace"][0]


class Regression(Classifier):
    def __init__(self, swapped: bool):
        super().__init__()
        self.swapped = swapped

    def training_step(self, batch, batch_idx):
        x, y = batch
        pair = (self(x), F.one_hot(y, 3).float())
        return F.mse_loss(*(reversed(pair) if self.swapped else pair))


@pytest.mark.parametrize("also", [(), ("empirical", "exact")])
def test_swapped_squared_error_is_read_the_right_way_round(also):
    histories = []
    for swapped in (False, True):
        torch.manual_seed(1)
        callback = FisherTraceCallback(num_samples=8, also=also, on_error="raise", every_n_train_steps=5)
        fit(callback, model=Regression(swapped))
        histories.append(curves(callback))
    assert [step for step, _ in histories[0]["fisher/trace"]] == [0, 5, 10]
    assert histories[1] == histories[0]


# ---- a training_step that writes to the weights, which the replica shares


@torch.no_grad()
def halve(p):
    p.data *= 0.5


@torch.no_grad()
def set_items(p):
    p[...] = 0.0


SETTLED = {  # a second pass changes nothing more
    "data.clamp_": lambda p: p.data.clamp_(-0.01, 0.01),
    "no_grad clamp_": torch.no_grad()(lambda p: p.clamp_(-0.01, 0.01)),
    "torch.clamp_": lambda p: torch.clamp_(p.detach(), -0.01, 0.01),
    "setitem": set_items,
    "view": lambda p: p.data.view(-1)[:2].zero_(),
    "out=": lambda p: torch.clamp(p.data, -0.01, 0.01, out=p.data),
    "foreach": lambda p: torch._foreach_clamp_max_([p.data], 0.01),
    "init": nn.init.zeros_,
    "relu": lambda p: F.relu(p.data, inplace=True),
    "numpy": lambda p: np.clip(p.data.numpy(), -0.01, 0.01, out=p.data.numpy()),
}
UNSETTLED = {
    "data *=": halve,
    "copy_": lambda p: p.data.copy_(p.data / 2),
    "foreach": lambda p: torch._foreach_mul_([p.data], 0.5),
    "dropout": lambda p: F.dropout(p.data, inplace=True),
    "numpy": lambda p: np.multiply(p.data.numpy(), 0.5, out=p.data.numpy()),
}


class Writes(Classifier):
    def __init__(self, write):
        super().__init__()
        self.write = write

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.write(self.net[0].weight)
        return F.cross_entropy(self(x), y)


class Renormalised(Classifier):
    """Looks up eight words by the signs of three features; not every batch has all of them."""

    def __init__(self, scale: float = 1.0):
        super().__init__(nn.Sequential(nn.Embedding(8, 8, max_norm=0.5), nn.Linear(8, 3)))
        self.net[0].weight.data *= scale

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self((x[:, :3] > 0).long() @ torch.tensor([1, 2, 4])), y)


class Grow(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 3:
            pl_module.net[0].weight.data *= 1000


SETTLED_MODELS = {name: partial(Writes, write) for name, write in SETTLED.items()} | {
    "max_norm": Renormalised,
    "max_norm that is reached later": partial(Renormalised, 0.001),
}


@pytest.mark.parametrize("make", SETTLED_MODELS.values(), ids=SETTLED_MODELS)
def test_training_step_that_changes_its_parameters_trains_as_without_the_callback(make):
    final = []
    for callbacks in ([], [FisherTraceCallback(num_samples=8, on_error="raise", every_n_train_steps=1)]):
        torch.manual_seed(1)
        model = make()
        run = trainer(*callbacks, Grow(), max_epochs=1)
        run.fit(model, loader(80))
        assert run.global_step == STEPS
        final.append(model.state_dict())
    (callback,) = callbacks
    assert [step for step, _ in callback.history["fisher/trace"]] == list(range(STEPS + 1))
    for name, tensor in final[0].items():
        assert torch.equal(final[1][name], tensor), name


def test_training_step_that_changes_its_parameters_is_measured_as_it_predicts():
    model = Writes(SETTLED["data.clamp_"])
    clamped = Writes(lambda p: None)
    clamped.load_state_dict(model.state_dict())
    SETTLED["data.clamp_"](clamped.net[0].weight)
    initial = []
    for module in (model, clamped):
        callback = FisherTraceCallback("exact", num_samples=32, on_error="raise", every_n_train_steps=100)
        fit(callback, model=module)
        initial.append(callback.history["fisher/trace"][0])
    assert initial[0] == (0, pytest.approx(initial[1][1], rel=1e-5))


@pytest.mark.parametrize("write", UNSETTLED.values(), ids=UNSETTLED)
def test_training_step_that_changes_its_parameters_with_every_pass_is_refused(write):
    message = assert_refused("parameters while it runs", Writes(write), FisherTraceCallback(num_samples=8))
    assert message.startswith("FisherTraceCallback: ")


def test_training_step_that_changes_its_buffers_is_measured_on_private_ones():
    class Counts(Classifier):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def training_step(self, batch, batch_idx):
            self.seen += 1
            return super().training_step(batch, batch_idx)

    model, callback = Counts(), FisherTraceCallback(num_samples=8, on_error="raise", every_n_train_steps=5)
    fit(callback, model=model)
    assert [step for step, _ in callback.history["fisher/trace"]] == [0, 5, 10]
    assert model.seen.item() == STEPS


# ---- batches and reference samples


def test_batch_without_tensors_is_refused_by_name():
    class Texts(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(X[: len(batch)]), Y[: len(batch)])

    texts = DataLoader(["a", "b", "c", "d"], 2)
    message = assert_refused("no tensor with a sample axis", Texts(), FisherTraceCallback(num_samples=2), batches=texts)
    assert message.startswith("FisherTraceCallback: ")


@pytest.mark.parametrize("reference", [Subset(TensorDataset(X, Y), []), ()], ids=["data set", "tensors"])
def test_empty_reference_is_refused_by_name(reference):
    callback = FisherTraceCallback(reference=reference)
    assert_refused(
        "FisherTraceCallback.*reference", Classifier(), callback, error=(ValueError, MisconfigurationException)
    )


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ((X,), "Classifier.training_step fails on a copy of the module"),
        ((X[:, :2], Y), "Classifier.training_step fails on a copy of the module"),
        ((X[:64], Y[:60]), r"FisherTraceCallback: .*reference=.* 64, 60 samples"),
        ((X[:9], Y[:8]), r"FisherTraceCallback: .*reference=.* 9, 8 samples"),
    ],
)
def test_reference_unlike_the_batches_is_refused(reference, message):
    assert_refused(message, Classifier(), FisherTraceCallback(reference=reference))


# ---- points without a value


class Fill(Callback):
    """Fills a parameter with a value after some number of batches; 0: before the first."""

    def __init__(self, batches: int, name: str = "net.0.weight", value: float = math.nan):
        self.batches, self.name, self.value = batches, name, value

    def on_train_start(self, trainer, pl_module):
        self.seen = -1
        self.on_train_batch_end(trainer, pl_module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen += 1
        if self.seen == self.batches:
            pl_module.get_parameter(self.name).fill_(self.value)


def read_csv(logger: CSVLogger, tag: str = "fisher/trace") -> list[tuple[int, float]]:
    with open(f"{logger.log_dir}/metrics.csv") as file:
        return [(int(row["step"]), float(row[tag])) for row in csv.DictReader(file) if row[tag]]


def assert_nan_from(first_nan: int, callback: FisherTraceCallback, *others: Callback, logger: CSVLogger, model=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(callback, *others, model=model, logger=logger)
    assert run.global_step == STEPS
    for tag in ("fisher/trace", "fisher/trace_stderr", "fisher/trace_low", "fisher/trace_high", "fisher/coverage"):
        curve = callback.history[tag]
        assert [step for step, _ in curve] == [0, 4, 8, 10]
        assert nan_steps(curve) == [step for step, _ in curve if step >= first_nan]
    logged = read_csv(logger)
    assert [step for step, _ in logged] == [0, 4, 8, 10]
    assert nan_steps(logged) == nan_steps(callback.history["fisher/trace"])
    (message,) = caught_warnings(caught)
    assert "no value at step" in message
    return message


@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.parametrize("bad", [2, 20])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_reference_with_a_non_finite_input_gives_nan_points(tmp_path, on_error, bad, value):
    x = X[:24].clone()
    x[bad, 1] = value
    callback = FisherTraceCallback(every_n_train_steps=4, reference=(x, Y[:24]), on_error=on_error)
    message = assert_nan_from(0, callback, logger=CSVLogger(tmp_path))
    assert "no value at step 0 (NaN): the outputs of 1 of 24 reference samples are not finite" in message


@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.parametrize(("batches", "first_nan"), [(0, 0), (6, 8), (10, 10)])
def test_weights_that_become_nan_give_nan_points(tmp_path, on_error, batches, first_nan):
    callback = FisherTraceCallback(every_n_train_steps=4, num_samples=8, on_error=on_error)
    message = assert_nan_from(first_nan, callback, Fill(batches), logger=CSVLogger(tmp_path))
    assert f"no value at step {first_nan} (NaN): the outputs of 8 of 8 reference samples are not finite" in message
    for layer in ("net.0", "net.4")[: 2 * (first_nan > 0)]:
        assert nan_steps(callback.history[f"fisher_layers/{layer}"])[0] == first_nan


@pytest.mark.parametrize("batches", [0, 8])
def test_gradients_that_are_not_finite_give_nan_points(tmp_path, batches):
    class Cusp(Classifier):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.ones(()))

        def forward(self, x):
            z = super().forward(x)
            return torch.stack([z[:, 0] + self.shift.abs().sqrt(), *z.T[1:]], 1)  # finite at 0, its slope is not

    callback = FisherTraceCallback(every_n_train_steps=4, num_samples=8, on_error="raise")
    logger = CSVLogger(tmp_path)
    message = assert_nan_from(batches, callback, Fill(batches, "shift", 0.0), logger=logger, model=Cusp())
    assert f"no value at step {batches} (NaN): the gradients of 8 of 8 samples are not finite" in message


# ---- faults during training


def failing(callback: FisherTraceCallback, monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    """The measurements with these numbers raise."""
    measure, numbers = callback.quantity.measure, iter(range(1000))

    def flaky(snapshot, point):
        number = next(numbers)
        if number in calls:
            raise RuntimeError(f"boom {number}")
        return measure(snapshot, point)

    monkeypatch.setattr(callback.quantity, "measure", flaky)


@pytest.mark.parametrize("prefix", [None, "mine"])
def test_measurements_that_raise_cost_their_points_and_one_warning(tmp_path, monkeypatch, prefix):
    logger = CSVLogger(tmp_path)
    callback = FisherTraceCallback(num_samples=8, every_n_train_steps=2, prefix=prefix)
    failing(callback, monkeypatch, 1, 2, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(callback, logger=logger)
    assert run.global_step == STEPS
    tags = [f"mine/{tag}" if prefix else tag for tag in (*callback.tags, "fisher_layers/net.0", "fisher_layers/net.4")]
    assert list(curves(callback)) == tags
    overhead = f"{prefix}/fisher/overhead" if prefix else "fisher/overhead"
    assert all(math.isfinite(share) for _, share in callback.history[overhead])
    for tag in tags:
        assert [step for step, _ in callback.history[tag]] == [0, 2, 4, 6, 8, 10]
        assert nan_steps(callback.history[tag]) == [2, 4, 8]
    assert nan_steps(read_csv(logger, tags[0])) == [2, 4, 8]
    (message,) = caught_warnings(caught)
    assert "the measurement at step 2 failed and training goes on" in message
    assert "RuntimeError: boom 1" in message
    assert "Traceback" not in message
    assert "RuntimeError: boom 1" in callback.report().partition("Traceback")[2]


def test_first_measurement_that_raises_leaves_no_gap_in_any_scalar(monkeypatch):
    callback = FisherTraceCallback(num_samples=8, every_n_train_steps=5, also=("empirical", "exact"))
    failing(callback, monkeypatch, 0)
    fit(callback)
    for tag in (*callback.tags, "fisher/empirical_trace", "fisher/exact_trace", "fisher/exact_trace_stderr"):
        assert [step for step, _ in callback.history[tag]] == [0, 5, 10], tag
        assert nan_steps(callback.history[tag]) == [0], tag


@pytest.mark.parametrize(("call", "step"), [(0, 0), (2, 4), (5, 10)])
def test_measurement_that_raises_ends_the_run_if_asked(monkeypatch, call, step):
    callback = FisherTraceCallback(num_samples=8, every_n_train_steps=2, on_error="raise")
    failing(callback, monkeypatch, call)
    run = trainer(callback, max_epochs=1)
    with pytest.raises(RuntimeError, match=f"^boom {call}$"):
        run.fit(Classifier(), loader(80))
    assert run.global_step == step


class Unreachable(CSVLogger):
    """Takes Lightning's own metrics but not ours."""

    def log_metrics(self, metrics, step=None):
        if any("fisher" in tag for tag in metrics):
            raise ConnectionError("server gone")
        super().log_metrics(metrics, step)


@pytest.mark.parametrize("position", [0, 1])
def test_logger_that_raises_costs_one_warning_and_other_loggers_nothing(tmp_path, position):
    good, callback = CSVLogger(tmp_path, "good"), FisherTraceCallback(num_samples=8, every_n_train_steps=4)
    loggers = [good]
    loggers.insert(position, Unreachable(tmp_path, "bad"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(callback, logger=loggers)
    assert run.global_step == STEPS
    assert [step for step, _ in callback.history["fisher/trace"]] == [0, 4, 8, 10]
    assert read_csv(good) == callback.history["fisher/trace"]
    (message,) = caught_warnings(caught)
    assert "writing to a logger at step 0 failed and training goes on" in message
    assert "ConnectionError: server gone" in message


def test_logger_that_raises_ends_the_run_if_asked(tmp_path):
    callback = FisherTraceCallback(num_samples=8, on_error="raise")
    with pytest.raises(ConnectionError, match="server gone"):
        fit(callback, logger=Unreachable(tmp_path))


def test_faults_of_two_sources_are_both_told(tmp_path, monkeypatch):
    class Same(Unreachable):
        def log_metrics(self, metrics, step=None):
            try:
                super().log_metrics(metrics, step)
            except ConnectionError as error:
                raise RuntimeError("server gone") from error

    callback = FisherTraceCallback(num_samples=8, every_n_train_steps=4)
    failing(callback, monkeypatch, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(callback, logger=Same(tmp_path))
    messages = caught_warnings(caught)
    assert len(messages) == 2
    assert "server gone" in messages[0]
    assert "boom 1" in messages[1]


@pytest.mark.parametrize("prefix", ["x/", "/x", "a//b", "..", ".", 3])
def test_prefix_that_makes_no_folder_is_refused(prefix):
    with pytest.raises(ValueError, match=r"prefix must be words with single slashes.*for example prefix='run1'"):
        FisherTraceCallback(prefix=prefix)


@pytest.mark.parametrize("prefix", ["x", "a/b", "run 1", "a.b", ""])
def test_prefix_of_words_is_taken(prefix):
    assert FisherTraceCallback(prefix=prefix).prefix == (prefix or None)
