"""The firewall suite in memory, and what is true of every firewall."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, Mark, Protocol
from kiwi.network.firewall import FwMark, Successor
from kiwi.network.interface import NetworkError
from kiwi.network.memory import MemoryFirewall

from .firewalltests import DNS, WEB, make_firewall_tests


@define
class MemoryFixture:
    """A C{FirewallFixture} in memory: what the firewall remembers is what the host has."""

    firewall: MemoryFirewall = field(factory=MemoryFirewall)
    fwmark: FwMark = field(factory=lambda: FwMark(1))
    before: int = 0

    def another(self, fwmark: FwMark) -> MemoryFirewall:
        if fwmark != self.fwmark:
            self.fwmark = fwmark
            self.spoil()
        return self.firewall

    def spoil(self) -> None:
        self.firewall.spoil()

    def mark(self, address: Address, protocol: Protocol, port: int) -> int:
        marked = {(mark.address, mark.protocol, mark.port) for mark in self.firewall.read() or ()}
        if (address, protocol, port) not in marked:
            return self.before
        return self.before & ~self.fwmark.mask | self.fwmark.value

    def marks_during(self, work: Callable[[], None], address: Address, protocol: Protocol, port: int) -> set[int]:
        before = self.mark(address, protocol, port)
        work()
        return {before, self.mark(address, protocol, port)}

    def mark_before(self, value: int) -> None:
        self.before = value


class MemoryFirewallTests(make_firewall_tests(lambda case: MemoryFixture())):  # type: ignore[misc]
    """A firewall that only remembers."""


class FwMarkTests(SynchronousTestCase):
    """What can be a mark."""

    def test_text(self) -> None:
        """It is written as iptables does."""
        self.assertEqual([str(FwMark(1)), str(FwMark(0x100, 0xFF00))], ["0x1/0xffffffff", "0x100/0xff00"])

    def test_wrong(self) -> None:
        """It is a value of 32 bits, not 0, with a mask that has all of its bits."""
        for numbers, reason in {
            (0,): "0x0 is not a number from 1 to 0xffffffff",
            (2**32,): "0x100000000 is not a number from 1 to 0xffffffff",
            (1, 0): "0x0 is not a number from 1 to 0xffffffff",
            (0x1FF, 0xFF): "the value 0x1ff has bits outside of the mask 0xff; they could never be set",
        }.items():
            with self.assertRaises(ValueError) as caught:
                FwMark(*numbers)
            self.assertEqual(str(caught.exception), reason)


@define
class Stubborn(MemoryFirewall):
    """A firewall that cannot be removed for some time."""

    reason: str | None = "it is in use"

    def remove(self) -> None:
        if self.reason is not None:
            raise NetworkError(self.reason)
        MemoryFirewall.remove(self)


class SuccessorTests(SynchronousTestCase):
    """One firewall takes over from others."""

    def setUp(self) -> None:
        self.told: list[str] = []
        self.first, self.second = MemoryFirewall(frozenset({WEB})), MemoryFirewall(frozenset({WEB}))
        self.firewall = Successor(MemoryFirewall(), [self.first, self.second], self.told.append)

    def left(self) -> list[frozenset[Mark] | None]:
        return [self.first.read(), self.second.read()]

    def test_after_marking(self) -> None:
        """What others mark stays until the same traffic is marked here, and goes then."""
        self.assertIsNone(self.firewall.read())
        self.assertEqual(self.left(), [{WEB}, {WEB}])
        self.firewall.replace({WEB})
        self.assertEqual((self.firewall.read(), self.left()), ({WEB}, [None, None]))

    def test_marked_already(self) -> None:
        """Where traffic is marked here already, what others mark goes with the first look."""
        self.firewall = Successor(MemoryFirewall(frozenset({WEB})), [self.first, self.second], self.told.append)
        self.assertEqual((self.firewall.read(), self.left()), ({WEB}, [None, None]))

    def test_once(self) -> None:
        """Afterwards nobody looks at the others any more."""
        self.firewall.replace({WEB})
        self.first.replace({DNS})
        self.firewall.replace({DNS})
        self.firewall.read()
        self.assertEqual(self.left(), [{DNS}, None])

    def test_remove(self) -> None:
        """Removing leaves nothing of any of them."""
        self.firewall.remove()
        self.assertEqual((self.firewall.read(), self.left(), self.told), (None, [None, None], []))

    def test_stubborn(self) -> None:
        """What cannot be removed keeps nobody from marking; it is told of once, and tried again."""
        stubborn = Stubborn(frozenset({WEB}))
        self.firewall = Successor(MemoryFirewall(), [stubborn, self.second], self.told.append)
        for _ in range(2):
            self.firewall.replace({DNS})
        self.assertEqual((self.firewall.read(), stubborn.read(), self.second.read()), ({DNS}, {WEB}, None))
        self.assertEqual(
            self.told, ["something of an earlier life of this agent is still in the firewall: it is in use"]
        )
        stubborn.reason = None
        self.firewall.read()
        self.assertIsNone(stubborn.read())
