"""The announcer suite, in memory and on a link; and what only a link does."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address
from time import monotonic, sleep

from attrs import define, field
from pyroute2 import IPRoute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Assignment
from kiwi.network.announcer import ArpAnnouncer
from kiwi.network.arp import arp_announcement
from kiwi.network.interface import NetworkError
from kiwi.network.memory import MemoryAnnouncer

from .announcertests import FIRST, make_announcer_tests
from .hosts import NamespacedHost, enter_host
from .wires import Wire


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

    def heard(self) -> Sequence[IPv4Address]:
        new = self.announcer.announced[self._heard :]
        self._heard += len(new)
        return new

    def break_link(self) -> None:
        self.announcer.refusal = "announcing addresses on em1: Network is down"

    def mend_link(self) -> None:
        self.announcer.refusal = None


@define
class LinkFixture:
    """An C{AnnouncerFixture} on a veth."""

    host: NamespacedHost
    announcer: ArpAnnouncer
    wire: Wire

    def heard(self) -> Sequence[IPv4Address]:
        frames = self.wire.frames()
        mac = frames[0][6:12] if frames else b""
        heard = [IPv4Address(frame[28:32]) for frame in frames[::2]]
        assert frames == [frame for address in heard for frame in arp_announcement(mac, address)]
        return heard

    def break_link(self) -> None:
        self.host.link(state="down")

    def mend_link(self) -> None:
        self.host.link(state="up")


def make_link_fixture(case: SynchronousTestCase) -> LinkFixture:
    host = enter_host(case)
    announcer = ArpAnnouncer("em1", set_clock().seconds)
    case.addCleanup(announcer.close)
    wire = Wire(host)
    case.addCleanup(wire.close)
    return LinkFixture(host, announcer, wire)


class MemoryAnnouncerTests(make_announcer_tests(lambda case: MemoryFixture())):  # type: ignore[misc]
    """An announcer that only remembers."""


class ArpAnnouncerTests(make_announcer_tests(make_link_fixture)):  # type: ignore[misc]
    """One that sends, and a neighbour in another namespace that listens."""

    def test_frames(self) -> None:
        """The neighbour hears exactly the two frames, from the MAC address that the interface has at that time."""
        for mac in ("02:00:00:00:00:07", "02:00:00:00:00:08"):
            self.host.host.link(address=mac)
            self.announcer.announce({Assignment(FIRST, 101)})
            expected = arp_announcement(bytes.fromhex(mac.replace(":", "")), FIRST)
            self.assertEqual(self.host.wire.frames(), list(expected))

    def test_interface_gone(self) -> None:
        """An interface that is not there is an error, and one that comes back is used as it is then."""
        self.announcer.announce({Assignment(FIRST, 101)})
        self.host.host.remove_link()
        with self.assertRaises(NetworkError) as caught:
            self.announcer.announce({Assignment(FIRST, 101)})
        self.assertEqual(str(caught.exception), "announcing addresses on em1: No such device")
        self.host.host.create_link()
        self.host.wire.close()
        self.host.wire.listen()
        self.announcer.announce({Assignment(FIRST, 101)})
        self.assertEqual(self.host.heard(), [FIRST])

    def test_interface_replaced(self) -> None:
        """An interface that was replaced by another one of the same name between two rounds is used at once."""
        self.announcer.announce({Assignment(FIRST, 101)})
        self.host.host.remove_link()
        self.host.host.create_link()
        self.host.wire.close()
        self.host.wire.listen()
        self.announcer.announce({Assignment(FIRST, 101)})
        self.assertEqual(self.host.heard(), [FIRST])

    def test_no_link_layer(self) -> None:
        """Where there are no neighbours there is nothing to tell."""
        announcer = ArpAnnouncer("lo", set_clock().seconds)
        self.addCleanup(announcer.close)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as everything:
            everything.bind(("lo", 3))
            announcer.announce({Assignment(FIRST, 101)})
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

        announcer = ArpAnnouncer("em1", monotonic, wait)
        self.addCleanup(announcer.close)
        end = monotonic() + 60
        announcer.announce({Assignment(FIRST + number, end) for number in range(100)})
        self.assertEqual(self.host.heard(), [FIRST + number for number in range(100)])
        self.assertNotEqual(waits, [])

    def test_time_runs_out(self) -> None:
        """An address whose time comes while the queue is full is not announced any more."""
        self.throttle()
        clock = set_clock()
        announcer = ArpAnnouncer("em1", clock.seconds, clock.advance)
        self.addCleanup(announcer.close)
        announcer.announce({Assignment(FIRST + number, 100.1) for number in range(1000)})
        self.assertLess(len(self.host.wire.frames()), 1000)

    def test_queue_stays_full(self) -> None:
        """A queue that does not drain is an error after a while."""
        self.throttle()
        clock = set_clock()
        announcer = ArpAnnouncer("em1", clock.seconds, lambda seconds: clock.advance(1))
        self.addCleanup(announcer.close)
        with self.assertRaises(NetworkError) as caught:
            announcer.announce({Assignment(FIRST + number, 10_000) for number in range(1000)})
        self.assertEqual(str(caught.exception), "announcing addresses on em1: No buffer space available")
