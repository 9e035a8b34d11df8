"""A figure that a notebook shows, without pyplot and whatever backend is chosen."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A matplotlib figure with a picture of its own for IPython, which else shows those of pyplot only."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
