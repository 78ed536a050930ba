"""An agent's record in etcd v3, and the lease on which it and all claims rest."""

from __future__ import annotations

from math import inf
from typing import Any

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from kiwi.http import HTTPError
from kiwi.logs import logger
from kiwi.model import AgentRecord

from .asking import CLAIM_TIME, DOUBLE_BEAT_TIME
from .beats import Answer, Beat, Beats
from .etcd3_mirror import Keys, write_session
from .etcd3_reading import Header, KeyValue
from .etcd3_requests import (
    Document,
    Etcd3Requests,
    NoLease,
    delete,
    if_leased,
    if_modified_at,
    if_modified_since,
    if_none_below,
    if_value,
    put,
    read,
)
from .interface import Granted, Lost, Released, Taken, Unavailable
from .records import read_record

MOST_TRIES = 4
"""How often something is tried that others have changed in between."""


@frozen
class Own:
    """
    This agent's session. See Note [One lease] in L{kiwi.claims.etcd3}.

    @ivar lease: on which all rests.
    @ivar created: the revision that made the key of the record.
    @ivar modified: the one that changed it last, as far as this agent has heard; 0 where it is to be made anew.
    @ivar record: what it says.
    @ivar sent: when what confirmed the session last was sent, in seconds on this agent's monotonic clock.
    """

    lease: int
    created: int
    modified: int
    record: AgentRecord
    sent: float


@frozen
class _Put:
    """The record is written."""

    header: Header
    created: int
    modified: int


@frozen
class _Other:
    """It is not, for this is there."""

    kv: KeyValue | None


@define(eq=False)
class OwnSession:
    """
    Keeps the record of one agent, and its lease.

    Confirming them is two requests, one after the other (L{Beats}, and Note [A leader of the past] in
    L{kiwi.claims.etcd3}).

    @ivar own: the session, if there is one.
    @ivar former: the leases of those before, and of earlier lives of this agent.
    """

    requests: Etcd3Requests
    clock: IReactorTime
    keys: Keys
    agent_id: str
    ttl: int
    own: Own | None = field(default=None, init=False)
    former: set[int] = field(factory=set, init=False)
    _beats: Beats = field(init=False)
    _doubts: int = field(default=0, init=False)

    log = logger("kiwi.claims")

    def __attrs_post_init__(self) -> None:
        self._beats = Beats(self.clock, self._write, self.log)

    @property
    def key(self) -> str:
        """Of the record."""
        return self.keys.agent(self.agent_id)

    def register(self, record: AgentRecord, replacing: AgentRecord | None) -> Deferred[Any]:
        """Confirm the session, or begin one, and have its record be this."""
        return self._beats.register(record, replacing)

    def confirm(self) -> Deferred[Answer]:
        """Confirm the session, if there is one: L{Granted}, L{Lost} or L{Unavailable}."""
        return self._beats.confirm()

    def deregister(self, record: AgentRecord) -> Deferred[Released | Unavailable]:
        """Delete the record, if it still is this. That ends the session."""
        return self._beats.between(lambda: self._deregister(record))

    def end(self, lease: int) -> None:
        """This lease is gone."""
        if self.own is not None and self.own.lease == lease:
            self._lose(self.own)

    def doubt(self) -> None:
        """The store has lost its data, and may have the record in an earlier state."""
        self._doubts += 1
        if self.own is not None:
            self.own = evolve(self.own, modified=0)

    def token(self, lease: int) -> str:
        """What claims rest on: a lease, in a store that has forgotten nothing since they were made."""
        return f"{lease}/{self._doubts}"

    def conditions(self, own: Own) -> list[Document]:
        """What is true while claims may rest on a session, in a store that remembers its last confirmation."""
        return [
            if_leased(self.key, own.lease),
            if_modified_since(self.key, own.modified),
        ]

    def has_gone_back(self, own: Own, record: KeyValue | None) -> bool:
        """Whether this is one and the same record, and now in an earlier state than before."""
        return record is not None and record.created == own.created and record.modified < own.modified

    def _lose(self, own: Own) -> None:
        self.former.add(own.lease)
        self.own = None

    # Confirming.

    async def _write(self, beat: Beat) -> Answer:
        deadline = self.clock.seconds() + self.ttl * DOUBLE_BEAT_TIME
        for _ in range(MOST_TRIES):
            answer = await (self._go_on(beat, self.own, deadline) if self.own else self._begin(beat, deadline))
            if answer is not None:
                return answer
        raise HTTPError(f"{self._endpoint}: {self.key} or the leader changes all the time")

    async def _go_on(self, beat: Beat, own: Own, deadline: float) -> Answer | None:
        """Confirm the session; C{None} to try again."""
        record = beat.record or own.record
        sent, kept = await self.requests.keep(own.lease, deadline)
        if kept.ttl < self.ttl or (own.sent == -inf and kept.ttl != self.ttl):
            # Gone, or that of an earlier life with another TTL.
            return self._lost(beat, own)
        try:
            said = await self._put(record, own.lease, own, deadline)
        except NoLease:
            return self._lost(beat, own)
        if isinstance(said, _Other):
            return self._other(beat, own, said.kv)
        self.own = evolve(own, created=said.created, modified=said.modified, record=record)
        if said.header.term != kept.header.term:
            # See Note [A leader of the past].
            return None
        self.own = evolve(self.own, sent=sent)
        return Granted(sent, self.token(own.lease))

    def _other(self, beat: Beat, own: Own, there: KeyValue | None) -> Answer | None:
        """What it means that the record is not as it was left: C{None} to go on with it, or without it."""
        if there is None:
            # Somebody has deleted it. The claims are still there.
            self.own = evolve(own, modified=0)
            return None
        record = self._read(there)
        mine = {own.record.instance, (beat.record or own.record).instance}
        if record is not None and record.instance not in mine:
            return self._lost(beat, own)
        # An earlier sending of this process, of which nothing was heard; or somebody spoilt it; or it is from before.
        self.own = evolve(own, created=there.created, modified=there.modified)
        if there.modified < own.modified:
            raise self.requests.has_forgotten()
        return None

    def _lost(self, beat: Beat, own: Own) -> Lost | None:
        self._lose(own)
        return None if beat.record is not None else Lost()

    async def _begin(self, beat: Beat, deadline: float) -> Answer | None:
        """Begin a session, or go on with that of an earlier life; C{None} to try again."""
        record = beat.record
        if record is None:
            return Lost()
        there = await self.requests.get(self.key, deadline)
        found = None if there is None else self._read(there)
        if found is not None and found not in (record, beat.replacing):
            return Taken("")
        if there is not None and found is not None and there.lease not in {0, *self.former}:
            # Not confirmed yet: with the next try it may be.
            self.own = Own(there.lease, there.created, there.modified, found, -inf)
            return None
        sent, granted = await self.requests.grant(deadline)
        created, modified = (0, 0) if there is None else (there.created, there.modified)
        said = await self._put(record, granted.id, Own(granted.id, created, modified, record, -inf), deadline)
        if isinstance(said, _Other):
            return None
        if there is not None:
            self.former.add(there.lease)
        self.own = Own(granted.id, said.created, said.modified, record, sent)
        return Granted(sent, self.token(granted.id))

    async def _put(self, record: AgentRecord, lease: int, over: Own, deadline: float) -> _Put | _Other:
        """Write the record, over one of its states or as a new one."""
        conditions = [if_modified_at(self.key, over.modified)]
        success = [put(self.key, write_session(record, self.ttl), lease)]
        done = await self.requests.transaction(conditions, success, [read(self.key)], deadline)
        if done.succeeded:
            revision = done.header.revision
            return _Put(done.header, over.created if over.modified else revision, revision)
        return _Other(next((kv for found in done.found for kv in found), None))

    def _read(self, kv: KeyValue) -> AgentRecord | None:
        return None if kv.text is None else read_record(self.agent_id, kv.text)

    @property
    def _endpoint(self) -> str:
        return self.requests.name(self.requests.rotation.first)

    # The end.

    async def _deregister(self, record: AgentRecord) -> Released:
        deadline = self.clock.seconds() + self.ttl * CLAIM_TIME
        conditions = [if_value(self.key, write_session(record, self.ttl))]
        done = await self.requests.transaction(conditions, [delete(self.key)], [read(self.key)], deadline)
        # The last one leaves nothing behind.
        await self.requests.transaction([if_none_below(self.keys.agents)], [delete(self.keys.history)], [], deadline)
        own, is_gone = self.own, not any(done.found)
        if is_gone and own is not None:
            self._lose(own)
            await self.requests.revoke_if_bare(own.lease, deadline)
        return Released()
