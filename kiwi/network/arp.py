"""ARP: how IPv4 addresses are announced and asked for on a link."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Final

from kiwi.model import Address

from .packets import FOR_THIS_HOST, LOAD_HALF, LOAD_WORD, NeighbourProtocol, Range, passing

_ETHERNET_ARP = 0x0806
_FRAME = struct.Struct("!6s6sH HHBBH 6s4s6s4s")
_BROADCAST: Final = b"\xff" * 6
_NOBODY: Final = bytes(6)
_NOWHERE: Final = bytes(4)
_REQUEST, _REPLY = 1, 2
_QUESTION, _ANSWER = (struct.pack("!HHHBBH", _ETHERNET_ARP, 1, 0x0800, 6, 4, kind) for kind in (_REQUEST, _REPLY))
"""The bytes from the type of the frame to the kind of the message, in a frame that is heeded."""


def arp_announcement(mac: bytes, address: Address) -> tuple[bytes, bytes]:
    """
    The two Ethernet frames that tell a whole link that C{address} is at C{mac}, in request and in reply form: some
    neighbours heed only one of them.

    Both are broadcast, and have the address as sender and as target (RFC 826 for the layout). In the request, the
    target's hardware address is zero (RFC 5227, 1.1 and 3: an ARP Announcement). In the reply it is the one that
    caches shall learn (RFC 5944, 4.6).
    """
    ip = address.packed
    # fmt: off
    return (
        _FRAME.pack(_BROADCAST, mac, _ETHERNET_ARP, 1, 0x0800, 6, 4, _REQUEST, mac, ip, _NOBODY, ip),
        _FRAME.pack(_BROADCAST, mac, _ETHERNET_ARP, 1, 0x0800, 6, 4, _REPLY, mac, ip, mac, ip),
    )
    # fmt: on


def arp_probe(mac: bytes, address: Address) -> bytes:
    """
    The Ethernet frame that asks a whole link who has C{address}, and tells nobody that we would have it: a broadcast
    request whose sender's address is zero (RFC 5227, 1.1 and 2.1.1).
    """
    # fmt: off
    return _FRAME.pack(
        _BROADCAST, mac, _ETHERNET_ARP, 1, 0x0800, 6, 4, _REQUEST, mac, _NOWHERE, _NOBODY, address.packed
    )
    # fmt: on


def read_sender(frame: bytes) -> tuple[bytes, bytes] | None:
    """
    Who sent a frame, as the ARP in it says: the four bytes of the IPv4 address and the six of the MAC address.

    @return: C{None} for all that is not a request or a reply between IPv4 addresses on Ethernet, and for a probe, whose
        sender has no address.
    """
    if len(frame) < _FRAME.size or frame[12:22] not in (_QUESTION, _ANSWER):
        return None
    sender = frame[28:32]
    return None if sender == _NOWHERE else (sender, frame[22:28])


def read_probe(frame: bytes) -> tuple[bytes, bytes] | None:
    """
    Which address a frame probes for, and who sent it: the four bytes of the IPv4 address, the six of the MAC address.

    @return: C{None} for all that is not a request between IPv4 addresses on Ethernet whose sender has no address (RFC
        5227, 1.1), and for one that asks for no address either.
    """
    if len(frame) < _FRAME.size or frame[12:22] != _QUESTION or frame[28:32] != _NOWHERE:
        return None
    target = frame[38:42]
    return None if target == _NOWHERE else (target, frame[22:28])


def sender_filter(lowest: Address, highest: Address, probes: bool = False) -> bytes:
    """
    A program for the kernel that passes the frames that L{read_sender} understands and whose sender is in a range of
    addresses, where they are meant for this host.

    @param probes: pass the frames that L{read_probe} understands as well, where they ask for an address in the range.
    """
    least, most = max(1, int(lowest)), int(highest)
    arp = (
        FOR_THIS_HOST,
        (LOAD_HALF, 12, _ETHERNET_ARP, _ETHERNET_ARP),
        (LOAD_WORD, 14, 0x00010800, 0x00010800),
        (LOAD_HALF, 18, 0x0604, 0x0604),
        (LOAD_HALF, 20, _REQUEST, _REPLY),
        (LOAD_WORD, 38, 0, 0xFFFFFFFF),  # It has its whole length.
    )
    kinds: list[list[Range]] = [[(LOAD_WORD, 28, least, most)]]
    if probes:
        kinds.append([(LOAD_HALF, 20, _REQUEST, _REQUEST), (LOAD_WORD, 28, 0, 0), (LOAD_WORD, 38, least, most)])
    return passing(arp, kinds, _FRAME.size)


ARP: Final = NeighbourProtocol(
    "ARP",
    _ETHERNET_ARP,
    _FRAME.size,
    arp_announcement,
    arp_probe,
    read_sender,
    read_probe,
    sender_filter,
    sender_filter(IPv4Address("0.0.0.1"), IPv4Address("255.255.255.255")),
)
