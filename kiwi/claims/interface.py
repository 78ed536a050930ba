"""The seam to the claim store: what a store can do, and how it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from attrs import field, frozen
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from zope.interface import Interface

from kiwi.model import Address, AgentRecord, Claims


@frozen
class Granted:
    """
    The claim is this agent's for a whole TTL from C{sent} at least.

    @ivar sent: just before the request went out, in seconds on the agent's monotonic clock. Where a request was
        repeated, this is the first time.
    @ivar session: what the claim rests on, where claims rest on the record of their agent. Whatever confirms the
        session later, also the record alone, confirms every claim that rests on it. Empty where claims rest on nothing.
        It makes no answer unlike another one.
    """

    sent: float
    session: str = field(default="", eq=False)


@frozen
class Taken:
    """Another agent has it. C{holder} is its id, or empty where the store did not say."""

    holder: str


@frozen
class Lost:
    """The store has no such claim of this agent (any more)."""


@frozen
class Released:
    """The claim, if there was one of this agent's, is gone."""


@frozen
class Unavailable:
    """
    The store gave no answer that tells how things stand: the request may or may not have had its effect.

    @ivar reason: one printable line, for the log.
    """

    reason: str


class IClaimStore(Interface):
    """
    The judge of who carries an address. A store is made for one agent id and one TTL.

    An agent registers before it claims anything: in some stores claims rest on the record of their agent. There, they
    last for as long as that does, and whatever confirms one of them, or the record, confirms all that rest on the same
    session. So nothing is to be renewed there but what was claimed in another session, and what the watch knows not.

    No method fails: whatever goes wrong is an L{Unavailable}. Every answer comes within a time that the TTL bounds.
    """

    def acquire(address: Address) -> Deferred[Granted | Taken | Unavailable]:
        """
        Create the claim, if nobody has it. A claim that this agent has already is L{Taken} with its own id as holder
        (renewing then tells whether it lasts). Where claims rest on records, it is granted from when the record was
        confirmed.
        """

    def renew(addresses: AbstractSet[Address]) -> Deferred[Mapping[Address, Granted | Lost | Unavailable]]:
        """Give these claims of this agent a whole TTL again, without waking those who watch. Answers for each one."""

    def release(address: Address) -> Deferred[Released | Unavailable]:
        """Delete the claim if it is this agent's. A claim of another agent is left alone and counts as released."""

    def register(record: AgentRecord, replacing: AgentRecord | None = None) -> Deferred[Granted | Taken | Unavailable]:
        """
        Tell the other agents of this one, for a TTL. Those who watch hear of what is new in it.

        It is L{Taken} (by an unnamed holder) where there is a record of this id that is neither the same nor the one to
        be replaced.

        @param replacing: the record that a dead process of this agent left behind, if there is one.
        """

    def deregister(record: AgentRecord) -> Deferred[Released | Unavailable]:
        """Take the record back, if it is still the same."""

    def watch(changed: Callable[[Claims], None]) -> IService:
        """
        A service that, while it runs, calls C{changed} with everything the store knows: once it is known at first, and
        whenever it changes. It connects again for ever, reads everything anew each time it does, and keeps the last
        known claims in between. The mapping inside is never changed afterwards.
        """
