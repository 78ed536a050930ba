"""
What etcd's v2 keys API does, as far as Kiwi relies on it. The real ones and the one in memory run this suite, so that
the latter cannot drift.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from kiwi.http import Response, request, stream

from .worlds import World


@define(eq=False)
class Server:
    """
    The server under test, and where in it a test may write.

    @ivar prefix: a key that no other test uses.
    """

    world: World
    endpoint: str
    prefix: str

    def url(self, path: str) -> str:
        return f"{self.endpoint}/v2/keys{self.prefix}{path}"

    async def ask(self, method: str, path: str, form: dict[str, str] | None = None) -> Response:
        return await self.world.of(
            request(self.world.http, self.world.clock, method, self.url(path), timeout=30, data=form)
        )

    async def said(self, method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, Any]:
        """The status, and the body in a form that is the same wherever and whenever the test runs."""
        response = await self.ask(method, path, form)
        return response.status, self.plain(response.body)

    def plain(self, body: bytes) -> Any:
        """JSON with keys below the prefix, and without what depends on when and where: indexes and moments."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                moving = ("expiration", "ttl", "modifiedIndex", "createdIndex", "index")
                return {name: plain(part) for name, part in value.items() if name not in moving}
            if isinstance(value, list):
                return sorted(map(plain, value), key=lambda part: str(part.get("key")))
            if isinstance(value, str):
                # An index is part of some causes.
                return re.sub(r"\b\d+\]", "N]", value.replace(self.prefix, ""))
            return value

        return plain(json.loads(body))


@define(eq=False)
class Stream:
    """One that follows events."""

    server: Server
    opened: Response | None = None
    lines: list[bytes] = field(factory=list)
    ended: list[object] = field(factory=list)
    _following: Deferred[Any] | None = None

    async def open(self, path: str, case: TestCase) -> Stream:
        world = self.server.world

        def heard(response: Response) -> None:
            self.opened = response

        self._following = stream(
            world.stream_http,
            world.clock,
            self.server.url(path),
            opened=heard,
            line=self.lines.append,
            overlong=self.lines.append,  # type: ignore[arg-type]
            open_timeout=30,
            idle_timeout=600,
        )
        self._following.addErrback(lambda failure: failure.trap(CancelledError)).addBoth(self.ended.append)
        case.addCleanup(self._following.cancel)
        await world.until(lambda: self.opened is not None)
        return self

    async def heard(self, count: int) -> list[Any]:
        """That many events, and no more so far."""
        await self.server.world.until(lambda: len(self.lines) >= count)
        return [self.server.plain(line) for line in self.lines]


def event(action: str, key: str, value: str | None = None, prev: str | None = None) -> Mapping[str, Any]:
    """An event in the form of L{Server.plain}."""
    node = {"key": key, **({} if value is None else {"value": value})}
    return {"action": action, "node": node, **({} if prev is None else {"prevNode": {"key": key, "value": prev}})}


def refusal(code: int, message: str, cause: str) -> Mapping[str, Any]:
    return {"errorCode": code, "message": message, "cause": cause}


def index_of(response: Response) -> int:
    return int(response.header("X-Etcd-Index") or "-1")


def make_etcd2_api_tests(make: Callable[[TestCase], Server]) -> type[TestCase]:
    """
    @param make: a running server; it may add cleanups.
    """

    class Etcd2ApiTests(TestCase):
        def setUp(self) -> None:
            self.server = make(self)

        async def stream(self, path: str) -> Stream:
            return await Stream(self.server).open(path, self)

        async def test_create(self) -> None:
            """The first to create a key has it; the second is told that it is there, but not with which value."""
            said = self.server.said
            self.assertEqual(
                [
                    await said("PUT", "/a/1?prevExist=false&ttl=30&value=one"),
                    await said("PUT", "/a/1?prevExist=false&ttl=30&value=two"),
                    await said("GET", "/a/1?quorum=true"),
                ],
                [
                    (201, event("create", "/a/1", "one")),
                    (412, refusal(105, "Key already exists", "/a/1")),
                    (200, event("get", "/a/1", "one")),
                ],
            )

        async def test_form(self) -> None:
            """Arguments may come in a form, as well as in the URL."""
            said = self.server.said
            self.assertEqual(
                await said("PUT", "/a/1?prevExist=false", {"value": "a b/c", "ttl": "30"}),
                (201, event("create", "/a/1", "a b/c")),
            )

        async def test_text(self) -> None:
            """Keys and values are any text, percent-encoded where they are in the URL."""
            value = "%7B%22host%22%3A%22a+b%20c%26%3D%C3%A9%22%7D"
            self.assertEqual(
                await self.server.said("PUT", f"/a/x-%C3%A9.1?value={value}"),
                (201, event("set", "/a/x-é.1", '{"host":"a b c&=é"}')),
            )

        async def test_times(self) -> None:
            """A node tells its TTL in whole seconds, and its indexes; the answer's header tells the store's index."""
            response = await self.server.ask("PUT", "/a?value=x&ttl=30")
            node = json.loads(response.body)["node"]
            self.assertEqual(
                (list(node), node["ttl"], node["createdIndex"]),
                (
                    ["key", "value", "expiration", "ttl", "modifiedIndex", "createdIndex"],
                    30,
                    node["modifiedIndex"],
                ),
            )
            self.assertRegex(node["expiration"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
            self.assertEqual(index_of(response), node["modifiedIndex"])

        async def test_refresh(self) -> None:
            """A refresh needs the value that is there, and changes the index of the last change only."""
            said = self.server.said
            made = json.loads((await self.server.ask("PUT", "/a?prevExist=false&ttl=30&value=x")).body)["node"]
            refreshed = await self.server.ask("PUT", "/a?prevExist=true&prevValue=x&ttl=50&refresh=true")
            node = json.loads(refreshed.body)["node"]
            self.assertEqual(
                (self.server.plain(refreshed.body), node["ttl"], node["createdIndex"]),
                (event("compareAndSwap", "/a", "x", prev="x"), 50, made["createdIndex"]),
            )
            self.assertGreater(node["modifiedIndex"], made["modifiedIndex"])
            self.assertEqual(
                [
                    await said("PUT", "/a?prevExist=true&prevValue=y&ttl=50&refresh=true"),
                    await said("PUT", "/b?prevExist=true&prevValue=x&ttl=50&refresh=true"),
                    await said("PUT", "/a?prevExist=true&prevValue=x&ttl=50&refresh=true&value=x"),
                ],
                [
                    (412, refusal(101, "Compare failed", "[y != x]")),
                    (404, refusal(100, "Key not found", "/b")),
                    (400, refusal(211, "Value provided on refresh", "A value was provided on a refresh")),
                ],
            )

        async def test_set(self) -> None:
            """A plain write makes the key, or replaces it."""
            said = self.server.said
            self.assertEqual(
                [await said("PUT", "/a?value=x&ttl=30"), await said("PUT", "/a?value=y&ttl=30")],
                [(201, event("set", "/a", "x")), (200, event("set", "/a", "y", prev="x"))],
            )

        async def test_update(self) -> None:
            """A write to a key that must exist, with any value, is an update."""
            said = self.server.said
            await said("PUT", "/a?value=x")
            self.assertEqual(
                [await said("PUT", "/a?value=y&prevExist=true"), await said("PUT", "/b?value=y&prevExist=true")],
                [(200, event("update", "/a", "y", prev="x")), (404, refusal(100, "Key not found", "/b"))],
            )

        async def test_delete(self) -> None:
            """A delete can depend on the value, on the index of the last change, or on both."""
            said = self.server.said
            made = json.loads((await self.server.ask("PUT", "/a?value=x")).body)["node"]
            right, wrong = made["modifiedIndex"], made["modifiedIndex"] + 7
            self.assertEqual(
                [
                    await said("DELETE", "/a?prevValue=y"),
                    await said("DELETE", f"/a?prevValue=x&prevIndex={wrong}"),
                    await said("DELETE", f"/a?prevValue=y&prevIndex={wrong}"),
                    await said("DELETE", f"/a?prevValue=x&prevIndex={right}"),
                    await said("DELETE", f"/a?prevValue=x&prevIndex={right}"),
                ],
                [
                    (412, refusal(101, "Compare failed", "[y != x]")),
                    (412, refusal(101, "Compare failed", f"[{wrong} != N]")),
                    (412, refusal(101, "Compare failed", f"[y != x] [{wrong} != N]")),
                    (200, event("compareAndDelete", "/a", prev="x")),
                    (404, refusal(100, "Key not found", "/a")),
                ],
            )

        async def test_folders(self) -> None:
            """Folders are made on the way, are no keys with a value, and go with all that is in them."""
            said = self.server.said
            await said("PUT", "/a/b/c?value=x")
            folder = {"key": "/a/b", "dir": True}
            self.assertEqual(
                [
                    await said("PUT", "/a/b?prevExist=false&value=y"),
                    await said("PUT", "/a/b?prevExist=true&prevValue=y&refresh=true&ttl=5"),
                    await said("PUT", "/a/b?value=y"),
                    await said("PUT", "/a/b/c/d?value=y"),
                    await said("DELETE", "/a/b?prevValue=y"),
                    await said("DELETE", "/a/b"),
                    await said("DELETE", "/a/b?dir=true"),
                    await said("DELETE", "/a/b?recursive=true"),
                ],
                [
                    (412, refusal(105, "Key already exists", "/a/b")),
                    (403, refusal(102, "Not a file", "/a/b")),
                    (403, refusal(102, "Not a file", "/a/b")),
                    (400, refusal(104, "Not a directory", "/a/b/c")),
                    (403, refusal(102, "Not a file", "/a/b")),
                    (403, refusal(102, "Not a file", "/a/b")),
                    (403, refusal(108, "Directory not empty", "/a/b")),
                    (200, {"action": "delete", "node": folder, "prevNode": folder}),
                ],
            )

        async def test_mistakes(self) -> None:
            """An argument of the wrong form is refused, and tells no index."""
            response = await self.server.ask("PUT", "/a?value=x&ttl=soon")
            self.assertEqual((response.status, index_of(response)), (400, 0))
            said = self.server.said
            self.assertEqual(
                [
                    self.server.plain(response.body),
                    await said("DELETE", "/a?prevValue="),
                    await said("GET", "/?recursive=perhaps"),
                    await said("PUT", "/a?prevExist=perhaps"),
                ],
                [
                    refusal(202, "The given TTL in POST form is not a number", 'invalid value for "ttl"'),
                    (400, refusal(201, "PrevValue is Required in POST form", '"prevValue" cannot be empty')),
                    (400, refusal(209, "Invalid field", 'invalid value for "recursive"')),
                    (400, refusal(209, "Invalid field", "invalid value for prevExist")),
                ],
            )

        async def test_list(self) -> None:
            """All keys come in one answer, whose header tells the last change that is in it; hidden ones do not."""
            ask, said = self.server.ask, self.server.said
            absent = await ask("GET", "?recursive=true")
            self.assertEqual((absent.status, self.server.plain(absent.body)), (404, refusal(100, "Key not found", "")))
            await said("PUT", "/a/1?value=x&ttl=30")
            await said("PUT", "/a/_2?value=x")
            last = await ask("PUT", "/b/c/3?value=")
            listed = await ask("GET", "?recursive=true&quorum=true")
            self.assertGreater(index_of(listed), index_of(absent))
            self.assertGreaterEqual(index_of(listed), index_of(last))
            three = {"key": "/b/c", "dir": True, "nodes": [{"key": "/b/c/3", "value": ""}]}
            one = {"key": "/a", "dir": True, "nodes": [{"key": "/a/1", "value": "x"}]}
            tree = {"key": "", "dir": True, "nodes": [one, {"key": "/b", "dir": True, "nodes": [three]}]}
            flat = {"key": "", "dir": True, "nodes": [{"key": "/a", "dir": True}, {"key": "/b", "dir": True}]}
            self.assertEqual(
                [(listed.status, self.server.plain(listed.body)), await said("GET", "")],
                [(200, {"action": "get", "node": tree}), (200, {"action": "get", "node": flat})],
            )

        async def test_stream(self) -> None:
            """
            A stream opens at once, also where there is nothing yet, and tells the index from which on it has every
            change. It brings each change below, in order, but for refreshes.
            """
            before = await self.server.ask("GET", "")
            stream = await self.stream("?wait=true&recursive=true&stream=true")
            assert stream.opened is not None
            self.assertGreaterEqual(index_of(stream.opened), index_of(before))
            said = self.server.said
            await said("PUT", "/a/1?prevExist=false&ttl=30&value=x")
            await said("PUT", "/a/1?prevExist=true&prevValue=x&ttl=40&refresh=true")
            await said("PUT", "/a/1?prevExist=true&prevValue=x&ttl=40&value=y")
            await said("PUT", "/a/1?prevExist=true&ttl=40&value=z")
            await said("PUT", "/a/_2?value=hidden")
            await said("PUT", "/a/2?prevExist=true&value=refused")
            await said("DELETE", "/a/1?prevValue=z")
            await said("PUT", "/b/3?value=x")
            await said("DELETE", "/b/3")
            self.assertEqual(
                await stream.heard(6),
                [
                    event("create", "/a/1", "x"),
                    event("compareAndSwap", "/a/1", "y", prev="x"),
                    event("update", "/a/1", "z", prev="y"),
                    event("compareAndDelete", "/a/1", prev="z"),
                    event("set", "/b/3", "x"),
                    event("delete", "/b/3", prev="x"),
                ],
            )
            self.assertEqual(stream.ended, [])
            indexes = [json.loads(line)["node"]["modifiedIndex"] for line in stream.lines]
            self.assertEqual(indexes, sorted(set(indexes)))
            self.assertGreater(indexes[0], index_of(stream.opened))

        async def test_stream_of_folder_that_goes(self) -> None:
            """A stream hears of a folder above it, and twice of its own, and goes on."""
            said = self.server.said
            await said("PUT", "/a/1?value=x")
            whole = await self.stream("?wait=true&recursive=true&stream=true")
            part = await self.stream("/a?wait=true&recursive=true&stream=true")
            await said("DELETE", "?recursive=true")
            await said("PUT", "/a/2?value=x")
            folder = {"key": "", "dir": True}
            gone = {"action": "delete", "node": folder, "prevNode": folder}
            there = event("set", "/a/2", "x")
            self.assertEqual((await whole.heard(3), await part.heard(2)), ([gone, gone, there], [gone, there]))

        async def test_stream_of_key(self) -> None:
            """A stream of just a key hears twice that it is gone."""
            said = self.server.said
            await said("PUT", "/a?value=x")
            stream = await self.stream("/a?wait=true&stream=true")
            await said("PUT", "/b?value=x")
            await said("DELETE", "/a?prevValue=x")
            gone = event("compareAndDelete", "/a", prev="x")
            await said("PUT", "/a?value=y")
            self.assertEqual(await stream.heard(3), [gone, gone, event("set", "/a", "y")])

        async def test_stream_from_the_past(self) -> None:
            """
            A stream from an index in the past brings one event, and none ever after: why Kiwi opens streams without
            one.
            """
            said = self.server.said
            made = await self.server.ask("PUT", "/a?value=1")
            await said("PUT", "/a?value=2")
            now = await self.stream("?wait=true&recursive=true&stream=true")
            past = await self.stream(f"?wait=true&recursive=true&stream=true&waitIndex={index_of(made)}")
            await past.heard(1)
            await said("PUT", "/a?value=3")
            self.assertEqual(await now.heard(1), [event("set", "/a", "3", prev="2")])
            await self.server.world.seconds(0.5)
            self.assertEqual((await past.heard(1), past.ended), ([event("set", "/a", "1")], []))

        async def test_wait(self) -> None:
            """Without a stream, the answer to a wait ends with the first event."""
            stream = await self.stream("?wait=true&recursive=true")
            await self.server.said("PUT", "/a?value=1")
            await self.server.world.until(lambda: bool(stream.ended))
            self.assertEqual((await stream.heard(1), stream.ended), ([event("set", "/a", "1")], [None]))

        async def test_expiry(self) -> None:
            """A key goes when its TTL is over, up to a second later, and those who watch hear of it."""
            world, said = self.server.world, self.server.said
            stream = await self.stream("?wait=true&recursive=true&stream=true")
            sent = world.clock.seconds()
            await said("PUT", "/a?value=x&ttl=2")
            await said("PUT", "/b?value=y&ttl=30")
            await stream.heard(3)
            self.assertGreaterEqual(world.clock.seconds(), sent + 2)
            self.assertEqual((await stream.heard(3))[2], event("expire", "/a", prev="x"))
            self.assertEqual((await said("GET", "/a"))[0], 404)
            self.assertEqual((await said("GET", "/b"))[0], 200)

        async def test_method(self) -> None:
            """What the API does not know is refused, not as JSON."""
            response = await self.server.ask("PATCH", "/a")
            self.assertEqual((response.status, response.header("X-Etcd-Index")), (405, None))

    return Etcd2ApiTests
