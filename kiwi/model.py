"""The values that Kiwi speaks of. All are frozen; equal values are the same fact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)

from attrs import field, frozen

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Configured = IPv4Interface | IPv6Interface
"""An address together with the network that it was configured with."""

CLOCK_DRIFT = 0.01
"""The part by which a clock may run slow or fast."""


class _QuickIPv4Address(IPv4Address):
    """
    An IPv4 address that remembers its hash. Decisions are made of sets and mappings of addresses, in which the
    library's hash takes most of the time.
    """

    __slots__ = ("_hash",)

    def __init__(self, address: int) -> None:
        super().__init__(address)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"IPv4Address('{self}')"


class _QuickIPv6Address(IPv6Address):
    """The same for an IPv6 address."""

    __slots__ = ("_hash",)

    def __init__(self, address: int) -> None:
        super().__init__(address)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"IPv6Address('{self}')"


_one_of_each_ipv4 = lru_cache(2**16)(_QuickIPv4Address)
_one_of_each_ipv6 = lru_cache(2**16)(_QuickIPv6Address)


@lru_cache(2**16)
def ip(address: str | bytes) -> Address:
    """
    The address that this text, or these four or sixteen bytes, stand for, whichever way it is spelt: the same object
    each time. Raises L{ValueError}, also for an address with a zone (RFC 4007), which means something on one host only.
    """
    found = ip_address(address)
    if isinstance(found, IPv4Address):
        return _one_of_each_ipv4(int(found))
    if found.scope_id is not None:
        raise ValueError(f"{address!r} has a zone, which means something on one host only")
    return _one_of_each_ipv6(int(found))


def order(address: Address) -> tuple[int, int]:
    """The place of an address in any order of addresses of both families: those of IPv4 come first."""
    return address.version, int(address)


def in_order(addresses: Iterable[Address]) -> list[Address]:
    """Addresses of both families, sorted."""
    return sorted(addresses, key=order)


def network_order(one: Network) -> tuple[int, int, int]:
    """The same as L{order}, for networks."""
    return one.version, int(one.network_address), one.prefixlen


class Protocol(Enum):
    """A transport that a Service port can have, spelt as iptables spells it."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"

    def __lt__(self, other: Protocol) -> bool:
        return self.value < other.value

    def __str__(self) -> str:
        return self.value


@frozen(order=True)
class ObjectName:
    """The identity of an object among those of its kind in a cluster."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """The way people and rule comments name it: bare in namespace C{default}."""
        return self.name if self.namespace == "default" else f"{self.namespace}/{self.name}"


class ServiceName(ObjectName):
    """The identity of a Service in its cluster."""

    __slots__ = ()


class SliceName(ObjectName):
    """The identity of an EndpointSlice in its cluster."""

    __slots__ = ()


@frozen(order=True)
class ServicePort:
    """One port that a Service listens on at its public addresses."""

    protocol: Protocol
    port: int

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}"


@frozen
class Service:
    """
    What Kiwi needs to know of a Service, whichever API version told it.

    @ivar created: the creation timestamp as RFC 3339 text in UTC, which sorts by age; empty where there is none.
    @ivar addresses: the public addresses it asks for, in the order it gives them, without repetition.
    @ivar local: only hosts that have an endpoint of it may carry its addresses (C{externalTrafficPolicy: Local}).
    """

    name: ServiceName
    ports: frozenset[ServicePort]
    addresses: tuple[Address, ...]
    created: str = ""
    local: bool = False


@frozen
class Endpoints:
    """
    Where a Service, or a part of it, has its endpoints: names of Nodes.

    @ivar ready: those with at least one endpoint that is ready.
    @ivar terminating: those with at least one that is on its way out and still serves.
    """

    ready: frozenset[str] = frozenset()
    terminating: frozenset[str] = frozenset()


@frozen
class EndpointSlice:
    """What Kiwi needs to know of an EndpointSlice: a part of the endpoints of one Service."""

    name: SliceName
    service: ServiceName
    endpoints: Endpoints


@frozen
class Node:
    """
    What Kiwi needs to know of a Node.

    @ivar unfit: why it may carry no public address: the end of a sentence, in one printable line. Empty where it may.
    """

    name: str
    unfit: str = ""


@frozen
class Cluster:
    """
    What a Kubernetes cluster asks of this host.

    @ivar endpoints: where Services have their endpoints: nowhere those that are not in it. C{None} while that is not
        known.
    @ivar unfit: why this host may carry no public address: the end of a sentence, in one printable line. Empty where it
        may.
    """

    services: Mapping[ServiceName, Service] = field(factory=dict)
    endpoints: Mapping[ServiceName, Endpoints] | None = None
    unfit: str = ""


@frozen(cache_hash=True)
class Mark:
    """Traffic to one port of one public address, marked on behalf of one Service."""

    address: Address
    protocol: Protocol
    port: int
    service: str


@frozen
class Assignment:
    """
    A public address that may be on an interface until a moment.

    @ivar expires: on the agent's monotonic clock, in seconds. The kernel is told to remove the address no later.
    @ivar interface: its name.
    """

    address: Address
    expires: float
    interface: str


@frozen
class Placement:
    """A public address, and the name of the interface that it goes to."""

    address: Address
    interface: str


@frozen
class Hold:
    """
    This agent's own knowledge of its claim to an address.

    @ivar sent: when the last confirmed request for it was sent, on the agent's monotonic clock.
    @ivar since: when the claim was won or adopted, on the same clock.
    @ivar session: what the claim rests on, where the store has that; whatever confirms it confirms this hold.
    """

    address: Address
    sent: float
    since: float
    session: str = ""


@frozen
class AgentRecord:
    """
    What an agent tells the others about itself.

    @ivar id: unique among the agents.
    @ivar host: the name of the host it runs on, for people.
    @ivar place: the same for all processes on one running host, and different on any other.
    @ivar instance: tells two processes apart.
    @ivar leaving: it is taking everything back, and tries for nothing any more.
    @ivar node: the name of its Node in Kubernetes; empty where that is its id.
    @ivar standby: it carries nothing and tries for nothing, but it stays.
    @ivar networks: where addresses must be for it to carry them, in order; C{None} where it does not say.
    """

    id: str
    host: str
    place: str
    instance: str
    leaving: bool = False
    node: str = ""
    standby: bool = False
    networks: tuple[Network, ...] | None = None

    @property
    def node_name(self) -> str:
        """The name of its Node in Kubernetes."""
        return self.node or self.id

    def reaches(self, address: Address) -> bool:
        """Whether it may carry an address, as far as its networks say."""
        return self.networks is None or any(address in network for network in self.networks)


@frozen
class Claims:
    """
    Everything that the claim store knows, at one moment.

    @ivar holders: the id of the agent that claims each address.
    @ivar agents: the agents that are alive, by id.
    @ivar losses: how often the store was found to have lost what it knew, as far as the one who tells has seen.
    @ivar lost: some agent has found so within the last TTL.
    """

    holders: Mapping[Address, str] = field(factory=dict)
    agents: Mapping[str, AgentRecord] = field(factory=dict)
    losses: int = 0
    lost: bool = False


@frozen
class Link:
    """
    An interface that addresses go to.

    @ivar mac: six bytes; empty where the link layer has none.
    @ivar ready: it is administratively up and has carrier.
    @ivar carrier_changes: how often carrier has come or gone, so that it is noticed when both happen between two looks.
    """

    index: int
    name: str
    mac: bytes
    ready: bool
    carrier_changes: int = 0


@frozen
class Host:
    """
    What is on this host, as its kernel tells it.

    @ivar links: the interfaces of the agent, by name, but for those that do not exist.
    @ivar assigned: the addresses that carry Kiwi's tag on these interfaces, and when the kernel removes each one:
        seconds on the agent's monotonic clock, infinity where it never does.
    @ivar where: the name of the interface that each of these is on.
    @ivar subnets: the addresses with their networks that somebody else configured on each of these interfaces.
    @ivar own: every address that somebody else configured, on whichever interface, with its network.
    @ivar gateways: the next hops of the default routes.
    @ivar unclear: of C{own}, what an earlier life of this agent may have put on these interfaces, for the kernel keeps
        no tag: addresses with a lifetime and a prefix of their whole length.
    """

    links: Mapping[str, Link] = field(factory=dict)
    assigned: Mapping[Address, float] = field(factory=dict)
    where: Mapping[Address, str] = field(factory=dict)
    subnets: Mapping[str, frozenset[Configured]] = field(factory=dict)
    own: frozenset[Configured] = frozenset()
    gateways: frozenset[Address] = frozenset()
    unclear: frozenset[Address] = frozenset()
