"""
How long an address does not answer when the agent that carries it is told to go.

The client pings every 2 ms. The outage is the longest time between two answers around the SIGTERM; without any outage
it would be 2 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address

from tests.lab.laboratory import Host, Lab, service
from tests.lab.processes import Process

from . import keepalived
from .common import SPREAD, Table, addresses, bench_lab, note, options, show, spread, start_agent, wait_for_agents

Start = Callable[[Host], Process]


def measure(lab: Lab, start: Start, ready: Callable[[], None], watched: IPv4Address, runs: int) -> list[float]:
    """
    The outage of each of so many hand-overs.

    @param start: starts what carries addresses on a host.
    @param ready: returns when all that was started can take over.
    """
    carrying = {host.name: start(host) for host in lab.hosts}
    ready()
    lab.wait_for_carrier(watched, 60)
    outages = []
    with lab.client.ping(watched) as pinger:
        for _ in range(runs):
            pinger.wait_for_reply(time.monotonic())
            time.sleep(2)
            carrier = lab.wait_for_carrier(watched)
            told = time.monotonic()
            carrying[carrier.name].terminate()
            pinger.wait_for_reply(told + 3)
            outages.append(pinger.outage(told - 0.1, told + 3))
            carrying[carrier.name] = start(carrier)
            ready()
    return outages


def with_kiwi(etcd: str, watched: Sequence[IPv4Address], runs: int) -> list[float]:
    with bench_lab(etcd) as lab:
        for number, address in enumerate(watched):
            lab.cluster.create(service(f"web-{number}", [address]))

        def ready() -> None:
            wait_for_agents(lab, lab.hosts)
            lab.wait_until(
                lambda: sum(len(host.carried()) for host in lab.hosts) == len(watched),
                "every address to be carried",
                60,
            )

        return measure(lab, lambda host: start_agent(lab, host), ready, watched[0], runs)


def with_keepalived(etcd: str, watched: Sequence[IPv4Address], runs: int, advert: float) -> list[float]:
    with bench_lab(etcd) as lab:
        return measure(
            lab,
            lambda host: keepalived.start(lab, host, watched, advert),
            lambda: time.sleep(4 * advert + 1),
            watched[0],
            runs,
        )


def main() -> None:
    parser = options("Measures the outage of a planned hand-over.", 20)
    parser.add_argument("--addresses", type=int, default=1, help="how many there are (default: %(default)s)")
    parser.add_argument("--keepalived", action="store_true", help="measure keepalived, too, in the same lab")
    chosen = parser.parse_args()
    watched = addresses(chosen.addresses)
    note(f"Stopping the carrier {chosen.runs} times; three agents, addresses: {chosen.addresses}.")
    rows = [["Kiwi", *spread(with_kiwi(chosen.etcd, watched, chosen.runs))]]
    if chosen.keepalived:
        for advert in (1, 0.1):
            note(f"The same with keepalived, one advertisement every {advert:g} s.")
            outages = with_keepalived(chosen.etcd, watched, chosen.runs, advert)
            rows.append([f"keepalived, advert {advert:g} s", *spread(outages)])
    title = f"Outage of a planned hand-over (SIGTERM), addresses: {chosen.addresses}"
    show(Table(title, ["", *SPREAD], rows), chosen.rst)


if __name__ == "__main__":
    main()
