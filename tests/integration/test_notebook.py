"""A notebook, with the bars that Lightning takes there: tqdm's, and rich's where rich is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

SETUP = """
import logging, sys, warnings
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
sys.path.insert(0, {tests!r})
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning_info import FisherTraceCallback, InfoPlaneCallback
from models import Classifier, loader
options = {{"every_n_epochs": 1, "num_samples": 16, "on_error": "raise"}}
"""
FIT = """
fisher, plane = FisherTraceCallback(**options), InfoPlaneCallback(**options)
trainer = Trainer(max_epochs=2, callbacks=[{bar}(), fisher, plane], logger=False, accelerator="cpu",
                  enable_checkpointing=False, enable_model_summary=False)
trainer.fit(Classifier(), loader())
"""


def test_training_and_results_in_a_notebook(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("rich")
    bars = ("TQDMProgressBar", "RichProgressBar")
    sources = [SETUP.format(tests=str(Path(__file__).parents[1]))]
    for bar in bars:
        sources += [FIT.format(bar=bar), "fisher", "plane.plot()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for i, bar in enumerate(bars):
        fit, table, figure = (cell.outputs for cell in notebook.cells[1 + 3 * i : 4 + 3 * i])
        printed = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in fit)
        assert "fisher/trace [nats/weight²]" in printed, bar
        assert "Traceback" not in printed
        (shown,) = (output["data"]["text/html"] for output in table)
        assert "FisherTraceCallback: fisher/trace = " in shown
        assert "data:image/png;base64," in shown
        assert any("image/png" in output.get("data", {}) for output in figure)
