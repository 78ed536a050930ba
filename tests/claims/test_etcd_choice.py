"""Which version of etcd's API an agent takes, where nobody has said so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import eventAsText
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from zope.interface.verify import verifyObject

from kiwi.claims.etcd2 import Etcd2ClaimStore
from kiwi.claims.etcd_choice import (
    V2,
    ChosenEtcd,
    Heard,
    Silent,
    etcd_version_of,
    read_presence,
    read_version,
)
from kiwi.claims.interface import Granted, IClaimStore, Unavailable
from kiwi.claims.memory import MemoryClaims, MemoryClaimStore
from kiwi.http import Response
from kiwi.model import Claims
from tests.fakes.etcd2 import FakeEtcd2
from tests.fakes.etcd_process import EtcdProcess, etcd_binaries, serving_v2
from tests.fakes.worlds import ClockWorld, RealWorld, World

from .claimstoretests import ONE, A, B, Listener, WatchingTestCase, capture_log, levels
from .stages import BACKOFF, etcd2_store

OLD, NEW = (3, 3), (3, 4)
DOWN = Silent("Connection refused")
TTL = 10


def new(v2: V2) -> Heard:
    return Heard(NEW, v2)


class DecidingTests(SynchronousTestCase):
    """The decision, from what was heard."""

    def decided(self, *answers: Heard | Silent, waited: bool = False) -> int | None:
        """The same, whatever the order of the endpoints is."""
        (version,) = {etcd_version_of(each, waited) for each in permutations(answers)}
        return version

    def test_new(self) -> None:
        """A new fleet takes v3 where all members have it, whoever answers."""
        for answers in (
            [new(V2.EMPTY)],
            [new(V2.ABSENT)],
            [new(V2.EMPTY), DOWN, DOWN],
            [new(V2.EMPTY), new(V2.ABSENT), DOWN],
            [Heard((10, 0), V2.ABSENT)],
        ):
            self.assertEqual(self.decided(*answers), 3, answers)

    def test_old(self) -> None:
        """It takes v2 where some member has no v3, or has it elsewhere, as before 3.4."""
        for version in ((2, 3), (3, 0), (3, 3)):
            self.assertEqual(self.decided(Heard(version, V2.EMPTY)), 2)
        self.assertEqual(self.decided(Heard(OLD, V2.EMPTY), new(V2.EMPTY)), 2)

    def test_fleet(self) -> None:
        """A fleet that is in v2 stays there, whatever else there is, as soon as one member tells of it."""
        for more in ([], [DOWN], [new(V2.EMPTY)], [new(V2.ABSENT), DOWN], [new(V2.FORBIDDEN)]):
            for waited in (False, True):
                self.assertEqual(self.decided(new(V2.FLEET), *more, waited=waited), 2)

    def test_silent(self) -> None:
        """
        Where those who answer serve no v2, those who do not answer are waited for, since they may. After a whole TTL,
        there can be no claim that they have confirmed.
        """
        answers = new(V2.ABSENT), DOWN
        self.assertEqual((self.decided(*answers), self.decided(*answers, waited=True)), (None, 3))

    def test_unknown(self) -> None:
        """Where nobody answers, or the keys may not be read, nothing is decided, however long it takes."""
        for answers in (
            [DOWN],
            [DOWN, DOWN],
            [new(V2.FORBIDDEN)],
            [new(V2.FORBIDDEN), new(V2.ABSENT)],
            [Heard(OLD, V2.FORBIDDEN)],
            [Heard(OLD, V2.ABSENT)],
        ):
            for waited in (False, True):
                self.assertIsNone(self.decided(*answers, waited=waited), answers)

    @given(st.lists(st.sampled_from([DOWN, *map(new, V2), *(Heard(OLD, v2) for v2 in V2)]), min_size=2), st.booleans())
    def test_members_down(self, answers: Sequence[Heard | Silent], waited: bool) -> None:
        """Members of a cluster that all serve v2 never lead to another choice because some of them are down."""
        served = [answer for answer in answers if isinstance(answer, Silent) or answer.v2 in (V2.EMPTY, V2.FLEET)]
        states = {(answer.cluster, answer.v2) for answer in served if isinstance(answer, Heard)}
        if len(states) == 1:
            ((cluster, v2),) = states
            self.assertEqual(etcd_version_of(served, waited), 3 if (cluster, v2) == (NEW, V2.EMPTY) else 2)


def response(status: int, body: str, index: str | None = "7") -> Response:
    return Response(status, Headers({"X-Etcd-Index": [index]} if index else {}), body.encode())


class ReadingTests(SynchronousTestCase):
    """What endpoints say."""

    def test_version(self) -> None:
        """It is the version of the cluster that counts, and that must be known."""
        for body, expected in (
            ('{"etcdserver":"3.5.1","etcdcluster":"3.5.0"}', (3, 5)),
            ('{"etcdserver":"3.6.0","etcdcluster":"3.5.0"}', (3, 5)),
            ('{"etcdserver":"2.3.8","etcdcluster":"2.3.0"}', (2, 3)),
            (
                '{"etcdserver":"3.5.1","etcdcluster":"not_decided"}',
                Silent("no version of the cluster, but not_decided"),
            ),
            ('{"etcdserver":"3.5.1"}', Silent("no version of the cluster, but None")),
            ("[3]", Silent("no version of the cluster, but None")),
            ("etcd 0.4", Silent("a version that is no JSON")),
        ):
            self.assertEqual(read_version(response(200, body)), expected)
        self.assertEqual(read_version(response(503, "")), Silent("status 503 for /version"))

    def test_presence(self) -> None:
        """A key is there, or a folder with something in it; or not; or there is no such API."""
        node = '{"node":{"key":"/kiwi/agents","modifiedIndex":5,%s}}'
        for answer, expected in (
            (response(200, node % '"value":"x"'), True),
            (response(200, node % '"dir":true,"nodes":[{"key":"/kiwi/agents/a","value":"x","modifiedIndex":6}]'), True),
            (response(200, node % '"dir":true'), False),
            (response(404, '{"errorCode":100,"message":"Key not found","cause":"/kiwi","index":7}'), False),
            (response(404, "404 page not found\n", None), None),
            (response(404, '{"errorCode":300}'), Silent("error 300: None (None)")),
            (response(200, "{}"), Silent("a snapshot without a node")),
            (response(500, "", None), Silent("status 500, and no X-Etcd-Index")),
        ):
            self.assertEqual(read_presence(answer), expected)

    @given(st.integers(200, 599), st.text())
    def test_anything(self, status: int, text: str) -> None:
        """Whatever an endpoint says is an answer, or one printable line."""
        for read in (read_version(response(status, text)), read_presence(response(status, text))):
            if isinstance(read, Silent):
                self.assertTrue(read.why.isprintable())


class Member(Resource):
    """A member of etcd: its version, and v2 where it serves that."""

    isLeaf = True

    def __init__(self, cluster: str, v2: FakeEtcd2 | None) -> None:
        super().__init__()
        self.cluster, self.v2 = cluster, v2
        self.asked = 0

    def render(self, request):  # type: ignore[no-untyped-def]
        self.asked += 1
        if request.path == b"/version":
            return json.dumps({"etcdserver": "3.5.1", "etcdcluster": self.cluster}).encode()
        if self.v2 is not None:
            return self.v2.render(request)
        request.setResponseCode(404)
        return b"404 page not found\n"


def chosen_etcd(world: World, claims: MemoryClaims, endpoints: Sequence[str]) -> ChosenEtcd:
    """Claims of v3 are in memory here."""
    return ChosenEtcd(
        world.http,
        world.clock,
        endpoints,
        "/kiwi",
        TTL,
        BACKOFF,
        {2: lambda: etcd2_store(world, endpoints, "/kiwi", "a", TTL), 3: lambda: claims.store("a", TTL)},
    )


class ChoosingTests(WatchingTestCase):
    """The store that is chosen, over etcds in memory and in simulated time."""

    def setUp(self) -> None:
        self.log = capture_log(self)
        world = ClockWorld()
        self.world, self.network = world, world.network
        self.fake = FakeEtcd2(world.clock)
        self.member = Member("3.5.0", self.fake)
        self.network.plug("one:2379", self.member)
        self.claims = MemoryClaims(self.world.clock)
        self.store = chosen_etcd(self.world, self.claims, ["http://one:2379", "http://two:2379"])
        self.listener = Listener()

    def lines(self) -> list[str]:
        return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in self.log]

    async def chosen(self) -> IClaimStore:
        self.listener.listen(self, self.store)
        await self.world.until(lambda: self.store._chosen is not None)
        assert self.store._chosen is not None
        return self.store._chosen

    def test_interface(self) -> None:
        """It is a claim store."""
        verifyObject(IClaimStore, self.store)

    async def test_new_fleet(self) -> None:
        """A new fleet has its claims in v3, although a member is down, and the store does what that one does."""
        self.assertIsInstance(await self.chosen(), MemoryClaimStore)
        self.assertIsInstance(await self.world.of(self.store.register(A)), Granted)
        self.assertIsInstance(await self.world.of(self.store.acquire(ONE)), Granted)
        self.assertIsInstance((await self.world.of(self.store.renew({ONE})))[ONE], Granted)
        await self.hears(self.listener, Claims({ONE: "a"}, {"a": A}))
        await self.world.of(self.store.release(ONE))
        await self.world.of(self.store.deregister(A))
        await self.hears(self.listener, Claims())
        self.assertEqual(self.lines(), ["claims are in API v3 of etcd"])

    async def test_fleet_in_v2(self) -> None:
        """An agent of a fleet that is in v2 joins it, and says how to move."""
        await self.world.of(etcd2_store(self.world, ["http://one:2379"], "/kiwi", "b", TTL).register(B))
        self.assertIsInstance(await self.chosen(), Etcd2ClaimStore)
        await self.hears(self.listener, Claims({}, {"b": B}))
        self.assertEqual(
            self.lines()[0],
            "claims stay in API v2 of etcd, although it has v3 as well: agents are there, in /kiwi/agents; "
            "docs/stores.rst says how to move",
        )

    async def test_fleet_without_records(self) -> None:
        """So does one that comes when all records have ended: the fleet has left its name."""
        await self.world.of(etcd2_store(self.world, ["http://one:2379"], "/kiwi", "b", TTL).begin_history())
        await self.world.seconds(TTL + 1)
        self.assertIsInstance(await self.chosen(), Etcd2ClaimStore)
        self.assertIn("a fleet has left its name, in /kiwi/store", self.lines()[0])

    async def test_fleet_that_left(self) -> None:
        """When all have left in order, nothing is left of the fleet, and the next one is in v3."""
        b = etcd2_store(self.world, ["http://one:2379"], "/kiwi", "b", TTL)
        await self.watched(b)
        await self.world.until(lambda: b.mirror is not None and b.mirror.history is not None)
        await self.world.of(b.register(B))
        await self.world.of(b.deregister(B))
        self.assertIsInstance(await self.chosen(), MemoryClaimStore)

    async def test_old_etcd(self) -> None:
        """With an etcd that has no v3, claims are in v2, and there is nothing to move."""
        self.member.cluster = "2.3.0"
        self.assertIsInstance(await self.chosen(), Etcd2ClaimStore)
        self.assertEqual(self.lines()[0], "claims are in API v2 of etcd")

    async def test_until_then(self) -> None:
        """Until it is known, nothing is answered, why is told once, and etcd is asked again and again."""
        self.member.cluster = "not_decided"
        self.listener.listen(self, self.store)
        await self.world.seconds(TTL + 1)
        why = (
            "it is not known yet whether claims are in API v2 or v3 of etcd: http://one:2379: no version of the "
            "cluster, but not_decided; http://two:2379: Connection was refused by other side"
        )
        self.assertEqual(self.lines(), [f"{why}; asking again and again"])
        self.assertEqual(levels(self.log), ["warn"])
        for answer in (
            await self.world.of(self.store.acquire(ONE)),
            (await self.world.of(self.store.renew({ONE})))[ONE],
            await self.world.of(self.store.release(ONE)),
            await self.world.of(self.store.register(A)),
            await self.world.of(self.store.deregister(A)),
        ):
            self.assertEqual(answer, Unavailable(why))
        self.assertEqual(self.listener.heard, [])
        self.member.cluster = "3.5.0"
        await self.world.until(lambda: self.store._chosen is not None, within=1)

    async def test_silent_member(self) -> None:
        """A member that may serve v2, while another does not, is waited for, and tells of the fleet."""
        self.member.v2 = None
        self.listener.listen(self, self.store)
        await self.world.seconds(TTL - 2)
        self.assertIsNone(self.store._chosen)
        self.network.plug("two:2379", Member("3.5.0", self.fake))
        await self.world.of(etcd2_store(self.world, ["http://two:2379"], "/kiwi", "b", TTL).register(B))
        await self.world.until(lambda: self.store._chosen is not None, within=1)
        self.assertIsInstance(self.store._chosen, Etcd2ClaimStore)

    async def test_dead_member(self) -> None:
        """It is waited for no longer than a TTL."""
        self.member.v2 = None
        self.listener.listen(self, self.store)
        await self.world.seconds(TTL + 1)
        self.assertIsInstance(self.store._chosen, MemoryClaimStore)

    async def test_forbidden(self) -> None:
        """Who may not look for a fleet in v2 chooses nothing, and is told what to do."""
        self.fake.fail_next(1000, 401, b'{"errorCode":110,"message":"x","cause":"y"}')
        self.listener.listen(self, self.store)
        await self.world.seconds(TTL + 1)
        self.assertIsNone(self.store._chosen)
        self.assertIn("nobody without a name may ask for /kiwi/agents; give --etcd-user", self.lines()[0])

    async def test_stop(self) -> None:
        """A watch that stops asks no more, whether or not it is known."""
        self.member.cluster = "not_decided"
        for _ in range(2):
            service = self.listener.listen(self, self.store)
            await self.world.until(lambda: self.member.asked > 0)
            service.stopService()
            await self.world.seconds(1)
            asked = self.member.asked
            await self.world.seconds(TTL)
            self.assertEqual(self.member.asked, asked)
            self.member.cluster = "3.5.0"
        self.assertEqual(self.flushLoggedErrors(), [])


class WithoutV2(EtcdProcess):
    """An etcd that serves v3 only."""

    def _security(self) -> Sequence[str]:
        return ["--enable-v2=false"] if serving_v2(self.binary) else []


class RealTests(TestCase):
    """Over real etcds."""

    async def test_choices(self) -> None:
        """Both versions are taken for what they are, with v2 and without it, and with a fleet in v2."""
        for binary in etcd_binaries().values():
            for kind, fleet, expected in (
                (WithoutV2, False, MemoryClaimStore),
                (EtcdProcess, False, MemoryClaimStore),
                (EtcdProcess, True, Etcd2ClaimStore),
            ):
                if fleet and not serving_v2(binary):
                    continue
                with kind(binary) as process:
                    world = RealWorld(self)
                    store = chosen_etcd(world, MemoryClaims(world.clock), [process.endpoint])
                    if fleet:
                        b = etcd2_store(world, [process.endpoint], "/kiwi", "b", 30)
                        self.assertIsInstance(await b.register(B), Granted)
                    self.assertIsInstance(await store.choose(), expected)
