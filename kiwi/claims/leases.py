"""
Claims in Kubernetes, as Leases in one namespace: no other store is needed.

What the Leases look like is in L{kiwi.claims.lease_objects}. C{kubectl get leases} tells who carries what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from attrs import define, field
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from zope.interface import implementer

from kiwi.backoff import BackoffPolicy
from kiwi.http import HTTPError
from kiwi.kubernetes.api import KubernetesAPI
from kiwi.logs import logger
from kiwi.model import Address, AgentRecord, Claims

from .asking import CLAIM_TIME, CLAIMS_IN_FLIGHT, Turns, answer_of
from .interface import Granted, IClaimStore, Lost, Released, Taken, Unavailable
from .lease_mirror import LeaseMirror
from .lease_objects import ClaimLease, Lease, claim_lease_name, has_gone_back, number, write_claim
from .lease_requests import Conflict, Deleted, Gone, LeaseRequests
from .lease_session import MOST_TRIES, OwnSession
from .lease_watch import LeaseWatch

# Note [Sessions]
# The API server changes one object at a time, and compares its resource version. So a claim does not last by itself: it
# names a session, which is the Lease of the agent that has it, by its uid; and it is as good as that one. The agent
# writes its Lease anew three times in a TTL, comparing uid and version: that is one request for all its claims.
#
# A claim must never be taken from an agent that goes on confirming its session. So when a session has ended (Note
# [Whose clock]), its Lease is deleted first, comparing uid and version: either that is done or the agent's next
# confirmation, and the other one of the two is refused. A uid is never the same again, and what names it is worth
# nothing from then on: anybody may replace it, comparing versions, and one of them wins.
#
# An agent that is started anew within the TTL, in the same place, goes on with the Lease of its earlier life, which
# keeps its uid, and with it all claims.
#
# Note [Whose clock]
# Time is not compared between machines. Each agent looks on its own monotonic clock how long it has not heard of a
# change of a Lease: it hears of it after it was made, which is after the agent that made it has sent it, from when that
# one counts itself. Both clocks may run 1% wrong, so 1% is added to the TTL here, and the agent takes 1% off (Note
# [Deadlines] in L{kiwi.planning}). That holds also for a Lease that somebody has deleted: its agent may not know yet.
# Only for what was its own session an agent waits for nobody.
#
# Note [Out of sight]
# Who has not seen the server for a while has not heard of changes either. When a server that was away comes back, all
# sessions may have ended, and all agents are alive: each gets L{GRACE} from when the server can be seen, to confirm its
# session before the others delete it; then all claims are as before. For a server that only was slow there is the look
# that each deletion begins with.
#
# Note [Asked again]
# A reply that is lost on its way must not cost a session. A request that is not answered within T/10 is sent again, and
# once more after that; the first answer counts. All of them compare versions, so that only one can have an effect, and
# the others are refused; so whatever is refused is read, and then is what was to be or not.
#
# Note [The late delete]
# A request that got no answer may be carried out later: after this agent has decided otherwise, or has been started
# anew. A late change or deletion of a claim compares its version. So a claim that this process has not written itself,
# or has tried to give back since, is written again before it is taken for held: then it has another version.
#
# Note [A store that forgets]
# A server that comes back without its data, or with that of an earlier time, knows other claims than those that agents
# carry for up to a TTL. So what it knows has a name: the uid of a Lease that the first agent makes; if that is another
# one, the data is not what it was. Nor is it if resource versions go back. A loss is told, as in
# L{kiwi.claims.etcd2}; for agents that have just been started, those that see it report it in a Lease, too.

PATIENCE = 0.1
"""
Seconds after which a request counts as slow. Each one more at once is a TLS handshake, which costs a server as much as
the request; and one that is busy with those of a takeover would seem slow to all who take part, and get more of them.
"""


@implementer(IClaimStore)
@define(eq=False)
class LeaseClaimStore:
    """
    Claims of one agent as Leases. See the notes at the beginning of this module.

    @ivar ttl: of the agent's session, in seconds.
    @ivar backoff: the waits of a watch that cannot reach the server.
    @ivar wall: the time of day, in seconds since the epoch, for people.
    @ivar mirror: what a watch has heard of.
    """

    api: KubernetesAPI
    namespace: str
    agent_id: str
    ttl: int
    backoff: BackoffPolicy
    wall: Callable[[], float]
    mirror: LeaseMirror | None = field(default=None, init=False)
    requests: LeaseRequests = field(init=False)
    session: OwnSession = field(init=False)
    watches: list[LeaseWatch] = field(factory=list, init=False)
    _written: dict[Address, ClaimLease] = field(factory=dict, init=False)
    _given_back: dict[Address, str] = field(factory=dict, init=False)
    _turns: Turns = field(init=False)

    log = logger("kiwi.claims")

    def __attrs_post_init__(self) -> None:
        clock = self.api.clock
        self.requests = LeaseRequests(self.api, self.namespace, self.ttl)
        self.session = OwnSession(
            self.requests, clock, self.agent_id, self.ttl, self.wall, self._latest, self._has_forgotten
        )
        self._turns = Turns(clock, CLAIMS_IN_FLIGHT, patience=PATIENCE)

    def acquire(self, address: Address) -> Deferred[Granted | Taken | Unavailable]:
        return answer_of(self._acquire(address), self.log)

    async def _acquire(self, address: Address) -> Granted | Taken | Unavailable:
        deadline = self._deadline()
        turn = await self._turns.turn(self.ttl * CLAIM_TIME)
        try:
            own = self.session.own
            if own is None:
                return Unavailable("this agent has no Lease of its own, on which a claim could rest")
            known = self._known(address)
            over = known if known is not None and self._is_free(known) else None
            if known is not None and over is None:
                return Taken(self._holder(known))
            for _ in range(MOST_TRIES):
                answer = await self._claim(address, own.uid, over, deadline)
                if answer is not None:
                    return answer
                there = await self.requests.get(claim_lease_name(address), deadline)
                over = there if isinstance(there, ClaimLease) and self._is_free(there) else None
                if not isinstance(there, Gone) and over is None:
                    return Taken(self._holder(there) if isinstance(there, ClaimLease) else "")
            return Taken("")
        finally:
            turn.done()

    async def _claim(
        self, address: Address, session: str, over: ClaimLease | None, deadline: float
    ) -> Granted | Unavailable | None:
        """Make a claim that rests on a session; C{None} where there is another one than was thought."""
        known, sight, name = self._latest(), self._sight(), claim_lease_name(address)
        token = self.session.token(session)
        said: Lease | Conflict | Gone
        document = write_claim(self.namespace, address, self.agent_id, session, self.ttl, self.session.stamp(), over)
        if over is None:
            _, said = await self.requests.create(name, document, deadline)
        else:
            _, said = await self.requests.replace(name, document, deadline)
        if isinstance(said, Conflict | Gone):
            return None
        if not isinstance(said, ClaimLease) or said.session != session:
            raise HTTPError(f"{self.api.endpoint}: an answer that is not about the claim to {address}")
        if (number(said.identity.version) or known + 1) <= known:
            return self._has_forgotten()
        own = self.session.own
        if sight is None or sight != self._sight():
            there = await self.requests.get(self.session.name, deadline)
            if isinstance(there, Gone) or there.identity.uid != session:
                self.session.end(session)
            elif own is not None and has_gone_back(own.lease, there):
                return self._has_forgotten()
            own = self.session.own
        if own is None or self.session.token(own.uid) != token:
            # Where the store has lost its data since, it may have lost the claim, too.
            return Unavailable("this agent's own Lease, on which the claim rests, has gone meanwhile")
        self._written[address] = said
        return Granted(own.sent, token)

    def renew(self, addresses: AbstractSet[Address]) -> Deferred[Mapping[Address, Granted | Lost | Unavailable]]:
        return Deferred.fromCoroutine(self._renew(addresses))

    async def _renew(self, addresses: AbstractSet[Address]) -> Mapping[Address, Granted | Lost | Unavailable]:
        if not addresses:
            return {}
        answer = await self.session.confirm()
        if not isinstance(answer, Granted):
            other = answer if isinstance(answer, Unavailable) else Lost()
            return dict.fromkeys(addresses, other)
        return {address: await answer_of(self._confirmed(address, answer), self.log) for address in addresses}

    async def _confirmed(self, address: Address, answer: Granted) -> Granted | Lost | Unavailable:
        """What the confirmation of the session means for one claim."""
        own, claim = self.session.own, self._known(address)
        if own is not None and claim is not None and claim.session == own.uid and claim == self._written.get(address):
            return answer
        return await self._adopted(address, claim)

    async def _adopted(self, address: Address, claim: ClaimLease | None) -> Granted | Lost | Unavailable:
        """Whether a claim is this agent's. If it is, it is written again. See Note [The late delete]."""
        deadline = self._deadline()
        turn = await self._turns.turn(self.ttl * CLAIM_TIME)
        try:
            for _ in range(MOST_TRIES):
                own = self.session.own
                if claim is None and self.mirror is None:
                    there = await self.requests.get(claim_lease_name(address), deadline)
                    claim = there if isinstance(there, ClaimLease) else None
                if own is None or claim is None or claim.session != own.uid:
                    return Lost()
                answer = await self._claim(address, own.uid, claim, deadline)
                if answer is not None:
                    return answer
                there = await self.requests.get(claim_lease_name(address), deadline)
                claim = there if isinstance(there, ClaimLease) else None
            return Lost()
        finally:
            turn.done()

    def release(self, address: Address) -> Deferred[Released | Unavailable]:
        return answer_of(self._release(address), self.log)

    async def _release(self, address: Address) -> Released:
        deadline, name = self._deadline(), claim_lease_name(address)
        turn = await self._turns.turn(self.ttl * CLAIM_TIME)
        try:
            claim: Lease | Gone = self._known(address) or await self.requests.get(name, deadline)
            self._written.pop(address, None)
            for _ in range(MOST_TRIES):
                if not isinstance(claim, ClaimLease) or claim.holder != self.agent_id:
                    return Released()
                done = await self.requests.delete(name, claim.identity, deadline)
                if isinstance(done, Deleted | Gone):
                    self._given_back[address] = claim.identity.uid
                    return Released()
                claim = await self.requests.get(name, deadline)
            raise HTTPError(f"{self.api.endpoint}: somebody else changes the Lease {name} all the time")
        finally:
            turn.done()

    def register(
        self, record: AgentRecord, replacing: AgentRecord | None = None
    ) -> Deferred[Granted | Taken | Unavailable]:
        return self.session.register(record, replacing)

    def deregister(self, record: AgentRecord) -> Deferred[Released | Unavailable]:
        return self.session.deregister(record)

    def watch(self, changed: Callable[[Claims], None]) -> IService:
        return LeaseWatch(self, changed)

    def _known(self, address: Address) -> ClaimLease | None:
        """The claim to an address, as far as this agent knows: from the watch, or from an answer after that."""
        written, mirror = self._written.get(address), self.mirror
        if mirror is None:
            return written
        version = 0 if written is None else number(written.identity.version)
        if version is None or version > mirror.latest:
            return written
        claim = mirror.claims.get(address)
        return None if claim is not None and claim.identity.uid == self._given_back.get(address) else claim

    def _is_free(self, claim: ClaimLease) -> bool:
        """Whether a claim rests on nothing any more. See Note [Sessions]."""
        mirror, session = self.mirror, self.session
        return mirror is not None and mirror.is_over(claim.session, self.api.clock.seconds(), session.former)

    def _holder(self, claim: ClaimLease) -> str:
        return claim.holder if self.mirror is None else self.mirror.holder(claim)

    def _latest(self) -> int:
        return 0 if self.mirror is None else self.mirror.latest

    def forget_answers(self) -> None:
        """The store has another past than the one in which it gave its answers."""
        self._written.clear()
        self._given_back.clear()
        self.session.doubt()

    def _sight(self) -> int | None:
        """Which watch, of those that were opened, tells of all that happens; C{None} where none seems to do."""
        own = self.session.own
        is_behind = own is not None and (number(own.lease.identity.version) or 0) > self._latest()
        return None if is_behind else next((watch.sight for watch in self.watches if watch.sight is not None), None)

    def _has_forgotten(self) -> Unavailable:
        """An answer shows that the store has lost its data, which the watch has not told yet."""
        for watch in self.watches:
            watch.forgotten()
        return Unavailable(f"{self.api.endpoint}: it has lost its data")

    def _deadline(self) -> float:
        return self.api.clock.seconds() + self.ttl * CLAIM_TIME
