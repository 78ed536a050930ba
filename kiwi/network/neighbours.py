"""Asking the neighbours on a link whether an address is one of theirs already."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address
from math import inf
from time import sleep

from attrs import Factory, define, field
from zope.interface import implementer

from kiwi.model import ipv4

from .arp import DEAF, ArpSocket, arp_probe, read_probe, read_sender, send_in_time, sender_filter
from .interface import INeighbours, NetworkError, Probed

# Note [Deaf between probes]
# A socket that is kept also keeps what came in while nobody read it: old answers, up to megabytes of them, and an old
# answer may be that of a carrier which is gone by now. So the kernel gives the socket nothing between one probe and the
# next. What was on its way when the kernel was told can still arrive: what is there before a probe is thrown away.

_PROBES = 3
"""How often each address is asked for (RFC 5227, 1.1: C{PROBE_NUM})."""

_FRAMES = 1000
"""How many frames are read before the clock is looked at."""


@implementer(INeighbours)
@define(eq=False)
class ArpNeighbours:
    """
    Asks on an interface in the network namespace of the thread that asks first.

    An interface whose link layer is not Ethernet has no neighbours to ask.

    @ivar monotonic: the agent's monotonic clock, in seconds.
    @ivar sleep: waits for so many seconds.
    """

    interface: str
    monotonic: Callable[[], float]
    sleep: Callable[[float], None] = sleep
    _packets: ArpSocket = field(default=Factory(lambda self: ArpSocket(self.interface), takes_self=True), init=False)

    def probe(self, addresses: AbstractSet[IPv4Address], wait: float) -> Probed:
        """
        Ask for each address at once, and again after one and after two thirds of the wait, as long as nobody answers.

        The wait begins when each was asked for once, so that the last one has as much of it as the first one. A
        thousand take some milliseconds.
        """
        if not addresses:
            return Probed()
        try:
            mac = self._packets.bind()
            if not mac:
                return Probed()
            asked = _Asked(mac, {address.packed: arp_probe(mac, address) for address in sorted(addresses)})
            self._forget()
            self._packets.hear(sender_filter(min(addresses), max(addresses), probes=True))
            try:
                self._ask(asked, wait)
            finally:
                self._packets.hear(DEAF)
            asked.note(self._packets.frames())
        except OSError as error:
            raise NetworkError(f"probing for addresses on {self.interface}: {error.strerror or error}") from error
        return asked.probed()

    def close(self) -> None:
        """Give the socket back. The next probe opens one."""
        self._packets.close()

    def _forget(self) -> None:
        """Throw away what was received before. See Note [Deaf between probes]."""
        for _ in self._packets.frames():
            pass

    def _ask(self, asked: _Asked, wait: float) -> None:
        self._send(asked, inf)
        begun = self.monotonic()
        for number in range(1, _PROBES):
            self._listen(asked, begun + wait * number / _PROBES)
            self._send(asked, begun + wait)
        self._listen(asked, begun + wait)

    def _send(self, asked: _Asked, expires: float) -> None:
        """Ask for what nobody answered for, while there is time."""
        for probe in asked.probes.values():
            send_in_time(self._packets, probe, expires, self.monotonic, self.sleep)

    def _listen(self, asked: _Asked, until: float) -> None:
        """Hear answers until this moment, or until there is nothing more to be answered."""
        receiver = select.poll()
        receiver.register(self._packets.fileno(), select.POLLIN)
        while asked.probes and (left := until - self.monotonic()) > 0:
            receiver.poll(left * 1000)
            asked.note(self._packets.frames(_FRAMES))


@define
class _Asked:
    """
    A question and what is known of its answer.

    @ivar own: the MAC address of the interface itself.
    @ivar probes: the frame to ask with, for each address that nobody answered for.
    @ivar answers: the MAC address of who has each of the others.
    @ivar askers: the MAC address of who else has asked for an address.
    """

    own: bytes
    probes: dict[bytes, bytes]
    answers: dict[bytes, bytes] = field(factory=dict)
    askers: dict[bytes, bytes] = field(factory=dict)

    def note(self, frames: Iterable[bytes]) -> None:
        """Note what these frames say about what is asked for."""
        for frame in frames:
            sender = read_sender(frame)
            about, mac = sender or read_probe(frame) or (b"", self.own)
            if mac == self.own or about not in self.probes:
                continue
            if sender is None:
                self.askers[about] = mac
            else:
                del self.probes[about]
                self.answers[about] = mac

    def probed(self) -> Probed:
        """What is known now."""
        return Probed(
            {ipv4(address): mac for address, mac in self.answers.items()},
            {ipv4(address): mac for address, mac in self.askers.items() if address in self.probes},
        )
