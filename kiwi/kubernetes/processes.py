"""Commands that are run for what they print, while the reactor goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

LARGEST = 2**20
"""Bytes of output that are kept."""


@frozen
class Command:
    """
    @ivar path: of the executable.
    @ivar arguments: without the name of the executable.
    @ivar environment: all of it.
    """

    path: str
    arguments: Sequence[str] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)


@frozen
class Finished:
    """
    What came of a command.

    @ivar status: its exit status; the negative number of the signal that ended it.
    @ivar output: what it printed, up to L{LARGEST} bytes.
    @ivar errors: what it said on standard error, likewise.
    """

    status: int
    output: bytes = field(repr=False)
    errors: bytes = field(default=b"", repr=False)


@define(eq=False)
class _Running(ProcessProtocol):
    """Gathers what a process prints. Nothing is given to it to read."""

    done: Deferred[Finished] = field(init=False)
    _output: bytearray = field(factory=bytearray, init=False, repr=False)
    _errors: bytearray = field(factory=bytearray, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.done = Deferred(lambda _: self._kill())

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._output += data[: LARGEST - len(self._output)]

    def errReceived(self, data: bytes) -> None:
        self._errors += data[: LARGEST - len(self._errors)]

    def processEnded(self, reason: Failure) -> None:
        if not self.done.called:
            ended: Any = reason.value
            status = -ended.signal if ended.signal else ended.exitCode or 0
            self.done.callback(Finished(status, bytes(self._output), bytes(self._errors)))

    def _kill(self) -> None:
        transport: IProcessTransport | None = self.transport
        if transport is not None:
            with suppress(ProcessExitedAlready):
                transport.signalProcess("KILL")
            # What it has started may keep the pipes open.
            transport.loseConnection()


def run(reactor: Any, command: Command) -> Deferred[Finished]:
    """
    Run a command, without a terminal and without input. Fails with L{OSError} where it cannot be started. Cancelling
    kills it.
    """
    running = _Running()
    reactor.spawnProcess(running, command.path, [command.path, *command.arguments], env=dict(command.environment))
    return running.done
