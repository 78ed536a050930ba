"""The suite of neighbours, in memory and on a link; and what only a link does."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep

from attrs import define, field
from pyroute2 import IPRoute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kiwi.network.addresses import PROXY_INTERFACES
from kiwi.network.arp import arp_announcement, arp_probe
from kiwi.network.interface import NetworkError, Probed
from kiwi.network.memory import MemoryNeighbours
from kiwi.network.neighbours import ArpNeighbours

from .hosts import NamespacedHost, enter_host
from .neighbourstests import ENOUGH, FIRST, PATIENCE, make_neighbours_tests
from .wires import Wire

SECOND = FIRST + 1
OURS = bytes.fromhex("020000000007")
THEIRS = bytes.fromhex("020000000008")
SOCKETS = ("sk", "RefCnt", "Type", "Proto", "Iface", "R", "Rmem", "User", "Inode")
"""The columns of C{/proc/net/packet}."""

THOUSAND = frozenset(IPv4Address("192.168.4.0") + number for number in range(1000))


@define
class MemoryFixture:
    """A C{NeighboursFixture} in memory."""

    neighbours: MemoryNeighbours = field(factory=MemoryNeighbours)
    _asked: int = 0

    def give(self, *addresses: IPv4Address) -> bytes:
        self.neighbours.foreign.update(dict.fromkeys(addresses, THEIRS))
        return THEIRS

    def take(self, address: IPv4Address) -> None:
        del self.neighbours.foreign[address]

    def contest(self, *addresses: IPv4Address) -> bytes:
        self.neighbours.rivals.update(dict.fromkeys(addresses, THEIRS))
        return THEIRS

    def asked(self) -> Sequence[IPv4Address]:
        new = self.neighbours.probed[self._asked :]
        self._asked += len(new)
        return new

    def break_link(self) -> None:
        self.neighbours.refusal = "probing for addresses on em1: Network is down"

    def mend_link(self) -> None:
        self.neighbours.refusal = None


@define
class LinkFixture:
    """A C{NeighboursFixture} on a veth."""

    case: SynchronousTestCase
    host: NamespacedHost
    neighbours: ArpNeighbours
    wire: Wire

    def give(self, *addresses: IPv4Address) -> bytes:
        with self.host.at_neighbour(), IPRoute() as route:
            index = self.host.index("peer")
            for address in addresses:
                route.addr("add", index=index, address=str(address), prefixlen=32)
            return bytes.fromhex(route.get_links(index)[0].get_attr("IFLA_ADDRESS").replace(":", ""))

    def take(self, address: IPv4Address) -> None:
        with self.host.at_neighbour():
            self.host.address("del", f"{address}/32", "peer")

    def contest(self, *addresses: IPv4Address) -> bytes:
        self.answer(1, *(arp_probe(THEIRS, address) for address in addresses))
        return THEIRS

    def answer(self, probes: int, *frames: bytes) -> None:
        """When the host has asked so often, let it receive these frames."""

        def wait_and_answer() -> None:
            for _ in range(probes):
                self.wire.frame()
            self.wire.send(*frames)

        thread = Thread(target=wait_and_answer)
        thread.start()
        self.case.addCleanup(thread.join)

    def asked(self) -> Sequence[IPv4Address]:
        frames = self.wire.frames()
        asked = list(dict.fromkeys(IPv4Address(frame[38:42]) for frame in frames))
        assert set(frames) == {arp_probe(frames[0][6:12], address) for address in asked}
        return asked

    def break_link(self) -> None:
        self.host.link(state="down")

    def mend_link(self) -> None:
        self.host.link(state="up")


def make_link_fixture(case: SynchronousTestCase) -> LinkFixture:
    host = enter_host(case)
    neighbours = ArpNeighbours("em1", monotonic)
    case.addCleanup(neighbours.close)
    wire = Wire(host)
    case.addCleanup(wire.close)
    return LinkFixture(case, host, neighbours, wire)


class MemoryNeighboursTests(make_neighbours_tests(lambda case: MemoryFixture())):  # type: ignore[misc]
    """Neighbours that only exist in memory."""


class ArpNeighboursTests(make_neighbours_tests(make_link_fixture)):  # type: ignore[misc]
    """One that asks, and a neighbour in another namespace that answers, or a machine of which we send the frames."""

    def answer(self, probes: int, *frames: bytes) -> None:
        """When the host has asked so often, from a MAC address that we know, let it receive these frames."""
        self.host.host.link(address=OURS.hex(":"))
        self.host.answer(probes, *frames)

    def test_frames(self) -> None:
        """An address that nobody answers for is asked for three times, from the MAC address that we have by then."""
        for mac in (OURS, THEIRS):
            self.host.host.link(address=mac.hex(":"))
            self.neighbours.probe({FIRST, SECOND}, ENOUGH)
            self.assertEqual(self.host.wire.frames(), [arp_probe(mac, FIRST), arp_probe(mac, SECOND)] * 3)

    def test_second_probe(self) -> None:
        """A machine that only hears the second question is found."""
        reply = arp_announcement(THEIRS, FIRST)[1]
        self.answer(2, reply)
        self.assertEqual(self.neighbours.probe({FIRST}, 3), Probed({FIRST: THEIRS}))
        self.assertEqual(self.host.wire.frames(), [])

    def test_early_end(self) -> None:
        """Nothing is waited for when all is answered, and who was answered for is not asked for again."""
        self.host.give(FIRST)
        begun = monotonic()
        self.neighbours.probe({FIRST}, 60)
        self.assertLess(monotonic() - begun, 15)
        self.assertEqual(len(self.host.wire.frames()), 1)

    def test_announced(self) -> None:
        """A machine that says by itself that it has the address, while it is asked for, has it."""
        for form in (0, 1):
            self.answer(1, arp_announcement(THEIRS, FIRST)[form])
            self.assertEqual(self.neighbours.probe({FIRST}, PATIENCE), Probed({FIRST: THEIRS}))

    def test_no_answers(self) -> None:
        """What says nothing about these addresses on this link is no answer."""
        announcement, probe = arp_announcement(THEIRS, FIRST)[0], arp_probe(THEIRS, FIRST)
        self.answer(
            2,
            arp_probe(OURS, FIRST),  # It is our own question, by a detour.
            arp_probe(THEIRS, FIRST - 1),
            arp_probe(THEIRS, SECOND + 1),
            probe[:20] + b"\0\2" + probe[22:],  # It is no question.
            arp_announcement(OURS, FIRST)[0],  # It is ourselves, by a detour.
            arp_announcement(THEIRS, FIRST - 1)[0],
            arp_announcement(THEIRS, SECOND + 1)[0],
            announcement[:12] + bytes.fromhex("81000005") + announcement[12:],  # It is in VLAN 5.
            announcement[:30],
            arp_announcement(THEIRS, SECOND)[0],
        )
        self.assertEqual(self.neighbours.probe({FIRST, SECOND}, 1), Probed({SECOND: THEIRS}))

    def test_first_to_ask(self) -> None:
        """A machine that asks right before the first question is heard."""

        def ask() -> None:
            self.assertRaises(TimeoutError, self.host.wire.frame, 0.01)
            self.host.wire.send(arp_probe(THEIRS, FIRST))

        acts = iter([ask])

        def read_clock() -> float:
            for act in acts:
                act()
            return monotonic()

        neighbours = ArpNeighbours("em1", read_clock)
        self.addCleanup(neighbours.close)
        self.assertEqual(neighbours.probe({FIRST}, ENOUGH), Probed({}, {FIRST: THEIRS}))

    def test_two(self) -> None:
        """Two that ask for one address at the same time hear each other."""
        begun = Event()
        theirs: list[Probed] = []

        def read_clock() -> float:
            begun.set()
            return monotonic()

        def ask() -> None:
            with self.host.host.at_neighbour():
                other = ArpNeighbours("peer", read_clock)
                theirs.append(other.probe({FIRST, SECOND + 1}, 2))
                other.close()

        thread = Thread(target=ask)
        thread.start()
        begun.wait()
        ours = self.neighbours.probe({FIRST, SECOND}, 2)
        thread.join()
        self.assertEqual((ours.owners, ours.contested.keys()), ({}, {FIRST}))
        self.assertEqual([(each.owners, each.contested.keys()) for each in theirs], [({}, {FIRST})])

    def test_proxy(self) -> None:
        """A machine that has an address for its proxy answers, unless it is strict; one that carries it always does."""
        host = self.host.host
        with host.at_neighbour(), IPRoute() as route:
            route.link("add", ifname=PROXY_INTERFACES[0], kind="bridge")
            for address in (FIRST, SECOND):
                host.address("add", f"{address}/32", PROXY_INTERFACES[0])
        mac = self.host.give(SECOND)
        for strict, found in ((0, {FIRST, SECOND}), (1, {SECOND})):
            with host.at_neighbour():
                Path("/proc/sys/net/ipv4/conf/all/arp_ignore").write_text(str(strict))
            wait = 0.3 if strict else PATIENCE
            self.assertEqual(self.neighbours.probe({FIRST, SECOND}, wait), Probed(dict.fromkeys(found, mac)))

    def test_earlier(self) -> None:
        """What was said before the question is no answer."""
        self.neighbours.probe({FIRST}, ENOUGH)
        self.host.wire.send(*arp_announcement(THEIRS, FIRST), arp_probe(THEIRS, FIRST))
        self.assertEqual(self.neighbours.probe({FIRST}, ENOUGH), Probed())

    def test_between(self) -> None:
        """Between questions the kernel keeps nothing of what is said."""
        self.neighbours.probe({FIRST}, ENOUGH)
        self.host.wire.send(*arp_announcement(THEIRS, FIRST))
        with open("/proc/thread-self/net/packet") as table:
            sockets = [dict(zip(SOCKETS, line.split(), strict=False)) for line in table.readlines()[1:]]
        self.assertEqual([each["Rmem"] for each in sockets], ["0"])

    def test_late(self) -> None:
        """An answer that came in time counts, even if this process only comes to read it when the wait is over."""
        clock = Clock()
        asked: list[bytes] = []

        def read_clock() -> float:
            """Once the host has asked, it is answered at once and is then stopped for long, time and again."""
            if not asked:
                with contextlib.suppress(TimeoutError):
                    asked.append(self.host.wire.frame(0.001))
                    self.host.wire.send(arp_announcement(THEIRS, FIRST)[1])
            clock.advance(100 * len(asked))
            return clock.seconds()

        neighbours = ArpNeighbours("em1", read_clock)
        self.addCleanup(neighbours.close)
        self.assertEqual(neighbours.probe({FIRST}, 1), Probed({FIRST: THEIRS}))

    def test_left_over(self) -> None:
        """What a question that failed left unread is no answer to the next one."""

        def say_it_and_break() -> None:
            self.host.wire.send(*arp_announcement(THEIRS, FIRST))
            self.host.break_link()

        acts = iter([say_it_and_break])

        def monotonic_with_events() -> float:
            for act in acts:
                act()
            return monotonic()

        neighbours = ArpNeighbours("em1", monotonic_with_events)
        self.addCleanup(neighbours.close)
        self.assertRaises(NetworkError, neighbours.probe, {FIRST}, PATIENCE)
        self.host.mend_link()
        self.assertEqual(neighbours.probe({FIRST}, ENOUGH), Probed())

    def test_ourselves(self) -> None:
        """An address that is on the interface itself is nobody else's."""
        self.host.host.address("add", f"{FIRST}/32")
        self.assertEqual(self.neighbours.probe({FIRST}, ENOUGH), Probed())

    def test_thousand(self) -> None:
        """A thousand addresses are asked for three times each; and are all found if somebody has them."""
        self.assertEqual(self.neighbours.probe(THOUSAND, 2), Probed())
        self.assertEqual(len(self.host.wire.frames()), 3000)
        mac = self.host.give(*THOUSAND)
        self.assertEqual(self.neighbours.probe(THOUSAND, PATIENCE), Probed(dict.fromkeys(THOUSAND, mac)))

    def test_full_queue(self) -> None:
        """Each address is asked for at least once, however long the interface takes to send that."""
        with IPRoute() as route:
            route.tc("add", "tbf", self.host.host.index(), rate="336kbit", burst=1600, limit=200)
        waits = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            sleep(seconds)

        neighbours = ArpNeighbours("em1", monotonic, wait)
        self.addCleanup(neighbours.close)
        addresses = sorted(THOUSAND)[:100]
        self.assertEqual(neighbours.probe(set(addresses), 0), Probed())
        self.assertEqual(self.host.asked(), addresses)
        self.assertNotEqual(waits, [])

    def test_interface_gone(self) -> None:
        """An interface that is not there is an error, and one that comes back is used as it is then."""
        self.neighbours.probe({FIRST}, ENOUGH)
        self.host.host.remove_link()
        with self.assertRaises(NetworkError) as caught:
            self.neighbours.probe({FIRST}, PATIENCE)
        self.assertEqual(str(caught.exception), "probing for addresses on em1: No such device")
        self.host.host.create_link()
        mac = self.host.give(FIRST)
        self.assertEqual(self.neighbours.probe({FIRST}, PATIENCE), Probed({FIRST: mac}))

    def test_interface_replaced(self) -> None:
        """An interface that was replaced by another one of the same name between two questions is used at once."""
        self.neighbours.probe({FIRST}, ENOUGH)
        self.host.host.remove_link()
        self.host.host.create_link()
        mac = self.host.give(FIRST)
        self.assertEqual(self.neighbours.probe({FIRST}, PATIENCE), Probed({FIRST: mac}))

    def test_interface_goes(self) -> None:
        """An interface that goes away while answers are waited for is an error, at once."""

        def remove_link() -> None:
            self.host.wire.frame()
            self.host.host.remove_link()

        # A new thread is in the namespace of the one that makes it.
        thread = Thread(target=remove_link)
        thread.start()
        self.addCleanup(thread.join)
        begun = monotonic()
        with self.assertRaises(NetworkError) as caught:
            self.neighbours.probe({FIRST}, 60)
        self.assertEqual(str(caught.exception), "probing for addresses on em1: Network is down")
        self.assertLess(monotonic() - begun, 15)

    def test_no_link_layer(self) -> None:
        """Where there are no neighbours nobody is asked, and nothing is waited for."""
        neighbours = ArpNeighbours("lo", monotonic)
        self.addCleanup(neighbours.close)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as everything:
            everything.bind(("lo", 3))
            begun = monotonic()
            self.assertEqual(neighbours.probe({FIRST}, 60), Probed())
            self.assertLess(monotonic() - begun, 15)
            everything.settimeout(0.2)
            self.assertRaises(TimeoutError, everything.recv, 2048)
