"""
How long addresses do not answer when something happens to their carrier, or to what it rests on; Kiwi and keepalived
side by side on the same lab's hosts.

Three hosts run agents of one kind. When all is steady, something happens to the host that carries the first address,
and is mended when the addresses are carried again. What is told of each event:

outage   The longest time between two answers to the client's pings, of the address for which it was longest. The first
         address is pinged every 2 ms. Where there are many, every one of them is pinged every 0.1 s too, so that an
         outage of theirs comes out up to 0.1 s too long; only in a planned hand-over, which is over sooner, it is that
         from the removal of the address, as the old carrier's kernel tells, until the client has received the
         announcement of the new one. "none": every request was answered within 50 ms.
again    When the last of the addresses that the carrier had was on a host again, as the kernels tell by netlink;
         counted from the event, or from the return of the store where that was down. "-": none had left its host.
carriers The most hosts that had an address at the same instant, as the kernels tell. keepalived that was killed leaves
         its addresses behind, whether or not the host can be reached, and they count.

Kiwi spreads many addresses over the hosts, so that an event concerns a third of them; keepalived has all on one host.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from attrs import asdict, define, field, frozen

from kiwi.model import Address, ip
from tests.lab.laboratory import CLUSTER, ETCD_PORT, INTERFACE, SECOND_INTERFACE, Host, Lab
from tests.lab.pinging import Pinger, Sweeper

from .common import Table, addresses, bench_lab, note, options, show_all
from .fleet import Fleet, Keepalived, Kind, Kiwi, steady_fleet
from .servers import Plain, Servers

SWEEP = 0.1
"""Seconds from one ping to the next of each address, where there are many."""

TAIL = 0.5
"""Seconds for which is watched on after all addresses are carried again."""


@define(eq=False)
class Scene:
    """
    What an event happens to.

    @ivar carrier: the host that carries the first address.
    @ivar since: from when addresses may be carried again.
    @ivar returned: when something came back from which it counts how long that takes, instead.
    @ivar again: when something else than an address was as it should be again.
    """

    agents: Fleet
    carrier: Host
    concerned: Sequence[Address]
    servers: Servers
    since: float = field(factory=time.monotonic)
    returned: float | None = None
    again: float | None = None

    @property
    def lab(self) -> Lab:
        return self.agents.lab

    @property
    def watched(self) -> Address:
        return self.agents.wanted[0]

    @property
    def patience(self) -> float:
        return self.agents.kind.patience

    def watch_for(self, seconds: float) -> None:
        """Watch for so long at least, counted from the beginning."""
        time.sleep(max(0.0, self.since + seconds - time.monotonic()))


def _nothing(scene: Scene) -> None:
    """There is nothing to mend but missing agents."""


def _told_to_go(scene: Scene) -> None:
    scene.agents.agents[scene.carrier.name].terminate(30)
    # Late addresses must not be missed.
    scene.watch_for(1)


def _killed_and_started(scene: Scene) -> None:
    scene.agents.kill(scene.carrier)
    scene.agents.start(scene.carrier)
    scene.watch_for(scene.patience + 1.5)


def _killed(scene: Scene) -> None:
    scene.agents.kill(scene.carrier)


def _remove_what_is_left(scene: Scene) -> None:
    """What a killed daemon left on its host is gone when that host starts anew."""
    left = scene.agents.carried_by(scene.carrier)
    if left and isinstance(scene.agents.kind, Keepalived):
        scene.carrier.namespace.ip(f"addr delete {address}/32 dev {scene.agents.interface}" for address in left)


def _frozen(scene: Scene) -> None:
    kind = scene.agents.kind
    scene.agents.signal(scene.carrier, signal.SIGSTOP)
    time.sleep(3 * kind.ttl if isinstance(kind, Kiwi) else FROZEN)
    scene.agents.signal(scene.carrier, signal.SIGCONT)
    time.sleep(2)


FROZEN = 9.0
"""Seconds for which keepalived is frozen: as long as an agent with the shortest TTL."""


def _dead(scene: Scene) -> None:
    # In this order: a host that is dead does nothing about its cable.
    scene.agents.kill(scene.carrier)
    scene.carrier.cut()


def _boot(scene: Scene) -> None:
    _remove_what_is_left(scene)
    scene.lab.wait_until(lambda: not scene.agents.carried_by(scene.carrier), "the dead host to lose its addresses", 30)
    scene.carrier.plug()


def _cut(scene: Scene) -> None:
    scene.carrier.cut()


def _plug(scene: Scene) -> None:
    scene.carrier.plug()
    time.sleep(3)


def _link_down(scene: Scene) -> None:
    scene.carrier.namespace.ip([f"link set {SECOND_INTERFACE} down"])


def _link_up(scene: Scene) -> None:
    scene.carrier.namespace.ip([f"link set {SECOND_INTERFACE} up"])
    time.sleep(2)


def _interface_deleted(scene: Scene) -> None:
    scene.carrier.namespace.ip([f"link delete {SECOND_INTERFACE}"])


def _interface_made(scene: Scene) -> None:
    port = f"{scene.carrier.name}-2"
    address = ip("192.168.2.0") + int(scene.carrier.address) % 256
    scene.lab.switch.ip(
        [
            f"link add {port} type veth peer name {SECOND_INTERFACE} netns {scene.carrier.namespace.name}",
            f"link set {port} master lan2 up",
        ]
    )
    scene.carrier.namespace.ip([f"addr add {address}/24 dev {SECOND_INTERFACE}", f"link set {SECOND_INTERFACE} up"])
    time.sleep(2)


def _plain(scene: Scene) -> Plain:
    """The servers, where something is to happen that only this kind of them can do."""
    assert isinstance(scene.servers, Plain)
    return scene.servers


def _store_unreachable(scene: Scene) -> None:
    scene.carrier.block(CLUSTER, ETCD_PORT)


def _store_reachable(scene: Scene) -> None:
    scene.carrier.unblock(CLUSTER, ETCD_PORT)
    time.sleep(2)


def _store_down(scene: Scene) -> None:
    scene.servers.kill_store(scene.lab)
    scene.watch_for(scene.patience + 1)
    # Agents may notice before this process does.
    scene.since = time.monotonic()
    scene.returned = scene.servers.start_store_again(scene.lab)


def _store_empty(scene: Scene) -> None:
    plain = _plain(scene)
    plain.kill_store(scene.lab)
    scene.lab.cluster.start_etcd(plain.etcd)
    # For a TTL, agents are wary.
    scene.watch_for(scene.patience + 2)


def _store_paused(scene: Scene) -> None:
    etcd = scene.lab.cluster.etcd
    assert etcd is not None
    etcd.freeze()
    scene.watch_for(scene.patience / 2)
    etcd.resume()
    scene.watch_for(scene.patience * 1.5)


def _api_down(scene: Scene) -> None:
    api = scene.lab.cluster.api
    assert api is not None
    api.kill()
    time.sleep(2)
    _plain(scene).start_api(scene.lab)
    time.sleep(6)


def _address_removed(scene: Scene) -> None:
    scene.concerned = [scene.watched]
    scene.carrier.run("ip", "addr", "delete", f"{scene.watched}/32", "dev", scene.agents.interface)


def _chain_flushed(scene: Scene) -> None:
    before = len(scene.carrier.marks())
    scene.carrier.run("iptables", "-w", "-t", "mangle", "-F", "KUBE-PUBLIC")
    scene.lab.wait_until(lambda: len(scene.carrier.marks()) == before, "the chain to be written again", 30, 0.02)
    scene.again = time.monotonic()


@frozen
class Event:
    """
    Something that happens.

    @ivar strike: does it, and returns when there is nothing more to do but to wait until addresses are carried.
    @ivar moves: whether the addresses leave their host, and are to be waited for.
    @ivar mend: puts right what is broken afterwards; agents that are missing are started after that.
    @ivar mended: what to call that, where the outages that it brings are told, too.
    @ivar interface: where the public addresses go.
    """

    title: str
    strike: Callable[[Scene], None]
    moves: bool = True
    mend: Callable[[Scene], None] = _nothing
    mended: str = ""
    kiwi_only: bool = False
    interface: str = INTERFACE


EVENTS: Mapping[str, Event] = {
    "sigterm": Event("told to go (SIGTERM)", _told_to_go),
    "restart": Event("killed, started again at once", _killed_and_started, moves=False),
    "killed": Event("killed", _killed, mend=_remove_what_is_left),
    "frozen": Event("frozen, then continued", _frozen),
    "dead": Event("host dead and unplugged", _dead, mend=_boot),
    "cable": Event("cable cut", _cut, mend=_plug, mended="  plugged in again"),
    "unreachable": Event(
        "store unreachable for the carrier", _store_unreachable, mend=_store_reachable, kiwi_only=True
    ),
    "down": Event("store down for more than T, back", _store_down, kiwi_only=True),
    "lost": Event("store back without its data", _store_empty, moves=False, kiwi_only=True),
    "paused": Event("store paused for T/2", _store_paused, moves=False, kiwi_only=True),
    "api": Event("Kubernetes API down for 2 s", _api_down, moves=False, kiwi_only=True),
    "removed": Event("address removed by hand", _address_removed),
    "flushed": Event("chain flushed by hand", _chain_flushed, moves=False, kiwi_only=True),
    "link": Event("link down", _link_down, mend=_link_up, mended="  up again", interface=SECOND_INTERFACE),
    "deleted": Event(
        "interface deleted", _interface_deleted, mend=_interface_made, mended="  made again", interface=SECOND_INTERFACE
    ),
}


@frozen
class Outcome:
    """
    What came of an event, in seconds.

    @ivar outage: 0 for none.
    @ivar again: C{None} where nothing had left.
    @ivar concerned: how many addresses the carrier had.
    @ivar outage_of_mending: the outage while what was broken was put right.
    """

    outage: float
    again: float | None
    carriers: int
    concerned: int
    outage_of_mending: float


@define(eq=False)
class Watch:
    """The client's pings."""

    _pinger: Pinger
    _sweeper: Sweeper | None

    def wait_for_answers(self, since: float, limit: float = 60.0) -> None:
        """Wait until every address has answered after a moment."""
        self._pinger.wait_for_reply(since, limit)
        if self._sweeper is not None:
            self._sweeper.wait_for_replies(since, limit)

    def outage(self, since: float, until: float) -> float:
        """The longest outage of any address between two moments, after the later of which all have answered."""
        outages = [0.0]
        if self._pinger.late(since, until):
            outages.append(self._pinger.outage(since, until))
        if self._sweeper is not None:
            outages += [
                self._sweeper.outage(address, since, until) for address in self._sweeper.unanswered(since, until)
            ]
        return max(outages)


@contextmanager
def watching(agents: Fleet) -> Iterator[Watch]:
    """The client pings all addresses meanwhile."""
    many = Sweeper(agents.lab.client.namespace, agents.wanted, SWEEP) if len(agents.wanted) > 1 else None
    with agents.lab.client.ping(agents.wanted[0]) as pinger:
        if many is None:
            yield Watch(pinger, None)
        else:
            with many:
                yield Watch(pinger, many)


def happen(agents: Fleet, event: Event, servers: Servers) -> Outcome:
    """One event, from a steady state to the next one."""
    carrier = agents.carrier(agents.wanted[0])
    with watching(agents) as watch:
        watch.wait_for_answers(time.monotonic())
        scene = Scene(agents, carrier, agents.carried_by(carrier), servers)
        began = scene.since
        event.strike(scene)
        ledger = agents.ledger
        if event.moves:
            agents.lab.wait_until(
                lambda: ledger.catch_up().came(scene.since).keys() >= set(scene.concerned),
                "all to be carried again",
                60,
            )
        watch.wait_for_answers(time.monotonic())
        time.sleep(TAIL)
        struck = time.monotonic()
        watch.wait_for_answers(struck)
        came = ledger.catch_up().came(scene.since)
        again = max((came[address] for address in scene.concerned if address in came), default=scene.again)
        outage = watch.outage(began, struck)
        if event.strike is _told_to_go and len(agents.wanted) > 1:
            outage = max(agents.handed_over(carrier, scene.concerned, began))
        event.mend(scene)
        agents.start_missing()
        agents.wait_until_steady()
        mended = time.monotonic()
        watch.wait_for_answers(mended)
        return Outcome(
            outage=outage,
            again=None if again is None else max(0.0, again - (scene.returned or scene.since)),
            carriers=ledger.most_carriers(scene.concerned, began),
            concerned=len(scene.concerned),
            outage_of_mending=watch.outage(struck, mended),
        )


@define(eq=False)
class Results:
    """
    What was measured so far.

    @ivar outcomes: by number of addresses, event and kind.
    @ivar failures: by the same, why there are no more of them.
    """

    log: TextIO | None
    outcomes: dict[tuple[int, str, str], list[Outcome]] = field(factory=lambda: defaultdict(list), init=False)
    failures: dict[tuple[int, str, str], str] = field(factory=dict, init=False)

    def add(self, number: int, event: str, kind: str, outcome: Outcome) -> None:
        self.outcomes[number, event, kind].append(outcome)
        if self.log is not None:
            about = {"addresses": number, "event": event, "kind": kind}
            print(json.dumps({**about, **asdict(outcome)}), file=self.log, flush=True)

    def tables(self, number: int, kinds: Sequence[Kind]) -> list[Table]:
        """The tables for a number of addresses."""
        outages, agains = [], []
        for name, event in EVENTS.items():
            measured = [self.outcomes.get((number, name, kind.name), []) for kind in kinds]
            failed = [(number, name, kind.name) in self.failures for kind in kinds]
            if not any(measured) and not any(failed):
                continue
            outages.append([event.title, *map(_outages, measured, failed)])
            if event.mended:
                outages.append([event.mended, *(_pair([o.outage_of_mending for o in some]) for some in measured)])
            agains.append([event.title, *map(_agains, measured, failed)])
        columns = ["", *(kind.name for kind in kinds)]
        many = _many(number)
        return [
            Table(f"{many}: the outage, median / worst", columns, outages),
            Table(f"{many}: carried again after, median / worst (carriers at one instant)", columns, agains),
        ]

    def remarks(self) -> list[str]:
        """What else there is to be known."""
        lines = []
        for (number, event, kind), why in self.failures.items():
            done = len(self.outcomes.get((number, event, kind), []))
            lines.append(f"{kind}, {_many(number)}, {EVENTS[event].title}: failed after {done} runs: {why}")
        for number in sorted({number for number, _, _ in self.outcomes if number > 1}):
            spread = [
                outcome.concerned
                for (there, event, kind), some in self.outcomes.items()
                if there == number and EVENTS[event].strike is not _address_removed and kind.startswith("Kiwi")
                for outcome in some
            ]
            if spread:
                lines.append(f"Of {number} addresses, Kiwi's carrier had {min(spread)} to {max(spread)}.")
        runs = defaultdict(set)
        for (number, event, kind), some in self.outcomes.items():
            runs[len(some)].add(f"{event} ({kind}, {number})")
        usual = max(runs, key=lambda count: len(runs[count]), default=0)
        lines += [f"{count} runs: {', '.join(sorted(runs[count]))}." for count in sorted(runs) if count != usual]
        lines.append(f"{usual} runs of each other." if len(runs) > 1 else f"{usual} runs of each.")
        return lines


def _many(number: int) -> str:
    return f"{number} addresses" if number > 1 else "1 address"


def _pair(seconds: Sequence[float]) -> str:
    """Median and worst of some times."""
    if not seconds:
        return ""
    median, worst = statistics.median(seconds), max(seconds)
    if worst == 0:
        return "none"
    if worst < 1:
        return f"{median * 1000:.0f} / {worst * 1000:.0f} ms"
    return f"{median:.2f} / {worst:.2f} s"


def _outages(some: Sequence[Outcome], failed: bool) -> str:
    return _pair([outcome.outage for outcome in some]) or ("failed" if failed else "")


def _agains(some: Sequence[Outcome], failed: bool) -> str:
    if not some:
        return "failed" if failed else ""
    agains = [outcome.again for outcome in some if outcome.again is not None]
    return f"{_pair(agains) or '-'} ({max(outcome.carriers for outcome in some)})"


SLOW = ("frozen", "lost", "paused", "api")
"""Events that take long, and mostly come to the same."""


@frozen
class Choice:
    """
    What to measure.

    @ivar runs: of each event; C{None} for as many as it takes to say something about that one.
    """

    servers: Servers
    events: Sequence[str]
    kinds: Sequence[Kind]
    numbers: Sequence[int]
    runs: int | None

    def runs_of(self, event: str, kind: Kind, number: int) -> int:
        if self.runs is not None:
            return self.runs
        if event == "sigterm" and number == 1:
            return 50 if kind == Kiwi(10, self.servers) else 5
        return (3 if number == 1 else 2) - (event in SLOW)


def measure(lab: Lab, choice: Choice, results: Results) -> None:
    """All events, for each kind and each number of addresses."""
    for number in choice.numbers:
        wanted = addresses(number)
        for kind in choice.kinds:
            servers = kind.servers if isinstance(kind, Kiwi) else choice.servers
            servers.publish(lab, wanted)
            fit = [name for name in choice.events if isinstance(kind, Kiwi) or not EVENTS[name].kiwi_only]
            for interface in (INTERFACE, SECOND_INTERFACE):
                names = [name for name in fit if EVENTS[name].interface == interface]
                agents = None
                for name in names:
                    note(f"{time.strftime('%H:%M:%S')} {kind.name}, addresses: {number}, {EVENTS[name].title}")
                    try:
                        for _ in range(choice.runs_of(name, kind, number)):
                            agents = agents or steady_fleet(lab, kind, wanted, interface)
                            outcome = happen(agents, EVENTS[name], servers)
                            note(f"    {outcome}")
                            results.add(number, name, kind.name, outcome)
                    except Exception as error:  # noqa: BLE001 what was measured so far must not be lost
                        note(f"{type(error).__name__}: {error}\n{lab.story()}")
                        results.failures[number, name, kind.name] = (str(error).splitlines() or [repr(error)])[0]
                        agents = None
                        servers.restart(lab)


def main() -> None:
    parser = options("Measures outages, and compares them with keepalived's.", 0)
    parser.set_defaults(runs=None)
    parser.add_argument("--rows", default=",".join(EVENTS), help="the events (default: %(default)s)")
    parser.add_argument("--addresses", default="1,500", help="how many there are (default: %(default)s)")
    parser.add_argument("--ttl", default="10,3", help="of Kiwi's claims (default: %(default)s)")
    parser.add_argument("--advert", default="1,0.1", help="keepalived's interval (default: %(default)s)")
    parser.add_argument("--only", choices=["kiwi", "keepalived"], help="do not compare")
    parser.add_argument("--log", type=Path, help="a file to which each run is appended as a line of JSON")
    chosen = parser.parse_args()
    events = chosen.rows.split(",")
    if not set(events) <= EVENTS.keys():
        parser.error(f"--rows: give some of {','.join(EVENTS)}")
    servers = Plain(chosen.etcd)
    kinds: list[Kind] = []
    if chosen.only != "keepalived":
        kinds += [Kiwi(int(ttl), servers) for ttl in chosen.ttl.split(",")]
    if chosen.only != "kiwi":
        kinds += [Keepalived(float(advert)) for advert in chosen.advert.split(",")]
        if shutil.which("keepalived") is None:
            parser.error("there is no keepalived; install it, or give --only kiwi")
    numbers = [int(number) for number in chosen.addresses.split(",")]
    choice = Choice(servers, events, kinds, numbers, chosen.runs)
    log = chosen.log.open("a") if chosen.log else None
    results = Results(log)
    try:
        with bench_lab(servers) as lab:
            measure(lab, choice, results)
    finally:
        tables = [table for number in numbers for table in results.tables(number, kinds) if table.rows]
        show_all(tables, chosen.rst, ["\n".join(results.remarks())])
        if log is not None:
            log.close()


if __name__ == "__main__":
    main()
