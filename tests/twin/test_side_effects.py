"""What the user's code writes while it trains is the run's, byte for byte: the twin writes nothing, or ends."""

import contextlib
import csv
import json
import logging
import math
import os
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from models import Classifier, loader, trainer
from torch import save as imported_save
from torch.utils.tensorboard import SummaryWriter
from twin.driver import Drive, live_threads

from lightning_info import StabilityCallback
from lightning_info.twin import NotSupported


class Writes(Classifier):
    """Has ``write`` do something with its weights after every optimiser step."""

    write = staticmethod(lambda module: None)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.write(self)


def fitted(write, *callbacks, module=Writes, **options):
    """The trained module, and what is in all files that are in the working folder afterwards."""
    pl.seed_everything(1, verbose=False)
    made = module()
    made.write = write
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            trainer(*callbacks, max_epochs=1, **options).fit(made, loader(24))
            files = {str(path): content(path) for path in sorted(Path().rglob("*")) if path.is_file()}
        finally:
            os.chdir(before)
    return made, files


def content(path):
    """The bytes, but for formats in which those of two equal runs differ."""
    if path.suffix == ".ckpt":
        return str(torch.load(path, weights_only=True)["state_dict"])
    if path.name.startswith(("old", "traced")):
        found = torch.load(path) if path.name.startswith("old") else torch.jit.load(path).state_dict()
        return {name: value.tolist() for name, value in found.items()}
    return path.read_bytes()


def weight(module):
    return module.net[0].weight.detach()


# ---- what is left out


def to_an_opened_file(module):
    with open("opened.pt", "wb") as file:
        torch.save(module.state_dict(), file)


def appends(module):
    with open("log.csv", "a", newline="") as file:
        if file.tell() == 0:
            file.write("norm\n")
        csv.writer(file).writerow([weight(module).norm().item()])


def dumps(module):
    with Path("last.json").open("w") as file:
        json.dump(weight(module).tolist(), file)
    with open("last.pickle", "wb") as file:
        pickle.dump(weight(module).numpy(), file)


def arrays(module):
    np.save("last.npy", weight(module).numpy())
    np.savez("last.npz", weight(module).numpy())
    weight(module).numpy().tofile("last.bin")


def text(module):
    os.makedirs("texts", exist_ok=True)
    Path("texts/last.txt").write_text(str(weight(module).norm().item()))


def scripted(module):
    with open("traced.pt", "wb") as file:
        torch.jit.save(torch.jit.trace(module.net, torch.zeros(1, 6)), file)
    torch.jit.trace(module.net, torch.zeros(1, 6)).save("traced2.pt")


def logs(module):
    logger = logging.getLogger("of the user")
    handler = logging.FileHandler("run.log")
    logger.addHandler(handler)
    logger.error("%s", weight(module).norm().item())
    logger.removeHandler(handler)
    handler.close()


def in_a_folder_of_its_own(module):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "weights.pt")
        torch.save(module.state_dict(), path)
        os.rename(path, path + "2")
        assert torch.equal(torch.load(path + "2")["net.0.weight"], weight(module))


def through_a_name(module):
    imported_save(module.state_dict(), "imported.pt")


LEFT_OUT = {
    "torch.save": lambda module: torch.save(module.state_dict(), "last.pt"),
    "torch.save by a name of its own": through_a_name,
    "torch.save, a path that is not ASCII": lambda module: torch.save(module.state_dict(), "läst.pt"),
    "torch.save, the old format": lambda module: torch.save(
        module.state_dict(), Path("old.pt"), _use_new_zipfile_serialization=False
    ),
    "torch.save to an opened file": to_an_opened_file,
    "a table that grows": appends,
    "json and pickle": dumps,
    "numpy": arrays,
    "text in a folder": text,
    "TorchScript": scripted,
    "logging": logs,
    "a temporary folder": in_a_folder_of_its_own,
    "a device": lambda module: Path(os.devnull).write_text("nothing"),
    "Lightning's checkpoint": lambda module: module.trainer.save_checkpoint("last.ckpt"),
}


@pytest.fixture(scope="module")
def without_writing():
    drive = Drive(5, 17)
    fitted(Writes.write, drive)
    return drive


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_only_saved_is_left_out_and_the_twin_goes_on(name, without_writing):
    plain, files = fitted(LEFT_OUT[name])
    drive = Drive(5, 17)
    beside, files_beside = fitted(LEFT_OUT[name], drive)
    assert files_beside == files
    assert bool(files) == (name not in ("a temporary folder", "a device"))
    assert torch.equal(weight(plain), weight(beside))
    assert drive.twin.reason is None
    assert drive.distances == without_writing.distances
    assert drive.distances[-1] > 0


def test_safetensors_are_left_out_too():
    safetensors = pytest.importorskip("safetensors.torch")

    def write(module):
        safetensors.save_file(module.state_dict(), "last.safetensors")
        safetensors.save_model(module, "model.safetensors")

    drive = Drive(5, 17)
    assert fitted(write, drive)[1] == fitted(write)[1]
    assert drive.twin.reason is None


class Writers:
    """Where code of any module finds one, as in a global variable."""

    shared: SummaryWriter


def test_a_writer_of_tensorboard_that_all_can_reach_gets_the_numbers_of_the_run_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def curve(folder, *callbacks):
        Writers.shared = SummaryWriter(folder)
        fitted(lambda module: Writers.shared.add_scalar("norm", weight(module).norm(), module.global_step), *callbacks)
        Writers.shared.close()
        events = EventAccumulator(str(folder))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("norm")]

    assert curve(tmp_path / "beside", Drive(5, 17)) == curve(tmp_path / "plain")


def test_what_is_printed_is_printed_once(capsys):
    def write(module):
        print(weight(module).norm().item())

    fitted(write)
    plain = capsys.readouterr().out
    fitted(write, Drive(5, 17))
    assert capsys.readouterr().out == plain
    assert plain.count("\n") == 3
    assert not type(sys.stdout).__module__.startswith("lightning_info")


def test_it_is_said_once_what_is_left_out():
    callback = StabilityCallback(5, 17, every_n_epochs=1, num_samples=4, summary=False)
    with pytest.warns(UserWarning, match=r"torch.save to 'last.pt' \(test_side_effects.py:\d+, in <lambda>\)") as said:
        fitted(LEFT_OUT["torch.save"], callback)
    assert len([w for w in said if "is left out" in str(w.message)]) == 1
    assert not math.isnan(callback.history["stability/param_distance"][-1][1])


# ---- what ends the twin


def replaces(module):
    torch.save(module.state_dict(), "new.pt")
    os.replace("new.pt", "last.pt")


def edits_in_place(module):
    if not os.path.exists("last.bin"):
        Path("last.bin").write_bytes(bytes(100))
    with open("last.bin", "r+b") as file:
        file.write(weight(module).numpy().tobytes()[:4])


def reads_back(module):
    torch.save(module.state_dict(), "best.pt")
    module.load_state_dict(torch.load("best.pt"))


def in_a_database(module):
    with sqlite3.connect("log.db") as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS norms (value)")
        connection.execute("INSERT INTO norms VALUES (?)", [weight(module).norm().item()])


def by_another_program(module):
    subprocess.run(["sh", "-c", f"echo {weight(module).norm().item()} >> log.txt"], check=True)


def in_another_thread(module):
    weights = weight(module).clone()
    thread = threading.Thread(target=lambda: torch.save(weights, "last.pt"))
    thread.start()
    thread.join()


POOL = ThreadPoolExecutor(1)


def in_a_pool(module):
    POOL.submit(torch.save, weight(module).clone(), "last.pt").result()


def swallows(module):
    with contextlib.suppress(BaseException):
        replaces(module)


def keeps_two(module):
    step = module.global_step
    torch.save(module.state_dict(), f"{step}.pt")
    if step >= 2:
        os.remove(f"{step - 2}.pt")


def copies_with_its_times(module):
    Path("last.txt").write_text(str(weight(module).norm().item()))
    shutil.copy2("last.txt", "best.txt")


ENDS = {
    "replaced": (replaces, "move 'new.pt'"),
    "edited in place": (edits_in_place, "write to 'last.bin'"),
    "read back": (reads_back, "read 'best.pt', which holds what the run wrote"),
    "a database": (in_a_database, "connect to the database 'log.db'"),
    "another program": (by_another_program, "start a process"),
    "another thread": (in_another_thread, "hand work to another thread"),
    "a pool of threads": (in_a_pool, "hand work to another thread"),
    "swallowed": (swallows, "move 'new.pt'"),
    "old ones removed": (keeps_two, "remove '0.pt'"),
    "copied": (copies_with_its_times, "read 'last.txt'"),
    "touched": (lambda module: Path("done").touch(), "(touch|write to) 'done'"),
    "a folder": (lambda module: (os.makedirs("d", exist_ok=True), shutil.rmtree("d")), "make the folder 'd'"),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_cannot_be_left_out_ends_the_twin_before_it_happens(name):
    write, what = ENDS[name]
    drive = Drive(5, 17)
    plain, files = fitted(write)
    beside, files_beside = fitted(write, drive)
    assert files_beside == files
    assert torch.equal(weight(plain), weight(beside))
    assert drive.twin.lost_at is not None
    assert [math.isnan(distance) for distance in drive.distances[-1:]] == [True]
    place = r"\(test_side_effects.py:\d+, in .*\)"
    told = rf"the twin was about to {what}.*{place}, .*`changes_training = False`"
    assert re.match(told, drive.twin.reason), drive.twin.reason
    assert live_threads() == []


class WritesInCheckpoints(Writes):
    def on_save_checkpoint(self, checkpoint):
        torch.save(self.state_dict(), "beside.pt")


def test_a_hook_that_writes_when_a_checkpoint_is_saved_does_so_for_the_run():
    class Keeps(pl.Callback):
        changes_training = False

        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint("own.ckpt")

    def beside(*callbacks):
        return fitted(Writes.write, *callbacks, module=WritesInCheckpoints)[1]["beside.pt"]

    drive = Drive(5, 17)
    assert beside(drive, Keeps()) == beside(Keeps())
    assert drive.twin.reason is None


class Notes(LightningDataModule):
    ends: ClassVar[list[BaseException]] = []

    def train_dataloader(self):
        return loader(24)

    def on_exception(self, exception):
        Notes.ends.append(exception)


def test_a_datamodule_is_not_told_that_the_twin_ended():
    drive = Drive(5, 17)
    trainer(drive, max_epochs=1).fit(Classifier(), Notes())
    assert drive.twin.reason is None
    assert Notes.ends == []


# ---- files that are kept open

OPEN: dict[str, Any] = {}


class Log:
    def __init__(self, path):
        self.file = open(path, "w")  # noqa: SIM115 (kept open)

    def add(self, value):
        self.file.write(f"{value}\n")


def to_a_global(module):
    OPEN["file"].write("a line\n")


def opens_at_the_first_step(module):
    if "late" not in OPEN:
        OPEN["late"] = open("late.txt", "w")  # noqa: SIM115
    OPEN["late"].write("a line\n")


def by_a_closure():
    log = Log("closure.txt")
    OPEN["opened"] = log.file
    return lambda module: log.add(1)


def by_a_table():
    OPEN["opened"] = open("table.csv", "w", newline="")  # noqa: SIM115
    rows = csv.writer(OPEN["opened"])
    return lambda module: rows.writerow([1])


def by_a_global():
    OPEN["opened"] = OPEN["file"] = open("global.txt", "w")  # noqa: SIM115
    return to_a_global


def reads_only():
    Path("data.txt").write_text("data")
    OPEN["opened"] = file = open("data.txt")  # noqa: SIM115
    return lambda module: file.seek(0)


@pytest.fixture
def kept_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for file in OPEN.values():
        file.close()
    OPEN.clear()


def step_of(write, hook="on_train_batch_end"):
    return type("Steps", (Classifier,), {hook: lambda self, *_, **__: write(self)})()


@pytest.mark.parametrize("make", [by_a_closure, by_a_table, by_a_global])
def test_a_file_that_is_kept_open_is_refused_before_the_first_step(make, kept_open):
    write, drive = make(), Drive(5, 17)
    with pytest.raises(
        NotSupported, match=r"within reach of Steps.on_train_batch_end, is .*`changes_training = False`"
    ):
        trainer(drive, max_epochs=1).fit(step_of(write), loader(24))
    OPEN["opened"].close()
    assert [path.read_text() for path in kept_open.iterdir()] == [""]
    assert drive.distances == []


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])  # before and after the twin's
def test_a_file_that_is_opened_in_the_first_step_and_kept_is_the_runs(hook, kept_open):
    drive = Drive(5, 17)
    trainer(drive, max_epochs=1).fit(step_of(opens_at_the_first_step, hook), loader(24))
    OPEN["late"].close()
    assert (kept_open / "late.txt").read_text() == "a line\n" * 3
    told = r"OPEN, within reach of Steps.on_train_batch_start, is the open file 'late.txt'"
    assert re.match(told, drive.twin.reason or "") if hook == "on_train_batch_start" else drive.twin.reason is None


def test_a_file_that_is_only_read_and_the_console_are_no_reason(kept_open):
    read, drive = reads_only(), Drive(5, 17)
    console = sys.__stdout__
    trainer(drive, max_epochs=1).fit(step_of(lambda module: (read(module), console.flush())), loader(24))
    assert drive.twin.reason is None


# ---- measurements


class StepWrites(Classifier):
    """Writes in the part that a measurement runs too."""

    def training_step(self, batch, batch_idx):
        self.write(self)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("name", ["torch.save", "a table that grows"])
def test_measurements_of_the_twin_write_nothing_either(name):
    callback = StabilityCallback(5, 17, every_n_epochs=1, num_samples=4, on_error="raise", summary=False)
    plain, files = fitted(LEFT_OUT[name], module=StepWrites)
    beside, files_beside = fitted(LEFT_OUT[name], callback, module=StepWrites)
    assert files_beside == files
    assert torch.equal(weight(plain), weight(beside))
    assert callback.history["stability/output_kl"][-1][1] > 0


def test_a_step_whose_writing_cannot_be_left_out_is_refused_before_the_first_step():
    callback = StabilityCallback(5, 17, on_error="raise", summary=False)
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match=r"about to move 'new.pt' .*changes_tr"):
        fitted(replaces, callback, module=StepWrites)
    assert callback.history == {}
    assert live_threads() == []
