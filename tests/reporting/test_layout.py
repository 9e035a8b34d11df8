from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock, call

from lightning.pytorch.loggers import TensorBoardLogger
from models import Classifier, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

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
    assert write_layout(trainer, {"title": ("Multiline", ("a", "b"))}) == [error]
    layout = {"lightning_info": {"title": ["Multiline", ["a", "b"]]}}
    assert good.experiment.add_custom_scalars.mock_calls == [call(layout)]
