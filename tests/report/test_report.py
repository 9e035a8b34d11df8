"""The report: one page with the numbers of the runs, that asks nothing of a network."""

import base64
import gzip
import json
import re
from dataclasses import replace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from logs import run_log, values, write_csv, write_run
from models import Classifier, loader, trainer

from lightning_info import FisherTraceCallback, InfoPlaneCallback
from lightning_info.__main__ import main
from lightning_info.report import page as page_module
from lightning_info.report.page import page
from lightning_info.report.reading import read_runs
from lightning_info.run_logs.groups import grouped

EVIL = "</script><script>alert(1)</script>"


def held(text, name="report"):
    """What a page holds packed."""
    (found,) = re.findall(rf'<script type="text/plain" id="{name}">([^<]*)</script>', text)
    return gzip.decompress(base64.b64decode(found)).decode()


def report(text):
    return json.loads(held(text))


def panels(text, view):
    (found,) = (one["panels"] for one in report(text)["views"] if one["title"] == view)
    return {panel["title"]: panel for panel in found}


def drawn(panel, name):
    (trace,) = (t for t in panel["figure"]["data"] if t["name"] == name and "customdata" in t)
    return dict(zip(trace["x"], trace["y"], strict=True))


@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
def test_a_real_run_has_the_numbers_of_its_history(logger, tmp_path):
    options = {"num_samples": 16, "every_n_epochs": 1, "summary": False}
    fisher = FisherTraceCallback(per_layer=True, **options)
    log = logger(tmp_path, name="net", version="a")
    trainer(fisher, InfoPlaneCallback(**options), max_epochs=2, logger=log).fit(Classifier(), loader())
    main(["report", str(tmp_path), "--out", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json")])
    curve = panels((tmp_path / "r.html").read_text(), "Curves")["fisher/trace"]
    assert drawn(curve, "net/a") == pytest.approx(dict(fisher.history["fisher/trace"]), rel=1e-5)
    (run,) = json.loads((tmp_path / "r.json").read_text())["runs"]
    curves = {one["tag"]: one for one in run["curves"]}
    for tag in ("fisher/trace", *(tag for tag in fisher.history if tag.startswith("fisher_layers/"))):
        points = {point["step"]: point["value"] for point in curves[tag]["points"]}
        assert points == pytest.approx(dict(fisher.history[tag]), rel=1e-6)
    errors = {point["step"]: point["stderr"] for point in curves["fisher/trace"]["points"]}
    assert errors == pytest.approx(dict(fisher.history["fisher/trace_stderr"]), rel=1e-6)
    assert "fisher/trace" in run["verdicts"]


def test_nothing_is_loaded_and_only_its_own_scripts_run(tmp_path):
    text = page(grouped([run_log()]), "a title")
    outside = re.sub(r'<script type="text/plain"[^>]*>[^<]*</script>', "", text)
    assert not re.findall(r"(?:src|href)=|url\(|@import|https?://", outside)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = policy.partition("script-src")[2].partition(";")[0]
    assert "unsafe" not in scripts
    (code,) = re.findall(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    assert f"'sha256-{page_module._digest(code)}'" in scripts
    assert f"'sha256-{page_module._digest(held(text, 'plotly'))}'" in scripts


def test_names_end_no_element(tmp_path):
    run = run_log(EVIL)
    curves = {tag.replace("net.0", EVIL): curve for tag, curve in run.curves.items()}
    text = page(grouped([type(run)(EVIL, curves, run.descriptions, run.texts, {EVIL: EVIL})]), EVIL)
    assert EVIL not in text
    assert "alert(1)" not in re.sub(r"<title>.*?</title>", "", text)
    assert EVIL in held(text)


def test_seeds_are_a_mean_with_its_band_in_page_and_json(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "runs" / f"seed{seed}", seed)
    main(
        [
            "report",
            str(tmp_path / "runs"),
            "--group",
            "^",
            "--out",
            str(tmp_path / "r.html"),
            "--json",
            str(tmp_path / "r.json"),
        ]
    )
    curve = drawn(panels((tmp_path / "r.html").read_text(), "Curves")["fisher/trace"], "all runs")
    assert curve == pytest.approx({step: value + 1 for step, value in values()["fisher/trace"]}, rel=1e-5)
    whole = json.loads((tmp_path / "r.json").read_text())
    (group,) = whole["groups"]
    (end,) = (one for one in group["ends"] if one["tag"] == "fisher/trace")
    assert end == {
        "tag": "fisher/trace",
        "mean": pytest.approx(26.0),
        "half_band": pytest.approx(2.484, rel=1e-3),
        "runs": 3,
    }
    assert whole["differences"] == []
    assert whole["versions"]["torch"]


def test_settings_and_versions_are_in_the_page():
    found = panels(page(grouped([run_log("a", 1), run_log("b", 2)]), "t"), "Runs")
    runs, about = found["Runs and settings"], dict(found["About this report"]["texts"])
    assert runs["table"]["columns"] == ["run", "group", "lr", "seed"]
    assert runs["table"]["rows"] == [["a", "a", "0.1", "1"], ["b", "b", "0.1", "2"]]
    assert "\ntorch " in about["Written with"]
    assert "Achille" in about["To cite"]


def test_the_users_settings_come_before_those_of_the_measurement():
    of_callbacks = {f"with/FisherTraceCallback/{i}": i for i in range(20)}
    run = replace(run_log(), settings={**of_callbacks, "lr": 0.1})
    columns = panels(page(grouped([run]), "t"), "Runs")["Runs and settings"]["table"]["columns"]
    assert columns[2:4] == ["lr", "with/FisherTraceCallback/0"]


def test_pictures_that_do_not_fit_are_left_out_with_a_word(tmp_path, monkeypatch):
    write_run(tmp_path)
    logs, provided = read_runs([tmp_path])
    whole = page(grouped(logs), "t", provided.picture)
    assert len(whole) < page_module.LARGEST
    assert panels(whole, "By module")["As the runs drew it"]["pictures"][0][1].startswith("data:image/png;base64,")
    monkeypatch.setattr(page_module, "LARGEST", 1_000_000)
    panel = panels(page(grouped(logs), "t", provided.picture), "By module")["As the runs drew it"]
    assert panel["pictures"] == []
    assert any("1 pictures are left out" in note for note in panel["notes"])


def test_names_of_several_folders_keep_them_apart(tmp_path):
    for name in ("x/run", "y/run"):
        write_csv(tmp_path / name)
    write_run(tmp_path / "z" / "run" / "inner")
    logs, _ = read_runs([tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z" / "run"])
    assert [run.name for run in logs] == ["x/run", "y/run", "z/run/inner"]


def test_a_run_in_both_forms_is_one_run(tmp_path):
    write_csv(tmp_path / "run")
    write_run(tmp_path / "run")
    logs, _ = read_runs([tmp_path])
    assert [(run.name, bool(run.texts)) for run in logs] == [("run", True)]


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_figures_for_print(suffix, tmp_path):
    write_csv(tmp_path / "runs" / "seed0", 0)
    write_csv(tmp_path / "runs" / "seed1", 1)
    main(["report", str(tmp_path / "runs"), "--group", "^", "--figures", str(tmp_path / "out"), "--format", suffix])
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {
        f"fisher_trace.{suffix}",
        f"fisher_layers_map_all_runs.{suffix}",
        f"info_plane_plane_all_runs.{suffix}",
    } <= names
    begins = {"svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert all(file.read_bytes().startswith(begins) for file in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere", "--out", "r.html"], "is no folder"),
        (["{}/empty", "--out", "r.html"], "there is no run"),
        (["{}/other", "--out", "r.html"], "1 runs, none with values of lightning_info"),
        (["{}/run", "--out", "r.txt"], "must end in .html"),
        (["{}/run", "--out", "r.html", "--group", "("], "is no regular expression"),
        (["{}/run", "{}/run", "--out", "r.html"], "is given twice"),
    ],
)
def test_what_cannot_be_reported_is_told_in_a_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "other", curves={"loss": [(0, 1.0)]})
    write_csv(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        main(["report", *(one.format(tmp_path) for one in arguments)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_with_nothing_asked_for_the_tables_are_printed(tmp_path, capsys):
    write_csv(tmp_path / "run")
    main(["report", str(tmp_path)])
    assert "Fell 4-fold: predictions depend less on" in " ".join(capsys.readouterr().out.split())


def test_a_callback_saves_a_page_of_its_own(tmp_path):
    callback = InfoPlaneCallback(num_samples=16, every_n_epochs=1, summary=False)
    trainer(callback, max_epochs=2).fit(Classifier(), loader())
    callback.save(tmp_path / "plane.html")
    text = (tmp_path / "plane.html").read_text()
    (curve,) = (t for t in panels(text, "Curves")["info_plane/I_XT"]["figure"]["data"] if "customdata" in t)
    (tag,) = (tag for tag in callback.tags if tag.startswith("info_plane/I_XT/"))
    assert dict(zip(curve["x"], curve["y"], strict=True)) == pytest.approx(dict(callback.history[tag]), rel=1e-5)
    assert curve["meta"]["epochs"] == [0.0, 1.0, 2.0]
    (shown,) = panels(text, "Verdicts")["What the runs found"]["texts"]
    assert "info_plane_final/I_XT" in shown[1]
    assert [title for title, _ in panels(text, "Figures")["Figures of the callback"]["pictures"]] == [
        "info_plane/plane"
    ]
