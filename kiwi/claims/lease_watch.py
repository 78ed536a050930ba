"""Following the Leases of a namespace, and deleting those that have ended."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from kiwi.backoff import Backoff
from kiwi.kubernetes.api import Broken, Trouble
from kiwi.kubernetes.client import Ended, NoList, Objects, Silent
from kiwi.kubernetes.decoding import Bookmark, Changed, Listed, Nonsense
from kiwi.kubernetes.decoding import Deleted as DeletedEvent
from kiwi.logs import logger, printable
from kiwi.model import Claims

from .asking import CLAIM_TIME, answer_of
from .errands import Errands
from .interface import Unavailable
from .lease_mirror import LeaseMirror
from .lease_objects import (
    HISTORY,
    LOSS,
    VERSION,
    AgentLease,
    Lease,
    LossLease,
    Strange,
    number,
    write_history,
    write_loss,
)
from .lease_requests import LEASES, Conflict, Gone
from .telling import Oddities, Teller

if TYPE_CHECKING:
    from .leases import LeaseClaimStore

GRACE = 2.0
"""Seconds. See Note [Out of sight] in L{kiwi.claims.leases}."""

LONG_GAP = 1.0
"""Seconds out of sight that count as such. A watch that ends is followed by another one sooner."""

AGAIN = 0.5
"""Seconds until it is tried again to delete a Lease that has ended."""

LONGEST_WATCH = (270.0, 330.0)
"""Seconds. What is silent for long is no watch, for agents are heard of all the time."""

OPEN_TIME = 1 / 4
"""A part of the TTL, for a list and for opening a watch."""

LIVED = 1.0
"""Seconds that a watch must have lasted to be opened again without a wait."""

Event = Changed[str, Lease] | DeletedEvent[str] | Bookmark | Nonsense


@define(eq=False)
class LeaseWatch(Service):
    """
    Lists, then watches, for ever; and tells what that means for the claims.

    @ivar sight: another number for each time that it was opened; C{None} while it is not open.
    """

    store: LeaseClaimStore
    _changed: Callable[[Claims], None]
    sight: int | None = field(default=None, init=False)
    _sights: count[int] = field(factory=count, init=False)
    _mirror: LeaseMirror = field(factory=LeaseMirror, init=False)
    _objects: Objects[str, Lease] = field(init=False)
    _watching: Deferred[Any] | None = field(default=None, init=False)
    _complete: bool = field(default=False, init=False)
    _out_of_sight_since: float = field(default=-inf, init=False)
    _in_sight_since: float = field(default=inf, init=False)
    _heard_at: float = field(default=-inf, init=False)
    _opened_at: float = field(default=inf, init=False)
    _edition: int = field(default=-1, init=False)
    _lost: bool = field(default=False, init=False)
    _losses: int = field(default=0, init=False)
    _teller: Teller = field(init=False)
    _oddities: Oddities = field(init=False)
    _ending: dict[str, Deferred[Any]] = field(factory=dict, init=False)
    _errands: Errands = field(factory=Errands, init=False)
    _look: IDelayedCall | None = field(default=None, init=False)

    log = logger("kiwi.claims")

    def __attrs_post_init__(self) -> None:
        store = self.store
        self._objects = Objects(
            store.api, LEASES, store.namespace, timeout=store.ttl * OPEN_TIME, lasting=LONGEST_WATCH
        )
        self._teller = Teller(store.api.clock, self._changed, self._known, self.log)
        self._oddities = Oddities(self.log)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self.store.watches.append(self)
        self._errands.run(Deferred.fromCoroutine(self._follow()))

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        self.store.watches.remove(self)
        if self.store.mirror is self._mirror:
            self.store.mirror = None
        self._complete, self._out_of_sight_since = False, -inf
        self._errands.cancel()
        for ending in list(self._ending.values()):
            ending.cancel()
        self._teller.stop()
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _now(self) -> float:
        return self.store.api.clock.seconds()

    # Following.

    async def _follow(self) -> None:
        backoff = Backoff(self.store.backoff)
        while True:
            self._opened_at, wait = inf, 0.0
            try:
                await self._follow_once()
            except CancelledError:
                if not self.running:
                    raise
            except Trouble as trouble:
                # A server that is asked too much says for how long it is to be left alone.
                wait = min(trouble.wait, self.store.ttl / 3)
                self._failed(str(trouble))
            except Exception as error:  # noqa: BLE001 whatever it was, the next watch may do better
                self.log.failure("the watch of the claim store failed")
                self._failed(printable(error))
            finally:
                self.sight = None
            self._out_of_sight_since = self._heard_at
            lived = self._now() - self._opened_at >= LIVED
            if lived:
                backoff.succeeded()
            await deferLater(self.store.api.clock, 0 if lived else max(wait, backoff.failed()))

    async def _follow_once(self) -> None:
        # A watch from where the last one ended would say nothing about a server that has come back with an older state:
        # nor do servers say that a version is still to come.
        listed = await self._objects.list(VERSION)
        assert not isinstance(listed, NoList)
        self._restore(listed)
        self._watching = Deferred.fromCoroutine(
            self._objects.watch(VERSION, listed.resource_version, self._opened, self._happened, idle=self.store.ttl)
        )
        try:
            # Where no agent is alive, nobody is heard of; that is no reason to wait until the dead are gone.
            if isinstance(await self._watching, Ended | Silent):
                self._heard_at = self._now()
        except Broken:
            self._heard_at = self._now()
            raise

    def _opened(self) -> None:
        self._opened_at, self.sight = self._now(), next(self._sights)
        self._in_sight()
        self._catch_up()

    def _in_sight(self) -> None:
        now = self._heard_at = self._now()
        if now - self._out_of_sight_since > LONG_GAP:
            self._in_sight_since = now
        if self._lost or not self._complete:
            self.log.info(
                "following the claims at {endpoint}, in namespace {namespace}; now there are {claims} claims and "
                "{agents} agents",
                endpoint=printable(self.store.api.endpoint),
                namespace=self.store.namespace,
                claims=len(self._mirror.claims),
                agents=sum(isinstance(s.lease, AgentLease) and not s.gone for s in self._mirror.sessions.values()),
            )
        self._lost, self._complete = False, True
        self.store.mirror = self._mirror

    def _failed(self, why: str) -> None:
        if not self._lost:
            self._lost = True
            text = (
                "lost sight of the claims at {endpoint}: {why}; going on with the last known ones"
                if self._complete
                else "the claims at {endpoint} cannot be followed: {why}; trying again and again"
            )
            self.log.warn(text, endpoint=printable(self.store.api.endpoint), why=why)

    def _restore(self, listed: Listed[str, Lease]) -> None:
        """There is a new truth."""
        leases = [decoded.value for decoded in listed.items if decoded.value is not None]
        is_another_past = self._mirror.restore(leases, listed.resource_version, self._now())
        for lease in leases:
            self._note(lease)
        if is_another_past:
            self._note_loss()
        if self._mirror.history is None:
            self._write(HISTORY, write_history(self.store.namespace, self.store.session.stamp()))

    def _happened(self, event: Event) -> None:
        self._heard_at = self._now()
        if isinstance(event, Nonsense):
            self._oddities.note("an event of another form", event.problem)
            return
        if isinstance(event, Changed) and event.decoded.value is not None:
            self._note(event.decoded.value)
            self._mirror.put(event.decoded.value, self._now())
        elif isinstance(event, DeletedEvent):
            self._mirror.remove(event.name)
        if event.resource_version:
            self._mirror.latest = max(self._mirror.latest, number(event.resource_version) or 0)
        self._catch_up()

    def _note(self, lease: Lease) -> None:
        if isinstance(lease, Strange):
            self._oddities.note(f"the Lease {lease.name}", lease.why)
        elif isinstance(lease, AgentLease) and lease.record is None:
            self._oddities.note(f"the Lease {lease.name}", "what the agent tells of itself makes no sense")

    # What follows from it.

    def _known(self) -> Claims:
        return self._mirror.known(self._now(), self.store.session.former, self._losses)

    def _catch_up(self) -> None:
        """Something is known, or some time has passed."""
        if not (self.running and self._complete):
            return
        session, now = self.store.session, self._now()
        own = None if session.own is None else self._mirror.sessions.get(session.own.uid)
        if session.own is not None and own is not None and own.gone:
            session.end(session.own.uid)
        if self._edition != self._mirror.edition:
            self._edition = self._mirror.edition
            self._teller.soon()
        look = self._mirror.next_end(now)
        for lease in self._mirror.ended(now):
            uid = lease.identity.uid
            if uid in self._ending or (session.own is not None and uid == session.own.uid):
                continue
            turn = max(self._in_sight_since + GRACE, self._mirror.turn(lease, self.store.agent_id))
            if self._lost:
                look = min(look, now + AGAIN)
            elif now < turn:
                look = min(look, turn)
            else:
                ending = self._ending[uid] = answer_of(self._end(lease), self.log)
                ending.addBoth(self._ended, uid)
        if look < inf:
            self._sleep(max(0.0, look - now))

    def _sleep(self, seconds: float) -> None:
        if self._look is None:
            self._look = self.store.api.clock.callLater(seconds, self._wake)
        elif self._now() + seconds < self._look.getTime():
            self._look.reset(seconds)

    def _wake(self) -> None:
        self._look = None
        if self._complete and self._teller.told != self._known():
            self._teller.soon()
        self._catch_up()

    async def _end(self, lease: AgentLease | LossLease) -> None:
        """Delete a Lease that has ended, unless it has changed. See Note [Sessions] in L{kiwi.claims.leases}."""
        requests, deadline = self.store.requests, self._now() + self.store.ttl * CLAIM_TIME
        there = await requests.get(lease.name, deadline)
        if isinstance(there, AgentLease | LossLease) and there.identity == lease.identity:
            done = await requests.delete(lease.name, lease.identity, deadline)
            if isinstance(done, Conflict):
                return
            if isinstance(lease, AgentLease):
                self.log.info("{agent}: has not been heard of for its TTL; its claims are free", agent=lease.agent_id)
        if not isinstance(there, Gone) and there.name == lease.name and there != lease:
            self._mirror.put(there, self._now())
        elif self._mirror.names.get(lease.name) == lease.identity.uid:
            self._mirror.remove(lease.name)

    def _ended(self, answer: object, uid: str) -> None:
        del self._ending[uid]
        if isinstance(answer, Failure):
            answer.trap(CancelledError)
        elif isinstance(answer, Unavailable):
            if self.running:
                self._sleep(AGAIN)
        else:
            self._catch_up()

    # A store that forgets.

    def forgotten(self) -> None:
        """An answer shows that the store has lost its data, which the watch has not told yet."""
        self._mirror.latest, self._mirror.history = 0, None
        self._note_loss()
        if self._watching is not None:
            self._watching.cancel()

    def _note_loss(self) -> None:
        """See Note [A store that forgets] in L{kiwi.claims.leases}."""
        store = self.store
        self._losses += 1
        self._mirror.edition += 1
        store.forget_answers()
        self.log.error("the claim store at {endpoint} has lost its data", endpoint=printable(store.api.endpoint))
        self._write(LOSS, write_loss(store.namespace, store.agent_id, store.ttl, store.session.stamp()))
        self._catch_up()

    def _write(self, name: str, document: dict[str, Any]) -> None:
        """Make this Lease, unless it is there, or the watch ends first. If it fails, the next list leads here again."""
        deadline = self._now() + self.store.ttl * CLAIM_TIME
        self._errands.run(answer_of(self.store.requests.create(name, document, deadline), self.log))
