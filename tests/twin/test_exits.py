"""A twin that exits, in whatever way, is lost; the user's run does not notice."""

import asyncio
import math
import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
from harness import assert_identical, run
from models import Classifier
from twin.driver import Drive, live_threads

from lightning_info import StabilityCallback


def raises(error):
    raise error


def generator_exit():
    raise GeneratorExit


EXITS = {
    "sys.exit": (lambda: sys.exit("the loss is not finite"), "ended by its own code: SystemExit: the loss is not"),
    "sys.exit()": (sys.exit, "ended by its own code: SystemExit"),
    "SystemExit": (lambda: raises(SystemExit(3)), "ended by its own code: SystemExit: 3"),
    "KeyboardInterrupt": (lambda: raises(KeyboardInterrupt()), "ended by its own code: KeyboardInterrupt"),
    "GeneratorExit": (generator_exit, "ended by its own code: GeneratorExit"),
    "cancelled": (lambda: raises(asyncio.CancelledError()), "ended by its own code: CancelledError"),
    "os._exit": (lambda: os._exit(1), "about to end the process"),
    "os.abort": (lambda: os.abort(), "about to end the process"),
    "os.kill": (lambda: os.kill(os.getpid(), signal.SIGINT), "about to send a signal to a process"),
    "a signal": (lambda: signal.raise_signal(signal.SIGTERM), "about to send a signal to the process"),
    "the main thread interrupted": (
        lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT),
        "about to send a signal to a thread",
    ),
}

guard = SimpleNamespace(leave=None)


class Leaves(Classifier):
    """Leaves where only the twin comes."""

    def training_step(self, batch, batch_idx):
        if self.global_step == 2 and threading.current_thread() is not threading.main_thread():
            guard.leave()
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def plain():
    return run(Leaves)


@pytest.mark.parametrize("name", EXITS)
def test_an_exit_ends_the_twin_with_its_reason_and_never_the_run(name, plain, capsys, caplog):
    guard.leave, reason = EXITS[name]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    drive = Drive()
    assert_identical(plain, run(Leaves, drive))
    assert f"the twin was {reason}" in drive.twin.reason
    assert "(test_exits.py:" in drive.twin.reason
    assert drive.twin.lost_at == 2
    assert [math.isnan(distance) for distance in drive.distances] == [False] * 3 + [True] * 4
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert "shutdown" not in capsys.readouterr().err + caplog.text
    assert live_threads() == []


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_an_exit_in_the_twin_is_a_gap_of_the_callback_in_any_policy(on_error, plain):
    guard.leave = EXITS["sys.exit"][0]
    callback = StabilityCallback(3, 4, every_n_train_steps=1, num_samples=4, summary=False, on_error=on_error)
    with pytest.warns(UserWarning, match=r"lost at step 2 .*SystemExit: the loss is not finite \(test_exits"):
        assert_identical(plain, run(Leaves, callback))
    distances = dict(callback.history["stability/param_distance"])
    assert [step for step, distance in distances.items() if not math.isnan(distance)] == [0, 1, 2]
    assert len(distances) == 7
