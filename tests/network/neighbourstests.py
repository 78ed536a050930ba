"""What every L{INeighbours} does. Each provider runs this suite, so that the one in memory cannot drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kiwi.model import Address, Placement, in_order
from kiwi.network.interface import INeighbours, NetworkError, Probed

from .addressestests import Family, plus

ENOUGH = 0.05
"""Seconds to wait where nobody answers."""

PATIENCE = 20.0
"""Seconds to wait where everybody answers."""


class NeighboursFixture(Protocol):
    """A host with a neighbour that has no address, at the other end of its C{em1}."""

    neighbours: INeighbours

    def give(self, *addresses: Address) -> bytes:
        """Let the neighbour have these addresses; its MAC address."""

    def take(self, address: Address) -> None:
        """Let the neighbour have an address no more."""

    def contest(self, *addresses: Address) -> bytes:
        """Let the neighbour probe for these addresses itself while it is asked next; its MAC address."""

    def asked(self) -> Sequence[Address]:
        """The addresses that the neighbour was asked for since this was last asked, in order, each once."""

    def break_link(self) -> None:
        """Make asking fail."""

    def mend_link(self) -> None:
        """Make it work again."""


def at(interface: str, *addresses: Address) -> set[Placement]:
    """These addresses on an interface."""
    return {Placement(address, interface) for address in addresses}


def make_neighbours_tests(
    make: Callable[[SynchronousTestCase], NeighboursFixture], family: Family
) -> type[SynchronousTestCase]:
    """
    @param make: a fresh host; it may add cleanups to the test.
    @param family: the addresses that are asked for.
    """
    first, second = family.first, family.second
    third, fourth = plus(first, 2), plus(first, 3)
    many = in_order(family.many)[:500]

    class NeighboursTests(SynchronousTestCase):
        def setUp(self) -> None:
            self.host = make(self)
            self.neighbours = self.host.neighbours

        def test_interface(self) -> None:
            """It provides what it says."""
            verifyObject(INeighbours, self.neighbours)

        def test_nobody(self) -> None:
            """An address that nobody has is asked for, and nobody answers."""
            self.assertEqual(self.neighbours.probe(at("em1", first), ENOUGH), Probed())
            self.assertEqual(self.host.asked(), [first])

        def test_somebody(self) -> None:
            """An address that another machine has is answered for, and the answer has the machine's MAC address."""
            mac = self.host.give(first, second)
            self.assertEqual(len(mac), 6)
            self.assertEqual(self.neighbours.probe(at("em1", first), PATIENCE), Probed({first: mac}))
            self.assertEqual(
                self.neighbours.probe(at("em1", first, second), PATIENCE), Probed({first: mac, second: mac})
            )

        def test_no_more(self) -> None:
            """An address that another machine had is free when it has it no more."""
            mac = self.host.give(first, second)
            self.assertEqual(
                self.neighbours.probe(at("em1", first, second), PATIENCE), Probed({first: mac, second: mac})
            )
            self.host.take(first)
            self.assertEqual(self.neighbours.probe(at("em1", first), ENOUGH), Probed())

        def test_contested(self) -> None:
            """An address that another machine asks for meanwhile is contested, unless one has it."""
            owner = self.host.give(second)
            rival = self.host.contest(first, second, fourth)
            self.assertEqual(
                self.neighbours.probe(at("em1", first, second, third), 1), Probed({second: owner}, {first: rival})
            )

        def test_nothing(self) -> None:
            """No address is no question."""
            self.assertEqual(self.neighbours.probe(set(), PATIENCE), Probed())
            self.assertEqual(self.host.asked(), [])

        def test_broken(self) -> None:
            """A link that cannot be asked on is an error, and used again when it can."""
            mac = self.host.give(first)
            self.assertEqual(self.neighbours.probe(at("em1", first), PATIENCE), Probed({first: mac}))
            self.host.break_link()
            with self.assertRaises(NetworkError) as caught:
                self.neighbours.probe(at("em1", first), PATIENCE)
            self.assertEqual(str(caught.exception), "probing for addresses on em1: Network is down")
            self.assertEqual(self.neighbours.probe(set(), PATIENCE), Probed())
            self.host.mend_link()
            self.assertEqual(self.neighbours.probe(at("em1", first), PATIENCE), Probed({first: mac}))

        def test_many(self) -> None:
            """Of many addresses, those that another machine has are found, and all are asked for."""
            some = many[::7]
            mac = self.host.give(*some)
            self.assertEqual(self.neighbours.probe(at("em1", *many), 1), Probed(dict.fromkeys(some, mac)))
            self.assertEqual(self.host.asked(), many)

    return NeighboursTests
