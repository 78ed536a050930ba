"""A reactor for what reads, which takes a turn when it is told to."""

from __future__ import annotations

from select import select
from typing import Protocol

from attrs import define, field
from twisted.internet.task import Clock
from twisted.python.failure import Failure


class Reader(Protocol):
    """What such a reactor needs of a provider of C{IReadDescriptor}."""

    def fileno(self) -> int: ...

    def doRead(self) -> Failure | None: ...

    def connectionLost(self, reason: Failure) -> None: ...

    def logPrefix(self) -> str: ...


@define(eq=False)
class Turns(Clock):
    """A reactor that takes a turn when it is told to."""

    readers: list[Reader] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        super().__init__()

    def addReader(self, reader: Reader) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Reader) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def turn(self, seconds: float = 0.0) -> bool:
        """Read from whoever has something to read; whether anybody had within so many seconds."""
        ready, _, _ = select(self.readers, [], [], seconds)
        for reader in ready:
            failure = reader.doRead()
            if failure is not None:
                failure.raiseException()
        return bool(ready)
