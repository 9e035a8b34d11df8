"""The plugin as TensorBoard calls it: over its own data provider, by WSGI."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from logs import LAYERS, STEPS, values, write_run
from werkzeug.test import Client

from lightning_info.run_logs.provided import of_folders
from lightning_info.tab.cache import CurveCache
from lightning_info.tab.plugin import InfoTab

EVIL = "<script>alert(1)</script>"


class Served:
    """A tab over a folder, and what it answers."""

    def __init__(self, folder):
        self.provider = of_folders({"": folder}).provider
        self.tab = InfoTab(SimpleNamespace(data_provider=self.provider))
        self.apps = self.tab.get_plugin_apps()

    def get(self, path, **query):
        return Client(self.apps[path]).get(path, query_string=query)

    def contents(self):
        return json.loads(self.get("/contents").text)

    def ask(self, body):
        return Client(self.apps["/panel"]).post("/panel", data=body if isinstance(body, bytes) else json.dumps(body))

    def panel(self, view, panel, groups):
        answer = self.ask({"view": view, "panel": panel, "groups": groups})
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        write_run(folder / "a" / f"seed{seed}", seed)
    write_run(folder / "of somebody else", curves={"loss": [(0, 1.0)]})
    return Served(folder)


def test_it_is_active_only_where_our_tags_are(served, tmp_path):
    assert served.tab.is_active()
    write_run(tmp_path / "run", curves={"train_loss": [(0, 1.0)], "val/accuracy": [(0, 1.0)]})
    other = Served(tmp_path)
    assert not other.tab.is_active()
    assert other.contents() == {"views": [], "runs": []}
    write_run(tmp_path / "late")
    other.provider._multiplexer.AddRunsFromDirectory(str(tmp_path))
    other.provider._multiplexer.Reload()
    assert other.tab.is_active()
    assert not InfoTab(SimpleNamespace(data_provider=None)).is_active()


def test_contents_are_the_runs_that_have_our_tags(served):
    found = served.contents()
    assert [run["name"] for run in found["runs"]] == ["a/seed0", "a/seed1"]
    assert [view["name"] for view in found["views"]] == [
        "curves", "planes", "heat_maps", "rates", "stability", "verdicts", "comparison",
    ]  # fmt: skip


def test_a_curve_is_that_of_the_run(served):
    panel = served.panel("curves", "fisher/trace", {"one": ["a/seed0"]})
    (curve,) = (trace for trace in panel["figure"]["data"] if trace["name"] == "one" and "customdata" in trace)
    assert curve["x"] == list(STEPS)
    assert curve["y"] == pytest.approx([value for _, value in values()["fisher/trace"]], rel=1e-5)


def test_every_panel_is_served(served):
    for view in served.contents()["views"]:
        for panel in view["panels"]:
            found = served.panel(view["name"], panel["name"], {"all": ["a/seed0", "a/seed1"]})
            assert found["title"]


def test_pictures_are_served_and_nothing_else_is(served):
    panel = served.panel("heat_maps", "pictures", {"all": ["a/seed0"]})
    ((title, key),) = panel["pictures"]
    assert title == "a/seed0: fisher/layers at step 30"
    answer = served.get("/picture", key=key)
    assert (answer.status_code, answer.mimetype) == (200, "image/png")
    assert answer.data.startswith(b"\x89PNG")
    for other in ("", "nonsense", "../../etc/passwd"):
        assert served.get("/picture", key=other).status_code in (400, 404)


def test_a_blob_that_is_no_picture_is_not_served(served, monkeypatch):
    monkeypatch.setattr(served.provider, "read_blob", lambda *_, **__: EVIL.encode())
    assert served.get("/picture", key="any").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        {"view": "curves"},
        {"view": "curves", "panel": "fisher/trace", "groups": []},
        {"view": "curves", "panel": "fisher/trace", "groups": {"a": [1]}},
        {"view": ["curves"], "panel": "fisher/trace", "groups": {}},
        b" " * ((1 << 20) + 1),
    ],
    ids=str,
)
def test_requests_of_another_form_are_refused(served, body):
    answer = served.ask(body)
    assert answer.status_code == 400
    assert answer.mimetype == "text/plain"


def test_what_is_not_there(served):
    assert served.ask({"view": "curves", "panel": EVIL, "groups": {}}).status_code == 404
    assert served.panel("curves", "fisher/trace", {"a": ["no such run"]})["notes"] == ["No run is chosen."]
    assert served.panel("curves", "fisher/trace", {})["notes"] == ["No run is chosen."]


def test_names_are_no_markup_in_any_answer(tmp_path):
    curves = {tag.replace("net.0", EVIL): curve for tag, curve in values().items()}
    write_run(tmp_path / "run", curves=curves)
    served = Served(tmp_path)
    for view in served.contents()["views"]:
        for panel in view["panels"]:
            answer = served.ask({"view": view["name"], "panel": panel["name"], "groups": {EVIL: ["run"]}})
            assert answer.mimetype == "application/json"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert EVIL not in json.dumps(json.loads(answer.text).get("figure"))


def test_only_the_tags_of_a_panel_are_read_and_few_points_of_each(served, monkeypatch):
    asked = []
    read = served.provider.read_scalars

    def watched(*args, **options):
        asked.append(options)
        return read(*args, **options)

    monkeypatch.setattr(served.provider, "read_scalars", watched)
    monkeypatch.setattr(served.tab, "_cache", CurveCache())  # other tests have asked for the same
    served.panel("heat_maps", "fisher_layers", {"all": ["a/seed0"]})
    (options,) = asked
    assert set(options["run_tag_filter"].tags) == {*(f"fisher_layers/{layer}" for layer in LAYERS), "epoch"}
    assert set(options["run_tag_filter"].runs) == {"a/seed0"}
    assert options["downsample"] <= 500


def test_its_files_are_served_with_their_types(served):
    for path, kind in {
        "/index.js": "text/javascript",
        "/panel.js": "text/javascript",
        "/style.css": "text/css",
        "/plotly.min.js": "text/javascript",
    }.items():
        answer = served.get(path)
        assert (answer.status_code, answer.mimetype) == (200, kind)
        assert answer.data
    assert served.tab.frontend_metadata().es_module_path in served.apps


def test_scripts_put_no_text_into_the_page_as_html(served):
    for path in served.apps:
        if path.endswith(".js") and "plotly" not in path:
            code = served.get(path).text
            assert not [
                word
                for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
                if word in code
            ]
            assert "http://" not in code
            assert "https://" not in code


def test_without_plotly_the_answer_says_what_to_type(served, monkeypatch):
    from lightning_info.tab import plotly_source

    plotly_source.plotly_source.cache_clear()
    plotly_source.plotly_packed.cache_clear()
    monkeypatch.setattr(plotly_source, "find_spec", lambda name: None)
    answer = served.get("/plotly.min.js")
    assert answer.status_code == 400
    assert "pip install 'lightning-info[tab]'" in answer.text


def test_tensorboard_does_not_wait_for_torch():
    code = (
        "import sys; import lightning_info.tab.plugin; from lightning_info.views.words import description; "
        "assert description('fisher/trace').unit; import lightning_info.quantities; "
        "heavy = {'torch', 'lightning', 'matplotlib', 'plotly', 'pandas'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_is_found_by_its_entry_point():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"]["tensorboard_plugins"].items()
    module, _, attribute = target.partition(":")
    assert getattr(import_module(module), attribute) is InfoTab
    assert name == InfoTab.plugin_name
