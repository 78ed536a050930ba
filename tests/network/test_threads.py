"""The thread that touches the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Event, get_ident
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from kiwi.network.threads import OneWriter, Stopped, immediately

PATIENCE = 20.0
"""Seconds until a thread that does not answer fails a test."""


class OneWriterTests(SynchronousTestCase):
    """Calls are made in one thread, one at a time, and answered in the reactor's."""

    def setUp(self) -> None:
        self.answers: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self.writer = OneWriter(self.call_from_thread)
        self.addCleanup(self.writer.stop)

    def call_from_thread(self, function: Callable[..., object], *arguments: object) -> None:
        """The reactor's queue."""
        self.answers.put(partial(function, *arguments))

    def react(self) -> None:
        """Deliver one answer, as the reactor does."""
        self.answers.get(timeout=PATIENCE)()

    def held(self) -> tuple[Event, Deferred[Any]]:
        """A call that has begun, and ends when the event is set."""
        begun, end = Event(), Event()
        self.addCleanup(end.set)

        def hold() -> str:
            begun.set()
            end.wait(PATIENCE)
            return "held"

        result = self.writer.call(hold)
        self.assertTrue(begun.wait(PATIENCE))
        return end, result

    def test_result(self) -> None:
        """What a function returns comes as a result, in the reactor's own time."""
        self.writer.start()
        result = self.writer.call(divmod, 7, 2)
        answer = self.answers.get(timeout=PATIENCE)
        self.assertNoResult(result)
        answer()
        self.assertEqual(self.successResultOf(result), (3, 1))

    def test_failure(self) -> None:
        """What a function raises comes as a failure, and the thread goes on."""
        self.writer.start()
        for error in (ZeroDivisionError, SystemExit):
            result = self.writer.call(self.raising, error)
            self.react()
            self.failureResultOf(result, error)
        self.test_result()

    def raising(self, error: type[BaseException]) -> None:
        raise error

    def test_one_thread(self) -> None:
        """All calls are made in one other thread, in their order."""
        self.writer.start()
        self.writer.start()
        made: list[tuple[int, int]] = []
        for number in range(100):
            self.writer.call(lambda number=number: made.append((number, get_ident())))
        for _ in range(100):
            self.react()
        self.assertEqual([number for number, _ in made], list(range(100)))
        self.assertEqual(len({thread for _, thread in made} - {get_ident()}), 1)

    def test_before_start(self) -> None:
        """What is asked for before the start is done after it."""
        result = self.writer.call(str, 5)
        self.writer.start()
        self.react()
        self.assertEqual(self.successResultOf(result), "5")

    def test_cancel_waiting(self) -> None:
        """A call that is cancelled before it began is never made."""
        self.writer.start()
        made: list[str] = []
        end, held = self.held()
        dropped = self.writer.call(made.append, "dropped")
        kept = self.writer.call(made.append, "kept")
        dropped.cancel()
        self.failureResultOf(dropped, CancelledError)
        end.set()
        self.react()
        self.react()
        self.assertEqual((self.successResultOf(held), self.successResultOf(kept)), ("held", None))
        self.assertEqual(made, ["kept"])
        self.assertTrue(self.answers.empty())

    def test_cancel_running(self) -> None:
        """A call that is cancelled while it is made ends unheard, whether it returns or raises."""
        self.writer.start()
        end, held = self.held()
        held.cancel()
        self.failureResultOf(held, CancelledError)
        end.set()
        self.react()
        self.test_result()

    def test_stop(self) -> None:
        """What was asked for before the stop is still done, and what is asked for after it fails."""
        self.writer.start()
        end, held = self.held()
        waiting = self.writer.call(str, 5)
        self.writer.stop()
        self.writer.stop()
        self.failureResultOf(self.writer.call(str, 6), Stopped)
        end.set()
        self.react()
        self.react()
        self.assertEqual((self.successResultOf(held), self.successResultOf(waiting)), ("held", "5"))

    def test_stop_does_not_wait(self) -> None:
        """A call that hangs keeps neither a stop nor a new start from being done."""
        self.writer.start()
        _, held = self.held()
        self.writer.stop()
        self.assertNoResult(held)
        self.writer.start()
        self.test_result()
        self.assertNoResult(held)


class ImmediatelyTests(SynchronousTestCase):
    """The way for functions that do not block."""

    def test_result(self) -> None:
        """The result is there at once."""
        self.assertEqual(self.successResultOf(immediately(divmod, 7, 2)), (3, 1))

    def test_failure(self) -> None:
        """So is the failure."""
        self.failureResultOf(immediately(divmod, 7, 0), ZeroDivisionError)
