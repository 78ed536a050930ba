"""What all of netlink has in common: messages, their attributes, and refusals. See netlink(7)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

HEADER = struct.Struct("=IHHII")
"""C{struct nlmsghdr}: size, type, flags, sequence number, port."""

ATTRIBUTE = struct.Struct("=HH")
"""C{struct nlattr}: size with this header, but without padding; type."""

_NLMSGERR_ATTR_MSG = 1
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200

NLA_F_NESTED = 0x8000
"""In the type of an attribute that is made of attributes."""

CAP_ACK = 10
"""The socket option C{NETLINK_CAP_ACK}: a refusal does not repeat the request."""


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that is made of these."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def walk(message: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Type and value of the whole attributes in a message from C{start} to its end."""
    while start + 4 <= len(message):
        size, kind = ATTRIBUTE.unpack_from(message, start)
        if size < 4 or start + size > len(message):
            break
        yield kind & 0x3FFF, message[start + 4 : start + size]
        start += (size + 3) & ~3


def attributes(message: bytes, start: int = 0) -> dict[int, bytes]:
    """The whole attributes in a message from C{start} to its end, by type."""
    return dict(walk(message, start))


def split(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages of a datagram: type, flags, sequence number, and what follows the header."""
    start = 0
    while start + HEADER.size <= len(datagram):
        size, kind, flags, sequence, _ = HEADER.unpack_from(datagram, start)
        if size < HEADER.size:
            break
        yield kind, flags, sequence, datagram[start + HEADER.size : start + size]
        start += (size + 3) & ~3


def refusal(code: int, flags: int, message: bytes) -> str:
    """The text of an C{NLMSG_ERROR}: the error's own, and what the kernel adds to it where it does."""
    text = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS:
        request = HEADER.size if flags & _NLM_F_CAPPED else HEADER.unpack_from(message, 4)[0]
        more = attributes(message, 4 + ((request + 3) & ~3)).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0")
        if more:
            text += f" ({ascii(more.decode('utf-8', 'replace'))[1:-1]})"
    return text
