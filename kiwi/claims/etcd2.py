"""
Claims in etcd, through its v2 keys API, which etcd 2 serves, and etcd 3.4 and 3.5 with C{--enable-v2}.

Under the prefix there are two folders: C{publicips/<address>}, whose value is the id of the agent that claims it, and
C{agents/<id>}, whose value is what that agent tells of itself, as JSON.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar
from urllib.parse import quote

from attrs import define, field, frozen
from treq.client import HTTPClient
from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from kiwi.backoff import Backoff, BackoffPolicy
from kiwi.http import HTTPError, Response, basic, request, stream
from kiwi.logs import logger, printable
from kiwi.model import Address, AgentRecord, Claims, ip

from .asking import BEAT_TIME, CLAIM_TIME, CLAIMS_IN_FLIGHT, Turn, Turns, answer_of, asked_again
from .errands import Errands
from .etcd_user import EtcdUser
from .interface import Granted, IClaimStore, Lost, Released, Taken, Unavailable
from .records import parsed, read_record, write_record
from .rotation import Rotation
from .telling import Oddities, Oddity, Teller

# Note [Several endpoints]
# While there is another endpoint left to try, an endpoint has T/4 to answer; the last one has all the time that is
# left. With T = 10, a store that takes 2 s for each answer therefore works, and a dead endpoint costs 2.5 s, once:
# requests begin where the last one went well. (Note [Time for an answer] in L{kiwi.claims.asking}.)
#
# What is asked here may be repeated (Note [Asked again] there): a renewal and a delete mean the same twice, and for a
# create see the next note.
#
# Note [The create that may have worked]
# A create that got no answer may have been carried out. Tried again (here at the next endpoint, or by the caller) it
# answers "exists", and so does the create of an agent that was started anew within the TTL. That answer does not say
# who the holder is, so the holder is always read then: Taken(own id) tells the caller to renew. The read goes through
# the leader (quorum=true), because another member may not know of the claim yet.
#
# Note [The late delete]
# A delete that got no answer may be carried out later: by a server that was stopped for a while, after this agent has
# claimed the address anew. With only the agent's id to compare, it would delete the new claim, under an address that is
# in use. Deletes therefore also compare the index of the last change to the claim that this agent knows of, which no
# later claim can have. Where it knows of none it reads the claim first.
#
# Note [Snapshot and stream]
# The stream of events is opened first and without an index (with waitIndex in the past, etcd 3.4 and 3.5 send one event
# and nothing more), and its headers come at once. Then all nodes are read. X-Etcd-Index of that answer says exactly
# which changes are in it, so the events after it, and only these, are applied to it. It is read through the leader, so
# that it is no older than the stream's beginning, also where a balancer hands the two requests to different members.
#
# Note [A store that forgets]
# A store that comes back without its data knows of no claim, but the agents that have them still carry the addresses
# for up to a TTL. So what it knows has a name, which the first agent gives it: if that is another one or none, then the
# data is not what it was. (Every change has a number, too, and answers with a lower one than was heard of are not
# believed.) A loss is told, because an absent claim then does not mean that nobody carries the address. An agent that
# has just been started cannot see it: for those, the ones that do report it in the store.
#
# Note [The stream that falls silent]
# etcd keeps 100 events for a stream that it cannot write to as fast as they happen. When there is one more, it forgets
# that stream but leaves the connection open (watcherHub in etcd's store package; seen with 3.4 and 3.5 when 600 keys
# expired together: 100 to 170 events came, then nothing for ever). All that were kept do come, in one burst. So after
# 100 events within a second, the stream is opened anew and everything is read again. For whatever else may silence a
# stream there is the idle time: every agent registers three times in a TTL, and each time is an event for every stream.

T = TypeVar("T")

NOT_FOUND, COMPARE_FAILED, NOT_A_FILE, EXISTS = 100, 101, 102, 105
"""Error codes of the keys API (etcd's v2 errors documentation)."""

PRESENT = frozenset({"set", "create", "update", "compareAndSwap"})
GONE = frozenset({"delete", "compareAndDelete", "expire"})
ACTIONS = PRESENT | GONE

TRY_TIME = 1 / 4
"""A part of the TTL; see Note [Time for an answer] in L{kiwi.claims.asking}, and below."""

RENEWALS_IN_FLIGHT = 8

LOSS = "/lost"
"""The key, below the prefix, that reports a loss. See Note [A store that forgets]."""

HISTORY = "/store"
"""The key, below the prefix, that names what the store knows. See Note [A store that forgets]."""

BURST, BURST_TIME, AFTER_BURST = 100, 1.0, 0.1
"""See Note [The stream that falls silent]. The times are in seconds."""

LIVED = 1.0
"""Seconds that a stream must have lasted to be opened again without a wait."""


# What etcd says, read without trust.


@frozen
class Node:
    """
    A key as etcd describes it.

    @ivar value: C{None} where there is none.
    @ivar index: of the last change to it.
    """

    key: str
    value: str | None
    folder: bool
    index: int


@frozen
class Event:
    """A change to one key."""

    node: Node
    gone: bool


@frozen
class Refusal:
    """An error that etcd's keys API describes."""

    code: int
    text: str


@frozen
class Snapshot:
    """
    Every key under the prefix.

    @ivar index: of the last change that is in it.
    """

    index: int
    nodes: Sequence[Node] = ()
    oddities: Sequence[Oddity] = ()


def _number(raw: Mapping[str, Any], name: str) -> int | None:
    value = raw.get(name)
    return value if type(value) is int and value >= 0 else None


def _node(raw: object) -> Node | Oddity:
    if not isinstance(raw, dict) or not isinstance(raw.get("key"), str):
        return Oddity("a node without a key", "it has no key")
    key, value, index = raw["key"], raw.get("value"), _number(raw, "modifiedIndex")
    if index is None:
        return Oddity(key, "it has no modifiedIndex")
    if value is not None and not isinstance(value, str):
        return Oddity(key, "its value is no text")
    return Node(key, value, raw.get("dir") is True, index)


def read_refusal(body: bytes) -> Refusal | None:
    try:
        raw = parsed(body)
    except ValueError:
        return None
    code = _number(raw, "errorCode") if isinstance(raw, dict) else None
    if code is None:
        return None
    return Refusal(code, printable(f"error {code}: {raw.get('message')} ({raw.get('cause')})"))


def _unusable(response: Response) -> str:
    """Why this is no answer."""
    refusal = read_refusal(response.body)
    return f"status {response.status}" if refusal is None else f"status {response.status}, {refusal.text}"


Headers = dict[bytes | str, bytes | str]


class Forbidden(HTTPError):
    """Etcd does not let this user in."""


def user_headers(user: EtcdUser | None) -> Headers:
    """
    What says who is asking, with the password as it is now. Raises L{HTTPError} where there is none to be had.

    The user of a client certificate (C{--client-cert-auth}) needs none: etcd takes its common name.
    """
    if user is None:
        return {}
    try:
        return {"Authorization": basic(user.name, user.read_password())["Authorization"]}
    except (OSError, ValueError) as error:
        raise HTTPError(f"there is no password for user {printable(user.name)}: {printable(error)}") from None


def refused_user(response: Response, user: EtcdUser | None, prefix: str, path: str) -> str | None:
    """What is wrong, and what to do, where etcd does not let a user at a key; C{None} where it does."""
    if response.status != 401:
        return None
    key = printable(prefix + path)
    if user is None:
        return (
            f"{_unusable(response)}: nobody without a name may ask for {key}; give --etcd-user and "
            "--etcd-password-file, or a client certificate of a user"
        )
    return (
        f"{_unusable(response)}: user {printable(user.name)} may not ask for {key}; see that the password is right, "
        f"and that a role of the user may read and write {printable(prefix)}*"
    )


def read_reply(response: Response) -> Node | Refusal | str:
    """The node that a request changed or read; or why it was refused; or in which way this is no answer."""
    if response.status in (200, 201):
        try:
            raw = parsed(response.body)
        except ValueError:
            return "an answer that is no JSON"
        node = _node(raw.get("node") if isinstance(raw, dict) else None)
        return node if isinstance(node, Node) else "an answer without a valid node"
    refusal = read_refusal(response.body)
    return refusal if refusal is not None and response.status < 500 else _unusable(response)


def read_snapshot(response: Response) -> Snapshot | str:
    """Everything under the prefix; or in which way this is no answer."""
    index = stream_index(response)
    if index is None:
        return f"{_unusable(response)}, and no X-Etcd-Index"
    if response.status != 200:
        refusal = read_refusal(response.body)
        if response.status == 404 and refusal is not None and refusal.code == NOT_FOUND:
            return Snapshot(index)
        return _unusable(response)
    try:
        raw = parsed(response.body)
    except ValueError:
        return "a snapshot that is no JSON"
    root = raw.get("node") if isinstance(raw, dict) else None
    if not isinstance(root, dict):
        return "a snapshot without a node"
    nodes: list[Node] = []
    oddities: list[Oddity] = []
    # The root of all keys has no key, and needs none.
    unread = _children(root) if root.get("dir") is True else [root]
    while unread:
        child = unread.pop()
        node = _node(child)
        if isinstance(node, Node):
            nodes.append(node)
        else:
            oddities.append(node)
        if isinstance(child, dict):
            unread += _children(child)
    return Snapshot(index, nodes, oddities)


def _children(raw: Mapping[str, Any]) -> list[Any]:
    nodes = raw.get("nodes")
    return list(nodes) if isinstance(nodes, list) else []


def stream_index(response: Response) -> int | None:
    """The index of the last change before a stream, or in a snapshot."""
    text = response.header("X-Etcd-Index")
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else None


def read_event(line: bytes) -> Event | Oddity:
    """A line of the stream; raises L{ValueError} if it is no JSON."""
    raw = parsed(line)
    if not isinstance(raw, dict):
        return Oddity("an event of another form", "it is no JSON object")
    node, action = _node(raw.get("node")), raw.get("action")
    if isinstance(node, Oddity):
        return node
    if isinstance(action, str) and action in ACTIONS:
        return Event(node, action in GONE)
    return Oddity(f"action {printable(action)}", f"it is not known; it came for {printable(node.key)}")


@define(eq=False)
class Mirror:
    """
    What the store knows, from one snapshot and the events after it. See Note [Snapshot and stream].

    @ivar prefix: of all keys, without a slash at its end.
    @ivar latest: the number of the latest change that was heard of.
    @ivar lost: some agent reports that the store has lost its data.
    @ivar history: what names the store as it has been since it last lost its data; C{None} where nothing does yet.
    """

    prefix: str
    holders: dict[Address, str] = field(factory=dict, init=False)
    agents: dict[str, AgentRecord] = field(factory=dict, init=False)
    latest: int = field(default=0, init=False)
    lost: bool = field(default=False, init=False)
    history: str | None = field(default=None, init=False)
    _index: int | None = field(default=None, init=False)
    _early: list[Event] = field(factory=list, init=False)
    _claims: str = field(init=False)
    _agents: str = field(init=False)
    _report: str = field(init=False)
    _history: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._claims, self._agents = f"{self.prefix}/publicips/", f"{self.prefix}/agents/"
        self._report, self._history = self.prefix + LOSS, self.prefix + HISTORY

    @property
    def complete(self) -> bool:
        """There was a snapshot."""
        return self._index is not None

    def restore(self, snapshot: Snapshot) -> Sequence[Oddity]:
        """Begin with this, and apply the events that came before it was there. What was passed over is returned."""
        oddities = [*snapshot.oddities, *map(self._put, snapshot.nodes)]
        self._index, early = snapshot.index, self._early
        self.latest = max(self.latest, snapshot.index)
        self._early = []
        oddities += map(self.hear, early)
        return [oddity for oddity in oddities if oddity is not None]

    def hear(self, event: Event) -> Oddity | None:
        """Apply an event, or keep it until there is a snapshot."""
        if self._index is None:
            self._early.append(event)
        elif event.node.index > self._index:
            self.latest = max(self.latest, event.node.index)
            if event.gone:
                self._forget(event.node.key)
            else:
                return self._put(event.node)
        return None

    def names_history(self, event: Event | Oddity) -> bool:
        """Whether an event tells of nothing but the name of what the store knows."""
        return isinstance(event, Event) and event.node.key == self._history

    def _put(self, node: Node) -> Oddity | None:
        self._forget_one(node.key)
        key = node.key
        if node.folder:
            return None if self._holds_folders(key) else Oddity(key, "it is a directory")
        if key.startswith(self._claims):
            address = self._address(key)
            if address is None:
                return Oddity(key, "it names no address, or not in its usual form")
            if node.value is None:
                return Oddity(key, "it has no value")
            self.holders[address] = node.value
            return None
        if key.startswith(self._agents):
            name = key.removeprefix(self._agents)
            record = None if node.value is None or "/" in name else read_record(name, node.value)
            if record is None:
                return Oddity(key, "it is no record of an agent")
            self.agents[name] = record
            return None
        if key == self._report:
            self.lost = True
            return None
        if key == self._history:
            self.history = node.value
            return None
        return Oddity(key, "it is no key of Kiwi's")

    def _forget(self, key: str) -> None:
        """This key is gone, and with it what was below it."""
        self._forget_one(key)
        folder = key.rstrip("/") + "/"
        if self._claims.startswith(folder):
            self.holders.clear()
        if self._agents.startswith(folder):
            self.agents.clear()

    def _forget_one(self, key: str) -> None:
        if key.startswith(self._claims):
            address = self._address(key)
            if address is not None:
                self.holders.pop(address, None)
        elif key == self._report:
            self.lost = False
        elif key == self._history:
            self.history = None
        elif key.startswith(self._agents):
            self.agents.pop(key.removeprefix(self._agents), None)

    def _holds_folders(self, key: str) -> bool:
        return self._claims.startswith(f"{key}/") or self._agents.startswith(f"{key}/")

    def _address(self, key: str) -> Address | None:
        """Which address a claim is for. One that is spelt in another way than agents do is nobody's claim."""
        text = key.removeprefix(self._claims)
        try:
            address = ip(text)
        except ValueError:
            return None
        return address if str(address) == text else None


# Asking.


@implementer(IClaimStore)
@define(eq=False)
class Etcd2ClaimStore:
    """
    Claims of one agent in etcd v2. See the notes at the beginning of this module.

    @ivar http: for requests; it should keep some 30 connections.
    @ivar stream_http: for the stream of events; it must keep none.
    @ivar endpoints: such as C{http://localhost:2379}. One that fails is tried after the others.
    @ivar prefix: of all keys, such as C{/kiwi}.
    @ivar ttl: of claims and of the agent's record, in seconds.
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
    mirror: Mirror | None = field(default=None, init=False)
    _watches: list[_Watch] = field(factory=list, init=False)
    rotation: Rotation = field(init=False)
    _indexes: dict[Address, int] = field(factory=dict, init=False)
    _claiming: Turns = field(init=False)
    _renewing: Turns = field(init=False)
    _bases: Sequence[tuple[str, str]] = field(init=False)
    _create: str = field(init=False)
    _refresh: str = field(init=False)
    _own: str = field(init=False)

    log = logger("kiwi.claims")

    def __attrs_post_init__(self) -> None:
        self.prefix = self.prefix.rstrip("/")
        self._claiming = Turns(self.clock, CLAIMS_IN_FLIGHT)
        self._renewing = Turns(self.clock, RENEWALS_IN_FLIGHT, self._claiming)
        self._bases = [(printable(url), f"{url.rstrip('/')}/v2/keys{quote(self.prefix)}") for url in self.endpoints]
        self.rotation = Rotation(len(self._bases))
        # All arguments go into the URL: a request without a body leaves at once, in one piece.
        self._own = f"prevValue={quote(self.agent_id, safe='')}"
        self._create = f"?prevExist=false&ttl={self.ttl}&value={quote(self.agent_id, safe='')}"
        self._refresh = f"?prevExist=true&{self._own}&ttl={self.ttl}&refresh=true"

    def acquire(self, address: Address) -> Deferred[Granted | Taken | Unavailable]:
        return self._answer(self._acquire(address))

    async def _acquire(self, address: Address) -> Granted | Taken | Unavailable:
        path, deadline = f"/publicips/{address}", self._within(CLAIM_TIME)
        turn = await self._claiming.turn(self.ttl * CLAIM_TIME)
        try:
            known = self.mirror.latest if self.mirror else 0
            sent, said = await self._ask("PUT", path + self._create, deadline, {EXISTS})
            if isinstance(said, Node):
                return self._granted(address, sent, said, known)
            # See Note [The create that may have worked].
            _, holder = await self._ask("GET", path + "?quorum=true", deadline, {NOT_FOUND})
            return Taken((holder.value or "") if isinstance(holder, Node) else "")
        finally:
            turn.done()

    def renew(self, addresses: AbstractSet[Address]) -> Deferred[Mapping[Address, Granted | Lost | Unavailable]]:
        return Deferred.fromCoroutine(self._renew_all(addresses))

    async def _renew_all(self, addresses: AbstractSet[Address]) -> Mapping[Address, Granted | Lost | Unavailable]:
        answers: dict[Address, Granted | Lost | Unavailable] = {}
        deadline = self._within(BEAT_TIME)
        flying: list[Deferred[None]] = []
        too_late = Unavailable("")

        async def renew_one(address: Address, turn: Turn) -> None:
            try:
                answers[address] = await self._answer(self._renew(address, deadline))
            finally:
                turn.done()

        try:
            try:
                for address in addresses:
                    turn = await self._renewing.turn(max(0.0, deadline - self.clock.seconds()))
                    flying.append(Deferred.fromCoroutine(renew_one(address, turn)))
            except HTTPError as error:
                too_late = Unavailable(str(error))
            await DeferredList(flying, consumeErrors=True)
        finally:
            for renewal in flying:
                renewal.addErrback(lambda failure: None).cancel()
        return {address: answers.get(address, too_late) for address in addresses}

    async def _renew(self, address: Address, deadline: float) -> Granted | Lost | Unavailable:
        refusals = {NOT_FOUND, COMPARE_FAILED, NOT_A_FILE}
        known = self.mirror.latest if self.mirror else 0
        sent, said = await self._ask("PUT", f"/publicips/{address}{self._refresh}", deadline, refusals)
        if isinstance(said, Node):
            return self._granted(address, sent, said, known)
        self._indexes.pop(address, None)
        return Lost()

    def _granted(self, address: Address, sent: float, node: Node, known: int) -> Granted | Unavailable:
        if node.index <= known:
            # This was asked for after that change. See Note [A store that forgets].
            for watch in self._watches:
                watch.forgotten()
            return Unavailable(f"{self._bases[self.rotation.first][0]}: it has lost its data")
        if node.key != f"{self.prefix}/publicips/{address}" or node.value != self.agent_id:
            return Unavailable(
                f"{self._bases[self.rotation.first][0]}: an answer for another claim, {printable(node.key)}"
            )
        self._indexes[address] = node.index
        return Granted(sent)

    def release(self, address: Address) -> Deferred[Released | Unavailable]:
        return self._answer(self._release(address))

    async def _release(self, address: Address) -> Released | Unavailable:
        path, deadline = f"/publicips/{address}", self._within(CLAIM_TIME)
        turn = await self._claiming.turn(self.ttl * CLAIM_TIME)
        try:
            # See Note [The late delete]. Once more where a renewal that was still in flight came between.
            index = self._indexes.pop(address, None)
            for _ in range(3):
                if index is None:
                    _, claim = await self._ask("GET", path + "?quorum=true", deadline, {NOT_FOUND})
                    if not isinstance(claim, Node) or claim.value != self.agent_id:
                        return Released()
                    index = claim.index
                query = f"?{self._own}&prevIndex={index}"
                refusals = {NOT_FOUND, COMPARE_FAILED, NOT_A_FILE}
                _, said = await self._ask("DELETE", path + query, deadline, refusals)
                if isinstance(said, Node) or said.code != COMPARE_FAILED:
                    return Released()
                index = None
            return Unavailable("the claim changed while it was being released")
        finally:
            turn.done()

    def register(
        self, record: AgentRecord, replacing: AgentRecord | None = None
    ) -> Deferred[Granted | Taken | Unavailable]:
        return self._answer(self._register(record, replacing))

    async def _register(self, record: AgentRecord, replacing: AgentRecord | None) -> Granted | Taken | Unavailable:
        same = f"prevValue={quote(write_record(record), safe='')}"
        conditions = [same, "prevExist=false", same]
        if replacing is not None:
            conditions.insert(1, f"prevValue={quote(write_record(replacing), safe='')}")
        # Not with refresh=true: each registration is to be an event on every stream.
        path = f"/agents/{quote(record.id, safe='')}?ttl={self.ttl}&value={quote(write_record(record), safe='')}"
        deadline = self._within(BEAT_TIME)
        # The first condition is enough but for the first time. It comes last again, because a write that got no answer
        # from one endpoint, and a refusal from the next, may have worked.
        for condition in conditions:
            refusals = {NOT_FOUND, COMPARE_FAILED, NOT_A_FILE, EXISTS}
            sent, said = await self._ask("PUT", f"{path}&{condition}", deadline, refusals)
            if isinstance(said, Node):
                return Granted(sent)
        return Taken("")

    def deregister(self, record: AgentRecord) -> Deferred[Released | Unavailable]:
        return self._answer(self._deregister(record))

    async def _deregister(self, record: AgentRecord) -> Released | Unavailable:
        path = f"/agents/{quote(record.id, safe='')}?prevValue={quote(write_record(record), safe='')}"
        gone = {NOT_FOUND, COMPARE_FAILED, NOT_A_FILE}
        await self._ask("DELETE", path, self._within(CLAIM_TIME), gone)
        if self.mirror is not None and self.mirror.history is not None and not self.mirror.agents.keys() - {record.id}:
            # The last one leaves nothing behind.
            path = f"{HISTORY}?prevValue={quote(self.mirror.history, safe='')}"
            await self._ask("DELETE", path, self._within(CLAIM_TIME), gone)
        return Released()

    def watch(self, changed: Callable[[Claims], None]) -> IService:
        return _Watch(self, changed)

    def report_loss(self) -> Deferred[Any]:
        """Tell all agents for a TTL that the store has lost its data. See Note [A store that forgets]."""
        path = f"{LOSS}?ttl={self.ttl}&value={quote(self.agent_id, safe='')}"
        return self._answer(self._ask("PUT", path, self._within(CLAIM_TIME), ()))

    def begin_history(self) -> Deferred[Any]:
        """Give what the store knows a name, unless it has one. See Note [A store that forgets]."""
        name = quote(f"{self.agent_id} {self.clock.seconds():.6f}", safe="")
        return self._answer(
            self._ask("PUT", f"{HISTORY}?prevExist=false&value={name}", self._within(CLAIM_TIME), {EXISTS})
        )

    def _within(self, part: float) -> float:
        return self.clock.seconds() + self.ttl * part

    def _answer(self, work: Coroutine[Any, Any, T]) -> Deferred[T | Unavailable]:
        return answer_of(work, self.log)

    async def _ask(
        self, method: str, path: str, deadline: float, refusals: Collection[int]
    ) -> tuple[float, Node | Refusal]:
        """
        When the request was first sent, and what an endpoint answered; or L{HTTPError} when none did until C{deadline}.

        @param path: below the prefix, with the query.
        @param refusals: the codes that are an answer.
        """
        first_sent: float | None = None
        reasons: list[str] = []
        headers = self.headers()
        for place, others in self.rotation.in_order():
            name, base = self._bases[place]
            now = self.clock.seconds()
            left = deadline - now
            if left <= 0:
                break
            if first_sent is None:
                first_sent = now
            try:
                response = await self._send(
                    method, base + path, headers, min(left, self.ttl * TRY_TIME) if others else left
                )
            except HTTPError as error:
                said: Node | Refusal | str = str(error)
            else:
                said = self.forbidden(response, path) or read_reply(response)
            if isinstance(said, Refusal) and said.code not in refusals:
                said = said.text
            if not isinstance(said, str):
                return first_sent, said
            self.rotation.failed(place)
            reasons.append(f"{name}: {said}")
        raise HTTPError("; ".join(reasons) or "no time was left to ask the store")

    def headers(self) -> Headers:
        """What says who is asking, as it is now. Raises L{HTTPError} where that is not to be had."""
        return user_headers(self.user)

    def forbidden(self, response: Response, path: str = "") -> str | None:
        """What is to be done where etcd does not let this agent at a key: C{path} below the prefix."""
        return refused_user(response, self.user, self.prefix, path.partition("?")[0])

    def _send(self, method: str, url: str, headers: Headers, timeout: float) -> Deferred[Response]:
        ends = self.clock.seconds() + timeout

        def send() -> Deferred[Response]:
            return request(
                self.http,
                self.clock,
                method,
                url,
                timeout=max(0.0, ends - self.clock.seconds()),
                limit=2**20,
                headers=headers,
            )

        return asked_again(self.clock, self.ttl, send)


# Watching.


@define(eq=False)
class _Watch(Service):
    """Follows one connection after the other."""

    store: Etcd2ClaimStore
    _changed: Callable[[Claims], None]
    _mirror: Mirror | None = field(default=None, init=False)
    _teller: Teller = field(init=False)
    _oddities: Oddities = field(init=False)
    _lost: bool = field(default=False, init=False)
    _forbidden: bool = field(default=False, init=False)
    _losses: int = field(default=0, init=False)
    _errands: Errands = field(factory=Errands, init=False)

    log = logger("kiwi.claims")

    def __attrs_post_init__(self) -> None:
        self._teller = Teller(self.store.clock, self._changed, self._known, self.log)
        self._oddities = Oddities(self.log)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self.store._watches.append(self)
        self._errands.run(Deferred.fromCoroutine(self._follow()))

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        self.store._watches.remove(self)
        self._errands.cancel()
        self._teller.stop()

    async def _follow(self) -> None:
        backoff = Backoff(self.store.backoff)
        while True:
            place = self.store.rotation.first
            connection = _Connection(self, *self.store._bases[place])
            try:
                await connection.follow()
            except HTTPError as error:
                self._failed(place, str(error), isinstance(error, Forbidden))
            except CancelledError:
                if not self.running:
                    raise
                self._failed(place, "the connection was closed")
            except Exception as error:  # noqa: BLE001 whatever it was, the next connection may do better
                self.log.failure("the watch of the claim store failed")
                self._failed(place, printable(error))
            if connection.lived:
                backoff.succeeded()
            await deferLater(self.store.clock, 0 if connection.lived else backoff.failed())

    def _failed(self, place: int, why: str, forbidden: bool = False) -> None:
        self.store.rotation.failed(place)
        # That somebody must do something is said in any case, also where the store was away before.
        if not self._lost or (forbidden and not self._forbidden):
            self._lost, self._forbidden = True, self._forbidden or forbidden
            text = (
                "the claims at {endpoint} cannot be followed: {why}; trying again and again"
                if self._mirror is None
                else "lost sight of the claims at {endpoint}: {why}; going on with the last known ones"
            )
            self.log.warn(text, endpoint=self.store._bases[place][0], why=why)

    def restored(self, mirror: Mirror, endpoint: str) -> None:
        """There is a new truth."""
        if self._lost or self._mirror is None:
            self.log.info(
                "following the claims at {endpoint}; now there are {claims} claims and {agents} agents",
                endpoint=endpoint,
                claims=len(mirror.holders),
                agents=len(mirror.agents),
            )
        before = self._mirror
        if before is not None and (
            mirror.latest < before.latest or mirror.history != (before.history or mirror.history)
        ):
            self._note_loss(endpoint)
        if mirror.history is None:
            self._write(self.store.begin_history())
        self._lost, self._forbidden, self._mirror = False, False, mirror
        self.store.mirror = mirror
        if self._teller.told != self._known():
            self.heard()

    def forgotten(self) -> None:
        """An answer shows that the store has lost its data, which the stream has not told yet."""
        if self._mirror is not None:
            self._mirror.latest = 0
            self._note_loss(self.store._bases[self.store.rotation.first][0])
            self.heard()

    def _note_loss(self, endpoint: str) -> None:
        """See Note [A store that forgets]."""
        self._losses += 1
        self.log.error("the claim store at {endpoint} has lost its data", endpoint=endpoint)
        self._write(self.store.report_loss())

    def _write(self, writing: Deferred[Any]) -> None:
        """Let this come to its end, unless the watch ends first. If it fails, the next snapshot leads here again."""
        self._errands.run(writing)

    def _known(self) -> Claims:
        assert self._mirror is not None
        return Claims(dict(self._mirror.holders), dict(self._mirror.agents), self._losses, self._mirror.lost)

    def heard(self) -> None:
        """Tell how things stand, once all that came together has been heard."""
        self._teller.soon()

    def odd(self, oddity: Oddity) -> None:
        """Say once what is passed over."""
        self._oddities.note(oddity.subject, oddity.why)


@define(eq=False)
class _Connection:
    """One stream of events, and the snapshot that it is merged with."""

    _watch: _Watch
    _endpoint: str
    _base: str
    _mirror: Mirror = field(init=False)
    _began: int = field(default=0, init=False)
    _since: float | None = field(default=None, init=False)
    _headers: Headers = field(factory=dict, init=False, repr=False)
    _streaming: Deferred[Response | None] | None = field(default=None, init=False)
    _reading: Deferred[None] | None = field(default=None, init=False)
    _garbled: bool = field(default=False, init=False)
    _times: deque[float] = field(factory=lambda: deque(maxlen=BURST), init=False)
    _reopening: IDelayedCall | None = field(default=None, init=False)
    _ended: bool = field(default=False, init=False)
    _trouble: str | None = field(default=None, init=False)
    lived: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._mirror = Mirror(self._watch.store.prefix)

    async def follow(self) -> None:
        """Until the server ends the stream, or it should be opened anew. L{HTTPError} says what went wrong."""
        store = self._watch.store
        self._headers = store.headers()
        self._streaming = stream(
            store.stream_http,
            store.clock,
            f"{self._base}?wait=true&recursive=true&stream=true",
            opened=self._opened,
            line=self._line,
            overlong=lambda size: self._watch.odd(Oddity("a line that is too long", f"it has {size} bytes")),
            open_timeout=store.ttl * TRY_TIME,
            idle_timeout=store.ttl,
            headers=self._headers,
        )
        if self._ended:
            self._streaming.cancel()
        try:
            refused = await self._streaming
        except CancelledError:
            if not self._ended:
                raise
            refused = None
        finally:
            if self._reading is not None:
                self._reading.cancel()
            if self._reopening is not None:
                self._reopening.cancel()
            if self._since is not None and store.clock.seconds() - self._since >= LIVED:
                self.lived = True
        if self._trouble is not None:
            raise HTTPError(self._trouble)
        if refused is not None:
            forbidden = store.forbidden(refused)
            raise Forbidden(forbidden) if forbidden else HTTPError(_unusable(refused))

    def _opened(self, response: Response) -> None:
        store = self._watch.store
        self._began = stream_index(response) or 0
        reading = request(
            store.http,
            store.clock,
            "GET",
            f"{self._base}?recursive=true&quorum=true",
            timeout=store.ttl * CLAIM_TIME,
            headers=self._headers,
        )
        self._reading = reading.addCallback(self._read).addErrback(self._unread)

    def _read(self, response: Response) -> None:
        snapshot = self._watch.store.forbidden(response) or read_snapshot(response)
        if isinstance(snapshot, str):
            self._end(snapshot)
        elif snapshot.index < self._began:
            self._end(f"a snapshot as of change {snapshot.index}, older than the stream as of change {self._began}")
        else:
            for oddity in self._mirror.restore(snapshot):
                self._watch.odd(oddity)
            self._since = self._watch.store.clock.seconds()
            self._watch.restored(self._mirror, self._endpoint)

    def _unread(self, failure: Failure) -> None:
        if failure.check(HTTPError):
            self._end(str(failure.value))
        elif not failure.check(CancelledError):
            self._watch.log.failure("the claims could not be read", failure)
            self._end(printable(failure.getErrorMessage()))

    def _line(self, line: bytes) -> None:
        self._count()
        try:
            event = read_event(line)
        except ValueError as error:
            if not self._garbled:
                self._garbled = True
                self._watch.log.warn(
                    "passing over what is no JSON in the stream of claims from {endpoint}: {why}",
                    endpoint=self._endpoint,
                    why=printable(error),
                )
            return
        oddity = event if isinstance(event, Oddity) else self._mirror.hear(event)
        if oddity is not None:
            self._watch.odd(oddity)
        if self._mirror.complete and not self._mirror.names_history(event):
            self._watch.heard()

    def _count(self) -> None:
        """See Note [The stream that falls silent]."""
        now = self._watch.store.clock.seconds()
        self._times.append(now)
        if self._reopening is None and len(self._times) == BURST and now - self._times[0] < BURST_TIME:
            self._reopening = self._watch.store.clock.callLater(AFTER_BURST, self._reopen)

    def _reopen(self) -> None:
        self._reopening = None
        self.lived = True
        self._end(None)

    def _end(self, trouble: str | None) -> None:
        self._ended, self._trouble = True, trouble
        if self._streaming is not None:
            self._streaming.cancel()
