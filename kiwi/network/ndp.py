"""Neighbour Discovery: how IPv6 addresses are announced and asked for on a link (RFC 4861, and RFC 4862 for probes)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv6Address
from typing import Final

from kiwi.model import Address

from .packets import FOR_THIS_HOST, LOAD_HALF, LOAD_WORD, NeighbourProtocol, Range, passing

_ETHERNET_IPV6 = 0x86DD
_ICMPV6 = 58
_HOP_LIMIT = 255
_SOLICITATION, _ADVERTISEMENT = 135, 136
_TARGET_LINK_LAYER_ADDRESS = 2
_SOLICITED, _OVERRIDE = 0x40000000, 0x20000000
_VERSION = 6 << 28

_ETHERNET = struct.Struct("!6s6sH")
_IP = struct.Struct("!IHBB16s16s")
_MESSAGE = struct.Struct("!BBHI16s")
_OPTION = struct.Struct("!BB6s")

_SOURCE = _ETHERNET.size + 8
_MESSAGE_AT = _ETHERNET.size + _IP.size
_TARGET = _MESSAGE_AT + 8
_OPTIONS = _MESSAGE_AT + _MESSAGE.size
_SIZE = _OPTIONS + _OPTION.size

_NOWHERE: Final = bytes(16)
_ALL_NODES: Final = IPv6Address("ff02::1").packed
_SOLICITED_NODE: Final = IPv6Address("ff02::1:ff00:0").packed[:13]


def ndp_advertisement(mac: bytes, address: Address) -> tuple[bytes]:
    """
    The Ethernet frame that tells a whole link that C{address} is at C{mac}: an unsolicited Neighbor Advertisement to
    all nodes, which replaces what caches have (RFC 4861, sections 4.4 and 7.2.6).
    """
    option = _OPTION.pack(_TARGET_LINK_LAYER_ADDRESS, 1, mac)
    return (_frame(mac, address.packed, _ALL_NODES, _ADVERTISEMENT, _OVERRIDE, address.packed, option),)


def ndp_probe(mac: bytes, address: Address) -> bytes:
    """
    The Ethernet frame that asks who has C{address}, and tells nobody that we would have it: a Neighbor Solicitation
    from the unspecified address to the group of those whose addresses end alike (RFC 4862, section 5.4.2).
    """
    return _frame(mac, _NOWHERE, solicited_node(address), _SOLICITATION, 0, address.packed, b"")


def solicited_node(address: Address) -> bytes:
    """The group that who has C{address} listens to (RFC 4291, section 2.7.1)."""
    return _SOLICITED_NODE + address.packed[13:]


def read_advertisement(frame: bytes) -> tuple[bytes, bytes] | None:
    """
    Which address is where, as the Neighbor Advertisement in a frame says: the sixteen bytes of the IPv6 address, and
    the six of the MAC address: that in the message, or that of who sent the frame where there is none.

    @return: C{None} for all that is not one (RFC 4861, section 7.1.2). Its checksum is not looked at: that of a machine
        on this host may be left to hardware that it never reaches, and Ethernet has its own.
    """
    target = _read(frame, _ADVERTISEMENT)
    if target is None or (frame[38] == 0xFF and frame[58] & _SOLICITED >> 24):
        return None
    # The message ends with its payload; what follows in the frame is padding.
    option = frame[_OPTIONS : min(_SIZE, _MESSAGE_AT + int.from_bytes(frame[18:20], "big"))]
    if len(option) == _OPTION.size and option[:2] == bytes([_TARGET_LINK_LAYER_ADDRESS, 1]):
        return target, option[2:]
    return target, frame[6:12]


def read_solicitation(frame: bytes) -> tuple[bytes, bytes] | None:
    """
    Which address a frame probes for, and who sent it: the sixteen bytes of the IPv6 address, the six of the MAC
    address.

    @return: C{None} for all that is not a Neighbor Solicitation from the unspecified address (RFC 4861, section 7.1.1).
    """
    target = _read(frame, _SOLICITATION)
    return None if target is None or frame[_SOURCE : _SOURCE + 16] != _NOWHERE else (target, frame[6:12])


def advertisement_filter(lowest: Address, highest: Address, probes: bool = False) -> bytes:
    """
    A program for the kernel that passes the frames that L{read_advertisement} understands and whose target is in a
    range of addresses, or not far from that, where they are meant for this host.

    @param probes: pass the frames that L{read_solicitation} understands as well, where they ask for such an address.
    """
    icmp = (
        FOR_THIS_HOST,
        (LOAD_HALF, 12, _ETHERNET_IPV6, _ETHERNET_IPV6),
        (LOAD_HALF, 20, _ICMPV6 << 8 | _HOP_LIMIT, _ICMPV6 << 8 | _HOP_LIMIT),
        *_between(_TARGET, lowest, highest),
        (LOAD_WORD, _TARGET + 12, 0, 0xFFFFFFFF),  # It has its whole length.
    )
    kinds: list[list[Range]] = [[(LOAD_HALF, _MESSAGE_AT, _ADVERTISEMENT << 8, _ADVERTISEMENT << 8)]]
    if probes:
        nowhere: list[Range] = [(LOAD_WORD, _SOURCE + number, 0, 0) for number in range(0, 16, 4)]
        kinds.append([(LOAD_HALF, _MESSAGE_AT, _SOLICITATION << 8, _SOLICITATION << 8), *nowhere])
    return passing(icmp, kinds, _SIZE)


def _between(offset: int, lowest: Address, highest: Address) -> Iterator[Range]:
    """The words of an address that is in a range, down to the first one that is not the same in all of the range."""
    for number in range(0, 16, 4):
        least, most = (int.from_bytes(end.packed[number : number + 4], "big") for end in (lowest, highest))
        yield LOAD_WORD, offset + number, least, most
        if least != most:
            break


def _frame(mac: bytes, source: bytes, group: bytes, kind: int, flags: int, target: bytes, option: bytes) -> bytes:
    """A message of Neighbour Discovery to a group (RFC 2464, section 7 for its MAC address)."""
    message = _MESSAGE.pack(kind, 0, 0, flags, target) + option
    checksum = _checksum(source + group + struct.pack("!II", len(message), _ICMPV6) + message)
    return b"".join(
        (
            _ETHERNET.pack(b"\x33\x33" + group[12:], mac, _ETHERNET_IPV6),
            _IP.pack(_VERSION, len(message), _ICMPV6, _HOP_LIMIT, source, group),
            _MESSAGE.pack(kind, 0, checksum, flags, target),
            option,
        )
    )


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071), which is 0 modulo 65535 when it is put in its place."""
    return -int.from_bytes(data, "big") % 0xFFFF or 0xFFFF


def _read(frame: bytes, kind: int) -> bytes | None:
    """The target of a message of one kind; C{None} where the frame has no such message."""
    if len(frame) < _OPTIONS or frame[12:14] != b"\x86\xdd" or frame[14] >> 4 != 6:
        return None
    # A host sends 255 as hop limit, and a router would have made it less: the message is from this link.
    if frame[20:22] != bytes([_ICMPV6, _HOP_LIMIT]) or frame[_MESSAGE_AT : _MESSAGE_AT + 2] != bytes([kind, 0]):
        return None
    target = frame[_TARGET : _TARGET + 16]
    return None if target[0] == 0xFF or target == _NOWHERE or int.from_bytes(frame[18:20], "big") < 24 else target


NDP: Final = NeighbourProtocol(
    "NDP",
    _ETHERNET_IPV6,
    _SIZE,
    ndp_advertisement,
    ndp_probe,
    read_advertisement,
    read_solicitation,
    advertisement_filter,
    advertisement_filter(IPv6Address("::1"), IPv6Address("ffff::") - 1),
)
