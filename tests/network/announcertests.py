"""What every L{IAnnouncer} does. Each provider runs this suite, so that the one in memory cannot drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Protocol

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kiwi.model import Assignment
from kiwi.network.interface import IAnnouncer, NetworkError

FIRST = IPv4Address("192.168.1.41")
MANY = frozenset(IPv4Address("192.168.2.0") + number for number in range(1000))


class AnnouncerFixture(Protocol):
    """
    A host with a neighbour. Its clock stands at 100 s.
    """

    announcer: IAnnouncer

    def heard(self) -> Sequence[IPv4Address]:
        """The addresses that the neighbour heard of since it was last asked."""

    def break_link(self) -> None:
        """Make sending fail."""

    def mend_link(self) -> None:
        """Make it work again."""


def make_announcer_tests(make: Callable[[SynchronousTestCase], AnnouncerFixture]) -> type[SynchronousTestCase]:
    """
    @param make: a fresh host; it may add cleanups to the test.
    """

    class AnnouncerTests(SynchronousTestCase):
        def setUp(self) -> None:
            self.host = make(self)
            self.announcer = self.host.announcer

        def test_interface(self) -> None:
            """It provides what it says."""
            verifyObject(IAnnouncer, self.announcer)

        def test_announce(self) -> None:
            """The neighbours hear of each address once in each round, in order."""
            for addresses in ([FIRST, FIRST + 1], [FIRST + 1]):
                self.announcer.announce({Assignment(address, 101) for address in addresses})
                self.assertEqual(self.host.heard(), addresses)

        def test_nothing(self) -> None:
            """No address is no announcement."""
            self.announcer.announce(set())
            self.assertEqual(self.host.heard(), [])

        def test_expired(self) -> None:
            """An address whose time has come is not announced."""
            self.announcer.announce({Assignment(FIRST, 100), Assignment(FIRST + 1, 99), Assignment(FIRST + 2, 100.01)})
            self.assertEqual(self.host.heard(), [FIRST + 2])

        def test_broken(self) -> None:
            """A link that cannot send is an error, and used again when it can."""
            self.announcer.announce({Assignment(FIRST, 101)})
            self.host.break_link()
            with self.assertRaises(NetworkError) as caught:
                self.announcer.announce({Assignment(FIRST, 101)})
            self.assertEqual(str(caught.exception), "announcing addresses on em1: Network is down")
            self.assertEqual(self.host.heard(), [FIRST])
            self.host.mend_link()
            self.announcer.announce({Assignment(FIRST + 1, 101)})
            self.assertEqual(self.host.heard(), [FIRST + 1])

        def test_many(self) -> None:
            """A thousand addresses are all heard of."""
            self.announcer.announce({Assignment(address, 101) for address in MANY})
            self.assertEqual(self.host.heard(), sorted(MANY))

    return AnnouncerTests
