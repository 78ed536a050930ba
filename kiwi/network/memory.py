"""Hosts in memory: for C{--no-driver}, which touches nothing, for simulations and for tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from math import floor, inf

from attrs import define, evolve, field
from zope.interface import implementer

from kiwi.model import Address, Assignment, Configured, Host, Link, Mark, Placement, in_order

from .firewall import rule_comment
from .interface import Assigned, IAddresses, IAnnouncer, IFirewall, INeighbours, NetworkError, Probed, Unassigned
from .nftables import COMMENT_SIZE

MAC = bytes.fromhex("020000000001")
"""A MAC address that no vendor gives out."""


@implementer(IAddresses)
@define(eq=False)
class MemoryAddresses:
    """
    Interfaces that are not there, with a kernel that keeps time as the real one does: lifetimes are whole seconds, and
    what has reached its end is gone (the real one may take 1.25 s longer).

    @ivar interfaces: their names.
    @ivar monotonic: the agent's monotonic clock, in seconds.
    @ivar links: the interfaces as they are, by name, but for those that do not exist.
    @ivar subnets: what somebody else configured on each of them.
    @ivar elsewhere: what somebody else configured on other interfaces.
    @ivar gateways: the next hops of the default routes.
    @ivar _lifetimes: for each address of ours, the interface it is on, when it was written and for how many seconds.
    """

    interfaces: Sequence[str]
    monotonic: Callable[[], float]
    links: dict[str, Link] = field()
    subnets: dict[str, set[Configured]] = field()
    elsewhere: set[Configured] = field(factory=set)
    gateways: set[Address] = field(factory=set)
    _lifetimes: dict[Address, tuple[str, float, float]] = field(factory=dict, init=False)

    @links.default
    def _links_that_are_ready(self) -> dict[str, Link]:
        return {name: Link(2 + number, name, MAC, ready=True) for number, name in enumerate(self.interfaces)}

    @subnets.default
    def _no_subnets(self) -> dict[str, set[Configured]]:
        return {name: set() for name in self.interfaces}

    @classmethod
    def like(cls, host: Host, interfaces: Sequence[str], monotonic: Callable[[], float]) -> MemoryAddresses:
        """A host that has what somebody else configured on another one, and nothing of ours."""
        subnets = {name: set(host.subnets.get(name, ())) for name in interfaces}
        elsewhere = set(host.own).difference(*subnets.values())
        return cls(interfaces, monotonic, dict(host.links), subnets, elsewhere, set(host.gateways))

    def remove_link(self, name: str) -> None:
        """Delete an interface, with all that is on it."""
        del self.links[name]
        self.subnets[name].clear()
        self._lifetimes = {a: lifetime for a, lifetime in self._lifetimes.items() if lifetime[0] != name}

    def set_ready(self, name: str, ready: bool) -> None:
        """Set carrier on or off. Addresses stay."""
        link = self.links.get(name)
        if link is not None and link.ready != ready:
            self.links[name] = evolve(link, ready=ready, carrier_changes=link.carrier_changes + 1)

    def delete(self, address: Address) -> None:
        """Delete an address of ours by hand."""
        self._lifetimes.pop(address, None)

    def make_permanent(self, address: Address) -> None:
        """Let an address of ours stay for ever, by hand."""
        self._lifetimes[address] = (self._lifetimes[address][0], self.monotonic(), inf)

    def read(self) -> Host:
        now = self._let_time_pass()
        return Host(
            dict(self.links),
            {
                address: inf if seconds == inf else now + max(1, seconds - floor(now - written))
                for address, (_, written, seconds) in self._lifetimes.items()
            },
            {address: name for address, (name, _, _) in self._lifetimes.items()},
            {name: frozenset(self.subnets[name]) for name in self.links},
            frozenset(self.elsewhere.union(*self.subnets.values())),
            frozenset(self.gateways),
        )

    def assign(self, assignments: AbstractSet[Assignment]) -> Assigned:
        now = self._let_time_pass()
        theirs = {configured.ip: configured for configured in self.elsewhere.union(*self.subnets.values())}
        expires: dict[Address, float] = {}
        failed: dict[Address, str] = {}
        for assignment in assignments:
            address, name, left = assignment.address, assignment.interface, assignment.expires - now
            if name not in self.links:
                failed[address] = f"the interface {name} does not exist"
            elif address in theirs:
                failed[address] = f"somebody else configured {theirs[address]} on this host"
            elif address in self._lifetimes and self._lifetimes[address][0] != name:
                failed[address] = f"it is on {self._lifetimes[address][0]} still"
            elif left < 1:
                failed[address] = f"its claim ends in {left:.1f} s" if left > 0 else "its claim has ended"
            else:
                seconds = left if left == inf else floor(left)
                self._lifetimes[address] = (name, now, seconds)
                expires[address] = now + seconds
        return Assigned(expires, failed)

    def unassign(self, addresses: AbstractSet[Address]) -> Unassigned:
        self._let_time_pass()
        for address in addresses:
            self._lifetimes.pop(address, None)
        return Unassigned(frozenset(addresses))

    def _let_time_pass(self) -> float:
        """Remove what has reached its end. The time is now."""
        now = self.monotonic()
        ended = [address for address, (_, written, seconds) in self._lifetimes.items() if written + seconds <= now]
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
            rule_comment(service, COMMENT_SIZE)
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
    _announced: deque[Address] = field(factory=lambda: deque(maxlen=10_000), init=False)

    @property
    def announced(self) -> list[Address]:
        """What was announced, in order; the latest 10,000 of it."""
        return list(self._announced)

    def announce(self, assignments: AbstractSet[Assignment]) -> None:
        if not assignments:
            return
        if self.refusal is not None:
            raise NetworkError(self.refusal)
        now = self.monotonic()
        self._announced.extend(in_order(each.address for each in assignments if now < each.expires))


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

    foreign: dict[Address, bytes] = field(factory=dict)
    rivals: dict[Address, bytes] = field(factory=dict)
    refusal: str | None = None
    _probed: deque[Address] = field(factory=lambda: deque(maxlen=10_000), init=False)

    @property
    def probed(self) -> list[Address]:
        """What was asked for, in order; the latest 10,000 of it."""
        return list(self._probed)

    def probe(self, placements: AbstractSet[Placement], wait: float) -> Probed:
        if not placements:
            return Probed()
        if self.refusal is not None:
            raise NetworkError(self.refusal)
        addresses = {placement.address for placement in placements}
        self._probed.extend(in_order(addresses))
        owners = {address: mac for address, mac in self.foreign.items() if address in addresses}
        free = addresses - owners.keys()
        return Probed(owners, {address: mac for address, mac in self.rivals.items() if address in free})
