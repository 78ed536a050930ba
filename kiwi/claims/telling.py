"""How a watch tells of the claims, and of what it passes over."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from attrs import define, field, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from kiwi.logs import printable
from kiwi.model import Claims

GATHERING = 0.005
"""
Seconds from one telling of what changed to the next one, or twice as many as the last one took: what changes hands in a
burst is told together.
"""

MOST_ODDITIES = 256


@define(eq=False)
class Teller:
    """
    Calls C{changed} with what is known, in a call of its own, and once for all that came together.

    @ivar known: what is to be told now.
    @ivar told: what was told last.
    """

    clock: IReactorTime
    changed: Callable[[Claims], None]
    known: Callable[[], Claims]
    log: Logger
    told: Claims | None = field(default=None, init=False)
    _due: IDelayedCall | None = field(default=None, init=False)
    _next: float = field(default=-inf, init=False)

    def soon(self) -> None:
        """There may be something new to tell."""
        if self._due is None:
            wait = max(0.0, self._next - self.clock.seconds())
            self._due = self.clock.callLater(wait, self._tell)

    def stop(self) -> None:
        """Tell nothing any more, unless there is something new again."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _tell(self) -> None:
        self._due, began = None, self.clock.seconds()
        self.told = self.known()
        try:
            self.changed(self.told)
        except Exception:  # noqa: BLE001 one mistake there must not keep it from hearing of the next change
            self.log.failure("the change of a claim could not be acted on")
        now = self.clock.seconds()
        self._next = max(began + GATHERING, now + 2 * (now - began))


@frozen
class Oddity:
    """Something in the store that is passed over, and why. C{subject} is the same for each time that it is seen."""

    subject: str
    why: str


@define(eq=False)
class Oddities:
    """What is passed over in the store: said once, and not without end, whatever may be there."""

    log: Logger
    _seen: set[str] = field(factory=set, init=False)

    def note(self, subject: str, why: str) -> None:
        """C{subject} is the same for each time that it is seen."""
        if subject in self._seen or len(self._seen) > MOST_ODDITIES:
            return
        self._seen.add(subject)
        if len(self._seen) > MOST_ODDITIES:
            self.log.warn("passing over more in the claim store than can be listed here")
        else:
            self.log.warn("passing over {subject} in the claim store: {why}", subject=printable(subject), why=why)
