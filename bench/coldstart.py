"""
How long it takes from the start of the agents until the last of many addresses answers.

The Services are there before. The clock starts before the first of three agents is started, one right after the other,
and ends when the last address has answered the client.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from kiwi.model import Address
from tests.lab.laboratory import INTERFACE, Lab
from tests.lab.pinging import first_replies
from tests.lab.waiting import Impatient

from .common import SPREAD, Table, addresses, bench_lab, note, options, renew, show, spread
from .fleet import Keepalived, Kind, Kiwi
from .servers import Plain

LIMIT = 120.0


def cold_start(lab: Lab, kind: Kind, wanted: Sequence[Address]) -> float:
    """Seconds until all addresses have answered, with new hosts and a claim store that knows nobody."""
    renew(lab, wanted)
    kind.begin_anew(lab)
    began = time.monotonic()
    for host in lab.hosts:
        kind.start(lab, host, wanted, INTERFACE)
    answered = first_replies(lab.client.namespace, wanted, LIMIT)
    if len(answered) < len(wanted):
        raise Impatient(f"{len(wanted) - len(answered)} addresses never answered\n{lab.story()}")
    return max(answered.values()) - began


def main() -> None:
    parser = options("Measures a cold start.", 5)
    parser.add_argument("--addresses", type=int, default=500, help="one Service each (default: %(default)s)")
    parser.add_argument("--ports", type=int, default=2, help="of each Service (default: %(default)s)")
    parser.add_argument("--keepalived", action="store_true", help="measure keepalived, too, in the same lab")
    chosen = parser.parse_args()
    wanted = addresses(chosen.addresses)
    rules = chosen.addresses * chosen.ports
    note(f"Starting three agents {chosen.runs} times; addresses: {chosen.addresses}, rules: {rules}.")
    servers = Plain(chosen.etcd)
    kinds: list[tuple[str, Kind]] = [("Kiwi", Kiwi(10, servers))]
    if chosen.keepalived:
        # It sets no rules.
        kinds += [(f"keepalived, advert {advert:g} s", Keepalived(advert)) for advert in (1.0, 0.1)]
    rows = []
    with bench_lab(servers) as lab:
        servers.publish(lab, wanted, chosen.ports)
        for name, kind in kinds:
            note(name)
            rows.append([name, *spread([cold_start(lab, kind, wanted) for _ in range(chosen.runs)])])
    title = f"From the agents' start until the last address answers; addresses: {chosen.addresses}, rules: {rules}"
    show(Table(title, ["", *SPREAD], rows), chosen.rst)


if __name__ == "__main__":
    main()
