"""What a callback gives when training has ended: with no logger, in a notebook, to a program."""

import csv
import json
import math

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from models import Classifier, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEvents

from lightning_info import EffectiveInfoCallback, FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback

OPTIONS = {"num_samples": 16, "every_n_epochs": 1, "on_error": "raise"}


def fit(*callbacks, **options):
    trainer(*callbacks, max_epochs=2, **options).fit(Classifier(), loader())


@pytest.fixture(scope="module")
def plane():
    callback = InfoPlaneCallback(summary=False, **OPTIONS)
    fit(callback)
    return callback


def test_nothing_measured_yet():
    callback = FisherTraceCallback()
    assert repr(callback) == "FisherTraceCallback: nothing measured yet"
    assert callback._repr_html_() == f"<b>{callback!r}</b>"
    with pytest.raises(KeyError, match="nothing yet"):
        callback.plot("fisher/trace")


def test_the_last_value_with_its_error():
    callback = FisherTraceCallback(summary=False, prefix="mine", **OPTIONS)
    fit(callback)
    step, value = callback.history["mine/fisher/trace"][-1]
    error = callback.history["mine/fisher/trace_stderr"][-1][1]
    assert repr(callback) == f"FisherTraceCallback: mine/fisher/trace = {value:.4g} ± {error:.2g} at step {step}"
    assert callback.closing_table().splitlines()[1].split()[0] == "mine/fisher/trace"


def test_a_data_frame(plane):
    pytest.importorskip("pandas")
    frame = plane.to_pandas()
    assert list(frame.columns) == ["tag", "step", "value", "stderr"]
    tag = plane.tags[0]
    assert list(zip(*(frame[frame.tag == tag][name] for name in ("step", "value")), strict=True)) == plane.history[tag]


def test_figures_of_tags_of_layers_and_its_own(plane):
    default = plane.plot()
    assert isinstance(default, Figure)
    assert default.axes[0].get_xlabel() == plane.plot("info_plane/plane").axes[0].get_xlabel() == "I(X;T) [bits]"
    (axes,) = plane.plot("info_plane/I_XT").axes
    layers = [tag.split("/")[2] for tag in plane.tags if tag.startswith("info_plane/I_XT/")]
    assert [line.get_label() for line in axes.lines] == layers
    first = dict(plane.history[f"info_plane/I_XT/{layers[0]}"])
    assert dict(zip(*axes.lines[0].get_data(), strict=True)) == pytest.approx(first)
    with pytest.raises(KeyError, match=r"no tag 'fisher/trace'; there are info_plane/plane, info_plane/I_XT"):
        plane.plot("fisher/trace")


def test_a_notebook_shows_table_and_figure(plane):
    shown = plane._repr_html_()
    assert "info_plane_final/I_XT [bits]" in shown
    assert 'src="data:image/png;base64,' in shown


def test_files_hold_every_value_and_what_it_means(plane, tmp_path):
    plane.save(tmp_path / "plane.csv")
    rows = list(csv.DictReader((tmp_path / "plane.csv").open()))
    tag = plane.tags[0]
    assert [(int(row["step"]), float(row["value"])) for row in rows if row["tag"] == tag] == plane.history[tag]
    plane.save(tmp_path / "plane.json")
    whole = json.loads((tmp_path / "plane.json").read_text())
    assert {curve["tag"] for curve in whole["curves"]} == set(plane.history)
    (curve,) = (curve for curve in whole["curves"] if curve["tag"] == tag)
    assert [(point["step"], point["value"]) for point in curve["points"]] == plane.history[tag]
    assert curve["unit"] == "bits"
    assert curve["meaning"].startswith("I(X;T)")
    assert whole["verdicts"].keys() == plane.verdicts.keys()
    assert whole["report"] == plane.report()
    with pytest.raises(ValueError, match=r"must end in \.csv or \.json"):
        plane.save(tmp_path / "plane.xlsx")


def test_a_value_that_is_not_finite_is_null_in_json(tmp_path):
    callback = FisherTraceCallback(summary=False, **OPTIONS)
    fit(callback)
    callback.history["fisher/trace"].append((99, math.nan))
    callback.save(tmp_path / "fisher.json")
    curves = {curve["tag"]: curve for curve in json.loads((tmp_path / "fisher.json").read_text())["curves"]}
    assert curves["fisher/trace"]["points"][-1] == {"step": 99, "value": None, "stderr": None}


def test_tensorboard_explains_every_tag_and_shows_what_was_found(tmp_path):
    callbacks = [
        FisherTraceCallback(per_layer=True, **OPTIONS),
        InfoPlaneCallback(**OPTIONS),
        WeightInfoCallback(prefix="mine", **OPTIONS),
        EffectiveInfoCallback(draws=4, **OPTIONS),
    ]
    fit(*callbacks, logger=TensorBoardLogger(str(tmp_path), prefix="run"))
    (folder,) = tmp_path.glob("*/version_0")
    plain = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    whole = PluginEvents(str(folder)).Reload()
    logged = {f"run-{tag}" for callback in callbacks for tag in callback.history if callback._is_logged(tag)}
    assert logged <= set(plain.Tags()["scalars"])
    for tag in logged:
        metadata = whole.SummaryMetadata(tag)
        assert metadata.plugin_data.plugin_name == "scalars"
        assert len(metadata.summary_description) > 20, tag
    for callback in callbacks:  # an explanation is no value
        for tag, curve in callback.history.items():
            if f"run-{tag}" in logged:
                assert [event.step for event in plain.Scalars(f"run-{tag}")] == [step for step, _ in curve]
    shown = {tag: data for tag, data in whole.AllSummaryMetadata().items() if not tag.startswith("lightning_info/")}
    for plugin in ("histograms", "images"):
        tags = [tag for tag, data in shown.items() if data.plugin_data.plugin_name == plugin]
        assert len(tags) >= 2
        assert all(shown[tag].summary_description for tag in tags)
    guide, result = (
        whole.Tensors(f"lightning_info/{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("how_to_read", "result")
    )
    assert "### FisherTraceCallback" in guide
    assert "`mine/weight_info/kl_precision`: The part of the information" in guide
    assert "fisher/trace" in result
    assert "info_plane_final/I_XT [bits]" in result
