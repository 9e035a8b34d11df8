"""Training modules of public packages, by field."""

from importlib import import_module

from .case import CASES

FIELDS = (
    "demos", "text", "vision", "embeddings", "generative", "forecasting", "graphs", "sequences", "tables",
)  # fmt: skip
"""Files of this folder, in the order of the table."""

for field in FIELDS:
    import_module(f"{__name__}.{field}")

__all__ = ["CASES"]
