"""``python -m lightning_info.compare_runs``: see :mod:`lightning_info.comparison.command`."""

from lightning_info.comparison import RunComparison, compare_runs
from lightning_info.comparison.command import main

__all__ = ["RunComparison", "compare_runs", "main"]

if __name__ == "__main__":
    main()
