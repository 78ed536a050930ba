"""
How long it takes from the start of the agents until the last of many addresses answers.

The Services are there before. The clock starts before the first of three agents is started, one right after the other,
and ends when the last address has answered the client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address

from tests.lab.laboratory import Host, Lab, service
from tests.lab.pinging import first_replies
from tests.lab.processes import Process
from tests.lab.waiting import Impatient

from . import keepalived
from .common import SPREAD, Table, addresses, bench_lab, note, options, show, spread, start_agent

LIMIT = 120.0

Start = Callable[[Lab, Host], Process]


def cold_start(lab: Lab, start: Start, wanted: Sequence[IPv4Address]) -> float:
    """Seconds until all addresses have answered."""
    began = time.monotonic()
    for host in lab.hosts:
        start(lab, host)
    answered = first_replies(lab.client.namespace, wanted, LIMIT)
    if len(answered) < len(wanted):
        raise Impatient(f"{len(wanted) - len(answered)} addresses never answered\n{lab.story()}")
    return max(answered.values()) - began


def measure(etcd: str, start: Start, wanted: Sequence[IPv4Address], ports: int, runs: int) -> list[float]:
    """Seconds of each of so many cold starts, each with new hosts and an empty claim store."""
    durations = []
    with bench_lab(etcd) as lab:
        for number, address in enumerate(wanted):
            lab.cluster.create(service(f"web-{number}", [address], [(8000 + port, "TCP") for port in range(ports)]))
        for _ in range(runs):
            durations.append(cold_start(lab, start, wanted))
            lab.renew()
            lab.cluster.clear_claims()
    return durations


def main() -> None:
    parser = options("Measures a cold start.", 5)
    parser.add_argument("--addresses", type=int, default=500, help="one Service each (default: %(default)s)")
    parser.add_argument("--ports", type=int, default=2, help="of each Service (default: %(default)s)")
    parser.add_argument("--keepalived", action="store_true", help="measure keepalived, too, in the same lab")
    chosen = parser.parse_args()
    wanted = addresses(chosen.addresses)
    rules = chosen.addresses * chosen.ports
    note(f"Starting three agents {chosen.runs} times; addresses: {chosen.addresses}, rules: {rules}.")
    rows = [["Kiwi", *spread(measure(chosen.etcd, start_agent, wanted, chosen.ports, chosen.runs))]]
    if chosen.keepalived:
        for advert in (1.0, 0.1):
            note(f"The same with keepalived (which sets no rules), one advertisement every {advert:g} s.")

            def start(lab: Lab, host: Host, advert: float = advert) -> Process:
                return keepalived.start(lab, host, wanted, advert)

            durations = measure(chosen.etcd, start, wanted, chosen.ports, chosen.runs)
            rows.append([f"keepalived, advert {advert:g} s", *spread(durations)])
    title = f"From the agents' start until the last address answers; addresses: {chosen.addresses}, rules: {rules}"
    show(Table(title, ["", *SPREAD], rows), chosen.rst)


if __name__ == "__main__":
    main()
