"""
How long it takes from a new Service to an address that answers.

The clock starts just before the client's request to create the Service goes out, and ends when the first answer to its
pings comes in, as the client's kernel stamps it. It pings every 2 ms, also before.
"""

from __future__ import annotations

import time

from tests.lab.laboratory import Lab, service

from .common import Table, addresses, bench_lab, milliseconds, note, options, percentile, show
from .fleet import Kiwi, steady_fleet
from .servers import Plain


def measure(lab: Lab, kind: Kiwi, runs: int) -> list[float]:
    """Seconds from created to answered, for each of so many Services, where there are none yet."""
    durations = []
    steady_fleet(lab, kind, [])
    with kind.servers.creating(lab) as create:
        for number, address in enumerate(addresses(runs)):
            with lab.client.ping(address) as pinger:
                time.sleep(0.1)
                start = time.monotonic()
                create(service(f"web-{number}", [address]))
                durations.append(pinger.wait_for_reply().received - start)
    return durations


def main() -> None:
    chosen = options("Measures the time from a new Service to an address that answers.", 100).parse_args()
    note(f"Creating {chosen.runs} Services, one after the other, with three agents.")
    servers = Plain(chosen.etcd)
    with bench_lab(servers) as lab:
        durations = measure(lab, Kiwi(10, servers), chosen.runs)
    row = [str(chosen.runs), *(milliseconds(percentile(durations, percent)) for percent in (50, 90, 99, 100))]
    show(
        Table("From Service created to first ping answered", ["Services", "p50", "p90", "p99", "worst"], [row]),
        chosen.rst,
    )


if __name__ == "__main__":
    main()
