"""Hearing what happens: addresses that come and go on every host, and ARP and NDP as a host on the LAN hears them."""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence

from attrs import define, field, frozen

from kiwi.model import Address, ip
from kiwi.network.ndp import NDP
from kiwi.network.packets import attach_filter

from .namespaces import Namespace

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h, linux/if_ether.h, asm-generic/socket.h
_SOL_NETLINK = 270
_NETLINK_LISTEN_ALL_NSID = 8
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
_RTM_NEWADDR = 20
_RTM_DELADDR = 21
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_ETH_P_ARP = 0x0806
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_HEADER = struct.Struct("=IHHII")
_ADDRESS_MESSAGE = 8
_ATTRIBUTE = struct.Struct("=HH")
_TIMESPEC = struct.Struct("@qq")
_ARP = struct.Struct("!6s6sHHHBBH6s4s6s4s")

_PLENTY = 1 << 23


def stamped(listener: socket.socket) -> None:
    """Have the kernel say when each packet came in."""
    listener.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _PLENTY)


def stamp(ancillary: Sequence[tuple[int, int, bytes]]) -> float:
    """When a packet came in, in seconds of L{time.monotonic}; now, where the kernel did not say."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack(data[: _TIMESPEC.size])
            age: float = time.time() - seconds - nanoseconds / 1e9
            return time.monotonic() - age
    return time.monotonic()


@frozen
class Change:
    """An address came or went on a host. C{when} is in seconds of L{time.monotonic}."""

    when: float
    host: str
    address: Address
    present: bool


@frozen
class Carriage:
    """A host had an address, from one moment to another one, or until now (C{None})."""

    host: str
    since: float
    until: float | None


@frozen
class Announcement:
    """
    A packet that says where an address is: of ARP, where C{operation} is 1 for a request and 2 for a reply, or a
    Neighbor Advertisement, which has its type, 136.

    @ivar gratuitous: it is about nothing but its own sender, or to all nodes.
    """

    when: float
    address: Address
    mac: str
    operation: int
    gratuitous: bool = True


class MissedChangesError(Exception):
    """The kernel had more to say than the lab could hear."""


@define(eq=False)
class Ears:
    """
    One thread that listens to the kernels of all hosts, and to ARP and NDP where the client is.

    All changes of addresses come through one netlink socket, which hears every namespace that the switch's namespace
    knows by number, so that their order is the order in which they happened.

    @ivar changes: all changes of addresses so far, in order, but for those that mean something on their link only.
    @ivar announcements: every ARP packet with a sender, and every Neighbor Advertisement, that the client received so
        far.
    """

    _switch: Namespace
    _client: Namespace
    _numbers: Mapping[int, str]
    changes: list[Change] = field(factory=list, init=False)
    announcements: list[Announcement] = field(factory=list, init=False)
    _failure: Exception | None = field(default=None, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _wakeup: int = field(default=-1, init=False)

    def start(self) -> None:
        """Listen from now on."""
        with self._switch.entered():
            netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            netlink.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
            netlink.setsockopt(_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)
            netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _PLENTY)
        with self._client.entered():
            arp = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP))
            arp.bind(("em1", _ETH_P_ARP))
            stamped(arp)
            ndp = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            attach_filter(ndp, NDP.everything)
            ndp.bind(("em1", NDP.kind))
            stamped(ndp)
        stop, self._wakeup = os.pipe()
        self._thread = threading.Thread(target=self._listen, args=(netlink, arp, ndp, stop), name="ears", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no longer."""
        if self._thread is not None:
            os.close(self._wakeup)
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """
        Make sure that L{changes} has all changes.

        @raise MissedChangesError: where it has not.
        """
        if self._failure is not None:
            raise MissedChangesError(str(self._failure))

    def carriages(self, address: Address) -> list[Carriage]:
        """
        Who had the address, and when, ordered by when it came.

        @raise MissedChangesError: where that cannot be told.
        """
        self.check()
        open_since: dict[str, float] = {}
        carriages: list[Carriage] = []
        for change in list(self.changes):
            if change.address != address:
                continue
            if change.present:
                open_since.setdefault(change.host, change.when)
            elif change.host in open_since:
                carriages.append(Carriage(change.host, open_since.pop(change.host), change.when))
        carriages += [Carriage(host, since, None) for host, since in open_since.items()]
        return sorted(carriages, key=lambda carriage: carriage.since)

    def overlaps(self, address: Address) -> list[tuple[Carriage, Carriage]]:
        """The pairs of hosts that had the address at the same moment."""
        carriages = self.carriages(address)
        return [
            (first, second)
            for index, first in enumerate(carriages)
            for second in carriages[index + 1 :]
            if first.until is None or second.since < first.until
        ]

    def announced(self, address: Address, since: float = 0.0) -> list[Announcement]:
        """The gratuitous packets about the address that the client received since a moment."""
        return [heard for heard in self.said(address, since) if heard.gratuitous]

    def said(self, address: Address, since: float = 0.0) -> list[Announcement]:
        """All packets that the client received since a moment and that say where the address is."""
        return [heard for heard in list(self.announcements) if heard.address == address and heard.when >= since]

    def having(self, address: Address) -> list[str]:
        """The hosts that have the address now, on whatever interface."""
        return [carriage.host for carriage in self.carriages(address) if carriage.until is None]

    def first_announced(self, since: float, other_than: str) -> dict[Address, float]:
        """When the client first received a gratuitous packet about each address, those of one MAC address aside."""
        found: dict[Address, float] = {}
        for heard in list(self.announcements):
            if heard.gratuitous and heard.when >= since and heard.mac != other_than:
                found.setdefault(heard.address, heard.when)
        return found

    def _listen(self, netlink: socket.socket, arp: socket.socket, ndp: socket.socket, stop: int) -> None:
        with selectors.DefaultSelector() as selector, netlink, arp, ndp:
            selector.register(netlink, selectors.EVENT_READ)
            selector.register(arp, selectors.EVENT_READ)
            selector.register(ndp, selectors.EVENT_READ)
            selector.register(stop, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if netlink in ready:
                    try:
                        self._hear_change(netlink)
                    except OSError as error:
                        self._failure = error
                        selector.unregister(netlink)
                if arp in ready:
                    self._hear_arp(arp)
                if ndp in ready:
                    self._hear_ndp(ndp)
                if stop in ready:
                    os.close(stop)
                    return

    def _hear_change(self, netlink: socket.socket) -> None:
        data, ancillary, _flags, _sender = netlink.recvmsg(1 << 16, 64)
        now = time.monotonic()
        number = next(
            (
                int.from_bytes(a[2][:4], "little")
                for a in ancillary
                if a[:2] == (_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID)
            ),
            None,
        )
        host = self._numbers.get(number) if number is not None else None
        if host is None:
            return
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            if kind in (_RTM_NEWADDR, _RTM_DELADDR):
                address = _local_address(data[offset + _HEADER.size + _ADDRESS_MESSAGE : offset + length])
                if address is not None and not address.is_link_local:
                    self.changes.append(Change(now, host, address, kind == _RTM_NEWADDR))
            offset += (length + 3) & ~3

    def _hear_arp(self, arp: socket.socket) -> None:
        data, ancillary, _flags, _sender = arp.recvmsg(2048, 64)
        if len(data) < _ARP.size:
            return
        _to, _from, _type, _hw, _proto, _hlen, _plen, operation, mac, sender, _target_mac, target = _ARP.unpack_from(
            data
        )
        if any(sender):
            self.announcements.append(
                Announcement(stamp(ancillary), ip(sender), mac.hex(":"), operation, sender == target)
            )

    def _hear_ndp(self, ndp: socket.socket) -> None:
        data, ancillary, _flags, _sender = ndp.recvmsg(2048, 64)
        owner = NDP.read_owner(data)
        if owner is not None:
            address, mac = owner
            # The second half of an IPv6 header is the address that the packet is for; ff is a group.
            self.announcements.append(
                Announcement(stamp(ancillary), ip(address), mac.hex(":"), data[54], data[38] == 0xFF)
            )


def _local_address(attributes: bytes) -> Address | None:
    """The address in the attributes of an address message: its own, or the only one where it has no peer."""
    found: Address | None = None
    offset = 0
    while offset + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, offset)
        if length < _ATTRIBUTE.size:
            return None
        if kind in (_IFA_LOCAL, _IFA_ADDRESS):
            address = ip(attributes[offset + _ATTRIBUTE.size : offset + length])
            if kind == _IFA_LOCAL:
                return address
            found = address
        offset += (length + 3) & ~3
    return found
