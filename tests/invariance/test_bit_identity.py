"""Training with our callbacks is bit-identical to training without."""

import math

import pytest
import torch
from harness import assert_identical, run
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import Classifier

from invariance.cases import CASES, GROUPS, IN_CI
from invariance.datasets import NoisyData
from invariance.judge import judge
from invariance.networks import Closure, Everything
from invariance.steps import Busy, EditsBatch, EditsOwnCopy
from lightning_info import FisherTraceCallback


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*non-full backward hook:FutureWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in CASES]
)
def test_training_does_not_notice(name):
    verdict = judge(CASES[name])
    assert verdict.passed, verdict


def test_every_case_has_a_name_of_its_own_and_those_of_ci_exist():
    assert sum(map(len, GROUPS.values())) == len(CASES)
    assert CASES.keys() >= IN_CI


def fisher(**options):
    defaults = {"every_n_train_steps": 1, "num_samples": 12, "draws": 5, "also": ("empirical", "exact")}
    return FisherTraceCallback(**{**defaults, "on_error": "raise", "summary": False, **options})


def assert_measured(callback):
    for name in ("trace", "empirical_trace", "exact_trace"):
        curve = callback.history[f"fisher/{name}"]
        assert all(math.isfinite(value) and value > 0 for _, value in curve)
        assert [step for step, _ in curve] == list(range(curve[-1][0] + 1))


@pytest.mark.parametrize("engine", ["backpack", "func", "loop"])
def test_training_does_not_notice_any_engine(engine):
    callback = fisher(engine=engine)
    assert_identical(run(Everything), run(Everything, callback))
    assert_measured(callback)
    assert callback.plan.engine == engine


@pytest.mark.parametrize(
    "name",
    [
        "mean teacher over a list of pairs",
        "parameters written by a custom operator, after an epoch",
        "parameters written by an overload of torch.ops, after an epoch",
        "parameters written by torch._foreach_mul_, after an epoch",
        "forward hook and pre-hook that compute",
        "head on features that a hook keeps",
        "hooks that write down what they see",
    ],
)
def test_training_does_not_notice_one_callback(name):
    """Slow cases of the matrix, with one callback in every run of the tests."""
    callback = fisher(also=(), every_n_train_steps=2)
    assert_identical(run(CASES[name].module), run(CASES[name].module, callback))
    assert all(math.isfinite(value) for _, value in callback.history["fisher/trace"])


@pytest.mark.parametrize("estimator", ["rademacher", "exact", "empirical"])
def test_training_does_not_notice_any_estimator(estimator):
    assert_identical(run(Busy), run(Busy, fisher(estimator=estimator, also=())))


def test_training_does_not_notice_a_reference_set_with_random_augmentation():
    assert_identical(run(Classifier), run(Classifier, fisher(reference=NoisyData())))


@pytest.mark.filterwarnings("ignore:.*failed and training goes on")
def test_training_does_not_notice_a_measurement_that_fails():
    def adapter(module, batch):
        outputs = module(batch[0])
        if len(module.losses) > 2:
            torch.rand(1)
            raise RuntimeError("in the middle")
        return outputs, batch[1]

    callback = fisher(adapter=adapter, on_error="warn")
    assert_identical(run(Busy), run(Busy, callback))
    assert any(math.isnan(value) for _, value in callback.history["fisher/trace"])


def test_a_closure_over_the_module_is_refused_or_harmless():
    try:
        disturbed = run(Closure, fisher(on_error="warn"))
    except MisconfigurationException:
        return
    assert_identical(run(Closure), disturbed)


def test_a_batch_edited_in_place_is_measured_as_a_batch_edited_out_of_place():
    in_place, out_of_place = fisher(), fisher()
    run(EditsBatch, in_place)
    run(EditsOwnCopy, out_of_place)
    for callback in (in_place, out_of_place):
        assert callback.history.pop("fisher/overhead")  # a matter of the clock
    assert in_place.history == out_of_place.history
