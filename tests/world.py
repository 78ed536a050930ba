"""Several whole agents under one simulated clock: a shared claim store, and a host in memory for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from ipaddress import IPv4Interface, ip_network
from typing import Any

from attrs import define, evolve, field
from twisted.application.service import IService
from twisted.application.service import Service as TwistedService
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from zope.interface import implementer

from kiwi.agent import Agent
from kiwi.backoff import BackoffPolicy, Uniform
from kiwi.claims.interface import IClaimStore
from kiwi.claims.memory import MemoryClaims
from kiwi.model import (
    Address,
    AgentRecord,
    Assignment,
    Cluster,
    Endpoints,
    Mark,
    Placement,
    Protocol,
    Service,
    ServiceName,
    ServicePort,
    ip,
)
from kiwi.network.intents import Network
from kiwi.network.interface import Probed
from kiwi.network.memory import MemoryAddresses, MemoryAnnouncer, MemoryFirewall, MemoryNeighbours
from kiwi.network.threads import immediately
from kiwi.planning import Terms
from kiwi.selection import Attachment

ADDRESS = ip("192.168.1.41")
OTHER = ip("192.168.1.42")
LAN = ip_network("192.168.1.0/24")
INTERFACE = "em1"
HTTP = ServicePort(Protocol.TCP, 8080)


def service(
    name: str, *addresses: Address, port: ServicePort = HTTP, created: str = "", local: bool = False
) -> Service:
    return Service(ServiceName("default", name), frozenset({port}), addresses, created, local)


def mark(name: str, address: Address = ADDRESS, port: ServicePort = HTTP) -> Mark:
    return Mark(address, port.protocol, port.port, name)


@implementer(IService)
@define(eq=False)
class _Told(TwistedService):
    """A watch that is told what to tell."""

    tell: Callable[[Cluster], None]


@define(eq=False)
class _Question:
    """What a host asks its neighbours for now, and what it has heard about that since."""

    addresses: AbstractSet[Address]
    owners: dict[Address, bytes] = field(factory=dict)
    askers: dict[Address, bytes] = field(factory=dict)

    def probed(self) -> Probed:
        return Probed(self.owners, {a: mac for a, mac in self.askers.items() if a not in self.owners})


@define(eq=False)
class Lan:
    """
    A link on which hosts hear each other. A question takes the time that is given for it, as one on a real link does.

    @ivar delay: seconds until an agent hears an announcement.
    """

    clock: Clock
    delay: float = 0.02
    hosts: list[SimulatedHost] = field(factory=list, init=False)
    _asking: dict[SimulatedHost, _Question] = field(factory=dict, init=False)

    def ask(
        self, host: SimulatedHost, probe: object, placements: AbstractSet[Placement], wait: float
    ) -> Deferred[Probed]:
        """In place of a thread that probes."""
        question = self._asking[host] = _Question({placement.address for placement in placements})
        for number in range(3):
            self.clock.callLater(wait * number / 3, self._probe, host, question)
        return deferLater(self.clock, wait, self._end, host)

    def _probe(self, host: SimulatedHost, question: _Question) -> None:
        for other in self._others(host):
            question.owners.update(dict.fromkeys(question.addresses & other.carried, other.mac))
            if theirs := self._asking.get(other):
                theirs.askers.update(dict.fromkeys(theirs.addresses & question.addresses, host.mac))

    def _end(self, host: SimulatedHost) -> Probed:
        return self._asking.pop(host).probed()

    def announce(self, host: SimulatedHost, assignments: AbstractSet[Assignment]) -> None:
        """All others hear that a host has these addresses."""
        addresses = {assignment.address for assignment in assignments}
        for other in self._others(host):
            if theirs := self._asking.get(other):
                theirs.owners.update(dict.fromkeys(theirs.addresses & addresses, host.mac))
            for address in addresses:
                self.clock.callLater(self.delay, other.heard, address, host.mac, INTERFACE)

    def _others(self, host: SimulatedHost) -> list[SimulatedHost]:
        return [other for other in self.hosts if other is not host]


@define(eq=False)
class _LanAnnouncer(MemoryAnnouncer):
    """One that is heard."""

    told: Callable[[AbstractSet[Assignment]], None] = field(kw_only=True)

    def announce(self, assignments: AbstractSet[Assignment]) -> None:
        super().announce(assignments)
        self.told(assignments)


@define(eq=False)
class SimulatedHost:
    """
    One host, and the agent that runs there at the moment, if one does.

    @ivar store: makes the store of an agent by its id.
    @ivar lan: the link that it is on; by default, one on which it hears only what C{neighbours} says.
    """

    name: str
    clock: Clock
    ttl: float
    store: Callable[[str], IClaimStore]
    lan: Lan | None = None
    uniform: Uniform = lambda low, high: (low + high) / 2
    addresses: MemoryAddresses = field(init=False)
    firewall: MemoryFirewall = field(factory=MemoryFirewall, init=False)
    announcer: MemoryAnnouncer = field(init=False)
    neighbours: MemoryNeighbours = field(factory=MemoryNeighbours, init=False)
    agent: Agent | None = field(default=None, init=False)
    instances: int = field(default=0, init=False)
    changed: Callable[[], None] = field(default=lambda: None, init=False)
    heard: Callable[[Address, bytes, str], None] = field(default=lambda address, mac, interface: None, init=False)
    refusals: list[str] = field(factory=list, init=False)
    watch: _Told | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        own = IPv4Interface(f"192.168.1.{10 + int(self.name[-1])}/24")
        self.addresses = MemoryAddresses([INTERFACE], self.clock.seconds, subnets={INTERFACE: {own}})
        mac = bytes([2, 0, 0, 0, 0, int(self.name[-1])])
        self.addresses.links[INTERFACE] = evolve(self.addresses.links[INTERFACE], mac=mac)
        self.announcer = MemoryAnnouncer(self.clock.seconds)
        if self.lan is not None:
            self.announcer = _LanAnnouncer(self.clock.seconds, told=partial(self.lan.announce, self))
            self.lan.hosts.append(self)

    @property
    def mac(self) -> bytes:
        """The MAC address of the interface, which is there."""
        return self.addresses.links[INTERFACE].mac

    @property
    def carried(self) -> set[Address]:
        """The addresses on the interface, by Kiwi's hand."""
        return set(self.addresses.read().assigned)

    def start(self, agent_id: str = "") -> None:
        """Run an agent, by default with the name of the host."""
        self.instances += 1
        ask: Any = immediately if self.lan is None else partial(self.lan.ask, self)
        network = Network(self.addresses, self.firewall, self.announcer, self.neighbours, immediately, immediately, ask)

        def watch_cluster(tell: Callable[[Cluster], None]) -> IService:
            self.watch = _Told(tell)
            return self.watch

        def watch_host(changed: Callable[[], None]) -> IService:
            self.changed = changed
            return _Told(lambda cluster: None)

        def watch_neighbours(heard: Callable[[Address, bytes, str], None]) -> IService:
            self.heard = heard
            return _Told(lambda cluster: None)

        self.agent = Agent(
            Terms(AgentRecord(agent_id or self.name, self.name, self.name, f"{self.name}/{self.instances}"), self.ttl),
            [Attachment(INTERFACE)],
            [LAN],
            self.clock,
            self.store(agent_id or self.name),
            network,
            BackoffPolicy(0.1, 5, self.uniform),
            watch_cluster,
            watch_host,
            watch_neighbours,
            self.refusals.append,
        )
        self.agent.startService()

    def tell(self, *services: Service, endpoints: Mapping[str, Endpoints] | None = None, unfit: str = "") -> None:
        """
        These are the Services, as far as this agent hears.

        @param endpoints: where they have endpoints, by the name of a Service; C{None} while that is not known.
        @param unfit: why its host may carry nothing.
        """
        assert self.watch is not None
        known = None if endpoints is None else {ServiceName("default", name): at for name, at in endpoints.items()}
        self.watch.tell(Cluster({told.name: told for told in services}, known, unfit))

    def stop(self) -> Deferred[None]:
        """Stop the agent in order."""
        assert self.agent is not None
        agent, self.agent = self.agent, None
        return agent.stopService()

    def kill(self) -> None:
        """End the agent without its doing anything more. Its host keeps what is on it."""
        assert self.agent is not None
        agent, self.agent = self.agent, None
        for part in agent:
            part.stopService()


@define(eq=False)
class World:
    """
    Hosts that share a store. Time passes by L{pass_time}, and after every event no address may have two carriers.
    """

    ttl: float = 10
    clock: Clock = field(factory=Clock, init=False)
    claims: MemoryClaims = field(init=False)
    hosts: list[SimulatedHost] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.claims = MemoryClaims(self.clock)

    def host(
        self, store: Callable[[str], IClaimStore] | None = None, agent_id: str = "", **differently: Any
    ) -> SimulatedHost:
        """
        One host more, with an agent that runs, by default with the name of the host.

        @param differently: further arguments of L{SimulatedHost}.
        """
        made = SimulatedHost(
            f"node-{len(self.hosts) + 1}",
            self.clock,
            self.ttl,
            store or (lambda agent_id: self.claims.store(agent_id, self.ttl)),
            **differently,
        )
        self.hosts.append(made)
        made.start(agent_id)
        return made

    def tell(self, *services: Service, endpoints: Mapping[str, Endpoints] | None = None) -> None:
        """Every agent that runs hears that these are the Services, and where they have endpoints."""
        for host in self.hosts:
            if host.agent is not None:
                host.tell(*services, endpoints=endpoints)

    def carriers(self, address: Address) -> list[SimulatedHost]:
        """The hosts that have an address on their interface."""
        return [host for host in self.hosts if address in host.carried]

    def pass_time(self, seconds: float) -> None:
        """Let time pass, event by event."""
        end = self.clock.seconds() + seconds
        while (next_call := min((c.getTime() for c in self.clock.getDelayedCalls()), default=end)) < end:
            # A host's own kernel acts between the events of the agents.
            self.clock.advance(min(max(0.0, next_call - self.clock.seconds()), 0.05))
            self.check()
        self.clock.advance(end - self.clock.seconds())
        self.check()

    def check(self) -> None:
        """No address has two carriers, and what is on an interface is marked."""
        carried = [address for host in self.hosts for address in host.carried]
        if len(carried) != len(set(carried)):
            raise AssertionError(f"two carriers at {self.clock.seconds()}: {sorted(map(str, carried))}")

    def stop(self) -> None:
        """End every agent that runs."""
        for host in self.hosts:
            if host.agent is not None:
                host.kill()
