"""
What addresses cost an agent's host: to put them on an interface, to extend them, to look at them, to announce them, to
ask whether anybody has them, and to take them off.

A namespace with an interface, whose other end is in another one. Time and processor time are those for one address; the
processor time is that of this process, and of what the kernel does for it at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from math import inf

from kiwi.model import Address, Assignment, Placement, ip
from kiwi.network.addresses import NetlinkAddresses
from kiwi.network.announcer import LinkAnnouncer
from kiwi.network.neighbours import LinkNeighbours
from tests.lab.namespaces import Namespace, ip_batch, owned_name

from .common import Table, note, show_all

FIRST = {4: ip("10.1.0.0"), 6: ip("fd00::1:0")}
STEPS = ("put on", "extended", "looked at", "announced", "asked for", "taken off")


def address_cost(version: int, numbers: Sequence[int], runs: int) -> Table:
    """The table for one version of IP."""
    here, there = (Namespace(owned_name(1, name)) for name in ("here", "there"))
    ip_batch([f"netns add {here.name}", f"netns add {there.name}"])
    try:
        here.ip([f"link add em1 type veth peer name em1 netns {there.name}", "link set em1 up"])
        there.ip(["link set em1 up"])
        with here.entered():
            rows = [[f"{number:,}", *_steps(version, number, runs)] for number in numbers]
    finally:
        for namespace in (here, there):
            namespace.destroy()
    return Table(f"IPv{version}: time / processor time for one address", ["addresses", *STEPS], rows)


def _steps(version: int, number: int, runs: int) -> list[str]:
    wanted = [ip(str(FIRST[version] + place)) for place in range(number)]
    addresses, announcer = NetlinkAddresses(["em1"], time.monotonic), LinkAnnouncer(time.monotonic)
    neighbours = LinkNeighbours(time.monotonic)

    def put_on() -> None:
        assigned = addresses.assign({Assignment(address, time.monotonic() + 600, "em1") for address in wanted})
        assert len(assigned.expires) == number, assigned.failed

    placements = {Placement(address, "em1") for address in wanted}
    announced = {Assignment(address, inf, "em1") for address in wanted}
    acts: Sequence[Callable[[], object]] = (
        put_on,
        put_on,
        addresses.read,
        lambda: announcer.announce(announced),
        lambda: neighbours.probe(placements, 0.03),
        lambda: addresses.unassign(frozenset[Address](wanted)),
    )
    found: list[list[tuple[float, float]]] = [[] for _ in acts]
    for _ in range(runs):
        for act, times in zip(acts, found, strict=True):
            began, used = time.monotonic(), time.process_time()
            act()
            times.append(((time.monotonic() - began) / number, (time.process_time() - used) / number))
    announcer.close()
    neighbours.close()
    cells = []
    for times in found:
        elapsed, cpu = (statistics.median(values) for values in zip(*times, strict=True))
        cells.append(f"{elapsed * 1e6:.1f} / {cpu * 1e6:.1f} us")
    note(f"IPv{version}, {number}: " + " | ".join(cells))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what addresses cost an agent's host.")
    parser.add_argument("--runs", type=int, default=5, help="how often to measure (default: %(default)s)")
    parser.add_argument(
        "--ipv4", type=int, nargs="*", default=[100, 1000, 5000], help="how many (default: %(default)s)"
    )
    parser.add_argument("--ipv6", type=int, nargs="*", default=[100, 1000], help="how many (default: %(default)s)")
    parser.add_argument("--rst", action="store_true", help="print the tables for a page of documentation")
    chosen = parser.parse_args()
    numbers = {4: chosen.ipv4, 6: chosen.ipv6}
    show_all([address_cost(version, those, chosen.runs) for version, those in numbers.items()], chosen.rst)


if __name__ == "__main__":
    main()
