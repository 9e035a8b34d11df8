"""Training modules of public packages, by field."""

from .case import CASES
from . import demos, embeddings, forecasting, generative, graphs, text, vision

__all__ = ["CASES"]
