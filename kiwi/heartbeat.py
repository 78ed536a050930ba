"""The pulse of an agent."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from .logs import logger

BEATS_PER_TTL = 3


@define(eq=False)
class Heartbeat(Service):
    """
    Calls C{beat} three times in each TTL. It does not wait for what C{beat} starts, so that a slow answer delays no
    later beat; and it does not die of an exception.
    """

    clock: IReactorTime
    ttl: float
    beat: Callable[[], None]
    _loop: LoopingCall = field(init=False)

    log = logger("kiwi.heartbeat")

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._loop = LoopingCall(self._safely)
        self._loop.clock = self.clock
        self._loop.start(self.ttl / BEATS_PER_TTL, now=False)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        self._loop.stop()

    def _safely(self) -> None:
        try:
            self.beat()
        except Exception:  # noqa: BLE001 a LoopingCall stops for good after an exception
            self.log.failure("a heartbeat failed")
