"""What every L{IAddresses} does. Each provider runs this suite, so that the one in memory cannot drift."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from math import inf
from typing import Protocol

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kiwi.model import Assignment, Host, Link
from kiwi.network.interface import Assigned, IAddresses, Unassigned

HERE = IPv4Interface("192.168.1.2/24")
LOOPBACK = IPv4Interface("127.0.0.1/8")
GATEWAY = IPv4Address("192.168.1.1")
FIRST = IPv4Address("192.168.1.41")
SECOND = IPv4Address("192.168.1.42")
MANY = frozenset(IPv4Address("192.168.2.0") + number for number in range(1000))


class AddressesFixture(Protocol):
    """
    A host with the interface C{em1}, which has L{HERE} by hand and a default route by L{GATEWAY}, and L{LOOPBACK}
    elsewhere.
    """

    addresses: IAddresses

    def now(self) -> float:
        """The agent's monotonic clock, in seconds."""

    def wait(self, condition: Callable[[], bool]) -> None:
        """Let time pass until it is so."""

    def configure(self, interface: IPv4Interface, elsewhere: bool = False) -> None:
        """Configure an address by hand, on the interface or on another."""

    def delete(self, address: IPv4Address) -> None:
        """Delete an address of ours by hand."""

    def make_permanent(self, address: IPv4Address) -> None:
        """Let an address of ours stay for ever, by hand."""

    def unplug(self) -> None:
        """Take the carrier away."""

    def remove_link(self) -> None:
        """Delete the interface."""

    def create_link(self) -> None:
        """Make an interface with the same name; nothing is configured on it."""


def make_addresses_tests(make: Callable[[SynchronousTestCase], AddressesFixture]) -> type[SynchronousTestCase]:
    """
    @param make: a fresh host; it may add cleanups to the test.
    """

    class AddressesTests(SynchronousTestCase):
        def setUp(self) -> None:
            self.host = make(self)
            self.addresses = self.host.addresses

        def read(self) -> Host:
            return self.addresses.read()

        def link(self) -> Link:
            link = self.read().link
            assert link is not None
            return link

        def assign(self, seconds: float, *addresses: IPv4Address) -> Assigned:
            now = self.host.now()
            return self.addresses.assign({Assignment(address, now + seconds) for address in addresses})

        def assert_lasts(self, address: IPv4Address, seconds: float) -> None:
            """The address is on the interface for so long, to the second that passes meanwhile."""
            left = self.read().assigned[address] - self.host.now()
            self.assertTrue(seconds - 5 < left <= seconds, f"{address} lasts {left} s")

        def test_interface(self) -> None:
            """It provides what it says."""
            verifyObject(IAddresses, self.addresses)

        def test_read(self) -> None:
            """It tells what is on the host: the link, what others configured, and the next hops of default routes."""
            link = self.link()
            self.assertEqual((link.name, len(link.mac), link.ready), ("em1", 6, True))
            self.assertEqual(
                self.read(), Host(link, {}, frozenset({HERE}), frozenset({HERE, LOOPBACK}), frozenset({GATEWAY}))
            )

        def test_assign(self) -> None:
            """Addresses come with lifetimes in whole seconds that end no later than asked; all else stays as it was."""
            before = self.read()
            now = self.host.now()
            assigned = self.addresses.assign({Assignment(FIRST, now + 100.5), Assignment(SECOND, now + 50.75)})
            self.assertEqual((assigned.expires.keys(), assigned.failed), ({FIRST, SECOND}, {}))
            self.assertTrue(now + 95 < assigned.expires[FIRST] <= now + 100.5)
            self.assertTrue(now + 45 < assigned.expires[SECOND] <= now + 50.75)
            self.assert_lasts(FIRST, 100)
            self.assert_lasts(SECOND, 50)
            after = self.read()
            self.assertEqual(after, Host(before.link, after.assigned, before.subnets, before.own, before.gateways))

        def test_extend(self) -> None:
            """An address that is there is given a new lifetime, longer or shorter."""
            for seconds in (50.5, 100.5, 20.5):
                self.assertEqual(self.assign(seconds, FIRST).failed, {})
                self.assert_lasts(FIRST, seconds)

        def test_nothing(self) -> None:
            """Nothing to do is done."""
            self.assertEqual(self.addresses.assign(set()), Assigned())
            self.assertEqual(self.addresses.unassign(set()), Unassigned())

        def test_short(self) -> None:
            """An address with less than a second left is not assigned, and the others are."""
            now = self.host.now()
            assigned = self.addresses.assign(
                {Assignment(FIRST, now - 1), Assignment(SECOND, now + 0.9), Assignment(FIRST + 9, now + 100)}
            )
            self.assertEqual(assigned.expires.keys(), {FIRST + 9})
            self.assertEqual(assigned.failed.keys(), {FIRST, SECOND})
            self.assertEqual(assigned.failed[FIRST], "its claim has ended")
            self.assertRegex(assigned.failed[SECOND], r"\Aits claim ends in 0\.\d s\Z")
            self.assertEqual(self.read().assigned.keys(), {FIRST + 9})

        def test_expire(self) -> None:
            """An address goes by itself, not before its time."""
            expires = self.assign(2.5, FIRST).expires[FIRST]
            self.assign(100, SECOND)
            self.host.wait(lambda: FIRST not in self.read().assigned)
            self.assertGreaterEqual(self.host.now(), expires - 0.05)
            self.assertEqual(self.read().assigned.keys(), {SECOND})

        def test_foreign(self) -> None:
            """An address that somebody else configured, with whatever prefix and wherever, is left alone and fails."""
            theirs = [IPv4Interface(f"{FIRST}/24"), IPv4Interface(f"{FIRST + 1}/32"), IPv4Interface(f"{FIRST + 2}/32")]
            self.host.configure(theirs[0])
            self.host.configure(theirs[1])
            self.host.configure(theirs[2], elsewhere=True)
            before = self.read()
            self.assertEqual(before.subnets, {HERE, *theirs[:2]})
            self.assertEqual(before.own, {HERE, LOOPBACK, *theirs})
            assigned = self.assign(100, *(each.ip for each in theirs), FIRST + 9)
            self.assertEqual(assigned.expires.keys(), {FIRST + 9})
            self.assertEqual(
                assigned.failed, {each.ip: f"somebody else configured {each} on this host" for each in theirs}
            )
            gone = frozenset({FIRST + 9, *(each.ip for each in theirs)})
            self.assertEqual(self.addresses.unassign(gone), Unassigned(gone))
            self.assertEqual(self.read(), before)

        def test_unassign(self) -> None:
            """Addresses go, and one that was not there is gone too."""
            self.assign(100, FIRST, SECOND)
            gone = frozenset({FIRST, FIRST + 9})
            self.assertEqual(self.addresses.unassign(gone), Unassigned(gone))
            self.assertEqual(self.read().assigned.keys(), {SECOND})

        def test_deleted_by_hand(self) -> None:
            """An address that somebody deleted is missing, and can be assigned again."""
            self.assign(100, FIRST, SECOND)
            self.host.delete(FIRST)
            self.assertEqual(self.read().assigned.keys(), {SECOND})
            self.assertEqual(self.assign(100, FIRST, SECOND).failed, {})
            self.assertEqual(self.read().assigned.keys(), {FIRST, SECOND})

        def test_permanent_by_hand(self) -> None:
            """An address of ours that would stay for ever is told as such, and gets an end when it is assigned."""
            self.assign(100, FIRST)
            self.host.make_permanent(FIRST)
            self.assertEqual(self.read().assigned, {FIRST: inf})
            self.assign(100, FIRST)
            self.assert_lasts(FIRST, 100)

        def test_no_carrier(self) -> None:
            """A link without carrier is not ready; what is on it stays."""
            self.assign(100, FIRST)
            self.host.unplug()
            self.host.wait(lambda: not self.link().ready)
            self.assertEqual(self.read().assigned.keys(), {FIRST})
            self.assertEqual(self.assign(100, FIRST, SECOND).failed, {})

        def test_no_link(self) -> None:
            """Without its interface an agent assigns nothing, and nothing is left to take away."""
            self.assign(100, FIRST)
            self.host.remove_link()
            host = self.read()
            self.assertEqual((host.link, host.assigned, host.subnets, host.own), (None, {}, set(), {LOOPBACK}))
            self.assertEqual(self.assign(100, FIRST), Assigned({}, {FIRST: "the interface em1 does not exist"}))
            self.assertEqual(self.addresses.unassign({FIRST}), Unassigned(frozenset({FIRST})))

        def test_new_link(self) -> None:
            """An interface that comes back is used as it is then."""
            self.assign(100, FIRST)
            self.host.remove_link()
            self.host.create_link()
            self.assertEqual(self.read().assigned, {})
            self.assertEqual(self.assign(100, FIRST).failed, {})
            self.assertEqual(self.read().assigned.keys(), {FIRST})

        def test_many(self) -> None:
            """A thousand addresses are put on, extended, told of, and taken off."""
            for seconds in (50, 100):
                assigned = self.assign(seconds, *MANY)
                self.assertEqual((assigned.expires.keys(), assigned.failed), (MANY, {}))
            host = self.read()
            self.assertEqual((host.assigned.keys(), host.subnets), (MANY, {HERE}))
            self.assertEqual(self.addresses.unassign(MANY), Unassigned(MANY))
            self.assertEqual(self.read().assigned, {})

    return AddressesTests
