"""
Thousands of Services with an address each, over three agents, with claims in etcd v3 and marks in nftables.

All Services are there before, with two ports each. The parts, for each number of addresses:

cold     Three agents start. The time from the start of the first one until the last address has answered the client.
changed  One Service after the other gets another address. The time from the request that changes it until the new
         address answers the client, which pings it every 2 ms.
steady   The three agents are watched when nothing happens any more but what happens all the time: the memory of each
         one, and the processor time that it and the processes that it started have taken, per second. The same of etcd.
dead     The carrier of the first address is dead: killed, and its cable pulled out. The time from then until the last
         of the addresses that it had has answered the client.
alone    A single agent carries as many addresses as "--alone" says, and is watched in the same way.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

from attrs import frozen

from kiwi.model import Address
from tests.lab.laboratory import INTERFACE, Lab, service
from tests.lab.processes import Process
from tests.lab.waiting import Impatient

from .coldstart import cold_start
from .common import FIRST, Table, addresses, bench_lab, milliseconds, note, options, percentile, renew, show_all
from .fleet import Kiwi, steady_fleet
from .ledger import carried_once, ledger_of
from .servers import Etcd3
from .thousand import bring_back, sweep
from .usage import Usage

COLUMNS = ["part", "what", "addresses", "runs", "median", "worst", "goal"]
LATE_ROUNDS = 75.0
"""Seconds until addresses are announced all together, and after which nothing is new any more."""

Row = list[str]


@frozen
class Bench:
    """What the parts are measured with."""

    lab: Lab
    servers: Etcd3
    wanted: Sequence[Address]
    ttl: int
    runs: int
    seconds: float

    @property
    def kind(self) -> Kiwi:
        return Kiwi(self.ttl, self.servers)

    def row(self, part: str, what: str, values: Sequence[float], goal: str) -> Row:
        shown = [milliseconds(statistics.median(values)), milliseconds(max(values))]
        return [part, what, str(len(self.wanted)), str(len(values)), *shown, goal]


def cold(bench: Bench) -> Iterator[Row]:
    values = []
    for _ in range(bench.runs):
        values.append(cold_start(bench.lab, bench.kind, bench.wanted))
        note(f"    {milliseconds(values[-1])}")
    yield bench.row("cold", "start until the last one answers", values, "< 10 s")


def changed(bench: Bench) -> Iterator[Row]:
    steady_fleet(bench.lab, bench.kind, bench.wanted)
    values = []
    for number in range(10 * bench.runs):
        address = FIRST + (len(bench.wanted) + number)
        with bench.lab.client.ping(address) as pinger:
            time.sleep(0.2)
            start = time.monotonic()
            # The same two ports as before.
            bench.lab.cluster.replace(service(f"web-{number}", [address], [(8000, "TCP"), (8001, "TCP")]))
            values.append(pinger.wait_for_reply().received - start)
    note(f"    {milliseconds(statistics.median(values))}")
    yield bench.row("changed", "one Service, until it answers (p50)", values, "< 60 ms")
    ninety = percentile(values, 90)
    yield ["changed", "the same, p90", str(len(bench.wanted)), str(len(values)), milliseconds(ninety), "", ""]
    bench.servers.publish(bench.lab, bench.wanted, 2)


def watched(bench: Bench, agents: Sequence[Process], part: str, goals: Sequence[str]) -> Iterator[Row]:
    """What agents, and etcd, take per second in a while in which nothing happens."""
    etcd = bench.lab.cluster.etcd
    assert etcd is not None
    time.sleep(LATE_ROUNDS)
    processes = [*agents, etcd]
    before, began = [Usage.of(process) for process in processes], time.monotonic()
    time.sleep(bench.seconds)
    after, passed = [Usage.of(process) for process in processes], time.monotonic() - began
    *shares, of_etcd = ((late.cpu - early.cpu) / passed for early, late in zip(before, after, strict=True))
    memory = [usage.memory for usage in after[:-1]]
    most = max(usage.most_memory for usage in after[:-1])

    def figure(what: str, value: str, worst: str = "", goal: str = "") -> Row:
        return [part, what, str(len(bench.wanted)), "1", value, worst, goal]

    share, size = statistics.median(shares), statistics.median(memory)
    yield figure("share of a core of an agent", f"{share:.2%}", f"{max(shares):.2%}", goals[0])
    yield figure("memory of an agent", f"{size:.0f} MB", f"{max(memory):.0f} MB", goals[1])
    yield figure("the same, at its most", "", f"{most:.0f} MB")
    yield figure("share of a core of etcd", f"{of_etcd:.2%}")


def steady(bench: Bench) -> Iterator[Row]:
    agents = steady_fleet(bench.lab, bench.kind, bench.wanted)
    yield from watched(bench, list(agents.agents.values()), "steady", ("< 5%", "< 120 MB"))


def dead(bench: Bench) -> Iterator[Row]:
    agents = steady_fleet(bench.lab, bench.kind, bench.wanted)
    values, most = [], 0
    for _ in range(bench.runs):
        victim = agents.carrier(bench.wanted[0])
        concerned = agents.carried_by(victim)
        most = max(most, len(concerned))
        with sweep(bench.lab, concerned) as sweeper:
            sweeper.wait_for_replies(time.monotonic())
            died = time.monotonic()
            agents.kill(victim)
            victim.cut()
            time.sleep(0.5)
            values.append(sweeper.wait_for_replies(died + 0.1, bench.ttl + 30) - died)
            note(f"    {milliseconds(values[-1])} for {len(concerned)}")
        bring_back(agents, victim)
    yield bench.row("dead", f"host dead, until the last of {most} answers", values, f"< {bench.ttl + 2} s")


def alone(bench: Bench) -> Iterator[Row]:
    lab = bench.lab
    renew(lab, bench.wanted)
    bench.kind.begin_anew(lab)
    agent = bench.kind.start(lab, lab.hosts[0], bench.wanted, INTERFACE)
    ledger = ledger_of(lab)
    lab.wait_until(lambda: carried_once(ledger.catch_up(), bench.wanted), "one agent to carry all", 60, 0.05)
    yield from watched(bench, [agent], "alone", ("< 2%", "< 80 MB"))


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "cold": cold,
    "changed": changed,
    "steady": steady,
    "dead": dead,
    "alone": alone,
}


def main() -> None:
    parser = options("Measures thousands of addresses over three agents.", 3)
    parser.add_argument("--addresses", default="500,5000", help="one Service each (default: %(default)s)")
    parser.add_argument("--alone", type=int, default=1000, help="addresses of a single agent (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="which to measure (default: %(default)s)")
    parser.add_argument("--ttl", type=int, default=10, help="of the claims, in seconds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="how long agents are watched (default: %(default)g)")
    parser.add_argument("--firewall", default="nftables", help="nftables, iptables or none (default: %(default)s)")
    chosen = parser.parse_args()
    parts = chosen.parts.split(",")
    if not set(parts) <= PARTS.keys():
        parser.error(f"--parts: give some of {','.join(PARTS)}")
    servers = Etcd3(chosen.etcd, chosen.firewall)
    rows: list[Row] = []
    failures: list[str] = []
    numbers = [(int(number), part) for part in parts if part != "alone" for number in chosen.addresses.split(",")]
    numbers += [(chosen.alone, part) for part in parts if part == "alone"]
    try:
        with bench_lab(servers) as lab:
            for number, part in numbers:
                note(f"Part {part}; addresses: {number}.")
                wanted = addresses(number)
                servers.publish(lab, wanted, 2)
                try:
                    for row in PARTS[part](Bench(lab, servers, wanted, chosen.ttl, chosen.runs, chosen.seconds)):
                        note(" | ".join(row))
                        rows.append(row)
                except Impatient as error:
                    note(str(error)[:2000])
                    failures.append(f"Part {part} with {number} addresses failed: {str(error).splitlines()[0]}")
                    servers.restart(lab)
    finally:
        title = f"Claims in etcd v3, firewall: {chosen.firewall}, T = {chosen.ttl} s"
        show_all([Table(title, COLUMNS, rows)], chosen.rst, failures)


if __name__ == "__main__":
    main()
