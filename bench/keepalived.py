"""keepalived on the lab's hosts, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

from kiwi.model import Address
from tests.lab.laboratory import INTERFACE, Host, Lab
from tests.lab.processes import Process


def configuration(
    name: str, addresses: Sequence[Address], advert: float, priority: int, interface: str = INTERFACE
) -> str:
    """
    One VRRP instance that has all addresses; only the first is in its packets, which have no room for many.

    @param name: the host's. Without it, keepalived asks a name server first, and the lab has none.
    """
    first, *others = addresses
    excluded = "\n".join(f"        {address}/32" for address in others)
    return f"""
global_defs {{
    router_id {name}
    vrrp_garp_master_delay 0
}}
vrrp_instance public {{
    state BACKUP
    nopreempt
    interface {interface}
    virtual_router_id 41
    priority {priority}
    advert_int {advert:g}
    version 3
    virtual_ipaddress {{
        {first}/32
    }}
    virtual_ipaddress_excluded {{
{excluded}
    }}
}}
"""


def start(lab: Lab, host: Host, addresses: Sequence[Address], advert: float, interface: str = INTERFACE) -> Process:
    """Start keepalived on a host."""
    folder = Path(mkdtemp(prefix="keepalived-", dir=lab.directory))
    path = folder / "keepalived.conf"
    path.write_text(configuration(host.name, addresses, advert, 100 + lab.hosts.index(host), interface))
    return host.start(
        "keepalived",
        [
            *("keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", str(path)),
            *("--pid", str(folder / "pid"), "--vrrp_pid", str(folder / "vrrp.pid")),
        ],
    )
