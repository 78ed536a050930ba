"""What happens in one simulation, as a seed says: a list of events, each of which is one readable line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from attrs import frozen

from kiwi.planning import FEW

from .etcd3_servers import Etcd3Store
from .lease_servers import LeaseStore
from .servers import KUBERNETES
from .world import ADDRESSES, SimulatedHost, World


@frozen
class Happening:
    """
    One event of a schedule.

    @ivar at: true time, in seconds.
    @ivar host: the number of the host that it concerns; 0 for none.
    @ivar seconds: how long it lasts, if it ends by itself.
    @ivar number: whatever else there is to say: of a Service, an address or a member.
    """

    at: float
    kind: str
    host: int = 0
    seconds: float = 0.0
    number: int = 0

    def __str__(self) -> str:
        words = [f"{self.at:9.4f}", self.kind]
        if self.host:
            words.append(f"node-{self.host}")
        if self.seconds:
            words.append(f"for {self.seconds:.4f} s")
        if self.number:
            words.append(f"#{self.number}")
        return " ".join(words)


@frozen
class Schedule:
    """
    @ivar few: how many addresses count as few (see L{kiwi.planning.Terms}).
    @ivar numbers: of the events, with those that are left out counted.
    @ivar calm: true time from which on nothing happens any more.
    @ivar services: of those numbers there are Services from the beginning.
    """

    seed: int
    agents: int
    ttl: int
    members: int
    services: tuple[int, ...]
    happenings: tuple[Happening, ...]
    numbers: tuple[int, ...]
    calm: float
    few: int
    backend: str = "etcd2"

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: {self.agents} agents, TTL {self.ttl} s, {self.members} members of the store, Services "
            f"{', '.join(map(str, self.services)) or 'none'}, more than {self.few} addresses are many, "
            f"calm from {self.calm:.1f} s"
        )
        return "\n".join(
            [head, *(f"{n:3} {happening}" for n, happening in zip(self.numbers, self.happenings, strict=True))]
        )


# Which addresses a Service has: some share one, some have two. And which are carried only where they have endpoints.
SERVICES = 8
LOCAL = (1, 4, 7)


def addresses_of(number: int, edition: int) -> Sequence[int]:
    """The places in L{ADDRESSES} of the addresses of a Service, which its editions change."""
    first = number % 6
    return ([first], [first, 6 + number % 3], [6 + number % 3], [first])[edition % 4]


def _the_store(world: World) -> Sequence[str]:
    return world.store.places


def _one_member(world: World) -> Sequence[str]:
    return world.store.places[:1]


def _kubernetes(world: World) -> Sequence[str]:
    return (KUBERNETES,)


def _both(world: World) -> Sequence[str]:
    return (*world.store.places, KUBERNETES)


def _cut(
    places: Callable[[World], Sequence[str]],
) -> tuple[Callable[[World, Happening], None], Callable[[World, Happening], None]]:
    def begin(world: World, event: Happening) -> None:
        for place in places(world):
            world.network.change(_host(world, event).name, place, cut=True)

    def end(world: World, event: Happening) -> None:
        for place in places(world):
            world.network.change(_host(world, event).name, place, cut=False)

    return begin, end


def _everywhere(**changes: float) -> Callable[[World, Happening], None]:
    def apply(world: World, event: Happening) -> None:
        for host in world.hosts:
            for place in world.store.places:
                world.network.change(host.name, place, **changes)

    return apply


def _host(world: World, event: Happening) -> SimulatedHost:
    return world.hosts[event.host - 1]


def _member(world: World, event: Happening) -> str:
    return world.store.places[event.number % len(world.store.places)]


def _nothing(world: World, event: Happening) -> None:
    pass


def _restart(world: World, event: Happening) -> None:
    _host(world, event).start()


def _unplug(world: World, event: Happening) -> None:
    _cut(_both)[0](world, event)
    _host(world, event).kernel.set_ready(False)


def _plug(world: World, event: Happening) -> None:
    _cut(_both)[1](world, event)
    _host(world, event).kernel.set_ready(True)


def _on_all_members(act: str) -> Callable[[World, Happening], None]:
    def apply(world: World, event: Happening) -> None:
        for member in world.store.places:
            getattr(world.store, act)(member)

    return apply


def _lose_data(world: World, event: Happening) -> None:
    _on_all_members("fail")(world, event)
    world.store.lose_data()
    world.judge.forgotten()


def _back_up(world: World, event: Happening) -> None:
    if isinstance(world.store, LeaseStore | Etcd3Store):
        world.store.back_up()


def _restore(world: World, event: Happening) -> None:
    """
    Restoring takes longer than a TTL and a half, and the backup is from before that. A younger one would have sessions
    in the very state in which somebody has last heard of them, who then takes them for ended.
    """
    if isinstance(world.store, LeaseStore | Etcd3Store) and event.seconds > 1.5 * world.ttl:
        world.store.restore()
        world.judge.forgotten()


def _delete_session(world: World, event: Happening) -> None:
    """What the store has promised is not taken back: the others wait until its time is over."""
    if isinstance(world.store, LeaseStore):
        world.store.delete_session(_host(world, event).agent_id)
        world.judge.forgotten()


def _on_etcd3(act: Callable[[Etcd3Store, Happening], object]) -> Callable[[World, Happening], None]:
    def apply(world: World, event: Happening) -> None:
        if isinstance(world.store, Etcd3Store):
            act(world.store, event)

    return apply


def _cut_member_off(store: Etcd3Store, event: Happening) -> None:
    store.cut_member_off(store.places[event.number % len(store.places)])


def _end_lease(world: World, event: Happening) -> None:
    """What the store has promised is not taken back: the others wait until its time is over."""
    if isinstance(world.store, Etcd3Store):
        world.store.end_lease(event.number)
        world.judge.forgotten()


def _slow(world: World, event: Happening) -> None:
    world.store.slow(0.2 * world.ttl)


def _quick(world: World, event: Happening) -> None:
    world.store.slow(0.0)


def _lag(world: World, event: Happening) -> None:
    for host in world.hosts:
        world.network.change(host.name, world.store.places[-1], lag=0.3 if event.seconds else 0.0)


def _no_lag(world: World, event: Happening) -> None:
    for host in world.hosts:
        world.network.change(host.name, world.store.places[-1], lag=0.0)


def _on_connections(act: str) -> Callable[[World, Happening], None]:
    def apply(world: World, event: Happening) -> None:
        for place in _both(world) if act == "reset" else world.store.places:
            getattr(world.network, act)(_host(world, event).name, place)

    return apply


def _deaf(deaf: bool) -> Callable[[World, Happening], None]:
    def apply(world: World, event: Happening) -> None:
        for member in world.store.places:
            world.network.change(_host(world, event).name, member, deaf=deaf)

    return apply


def _come_back_empty(world: World, event: Happening) -> None:
    world.kubernetes.stop()
    world.kubernetes.start(empty=True)


def _forget_the_past(world: World, event: Happening) -> None:
    world.kubernetes.state.compact()
    world.kubernetes.state.drop_connections()


def _put(world: World, event: Happening) -> None:
    number, edition = event.number % SERVICES, event.number // SERVICES
    world.kubernetes.put(
        f"service-{number}",
        [ADDRESSES[place] for place in addresses_of(number, edition)],
        8000 + number + 100 * (edition == 3),
        number in LOCAL,
    )


def _move_endpoints(world: World, event: Happening) -> None:
    number, pattern = LOCAL[event.number % len(LOCAL)], event.number // len(LOCAL)
    nodes = [host.name for host in world.hosts]
    chosen = ([], nodes, nodes[::2], nodes[1::2])[pattern] if pattern < 4 else [nodes[pattern % len(nodes)]]
    world.kubernetes.put_endpoints(f"service-{number}", chosen)


def _put_node(excluded: bool) -> Callable[[World, Happening], None]:
    def apply(world: World, event: Happening) -> None:
        world.kubernetes.put_node(_host(world, event).name, excluded)

    return apply


def _delete(world: World, event: Happening) -> None:
    world.kubernetes.delete(f"service-{event.number % SERVICES}")


def _carried(world: World, event: Happening) -> list[tuple[SimulatedHost, int]]:
    return [
        (host, place)
        for host in world.hosts
        for place, address in enumerate(ADDRESSES)
        if address in host.kernel.entries
    ]


def _delete_address(world: World, event: Happening) -> None:
    there = _carried(world, event)
    if there:
        host, place = there[event.number % len(there)]
        host.kernel.delete(ADDRESSES[place])


def _make_permanent(world: World, event: Happening) -> None:
    there = _carried(world, event)
    if there:
        host, place = there[event.number % len(there)]
        host.kernel.write(ADDRESSES[place], float("inf"), float("inf"), by_hand=True)


def _flush(world: World, event: Happening) -> None:
    kernel = _host(world, event).kernel
    kernel.marks, kernel.spoiled = None, True


def _twin(world: World, event: Happening) -> None:
    """On a host without an agent, one is started with the id of another one."""
    host = _host(world, event)
    if not host.is_running:
        host.start(world.hosts[event.number % len(world.hosts)].name)


def _machine(world: World, event: Happening) -> None:
    """A machine that is no agent gets an address that nobody carries."""
    address = ADDRESSES[event.number % 9]
    if not world.carriers(address):
        world.machines[address] = bytes([2, 0, 0, 0, 1, event.number])


def _no_machine(world: World, event: Happening) -> None:
    world.machines.pop(ADDRESSES[event.number % 9], None)


Action = Callable[[World, Happening], None]


@frozen
class Kind:
    """
    @ivar weight: how often it is chosen, beside others.
    @ivar longest: how long it lasts, at most, in times of the TTL; 0 for what ends at once.
    @ivar scope: what it concerns: a C{host}, the C{store}, C{kubernetes}, or a C{service}.
    """

    weight: float
    begin: Action
    end: Action = _nothing
    longest: float = 0.0
    scope: str = "host"


_rejoin = _on_etcd3(lambda store, event: store.rejoin())

KINDS: Mapping[str, Kind] = {
    "crash": Kind(4, lambda w, e: _host(w, e).kill(), _restart, 2.5),
    "short crash": Kind(3, lambda w, e: _host(w, e).kill(), _restart, 0.3),
    "stop": Kind(2, lambda w, e: _host(w, e).stop(), _restart, 1.5),
    "freeze": Kind(4, lambda w, e: _host(w, e).freeze(), lambda w, e: _host(w, e).thaw(), 3),
    "stall": Kind(2, lambda w, e: _host(w, e).freeze(), lambda w, e: _host(w, e).thaw(), 0.08),
    "reboot": Kind(0.7, lambda w, e: _host(w, e).reboot(), _restart, 1),
    "hanging threads": Kind(1, lambda w, e: _host(w, e).hang(e.seconds), _nothing, 2),
    "cut from the store": Kind(3, *_cut(_the_store), 2),
    "cut from one member": Kind(1, *_cut(_one_member), 2),
    "cut from Kubernetes": Kind(1, *_cut(_kubernetes), 2),
    "cut from both": Kind(1, *_cut(_both), 2),
    "unplugged": Kind(2, _unplug, _plug, 2),
    "deaf to the store": Kind(
        1,
        _deaf(True),
        _deaf(False),
        1.5,
    ),
    "connections reset": Kind(1, _on_connections("reset")),
    "connections forgotten": Kind(1, _on_connections("forget")),
    "slow store": Kind(1, _slow, _quick, 2, "store"),
    "lossy store": Kind(1.5, _everywhere(unanswered=0.3), _everywhere(unanswered=0.0), 2, "store"),
    "lossy network": Kind(1, _everywhere(lost=0.2, unanswered=0.1), _everywhere(lost=0.0, unanswered=0.0), 2, "store"),
    "requests arrive twice": Kind(1, _everywhere(twice=0.3), _everywhere(twice=0.0), 3, "store"),
    "late messages": Kind(1.5, _everywhere(delay=1.0), _everywhere(delay=0.0), 2, "store"),
    "late events": Kind(1, _lag, _no_lag, 2, "store"),
    "store paused": Kind(1.5, lambda w, e: w.store.pause(), lambda w, e: w.store.resume(), 1.5, "store"),
    "store down": Kind(1.5, _on_all_members("fail"), _on_all_members("recover"), 2, "store"),
    "member down": Kind(
        1.5, lambda w, e: w.store.fail(_member(w, e)), lambda w, e: w.store.recover(_member(w, e)), 2, "store"
    ),
    "data lost": Kind(1, _lose_data, _on_all_members("recover"), 0.3, "store"),
    "Kubernetes down": Kind(1, lambda w, e: w.kubernetes.stop(), lambda w, e: w.kubernetes.start(), 2, "kubernetes"),
    "Kubernetes comes back empty": Kind(
        1,
        _come_back_empty,
        lambda w, e: w.kubernetes.start(),
        0.3,
        "kubernetes",
    ),
    "Kubernetes hangs": Kind(
        1, lambda w, e: w.kubernetes.state.hang(), lambda w, e: w.kubernetes.state.recover(), 2, "kubernetes"
    ),
    "Kubernetes fails": Kind(
        1, lambda w, e: w.kubernetes.state.fail(503), lambda w, e: w.kubernetes.state.recover(), 2, "kubernetes"
    ),
    "Kubernetes forgets the past": Kind(
        0.5,
        _forget_the_past,
        scope="kubernetes",
    ),
    "Kubernetes ends watches": Kind(0.5, lambda w, e: w.kubernetes.state.end_watches(), scope="kubernetes"),
    "Service set": Kind(5, _put, scope="service"),
    "Service deleted": Kind(3, _delete, scope="service"),
    "endpoints move": Kind(4, _move_endpoints, scope="service"),
    "node excluded": Kind(1.5, _put_node(True), _put_node(False), 2),
    "node excluded for good": Kind(0.7, _put_node(True)),
    "node deleted": Kind(1, lambda w, e: w.kubernetes.delete_node(_host(w, e).name), _put_node(False), 2),
    "address deleted by hand": Kind(1, _delete_address, scope="service"),
    "address made permanent by hand": Kind(1, _make_permanent, scope="service"),
    "chain flushed": Kind(1, _flush),
    "link down": Kind(
        1, lambda w, e: _host(w, e).kernel.set_ready(False), lambda w, e: _host(w, e).kernel.set_ready(True), 1
    ),
    "link deleted": Kind(
        1, lambda w, e: _host(w, e).kernel.delete_link(), lambda w, e: _host(w, e).kernel.make_link(), 1
    ),
    "machine with the address": Kind(1, _machine, _no_machine, 2, "service"),
    "twin": Kind(0.7, _twin, lambda w, e: _host(w, e).stop(), 2),
}

KINDS_OF_LEASES: Mapping[str, Kind] = {
    **KINDS,
    "Lease of an agent deleted by hand": Kind(1, _delete_session),
    "store restored from a backup": Kind(1, _back_up, _restore, 4, "store"),
}

KINDS_OF_ETCD3: Mapping[str, Kind] = {
    **KINDS,
    "leader changes": Kind(2, _on_etcd3(lambda s, e: s.elect()), scope="store"),
    "leader cut off": Kind(2, _on_etcd3(lambda s, e: s.cut_leader_off()), _rejoin, 2.5, "store"),
    "leader does not notice": Kind(2, _on_etcd3(lambda s, e: s.cut_leader_off(e.seconds + 1)), _rejoin, 2.5, "store"),
    "member cut off": Kind(1.5, _on_etcd3(_cut_member_off), _rejoin, 2, "store"),
    "leader paused": Kind(2, _on_etcd3(lambda s, e: s.pause_leader()), _rejoin, 2, "store"),
    "store compacted": Kind(
        1.5, _on_etcd3(lambda s, e: s.compact(True)), _on_etcd3(lambda s, e: s.compact(False)), 1.5, "store"
    ),
    "lease ended too early": Kind(1, _end_lease, scope="service"),
    "streams silent": Kind(1, _on_etcd3(lambda s, e: s.silence()), scope="store"),
    "streams end": Kind(1, _on_etcd3(lambda s, e: s.end_streams()), scope="store"),
    "streams speak nonsense": Kind(0.5, _on_etcd3(lambda s, e: s.speak_nonsense()), scope="store"),
    "store restored from a backup": Kind(1, _back_up, _restore, 4, "store"),
}

KINDS_OF: Mapping[str, Mapping[str, Kind]] = {"etcd2": KINDS, "etcd3": KINDS_OF_ETCD3, "leases": KINDS_OF_LEASES}
ALL_KINDS: Mapping[str, Kind] = {**KINDS_OF_LEASES, **KINDS_OF_ETCD3}

SHORT = 0.01


def draw(seed: int, without: Sequence[str] = (), only: Sequence[int] | None = None, backend: str = "etcd2") -> Schedule:
    """
    The schedule of a seed.

    @param without: kinds of events that are left out.
    @param only: the numbers of the events that are kept, if not all.
    @param backend: where claims are: C{etcd2}, C{etcd3} or C{leases}.
    """
    kinds = KINDS_OF[backend]
    random = Random(f"kiwi/{seed}")
    ttl = random.choice((3, 3, 4, 5, 7, 10, 10, 20))
    agents = random.choice((3, 3, 4, 4, 5))
    members = random.choice((1, 2 if backend != "etcd3" else 3))
    services = tuple(sorted(random.sample(range(SERVICES), random.randint(1, 6))))
    # Each schedule has its own troubles, so that some things are troubled much and others not at all.
    chosen = random.sample(sorted(kinds), random.randint(3, 14))
    weights = [kinds[name].weight for name in chosen]
    start = 2.0
    length = random.uniform(3, 6) * ttl + 10
    happenings: list[Happening] = []
    for _ in range(random.randint(3, 25)):
        name = random.choices(chosen, weights)[0]
        kind = kinds[name]
        at = start + random.uniform(0, length)
        # Much of what goes wrong goes wrong where it meets something that just happens.
        if happenings and random.random() < 0.4:
            at = max(start, random.choice(happenings).at + random.choice((-0.1, 0.0, 0.02, 0.3, 1.0, ttl / 3, ttl)))
        seconds = 0.0
        if kind.longest:
            seconds = SHORT + random.random() ** 2 * kind.longest * ttl
        host = random.randint(1, agents) if kind.scope == "host" else 0
        number = (
            random.randrange(4 * SERVICES)
            if kind.scope == "service" or name in ("twin", "member down", "member cut off")
            else 0
        )
        happenings.append(Happening(round(at, 4), name, host, round(seconds, 4), number))
    happenings.sort(key=lambda happening: happening.at)
    kept = {
        number: happening
        for number, happening in enumerate(happenings)
        if happening.kind not in without and (only is None or number in only)
    }
    calm = max([start, *(happening.at + happening.seconds for happening in kept.values())])
    return Schedule(
        seed, agents, ttl, members, services, tuple(kept.values()), tuple(kept), calm, (1, FEW)[seed % 2], backend
    )


def let_happen(world: World, happening: Happening) -> None:
    """Begin it now; its end comes by itself."""
    kind = ALL_KINDS[happening.kind]
    world.log(f"--- {happening}")
    kind.begin(world, happening)
    if happening.seconds:
        world.timeline.after(happening.seconds, _end, world, happening)


def _end(world: World, happening: Happening) -> None:
    world.log(f"--- over: {happening}")
    ALL_KINDS[happening.kind].end(world, happening)


def heal(world: World) -> None:
    """Nothing is wrong any more: whatever was broken works, and every host has its own agent."""
    world.log("--- all is healed")
    for host in world.hosts:
        for place in _both(world):
            world.network.change(host.name, place, cut=False, deaf=False, lost=0, unanswered=0, twice=0, delay=0, lag=0)
            # What hangs in the air would be noticed some time, but the time that Kubernetes leaves is minutes.
            if place == KUBERNETES:
                world.network.reset(host.name, place)
    world.machines.clear()
    world.store.slow(0.0)
    world.store.resume()
    if isinstance(world.store, Etcd3Store):
        world.store.rejoin()
    for member in world.store.places:
        world.store.recover(member)
    world.kubernetes.state.recover()
    world.kubernetes.start()
    for host in world.hosts:
        host.kernel.make_link()
        host.kernel.set_ready(True)
        host.thaw()
        if host.is_running and (host.stopping or host.agent_id != host.name):
            host.kill()
        host.start()
