"""A table with a row for each reference sample, made at the end of fit."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import SequentialSampler

from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.resuming import steps_taken
from lightning_info.quantities.fisher_trace.quantity import FisherTrace

SUFFIX = ".parquet"


class TablesSamples(InfoCallback):
    """Measures every reference sample once more after the last point, for :meth:`samples_to_pandas`."""

    quantity: FisherTrace

    _columns: Mapping[str, Sequence[float]]
    _no_table: str  # why there is none
    _is_unordered: bool  # samples of training are missing among the reference samples

    def samples_to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row for each reference sample, at the weights at the end of fit.

        Columns, where they are known: ``index`` in the data set (with ``reference=``, or if training does not shuffle;
        else absent); ``loss`` in nats, ``margin`` and ``el2n`` (length of the error of the probabilities);
        ``model_gradient_norm``, the square root of the sample's part of tr F (from one draw of labels unless
        ``estimator="exact"``); ``data_gradient_norm``, of the loss at the data's own label.

        Raises:
            ImportError: pandas is not installed.
            ValueError: There is no table; the message says why.
        """
        import pandas as pd

        if not self._columns:
            raise ValueError(f"{type(self).__name__}.samples_to_pandas: no table of samples, as {self._no_table}")
        return pd.DataFrame(self._columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was measured so far to a file.

        Args:
            path: As for other callbacks (``.csv``, ``.json``, ``.html``); or of a ``.parquet`` file, with the table of
                :meth:`samples_to_pandas` (needs pandas and pyarrow; ``samples_to_pandas().to_csv(path)`` does not).

        Raises:
            ValueError: It ends otherwise, or there is no table of samples.
            ImportError: What the file needs is not installed.
        """
        if Path(path).suffix == SUFFIX:
            self.samples_to_pandas().to_parquet(path)
            return
        super().save(path)

    def _report_end(self, trainer: Any) -> None:
        super()._report_end(trainer)
        passes = self.quantity.passes_of_table(len(self._samples))
        if not self._affords(trainer, passes * self.account.point):
            self._no_table = "it did not fit into the time budget; max_overhead=... sets that"
        elif trainer.world_size > 1:  # to gather sharded weights takes all processes
            self._no_table = "it is made by a single process only, and several train"
        else:
            self._no_table = "it could not be measured; report() has the reason"
            if any(math.isfinite(curve[-1][1]) for tag, curve in self.last_curves().items() if self._is_in_table(tag)):
                self._tabulate(trainer)  # else the last point has failed, which was said

    def _tabulate(self, trainer: Any) -> None:
        with self._error_policy.guard("the table of samples"):
            snapshot = self._snapshot(trainer, trainer.lightning_module, [])
            table = self.quantity.sample_table(snapshot, self._point_at(trainer, steps_taken(trainer)))
            index = {"index": range(len(self._samples))} if table and self._is_in_order(trainer) else {}
            self._columns = {**index, **{name: values.tolist() for name, values in table.items()}}

    def _is_in_order(self, trainer: Any) -> bool:
        """Tell whether the reference samples are the first of the data, none left out."""
        if self._is_unordered or self._collector.has_gaps:
            return False
        if self.reference is not None:
            return True
        sampler = getattr(trainer.train_dataloader, "sampler", None)
        return type(sampler) is SequentialSampler and not self._collector.same

    def _collect(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._is_unordered = self._is_unordered or (batch_idx > 0 and self.reference is None and not len(self._samples))
        super()._collect(trainer, pl_module, batch, batch_idx)

    def _leave_out_skipped(self, snapshot: Any) -> bool:
        found = super()._leave_out_skipped(snapshot)
        self._is_unordered = self._is_unordered or found
        return found

    def _restart(self) -> None:
        super()._restart()
        self._columns, self._no_table, self._is_unordered = {}, "fit has not ended", False
