"""Gratuitous ARP: telling the neighbours on a link, at once, where an address is now."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from time import sleep

from attrs import Factory, define, field
from zope.interface import implementer

from kiwi.model import Assignment

from .arp import ArpSocket, arp_announcement, send_in_time
from .interface import IAnnouncer, NetworkError


@implementer(IAnnouncer)
@define(eq=False)
class ArpAnnouncer:
    """
    Sends on an interface in the network namespace of the thread that announces first.

    An interface whose link layer is not Ethernet has no neighbours to tell: nothing is sent there.

    @ivar monotonic: the agent's monotonic clock, in seconds.
    @ivar sleep: waits for so many seconds.
    """

    interface: str
    monotonic: Callable[[], float]
    sleep: Callable[[float], None] = sleep
    _packets: ArpSocket = field(default=Factory(lambda self: ArpSocket(self.interface), takes_self=True), init=False)

    def announce(self, assignments: AbstractSet[Assignment]) -> None:
        """
        Send one round. Whether there is time left is asked for each address just before it is sent.

        Raises L{NetworkError}; some addresses may have been announced then.
        """
        if not assignments:
            return
        try:
            mac = self._packets.bind()
            if mac:
                for assignment in sorted(assignments, key=lambda each: each.address.packed):
                    for frame in arp_announcement(mac, assignment.address):
                        send_in_time(self._packets, frame, assignment.expires, self.monotonic, self.sleep)
        except OSError as error:
            raise NetworkError(f"announcing addresses on {self.interface}: {error.strerror or error}") from error

    def close(self) -> None:
        """Give the socket back. The next announcement opens one."""
        self._packets.close()
