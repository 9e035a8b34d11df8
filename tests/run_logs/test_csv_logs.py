import pytest
from lightning.pytorch.loggers import CSVLogger
from logs import values, write_csv
from models import Classifier, loader, trainer

from lightning_info import FisherTraceCallback
from lightning_info.run_logs.csv_logs import csv_runs


def test_a_run_has_what_the_callback_measured(tmp_path):
    fisher = FisherTraceCallback(num_samples=16, every_n_epochs=1, summary=False)
    logger = CSVLogger(tmp_path, name="net", version="a")
    trainer(fisher, max_epochs=2, logger=logger).fit(Classifier(), loader())
    (run,) = csv_runs("", tmp_path)
    assert run.name == "net/a"
    for tag in ("fisher/trace", "fisher/trace_stderr"):
        assert [step for step, _ in run.curves[tag]] == [step for step, _ in fisher.history[tag]]
        assert dict(run.curves[tag]) == pytest.approx(dict(fisher.history[tag]))


def test_settings_and_lines_that_are_being_written(tmp_path):
    write_csv(tmp_path / "a")
    file = tmp_path / "a" / "metrics.csv"
    file.write_text(file.read_text() + "40,12.")
    (tmp_path / "a" / "hparams.yaml").write_text("net: !!python/object:os.system {}\n")
    (run,) = csv_runs("x", tmp_path)
    assert run.name == "x/a"
    assert run.curves["train_loss"] == values()["train_loss"]
    assert run.settings == {}
