"""
The addresses of one interface, over rtnetlink.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Interface
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

from kiwi.model import Assignment, Host, Link, ipv4

from .interface import Assigned, IAddresses, NetworkError, Unassigned

# Note [Whose address is it]
# The kernel replaces an address if its number and its prefix are the same. It does not compare labels: a replace of an
# address that somebody else configured would take away its permanence and its protocol, and leave it their label. So
# every assignment begins with a dump, and only what bears our tag there is replaced. All else is created with
# NLM_F_EXCL, which the kernel refuses if it is there by now; then the dump is made anew. What is left is the time
# between dump and replace, some milliseconds, in which somebody would have to delete our address by hand and configure
# the very same one. Deletions carry our label, and that the kernel does compare.
#
# Whoever changes the lifetime of our address by hand mostly leaves its protocol out, and then the kernel forgets it. An
# address with our label and no protocol is therefore ours if this process has put it there and it has been there since.

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
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_EXT_MASK, _IFLA_CARRIER_CHANGES = 1, 3, 29, 35
_RTEXT_FILTER_SKIP_STATS = 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_CACHEINFO, _IFA_PROTO = 1, 2, 3, 6, 11
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH = 4, 5, 6, 9
_NLMSGERR_ATTR_MSG = 1
_NETLINK_CAP_ACK = 10
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_FOREVER = 0xFFFFFFFF
_NO_LIFETIME = b"\xff" * 16

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_IFADDRMSG = struct.Struct("=BBBBI")
_IFINFOMSG = struct.Struct("=BxHiII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")

_BATCH = 100
"""Messages in one datagram, so that the answers to all of them fit in a receive buffer of the default size."""

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


def interface_exists(name: str) -> bool:
    """Whether there is such an interface in this network namespace."""
    try:
        socket.if_nametoindex(name)
    except (OSError, ValueError):
        return False
    return True


def default_interface() -> str | None:
    """The interface of the default route with the lowest metric, if there is one. Raises L{NetworkError}."""
    with _rtnetlink("reading the default routes") as kernel:
        best = min(kernel.default_routes(), key=lambda route: route.metric, default=None)
        if best is None or best.interface is None:
            return None
        return socket.if_indextoname(best.interface)


def preferred_lifetime(seconds: int) -> int:
    """The preferred lifetime that makes the kernel punctual with a valid one. See Note [Two looks at the clock]."""
    if seconds < 3 or seconds == _FOREVER:
        return seconds
    return seconds - (2 if seconds <= 16 else ceil(seconds / 8 + 1.5))


class Configured(NamedTuple):
    """
    One IPv4 address of the host, as the kernel tells it.

    @ivar link: the index of its interface.
    @ivar local: its four bytes.
    @ivar protocol: who configured it; 0 where the kernel does not tell.
    @ivar lifetime: whole seconds that are left, rounded up; C{None} where it is permanent.
    """

    link: int
    local: bytes
    prefix: int
    label: bytes
    protocol: int
    lifetime: int | None

    @property
    def interface(self) -> IPv4Interface:
        return IPv4Interface((self.local, self.prefix))


class DefaultRoute(NamedTuple):
    """
    One default route of the main table.

    @ivar interface: the index of the (first) interface it leaves by; C{None} where there is none.
    """

    interface: int | None
    gateways: frozenset[IPv4Address]
    metric: int


def _attributes(message: bytes, start: int) -> dict[int, bytes]:
    """The whole attributes in a message from C{start} to its end, by type."""
    found = {}
    while start + 4 <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, start)
        if size < 4 or start + size > len(message):
            break
        found[kind & 0x3FFF] = message[start + 4 : start + size]
        start += (size + 3) & ~3
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def decode_address(message: bytes) -> Configured:
    """Read a C{RTM_NEWADDR} message of family C{AF_INET}, without its netlink header."""
    _, prefix, _, _, index = _IFADDRMSG.unpack_from(message)
    found = _attributes(message, _IFADDRMSG.size)
    _, valid = struct.unpack_from("=II", found.get(_IFA_CACHEINFO, _NO_LIFETIME))
    return Configured(
        index,
        found.get(_IFA_LOCAL) or found[_IFA_ADDRESS],
        prefix,
        found.get(_IFA_LABEL, b"").rstrip(b"\0"),
        found.get(_IFA_PROTO, b"\0")[0],
        None if valid == _FOREVER else valid,
    )


def decode_link(message: bytes) -> Link:
    """Read a C{RTM_NEWLINK} message, without its netlink header."""
    _, kind, index, flags, _ = _IFINFOMSG.unpack_from(message)
    found = _attributes(message, _IFINFOMSG.size)
    return Link(
        index,
        os.fsdecode(found[_IFLA_IFNAME].rstrip(b"\0")),
        found.get(_IFLA_ADDRESS, b"") if kind == _ARPHRD_ETHER else b"",
        bool(flags & _IFF_UP and flags & _IFF_LOWER_UP),
        _number(found.get(_IFLA_CARRIER_CHANGES)) or 0,
    )


def decode_default_route(message: bytes) -> DefaultRoute | None:
    """
    Read a C{RTM_NEWROUTE} message of family C{AF_INET}, without its netlink header.

    @return: C{None} where it is not a unicast default route of the main table.
    """
    _, size, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(message)
    if (size, table, kind) != (0, _RT_TABLE_MAIN, _RTN_UNICAST):
        return None
    found = _attributes(message, _RTMSG.size)
    hops = [(_number(found.get(_RTA_OIF)), found.get(_RTA_GATEWAY))]
    several = found.get(_RTA_MULTIPATH, b"")
    while len(several) >= _NEXT_HOP.size:
        length, _, _, index = _NEXT_HOP.unpack_from(several)
        if length < _NEXT_HOP.size:
            break
        hops.append((index, _attributes(several[:length], _NEXT_HOP.size).get(_RTA_GATEWAY)))
        several = several[(length + 3) & ~3 :]
    return DefaultRoute(
        next((index for index, _ in hops if index is not None), None),
        frozenset(ipv4(gateway) for _, gateway in hops if gateway is not None),
        _number(found.get(_RTA_PRIORITY)) or 0,
    )


def _number(value: bytes | None) -> int | None:
    return None if value is None else int(struct.unpack("=I", value)[0])


@frozen
class AddressWriter:
    """
    Writes the messages about our addresses on one interface. A message carries every attribute each time: a replace
    without lifetimes makes an address permanent, and one without the protocol takes that away.
    """

    label: bytes
    _new: struct.Struct = field(init=False)
    _deleted: struct.Struct = field(init=False)

    @_new.default
    def _lay_out_new(self) -> struct.Struct:
        return struct.Struct(f"=IHHII BBBBI HH4s HH4s HH{self._padded}s HHBxxx HHIIII")

    @_deleted.default
    def _lay_out_deleted(self) -> struct.Struct:
        return struct.Struct(f"=IHHII BBBBI HH4s HH4s HH{self._padded}s")

    @property
    def _padded(self) -> int:
        return (len(self.label) + 1 + 3) & ~3

    def new(self, flags: int, sequence: int, index: int, local: bytes, seconds: int) -> bytes:
        """Create or replace C{local}/32, to be removed by the kernel in so many whole seconds."""
        # fmt: off
        return self._new.pack(
            self._new.size, RTM_NEWADDR, NLM_F_REQUEST | flags, sequence, 0,
            socket.AF_INET, 32, 0, 0, index,
            8, _IFA_LOCAL, local,
            8, _IFA_ADDRESS, local,
            4 + len(self.label) + 1, _IFA_LABEL, self.label,
            5, _IFA_PROTO, PROTOCOL,
            20, _IFA_CACHEINFO, preferred_lifetime(seconds), seconds, 0, 0,
        )
        # fmt: on

    def deleted(self, flags: int, sequence: int, index: int, local: bytes) -> bytes:
        """Delete C{local}/32, if it has our label."""
        # fmt: off
        return self._deleted.pack(
            self._deleted.size, RTM_DELADDR, NLM_F_REQUEST | flags, sequence, 0,
            socket.AF_INET, 32, 0, 0, index,
            8, _IFA_LOCAL, local,
            8, _IFA_ADDRESS, local,
            4 + len(self.label) + 1, _IFA_LABEL, self.label,
        )
        # fmt: on


@frozen
class _Kernel:
    """A conversation with rtnetlink. What the kernel refuses is raised as L{OSError}."""

    _socket: socket.socket

    def link(self, name: str) -> Link | None:
        """The interface of this name."""
        body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0")
        body += _attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
        self._send(RTM_GETLINK, 0, body)
        try:
            found = self._received(RTM_NEWLINK)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
        return decode_link(found[0]) if found else None

    def addresses(self) -> list[Configured]:
        """Every IPv4 address of the host."""
        request = _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0)
        return [decode_address(message) for message in self._dump(RTM_GETADDR, request, RTM_NEWADDR)]

    def default_routes(self) -> list[DefaultRoute]:
        """Every IPv4 default route of the main table."""
        # The kernel goes through the main table only (from 4.20 on; older ones tell all, and the decoder chooses).
        request = _RTMSG.pack(socket.AF_INET, 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0)
        try:
            found = [decode_default_route(message) for message in self._dump(RTM_GETROUTE, request, RTM_NEWROUTE)]
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return []  # There has never been a route in this table.
        return [route for route in found if route is not None]

    def tell(self, messages: Sequence[bytes]) -> dict[int, tuple[int, str]]:
        """
        Send messages whose sequence numbers count from 0, of which the last, and only it, asks for an acknowledgement
        (the kernel answers to the others only if it refuses them, and in order).

        @return: the error and its text for each message that was refused.
        """
        self._socket.sendall(b"".join(messages))
        refused = {}
        last = len(messages) - 1
        while True:
            for kind, flags, sequence, message in _split(self._socket.recv(65536)):
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", message)[0]
                    if code:
                        refused[sequence] = (code, _refusal(code, flags, message))
                    if sequence == last:
                        return refused

    def _dump(self, kind: int, request: bytes, wanted: int) -> list[bytes]:
        for dump in range(_DUMPS):
            self._send(kind, NLM_F_DUMP, request)
            found = self._received(wanted)
            if found is not None:
                return found
            sleep(dump / 1000)
        raise OSError(errno.EAGAIN, "they kept changing while the kernel told about them")

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 0, 0) + body)

    def _received(self, wanted: int) -> list[bytes] | None:
        """
        The whole answer to one request, to its very end: the messages of one type, or C{None} where the host changed
        while the kernel told about it.
        """
        found = []
        interrupted = False
        while True:
            for kind, flags, _, message in _split(self._socket.recv(65536)):
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind == wanted:
                    found.append(message)
                elif kind in (NLMSG_DONE, NLMSG_ERROR):
                    code = -struct.unpack_from("=i", message)[0] if len(message) >= 4 else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    return None if interrupted else found


def _split(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages of a datagram: type, flags, sequence number, and what follows the header."""
    start = 0
    while start + _HEADER.size <= len(datagram):
        size, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, start)
        if size < _HEADER.size:
            break
        yield kind, flags, sequence, datagram[start + _HEADER.size : start + size]
        start += (size + 3) & ~3


def _refusal(code: int, flags: int, message: bytes) -> str:
    """The text of an C{NLMSG_ERROR}: the error's own, and what the kernel adds to it where it does."""
    text = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS:
        request = _HEADER.size if flags & _NLM_F_CAPPED else _HEADER.unpack_from(message, 4)[0]
        more = _attributes(message, 4 + ((request + 3) & ~3)).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0")
        if more:
            text += f" ({ascii(more.decode('utf-8', 'replace'))[1:-1]})"
    return text


@contextmanager
def _rtnetlink(asked: str) -> Iterator[_Kernel]:
    """Talk with the kernel of this thread's network namespace; turn what it refuses into L{NetworkError}."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as route:
            route.settimeout(_PATIENCE)
            for option in (NETLINK_EXT_ACK, _NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK):
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
    """What is on the host at the moment of a dump. Addresses are bytes here, which hash in a tenth of the time."""

    link: Link | None
    ours: Mapping[bytes, int | None]
    others: Sequence[Configured]


@implementer(IAddresses)
@frozen
class NetlinkAddresses:
    """
    The addresses of an interface in the network namespace of the calling thread.

    Ours are those on this interface with our label, and with our protocol number too where the kernel keeps it. An
    address that bears the tag on another interface is somebody else's. See Note [Whose address is it]. Those on
    L{PROXY_INTERFACES} are as none.

    The interface may come and go, and come back with another index.

    @ivar monotonic: the agent's monotonic clock, in seconds.
    @ivar release: the kernel's, as C{uname -r} has it.
    """

    interface: str
    monotonic: Callable[[], float]
    release: str = field(factory=lambda: os.uname().release)
    _label: bytes = field(init=False)
    _writer: AddressWriter = field(init=False)
    _written: set[bytes] = field(factory=set, init=False)

    @_label.default
    def _label_for_interface(self) -> bytes:
        return os.fsencode(label_for(self.interface))

    @_writer.default
    def _writer_for_label(self) -> AddressWriter:
        return AddressWriter(self._label)

    def read(self) -> Host:
        """
        How the host is now. The kernel tells lifetimes in whole seconds, rounded up: an address may go up to a second
        before what is told here.
        """
        with _rtnetlink("reading the addresses") as kernel:
            now = self.monotonic()
            present = self._present(kernel)
            gateways = [route.gateways for route in kernel.default_routes()]
        index = None if present.link is None else present.link.index
        return Host(
            present.link,
            {ipv4(local): inf if left is None else now + left for local, left in present.ours.items()},
            frozenset(other.interface for other in present.others if other.link == index),
            frozenset(other.interface for other in present.others),
            frozenset().union(*gateways),
        )

    def assign(self, assignments: AbstractSet[Assignment]) -> Assigned:
        """
        Put these on the interface, or extend them. See Note [Whose address is it] and Note [A kernel that takes its
        time].

        Addresses whose lifetimes begin within 20 ms of each other are removed together by the kernel; a thousand take
        less than that.
        """
        work = _Assigning(self, {each.address.packed: each.expires for each in assignments})
        try:
            with _rtnetlink(f"assigning addresses on {self.interface}") as kernel:
                for _ in range(_ROUNDS):
                    if not work.wanted:
                        break
                    work.go(kernel, self._present(kernel))
                else:
                    work.give_up(kernel)
        except NetworkError as error:
            work.fail(list(work.wanted), str(error))
        return Assigned(
            {ipv4(local): expires for local, expires in work.expires.items()},
            {ipv4(local): reason for local, reason in work.failed.items()},
        )

    def unassign(self, addresses: AbstractSet[IPv4Address]) -> Unassigned:
        """Take these off the interface. See Note [Whose address is it]."""
        failed: dict[IPv4Address, str] = {}
        try:
            with _rtnetlink(f"taking addresses off {self.interface}") as kernel:
                present = self._present(kernel)
                if present.link is not None:
                    ours = sorted({address.packed for address in addresses} & present.ours.keys())
                    refused = self._delete(kernel, present.link.index, ours)
                    failed = {ipv4(local): reason for local, reason in refused.items()}
        except NetworkError as error:
            failed = dict.fromkeys(addresses, str(error))
        return Unassigned(frozenset(addresses - failed.keys()), failed)

    def _present(self, kernel: _Kernel) -> _Present:
        link = kernel.link(self.interface)
        configured = kernel.addresses()
        proxies = {proxy.index for name in PROXY_INTERFACES if (proxy := kernel.link(name)) is not None}
        tagged = knows_protocol(self.release) or any(address.protocol for address in configured)
        tag = (None if link is None else link.index, 32, self._label)
        ours: dict[bytes, int | None] = {}
        others = []
        for address in configured:
            index, local, prefix, label, protocol, lifetime = address
            forgotten = protocol == 0 and local in self._written
            if (index, prefix, label) == tag and (protocol == PROTOCOL or not tagged or forgotten):
                ours[local] = lifetime
            elif index not in proxies:
                others.append(address)
        self._written.intersection_update(ours)
        return _Present(link, ours, others)

    def _delete(self, kernel: _Kernel, index: int, addresses: Sequence[bytes]) -> dict[bytes, str]:
        """Delete addresses of ours; why each of those that stay does."""
        failed = {}
        for batch in _batches(addresses):
            refused = kernel.tell(
                [
                    self._writer.deleted(_flags(number, batch, 0), number, index, local)
                    for number, local in enumerate(batch)
                ]
            )
            for number, (code, reason) in refused.items():
                if code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                    local = batch[number]
                    failed[local] = f"deleting {ipv4(local)}/32 from {self.interface}: {reason}"
        return failed


def _batches(addresses: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(addresses), _BATCH):
        yield addresses[start : start + _BATCH]


def _flags(number: int, batch: Sequence[bytes], flags: int) -> int:
    """The flags of one message of a batch: the last one is acknowledged."""
    return flags | NLM_F_ACK if number == len(batch) - 1 else flags


class _Assigning:
    """
    One assignment, from its first dump to its last answer.

    @ivar wanted: what is still to be assigned, and until when it may be.
    @ivar _overdue: what is on the interface by our doing and may outlive its time.
    """

    def __init__(self, addresses: NetlinkAddresses, wanted: Mapping[bytes, float]) -> None:
        self._addresses = addresses
        self._interface = addresses.interface
        self._clock = addresses.monotonic
        self._writer = addresses._writer
        self.wanted = dict(wanted)
        self.expires: dict[bytes, float] = {}
        self.failed: dict[bytes, str] = {}
        self._overdue: set[bytes] = set()

    def fail(self, addresses: Sequence[bytes], reason: str) -> None:
        """Give these up."""
        for address in addresses:
            del self.wanted[address]
            self.failed[address] = reason

    def go(self, kernel: _Kernel, present: _Present) -> None:
        """Try all that is wanted once. What is wanted afterwards needs another look at the host."""
        if present.link is None:
            self.fail(list(self.wanted), f"the interface {self._interface} does not exist")
            return
        for theirs in present.others:
            if theirs.local in self.wanted:
                self.fail([theirs.local], f"somebody else configured {theirs.interface} on this host")
        for batch in _batches(sorted(self.wanted)):
            self._write(kernel, present.link.index, batch, present.ours)
        self._remove_overdue(kernel, present.link.index)

    def give_up(self, kernel: _Kernel) -> None:
        """The last round did not settle it."""
        link = kernel.link(self._interface)
        self.fail(list(self.wanted), f"the host did not settle in {_ROUNDS} tries")
        if link is not None:
            self._remove_overdue(kernel, link.index)

    def _write(self, kernel: _Kernel, index: int, batch: Sequence[bytes], ours: Mapping[bytes, object]) -> None:
        now = self._clock()
        lifetimes = {}
        for local in batch:
            left = self.wanted[local] - now
            if left < 1:
                self.fail([local], f"its claim ends in {left:.1f} s" if left > 0 else "its claim has ended")
            else:
                lifetimes[local] = _FOREVER if left == inf else min(floor(left), _FOREVER - 1)
        batch = list(lifetimes)
        if not batch:
            return
        refused = kernel.tell(
            [
                self._writer.new(
                    _flags(number, batch, NLM_F_CREATE | (NLM_F_REPLACE if local in ours else NLM_F_EXCL)),
                    number,
                    index,
                    local,
                    lifetimes[local],
                )
                for number, local in enumerate(batch)
            ]
        )
        later = self._clock()
        for number, local in enumerate(batch):
            if number in refused:
                code, reason = refused[number]
                if code != errno.EEXIST:
                    self.fail([local], f"assigning {ipv4(local)}/32 on {self._interface}: {reason}")
            elif later + lifetimes[local] > self.wanted[local]:
                self._overdue.add(local)
            else:
                self._overdue.discard(local)
                self.expires[local] = now + lifetimes[local]
                self._addresses._written.add(local)
                del self.wanted[local]

    def _remove_overdue(self, kernel: _Kernel, index: int) -> None:
        """Remove what should have been shortened, but has no whole second left."""
        over = sorted(self._overdue & self.failed.keys())
        self._overdue.difference_update(over)
        self.failed.update(self._addresses._delete(kernel, index, over))
