"""Event files as they are found: whole, cut off, empty, growing."""

import math

import pytest
from logs import GUIDE, RESULT, STEPS, TRACE, values, write_run
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lightning_info.run_logs.provided import of_folders


def read(folder):
    return {run.name: run for run in of_folders({"": folder}).logs()}


def test_a_run_has_all_that_was_written(tmp_path):
    write_run(tmp_path / "a" / "b")
    run = read(tmp_path)["a/b"]
    assert run.curves.keys() == values().keys()
    for tag, curve in values().items():
        assert [step for step, _ in run.curves[tag]] == list(STEPS)
        assert [value for _, value in run.curves[tag]] == pytest.approx([value for _, value in curve], rel=1e-6)
    assert run.descriptions == {"fisher/trace": TRACE}
    assert set(run.texts.values()) == {GUIDE, RESULT}
    (picture,) = run.pictures
    assert (picture.tag, picture.step) == ("fisher/layers", 30)
    assert of_folders({"": tmp_path}).picture(picture.key).startswith(b"\x89PNG")


def test_layers_are_in_the_order_in_which_they_were_written_whatever_the_order_of_the_provider(tmp_path):
    layers = ["features.2", "features.10", "head", "classifier"]
    write_run(tmp_path / "run", curves={f"fisher_layers/{layer}": [(0, 1.0), (1, 2.0)] for layer in layers})
    provided = of_folders({"": tmp_path})
    listed = provided.provider.list_scalars

    def scrambled(*args, **options):
        return {run: dict(sorted(tags.items())) for run, tags in listed(*args, **options).items()}

    provided.provider.list_scalars = scrambled
    (run,) = provided.logs()
    assert [tag.partition("/")[2] for tag in run.curves] == layers


def test_more_points_than_tensorboard_keeps_are_all_read(tmp_path):
    write_run(tmp_path, curves={"fisher/trace": [(step, float(step)) for step in range(3000)]})
    assert len(read(tmp_path)["."].curves["fisher/trace"]) == 3000


def test_hyperparameters(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for summary in hparams({"lr": 0.5, "name": "a", "on": True, "width": 16}, {}):
            writer._get_file_writer().add_summary(summary)
        writer.add_scalar("fisher/trace", 1.0, 0)
    assert read(tmp_path)["run"].settings == {"lr": 0.5, "name": "a", "on": True, "width": 16}


def test_a_file_that_is_cut_off_gives_what_stands_before_the_cut(tmp_path):
    write_run(tmp_path / "run", curves={"fisher/trace": [(step, 1.0) for step in range(100)]})
    (file,) = (tmp_path / "run").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert 10 < len(read(tmp_path)["run"].curves["fisher/trace"]) < 90


def test_a_tag_that_has_a_description_and_no_value_yet_costs_the_others_nothing(tmp_path):
    write_run(tmp_path / "run")
    write_run(tmp_path / "begun", curves={"fisher/trace": [], "train_loss": [(0, 1.0)]})
    assert [name for name, run in read(tmp_path).items() if run.ours] == ["run"]


def test_files_of_nothing_and_of_something_else_are_passed_over(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "events.out.tfevents.1.a").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "events.out.tfevents.1.a").write_bytes(b"no event file" * 100)
    assert [name for name, run in read(tmp_path).items() if run.ours] == ["run"]


def test_a_run_that_goes_on_has_its_new_points(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        writer.add_scalar("fisher/trace", 1.0, 0)
        writer.flush()
        assert len(read(tmp_path)["run"].curves["fisher/trace"]) == 1
        writer.add_scalar("fisher/trace", math.nan, 1)
        writer.flush()
        assert [step for step, _ in read(tmp_path)["run"].curves["fisher/trace"]] == [0, 1]
