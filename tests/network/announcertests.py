"""What every L{IAnnouncer} does. Each provider runs this suite, so that the one in memory cannot drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kiwi.model import Address, Assignment, in_order
from kiwi.network.interface import IAnnouncer, NetworkError

from .addressestests import Family, plus


class AnnouncerFixture(Protocol):
    """
    A host with a neighbour at the other end of its C{em1} and its C{em2}. Its clock stands at 100 s.
    """

    announcer: IAnnouncer

    def heard(self) -> Sequence[Address]:
        """The addresses that the neighbour heard of since it was last asked."""

    def break_link(self) -> None:
        """Make sending on C{em1} fail."""

    def mend_link(self) -> None:
        """Make it work again."""


def make_announcer_tests(
    make: Callable[[SynchronousTestCase], AnnouncerFixture], family: Family
) -> type[SynchronousTestCase]:
    """
    @param make: a fresh host; it may add cleanups to the test.
    @param family: the addresses that are announced.
    """
    first, second, third = family.first, family.second, plus(family.first, 2)

    class AnnouncerTests(SynchronousTestCase):
        def setUp(self) -> None:
            self.host = make(self)
            self.announcer = self.host.announcer

        def test_interface(self) -> None:
            """It provides what it says."""
            verifyObject(IAnnouncer, self.announcer)

        def test_announce(self) -> None:
            """The neighbours hear of each address once in each round, in order."""
            for addresses in ([first, second], [second]):
                self.announcer.announce({Assignment(address, 101, "em1") for address in addresses})
                self.assertEqual(self.host.heard(), addresses)

        def test_nothing(self) -> None:
            """No address is no announcement."""
            self.announcer.announce(set())
            self.assertEqual(self.host.heard(), [])

        def test_expired(self) -> None:
            """An address whose time has come is not announced."""
            ends = {first: 100, second: 99, third: 100.01}
            self.announcer.announce({Assignment(address, expires, "em1") for address, expires in ends.items()})
            self.assertEqual(self.host.heard(), [third])

        def test_broken(self) -> None:
            """A link that cannot send is an error, and used again when it can."""
            self.announcer.announce({Assignment(first, 101, "em1")})
            self.host.break_link()
            with self.assertRaises(NetworkError) as caught:
                self.announcer.announce({Assignment(first, 101, "em1")})
            self.assertEqual(str(caught.exception), "announcing addresses on em1: Network is down")
            self.assertEqual(self.host.heard(), [first])
            self.host.mend_link()
            self.announcer.announce({Assignment(second, 101, "em1")})
            self.assertEqual(self.host.heard(), [second])

        def test_many(self) -> None:
            """Very many addresses are all heard of."""
            self.announcer.announce({Assignment(address, 101, "em1") for address in family.many})
            self.assertEqual(self.host.heard(), in_order(family.many))

    return AnnouncerTests
