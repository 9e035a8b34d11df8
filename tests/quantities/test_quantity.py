"""A quantity that a user writes, in an ``InfoCallback``: what it gives is shown, and its mistakes are told."""

from __future__ import annotations

import inspect
import math
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from models import Classifier, loader, trainer

from lightning_info import FisherTraceCallback, InfoCallback, measure
from lightning_info.quantities import NotMeasurable, Point, Quantity, Record, Unavailable


class WeightNorm(Quantity):
    """The norm of every parameter, and a fault at a step."""

    name = "weight_norm"

    def __init__(self, power: int = 2, fails_at: int = -1):
        self.power, self.fails_at, self.measured = power, fails_at, 0

    def settings(self):
        return {"power": self.power}

    def prepare(self, snapshot, point):
        self.names = [name for name, _ in snapshot.module.named_parameters()]
        self.tags = tuple(f"weight_norm/{name}" for name in self.names)
        return {"measures": f"norm of order {self.power}"}

    def measure(self, snapshot, point):
        self.measured += 1
        if point.step == self.fails_at:
            raise RuntimeError("a fault of the quantity")
        return {f"weight_norm/{name}": p.norm(self.power) for name, p in snapshot.module.named_parameters()}

    def state_dict(self):
        return {"measured": self.measured}

    def load_state_dict(self, state, same_settings):
        self.measured = state["measured"] if same_settings else 0


class Draw(Quantity):
    """A random number."""

    name = "draw"

    def measure(self, snapshot, point):
        return {"draw/value": torch.rand(1, generator=point.generator)}


def quantity(measured, **attributes):
    """A quantity ``mine`` whose measurement is a function of the step."""
    body = {"name": "mine", "measure": lambda self, snapshot, point: measured(point.step), **attributes}
    return type("Mine", (Quantity,), body)()


def fit(*callbacks, path=None, **options):
    torch.manual_seed(1)
    module = Classifier()
    run = trainer(*callbacks, **options)
    run.fit(module, loader(), ckpt_path=path)
    return module


def callback(measures, **options):
    return InfoCallback(measures, **{"every_n_epochs": 1, "num_samples": 16, "summary": False, **options})


def told(measures, **options):
    """The warnings of a run."""
    one = callback(measures, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(one)
    texts = [str(warning.message) for warning in caught]
    return one, [text for text in texts if text.startswith("InfoCallback") and "no logger" not in text]


# ---- what it gives


def test_values_are_those_of_the_weights_at_the_step():
    one = callback(WeightNorm())
    module = fit(one)
    for name, parameter in module.named_parameters():
        steps, values = zip(*one.history[f"weight_norm/{name}"], strict=True)
        assert steps == (0, 8, 16)
        assert values[-1] == parameter.norm().item()
    assert "norm of order 2" in one.report()
    assert one.power == 2


def test_a_callback_draws_the_same_numbers_again_and_leaves_those_of_training_alone():
    one, other = callback(Draw()), callback(Draw(), seed=1)
    weights = [fit(*callbacks).state_dict() for callbacks in ((one,), (other,), ())]
    assert all(torch.equal(value, weights[2][name]) for state in weights for name, value in state.items())
    again = callback(Draw())
    fit(again)
    assert again.history["draw/value"] == one.history["draw/value"] != other.history["draw/value"]


def test_checkpoints_are_measured_by_the_same_object(tmp_path):
    one = callback(WeightNorm())
    saving = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1)
    fit(one, saving, enable_checkpointing=True)
    draws = callback(Draw())
    result = measure(Classifier(), loader().dataset, one, draws, checkpoints=tmp_path)
    assert result.history["weight_norm/net.0.weight"] == one.history["weight_norm/net.0.weight"][1:]
    assert len(result.history["draw/value"]) == 2
    assert not draws.history


def test_two_quantities_resume_beside_each_other(tmp_path):
    def ours():
        return [callback(WeightNorm()), callback(WeightNorm(), prefix="second"), callback(Draw())]

    keys = {one.state_key for one in ours()}
    assert len(keys) == 3
    saving = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
    fit(*ours(), saving, enable_checkpointing=True, max_epochs=1)
    resumed, whole = ours(), ours()
    fit(*resumed, path=tmp_path / "last.ckpt", max_epochs=3, enable_checkpointing=True, default_root_dir=tmp_path)
    fit(*whole, max_epochs=3)
    for one, other in zip(resumed, whole, strict=True):
        curves = {tag: curve for tag, curve in one.history.items() if "overhead" not in tag}
        assert curves == {tag: curve for tag, curve in other.history.items() if "overhead" not in tag}
        assert [step for step, _ in next(iter(curves.values()))] == [0, 8, 16, 24]
    assert resumed[0].quantity.measured == whole[0].quantity.measured

    changed = [callback(WeightNorm(power=1)), callback(Draw())]
    with pytest.warns(UserWarning, match="power was 2 in the checkpoint and is 1 now"):
        fit(*changed, path=tmp_path / "last.ckpt", enable_checkpointing=True, default_root_dir=tmp_path)
    assert [step for step, _ in changed[0].history["weight_norm/net.0.weight"]] == [8, 16]
    assert [step for step, _ in changed[1].history["draw/value"]] == [0, 8, 16]


def test_a_yaml_file_can_name_a_quantity():
    parser = LightningArgumentParser()
    parser.add_subclass_arguments(InfoCallback, "callback")
    norm = {"class_path": f"{__name__}.WeightNorm", "init_args": {"power": 1}}
    given = {"class_path": "lightning_info.InfoCallback", "init_args": {"quantity": norm, "every_n_epochs": 2}}
    made = parser.instantiate(parser.parse_object({"callback": given})).callback
    assert made.quantity.power == 1


def test_its_documentation_has_every_argument():
    for name in inspect.signature(InfoCallback).parameters:
        assert f"        {name}: " in InfoCallback.__doc__


def test_a_record_knows_its_last_step():
    assert Record({"a/b": [(0, 1.0), (8, 2.0)], "a/c": []}).last_step == 8
    assert Record({}).last_step == -1


def test_the_length_of_the_data_is_that_of_the_samples_where_it_is_not_known():
    point = Point(0, torch.Generator())
    with pytest.warns(UserWarning, match="the training data have no length; N = 16"):
        assert point.training_samples(16) == 16


# ---- faults


def test_a_fault_is_one_warning_and_a_gap():
    one, texts = told(WeightNorm(fails_at=8))
    (text,) = texts
    assert text.startswith("InfoCallback: the measurement at step 8 failed and training goes on")
    assert "a fault of the quantity" in text
    values = [value for _, value in one.history["weight_norm/net.0.weight"]]
    assert [math.isnan(value) for value in values] == [False, True, False]


def test_an_unavailable_point_is_told_with_its_reason():
    def measured(step):
        if step:
            return {"mine/a": 1.0}
        raise Unavailable("the ranks are tied")

    one, texts = told(quantity(measured, tags=("mine/a",)))
    assert texts == ["InfoCallback: no value at step 0 (NaN): the ranks are tied"]
    assert math.isnan(one.history["mine/a"][0][1])


def test_with_raise_a_fault_ends_the_run():
    with pytest.raises(RuntimeError, match="a fault of the quantity"):
        fit(callback(WeightNorm(fails_at=8), on_error="raise"))


@pytest.mark.parametrize(
    "attributes",
    [
        {"statistics": lambda self: 1 / 0},
        {"statistics": lambda self: [{}]},
        {"figures": lambda self, record: [3]},
        {"finish": lambda self, record, point: {"mine/b": 3.0}},
        {"is_logged": lambda self, tag: 1 / 0},
        {"state_dict": lambda self: 1 / 0},
        {"closing_text": lambda self, record: 1 / 0, "table": (("mine/a", None),)},
    ],
    ids=lambda attributes: next(iter(attributes)),
)
def test_a_fault_beside_the_measurement_is_one_warning_and_harms_no_other(attributes, tmp_path):
    one, other = callback(quantity(lambda step: {"mine/a": step}, **attributes), summary=True), callback(WeightNorm())
    with pytest.warns(UserWarning, match="failed and training goes on"):
        fit(one, other, enable_checkpointing=True, default_root_dir=tmp_path)
    assert one.history["mine/a"] == [(0, 0.0), (8, 8.0), (16, 16.0)]
    assert all(math.isfinite(value) for curve in other.history.values() for _, value in curve)


# ---- mistakes


class Nameless(Quantity):
    def measure(self, snapshot, point):
        return {}


class OfTwoWords(Nameless):
    name = "two/words"


class Picky(Nameless):
    name = "picky"

    def check(self, owner):
        raise ValueError(f"{owner}: width must be positive")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (WeightNorm, "InfoCallback: WeightNorm is a class; pass an instance, InfoCallback(WeightNorm())"),
        (3, "InfoCallback: 3 is not a Quantity; pass an instance of a subclass of lightning_info.quantities.Quantity"),
        (Nameless(), "InfoCallback: Nameless has no name; it is the first part of the tags, for example name = 'nam"),
        (OfTwoWords(), "InfoCallback: OfTwoWords has the name 'two/words', which must be one word without slashes; it"),
        (Picky(), "InfoCallback: width must be positive"),
    ],
    ids=["class", "number", "nameless", "slash", "check"],
)
def test_what_is_no_quantity_is_refused_at_once(given, message):
    with pytest.raises(ValueError, match="InfoCallback") as refused:
        InfoCallback(given)
    assert str(refused.value).startswith(message)


TENSOR = torch.ones(3)
RETURNED = {
    "number": (3.2, "Mine.measure returned 3.2 (float); return a dict of numbers by tag"),
    "nothing": (None, "Mine.measure returned None; return a dict"),
    "empty": ({}, "Mine.measure returned an empty dict; raise Unavailable with the reason instead"),
    "vector": ({"mine/a": TENSOR}, "Mine gives 'mine/a' a tensor of shape (3,), torch.float32; a value is one real"),
    "text": ({"mine/a": "5"}, "Mine gives 'mine/a' '5' (str); a value is one real number"),
    "complex": ({"mine/a": 1j}, "Mine gives 'mine/a' 1j (complex)"),
    "other name": ({"rank/a": 1.0}, "Mine gives the tag 'rank/a'; the first part of a tag is 'mine', or begins with"),
    "no first part": ({"mine": 1.0}, "Mine gives the tag 'mine'; the first part"),
    "double slash": ({"mine//a": 1.0}, "Mine gives the tag 'mine//a', which has an empty part; 'mine/a'?"),
    "no string": ({3: 1.0}, "Mine gives 3 as a tag; a tag is a string"),
    "folder": ({"mine/a": 1.0, "mine/a/b": 1.0}, "Mine gives the tags 'mine/a' and 'mine/a/b'; a logger that makes"),
    "overhead": ({"mine/overhead": 1.0}, "Mine gives the tag 'mine/overhead', which is that of the share of time"),
}


@pytest.mark.parametrize(("returned", "message"), RETURNED.values(), ids=RETURNED)
def test_what_cannot_be_shown_is_told_before_the_first_step_or_is_a_gap(returned, message):
    with pytest.raises(Exception, match="InfoCallback") as refused:
        fit(callback(quantity(lambda step: returned)))
    assert str(refused.value).startswith(f"InfoCallback: {message}")

    one, texts = told(quantity(lambda step: returned if step == 8 else {"mine/z": 1.0}))
    (text,) = texts
    assert text.startswith(f"InfoCallback: no value at step 8 (NaN): {message}")
    assert "Traceback" not in text
    assert {tag for tag in one.history if "overhead" not in tag} == {"mine/z"}
    assert [math.isnan(value) for _, value in one.history["mine/z"]] == [False, True, False]


def test_a_tensor_of_one_element_is_a_number():
    one, texts = told(quantity(lambda step: {"mine/a": torch.ones(1, 1, requires_grad=True), "mine_b/c": True}))
    assert not texts
    assert one.history["mine/a"] == [(0, 1.0), (8, 1.0), (16, 1.0)]
    assert all(type(value) is float for curve in one.history.values() for _, value in curve)


def moves(self, snapshot, point):
    with torch.no_grad():
        next(snapshot.module.parameters()).zero_()
    return {"mine/a": 1.0}


def refuses(self, snapshot, point):
    raise NotMeasurable("there is nothing to measure; add a layer")


DECLARED = {
    "tags": ({"tags": "mine/a"}, "Mine.tags is a string; give a tuple, tags = ('mine/a',)"),
    "first part": ({"tags": ("a",)}, "Mine gives the tag 'a'; the first part of a tag is 'mine'"),
    "table": ({"table": ("mine/a",)}, "Mine.table holds 'mine/a'; a row is a tag and the tag of its error, or None"),
    "chart": ({"charts": lambda self: {"A": "mine/a"}}, "Mine.charts gives 'mine/a' for 'A'; a chart is ('Multiline'"),
    "band": ({"charts": lambda self: {"A": ("Margin", ("mine/a",))}}, "Mine.charts gives ('Margin', ('mine/a',)) for"),
    "prepare": ({"prepare": lambda self, snapshot, point: "text"}, "Mine.prepare returned 'text' (str); return a dict"),
    "settings": ({"settings": lambda self: 1 / 0}, "Mine.settings fails (ZeroDivisionError: division by zero)"),
    "moves": ({"measure": moves}, "Mine.measure changes 'net.0.weight' of the replica that it measures on, whose"),
    "leaves": ({"measure": moves, "moves_weights": True}, "Mine.measure changes 'net.0.weight' of the replica that it"),
}


@pytest.mark.parametrize(("attributes", "message"), DECLARED.values(), ids=DECLARED)
def test_what_does_not_fit_is_told_before_the_first_step(attributes, message):
    with pytest.raises(Exception, match="InfoCallback") as refused:
        fit(callback(quantity(lambda step: {"mine/a": 1.0}, **attributes)))
    assert str(refused.value).startswith(f"InfoCallback: {message}")


def test_what_a_quantity_refuses_itself_switches_it_off_with_a_word():
    one, (text,) = told(quantity(lambda step: {"mine/a": 1.0}, prepare=refuses))
    assert text.startswith("InfoCallback: there is nothing to measure; add a layer")
    assert one.history == {}


def test_names_of_others_are_refused():
    fisher = FisherTraceCallback(summary=False)
    with pytest.raises(Exception, match=r"2 of them write the same tags \(FisherTraceCallback, InfoCallback: fisher/"):
        fit(fisher, callback(quantity(lambda step: {"fisher/a": 1.0}, name="fisher")))
    with pytest.raises(Exception, match=r"give each a prefix, for example InfoCallback\(Draw\(\), prefix='second'\)"):
        fit(callback(Draw()), callback(Draw()))


def test_one_object_in_two_callbacks_is_refused():
    shared = WeightNorm()
    with pytest.raises(Exception, match=r"two callbacks share one WeightNorm, .* give each an instance of its own"):
        fit(callback(shared), callback(shared, prefix="second"))
