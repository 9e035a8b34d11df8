"""A sample's gradient by definition: plain autograd on the sample alone, and on all samples together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.batches import company, take
from lightning_info.gradients.contract import NotCovered, Predict, first_line, trainable
from lightning_info.gradients.graph import leaf_uses
from lightning_info.gradients.layout import Batch
from lightning_info.gradients.loop import positions_alone
from lightning_info.gradients.memory import is_out_of_memory

MIXED = "outputs of a sample depend on the other samples of the batch"


class Definition:
    """The truth that engines are compared with, for a few samples and random cotangents.

    The samples' gradients alone must add up to the gradient of all of them together, vector by vector: where samples
    are mixed, in values or only in gradients, they do not.

    Args:
        module: The module; never changed.
        predict: Gives the outputs ``(N, ...)``.
        batch: N samples.
        columns: Cotangents of each sample.

    Attributes:
        parameters: The trainable ones, by name.
        outputs: Of all samples together.
        columns: ``(C, *outputs.shape)`` cotangents; zero at positions that the sample alone does not have.

    Raises:
        NotCovered: Samples are mixed, autograd does not see all of the parameters, or outputs are complex.
    """

    def __init__(self, module: nn.Module, predict: Predict, batch: Any, columns: int = 1) -> None:
        self.parameters = trainable(module)
        self._module, self._predict, self._batch = module, predict, batch
        self._fewest = batch.layout.fewest if isinstance(batch, Batch) else 1
        self._together = predict(module, batch)
        if self._together.is_complex():
            raise NotCovered("the outputs are complex; give their real and imaginary part, torch.view_as_real(outputs)")
        leaf_uses(self._together)  # raises where autograd does not see all of them
        self.outputs = self._together.detach()
        generator = torch.Generator().manual_seed(0)
        shape = (columns, *self.outputs.shape)
        self.columns = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.outputs)

    @property
    def samples(self) -> int:
        """N."""
        return len(self.outputs)

    def gradients(self, n: int) -> list[list[Tensor]]:
        """Of sample n alone: for every cotangent, the gradients by parameter."""
        row = self._alone(n)
        if row is None:  # it fails, so that nothing but the whole batch tells
            whole = torch.zeros_like(self.columns)
            whole[:, n] = self.columns[:, n]
            return [self._gradients(self._together, u) for u in whole]
        columns = self.columns[:, n]
        if row.shape != columns.shape[1:]:
            inside = (slice(None), *(positions_alone(row.shape, columns.shape[1:]) or ()))
            kept = torch.zeros_like(columns)
            kept[inside] = columns[inside]
            self.columns[:, n] = kept
            columns = columns[inside]
        return [self._gradients(row, u) for u in columns]

    def squared_norms(self, tolerance: float) -> dict[str, Tensor] | None:
        """``(N,)`` by parameter, of the first cotangent; None where it is not finite.

        Raises:
            NotCovered: The samples are mixed.
        """
        total: list[Tensor] = []
        squares = []
        for n in range(self.samples):
            gradients = self.gradients(n)[0]
            squares.append(torch.stack([g.abs().square().sum().double() for g in gradients]))
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else gradients
        norms = torch.stack(squares)
        if not (self.outputs.isfinite().all() and norms.isfinite().all()):
            return None
        self.compare(total, norms.sum(0), tolerance)
        return dict(zip(self.parameters, norms.T, strict=True))

    def compare(self, total: list[Tensor], squares: Tensor, tolerance: float) -> None:
        """Compare the sum of the samples' gradients with the gradient of all samples together.

        Args:
            total: The sum by parameter, for the first cotangent.
            squares: The samples' squared norms by parameter, summed.
            tolerance: Relative to the root of the latter.

        Raises:
            NotCovered: The samples are mixed.
        """
        together = self._gradients(self._together, self.columns[0])
        floor = 1e-6 * squares.sum().item()
        for name, mine, whole, square in zip(self.parameters, total, together, squares.tolist(), strict=True):
            error = (whole - mine).abs().square().sum().item()
            if not error <= tolerance**2 * max(square, floor, 1e-300):
                raise NotCovered(
                    f"{MIXED}: their gradients alone do not add up to the gradient of all of them together ({name})"
                )

    def _alone(self, n: int) -> Tensor | None:
        """The sample's row of outputs."""
        some = company(n, self.samples, self._fewest)
        try:
            outputs = self._predict(self._module, take(self._batch, some))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if isinstance(self._batch, Batch):
                raise NotCovered(f"{MIXED}: one of them alone fails ({first_line(error)})") from error
            return None
        row, whole = outputs[int((some == n).nonzero()[0])], self.outputs[n]
        if positions_alone(row.shape, whole.shape) is None:
            raise NotCovered(
                f"{MIXED}: one of them alone gives outputs {tuple(outputs.shape)}, all together "
                f"{tuple(self.outputs.shape)}"
            )
        return row

    def _gradients(self, outputs: Tensor, u: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(
            outputs, list(self.parameters.values()), u.to(outputs), retain_graph=True, allow_unused=True
        )
        pairs = zip(self.parameters.values(), found, strict=True)
        return [torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g).detach() for p, g in pairs]
