"""Hosts in memory: for C{--no-driver}, which touches nothing, for simulations and for tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address, IPv4Interface
from math import floor, inf

from attrs import define, evolve, field
from zope.interface import implementer

from kiwi.model import Assignment, Host, Link, Mark

from .firewall import rule_comment
from .interface import Assigned, IAddresses, IAnnouncer, IFirewall, INeighbours, NetworkError, Probed, Unassigned

MAC = bytes.fromhex("020000000001")
"""A MAC address that no vendor gives out."""


@implementer(IAddresses)
@define(eq=False)
class MemoryAddresses:
    """
    An interface that is not there, with a kernel that keeps time as the real one does: lifetimes are whole seconds, and
    what has reached its end is gone (the real one may take 1.25 s longer).

    @ivar monotonic: the agent's monotonic clock, in seconds.
    @ivar link: the interface as it is; C{None} while it does not exist.
    @ivar subnets: what somebody else configured on it.
    @ivar elsewhere: what somebody else configured on other interfaces.
    @ivar gateways: the next hops of the default routes.
    @ivar _lifetimes: for each address of ours, when it was written and for how many seconds.
    """

    interface: str
    monotonic: Callable[[], float]
    link: Link | None = field()
    subnets: set[IPv4Interface] = field(factory=set)
    elsewhere: set[IPv4Interface] = field(factory=set)
    gateways: set[IPv4Address] = field(factory=set)
    _lifetimes: dict[IPv4Address, tuple[float, float]] = field(factory=dict, init=False)

    @link.default
    def _link_that_is_ready(self) -> Link | None:
        return Link(2, self.interface, MAC, ready=True)

    @classmethod
    def like(cls, host: Host, interface: str, monotonic: Callable[[], float]) -> MemoryAddresses:
        """A host that has what somebody else configured on another one, and nothing of ours."""
        return cls(interface, monotonic, host.link, set(host.subnets), set(host.own - host.subnets), set(host.gateways))

    def remove_link(self) -> None:
        """Delete the interface, with all that is on it."""
        self.link = None
        self.subnets.clear()
        self._lifetimes.clear()

    def set_ready(self, ready: bool) -> None:
        """Set carrier on or off. Addresses stay."""
        if self.link is not None and self.link.ready != ready:
            self.link = evolve(self.link, ready=ready, carrier_changes=self.link.carrier_changes + 1)

    def delete(self, address: IPv4Address) -> None:
        """Delete an address of ours by hand."""
        self._lifetimes.pop(address, None)

    def make_permanent(self, address: IPv4Address) -> None:
        """Let an address of ours stay for ever, by hand."""
        self._lifetimes[address] = (self.monotonic(), inf)

    def read(self) -> Host:
        now = self._let_time_pass()
        return Host(
            self.link,
            {
                address: inf if seconds == inf else now + max(1, seconds - floor(now - written))
                for address, (written, seconds) in self._lifetimes.items()
            },
            frozenset(self.subnets),
            frozenset(self.subnets | self.elsewhere),
            frozenset(self.gateways),
        )

    def assign(self, assignments: AbstractSet[Assignment]) -> Assigned:
        now = self._let_time_pass()
        theirs = {configured.ip: configured for configured in self.subnets | self.elsewhere}
        expires: dict[IPv4Address, float] = {}
        failed: dict[IPv4Address, str] = {}
        for assignment in assignments:
            address, left = assignment.address, assignment.expires - now
            if self.link is None:
                failed[address] = f"the interface {self.interface} does not exist"
            elif address in theirs:
                failed[address] = f"somebody else configured {theirs[address]} on this host"
            elif left < 1:
                failed[address] = f"its claim ends in {left:.1f} s" if left > 0 else "its claim has ended"
            else:
                seconds = left if left == inf else floor(left)
                self._lifetimes[address] = (now, seconds)
                expires[address] = now + seconds
        return Assigned(expires, failed)

    def unassign(self, addresses: AbstractSet[IPv4Address]) -> Unassigned:
        self._let_time_pass()
        for address in addresses:
            self._lifetimes.pop(address, None)
        return Unassigned(frozenset(addresses))

    def _let_time_pass(self) -> float:
        """Remove what has reached its end. The time is now."""
        now = self.monotonic()
        ended = [address for address, (written, seconds) in self._lifetimes.items() if written + seconds <= now]
        for address in ended:
            del self._lifetimes[address]
        return now


@implementer(IFirewall)
@define
class MemoryFirewall:
    """
    A firewall that only remembers.

    @ivar marks: the marks that are set, or C{None} while the chain is not as it should be.
    """

    marks: frozenset[Mark] | None = None

    def spoil(self) -> None:
        """Change the chain by hand."""
        self.marks = None

    def read(self) -> frozenset[Mark] | None:
        return self.marks

    def replace(self, marks: AbstractSet[Mark]) -> None:
        for service in {mark.service for mark in marks}:
            rule_comment(service)
        self.marks = frozenset(marks)

    def remove(self) -> None:
        self.marks = None


@implementer(IAnnouncer)
@define(eq=False)
class MemoryAnnouncer:
    """
    An announcer that only remembers.

    @ivar monotonic: the agent's monotonic clock, in seconds.
    @ivar refusal: why nothing can be sent now, if so.
    @ivar _announced: the latest announcements; an agent that touches nothing may run for years.
    """

    monotonic: Callable[[], float]
    refusal: str | None = None
    _announced: deque[IPv4Address] = field(factory=lambda: deque(maxlen=10_000), init=False)

    @property
    def announced(self) -> list[IPv4Address]:
        """What was announced, in order; the latest 10,000 of it."""
        return list(self._announced)

    def announce(self, assignments: AbstractSet[Assignment]) -> None:
        if not assignments:
            return
        if self.refusal is not None:
            raise NetworkError(self.refusal)
        now = self.monotonic()
        self._announced.extend(sorted(assignment.address for assignment in assignments if now < assignment.expires))


@implementer(INeighbours)
@define(eq=False)
class MemoryNeighbours:
    """
    Neighbours that answer at once.

    @ivar foreign: the MAC address of another machine for each address that one has.
    @ivar rivals: the same for each address that one asks for whenever it is asked for here.
    @ivar refusal: why nothing can be asked now, if so.
    @ivar _probed: the latest questions; an agent that touches nothing may run for years.
    """

    foreign: dict[IPv4Address, bytes] = field(factory=dict)
    rivals: dict[IPv4Address, bytes] = field(factory=dict)
    refusal: str | None = None
    _probed: deque[IPv4Address] = field(factory=lambda: deque(maxlen=10_000), init=False)

    @property
    def probed(self) -> list[IPv4Address]:
        """What was asked for, in order; the latest 10,000 of it."""
        return list(self._probed)

    def probe(self, addresses: AbstractSet[IPv4Address], wait: float) -> Probed:
        if not addresses:
            return Probed()
        if self.refusal is not None:
            raise NetworkError(self.refusal)
        self._probed.extend(sorted(addresses))
        owners = {address: mac for address, mac in self.foreign.items() if address in addresses}
        free = addresses - owners.keys()
        return Probed(owners, {address: mac for address, mac in self.rivals.items() if address in free})
