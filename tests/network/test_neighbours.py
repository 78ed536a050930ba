"""The suite of neighbours, in memory and on a link; and what only a link does."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep

from attrs import define, field
from pyroute2 import IPRoute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, ip
from kiwi.network.addresses import PROXY_INTERFACES
from kiwi.network.arp import ARP, arp_announcement, arp_probe
from kiwi.network.interface import NetworkError, Probed
from kiwi.network.memory import MemoryNeighbours
from kiwi.network.ndp import NDP, ndp_advertisement, ndp_probe
from kiwi.network.neighbours import LinkNeighbours
from kiwi.network.packets import NeighbourProtocol

from .addressestests import IPV4, IPV6, configured, plus
from .hosts import IFA_F_NODAD, NamespacedHost, enter_host
from .neighbourstests import ENOUGH, PATIENCE, at, make_neighbours_tests
from .wires import Wire

FIRST, SECOND, FIRST6, SECOND6 = IPV4.first, IPV4.second, IPV6.first, IPV6.second
OURS = bytes.fromhex("020000000007")
THEIRS = bytes.fromhex("020000000008")
SOCKETS = ("sk", "RefCnt", "Type", "Proto", "Iface", "R", "Rmem", "User", "Inode")
"""The columns of C{/proc/net/packet}."""

THOUSAND = frozenset(plus(ip("192.168.4.0"), number) for number in range(1000))


@define
class MemoryFixture:
    """A C{NeighboursFixture} in memory."""

    neighbours: MemoryNeighbours = field(factory=MemoryNeighbours)
    _asked: int = 0

    def give(self, *addresses: Address) -> bytes:
        self.neighbours.foreign.update(dict.fromkeys(addresses, THEIRS))
        return THEIRS

    def take(self, address: Address) -> None:
        del self.neighbours.foreign[address]

    def contest(self, *addresses: Address) -> bytes:
        self.neighbours.rivals.update(dict.fromkeys(addresses, THEIRS))
        return THEIRS

    def asked(self) -> Sequence[Address]:
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
    protocol: NeighbourProtocol
    host: NamespacedHost
    neighbours: LinkNeighbours
    wire: Wire

    def give(self, *addresses: Address) -> bytes:
        with self.host.at_neighbour(), IPRoute() as route:
            index = self.host.index("peer")
            for address in addresses:
                flags = {} if address.version == 4 else {"flags": IFA_F_NODAD}
                route.addr("add", index=index, address=str(address), prefixlen=address.max_prefixlen, **flags)
            return bytes.fromhex(route.get_links(index)[0].get_attr("IFLA_ADDRESS").replace(":", ""))

    def take(self, address: Address) -> None:
        with self.host.at_neighbour():
            self.host.address("del", str(configured(address)), "peer")

    def contest(self, *addresses: Address) -> bytes:
        self.answer(1, *(self.protocol.probe(THEIRS, address) for address in addresses))
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

    def asked(self) -> Sequence[Address]:
        frames = self.wire.frames()
        asked = list(dict.fromkeys(ip(probe[0]) for probe in map(self.protocol.read_probe, frames) if probe))
        assert set(frames) == {self.protocol.probe(frames[0][6:12], address) for address in asked}
        return asked

    def break_link(self) -> None:
        self.host.link(state="down")

    def mend_link(self) -> None:
        self.host.link(state="up")


def make_link_fixture(case: SynchronousTestCase, protocol: NeighbourProtocol = ARP) -> LinkFixture:
    host = enter_host(case)
    neighbours = LinkNeighbours(monotonic)
    case.addCleanup(neighbours.close)
    wire = Wire(host, protocol)
    case.addCleanup(wire.close)
    return LinkFixture(case, protocol, host, neighbours, wire)


class MemoryNeighboursTests(make_neighbours_tests(lambda case: MemoryFixture(), IPV4)):  # type: ignore[misc]
    """Neighbours that only exist in memory."""


class MemoryIPv6NeighboursTests(make_neighbours_tests(lambda case: MemoryFixture(), IPV6)):  # type: ignore[misc]
    """The same with IPv6 addresses."""


class IPv6LinkNeighboursTests(
    make_neighbours_tests(lambda case: make_link_fixture(case, NDP), IPV6)  # type: ignore[misc]
):
    """One that asks, and a neighbour in another namespace that answers, or a machine of which we send the frames."""

    def test_no_answers(self) -> None:
        """What says nothing about these addresses on this link is no answer."""
        self.host.host.link(address=OURS.hex(":"))
        (advertisement,) = ndp_advertisement(THEIRS, FIRST6)
        self.host.answer(
            2,
            ndp_probe(OURS, FIRST6),  # It is our own question, by a detour.
            ndp_probe(THEIRS, plus(FIRST6, -1)),
            *ndp_advertisement(OURS, FIRST6),  # It is ourselves, by a detour.
            *ndp_advertisement(THEIRS, plus(FIRST6, 9)),
            advertisement[:21] + b"\xfe" + advertisement[22:],  # It came through a router.
            advertisement[:12] + bytes.fromhex("81000005") + advertisement[12:],  # It is in VLAN 5.
            advertisement[:77],
            *ndp_advertisement(THEIRS, SECOND6),
        )
        self.assertEqual(self.neighbours.probe(at("em1", FIRST6, SECOND6), 1), Probed({SECOND6: THEIRS}))

    def groups(self) -> set[str]:
        """The groups that the host's interface is in."""
        with open("/proc/thread-self/net/igmp6") as table:
            return {line.split()[2] for line in table if line.split()[1] == "em1"}

    def test_groups(self) -> None:
        """While it asks for few addresses the host is in their groups, where others ask, and then no more."""
        before = self.groups()
        seen: set[str] = set()

        def read_clock() -> float:
            seen.update(self.groups() - before)
            return monotonic()

        neighbours = LinkNeighbours(read_clock)
        self.addCleanup(neighbours.close)
        self.assertEqual(neighbours.probe(at("em1", FIRST6, SECOND6), ENOUGH), Probed())
        self.assertEqual(seen, {"ff0200000000000000000001ff000041", "ff0200000000000000000001ff000042"})
        self.assertEqual(self.groups(), before)

    def test_all_groups(self) -> None:
        """While it asks for many addresses the interface lets all groups in, and then no more."""
        seen: set[str] = set()

        def read_clock() -> float:
            seen.add(self.all_groups())
            return monotonic()

        neighbours = LinkNeighbours(read_clock)
        self.addCleanup(neighbours.close)
        self.assertEqual(neighbours.probe(at("em1", *IPV6.many), ENOUGH), Probed())
        self.assertEqual((seen, self.all_groups()), ({"1"}, "0"))

    def all_groups(self) -> str:
        """How many would have the interface let all groups in."""
        with IPRoute() as route:
            return str(route.get_links(self.host.host.index())[0].get_attr("IFLA_ALLMULTI"))

    def test_tentative(self) -> None:
        """A machine that is about to have the address asks for it as we do."""
        begun = Event()

        def read_clock() -> float:
            begun.set()
            return monotonic()

        def configure() -> None:
            begun.wait()
            # By then we hear what is asked; and our next question, which would stop it, is a second away.
            sleep(0.2)
            with self.host.host.at_neighbour():
                self.host.host.address("add", f"{FIRST6}/128", "peer", flags=0)

        thread = Thread(target=configure)
        thread.start()
        neighbours = LinkNeighbours(read_clock)
        self.addCleanup(neighbours.close)
        probed = neighbours.probe(at("em1", FIRST6, SECOND6), 4.0)
        thread.join()
        self.assertEqual(probed.owners.keys() | probed.contested.keys(), {FIRST6})


class TwoLinksTests(SynchronousTestCase):
    """Several links and both protocols at once."""

    def setUp(self) -> None:
        self.host = enter_host(self)
        self.host.create_link("em2")
        self.neighbours = LinkNeighbours(monotonic)
        self.addCleanup(self.neighbours.close)

    def give(self, address: Address, interface: str) -> bytes:
        """Let the neighbour have an address at the other end of an interface; its MAC address there."""
        peer = self.host.peer(interface)
        with self.host.at_neighbour(), IPRoute() as route:
            self.host.address("add", str(configured(address)), peer)
            for setting in ("arp_ignore", "arp_announce"):
                Path(f"/proc/sys/net/ipv4/conf/all/{setting}").write_text("1")
            return bytes.fromhex(route.get_links(self.host.index(peer))[0].get_attr("IFLA_ADDRESS").replace(":", ""))

    def test_all(self) -> None:
        """Each address is asked for on its own link only, and all of them in one wait."""
        one, two = self.give(FIRST, "em1"), self.give(FIRST6, "em2")
        right = at("em1", FIRST) | at("em2", FIRST6)
        self.assertEqual(self.neighbours.probe(right, PATIENCE), Probed({FIRST: one, FIRST6: two}))
        self.assertEqual(self.neighbours.probe(at("em2", FIRST) | at("em1", FIRST6), ENOUGH), Probed())
        both = right | at("em1", SECOND6) | at("em2", SECOND)
        begun = monotonic()
        self.assertEqual(self.neighbours.probe(both, 2), Probed({FIRST: one, FIRST6: two}))
        self.assertLess(monotonic() - begun, 4)

    def test_one_is_down(self) -> None:
        """A link that cannot be asked on is an error after the others were asked on."""
        self.give(FIRST, "em1")
        wire = Wire(self.host, NDP, "em2")
        self.addCleanup(wire.close)
        self.host.link(state="down")
        with self.assertRaises(NetworkError) as caught:
            self.neighbours.probe(at("em1", FIRST) | at("em2", FIRST6) | at("em3", SECOND), ENOUGH)
        self.assertEqual(
            str(caught.exception),
            "probing for addresses on em3: No such device; probing for addresses on em1: Network is down",
        )
        frames = wire.frames()
        self.assertEqual(frames, [ndp_probe(frames[0][6:12], FIRST6)] * 3)


class LinkNeighboursTests(make_neighbours_tests(make_link_fixture, IPV4)):  # type: ignore[misc]
    """One that asks, and a neighbour in another namespace that answers, or a machine of which we send the frames."""

    def answer(self, probes: int, *frames: bytes) -> None:
        """When the host has asked so often, from a MAC address that we know, let it receive these frames."""
        self.host.host.link(address=OURS.hex(":"))
        self.host.answer(probes, *frames)

    def test_frames(self) -> None:
        """An address that nobody answers for is asked for three times, from the MAC address that we have by then."""
        for mac in (OURS, THEIRS):
            self.host.host.link(address=mac.hex(":"))
            self.neighbours.probe(at("em1", FIRST, SECOND), ENOUGH)
            self.assertEqual(self.host.wire.frames(), [arp_probe(mac, FIRST), arp_probe(mac, SECOND)] * 3)

    def test_second_probe(self) -> None:
        """A machine that only hears the second question is found."""
        reply = arp_announcement(THEIRS, FIRST)[1]
        self.answer(2, reply)
        self.assertEqual(self.neighbours.probe(at("em1", FIRST), 3), Probed({FIRST: THEIRS}))
        self.assertEqual(self.host.wire.frames(), [])

    def test_early_end(self) -> None:
        """Nothing is waited for when all is answered, and who was answered for is not asked for again."""
        self.host.give(FIRST)
        begun = monotonic()
        self.neighbours.probe(at("em1", FIRST), 60)
        self.assertLess(monotonic() - begun, 15)
        self.assertEqual(len(self.host.wire.frames()), 1)

    def test_announced(self) -> None:
        """A machine that says by itself that it has the address, while it is asked for, has it."""
        for form in (0, 1):
            self.answer(1, arp_announcement(THEIRS, FIRST)[form])
            self.assertEqual(self.neighbours.probe(at("em1", FIRST), PATIENCE), Probed({FIRST: THEIRS}))

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
        self.assertEqual(self.neighbours.probe(at("em1", FIRST, SECOND), 1), Probed({SECOND: THEIRS}))

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

        neighbours = LinkNeighbours(read_clock)
        self.addCleanup(neighbours.close)
        self.assertEqual(neighbours.probe(at("em1", FIRST), ENOUGH), Probed({}, {FIRST: THEIRS}))

    def test_two(self) -> None:
        """Two that ask for one address at the same time hear each other."""
        begun = Event()
        theirs: list[Probed] = []

        def read_clock() -> float:
            begun.set()
            return monotonic()

        def ask() -> None:
            with self.host.host.at_neighbour():
                other = LinkNeighbours(read_clock)
                theirs.append(other.probe(at("peer", FIRST, SECOND + 1), 2))
                other.close()

        thread = Thread(target=ask)
        thread.start()
        begun.wait()
        ours = self.neighbours.probe(at("em1", FIRST, SECOND), 2)
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
            self.assertEqual(self.neighbours.probe(at("em1", FIRST, SECOND), wait), Probed(dict.fromkeys(found, mac)))

    def test_earlier(self) -> None:
        """What was said before the question is no answer."""
        self.neighbours.probe(at("em1", FIRST), ENOUGH)
        self.host.wire.send(*arp_announcement(THEIRS, FIRST), arp_probe(THEIRS, FIRST))
        self.assertEqual(self.neighbours.probe(at("em1", FIRST), ENOUGH), Probed())

    def test_between(self) -> None:
        """Between questions the kernel keeps nothing of what is said."""
        self.neighbours.probe(at("em1", FIRST), ENOUGH)
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

        neighbours = LinkNeighbours(read_clock)
        self.addCleanup(neighbours.close)
        self.assertEqual(neighbours.probe(at("em1", FIRST), 1), Probed({FIRST: THEIRS}))

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

        neighbours = LinkNeighbours(monotonic_with_events)
        self.addCleanup(neighbours.close)
        self.assertRaises(NetworkError, neighbours.probe, at("em1", FIRST), PATIENCE)
        self.host.mend_link()
        self.assertEqual(neighbours.probe(at("em1", FIRST), ENOUGH), Probed())

    def test_ourselves(self) -> None:
        """An address that is on the interface itself is nobody else's."""
        self.host.host.address("add", f"{FIRST}/32")
        self.assertEqual(self.neighbours.probe(at("em1", FIRST), ENOUGH), Probed())

    def test_thousand(self) -> None:
        """
        A thousand addresses are asked for, several times each; and are all found if somebody has them. A busy kernel
        may drop some of so many questions.
        """
        self.assertEqual(self.neighbours.probe(at("em1", *THOUSAND), 2), Probed())
        asked = Counter(self.host.wire.frames())
        self.assertEqual((len(asked), max(asked.values())), (1000, 3))
        mac = self.host.give(*THOUSAND)
        self.assertEqual(self.neighbours.probe(at("em1", *THOUSAND), PATIENCE), Probed(dict.fromkeys(THOUSAND, mac)))

    def test_full_queue(self) -> None:
        """Each address is asked for at least once, however long the interface takes to send that."""
        with IPRoute() as route:
            route.tc("add", "tbf", self.host.host.index(), rate="336kbit", burst=1600, limit=200)
        waits = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            sleep(seconds)

        neighbours = LinkNeighbours(monotonic, wait)
        self.addCleanup(neighbours.close)
        addresses = sorted(THOUSAND)[:100]
        self.assertEqual(neighbours.probe(at("em1", *addresses), 0), Probed())
        self.assertEqual(self.host.asked(), addresses)
        self.assertNotEqual(waits, [])

    def test_interface_gone(self) -> None:
        """An interface that is not there is an error, and one that comes back is used as it is then."""
        self.neighbours.probe(at("em1", FIRST), ENOUGH)
        self.host.host.remove_link()
        with self.assertRaises(NetworkError) as caught:
            self.neighbours.probe(at("em1", FIRST), PATIENCE)
        self.assertEqual(str(caught.exception), "probing for addresses on em1: No such device")
        self.host.host.create_link()
        mac = self.host.give(FIRST)
        self.assertEqual(self.neighbours.probe(at("em1", FIRST), PATIENCE), Probed({FIRST: mac}))

    def test_interface_replaced(self) -> None:
        """An interface that was replaced by another one of the same name between two questions is used at once."""
        self.neighbours.probe(at("em1", FIRST), ENOUGH)
        self.host.host.remove_link()
        self.host.host.create_link()
        mac = self.host.give(FIRST)
        self.assertEqual(self.neighbours.probe(at("em1", FIRST), PATIENCE), Probed({FIRST: mac}))

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
            self.neighbours.probe(at("em1", FIRST), 60)
        self.assertEqual(str(caught.exception), "probing for addresses on em1: Network is down")
        self.assertLess(monotonic() - begun, 15)

    def test_no_link_layer(self) -> None:
        """Where there are no neighbours nobody is asked, and nothing is waited for."""
        neighbours = LinkNeighbours(monotonic)
        self.addCleanup(neighbours.close)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as everything:
            everything.bind(("lo", 3))
            begun = monotonic()
            self.assertEqual(neighbours.probe(at("lo", FIRST, FIRST6), 60), Probed())
            self.assertLess(monotonic() - begun, 15)
            everything.settimeout(0.2)
            self.assertRaises(TimeoutError, everything.recv, 2048)
