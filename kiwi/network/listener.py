"""News from the link: another machine says that it has an address."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kiwi.model import ipv4

from .arp import ArpSocket, sender_filter

# Note [A link that talks too much]
# Anybody on the link can send a hundred thousand frames in a second, and this agent has claims to keep. So the listener
# hears so many frames in a turn of the reactor, and then rests: 10,000 frames in a second at most, which is a twentieth
# of a processor, and the kernel drops what it has no room for. On a link with a thousand in a second a rest also makes
# one turn of what would be twenty.

_FRAMES = 200
"""How many frames are heard in one turn of the reactor."""

_REST = 0.02
"""Seconds from one turn to the next."""

_LOOK = 1.0
"""Seconds from one look at the interface to the next."""

_EVERYBODY = sender_filter(IPv4Address("0.0.0.1"), IPv4Address("255.255.255.255"))


@implementer(IReadDescriptor)
class ArpListener(Service):
    """
    Calls C{heard} with the address and the MAC address of each sender of ARP on an interface, of the network namespace
    that it was started in, but for this interface itself. Probes have no sender's address and are not told of.

    The interface may come and go, and come back with another index: each second the listener looks whether it still
    listens to what has its name.
    """

    log = Logger()

    def __init__(self, reactor: Any, interface: str, heard: Callable[[IPv4Address, bytes], None]) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        """
        self._reactor = reactor
        self._interface = interface
        self._heard = heard
        self._packets = ArpSocket(interface, _EVERYBODY)
        self._trouble: str | None = None
        self._next_look: IDelayedCall | None = None
        self._next_turn: IDelayedCall | None = None

    def startService(self) -> None:
        Service.startService(self)
        self._look()

    def stopService(self) -> None:
        Service.stopService(self)
        for call in (self._next_look, self._next_turn):
            if call is not None:
                call.cancel()
        self._next_look = self._next_turn = None
        if self._packets.fileno() != -1:
            self._reactor.removeReader(self)
            self._packets.close()

    def fileno(self) -> int:
        return self._packets.fileno()

    def logPrefix(self) -> str:
        return "arp"

    def doRead(self) -> None:
        """Tell of what there is to hear, then rest. See Note [A link that talks too much]."""
        self._rest()
        try:
            own = self._packets.mac()
            for address, mac in self._packets.heard(_FRAMES):
                if mac != own:
                    self._tell(ipv4(address), mac)
        except OSError:
            # The interface went down, or away. The next look finds it when it is back.
            return

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave up on the socket, which has an error to tell. When that is read it is as good as before."""
        if self.running:
            self.doRead()

    def _look(self) -> None:
        """Listen to the interface as it is now."""
        self._next_look = self._reactor.callLater(_LOOK, self._look)
        opened = self._packets.fileno() != -1
        try:
            self._packets.bind()
        except OSError as error:
            self._note(error.strerror or str(error))
        else:
            self._note(None)
        if not opened and self._packets.fileno() != -1:
            self._reactor.addReader(self)

    def _note(self, trouble: str | None) -> None:
        """Say what is the matter, when it begins and when it is over."""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble is None:
            self.log.info("hearing who has which address on {interface} again", interface=self._interface)
        else:
            self.log.warn(
                "cannot hear who has which address on {interface}, trying again: {reason}",
                interface=self._interface,
                reason=trouble,
            )

    def _rest(self) -> None:
        if self._next_turn is not None:
            return
        self._reactor.removeReader(self)
        self._next_turn = self._reactor.callLater(_REST, self._listen)

    def _listen(self) -> None:
        self._next_turn = None
        self._reactor.addReader(self)

    def _tell(self, address: IPv4Address, mac: bytes) -> None:
        try:
            self._heard(address, mac)
        except Exception:  # noqa: BLE001 one mistake must not keep the next one from being heard
            self.log.failure("that {address} was heard of could not be acted on", address=address)
