"""Arguments of callbacks among the hyperparameters that loggers get, beside the user's own."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from models import Classifier, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

from lightning_info import FisherTraceCallback, InfoPlaneCallback

OWN = {"width": 7, "rate": 0.5, "name": "mine"}
OPTIONS = {"num_samples": 16, "every_n_epochs": 1, "on_error": "raise", "summary": False}
OURS = {
    "with/FisherTraceCallback/num_samples": 16,
    "with/FisherTraceCallback/seed": 3,
    "with/FisherTraceCallback/unit": "nats/weight²",
    "with/FisherTraceCallback/estimator": "importance",
    "with/FisherTraceCallback/draws": 5,
    "with/FisherTraceCallback/every_n_epochs": 1,
    "with/FisherTraceCallback/batch_norm": "reference",
}


class Saves(Classifier):
    def __init__(self, width=7, rate=0.5, name="mine"):
        super().__init__()
        self.save_hyperparameters()


class LogsWithMetrics(Saves):
    def on_train_start(self):
        for logger in self.loggers:
            of_board = isinstance(logger, TensorBoardLogger)
            logger.log_hyperparams(self.hparams, *([{"hp/score": 0.25}] if of_board else []))


class LogsLate(Classifier):
    def on_train_end(self):
        for logger in self.loggers:
            logger.log_hyperparams(OWN)


def fisher(**options):
    return FisherTraceCallback(draws=5, seed=3, **{**OPTIONS, **options})


def fit(folder, module, *callbacks, data=None, **board):
    loggers = [TensorBoardLogger(folder, **board), CSVLogger(folder, name="csv")]
    run = trainer(*callbacks, logger=loggers, max_epochs=1)
    run.fit(module, **({"datamodule": data} if data else {"train_dataloaders": loader()}))
    assert all("log_hyperparams" not in vars(logger) for logger in loggers)
    return loggers


def in_files(logger):
    """What ``hparams.yaml`` holds."""
    file = Path(logger.log_dir, "hparams.yaml")
    return (yaml.safe_load(file.read_text()) if file.exists() else None) or {}


def shown(board):
    """What TensorBoard's "HParams" tab shows, and the metric beside it."""
    events = EventAccumulator(board.log_dir).Reload()
    metrics = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"] if "hp" in tag[:3]
    }
    if SESSION_START_INFO_TAG not in events.summary_metadata:
        return {}, metrics
    found = parse_session_start_info_plugin_data(events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content)
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.hparams.items()}, metrics


@pytest.mark.parametrize(
    ("module", "board"),
    [(Saves, {}), (LogsWithMetrics, {"default_hp_metric": False}), (LogsLate, {})],
    ids=["saved", "with metrics", "at the end"],
)
def test_the_users_hyperparameters_stay_and_ours_are_beside_them(tmp_path, module, board):
    plain = fit(tmp_path / "plain", module(), fisher(), **board)
    of_user = module()
    loggers = fit(tmp_path / "with", of_user, fisher(log_hyperparams=True), **board)
    assert OWN in [in_files(logger) for logger in plain]
    for before, after in zip(plain, loggers, strict=True):
        own, both = in_files(before), in_files(after)
        assert own in (OWN, {})  # Lightning does not write to the file again what comes late
        assert {name: both[name] for name in own} == own
        assert both.items() >= OURS.items()
        assert {name.rpartition("/")[0] for name in both.keys() - own.keys()} == {"with/FisherTraceCallback"}
    (own, metric), (both, same_metric) = shown(plain[0]), shown(loggers[0])
    assert own == OWN
    assert both.items() >= (OWN | OURS).items()
    assert sorted(both)[: len(OWN)] == sorted(OWN)  # the order of TensorBoard's columns, of which it shows the first
    assert metric == same_metric != {}
    assert dict(of_user.hparams) == dict(module().hparams)


def test_where_the_user_logs_none_there_are_ours_alone_of_each_callback_that_is_asked(tmp_path):
    callbacks = [InfoPlaneCallback(**OPTIONS), fisher(log_hyperparams=True)]
    callbacks += [InfoPlaneCallback(prefix="mine", bins=9, unit="nats", log_hyperparams=True, **OPTIONS)]
    board, table = fit(tmp_path, Classifier(), *callbacks)
    for found in (in_files(board), in_files(table), shown(board)[0]):
        assert found.items() >= OURS.items()
        assert {name.rpartition("/")[0] for name in found} == {
            "with/FisherTraceCallback",
            "with/mine/InfoPlaneCallback",
        }
        assert found["with/mine/InfoPlaneCallback/bins"] == 9
        assert found["with/mine/InfoPlaneCallback/unit"] == "nats"


def test_without_being_asked_nothing_is_added(tmp_path):
    board, table = fit(tmp_path, Classifier(), fisher())
    assert in_files(board) == in_files(table) == shown(board)[0] == {}


def test_those_of_a_datamodule_stay_too(tmp_path):
    class Data(LightningDataModule):
        def __init__(self, size=5):
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self):
            return loader()

    board, _ = fit(tmp_path, Saves(), fisher(log_hyperparams=True), data=Data())
    assert shown(board)[0].items() >= (OWN | OURS | {"size": 5}).items()


def test_a_run_that_fails_has_them_too_and_the_logger_its_method(tmp_path):
    class Fails(Classifier):
        def on_train_epoch_end(self):
            raise RuntimeError("mine")

    board = TensorBoardLogger(tmp_path)
    with pytest.raises(RuntimeError, match="mine"):
        trainer(fisher(log_hyperparams=True), logger=board, max_epochs=1).fit(Fails(), loader())
    assert "log_hyperparams" not in vars(board)
    assert board.hparams.items() >= OURS.items()
    assert shown(board)[0].items() >= OURS.items()


def test_a_logger_that_refuses_them_is_one_warning(tmp_path):
    class Refuses(CSVLogger):
        def log_hyperparams(self, params=None):
            raise OSError("full")

    callback = fisher(log_hyperparams=True, on_error="warn")
    run = trainer(callback, logger=[Refuses(tmp_path), board := TensorBoardLogger(tmp_path)], max_epochs=1)
    with pytest.warns(UserWarning, match="writing hyperparameters to a logger failed and training goes on: OSError"):
        run.fit(Classifier(), loader())
    assert shown(board)[0].items() >= OURS.items()
