"""Every view of runs as they stand in logs."""

import json
import math

import pytest
from logs import LAYERS, STEPS, TRACE, run_log, values

from lightning_info.run_logs.groups import RunGroup, grouped
from lightning_info.run_logs.run_log import RunLog
from lightning_info.views.catalogue import VIEWS, plans
from lightning_info.views.panel import Contents

RUNS = [run_log(f"lr0.1/{seed}", seed) for seed in range(3)] + [
    run_log(f"lr0.2/{seed}", seed + 10) for seed in range(3)
]


def panels(runs, how=None):
    groups = grouped(runs, how)
    return {view: {n: plan.make(groups) for n, plan in of.items()} for view, of in plans(Contents.of(runs)).items()}


@pytest.mark.parametrize("how", [None, "lr[0-9.]+", "^"])
def test_every_panel_is_json_and_has_words(how):
    found = panels(RUNS, how)
    assert list(found) == list(VIEWS)
    for of in found.values():
        for panel in of.values():
            json.dumps(panel.to_json(), allow_nan=False)
            assert panel.words.what or panel.notes


def test_a_panel_reads_no_tag_but_those_of_its_plan():
    """The tab reads no other."""
    groups = grouped(RUNS, "lr[0-9.]+")
    for of in plans(Contents.of(RUNS)).values():
        for plan in of.values():
            few = [
                RunGroup(
                    group.name,
                    [
                        RunLog(
                            run.name,
                            {tag: curve for tag, curve in run.curves.items() if tag in {*plan.tags, "epoch"}},
                            run.descriptions,
                            run.texts if plan.with_texts else {},
                            run.settings,
                        )
                        for run in group.runs
                    ],
                )
                for group in groups
            ]
            assert plan.make(few).to_json() == plan.make(groups).to_json(), plan.name


def test_runs_without_our_tags_have_no_view():
    assert plans(Contents.of([RunLog("run", {"train_loss": [(0, 1.0)], "epoch": [(0, 0.0)]})])) == {}


def test_runs_that_have_no_value_anywhere():
    lost = {tag: [(step, math.nan) for step in STEPS] for tag in values()}
    for of in panels([RunLog("lost", lost)]).values():
        for panel in of.values():
            json.dumps(panel.to_json(), allow_nan=False)


def test_a_run_of_one_point_and_one_that_has_other_layers():
    short = RunLog("short", {tag: curve[:1] for tag, curve in values().items()})
    other = RunLog("other", {tag.replace("net.0", "conv"): curve for tag, curve in values().items()})
    panels([short, other, *RUNS])


def test_curves_have_the_words_of_the_run_and_the_loss_below():
    panel = panels(RUNS, "^")["curves"]["fisher/trace"]
    assert panel.words.what == "Trace of the Fisher information."
    assert panel.words.reading == "A rise: sharper. A fall: flatter."
    assert panel.words.caution == "Not to be trusted."
    assert panel.words.unit == "nats"
    names = {trace["name"] for trace in panel.figure["data"]}
    assert {"all runs", "train_loss", "val_accuracy"} <= names
    assert any("Student" in note for note in panel.notes)


def test_curves_in_one_range_come_before_those_in_bins_that_changed():
    curves = {f"{family}/I_XT/net.0": [(0, 1.0), (8, 2.0)] for family in ("info_plane", "info_plane_final", "fisher")}
    live = ["info_plane/I_XT/net.0", "fisher/I_XT/net.0"]
    whole = ["fisher/I_XT", "info_plane_final/I_XT", "info_plane/I_XT"]
    for tags, order in ((list(curves), whole), (live, ["fisher/I_XT", "info_plane/I_XT"])):
        run = RunLog("run", {tag: curves[tag] for tag in tags})
        assert list(plans(Contents.of([run]))["curves"]) == order


def test_a_run_that_says_nothing_has_the_words_of_the_quantity():
    silent = RunLog("old", values())
    panel = panels([silent])["curves"]["info_plane/I_XT"]
    assert panel.words.what.startswith("I(X;T): information")
    assert panel.words.unit == "bits"


def test_the_plane_takes_the_curves_of_one_range_if_there_are_some():
    curves = values()
    for layer in LAYERS:
        curves[f"info_plane_final/I_XT/{layer}"] = [(step, 1.0) for step in STEPS]
        curves[f"info_plane_final/I_TY/{layer}"] = [(step, 2.0) for step in STEPS]
    found = panels([RunLog("run", curves)])["planes"]
    assert list(found) == ["info_plane/I_TY"]
    trails = [t for t in found["info_plane/I_TY"].figure["data"] if t.get("showlegend") is False and len(t["x"]) == 4]
    assert [trail["x"] for trail in trails[: len(LAYERS)]] == [[1.0] * 4] * len(LAYERS)


def test_layers_at_the_ceiling_are_grey_and_said_to_be():
    panel = panels([run_log()])["planes"]["info_plane/I_TY"]
    grey = [trace["name"] for trace in panel.figure["data"] if "says nothing" in trace.get("name", "")]
    assert grey == ["net.0 (says nothing)"]
    assert any(note.startswith("Grey") for note in panel.notes)
    assert "log2 of the samples = 8" in str(panel.figure["layout"]["annotations"])


def test_a_plane_of_a_nuisance_is_drawn_beside_that_of_the_label():
    curves = values() | {f"info_plane_decoder/I_TN_angle/{layer}": [(0, 0.5), (30, 0.1)] for layer in LAYERS}
    found = panels([RunLog("run", curves)])["planes"]
    panel = found["info_plane_decoder/I_TN_angle"]
    assert panel.figure["layout"]["yaxis"]["title"]["text"].startswith("I(T;N) of angle")
    assert panel.figure["layout"]["xaxis"]["title"]["text"].startswith("I(X;T)")


def test_the_comparison_has_ends_with_errors_and_differences():
    table = panels(RUNS, "lr[0-9.]+")["comparison"]["fisher/trace"].table
    assert list(table.columns) == ["group", "runs", "end ± 95 % [nats]", "above the first group"]
    assert [row[:2] for row in table.rows] == [["lr0.1", "3"], ["lr0.2", "3"]]
    assert table.rows[0][2].startswith("26.0 ± 2.5")
    assert table.rows[1][3].startswith("+10.0 ± 2.3")


def test_what_the_run_printed_is_shown_and_else_the_table_of_its_curves():
    assert "does not compress" in dict(panels([run_log("a")])["verdicts"]["found"].texts)["a"]
    table = dict(panels([RunLog("b", values(), {"fisher/trace": TRACE})])["verdicts"]["found"].texts)["b"]
    assert "Fell 4-fold: flatter." in table
