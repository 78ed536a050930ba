"""What other machines say of addresses reaches the agent."""

from __future__ import annotations

from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from time import monotonic

from twisted.internet import reactor
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from kiwi.model import Address, Assignment, ip
from kiwi.network.announcer import LinkAnnouncer
from kiwi.network.arp import ARP, arp_announcement, arp_probe
from kiwi.network.listener import LinkListener
from kiwi.network.ndp import NDP, ndp_advertisement, ndp_probe

from .hosts import enter_host
from .turns import Turns
from .wires import Wire

ADDRESS, ADDRESS6 = ip("192.168.1.41"), ip("fd00::41")
OURS = bytes.fromhex("020000000007")
THEIRS = bytes.fromhex("020000000008")


class LinkListenerTests(SynchronousTestCase):
    """A listener on a host, and another machine of which we send the frames."""

    def setUp(self) -> None:
        self.host = enter_host(self)
        self.host.link(address=OURS.hex(":"))
        self.wire = Wire(self.host)
        self.addCleanup(self.wire.close)
        self.turns = Turns()
        self.told: list[tuple[Address, bytes]] = []
        self.listener = LinkListener(self.turns, ["em1"], self.hear)
        self.addCleanup(self.stop)

    def hear(self, address: Address, mac: bytes, interface: str) -> None:
        self.assertEqual(interface, "em1")
        self.told.append((address, mac))

    def start(self) -> None:
        self.listener.startService()

    def stop(self) -> None:
        if self.listener.running:
            self.listener.stopService()

    def heard(self) -> list[tuple[Address, bytes]]:
        """What the listener told, until it is quiet."""
        self.turns.advance(0.02)
        while self.turns.turn(0.2):
            self.turns.advance(0.02)
        told, self.told = self.told, []
        return told

    def say(self, address: Address = ADDRESS) -> None:
        """Another machine announces an address, in request form."""
        self.wire.send(arp_announcement(THEIRS, address)[0])

    def assert_hears(self) -> None:
        self.heard()
        self.say()
        self.assertEqual(self.heard(), [(ADDRESS, THEIRS)])

    def replace_link(self) -> None:
        """Let the interface go and come back."""
        self.host.remove_link()
        self.create_link()

    def create_link(self) -> None:
        self.host.create_link()
        self.wire.close()
        self.wire.listen()

    def test_interface(self) -> None:
        """It reads with what provides what the reactor wants of it, for each protocol."""
        self.start()
        for reader in self.turns.readers:
            verifyObject(IReadDescriptor, reader)
        self.assertEqual([reader.logPrefix() for reader in self.turns.readers], ["ARP", "NDP"])

    def test_announcement(self) -> None:
        """Each announcement of another machine is told, in either form."""
        self.start()
        self.wire.send(*arp_announcement(THEIRS, ADDRESS), *arp_announcement(THEIRS, ADDRESS + 1))
        self.assertEqual(self.heard(), [(ADDRESS, THEIRS)] * 2 + [(ADDRESS + 1, THEIRS)] * 2)

    def wire6(self, interface: str = "em1") -> Wire:
        """The other end of an interface, for NDP."""
        wire = Wire(self.host, NDP, interface)
        self.addCleanup(wire.close)
        return wire

    def test_advertisement(self) -> None:
        """Each advertisement of another machine is told."""
        self.start()
        self.wire6().send(*ndp_advertisement(THEIRS, ADDRESS6), *ndp_advertisement(THEIRS, ADDRESS6 + 1))
        self.assertEqual(self.heard(), [(ADDRESS6, THEIRS), (ADDRESS6 + 1, THEIRS)])

    def test_two_interfaces(self) -> None:
        """What is heard is told with the interface of its link; one that is missing keeps nothing back."""
        self.host.create_link("em2")
        told: list[tuple[Address, bytes, str]] = []
        with capturedLogs() as events:
            listener = LinkListener(self.turns, ["em3", "em1", "em2"], lambda *heard: told.append(heard))
            listener.startService()
            self.turns.advance(1)
        self.addCleanup(listener.stopService)
        expected = ["cannot hear who has which address on em3, trying again: No such device"]
        self.assertEqual([formatEvent(event) for event in events], expected)
        second = Wire(self.host, ARP, "em2")
        self.addCleanup(second.close)
        self.say()
        second.send(arp_announcement(THEIRS, ADDRESS + 1)[0])
        self.wire6("em2").send(*ndp_advertisement(THEIRS, ADDRESS6))
        self.heard()
        expected_to_be_told = {(ADDRESS, THEIRS, "em1"), (ADDRESS + 1, THEIRS, "em2"), (ADDRESS6, THEIRS, "em2")}
        self.assertEqual((set(told), len(told)), (expected_to_be_told, 3))

    def test_one_lan(self) -> None:
        """Where two interfaces are on one LAN, what is announced on one of them is not told as heard on the other."""
        self.host.create_link("em2")
        listener = LinkListener(self.turns, ["em1", "em2"], self.hear)
        listener.startService()
        self.addCleanup(listener.stopService)
        second, second6 = Wire(self.host, ARP, "em2"), self.wire6("em2")
        self.addCleanup(second.close)
        second.send(*arp_announcement(OURS, ADDRESS))
        second6.send(*ndp_advertisement(OURS, ADDRESS6))
        self.assert_hears()

    def test_ourselves(self) -> None:
        """What we announce is not told, not even if it comes back to us; whatever our MAC address is by then."""
        self.start()
        announcer = LinkAnnouncer(lambda: 0.0)
        self.addCleanup(announcer.close)
        wire6 = self.wire6()
        for mac in (OURS, bytes.fromhex("020000000009")):
            self.host.link(address=mac.hex(":"))
            announcer.announce({Assignment(ADDRESS, 1, "em1"), Assignment(ADDRESS6, 1, "em1")})
            own, own6 = self.wire.frames(), wire6.frames()
            self.assertEqual(
                (own, own6), (list(arp_announcement(mac, ADDRESS)), list(ndp_advertisement(mac, ADDRESS6)))
            )
            self.wire.send(*own)
            wire6.send(*own6)
            self.say(ADDRESS + 1)
            self.assertEqual(self.heard(), [(ADDRESS + 1, THEIRS)])

    def test_not_told(self) -> None:
        """Probes, other VLANs, and what is no proper ARP are passed over."""
        self.start()
        announcement = arp_announcement(THEIRS, ADDRESS)[0]
        self.wire.send(
            arp_probe(THEIRS, ADDRESS),
            announcement[:12] + bytes.fromhex("81000005") + announcement[12:],
            announcement[:14],
            announcement[:41],
            announcement[:20] + b"\0\3" + announcement[22:],
        )
        (advertisement,) = ndp_advertisement(THEIRS, ADDRESS6)
        self.wire6().send(
            ndp_probe(THEIRS, ADDRESS6),
            advertisement[:12] + bytes.fromhex("81000005") + advertisement[12:],
            advertisement[:77],
        )
        self.assert_hears()

    def test_flood(self) -> None:
        """However much there is to hear, 100 frames are heard by each protocol in a turn, and one turn each 20 ms."""
        self.start()
        for number in range(500):
            self.say(ADDRESS + number)
        counts = []
        for _ in range(5):
            self.assertTrue(self.turns.turn(1))
            counts.append(len(self.told))
            self.turns.advance(0.019)
            self.assertEqual([reader.logPrefix() for reader in self.turns.readers], ["NDP"])
            self.turns.advance(0.001)
        self.assertEqual(counts, [100, 200, 300, 400, 500])
        self.assertEqual(self.heard(), [(ADDRESS + number, THEIRS) for number in range(500)])

    def test_mistake(self) -> None:
        """Someone who cannot bear to be told keeps nobody from being heard."""

        def hear(address: Address, mac: bytes, interface: str) -> None:
            self.hear(address, mac, interface)
            raise ZeroDivisionError

        mistaken = LinkListener(self.turns, ["em1"], hear)
        mistaken.startService()
        self.addCleanup(mistaken.stopService)
        self.say()
        self.say(ADDRESS + 1)
        self.assertEqual(self.heard(), [(ADDRESS, THEIRS), (ADDRESS + 1, THEIRS)])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_absent_at_start(self) -> None:
        """An interface that does not exist yet is heard within a second of its coming; both are said once."""
        self.host.remove_link()
        with capturedLogs() as events:
            self.start()
            self.turns.pump([1, 1])
            self.create_link()
            self.turns.pump([1, 1])
        self.assertEqual(
            [formatEvent(event) for event in events],
            [
                "cannot hear who has which address on em1, trying again: No such device",
                "hearing who has which address on em1 again",
            ],
        )
        self.assert_hears()

    def test_gone_and_back(self) -> None:
        """An interface that goes away and comes back is heard again within a second."""
        self.start()
        self.assert_hears()
        self.host.remove_link()
        self.assertEqual(self.heard(), [])
        self.turns.pump([1, 1])
        self.create_link()
        self.turns.advance(1)
        self.assert_hears()

    def test_replaced(self) -> None:
        """An interface that was replaced by another one between two looks is heard after the next one."""
        self.start()
        self.replace_link()
        self.turns.advance(1)
        self.assert_hears()

    def test_down_and_up(self) -> None:
        """An interface that is up again is heard."""
        self.start()
        self.host.link(state="down")
        self.assertEqual(self.heard(), [])
        self.turns.advance(1)
        self.host.link(state="up")
        self.assert_hears()

    def test_reactor_gives_up(self) -> None:
        """That the reactor gave up on the socket changes nothing."""
        self.start()
        for reader in self.turns.readers[:]:
            reader.connectionLost(Failure(ConnectionLost()))
        self.assert_hears()

    def test_no_socket(self) -> None:
        """A socket that cannot be had is tried for again a second later."""
        limits = getrlimit(RLIMIT_NOFILE)
        setrlimit(RLIMIT_NOFILE, (3, limits[1]))
        try:
            self.start()
        finally:
            setrlimit(RLIMIT_NOFILE, limits)
        self.assertEqual(self.turns.readers, [])
        self.turns.advance(1)
        self.assert_hears()

    def test_stop(self) -> None:
        """After the stop the socket is closed and nothing is told or planned, in the middle of a rest and before."""
        for rests in (False, True):
            self.start()
            self.say()
            if rests:
                self.assertTrue(self.turns.turn(1))
            readers = self.turns.readers[:]
            self.stop()
            for reader in readers:
                reader.connectionLost(Failure(ConnectionLost()))
            self.assertEqual({reader.fileno() for reader in readers}, {-1})
            self.assertEqual((self.turns.readers, self.turns.getDelayedCalls()), ([], []))
            self.assertEqual(self.heard(), [(ADDRESS, THEIRS)] * rests)

    def test_stop_when_told(self) -> None:
        """Who is told may stop the listener, and is told nothing more."""

        def hear(address: Address, mac: bytes, interface: str) -> None:
            self.hear(address, mac, interface)
            listener.stopService()

        listener = LinkListener(self.turns, ["em1"], hear)
        listener.startService()
        self.say()
        self.say(ADDRESS + 1)
        self.assertEqual(self.heard(), [(ADDRESS, THEIRS)])
        self.assertEqual((self.turns.readers, self.turns.getDelayedCalls()), ([], []))


class ReactorTests(TestCase):
    """A listener in a real reactor."""

    async def test_gone_and_back(self) -> None:
        """It hears a machine, and hears it again after the interface went down, away, and came back."""
        host = enter_host(self)
        wire = Wire(host)
        self.addCleanup(wire.close)
        told: list[Address] = []
        listener = LinkListener(reactor, ["em1"], lambda address, mac, interface: told.append(address))
        listener.startService()
        self.addCleanup(listener.stopService)

        async def hears(address: Address) -> None:
            end = monotonic() + 20
            while address not in told:
                self.assertLess(monotonic(), end)
                wire.send(arp_announcement(THEIRS, address)[0])
                await deferLater(reactor, 0.05)

        await hears(ADDRESS)
        host.link(state="down")
        await deferLater(reactor, 0.1)
        host.link(state="up")
        await hears(ADDRESS + 1)
        host.remove_link()
        await deferLater(reactor, 0.1)
        host.create_link()
        wire.close()
        wire.listen()
        await hears(ADDRESS + 2)
