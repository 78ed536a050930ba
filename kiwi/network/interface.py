"""The seams to the host: its addresses, its firewall, and the neighbours on its link. Every call blocks."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from attrs import field, frozen
from zope.interface import Interface

from kiwi.model import Address, Assignment, Host, Mark, Placement


class NetworkError(Exception):
    """The host refused. Its text is one printable line that says what was asked, and what the host answered."""


@frozen
class Assigned:
    """
    What came of an assignment.

    @ivar expires: the addresses that are on their interfaces now, and when the kernel removes each one (seconds on the
        agent's monotonic clock; no later than was asked).
    @ivar failed: why each of the others is not; one printable line each.
    """

    expires: Mapping[Address, float] = field(factory=dict)
    failed: Mapping[Address, str] = field(factory=dict)


@frozen
class Unassigned:
    """What came of taking addresses away: those that are gone, and why each of the others is not."""

    gone: frozenset[Address] = frozenset()
    failed: Mapping[Address, str] = field(factory=dict)


class IAddresses(Interface):
    """The addresses of some interfaces of this host, of which those with Kiwi's tag are ours."""

    def read() -> Host:
        """How the host is now. Raises L{NetworkError} where the kernel does not tell."""

    def assign(assignments: AbstractSet[Assignment]) -> Assigned:
        """
        Put these on their interfaces, or extend them where they are there, each with a kernel lifetime that ends no
        later than its C{expires}. The clock is read just before the kernel is told: what has less than a second left is
        not assigned (and fails). An address that somebody else configured is left as it is (and fails), but for one
        that is C{unclear} (L{Host}) on its interface: who asks has found that it is ours. One of ours that is on
        another one of the interfaces is left there (and fails).
        """

    def unassign(addresses: AbstractSet[Address]) -> Unassigned:
        """
        Take these off whichever of the interfaces they are on. One that is not there, or is not ours and stays, counts
        as gone.
        """


class IFirewall(Interface):
    """What marks traffic that comes in on one host, before it is routed. It is ours alone."""

    def read() -> frozenset[Mark] | None:
        """
        The marks that are set, or C{None} where what marks is not exactly as L{replace} would leave it: missing, not
        reached, or with something in it that is not ours. While nothing changes, it is the same object each time, so
        that comparing it costs nothing. Raises L{NetworkError}.
        """

    def replace(marks: AbstractSet[Mark]) -> None:
        """
        Mark exactly this traffic. While that changes, traffic that was marked and is to be marked stays so. Raises
        L{NetworkError}: nothing has changed then, or one family of addresses has and the other one has not.
        """

    def remove() -> None:
        """Leave no trace. It is no error if there is none. Raises L{NetworkError}."""


class IAnnouncer(Interface):
    """Tells the neighbours on each link where addresses are."""

    def announce(assignments: AbstractSet[Assignment]) -> None:
        """
        Send one round for each address on its interface, but for those whose time has come (C{expires}): gratuitous ARP
        (request and reply form, RFC 5227 section 3 and RFC 5944 section 4.6), or an unsolicited neighbour advertisement
        (RFC 4861 section 7.2.6). Raises L{NetworkError}.
        """


@frozen
class Probed:
    """
    What came of asking for addresses: six bytes of a MAC address for each one about which there was something to hear.

    @ivar owners: the machine that has the address.
    @ivar contested: a machine that has asked for it at the same time, where nobody has it.
    """

    owners: Mapping[Address, bytes] = field(factory=dict)
    contested: Mapping[Address, bytes] = field(factory=dict)


class INeighbours(Interface):
    """Asks the neighbours on each link about addresses."""

    def probe(placements: AbstractSet[Placement], wait: float) -> Probed:
        """
        Ask on the link of its interface whether another machine has one of these addresses (RFC 5227, section 2.1.1;
        RFC 4862, section 5.4), and wait so many seconds for answers, or until every address was answered for. Each
        address is asked for more than once, so that one lost frame does not matter. Raises L{NetworkError}.

        An answer is any ARP that another MAC address than the interface's own sends with one of these addresses as its
        sender's, whomever it is meant for; or a neighbour advertisement for it. A probe that another MAC address sends
        for one of these addresses is none, for neither has it; but who probes knows that it is not the only one that
        would have it. All is heard that is sent from before the first question on until the wait is over.

        @return: nothing where the link layer is not Ethernet.
        """
