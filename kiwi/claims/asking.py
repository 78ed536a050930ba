"""How the stores ask their servers: how many questions at once, for how long, and how often."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from kiwi.http import HTTPError, Response, hedged
from kiwi.logs import printable

from .interface import Unavailable

# Note [Time for an answer]
# With a TTL of T seconds, whatever concerns one claim is answered within T/2, and what a heartbeat asks within 0.3 T:
# the next one comes T/3 later, and finds nothing of it still under way. Where it asks for two
# things, one after the other, it has 0.45 T, and the next one waits: with answers that take 0.2 T, it comes through.
#
# Note [Asked again]
# A reply that is lost on its way must not cost a claim the time of a heartbeat. So a request that is not answered
# within T/10 is sent again, and once more after that; the first answer counts. Each store says why that does no harm.

T = TypeVar("T")

CLAIM_TIME, BEAT_TIME, DOUBLE_BEAT_TIME = 1 / 2, 0.3, 0.45
"""Parts of the TTL; see Note [Time for an answer]."""

ASK_AGAIN, MOST_ASKED = 1 / 10, 3
"""See Note [Asked again]: a part of the TTL, and how often a request is sent at the most."""

CLAIMS_IN_FLIGHT, MOST_IN_FLIGHT = 16, 256
PATIENCE = 0.02
"""Seconds after which a request counts as slow, where a connection more for the next one costs little."""


def asked_again(clock: IReactorTime, ttl: float, send: Callable[[], Deferred[Response]]) -> Deferred[Response]:
    """The first answer to what is sent, once or more. See Note [Asked again]."""
    return hedged(clock, send, ttl * ASK_AGAIN, MOST_ASKED)


def answer_of(work: Coroutine[Any, Any, T], log: Logger) -> Deferred[T | Unavailable]:
    """What comes of C{work}, which is an L{Unavailable} where it fails. Only being cancelled is a failure."""

    def failed(failure: Failure) -> Unavailable:
        if failure.check(HTTPError):
            return Unavailable(str(failure.value))
        if failure.check(CancelledError) or not failure.check(Exception):
            failure.raiseException()
        log.failure("a request to the claim store could not be made", failure)
        return Unavailable(printable(failure.getErrorMessage()))

    answer: Deferred[T | Unavailable] = Deferred.fromCoroutine(work)
    return answer.addErrback(failed)


@define(eq=False)
class Turn:
    """The right to have a request in flight, until it is done."""

    _turns: Turns
    _patience: IDelayedCall = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._patience = self._turns.clock.callLater(self._turns.patience, self._slow)

    def _slow(self) -> None:
        self._turns._quick -= 1
        self._turns._hand_out()

    def done(self) -> None:
        if self._patience.active():
            self._patience.cancel()
            self._turns._quick -= 1
        self._turns._flying -= 1
        self._turns._hand_out()


@define(eq=False)
class Turns:
    """
    Bounds the requests in flight.

    While the store is quick, there are at most C{limit}: more would not be answered sooner, and others would wait for
    them. A request that has been in flight for C{patience} seconds no longer counts, so that a slow store is not asked
    in sequence; up to L{MOST_IN_FLIGHT} in all.

    @ivar urgent: other requests, which go first: while any of them is in flight and the store is quick, these go one by
        one.
    """

    clock: IReactorTime
    limit: int
    urgent: Turns | None = None
    patience: float = PATIENCE
    _quick: int = field(default=0, init=False)
    _flying: int = field(default=0, init=False)
    _waiting: deque[Deferred[Turn]] = field(factory=deque, init=False)
    _busy: bool = field(default=False, init=False)

    def turn(self, seconds: float) -> Deferred[Turn]:
        """The next turn, in the order of asking. It fails with L{HTTPError} if none comes within so many seconds."""

        def too_late(result: object, seconds: float) -> Any:
            raise HTTPError(f"no request was sent: after {seconds:.1f} s the store had not answered those before it")

        waiting: Deferred[Turn] = Deferred()
        self._waiting.append(waiting)
        self._hand_out()
        return waiting if waiting.called else waiting.addTimeout(seconds, self.clock, too_late)

    def _hand_out(self) -> None:
        # A request can end within the call that starts it, and must then not start the next one inside of it.
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting and self._quick < self._limit_now() and self._flying < MOST_IN_FLIGHT:
                waiting = self._waiting.popleft()
                if not waiting.called:
                    self._quick += 1
                    self._flying += 1
                    waiting.callback(Turn(self))
        finally:
            self._busy = False

    def _limit_now(self) -> int:
        return 1 if self.urgent is not None and self.urgent._quick else self.limit
