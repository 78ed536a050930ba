"""
What etcd says through the JSON gateway of its v3 API. Pure; nothing is taken on trust.

The shapes are those of C{rpc.proto} and C{kv.proto} as the gateway writes them: keys and values in base64, 64-bit
numbers as text, and nothing that is zero or empty. Errors carry the codes of gRPC.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from kiwi.http import Response
from kiwi.logs import printable

from .records import parsed

INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, EXHAUSTED = 3, 5, 7, 8
NOT_NOW, OUT_OF_RANGE, UNAUTHENTICATED = 9, 11, 16
"""Codes of gRPC (L{https://grpc.io/docs/guides/status-codes/}) for what Kiwi tells apart."""

_NUMBER = re.compile(r"-?[0-9]{1,20}")

_LOGIN = ("invalid auth token", "revision of auth store is old", "user name is empty")
"""What members say of a request that has no valid token; some versions with the code of a malformed request."""


class Malformed(ValueError):
    """It is not what etcd would say. The text is one printable line."""


@frozen
class Header:
    """
    What every answer tells of who gave it.

    @ivar cluster: the cluster's id, which stays for as long as its data does.
    @ivar revision: of the last change that the member knew of.
    @ivar term: the number of the election that the last change came from, as far as the member knew.
    """

    cluster: int
    revision: int
    term: int


@frozen
class KeyValue:
    """
    A key as it is.

    @ivar created: the revision that made it.
    @ivar modified: the revision that changed it last.
    @ivar lease: the lease with which it ends; 0 for none.
    """

    key: str
    value: bytes
    created: int
    modified: int
    lease: int

    @property
    def text(self) -> str | None:
        """The value, if it is text."""
        try:
            return self.value.decode("utf-8")
        except UnicodeDecodeError:
            return None


@frozen
class KeyEvent:
    """A change to one key; of one that is gone, only its name and the revision are there."""

    kv: KeyValue
    gone: bool


@frozen
class Refusal:
    """
    Etcd does not do what it is asked for.

    @ivar code: of gRPC; 0 where it gave none.
    @ivar message: printable.
    """

    code: int
    message: str

    @property
    def wants_login(self) -> bool:
        """Whether it may do it for somebody who has just given a password."""
        return self.code == UNAUTHENTICATED or any(text in self.message for text in _LOGIN)


@frozen
class Found:
    """
    What was found under some keys.

    @ivar more: there is more of it, after the last of these.
    """

    header: Header
    kvs: Sequence[KeyValue]
    more: bool = False


@frozen
class Part:
    """
    What came of a transaction within another one.

    @ivar succeeded: all conditions held.
    @ivar found: what each of the reads in it has found, in their order.
    """

    succeeded: bool
    found: Sequence[Sequence[KeyValue]] = ()


@frozen
class Done:
    """
    What came of a transaction.

    @ivar succeeded: all conditions held.
    @ivar found: what each of the reads in it has found, in their order.
    @ivar parts: what came of each of the transactions in it, in their order.
    """

    header: Header
    succeeded: bool
    found: Sequence[Sequence[KeyValue]] = ()
    parts: Sequence[Part] = ()


@frozen
class Kept:
    """
    A lease.

    @ivar ttl: in seconds; 0 where there is no such lease.
    """

    header: Header
    id: int
    ttl: int


@frozen
class Told:
    """
    A message of a watch.

    @ivar cancelled: why etcd ends it, printable; C{None} where it goes on.
    @ivar compacted: the first revision that etcd still knows, where it was asked for an earlier one; 0 otherwise.
    """

    header: Header
    events: Sequence[KeyEvent] = ()
    created: bool = False
    cancelled: str | None = None
    compacted: int = 0


def _object(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = raw.get(name)
    if not isinstance(value, dict):
        raise Malformed(f"an answer without a valid {name}")
    return value


def _objects(raw: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    values = raw.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise Malformed(f"an answer without valid {name}")
    return values


def _number(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name, 0)
    if type(value) is int:
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return int(value)
    raise Malformed(f"its {name} is no number")


def _bytes(raw: Mapping[str, Any], name: str) -> bytes:
    value = raw.get(name, "")
    if not isinstance(value, str):
        raise Malformed(f"its {name} is no text")
    try:
        return b64decode(value, validate=True)
    except ValueError:
        raise Malformed(f"its {name} is not base64") from None


def _header(raw: Mapping[str, Any]) -> Header:
    header = _object(raw, "header")
    return Header(_number(header, "cluster_id"), _number(header, "revision"), _number(header, "raft_term"))


def _key_value(raw: Mapping[str, Any]) -> KeyValue:
    key = _bytes(raw, "key").decode("utf-8", "backslashreplace")
    if not key:
        raise Malformed("a key without a name")
    return KeyValue(
        key,
        _bytes(raw, "value"),
        _number(raw, "create_revision"),
        _number(raw, "mod_revision"),
        _number(raw, "lease"),
    )


def _refusal(raw: Mapping[str, Any]) -> Refusal | None:
    """What an error says: one at the top of a body, or one within a stream. Each version has another form of both."""
    inner = raw.get("error")
    error = inner if isinstance(inner, dict) else raw
    message = error.get("message", inner)
    code = error.get("code", error.get("grpc_code", 0))
    if not isinstance(message, str) or type(code) is not int:
        return None
    return Refusal(code, printable(message))


def read_answer(response: Response) -> Mapping[str, Any] | Refusal:
    """The document that etcd answers with, or why it refuses. Raises L{Malformed} for what is neither."""
    try:
        # A stream of which one message was asked for is one line.
        raw = parsed(response.body.partition(b"\n")[0])
    except ValueError:
        raw = None
    if isinstance(raw, dict):
        refusal = _refusal(raw) if response.status != 200 or "error" in raw else None
        if refusal is not None:
            return refusal
        if response.status == 200:
            result = raw.get("result", raw)
            if isinstance(result, dict):
                return result
    if response.status == 404:
        raise Malformed("status 404: it has no v3 API in JSON; give an etcd 3.4 to 3.6 with its gRPC gateway")
    if response.status == 400 and b"CommonName" in response.body:
        # Seen with 3.4 and 3.5 where both --client-cert-auth and authentication are on.
        raise Malformed(
            "status 400: where there are users, API v3 takes no client certificate with a common name (CN); "
            "give --etcd-cert without one"
        )
    raise Malformed("an answer that is no JSON object" if response.status == 200 else f"status {response.status}")


def read_found(raw: Mapping[str, Any]) -> Found:
    """The answer to a range request."""
    return Found(_header(raw), [_key_value(kv) for kv in _objects(raw, "kvs")], raw.get("more") is True)


def read_done(raw: Mapping[str, Any]) -> Done:
    """The answer to a transaction."""
    parts = [_part(_object(each, "response_txn")) for each in _objects(raw, "responses") if "response_txn" in each]
    whole = _part(raw)
    return Done(_header(raw), whole.succeeded, whole.found, parts)


def _part(raw: Mapping[str, Any]) -> Part:
    found = [
        [_key_value(kv) for kv in _objects(_object(each, "response_range"), "kvs")]
        for each in _objects(raw, "responses")
        if "response_range" in each
    ]
    return Part(raw.get("succeeded") is True, found)


def read_kept(raw: Mapping[str, Any]) -> Kept:
    """The answer about a lease: that it was made, or goes on."""
    ttl = _number(raw, "TTL")
    return Kept(_header(raw), _number(raw, "ID"), max(0, ttl))


def read_keys_of_lease(raw: Mapping[str, Any]) -> int:
    """How many keys end with a lease."""
    keys = raw.get("keys")
    return len(keys) if isinstance(keys, list) else 0


def read_token(raw: Mapping[str, Any]) -> str:
    """What a password was exchanged for."""
    token = raw.get("token")
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
        raise Malformed("an answer without a valid token")
    return token


def read_told(line: bytes) -> Told | Refusal:
    """A line of a watch. Raises L{Malformed} for what is none."""
    try:
        raw = parsed(line)
    except ValueError:
        raise Malformed("a line that is no JSON") from None
    if not isinstance(raw, dict):
        raise Malformed("a line that is no JSON object")
    if "error" in raw:
        refusal = _refusal(raw)
        if refusal is None:
            raise Malformed("an error that says nothing")
        return refusal
    result = _object(raw, "result")
    events = [
        KeyEvent(_key_value(_object(event, "kv")), event.get("type") == "DELETE")
        for event in _objects(result, "events")
    ]
    reason = result.get("cancel_reason")
    cancelled = printable(reason or "it does not say why") if result.get("canceled") is True else None
    return Told(_header(result), events, result.get("created") is True, cancelled, _number(result, "compact_revision"))
