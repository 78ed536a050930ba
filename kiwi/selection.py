"""Which addresses the Services may have, and which they may not. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from attrs import field, frozen

from .model import Address, Host, Mark, Service, ServiceName, ServicePort

Network = IPv4Network | IPv6Network


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
    """

    wanted: Mapping[IPv4Address, frozenset[Mark]] = field(factory=dict)
    refusals: frozenset[Refusal] = frozenset()


def select(services: Iterable[Service], host: Host, ranges: Sequence[Network]) -> Selection:
    """
    @param ranges: the addresses that may be taken; where it is empty, those are the subnets of the interface.
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
                for port in sorted(service.ports, key=_order):
                    mark = _mark(address, port, service.name)
                    first = taken.setdefault((port.protocol, port.port), mark)
                    if first != mark:
                        refusals.append(
                            Refusal(service.name, address, f"the older Service {first.service} has its port {port}")
                        )
    return Selection(
        {address: frozenset(marks.values()) for address, marks in wanted.items()},
        frozenset(refusals),
    )


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
