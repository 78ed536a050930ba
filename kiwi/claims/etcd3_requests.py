"""Asking etcd, through the JSON gateway of its v3 API."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from attrs import define, field
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from kiwi.http import HTTPError, Response, request, stream
from kiwi.logs import printable

from .asking import asked_again
from .etcd3_login import Login
from .etcd3_reading import (
    EXHAUSTED,
    INVALID_ARGUMENT,
    NOT_FOUND,
    OUT_OF_RANGE,
    PERMISSION_DENIED,
    Done,
    Found,
    Header,
    Kept,
    KeyValue,
    Malformed,
    Refusal,
    read_answer,
    read_done,
    read_found,
    read_kept,
    read_keys_of_lease,
)
from .rotation import Rotation

T = TypeVar("T")

Document = Mapping[str, Any]

TRY_TIME = 1 / 4
"""A part of the TTL; see Note [Several endpoints] in L{kiwi.claims.etcd2}."""

PAGE = 2000
"""How many keys are read at once."""


class Forgotten(HTTPError):
    """The store has lost its data since. See Note [A store that forgets] in L{kiwi.claims.etcd3}."""


class Compacted(HTTPError):
    """The store no longer knows how things were at that revision."""


class NoLease(HTTPError):
    """There is no such lease."""


def text64(text: str) -> str:
    """Text as the gateway takes it."""
    return b64encode(text.encode()).decode()


# Conditions and steps of transactions.


def if_modified_at(key: str, revision: int) -> Document:
    """The key is as this revision has left it; with 0, there is none."""
    return {"key": text64(key), "target": "MOD", "mod_revision": str(revision)}


def if_modified_since(key: str, revision: int) -> Document:
    """The key is as this revision has left it, or a later one."""
    return {"key": text64(key), "target": "MOD", "result": "GREATER", "mod_revision": str(revision - 1)}


def if_created_at(key: str, revision: int) -> Document:
    """It is the key that this revision made; with 0, there is none."""
    return {"key": text64(key), "target": "CREATE", "create_revision": str(revision)}


def if_none_below(folder: str) -> Document:
    """There is no key that begins with this."""
    return {**if_created_at(folder, 0), "range_end": text64(end_of(folder))}


def if_leased(key: str, lease: int) -> Document:
    """The key ends with this lease."""
    return {"key": text64(key), "target": "LEASE", "lease": str(lease)}


def if_value(key: str, value: str) -> Document:
    return {"key": text64(key), "target": "VALUE", "value": text64(value)}


def put(key: str, value: str, lease: int = 0) -> Document:
    return {"request_put": {"key": text64(key), "value": text64(value), "lease": str(lease)}}


def delete(key: str) -> Document:
    return {"request_delete_range": {"key": text64(key)}}


def read(key: str) -> Document:
    return {"request_range": {"key": text64(key)}}


def within(conditions: Sequence[Document], success: Sequence[Document], failure: Sequence[Document]) -> Document:
    """A transaction as a step of another one. It compares how things were before all of that."""
    return {"request_txn": {"compare": conditions, "success": success, "failure": failure}}


def end_of(folder: str) -> str:
    """The first key after all that begin with this, which ends in a plain character."""
    return folder[:-1] + chr(ord(folder[-1]) + 1)


@define(eq=False)
class Etcd3Requests:
    """
    The requests of one agent. L{HTTPError}, with one printable line, says that there was no answer that tells how
    things stand. See Note [Asked again] in L{kiwi.claims.etcd3}.

    @ivar prefix: of all keys, without a slash at its end.
    @ivar ttl: seconds; bounds how long one endpoint is waited for.
    @ivar forgotten: called when an answer shows that the store has lost its data.
    @ivar latest: what is known of the store: its cluster, and the highest revision that was heard of.
    """

    http: HTTPClient
    stream_http: HTTPClient
    clock: IReactorTime
    endpoints: Sequence[str]
    prefix: str
    ttl: int
    login: Login
    forgotten: Callable[[], None]
    latest: Header | None = field(default=None, init=False)
    rotation: Rotation = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.rotation = Rotation(len(self.endpoints))

    def name(self, place: int) -> str:
        """An endpoint, for people."""
        return printable(self.endpoints[place])

    # What can be asked.

    async def transaction(
        self,
        conditions: Sequence[Document],
        success: Sequence[Document],
        failure: Sequence[Document],
        deadline: float,
    ) -> Done:
        """
        What came of a transaction, which is carried out in one piece by the members that are in the majority, or not at
        all. L{NoLease} where a lease is missing to which a key should be attached.
        """
        # In Go's JSON an absent list is an empty one.
        document = {"compare": conditions, "success": success, "failure": failure}
        _, done = await self._known("/v3/kv/txn", document, deadline, read_done, {NOT_FOUND})
        return done

    async def get(self, key: str, deadline: float) -> KeyValue | None:
        """A key as it is now."""
        _, found = await self._known("/v3/kv/range", {"key": text64(key)}, deadline, read_found)
        return _only(found.kvs)

    async def page(self, after: str | None, revision: int, deadline: float) -> Found:
        """
        Keys under the prefix, as they were at a revision, 0 for now. L{Compacted} where that is not known any more.

        @param after: the last key that was read already.
        """
        folder = f"{self.prefix}/"
        begin = folder if after is None else f"{after}\0"
        document = {
            "key": text64(begin),
            "range_end": text64(end_of(folder)),
            "limit": str(PAGE),
            "revision": str(revision),
        }
        _, found = await self._known("/v3/kv/range", document, deadline, read_found, {OUT_OF_RANGE})
        return found

    async def grant(self, deadline: float) -> tuple[float, Kept]:
        """A new lease that lasts for the TTL, and when it was first asked for."""
        sent, kept = await self._known("/v3/lease/grant", {"TTL": str(self.ttl)}, deadline, read_kept, linear=False)
        if kept.ttl < self.ttl or kept.id == 0:
            raise HTTPError(
                f"{self.name(self.rotation.first)}: a lease of {kept.ttl} s where {self.ttl} s were asked for"
            )
        return sent, kept

    async def keep(self, lease: int, deadline: float) -> tuple[float, Kept]:
        """Let a lease last for its whole TTL again, which is 0 where there is none; and when that was first sent."""
        sent, kept = await self._known("/v3/lease/keepalive", {"ID": str(lease)}, deadline, read_kept, linear=False)
        if kept.id != lease:
            raise HTTPError(f"{self.name(self.rotation.first)}: an answer about another lease")
        return sent, kept

    async def revoke_if_bare(self, lease: int, deadline: float) -> None:
        """End a lease with which no key ends. It does no harm if it is gone already."""
        document = {"ID": str(lease), "keys": True}
        _, keys = await self._ask("/v3/lease/timetolive", document, deadline, read_keys_of_lease)
        if keys == 0:
            await self._ask("/v3/lease/revoke", {"ID": str(lease)}, deadline, lambda raw: None, {NOT_FOUND})

    # How.

    async def _known(
        self,
        path: str,
        document: Document,
        deadline: float,
        read: Callable[[Mapping[str, Any]], T],
        answers: Collection[int] = (),
        linear: bool = True,
    ) -> tuple[float, T]:
        """
        The same as L{_ask}, of an answer that has a header: L{Forgotten} where it comes from a store with another past.

        @param linear: etcd sees to it that such an answer is no older than the question.
        """
        known = self.latest
        sent, said = await self._ask(path, document, deadline, read, answers)
        header: Header = said.header  # type: ignore[attr-defined]
        if known is not None and (header.cluster != known.cluster or (linear and header.revision < known.revision)):
            latest = self.latest
            if latest is None or latest.cluster != header.cluster or latest.revision > header.revision:
                # It is the first that shows it.
                self.latest = header
                raise self.has_forgotten()
            raise self._forgotten()
        self.hear(header.cluster, header.revision)
        return sent, said

    def has_forgotten(self) -> Forgotten:
        """Let it be known that the store has lost its data, of which nobody has heard yet."""
        self.forgotten()
        return self._forgotten()

    def _forgotten(self) -> Forgotten:
        return Forgotten(f"{self.name(self.rotation.first)}: it has lost its data")

    def hear(self, cluster: int, revision: int) -> None:
        """The store has come to this revision."""
        if self.latest is None or (cluster == self.latest.cluster and revision > self.latest.revision):
            self.latest = Header(cluster, revision, 0)

    async def _ask(
        self,
        path: str,
        document: Document,
        deadline: float,
        read: Callable[[Mapping[str, Any]], T],
        answers: Collection[int] = (),
    ) -> tuple[float, T]:
        """
        When the request was first sent, and what an endpoint answered; or L{HTTPError} when none did until C{deadline}.

        @param answers: the codes of refusals that count as answers, and are raised as what they mean.
        """
        body = json.dumps(document, separators=(",", ":")).encode()
        first_sent: float | None = None
        reasons: list[str] = []
        for place, others in self.rotation.in_order():
            now = self.clock.seconds()
            left = deadline - now
            if left <= 0:
                break
            if first_sent is None:
                first_sent = now
            ends = now + (min(left, self.ttl * TRY_TIME) if others else left)
            try:
                said = await self._ask_one(place, path, body, ends)
                if not isinstance(said, Refusal):
                    return first_sent, read(said)
                if said.code in answers:
                    raise (NoLease if said.code == NOT_FOUND else Compacted)(f"{self.name(place)}: {said.message}")
                why = self.explain(said)
            except (NoLease, Compacted):
                raise
            except (HTTPError, Malformed) as error:
                why = str(error)
            self.rotation.failed(place)
            reasons.append(f"{self.name(place)}: {why}")
        raise HTTPError("; ".join(reasons) or "no time was left to ask the store")

    async def _ask_one(self, place: int, path: str, body: bytes, ends: float) -> Mapping[str, Any] | Refusal:
        for is_last in (False, True):
            token = await self.token(place, ends)
            said = await self._send(place, path, body, ends, token)
            if is_last or not (isinstance(said, Refusal) and said.wants_login and self.login.user):
                break
            self.login.refused(token)
        return said

    async def _send(
        self, place: int, path: str, body: bytes, ends: float, token: str | None
    ) -> Mapping[str, Any] | Refusal:
        def send() -> Deferred[Response]:
            return request(
                self.http,
                self.clock,
                "POST",
                self._url(place, path),
                timeout=max(0.0, ends - self.clock.seconds()),
                limit=64 * 2**20,
                data=body,
                headers=_headers(token),
            )

        return read_answer(await asked_again(self.clock, self.ttl, send))

    async def token(self, place: int, ends: float) -> str | None:
        """What to show to an endpoint; C{None} for nothing."""

        def authenticate(document: dict[str, str]) -> Deferred[Mapping[str, Any] | Refusal]:
            body = json.dumps(document).encode()
            return Deferred.fromCoroutine(self._send(place, "/v3/auth/authenticate", body, ends, None))

        return await self.login.token(authenticate)

    def explain(self, refusal: Refusal) -> str:
        """What a refusal says, and what to do where somebody can do something."""
        user = None if self.login.user is None else printable(self.login.user.name)
        advice = ""
        if refusal.code == PERMISSION_DENIED and user is not None:
            advice = f"; give a role of user {user} readwrite on all keys that begin with {printable(self.prefix)}/"
        elif (refusal.wants_login or refusal.code == PERMISSION_DENIED) and user is None:
            advice = "; give --etcd-user and a password"
        elif refusal.code == EXHAUSTED and "space exceeded" in refusal.message:
            advice = "; compact and defragment etcd, then disarm its alarm"
        elif refusal.code == INVALID_ARGUMENT and "too many operations" in refusal.message:
            advice = "; start etcd with --max-txn-ops=128, which is its default, or more"
        elif refusal.code == INVALID_ARGUMENT and refusal.wants_login:
            advice = "; see that authentication is the same on all endpoints"
        return refusal.message + advice

    def follow(
        self,
        place: int,
        token: str | None,
        revision: int,
        line: Callable[[bytes], None],
        overlong: Callable[[int], None],
    ) -> Deferred[Response | None]:
        """
        All changes under the prefix from a revision on, line by line, as L{kiwi.http.stream} tells them. A member that
        is cut off from the majority ends it.
        """
        folder = f"{self.prefix}/"
        create = {"key": text64(folder), "range_end": text64(end_of(folder)), "start_revision": str(revision)}
        return stream(
            self.stream_http,
            self.clock,
            self._url(place, "/v3/watch"),
            opened=lambda response: None,
            line=line,
            overlong=overlong,
            open_timeout=self.ttl * TRY_TIME,
            idle_timeout=self.ttl,
            headers={"Grpc-Metadata-hasleader": "true", **_headers(token)},
            method="POST",
            data=json.dumps({"create_request": create}).encode(),
        )

    def _url(self, place: int, path: str) -> str:
        return self.endpoints[place].rstrip("/") + path


def _headers(token: str | None) -> dict[bytes | str, bytes | str]:
    return {} if token is None else {"Authorization": token}


def _only(kvs: Sequence[KeyValue]) -> KeyValue | None:
    return kvs[0] if kvs else None
