"""What every L{IAddresses} does. Each provider runs this suite, so that the one in memory cannot drift."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_interface
from math import inf
from typing import Protocol

from attrs import evolve, frozen
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kiwi.model import Address, Assignment, Configured, Host, Link, ip
from kiwi.network.interface import Assigned, IAddresses, Unassigned


@frozen
class Family:
    """
    Addresses of one family.

    @ivar wide: the prefix of the subnet of the interface.
    @ivar spare: the part of a lifetime by which the kernel may be asked to remove an address earlier, since it is late.
    """

    version: int
    first: Address
    wide: int
    many: frozenset[Address]
    spare: float

    @property
    def second(self) -> Address:
        return plus(self.first, 1)


def plus(address: Address, number: int) -> Address:
    """The address so many places after another one."""
    return ip(str(address + number))


def configured(address: Address, prefix: int | None = None) -> Configured:
    """An address with a prefix; its whole length if none is given."""
    return ip_interface(f"{address}/{prefix or address.max_prefixlen}")


IPV4 = Family(4, ip("192.168.1.41"), 24, frozenset(plus(ip("192.168.2.0"), number) for number in range(1000)), 0)
IPV6 = Family(6, ip("fd00::41"), 64, frozenset(plus(ip("fd00::2:0"), number) for number in range(150)), 1 / 9)

HERE = frozenset({ip_interface("192.168.1.2/24"), ip_interface("fd00::2/64")})
LOOPBACK = frozenset({ip_interface("127.0.0.1/8"), ip_interface("::1/128")})
GATEWAYS = frozenset({ip("192.168.1.1"), ip("fd00::1")})


class AddressesFixture(Protocol):
    """
    A host with two interfaces: C{em1}, which has the addresses L{HERE} by hand and a default route by each of
    L{GATEWAYS}, and C{em2}; and with L{LOOPBACK} elsewhere.
    """

    addresses: IAddresses

    def now(self) -> float:
        """The agent's monotonic clock, in seconds."""

    def wait(self, condition: Callable[[], bool]) -> None:
        """Let time pass until it is so."""

    def configure(self, address: Configured, elsewhere: bool = False) -> None:
        """Configure an address by hand, on C{em1} or on an interface that is not ours."""

    def delete(self, address: Address) -> None:
        """Delete an address of ours on C{em1} by hand."""

    def make_permanent(self, address: Address) -> None:
        """Let an address of ours on C{em1} stay for ever, by hand."""

    def unplug(self) -> None:
        """Take the carrier of C{em1} away."""

    def remove_link(self, name: str) -> None:
        """Delete an interface."""

    def create_link(self, name: str) -> None:
        """Make an interface with the same name; nothing is configured on it."""


def make_addresses_tests(
    make: Callable[[SynchronousTestCase], AddressesFixture], family: Family
) -> type[SynchronousTestCase]:
    """
    @param make: a fresh host; it may add cleanups to the test.
    @param family: what it is asked for.
    """
    first, second, third = family.first, family.second, plus(family.first, 9)

    class AddressesTests(SynchronousTestCase):
        def setUp(self) -> None:
            self.host = make(self)
            self.addresses = self.host.addresses

        def read(self) -> Host:
            return self.addresses.read()

        def link(self) -> Link:
            return self.read().links["em1"]

        def assign(self, seconds: float, *addresses: Address) -> Assigned:
            now = self.host.now()
            return self.addresses.assign({Assignment(address, now + seconds, "em1") for address in addresses})

        def assert_lasts(self, address: Address, seconds: float) -> None:
            """The address is on the interface for so long, to the second that passes meanwhile."""
            left = self.read().assigned[address] - self.host.now()
            self.assertTrue(seconds - 5 < left <= seconds + 0.01, f"{address} lasts {left} s")

        def test_interface(self) -> None:
            """It provides what it says."""
            verifyObject(IAddresses, self.addresses)

        def test_read(self) -> None:
            """It tells what is on the host: the links, what others configured, and the next hops of default routes."""
            host = self.read()
            for name in ("em1", "em2"):
                link = host.links[name]
                self.assertEqual((link.name, len(link.mac), link.ready), (name, 6, True))
            subnets = {"em1": HERE, "em2": frozenset()}
            self.assertEqual(host, Host(host.links, {}, {}, subnets, HERE | LOOPBACK, GATEWAYS))

        def test_assign(self) -> None:
            """Addresses come with lifetimes in whole seconds that end no later than asked; all else stays as it was."""
            before = self.read()
            now = self.host.now()
            assigned = self.addresses.assign(
                {Assignment(first, now + 100.5, "em1"), Assignment(second, now + 50.75, "em1")}
            )
            self.assertEqual((assigned.expires.keys(), assigned.failed), ({first, second}, {}))
            self.assertTrue(now + 95 < assigned.expires[first] <= now + 100.5)
            self.assertTrue(now + 45 < assigned.expires[second] <= now + 50.75)
            self.assert_lasts(first, 100.5)
            self.assert_lasts(second, 50.75)
            after = self.read()
            where = dict.fromkeys((first, second), "em1")
            self.assertEqual(after, evolve(before, assigned=after.assigned, where=where))

        def test_two_interfaces(self) -> None:
            """Each address goes to its interface, is extended there, and goes from there."""
            for seconds in (50, 100):
                now = self.host.now()
                assigned = self.addresses.assign(
                    {Assignment(first, now + seconds, "em1"), Assignment(second, now + seconds, "em2")}
                )
                self.assertEqual((assigned.expires.keys(), assigned.failed), ({first, second}, {}))
                self.assertEqual(self.read().where, {first: "em1", second: "em2"})
            self.assertEqual(self.addresses.unassign({second}), Unassigned(frozenset({second})))
            self.assertEqual(self.read().where, {first: "em1"})
            self.assertEqual(self.addresses.unassign({first, second}), Unassigned(frozenset({first, second})))
            self.assertEqual(self.read().where, {})

        def test_on_the_other_interface(self) -> None:
            """An address of ours that is on another interface is left there, until it is taken off."""
            self.assign(100, first)
            to_em2 = {Assignment(first, self.host.now() + 100, "em2")}
            self.assertEqual(self.addresses.assign(to_em2), Assigned({}, {first: "it is on em1 still"}))
            self.assertEqual(self.read().where, {first: "em1"})
            self.addresses.unassign({first})
            self.assertEqual(self.addresses.assign(to_em2).failed, {})
            self.assertEqual(self.read().where, {first: "em2"})

        def test_one_interface_missing(self) -> None:
            """What belongs to an interface that does not exist fails, and the rest is done."""
            self.host.remove_link("em2")
            now = self.host.now()
            both = {Assignment(first, now + 100, "em1"), Assignment(second, now + 100, "em2")}
            assigned = self.addresses.assign(both)
            self.assertEqual(assigned.expires.keys(), {first})
            self.assertEqual(assigned.failed, {second: "the interface em2 does not exist"})
            host = self.read()
            self.assertEqual((host.links.keys(), host.where, host.subnets), ({"em1"}, {first: "em1"}, {"em1": HERE}))
            self.host.create_link("em2")
            self.assertEqual(self.addresses.assign(both).failed, {})
            self.assertEqual(self.read().where, {first: "em1", second: "em2"})

        def test_extend(self) -> None:
            """An address that is there is given a new lifetime, longer or shorter."""
            for seconds in (50.5, 100.5, 20.5):
                self.assertEqual(self.assign(seconds, first).failed, {})
                self.assert_lasts(first, seconds)

        def test_nothing(self) -> None:
            """Nothing to do is done."""
            self.assertEqual(self.addresses.assign(set()), Assigned())
            self.assertEqual(self.addresses.unassign(set()), Unassigned())

        def test_short(self) -> None:
            """An address with less than a second left is not assigned, and the others are."""
            now = self.host.now()
            assigned = self.addresses.assign(
                {
                    Assignment(first, now - 1, "em1"),
                    Assignment(second, now + 0.9, "em1"),
                    Assignment(third, now + 100, "em1"),
                }
            )
            self.assertEqual(assigned.expires.keys(), {third})
            self.assertEqual(assigned.failed.keys(), {first, second})
            self.assertEqual(assigned.failed[first], "its claim has ended")
            self.assertRegex(assigned.failed[second], r"\Aits claim ends in 0\.\d s\Z")
            self.assertEqual(self.read().assigned.keys(), {third})

        def test_expire(self) -> None:
            """An address goes by itself, not before its time."""
            expires = self.assign(2.5, first).expires[first]
            self.assign(100, second)
            self.host.wait(lambda: first not in self.read().assigned)
            self.assertGreaterEqual(self.host.now(), expires - 0.05 - 2.5 * family.spare)
            self.assertEqual(self.read().assigned.keys(), {second})

        def test_foreign(self) -> None:
            """An address that somebody else configured, with whatever prefix and wherever, is left alone and fails."""
            theirs = [configured(first, family.wide), configured(second), configured(plus(first, 2))]
            self.host.configure(theirs[0])
            self.host.configure(theirs[1])
            self.host.configure(theirs[2], elsewhere=True)
            before = self.read()
            self.assertEqual(before.subnets, {"em1": {*HERE, *theirs[:2]}, "em2": set()})
            self.assertEqual(before.own, {*HERE, *LOOPBACK, *theirs})
            assigned = self.assign(100, *(each.ip for each in theirs), third)
            self.assertEqual(assigned.expires.keys(), {third})
            self.assertEqual(
                assigned.failed, {each.ip: f"somebody else configured {each} on this host" for each in theirs}
            )
            gone = frozenset({third, *(each.ip for each in theirs)})
            self.assertEqual(self.addresses.unassign(gone), Unassigned(gone))
            self.assertEqual(self.read(), before)

        def test_unassign(self) -> None:
            """Addresses go, and one that was not there is gone too."""
            self.assign(100, first, second)
            gone = frozenset({first, third})
            self.assertEqual(self.addresses.unassign(gone), Unassigned(gone))
            self.assertEqual(self.read().assigned.keys(), {second})

        def test_deleted_by_hand(self) -> None:
            """An address that somebody deleted is missing, and can be assigned again."""
            self.assign(100, first, second)
            self.host.delete(first)
            self.assertEqual(self.read().assigned.keys(), {second})
            self.assertEqual(self.assign(100, first, second).failed, {})
            self.assertEqual(self.read().assigned.keys(), {first, second})

        def test_permanent_by_hand(self) -> None:
            """An address of ours that would stay for ever is told as such, and gets an end when it is assigned."""
            self.assign(100, first)
            self.host.make_permanent(first)
            self.assertEqual(self.read().assigned, {first: inf})
            self.assign(100, first)
            self.assert_lasts(first, 100)

        def test_no_carrier(self) -> None:
            """A link without carrier is not ready; what is on it stays."""
            self.assign(100, first)
            self.host.unplug()
            self.host.wait(lambda: not self.link().ready)
            self.assertEqual(self.read().assigned.keys(), {first})
            self.assertEqual(self.assign(100, first, second).failed, {})

        def test_no_link(self) -> None:
            """Without its interface an agent assigns nothing, and nothing is left to take away."""
            self.assign(100, first)
            self.host.remove_link("em1")
            host = self.read()
            self.assertEqual((host.links.keys(), host.assigned, host.where), ({"em2"}, {}, {}))
            self.assertEqual((host.subnets, host.own), ({"em2": set()}, LOOPBACK))
            self.assertEqual(self.assign(100, first), Assigned({}, {first: "the interface em1 does not exist"}))
            self.assertEqual(self.addresses.unassign({first}), Unassigned(frozenset({first})))

        def test_new_link(self) -> None:
            """An interface that comes back is used as it is then."""
            self.assign(100, first)
            self.host.remove_link("em1")
            self.host.create_link("em1")
            self.assertEqual(self.read().assigned, {})
            self.assertEqual(self.assign(100, first).failed, {})
            self.assertEqual(self.read().assigned.keys(), {first})

        def test_many(self) -> None:
            """Very many addresses are put on, extended, told of, and taken off."""
            for seconds in (50, 100):
                assigned = self.assign(seconds, *family.many)
                self.assertEqual((assigned.expires.keys(), assigned.failed), (family.many, {}))
            host = self.read()
            self.assertEqual((host.assigned.keys(), host.subnets["em1"]), (family.many, HERE))
            self.assertEqual(self.addresses.unassign(family.many), Unassigned(family.many))
            self.assertEqual(self.read().assigned, {})

    return AddressesTests
