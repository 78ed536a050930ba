"""One member of an etcd cluster, and what it answers."""

from __future__ import annotations

from base64 import b64decode
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.internet.interfaces import IDelayedCall
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from . import gateway
from .access import Permission
from .gateway import JSON, encode, number, without_zeros
from .store import UNAVAILABLE, Event, Operation, Range, Refused, Store, Transaction, holds

if TYPE_CHECKING:
    from .cluster import FakeEtcd3

TIMEOUT = 7.0
"""Seconds that a member waits for a majority."""

NOTICE = 1.5
"""Seconds after which a member notices that it has no leader, or is none; by default."""

CANCEL = 3.0
"""Seconds more after which it ends the streams that are for members with a leader."""

NO_LEADER = (UNAVAILABLE, "etcdserver: no leader")
TIMED_OUT = (UNAVAILABLE, "etcdserver: request timed out")

Handler = Callable[["Member", Request, JSON], JSON | None]


@define(eq=False)
class _Watcher:
    """
    @ivar next: the first revision that it has not heard of.
    @ivar silent: nothing arrives there any more, and nobody knows.
    """

    request: Request
    wish: gateway.Watching
    next: int
    needs_leader: bool
    silent: bool = False

    def wants(self, event: Event) -> bool:
        return event.is_delete not in self.wish.unwanted and holds(self.wish.key, self.wish.end, event.kv.key)


class Member(Resource):
    """
    @ivar is_down: its process is not there.
    @ivar is_paused: its process stands still.
    @ivar is_cut_off: it does not reach the other members.
    @ivar leads_alone: it takes itself for the leader, and is not.
    """

    isLeaf = True

    def __init__(self, cluster: FakeEtcd3, number: int) -> None:
        super().__init__()
        self.cluster, self.number = cluster, number
        self.id = 10_276_657_743_932_975_400 + number
        self.is_down = self.is_paused = self.is_cut_off = self.leads_alone = self._knows = False
        self._known: tuple[Store, int] | None = None
        self._frozen: list[tuple[Request, bytes]] = []
        self._open: list[Request] = []
        self._watchers: list[_Watcher] = []
        self._noticing: IDelayedCall | None = None
        self._timers: list[IDelayedCall] = []

    @property
    def is_connected(self) -> bool:
        return not (self.is_down or self.is_paused or self.is_cut_off)

    @property
    def known(self) -> Store:
        """What it knows."""
        return self._known[0] if self._known is not None else self.cluster.store

    @property
    def term(self) -> int:
        return self._known[1] if self._known is not None else self.cluster.term

    # What may go wrong.

    def fail(self) -> None:
        """End, as in a crash. Whoever asks is cut off; to refuse connections is for the network."""
        self.is_down = True
        self._forget()
        self._break()
        self.cluster.forget_waiting(self)
        self.cluster.members_changed()

    def recover(self) -> None:
        """Start again, and know what the others know."""
        self.is_down = False
        self.cluster.members_changed()

    def pause(self) -> None:
        """Stand still. What it is asked waits."""
        if not self.is_paused:
            self.is_paused = True
            self._remember()
            self.cluster.members_changed()

    def resume(self, notices: float = 0.0) -> None:
        """
        Go on: it answers what it was asked before it knows that there is another leader.

        @param notices: seconds after which it does.
        """
        if self.is_paused:
            self.is_paused = False
            self.is_cut_off = True
            self.carry_out_late()
            if notices:
                self._later(notices, self.rejoin)
            else:
                self.rejoin()

    def cut_off(self, notices: float = NOTICE) -> None:
        """
        Not reach the other members any more.

        @param notices: seconds after which it knows.
        """
        if not self.is_cut_off:
            self.is_cut_off = True
            self._remember()
            self.cluster.members_changed()
            self._notice_in(notices)

    def rejoin(self) -> None:
        """Reach the others again, and catch up with them."""
        if self.is_cut_off:
            self.is_cut_off = False
            self.cluster.members_changed()
            if self.cluster.is_led and self.is_connected:
                self.find_leader()
                self.cluster.carry_out_waiting()

    def drop_streams(self) -> None:
        for request in list(self._open):
            transport: Any = request.transport
            transport.abortConnection()

    def end_streams(self) -> None:
        for watcher in list(self._watchers):
            watcher.request.finish()

    def silence_streams(self) -> None:
        for watcher in self._watchers:
            watcher.silent = True

    def send(self, line: bytes) -> None:
        for watcher in self._watchers:
            watcher.request.write(line + b"\n")

    def stop(self) -> None:
        for call in (self._noticing, *self._timers):
            if call is not None and call.active():
                call.cancel()

    # What the cluster tells it.

    def begin(self) -> None:
        """Its process was started anew."""
        self.is_paused = self.is_cut_off = False
        self._forget()
        self._break()

    def lead_alone(self) -> None:
        """It leads no longer, and does not know."""
        if not self.is_down:
            self._remember()
            self.leads_alone = True
            if not self.is_paused:
                self._notice_in(NOTICE)

    def lose_leader(self) -> None:
        self._notice_in(NOTICE)

    def find_leader(self) -> None:
        """It is one of a majority, and knows who leads."""
        self._forget()
        self.publish()

    def _remember(self) -> None:
        if self._known is None:
            self._known = (self.cluster.store.copy(), self.cluster.term)

    def _forget(self) -> None:
        self._known, self.leads_alone, self._knows = None, False, False
        if self._noticing is not None and self._noticing.active():
            self._noticing.cancel()

    def _notice_in(self, seconds: float) -> None:
        if self._knows:
            return
        if self._noticing is not None and self._noticing.active():
            self._noticing.reset(seconds)
        else:
            self._noticing = self.cluster.clock.callLater(seconds, self._notice)

    def _notice(self) -> None:
        self.leads_alone, self._knows = False, True
        self._noticing = self.cluster.clock.callLater(CANCEL, self._end_for_lack_of_a_leader)

    def _end_for_lack_of_a_leader(self) -> None:
        for watcher in [watcher for watcher in self._watchers if watcher.needs_leader]:
            self._tell(watcher, self.cluster.dialect.stream_error(*NO_LEADER))
            watcher.request.finish()

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers = [call for call in self._timers if call.active()]
        self._timers.append(self.cluster.clock.callLater(seconds, act))

    def _break(self) -> None:
        self._frozen.clear()
        self.drop_streams()

    # HTTP.

    def render(self, request: Request) -> int:
        content: Any = request.content
        body: bytes = content.read()
        about = f"{request.method.decode()} {request.uri.decode()} {body.decode(errors='replace')}"
        self.cluster.requests.append(about.rstrip())
        self._open.append(request)
        request.notifyFinish().addBoth(lambda _: self._closed(request))
        failure = self.cluster.next_failure()
        if failure is not None:
            self._answer(request, *failure)
        elif self.is_paused or self.cluster.hanging:
            self._frozen.append((request, body))
        else:
            self._carry_out(request, body)
        return NOT_DONE_YET

    def carry_out_late(self) -> None:
        """What was asked while it did nothing."""
        frozen, self._frozen = self._frozen, []
        for request, body in frozen:
            self._carry_out(request, body)

    def _closed(self, request: Request) -> None:
        self._open.remove(request)
        self._watchers = [watcher for watcher in self._watchers if watcher.request is not request]

    def _carry_out(self, request: Request, body: bytes) -> None:
        path = request.path.decode("ascii")
        streams = path in STREAMS
        handler = HANDLERS.get(path)
        if path == "/version":
            minor = self.cluster.dialect.minor
            about = {"etcdserver": self.cluster.dialect.version, "etcdcluster": f"3.{minor}.0"}
            return self._answer(request, 200, encode({**about, "storage": "3.6.0"} if minor >= 6 else about))
        if path == "/health":
            healthy = self.cluster.is_led and not self._knows
            return self._answer(request, 200 if healthy else 503, encode({"health": str(healthy).lower()}))
        if handler is None:
            missing = self.cluster.dialect.unknown_path() if path.startswith("/v3/") else (404, b"404 page not found\n")
            return self._answer(request, *missing)
        if request.method != b"POST":
            return self._answer(request, *self.cluster.dialect.wrong_method())
        try:
            messages = list(gateway.requests(body))
            wishes = [gateway.watching(each) for each in messages] if path == "/v3/watch" else []
        except Refused as refused:
            return self._refuse(request, refused, streams)
        if self._knows and self._needs_leader(request):
            return self._refuse(request, Refused(*NO_LEADER), streams)
        if path == "/v3/watch":
            return self._watch(request, [wish for wish, each in zip(wishes, messages, strict=True) if each])
        message = messages[0] if messages else {}
        return self._perform(request, path, handler, message, streams)

    def _perform(self, request: Request, path: str, handler: Handler, message: JSON, streams: bool) -> None:
        def act() -> None:
            try:
                answer = handler(self, request, message)
            except Refused as refused:
                return self._refuse(request, refused, streams)
            if answer is not None:
                self._say(request, answer, streams)
            if needs_majority:
                self.cluster.carried_out(path)
            return None

        alone = path in LEADERS and self.leads_alone
        needs_majority = not (alone or path in LOCAL or (path == "/v3/kv/range" and message.get("serializable")))
        if not needs_majority or (self.cluster.is_led and self.is_connected):
            return act()
        self.cluster.wait(self, request, act)

        def time_out() -> None:
            if self.cluster.give_up(request):
                self._refuse(request, Refused(*(NO_LEADER if path in LEADERS else TIMED_OUT)), streams)

        return self._later(TIMEOUT, time_out)

    def _needs_leader(self, request: Request) -> bool:
        return request.getHeader("Grpc-Metadata-hasleader") == "true"

    def _say(self, request: Request, answer: JSON, streams: bool) -> None:
        body = encode({"result": answer}) + b"\n" if streams else encode(answer)
        if self.cluster.is_unanswered():
            if request in self._open:
                transport: Any = request.transport
                transport.abortConnection()
        elif self.cluster.delay:
            self._later(self.cluster.delay, lambda: self._answer(request, 200, body))
        else:
            self._answer(request, 200, body)

    def _refuse(self, request: Request, refused: Refused, streams: bool) -> None:
        dialect = self.cluster.dialect
        error = (dialect.stream_error if streams else dialect.error)(refused.code, refused.message)
        self._answer(request, dialect.status(refused.code), encode(error))

    def _answer(self, request: Request, status: int, body: bytes) -> None:
        if request in self._open:
            request.setResponseCode(status)
            plain = body[:1] != b"{"
            request.setHeader("Content-Type", "text/plain; charset=utf-8" if plain else "application/json")
            request.setHeader("Content-Length", str(len(body)))
            request.write(body)
            request.finish()

    def _header(self, revision: int | None = None) -> JSON:
        known = self.known
        return without_zeros(
            cluster_id=known.cluster_id,
            member_id=self.id,
            revision=known.revision if revision is None else revision,
            raft_term=self.term,
        )

    def _user(self, request: Request) -> str | None:
        token = request.getHeader("Authorization")
        return self.cluster.access.user_of(token, self.cluster.clock.seconds())

    # Keys.

    def _one(self, request: Request, operation: Operation) -> JSON:
        self._check(request, operation)
        outcome = self.known.apply(operation)
        return {"header": self._header(), **gateway.outcome(outcome)}

    def _check(self, request: Request, *operations: Operation) -> None:
        """(3.4.23 and 3.5.1 let anything pass that is in a transaction within another one; later ones do not.)"""
        user = self._user(request)
        for operation in operations:
            if isinstance(operation, Transaction):
                compared = [Range(each.key, each.end) for each in operation.comparisons]
                self._check(request, *compared, *operation.success, *operation.failure)
            elif operation.key:
                self.cluster.access.check(user, operation)

    def range(self, request: Request, message: JSON) -> JSON:
        return self._one(request, gateway.range_(message))

    def put(self, request: Request, message: JSON) -> JSON:
        return self._one(request, gateway.put(message))

    def delete_range(self, request: Request, message: JSON) -> JSON:
        return self._one(request, gateway.delete_range(message))

    def transact(self, request: Request, message: JSON) -> JSON:
        transaction = gateway.transaction(message)
        self._check(request, transaction)
        transacted = self.cluster.store.transact(transaction)
        return {"header": self._header(), **gateway.outcome(transacted)}

    def compact(self, request: Request, message: JSON) -> JSON:
        self._user(request)
        self.cluster.store.compact(number(message, "revision"))
        return {"header": self._header()}

    # Leases.

    def grant(self, request: Request, message: JSON) -> JSON:
        self._user(request)
        lease_id = number(message, "ID") or self.cluster.next_lease()
        lease = self.cluster.store.grant(lease_id, number(message, "TTL"), self.cluster.clock.seconds())
        return {"header": self._header(), **without_zeros(ID=lease.id, TTL=lease.ttl)}

    def revoke(self, request: Request, message: JSON) -> JSON:
        self._user(request)
        self.cluster.store.revoke(number(message, "ID"))
        return {"header": self._header()}

    def keep_alive(self, request: Request, message: JSON) -> JSON | None:
        lease_id, now, known = number(message, "ID"), self.cluster.clock.seconds(), self.known
        lease = known.leases.get(lease_id)
        if lease is not None and lease.expires <= now:
            # Whether it can be renewed is not known before the leader has looked.
            self.cluster.when_passed(lambda: self._say(request, self.keep_alive(request, message) or {}, True))
            return None
        ttl = 0 if lease is None else known.renew(lease_id, now).ttl
        return {"header": self._header(), **without_zeros(ID=lease_id, TTL=ttl)}

    def time_to_live(self, request: Request, message: JSON) -> JSON:
        lease_id = number(message, "ID")
        lease = self.known.leases.get(lease_id)
        if lease is None:
            return {"header": self._header(), **without_zeros(ID=lease_id, TTL=-1)}
        keys = [gateway.base64(kv.key) for kv in self.known.attached(lease_id)] if message.get("keys") else []
        left = max(int(lease.expires - self.cluster.clock.seconds()), 0)
        return {"header": self._header(), **without_zeros(ID=lease_id, TTL=left, grantedTTL=lease.ttl, keys=keys)}

    def leases(self, request: Request, message: JSON) -> JSON:
        return {"header": self._header(), **without_zeros(leases=[{"ID": str(n)} for n in self.known.leases])}

    # Access.

    def authenticate(self, request: Request, message: JSON) -> JSON:
        name, password = message.get("name", ""), message.get("password", "")
        token = self.cluster.access.authenticate(name, password, self.cluster.clock.seconds())
        return {"header": self._header(), "token": token}

    def administer(self, request: Request, message: JSON) -> JSON:
        access, path = self.cluster.access, request.path.decode()
        access.administer(self._user(request))
        name = message.get("name", "")
        match path.removeprefix("/v3/auth/"):
            case "user/add":
                access.add_user(name, message.get("password", ""))
            case "user/changepw":
                access.change_password(name, message.get("password", ""))
            case "user/delete":
                access.delete_user(name)
            case "user/grant":
                access.grant(message.get("user", ""), message.get("role", ""))
            case "role/add":
                access.add_role(name)
            case "role/delete":
                access.delete_role(message.get("role", ""))
            case "role/grant":
                access.roles[name].append(_permission(message.get("perm") or {}))
            case "enable":
                access.enable()
            case "disable":
                access.disable()
        return {"header": self._header()}

    def status(self, request: Request, message: JSON) -> JSON:
        leader = self if self.leads_alone else self.cluster.leader if not self._knows else None
        about = without_zeros(leader=0 if leader is None else leader.id, raftTerm=self.term)
        return {"header": self._header(), "version": self.cluster.dialect.version, **about}

    # Watching.

    def _watch(self, request: Request, wishes: Sequence[gateway.Watching | None]) -> None:
        if request in self._open and wishes:
            request.setHeader("Content-Type", "application/json")
            request.write(b"")
            for wish in wishes:
                if wish is None:
                    self._write(request, {"result": {"header": self._header(), "watch_id": "-1"}})
                else:
                    self._watch_one(request, wish)

    def _watch_one(self, request: Request, wish: gateway.Watching) -> None:
        try:
            self._check(request, Range(wish.key, wish.end))
        except Refused as refused:
            denied = self.cluster.dialect.watch_refused(refused.code, refused.message)
            self._write(request, {"result": {"header": self._header(), **denied}})
            return
        watcher = _Watcher(request, wish, wish.start or self.known.revision + 1, self._needs_leader(request))
        created = {"header": self._header(), **without_zeros(watch_id=wish.id, created=True)}
        self._write(request, {"result": created})
        self._watchers.append(watcher)
        if watcher.next <= self.known.revision:
            self._catch_up(watcher)

    def publish(self) -> None:
        """Tell those who watch what is new."""
        if not self.is_paused and not self.is_cut_off and not self.cluster.hanging:
            for watcher in list(self._watchers):
                if watcher.next < self.known.compacted:
                    self._cancel(watcher)
                    continue
                for revision, events in self._news(watcher):
                    self._tell_events(watcher, revision, events)

    def _news(self, watcher: _Watcher) -> list[tuple[int, list[Event]]]:
        log = self.known.log
        start = bisect_left(log, watcher.next, key=lambda each: each[0])
        watcher.next = max(watcher.next, self.known.revision + 1)
        return [(revision, [each for each in events if watcher.wants(each)]) for revision, events in log[start:]]

    def _catch_up(self, watcher: _Watcher) -> None:
        """What is past comes in one piece."""
        if watcher.next < self.known.compacted:
            self._cancel(watcher)
        else:
            self._tell_events(watcher, self.known.revision, [e for _, events in self._news(watcher) for e in events])

    def _tell_events(self, watcher: _Watcher, revision: int, events: list[Event]) -> None:
        if events:
            shown = [gateway.event(event, watcher.wish.prev_kv) for event in events]
            head = {"header": self._header(revision), **without_zeros(watch_id=watcher.wish.id)}
            self._tell(watcher, {"result": {**head, "events": shown}})

    def _cancel(self, watcher: _Watcher) -> None:
        """It asks for what is no longer known. The stream stays open, and nothing comes any more."""
        self._watchers.remove(watcher)
        canceled = without_zeros(watch_id=watcher.wish.id, canceled=True, compact_revision=self.known.compacted)
        self._tell(watcher, {"result": {"header": self._header(0), **canceled}})

    def _tell(self, watcher: _Watcher, value: JSON) -> None:
        if not watcher.silent:
            self._write(watcher.request, value)

    def _write(self, request: Request, value: JSON) -> None:
        if request in self._open:
            request.write(encode(value) + b"\n")


def _permission(perm: JSON) -> Permission:
    kind = perm.get("permType") or perm.get("perm_type") or "READ"
    key, end = (b64decode(perm.get(name) or "") for name in ("key", "range_end"))
    return Permission(key, end, kind in ("READ", "READWRITE"), kind in ("WRITE", "READWRITE"))


LOCAL = frozenset({"/v3/maintenance/status", "/v3/watch"})
LEADERS = frozenset({"/v3/lease/keepalive", "/v3/lease/timetolive"})
STREAMS = frozenset({"/v3/lease/keepalive", "/v3/watch"})

_ADMINISTRATION = ("user/add", "user/changepw", "user/delete", "user/grant", "role/add", "role/delete", "role/grant")

HANDLERS: Mapping[str, Handler] = {
    "/v3/kv/range": Member.range,
    "/v3/kv/put": Member.put,
    "/v3/kv/deleterange": Member.delete_range,
    "/v3/kv/txn": Member.transact,
    "/v3/kv/compaction": Member.compact,
    "/v3/lease/grant": Member.grant,
    "/v3/lease/revoke": Member.revoke,
    "/v3/lease/keepalive": Member.keep_alive,
    "/v3/lease/timetolive": Member.time_to_live,
    "/v3/lease/leases": Member.leases,
    "/v3/auth/authenticate": Member.authenticate,
    **{f"/v3/auth/{path}": Member.administer for path in (*_ADMINISTRATION, "enable", "disable")},
    "/v3/maintenance/status": Member.status,
    "/v3/watch": Member.status,
}
