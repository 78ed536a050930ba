"""Which addresses the Services may have, and which they may not. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain

from attrs import define, field, frozen

from .model import (
    Address,
    Configured,
    Endpoints,
    EndpointSlice,
    Host,
    Mark,
    Network,
    Service,
    ServiceName,
    ServicePort,
    in_order,
    network_order,
)

MOST_NAMED = 5
"""How many Services a reason names."""


@frozen
class Attachment:
    """
    An interface that addresses go to, as an operator names it.

    @ivar ranges: the addresses that go there; where it is empty, those of its subnets.
    @ivar versions: of IP, the ones whose addresses may go there.
    """

    interface: str
    ranges: tuple[Network, ...] = ()
    versions: frozenset[int] = frozenset({4, 6})


@frozen
class Refusal:
    """A wish of a Service that is not granted, and why: the end of a sentence."""

    service: ServiceName
    address: Address
    reason: str


@frozen
class Selection:
    """
    What the Services ask for, as far as it may be carried here.

    @ivar wanted: the traffic to mark, by address. An address without traffic is not wanted.
    @ivar eligible: names of the Nodes that may carry an address; none at all where there is a refusal, too. An address
        that is not here may be carried by any.
    @ivar undecided: addresses of which it is not known yet who may carry them.
    @ivar places: the interface that each wanted address goes to.
    """

    wanted: Mapping[Address, frozenset[Mark]] = field(factory=dict)
    refusals: frozenset[Refusal] = frozenset()
    eligible: Mapping[Address, frozenset[str]] = field(factory=dict)
    undecided: frozenset[Address] = frozenset()
    places: Mapping[Address, str] = field(factory=dict)


def gather(slices: Iterable[EndpointSlice]) -> Mapping[ServiceName, Endpoints]:
    """Where each Service has its endpoints, which may be in several slices, and for a while in two of them at once."""
    found: dict[ServiceName, Endpoints] = {}
    for part in slices:
        one, other = found.get(part.service), part.endpoints
        found[part.service] = (
            Endpoints(one.ready | other.ready, one.terminating | other.terminating) if one is not None else other
        )
    return found


@frozen
class Reach:
    """
    Where addresses of this host may be.

    @ivar ranges: the addresses that may be taken at all; empty where that is for the interfaces to say.
    @ivar places: the networks of each interface and its name, the smallest network first, and otherwise in the order
        that the interfaces are given in.
    """

    ranges: tuple[Network, ...]
    places: tuple[tuple[Network, str], ...]

    def place(self, address: Address) -> str | None:
        """The interface that an address goes to."""
        if self.ranges and not any(address in allowed for allowed in self.ranges):
            return None
        return next((name for network, name in self.places if address in network), None)

    def networks(self, interfaces: Iterable[str]) -> tuple[Network, ...]:
        """The networks whose addresses some of the interfaces may carry, in order."""
        names = frozenset(interfaces)
        found = {network for network, name in self.places if name in names}
        if self.ranges:
            found = {least for network in found for allowed in self.ranges if (least := _common(network, allowed))}
        return tuple(sorted(found, key=network_order))

    def __str__(self) -> str:
        networks = self.ranges or sorted({network for network, _ in self.places}, key=network_order)
        return ", ".join(map(str, networks)) or "there are none"


def reach(
    attachments: Sequence[Attachment], ranges: Sequence[Network], subnets: Mapping[str, Iterable[Configured]]
) -> Reach:
    """
    Where addresses of this host may be: on the interface whose ranges hold it, or else whose subnets do. With only one
    interface, all that may be taken goes there.

    @param ranges: the addresses that may be taken at all; where it is empty, that is for the interfaces to say.
    @param subnets: what somebody else configured on each interface.
    """
    places = []
    for attachment in attachments:
        own: Iterable[Network] = attachment.ranges
        if not own and len(attachments) == 1:
            own = ranges
        if not own:
            own = {configured.network for configured in subnets.get(attachment.interface, ()) if _counts(configured)}
        places += [
            (network, attachment.interface)
            for network in sorted(own, key=network_order)
            if network.version in attachment.versions
        ]
    places.sort(key=lambda place: -place[0].prefixlen)
    return Reach(tuple(ranges), tuple(places))


def _counts(configured: Configured) -> bool:
    return not configured.network.is_link_local


def _common(one: Network, other: Network) -> Network | None:
    """What two networks have in common: the smaller one, or nothing."""
    smaller, larger = (one, other) if one.prefixlen >= other.prefixlen else (other, one)
    return smaller if smaller.version == larger.version and smaller.network_address in larger else None


@frozen
class _Grounds:
    """What decides about addresses whichever Services want them: who else has which, and where they may be."""

    own: frozenset[Configured]
    gateways: frozenset[Address]
    reach: Reach
    _taken: frozenset[Address] = field(init=False, eq=False)
    _edges: Mapping[Address, str] = field(init=False, eq=False)

    @_taken.default
    def _taken_by_others(self) -> frozenset[Address]:
        return frozenset(configured.ip for configured in self.own)

    @_edges.default
    def _edges_of_networks(self) -> Mapping[Address, str]:
        return dict(_edges({configured.network for configured in self.own}))

    def objection(self, address: Address, place: str | None) -> str | None:
        """Why nobody may have an address here."""
        kind = _special_kind(address)
        if kind is not None:
            return f"it is {kind}"
        if address in self._taken:
            return "this host has it already, by somebody else's hand"
        if address in self.gateways:
            return "it is the default gateway"
        if address in self._edges:
            return self._edges[address]
        if place is None:
            return f"it is in none of the allowed ranges ({self.reach})"
        return None


@frozen
class _Decision:
    """
    What comes of one address.

    @ivar place: the interface that it goes to; empty where it is not wanted.
    @ivar local: the Services that restrict it to Nodes with their endpoints, the oldest first.
    @ivar eligible: these Nodes; C{None} where any will do, or where they are not known.
    """

    marks: frozenset[Mark] = frozenset()
    place: str = ""
    refusals: tuple[Refusal, ...] = ()
    local: tuple[ServiceName, ...] = ()
    eligible: frozenset[str] | None = None


def _decide(
    address: Address,
    sharing: Sequence[Service],
    grounds: _Grounds,
    endpoints: Mapping[ServiceName, Endpoints] | None,
) -> _Decision:
    """
    @param sharing: the Services that ask for it, the oldest first.
    """
    place = grounds.reach.place(address)
    reason = grounds.objection(address, place)
    if reason is not None or place is None:
        return _Decision(refusals=tuple(Refusal(service.name, address, reason or "") for service in sharing))
    refusals: list[Refusal] = []
    taken: dict[ServicePort, Mark] = {}
    local = []
    for service in sharing:
        before = len(taken)
        for port in sorted(service.ports, key=_order):
            mark = _mark(address, port, service.name)
            first = taken.setdefault(port, mark)
            if first != mark:
                why = f"the older Service {first.service} has its port {port}"
                refusals.append(Refusal(service.name, address, why))
        if service.local and len(taken) > before:
            local.append(service.name)
    eligible = None
    if local and endpoints is not None:
        nodes = [_nodes(endpoints.get(name)) for name in local]
        eligible = frozenset.intersection(*nodes)
        if not eligible:
            refusals += _nowhere(address, local, nodes)
    marks = frozenset(taken.values())
    return _Decision(marks, place if marks else "", tuple(refusals), tuple(local), eligible)


def select(
    services: Iterable[Service],
    host: Host,
    reach: Reach,
    endpoints: Mapping[ServiceName, Endpoints] | None = None,
) -> Selection:
    """
    @param endpoints: where Services have their endpoints: nowhere those that are not in it. C{None} while that is not
        known.
    """
    return Selector().select(services, host, reach, endpoints)


@define(eq=False)
class Selector:
    """
    Selects as L{select} does, again and again: it looks only at the addresses of Services that were not the very same
    objects the last time, so that one change among thousands costs little.
    """

    _services: dict[int, Service] = field(factory=dict, init=False)
    _sharing: dict[Address, tuple[Service, ...]] = field(factory=dict, init=False)
    _wanted: dict[Address, frozenset[Mark]] = field(factory=dict, init=False)
    _places: dict[Address, str] = field(factory=dict, init=False)
    _refusals: dict[Address, tuple[Refusal, ...]] = field(factory=dict, init=False)
    _restricted: dict[Address, _Decision] = field(factory=dict, init=False)
    _local: dict[ServiceName, frozenset[str] | None] = field(factory=dict, init=False)
    _grounds: _Grounds | None = field(default=None, init=False)
    _selection: Selection = field(factory=Selection, init=False)

    def select(
        self,
        services: Iterable[Service],
        host: Host,
        reach: Reach,
        endpoints: Mapping[ServiceName, Endpoints] | None,
    ) -> Selection:
        """The same object as before where nothing is new."""
        changed = self._share({id(service): service for service in services})
        grounds = _Grounds(host.own, host.gateways, reach)
        if grounds == self._grounds:
            changed |= self._moved(endpoints)
            grounds = self._grounds
        else:
            self._grounds = grounds
            changed |= self._sharing.keys()
        if changed:
            self._selection = self._decided(changed, grounds, endpoints)
        return self._selection

    def _share(self, services: dict[int, Service]) -> set[Address]:
        """Note who shares which address. The addresses for which that is new."""
        before, self._services = self._services, services
        gone = [before[number] for number in set(before) - set(services)]
        new = [services[number] for number in set(services) - set(before)]
        changed = {address for service in (*gone, *new) for address in service.addresses}
        sharing: dict[Address, list[Service]] = {a: list(self._sharing.get(a, ())) for a in changed}
        for service in gone:
            for address in service.addresses:
                sharing[address] = [other for other in sharing[address] if other is not service]
        for service in new:
            for address in service.addresses:
                sharing[address].append(service)
        for address, those in sharing.items():
            if those:
                self._sharing[address] = tuple(sorted(those, key=_age))
            else:
                self._sharing.pop(address, None)
        return changed

    def _moved(self, endpoints: Mapping[ServiceName, Endpoints] | None) -> set[Address]:
        """The addresses of Services that only some Nodes may carry, where these are others now."""
        moved = {name for name, nodes in self._local.items() if nodes != _known_nodes(endpoints, name)}
        return (
            {a for a, decision in self._restricted.items() if not moved.isdisjoint(decision.local)} if moved else set()
        )

    def _decided(
        self, changed: set[Address], grounds: _Grounds, endpoints: Mapping[ServiceName, Endpoints] | None
    ) -> Selection:
        for address in in_order(changed):
            for kept in (self._wanted, self._places, self._refusals, self._restricted):
                kept.pop(address, None)
            if address not in self._sharing:
                continue
            decision = _decide(address, self._sharing[address], grounds, endpoints)
            if decision.place:
                self._wanted[address], self._places[address] = decision.marks, decision.place
            if decision.refusals:
                self._refusals[address] = decision.refusals
            if decision.local:
                self._restricted[address] = decision
        names = {name for decision in self._restricted.values() for name in decision.local}
        self._local = {name: _known_nodes(endpoints, name) for name in names}
        return Selection(
            dict(self._wanted),
            frozenset(chain.from_iterable(self._refusals.values())),
            {a: decision.eligible for a, decision in self._restricted.items() if decision.eligible is not None},
            frozenset(self._restricted) if endpoints is None else frozenset(),
            dict(self._places),
        )


def _known_nodes(endpoints: Mapping[ServiceName, Endpoints] | None, name: ServiceName) -> frozenset[str] | None:
    return None if endpoints is None else _nodes(endpoints.get(name))


def _nodes(endpoints: Endpoints | None) -> frozenset[str]:
    """
    The Nodes on which a Service answers. Endpoints that are on their way out only count while there are no others, as
    they do for Kubernetes' own proxy.
    """
    return frozenset() if endpoints is None else endpoints.ready or endpoints.terminating


def _nowhere(address: Address, sharing: Sequence[ServiceName], nodes: Sequence[frozenset[str]]) -> Iterable[Refusal]:
    """Why no Node may carry an address: because of those Services that are nowhere, or else of all together."""
    policy = "externalTrafficPolicy is Local, and no node has a ready endpoint"
    without = [name for name, found in zip(sharing, nodes, strict=True) if not found]
    if without:
        return [Refusal(name, address, f"its {policy} of it") for name in without]
    names = sorted(sharing)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    shared = f"{', '.join(map(str, names[:MOST_NAMED]))}{more}"
    return [Refusal(names[0], address, f"the {policy} of each of its Services {shared}")]


def _age(service: Service) -> tuple[bool, str, str, str]:
    """Older Services sort first, and those of unknown age last."""
    return (not service.created, service.created, service.name.namespace, service.name.name)


def _order(port: ServicePort) -> tuple[str, int]:
    return (port.protocol.value, port.port)


# Every change of one Service has all of them looked at again. What was the same before is the same object then, and
# compares at once.


@lru_cache(2**16)
def _mark(address: Address, port: ServicePort, service: ServiceName) -> Mark:
    return Mark(address, port.protocol, port.port, str(service))


def _edges(networks: Iterable[Network]) -> Iterable[tuple[Address, str]]:
    """Addresses that no host may have, because of the networks that they are in, and what each one is."""
    for network in networks:
        if isinstance(network, IPv4Network) and network.prefixlen <= 30:
            yield network.network_address, f"it is the network address of {network}"
            yield network.broadcast_address, f"it is the broadcast address of {network}"
        elif isinstance(network, IPv6Network) and network.prefixlen <= 126:
            # RFC 4291, 2.6.1. Links between two routers may do without (RFC 6164).
            yield network.network_address, f"it is the anycast address of the routers of {network}"


@lru_cache(2**16)
def _special_kind(address: Address) -> str | None:
    """What an address is that no host may have, whatever the ranges say (RFC 6890)."""
    if address.is_unspecified and isinstance(address, IPv6Address):
        return "the unspecified address"
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if isinstance(address, IPv6Address):
        return "an IPv4 address in IPv6 (::ffff:0:0/96)" if address.ipv4_mapped is not None else None
    if address == IPv4Address("255.255.255.255"):
        return "the limited broadcast address"
    if address in IPv4Network("0.0.0.0/8"):
        return 'an address of "this network" (0.0.0.0/8)'
    if address.is_reserved:
        return "a reserved address (240.0.0.0/4)"
    return None
