"""
The things an agent can decide to do, as values.

Steps of one plan do not depend on each other: what must come first is a fact before the plan is made (see Note [Order]
in L{kiwi.planning}). C{subjects} is what a step works on; no two steps work on one subject at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Protocol

from attrs import frozen
from effect import Effect

from .claims.intents import AcquireClaim, DeregisterAgent, RegisterAgent, ReleaseClaim, RenewClaims
from .model import Address, AgentRecord, Assignment, Mark, Placement
from .network.intents import (
    AssignAddresses,
    ProbeNeighbours,
    ReadHost,
    ReadMarks,
    RemoveMarks,
    ReplaceMarks,
    SendAnnouncements,
    UnassignAddresses,
)


@frozen
class ClaimTo:
    """The claim to one address, as the subject of a step."""

    address: Address

    def __str__(self) -> str:
        return f"the claim to {self.address}"


@frozen
class AssignmentOf:
    """One address on its interface, as the subject of what can fail for it alone."""

    address: Address

    def __str__(self) -> str:
        return str(self.address)


@frozen
class Part:
    """A part of the host, or the agent's record, as the subject of a step."""

    name: str

    def __str__(self) -> str:
        return self.name


ADDRESSES = Part("the addresses of the interfaces")
FIREWALL = Part("the firewall")
NEIGHBOURS = Part("the neighbours")
PROBES = Part("the question who has an address")
RECORD = Part("the agent's record")

Subject = ClaimTo | AssignmentOf | Part


class Step(Protocol):
    """One decision. Equal decisions are equal values."""

    @property
    def subjects(self) -> Iterable[Subject]:
        """What it works on."""

    def as_effect(self) -> Effect:
        """What doing it means, not yet done."""


@frozen
class Acquire:
    """Try to win the claim to an address."""

    address: Address

    @property
    def subjects(self) -> Iterable[Subject]:
        return (ClaimTo(self.address),)

    def as_effect(self) -> Effect:
        return Effect(AcquireClaim(self.address))


@frozen
class Renew:
    """Confirm claims: those that are held, and those that an earlier life of this agent left behind."""

    addresses: frozenset[Address]

    @property
    def subjects(self) -> Iterable[Subject]:
        return map(ClaimTo, self.addresses)

    def as_effect(self) -> Effect:
        return Effect(RenewClaims(self.addresses))


@frozen
class Release:
    """Give the claim to an address back."""

    address: Address

    @property
    def subjects(self) -> Iterable[Subject]:
        return (ClaimTo(self.address),)

    def as_effect(self) -> Effect:
        return Effect(ReleaseClaim(self.address))


@frozen
class Register:
    """Tell the other agents of this one, instead of what an earlier life of it left behind."""

    record: AgentRecord
    replacing: AgentRecord | None = None
    subjects: ClassVar[Iterable[Subject]] = (RECORD,)

    def as_effect(self) -> Effect:
        return Effect(RegisterAgent(self.record, self.replacing))


@frozen
class Deregister:
    """Tell the other agents that this one goes."""

    record: AgentRecord
    subjects: ClassVar[Iterable[Subject]] = (RECORD,)

    def as_effect(self) -> Effect:
        return Effect(DeregisterAgent(self.record))


@frozen
class LookAtHost:
    """Read how the host is."""

    subjects: ClassVar[Iterable[Subject]] = (ADDRESSES,)

    def as_effect(self) -> Effect:
        return Effect(ReadHost())


@frozen
class Assign:
    """Put addresses on their interfaces, or extend the time that they may stay there."""

    assignments: frozenset[Assignment]
    subjects: ClassVar[Iterable[Subject]] = (ADDRESSES,)

    def as_effect(self) -> Effect:
        return Effect(AssignAddresses(self.assignments))


@frozen
class Unassign:
    """Take addresses off the interfaces."""

    addresses: frozenset[Address]
    subjects: ClassVar[Iterable[Subject]] = (ADDRESSES,)

    def as_effect(self) -> Effect:
        return Effect(UnassignAddresses(self.addresses))


@frozen
class Announce:
    """Tell the neighbours where addresses are."""

    assignments: frozenset[Assignment]
    subjects: ClassVar[Iterable[Subject]] = (NEIGHBOURS,)

    def as_effect(self) -> Effect:
        return Effect(SendAnnouncements(self.assignments))


@frozen
class Probe:
    """
    Ask the neighbours whether one of them has these addresses already.

    @ivar wait: for an answer, in seconds.
    """

    placements: frozenset[Placement]
    wait: float
    subjects: ClassVar[Iterable[Subject]] = (PROBES,)

    def as_effect(self) -> Effect:
        return Effect(ProbeNeighbours(self.placements, self.wait))


@frozen
class LookAtMarks:
    """Read what the firewall marks."""

    subjects: ClassVar[Iterable[Subject]] = (FIREWALL,)

    def as_effect(self) -> Effect:
        return Effect(ReadMarks())


@frozen
class MarkTraffic:
    """Make the firewall mark exactly this traffic."""

    marks: frozenset[Mark]
    subjects: ClassVar[Iterable[Subject]] = (FIREWALL,)

    def as_effect(self) -> Effect:
        return Effect(ReplaceMarks(self.marks))


@frozen
class Unmark:
    """Leave no trace in the firewall."""

    subjects: ClassVar[Iterable[Subject]] = (FIREWALL,)

    def as_effect(self) -> Effect:
        return Effect(RemoveMarks())
