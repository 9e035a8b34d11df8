"""Write ``docs/tags.md``, what every number means, from the descriptions that TensorBoard shows.

python docs/tags.py
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

PAGE = Path(__file__).with_name("tags.md")
FAMILIES = {
    "FisherTraceCallback": "fisher_trace",
    "InfoPlaneCallback": "information_plane",
    "WeightInfoCallback": "weight_information",
    "EffectiveInfoCallback": "effective_information",
    "StabilityCallback": "stability",
    "GradientNoiseCallback": "gradient_noise",
}
HEAD = """\
# Every number

What each tag means, as TensorBoard shows it behind the "i" of a chart; `*` stands for a layer, a module or a name of
your own. `<tag>_stderr` is its standard error, `_low` and `_high` the ends of its 95 % band. Units are those without
`unit=`. This page is written by `python docs/tags.py`.
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for callback, folder in FAMILIES.items():
        parts.append(f"## {callback}\n")
        for tag, found in import_module(f"lightning_info.quantities.{folder}.descriptions").DESCRIPTIONS.items():
            parts.append(f"### `{tag}`\n\n{found.what}.\n")
            rows = {
                "Unit": found.unit,
                "A rise": found.rises,
                "A fall": found.falls,
                "Caution": found.caution.strip("."),
            }
            lines = [f"- *{name}*: {text}{'' if name == 'Unit' else '.'}" for name, text in rows.items() if text]
            parts.extend([*lines, ""] if lines else [])
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
