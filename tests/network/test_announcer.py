"""The announcer suite, in memory and on a link; and what only a link does."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from time import monotonic, sleep

from attrs import define, field
from pyroute2 import IPRoute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, Assignment, ip
from kiwi.network.announcer import LinkAnnouncer
from kiwi.network.arp import ARP, arp_announcement
from kiwi.network.interface import NetworkError
from kiwi.network.memory import MemoryAnnouncer
from kiwi.network.ndp import NDP, ndp_advertisement
from kiwi.network.packets import NeighbourProtocol

from .addressestests import IPV4, IPV6, plus
from .announcertests import make_announcer_tests
from .hosts import NamespacedHost, enter_host, make_link
from .wires import Wire

FIRST, FIRST6 = IPV4.first, IPV6.first
MAC = bytes.fromhex("020000000007")


def set_clock() -> Clock:
    """One that stands at 100 s."""
    clock = Clock()
    clock.advance(100)
    return clock


@define
class MemoryFixture:
    """An C{AnnouncerFixture} in memory."""

    announcer: MemoryAnnouncer = field(factory=lambda: MemoryAnnouncer(set_clock().seconds))
    _heard: int = 0

    def heard(self) -> Sequence[Address]:
        new = self.announcer.announced[self._heard :]
        self._heard += len(new)
        return new

    def break_link(self) -> None:
        self.announcer.refusal = "announcing addresses on em1: Network is down"

    def mend_link(self) -> None:
        self.announcer.refusal = None


@define
class LinkFixture:
    """An C{AnnouncerFixture} on veths."""

    protocol: NeighbourProtocol
    host: NamespacedHost
    announcer: LinkAnnouncer
    wire: Wire

    def heard(self) -> Sequence[Address]:
        frames = self.wire.frames()
        owners = list(filter(None, map(self.protocol.read_owner, frames)))
        heard = list(dict.fromkeys(ip(address) for address, _ in owners))
        mac = owners[0][1] if owners else b""
        assert frames == [frame for address in heard for frame in self.protocol.announcement(mac, address)]
        return heard

    def break_link(self) -> None:
        self.host.link(state="down")

    def mend_link(self) -> None:
        self.host.link(state="up")


def make_link_fixture(case: SynchronousTestCase, protocol: NeighbourProtocol = ARP) -> LinkFixture:
    host = enter_host(case)
    host.create_link("em2")
    announcer = LinkAnnouncer(set_clock().seconds)
    case.addCleanup(announcer.close)
    wire = Wire(host, protocol)
    case.addCleanup(wire.close)
    return LinkFixture(protocol, host, announcer, wire)


class MemoryAnnouncerTests(make_announcer_tests(lambda case: MemoryFixture(), IPV4)):  # type: ignore[misc]
    """An announcer that only remembers."""


class MemoryIPv6AnnouncerTests(make_announcer_tests(lambda case: MemoryFixture(), IPV6)):  # type: ignore[misc]
    """The same with IPv6 addresses."""


class IPv6LinkAnnouncerTests(
    make_announcer_tests(lambda case: make_link_fixture(case, NDP), IPV6)  # type: ignore[misc]
):
    """One that sends, and a neighbour in another namespace that listens."""

    def test_frames(self) -> None:
        """The neighbour hears exactly one frame, from the MAC address that the interface has at that time."""
        for mac in ("02:00:00:00:00:07", "02:00:00:00:00:08"):
            self.host.host.link(address=mac)
            self.announcer.announce({Assignment(FIRST6, 101, "em1")})
            expected = ndp_advertisement(bytes.fromhex(mac.replace(":", "")), FIRST6)
            self.assertEqual(self.host.wire.frames(), list(expected))

    def test_caches(self) -> None:
        """A neighbour that knew the address at another MAC address knows it at this one."""
        host = self.host.host
        host.link(address=MAC.hex(":"))
        with host.at_neighbour():
            host.address("add", "fd00::9/64", "peer")
            known = ["ip", "neigh", "replace", str(FIRST6), "lladdr", "02:00:00:00:00:08", "dev", "peer"]
            subprocess.run([*known, "nud", "stale"], check=True)
        self.announcer.announce({Assignment(FIRST6, 101, "em1")})
        self.assertEqual(self.host.heard(), [FIRST6])
        with host.at_neighbour():
            neighbour = subprocess.run(["ip", "neigh", "show", str(FIRST6)], check=True, capture_output=True, text=True)
        self.assertIn(f"lladdr {MAC.hex(':')} ", neighbour.stdout)


class LinkAnnouncerTests(make_announcer_tests(make_link_fixture, IPV4)):  # type: ignore[misc]
    """One that sends, and a neighbour in another namespace that listens."""

    def test_frames(self) -> None:
        """The neighbour hears exactly the two frames, from the MAC address that the interface has at that time."""
        for mac in ("02:00:00:00:00:07", "02:00:00:00:00:08"):
            self.host.host.link(address=mac)
            self.announcer.announce({Assignment(FIRST, 101, "em1")})
            expected = arp_announcement(bytes.fromhex(mac.replace(":", "")), FIRST)
            self.assertEqual(self.host.wire.frames(), list(expected))

    def test_two_interfaces(self) -> None:
        """Each address is announced on its own interface, and one that cannot send keeps back no other one."""
        wires = [
            self.host.wire,
            Wire(self.host.host, NDP),
            Wire(self.host.host, ARP, "em2"),
            Wire(self.host.host, NDP, "em2"),
        ]
        for wire in wires[1:]:
            self.addCleanup(wire.close)
        assignments = {Assignment(FIRST, 101, "em1"), Assignment(FIRST6, 101, "em2")}
        self.announcer.announce(assignments)
        self.assertEqual([len(wire.frames()) for wire in wires], [2, 0, 0, 1])
        self.host.break_link()
        more = {Assignment(FIRST6 + 1, 101, "em1"), Assignment(FIRST, 101, "em3")}
        with self.assertRaises(NetworkError) as caught:
            self.announcer.announce(assignments | more)
        self.assertEqual(
            str(caught.exception),
            "announcing addresses on em1: Network is down; announcing addresses on em3: No such device",
        )
        self.assertEqual(len(wires[3].frames()), 1)

    def test_interface_gone(self) -> None:
        """An interface that is not there is an error, and one that comes back is used as it is then."""
        self.announcer.announce({Assignment(FIRST, 101, "em1")})
        self.host.host.remove_link()
        with self.assertRaises(NetworkError) as caught:
            self.announcer.announce({Assignment(FIRST, 101, "em1")})
        self.assertEqual(str(caught.exception), "announcing addresses on em1: No such device")
        self.host.host.create_link()
        self.host.wire.close()
        self.host.wire.listen()
        self.announcer.announce({Assignment(FIRST, 101, "em1")})
        self.assertEqual(self.host.heard(), [FIRST])

    def test_interface_replaced(self) -> None:
        """An interface that was replaced by another one of the same name between two rounds is used at once."""
        self.announcer.announce({Assignment(FIRST, 101, "em1")})
        self.host.host.remove_link()
        self.host.host.create_link()
        self.host.wire.close()
        self.host.wire.listen()
        self.announcer.announce({Assignment(FIRST, 101, "em1")})
        self.assertEqual(self.host.heard(), [FIRST])

    def test_no_link_layer(self) -> None:
        """Where there are no neighbours there is nothing to tell."""
        announcer = LinkAnnouncer(set_clock().seconds)
        self.addCleanup(announcer.close)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as everything:
            everything.bind(("lo", 3))
            announcer.announce({Assignment(FIRST, 101, "lo"), Assignment(FIRST6, 101, "lo")})
            everything.settimeout(0.2)
            self.assertRaises(TimeoutError, everything.recv, 2048)

    def throttle(self) -> None:
        """Let the interface send 1,000 frames in a second, and keep few in its queue."""
        with IPRoute() as route:
            route.tc("add", "tbf", self.host.host.index(), rate="336kbit", burst=1600, limit=200)

    def test_full_queue(self) -> None:
        """A queue that is full is given time to drain, and nothing is lost."""
        self.throttle()
        waits = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            sleep(seconds)

        announcer = LinkAnnouncer(monotonic, wait)
        self.addCleanup(announcer.close)
        end = monotonic() + 60
        announcer.announce({Assignment(plus(FIRST, number), end, "em1") for number in range(100)})
        self.assertEqual(self.host.heard(), [plus(FIRST, number) for number in range(100)])
        self.assertNotEqual(waits, [])

    def test_time_runs_out(self) -> None:
        """An address whose time comes while the queue is full is not announced any more."""
        self.throttle()
        clock = set_clock()
        announcer = LinkAnnouncer(clock.seconds, clock.advance)
        self.addCleanup(announcer.close)
        announcer.announce({Assignment(plus(FIRST, number), 100.1, "em1") for number in range(1000)})
        self.assertLess(len(self.host.wire.frames()), 1000)

    def test_queue_stays_full(self) -> None:
        """A queue that does not drain is an error after a while."""
        self.throttle()
        clock = set_clock()
        announcer = LinkAnnouncer(clock.seconds, lambda seconds: clock.advance(1))
        self.addCleanup(announcer.close)
        with self.assertRaises(NetworkError) as caught:
            announcer.announce({Assignment(plus(FIRST, number), 10_000, "em1") for number in range(1000)})
        self.assertEqual(str(caught.exception), "announcing addresses on em1: No buffer space available")


class KindTests(SynchronousTestCase):
    """Interfaces that are made of others."""

    def check(self, name: str, *make: str) -> None:
        """What is announced there is heard at the other end, from the MAC address of the interface itself."""
        host = enter_host(self)
        make_link(self, *make)
        with IPRoute() as route:
            mac = bytes.fromhex(route.get_links(host.index(name))[0].get_attr("IFLA_ADDRESS").replace(":", ""))
        announcer = LinkAnnouncer(set_clock().seconds)
        self.addCleanup(announcer.close)
        wires = [Wire(host), Wire(host, NDP)]
        for wire in wires:
            self.addCleanup(wire.close)
        announcer.announce({Assignment(FIRST, 101, name), Assignment(FIRST6, 101, name)})
        expected = [list(arp_announcement(mac, FIRST)), list(ndp_advertisement(mac, FIRST6))]
        self.assertEqual([wire.frames() for wire in wires], expected)

    def test_bridge(self) -> None:
        """A bridge with one port."""
        self.check("br0", "add br0 type bridge forward_delay 0", "set em1 master br0", "set br0 up")

    def test_macvlan(self) -> None:
        """A macvlan."""
        self.check("mac0", "add link em1 name mac0 type macvlan mode bridge", "set mac0 up")
