"""News from the kernel reaches the agent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import ip_interface
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from socket import AF_INET6
from time import monotonic

from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from kiwi.model import Assignment, ip
from kiwi.network.addresses import PROTOCOL, NetlinkAddresses
from kiwi.network.monitor import NetlinkMonitor, is_news

from .hosts import enter_host
from .turns import Turns


class NetlinkMonitorTests(SynchronousTestCase):
    """A monitor in a namespace whose network a person changes."""

    def setUp(self) -> None:
        self.host = enter_host(self)
        self.turns = Turns()
        self.news = 0
        self.monitor = NetlinkMonitor(self.turns, self.changed)
        self.monitor.startService()
        self.addCleanup(self.stop)

    def changed(self) -> None:
        self.news += 1

    def stop(self) -> None:
        if self.monitor.running:
            self.monitor.stopService()

    def told(self) -> int:
        """How often the monitor told of something, until it is quiet."""
        while self.turns.turn(0.2):
            pass
        news, self.news = self.news, 0
        return news

    def assert_news(self, act: Callable[[], None]) -> None:
        self.told()
        act()
        self.assertGreater(self.told(), 0)

    def default_route(self, command: str, **attributes: object) -> None:
        with IPRoute() as route:
            route.route(command, **attributes)

    def test_interface(self) -> None:
        """It provides what the reactor wants of it."""
        verifyObject(IReadDescriptor, self.monitor)
        self.assertEqual(self.monitor.logPrefix(), "netlink")

    def test_address(self) -> None:
        """An address that comes or goes, and one that is only extended, is news."""
        for address in ("192.168.1.41/32", "fd00::41/128"):
            for command in ("add", "replace", "del"):
                self.assert_news(partial(self.host.address, command, address))

    def test_our_addresses(self) -> None:
        """
        That an address of ours comes or is extended is no news, nor are the routes of single addresses; that it goes
        is, and that it has no end any more.
        """
        # The kernel's own, of which there is news until it is known to be the only one.
        with IPRoute() as route:
            route.flush_addr(index=self.host.index(), family=AF_INET6)
        self.told()
        addresses = NetlinkAddresses(["em1"], lambda: 0.0)
        for address, label in (("192.168.1.41", {"label": "em1:kube"}), ("fd00::41", {})):
            for _ in range(2):
                addresses.assign({Assignment(ip(address), 100, "em1")})
                self.assertEqual(self.told(), 0)
            alone = str(ip_interface(address))
            self.assert_news(partial(self.host.address, "replace", alone, proto=PROTOCOL, **label))
            self.assert_news(partial(self.host.address, "replace", alone, valid_lft=9, preferred_lft=9, **label))
            addresses.assign({Assignment(ip(address), 100, "em1")})
            self.assert_news(partial(self.host.address, "del", alone))

    def test_link(self) -> None:
        """An interface that loses its carrier, goes down, or is deleted is news."""
        for act in (
            partial(self.host.link, state="down"),
            partial(self.host.link, state="up"),
            self.host.remove_link,
            self.host.create_link,
        ):
            self.assert_news(act)

    def test_default_route(self) -> None:
        """A default route that comes or goes is news; other routes are not."""
        self.host.address("add", "192.168.1.2/24")
        self.told()
        self.assert_news(lambda: self.default_route("add", gateway="192.168.1.1"))
        self.assert_news(lambda: self.default_route("del", gateway="192.168.1.1"))
        self.default_route("add", dst="10.0.0.0/8", gateway="192.168.1.1")
        self.assertEqual(self.told(), 0)

    def test_default_route_of_ipv6(self) -> None:
        """The same with IPv6."""
        self.host.address("add", "fd00::2/64")
        self.told()
        self.assert_news(lambda: self.default_route("add", gateway="fd00::1", family=AF_INET6))
        self.assert_news(lambda: self.default_route("del", gateway="fd00::1", family=AF_INET6))
        self.default_route("add", dst="fd01::/16", gateway="fd00::1", family=AF_INET6)
        self.assertEqual(self.told(), 0)

    def test_once_a_turn(self) -> None:
        """However much there is to read in a turn, it is told once."""
        self.told()
        for number in range(20):
            self.host.address("add", f"192.168.1.{number + 1}/32")
        self.assertTrue(self.turns.turn())
        self.assertEqual(self.news, 1)
        self.assertFalse(self.turns.turn())

    def test_flood(self) -> None:
        """News that the kernel had to drop is news."""
        self.told()
        with IPRoute() as route:
            index = self.host.index()
            for number in range(400):
                route.addr("add", index=index, address=f"10.0.{number // 200}.{number % 200 + 1}", prefixlen=32)
                route.addr("del", index=index, address=f"10.0.{number // 200}.{number % 200 + 1}", prefixlen=32)
        self.assertGreater(self.told(), 0)
        self.assert_news(lambda: self.host.address("add", "192.168.1.41/32"))

    def test_broken(self) -> None:
        """When the reactor gives up on the socket there is another one, and what was missed is news."""
        self.told()
        self.monitor.connectionLost(Failure(ConnectionLost()))
        self.assertEqual((self.news, self.turns.readers), (1, [self.monitor]))
        self.assert_news(lambda: self.host.address("add", "192.168.1.41/32"))

    def without_descriptors(self) -> None:
        """Let the monitor lose its socket while the process can open no file."""
        limits = getrlimit(RLIMIT_NOFILE)
        setrlimit(RLIMIT_NOFILE, (3, limits[1]))
        try:
            self.monitor.connectionLost(Failure(ConnectionLost()))
        finally:
            setrlimit(RLIMIT_NOFILE, limits)

    def test_no_socket(self) -> None:
        """A socket that cannot be had is tried for again a second later."""
        self.without_descriptors()
        self.assertEqual((self.monitor.fileno(), self.turns.readers), (-1, []))
        self.turns.advance(1)
        self.assert_news(partial(self.host.address, "add", "192.168.1.41/32"))

    def test_no_socket_and_stop(self) -> None:
        """A monitor that was stopped does not try again."""
        self.without_descriptors()
        self.monitor.stopService()
        self.assertEqual((self.turns.readers, self.turns.getDelayedCalls()), ([], []))

    def test_stop(self) -> None:
        """After the stop the socket is closed and nothing is told."""
        self.monitor.stopService()
        self.assertEqual((self.monitor.fileno(), self.turns.readers), (-1, []))
        self.host.address("add", "192.168.1.41/32")
        self.monitor.connectionLost(Failure(ConnectionLost()))
        self.assertEqual((self.turns.readers, self.news, self.turns.getDelayedCalls()), ([], 0, []))


class ReactorTests(TestCase):
    """A monitor in a real reactor."""

    async def test_by_hand(self) -> None:
        """An address that somebody deletes by hand wakes the agent."""
        host = enter_host(self)
        host.address("add", "192.168.1.41/32")
        woken: Deferred[float] = Deferred()
        monitor = NetlinkMonitor(reactor, lambda: None if woken.called else woken.callback(monotonic()))
        monitor.startService()
        self.addCleanup(monitor.stopService)
        host.address("del", "192.168.1.41/32")
        await woken.addTimeout(20, reactor)


class NewsTests(SynchronousTestCase):
    """Which messages are news."""

    def test_kinds(self) -> None:
        """Interfaces, addresses and default routes are; the rest is not, nor is what is cut short."""
        kinds = {kind: is_news(bytes([32, 0, 0, 0, kind, 0]) + bytes(26)) for kind in range(16, 33)}
        self.assertEqual([kind for kind, news in kinds.items() if news], [16, 17, 20, 21, 24, 25])
        self.assertEqual([is_news(bytes(size)) for size in (0, 15, 16, 64)], [False] * 4)

    def test_routes(self) -> None:
        """A route is news if its destination is everything."""
        for size, news in ((0, True), (8, False), (32, False)):
            message = rtmsg()
            message.update({"family": 2, "dst_len": size, "table": 254, "type": 1})
            message["header"]["type"] = 24
            message.encode()
            self.assertEqual(is_news(bytes(message.data)), news)
