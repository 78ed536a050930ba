"""
What the JSON gateway of etcd's v3 API does, as far as Kiwi relies on it. The real ones and the one in memory run this
suite, so that the latter cannot drift.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from kiwi.http import Response, request, stream

from .worlds import World

STATUSES = {2: (500,), 3: (400,), 5: (404,), 7: (403,), 9: (400, 412), 11: (400,), 14: (503,), 16: (401,)}
"""With which status an error of each code comes. That of 9 is another one in 3.4."""

NAMED = {"create_revision": "r", "mod_revision": "r", "compact_revision": "r", "ID": "lease ", "lease": "lease "}
"""What is another number wherever and whenever a test runs."""


def refusal(code: int, message: str) -> tuple[int, str]:
    """A refusal in the form of L{Server.said}."""
    return code, message


def kv(key: str, value: str = "", **more: str) -> Mapping[str, str]:
    """A key in the form of L{Server.said}, which was created and changed by revision C{r1} if not said otherwise."""
    shown = {"key": key, "create_revision": "r1", "mod_revision": "r1", "version": "1", **more}
    return {**shown, "value": value} if value else shown


@define(eq=False)
class Server:
    """
    The server under test, and where in it a test may write.

    @ivar prefix: of the keys that no other test uses.
    @ivar token: who asks.
    """

    world: World
    endpoint: str
    prefix: str
    token: str | None = None
    _names: dict[tuple[str, str], str] = field(factory=dict, init=False)

    async def ask(
        self, path: str, message: Mapping[str, Any] | None = None, method: str = "POST", **headers: str
    ) -> Response:
        """@param message: keys and values are text, and keys below the prefix."""
        return await self.world.of(
            request(
                self.world.http,
                self.world.clock,
                method,
                f"{self.endpoint}{path}",
                timeout=30,
                data=self.encoded({} if message is None else message),
                headers=self.headers(**headers),
            )
        )

    def headers(self, **headers: str) -> dict[bytes | str, bytes | str]:
        given: dict[bytes | str, bytes | str] = {name.replace("_", "-"): value for name, value in headers.items()}
        return given if self.token is None else {**given, "Authorization": self.token}

    async def said(self, path: str, message: Mapping[str, Any] | None = None, **headers: str) -> Any:
        """
        What is answered, in a form that is the same wherever and whenever the test runs: keys and values as text, keys
        below the prefix, revisions and leases with names in the order of their appearance, and without the headers.
        What is refused is a code and a message.
        """
        response = await self.ask(f"/v3/{path}", message, **headers)
        value = json.loads(response.body)
        if response.status == 200:
            return self.plain(value)
        error = value.get("error") if isinstance(value.get("error"), dict) else value
        code = error.get("grpc_code", error.get("code"))
        assert response.status in STATUSES[code], (response.status, code)
        return refusal(code, error["message"])

    def encoded(self, message: Mapping[str, Any]) -> bytes:
        def encoded(name: str, value: Any) -> Any:
            if isinstance(value, dict):
                return {name: encoded(name, part) for name, part in value.items()}
            if isinstance(value, list):
                return [encoded(name, part) for part in value]
            if name in ("key", "range_end"):
                value = self.prefix + value
            return b64encode(value.encode()).decode() if name in ("key", "range_end", "value") else value

        return json.dumps(encoded("", message)).encode()

    def plain(self, value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self.plain(part, name) for name, part in value.items() if name != "header"}
        if isinstance(value, list):
            return [self.plain(part, name) for part in value]
        if name in NAMED:
            kind = NAMED[name]
            names = self._names
            numbers = sum(known == kind for known, _ in names)
            return names.setdefault((kind, value), f"{kind}{numbers + 1}")
        if name in ("key", "value", "keys"):
            return b64decode(value).decode().removeprefix(self.prefix)
        return value

    async def put(self, key: str, value: str = "", **more: Any) -> Any:
        return await self.said("kv/put", {"key": key, "value": value, **more})

    async def get(self, key: str, **more: Any) -> Any:
        return await self.said("kv/range", {"key": key, **more})

    async def grant(self, ttl: int = 60) -> str:
        """A new lease."""
        lease: str = json.loads((await self.ask("/v3/lease/grant", {"TTL": str(ttl)})).body)["ID"]
        return lease

    async def revision(self) -> int:
        """The latest."""
        return header(await self.ask("/v3/kv/range", {"key": ""}))["revision"]


def header(response: Response) -> Mapping[str, int]:
    """The header of an answer."""
    value = json.loads(response.body)
    return {name: int(number) for name, number in value.get("result", value)["header"].items()}


@define(eq=False)
class Stream:
    """One that follows events."""

    server: Server
    opened: Response | None = None
    lines: list[bytes] = field(factory=list)
    ended: list[object] = field(factory=list)
    _following: Deferred[Any] | None = None

    async def open(self, create: Mapping[str, Any], case: TestCase, **headers: str) -> Stream:
        """@param create: what it is to tell of, with keys as L{Server.ask} takes them."""
        world = self.server.world

        def heard(response: Response) -> None:
            self.opened = response

        self._following = stream(
            world.stream_http,
            world.clock,
            f"{self.server.endpoint}/v3/watch",
            opened=heard,
            line=self.lines.append,
            overlong=self.lines.append,  # type: ignore[arg-type]
            open_timeout=30,
            idle_timeout=600,
            headers=self.server.headers(**headers),
            method="POST",
            data=self.server.encoded({"create_request": create}),
        )
        self._following.addErrback(lambda failure: failure.trap(CancelledError)).addBoth(self.ended.append)
        case.addCleanup(self._following.cancel)
        await self.heard(1)
        return self

    async def heard(self, count: int) -> Sequence[Any]:
        """That many lines, and no more so far."""
        await self.server.world.until(lambda: len(self.lines) >= count or bool(self.ended))
        return [self.server.plain(json.loads(line)["result"]) for line in self.lines]

    def revisions(self) -> Sequence[int]:
        """That the headers tell."""
        return [int(json.loads(line)["result"]["header"].get("revision", 0)) for line in self.lines]


BELOW = {"key": "/", "range_end": "0"}
CREATED = {"created": True}


def put_event(key: str, value: str = "", **more: str) -> Mapping[str, Any]:
    return {"kv": kv(key, value, **more)}


def delete_event(key: str, revision: str) -> Mapping[str, Any]:
    return {"type": "DELETE", "kv": {"key": key, "mod_revision": revision}}


def comparing(target: str, **wanted: str) -> Mapping[str, Any]:
    """A transaction that only compares the key C{/a}."""
    return {"compare": [{"key": "/a", "target": target, **wanted}]}


def put_of(key: str) -> Mapping[str, Any]:
    return {"request_put": {"key": key, "value": "y"}}


def claim(key: str, puts: int = 1) -> Mapping[str, Any]:
    """A transaction, within another one, that puts a key which is not there, or reads it."""
    absent = {"key": key, "target": "CREATE", "create_revision": "0"}
    read = {"request_range": {"key": key}}
    return {"request_txn": {"compare": [absent], "success": [put_of(key)] * puts, "failure": [read]}}


def make_etcd3_api_tests(make: Callable[[TestCase], Server]) -> type[TestCase]:
    """
    @param make: a running server; it may add cleanups.
    """

    class Etcd3ApiTests(TestCase):
        def setUp(self) -> None:
            self.server = make(self)

        async def stream(self, _create: Mapping[str, Any] = BELOW, **headers: str) -> Stream:
            return await Stream(self.server).open(_create, self, **headers)

        # Keys.

        async def test_put(self) -> None:
            """A key tells which revisions made and changed it last, and how often it was written; nothing is zero."""
            server = self.server
            self.assertEqual(
                [
                    await server.put("/a", "x"),
                    await server.get("/a"),
                    await server.put("/a", "", prev_kv=True),
                    await server.get("/a"),
                    await server.get("/b"),
                ],
                [
                    {},
                    {"kvs": [kv("/a", "x")], "count": "1"},
                    {"prev_kv": kv("/a", "x")},
                    {"kvs": [kv("/a", mod_revision="r2", version="2")], "count": "1"},
                    {},
                ],
            )

        async def test_header(self) -> None:
            """Each answer tells the cluster, the member, its term, and the revision, which grows with each change."""
            server = self.server
            before = header(await server.ask("/v3/kv/range", {"key": "/a"}))
            put = header(await server.ask("/v3/kv/put", {"key": "/a"}))
            absent = header(await server.ask("/v3/kv/deleterange", {"key": "/b"}))
            self.assertEqual(list(before), ["cluster_id", "member_id", "revision", "raft_term"])
            self.assertEqual(put, {**before, "revision": before["revision"] + 1})
            self.assertEqual(absent, put)

        async def test_refused_puts(self) -> None:
            """A key needs a name, its lease must be there, and what is to stay must be there."""
            server = self.server
            self.assertEqual(
                [
                    json.loads((await server.ask("/v3/kv/put")).body)["message"],
                    await server.put("/a", lease="99"),
                    await server.put("/a", ignore_value=True),
                    await server.put("/a", "x", ignore_value=True),
                    await server.get("/a"),
                ],
                [
                    "etcdserver: key is not provided",
                    refusal(5, "etcdserver: requested lease not found"),
                    refusal(3, "etcdserver: key not found"),
                    refusal(3, "etcdserver: value is provided"),
                    {},
                ],
            )

        async def test_range(self) -> None:
            """A range has all keys from one up to another one, in order; perhaps only some, their names or number."""
            server = self.server
            await server.put("/c", "3")
            await server.put("/a", "1")
            await server.put("/b/2", "2")
            await server.put("0", "beyond")
            a = kv("/a", "1")
            b = kv("/b/2", "2", create_revision="r2", mod_revision="r2")
            c = kv("/c", "3", create_revision="r3", mod_revision="r3")
            self.assertEqual(
                [
                    await server.get(**BELOW),
                    await server.get(**BELOW, limit="2"),
                    await server.get(**BELOW, limit=3),
                    await server.get(**BELOW, count_only=True),
                    await server.get("/c", range_end="/a"),
                ],
                [
                    {"kvs": [a, b, c], "count": "3"},
                    {"kvs": [a, b], "more": True, "count": "3"},
                    {"kvs": [a, b, c], "count": "3"},
                    {"count": "3"},
                    {},
                ],
            )
            names = [{name: part for name, part in each.items() if name != "value"} for each in (a, b, c)]
            self.assertEqual(await server.get(**BELOW, keys_only=True), {"kvs": names, "count": "3"})
            since = json.loads((await server.ask("/v3/kv/range", {"key": "/a"})).body)["kvs"][0]["mod_revision"]
            self.assertEqual(await server.get(**BELOW, min_mod_revision=since), {"kvs": [a, b], "count": "3"})

        async def test_past(self) -> None:
            """A range can be read as it was at a revision, but not at one that is still to come."""
            server = self.server
            await server.put("/a", "old")
            past = await server.revision()
            await server.put("/a", "new")
            await server.said("kv/deleterange", {"key": "/a"})
            await server.put("/b")
            self.assertEqual(
                [
                    await server.get(**BELOW, revision=str(past)),
                    await server.get(**BELOW, revision=str(past + 1)),
                    await server.get(**BELOW, revision=str(past + 2)),
                    await server.get(**BELOW, revision=str(past + 100)),
                ],
                [
                    {"kvs": [kv("/a", "old")], "count": "1"},
                    {"kvs": [kv("/a", "new", mod_revision="r2", version="2")], "count": "1"},
                    {},
                    refusal(11, "etcdserver: mvcc: required revision is a future revision"),
                ],
            )

        async def test_delete(self) -> None:
            """Keys go by themselves or as a range; one that is made again begins again."""
            server = self.server
            await server.put("/a", "x")
            await server.put("/a", "y")
            await server.put("/b")
            deleted = await server.said("kv/deleterange", {"key": "/a", "prev_kv": True})
            await server.put("/a")
            self.assertEqual(
                [
                    deleted,
                    await server.get("/a"),
                    await server.said("kv/deleterange", BELOW),
                    await server.said("kv/deleterange", BELOW),
                ],
                [
                    {"deleted": "1", "prev_kvs": [kv("/a", "y", mod_revision="r2", version="2")]},
                    {"kvs": [kv("/a", create_revision="r3", mod_revision="r3")], "count": "1"},
                    {"deleted": "2"},
                    {},
                ],
            )

        # Transactions.

        async def test_create(self) -> None:
            """The first to create a key has it; the second is told what is there."""
            transaction = {
                "compare": [{"key": "/a", "target": "CREATE", "create_revision": "0"}],
                "success": [{"request_put": {"key": "/a", "value": "x"}}],
                "failure": [{"request_range": {"key": "/a"}}],
            }
            self.assertEqual(
                [await self.server.said("kv/txn", transaction) for _ in range(2)],
                [
                    {"succeeded": True, "responses": [{"response_put": {}}]},
                    {"responses": [{"response_range": {"kvs": [kv("/a", "x")], "count": "1"}}]},
                ],
            )

        async def test_comparisons(self) -> None:
            """What is compared may be equal, unequal, greater or less; and what is missing has zeros, and no value."""
            server = self.server
            lease = await server.grant()
            await server.put("/a", "b", lease=lease)
            revision = await server.revision()
            now, before, after = str(revision), str(revision - 1), str(revision + 1)
            true = [
                comparing("MOD", mod_revision=now),
                comparing("MOD", mod_revision=before, result="GREATER"),
                comparing("MOD", mod_revision=after, result="LESS"),
                comparing("MOD", mod_revision=after, result="NOT_EQUAL"),
                comparing("CREATE", create_revision=now, result="EQUAL"),
                comparing("VERSION", version="1"),
                comparing("LEASE", lease=lease),
                comparing("VALUE", value="b"),
                comparing("VALUE", value="a", result="GREATER"),
                {"compare": [{"key": "/z", "target": "MOD"}, {"key": "/z", "target": "LEASE", "lease": "0"}]},
                {"compare": [{"key": "/z"}]},
                {"compare": [{**BELOW, "target": "LEASE", "lease": lease}]},
                {"compare": [{"key": "/x", "range_end": "/z", "create_revision": "0", "target": "CREATE"}]},
                {},
            ]
            false = [
                comparing("MOD", mod_revision=before),
                comparing("MOD", mod_revision=now, result="GREATER"),
                comparing("CREATE", create_revision="0"),
                comparing("LEASE"),
                comparing("VALUE", value="B"),
                {"compare": [{"key": "/z", "target": "VALUE", "value": "", "result": "EQUAL"}]},
                {"compare": [{"key": "/z", "target": "VALUE", "value": "x", "result": "NOT_EQUAL"}]},
                {"compare": [{"key": "/z", "target": "MOD"}, {"key": "/a", "target": "MOD"}]},
                {"compare": [{**BELOW, "target": "CREATE", "create_revision": "0"}]},
            ]
            self.assertEqual([await server.said("kv/txn", each) for each in true], [{"succeeded": True}] * len(true))
            self.assertEqual([await server.said("kv/txn", each) for each in false], [{}] * len(false))

        async def test_transaction(self) -> None:
            """All that a transaction does has one revision, and later parts see what earlier ones did."""
            server = self.server
            await server.put("/a", "x")
            before = await server.revision()
            response = await server.ask(
                "/v3/kv/txn",
                {
                    "success": [
                        {"request_put": {"key": "/b", "value": "y"}},
                        {"request_delete_range": {"key": "/a"}},
                        {"request_delete_range": {"key": "/z"}},
                        {"request_range": BELOW},
                        {"request_put": {"key": "/c", "value": "z"}},
                    ]
                },
            )
            said = json.loads(response.body)
            inner = [part["header"] for each in said["responses"] for part in each.values()]
            revision = str(before + 1)
            self.assertEqual((said["header"]["revision"], inner), (revision, [{"revision": revision}] * 5))
            self.assertEqual(
                [server.plain(said), await server.get(**BELOW)],
                [
                    {
                        "succeeded": True,
                        "responses": [
                            {"response_put": {}},
                            {"response_delete_range": {"deleted": "1"}},
                            {"response_delete_range": {}},
                            {"response_range": {"kvs": [kv("/b", "y")], "count": "1"}},
                            {"response_put": {}},
                        ],
                    },
                    {"kvs": [kv("/b", "y"), kv("/c", "z")], "count": "2"},
                ],
            )

        async def test_refused_transactions(self) -> None:
            """A transaction is done as a whole or not at all, writes a key once, and is not too long."""
            server = self.server
            a, b = ({"request_put": {"key": name, "value": "x"}} for name in ("/a", "/b"))
            many = [{"request_put": {"key": f"/{number}"}} for number in range(129)]
            duplicate = refusal(3, "etcdserver: duplicate key given in txn request")
            refused = [
                ([a, a], duplicate),
                ([a, {"request_delete_range": {"key": "/a"}}], duplicate),
                ([a, {"request_delete_range": BELOW}], duplicate),
                (many, refusal(3, "etcdserver: too many operations in txn request")),
                (
                    [a, {"request_put": {"key": "/b", "lease": "99"}}],
                    refusal(5, "etcdserver: requested lease not found"),
                ),
                (
                    [a, {"request_range": {"key": "/a", "revision": "999999999"}}],
                    refusal(11, "etcdserver: mvcc: required revision is a future revision"),
                ),
            ]
            self.assertEqual(
                [await server.said("kv/txn", {"success": operations}) for operations, _ in refused],
                [answer for _, answer in refused],
            )
            self.assertEqual(await server.get(**BELOW), {})
            both = await server.said("kv/txn", {"success": [a], "failure": [a, b]})
            self.assertEqual(both, {"succeeded": True, "responses": [{"response_put": {}}]})

        async def test_transactions_within(self) -> None:
            """
            A transaction may have others in it. Each one compares what was there before all of them, and all that they
            do has one revision, of which a watch tells in one line.
            """
            server = self.server
            await server.put("/a", "x")
            stream = await self.stream()
            before = await server.revision()
            claims = [claim(key) for key in ("/a", "/b", "/c")]
            deeper = {"request_txn": {"success": [{"request_txn": {"success": [put_of("/d")]}}]}}
            response = await server.ask(
                "/v3/kv/txn", {"success": [*claims, put_of("/e"), claim("/e", 0), deeper, {"request_txn": {}}]}
            )
            said, revision = json.loads(response.body), str(before + 1)
            self.assertEqual(
                (said["header"]["revision"], [next(iter(each.values()))["header"] for each in said["responses"]]),
                (revision, [{}, {}, {}, {"revision": revision}, {}, {}, {}]),
            )
            was_put = {"response_txn": {"succeeded": True, "responses": [{"response_put": {}}]}}
            self.assertEqual(
                server.plain(said),
                {
                    "succeeded": True,
                    "responses": [
                        {"response_txn": {"responses": [{"response_range": {"kvs": [kv("/a", "x")], "count": "1"}}]}},
                        was_put,
                        was_put,
                        {"response_put": {}},
                        {"response_txn": {"succeeded": True}},
                        {"response_txn": {"succeeded": True, "responses": [was_put]}},
                        {"response_txn": {"succeeded": True}},
                    ],
                },
            )
            new = {"create_revision": "r2", "mod_revision": "r2"}
            events = [put_event(key, "y", **new) for key in ("/b", "/c", "/e", "/d")]
            self.assertEqual(await stream.heard(2), [CREATED, {"events": events}])

        async def test_long_transactions_within(self) -> None:
            """As many operations are allowed as the transaction around leaves room for, in either part."""
            server = self.server

            def within(around: int, inside: int) -> list[Mapping[str, Any]]:
                reads = [{"request_range": {"key": "/a"}}] * max(around - 1, inside)
                return [*reads[: around - 1], {"request_txn": {"failure": reads[:inside]}}]

            too_many = refusal(3, "etcdserver: too many operations in txn request")
            self.assertEqual(
                (await server.said("kv/txn", {"success": [claim(f"/{n}") for n in range(127)]}))["succeeded"], True
            )
            self.assertEqual(
                [
                    await server.said("kv/txn", {"success": [claim(f"/{n}") for n in range(128)]}),
                    (await server.said("kv/txn", {"success": within(100, 28)}))["succeeded"],
                    await server.said("kv/txn", {"success": within(100, 29)}),
                    await server.said("kv/txn", {"failure": within(100, 29)}),
                ],
                [too_many, True, too_many, too_many],
            )

        async def test_refused_transactions_within(self) -> None:
            """
            Nothing of it is done where a part is refused, unless that part is not to be done. A key is put once, in
            whichever part that is; only the two parts of one may put the same.
            """
            server = self.server
            a, gone = put_of("/a"), {"request_delete_range": {"key": "/a"}}
            leased = {"request_put": {"key": "/b", "lease": "99"}}
            duplicate = refusal(3, "etcdserver: duplicate key given in txn request")
            no_key = refusal(3, "etcdserver: key is not provided")

            def within(*success: Mapping[str, Any], failure: Any = ()) -> Mapping[str, Any]:
                return {"request_txn": {"success": list(success), "failure": list(failure)}}

            refused = [
                ([within(a), within(a)], duplicate),
                ([within(a), within(failure=[a])], duplicate),
                ([a, within(a)], duplicate),
                ([gone, within(a)], duplicate),
                ([a, within(gone)], duplicate),
                ([within(gone), within(a)], duplicate),
                ([within(a), within(leased)], refusal(5, "etcdserver: requested lease not found")),
                ([within(a), {"request_txn": None}], refusal(3, "etcdserver: key not found")),
            ]
            self.assertEqual(
                [await server.said("kv/txn", {"success": operations}) for operations, _ in refused],
                [answer for _, answer in refused],
            )
            self.assertEqual(await server.get(**BELOW), {})
            server.prefix, prefix = "", server.prefix
            self.assertEqual(await server.said("kv/txn", {"success": [within({"request_range": {"key": ""}})]}), no_key)
            server.prefix = prefix
            allowed = [
                [within(a, failure=[a])],
                [within(a), within(gone)],
                [within(gone, failure=[a])],
                [within(gone), within(gone)],
                [within(a, failure=[leased])],
            ]
            self.assertEqual(
                [(await server.said("kv/txn", {"success": operations}))["succeeded"] for operations in allowed],
                [True] * len(allowed),
            )

        async def test_mistakes(self) -> None:
            """What is no request is refused, and what does not exist is not found. 3.6 says so in its own way."""
            server = self.server

            async def raw(body: bytes) -> tuple[int, int]:
                asked = request(
                    server.world.http,
                    server.world.clock,
                    "POST",
                    f"{server.endpoint}/v3/kv/range",
                    timeout=30,
                    data=body,
                )
                response = await server.world.of(asked)
                return response.status, json.loads(response.body)["code"]

            bodies = (b"{", b"", b'{"key":5}', b'{"key":"***"}', b'{"unknown":1}', b'{"key":"YQ==","revision":"x"}')
            self.assertEqual([await raw(body) for body in bodies], [(400, 3)] * len(bodies))
            others = [
                await server.ask("/v3/kv/nothing"),
                await server.ask("/nothing"),
                await server.ask("/v3/kv/range", method="GET"),
            ]
            self.assertIn([each.status for each in others], ([404, 404, 405], [404, 404, 501]))

        async def test_version(self) -> None:
            """It tells its version, and others that go with it."""
            response = await self.server.ask("/version", method="GET")
            self.assertEqual(response.status, 200)
            self.assertEqual(list(json.loads(response.body))[:2], ["etcdserver", "etcdcluster"])

        async def test_compaction(self) -> None:
            """What is past can be forgotten, up to some revision; it stays as it was at that one."""
            server = self.server
            await server.put("/a", "1")
            await server.put("/a", "2")
            middle = await server.revision()
            await server.put("/a", "3")
            await server.said("kv/compaction", {"revision": str(middle)})
            compacted = refusal(11, "etcdserver: mvcc: required revision has been compacted")
            self.assertEqual(
                [
                    await server.get("/a", revision=str(middle - 1)),
                    await server.said("kv/txn", {"success": [{"request_range": {"key": "/a", "revision": "1"}}]}),
                    await server.said("kv/compaction", {"revision": str(middle)}),
                    await server.said("kv/compaction", {"revision": str(middle + 9)}),
                    (await server.get("/a", revision=str(middle)))["kvs"][0]["value"],
                    (await server.get("/a"))["kvs"][0]["value"],
                ],
                [
                    compacted,
                    compacted,
                    compacted,
                    refusal(11, "etcdserver: mvcc: required revision is a future revision"),
                    "2",
                    "3",
                ],
            )

        # Leases.

        async def test_lease(self) -> None:
            """A lease has a number, its time, which is not too short or long, and the keys that go with it."""
            server = self.server
            lease = await server.grant(60)
            await server.put("/b", lease=lease)
            await server.put("/a", "x", lease=lease)
            await server.put("/a", "y", ignore_lease=True)
            await server.put("/c", lease=lease)
            await server.put("/c")
            told = await server.said("lease/timetolive", {"ID": lease, "keys": True})
            self.assertIn(int(told.pop("TTL")), range(50, 61))
            told["keys"] = sorted(told["keys"])
            self.assertEqual(
                [
                    told,
                    (await server.get("/a"))["kvs"],
                    await server.said("lease/grant", {"ID": lease, "TTL": "60"}),
                    await server.said("lease/grant", {"TTL": "1", "ID": str(int(lease) + 1)}),
                    await server.said("lease/grant", {"TTL": "9000000001"}),
                ],
                [
                    {"ID": "lease 1", "grantedTTL": "60", "keys": ["/a", "/b"]},
                    [kv("/a", "y", mod_revision="r2", version="2", lease="lease 1")],
                    refusal(9, "etcdserver: lease already exists"),
                    {"ID": "lease 2", "TTL": "2"},
                    refusal(11, "etcdserver: too large lease TTL"),
                ],
            )

        async def test_missing_lease(self) -> None:
            """Of a lease that is not there, keeping it alive tells no TTL, and asking for its TTL tells -1."""
            server = self.server
            self.assertEqual(
                [
                    await server.said("lease/keepalive", {"ID": "99"}),
                    await server.said("lease/timetolive", {"ID": "99"}),
                    await server.said("lease/revoke", {"ID": "99"}),
                ],
                [
                    {"result": {"ID": "lease 1"}},
                    {"ID": "lease 1", "TTL": "-1"},
                    refusal(5, "etcdserver: requested lease not found"),
                ],
            )

        async def test_revoke(self) -> None:
            """With a lease go all its keys, in one revision and in order, and those who watch hear of it."""
            server = self.server
            stream = await self.stream()
            lease = await server.grant()
            await server.put("/b", lease=lease)
            await server.put("/a", lease=lease)
            await server.put("/c")
            await server.said("lease/revoke", {"ID": lease})
            await stream.heard(5)
            self.assertEqual(
                [(await stream.heard(5))[4], (await server.get(**BELOW))["count"]],
                [{"events": [delete_event("/a", "r4"), delete_event("/b", "r4")]}, "1"],
            )

        async def test_expiry(self) -> None:
            """A lease goes when its time is over since it was last kept alive, up to a second later, as if revoked."""
            server, world = self.server, self.server.world
            stream = await self.stream()
            lease = await server.grant(2)
            await server.put("/a", lease=lease)
            await server.put("/b", lease=lease)
            await world.seconds(1)
            sent = world.clock.seconds()
            kept = await server.said("lease/keepalive", {"ID": lease})
            lines = await stream.heard(4)
            self.assertGreaterEqual(world.clock.seconds(), sent + 2)
            self.assertEqual(
                [kept, lines[3], await server.said("lease/keepalive", {"ID": lease})],
                [
                    {"result": {"ID": "lease 1", "TTL": "2"}},
                    {"events": [delete_event("/a", "r3"), delete_event("/b", "r3")]},
                    {"result": {"ID": "lease 1"}},
                ],
            )

        async def test_keeping_what_is_over(self) -> None:
            """Whoever keeps a lease alive at the end of its time is told that it goes on, or that it is gone."""
            server, world = self.server, self.server.world
            lease = await server.grant(2)
            await server.put("/a", lease=lease)
            await world.seconds(2.05)
            kept = await server.said("lease/keepalive", {"ID": lease})
            there = await server.get("/a")
            self.assertEqual("TTL" in kept["result"], "kvs" in there)

        # Watching.

        async def test_watch(self) -> None:
            """A watch is told at once that it is there, and then of each revision what it has changed, in order."""
            server = self.server
            before = await server.revision()
            stream = await self.stream()
            await server.put("/a", "x")
            await server.put("/a", "y")
            await server.put("0")
            await server.said("kv/deleterange", {"key": "/a"})
            both = [{"request_put": {"key": "/c"}}, {"request_put": {"key": "/b", "value": "z"}}]
            await server.said("kv/txn", {"success": both})
            self.assertEqual(
                await stream.heard(5),
                [
                    CREATED,
                    {"events": [put_event("/a", "x")]},
                    {"events": [put_event("/a", "y", mod_revision="r2", version="2")]},
                    {"events": [delete_event("/a", "r3")]},
                    {
                        "events": [
                            put_event("/c", create_revision="r4", mod_revision="r4"),
                            put_event("/b", "z", create_revision="r4", mod_revision="r4"),
                        ]
                    },
                ],
            )
            self.assertEqual((stream.revisions(), stream.ended), ([before + number for number in (0, 1, 2, 4, 5)], []))

        async def test_watch_of_one_key(self) -> None:
            """A watch without an end is one of just that key, and may leave some kinds of changes out."""
            server = self.server
            key, gone, there = [
                await self.stream(create)
                for create in (
                    {"key": "/a"},
                    {**BELOW, "filters": ["NOPUT"]},
                    {**BELOW, "filters": ["NODELETE"], "prev_kv": True},
                )
            ]
            await server.put("/a/b")
            await server.put("/a", "x")
            await server.put("/a", "y")
            await server.said("kv/deleterange", {"key": "/a"})
            second = {"create_revision": "r2", "mod_revision": "r2"}
            lines = await there.heard(4)
            put = put_event("/a", "x", **second)
            put_again = put_event("/a", "y", **second | {"mod_revision": "r3", "version": "2"})
            self.assertEqual(
                [lines, await key.heard(4), await gone.heard(2)],
                [
                    [
                        CREATED,
                        {"events": [put_event("/a/b")]},
                        {"events": [put]},
                        {"events": [{**put_again, "prev_kv": kv("/a", "x", **second)}]},
                    ],
                    [CREATED, {"events": [put]}, {"events": [put_again]}, {"events": [delete_event("/a", "r4")]}],
                    [CREATED, {"events": [delete_event("/a", "r4")]}],
                ],
            )

        async def test_watch_from_the_past(self) -> None:
            """A watch from a revision on hears of all since then, that one included, and then of what comes."""
            server = self.server
            await server.put("/a", "before")
            await server.put("/a", "x")
            revision = await server.revision()
            await server.said("kv/deleterange", {"key": "/a"})
            stream = await self.stream({**BELOW, "start_revision": str(revision)})
            await stream.heard(2)
            await server.put("/b")
            lines = await stream.heard(3)
            self.assertEqual(
                lines,
                [
                    CREATED,
                    {
                        "events": [
                            put_event("/a", "x", create_revision="r1", mod_revision="r2", version="2"),
                            delete_event("/a", "r3"),
                        ]
                    },
                    {"events": [put_event("/b", create_revision="r4", mod_revision="r4")]},
                ],
            )

        async def test_watch_from_the_future(self) -> None:
            """A watch from a revision that is still to come waits for that."""
            server = self.server
            revision = await server.revision()
            stream = await self.stream({**BELOW, "start_revision": str(revision + 3)})
            for name in ("/a", "/b", "/c"):
                await server.put(name)
            self.assertEqual(await stream.heard(2), [CREATED, {"events": [put_event("/c")]}])

        async def test_watch_of_what_is_forgotten(self) -> None:
            """A watch from before a compaction is told so, and never hears anything more; its stream does not end."""
            server = self.server
            await server.put("/a")
            revision = await server.revision()
            await server.put("/a")
            await server.put("/a")
            live = await self.stream()
            await server.said("kv/compaction", {"revision": str(revision + 2)})
            stream = await self.stream({**BELOW, "start_revision": str(revision)})
            await stream.heard(2)
            await server.put("/b")
            await live.heard(2)
            self.assertEqual(
                [await stream.heard(2), stream.revisions()[1], stream.ended, await live.heard(2)],
                [
                    [CREATED, {"canceled": True, "compact_revision": "r1"}],
                    0,
                    [],
                    [CREATED, {"events": [put_event("/b", create_revision="r2", mod_revision="r2")]}],
                ],
            )

        async def test_watch_with_a_leader(self) -> None:
            """A watch that is to end without a leader is like any other while there is one."""
            stream = await self.stream(Grpc_Metadata_hasleader="true")
            await self.server.put("/a")
            self.assertEqual(await stream.heard(2), [CREATED, {"events": [put_event("/a")]}])
            self.assertEqual(await self.server.said("kv/txn", {}, Grpc_Metadata_hasleader="true"), {"succeeded": True})

        # Access.

        async def _protect(self) -> str:
            """Ask for passwords until the end of the test. The token of the one who may do anything."""
            server = self.server
            permission = {"permType": "READWRITE", "key": "/", "range_end": "0"}
            for path, message in (
                ("user/add", {"name": "root", "password": "secret"}),
                ("role/add", {"name": "root"}),
                ("user/grant", {"user": "root", "role": "root"}),
                ("user/add", {"name": "kiwi", "password": "feathers"}),
                ("role/add", {"name": "birds"}),
                ("role/grant", {"name": "birds", "perm": permission}),
                ("user/grant", {"user": "kiwi", "role": "birds"}),
            ):
                await server.said(f"auth/{path}", message)
            await server.said("auth/enable")
            self.addCleanup(self._open_up)
            root: str = (await server.said("auth/authenticate", {"name": "root", "password": "secret"}))["token"]
            return root

        async def _open_up(self) -> None:
            server = self.server
            server.token = None
            token = (await server.said("auth/authenticate", {"name": "root", "password": "secret"}))["token"]
            server.token = token
            await server.said("auth/disable")
            server.token = None
            for name in ("root", "kiwi"):
                await server.said("auth/user/delete", {"name": name})
            for role in ("root", "birds"):
                await server.said("auth/role/delete", {"role": role})

        async def test_authentication(self) -> None:
            """Where users are asked for, keys are for those with a token, and for those who may."""
            server = self.server
            await self._protect()
            nobody = [await server.put("/a"), await server.get("/a"), await server.said("kv/txn", {})]
            wrong = [
                await server.said("auth/authenticate", {"name": "kiwi", "password": "wings"}),
                await server.said("auth/authenticate", {"name": "emu", "password": "feathers"}),
            ]
            server.token = (await server.said("auth/authenticate", {"name": "kiwi", "password": "feathers"}))["token"]
            allowed = [await server.put("/a", "x"), (await server.get(**BELOW))["count"]]
            denied = [await server.put("0"), await server.get("", range_end="1")]
            empty = refusal(3, "etcdserver: user name is empty")
            failed = refusal(3, "etcdserver: authentication failed, invalid user ID or password")
            self.assertEqual(
                [nobody, wrong, allowed, denied],
                [
                    [empty, empty, {"succeeded": True}],
                    [failed, failed],
                    [{}, "1"],
                    [refusal(7, "etcdserver: permission denied")] * 2,
                ],
            )
            transaction = {"compare": [{"key": "/a"}], "success": [{"request_put": {"key": "0"}}]}
            self.assertEqual(await server.said("kv/txn", transaction), refusal(7, "etcdserver: permission denied"))

        async def test_wrong_token(self) -> None:
            """A token that is not known any more is told apart; keeping a lease alive takes none."""
            server = self.server
            server.token = root = await self._protect()
            lease = await server.grant()
            server.token = (await server.said("auth/authenticate", {"name": "kiwi", "password": "feathers"}))["token"]
            kiwi = server.token
            server.token = root
            await server.said("auth/user/changepw", {"name": "kiwi", "password": "wings"})
            answers = []
            for server.token in (kiwi, "unknown.1"):
                answers += [
                    await server.put("/a"),
                    await server.get("/a"),
                    await server.said("kv/txn", {"success": [{"request_range": {"key": "/a"}}]}),
                    await server.said("lease/grant", {"TTL": "60"}),
                ]
            self.assertEqual(answers, [refusal(16, "etcdserver: invalid auth token")] * 8)
            self.assertEqual(
                await server.said("lease/keepalive", {"ID": lease}), {"result": {"ID": "lease 1", "TTL": "60"}}
            )

        async def test_watch_without_permission(self) -> None:
            """A watch that is not allowed is created and canceled in one, with a reason."""
            server = self.server
            root = await self._protect()
            heard = []
            for server.token in (None, "unknown.1"):
                (line,) = await (await self.stream()).heard(1)
                heard.append((line["created"], line["canceled"], "cancel_reason" in line))
            server.token = root
            self.assertEqual([heard, await (await self.stream()).heard(1)], [[(True,) * 3] * 2, [CREATED]])

        async def test_without_authentication(self) -> None:
            """Where users are not asked for, there are no tokens."""
            self.assertEqual(
                await self.server.said("auth/authenticate", {"name": "root", "password": "secret"}),
                refusal(9, "etcdserver: authentication is not enabled"),
            )

    return Etcd3ApiTests
