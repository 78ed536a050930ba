"""What every L{IFirewall} does. Each provider runs this suite, so that the one in memory cannot drift."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Protocol

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kiwi import model
from kiwi.model import Mark
from kiwi.network.interface import IFirewall, NetworkError

ADDRESS = IPv4Address("192.168.1.41")
WEB = Mark(ADDRESS, model.Protocol.TCP, 8080, "web")
DNS = Mark(ADDRESS, model.Protocol.UDP, 53, "kube-system/dns")
SIGNALLING = Mark(ADDRESS + 1, model.Protocol.SCTP, 2905, "web")
MANY = frozenset(
    Mark(ADDRESS + number // 4, protocol, 1000 + number, f"shop/service-{number}")
    for number, protocol in enumerate(list(model.Protocol) * 667)
)
EVIL = ["", "we\nb", 'web" -j DROP', "web\\", "it's", "web\0", "\x1b[2J", "web\u2028", "\udc80"]


class FirewallFixture(Protocol):
    """A host whose firewall has nothing of ours."""

    firewall: IFirewall

    def spoil(self) -> None:
        """Change the chain by hand."""


def make_firewall_tests(make: Callable[[SynchronousTestCase], FirewallFixture]) -> type[SynchronousTestCase]:
    """
    @param make: a fresh host; it may add cleanups to the test.
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
            for marks in ({WEB}, {WEB, DNS}, {SIGNALLING, DNS}, {SIGNALLING, DNS}, {DNS}, set()):
                self.firewall.replace(marks)
                self.assertEqual(self.firewall.read(), marks)

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
            """Two thousand marks are set, told of, and removed."""
            self.firewall.replace(MANY)
            self.assertEqual(self.firewall.read(), MANY)
            self.firewall.remove()
            self.assertIsNone(self.firewall.read())

    return FirewallTests
