"""Information in the unit that the user wants: every value, chart, table and figure of it."""

import json
import math

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from models import Classifier, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_info import EffectiveInfoCallback, FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback
from lightning_info.functional.units import in_unit

OPTIONS = {"num_samples": 16, "every_n_epochs": 1, "on_error": "raise"}
CALLBACKS = {
    InfoPlaneCallback: ({}, "bits"),
    EffectiveInfoCallback: ({"draws": 4}, "nats"),
    WeightInfoCallback: ({}, "nats"),
    FisherTraceCallback: ({}, "nats"),
}


def fitted(kind, **options):
    callback = kind(**OPTIONS, **CALLBACKS[kind][0], **options)
    torch.manual_seed(0)
    trainer(callback, max_epochs=2).fit(Classifier(), loader())
    return callback


@pytest.mark.parametrize("kind", CALLBACKS)
def test_every_information_is_multiplied_and_nothing_else(kind, capsys):
    native = CALLBACKS[kind][1]
    other = {"bits": "nats", "nats": "bits"}[native]
    factor = math.log(2) if other == "nats" else 1 / math.log(2)
    plain, same, changed = fitted(kind), fitted(kind, unit=native), fitted(kind, unit=other)
    assert f"[{other}" in capsys.readouterr().out or kind is FisherTraceCallback  # which has none in its table
    assert plain.history.keys() == same.history.keys() == changed.history.keys()
    information = 0
    for tag, curve in plain.history.items():
        if tag.endswith("/overhead"):
            continue
        known = plain.describe(tag)
        assert known is not None, tag
        is_information = known.unit in ("bits", "nats", "nats/sample")
        information += is_information
        by = factor if is_information else 1.0
        assert [s for s, _ in curve] == [s for s, _ in changed.history[tag]]
        assert [v for _, v in same.history[tag]] == pytest.approx([v for _, v in curve], rel=0, abs=0, nan_ok=True)
        assert [v for _, v in changed.history[tag]] == pytest.approx([v * by for _, v in curve], rel=1e-12, nan_ok=True)
        assert changed.describe(tag).unit == (known.unit.replace(native, other) if is_information else known.unit)
    assert information or kind is FisherTraceCallback


def test_figure_charts_and_verdicts_say_it(tmp_path):
    callback = InfoPlaneCallback(unit="nats", **OPTIONS)
    trainer(callback, max_epochs=2, logger=TensorBoardLogger(tmp_path)).fit(Classifier(), loader())
    axes = callback.plot("info_plane/plane").axes[0]
    assert axes.get_xlabel() == "I(X;T) [nats]"
    drawn = max(x for line in axes.collections for x in line.get_offsets()[:, 0] if math.isfinite(x))
    assert drawn <= math.log(16) * 1.001  # a ceiling of log2 16 = 4 bits
    assert all("[nats]" in title for title in callback.charts())
    callback.save(tmp_path / "all.json")
    saved = json.loads((tmp_path / "all.json").read_text())
    assert all(verdict["unit"] == "nats" for verdict in saved["verdicts"].values())
    units = {row["tag"]: row["unit"] for row in saved["curves"]}
    assert {unit for tag, unit in units.items() if "/I_" in tag} == {"nats"}
    events = EventAccumulator(str(next(tmp_path.glob("**/events*")).parent)).Reload()
    tag = next(tag for tag in callback.tags if "/I_XT/" in tag)
    assert [e.value for e in events.Scalars(tag)] == pytest.approx([v for _, v in callback.history[tag]])
    assert "[nats]" in events.summary_metadata[tag].summary_description


def test_a_unit_is_given_once_for_all():
    first, second = InfoPlaneCallback(**OPTIONS), WeightInfoCallback(unit="bits", **OPTIONS)
    other = EffectiveInfoCallback(unit="nats", draws=4, **OPTIONS)
    trainer(first, second, other, max_epochs=1).fit(Classifier(), loader())
    assert (first.unit, second.unit, other.unit) == ("bits", "bits", "nats")
    assert second.describe("weight_info/kl").unit == "bits"
    trainer(first, max_epochs=1).fit(Classifier(), loader())
    assert first.unit is None


def test_another_unit_is_another_curve(tmp_path):
    first = trainer(InfoPlaneCallback(**OPTIONS), max_epochs=1)
    first.fit(Classifier(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    callback = InfoPlaneCallback(unit="nats", **OPTIONS)
    with pytest.warns(UserWarning, match="unit"):
        trainer(callback, max_epochs=2).fit(Classifier(), loader(), ckpt_path=tmp_path / "half.ckpt")
    assert min(step for curve in callback.history.values() for step, _ in curve) > 0


def test_a_wrong_unit():
    with pytest.raises(ValueError, match="'bits', 'nats'"):
        InfoPlaneCallback(unit="bit")


def test_units_that_are_no_information_stay():
    assert in_unit("nats/weight²", "bits") == ("nats/weight²", 1.0)
    assert in_unit("nats/sample", "bits") == ("bits/sample", pytest.approx(1 / math.log(2)))
    assert in_unit("bits", "bits") == ("bits", 1.0)
    assert in_unit("", "bits") == ("", 1.0)
