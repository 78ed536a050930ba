"""What goes on beside something else, for as long as that does."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure


@define(eq=False)
class Errands:
    """Work that is under way, until it ends by itself or all of it is cancelled."""

    _running: list[Deferred[Any]] = field(factory=list, init=False)

    def run(self, work: Deferred[Any]) -> None:
        """Let this come to its end. That it was cancelled is no failure."""
        self._running.append(work)
        work.addErrback(_cancelled)
        work.addBoth(self._ended, work)

    def cancel(self) -> None:
        """End all of it, what began first at first."""
        for work in self._running.copy():
            work.cancel()

    def _ended(self, result: object, work: Deferred[Any]) -> object:
        self._running.remove(work)
        return result


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)
