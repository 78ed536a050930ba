"""News from the link: another machine says that it has an address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kiwi.model import Address, ip

from .links import PROTOCOLS, Link
from .packets import PacketSocket

# Note [A link that talks too much]
# Anybody on the link can send a hundred thousand frames in a second, and this agent has claims to keep. So the listener
# hears so many frames in a turn of the reactor, and then rests: 10,000 frames in a second at most, which is a twentieth
# of a processor, and the kernel drops what it has no room for. On a link with a thousand in a second a rest also makes
# one turn of what would be twenty. All links share these frames, each with both protocols, in equal parts.

_FRAMES = 200
"""How many frames are heard in one turn of the reactor, on all links together."""

_REST = 0.02
"""Seconds from one turn to the next."""

_LOOK = 1.0
"""Seconds from one look at the interface to the next."""


class LinkListener(Service):
    """
    Calls C{heard} with the address, the MAC address and the interface, for each address that another machine says to
    have on the link of one of these interfaces, of the network namespace that it was started in. Probes say nothing of
    that kind, and are not told of. Nor is what another one of these interfaces says: two may be on one LAN.

    An interface may come and go, and come back with another index: each second the listener looks whether it still
    listens to what has its name.
    """

    log = Logger()

    def __init__(self, reactor: Any, interfaces: Sequence[str], heard: Callable[[Address, bytes, str], None]) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        """
        links = [Link(interface, protocol) for interface in interfaces for protocol in PROTOCOLS.values()]
        self._reactor = reactor
        self._ears = [_Ear(reactor, link, _FRAMES // len(links), heard, self._macs) for link in links]
        self._troubles: dict[str, str] = {}
        self._next_look: IDelayedCall | None = None

    def startService(self) -> None:
        Service.startService(self)
        self._look()

    def stopService(self) -> None:
        Service.stopService(self)
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        for ear in self._ears:
            ear.close()

    def _macs(self) -> AbstractSet[bytes]:
        """The MAC addresses of the interfaces, now."""
        return {ear.mac() for ear in self._ears}

    def _look(self) -> None:
        """Listen to the interfaces as they are now."""
        self._next_look = self._reactor.callLater(_LOOK, self._look)
        troubles: dict[str, str | None] = {}
        for ear in self._ears:
            troubles[ear.interface] = ear.open() or troubles.get(ear.interface)
        for interface, trouble in troubles.items():
            self._note(interface, trouble)

    def _note(self, interface: str, trouble: str | None) -> None:
        """Say what is the matter, when it begins and when it is over."""
        if trouble == self._troubles.get(interface):
            return
        if trouble is None:
            del self._troubles[interface]
            self.log.info("hearing who has which address on {interface} again", interface=interface)
        else:
            self._troubles[interface] = trouble
            self.log.warn(
                "cannot hear who has which address on {interface}, trying again: {reason}",
                interface=interface,
                reason=trouble,
            )


@implementer(IReadDescriptor)
class _Ear:
    """
    What is heard on one link.

    @ivar _most: how many frames are heard in one turn of the reactor.
    @ivar _own: the MAC addresses of this host.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        link: Link,
        most: int,
        heard: Callable[[Address, bytes, str], None],
        own: Callable[[], AbstractSet[bytes]],
    ) -> None:
        self.interface = link.interface
        self._own = own
        self._reactor = reactor
        self._protocol = link.protocol
        self._most = max(1, most)
        self._heard = heard
        self._packets = PacketSocket(link.interface, link.protocol, link.protocol.everything)
        self._next_turn: IDelayedCall | None = None

    def open(self) -> str | None:
        """Listen to the interface as it is now; why that failed if it did."""
        opened, trouble = self._packets.fileno() != -1, None
        try:
            self._packets.bind()
        except OSError as error:
            trouble = error.strerror or str(error)
        if not opened and self._packets.fileno() != -1:
            self._reactor.addReader(self)
        return trouble

    def close(self) -> None:
        """Listen no more."""
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        if self._packets.fileno() != -1:
            self._reactor.removeReader(self)
            self._packets.close()

    def mac(self) -> bytes:
        """The MAC address of the interface, now; empty where there is none."""
        return self._packets.mac()

    def fileno(self) -> int:
        return self._packets.fileno()

    def logPrefix(self) -> str:
        return self._protocol.name

    def doRead(self) -> None:
        """Tell of what there is to hear, then rest. See Note [A link that talks too much]."""
        self._rest()
        try:
            own = self._own()
            for address, mac in self._packets.heard(self._most):
                if mac not in own:
                    self._tell(ip(address), mac)
        except OSError:
            # The interface went down, or away. The next look finds it when it is back.
            return

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave up on the socket, which has an error to tell. When that is read it is as good as before."""
        if self._packets.fileno() != -1:
            self.doRead()

    def _rest(self) -> None:
        if self._next_turn is not None:
            return
        self._reactor.removeReader(self)
        self._next_turn = self._reactor.callLater(_REST, self._listen)

    def _listen(self) -> None:
        self._next_turn = None
        self._reactor.addReader(self)

    def _tell(self, address: Address, mac: bytes) -> None:
        try:
            self._heard(address, mac, self.interface)
        except Exception:  # noqa: BLE001 one mistake must not keep the next one from being heard
            self.log.failure("that {address} was heard of could not be acted on", address=address)
