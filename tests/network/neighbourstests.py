"""What every L{INeighbours} does. Each provider runs this suite, so that the one in memory cannot drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Protocol

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kiwi.network.interface import INeighbours, NetworkError, Probed

FIRST = IPv4Address("192.168.1.41")
MANY = frozenset(IPv4Address("192.168.2.0") + number for number in range(500))
ENOUGH = 0.05
"""Seconds to wait where nobody answers."""

PATIENCE = 20.0
"""Seconds to wait where everybody answers."""


class NeighboursFixture(Protocol):
    """A host with a neighbour that has no address."""

    neighbours: INeighbours

    def give(self, *addresses: IPv4Address) -> bytes:
        """Let the neighbour have these addresses; its MAC address."""

    def take(self, address: IPv4Address) -> None:
        """Let the neighbour have an address no more."""

    def contest(self, *addresses: IPv4Address) -> bytes:
        """Let the neighbour probe for these addresses itself while it is asked next; its MAC address."""

    def asked(self) -> Sequence[IPv4Address]:
        """The addresses that the neighbour was asked for since this was last asked, in order, each once."""

    def break_link(self) -> None:
        """Make asking fail."""

    def mend_link(self) -> None:
        """Make it work again."""


def make_neighbours_tests(make: Callable[[SynchronousTestCase], NeighboursFixture]) -> type[SynchronousTestCase]:
    """
    @param make: a fresh host; it may add cleanups to the test.
    """

    class NeighboursTests(SynchronousTestCase):
        def setUp(self) -> None:
            self.host = make(self)
            self.neighbours = self.host.neighbours

        def test_interface(self) -> None:
            """It provides what it says."""
            verifyObject(INeighbours, self.neighbours)

        def test_nobody(self) -> None:
            """An address that nobody has is asked for, and nobody answers."""
            self.assertEqual(self.neighbours.probe({FIRST}, ENOUGH), Probed())
            self.assertEqual(self.host.asked(), [FIRST])

        def test_somebody(self) -> None:
            """An address that another machine has is answered for, and the answer has the machine's MAC address."""
            mac = self.host.give(FIRST, FIRST + 1)
            self.assertEqual(len(mac), 6)
            self.assertEqual(self.neighbours.probe({FIRST}, PATIENCE), Probed({FIRST: mac}))
            self.assertEqual(self.neighbours.probe({FIRST, FIRST + 1}, PATIENCE), Probed({FIRST: mac, FIRST + 1: mac}))

        def test_no_more(self) -> None:
            """An address that another machine had is free when it has it no more."""
            mac = self.host.give(FIRST, FIRST + 1)
            self.assertEqual(self.neighbours.probe({FIRST, FIRST + 1}, PATIENCE), Probed({FIRST: mac, FIRST + 1: mac}))
            self.host.take(FIRST)
            self.assertEqual(self.neighbours.probe({FIRST}, ENOUGH), Probed())

        def test_contested(self) -> None:
            """An address that another machine asks for meanwhile is contested, unless one has it."""
            owner = self.host.give(FIRST + 1)
            rival = self.host.contest(FIRST, FIRST + 1, FIRST + 3)
            self.assertEqual(
                self.neighbours.probe({FIRST, FIRST + 1, FIRST + 2}, 1), Probed({FIRST + 1: owner}, {FIRST: rival})
            )

        def test_nothing(self) -> None:
            """No address is no question."""
            self.assertEqual(self.neighbours.probe(set(), PATIENCE), Probed())
            self.assertEqual(self.host.asked(), [])

        def test_broken(self) -> None:
            """A link that cannot be asked on is an error, and used again when it can."""
            mac = self.host.give(FIRST)
            self.assertEqual(self.neighbours.probe({FIRST}, PATIENCE), Probed({FIRST: mac}))
            self.host.break_link()
            with self.assertRaises(NetworkError) as caught:
                self.neighbours.probe({FIRST}, PATIENCE)
            self.assertEqual(str(caught.exception), "probing for addresses on em1: Network is down")
            self.assertEqual(self.neighbours.probe(set(), PATIENCE), Probed())
            self.host.mend_link()
            self.assertEqual(self.neighbours.probe({FIRST}, PATIENCE), Probed({FIRST: mac}))

        def test_many(self) -> None:
            """Of many addresses, those that another machine has are found, and all are asked for."""
            some = sorted(MANY)[::7]
            mac = self.host.give(*some)
            self.assertEqual(self.neighbours.probe(MANY, 1), Probed(dict.fromkeys(some, mac)))
            self.assertEqual(self.host.asked(), sorted(MANY))

    return NeighboursTests
