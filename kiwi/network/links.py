"""Links: an interface and a protocol that its neighbours speak, and the sockets for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Protocol, TypeVar

from attrs import define, field

from kiwi.model import Address, order

from .arp import ARP
from .ndp import NDP
from .packets import NeighbourProtocol, PacketSocket

PROTOCOLS: Final[Mapping[int, NeighbourProtocol]] = {4: ARP, 6: NDP}
"""How the neighbours speak of the addresses of each version of IP."""


class Placed(Protocol):
    """An address that is to be on an interface."""

    @property
    def address(self) -> Address: ...

    @property
    def interface(self) -> str: ...


P = TypeVar("P", bound=Placed)


class Link(NamedTuple):
    """What one socket is for."""

    interface: str
    protocol: NeighbourProtocol


def by_link(placed: Iterable[P]) -> dict[Link, list[P]]:
    """What is to be said on which link; both in order."""
    links: dict[Link, list[P]] = {}
    for each in sorted(placed, key=lambda each: (each.interface, order(each.address))):
        links.setdefault(Link(each.interface, PROTOCOLS[each.address.version]), []).append(each)
    return links


@define(eq=False)
class LinkSockets:
    """One socket for each link that was used."""

    _sockets: dict[Link, PacketSocket] = field(factory=dict, init=False)

    def socket(self, link: Link) -> PacketSocket:
        """That of a link, which is to be bound before it is used."""
        if link not in self._sockets:
            self._sockets[link] = PacketSocket(*link)
        return self._sockets[link]

    def close(self) -> None:
        """Give all of them back."""
        for packets in self._sockets.values():
            packets.close()
        self._sockets.clear()
