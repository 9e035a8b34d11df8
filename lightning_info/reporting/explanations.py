"""Explanations of the numbers in TensorBoard: behind the "i" of a chart, and in the "Text" tab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning_info.reporting.sinks import Sink, serve

Plugin = Literal["scalars", "images", "histograms"]


def report_explanations(trainer: Any, texts: Mapping[str, str], plugin: Plugin, step: int) -> list[Exception]:
    """Give tags a text that TensorBoard shows behind the "i" of their charts; before their first value.

    Args:
        trainer: The trainer.
        texts: Markdown, by tag.
        plugin: Where the tags are shown.
        step: Step of the first value. TensorBoard's data server takes an event of an earlier step for a restart, and
            drops what it has of the tag from there on: all of a run that is resumed, if this was 0.

    Returns:
        Exceptions raised by loggers; the others still got the texts.
    """
    return serve(trainer, _EXPLAINED, texts, plugin, step) if texts else []


def report_text(trainer: Any, tag: str, text: str, step: int) -> list[Exception]:
    """Hand a text to every logger that takes texts (TensorBoard); the others are skipped.

    Args:
        trainer: The trainer.
        tag: Name of the text.
        text: Markdown.
        step: Optimiser steps taken.

    Returns:
        Exceptions raised by loggers; the others still got the text.
    """
    return serve(trainer, _TEXTS, tag, text, step)


def reading_guide(told: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """Return Markdown that says what each callback measures and how, and what its tags mean.

    Args:
        told: For each callback its report, whose first line is its name, and the texts of its tags.
    """
    parts = []
    for report, texts in told:
        title, _, rest = report.partition("\n")
        lines = [f"### {title}", *(f"- `{tag}`: {text}" for tag, text in texts.items()), ""]
        parts += [*lines, "```", rest, "```", ""]
    return "\n".join(parts)


def _explain(logger: Any, texts: Mapping[str, str], plugin: Plugin, step: int) -> None:
    from tensorboard.compat.proto.summary_pb2 import (  # type: ignore[import-untyped]  # slow
        Summary,
        SummaryMetadata,
    )

    writer = logger.experiment._get_file_writer()
    if writer is None:  # of a logger that replaces another and writes nothing
        return
    prefix = getattr(logger, "_prefix", "")
    joined = f"{prefix}{logger.LOGGER_JOIN_CHAR}" if prefix and plugin == "scalars" else ""
    values = [
        Summary.Value(
            tag=joined + tag,
            metadata=SummaryMetadata(
                display_name=joined + tag,
                summary_description=text,
                plugin_data=SummaryMetadata.PluginData(plugin_name=plugin),
            ),
        )
        for tag, text in texts.items()
    ]
    writer.add_summary(Summary(value=values), step)


def _to_tensorboard(logger: Any, tag: str, text: str, step: int) -> None:
    logger.experiment.add_text(tag, text, global_step=step)


_EXPLAINED: Sequence[Sink] = ((("experiment.add_scalar", "experiment._get_file_writer"), _explain),)
_TEXTS: Sequence[Sink] = ((("experiment.add_text",), _to_tensorboard),)
