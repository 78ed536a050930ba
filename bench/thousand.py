"""
A thousand addresses with two rules each.

Each is a Service of its own, with two ports; all Services are there before. The parts:

a  One agent starts. The time from its start to the first answer of the last address to the client's pings.
b  Three agents; the carrier of a third of the addresses is dead: killed, and its cable pulled out. The time from then
   until the last address of that third has answered the client.
c  Three agents; the carrier of the first address is told to go (SIGTERM). The time from the signal until the last
   address is on another host, and the outage of each address: from its removal, as its old host's kernel tells, until
   the client has received the announcement of its new one.
d  Etcd is killed, and started again with the same data when the claims have expired. The time from etcd's first answer
   until all addresses are carried at once.
e  One agent that holds all addresses is watched: its memory, and the processor time that it and the processes that it
   started have taken, per second. The same of etcd, and the requests to change keys that it answered.
f  300 addresses on three agents: how many each one has, and how those of one that dies spread over the two others.

Addresses on hosts are what the kernels tell by netlink; pings go to each address that is concerned every 0.1 s, or less
often where that would be more than 5,000 packets per second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

from attrs import frozen

from kiwi.model import Address
from tests.lab.laboratory import CLUSTER, ETCD_PORT, INTERFACE, Host, Lab
from tests.lab.pinging import Sweeper, first_replies
from tests.lab.waiting import Impatient

from .common import (
    Table,
    addresses,
    bench_lab,
    milliseconds,
    note,
    options,
    renew,
    show_all,
)
from .fleet import Fleet, Kiwi, steady_fleet
from .ledger import carried_once, ledger_of
from .servers import Plain
from .usage import Usage

PACKETS_PER_SECOND = 5000
COLUMNS = ["part", "what", "T", "runs", "median", "worst", "goal"]

Row = list[str]


@frozen
class Bench:
    """What the parts are measured with."""

    lab: Lab
    servers: Plain
    wanted: Sequence[Address]
    ttls: Sequence[int]
    runs: int
    seconds: float

    def kind(self, ttl: int) -> Kiwi:
        return Kiwi(ttl, self.servers)

    def begin_anew(self, ttl: int) -> Kiwi:
        """The agents to start, of which none runs yet."""
        renew(self.lab, self.wanted)
        kind = self.kind(ttl)
        kind.begin_anew(self.lab)
        return kind

    def told(self, seconds: float) -> float:
        """Tell the one who waits, and whoever reads what is left of a measurement that failed."""
        note(f"    {milliseconds(seconds)}")
        return seconds


def sweep(lab: Lab, concerned: Sequence[Address]) -> Sweeper:
    """Pings to all of the addresses, no more of them than the machine bears."""
    return Sweeper(lab.client.namespace, concerned, max(0.1, len(concerned) / PACKETS_PER_SECOND))


def durations(part: str, what: str, ttl: int, values: Sequence[float], goal: str) -> Row:
    return [
        *(part, what, f"{ttl} s", str(len(values))),
        *(milliseconds(statistics.median(values)), milliseconds(max(values)), goal),
    ]


def cold_start(bench: Bench) -> Iterator[Row]:
    lab, ttl = bench.lab, 10
    values = []
    for _ in range(bench.runs):
        kind = bench.begin_anew(ttl)
        began = time.monotonic()
        kind.start(lab, lab.hosts[0], bench.wanted, INTERFACE)
        answered = first_replies(lab.client.namespace, bench.wanted, 60)
        if len(answered) < len(bench.wanted):
            raise Impatient(f"{len(bench.wanted) - len(answered)} addresses never answered\n{lab.story()}")
        values.append(bench.told(max(answered.values()) - began))
    yield durations("a", "cold start of one agent, until the last one answers", ttl, values, "< 4 s")


def dead(bench: Bench) -> Iterator[Row]:
    for ttl in bench.ttls:
        values = []
        agents = steady_fleet(bench.lab, bench.kind(ttl), bench.wanted)
        for _ in range(bench.runs):
            victim = agents.carrier(bench.wanted[0])
            concerned = agents.carried_by(victim)
            with sweep(bench.lab, concerned) as sweeper:
                sweeper.wait_for_replies(time.monotonic())
                died = time.monotonic()
                agents.kill(victim)
                victim.cut()
                time.sleep(0.5)
                values.append(bench.told(sweeper.wait_for_replies(died + 0.1, ttl + 30) - died))
            bring_back(agents, victim)
        yield durations("b", "carrier of a third dead, until the last one answers", ttl, values, f"< {ttl + 1.5:g} s")


def bring_back(agents: Fleet, victim: Host) -> None:
    """Have an agent on a host again that was cut off from the others."""
    agents.lab.wait_until(lambda: not agents.carried_by(victim), f"{victim.name} to lose its addresses")
    victim.plug()
    agents.start(victim)
    agents.wait_until_steady()


def told_to_go(bench: Bench) -> Iterator[Row]:
    ttl = max(bench.ttls)
    elsewhere: list[float] = []
    outages: list[float] = []
    most = 0
    for _ in range(bench.runs):
        # What has moved does not move back, and so each fleet has even shares only once.
        agents = steady_fleet(bench.lab, bench.kind(ttl), bench.wanted)
        victim = agents.carrier(bench.wanted[0])
        concerned = agents.carried_by(victim)
        most = max(most, len(concerned))
        told = time.monotonic()
        process = agents.agents[victim.name]
        process.terminate(30)
        agents.wait_until_carried(bench.wanted)
        came = agents.ledger.came(told, victim.name)
        elsewhere.append(bench.told(max(came[address] for address in concerned) - told))
        time.sleep(0.5)
        outages += agents.handed_over(victim, concerned, told)
    yield durations("c", f"told to go ({most} at most), until the last one is elsewhere", ttl, elsewhere, "< 1 s")
    yield durations("c", "the same, outage of each single address", ttl, outages, "")


def store_down(bench: Bench) -> Iterator[Row]:
    for ttl in bench.ttls:
        values = []
        agents = steady_fleet(bench.lab, bench.kind(ttl), bench.wanted)
        for _ in range(bench.runs):
            bench.servers.kill_store(bench.lab)
            time.sleep(ttl + 1)
            left = sum(bool(agents.ledger.catch_up().carriers[address]) for address in bench.wanted)
            if left:
                raise Impatient(f"{left} addresses outlast the claims")
            back = bench.servers.start_store_again(bench.lab)
            agents.wait_until_carried(bench.wanted)
            values.append(bench.told(agents.ledger.last_move() - back))
            agents.wait_until_steady()
        yield durations("d", "store back after it was down, until all are carried", ttl, values, "< 3 s")


def requests(lab: Lab) -> int:
    """How many requests to change a key etcd has carried out or refused."""
    counts = lab.client.request("GET", CLUSTER, ETCD_PORT, "/v2/stats/store").json()
    return sum(count for name, count in counts.items() if name.endswith(("Success", "Fail")) and "gets" not in name)


def steady(bench: Bench) -> Iterator[Row]:
    lab, ttl = bench.lab, 10
    etcd = lab.cluster.etcd
    assert etcd is not None
    agent = bench.begin_anew(ttl).start(lab, lab.hosts[0], bench.wanted, INTERFACE)
    ledger = ledger_of(lab)
    lab.wait_until(lambda: carried_once(ledger.catch_up(), bench.wanted), "one agent to carry all", 60, 0.05)
    # The announcements of the first seconds are not what goes on all the time.
    time.sleep(max(ttl, 8))
    before, etcd_before, asked, began = Usage.of(agent), Usage.of(etcd), requests(lab), time.monotonic()
    time.sleep(bench.seconds)
    after, etcd_after, answered, passed = Usage.of(agent), Usage.of(etcd), requests(lab), time.monotonic() - began

    def figure(what: str, value: str, worst: str = "", goal: str = "") -> Row:
        return ["e", what, f"{ttl} s", "1", value, worst, goal]

    memory, most = (f"{usage:.0f} MB" for usage in (after.memory, after.most_memory))
    yield figure("one agent with all: memory now, and at its most", memory, most, "< 120 MB")
    yield figure("the same: share of a core", f"{(after.cpu - before.cpu) / passed:.1%}", goal="< 25%")
    yield figure("the same: etcd's share of a core", f"{(etcd_after.cpu - etcd_before.cpu) / passed:.1%}")
    yield figure("the same: requests for changes to etcd per second", f"{(answered - asked) / passed:.0f}")


def shares(bench: Bench) -> Iterator[Row]:
    lab, ttl = bench.lab, min(bench.ttls)
    wanted = bench.wanted[: len(bench.wanted) * 3 // 10]
    bench.servers.publish(lab, wanted, 2)

    def figure(what: str, counts: Sequence[int], goal: str = "") -> Row:
        return ["f", what, f"{ttl} s", "1", " ".join(map(str, counts)), "", goal]

    agents = steady_fleet(lab, bench.kind(ttl), wanted)
    third = len(wanted) // 3
    counts = [len(agents.carried_by(host)) for host in lab.hosts]
    yield figure(f"{len(wanted)} addresses spread over three agents", counts, f"{third} each, +-20%")
    victim, *others = lab.hosts
    before = [len(agents.carried_by(host)) for host in others]
    agents.kill(victim)
    victim.cut()
    lab.wait_until(lambda: not agents.carried_by(victim), f"{victim.name} to lose its addresses", ttl + 10)
    agents.wait_until_carried(wanted)
    gained = [len(agents.carried_by(host)) - had for host, had in zip(others, before, strict=True)]
    yield figure("one of them dead: what the two others got of its share", gained)


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "a": cold_start,
    "b": dead,
    "c": told_to_go,
    "d": store_down,
    "e": steady,
    "f": shares,
}


def main() -> None:
    parser = options("Measures a thousand addresses.", 3)
    parser.add_argument("--addresses", type=int, default=1000, help="one Service each (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="which to measure (default: %(default)s)")
    parser.add_argument("--ttl", default="3,10", help="of the claims in parts b and d (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="how long part e lasts (default: %(default)g)")
    chosen = parser.parse_args()
    parts = chosen.parts.split(",")
    if not set(parts) <= PARTS.keys():
        parser.error(f"--parts: give some of {','.join(PARTS)}")
    wanted, servers = addresses(chosen.addresses), Plain(chosen.etcd)
    rows: list[Row] = []
    failures: list[str] = []
    try:
        with bench_lab(servers) as lab:
            bench = Bench(
                lab, servers, wanted, [int(ttl) for ttl in chosen.ttl.split(",")], chosen.runs, chosen.seconds
            )
            for part in parts:
                note(f"Part {part}, {chosen.runs} times; addresses: {chosen.addresses}.")
                servers.publish(lab, wanted, 2)
                try:
                    for row in PARTS[part](bench):
                        note(" | ".join(row))
                        rows.append(row)
                except Exception as error:  # noqa: BLE001 what was measured so far must not be lost
                    note(f"{error}\n{lab.story()}")
                    failures.append(f"Part {part} failed: {(str(error).splitlines() or [repr(error)])[0]}")
                    servers.restart(lab)
    finally:
        table = Table(f"Addresses: {chosen.addresses}, rules: {2 * chosen.addresses}", COLUMNS, rows)
        show_all([table], chosen.rst, failures)


if __name__ == "__main__":
    main()
