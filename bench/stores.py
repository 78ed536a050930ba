"""
Claims in Leases beside claims in etcd v2, on the same lab's hosts.

Whatever the store, the Services come from one real API server, of which agents ask over TLS with a service account's
token and no more rights than C{deploy/} gives it. The Leases are in that server too, and its data in an etcd on the
same host, where the other etcd is as well. So the only difference is the store. The rows:

created  From just before the request to create a Service goes out until the first ping is answered, as C{bench.created}
         has it: half of the Services, 99% of them, and the worst.
events   The outage of the first address, as C{bench.failover} has it. "store down": etcd, or the API server, is killed
         and started again with its data when the claims have ended; what counts is when the last address is on a host
         again, from when the store answers an agent's question.
cold     From the start of three agents until the last of many addresses has answered, as C{bench.coldstart} has it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

from attrs import frozen

from tests.lab.laboratory import Lab

from . import created, failover
from .coldstart import cold_start
from .common import Table, addresses, bench_lab, milliseconds, note, options, percentile, show_all
from .fleet import Kiwi, steady_fleet
from .servers import Etcd2, Leases

EVENTS = {"sigterm": "planned hand-over (SIGTERM)", "killed": "agent killed", "dead": "host dead and unplugged"}
DOWN = "down"
ROWS = ("created", *EVENTS, DOWN, "cold")
ANY_TTL = ("created", "sigterm", "cold")
"""Rows that say the same whatever the TTL is; measured with the first one."""


@frozen
class Bench:
    """
    What the rows are measured with.

    @ivar services: how many are created, one after the other.
    @ivar many: how many addresses there are in a cold start.
    """

    lab: Lab
    runs: int
    services: int
    many: int

    def measure(self, row: str, kind: Kiwi) -> str:
        """The cell of a row."""
        servers = kind.servers
        if row == "created":
            servers.publish(self.lab, [])
            durations = created.measure(self.lab, kind, self.services)
            return " / ".join(milliseconds(percentile(durations, percent)) for percent in (50, 99, 100))
        if row == "cold":
            wanted = addresses(self.many)
            servers.publish(self.lab, wanted, 2)
            return pair([cold_start(self.lab, kind, wanted) for _ in range(self.runs)])
        outcomes = list(self._happened(failover.EVENTS[row], kind))
        if row == DOWN:
            return pair([outcome.again for outcome in outcomes if outcome.again is not None])
        return pair([outcome.outage for outcome in outcomes])

    def _happened(self, event: failover.Event, kind: Kiwi) -> Iterator[failover.Outcome]:
        wanted = addresses(1)
        kind.servers.publish(self.lab, wanted)
        agents = steady_fleet(self.lab, kind, wanted)
        for _ in range(self.runs):
            outcome = failover.happen(agents, event, kind.servers)
            note(f"    {outcome}")
            yield outcome


def pair(seconds: Sequence[float]) -> str:
    """Median and worst."""
    if max(seconds) == 0:
        return "none"
    return f"{milliseconds(statistics.median(seconds))} / {milliseconds(max(seconds))}"


def main() -> None:
    parser = options("Measures agents with their claims in Leases, and with their claims in etcd v2.", 10)
    parser.add_argument("--rows", default=",".join(ROWS), help="what to measure (default: %(default)s)")
    parser.add_argument("--ttl", default="10,3", help="of the claims (default: %(default)s)")
    parser.add_argument("--services", type=int, default=100, help="how many to create (default: %(default)s)")
    parser.add_argument("--addresses", type=int, default=500, help="in a cold start (default: %(default)s)")
    chosen = parser.parse_args()
    rows = chosen.rows.split(",")
    if not set(rows) <= set(ROWS):
        parser.error(f"--rows: give some of {','.join(ROWS)}")
    titles = {
        "created": f"Service created to answered ({chosen.services}), p50 / p99 / worst",
        **EVENTS,
        DOWN: "store down for more than T, back",
        "cold": f"cold start, {chosen.addresses} addresses",
    }
    stores = (Leases(), Etcd2(chosen.etcd))
    ttls = [int(ttl) for ttl in chosen.ttl.split(",")]
    kinds = [Kiwi(ttl, store) for ttl in ttls for store in stores]
    cells: dict[tuple[str, str], str] = {}
    failures: list[str] = []
    try:
        with bench_lab(*stores) as lab:
            bench = Bench(lab, chosen.runs, chosen.services, chosen.addresses)
            for row in rows:
                for kind in kinds:
                    if row in ANY_TTL and kind.ttl != ttls[0]:
                        continue
                    note(f"{time.strftime('%H:%M:%S')} {kind.name}, {titles[row]}")
                    try:
                        cells[row, kind.name] = bench.measure(row, kind)
                    except Exception as error:  # noqa: BLE001 what was measured so far must not be lost
                        note(f"{type(error).__name__}: {error}\n{lab.story()}")
                        cells[row, kind.name] = "failed"
                        why = (str(error).splitlines() or [repr(error)])[0]
                        failures.append(f"{kind.name}, {titles[row]}: failed: {why}")
                        kind.servers.restart(lab)
                    note(f"    {cells[row, kind.name]}")
    finally:
        table = Table(
            f"Median / worst of {chosen.runs}",
            ["", *(kind.name for kind in kinds)],
            [[titles[row], *(cells.get((row, kind.name), "") for kind in kinds)] for row in rows],
        )
        show_all([table], chosen.rst, failures)


if __name__ == "__main__":
    main()
