from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import nn

from lightning_info.checkpoints import CheckpointReader
from lightning_info.comparison.runs import matched as pairs_of


def matched(run, twin, weights_only):
    reader = CheckpointReader("compare_runs", weights_only)
    return pairs_of(reader.checkpoints("run", run), reader.checkpoints("twin", twin))


def load_weights(module, path, weights_only):
    CheckpointReader("measure", weights_only).load(module, path)


def saved(path, state=None, **more):
    torch.save({"state_dict": nn.Linear(3, 2).state_dict() if state is None else state, **more}, path)
    return path


def folder_of(path, *steps):
    path.mkdir()
    for step in steps:
        saved(path / f"step={step}.ckpt", global_step=step)
    return path


def test_pairs_are_those_of_one_step_in_order_whatever_the_files_are_called(tmp_path):
    run, twin = folder_of(tmp_path / "a", 30, 4, 100), folder_of(tmp_path / "b", 100, 7, 4)
    (twin / "step=4.ckpt").rename(twin / "last.ckpt")
    pairs = matched(run, [*twin.iterdir()], weights_only=True)
    assert list(pairs) == [4, 100]
    assert pairs[4] == (run / "step=4.ckpt", twin / "last.ckpt")
    (pair,) = matched(run / "step=4.ckpt", str(twin), weights_only=True).values()
    assert pair == pairs[4]


def test_no_common_step_lists_those_that_there_are(tmp_path):
    run, twin = folder_of(tmp_path / "a", *range(10, 17)), folder_of(tmp_path / "b", 5)
    with pytest.raises(ValueError, match=r"run has 10, 11, 12, 13, 14, and 2 more, twin has 5; .*every_n_train_steps"):
        matched(run, twin, weights_only=True)


def test_what_is_no_checkpoint_says_what_to_give(tmp_path):
    good = saved(tmp_path / "good.ckpt", global_step=1)
    bare, empty, text = tmp_path / "bare.ckpt", tmp_path / "empty.ckpt", tmp_path / "text.ckpt"
    torch.save({"state_dict": nn.Linear(3, 2).state_dict()}, bare)
    torch.save({"state_dict": {}}, empty)
    text.write_text("no checkpoint")
    folder = folder_of(tmp_path / "empty")
    for path, message in (
        (bare, "no 'global_step'.*step=100.pt.*torch.save"),
        (empty, "no 'state_dict'.*save_checkpoint"),
        (text, "weights_only=False|cannot be read"),
        (folder, r"no file \*.ckpt"),
    ):
        with pytest.raises(ValueError, match=message):
            matched(path, good, weights_only=True)
    with pytest.raises(ValueError, match="consolidate_checkpoint"):
        matched([folder], good, weights_only=True)
    with pytest.raises(FileNotFoundError):
        matched(tmp_path / "none.ckpt", good, weights_only=True)


def test_code_in_a_checkpoint_runs_only_where_it_is_allowed(tmp_path):
    path = saved(tmp_path / "a.ckpt", global_step=1, hyper_parameters=Namespace(width=3))
    with pytest.raises(ValueError, match="weights_only=False"):
        matched(path, path, weights_only=True)
    assert list(matched(path, path, weights_only=False)) == [1]


def test_weights_and_buffers_are_taken_up(tmp_path):
    source, target = (
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
    )
    source(torch.randn(8, 3))
    load_weights(target, saved(tmp_path / "a.ckpt", source.state_dict(), global_step=1), weights_only=True)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


@pytest.mark.parametrize(("stored", "kept"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_double_precision_stays_and_half_becomes_single(tmp_path, stored, kept):
    source, target = nn.Linear(3, 2).to(stored), nn.Linear(3, 2)
    load_weights(target, saved(tmp_path / "a.ckpt", source.state_dict(), global_step=1), weights_only=True)
    assert target.weight.dtype == kept
    assert torch.equal(target.weight, source.weight.to(kept))


def test_weights_of_another_module_are_refused_with_what_differs(tmp_path):
    other = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(4, 2)})
    state = nn.ModuleDict({"b": nn.Linear(5, 2), "c": nn.Linear(1, 1)}).state_dict()
    path = saved(tmp_path / "a.ckpt", state, global_step=1)
    with pytest.raises(ValueError, match="does not fit ModuleDict") as refusal:
        load_weights(other, path, weights_only=True)
    for part in ("'a.weight' is missing", "'c.weight' is not in", "'b.weight' is (2, 5), in the module (2, 4)", "path"):
        assert part.replace("path", str(path)) in str(refusal.value)


def test_a_pattern_names_files_and_their_names_tell_the_steps(tmp_path):
    for name in ("step=20.pt", "checkpoint-3.pt", "epoch=1-step=100.pt"):
        torch.save(nn.Linear(3, 2).state_dict(), tmp_path / name)
    found = CheckpointReader("measure", True).checkpoints("checkpoints", str(tmp_path / "*.pt"))
    assert [one.step for one in found] == [3, 20, 100]


def test_two_checkpoints_of_one_step_are_refused(tmp_path):
    saved(tmp_path / "a.ckpt", global_step=3)
    saved(tmp_path / "b.ckpt", global_step=3)
    with pytest.raises(ValueError, match="are both of step 3"):
        CheckpointReader("measure", True).checkpoints("checkpoints", tmp_path)


@pytest.mark.parametrize("head", ["net.", "module.", "_orig_mod."])
def test_a_part_of_what_was_saved_takes_its_weights(tmp_path, head):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    state = {f"{head}{name}": value for name, value in source.state_dict().items()} | {"other": torch.zeros(1)}
    load_weights(target, saved(tmp_path / "a.ckpt", state, global_step=1), weights_only=True)
    assert torch.equal(target.weight, source.weight)
