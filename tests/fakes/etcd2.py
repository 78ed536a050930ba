"""
etcd's v2 keys API in memory, as etcd 3.4 and 3.5 serve it with C{--enable-v2}; as far as Kiwi relies on it, and some
way beyond. L{tests.fakes.etcd2tests} compares it with the real ones.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from math import ceil
from posixpath import normpath
from typing import Any
from urllib.parse import parse_qs, unquote

from attrs import define, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

SYNC = 0.5
"""Seconds between the moments when a leader lets keys expire."""

QUEUE = 100
"""Events that etcd keeps for a watcher which does not read them; with one more it forgets the watcher."""

HISTORY = 1000

FIRST_INDEX = 3
"""The index of a new store, which has written something for itself already."""

MESSAGES = {
    100: (404, "Key not found"),
    101: (412, "Compare failed"),
    102: (403, "Not a file"),
    104: (400, "Not a directory"),
    105: (412, "Key already exists"),
    107: (403, "Root is read only"),
    108: (403, "Directory not empty"),
    201: (400, "PrevValue is Required in POST form"),
    202: (400, "The given TTL in POST form is not a number"),
    203: (400, "The given index in POST form is not a number"),
    209: (400, "Invalid field"),
    211: (400, "Value provided on refresh"),
    401: (400, "The event in requested index is outdated and cleared"),
}
"""The status and the message of each error code."""

TRUTHS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False, "": False}


class _Refused(Exception):
    def __init__(self, code: int, cause: str, index: int | None = None) -> None:
        super().__init__(code, cause)
        self.code, self.cause, self.index = code, cause, index


@define(eq=False)
class _Node:
    key: str
    created: int
    modified: int
    value: str = ""
    children: dict[str, _Node] | None = None
    expires: float | None = None

    def walk(self) -> Iterator[_Node]:
        """Everything below, the deepest first, and then this."""
        for child in list((self.children or {}).values()):
            yield from child.walk()
        yield self


@frozen
class _Event:
    action: str
    key: str
    index: int
    text: bytes
    of_folder: bool


@define(eq=False)
class _Watcher:
    request: Request
    key: str
    recursive: bool
    stream: bool
    since: int
    queued: int | None = None


@frozen
class _Query:
    """The arguments of a request: a form in its body comes before what is in the URL."""

    _values: Mapping[str, list[str]]

    def text(self, name: str) -> str:
        return self._values.get(name, [""])[0]

    def given(self, name: str) -> bool:
        return name in self._values

    def truth(self, name: str) -> bool:
        try:
            return TRUTHS[self.text(name).lower()]
        except KeyError:
            quoted = name if name == "prevExist" else f'"{name}"'
            raise _Refused(209, f"invalid value for {quoted}", 0) from None

    def number(self, name: str, code: int) -> int | None:
        text = self.text(name)
        if not text:
            return None
        if not (text.isascii() and text.isdigit()):
            raise _Refused(code, f'invalid value for "{name}"', 0)
        return int(text)


class FakeEtcd2(Resource):
    """
    The keys API of one server, under simulated or real time; and what may go wrong with one.

    @ivar requests: what was asked, such as C{PUT /v2/keys/kiwi/x?ttl=5}; the last thousands.
    @ivar hanging: requests are read, and neither carried out nor answered. What was asked so far is carried out, too
        late, by L{thaw}.
    @ivar delay: seconds that each answer takes to leave, once the request is carried out.
    """

    isLeaf = True

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__()
        self.clock = clock
        self.requests: deque[str] = deque(maxlen=10_000)
        self.hanging = False
        self.delay = 0.0
        self._frozen: list[Request] = []
        self._failures: deque[tuple[int, bytes]] = deque()
        self._watchers: list[_Watcher] = []
        self._open: list[Request] = []
        self._syncing: IDelayedCall | None = None
        self._empty()

    def _empty(self) -> None:
        self.index = FIRST_INDEX
        self._root = _Node("", 0, 0, children={})
        self._history: deque[_Event] = deque(maxlen=HISTORY)

    # What may go wrong.

    def fail_next(self, requests: int, status: int = 500, body: bytes | None = None) -> None:
        """Answer that many requests with this status, and do nothing."""
        if body is None:
            body = (
                b'{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request timed out","index":0}\n'
            )
        self._failures.extend([(status, body)] * requests)

    def thaw(self) -> None:
        """End a hang: carry out what was asked meanwhile, also for those who no longer wait."""
        self.hanging = False
        frozen, self._frozen = self._frozen, []
        for request in frozen:
            self._carry_out(request)

    def drop_streams(self) -> None:
        """Break every connection on which somebody waits."""
        for request in list(self._open):
            transport: Any = request.transport
            transport.abortConnection()

    def end_streams(self) -> None:
        """End every answer for which somebody waits, in order."""
        for request in list(self._open):
            request.finish()

    def lose_data(self) -> None:
        """Be a new store, with none of the data, and an index that begins again."""
        self._empty()
        self._watchers.clear()
        self.drop_streams()

    def send(self, line: bytes) -> None:
        """Give every stream this line, whatever it is."""
        for watcher in self._watchers:
            watcher.request.write(line + b"\n")

    def stop(self) -> None:
        """Leave no delayed call."""
        if self._syncing is not None:
            self._syncing.cancel()
            self._syncing = None

    # HTTP.

    def render(self, request: Request) -> int:
        method, uri = request.method.decode("ascii"), request.uri.decode("ascii")
        self.requests.append(f"{method} {uri}")
        self._open.append(request)
        request.notifyFinish().addBoth(lambda _: self._closed(request))
        if self._failures:
            status, body = self._failures.popleft()
            self._answer(request, status, body, 0)
        elif self.hanging:
            self._frozen.append(request)
        else:
            self._carry_out(request)
        return NOT_DONE_YET

    def _closed(self, request: Request) -> None:
        self._open.remove(request)
        self._watchers = [watcher for watcher in self._watchers if watcher.request is not request]

    def _carry_out(self, request: Request) -> None:
        path = unquote(request.path.decode("ascii"))
        if path in ("/version", "/health"):
            return self._answer(request, 200, b'{"etcdserver":"3.4.0","health":"true"}\n', None)
        if not path.startswith("/v2/keys"):
            return self._answer(request, 404, b"404 page not found\n", None)
        key = normpath("/" + path.removeprefix("/v2/keys").strip("/"))
        key = "" if key == "/" else key
        query = _Query(self._arguments(request))
        try:
            perform = {b"GET": self._get, b"PUT": self._put, b"DELETE": self._delete}.get(request.method)
            if perform is None:
                return self._answer(request, 405, b"Method Not Allowed\n", None)
            if perform == self._get and query.truth("wait"):
                recursive, stream, wanted = (
                    query.truth("recursive"),
                    query.truth("stream"),
                    query.number("waitIndex", 203),
                )
                return self._later(lambda: self._wait(request, key, recursive, stream, wanted))
            status, body = perform(key, query)
            index = self.index
        except _Refused as refused:
            status, message = MESSAGES[refused.code]
            index = self.index if refused.index is None else refused.index
            error = {"errorCode": refused.code, "message": message, "cause": refused.cause, "index": index}
            body = _line(error)
        return self._later(lambda: self._answer(request, status, body, index))

    def _later(self, answer: Callable[[], None]) -> None:
        if self.delay:
            self.clock.callLater(self.delay, answer)
        else:
            answer()

    def _arguments(self, request: Request) -> Mapping[str, list[str]]:
        values = parse_qs(request.uri.partition(b"?")[2].decode("ascii"), keep_blank_values=True)
        kind = request.getHeader("Content-Type") or ""
        if request.method == b"PUT" and kind.startswith("application/x-www-form-urlencoded"):
            body: Any = request.content
            values |= parse_qs(body.read().decode("ascii"), keep_blank_values=True)
        return values

    def _head(self, request: Request, status: int, index: int | None) -> None:
        request.setResponseCode(status)
        if index is None:
            request.setHeader("Content-Type", "text/plain; charset=utf-8")
        else:
            request.setHeader("Content-Type", "application/json")
            request.setHeader("X-Etcd-Cluster-Id", "cdf818194e3a8c32")
            request.setHeader("X-Etcd-Index", str(index))
            request.setHeader("X-Raft-Index", str(index + 2))
            request.setHeader("X-Raft-Term", "2")

    def _answer(self, request: Request, status: int, body: bytes, index: int | None) -> None:
        if request not in self._open:
            return
        self._head(request, status, index)
        request.setHeader("Content-Length", str(len(body)))
        request.write(body)
        request.finish()

    # The store.

    def _find(self, key: str) -> _Node:
        node = self._root
        for name in filter(None, key.split("/")):
            child = None if node.children is None else node.children.get(name)
            if child is None:
                raise _Refused(100, key)
            node = child
        return node

    def _shown(self, node: _Node) -> dict[str, Any]:
        """The node alone, as etcd prints it. What is empty is left out; but a key's value is not."""
        shown: dict[str, Any] = {"key": node.key} if node.key else {}
        shown.update({"value": node.value} if node.children is None else {"dir": True})
        if node.expires is not None:
            shown["expiration"] = _moment(node.expires)
            left = ceil(node.expires - self.clock.seconds())
            shown.update({"ttl": left} if left > 0 else {})
        if node.key:
            shown.update({"modifiedIndex": node.modified, "createdIndex": node.created})
        return shown

    def _listed(self, node: _Node, deep: bool, top: bool = True) -> dict[str, Any]:
        shown = self._shown(node)
        if node.children is None or not (deep or top):
            return shown
        nodes = [
            self._listed(child, deep, top=False)
            for name, child in sorted(node.children.items())
            if not name.startswith("_")
        ]
        indexes: dict[str, Any] = {name: shown.pop(name) for name in ("modifiedIndex", "createdIndex") if name in shown}
        shown.update({"nodes": nodes} if nodes else {})
        shown.update(indexes)
        return shown

    def _get(self, key: str, query: _Query) -> tuple[int, bytes]:
        recursive = query.truth("recursive")
        return 200, _line({"action": "get", "node": self._listed(self._find(key), recursive)})

    def _put(self, key: str, query: _Query) -> tuple[int, bytes]:
        ttl, prev_index = query.number("ttl", 202), query.number("prevIndex", 203) or 0
        value, prev_value = query.text("value"), query.text("prevValue")
        if query.given("prevValue") and not prev_value:
            raise _Refused(201, '"prevValue" cannot be empty', 0)
        folder, refresh, exists = query.truth("dir"), query.truth("refresh"), query.truth("prevExist")
        if refresh and value:
            raise _Refused(211, "A value was provided on a refresh", 0)
        expires = None if ttl is None else self.clock.seconds() + ttl
        if query.given("prevExist") and not exists:
            node, prev = self._create(key, folder, value, expires, replace=False)
            return 201, self._changed("create", node, prev)
        if prev_value or prev_index:
            node = self._compare(key, prev_value, prev_index)
            action = "compareAndSwap"
        elif exists:
            node = self._find(key)
            action = "update"
            if node.children is not None and value:
                raise _Refused(102, key)
        else:
            if refresh:
                value = self._find(key).value
            node, prev = self._create(key, folder, value, expires, replace=True)
            return 200 if prev else 201, self._changed("set", node, prev, silent=refresh)
        prev = self._shown(node)
        self.index += 1
        node.modified, node.expires = self.index, expires
        if node.children is None and not refresh:
            node.value = value
        return 200, self._changed(action, node, prev, silent=refresh)

    def _create(
        self, key: str, folder: bool, value: str, expires: float | None, replace: bool
    ) -> tuple[_Node, dict[str, Any] | None]:
        if not key:
            raise _Refused(107, "/")
        *above, name = key.strip("/").split("/")
        parent, index, prev = self._root, self.index + 1, None
        for part in above:
            if parent.children is None:
                break
            if part not in parent.children:
                parent.children[part] = _Node(f"{parent.key}/{part}", index, index, children={})
            parent = parent.children[part]
        if parent.children is None:
            raise _Refused(104, parent.key)
        old = parent.children.get(name)
        if old is not None:
            if not replace:
                raise _Refused(105, key)
            if old.children is not None:
                raise _Refused(102, key)
            prev = self._shown(old)
        self.index = index
        node = _Node(key, index, index, "" if folder else value, {} if folder else None, expires)
        parent.children[name] = node
        return node, prev

    def _compare(self, key: str, value: str, index: int) -> _Node:
        node = self._find(key)
        if node.children is not None:
            raise _Refused(102, key)
        of_value, of_index = f"[{value} != {node.value}]", f"[{index} != {node.modified}]"
        wrong_value, wrong_index = value not in ("", node.value), index not in (0, node.modified)
        if wrong_value or wrong_index:
            causes = (of_value, of_index) if wrong_value and wrong_index else (of_value if wrong_value else of_index,)
            raise _Refused(101, " ".join(causes))
        return node

    def _delete(self, key: str, query: _Query) -> tuple[int, bytes]:
        recursive = query.truth("recursive")
        folder = query.truth("dir") or recursive
        prev_value, prev_index = query.text("prevValue"), query.number("prevIndex", 203) or 0
        if query.given("prevValue") and not prev_value:
            raise _Refused(201, '"prevValue" cannot be empty', 0)
        if not key:
            raise _Refused(107, "/")
        action, node = "delete", self._find(key)
        if prev_value or prev_index:
            action, node = "compareAndDelete", self._compare(key, prev_value, prev_index)
        elif node.children is not None and not folder:
            raise _Refused(102, key)
        elif node.children and not recursive:
            raise _Refused(108, key)
        return 200, self._remove(action, node)

    def _remove(self, action: str, node: _Node) -> bytes:
        self.index += 1
        prev = self._shown(node)
        parent, _, name = node.key.rpartition("/")
        siblings = self._find(parent).children
        assert siblings is not None
        del siblings[name]
        shown = {"key": node.key, **({} if node.children is None else {"dir": True})}
        shown.update({"modifiedIndex": self.index, "createdIndex": node.created})
        event = _Event(
            action, node.key, self.index, _line({"action": action, "node": shown, "prevNode": prev}), "dir" in prev
        )
        # Who watches just a key that goes hears of it here, and a second time when the event is published; except for
        # those that go with a folder above, of which there is no event of their own.
        for gone in node.walk():
            for watcher in list(self._watchers):
                if watcher.key == gone.key:
                    self._tell(watcher, event)
        self._publish(event)
        return event.text

    def _changed(self, action: str, node: _Node, prev: dict[str, Any] | None, silent: bool = False) -> bytes:
        self._sync_soon()
        text = _line({"action": action, "node": self._shown(node), **({"prevNode": prev} if prev else {})})
        if not silent:
            self._publish(_Event(action, node.key, self.index, text, of_folder=False))
        return text

    # Time.

    def _sync_soon(self) -> None:
        if self._syncing is None and any(node.expires is not None for node in self._root.walk()):
            self._syncing = self.clock.callLater(SYNC - self.clock.seconds() % SYNC, self._sync)

    def _sync(self) -> None:
        self._syncing = None
        now = self.clock.seconds()
        due = [node for node in self._root.walk() if node.expires is not None and node.expires <= now]
        # Nobody reads meanwhile: etcd holds the lock of the store.
        for watcher in self._watchers:
            watcher.queued = 0
        for node in sorted(due, key=lambda node: node.expires or 0.0):
            if self._is_there(node):
                self._remove("expire", node)
        for watcher in self._watchers:
            watcher.queued = None
        self._sync_soon()

    def _is_there(self, node: _Node) -> bool:
        try:
            return self._find(node.key) is node
        except _Refused:
            return False

    # Watching.

    def _wait(self, request: Request, key: str, recursive: bool, stream: bool, wait_index: int | None) -> None:
        if request not in self._open:
            return
        wanted = wait_index or self.index + 1
        watcher = _Watcher(request, key, recursive, stream, wanted)
        if self._history and len(self._history) == HISTORY and wanted < self._history[0].index:
            cause = f"the requested history has been cleared [{self._history[0].index}/{wanted}]"
            error = {"errorCode": 401, "message": MESSAGES[401][1], "cause": cause, "index": self.index}
            self._answer(request, 400, _line(error), self.index)
            return
        self._head(request, 200, self.index)
        request.write(b"")
        for event in self._history:
            if event.index >= wanted and self._concerns(watcher, event):
                # The oddity of the real ones: such a stream gets this one event, and nothing ever after.
                self._tell(watcher, event)
                return
        self._watchers.append(watcher)

    def _concerns(self, watcher: _Watcher, event: _Event) -> bool:
        if event.key == watcher.key or (event.of_folder and watcher.key.startswith(f"{event.key}/")):
            return True
        below = event.key.removeprefix(f"{watcher.key}/")
        return watcher.recursive and below != event.key and not any(part.startswith("_") for part in below.split("/"))

    def _publish(self, event: _Event) -> None:
        self._history.append(event)
        for watcher in list(self._watchers):
            # Those below a folder that is gone have heard of it already.
            below = watcher.key.startswith(f"{event.key}/")
            if not below and event.index >= watcher.since and self._concerns(watcher, event):
                self._tell(watcher, event)

    def _tell(self, watcher: _Watcher, event: _Event) -> None:
        if watcher.queued is not None:
            if watcher.queued == QUEUE:
                # The connection stays open, and silent for ever.
                self._watchers = [other for other in self._watchers if other is not watcher]
                return
            watcher.queued += 1
        if watcher.request in self._open:
            watcher.request.write(event.text)
            if not watcher.stream:
                watcher.request.finish()


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8") + b"\n"


def _moment(seconds: float) -> str:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
