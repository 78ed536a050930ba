"""What etcd says through its JSON gateway is read without trust: nothing fails in any other way than it says."""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from kiwi.claims.etcd3_mirror import ClaimKey, Etcd3Mirror, Keys
from kiwi.claims.etcd3_reading import (
    Done,
    Found,
    Header,
    Kept,
    KeyEvent,
    KeyValue,
    Malformed,
    Part,
    Refusal,
    Told,
    read_answer,
    read_done,
    read_found,
    read_kept,
    read_keys_of_lease,
    read_token,
    read_told,
)
from kiwi.claims.records import write_record
from kiwi.claims.telling import Oddity
from kiwi.http import Response
from kiwi.model import Claims, ip

from .claimstoretests import ONE, TWO, A

HEADER = {"cluster_id": "17237436991929493444", "member_id": "1", "revision": "7", "raft_term": "2"}
READ_HEADER = Header(17237436991929493444, 7, 2)


def text64(value: bytes) -> str:
    return b64encode(value).decode()


def response(body: object, status: int = 200) -> Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, Headers(), data)


def key_value(key: str, value: bytes = b"", modified: int = 5, lease: int = 0) -> KeyValue:
    return KeyValue(key, value, 3, modified, lease)


RAW_KEY = {
    "key": text64(b"/kiwi/store"),
    "value": text64(b"\xff\x00"),
    "create_revision": "3",
    "mod_revision": "5",
    "version": "2",
    "lease": "7587870000000000001",
}
KEY = KeyValue("/kiwi/store", b"\xff\x00", 3, 5, 7587870000000000001)


class ReadingTests(SynchronousTestCase):
    """The shapes that etcd 3.4, 3.5 and 3.6 send."""

    def test_found(self) -> None:
        """Keys as they are; where there are none, nothing is said of them."""
        self.assertEqual(
            read_found({"header": HEADER, "kvs": [RAW_KEY], "more": True, "count": "9"}),
            Found(READ_HEADER, [KEY], True),
        )
        self.assertEqual(read_found({"header": HEADER}), Found(READ_HEADER, []))

    def test_done(self) -> None:
        """What was found in a transaction, without what was written."""
        responses = [
            {"response_put": {"header": {"revision": "7"}}},
            {"response_range": {"header": {"revision": "7"}, "kvs": [RAW_KEY], "count": "1"}},
            {"response_range": {"header": {"revision": "7"}}},
        ]
        self.assertEqual(
            read_done({"header": HEADER, "succeeded": True, "responses": responses}),
            Done(READ_HEADER, True, [[KEY], []], []),
        )
        self.assertEqual(read_done({"header": HEADER}), Done(READ_HEADER, False, [], []))

    def test_parts(self) -> None:
        """What came of each transaction within one."""
        done = {"header": {}, "succeeded": True, "responses": [{"response_put": {"header": {"revision": "7"}}}]}
        not_done = {"header": {}, "responses": [{"response_range": {"kvs": [RAW_KEY], "count": "1"}}]}
        responses = [{"response_txn": part} for part in (done, not_done, {})]
        self.assertEqual(
            read_done({"header": HEADER, "succeeded": True, "responses": responses}),
            Done(READ_HEADER, True, [], [Part(True, []), Part(False, [[KEY]]), Part(False, [])]),
        )

    def test_kept(self) -> None:
        """A lease that is gone has no TTL, or a negative one."""
        self.assertEqual(read_kept({"header": HEADER, "ID": "5", "TTL": "10"}), Kept(READ_HEADER, 5, 10))
        self.assertEqual(read_kept({"header": HEADER, "ID": "5"}), Kept(READ_HEADER, 5, 0))
        self.assertEqual(read_kept({"header": HEADER, "ID": "5", "TTL": "-1"}), Kept(READ_HEADER, 5, 0))
        self.assertEqual(read_keys_of_lease({"keys": [text64(b"x")]}), 1)
        self.assertEqual(read_keys_of_lease({}), 0)

    def test_answer(self) -> None:
        """A document; or the one message of a stream."""
        self.assertEqual(read_answer(response({"header": HEADER})), {"header": HEADER})
        self.assertEqual(read_answer(response(b'{"result":{"ID":"5"}}\n')), {"ID": "5"})

    def test_refusals(self) -> None:
        """Each version has another form of errors, and streams have others still."""
        for body in (
            {"error": "etcdserver: no leader", "code": 14, "message": "etcdserver: no leader"},
            {"code": 14, "message": "etcdserver: no leader", "details": []},
            {"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}},
            {"error": {"code": 14, "message": "etcdserver: no leader", "details": []}},
        ):
            self.assertEqual(read_answer(response(body, 503)), Refusal(14, "etcdserver: no leader"))
        self.assertEqual(read_answer(response({"error": {"message": "x"}})), Refusal(0, "x"))

    def test_wants_login(self) -> None:
        """A token that is not known is refused with one code or another."""
        for code, message in (
            (16, "etcdserver: invalid auth token"),
            (3, "etcdserver: user name is empty"),
            (3, "etcdserver: revision of auth store is old"),
        ):
            self.assertTrue(Refusal(code, message).wants_login)
        self.assertFalse(Refusal(7, "etcdserver: permission denied").wants_login)

    def test_told(self) -> None:
        """A watch is created, tells of changes, and may be cancelled."""
        self.assertEqual(
            read_told(json.dumps({"result": {"header": HEADER, "created": True}}).encode()),
            Told(READ_HEADER, [], created=True),
        )
        gone = {"type": "DELETE", "kv": {"key": text64(b"/kiwi/store"), "mod_revision": "6"}}
        self.assertEqual(
            read_told(json.dumps({"result": {"header": HEADER, "events": [{"kv": RAW_KEY}, gone]}}).encode()),
            Told(READ_HEADER, [KeyEvent(KEY, False), KeyEvent(KeyValue("/kiwi/store", b"", 0, 6, 0), True)]),
        )
        compacted = {"header": {**HEADER, "revision": None}, "canceled": True, "compact_revision": "3"}
        del compacted["header"]["revision"]  # type: ignore[attr-defined]
        self.assertEqual(
            read_told(json.dumps({"result": compacted}).encode()),
            Told(Header(17237436991929493444, 0, 2), [], cancelled="it does not say why", compacted=3),
        )
        self.assertEqual(
            read_told(b'{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}'),
            Refusal(14, "etcdserver: no leader"),
        )

    def test_token(self) -> None:
        """A token goes into a header, and so must be fit for one."""
        self.assertEqual(read_token({"token": "abc.9"}), "abc.9")
        for token in (None, "", 5, "a b", "a\r\nb", "\xe9"):
            self.assertRaises(Malformed, read_token, {"token": token})

    def test_malformed(self) -> None:
        """What etcd would not say is refused, in one printable line."""
        malformed: list[dict[str, Any]] = [
            {},
            {"header": []},
            {"header": {"revision": "1e3"}},
            {"header": HEADER, "kvs": {}},
            {"header": HEADER, "kvs": [5]},
            {"header": HEADER, "kvs": [{}]},
            {"header": HEADER, "kvs": [{**RAW_KEY, "key": "?"}]},
            {"header": HEADER, "kvs": [{**RAW_KEY, "value": 5}]},
            {"header": HEADER, "kvs": [{**RAW_KEY, "lease": "x"}]},
        ]
        for raw in malformed:
            error = self.assertRaises(Malformed, read_found, raw)
            self.assertTrue(str(error).isprintable())


NAMES = (
    *("header", "result", "error", "code", "message", "kvs", "kv", "key", "value", "events", "canceled", "TTL"),
    *("revision", "cluster_id", "mod_revision", "responses", "response_range", "cancel_reason", "grpc_code"),
)

JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.sampled_from(["5", "L2s="]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            children,
            max_size=4,
        )
    ),
    max_leaves=20,
)

LINES = st.binary(max_size=40) | (JSON | JSON.map(lambda value: {"result": value})).map(
    lambda value: json.dumps(value).encode()
)


class FuzzTests(SynchronousTestCase):
    """Whatever comes, it is read or refused."""

    @given(
        st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()), st.sampled_from([200, 400, 503])
    )
    def test_answers(self, body: bytes, status: int) -> None:
        """No answer is anything else than a document, a refusal, or malformed."""
        with contextlib.suppress(Malformed):
            raw = read_answer(response(body, status))
            if isinstance(raw, Refusal):
                self.assertTrue(raw.message.isprintable())
                return
            for read in (read_found, read_done, read_kept, read_token, read_keys_of_lease):
                with contextlib.suppress(Malformed):
                    read(raw)

    @given(LINES)
    def test_lines(self, line: bytes) -> None:
        """Nor is any line of a watch."""
        with contextlib.suppress(Malformed):
            told = read_told(line)
            if isinstance(told, Told):
                mirror = Etcd3Mirror(Keys("/kiwi"), "c", 10)
                mirror.hear(told.events, 0)


class MirrorTests(SynchronousTestCase):
    """What keys and changes mean."""

    def setUp(self) -> None:
        self.mirror = Etcd3Mirror(Keys("/kiwi"), "c", 10)

    def test_claims_and_agents(self) -> None:
        """Claims and records are known by address and id; and it is said what is news."""
        record = write_record(A).encode()
        self.assertTrue(self.mirror.put(key_value("/kiwi/publicips/192.168.1.41", b"a", lease=9), 0), 0)
        self.assertTrue(self.mirror.put(key_value("/kiwi/publicips/fd00::1", b"b"), 0), 0)
        self.assertTrue(self.mirror.put(key_value("/kiwi/agents/a", record), 0), 0)
        self.assertFalse(self.mirror.put(key_value("/kiwi/agents/a", record, modified=6), 0), 0)
        self.assertFalse(self.mirror.put(key_value("/kiwi/publicips/192.168.1.41", b"a", 6, 10), 0), 0)
        self.assertEqual(self.mirror.known(0), Claims({ONE: "a", ip("fd00::1"): "b"}, {"a": A}))
        self.assertEqual(self.mirror.claims[ONE], ClaimKey("a", 10, 6))

    def test_changes(self) -> None:
        """Changes of one revision belong together; those of earlier ones are known."""
        self.mirror.latest = 5
        put = [KeyEvent(key_value(f"/kiwi/publicips/{each}", b"a", 6), False) for each in (ONE, TWO)]
        self.assertTrue(self.mirror.hear(put, 0))
        self.assertEqual(self.mirror.known(0), Claims({ONE: "a", TWO: "a"}))
        self.assertFalse(self.mirror.hear([KeyEvent(key_value("/kiwi/publicips/192.168.1.41", modified=5), True)], 0))
        self.assertTrue(self.mirror.hear([KeyEvent(key_value("/kiwi/publicips/192.168.1.41", modified=7), True)], 0))
        self.assertEqual((self.mirror.known(0), self.mirror.latest), (Claims({TWO: "a"}), 7))

    def test_history_and_loss(self) -> None:
        """The name of what the store knows is no news; that it has lost it is."""
        self.assertFalse(self.mirror.put(key_value("/kiwi/store", b"x"), 0), 0)
        self.assertEqual(self.mirror.history, "3 b'x'")
        self.assertTrue(self.mirror.put(key_value("/kiwi/lost", b"a"), 0), 0)
        self.assertTrue(self.mirror.known(0).lost)
        self.assertTrue(self.mirror.hear([KeyEvent(key_value("/kiwi/lost", modified=6), True)], 0))
        self.assertFalse(self.mirror.hear([KeyEvent(key_value("/kiwi/store", modified=7), True)], 0))
        self.assertEqual((self.mirror.history, self.mirror.known(2)), (None, Claims(losses=2)))

    def test_odd(self) -> None:
        """What is passed over is named, and nothing is known of it any more."""
        self.mirror.put(key_value("/kiwi/publicips/192.168.1.41", b"a"), 0)
        self.mirror.put(key_value("/kiwi/agents/a", write_record(A).encode(), 0), 0)
        self.assertTrue(self.mirror.put(key_value("/kiwi/publicips/192.168.1.41", b"\xff"), 0), 0)
        self.assertTrue(self.mirror.put(key_value("/kiwi/agents/a", b"\xff"), 0), 0)
        self.assertFalse(self.mirror.put(key_value("/kiwi/publicips/FD00::1", b"a"), 0), 0)
        self.assertFalse(self.mirror.put(key_value("/kiwi/publicips/", b"a"), 0), 0)
        self.assertFalse(self.mirror.put(key_value("/kiwi/agents/", b"a"), 0), 0)
        self.assertFalse(self.mirror.put(key_value("/kiwi/x", b"a"), 0), 0)
        no_address, no_record = "it names no address, or not in its usual form", "it is no record of an agent"
        self.assertEqual(
            self.mirror.oddities,
            [
                Oddity("/kiwi/publicips/192.168.1.41", "it does not say whose it is"),
                Oddity("/kiwi/agents/a", no_record),
                Oddity("/kiwi/publicips/FD00::1", no_address),
                Oddity("/kiwi/publicips/", no_address),
                Oddity("/kiwi/agents/", no_record),
                Oddity("/kiwi/x", "it is no key of Kiwi's"),
            ],
        )
        self.assertEqual(self.mirror.known(0), Claims())
