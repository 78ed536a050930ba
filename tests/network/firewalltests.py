"""What every L{IFirewall} does. Each provider runs this suite, so that the one in memory cannot drift."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kiwi import model
from kiwi.model import Address, Mark
from kiwi.network.firewall import FwMark
from kiwi.network.interface import IFirewall, NetworkError

ADDRESS = IPv4Address("192.168.1.41")
ADDRESS6 = IPv6Address("fd00::1:41")
WEB = Mark(ADDRESS, model.Protocol.TCP, 8080, "web")
DNS = Mark(ADDRESS, model.Protocol.UDP, 53, "kube-system/dns")
SIGNALLING = Mark(ADDRESS + 1, model.Protocol.SCTP, 2905, "web")
WEB6 = Mark(ADDRESS6, model.Protocol.TCP, 8080, "web")
DNS6 = Mark(ADDRESS6, model.Protocol.UDP, 53, "kube-system/dns")
SIGNALLING6 = Mark(ADDRESS6 + 1, model.Protocol.SCTP, 2905, "web")
BOTH = frozenset({WEB, DNS, SIGNALLING, WEB6, DNS6, SIGNALLING6})
MANY = frozenset(
    Mark(address + number // 4, protocol, 1000 + number, f"shop/service-{number}")
    for number, protocol in enumerate(list(model.Protocol) * 333)
    for address in (ADDRESS, ADDRESS6)
)
EVIL = ["", "we\nb", 'web" -j DROP', "web\\", "it's", "web\0", "\x1b[2J", "web\u2028", "\udc80"]


class FirewallFixture(Protocol):
    """A host whose firewall has nothing of ours."""

    firewall: IFirewall

    def another(self, fwmark: FwMark) -> IFirewall:
        """Another process's way to the same firewall, which marks with this."""

    def spoil(self) -> None:
        """Change the chain by hand."""

    def mark(self, address: Address, protocol: model.Protocol, port: int) -> int:
        """The mark of a packet that comes in now."""

    def marks_during(self, work: Callable[[], None], address: Address, protocol: model.Protocol, port: int) -> set[int]:
        """The different marks of the packets that come in while something is being done."""

    def mark_before(self, value: int) -> None:
        """Let somebody else mark all packets with this, before anything of ours sees them."""


def make_firewall_tests(make: Callable[[SynchronousTestCase], FirewallFixture]) -> type[SynchronousTestCase]:
    """
    @param make: a fresh host, with a firewall that marks with 1; it may add cleanups to the test.
    """

    class FirewallTests(SynchronousTestCase):
        def setUp(self) -> None:
            self.host = make(self)
            self.firewall = self.host.firewall

        def test_interface(self) -> None:
            """It provides what it says."""
            verifyObject(IFirewall, self.firewall)

        def test_nothing(self) -> None:
            """At first there is no chain."""
            self.assertIsNone(self.firewall.read())

        def test_replace(self) -> None:
            """The last replacement is what stands: more marks, others, the same, fewer, and none."""
            for marks in (
                {WEB},
                {WEB, DNS},
                {SIGNALLING, DNS6},
                {SIGNALLING, DNS6},
                {SIGNALLING6, WEB6},
                {DNS},
                BOTH,
                {WEB6},
                set(),
            ):
                self.firewall.replace(marks)
                self.assertEqual(self.firewall.read(), marks)

        def test_same_object(self) -> None:
            """What was told of last is told of again while nothing changes: the same object."""
            self.firewall.replace(BOTH)
            read = self.firewall.read()
            self.assertIs(self.firewall.read(), read)

        def test_another_process(self) -> None:
            """Whoever comes later finds what was set, and need not change it."""
            self.firewall.replace(BOTH)
            later = self.host.another(FwMark(1))
            self.assertEqual(later.read(), BOTH)
            later.replace(BOTH - {WEB, WEB6})
            self.assertEqual((later.read(), self.firewall.read()), (BOTH - {WEB, WEB6},) * 2)

        def test_packets(self) -> None:
            """Packets are marked that go to one of the addresses, with its protocol and to its port; no others are."""
            self.firewall.replace(BOTH)
            for each in BOTH:
                other = model.Protocol.UDP if each.protocol is model.Protocol.TCP else model.Protocol.TCP
                self.assertEqual(
                    [
                        self.host.mark(each.address, each.protocol, each.port),
                        self.host.mark(each.address + 7, each.protocol, each.port),
                        self.host.mark(each.address, other, each.port),
                        self.host.mark(each.address, each.protocol, each.port + 1),
                    ],
                    [1, 0, 0, 0],
                    each,
                )
            self.firewall.replace({WEB, DNS6})
            marked = {each for each in BOTH if self.host.mark(each.address, each.protocol, each.port)}
            self.assertEqual(marked, {WEB, DNS6})
            self.firewall.remove()
            self.assertEqual({self.host.mark(each.address, each.protocol, each.port) for each in BOTH}, {0})

        def test_whole_mark(self) -> None:
            """Without a mask, an earlier mark is lost where ours is set, and stays where it is not."""
            self.host.mark_before(0x12345678)
            self.firewall.replace({WEB, WEB6})
            for each, other in ((WEB, DNS), (WEB6, DNS6)):
                self.assertEqual(self.host.mark(each.address, each.protocol, each.port), 1)
                self.assertEqual(self.host.mark(other.address, other.protocol, other.port), 0x12345678)

        def test_mask(self) -> None:
            """With a mask, the bits outside of it stay as somebody else has set them."""
            self.host.mark_before(0x12345678)
            masked = self.host.another(FwMark(0x100, 0xFF00))
            masked.replace({WEB, WEB6})
            self.assertEqual(masked.read(), {WEB, WEB6})
            for each, other in ((WEB, DNS), (WEB6, DNS6)):
                self.assertEqual(self.host.mark(each.address, each.protocol, each.port), 0x12340178)
                self.assertEqual(self.host.mark(other.address, other.protocol, other.port), 0x12345678)

        def test_other_mark(self) -> None:
            """What sets another mark, or other bits of it, is not as it should be, and becomes so."""
            for fwmark in (FwMark(0x20), FwMark(1, 0xFF), FwMark(1, 0xF), FwMark(1)):
                self.firewall.replace({WEB, WEB6})
                self.firewall = self.host.another(fwmark)
                if fwmark != FwMark(1):
                    self.assertIsNone(self.firewall.read(), fwmark)
                self.firewall.replace({WEB, WEB6})
                self.assertEqual(self.firewall.read(), {WEB, WEB6})
                self.assertEqual(self.host.mark(WEB6.address, WEB6.protocol, WEB6.port), fwmark.value)

        def test_no_gap(self) -> None:
            """Not one packet goes unmarked while other marks come and go, or while the whole is mended."""

            def work() -> None:
                for marks in ({WEB, WEB6, DNS}, {WEB, WEB6, DNS6}, BOTH, {WEB, WEB6}):
                    self.firewall.replace(marks)
                    self.host.spoil()
                    self.firewall.replace(marks)

            self.firewall.replace({WEB, WEB6})
            for each in (WEB, WEB6):
                self.assertEqual(self.host.marks_during(work, each.address, each.protocol, each.port), {1})

        def test_one_port_for_several(self) -> None:
            """Marks for the same traffic on behalf of two Services stand side by side."""
            marks = {WEB, Mark(ADDRESS, model.Protocol.TCP, 8080, "other")}
            self.firewall.replace(marks)
            self.assertEqual(self.firewall.read(), marks)

        def test_remove(self) -> None:
            """After removal there is no chain, and removing nothing is no error."""
            self.firewall.remove()
            self.firewall.replace({WEB})
            self.firewall.remove()
            self.assertIsNone(self.firewall.read())
            self.firewall.remove()

        def test_spoilt(self) -> None:
            """A chain that somebody changed is told of, and mended by a replacement."""
            self.firewall.replace({WEB, DNS})
            self.host.spoil()
            self.assertIsNone(self.firewall.read())
            self.firewall.replace({WEB, DNS})
            self.assertEqual(self.firewall.read(), {WEB, DNS})

        def test_refused(self) -> None:
            """A batch with a name that cannot be a comment is refused as a whole, in one printable line."""
            self.firewall.replace({WEB})
            for name in EVIL:
                with self.assertRaises(NetworkError) as caught:
                    self.firewall.replace({DNS, Mark(ADDRESS, model.Protocol.TCP, 1, name)})
                self.assertEqual(str(caught.exception), f"{name!a} cannot be the comment of a rule")
                self.assertEqual(self.firewall.read(), {WEB})

        def test_long_name(self) -> None:
            """A name that is longer than a comment can be is no difference to what was asked."""
            for name in ("n" * 63 + "/" + "s" * 253, "é" * 200):
                marks = {WEB, Mark(ADDRESS, model.Protocol.TCP, 1, name)}
                self.firewall.replace(marks)
                self.assertEqual(self.firewall.read(), marks)

        def test_many(self) -> None:
            """Two thousand marks are set, told of, and removed; one of them changes."""
            self.firewall.replace(MANY)
            self.assertEqual(self.firewall.read(), MANY)
            for marks in (MANY | {WEB}, MANY):
                self.firewall.replace(marks)
                self.assertEqual(self.firewall.read(), marks)
                self.assertEqual(self.host.another(FwMark(1)).read(), marks)
            self.firewall.remove()
            self.assertIsNone(self.firewall.read())

    return FirewallTests
