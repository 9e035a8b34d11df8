"""What is said of a plane at the end of fit: the table of verdicts, and the same for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_info.quantities.information_plane.labels import Labels
from lightning_info.quantities.information_plane.verdicts import CompressionVerdict
from lightning_info.reporting.table import verdict_table


def closing_text(
    verdicts: Mapping[str, CompressionVerdict],
    labels: Labels | None,
    columns: Mapping[str, Mapping[str, str]],
    unit: str,
    factor: float,
) -> str:
    """Return the table of verdicts.

    Args:
        verdicts: By layer, in bits.
        labels: Labels of the samples.
        columns: Further columns, by title and layer.
        unit: Unit of the table.
        factor: The table's unit per bit.
    """
    falls = {
        name: {kind: fall * factor for kind, fall in judgement.falls.items()} for name, judgement in verdicts.items()
    }
    short = {name: judgement.verdict.partition(":")[0] for name, judgement in verdicts.items()}
    top = "" if labels is None else f"H(Y) = {labels.entropy * factor:.4g} {unit}: the most to tell of Y. "
    return f"\n{verdict_table(falls, short, unit, columns)}\n{top}One run is not evidence."


def conclusions(verdicts: Mapping[str, CompressionVerdict], unit: str, factor: float) -> dict[str, Any]:
    """Return the verdicts as plain values, by layer.

    Args:
        verdicts: By layer, in bits.
        unit: Unit of the result.
        factor: That unit per bit.
    """

    def known(values: Mapping[str, float]) -> dict[str, float | None]:
        return {kind: value * factor if math.isfinite(value) else None for kind, value in values.items()}

    return {
        name: {
            "verdict": judgement.verdict,
            "falls": known(judgement.falls),
            "stderr": known(judgement.errors),
            "unit": unit,
        }
        for name, judgement in verdicts.items()
    }
