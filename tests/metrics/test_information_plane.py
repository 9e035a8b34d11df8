"""The metric against the functions on all samples at once, over batches and over two processes."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import distributed, multiprocessing

from lightning_info.functional import binned_information, gaussian_information, mixture_information
from lightning_info.metrics import InformationPlane

T, Y = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4
WAYS = {
    "adaptive": ({"bins": 4}, lambda t, y: binned_information(t, y, 4)),
    "fixed": ({"bin_range": "fixed"}, lambda t, y: binned_information(t, y, 30, "fixed")),
    "range": ({"bins": 5, "bin_range": (-2.0, 3.0)}, lambda t, y: binned_information(t, y, 5, (-2.0, 3.0))),
    "nats": ({"unit": "nats"}, lambda t, y: binned_information(t, y, unit="nats")),
    "gaussian": (
        {"estimator": "gaussian", "noise_variance": 0.3},
        lambda t, y: gaussian_information(t, y, 0.3),
    ),
    "mixture": (
        {"estimator": "mixture", "noise_variance": 0.3, "seed": 5},
        lambda t, y: mixture_information(t, y, 0.3, generator=torch.Generator().manual_seed(5))[:2],
    ),
}


def update(metric, t, y, batch_size):
    for start in range(0, len(t), batch_size):
        part = slice(start, start + batch_size)
        metric.update(t[part], None if y is None else y[part])
    return metric


def values(metric):
    found = metric.compute()
    assert list(found) == ["I_XT", "I_TY"]
    return [value.item() for value in found.values()]


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("batch_size", [7, 60])
def test_it_is_the_function_of_all_samples(way, batch_size):
    options, function = WAYS[way]
    metric = update(InformationPlane(**options), T, Y, batch_size)
    assert values(metric) == pytest.approx(list(function(T, Y)), abs=1e-12)
    metric.reset()
    assert values(update(metric, T[:30], None, batch_size)) == pytest.approx(list(function(T[:30], None)), nan_ok=True)


def test_continuous_targets_and_single_units():
    metric = InformationPlane("gaussian", noise_variance=0.3)
    assert values(update(metric, T[:, 0], T[:, 1:], 20)) == list(gaussian_information(T[:, 0], T[:, 1:], 0.3))


def test_known_bins_keep_one_integer_for_a_sample():
    for bin_range in ("fixed", (-3.0, 3.0)):
        (kept,) = update(InformationPlane(bin_range=bin_range), T, Y, 60).seen
        assert (kept.shape, kept.dtype) == ((60,), torch.int64)


def test_without_samples_it_is_nan():
    with pytest.warns(UserWarning, match="called before"):
        assert all(math.isnan(value) for value in values(InformationPlane()))


def test_nothing_global_changes_and_nothing_is_differentiated():
    state, t = torch.get_rng_state(), T.clone().requires_grad_()
    metric = update(InformationPlane("mixture", noise_variance=0.1), t, Y, 20)
    metric.compute()
    assert torch.equal(state, torch.get_rng_state())
    assert not metric.seen[0].requires_grad


def test_it_pickles_and_clones():
    metric = update(InformationPlane(), T, Y, 20)
    for other in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert values(other) == values(metric)


def work(rank, folder, parts):
    """Every way with the samples of one process, and without labels."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for way, (options, _) in WAYS.items():
        found[way] = values(update(InformationPlane(**options), T[parts[rank]], Y[parts[rank]], 7))
        found[f"{way} alone"] = values(update(InformationPlane(**options), T[parts[rank]], None, 7))
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_values_of_one(tmp_path):
    parts = [slice(0, 38), slice(38, 60)]  # of unequal numbers of batches, the last ones incomplete
    multiprocessing.start_processes(work, (tmp_path, parts), nprocs=2, start_method="fork")
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for way, (_, function) in WAYS.items():
        for name, y in ((way, Y), (f"{way} alone", None)):
            truth = list(function(T, y))
            for found in both:
                assert found[name] == pytest.approx(truth, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InformationPlane("kde"), "unknown estimator 'kde'; choose one of 'binning', 'mixture', 'gaussian'"),
        (lambda: InformationPlane("mixture"), "noise_variance=0.01"),
        (lambda: InformationPlane("gaussian", noise_variance=0.0), "noise_variance=0.01"),
        (lambda: InformationPlane(bins=0), "bins=0"),
        (lambda: InformationPlane(bin_range="global"), "pass its ends"),
        (lambda: InformationPlane(bin_range=(2.0, 1.0)), "expected low < high"),
        (lambda: InformationPlane(unit="bit"), "'bits' or 'nats'"),
        (lambda: InformationPlane().update(T[None]), "expected"),
        (lambda: InformationPlane().update(T, Y[1:]), r"y of shape \(59,\): expected N = 60 rows"),
        (lambda: InformationPlane(bin_range="fixed").update(T / 0), "not finite"),
        (lambda: update(InformationPlane(), T, Y, 30).update(T), "with each of them or with none"),
        (lambda: update(InformationPlane(), T, None, 30).update(T, Y), "with each of them or with none"),
        (lambda: update(InformationPlane(), T, Y.float(), 60).compute(), "expected classes"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("bin_range", ["fixed", "adaptive"])
def test_batches_of_another_layer_are_refused_and_leave_nothing(bin_range):
    plane = update(InformationPlane(bin_range=bin_range, compute_with_cache=False), T, Y, 30)
    expected = plane.compute()
    with pytest.raises(ValueError, match="take one metric for each layer"):
        plane.update(T[:, :1], Y)
    assert plane.compute() == expected
    plane.reset()
    plane.update(T[:, :1], Y)


def test_batches_of_another_layer_are_refused_where_each_batch_is_evaluated_too():
    plane = InformationPlane(bin_range="fixed")
    plane(T, Y)
    plane(T[:, :1], Y)
    with pytest.raises(ValueError, match="take one metric for each layer"):
        plane.compute()
