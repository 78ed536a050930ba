"""
Claims in etcd, through the JSON gateway of its v3 API, which etcd 3.4 to 3.6 serve.

Under the prefix there are C{publicips/<address>}, whose value is the id of the agent that claims the address, and
C{agents/<id>}, whose value is what that agent tells of itself and the TTL of its lease, as JSON. There is one such key
for each address: it is spelt as Python does (RFC 5952 for IPv6). What etcd v2 has under the same prefix is elsewhere:
the two know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from attrs import define, field
from treq.client import HTTPClient
from twisted.application.service import IService
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from kiwi.backoff import BackoffPolicy
from kiwi.http import HTTPError
from kiwi.logs import logger
from kiwi.model import Address, AgentRecord

from .asking import CLAIM_TIME, Turns, answer_of
from .batches import Batches
from .etcd3_login import Login
from .etcd3_mirror import ClaimKey, Etcd3Mirror, Keys, claim_key
from .etcd3_reading import Done, Part
from .etcd3_requests import Etcd3Requests, NoLease, delete, if_created_at, if_modified_at, put, read, within
from .etcd3_session import MOST_TRIES, Own, OwnSession
from .etcd3_watch import Etcd3Watch
from .etcd_user import EtcdUser
from .interface import Granted, IClaimStore, Lost, Released, Taken, Unavailable

# Note [One lease]
# An agent has one lease, which lasts for its TTL, and with which its record and all of its claims end: etcd deletes
# them together. So whatever keeps the lease confirms all claims, however many there are.
#
# An agent that is started anew within the TTL, in the same place, puts its record in the place of the one before and
# goes on with the lease of that one, which the record's key tells; and with it all claims. If that lease has another
# TTL than is wanted now, it takes a new one, and moves its claims as it comes to them (Note [The late delete]).
#
# A claim is made in a transaction that compares the agent's record as well: its lease, and that it is no older than
# the last confirmation. So a claim never rests on what this agent does not know to be its own.
#
# Note [Many claims at once]
# What is asked at the same time is one transaction, and so one request, one entry in etcd's log, and one revision. The
# agent's record is compared for all of it, and in it there is one transaction for each claim, which compares that claim
# and makes or deletes it, or reads what is there. So one that another agent has does not hinder the others.
#
# etcd counts the operations of a transaction together with those of the longest one in it, and takes no more than
# --max-txn-ops, which is 128. It also takes no key twice.
#
# Note [A leader of the past]
# The leader alone keeps leases, and asks nobody when it renews one. A leader that was cut off goes on doing so until it
# notices (before etcd 3.5.9, for as long as it takes to hold an election), while there is another one already, which
# has given the lease a whole TTL from when it was elected (Promote in etcd's lessor) and not from this renewal. So a
# renewal alone proves nothing. After its answer, the record is written in a transaction, which takes a majority of the
# members. Each answer tells the term of the last change that its member has applied; the renewal's is told before it
# is made. If both are the same, the one that made it was still leader at the time of the transaction: a majority had
# elected nobody since, and whoever is elected later gives the lease a whole TTL from then. If they are not the same,
# both are done again. It counts from when the renewal was sent.
#
# That write is also an event for all who watch, three times in a TTL: a watch that is silent for longer is dead.
#
# Note [A lease that ended too early]
# Whoever may write can revoke a lease. And etcd before 3.4.31 and 3.5.13 may do so itself: a leader that was stuck and
# has been replaced finds that leases are over which its successor has been asked to keep, and has the successor revoke
# them. Record and claims are gone then, in one revision, and the agent may carry its addresses until it hears of that,
# or until its last confirmation ends. So claims that have gone together with the record of their agent are told as
# still its own, until a TTL and 1% after that agent was last heard of: on the monotonic clock of the one who tells,
# which may run 1% wrong. (Every confirmation is heard of after it was sent.) If a lease ends as it should, that is over
# already, or almost. The agent itself waits for nobody.
#
# Note [Asked again]
# A request that is not answered in time is sent again, and then at another endpoint (Note [Several endpoints] in
# L{kiwi.claims.etcd2}). To keep a lease twice does no harm, and a second lease ends unused. All else are transactions
# that compare what they change, so that only one of them has an effect; and where the conditions do not hold, the same
# transaction reads what is there, which may be what an earlier sending has made.
#
# Note [The late delete]
# A request that got no answer may be carried out later: after this agent has decided otherwise, or has been started
# anew. A late change or deletion of a claim compares the revision that changed the claim last. So a claim that this
# process has not written itself, or has tried to give back since, is written again before it is taken for held: then it
# has another one.
#
# Note [List and watch]
# All keys are read as of one revision, page by page, and then all changes after it are watched: none is missed, and
# none comes twice, for those up to the last revision that was heard of are passed over. A watch that ends goes on from
# there at the next endpoint. It begins with a list again where etcd no longer knows the changes since then (it has
# compacted them), or may be another etcd than before. All reads are linearizable: they see whatever was changed before
# they were sent, whichever member answers.
#
# Note [A store that forgets]
# A store that comes back without its data, or with that of an earlier time, knows other claims than those that agents
# carry for up to a TTL. It is noticed by an answer with another cluster's id, or with a lower revision than was heard
# of before; by a record that is older than its last confirmation; and by another name of what the store knows, which
# the first agent gives it. A loss is told, as in L{kiwi.claims.etcd2}. The lease may be there as before, and a claim on
# it not. So what confirms the lease after a loss confirms no claim of before: the session has another name then.

Claim = Granted | Unavailable | ClaimKey | None
"""What comes of a wish for a claim: it is made, or there is another one, or one that does not say whose it is."""

MOST_TOGETHER = 64
"""Claims in a transaction. See Note [Many claims at once]."""

IN_FLIGHT = 4
"""Requests about claims, while etcd is quick."""


@implementer(IClaimStore)
@define(eq=False)
class Etcd3ClaimStore:
    """
    Claims of one agent in etcd v3. See the notes at the beginning of this module.

    @ivar http: for requests; it should keep some 30 connections.
    @ivar stream_http: for the watch; it must keep none.
    @ivar endpoints: such as C{http://localhost:2379}. One that fails is tried after the others.
    @ivar prefix: of all keys, such as C{/kiwi}.
    @ivar ttl: of the agent's lease, in seconds.
    @ivar backoff: the waits of a watch that cannot reach the store.
    @ivar user: who this agent is to etcd; C{None} for nobody, or for whom its certificate names.
    @ivar mirror: what a watch has heard of.
    """

    http: HTTPClient
    stream_http: HTTPClient
    clock: IReactorTime
    endpoints: Sequence[str]
    prefix: str
    agent_id: str
    ttl: int
    backoff: BackoffPolicy
    user: EtcdUser | None = None
    mirror: Etcd3Mirror | None = field(default=None, init=False)
    keys: Keys = field(init=False)
    requests: Etcd3Requests = field(init=False)
    session: OwnSession = field(init=False)
    watches: list[Etcd3Watch] = field(factory=list, init=False)
    _written: dict[Address, ClaimKey] = field(factory=dict, init=False)
    _turns: Turns = field(init=False)
    _claims: Batches[ClaimKey | None, Claim] = field(init=False)
    _releases: Batches[ClaimKey, Released | ClaimKey | None] = field(init=False)

    log = logger("kiwi.claims")

    def __attrs_post_init__(self) -> None:
        self.keys = Keys(self.prefix.rstrip("/"))
        self.requests = Etcd3Requests(
            self.http,
            self.stream_http,
            self.clock,
            self.endpoints,
            self.keys.prefix,
            self.ttl,
            Login(self.user),
            self.forgotten,
        )
        self.session = OwnSession(self.requests, self.clock, self.keys, self.agent_id, self.ttl)
        self._turns = Turns(self.clock, IN_FLIGHT)
        self._claims = Batches(self.clock, self._turns, MOST_TOGETHER, self._claim)
        self._releases = Batches(self.clock, self._turns, MOST_TOGETHER, self._give_back)

    def acquire(self, address: Address) -> Deferred[Granted | Taken | Unavailable]:
        return answer_of(self._acquire(address), self.log)

    async def _acquire(self, address: Address) -> Granted | Taken | Unavailable:
        claim = await self._claims.ask(address, None, self._deadline())
        return claim if isinstance(claim, Granted | Unavailable) else Taken(claim.holder if claim else "")

    async def _claim(self, wanted: Mapping[Address, ClaimKey | None], deadline: float) -> Mapping[Address, Claim]:
        """
        Make claims that rest on the session, each in place of one of this agent's or of none. Otherwise, the claim that
        is there, or C{None} where there is none that says whose it is.
        """
        answers: dict[Address, Claim] = {}
        left = dict(wanted)
        for _ in range(MOST_TRIES):
            own = self.session.own
            if own is None:
                return answers | _unavailable(
                    left, "this agent has no record in the store, on which a claim could rest"
                )
            session = self.session.name(own.lease)
            keys = {address: self.keys.claim(address) for address in left}
            claims = [
                within(
                    [if_created_at(key, 0) if over is None else if_modified_at(key, over.modified)],
                    [put(key, self.agent_id, own.lease)],
                    [read(key)],
                )
                for key, over in zip(keys.values(), left.values(), strict=True)
            ]
            otherwise = [read(self.session.key), *map(read, keys.values())]
            try:
                done = await self.requests.transaction(self.session.conditions(own), claims, otherwise, deadline)
            except NoLease:
                self.session.end(own.lease)
                return answers | _unavailable(left, "the lease of this agent, on which the claim would rest, is gone")
            if done.succeeded:
                return answers | self._made(_parts(done, left), own, session, done.header.revision)
            found = {kv.key: kv for kvs in done.found for kv in kvs}
            if self.session.has_gone_back(own, found.get(self.session.key)):
                raise self.requests.has_forgotten()
            for address, key in keys.items():
                if key in found or left[address] is not None:
                    answers[address] = claim_key(found[key]) if key in found else None
                    del left[address]
            if self.session.own == own:
                return answers | _unavailable(
                    left, "the record of this agent, on which the claim would rest, has gone meanwhile"
                )
            if not left:
                return answers
        return answers | _unavailable(left, "the record of this agent changes all the time")

    def _made(self, parts: Mapping[Address, Part], own: Own, session: str, revision: int) -> dict[Address, Claim]:
        """What came of each claim in a transaction that this revision tells of, and that rested on a session."""
        now = self.session.own
        granted: Granted | Unavailable
        if now is None or now.lease != own.lease:
            granted = Unavailable("the lease of this agent, on which the claim rests, has gone meanwhile")
        else:
            granted = Granted(now.sent, session)
            made = ClaimKey(self.agent_id, own.lease, revision)
            self._written.update((address, made) for address, part in parts.items() if part.succeeded)
        return {address: granted if part.succeeded else _there(part) for address, part in parts.items()}

    def renew(self, addresses: AbstractSet[Address]) -> Deferred[Mapping[Address, Granted | Lost | Unavailable]]:
        return Deferred.fromCoroutine(self._renew(addresses))

    async def _renew(self, addresses: AbstractSet[Address]) -> Mapping[Address, Granted | Lost | Unavailable]:
        if not addresses:
            return {}
        answer = await self.session.confirm()
        if not isinstance(answer, Granted):
            other = answer if isinstance(answer, Unavailable) else Lost()
            return dict.fromkeys(addresses, other)
        answers: dict[Address, Granted | Lost | Unavailable] = dict.fromkeys(addresses, answer)
        unsure = self._unsure(addresses)
        if not unsure:
            return answers
        adopting = [answer_of(self._adopted(address), self.log) for address in unsure]
        try:
            adopted = await DeferredList(adopting, consumeErrors=True)
        finally:
            for one in adopting:
                one.cancel()
        answers.update((address, result) for address, (_, result) in zip(unsure, adopted, strict=True))
        return answers

    def _unsure(self, addresses: AbstractSet[Address]) -> list[Address]:
        """
        Those whose claims are not as this process has written them, or do not rest on its session, as far as it knows.
        This is all that a heartbeat costs for each claim.
        """
        own, mirror = self.session.own, self.mirror
        lease = None if own is None else own.lease
        latest, claims = (-1, {}) if mirror is None else (mirror.latest, mirror.claims)
        unsure = []
        for address in addresses:
            written = self._written.get(address)
            if written is None or written.lease != lease:
                unsure.append(address)
            elif written.modified <= latest:
                claim = claims.get(address)
                if claim is None or claim.modified != written.modified:
                    unsure.append(address)
        return unsure

    async def _adopted(self, address: Address) -> Granted | Lost | Unavailable:
        """Whether a claim is this agent's. If it is, it is written again. See Note [The late delete]."""
        deadline = self._deadline()
        claim = await self._known(address, deadline)
        for _ in range(MOST_TRIES):
            own = self.session.own
            if own is None or claim is None or claim.holder != self.agent_id:
                return Lost()
            if claim.lease != own.lease and claim.lease not in self.session.former:
                return Lost()
            answer = await self._claims.ask(address, claim, deadline)
            if isinstance(answer, Granted | Unavailable):
                return answer
            claim = answer
        return Lost()

    def release(self, address: Address) -> Deferred[Released | Unavailable]:
        return answer_of(self._release(address), self.log)

    async def _release(self, address: Address) -> Released:
        deadline = self._deadline()
        claim = await self._known(address, deadline)
        self._written.pop(address, None)
        for _ in range(MOST_TRIES):
            if claim is None or claim.holder != self.agent_id:
                return Released()
            answer = await self._releases.ask(address, claim, deadline)
            if isinstance(answer, Released):
                return answer
            claim = answer
        raise HTTPError(f"somebody else changes {self.keys.claim(address)} all the time")

    async def _give_back(
        self, claims: Mapping[Address, ClaimKey], deadline: float
    ) -> Mapping[Address, Released | ClaimKey | None]:
        """Delete claims that are as these. Otherwise, the same as L{_claim}."""
        keys = {address: self.keys.claim(address) for address in claims}
        deletions = [
            within([if_modified_at(keys[address], claim.modified)], [delete(keys[address])], [read(keys[address])])
            for address, claim in claims.items()
        ]
        done = await self.requests.transaction([], deletions, [], deadline)
        parts = _parts(done, claims)
        return {address: Released() if part.succeeded else _there(part) for address, part in parts.items()}

    def register(
        self, record: AgentRecord, replacing: AgentRecord | None = None
    ) -> Deferred[Granted | Taken | Unavailable]:
        return self.session.register(record, replacing)

    def deregister(self, record: AgentRecord) -> Deferred[Released | Unavailable]:
        return self.session.deregister(record)

    def watch(self, changed: Callable[..., None]) -> IService:
        return Etcd3Watch(self, changed)

    async def _known(self, address: Address, deadline: float) -> ClaimKey | None:
        """The claim to an address, as far as this agent knows: from the watch, or from an answer after that."""
        written, mirror = self._written.get(address), self.mirror
        if written is not None and (mirror is None or written.modified > mirror.latest):
            return written
        if mirror is not None:
            return mirror.claims.get(address)
        turn = await self._turns.turn(self.ttl * CLAIM_TIME)
        try:
            there = await self.requests.get(self.keys.claim(address), deadline)
        finally:
            turn.done()
        return None if there is None else claim_key(there)

    def forgotten(self) -> None:
        """The store has another past than the one in which it gave its answers. See Note [A store that forgets]."""
        self._written.clear()
        self.session.doubt()
        for watch in self.watches:
            watch.forgotten()

    def _deadline(self) -> float:
        return self.clock.seconds() + self.ttl * CLAIM_TIME


def _unavailable(addresses: Iterable[Address], reason: str) -> dict[Address, Claim]:
    return {address: Unavailable(reason) for address in addresses}


def _parts(done: Done, addresses: Collection[Address]) -> Mapping[Address, Part]:
    """What came of the part of a transaction for each address."""
    if len(done.parts) != len(addresses):
        raise HTTPError(f"an answer about {len(done.parts)} claims to a request about {len(addresses)}")
    return dict(zip(addresses, done.parts, strict=True))


def _there(part: Part) -> ClaimKey | None:
    """The claim that was found where one could not be changed."""
    kvs = [kv for found in part.found for kv in found]
    return claim_key(kvs[0]) if kvs else None
