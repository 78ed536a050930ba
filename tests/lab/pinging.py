"""Echo requests from a host, and exactly when each was answered."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

from attrs import define, field, frozen

from kiwi.model import Address, in_order, ip

from .listening import stamp, stamped
from .namespaces import Namespace
from .waiting import wait_until

IN_TIME = 0.05
"""Seconds within which an answer is in time: one that was held up by a busy machine is, one after an outage is not."""

_ECHO_REQUEST = {4: 8, 6: 128}
_ECHO_REPLY = {4: 0, 6: 129}
_ICMP = struct.Struct("!BBHHH")
_PAYLOAD = struct.Struct("!Q")
_IP_HEADER = {4: 20, 6: 0}
"""Bytes before the message in what a raw socket receives."""


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _request(version: int, identity: int, number: int) -> bytes:
    """An echo request of a version of IP; the kernel sums up those of IPv6."""
    payload = _PAYLOAD.pack(number)
    bare = _ICMP.pack(_ECHO_REQUEST[version], 0, 0, identity, number & 0xFFFF) + payload
    return _ICMP.pack(_ECHO_REQUEST[version], 0, _checksum(bare), identity, number & 0xFFFF) + payload


def _open(namespace: Namespace, version: int) -> socket.socket:
    with namespace.entered():
        if version == 4:
            sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        else:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    sock.setblocking(False)
    stamped(sock)
    return sock


def _replies(sock: socket.socket, version: int, identity: int) -> list[tuple[float, Address, int]]:
    """All answers to our requests that are there: when, from whom, and the request's number."""
    answers = []
    with contextlib.suppress(BlockingIOError):
        while True:
            data, ancillary, _flags, sender = sock.recvmsg(2048, 64)
            start = _IP_HEADER[version]
            if len(data) < start + _ICMP.size + _PAYLOAD.size:
                continue
            kind, _code, _sum, who, _low = _ICMP.unpack_from(data, start)
            if kind == _ECHO_REPLY[version] and who == identity:
                (number,) = _PAYLOAD.unpack_from(data, start + _ICMP.size)
                answers.append((stamp(ancillary), ip(sender[0]), number))
    return answers


@frozen
class Reply:
    """An answered echo request; times in seconds of L{time.monotonic}, as the kernel stamped the arrival."""

    number: int
    sent: float
    received: float


def longest_gap(times: Iterable[float], since: float, until: float) -> float:
    """The longest time without an answer between two moments; see L{Pinger.outage}."""
    before = after = None
    within: list[float] = []
    for moment in times:
        if moment <= since:
            before = moment if before is None else max(before, moment)
        elif moment >= until:
            after = moment if after is None else min(after, moment)
        else:
            within.append(moment)
    points = sorted(moment for moment in (before, *within, after) if moment is not None)
    return max((later - earlier for earlier, later in pairwise(points)), default=float("inf"))


@define(eq=False)
class Pinger:
    """
    Sends an echo request to one address again and again, in a thread, whether answers come or not.

    @ivar interval: seconds from one request to the next.
    @ivar replies: the answers so far, in the order of their arrival.
    """

    _namespace: Namespace
    address: Address
    interval: float = 0.002
    replies: list[Reply] = field(factory=list, init=False)
    _sent: list[float] = field(factory=list, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _stopping: threading.Event = field(factory=threading.Event, init=False)

    def start(self) -> Pinger:
        self._thread = threading.Thread(
            target=self._run, args=(_open(self._namespace, self.address.version),), name="pinger", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send no more. Answers that are under way are not waited for."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Pinger:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for_reply(self, since: float = 0.0, limit: float = 30.0) -> Reply:
        """The first answer that came after a moment."""

        def first() -> Reply | None:
            # From the end: what is looked for is among the last few.
            found = None
            for reply in reversed(self.replies):
                if reply.received < since:
                    break
                found = reply
            return found

        return wait_until(first, f"an answer from {self.address}", limit, interval=0.001)

    def outage(self, since: float, until: float = float("inf")) -> float:
        """
        The longest time without an answer between two moments, in seconds. What is measured lies between two answers,
        the first of which may be older than C{since}.
        """
        return longest_gap([reply.received for reply in list(self.replies)], since, until)

    def unanswered(self, since: float = 0.0) -> list[float]:
        """
        When the requests were sent that got no answer, from a moment on and but for those of the last half second,
        which may be under way.
        """
        answered = {reply.number for reply in list(self.replies)}
        end = time.monotonic() - 0.5
        return [sent for number, sent in enumerate(list(self._sent)) if since <= sent < end and number not in answered]

    def lost(self, since: float = 0.0) -> int:
        """How many they are."""
        return len(self.unanswered(since))

    def late(self, since: float, until: float) -> int:
        """How many of the requests of a time were not answered in time."""
        answered = {reply.number for reply in list(self.replies) if reply.received - reply.sent < IN_TIME}
        sent = enumerate(list(self._sent))
        return sum(1 for number, when in sent if since <= when < until and number not in answered)

    def _run(self, sock: socket.socket) -> None:
        identity = (os.getpid() ^ id(self) >> 4) & 0xFFFF
        target = (str(self.address), 0)
        next_time = time.monotonic()
        with sock:
            while not self._stopping.is_set():
                now = time.monotonic()
                if now >= next_time:
                    self._sent.append(now)
                    # No route or an unreachable host is what is being measured: no answer.
                    with contextlib.suppress(OSError):
                        sock.sendto(_request(self.address.version, identity, len(self._sent) - 1), target)
                    next_time = max(next_time + self.interval, now)
                select.select([sock], [], [], max(0.0, next_time - time.monotonic()))
                for received, sender, number in _replies(sock, self.address.version, identity):
                    if sender == self.address:
                        self.replies.append(Reply(number, self._sent[number], received))


@define(eq=False)
class Sweeper:
    """
    Sends an echo request to each of many addresses in turn, again and again, in a thread, whether answers come or not.

    @ivar interval: seconds from one request to an address to the next one to it.
    @ivar replies: when the answers of each address came in, in seconds of L{time.monotonic}.
    """

    _namespace: Namespace
    addresses: Sequence[Address]
    interval: float
    replies: dict[Address, list[float]] = field(init=False)
    _waiting: dict[int, float] = field(factory=dict, init=False)
    _late: list[tuple[Address, float]] = field(factory=list, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _stopping: threading.Event = field(factory=threading.Event, init=False)

    @property
    def _version(self) -> int:
        """Of IP; all addresses are of one."""
        return self.addresses[0].version

    def start(self) -> Sweeper:
        self.replies = {address: [] for address in self.addresses}
        self._thread = threading.Thread(
            target=self._run, args=(_open(self._namespace, self._version),), name="sweeper", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send no more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Sweeper:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for_replies(self, since: float = 0.0, limit: float = 30.0) -> float:
        """Wait until every address has answered after a moment; when the last one of them did so first."""
        firsts: dict[Address, float] = {}

        def all_answered() -> bool:
            for address in self.addresses:
                if address not in firsts:
                    first = first_after(self.replies[address], since)
                    if first is not None:
                        firsts[address] = first
            return len(firsts) == len(self.addresses)

        def missing() -> str:
            silent = [str(address) for address in self.addresses if address not in firsts]
            return f"{len(silent)} did not answer, {', '.join(silent[:5])} among them"

        wait_until(all_answered, "answers of all addresses", limit, missing, interval=0.02)
        return max(firsts.values())

    def outage(self, address: Address, since: float, until: float = float("inf")) -> float:
        """The longest time between two answers of an address; see L{Pinger.outage}."""
        return longest_gap(list(self.replies[address]), since, until)

    def unanswered(self, since: float, until: float) -> set[Address]:
        """The addresses that did not answer some request of a time in time."""
        silent = [(self.addresses[number % len(self.addresses)], when) for number, when in list(self._waiting.items())]
        return {address for address, when in [*silent, *self._late] if since <= when < until}

    def _run(self, sock: socket.socket) -> None:
        identity = (os.getpid() ^ id(self) >> 4) & 0xFFFF
        targets = [(str(address), 0) for address in self.addresses]
        sent = 0
        began = time.monotonic()
        with sock:
            while not self._stopping.is_set():
                due = int((time.monotonic() - began) * len(targets) / self.interval)
                # After a pause of this process, a round is left out rather than sent all at once.
                sent = max(sent, due - len(targets))
                while sent < due:
                    self._waiting[sent] = time.monotonic()
                    # No route or an unreachable host is what is being measured: no answer.
                    with contextlib.suppress(OSError):
                        sock.sendto(_request(self._version, identity, sent), targets[sent % len(targets)])
                    sent += 1
                select.select([sock], [], [], 0.002)
                for received, sender, number in _replies(sock, self._version, identity):
                    asked = self._waiting.pop(number, None)
                    if asked is not None:
                        self.replies[sender].append(received)
                        if received - asked >= IN_TIME:
                            self._late.append((sender, asked))


def first_after(times: Sequence[float], since: float) -> float | None:
    """The first of the moments, which are in order, that is not before another one."""
    found = None
    for moment in reversed(times):
        if moment < since:
            break
        found = moment
    return found


def first_replies(
    namespace: Namespace, addresses: Iterable[Address], limit: float, again: float = 0.25
) -> dict[Address, float]:
    """
    When each of the addresses, all of one family, answered first, in seconds of L{time.monotonic}; those that never did
    are left out.

    Every address that has not answered gets another echo request each C{again} seconds. Such a request waits in the
    sender's neighbour table and goes out as soon as somebody announces the address, so the times are exact to
    milliseconds all the same.
    """
    answered: dict[Address, float] = {}
    wanted = frozenset(addresses)
    identity = os.getpid() & 0xFFFF
    end = time.monotonic() + limit
    next_time = time.monotonic()
    number = 0
    version = next((address.version for address in wanted), 4)
    with _open(namespace, version) as sock:
        while answered.keys() != wanted and time.monotonic() < end:
            if time.monotonic() >= next_time:
                next_time += again
                for address in in_order(wanted - answered.keys()):
                    number += 1
                    with contextlib.suppress(OSError):
                        sock.sendto(_request(version, identity, number), (str(address), 0))
            select.select([sock], [], [], max(0.0, next_time - time.monotonic()))
            for received, sender, _number in _replies(sock, version, identity):
                if sender in wanted:
                    answered.setdefault(sender, received)
    return answered
