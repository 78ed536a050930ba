"""Requests and answers of the store as etcd's JSON gateway writes them."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from attrs import frozen

from .store import (
    INVALID,
    TARGETS,
    Comparison,
    Deleted,
    DeleteRange,
    Done,
    Event,
    Found,
    KeyValue,
    Operation,
    Outcome,
    Put,
    Range,
    Refused,
    Transacted,
    Transaction,
    Written,
)

JSON = Mapping[str, Any]

STATUSES = {2: 500, 3: 400, 5: 404, 7: 403, 9: 400, 11: 400, 14: 503, 16: 401}
REASONS = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 500: "Internal Server Error"}
NAMES = {3: "InvalidArgument", 7: "PermissionDenied", 16: "Unauthenticated"}
"""gRPC's names of its codes."""


@frozen
class Dialect:
    """
    How one version of etcd answers. All are as they were measured; 3.6 has another gateway than 3.4 and 3.5.
    """

    version: str

    @property
    def minor(self) -> int:
        return int(self.version.split(".")[1])

    def status(self, code: int) -> int:
        return 412 if code == 9 and self.minor == 4 else STATUSES[code]

    def error(self, code: int, message: str) -> JSON:
        if self.minor >= 6:
            return {"code": code, "message": message}
        return {"error": message, "code": code, "message": message}

    def unknown_path(self) -> tuple[int, bytes]:
        """The status and body for a path below C{/v3/} that there is not."""
        return 404, encode(self.error(5, "Not Found")) if self.minor >= 6 else b"Not Found\n"

    def wrong_method(self) -> tuple[int, bytes]:
        """The status and body for what is no POST."""
        if self.minor >= 6:
            return 501, encode(self.error(12, "Method Not Allowed"))
        return 405, b"Method Not Allowed\n"

    def stream_error(self, code: int, message: str) -> JSON:
        """What a stream ends with, or has instead of anything else."""
        if self.minor >= 6:
            return {"error": {"code": code, "message": message}}
        status = self.status(code)
        reason = REASONS.get(status, "Service Unavailable")
        return {"error": {"grpc_code": code, "http_code": status, "message": message, "http_status": reason}}

    def watch_refused(self, code: int, message: str) -> JSON:
        """What a watch says that is not allowed."""
        if self.minor == 4:
            return {"watch_id": "-1", "created": True, "canceled": True, "cancel_reason": _rpc(code, message)}
        # From 3.5 on, whoever says nobody or somebody unknown is just not permitted.
        return {"created": True, "canceled": True, "cancel_reason": _rpc(7, "etcdserver: permission denied")}


def _rpc(code: int, message: str) -> str:
    return f"rpc error: code = {NAMES[code]} desc = {message}"


# Requests.


@cache
def _snake(name: str) -> str:
    return name if name.isupper() else re.sub("[A-Z]", lambda found: "_" + found[0].lower(), name)


def _named(value: Any) -> Any:
    """Names may be written in either way."""
    if isinstance(value, dict):
        return {_snake(name): _named(part) for name, part in value.items()}
    return [_named(part) for part in value] if isinstance(value, list) else value


def requests(body: bytes) -> Iterator[JSON]:
    """The JSON values of a body, of which a stream may have several."""
    text, decoder = body.decode("utf-8", errors="replace").strip(), json.JSONDecoder()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except ValueError:
            raise Refused(INVALID, "unexpected EOF") from None
        yield _named(value) if isinstance(value, dict) else {}
        text = text[end:].strip()


def number(request: JSON, name: str) -> int:
    value = request.get(name) or 0
    if not re.fullmatch("-?[0-9]+", str(value)):
        raise Refused(INVALID, f"invalid character {str(value)[:1]!r} looking for beginning of value")
    return int(value)


def octets(request: JSON, name: str) -> bytes:
    value = request.get(name) or ""
    if not isinstance(value, str):
        raise Refused(INVALID, "json: cannot unmarshal number into Go value of type []uint8")
    try:
        return b64decode(value, validate=True)
    except ValueError:
        raise Refused(INVALID, "illegal base64 data at input byte 0") from None


def put(request: JSON) -> Put:
    return Put(
        octets(request, "key"),
        octets(request, "value"),
        number(request, "lease"),
        bool(request.get("prev_kv")),
        bool(request.get("ignore_value")),
        bool(request.get("ignore_lease")),
    )


def range_(request: JSON) -> Range:
    return Range(
        octets(request, "key"),
        octets(request, "range_end"),
        number(request, "revision"),
        number(request, "limit"),
        bool(request.get("keys_only")),
        bool(request.get("count_only")),
        number(request, "min_mod_revision"),
        number(request, "max_mod_revision"),
        number(request, "min_create_revision"),
        number(request, "max_create_revision"),
    )


def delete_range(request: JSON) -> DeleteRange:
    return DeleteRange(octets(request, "key"), octets(request, "range_end"), bool(request.get("prev_kv")))


def transaction(request: JSON) -> Transaction:
    return Transaction(
        [_comparison(each) for each in request.get("compare") or ()],
        [_operation(each) for each in request.get("success") or ()],
        [_operation(each) for each in request.get("failure") or ()],
    )


OPERATIONS: Mapping[str, Callable[[JSON], Operation]] = {
    "request_put": put,
    "request_range": range_,
    "request_delete_range": delete_range,
    "request_txn": transaction,
}


def _operation(request: JSON) -> Operation:
    for kind, read in OPERATIONS.items():
        if request.get(kind) is not None:
            return read(request[kind])
    raise Refused(INVALID, "etcdserver: key not found")


def _comparison(request: JSON) -> Comparison:
    target, result = request.get("target") or "VERSION", request.get("result") or "EQUAL"
    if target not in TARGETS:
        raise Refused(INVALID, f'unknown value "{target}" for enum etcdserverpb.Compare_CompareTarget')
    if result not in ("EQUAL", "NOT_EQUAL", "GREATER", "LESS"):
        raise Refused(INVALID, f'unknown value "{result}" for enum etcdserverpb.Compare_CompareResult')
    name = TARGETS[target]
    wanted = octets(request, name) if target == "VALUE" else number(request, name)
    return Comparison(octets(request, "key"), octets(request, "range_end"), target, result, wanted)


@frozen
class Watching:
    """
    What a watch is asked for.

    @ivar start: the first revision that it is to tell of; 0 for what is new.
    @ivar unwanted: whether these are deletions.
    """

    key: bytes
    end: bytes
    start: int
    id: int
    prev_kv: bool
    unwanted: frozenset[bool]


def watching(request: JSON) -> Watching | None:
    """C{None} for what is no wish for a watch."""
    wanted = request.get("create_request")
    return wanted and Watching(
        octets(wanted, "key") or b"\0",
        octets(wanted, "range_end"),
        number(wanted, "start_revision"),
        number(wanted, "watch_id"),
        bool(wanted.get("prev_kv")),
        frozenset(each == "NODELETE" for each in wanted.get("filters") or ()),
    )


# Answers.


def base64(value: bytes) -> str:
    return b64encode(value).decode()


def without_zeros(**values: Any) -> dict[str, Any]:
    """What is zero, empty or false is left out; numbers are texts, and octets base64."""
    shown: dict[str, Any] = {}
    for name, value in values.items():
        if value or isinstance(value, dict):
            shown[name] = value
            if isinstance(value, bytes):
                shown[name] = base64(value)
            elif isinstance(value, int) and not isinstance(value, bool):
                shown[name] = str(value)
    return shown


def key_value(kv: KeyValue) -> JSON:
    return without_zeros(
        key=kv.key,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        value=kv.value,
        lease=kv.lease,
    )


def outcome(result: Outcome) -> JSON:
    match result:
        case Found(kvs=kvs, count=count, more=more):
            return without_zeros(kvs=[key_value(kv) for kv in kvs], more=more, count=count)
        case Written(prev=prev):
            return without_zeros(prev_kv=prev and key_value(prev))
        case Deleted(count=count, prevs=prevs):
            return without_zeros(deleted=count, prev_kvs=[key_value(kv) for kv in prevs])
        case Transacted(succeeded=succeeded, done=done):
            return without_zeros(succeeded=succeeded, responses=[response(each) for each in done])


_KINDS = {
    Found: "response_range",
    Written: "response_put",
    Deleted: "response_delete_range",
    Transacted: "response_txn",
}


def response(done: Done) -> JSON:
    header = {} if isinstance(done.outcome, Transacted) else without_zeros(revision=done.revision)
    return {_KINDS[type(done.outcome)]: {"header": header, **outcome(done.outcome)}}


def event(event: Event, prev_kv: bool) -> JSON:
    return without_zeros(
        type="DELETE" if event.is_delete else "",
        kv=key_value(event.kv),
        prev_kv=event.prev and key_value(event.prev) if prev_kv else None,
    )


def encode(value: JSON) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
