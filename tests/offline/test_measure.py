from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, data, trainer
from oracle import fisher_trace_by_definition
from torch import nn
from torch.utils.data import DataLoader

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    GradientNoiseCallback,
    InfoPlaneCallback,
    MeasureResult,
    StabilityCallback,
    WeightInfoCallback,
    measure,
)
from lightning_info.functional.likelihoods import Categorical, Huber

SAMPLES, BATCH = 48, 8


def callbacks(**more):
    shared = {"num_samples": SAMPLES, "seed": 3, "on_error": "raise", "summary": False, **more}
    return (
        FisherTraceCallback(**shared, draws=16, per_layer=True, also=["empirical"]),
        InfoPlaneCallback(**shared, estimator=["binning", "mixture"]),
        WeightInfoCallback(**shared),
        GradientNoiseCallback(**shared),
        EffectiveInfoCallback(**shared, draws=4),
    )


def loader():
    return DataLoader(data(SAMPLES), BATCH)


@pytest.fixture(scope="module", params=["running", "reference"])
def run(request, tmp_path_factory):
    """A folder of checkpoints, and what callbacks logged at the same steps."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module = Classifier(batch_norm=True)
    ours = callbacks(batch_norm=request.param, every_n_train_steps=4, reference=data(SAMPLES).tensors)
    torch.save({"state_dict": module.state_dict(), "global_step": 0}, folder / "start.ckpt")
    keep = ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1)
    trainer(*ours, keep, enable_checkpointing=True, max_epochs=2).fit(module, loader())
    return folder, ours, request.param


def test_over_checkpoints_it_gives_what_the_callbacks_logged_bit_by_bit(run):
    folder, logged, batch_norm = run
    fresh = callbacks(batch_norm=batch_norm)
    result = measure(Classifier(batch_norm=True), loader(), *fresh, checkpoints=folder)
    expected = {tag: curve for c in logged for tag, curve in c.history.items() if not tag.endswith("overhead")}
    # of an optimiser, and of the losses of training, which a checkpoint's weights do not tell
    for name in ("temperature", "free_energy", "prequential", "prequential_excess"):
        del expected[f"weight_info/{name}"]
    assert result.history.keys() == {tag for tag, curve in expected.items() if not all(v != v for _, v in curve)}
    for tag, curve in result.history.items():
        np.testing.assert_equal(list(curve), list(expected[tag]), tag)
    assert [step for step, _ in result.history["fisher/trace"]] == [0, 4, 8, 12]
    assert all(not callback.history for callback in fresh)


def test_a_plain_module_with_pairs_and_a_likelihood_is_measured():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    x, y = data(SAMPLES).tensors
    result = measure(net, (x, y), FisherTraceCallback("exact", per_layer=True), likelihood="categorical")
    truth = sum(fisher_trace_by_definition(net, x, "categorical").values())
    assert result["fisher/trace"] == pytest.approx(truth, rel=1e-5)
    assert {"fisher_layers/0", "fisher_layers/2"} <= result.history.keys()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_every_likelihood_name_is_that_of_the_outputs(likelihood):
    torch.manual_seed(0)
    net, x = nn.Linear(FEATURES, 2), torch.randn(20, FEATURES)
    result = measure(net, (x, torch.ones(20, 2)), FisherTraceCallback("exact"), likelihood=likelihood)
    assert result["fisher/trace"] == pytest.approx(
        sum(fisher_trace_by_definition(net, x, likelihood).values()), rel=1e-5
    )


def test_a_distribution_stands_for_its_name():
    torch.manual_seed(0)
    net, x, y = nn.Linear(FEATURES, 2), torch.randn(20, FEATURES), torch.ones(20, 2)

    def trace(likelihood):
        return measure(net, (x, y), FisherTraceCallback("exact"), likelihood=likelihood)["fisher/trace"]

    assert trace("huber") == trace(Huber(1.0)) < trace(Huber(2.0)) < trace("laplace") == trace("gaussian")
    classes = (x, y[:, 0].long())
    named, given = (
        measure(net, classes, FisherTraceCallback("exact"), likelihood=one) for one in ("categorical", Categorical())
    )
    assert named["fisher/trace"] == given["fisher/trace"]
    squares = (x.square().sum(1) + 1)[:, None]
    assert trace("poisson") == pytest.approx((net(x).exp() * squares).sum(1).mean().item(), rel=1e-5)


def test_nothing_that_it_is_given_changes():
    torch.manual_seed(0)
    module, given = Classifier(batch_norm=True), callbacks()[:3]
    before, state = (
        copy.deepcopy(module.state_dict()),
        (torch.get_rng_state(), random.getstate(), np.random.get_state()),  # noqa: NPY002
    )
    flags = [part.training for part in module.modules()]
    measure(module, DataLoader(data(SAMPLES), BATCH, shuffle=True), *given)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [part.training for part in module.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    np.testing.assert_equal(np.random.get_state(), state[2])  # noqa: NPY002
    assert all(p.grad is None for p in module.parameters())
    assert all(not callback.history for callback in given)


def test_results_of_a_loop_add_up_to_a_curve():
    torch.manual_seed(0)
    net, (x, y) = nn.Linear(FEATURES, CLASSES), data(SAMPLES).tensors
    optimizer, result = torch.optim.SGD(net.parameters(), 0.5), None
    for step in range(3):
        one = measure(net, (x, y), FisherTraceCallback("exact"), likelihood="categorical", step=step)
        result = one if result is None else result + one
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert [step for step, _ in result.history["fisher/trace"]] == [0, 1, 2]
    assert "fisher/trace" in repr(result)
    frame = result.to_pandas()
    assert list(frame.columns) == ["tag", "step", "value", "stderr"]
    assert len(frame[frame.tag == "fisher/trace"]) == 3


def test_the_same_callback_is_fresh_at_every_call_and_nothing_is_printed(capsys, recwarn, caplog):
    torch.manual_seed(0)
    net, callback = nn.Linear(FEATURES, CLASSES), FisherTraceCallback("exact")
    first = categorical(net, PAIR, callback)
    with torch.no_grad():
        net.weight.mul_(3)
    second, anew = categorical(net, PAIR, callback), categorical(net, PAIR, FisherTraceCallback("exact"))
    assert second.history == anew.history
    assert first["fisher/trace"] != second["fisher/trace"]
    assert not callback.history
    told = capsys.readouterr()
    assert (told.out, told.err, caplog.text) == ("", "", "")
    assert not [one for one in recwarn if "lightning_info" in one.filename]
    assert "the first 256 samples of the data" in first.report


def test_a_check_that_fails_is_raised_whatever_on_error_says():
    def fails(module, batch):
        raise RuntimeError("no such table")

    with pytest.raises(
        MisconfigurationException, match=r"(?s)no such table.*first batch of data was a list of a tensor"
    ):
        measure(NET, PAIR, FisherTraceCallback(on_error="warn"), adapter=fails)


def test_a_module_that_predicts_no_number_has_no_values():
    with pytest.warns(UserWarning, match="not finite"):
        result = categorical(NET, (PAIR[0] * np.nan, PAIR[1]), FisherTraceCallback())
    assert repr(result) == "no values; the warnings tell why"
    with pytest.raises(KeyError, match="the warnings tell why"):
        result["fisher/trace"]


def test_a_table_of_many_quantities_leaves_layers_out():
    layers = {f"fisher_layers/{name}": [(0, 1.0), (1, 2.0)] for name in range(20)}
    result = MeasureResult({"fisher/trace": [(0, 3.0), (1, 4.0)], **layers})
    assert result.table().splitlines()[0].split() == ["step", "fisher/trace"]
    assert "and 20 more" in repr(result)


def test_without_the_weights_at_the_start_their_spread_is_missed_too():
    with pytest.warns(UserWarning, match="initial=...") as told:
        categorical(NET, PAIR, WeightInfoCallback(prior="zero", num_samples=16))
    assert len([one for one in told if "no KL" in str(one.message)]) == 1


def test_weights_are_measured_from_where_they_started():
    torch.manual_seed(0)
    module, trained = Classifier(), Classifier()
    options = {"curvature": "matrix", "num_samples": SAMPLES}
    with pytest.warns(UserWarning, match="weights at the start are not known"):
        unknown = measure(trained, loader(), WeightInfoCallback(**options))
    assert "weight_info/kl" not in unknown.history
    found = measure(trained, loader(), WeightInfoCallback(**options), initial=module)
    distance = sum(
        (p - q).square().sum().item() for p, q in zip(trained.parameters(), module.parameters(), strict=True)
    )
    lambda_ = found["weight_info/lambda"]
    assert found["weight_info/kl_displacement"] == pytest.approx(distance / (2 * lambda_**2), rel=1e-5)


def categorical(*given, **options):
    return measure(*given, likelihood="categorical", **options)


NET, PAIR = nn.Linear(FEATURES, CLASSES), data(SAMPLES).tensors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure(NET, PAIR), "no callback is given"),
        (lambda: measure(NET, PAIR, FisherTraceCallback()), "likelihood='categorical'"),
        (lambda: measure(NET, PAIR, FisherTraceCallback(), likelihood="softmax"), "unknown likelihood 'softmax'"),
        (lambda: measure(NET, PAIR[0], FisherTraceCallback(), likelihood="categorical"), "data is a tensor"),
        (
            lambda: measure(NET, (PAIR[0], PAIR[1][:3]), FisherTraceCallback(), likelihood="categorical"),
            "48, 3 samples",
        ),
        (lambda: measure(NET, PAIR, StabilityCallback(), likelihood="categorical"), "compare_runs"),
        (lambda: measure(NET, PAIR, "fisher", likelihood="categorical"), "not one of this package's callbacks"),
        (lambda: categorical(NET, PAIR, FisherTraceCallback), r"is a class; pass an instance, FisherTraceCallback\(\)"),
        (lambda: categorical(NET, PAIR, [FisherTraceCallback()]), "callbacks are in a list; give them one by one"),
        (lambda: categorical("net", PAIR, FisherTraceCallback()), "module is 'net'; give an nn.Module"),
        (
            lambda: categorical(nn.Linear, PAIR, FisherTraceCallback()),
            r"no LightningModule; give an instance, module=Lin",
        ),
        (lambda: categorical(NET, PAIR, FisherTraceCallback(), step=-1), "step must be an integer from 0 on, got -1"),
        (lambda: categorical(NET, PAIR, FisherTraceCallback(), device="tpu9"), "device='tpu9' cannot be used"),
        (lambda: categorical(NET, PAIR, FisherTraceCallback(), initial=3), "initial is a int; give a module"),
        (lambda: categorical(NET, PAIR, FisherTraceCallback(), initial=nn.Linear(2, 2)), "initial does not fit Linear"),
        (lambda: measure(NET, PAIR, FisherTraceCallback(), adapter=3), "adapter=3 is not a function"),
        (
            lambda: categorical(NET, (PAIR[0].numpy(), PAIR[1].numpy()), FisherTraceCallback()),
            "torch.as_tensor an array",
        ),
        (lambda: categorical(NET, list(zip(*PAIR, strict=True)), FisherTraceCallback()), "takes a list of samples"),
        (lambda: categorical(NET, iter([PAIR]), FisherTraceCallback()), "without a length"),
        (
            lambda: categorical(NET, (PAIR[0],), FisherTraceCallback()),
            r"a batch is \(x, y\), and the first one",
        ),
        (lambda: categorical(NET, (PAIR[0][:, :2], PAIR[1]), FisherTraceCallback()), r"x = a tensor \(48, 2\)"),
        (lambda: categorical(NET, (PAIR[0], PAIR[1].double()), FisherTraceCallback()), r"give y.long\(\)"),
        (lambda: categorical(NET, (PAIR[0], PAIR[1][:, None]), FisherTraceCallback()), r"give y.flatten\(\)"),
        (
            lambda: categorical(NET, (PAIR[0], PAIR[1] + 1), FisherTraceCallback()),
            "logits of 3 classes take those from 0",
        ),
        (lambda: measure(NET, PAIR, FisherTraceCallback(), likelihood="gaussian"), "give likelihood='categorical'"),
        (
            lambda: measure(NET, (PAIR[0], NET(PAIR[0]) - 9), FisherTraceCallback(), likelihood="bernoulli"),
            "takes targets from 0 to 1",
        ),
        (
            lambda: measure(NET, (PAIR[0], NET(PAIR[0]) - 9), FisherTraceCallback(), likelihood="poisson"),
            "takes targets from 0 to inf",
        ),
        (
            lambda: measure(
                nn.Linear(FEATURES, 1), (PAIR[0], PAIR[0][:, 0]), FisherTraceCallback(), likelihood="gaussian"
            ),
            r"give y.reshape\(-1, 1\)",
        ),
        (lambda: measure(Classifier, PAIR, FisherTraceCallback()), "give an instance"),
        (
            lambda: measure(NET, PAIR, FisherTraceCallback(), likelihood="categorical", checkpoints="no/*.ckpt"),
            "holds no",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_type(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_checkpoint_and_one_of_another_module_are_named(tmp_path):
    path = tmp_path / "step=3.pt"
    options = {"likelihood": "categorical"}
    with pytest.raises(FileNotFoundError, match="step=3"):
        measure(NET, PAIR, FisherTraceCallback(), checkpoints=path, **options)
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError, match=r"does not fit Linear: 'weight' is \(2, 2\)"):
        measure(NET, PAIR, FisherTraceCallback(), checkpoints=path, **options)


def test_two_callbacks_of_one_class_need_a_prefix():
    options = {"likelihood": "categorical"}
    result = measure(NET, PAIR, FisherTraceCallback(), FisherTraceCallback("exact", prefix="exact"), **options)
    assert {"fisher/trace", "exact/fisher/trace"} <= result.history.keys()


def test_figures_and_tensorboard_files_are_written(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _, _ = run
    result = measure(Classifier(batch_norm=True), loader(), FisherTraceCallback(), checkpoints=folder)
    result.write(tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    read = [(event.step, event.value) for event in events.Scalars("fisher/trace")]
    np.testing.assert_allclose(read, result.history["fisher/trace"], rtol=1e-6)
    assert events.Tags()["images"] == ["fisher/layers"]
    assert len(result.plot().axes) >= 2
