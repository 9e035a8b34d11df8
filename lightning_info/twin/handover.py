"""The handover between the two runs: at any time one of them trains, and the other waits for it.

The user's run hands over one thing at a time (a batch, or the start or end of an epoch) and goes on when the twin, in
its own thread, asks for the next. Both state their position, so a twin that is elsewhere is detected.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from lightning_info.twin.randomness import RandomState

Place = Literal["a batch", "the start of an epoch", "the end of an epoch", "the end of training"]


class Word(NamedTuple):
    """A message that is handed over.

    Attributes:
        place: Position of the user's run.
        random: State of its random number generators there.
        batch: The batch that the twin trains on, for ``"a batch"``.
        replaced_at: The optimiser step, if the batch holds the replacement.
        stopping: Whether the user's run will end.
    """

    place: Place
    random: RandomState
    batch: Any = None
    replaced_at: int | None = None
    stopping: bool = False


class Closed(Exception):
    """Ends the twin's thread at the point where it waits."""


class OutOfStep(Exception):
    """The twin does not follow the user's run; the message says why."""


class Handover:
    """Channel for one message at a time from the user's thread to the twin's."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._word: Word | None = None
        self._waiting = False  # the twin waits for a message
        self._closed = False
        self._over = False  # the twin's thread has ended

    # ---- the user's thread

    def wait(self) -> None:
        """Wait until the twin waits for a message, or has ended."""
        with self._condition:
            self._condition.wait_for(lambda: self._over or self._waiting)

    def give(self, word: Word) -> None:
        """Hand over a message, and wait until the twin asks for the next or has ended."""
        with self._condition:
            self._condition.wait_for(lambda: self._over or self._waiting)
            self._word, self._waiting = word, False
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._over or self._waiting)

    def close(self) -> None:
        """End the twin's thread the next time it asks."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    # ---- the twin's thread

    def take(self, place: Place) -> Word:
        """Return the next message, which must be of this place.

        Raises:
            Closed: There will be none.
            OutOfStep: The user's run is elsewhere.
        """
        with self._condition:
            if self._word is None:
                self._waiting = True
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._closed or self._word is not None)
            if self._closed or self._word is None:
                raise Closed
            word, self._word = self._word, None
        if word.place == "the end of an epoch" and place == "a batch":  # the run was stopped within an epoch
            self._word = word
        elif word.place != place:
            raise OutOfStep(f"the run is at {word.place} while the twin is at {place}")
        return word

    def end(self) -> None:
        """Note that the twin's thread has ended."""
        with self._condition:
            self._over = True
            self._condition.notify_all()


class Feed:
    """The training dataloader of the twin's Trainer.

    Args:
        handover: Source of the batches.
        length: Number of batches of an epoch.

    Attributes:
        random: State of the random number generators that belongs to the last batch.
        stopping: Whether the user's run ended within an epoch, and so the twin's does.
    """

    def __init__(self, handover: Handover, length: int) -> None:
        self.handover, self.length = handover, length
        self.random: RandomState | None = None
        self.stopping = False

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        while True:
            word = self.handover.take("a batch")
            if word.place != "a batch":
                self.stopping = word.stopping
                return
            self.random = word.random
            yield word.batch
