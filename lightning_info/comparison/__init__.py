"""Distance between two finished runs, from their checkpoints."""

from lightning_info.comparison.runs import RunComparison, compare_runs

__all__ = ["RunComparison", "compare_runs"]
