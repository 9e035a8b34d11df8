"""The cells of the notebooks run in their order, with one epoch; with all of them they were run by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Subset

pytest.importorskip("sklearn")
FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"


def few(loader: DataLoader, samples: int) -> DataLoader:
    return DataLoader(Subset(loader.dataset, range(samples)), loader.batch_size)


@pytest.mark.parametrize("name", ["quickstart", "memorise"])
def test_the_cells_run(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    import memorise
    import quickstart

    loaders = quickstart.loaders
    monkeypatch.setattr(quickstart, "loaders", lambda size: [few(loader, 96) for loader in loaders(size)])
    for constant, value in {"SAMPLES": 64, "HELD": 8, "BATCH": 32}.items():
        monkeypatch.setattr(memorise, constant, value)
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum("EPOCHS = " in source for source in sources) == 1
    names: dict = {}
    for source in sources:
        for epochs in ("EPOCHS = 12", "EPOCHS = 60"):
            source = source.replace(epochs, "EPOCHS = 1")
        exec(compile(source, name, "exec"), names)
    assert names["EPOCHS"] == 1
    drawn = names["fisher"].plot() if name == "quickstart" else names["memorise"].picture(names["runs"])
    assert drawn._repr_png_().startswith(b"\x89PNG")
