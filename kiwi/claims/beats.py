"""Confirming what all claims of an agent rest on: one request for all who ask for it at once, and one at a time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from kiwi.model import AgentRecord

from .asking import answer_of
from .interface import Granted, Lost, Taken, Unavailable

Answer = Granted | Taken | Lost | Unavailable

T = TypeVar("T")


@define(eq=False)
class Beat:
    """
    One confirmation, for all who ask for it before it is sent.

    @ivar record: what is to be told of the agent; C{None} for what was told last.
    @ivar replacing: the record that a dead process of this agent left behind, if there is one.
    """

    record: AgentRecord | None = None
    replacing: AgentRecord | None = None
    _waiting: list[Deferred[Any]] = field(factory=list, init=False)

    def join(self) -> Deferred[Any]:
        joined: Deferred[Any] = Deferred()
        self._waiting.append(joined)
        return joined

    def end(self, answer: Answer) -> None:
        for joined in self._waiting:
            if not joined.called:
                joined.callback(answer)


@define(eq=False)
class Beats:
    """
    Sends confirmations. Whatever is asked for in one turn of the reactor is one; and there is one at a time, since each
    one compares what the one before has made.

    @ivar write: what one is.
    """

    clock: IReactorTime
    write: Callable[[Beat], Coroutine[Any, Any, Answer]]
    log: Logger
    _next: Beat | None = field(default=None, init=False)
    _lock: DeferredLock = field(factory=DeferredLock, init=False)

    def register(self, record: AgentRecord, replacing: AgentRecord | None) -> Deferred[Any]:
        """Confirm, and have this be told."""
        beat = self._coming()
        beat.record, beat.replacing = record, replacing
        return beat.join()

    def confirm(self) -> Deferred[Answer]:
        """Confirm, if there is anything: L{Granted}, L{Lost} or L{Unavailable}."""
        return self._coming().join()

    def between(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Deferred[T | Unavailable]:
        """Do something else while no confirmation is under way."""
        answer: Deferred[T | Unavailable] = self._lock.run(lambda: answer_of(work(), self.log))
        return answer

    def _coming(self) -> Beat:
        """The confirmation that is sent next."""
        if self._next is None:
            self._next = Beat()
            self.clock.callLater(0, self._lock.run, self._send)
        return self._next

    def _send(self) -> Deferred[Any]:
        beat, self._next = self._next, None
        assert beat is not None

        def done(answer: Answer | Failure) -> None:
            if isinstance(answer, Failure):
                answer.trap(CancelledError)
                answer = Unavailable("the request was cancelled")
            beat.end(answer)

        return answer_of(self.write(beat), self.log).addBoth(done)
