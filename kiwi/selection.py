"""Which addresses the Services may have, and which they may not. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from attrs import field, frozen

from .model import Address, Endpoints, EndpointSlice, Host, Mark, Service, ServiceName, ServicePort

Network = IPv4Network | IPv6Network

MOST_NAMED = 5
"""How many Services a reason names."""


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
    """

    wanted: Mapping[IPv4Address, frozenset[Mark]] = field(factory=dict)
    refusals: frozenset[Refusal] = frozenset()
    eligible: Mapping[IPv4Address, frozenset[str]] = field(factory=dict)
    undecided: frozenset[IPv4Address] = frozenset()


def gather(slices: Iterable[EndpointSlice]) -> Mapping[ServiceName, Endpoints]:
    """Where each Service has its endpoints, which may be in several slices, and for a while in two of them at once."""
    found: dict[ServiceName, Endpoints] = {}
    for part in slices:
        one, other = found.get(part.service), part.endpoints
        found[part.service] = (
            Endpoints(one.ready | other.ready, one.terminating | other.terminating) if one is not None else other
        )
    return found


def select(
    services: Iterable[Service],
    host: Host,
    ranges: Sequence[Network],
    endpoints: Mapping[ServiceName, Endpoints] | None = None,
) -> Selection:
    """
    @param ranges: the addresses that may be taken; where it is empty, those are the subnets of the interface.
    @param endpoints: where Services have their endpoints: nowhere those that are not in it. C{None} while that is not
        known.
    """
    allowed = tuple(ranges) or tuple(sorted({interface.network for interface in host.subnets}))
    own = {interface.ip for interface in host.own}
    edges = {
        edge: f"it is the {kind} address of {network}"
        for network in {interface.network for interface in host.own}
        if network.prefixlen <= 30
        for edge, kind in ((network.network_address, "network"), (network.broadcast_address, "broadcast"))
    }

    def objection(address: Address) -> str | None:
        if not isinstance(address, IPv4Address):
            return "IPv6 is not supported yet"
        kind = _special_kind(address)
        if kind is not None:
            return f"it is {kind}"
        if address in own:
            return "this host has it already, by somebody else's hand"
        if address in host.gateways:
            return "it is the default gateway"
        if address in edges:
            return edges[address]
        if not any(address in network for network in allowed):
            return f"it is in none of the allowed ranges ({', '.join(map(str, allowed)) or 'there are none'})"
        return None

    objections: dict[Address, str | None] = {}
    wanted: dict[IPv4Address, dict[tuple[object, int], Mark]] = {}
    local: dict[IPv4Address, list[ServiceName]] = {}
    refusals = []
    for service in sorted(services, key=_age):
        for address in service.addresses:
            if address not in objections:
                objections[address] = objection(address)
            reason = objections[address]
            if reason is not None:
                refusals.append(Refusal(service.name, address, reason))
            elif isinstance(address, IPv4Address):
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
    eligible: dict[IPv4Address, frozenset[str]] = {}
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
    )


def _nodes(endpoints: Endpoints | None) -> frozenset[str]:
    """
    The Nodes on which a Service answers. Endpoints that are on their way out only count while there are no others, as
    they do for Kubernetes' own proxy.
    """
    return frozenset() if endpoints is None else endpoints.ready or endpoints.terminating


def _nowhere(
    address: IPv4Address, sharing: Sequence[ServiceName], nodes: Sequence[frozenset[str]]
) -> Iterable[Refusal]:
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
def _mark(address: IPv4Address, port: ServicePort, service: ServiceName) -> Mark:
    return Mark(address, port.protocol, port.port, str(service))


@lru_cache(2**16)
def _special_kind(address: IPv4Address) -> str | None:
    """What an address is that no host may have, whatever the ranges say (RFC 6890)."""
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if address == IPv4Address("255.255.255.255"):
        return "the limited broadcast address"
    if address in IPv4Network("0.0.0.0/8"):
        return 'an address of "this network" (0.0.0.0/8)'
    if address.is_reserved:
        return "a reserved address (240.0.0.0/4)"
    return None
