from __future__ import annotations

import math
import warnings

import pytest
import torch
from comparison.training import INDEX, REPLACEMENT, SAMPLES, lacking, module, reference, train
from matplotlib.figure import Figure
from models import CLASSES, FEATURES, Classifier
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import TensorDataset

from lightning_info import StabilityCallback
from lightning_info.comparison import compare_runs

STEPS = [0, 3, 6, 9, 12]
TAGS = {
    "param_distance", "relative_distance", "fisher_distance", "output_kl", "kl_ratio", "loss_gap", "unique_information",
}  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "batch_norm"])
def runs(request, tmp_path_factory):
    """Folders of two runs, and the history of a callback that followed the first."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"index": INDEX, "replacement": REPLACEMENT, "every_n_train_steps": 3, "reference": reference()}
    callback = StabilityCallback(**options, on_error="raise", beta=0.5, batch_norm="running")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Trainers on a small net
        train(folder / "a", callback, batch_norm=request.param)
        train(folder / "b", replaced=True, batch_norm=request.param)
    return folder / "a", folder / "b", callback, request.param


def compare(runs, **options):
    options = {"training_samples": SAMPLES, "beta": 0.5, "batch_size": 8, "replaced": lacking(), **options}
    return compare_runs(module(batch_norm=runs[3]), *runs[:2], reference(), **options)


@pytest.fixture(scope="module")
def found(runs):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r"compare_runs: (?!at step 12 the measured output KL is 1\.38)")
        return compare(runs)


def test_two_ordinary_runs_give_what_the_callback_logs_in_one(runs, found):
    assert {tag.removeprefix("stability/") for tag in found.history} == TAGS
    for tag, curve in found.history.items():
        expected = dict(runs[2].history[tag])
        assert [step for step, _ in curve] == (STEPS[1:] if tag == "stability/kl_ratio" else STEPS)
        for step, value in curve:
            assert value == pytest.approx(expected[step], rel=1e-6, abs=1e-12), (tag, step)
    assert found.history["stability/output_kl"][-1][1] > 1e-5


def test_the_figure_is_at_the_last_step_and_its_paths_are_the_weights(found):
    assert found.picture.paths.steps == STEPS
    assert isinstance(found.figure(), Figure)
    assert f"N = {SAMPLES}" in found.caption
    apart = (found.picture.paths.twin - found.picture.paths.run)[-1].norm().item()
    assert apart == pytest.approx(found.history["stability/param_distance"][-1][1], rel=1e-5)
    moved = found.picture.paths.run[-1].norm().item()
    relative = found.history["stability/relative_distance"][-1][1]
    assert relative == pytest.approx(apart / moved, rel=1e-5)


def test_neither_the_module_nor_random_numbers_are_touched(runs):
    model = module(batch_norm=runs[3])
    before, state = {name: p.clone() for name, p in model.state_dict().items()}, torch.get_rng_state()
    compare_runs(model, *runs[:2], reference(), training_samples=SAMPLES)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_paths_a_class_and_a_dataset_do_as_well(runs, found):
    if runs[3]:
        pytest.skip("the class is made without BatchNorm")
    paths = [[folder / "start.ckpt", *folder.glob("*=12.ckpt")] for folder in runs[:2]]
    options = {"training_samples": SAMPLES, "beta": 0.5, "batch_size": 8, "replaced": TensorDataset(*lacking())}
    few = compare_runs(Classifier, *paths, TensorDataset(*reference()), **options)
    for tag, curve in found.history.items():
        assert few.history[tag] == [point for point in curve if point[0] in (0, 12)]


def test_curves_and_figure_go_to_tensorboard(found, tmp_path):
    found.write(tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(found.history)
    for tag, curve in found.history.items():
        assert [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)] == curve
    assert [image.step for image in events.Images("stability/paths")] == [12]


def test_the_table_has_a_row_for_each_step(found):
    head, *rows = found.table().splitlines()
    assert head.split()[0] == "step"
    assert {f"stability/{name}" for name in TAGS} == set(head.split()[1:])
    assert [int(row.split()[0]) for row in rows] == STEPS


# ---- written checkpoints


def written(folder, weights: dict[int, nn.Module], name="run"):
    """One checkpoint for each step."""
    paths = []
    for step, model in weights.items():
        paths.append(folder / f"{name}{step}.ckpt")
        torch.save({"state_dict": model.state_dict(), "global_step": step}, paths[-1])
    return paths


class Regression(nn.Module):
    """No LightningModule; what it predicts is said by an adapter."""

    def __init__(self, seed: int = 0, features: int = FEATURES, dtype: torch.dtype = torch.float64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Linear(features, 2, dtype=dtype)


def gaussian(regression, batch):
    return regression.net(batch[0]), batch[1], "gaussian"


def samples(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(count, size, generator=generator, dtype=torch.float64) for size in (FEATURES, 2))


def compare_regressions(folder, ours, theirs, model=None, **options):
    options = {"adapter": gaussian, "training_samples": 200, **options}
    return compare_runs(
        model or Regression(), written(folder, ours), written(folder, theirs, "twin"), samples(), **options
    )


def test_of_a_linear_regression_everything_has_a_closed_form(tmp_path):
    """½ δᵀFδ = KL = ½ E‖δx‖², the unique information 2 N of it by 2 β; in double precision throughout."""
    start, ours, theirs = Regression(0), Regression(1), Regression(2)
    alone = tuple(part[3:5] for part in samples())
    model = Regression(dtype=torch.float32)
    found = compare_regressions(
        tmp_path, {0: start, 7: ours}, {0: start, 7: theirs}, model, beta=0.25, replaced=alone, num_samples=20
    )
    x = torch.cat([samples()[0][:20], torch.ones(20, 1).double()], 1)
    w0, w, twin = (torch.cat([m.net.weight, m.net.bias[:, None]], 1).detach() for m in (start, ours, theirs))
    distance = 0.5 * (x @ (twin - w).T).square().sum(1).mean().item()
    losses = [0.5 * (m.net(alone[0]) - alone[1]).square().sum(1).mean().item() for m in (theirs, ours)]
    expected = {
        "param_distance": (twin - w).norm().item(),
        "relative_distance": ((twin - w).norm() / (w - w0).norm()).item(),
        "fisher_distance": distance,
        "output_kl": distance,
        "loss_gap": losses[0] - losses[1],
        "unique_information": 200 * 2 * distance / (2 * 0.25),
    }
    assert found.history.pop("stability/kl_ratio") == [(7, pytest.approx(1, rel=1e-10))]
    assert {tag.removeprefix("stability/") for tag in found.history} == set(expected)
    for name, value in expected.items():
        (_, at_start), (_, at_end) = found.history[f"stability/{name}"]
        assert at_start == 0
        assert at_end == pytest.approx(value, rel=1e-10), name


def test_without_a_start_there_is_no_relative_distance_and_the_figure_begins_later(tmp_path):
    ours, theirs = {4: Regression(1), 8: Regression(2)}, {4: Regression(3), 8: Regression(4), 12: Regression(5)}
    with pytest.warns(UserWarning, match=r"of step 4: no relative_distance.*'global_step': 0"):
        found = compare_regressions(tmp_path, ours, theirs)
    assert "stability/relative_distance" not in found.history
    assert found.picture.paths.steps == [4, 8]


def test_a_single_common_step_has_numbers_and_no_figure(tmp_path):
    with pytest.warns(UserWarning, match="of step 4"):
        found = compare_regressions(tmp_path, {4: Regression(1)}, {4: Regression(2)})
    assert found.history["stability/param_distance"][0][1] > 0
    with pytest.raises(ValueError, match="have not moved"):
        found.figure()


def test_weights_that_are_not_finite_are_gaps(tmp_path):
    broken = Regression(2)
    broken.net.weight.data.fill_(torch.nan)
    with pytest.warns(UserWarning, match="no value at step 5"):
        found = compare_regressions(tmp_path, {0: Regression(1), 5: broken}, {0: Regression(1), 5: Regression(3)})
    assert math.isnan(found.history["stability/output_kl"][1][1])
    assert found.picture is None
    assert "not finite" in found.reason


def test_starts_that_differ_have_no_relative_distance_there(tmp_path):
    with pytest.warns(UserWarning, match="start from different weights"):
        found = compare_regressions(
            tmp_path, {0: Regression(1), 3: Regression(2)}, {0: Regression(3), 3: Regression(4)}
        )
    at_start, at_end = (value for _, value in found.history["stability/relative_distance"])
    assert math.isnan(at_start)
    assert at_end > 0


@pytest.mark.parametrize(
    ("options", "seed", "message"),
    [
        ({"training_samples": None}, 1, "N = 30, the number of reference"),
        ({}, 3, "start from different weights"),
    ],
)
def test_what_must_be_known_to_read_the_numbers_is_said(tmp_path, options, seed, message):
    with pytest.warns(UserWarning, match=message):
        compare_regressions(tmp_path, {0: Regression(1), 2: Regression(2)}, {0: Regression(seed)}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": None}, "adapter=lambda"),
        ({"beta": 0.0}, "beta must be a positive"),
        ({"num_samples": 0}, "num_samples must be a positive integer"),
        ({"training_samples": 0}, "training_samples must be a positive integer"),
        ({"replaced": torch.zeros(3)}, r"for example \(x, y\)"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        compare_regressions(tmp_path, {0: Regression(1)}, {0: Regression(1)}, **options)


def test_a_class_that_cannot_be_made_from_a_checkpoint_asks_for_an_instance(tmp_path):
    class Needy(Classifier):
        def __init__(self, width):
            super().__init__()

    paths = written(tmp_path, {0: Classifier()})
    with pytest.raises(ValueError, match=r"module=Needy\(\.\.\.\)"):
        compare_runs(Needy, paths, paths, (torch.zeros(4, FEATURES), torch.arange(4) % CLASSES))
