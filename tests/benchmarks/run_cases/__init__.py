"""Training modules of public packages, by field."""

from .case import CASES
from . import demos, embeddings, forecasting, generative, graphs, sequences, tables, text, vision

__all__ = ["CASES"]
