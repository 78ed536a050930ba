"""
The addresses of some interfaces, over rtnetlink.

Every call opens a socket of its own (10 microseconds), so it acts on the network namespace of the thread that makes it
and has no broken socket to mend. The few messages needed are written and read here with L{struct}, because a codec for
all of netlink costs 0.3 ms to write an address and 0.06 ms to read one. Headers and attributes are those of
rtnetlink(7), C{linux/if_addr.h}, C{linux/if_link.h} and C{linux/rtnetlink.h}; the numbers come from pyroute2.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from functools import lru_cache
from ipaddress import IPv4Interface, IPv6Interface
from math import ceil, floor, inf
from time import sleep
from typing import NamedTuple

from attrs import field, frozen
from pyroute2.netlink import (
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    SOL_NETLINK,
)
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
)
from zope.interface import implementer

from kiwi.model import Address, Assignment, Configured, Host, Link, ip

from .interface import Assigned, IAddresses, NetworkError, Unassigned
from .netlink import ATTRIBUTE, CAP_ACK, HEADER, attribute, attributes, refusal, split

# Note [Whose address is it]
# The kernel replaces an address if its number and its prefix are the same. It does not compare labels: a replace of an
# address that somebody else configured would take away its permanence and its protocol, and leave it their label. So
# every assignment begins with a dump, and only what bears our tag there is replaced. All else is created with
# NLM_F_EXCL, which the kernel refuses if it is there by now; then the dump is made anew. What is left is the time
# between dump and replace, some milliseconds, in which somebody would have to delete our address by hand and configure
# the very same one. Deletions carry our label, and that the kernel does compare. IPv6 has no labels: there, that time
# is left between dump and deletion, too.
#
# Whoever changes the lifetime of our address by hand mostly leaves its protocol out, and then the kernel forgets it. An
# address with our label and no protocol is therefore ours if this process has put it there and it has been there since.
# So is one of IPv6. On a kernel that keeps no protocols that is all there is to know an IPv6 address by: what an
# earlier life of this agent has left is somebody else's to read, and told as unclear; who knows that the claim is ours
# may assign it, and that replaces it.

# Note [A kernel that takes its time]
# A lifetime is relative: it runs from the moment when the kernel acts. If the process is stopped between the reading of
# the clock and the sending, or the kernel makes the message wait for its lock, then the address would live longer than
# its claim. So the clock is read again when the kernel has answered. An address that may outlive its time by then is
# written again, with a lifetime that is right, or removed if there is none.

# Note [Two looks at the clock]
# The kernel's timers grow coarser the further ahead they are set: by up to an eighth of the time, in steps of 0.26 s
# from 2 s on, and of 2 s from 16 s on, where it ticks 250 times a second (C{kernel/time/timer.c}). So an address with a
# lifetime of 19 s was seen to go 1.95 s late. But the kernel looks when the preferred lifetime ends, too, and then sets
# the timer anew for what is left, which is little. What that lifetime says means nothing for IPv4. There must be more
# than the least time between two looks (1 s) and the lateness of the first one in between.

# Note [Never a source]
# In IPv6 the preferred lifetime does mean something: a host takes a preferred address as the source of its own
# connections, and of several the one that is most like the destination, over the whole of its prefix (RFC 6724,
# section 5). With a prefix of 128 bits that would often be a public address, and what the host had opened would break
# when the address moves on. So the preferred lifetime of ours is 0 from the start; a deprecated address is taken for
# the source only where there is no other, and answers as any other does.
#
# Then the kernel looks but once, and is late by up to an eighth of the time. Of the time that is left until an address
# must be gone, the lifetime is therefore eight ninths. That costs a ninth of it where claims cannot be confirmed, and
# nothing else. (To ask the kernel how coarse it is, and shorten by just that, would shorten by leaps; and what is to
# end some seconds before something else could end with it. See Note [Written together] in L{kiwi.planning}.) To those
# who ask, an address lasts until the time that it was asked for.

# Note [Groups of solicited nodes]
# Each IPv6 address brings a multicast group with it (RFC 4291, section 2.7.1), and whenever one address is written, the
# kernel goes through all groups of the interface (C{ipv6_mc_up} in C{net/ipv6/mcast.c}, which C{ipv6_find_idev} calls),
# 0.28 microseconds for each. So to write a thousand takes 0.3 s, and five thousand 8 s, for a kernel that needs 10
# microseconds for one. Addresses that are written within 20 ms go together; of more than two hundred, the last ones
# miss the pass that takes the first ones away, and go with the next one, a second later. That second is provided for,
# where it can be: the shortest of claims leave none. So what is due in less than that, and has been given its lifetime
# for just that time when there was more, keeps it.

LABEL_SUFFIX = ":kube"
LABEL_SIZE = 15
"""Bytes in the label of an address (C{IFNAMSIZ} less its terminator)."""

PROTOCOL = 75
"""
The protocol number of our addresses: who configured them, as C{linux/if_addr.h} has it. It says there that user space
may take any number above C{IFAPROT_KERNEL_LL} (3); this is the letter K. Kernels know it from 5.18 on.
"""

PROXY_INTERFACES = ("kube-ipvs0", "kube-dummy-if")
"""
Where proxies in IPVS mode keep the addresses of all Services on every node, so that the kernel takes their traffic in:
C{defaultDummyDevice} in kube-proxy's C{pkg/proxy/ipvs/proxier.go}, and C{KubeDummyIf} in kube-router's
C{pkg/controllers/proxy}. That an address is there does not say that this host carries it.
"""

_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_ARPHRD_ETHER = 1
_IFA_F_NODAD, _IFA_F_DADFAILED, _IFA_F_TENTATIVE, _IFA_F_NOPREFIXROUTE = 0x2, 0x8, 0x40, 0x200
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_EXT_MASK, _IFLA_CARRIER_CHANGES = 1, 3, 29, 35
_RTEXT_FILTER_SKIP_STATS = 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 1, 2, 3, 6, 8, 11
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH = 4, 5, 6, 9
_FOREVER = 0xFFFFFFFF
_SIZES: Mapping[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}
"""Bytes in an address of each family."""

_FAMILIES = tuple(_SIZES)

_WORD = struct.Struct("=I")
_IFADDRMSG = struct.Struct("=BBBBI")
_IFINFOMSG = struct.Struct("=BxHiII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")

_BATCH = 100
"""Messages in one datagram, so that the answers to all of them fit in a receive buffer of the default size."""

_NEVER = _WORD.pack(_FOREVER)
_CACHEINFO = ATTRIBUTE.pack(20, _IFA_CACHEINFO)
_SEQUENCE = [_WORD.pack(number) for number in range(_BATCH)]
_END = HEADER.pack(HEADER.size, NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, _BATCH, 0)
"""A message that asks for nothing, and is acknowledged when all before it in the datagram was done."""

_GROUPS_WRITTEN_TOGETHER, _NEXT_PASS, _LONG_ENOUGH = 200, 1.0, 3.0
"""See Note [Groups of solicited nodes]. Addresses, and seconds."""

_ROUNDING = 1.5
"""Seconds by which what the kernel tells of a lifetime may be off."""

_ROUNDS = 5
"""How often an assignment is begun anew because the host changed meanwhile."""

_DUMPS = 40
"""
How often a dump is begun anew because the host changed meanwhile, after 0, 1, 2... milliseconds, 0.8 s in all: the
kernel takes tens of milliseconds to remove a thousand addresses whose time has come.
"""

_PATIENCE = 5.0
"""Seconds to wait for an answer that the kernel normally has ready at once."""


def label_for(interface: str) -> str:
    """The label of our addresses on an interface: its name and C{:kube}, with the name cut to make it fit."""
    return os.fsdecode(os.fsencode(interface)[: LABEL_SIZE - len(LABEL_SUFFIX)]) + LABEL_SUFFIX


def knows_protocol(release: str) -> bool:
    """Whether a kernel of this release (as C{uname -r} has it) keeps the protocol number of an address."""
    version = re.match(r"(\d+)\.(\d+)", release)
    return version is not None and (int(version[1]), int(version[2])) >= (5, 18)


def can_administer(status: str = "/proc/self/status") -> bool:
    """
    Whether this process may change the network and send raw frames: C{CAP_NET_ADMIN} and C{CAP_NET_RAW}, which are bits
    12 and 13 in C{linux/capability.h}.

    @param status: the path of its status in proc(5).
    """
    needed = 1 << 12 | 1 << 13
    with open(status) as lines:
        effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return effective & needed == needed


def default_interface() -> str | None:
    """
    The interface of the default route with the lowest metric, if there is one: of IPv4, and only without that of IPv6.
    Raises L{NetworkError}.
    """
    with _rtnetlink("reading the default routes") as kernel:
        for family in _FAMILIES:
            best = min(kernel.default_routes(family), key=lambda route: route.metric, default=None)
            if best is not None and best.interface is not None:
                return socket.if_indextoname(best.interface)
    return None


def preferred_lifetime(seconds: int) -> int:
    """
    The preferred lifetime that makes the kernel punctual with a valid one of IPv4. See Note [Two looks at the clock].
    """
    if seconds < 3 or seconds == _FOREVER:
        return seconds
    return seconds - (2 if seconds <= 16 else ceil(seconds / 8 + 1.5))


def punctual_lifetime(left: float, together: int) -> float:
    """
    The lifetime of an IPv6 address that must be gone in so many seconds. See Note [Never a source] and Note [Groups of
    solicited nodes].

    @param together: how many IPv6 addresses there are.
    """
    if together > _GROUPS_WRITTEN_TOGETHER and left >= _LONG_ENOUGH:
        left -= _NEXT_PASS
    return min(left, (left + 0.25) * 8 / 9)


class Traits(NamedTuple):
    """
    What many addresses of a host have in common, as the kernel tells it.

    @ivar link: the index of their interface.
    @ivar protocol: who configured them; 0 where the kernel does not tell.
    @ivar flags: C{IFA_F_...} in C{linux/if_addr.h}.
    """

    link: int
    family: int
    prefix: int
    label: bytes
    protocol: int
    flags: int

    @property
    def is_single(self) -> bool:
        """The prefix is the whole address."""
        return self.prefix == _SIZES[self.family] * 8

    @property
    def is_usable(self) -> bool:
        """It answers: no other machine on the link was found to have it, nor is that still being asked."""
        if self.flags & _IFA_F_NODAD:
            return not self.flags & _IFA_F_DADFAILED
        return not self.flags & (_IFA_F_DADFAILED | _IFA_F_TENTATIVE)


class DefaultRoute(NamedTuple):
    """
    One default route of the main table.

    @ivar interface: the index of the (first) interface it leaves by; C{None} where there is none.
    """

    interface: int | None
    gateways: frozenset[Address]
    metric: int


def decode_address(message: bytes) -> tuple[Traits, bytes, int | None] | None:
    """
    Read a C{RTM_NEWADDR} message, without its netlink header.

    @return: what it has in common with others; its four or sixteen bytes; and the whole seconds that are left, rounded
        up, or C{None} where it is permanent. C{None} for what is no IP address.
    """
    family, prefix, flags, _, index = _IFADDRMSG.unpack_from(message)
    found = attributes(message, _IFADDRMSG.size)
    local = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS) or b""
    if len(local) != _SIZES.get(family) or prefix > 8 * len(local):
        return None
    traits = Traits(
        index,
        family,
        prefix,
        found.get(_IFA_LABEL, b"").rstrip(b"\0"),
        found.get(_IFA_PROTO, b"\0")[0],
        _number(found.get(_IFA_FLAGS)) or flags,
    )
    valid = _number(found.get(_IFA_CACHEINFO, b"")[4:8])
    return traits, local, None if valid == _FOREVER else valid


def decode_addresses(messages: Iterable[bytes]) -> dict[Traits, dict[bytes, int | None]]:
    """
    Read many such messages: the lifetimes of addresses, by what these have in common.

    Messages that are the same but for address and lifetime are read as the first one of them was.
    """
    found: dict[Traits, dict[bytes, int | None]] = {}
    alike: dict[bytes, dict[bytes, int | None]] = {}
    for message in messages:
        if message[0] == socket.AF_INET6:
            frame, local, valid = message[:12] + message[28:32] + message[48:], message[12:28], message[36:40]
        else:
            frame, local, valid = message[:12] + message[16:20] + message[24:-16], message[12:16], message[-12:-8]
        lifetimes = alike.get(frame)
        if lifetimes is not None:
            lifetimes[local] = None if valid == _NEVER else _WORD.unpack(valid)[0]
        elif (address := decode_address(message)) is not None:
            lifetimes = found.setdefault(address[0], {})
            lifetimes[address[1]] = address[2]
            if _is_laid_out(message, address[1]):
                alike[frame] = lifetimes
    return found


def _is_laid_out(message: bytes, local: bytes) -> bool:
    """Whether address and lifetime are where the kernel puts them in the messages about most addresses."""
    if len(local) == 16:
        return message[8:12] == ATTRIBUTE.pack(20, _IFA_ADDRESS) and message[28:32] == _CACHEINFO
    heads = [ATTRIBUTE.pack(8, kind) for kind in (_IFA_ADDRESS, _IFA_LOCAL)]
    return [message[8:12], message[16:20], message[20:24], message[-20:-16]] == [*heads, local, _CACHEINFO]


def decode_link(message: bytes) -> Link:
    """Read a C{RTM_NEWLINK} message, without its netlink header."""
    _, kind, index, flags, _ = _IFINFOMSG.unpack_from(message)
    found = attributes(message, _IFINFOMSG.size)
    return Link(
        index,
        os.fsdecode(found[_IFLA_IFNAME].rstrip(b"\0")),
        found.get(_IFLA_ADDRESS, b"") if kind == _ARPHRD_ETHER else b"",
        bool(flags & _IFF_UP and flags & _IFF_LOWER_UP),
        _number(found.get(_IFLA_CARRIER_CHANGES)) or 0,
    )


def decode_default_route(message: bytes) -> DefaultRoute | None:
    """
    Read a C{RTM_NEWROUTE} message, without its netlink header.

    @return: C{None} where it is not a unicast default route of the main table.
    """
    _, size, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(message)
    if (size, table, kind) != (0, _RT_TABLE_MAIN, _RTN_UNICAST):
        return None
    found = attributes(message, _RTMSG.size)
    hops = [(_number(found.get(_RTA_OIF)), found.get(_RTA_GATEWAY))]
    several = found.get(_RTA_MULTIPATH, b"")
    while len(several) >= _NEXT_HOP.size:
        length, _, _, index = _NEXT_HOP.unpack_from(several)
        if length < _NEXT_HOP.size:
            break
        hops.append((index, attributes(several[:length], _NEXT_HOP.size).get(_RTA_GATEWAY)))
        several = several[(length + 3) & ~3 :]
    return DefaultRoute(
        next((index for index, _ in hops if index is not None), None),
        frozenset(ip(gateway) for _, gateway in hops if gateway is not None),
        _number(found.get(_RTA_PRIORITY)) or 0,
    )


def _number(value: bytes | None) -> int | None:
    return int(_WORD.unpack(value)[0]) if value is not None and len(value) == _WORD.size else None


@frozen
class AddressWriter:
    """
    Writes the messages about our addresses of one family. A message carries every attribute each time: a replace
    without lifetimes makes an address permanent, and one without the protocol takes that away.

    Most of a message is the same for many addresses, and written once for all of them.

    @ivar label: of our addresses on one interface; IPv6 has none.
    """

    family: int
    label: bytes = b""

    def new(self, flags: int, index: int, seconds: int) -> Writer:
        """
        Create or replace addresses whose prefix is their whole length, to be removed by the kernel in so many whole
        seconds. No IPv6 address is asked for on the link, for that was done; nor does it get a route for its prefix,
        which would stay behind.
        """
        flags_and_label, preferred = attribute(_IFA_LABEL, self.label + b"\0"), preferred_lifetime(seconds)
        if self.family == socket.AF_INET6:
            flags_and_label, preferred = attribute(_IFA_FLAGS, _WORD.pack(_IFA_F_NODAD | _IFA_F_NOPREFIXROUTE)), 0
        lifetimes = struct.pack("=IIII", preferred, seconds, 0, 0)
        rest = flags_and_label + attribute(_IFA_PROTO, bytes([PROTOCOL])) + _CACHEINFO + lifetimes
        return self._writer(RTM_NEWADDR, flags, index, rest)

    def deleted(self, flags: int, index: int) -> Writer:
        """Delete such addresses; of IPv4, if they have our label."""
        label = b"" if self.family == socket.AF_INET6 else attribute(_IFA_LABEL, self.label + b"\0")
        return self._writer(RTM_DELADDR, flags, index, label)

    def _writer(self, kind: int, flags: int, index: int, rest: bytes) -> Writer:
        size = _SIZES[self.family]
        length = HEADER.size + _IFADDRMSG.size + 2 * (ATTRIBUTE.size + size) + len(rest)
        header = HEADER.pack(length, kind, NLM_F_REQUEST | flags, 0, 0)
        head = _WORD.pack(0) + _IFADDRMSG.pack(self.family, 8 * size, 0, 0, index)
        return Writer(
            header[:8],
            head + ATTRIBUTE.pack(4 + size, _IFA_LOCAL),
            ATTRIBUTE.pack(4 + size, _IFA_ADDRESS),
            rest,
        )


class Writer(NamedTuple):
    """The parts of a message, without its sequence number and the address, which is in it twice."""

    header: bytes
    head: bytes
    middle: bytes
    rest: bytes

    def write(self, number: int, local: bytes) -> tuple[bytes, ...]:
        """The message with this sequence number, below C{_BATCH}, in parts."""
        return self.header, _SEQUENCE[number], self.head, local, self.middle, local, self.rest


@frozen
class _Kernel:
    """A conversation with rtnetlink. What the kernel refuses is raised as L{OSError}."""

    _socket: socket.socket

    def link(self, name: str) -> Link | None:
        """The interface of this name."""
        body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0")
        body += attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
        self._send(RTM_GETLINK, 0, body)
        try:
            found = self._received(RTM_NEWLINK)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
        return decode_link(found[0]) if found else None

    def addresses(self) -> dict[Traits, dict[bytes, int | None]]:
        """Every address of the host, as L{decode_addresses} tells it."""
        request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        return decode_addresses(self._dump(RTM_GETADDR, request, RTM_NEWADDR))

    def default_routes(self, family: int) -> list[DefaultRoute]:
        """Every default route of a family in the main table."""
        # The kernel goes through the main table only (from 4.20 on; older ones tell all, and the decoder chooses). One
        # that does not know the family tells the routes of all others.
        request = _RTMSG.pack(family, 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0)
        try:
            messages = self._dump(RTM_GETROUTE, request, RTM_NEWROUTE)
            found = [decode_default_route(message) for message in messages if message[0] == family]
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return []  # There has never been a route in this table.
        return [route for route in found if route is not None]

    def tell(self, messages: Iterable[bytes]) -> dict[int, tuple[int, str]]:
        """
        Send messages (whole, or in parts) with sequence numbers below C{_BATCH} that ask for no acknowledgement: the
        kernel answers to them only if it refuses them.

        @return: the error and its text for each message that was refused.
        """
        self._socket.sendall(b"".join((*messages, _END)))
        refused: dict[int, tuple[int, str]] = {}
        while True:
            for kind, flags, sequence, message in split(self._socket.recv(65536)):
                if kind == NLMSG_ERROR:
                    if sequence == _BATCH:
                        return refused
                    code = -struct.unpack_from("=i", message)[0]
                    refused[sequence] = (code, refusal(code, flags, message))

    def _dump(self, kind: int, request: bytes, wanted: int) -> list[bytes]:
        for dump in range(_DUMPS):
            self._send(kind, NLM_F_DUMP, request)
            found = self._received(wanted)
            if found is not None:
                return found
            sleep(dump / 1000)
        raise OSError(errno.EAGAIN, "they kept changing while the kernel told about them")

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 0, 0) + body)

    def _received(self, wanted: int) -> list[bytes] | None:
        """
        The whole answer to one request, to its very end: the messages of one type, or C{None} where the host changed
        while the kernel told about it.
        """
        found = []
        interrupted = False
        while True:
            for kind, flags, _, message in split(self._socket.recv(65536)):
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind == wanted:
                    found.append(message)
                elif kind in (NLMSG_DONE, NLMSG_ERROR):
                    code = -struct.unpack_from("=i", message)[0] if len(message) >= 4 else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    return None if interrupted else found


@contextmanager
def _rtnetlink(asked: str) -> Iterator[_Kernel]:
    """Talk with the kernel of this thread's network namespace; turn what it refuses into L{NetworkError}."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as route:
            route.settimeout(_PATIENCE)
            for option in (NETLINK_EXT_ACK, CAP_ACK, NETLINK_GET_STRICT_CHK):
                # An older kernel lacks some. Its answers are longer or less friendly then, and mean the same.
                with suppress(OSError):
                    route.setsockopt(SOL_NETLINK, option, 1)
            yield _Kernel(route)
    except TimeoutError as error:
        raise NetworkError(f"{asked}: the kernel did not answer within {_PATIENCE:g} s") from error
    except OSError as error:
        raise NetworkError(f"{asked}: {error.strerror or error}") from error


@frozen
class _Present:
    """
    What is on the host at the moment of a dump. Addresses are bytes here, which hash in a tenth of the time.

    @ivar links: our interfaces, by name, but for those that do not exist.
    @ivar ours: our addresses on each of these, and the seconds that are left.
    @ivar spoiled: those of ours that do not answer.
    @ivar others: what somebody else configured: the index of the interface, address and prefix.
    @ivar unclear: see L{Host}.
    @ivar together: how many IPv6 addresses there are.
    """

    links: Mapping[str, Link]
    ours: Mapping[str, dict[bytes, int | None]]
    spoiled: Mapping[str, set[bytes]]
    others: Sequence[tuple[int, bytes, int]]
    unclear: Mapping[str, set[bytes]]
    together: int

    def tagged(self, name: str) -> AbstractSet[bytes]:
        """All of ours on an interface, whether they answer or not."""
        return self.ours[name].keys() | self.spoiled[name]


@frozen
class _Written:
    """
    What this process knows of an address that it has put on an interface.

    @ivar asked: until when it was asked to stay.
    @ivar expires: when it was told to go, on the agent's monotonic clock.
    @ivar spare: so many seconds before it must be gone, its lifetime ends. See Note [Never a source].
    """

    interface: str
    asked: float
    expires: float
    spare: float


@implementer(IAddresses)
@frozen
class NetlinkAddresses:
    """
    The addresses of some interfaces in the network namespace of the calling thread.

    Ours are those on these interfaces with a prefix of their whole length and our label, which IPv6 does not have; and
    with our protocol number too where the kernel keeps it. An address that bears the tag on another interface is
    somebody else's. See Note [Whose address is it]. Those on L{PROXY_INTERFACES} are as none. So are those of ours that
    do not answer because another machine on the link was found to have them (RFC 4862, section 5.4): to assign one of
    them is to begin anew.

    The interfaces may come and go, and come back with another index.

    @ivar monotonic: the agent's monotonic clock, in seconds.
    @ivar release: the kernel's, as C{uname -r} has it.
    """

    interfaces: Sequence[str]
    monotonic: Callable[[], float]
    release: str = field(factory=lambda: os.uname().release)
    _written: dict[bytes, _Written] = field(factory=dict, init=False)

    def read(self) -> Host:
        """
        How the host is now. The kernel tells lifetimes in whole seconds, rounded up: an address may go up to a second
        before what is told here.
        """
        with _rtnetlink("reading the addresses") as kernel:
            now = self.monotonic()
            present = self._present(kernel)
            gateways = [route.gateways for family in _FAMILIES for route in kernel.default_routes(family)]
        assigned: dict[Address, float] = {}
        where: dict[Address, str] = {}
        for name, lifetimes in present.ours.items():
            for local, left in lifetimes.items():
                address, written = ip(local), self._written.get(local)
                assigned[address] = inf if left is None else now + left + (written.spare if written else 0)
                where[address] = name
        return Host(
            present.links,
            assigned,
            where,
            {
                name: frozenset(_configured(local, prefix) for at, local, prefix in present.others if at == link.index)
                for name, link in present.links.items()
            },
            frozenset(_configured(local, prefix) for _, local, prefix in present.others),
            frozenset().union(*gateways),
            frozenset(ip(local) for locals_ in present.unclear.values() for local in locals_),
        )

    def assign(self, assignments: AbstractSet[Assignment]) -> Assigned:
        """
        Put these on their interfaces, or extend them. See Note [Whose address is it], Note [A kernel that takes its
        time] and Note [Never a source].

        Addresses whose lifetimes begin within 20 ms of each other are removed together by the kernel; a thousand of
        IPv4 take less than that. See Note [Groups of solicited nodes] for those of IPv6.
        """
        work = _Assigning(self, assignments)
        try:
            with _rtnetlink(f"assigning addresses on {', '.join(self.interfaces)}") as kernel:
                for _ in range(_ROUNDS):
                    if not work.wanted:
                        break
                    work.go(kernel, self._present(kernel))
                else:
                    work.give_up(kernel, self._links(kernel))
        except NetworkError as error:
            work.fail(list(work.wanted), str(error))
        return Assigned(
            {ip(local): expires for local, expires in work.expires.items()},
            {ip(local): reason for local, reason in work.failed.items()},
        )

    def unassign(self, addresses: AbstractSet[Address]) -> Unassigned:
        """Take these off their interfaces. See Note [Whose address is it]."""
        failed: dict[Address, str] = {}
        try:
            with _rtnetlink(f"taking addresses off {', '.join(self.interfaces)}") as kernel:
                present = self._present(kernel)
                wanted = {_packed(address) for address in addresses}
                for link in present.links.values():
                    refused = self._delete(kernel, link, wanted & present.tagged(link.name))
                    failed.update((ip(local), reason) for local, reason in refused.items())
        except NetworkError as error:
            failed = dict.fromkeys(addresses, str(error))
        return Unassigned(frozenset(addresses - failed.keys()), failed)

    def _links(self, kernel: _Kernel) -> dict[str, Link]:
        return {name: link for name in self.interfaces if (link := kernel.link(name)) is not None}

    def _present(self, kernel: _Kernel) -> _Present:
        links = self._links(kernel)
        names = {link.index: name for name, link in links.items()}
        found = kernel.addresses()
        proxies = {proxy.index for name in PROXY_INTERFACES if (proxy := kernel.link(name)) is not None}
        tagged = knows_protocol(self.release) or any(traits.protocol for traits in found)
        others: list[tuple[int, bytes, int]] = []
        present = _Present(
            links,
            {name: {} for name in links},
            {name: set() for name in links},
            others,
            {name: set() for name in links},
            sum(len(lifetimes) for traits, lifetimes in found.items() if traits.family == socket.AF_INET6),
        )
        for traits, lifetimes in found.items():
            name = names.get(traits.link)
            ours: Mapping[bytes, int | None] = {}
            if name is not None and traits.is_single and traits.label == _label(name, traits.family):
                ours = self._ours(name, traits, lifetimes, tagged)
                if traits.is_usable:
                    present.ours[name].update(ours)
                else:
                    present.spoiled[name].update(ours)
                if traits.family == socket.AF_INET6 and not tagged:
                    theirs = lifetimes.keys() - ours.keys()
                    present.unclear[name].update(local for local in theirs if lifetimes[local] is not None)
            if traits.link not in proxies and len(ours) < len(lifetimes):
                others += [(traits.link, local, traits.prefix) for local in lifetimes if local not in ours]
        there = {name: present.tagged(name) for name in links}
        for local in [a for a, written in self._written.items() if a not in there.get(written.interface, ())]:
            del self._written[local]
        return present

    def _ours(
        self, name: str, traits: Traits, lifetimes: Mapping[bytes, int | None], tagged: bool
    ) -> Mapping[bytes, int | None]:
        """Which addresses on one of our interfaces, with our label, are ours."""
        if traits.protocol == PROTOCOL or (traits.family == socket.AF_INET and not tagged):
            return lifetimes
        if traits.protocol:
            return {}
        written = self._written
        return {
            local: left
            for local, left in lifetimes.items()
            if (known := written.get(local)) is not None and known.interface == name
        }

    def _delete(self, kernel: _Kernel, link: Link, addresses: Iterable[bytes]) -> dict[bytes, str]:
        """Delete addresses of ours; why each of those that stay does."""
        failed = {}
        for family, batch in _batches(addresses):
            writer = AddressWriter(family, _label(link.name, family)).deleted(0, link.index)
            refused = kernel.tell(part for number, local in enumerate(batch) for part in writer.write(number, local))
            for number, (code, reason) in refused.items():
                if code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                    local = batch[number]
                    failed[local] = f"deleting {ip(local)}/{8 * len(local)} from {link.name}: {reason}"
        return failed


_packed = lru_cache(2**16)(lambda address: address.packed)


@lru_cache(2**12)
def _configured(local: bytes, prefix: int) -> Configured:
    return IPv4Interface((local, prefix)) if len(local) == 4 else IPv6Interface((local, prefix))


@lru_cache(2**8)
def _label(interface: str, family: int) -> bytes:
    """The label of our addresses of a family; IPv6 has none."""
    return os.fsencode(label_for(interface)) if family == socket.AF_INET else b""


def _batches(addresses: Iterable[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
    """Addresses of one family that go in one datagram, each time, and the family."""
    ordered = sorted(addresses)
    for family, size in _SIZES.items():
        those = [local for local in ordered if len(local) == size]
        for start in range(0, len(those), _BATCH):
            yield family, those[start : start + _BATCH]


def _advice(code: int, family: int, interface: str) -> str:
    """What to do about the kernel's refusal of an address, where that can be told."""
    if family == socket.AF_INET6 and code == errno.EACCES:
        return f"; IPv6 is disabled there: write 0 to /proc/sys/net/ipv6/conf/{interface}/disable_ipv6"
    if family == socket.AF_INET6 and code in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        return "; the host was started without IPv6"
    return ""


class _Assigning:
    """
    One assignment, from its first dump to its last answer.

    @ivar wanted: what is still to be assigned, where, and until when it may be.
    @ivar _overdue: what is on an interface by our doing and may outlive its time.
    """

    def __init__(self, addresses: NetlinkAddresses, assignments: Iterable[Assignment]) -> None:
        self._addresses = addresses
        self._clock = addresses.monotonic
        self.wanted = {_packed(each.address): each for each in assignments}
        self.expires: dict[bytes, float] = {}
        self.failed: dict[bytes, str] = {}
        self._overdue: dict[bytes, str] = {}
        self._together = 0

    def fail(self, addresses: Iterable[bytes], reason: str) -> None:
        """Give these up."""
        for address in addresses:
            if self.wanted.pop(address, None) is not None:
                self.failed[address] = reason

    def go(self, kernel: _Kernel, present: _Present) -> None:
        """Try all that is wanted once. What is wanted afterwards needs another look at the host."""
        self._refuse(present)
        by_interface: dict[str, list[bytes]] = {}
        for local, assignment in self.wanted.items():
            by_interface.setdefault(assignment.interface, []).append(local)
        more = sum(
            1 for local, each in self.wanted.items() if len(local) == 16 and local not in present.ours[each.interface]
        )
        self._together = present.together + more
        for name, addresses in by_interface.items():
            link = present.links[name]
            for local, reason in self._addresses._delete(
                kernel, link, present.spoiled[name].intersection(addresses)
            ).items():
                self.fail([local], reason)
            self._keep(present.ours[name], addresses)
            there = present.ours[name].keys() | present.unclear[name]
            for family, batch in _batches(local for local in addresses if local in self.wanted):
                self._write(kernel, link, family, batch, there)
        self._remove_overdue(kernel, present.links)

    def give_up(self, kernel: _Kernel, links: Mapping[str, Link]) -> None:
        """The last round did not settle it."""
        self.fail(list(self.wanted), f"the host did not settle in {_ROUNDS} tries")
        self._remove_overdue(kernel, links)

    def _refuse(self, present: _Present) -> None:
        """Give up what cannot be assigned as the host is."""
        for local, assignment in list(self.wanted.items()):
            if assignment.interface not in present.links:
                self.fail([local], f"the interface {assignment.interface} does not exist")
        for at, local, prefix in present.others:
            if local in self.wanted:
                name = self.wanted[local].interface
                if not (at == present.links[name].index and local in present.unclear[name]):
                    self.fail([local], f"somebody else configured {_configured(local, prefix)} on this host")
        for name in present.links:
            there = present.tagged(name) & self.wanted.keys()
            self.fail([a for a in there if self.wanted[a].interface != name], f"it is on {name} still")

    def _keep(self, there: Mapping[bytes, int | None], addresses: Iterable[bytes]) -> None:
        """Leave what is there as it is, where no better lifetime could be had. See Note [Groups of solicited nodes]."""
        now = self._clock() if self._together > _GROUPS_WRITTEN_TOGETHER else inf
        for local in addresses:
            written, left = self._addresses._written.get(local), there.get(local)
            if written is None or left is None or len(local) == 4 or local not in self.wanted:
                continue
            expires = self.wanted[local].expires
            as_written = abs(now + left + written.spare - written.expires) < _ROUNDING
            if as_written and expires - now < _LONG_ENOUGH and written.asked >= expires - _ROUNDING / 10:
                self.expires[local] = written.expires
                del self.wanted[local]

    def _write(
        self, kernel: _Kernel, link: Link, family: int, batch: Sequence[bytes], there: AbstractSet[bytes]
    ) -> None:
        now = self._clock()
        lifetimes: dict[bytes, int] = {}
        for local in batch:
            left = self.wanted[local].expires - now
            seconds = self._lifetime(family, left)
            if seconds < 1:
                self.fail([local], f"its claim ends in {left:.1f} s" if left > 0 else "its claim has ended")
            else:
                lifetimes[local] = _FOREVER if seconds == inf else min(floor(seconds), _FOREVER - 1)
        if not lifetimes:
            return
        batch = list(lifetimes)
        refused = kernel.tell(self._messages(link, family, lifetimes, there))
        later = self._clock()
        for number, local in enumerate(batch):
            expires, seconds = self.wanted[local].expires, lifetimes[local]
            if number in refused:
                code, reason = refused[number]
                if code != errno.EEXIST:
                    what = f"assigning {ip(local)}/{8 * len(local)} on {link.name}"
                    self.fail([local], f"{what}: {reason}{_advice(code, family, link.name)}")
            elif seconds > self._lifetime(family, expires - later):
                self._overdue[local] = link.name
            else:
                spare = 0.0 if expires == inf else expires - now - self._lifetime(family, expires - now)
                self._overdue.pop(local, None)
                self.expires[local] = now + seconds + spare
                self._addresses._written[local] = _Written(link.name, expires, self.expires[local], spare)
                del self.wanted[local]

    def _lifetime(self, family: int, left: float) -> float:
        """The lifetime to give to an address that must be gone in so many seconds."""
        return left if family == socket.AF_INET else punctual_lifetime(left, self._together)

    def _messages(
        self, link: Link, family: int, lifetimes: Mapping[bytes, int], there: AbstractSet[bytes]
    ) -> Iterator[bytes]:
        """The messages that create or replace these addresses."""
        layout = AddressWriter(family, _label(link.name, family))
        writers: dict[tuple[bool, int], Writer] = {}
        for number, (local, seconds) in enumerate(lifetimes.items()):
            replace = local in there
            writer = writers.get((replace, seconds))
            if writer is None:
                flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
                writer = writers[replace, seconds] = layout.new(flags, link.index, seconds)
            yield from writer.write(number, local)

    def _remove_overdue(self, kernel: _Kernel, links: Mapping[str, Link]) -> None:
        """Remove what should have been shortened, but has no whole second left."""
        for name, link in links.items():
            over = {local for local, at in self._overdue.items() if at == name and local in self.failed}
            self.failed.update(self._addresses._delete(kernel, link, over))
        self._overdue = {local: name for local, name in self._overdue.items() if local not in self.failed}
