"""Hosts with their agents, and what must always hold."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from ipaddress import ip_interface, ip_network
from math import inf
from random import Random
from typing import Any

from attrs import define, evolve, field, frozen
from twisted.application.service import IService
from twisted.application.service import Service as TwistedService
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from kiwi.agent import Agent
from kiwi.backoff import BackoffPolicy
from kiwi.claims.etcd2 import Etcd2ClaimStore
from kiwi.claims.etcd3 import Etcd3ClaimStore
from kiwi.claims.interface import IClaimStore
from kiwi.claims.leases import LeaseClaimStore
from kiwi.converger import LONGEST_WAIT_FOR_STORE, Converger
from kiwi.kubernetes.api import KubernetesAPI
from kiwi.kubernetes.cluster import ClusterWatch
from kiwi.kubernetes.credentials import NoCredentials
from kiwi.kubernetes.services import Sources
from kiwi.model import Address, AgentRecord, Placement, in_order, ip
from kiwi.network.intents import Network as HostNetwork
from kiwi.network.interface import IAddresses
from kiwi.planning import FEW, Terms
from kiwi.selection import Attachment

from .etcd3_servers import Etcd3Store
from .kernel import INTERFACE, Addresses, Announcer, Entry, Firewall, Kernel, Neighbours, Thread, latest
from .lease_servers import LEASE_SERVER, NAMESPACE, LeaseStore
from .servers import KUBERNETES, PREFIX, Kubernetes, Store
from .timeline import HostClock, Process, Timeline
from .transport import Client, Network

LAN = (ip_network("192.168.1.0/24"), ip_network("fd00::/64"))
ADDRESSES = tuple(ip(f"{'fd00::' if number % 3 == 1 else '192.168.1.'}{number}") for number in range(41, 53))
RECONNECT_INTERVAL = 5.0
"""Seconds; what C{--reconnect-interval} is by default."""

ROUNDING = 1e-6


@frozen
class Mutation:
    """
    How agents differ from what they should be.

    @ivar terms: makes the terms of an agent.
    @ivar store: wraps its store; the clock is the agent's.
    @ivar addresses: wraps the addresses of its host.
    @ivar converger: a subclass of L{Converger} that its converger becomes.
    """

    terms: Callable[[AgentRecord, float], Terms] = Terms
    store: Callable[[IClaimStore, Any], IClaimStore] = lambda store, clock: store
    addresses: Callable[[Addresses], IAddresses] = lambda addresses: addresses
    converger: type[Converger] = Converger


AS_IT_IS = Mutation()


class Violation(Exception):
    """Something is as it must never be."""


class _Part(TwistedService):
    """A part of an agent that is called from elsewhere."""


@define(eq=False, repr=False)
class SimulatedHost:
    """
    One host, and the agent that runs there at the moment, if one does.

    @ivar process: the process of the latest agent, alive or not.
    """

    world: World
    number: int
    name: str = field(init=False)
    random: Random = field(init=False)
    clock: HostClock = field(init=False)
    kernel: Kernel = field(init=False)
    agent_id: str = field(init=False)
    agent: Agent | None = field(default=None, init=False)
    process: Process | None = field(default=None, init=False)
    threads: Sequence[Thread] = field(default=(), init=False)
    instances: int = field(default=0, init=False)
    boots: int = field(default=1, init=False)
    stopping: bool = field(default=False, init=False)
    refusals: list[str] = field(factory=list, init=False)
    _told: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        world = self.world
        self.name = self.agent_id = f"node-{self.number}"
        self.random = Random(f"{world.seed}/{self.name}")
        self.clock = HostClock(
            world.timeline, self.random.uniform(100, 100_000), 1 + world.drift * self.random.uniform(-1, 1)
        )
        self.kernel = Kernel(
            self.name,
            world.timeline,
            self.clock,
            bytes([2, 0, 0, 0, 0, self.number]),
            frozenset(map(ip_interface, (f"192.168.1.{10 + self.number}/24", f"fd00::{10 + self.number}/64"))),
            lambda address, entry, new: world.judge.put(self, address, entry, new),
            lambda address, entry: world.judge.gone(self, address, entry),
        )

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.alive

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def start(self, agent_id: str = "") -> None:
        """Run an agent, by default with the name of the host."""
        if self.is_running:
            return
        world = self.world
        self.instances += 1
        self.stopping = False
        self.agent_id = agent_id or self.name
        seed = f"{world.seed}/{self.name}/{self.instances}"
        process = self.process = Process(self.name, world.timeline, self.clock, Random(seed), world.entered)
        self.threads = [Thread(process, world.timeline, process.random) for _ in range(3)]
        process.deliver(self._start, process)

    def _start(self, process: Process) -> None:
        world, clock = self.world, process.clock
        pooled = Client(world.network, process, self.name, new=False)
        unpooled = Client(world.network, process, self.name, new=True)
        uniform = Random(f"{world.seed}/{self.name}/{self.instances}/backoff").uniform
        backoff = BackoffPolicy(0.1, RECONNECT_INTERVAL, uniform)
        of_store = evolve(backoff, longest=LONGEST_WAIT_FOR_STORE)
        server, lease_server = (
            KubernetesAPI(
                pooled,  # type: ignore[arg-type]
                unpooled,  # type: ignore[arg-type]
                clock,
                f"http://{place}",
                NoCredentials(),
                uniform,
            )
            for place in (KUBERNETES, LEASE_SERVER)
        )
        store: IClaimStore = (
            LeaseClaimStore(lease_server, NAMESPACE, self.agent_id, world.ttl, of_store, clock.seconds)
            if world.backend == "leases"
            else (Etcd3ClaimStore if world.backend == "etcd3" else Etcd2ClaimStore)(
                pooled,  # type: ignore[arg-type]
                unpooled,  # type: ignore[arg-type]
                clock,
                [f"http://{member}" for member in world.members_of(self)],
                PREFIX,
                self.agent_id,
                world.ttl,
                of_store,
            )
        )
        for_addresses, for_firewall, for_probes = self.threads
        neighbours = Neighbours(self.kernel, process, world.timeline, world.owner, world.asking)

        def ask(function: Callable[..., Any], placements: AbstractSet[Placement], wait: float) -> Deferred[Any]:
            neighbours.begin(placements, wait)
            return for_probes.call(function, placements, wait)

        network = HostNetwork(
            world.mutation.addresses(Addresses(self.kernel)),
            Firewall(self.kernel),
            Announcer(self.kernel, lambda address: world.announced(self, address)),
            neighbours,
            for_addresses.call,
            for_firewall.call,
            ask,
        )
        record = AgentRecord(
            self.agent_id,
            self.name,
            f"{self.name}/{self.boots}",
            f"{self.name}/{self.boots}/{self.instances}",
            node="" if self.agent_id == self.name else self.name,
        )

        def watch_host(changed: Callable[[], None]) -> IService:
            self._listen(process, changed)
            return _Part()

        def watch_neighbours(heard: Callable[[Address, bytes, str], None]) -> IService:
            world.ears.append((self, process, heard))
            return _Part()

        agent = self.agent = Agent(
            evolve(world.mutation.terms(record, world.ttl), few=world.few),
            [Attachment(INTERFACE)],
            LAN,
            clock,
            world.mutation.store(store, clock),
            network,
            backoff,
            partial(ClusterWatch, server, backoff, "v1", Sources(), self.name, self.number % 2 == 0),
            watch_host,
            watch_neighbours,
            self._refused,
        )
        if world.mutation.converger is not Converger:
            agent.converger.__class__ = world.mutation.converger
        # What is suspended in a dead agent must not be resumed by the collector of garbage.
        world.graveyard.append(agent)
        agent.startService()

    def _listen(self, process: Process, changed: Callable[[], None]) -> None:
        def tell() -> None:
            self._told = False
            changed()

        def news() -> None:
            if not self._told:
                self._told = True
                self.world.timeline.after(0.0001 + 0.001 * process.random.random(), process.deliver, tell)

        self._told = False
        self.kernel.listeners = [news]

    def _refused(self, reason: str) -> None:
        self.refusals.append(reason)
        assert self.process is not None
        self.process.clock.callLater(0, self._stop)

    def stop(self) -> None:
        """Tell the agent to go, in order."""
        if self.process is not None and self.is_running:
            self.process.deliver(self._stop)

    def _stop(self) -> None:
        if self.stopping or self.agent is None:
            return
        self.stopping = True
        process = self.process

        def ended(result: object) -> None:
            if isinstance(result, Failure):
                self.world.judge.complain(f"{self.name}: stopping failed: {result.getErrorMessage()}")
            if self.process is process:
                self.world.log(f"{self.name}: has stopped")
                self.kill()

        self.agent.stopService().addBoth(ended)

    def kill(self) -> None:
        """End the agent without its doing anything more. Its host keeps what is on it."""
        if self.process is not None and self.process.alive:
            self.process.kill()
            self.agent = None
            self.kernel.listeners = []
            self.world.ears = [ear for ear in self.world.ears if ear[1] is not self.process]
            for connection in list(self.world.network.connections):
                if connection.process is self.process:
                    connection.die()

    def reboot(self) -> None:
        """Power is cut, and comes back: nothing is left of what ran, and of what was set."""
        self.kill()
        self.boots += 1
        self.kernel.entries.clear()
        self.kernel.marks = None
        self.kernel.delete_link()
        self.kernel.make_link()

    def freeze(self) -> None:
        if self.process is not None:
            self.process.freeze()

    def thaw(self) -> None:
        if self.process is not None and self.process.frozen:
            self.process.thaw()

    def hang(self, seconds: float) -> None:
        """What the threads do now takes so long."""
        for thread in self.threads:
            thread.hangs_until = self.world.timeline.now + seconds


@define(eq=False, repr=False)
class Judge:
    """
    What must hold at every moment:

     - no address is on two hosts;
     - an address of ours is on a host only as long as the store has promised the claim to the agent that put it there,
       and is never put there to stay so long that the kernel, at its latest, would remove it after that;
     - traffic to it is marked before it is put there;
     - nobody announces an address that is on another host.

    What somebody's hand has changed is not counted until an agent has mended it.

    @ivar deadlines: the true time until which the store has promised an agent a claim, by agent id and address. A
        promise that the store forgets with all its data is not taken back.
    @ivar violations: all that was wrong, in its order.
    """

    world: World
    deadlines: dict[tuple[str, Address], float] = field(factory=dict, init=False)
    violations: list[str] = field(factory=list, init=False)
    _putters: dict[tuple[SimulatedHost, Address], str] = field(factory=dict, init=False)
    _claims: Mapping[Address, tuple[str, float]] = field(factory=dict, init=False)

    def complain(self, text: str) -> None:
        self.violations.append(f"{self.world.timeline.now:.4f} {text}")
        self.world.log(f"VIOLATION: {text}")
        self.world.timeline.stopped = True

    def put(self, host: SimulatedHost, address: Address, entry: Entry, new: bool) -> None:
        """An address is about to be put on a host, or to be kept there for longer."""
        if entry.by_hand:
            return
        now = self.world.timeline.now
        self._putters[host, address] = host.agent_id
        promised = self.deadlines.get((host.agent_id, address), -inf)
        ends = host.clock.true(entry.written / 250 + entry.valid) if entry.valid < inf else inf
        if promised <= now:
            self.complain(f"{host.name} puts {address} on its interface without a claim")
        elif ends > promised + ROUNDING:
            self.complain(f"{host.name} keeps {address} for {ends - promised:.3f} s longer than it is promised")
        elif ends + latest(entry) > promised + ROUNDING:
            over = ends + latest(entry) - promised
            self.complain(f"{host.name} keeps {address} so long that its kernel may remove it {over:.3f} s too late")
        if new:
            self._others(host, address)
            if not any(mark.address == address for mark in host.kernel.marks or ()) and not host.kernel.spoiled:
                self.complain(f"{host.name} puts {address} on its interface before its traffic is marked")

    def _others(self, host: SimulatedHost, address: Address) -> None:
        for other in self.world.hosts:
            there = other.kernel.entries.get(address)
            if other is not host and there is not None and not there.by_hand:
                self.complain(f"{address} has two carriers: it comes to {host.name}, and is on {other.name}")

    def gone(self, host: SimulatedHost, address: Address, entry: Entry) -> None:
        """An address was taken off a host."""
        if not entry.by_hand:
            self._is_promised(host, address)

    def handled(self, promises: bool) -> None:
        """
        The store has carried out a request.

        @param promises: it may have promised something, and has taken nothing back.
        """
        claims = self.world.store.claims()
        for address, (agent_id, _) in self._claims.items():
            if not promises and (address not in claims or claims[address][0] != agent_id):
                self.deadlines.pop((agent_id, address), None)
        if promises:
            for address, (agent_id, expires) in claims.items():
                self.deadlines[agent_id, address] = max(expires, self.deadlines.get((agent_id, address), -inf))
        self._claims = claims
        self.look()

    def forgotten(self) -> None:
        """The store has lost its data."""
        self._claims = {}

    def look(self) -> None:
        """Look at every address that is on a host."""
        for host in self.world.hosts:
            for address, entry in host.kernel.entries.items():
                if not entry.by_hand:
                    self._is_promised(host, address)

    def _is_promised(self, host: SimulatedHost, address: Address) -> None:
        now = self.world.timeline.now
        agent_id = self._putters[host, address]
        promised = self.deadlines.get((agent_id, address), -inf)
        if promised == -inf:
            self.complain(f"{address} is on {host.name} while {agent_id} has no claim to it")
        elif promised < now - ROUNDING:
            self.complain(f"{address} is on {host.name} {now - promised:.3f} s after its claim has ended")

    def announced(self, host: SimulatedHost, address: Address) -> None:
        for other in self.world.hosts:
            there = other.kernel.entries.get(address)
            if other is not host and there is not None and not there.by_hand:
                self.complain(f"{host.name} announces {address}, which is on {other.name}")


@implementer(ILogObserver)
@define(eq=False, repr=False)
class World:
    """
    Everything there is.

    @ivar seed: of all that is left to chance.
    @ivar ttl: of claims, in seconds.
    @ivar drift: how far clocks differ from the store's, at most.
    @ivar members: how many members of the store the agents know.
    @ivar few: how many addresses count as few (see L{kiwi.planning.Terms}).
    @ivar backend: where claims are: C{etcd2}, C{etcd3} or C{leases}.
    @ivar machines: the MAC addresses of machines that are no agents, by the address that each has.
    @ivar asking: what hosts ask for on the link now, and who else has asked for which of that meanwhile.
    @ivar ears: those who are told of what is announced on the link.
    @ivar wakings: how often each host's process did something.
    @ivar graveyard: every agent there was.
    """

    seed: str
    ttl: int = 10
    drift: float = 0.01
    mutation: Mutation = AS_IT_IS
    members: int = 1
    few: int = FEW
    backend: str = "etcd2"
    timeline: Timeline = field(factory=Timeline, init=False)
    network: Network = field(init=False)
    store: Store | Etcd3Store | LeaseStore = field(init=False)
    kubernetes: Kubernetes = field(init=False)
    hosts: list[SimulatedHost] = field(factory=list, init=False)
    judge: Judge = field(init=False)
    ears: list[tuple[SimulatedHost, Process, Callable[[Address, bytes, str], None]]] = field(factory=list, init=False)
    machines: dict[Address, bytes] = field(factory=dict, init=False)
    asking: dict[Kernel, tuple[AbstractSet[Address], dict[Address, bytes]]] = field(factory=dict, init=False)
    wakings: Counter[str] = field(factory=Counter, init=False)
    announcements: Counter[Address] = field(factory=Counter, init=False)
    graveyard: list[Agent] = field(factory=list, init=False)
    _acting: str = field(default="", init=False)
    _logged: deque[tuple[float, str, LogEvent | str]] = field(factory=lambda: deque(maxlen=300), init=False)

    def __attrs_post_init__(self) -> None:
        self.judge = Judge(self)
        self.network = Network(self.timeline, Random(f"{self.seed}/network"))
        random = Random(f"{self.seed}/servers")
        if self.backend == "leases":
            self.store = LeaseStore(self.timeline, self.network, random, self.judge.handled)
        elif self.backend == "etcd3":
            self.store = Etcd3Store(self.timeline, self.network, random, self.judge.handled, self.judge.look)
        else:
            self.store = Store(self.timeline, self.network, random, self.judge.handled, self.judge.look)
        self.kubernetes = Kubernetes(self.timeline, self.network, random)

    def __enter__(self) -> World:
        globalLogPublisher.addObserver(self)
        return self

    def __exit__(self, *exception: object) -> None:
        globalLogPublisher.removeObserver(self)
        self._dispose()

    def _dispose(self) -> None:
        """Leave nothing suspended: the collector of garbage would resume it, in an order of its own."""
        for host in self.hosts:
            host.kill()
        for agent in self.graveyard:
            agent.converger.running = 0
            for part in agent:
                if part is not agent.converger and part.running:
                    part.stopService()
        self.network.dispose()

    def add_host(self) -> SimulatedHost:
        """One host more, without an agent, and its Node."""
        host = SimulatedHost(self, len(self.hosts) + 1)
        self.hosts.append(host)
        self.kubernetes.put_node(host.name)
        return host

    def members_of(self, host: SimulatedHost) -> Sequence[str]:
        """The members of the store that an agent is told of, in its own order."""
        known = self.store.places[: self.members]
        return known if host.number % 2 else known[::-1]

    def pass_time(self, seconds: float) -> None:
        """Let time pass; raises L{Violation} as soon as something is wrong."""
        self.run_until(self.timeline.now + seconds)

    def run_until(self, end: float) -> None:
        self.timeline.run_until(end)
        self.check()

    def check(self) -> None:
        if self.judge.violations:
            raise Violation(self.judge.violations[0])

    # What processes do to each other.

    def entered(self, process: Process) -> None:
        self._acting = process.name
        self.wakings[process.name] += 1

    def owner(self, asking: Kernel, address: Address) -> bytes | None:
        """The MAC address of who else has an address on the link."""
        if address in self.machines:
            return self.machines[address]
        for host in self.hosts:
            kernel = host.kernel
            answers = kernel is not asking and kernel.link is not None and kernel.link.ready
            if answers and (address in kernel.entries or any(own.ip == address for own in kernel.foreign)):
                return kernel.mac
        return None

    def announced(self, host: SimulatedHost, address: Address) -> None:
        """A host tells the others on the link that it has an address."""
        self.judge.announced(host, address)
        self.announcements[address] += 1
        for other, process, heard in self.ears:
            if other is not host and other.kernel.link is not None and other.kernel.link.ready:
                self.timeline.after(0.0003, process.deliver, heard, address, host.kernel.mac, INTERFACE)

    def say(self, address: Address, mac: bytes) -> None:
        """A machine that is no agent says that it has an address."""
        for _, process, heard in self.ears:
            process.deliver(heard, address, mac, INTERFACE)

    # What is seen.

    def carriers(self, address: Address) -> list[SimulatedHost]:
        """The hosts that have an address on their interface."""
        return [host for host in self.hosts if address in host.kernel.entries]

    def agents(self) -> set[str]:
        """The ids of the agents that the store knows."""
        return self.store.agents()

    def holders(self) -> Mapping[Address, str]:
        return {address: holder for address, (holder, _) in self.store.claims().items()}

    def unsettled(self) -> list[str]:
        """What is not yet as it should be when nothing is wrong any more."""
        hosts = frozenset(host.name for host in self.hosts)
        eligible = self.kubernetes.eligible(hosts)
        wanted = {address: ports for address, ports in self.kubernetes.wanted().items() if eligible[address]}
        found = []
        holders = dict(self.holders())
        for address in in_order({*wanted, *holders, *(a for host in self.hosts for a in host.kernel.entries)}):
            carriers = [host.name for host in self.carriers(address)]
            expected = [holders[address]] if address in wanted and address in holders else []
            if carriers != expected or (address in wanted) != (address in holders):
                wish = "wanted" if address in wanted else "not wanted"
                found.append(f"{address} is {wish}, claimed by {holders.get(address)} and carried by {carriers}")
            elif not eligible.get(address, hosts).issuperset(carriers):
                found.append(f"{address} is on {carriers}, and may only be on {sorted(eligible[address])}")
        for host in self.hosts:
            marked = {(mark.address, mark.port) for mark in host.kernel.marks or ()}
            due = {(address, port) for address in host.kernel.entries for port in wanted.get(address, ())}
            if (marked != due or host.kernel.marks is None) and host.is_running:
                found.append(f"{host.name} marks {sorted(map(str, marked))} instead of {sorted(map(str, due))}")
            if not host.is_running and (host.kernel.marks or host.kernel.entries):
                found.append(f"{host.name} has no agent, and something of one")
        running = {host.agent_id for host in self.hosts if host.is_running}
        if self.agents() != running:
            found.append(f"the store knows of {sorted(self.agents())}, and {sorted(running)} run")
        return found

    # The log.

    def log(self, text: str) -> None:
        self._logged.append((self.timeline.now, "", text))

    def __call__(self, event: LogEvent) -> None:
        self._logged.append((self.timeline.now, self._acting, event))
        if event["log_level"] >= LogLevel.error and event.get("log_failure") is not None:
            text = formatEvent(event)
            self.judge.complain(f"{self._acting}: {text}: {event['log_failure'].getTraceback()}")

    def lines(self) -> list[str]:
        """The last lines of the log."""
        return [
            f"{time:10.4f} {name or '-':7} {event if isinstance(event, str) else formatEvent(event)}"
            for time, name, event in self._logged
        ]
