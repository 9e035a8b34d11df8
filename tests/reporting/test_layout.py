from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from models import Classifier, loader, trainer
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
from torch.utils.tensorboard.summary import custom_scalars

from lightning_info import FisherTraceCallback
from lightning_info.reporting.layout import write_layout


def test_two_callbacks_share_one_layout_with_their_bands(tmp_path):
    callbacks = [FisherTraceCallback(on_error="raise", prefix=prefix, summary=False) for prefix in (None, "other")]
    logger = TensorBoardLogger(tmp_path)
    trainer(*callbacks, max_epochs=1, logger=logger).fit(Classifier(), loader())
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    (written,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(written.tensor_proto.string_val[0])
    series = [chart.margin.series[0] for chart in layout.category[0].chart if chart.margin.series]
    assert [(s.value, s.lower, s.upper) for s in series] == [
        tuple(f"{head}fisher/trace{tail}" for tail in ("", "_low", "_high")) for head in ("", "other/")
    ]
    assert {s.value for s in series} <= set(events.Tags()["scalars"])


def test_a_logger_that_fails_does_not_keep_the_layout_from_the_next():
    error = ConnectionError("server gone")
    failing, good = (SimpleNamespace(experiment=SimpleNamespace(add_custom_scalars=Mock())) for _ in range(2))
    failing.experiment.add_custom_scalars.side_effect = error
    loggers = [failing, SimpleNamespace(experiment=None), good]
    trainer = SimpleNamespace(loggers=loggers, is_global_zero=True)
    assert write_layout(trainer, {"title": ("Margin", ("a", "b", "c"))}) == [error]
    layout = {"lightning_info": {"title": ["Margin", ["a", "b", "c"]]}}
    assert good.experiment.add_custom_scalars.mock_calls == [call(layout)]


TAGS = [
    f"info_plane/I_XT/{layer}" for layer in ("net.0:1", "net.0:10", "net.0", "net_0:1", "a+b (c)", "net.1", "net.11")
]


@pytest.mark.parametrize("tags", [TAGS[:1], TAGS[2:3], TAGS[4:6], TAGS])
def test_tensorboard_finds_the_curves_of_a_chart_and_no_others(tmp_path, tags):
    logger = TensorBoardLogger(tmp_path)
    for tag in (*TAGS, *(f"mine/{tag}" for tag in TAGS)):
        logger.log_metrics({tag: 1.0}, step=0)
    assert write_layout(SimpleNamespace(loggers=[logger], is_global_zero=True), {"plane": ("Multiline", tags)}) == []
    logger.experiment.flush()

    multiplexer = EventMultiplexer().AddRun(logger.log_dir, "run").Reload()
    context = TBContext(data_provider=MultiplexerDataProvider(multiplexer, logger.log_dir))
    context.plugin_name_to_instance = {"scalars": ScalarsPlugin(context)}
    plugin, request = CustomScalarsPlugin(context), RequestContext()
    (chart,) = json.loads(plugin.layout_impl(request, ""))["category"][0]["chart"]
    expressions = chart["multiline"]["tag"]
    # as its page asks for the curves of a chart
    asked = expressions[0] if len(expressions) == 1 else "|".join(f"({expression})" for expression in expressions)
    answer = plugin.scalars_impl(request, "run", asked, "")
    assert set(answer["tag_to_events"]) == set(tags)


# ---- layouts that others write


def last_layout(logger):
    """``category -> titles of its charts``, as TensorBoard has it of a run: of several layouts the last."""
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    last = max(
        events.Tensors("custom_scalars__config__"), key=lambda one: one.wall_time
    )  # files of a second: any order
    layout = layout_pb2.Layout.FromString(last.tensor_proto.string_val[0])
    return {category.title: [chart.title for chart in category.chart] for category in layout.category}


def own_layout(writer):
    writer.add_custom_scalars({"mine": {"losses": ["Multiline", ["train_loss", "val_loss"]]}})


def own_lines(writer):
    writer.add_custom_scalars_multilinechart(["train_loss", "val_loss"], category="mine", title="losses")


def own_band(writer):
    writer.add_custom_scalars_marginchart(["a", "b", "c"], "mine", "losses")


def drawing(hook, write=own_layout):
    """A module that writes a layout of its own in one hook."""
    return type("Drawing", (Classifier,), {hook: lambda self, *_, **__: write(self.logger.experiment)})()


def fisher(**options):
    return FisherTraceCallback(num_samples=8, every_n_train_steps=4, on_error="raise", summary=False, **options)


OURS = {"lightning_info": ["Fisher trace (tr F) with its 95 % band", "tr F whatever the scale of the weights"]}
BOTH = {"mine": ["losses"], **OURS}


@pytest.mark.parametrize(
    ("hook", "write"),
    [
        ("setup", own_layout),
        ("on_fit_start", own_band),
        ("on_train_start", own_lines),
        ("on_train_epoch_end", own_lines),
        ("on_train_end", own_band),
        ("teardown", own_layout),
    ],
)
def test_the_users_layout_stays_beside_ours_whoever_writes_last(tmp_path, hook, write):
    logger = TensorBoardLogger(tmp_path)
    before = set(vars(logger.experiment))
    trainer(fisher(), max_epochs=1, logger=logger).fit(drawing(hook, write), loader(16))
    assert last_layout(logger) == BOTH
    assert set(vars(logger.experiment)) == before  # nothing of ours stands before the writer's methods


def test_every_logger_keeps_its_own_layout(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, name=name) for name in ("a", "b", "c")]
    own_layout(loggers[0].experiment)  # before fit
    loggers[1].experiment.add_custom_scalars({"other": {"x": ["Margin", ["a", "b", "c"]]}})
    trainer(fisher(), max_epochs=1, logger=loggers).fit(Classifier(), loader(16))
    assert [last_layout(logger) for logger in loggers] == [BOTH, {"other": ["x"], **OURS}, OURS]


def test_of_the_users_own_layouts_the_last_is_shown(tmp_path):
    logger = TensorBoardLogger(tmp_path)

    def several(writer):
        own_layout(writer)
        with pytest.raises(AssertionError):  # a mistake of the user is the user's
            writer.add_custom_scalars_marginchart(["a"])
        writer.add_custom_scalars({"last": {"x": ["Multiline", ["a"]]}, "lightning_info": {"y": ["Multiline", ["b"]]}})

    trainer(fisher(), max_epochs=1, logger=logger).fit(drawing("on_train_end", several), loader(16))
    assert last_layout(logger) == {"last": ["x"], "lightning_info": ["y", *OURS["lightning_info"]]}


def test_charts_that_no_dictionary_describes_stay_as_they_are(tmp_path):
    series = [layout_pb2.MarginChartContent.Series(value=tag, lower=f"{tag}-", upper=f"{tag}+") for tag in "ab"]
    chart = layout_pb2.Chart(title="bands", margin=layout_pb2.MarginChartContent(series=series))
    theirs = layout_pb2.Layout(category=[layout_pb2.Category(title="mine", chart=[chart], closed=True)])
    logger = TensorBoardLogger(tmp_path)
    summary = custom_scalars({})
    summary.value[0].tensor.string_val[0] = theirs.SerializeToString()
    logger.experiment.file_writer.add_summary(summary)
    trainer(fisher(), max_epochs=1, logger=logger).fit(Classifier(), loader(16))
    assert last_layout(logger) == {"mine": ["bands"], **OURS}
    events = EventAccumulator(logger.log_dir).Reload()
    written = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    assert layout_pb2.Layout.FromString(written).category[0] == theirs.category[0]


def test_fits_that_share_a_logger_share_a_layout(tmp_path):
    logger, module = TensorBoardLogger(tmp_path), drawing("on_train_start")
    run = trainer(fisher(), max_epochs=1, logger=logger)
    run.fit(module, loader(16))
    run.fit_loop.max_epochs = 2
    run.fit(module, loader(16))  # goes on
    assert last_layout(logger) == BOTH
    trainer(fisher(prefix="second"), max_epochs=1, logger=logger).fit(Classifier(), loader(16))
    second = [f"second/{title}" for title in OURS["lightning_info"]]
    assert last_layout(logger) == {"mine": ["losses"], "lightning_info": [*second, *OURS["lightning_info"]]}


def test_a_resume_into_the_same_directory_keeps_the_layout(tmp_path):
    saving = ModelCheckpoint(tmp_path, save_last=True)
    first, again = (TensorBoardLogger(tmp_path, version=0) for _ in range(2))
    trainer(fisher(), saving, max_epochs=1, logger=first, enable_checkpointing=True).fit(
        drawing("on_fit_start"), loader(16)
    )
    (written,) = Path(first.log_dir).glob("*tfevents*")
    with written.open("ab") as file:
        file.write(
            struct.pack("<QI", 400, 0) + b"custom_scalars__config__"
        )  # the power was cut in the middle of a record
    trainer(fisher(), max_epochs=2, logger=again).fit(Classifier(), loader(16), ckpt_path=tmp_path / "last.ckpt")
    assert last_layout(again) == BOTH


def test_without_charts_nothing_is_written():
    logger = SimpleNamespace(experiment=SimpleNamespace(add_custom_scalars=Mock()))
    assert write_layout(SimpleNamespace(loggers=[logger], is_global_zero=True), {}) == []
    assert not logger.experiment.add_custom_scalars.called
