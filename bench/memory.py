"""
What Services without a public address cost an agent in memory.

One agent with its claims in Leases and its host in memory follows a real API server: first where there are only some
Services, each with a public address, then where there are many more that have none. It gets its lists in pages, as
always, or all at once (its constant C{PAGE} is set to 0 where it starts). Its memory is what the kernel says of its
process (resident): some seconds after all addresses are claimed, and at its most until then.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from kiwi.model import ip
from tests.fakes.apiserver_process import Loopback, RealAPIServer
from tests.lab.laboratory import CHECKOUT, KIWI_OF_CHECKOUT
from tests.lab.processes import Process
from tests.lab.waiting import wait_until

from .common import NETWORK, Table, addresses, note, show
from .load import claims
from .servers import LEASES, account_token, put_services, services_of, set_up
from .usage import Usage

ALL_AT_ONCE = (
    sys.executable,
    "-c",
    "import sys; import kiwi.kubernetes.client as client; client.PAGE = 0; from kiwi.tap import main; sys.exit(main())",
)
"""What the console script runs, but for pages."""


def without_address(number: int) -> list[dict[str, Any]]:
    """So many Services as most are: for the inside of a cluster."""
    definitions = services_of([ip("192.0.2.1")] * number, 2)
    for index, definition in enumerate(definitions):
        definition["metadata"] |= {"name": f"inside-{index}", "labels": {"app.kubernetes.io/name": f"inside-{index}"}}
        del definition["spec"]["externalIPs"]
    return definitions


def measure(server: RealAPIServer, command: Sequence[str], number: int) -> Usage:
    """What an agent takes that claims so many addresses."""
    server.ask("DELETE", LEASES)
    directory = Loopback(server.directory).directory
    options = [
        *("--no-driver", "--interface", "lo", "--agent-id", "agent-1", "-r", NETWORK, "--store", "kubernetes"),
        *("--kubeconfig", str(server.kubeconfig(token=account_token(server)))),
    ]
    agent = Process.start("agent", ["setpriv", "--pdeathsig", "KILL", *command, *options], directory, {}, CHECKOUT)
    try:
        wait_until(lambda: len(claims(server)) == number, "all addresses to be claimed", 120, agent.story, 0.5)
        time.sleep(5)
        return Usage.of(agent)
    finally:
        agent.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the memory that Services without a public address cost.")
    parser.add_argument("--rst", action="store_true", help="print the table for a page of documentation")
    parser.add_argument("--addresses", type=int, default=100, help="one Service each (default: %(default)s)")
    parser.add_argument("--others", type=int, default=9900, help="Services without one (default: %(default)s)")
    chosen = parser.parse_args()
    public = services_of(addresses(chosen.addresses), 2)
    rows = []

    def add(what: str, usage: Usage) -> None:
        rows.append([what, f"{usage.memory:.1f} MB", f"{usage.most_memory:.1f} MB"])
        note(" | ".join(rows[-1]))

    with RealAPIServer.on_loopback() as server:
        set_up(server, ["agent-1"])
        put_services(server, public)
        few = measure(server, KIWI_OF_CHECKOUT, chosen.addresses)
        add(f"{chosen.addresses} Services", few)
        note(f"Creating {chosen.others} Services more.")
        began = time.monotonic()
        put_services(server, [*public, *without_address(chosen.others)])
        note(f"It took {time.monotonic() - began:.0f} s.")
        whole = f"{chosen.addresses + chosen.others} Services"
        add(f"{whole}, lists in pages", measure(server, KIWI_OF_CHECKOUT, chosen.addresses))
        add(f"{whole}, lists all at once", measure(server, ALL_AT_ONCE, chosen.addresses))
    title = f"Memory of one agent, where {chosen.addresses} Services have a public address"
    show(Table(title, ["", "steady", "at its most"], rows), chosen.rst)


if __name__ == "__main__":
    main()
