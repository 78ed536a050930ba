"""
What many agents with their claims in Leases ask of a real API server, when nothing happens and when one of them dies.

The agents are whole ones, with hosts in memory, in a few processes (L{bench.agents}); their way to the server is as in
a cluster: TLS with a pool of connections for each, a service account's token, and the rights that C{deploy/} gives it.
Requests are counted by the server itself (C{apiserver_request_total}), which counts a watch when it ends. It also
counts how often it looks for its own Service (C{GET services}), which no agent does.

When all addresses are claimed and nothing happens, that is watched for a while. Then one agent, in a process of its
own, is killed, and it is watched when the others have claimed its addresses, as C{acquireTime} of the claims says.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any

from attrs import frozen

from tests.fakes.apiserver_process import Loopback, RealAPIServer
from tests.lab.laboratory import CHECKOUT
from tests.lab.processes import Process
from tests.lab.waiting import wait_until

from .common import NETWORK, Table, addresses, milliseconds, note, show_all
from .servers import LEASES, account_token, known_agents, put_services, services_of, set_up
from .usage import Usage

RESOURCES = ("leases", "services", "endpointslices", "nodes")
"""What agents ask for."""

BATCH = 20
"""Services that are created at once."""

MARGIN = 6
"""Seconds after the TTL for which a takeover is watched."""

_METRIC = re.compile(
    r"(apiserver_request_total|apiserver_watch_events_total|apiserver_watch_events_sizes_sum)\{(.*)\} "
)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@frozen
class Counts:
    """
    What a server has done so far.

    @ivar when: in seconds of L{time.monotonic}.
    @ivar requests: by verb and resource.
    @ivar events: sent to watches.
    @ivar bytes: of these events.
    @ivar cpu: processor seconds of the server, of its etcd, and of all agents.
    """

    when: float
    requests: Counter[str]
    events: float
    bytes: float
    cpu: tuple[float, float, float]

    @classmethod
    def of(cls, server: RealAPIServer, agents: Sequence[Process]) -> Counts:
        requests: Counter[str] = Counter()
        sent: Counter[str] = Counter()
        for line in server.request("GET", "/metrics").body.decode().splitlines():
            found = _METRIC.match(line)
            if found is None:
                continue
            labels, value = dict(_LABEL.findall(found[2])), float(line.rpartition(" ")[2])
            if found[1] != "apiserver_request_total":
                sent[found[1]] += int(value)
            elif labels["resource"] in RESOURCES:
                requests[f"{labels['verb']} {labels['resource']}"] += int(value)
        etcd, api = (Usage.of(process).cpu for process in server.processes)
        return cls(
            time.monotonic(),
            requests,
            sent["apiserver_watch_events_total"],
            sent["apiserver_watch_events_sizes_sum"],
            (api, etcd, sum(Usage.of(process).cpu for process in agents if process.status is None)),
        )


def claims(server: RealAPIServer) -> dict[str, Mapping[str, Any]]:
    """What each claim says, by address."""
    items = server.ask("GET", LEASES)["items"]
    return {item["metadata"]["name"]: item["spec"] for item in items if item["metadata"]["name"][0].isdigit()}


def is_claimed(server: RealAPIServer, number: int) -> bool:
    """Whether so many addresses are claimed."""
    return len(claims(server)) == number


@contextmanager
def running(server: RealAPIServer, groups: Sequence[Sequence[str]], ttl: int) -> Iterator[list[Process]]:
    """Agents with these ids run, each group of them in a process."""
    place = Loopback(server.directory)
    processes = []
    try:
        for number, ids in enumerate(groups):
            command = [
                *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "bench.agents", ",".join(ids)),
                *("-r", NETWORK, "--ttl", str(ttl), "--store", "kubernetes"),
                *("--kubeconfig", str(server.kubeconfig(token=account_token(server)))),
            ]
            processes.append(Process.start(f"agents-{number}", command, place.directory, {}, CHECKOUT))
        yield processes
    finally:
        for process in processes:
            process.kill()


def steady_table(before: Counts, after: Counts, agents: int, number: int) -> Table:
    passed = after.when - before.when
    asked = after.requests - before.requests
    rows = [[kind, f"{count / passed:.2f}", f"{count / passed / agents:.3f}"] for kind, count in sorted(asked.items())]
    total = sum(asked.values()) / passed
    rows.append(["all requests (goal: less than 1 per agent)", f"{total:.1f}", f"{total / agents:.2f}"])
    for what, sent in (
        ("events to watches", after.events - before.events),
        ("kB of these", (after.bytes - before.bytes) / 1000),
    ):
        rows.append([what, f"{sent / passed:.0f}", f"{sent / passed / agents:.1f}"])
    api, etcd, own = (100 * (now - then) / passed for then, now in zip(before.cpu, after.cpu, strict=True))
    rows += [["% of a core: API server", f"{api:.1f}", ""], ["% of a core: its etcd", f"{etcd:.1f}", ""]]
    rows.append(["% of a core: agents", f"{own:.0f}", f"{own / agents:.2f}"])
    title = f"Nothing happens for {passed:.0f} s; agents: {agents}, addresses: {number}"
    return Table(title, ["", "per second", "per agent"], rows)


def claimed_again(server: RealAPIServer, lost: Sequence[str], dead: str) -> list[float]:
    """When each of these addresses was claimed by another one, in seconds since the epoch; nothing unless all were."""
    there = claims(server)
    if any(address not in there or there[address]["holderIdentity"] == dead for address in lost):
        return []
    return sorted(
        datetime.fromisoformat(there[address]["acquireTime"].replace("Z", "+00:00")).timestamp() for address in lost
    )


def takeover(
    server: RealAPIServer, victim: Process, dead: str, others: Sequence[Process], ttl: int, usual: float
) -> Table:
    """
    Kill one, and watch what the others do.

    @param usual: requests per second while nothing happens.
    """
    lost = [address for address, spec in claims(server).items() if spec["holderIdentity"] == dead]
    note(f"{dead}, which is killed, has {len(lost)} addresses.")
    counts = [Counts.of(server, others)]
    died = time.time()
    victim.kill()
    while counts[-1].when - counts[0].when < ttl + MARGIN:
        time.sleep(max(0.0, counts[0].when + len(counts) - time.monotonic()))
        counts.append(Counts.of(server, others))
    # What is asked from here on is not counted.
    again = wait_until(lambda: claimed_again(server, lost, dead), "the addresses to be claimed again", 60, interval=1)
    during, passed = counts[-1].requests - counts[0].requests, counts[-1].when - counts[0].when
    steps = [(later.when - one.when, one, later) for one, later in pairwise(counts)]
    peak = max(sum((later.requests - one.requests).values()) / seconds for seconds, one, later in steps)
    busiest = max((later.cpu[0] - one.cpu[0]) / seconds for seconds, one, later in steps)
    rows = [
        ["addresses that it had", str(len(lost))],
        ["the first of them claimed again after", milliseconds(again[0] - died)],
        ["the last of them claimed again after", milliseconds(again[-1] - died)],
        [f"requests within {passed:.0f} s", str(sum(during.values()))],
        *([f"  {kind}", str(count)] for kind, count in sorted(during.items())),
        ["as many as without a death", f"{usual * passed:.0f}"],
        ["most requests in a second", f"{peak:.0f}"],
        ["API server in its busiest second", f"{busiest:.0%} of a core"],
    ]
    return Table("One agent is killed", ["", "figure"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the load of many agents with Leases on a real API server.")
    parser.add_argument("--rst", action="store_true", help="print the tables for a page of documentation")
    parser.add_argument("--agents", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--addresses", type=int, default=1000, help="one Service each (default: %(default)s)")
    parser.add_argument("--ttl", type=int, default=10, help="of the agents (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="how long to watch (default: %(default)g)")
    parser.add_argument("--processes", type=int, default=2, help="for all agents but one (default: %(default)s)")
    chosen = parser.parse_args()
    ids = [f"agent-{number}" for number in range(1, chosen.agents + 1)]
    dead, *others = ids
    groups = [[dead], *(others[first :: chosen.processes] for first in range(chosen.processes))]
    tables = []
    with RealAPIServer.on_loopback() as server:
        set_up(server, ids)
        with running(server, groups, chosen.ttl) as processes:

            def wait_for(condition: Callable[[], bool], what: str) -> None:
                wait_until(condition, what, 600, lambda: "\n".join(each.story() for each in processes), 0.2)

            # Those that start first would claim everything.
            note(f"Starting {chosen.agents} agents.")
            wait_for(lambda: known_agents(server) >= set(ids), "all agents to be known")
            time.sleep(chosen.ttl)
            note(f"Creating {chosen.addresses} Services.")
            began = time.monotonic()
            services = services_of(addresses(chosen.addresses), 1)
            # One machine is too slow for all agents if all of them hear of everything at once.
            for there in range(BATCH, len(services) + BATCH, BATCH):
                put_services(server, services[:there])
                wait_for(partial(is_claimed, server, len(services[:there])), "all addresses to be claimed")
            note(f"All are claimed after {time.monotonic() - began:.0f} s.")
            # What has just been started is busier than what runs.
            time.sleep(2 * chosen.ttl)
            before = Counts.of(server, processes)
            time.sleep(chosen.seconds)
            after = Counts.of(server, processes)
            tables.append(steady_table(before, after, chosen.agents, chosen.addresses))
            note(tables[-1].plain())
            usual = sum((after.requests - before.requests).values()) / (after.when - before.when)
            tables.append(takeover(server, processes[0], dead, processes[1:], chosen.ttl, usual))
    show_all(tables, chosen.rst)


if __name__ == "__main__":
    main()
