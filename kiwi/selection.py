"""Which addresses the Services may have, and which they may not. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from attrs import field, frozen

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
    network_order,
)

MOST_NAMED = 5
"""How many Services a reason names."""


@frozen
class Attachment:
    """
    An interface that addresses go to, as an operator names it.

    @ivar ranges: the addresses that go there; where it is empty, those of its subnets.
    """

    interface: str
    ranges: tuple[Network, ...] = ()


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
        places += [(network, attachment.interface) for network in sorted(own, key=network_order)]
    places.sort(key=lambda place: -place[0].prefixlen)
    return Reach(tuple(ranges), tuple(places))


def _counts(configured: Configured) -> bool:
    return not configured.network.is_link_local


def _common(one: Network, other: Network) -> Network | None:
    """What two networks have in common: the smaller one, or nothing."""
    smaller, larger = (one, other) if one.prefixlen >= other.prefixlen else (other, one)
    return smaller if smaller.version == larger.version and smaller.network_address in larger else None


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
    own = {configured.ip for configured in host.own}
    edges = dict(_edges({configured.network for configured in host.own}))

    def objection(address: Address) -> str | None:
        kind = _special_kind(address)
        if kind is not None:
            return f"it is {kind}"
        if address in own:
            return "this host has it already, by somebody else's hand"
        if address in host.gateways:
            return "it is the default gateway"
        if address in edges:
            return edges[address]
        if address not in places:
            return f"it is in none of the allowed ranges ({reach})"
        return None

    places: dict[Address, str] = {}
    objections: dict[Address, str | None] = {}
    wanted: dict[Address, dict[tuple[object, int], Mark]] = {}
    local: dict[Address, list[ServiceName]] = {}
    refusals = []
    for service in sorted(services, key=_age):
        for address in service.addresses:
            if address not in objections:
                place = reach.place(address)
                if place is not None:
                    places[address] = place
                objections[address] = objection(address)
            reason = objections[address]
            if reason is not None:
                refusals.append(Refusal(service.name, address, reason))
                continue
            taken = wanted.setdefault(address, {}) if service.ports else {}
            counts = False
            for port in sorted(service.ports, key=_order):
                mark = _mark(address, port, service.name)
                first = taken.setdefault((port.protocol, port.port), mark)
                if first != mark:
                    refusals.append(
                        Refusal(service.name, address, f"the older Service {first.service} has its port {port}")
                    )
                else:
                    counts = service.local
            if counts:
                local.setdefault(address, []).append(service.name)
    eligible: dict[Address, frozenset[str]] = {}
    if endpoints is not None:
        for address, sharing in local.items():
            nodes = [_nodes(endpoints.get(name)) for name in sharing]
            eligible[address] = frozenset.intersection(*nodes)
            if not eligible[address]:
                refusals += _nowhere(address, sharing, nodes)
    return Selection(
        {address: frozenset(marks.values()) for address, marks in wanted.items()},
        frozenset(refusals),
        eligible,
        frozenset(local) if endpoints is None else frozenset(),
        {address: places[address] for address in wanted},
    )


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
