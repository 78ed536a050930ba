"""What one agent has seen of the Leases, and which of them have ended by its own clock. Pure: time is an argument."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from math import inf

from attrs import define, field

from kiwi.model import CLOCK_DRIFT, Address, AgentRecord, Claims

from .lease_objects import (
    HISTORY,
    AgentLease,
    ClaimLease,
    HistoryLease,
    Lease,
    LossLease,
    Strange,
    address_of,
    claim_lease_name,
    has_gone_back,
    number,
)

TURN = 0.02
"""Seconds from one agent's turn to the next one's."""


@define
class Session:
    """
    What is known of a Lease that lasts only as long as it is written anew.

    @ivar lease: as it was last seen; C{None} where only claims tell of it.
    @ivar changed: when this agent heard of its last change, in seconds on its monotonic clock.
    @ivar ttl: seconds.
    @ivar gone: there is no such Lease any more.
    """

    lease: AgentLease | LossLease | None
    changed: float
    ttl: float
    gone: bool = False

    @property
    def ends(self) -> float:
        """From when on nobody rests on it any more. See Note [Whose clock] in L{kiwi.claims.leases}."""
        return self.changed + self.ttl * (1 + CLOCK_DRIFT)


@define(eq=False)
class LeaseMirror:
    """
    What was seen of the Leases: lists, and the events after them.

    @ivar claims: by address.
    @ivar sessions: by uid.
    @ivar names: the uids of the sessions whose Leases are there, by the names of these.
    @ivar history: what names the store as it has been since it last lost its data; C{None} where nothing does.
    @ivar latest: the highest resource version that was seen, as a number.
    @ivar edition: another number whenever something else is known than before, but for what only time changes.
    """

    claims: dict[Address, ClaimLease] = field(factory=dict, init=False)
    sessions: dict[str, Session] = field(factory=dict, init=False)
    names: dict[str, str] = field(factory=dict, init=False)
    history: str | None = field(default=None, init=False)
    latest: int = field(default=0, init=False)
    edition: int = field(default=0, init=False)

    def restore(self, leases: Sequence[Lease], version: str, now: float) -> bool:
        """
        These are all the Leases there are. Whether that shows that the store is not what it was: another one, or an
        older state of the same.
        """
        latest, history = self.latest, self.history
        has_gone_back = (number(version) or latest) < latest or any(map(self._has_gone_back, leases))
        there = set()
        for lease in leases:
            there.add(lease.name)
            self.put(lease, now)
        for name in [*map(claim_lease_name, self.claims), *self.names, HISTORY]:
            if name not in there:
                self.remove(name)
        self.latest = number(version) or self.latest
        self._prune(now)
        return has_gone_back or (history is not None and self.history != history)

    def _has_gone_back(self, lease: Lease) -> bool:
        """Whether a Lease is in an earlier state than before."""
        known: Lease | None = None
        if isinstance(lease, ClaimLease):
            known = self.claims.get(lease.address)
        elif lease.identity.uid in self.sessions:
            known = self.sessions[lease.identity.uid].lease
        return known is not None and has_gone_back(known, lease)

    def put(self, lease: Lease, now: float) -> None:
        """A Lease is now like this. One that is strange counts as none."""
        if isinstance(lease, Strange):
            self.remove(lease.name)
            return
        self.latest = max(self.latest, number(lease.identity.version) or 0)
        if isinstance(lease, HistoryLease):
            self.history = lease.identity.uid
        elif isinstance(lease, ClaimLease):
            if self.claims.get(lease.address) != lease:
                self.claims[lease.address] = lease
                self.edition += 1
            if lease.session not in self.sessions:
                self.sessions[lease.session] = Session(None, now, lease.ttl, gone=True)
        else:
            self._put_session(lease, now)

    def _put_session(self, lease: AgentLease | LossLease, now: float) -> None:
        uid = lease.identity.uid
        if self.names.get(lease.name) != uid:
            self._end(lease.name)
            self.names[lease.name] = uid
        known = self.sessions.get(uid)
        if known is None or known.gone or known.lease is None:
            self.edition += 1
        elif known.lease.identity == lease.identity:
            return
        elif _record(known.lease) != _record(lease):
            self.edition += 1
        self.sessions[uid] = Session(lease, now, lease.ttl)

    def remove(self, name: str) -> None:
        """There is no Lease of this name any more, or none that can be read."""
        self._end(name)
        if name == HISTORY:
            self.history = None
        with contextlib.suppress(ValueError):
            if self.claims.pop(address_of(name), None) is not None:
                self.edition += 1

    def _end(self, name: str) -> None:
        uid = self.names.pop(name, None)
        if uid is not None:
            self.sessions[uid].gone = True
            self.edition += 1

    def _prune(self, now: float) -> None:
        """Forget sessions that are over and that no claim names."""
        named = {claim.session for claim in self.claims.values()}
        self.sessions = {
            uid: session
            for uid, session in self.sessions.items()
            if not session.gone or uid in named or now < session.ends
        }

    # What follows from it.

    def is_over(self, uid: str, now: float, former: AbstractSet[str] = frozenset()) -> bool:
        """
        Whether whatever rests on a session may be taken. See Note [Sessions] in L{kiwi.claims.leases}.

        @param former: sessions that were this agent's own, for which it waits for nobody.
        """
        session = self.sessions.get(uid)
        return session is not None and session.gone and (uid in former or session.ends <= now)

    def known(self, now: float, former: AbstractSet[str], losses: int) -> Claims:
        """What that means for the claims."""
        over = {uid for uid in self.sessions if self.is_over(uid, now, former)}
        there = [session.lease for session in self.sessions.values() if not session.gone]
        return Claims(
            {claim.address: self.holder(claim) for claim in self.claims.values() if claim.session not in over},
            {record.id: record for lease in there if (record := _record(lease)) is not None},
            losses,
            any(isinstance(lease, LossLease) for lease in there),
        )

    def holder(self, claim: ClaimLease) -> str:
        """Who has a claim: an agent's id, or what is no agent's id, where its session has gone and is not over yet."""
        session = self.sessions.get(claim.session)
        return f"{claim.holder}, whose Lease is gone" if session is not None and session.gone else claim.holder

    def ended(self, now: float) -> list[AgentLease | LossLease]:
        """The Leases that are there and have ended: they should be deleted."""
        return [
            session.lease
            for session in self.sessions.values()
            if not session.gone and session.ends <= now and session.lease is not None
        ]

    def turn(self, lease: AgentLease | LossLease, agent_id: str) -> float:
        """
        From when on an agent deletes a Lease that has ended. Those that are alive take turns, so that mostly one of
        them does it.
        """
        uid, ends = lease.identity.uid, self.sessions[lease.identity.uid].ends
        others = (each.lease for each in self.sessions.values() if not each.gone and each.ends > ends)
        own = _place(uid, agent_id)
        return ends + TURN * sum(isinstance(each, AgentLease) and _place(uid, each.agent_id) < own for each in others)

    def next_end(self, now: float) -> float:
        """When the next session ends, if nothing more is heard; infinity where none does."""
        return min((session.ends for session in self.sessions.values() if session.ends > now), default=inf)


def _record(lease: AgentLease | LossLease | None) -> AgentRecord | None:
    return lease.record if isinstance(lease, AgentLease) else None


def _place(uid: str, agent_id: str) -> bytes:
    """Orders agents, in another way for each Lease."""
    return blake2b(f"{uid} {agent_id}".encode(), digest_size=8).digest()
