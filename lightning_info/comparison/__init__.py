"""How far two finished runs went apart, from their checkpoints."""

from lightning_info.comparison.runs import RunComparison, compare_runs

__all__ = ["RunComparison", "compare_runs"]
