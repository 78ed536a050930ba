"""The way into the one thread that touches the host."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

T = TypeVar("T")


class InThread(Protocol):
    """Calls a function that blocks, away from the reactor's thread, and tells what came of it."""

    def __call__(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]: ...


class Stopped(Exception):
    """There is no thread any more that would make the call."""


def immediately(function: Callable[..., T], *arguments: Any) -> Deferred[T]:
    """Call now, in this thread: an L{InThread} for tests, and for functions that only remember."""
    return maybeDeferred(function, *arguments)


@define(eq=False)
class _Call:
    """
    One call.

    @ivar dropped: nobody waits for it any more. The reactor's thread sets it and the other one reads it; if that is too
        late then the call is made and its answer is dropped.
    """

    function: Callable[[], Any]
    deferred: Deferred[Any] = field(init=False)
    dropped: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.deferred = Deferred(self._drop)

    def answer(self, result: Any) -> None:
        """Tell what came of it, in the reactor's thread."""
        if not self.dropped:
            self.deferred.callback(result)

    def _drop(self, deferred: Deferred[Any]) -> None:
        self.dropped = True


@define(eq=False)
class OneWriter:
    """
    One thread that makes one call at a time, in the order in which they were asked for.

    This is not a thread pool of Twisted's: stopping one waits for its threads in the reactor's own thread, and so a
    call that hangs in the kernel would hang the agent's exit. A thread that hangs here dies with the process.

    All methods are for the reactor's thread.

    @ivar call_from_thread: C{reactor.callFromThread}.
    """

    call_from_thread: Callable[..., object]
    _queue: SimpleQueue[_Call | None] = field(factory=SimpleQueue, init=False)
    _running: bool = field(default=False, init=False)
    _stopped: bool = field(default=False, init=False)

    def start(self) -> None:
        """Begin with the calls that were asked for so far."""
        if not self._running:
            self._running, self._stopped = True, False
            Thread(target=self._work, args=(self._queue,), name="kiwi network", daemon=True).start()

    def stop(self) -> None:
        """
        Take no more calls. Those that were asked for are still made, and the thread ends after them; nobody waits for
        it.
        """
        if not self._stopped:
            self._queue.put(None)
            self._queue = SimpleQueue()
            self._running, self._stopped = False, True

    def call(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """
        Call in the thread.

        Cancelling the Deferred drops the call if it has not begun, and otherwise lets it finish unheard.

        @return: what the function returns or raises, in the reactor's thread; L{Stopped} after L{stop}.
        """
        call = _Call(lambda: function(*arguments))
        if self._stopped:
            call.deferred.errback(Stopped("the network thread has stopped"))
        else:
            self._queue.put(call)
        return call.deferred

    def _work(self, queue: SimpleQueue[_Call | None]) -> None:
        while (call := queue.get()) is not None:
            if call.dropped:
                continue
            try:
                result = call.function()
            except BaseException:  # noqa: BLE001  Whatever it is, it is for the caller to judge.
                result = Failure()
            self.call_from_thread(call.answer, result)
