"""What etcd says is read without trust: whatever comes, nothing fails, and what is right in it still counts."""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from kiwi.claims.etcd2 import (
    Event,
    Mirror,
    Node,
    Refusal,
    Snapshot,
    read_event,
    read_reply,
    read_snapshot,
)
from kiwi.claims.records import read_record, write_record
from kiwi.claims.telling import GATHERING, Oddity
from kiwi.http import Response
from kiwi.model import Address, AgentRecord, Claims, ip

from .claimstoretests import ONE, THREE, TWO, A, Listener
from .stages import FakeEtcd2Stage

KEYS = st.sampled_from(
    [
        "",
        "/",
        "/kiwi",
        "/kiwi/",
        "/kiwi/publicips",
        "/kiwi/publicips/",
        "/kiwi/publicips/192.168.1.41",
        "/kiwi/publicips/192.168.1.42",
        "/kiwi/publicips/192.168.1.42/x",
        "/kiwi/publicips/192.168.001.042",
        "/kiwi/publicips/fd00::1",
        "/kiwi/agents",
        "/kiwi/agents/",
        "/kiwi/agents/a",
        "/kiwi/agents/a/b",
        "/kiwi2/publicips/192.168.1.41",
        "/other",
    ]
)
"""Such that there is something to confuse."""

VALUES = st.sampled_from(["", "a", "{}", "[]", "null", '{"host":1}', write_record(A), "\ud800", "x" * 1000])
ACTIONS = st.sampled_from(
    ["set", "create", "update", "compareAndSwap", "delete", "compareAndDelete", "expire", "get", "?"]
)
NAMES = st.sampled_from(
    [
        "action",
        "node",
        "prevNode",
        "nodes",
        "key",
        "value",
        "dir",
        "modifiedIndex",
        "createdIndex",
        "errorCode",
        "message",
    ]
)

ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | KEYS | VALUES | ACTIONS,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(NAMES | st.text(max_size=5), parts, max_size=6),
    max_leaves=20,
)
"""JSON of any form, mostly with names that mean something."""

NODES: st.SearchStrategy[Any] = st.recursive(
    st.fixed_dictionaries(
        {"key": KEYS | ANYTHING, "modifiedIndex": st.integers(0, 20) | ANYTHING},
        optional={"value": VALUES | ANYTHING, "dir": st.booleans() | ANYTHING, "nodes": ANYTHING},
    ),
    lambda nodes: st.fixed_dictionaries({"key": KEYS, "dir": st.just(True), "nodes": st.lists(nodes | ANYTHING)}),
    max_leaves=10,
)

EVENTS = st.fixed_dictionaries({"action": ACTIONS | ANYTHING, "node": NODES}) | ANYTHING


def text_of(value: Any) -> bytes:
    return json.dumps(value).encode("ascii")


LINES = st.binary(max_size=50) | EVENTS.map(text_of) | EVENTS.map(lambda event: text_of(event)[:-7])


def response(status: int, body: bytes, index: bytes | None = b"20") -> Response:
    return Response(status, Headers({b"X-Etcd-Index": [index]} if index is not None else {}), body)


def known(mirror: Mirror) -> Claims:
    return Claims(dict(mirror.holders), dict(mirror.agents))


class ReadingTests(SynchronousTestCase):
    """What is right is read, and of what is wrong it is said why."""

    def test_reply(self) -> None:
        """An answer is a node, a refusal, or of no use."""
        node = b'{"action":"set","node":{"key":"/a","value":"x","ttl":9,"modifiedIndex":7,"createdIndex":3}}'
        error = b'{"errorCode":100,"message":"Key not found","cause":"/a","index":9}'
        self.assertEqual(
            [
                read_reply(response(*said))
                for said in ((200, node), (201, node), (404, error), (500, error), (404, b""))
            ],
            [
                Node("/a", "x", False, 7),
                Node("/a", "x", False, 7),
                Refusal(100, "error 100: Key not found (/a)"),
                "status 500, error 100: Key not found (/a)",
                "status 404",
            ],
        )

    def test_snapshot(self) -> None:
        """A snapshot is every node below, wherever it is; and nothing where there is no such key."""
        body = {
            "action": "get",
            "node": {
                "key": "/kiwi",
                "dir": True,
                "modifiedIndex": 4,
                "nodes": [
                    {
                        "key": "/kiwi/a",
                        "dir": True,
                        "modifiedIndex": 5,
                        "nodes": [{"key": "/kiwi/a/1", "value": "x", "modifiedIndex": 6}, 7],
                    },
                    {"key": "/kiwi/b", "value": 8, "modifiedIndex": 7},
                ],
            },
        }
        snapshot = read_snapshot(response(200, text_of(body)))
        assert isinstance(snapshot, Snapshot)
        self.assertEqual(
            (snapshot.index, set(snapshot.nodes), set(snapshot.oddities)),
            (
                20,
                {Node("/kiwi/a", None, True, 5), Node("/kiwi/a/1", "x", False, 6)},
                {Oddity("/kiwi/b", "its value is no text"), Oddity("a node without a key", "it has no key")},
            ),
        )
        absent = b'{"errorCode":100,"message":"Key not found","cause":"/kiwi","index":20}'
        self.assertEqual(read_snapshot(response(404, absent)), Snapshot(20))

    def test_bad_snapshot(self) -> None:
        """A snapshot that is none says why."""
        good = b'{"action":"get","node":{"key":"/kiwi","dir":true}}'
        self.assertEqual(
            [
                read_snapshot(said)
                for said in (
                    response(200, good, None),
                    response(200, good, b"-1"),
                    response(200, good, b"9" * 5000),
                    response(200, b"{"),
                    response(200, b"[]"),
                    response(404, b"404 page not found"),
                    response(503, b""),
                )
            ],
            [
                *["status 200, and no X-Etcd-Index"] * 3,
                "a snapshot that is no JSON",
                "a snapshot without a node",
                "status 404",
                "status 503",
            ],
        )

    def test_event(self) -> None:
        """An event says what a key is now, or that it is gone."""
        line = b'{"action":"%s","node":{"key":"/a","value":"x","modifiedIndex":7}}'
        node = Node("/a", "x", False, 7)
        self.assertEqual(
            [
                read_event(line % action)
                for action in (b"set", b"compareAndSwap", b"expire", b"compareAndDelete", b"sing")
            ],
            [
                Event(node, gone=False),
                Event(node, gone=False),
                Event(node, gone=True),
                Event(node, gone=True),
                Oddity("action sing", "it is not known; it came for /a"),
            ],
        )

    @given(st.text(), st.text(), st.text(), st.booleans(), st.text(), st.booleans())
    def test_record(self, host: str, place: str, instance: str, leaving: bool, node: str, standby: bool) -> None:
        """A record is read as it was written."""
        record = AgentRecord("a", host, place, instance, leaving, node, standby)
        self.assertEqual(read_record("a", write_record(record)), record)

    def test_older_record(self) -> None:
        """What agents did not tell of themselves in an earlier version, or do not tell rightly, is as it mostly is."""
        plain = AgentRecord("a", "host", "place", "only")
        text = '{"host":"host","place":"place","instance":"only"}'
        self.assertEqual((write_record(plain), read_record("a", text)), (text, plain))
        wrong = '{"host":"host","place":"place","instance":"only","leaving":1,"node":["b"],"standby":"yes"}'
        self.assertEqual(read_record("a", wrong), plain)


class MirrorTests(SynchronousTestCase):
    """A snapshot, and the events after it."""

    def setUp(self) -> None:
        self.mirror = Mirror("/kiwi")

    def event(self, index: int, key: str, value: str | None) -> None:
        """C{None} for a key that is gone."""
        self.mirror.hear(Event(Node(f"/kiwi/{key}", value, False, index), value is None))

    def test_events_after_the_snapshot(self) -> None:
        """Events change what the snapshot said."""
        self.mirror.restore(Snapshot(5, [Node("/kiwi/publicips/192.168.1.41", "a", False, 3)]))
        self.event(6, "publicips/fd00::42", "b")
        self.event(7, "publicips/192.168.1.41", None)
        self.event(8, "agents/a", write_record(A))
        self.assertEqual(known(self.mirror), Claims({TWO: "b"}, {"a": A}))

    def test_early_events(self) -> None:
        """
        Events that came before the snapshot are kept, and count where they are newer: an old one does not bring back
        what is gone, nor take away what came since.
        """
        self.event(3, "publicips/192.168.1.41", "a")
        self.event(4, "publicips/192.168.1.41", None)
        self.event(4, "publicips/fd00::42", None)
        self.event(7, "publicips/192.168.1.43", "c")
        self.assertFalse(self.mirror.complete)
        self.mirror.restore(Snapshot(5, [Node("/kiwi/publicips/fd00::42", "b", False, 5)]))
        self.assertEqual(known(self.mirror), Claims({TWO: "b", THREE: "c"}))

    def test_folders_that_go(self) -> None:
        """With a folder goes what was in it; and with one above, everything."""
        nodes = [Node("/kiwi/publicips/192.168.1.41", "a", False, 3), Node("/kiwi/agents/a", write_record(A), False, 3)]
        for folder, left in (
            ("/kiwi/publicips", Claims({}, {"a": A})),
            ("/kiwi/agents", Claims({ONE: "a"})),
            ("/kiwi", Claims()),
            ("/", Claims()),
            ("/kiwi/other", Claims({ONE: "a"}, {"a": A})),
            ("/kiw", Claims({ONE: "a"}, {"a": A})),
        ):
            mirror = Mirror("/kiwi")
            mirror.restore(Snapshot(5, nodes))
            mirror.hear(Event(Node(folder, None, True, 6), gone=True))
            self.assertEqual(known(mirror), left, folder)

    def test_values_that_go_bad(self) -> None:
        """A claim or a record that becomes something else is no longer one."""
        nodes = [Node("/kiwi/publicips/192.168.1.41", "a", False, 3), Node("/kiwi/agents/a", write_record(A), False, 3)]
        self.mirror.restore(Snapshot(5, nodes))
        self.mirror.hear(Event(Node("/kiwi/publicips/192.168.1.41", None, True, 6), gone=False))
        self.event(7, "agents/a", "{}")
        self.assertEqual(known(self.mirror), Claims())

    def test_prefix_is_whole(self) -> None:
        """A prefix that begins like another one is another one."""
        oddities = self.mirror.restore(Snapshot(5, [Node("/kiwi2/publicips/192.168.1.41", "a", False, 3)]))
        self.assertEqual((known(self.mirror), len(oddities)), (Claims(), 1))

    def test_root(self) -> None:
        """The prefix may be the root of all keys."""
        mirror = Mirror("")
        mirror.restore(Snapshot(5, [Node("/publicips/192.168.1.41", "a", False, 3), Node("/publicips", None, True, 3)]))
        self.assertEqual(known(mirror), Claims({ONE: "a"}))
        mirror.hear(Event(Node("/publicips", None, True, 6), gone=True))
        self.assertEqual(known(mirror), Claims())


class FuzzTests(SynchronousTestCase):
    """Whatever comes."""

    @given(st.integers(100, 599), st.binary(max_size=50) | ANYTHING.map(text_of) | EVENTS.map(text_of))
    def test_replies(self, status: int, body: bytes) -> None:
        """Every answer is read, and what is said of it is one printable line."""
        for said in (read_reply(response(status, body)), read_snapshot(response(status, body))):
            if isinstance(said, (str, Refusal)):
                text = said if isinstance(said, str) else said.text
                self.assertTrue(text.isascii() and text.isprintable(), text)

    @given(NODES, st.lists(LINES, max_size=10), st.lists(LINES, max_size=10))
    def test_mirror(self, root: Any, early: list[bytes], late: list[bytes]) -> None:
        """Whatever a snapshot and events are, the next good event counts."""
        mirror = Mirror("/kiwi")

        def hear(lines: list[bytes]) -> None:
            for line in lines:
                try:
                    event = read_event(line)
                except ValueError:
                    continue
                if isinstance(event, Event):
                    mirror.hear(event)

        hear(early)
        snapshot = read_snapshot(response(200, text_of({"node": root})))
        if isinstance(snapshot, str):
            snapshot = Snapshot(0)
        mirror.restore(snapshot)
        hear(late)
        before = known(mirror)
        good = read_event(
            b'{"action":"create","node":{"key":"/kiwi/publicips/10.9.8.7","value":"z","modifiedIndex":21}}'
        )
        assert isinstance(good, Event)
        mirror.hear(good)
        self.assertEqual(known(mirror), Claims({**before.holders, ip("10.9.8.7"): "z"}, before.agents))
        for address, holder in mirror.holders.items():
            self.assertTrue(isinstance(address, Address | IPv6Address) and type(holder) is str, (address, holder))

    @settings(max_examples=50, deadline=None)
    @given(st.lists(LINES | st.integers(0, 2**18).map(lambda size: b"x" * size), max_size=20))
    def test_stream(self, lines: list[bytes]) -> None:
        """Whatever comes on a stream, a watch hears of the next change, and nothing but warnings is logged."""
        stage = FakeEtcd2Stage()
        listener = Listener()
        service = listener.listen(self, stage.store("a"))  # type: ignore[arg-type]
        stage.world.settle()
        for line in lines:
            stage.fake.send(line)
        stage.world.settle()
        stage.store("b").acquire(THREE)
        stage.world.settle()
        stage.world.clock.advance(GATHERING)
        self.assertEqual(listener.heard[-1].holders.get(THREE), "b")
        service.stopService()
        self.assertEqual(self.flushLoggedErrors(), [])


OPERATIONS = st.sampled_from(
    [
        "acquire",
        "release",
        "renew",
        "register",
        "deregister",
        "time",
        "drop",
        "end",
        "crash",
        "start",
        "wipe",
        "fail",
        "slow",
    ]
)


class EventuallyTests(SynchronousTestCase):
    """The whole of it."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(OPERATIONS, st.sampled_from("ab"), st.sampled_from([ONE, TWO, THREE])), max_size=30))
    def test_watch_knows_in_the_end(self, operations: list[tuple[str, str, Address]]) -> None:
        """Whatever is done, and whatever goes wrong meanwhile, in the end a watch knows what the store knows."""
        stage = FakeEtcd2Stage()
        fake, world = stage.fake, stage.world
        stores = {name: stage.store(name, 10) for name in "ab"}
        listener = Listener()
        service = listener.listen(self, stage.store("c", 10))  # type: ignore[arg-type]
        for operation, name, address in operations:
            record = AgentRecord(name, "host", "place", "only")
            {
                "acquire": lambda: stores[name].acquire(address),  # noqa: B023
                "release": lambda: stores[name].release(address),  # noqa: B023
                "renew": lambda: stores[name].renew({address}),  # noqa: B023
                "register": lambda: stores[name].register(record),  # noqa: B023
                "deregister": lambda: stores[name].deregister(record),  # noqa: B023
                "time": lambda: world.step(3),
                "drop": fake.drop_streams,
                "end": fake.end_streams,
                "crash": stage.crash,
                "start": stage.start,
                "wipe": fake.lose_data,
                "fail": lambda: fake.fail_next(1),
                "slow": lambda: setattr(fake, "delay", 0.0 if fake.delay else 0.75),
            }[operation]()
            world.step()
        stage.start()
        fake.delay = 0
        fake._failures.clear()
        for _ in range(32):
            world.step()
        fresh = Listener()
        services = [service, fresh.listen(self, stage.store("d"))]  # type: ignore[arg-type]
        world.settle()
        assert listener.last is not None
        self.assertEqual(evolve(listener.last, losses=0), fresh.last)
        self.assertIsNotNone(fresh.last)
        for service in services:
            service.stopService()
        fake.stop()
