from __future__ import annotations

import json
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest
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
    series = [chart.margin.series[0] for chart in layout.category[0].chart]
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
