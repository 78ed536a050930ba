"""What can be asked of the host, as intents, and how each is performed: away from the reactor's thread."""

from __future__ import annotations

from attrs import frozen
from effect import TypeDispatcher
from twisted.internet.defer import Deferred
from txeffect import deferred_performer

from kiwi.model import Address, Assignment, Host, Mark, Placement

from .interface import Assigned, IAddresses, IAnnouncer, IFirewall, INeighbours, Probed, Unassigned
from .threads import InThread


@frozen
class ReadHost:
    """The intent to learn how the host is. Performed, it gives a L{Host}."""


@frozen
class AssignAddresses:
    """The intent to put addresses on their interfaces. Performed, it gives an L{Assigned}."""

    assignments: frozenset[Assignment]


@frozen
class UnassignAddresses:
    """The intent to take addresses off the interfaces. Performed, it gives an L{Unassigned}."""

    addresses: frozenset[Address]


@frozen
class SendAnnouncements:
    """The intent to tell the neighbours where addresses are."""

    assignments: frozenset[Assignment]


@frozen
class ProbeNeighbours:
    """
    The intent to ask whether another machine has one of these addresses, within so many seconds. Performed, it gives a
    L{Probed}.
    """

    placements: frozenset[Placement]
    wait: float


@frozen
class ReadMarks:
    """The intent to learn what the firewall marks. Performed, it gives what L{IFirewall.read} gives."""


@frozen
class ReplaceMarks:
    """The intent to make the firewall mark exactly this traffic."""

    marks: frozenset[Mark]


@frozen
class RemoveMarks:
    """The intent to leave no trace in the firewall."""


@frozen
class Network:
    """
    The providers for one host, and the threads in which they work.

    Addresses and announcements share a thread, and the firewall has one of its own: taking an address off the interface
    must never wait for the lock that iptables takes. Nor must anything wait for neighbours to answer, and so questions
    have a thread of their own as well.
    """

    addresses: IAddresses
    firewall: IFirewall
    announcer: IAnnouncer
    neighbours: INeighbours
    in_address_thread: InThread
    in_firewall_thread: InThread
    in_probe_thread: InThread


def network_dispatcher(network: Network) -> TypeDispatcher:
    """Perform this module's intents with the providers of C{network}."""

    @deferred_performer
    def read_host(dispatcher: object, intent: ReadHost) -> Deferred[Host]:
        return network.in_address_thread(network.addresses.read)

    @deferred_performer
    def assign(dispatcher: object, intent: AssignAddresses) -> Deferred[Assigned]:
        return network.in_address_thread(network.addresses.assign, intent.assignments)

    @deferred_performer
    def unassign(dispatcher: object, intent: UnassignAddresses) -> Deferred[Unassigned]:
        return network.in_address_thread(network.addresses.unassign, intent.addresses)

    @deferred_performer
    def announce(dispatcher: object, intent: SendAnnouncements) -> Deferred[None]:
        return network.in_address_thread(network.announcer.announce, intent.assignments)

    @deferred_performer
    def probe(dispatcher: object, intent: ProbeNeighbours) -> Deferred[Probed]:
        return network.in_probe_thread(network.neighbours.probe, intent.placements, intent.wait)

    @deferred_performer
    def read_marks(dispatcher: object, intent: ReadMarks) -> Deferred[frozenset[Mark] | None]:
        return network.in_firewall_thread(network.firewall.read)

    @deferred_performer
    def replace_marks(dispatcher: object, intent: ReplaceMarks) -> Deferred[None]:
        return network.in_firewall_thread(network.firewall.replace, intent.marks)

    @deferred_performer
    def remove_marks(dispatcher: object, intent: RemoveMarks) -> Deferred[None]:
        return network.in_firewall_thread(network.firewall.remove)

    return TypeDispatcher(
        {
            ReadHost: read_host,
            AssignAddresses: assign,
            UnassignAddresses: unassign,
            SendAnnouncements: announce,
            ProbeNeighbours: probe,
            ReadMarks: read_marks,
            ReplaceMarks: replace_marks,
            RemoveMarks: remove_marks,
        }
    )
