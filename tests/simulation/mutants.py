"""
Agents with one mistake each, as somebody might make it. The simulation must notice every one of them.

A mutant is made by wrapping or subclassing what an agent is made of; the code itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from math import inf
from typing import Any

from attrs import define, evolve, frozen
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from zope.interface import implementer

from kiwi.claims.beats import Answer, Beat
from kiwi.claims.etcd3 import Etcd3ClaimStore
from kiwi.claims.etcd3_reading import Told
from kiwi.claims.etcd3_requests import delete
from kiwi.claims.etcd3_session import Own, OwnSession
from kiwi.claims.etcd3_watch import Etcd3Watch
from kiwi.claims.interface import Granted, IClaimStore, Lost, Released, Taken, Unavailable
from kiwi.claims.lease_mirror import LeaseMirror
from kiwi.claims.lease_objects import AgentLease, ClaimLease, Identity, Lease
from kiwi.claims.lease_requests import Conflict, Deleted, Gone, LeaseRequests
from kiwi.claims.leases import LeaseClaimStore
from kiwi.converger import Converger
from kiwi.model import CLOCK_DRIFT, Address, AgentRecord, Assignment, Claims, Hold, Host, in_order
from kiwi.network.interface import Assigned, IAddresses, Unassigned
from kiwi.planning import Situation, Terms
from kiwi.steps import Acquire, Announce, ClaimTo, Release, Renew, Step, Unassign

from .kernel import Addresses
from .world import Mutation

# Converger has slots; a subclass without any can take its place in an agent that is made.


class _ReleasesFirst(Converger):
    """Gives the claim back beside taking the address off the host."""

    __slots__ = ()

    def _do(self, step: Step) -> None:
        if isinstance(step, Unassign):
            for address in step.addresses:
                if address in self._holds and ClaimTo(address) not in self._busy:
                    super()._do(Release(address))
        super()._do(step)


class _AssignsUnconfirmed(Converger):
    """Takes the claim for won when the request is sent."""

    __slots__ = ()

    def _do(self, step: Step) -> None:
        if isinstance(step, Acquire):
            now = self.clock.seconds()
            self._holds[step.address] = Hold(step.address, now, now)
        super()._do(step)


class _AssignsUnmarked(Converger):
    """Does not wait for the firewall."""

    __slots__ = ()

    def _gather(self) -> Situation:
        seen = super()._gather()
        marks = frozenset(mark for marks in (seen.wanted or {}).values() for mark in marks)
        return evolve(seen, marks=None if seen.marks is None else seen.marks | marks)


class _KeepsWhatIsLost(Converger):
    """Does not look at deadlines, neither in time nor when it is resumed."""

    __slots__ = ()

    def _end_holds(self, now: float) -> None:
        pass

    def _gather(self) -> Situation:
        seen = super()._gather()
        now = self.clock.seconds()
        return evolve(seen, holds={a: evolve(hold, sent=max(hold.sent, now - 1)) for a, hold in seen.holds.items()})


class _AdoptsUnasked(Converger):
    """Takes what an earlier life left on the interface for its own, without asking the store."""

    __slots__ = ()

    def _gather(self) -> Situation:
        now = self.clock.seconds()
        for address in list(self._adoptable):
            self._holds.setdefault(address, Hold(address, now, now))
        self._adoptable.clear()
        return super()._gather()


class _ExtendsUnconfirmed(Converger):
    """Counts a renewal as confirmed when it is sent."""

    __slots__ = ()

    def _do(self, step: Step) -> None:
        if isinstance(step, Renew):
            for address in step.addresses & self._holds.keys():
                self._holds[address] = evolve(self._holds[address], sent=self.clock.seconds())
        super()._do(step)


class AnnouncesTooLong(Converger):
    """Announces what was on the interface when it looked last, whenever that was."""

    __slots__ = ()

    def _do(self, step: Step) -> None:
        if isinstance(step, Announce):
            step = Announce(frozenset(Assignment(each.address, inf, each.interface) for each in step.assignments))
        super()._do(step)


class _AsksAgainAndAgain(Converger):
    """Confirms its claims whenever it looks."""

    __slots__ = ()

    def _gather(self) -> Situation:
        self._renewals_due.update(self._holds)
        return super()._gather()


class _CarriesAnything(Converger):
    """Does not care where Services have their endpoints."""

    __slots__ = ()

    def _gather(self) -> Situation:
        return evolve(super()._gather(), eligible={}, undecided=frozenset())


class _CarriesOn(Converger):
    """Does not care whether its host is fit."""

    __slots__ = ()

    def _gather(self) -> Situation:
        return evolve(super()._gather(), unfit=False)


class _WithoutMargin(Terms):
    """Leaves nothing for the kernel, nor for a slow clock."""

    __slots__ = ()

    def hold_ends(self, hold: Hold) -> float:
        return hold.sent + self.ttl

    def assignment_ends(self, hold: Hold, together: int = 1) -> float:
        return hold.sent + self.ttl


class _WithoutMarginForTheKernel(Terms):
    """Leaves the kernel as little as the agent itself."""

    __slots__ = ()

    def assignment_ends(self, hold: Hold, together: int = 1) -> float:
        return hold.sent + self.ttl * 0.99


@implementer(IClaimStore)
@define(eq=False)
class _CountsFromTheAnswer:
    """A claim lasts from when the answer is there."""

    inner: IClaimStore
    clock: Any

    def _now(self, answer: Any) -> Any:
        return Granted(self.clock.seconds()) if isinstance(answer, Granted) else answer

    def acquire(self, address: Address) -> Deferred[Granted | Taken | Unavailable]:
        answer: Deferred[Any] = self.inner.acquire(address)
        return answer.addCallback(self._now)

    def renew(self, addresses: AbstractSet[Address]) -> Deferred[Mapping[Address, Granted | Lost | Unavailable]]:
        answers: Deferred[Any] = self.inner.renew(addresses)
        return answers.addCallback(lambda all: {address: self._now(answer) for address, answer in all.items()})

    def release(self, address: Address) -> Deferred[Released | Unavailable]:
        return self.inner.release(address)

    def register(
        self, record: AgentRecord, replacing: AgentRecord | None = None
    ) -> Deferred[Granted | Taken | Unavailable]:
        return self.inner.register(record, replacing)

    def deregister(self, record: AgentRecord) -> Deferred[Released | Unavailable]:
        return self.inner.deregister(record)

    def watch(self, changed: Callable[[Claims], None]) -> IService:
        return self.inner.watch(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@implementer(IAddresses)
@define(eq=False)
class _Changed:
    """What the kernel is told, changed."""

    inner: Addresses

    def read(self) -> Host:
        return self.inner.read()

    def assign(self, assignments: AbstractSet[Assignment]) -> Assigned:
        return self.inner.assign(assignments)

    def unassign(self, addresses: AbstractSet[Address]) -> Unassigned:
        return self.inner.unassign(addresses)


class _ReplacesWithoutLifetimes(_Changed):
    """An address that is there already is written again without lifetimes, which makes it permanent."""

    def assign(self, assignments: AbstractSet[Assignment]) -> Assigned:
        there = set(self.inner.kernel.entries)
        assigned = self.inner.assign(assignments)
        for address in in_order(there & assigned.expires.keys()):
            self.inner.kernel.write(address, inf, inf)
        return assigned


class _RoundsUp(_Changed):
    """Lifetimes are whole seconds, rounded up."""

    def assign(self, assignments: AbstractSet[Assignment]) -> Assigned:
        return self.inner.assign(frozenset(Assignment(a.address, a.expires + 0.999, a.interface) for a in assignments))


class _ArmsTheTimerOnce(_Changed):
    """Addresses are preferred for as long as they are valid, so that the kernel's timer is set only once."""

    def assign(self, assignments: AbstractSet[Assignment]) -> Assigned:
        assigned = self.inner.assign(assignments)
        for address in in_order(assigned.expires):
            valid = self.inner.kernel.entries[address].valid
            self.inner.kernel.write(address, valid, valid)
        return assigned


class _EndsWithItsTime(LeaseMirror):
    """A session is over when its time is, whether its Lease is there or not."""

    __slots__ = ()

    def is_over(self, uid: str, now: float, former: AbstractSet[str] = frozenset()) -> bool:
        session = self.sessions.get(uid)
        return session is not None and (uid in former or session.ends <= now)


class EndsWithItsLease(LeaseMirror):
    """A session is over when its Lease is gone, whoever has deleted that."""

    __slots__ = ()

    def is_over(self, uid: str, now: float, former: AbstractSet[str] = frozenset()) -> bool:
        session = self.sessions.get(uid)
        return session is not None and session.gone


class EndsEarly(LeaseMirror):
    """The hundredth that clocks may be wrong is taken off the TTL of others."""

    __slots__ = ()

    def put(self, lease: Lease, now: float) -> None:
        super().put(lease, now - 2 * CLOCK_DRIFT * lease.ttl if isinstance(lease, AgentLease) else now)


class DeletesWhateverIsThere(LeaseRequests):
    """A Lease is deleted in whatever state it is."""

    async def delete(self, name: str, identity: Identity, deadline: float) -> Deleted | Conflict | Gone:
        any_state: Any = None
        return await super().delete(name, Identity(identity.uid, any_state), deadline)


class _TrustsItsName(LeaseClaimStore):
    """What has its name is its own, whatever session it rests on."""

    __slots__ = ()

    async def _confirmed(self, address: Address, answer: Granted) -> Granted | Lost | Unavailable:
        claim = self._known(address)
        return answer if claim is not None and claim.holder == self.agent_id else Lost()


class TrustsWhatItFinds(LeaseClaimStore):
    """What an earlier life has claimed is not written again."""

    __slots__ = ()

    async def _adopted(self, address: Address, claim: ClaimLease | None) -> Granted | Lost | Unavailable:
        own = self.session.own
        return Granted(own.sent) if own is not None and claim is not None and claim.session == own.uid else Lost()


def on_leases(
    store: type[LeaseClaimStore] = LeaseClaimStore,
    mirror: type[LeaseMirror] = LeaseMirror,
    requests: type[LeaseRequests] = LeaseRequests,
) -> Mutation:
    """A Lease store that is made of these."""

    class Spoiled(store):  # type: ignore[valid-type, misc]
        __slots__ = ()

        def watch(self, changed: Callable[[Claims], None]) -> IService:
            watch = super().watch(changed)
            watch._mirror.__class__ = mirror
            return watch

    def spoil(made: IClaimStore, clock: Any) -> IClaimStore:
        assert isinstance(made, LeaseClaimStore)
        made.__class__ = Spoiled
        made.requests = made.session.requests = requests(made.api, made.namespace, made.ttl)
        return made

    return Mutation(store=spoil)


class _BelievesTheLease(OwnSession):
    """A lease that is kept alive is enough: the record is not written."""

    __slots__ = ()

    async def _go_on(self, beat: Beat, own: Own, deadline: float) -> Answer | None:
        if beat.record is not None:
            return await super()._go_on(beat, own, deadline)
        sent, kept = await self.requests.keep(own.lease, deadline)
        if kept.ttl < self.ttl:
            return self._lost(beat, own)
        self.own = evolve(own, sent=sent)
        return Granted(sent, self.token(own.lease))


class BelievesAnyLeader(OwnSession):
    """The record is written, whoever leads by then."""

    __slots__ = ()

    async def _go_on(self, beat: Beat, own: Own, deadline: float) -> Answer | None:
        sent = self.clock.seconds()
        answer = await super()._go_on(beat, own, deadline)
        now = self.own
        if answer is None and now is not None and now.lease == own.lease and now.modified > own.modified:
            self.own = evolve(now, sent=sent)
            return Granted(sent, self.token(now.lease))
        return answer


class _CountsFromTheTransaction(OwnSession):
    """The lease lasts from when the transaction after it is answered."""

    __slots__ = ()

    async def _go_on(self, beat: Beat, own: Own, deadline: float) -> Answer | None:
        answer = await super()._go_on(beat, own, deadline)
        if isinstance(answer, Granted) and self.own is not None:
            self.own = evolve(self.own, sent=self.clock.seconds())
            return Granted(self.own.sent, answer.session)
        return answer


class LeavesByRevoking(OwnSession):
    """The session is ended by revoking its lease, whoever has gone on with that."""

    __slots__ = ()

    async def _deregister(self, record: AgentRecord) -> Released:
        if self.own is not None:
            revoked = {"ID": str(self.own.lease)}
            await self.requests._ask("/v3/lease/revoke", revoked, self.clock.seconds() + 5, lambda said: None)
        return Released()


class _IgnoresCompaction(Etcd3Watch):
    """Goes on waiting for changes that etcd has forgotten."""

    __slots__ = ()

    def _cancelled(self, told: Told) -> None:
        if not told.compacted:
            super()._cancelled(told)


class TakesLossesLightly(Etcd3ClaimStore):
    """A store that comes back without its data is like any other."""

    __slots__ = ()

    def forgotten(self) -> None:
        pass


class ReleasesWhateverIsThere(Etcd3ClaimStore):
    """A claim is deleted without comparing."""

    __slots__ = ()

    async def _release(self, address: Address) -> Released:
        self._written.pop(address, None)
        await self.requests.transaction([], [delete(self.keys.claim(address))], [], self._deadline())
        return Released()


class TrustsTheKeys(Etcd3ClaimStore):
    """What an earlier life has claimed is not written again."""

    __slots__ = ()

    async def _adopted(self, address: Address) -> Granted | Lost | Unavailable:
        own, claim = self.session.own, await self._known(address, self._deadline())
        mine = own is not None and claim is not None and claim.lease == own.lease
        return Granted(own.sent) if own is not None and mine else Lost()


def on_etcd3(
    store: type[Etcd3ClaimStore] = Etcd3ClaimStore,
    session: type[OwnSession] = OwnSession,
    watch: type[Etcd3Watch] = Etcd3Watch,
) -> Mutation:
    """A store in etcd v3 that is made of these."""

    class Spoiled(store):  # type: ignore[valid-type, misc]
        __slots__ = ()

        def watch(self, changed: Callable[[Claims], None]) -> IService:
            made = super().watch(changed)
            made.__class__ = watch
            return made

    def spoil(made: IClaimStore, clock: Any) -> IClaimStore:
        assert isinstance(made, Etcd3ClaimStore)
        made.__class__ = Spoiled
        made.session.__class__ = session
        made.requests.forgotten = made.forgotten
        return made

    return Mutation(store=spoil)


@frozen
class Mutant:
    """
    @ivar name: what is wrong with these agents: the end of a sentence.
    @ivar mutation: how they are made.
    @ivar noticed: what the simulation says of it, in part.
    @ivar backend: where their claims are.
    """

    name: str
    mutation: Mutation
    noticed: Sequence[str]
    backend: str = "etcd2"


ORDER = ("no claim", "without a claim", "two carriers")
ELSEWHERE = ("may only be on", "is not wanted")
MARGIN = ("longer than", "too late", "after its claim", "two carriers", "no claim", "without a claim")

MUTANTS = (
    Mutant("releases before it unassigns", Mutation(converger=_ReleasesFirst), ORDER),
    Mutant("assigns before the claim is confirmed", Mutation(converger=_AssignsUnconfirmed), ORDER),
    Mutant("assigns before the traffic is marked", Mutation(converger=_AssignsUnmarked), ("before its traffic",)),
    Mutant("does not check what it holds", Mutation(converger=_KeepsWhatIsLost), MARGIN),
    Mutant("adopts without asking the store", Mutation(converger=_AdoptsUnasked), MARGIN),
    Mutant("extends lifetimes by an unconfirmed heartbeat", Mutation(converger=_ExtendsUnconfirmed), MARGIN),
    Mutant("asks the store again and again", Mutation(converger=_AsksAgainAndAgain), ("requests of kind", "wakes")),
    Mutant("carries what must be elsewhere", Mutation(converger=_CarriesAnything), ELSEWHERE),
    Mutant("carries on where its host is unfit", Mutation(converger=_CarriesOn), ELSEWHERE),
    Mutant("leaves no margin", Mutation(terms=_WithoutMargin), MARGIN),
    Mutant("leaves the kernel no margin", Mutation(terms=_WithoutMarginForTheKernel), MARGIN),
    Mutant("counts deadlines from the answer", Mutation(store=_CountsFromTheAnswer), MARGIN),
    Mutant("replaces without lifetimes", Mutation(addresses=_ReplacesWithoutLifetimes), MARGIN),
    Mutant("arms the kernel's timer once", Mutation(addresses=_ArmsTheTimerOnce), MARGIN),
    Mutant("rounds lifetimes up", Mutation(addresses=_RoundsUp), MARGIN),
    Mutant(
        "takes claims before it deletes their session", on_leases(mirror=_EndsWithItsTime), MARGIN, backend="leases"
    ),
    Mutant("trusts claims of its former session", on_leases(store=_TrustsItsName), MARGIN, backend="leases"),
    Mutant("believes its lease without a transaction", on_etcd3(session=_BelievesTheLease), MARGIN, backend="etcd3"),
    Mutant("counts from the transaction", on_etcd3(session=_CountsFromTheTransaction), MARGIN, backend="etcd3"),
    Mutant(
        "ignores compaction", on_etcd3(watch=_IgnoresCompaction), ("not in order", "requests of kind"), backend="etcd3"
    ),
)
