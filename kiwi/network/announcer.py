"""Telling the neighbours on each link, at once, where an address is now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from time import sleep

from attrs import define, field
from zope.interface import implementer

from kiwi.model import Assignment

from .interface import IAnnouncer, NetworkError
from .links import Link, LinkSockets, by_link
from .packets import send_in_time


@implementer(IAnnouncer)
@define(eq=False)
class LinkAnnouncer:
    """
    Sends on interfaces in the network namespace of the thread that announces first: gratuitous ARP, and unsolicited
    Neighbor Advertisements.

    An interface whose link layer is not Ethernet has no neighbours to tell: nothing is sent there.

    @ivar monotonic: the agent's monotonic clock, in seconds.
    @ivar sleep: waits for so many seconds.
    """

    monotonic: Callable[[], float]
    sleep: Callable[[float], None] = sleep
    _sockets: LinkSockets = field(factory=LinkSockets, init=False)

    def announce(self, assignments: AbstractSet[Assignment]) -> None:
        """
        Send one round. Whether there is time left is asked for each address just before it is sent.

        Raises L{NetworkError}, after all that can be sent was: some addresses may have been announced then.
        """
        failures = [self._send(link, those) for link, those in by_link(assignments).items()]
        if any(failures):
            raise NetworkError("; ".join(dict.fromkeys(filter(None, failures))))

    def close(self) -> None:
        """Give the sockets back. The next announcement opens some."""
        self._sockets.close()

    def _send(self, link: Link, assignments: Sequence[Assignment]) -> str | None:
        """Send on one link; why that failed if it did."""
        packets = self._sockets.socket(link)
        try:
            mac = packets.bind()
            if mac:
                for assignment in assignments:
                    for frame in link.protocol.announcement(mac, assignment.address):
                        send_in_time(packets, frame, assignment.expires, self.monotonic, self.sleep)
        except OSError as error:
            return f"announcing addresses on {link.interface}: {error.strerror or error}"
        return None
