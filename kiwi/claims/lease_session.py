"""An agent's own Lease, on which all its claims rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from kiwi.http import HTTPError
from kiwi.logs import logger
from kiwi.model import AgentRecord

from .asking import BEAT_TIME, CLAIM_TIME, answer_of
from .beats import Answer, Beat, Beats
from .interface import Granted, Lost, Released, Taken, Unavailable
from .lease_objects import (
    AgentLease,
    Identity,
    Lease,
    Strange,
    agent_lease_name,
    has_gone_back,
    number,
    time_text,
    write_agent,
)
from .lease_requests import Conflict, Deleted, Gone, LeaseRequests

MOST_TRIES = 4
"""How often something is tried that others have changed in between."""


@frozen
class Own:
    """
    This agent's session. See Note [Sessions] in L{kiwi.claims.leases}.

    @ivar lease: as it was confirmed last.
    @ivar sent: when that was sent, in seconds on this agent's monotonic clock.
    @ivar is_doubted: the store has lost its data since, and may have it in an earlier state.
    """

    lease: AgentLease
    sent: float
    is_doubted: bool = False

    @property
    def uid(self) -> str:
        return self.lease.identity.uid


@define(eq=False)
class OwnSession:
    """
    Keeps the Lease of one agent.

    Confirming it is one request (L{Beats}).

    @ivar ttl: seconds.
    @ivar wall: the time of day, in seconds since the epoch. It is told to people, and makes each change a change.
    @ivar known: the highest resource version that was heard of.
    @ivar forgotten: called when an answer has a lower one. See Note [A store that forgets] in L{kiwi.claims.leases}.
    @ivar own: the session, if there is one.
    @ivar former: the uids of those before.
    """

    requests: LeaseRequests
    clock: IReactorTime
    agent_id: str
    ttl: int
    wall: Callable[[], float]
    known: Callable[[], int]
    forgotten: Callable[[], Unavailable]
    own: Own | None = field(default=None, init=False)
    former: set[str] = field(factory=set, init=False)
    _beats: Beats = field(init=False)
    _stamped: float = field(default=0.0, init=False)
    _doubts: int = field(default=0, init=False)

    log = logger("kiwi.claims")

    def __attrs_post_init__(self) -> None:
        self._beats = Beats(self.clock, self._write, self.log)

    @property
    def name(self) -> str:
        """Of the Lease."""
        return agent_lease_name(self.agent_id)

    def register(self, record: AgentRecord, replacing: AgentRecord | None) -> Deferred[Any]:
        """Confirm the session, or begin one, and have its Lease tell this."""
        return self._beats.register(record, replacing)

    def confirm(self) -> Deferred[Answer]:
        """Confirm the session, if there is one: L{Granted}, L{Lost} or L{Unavailable}."""
        return self._beats.confirm()

    def deregister(self, record: AgentRecord) -> Deferred[Released | Unavailable]:
        """Delete the Lease, if it still tells this. That ends the session."""
        return answer_of(self._deregister(record), self.log)

    def end(self, uid: str) -> None:
        """The Lease with this uid is gone."""
        if self.own is not None and self.own.uid == uid:
            self._lose()

    def doubt(self) -> None:
        """It is known that the store has lost its data."""
        self._doubts += 1
        if self.own is not None:
            self.own = evolve(self.own, is_doubted=True)

    def token(self, uid: str) -> str:
        """What claims rest on: a session, in a store that has forgotten nothing since they were made."""
        return f"{uid}/{self._doubts}"

    def stamp(self) -> str:
        """The time of day, which is never the same twice."""
        self._stamped = max(self._stamped + 1e-6, self.wall())
        return time_text(self._stamped)

    def _lose(self) -> None:
        if self.own is not None:
            self.former.add(self.own.uid)
            self.own = None

    # Confirming.

    async def _write(self, beat: Beat) -> Answer:
        deadline = self.clock.seconds() + self.ttl * BEAT_TIME
        for _ in range(MOST_TRIES):
            answer = await (self._change(beat, self.own, deadline) if self.own else self._begin(beat, deadline))
            if answer is not None:
                return answer
        raise HTTPError(f"{self.requests.api.endpoint}: somebody else changes the Lease {self.name} all the time")

    async def _change(self, beat: Beat, own: Own, deadline: float) -> Answer | None:
        """Write the session's Lease anew; C{None} to try again."""
        record = beat.record or own.lease.record
        assert record is not None
        answer = await self._put(record, own.lease.identity, deadline)
        if answer is not None:
            return answer
        there = await self.requests.get(self.name, deadline)
        if isinstance(there, AgentLease) and there.identity.uid == own.uid and _is_of(there, record):
            # An earlier request of this process, of which nothing was heard, or a store that forgot the last ones.
            is_news = self.own is not None and not self.own.is_doubted and has_gone_back(own.lease, there)
            self.own = evolve(own, lease=evolve(there, record=own.lease.record))
            return self.forgotten() if is_news else None
        self._lose()
        return None if beat.record is not None else Lost()

    async def _begin(self, beat: Beat, deadline: float) -> Answer | None:
        """Begin a session, or go on with that of an earlier life; C{None} to try again."""
        record = beat.record
        if record is None:
            return Lost()
        there = await self.requests.get(self.name, deadline)
        if isinstance(there, Gone):
            return await self._put(record, None, deadline)
        if isinstance(there, AgentLease) and there.record is not None and there.record in (record, beat.replacing):
            return await self._put(record, there.identity, deadline)
        if isinstance(there, Strange):
            # Nobody else may have a Lease of this name, and no agent can keep this one up.
            await self.requests.delete(self.name, there.identity, deadline)
            return None
        return Taken("")

    async def _put(self, record: AgentRecord, over: Identity | None, deadline: float) -> Answer | None:
        """Write the Lease, over one of its states or as a new one; C{None} where it is in another state."""
        known, stamp = self.known(), self.stamp()
        said: Lease | Conflict | Gone
        document = write_agent(self.requests.namespace, record, self.ttl, stamp, over)
        if over is None:
            sent, said = await self.requests.create(self.name, document, deadline)
        else:
            sent, said = await self.requests.replace(self.name, document, deadline)
        if isinstance(said, Conflict | Gone):
            # It may be this very request that made the state it is in now: of the second sending of it.
            said = await self.requests.get(self.name, deadline)
            if not (isinstance(said, AgentLease) and said.renewed == stamp and said.record == record):
                return None
        return self._confirmed(said, record, sent, known)

    def _confirmed(self, said: Lease, record: AgentRecord, sent: float, known: int) -> Answer:
        if not isinstance(said, AgentLease) or said.record != record:
            raise HTTPError(f"{self.requests.api.endpoint}: an answer that is not about the Lease {self.name}")
        if (number(said.identity.version) or known + 1) <= known:
            return self.forgotten()
        self.own = Own(said, sent)
        return Granted(sent, self.token(said.identity.uid))

    # The end.

    async def _deregister(self, record: AgentRecord) -> Released:
        deadline = self.clock.seconds() + self.ttl * CLAIM_TIME
        there: Lease | Gone = self.own.lease if self.own else await self.requests.get(self.name, deadline)
        for _ in range(MOST_TRIES):
            if not (isinstance(there, AgentLease) and there.record == record):
                return Released()
            gone = await self.requests.delete(self.name, there.identity, deadline)
            if isinstance(gone, Deleted | Gone):
                self._lose()
                return Released()
            there = await self.requests.get(self.name, deadline)
        raise HTTPError(f"{self.requests.api.endpoint}: somebody else changes the Lease {self.name} all the time")


def _is_of(lease: AgentLease, record: AgentRecord) -> bool:
    """Whether no other process has put its record into a Lease. Who spoils what is there takes nothing over."""
    return lease.record is None or lease.record.instance == record.instance
