"""What carries addresses on the hosts of a lab, all of one kind: agents of Kiwi, or keepalived."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from attrs import define, field, frozen

from kiwi.model import Address
from tests.lab.laboratory import INTERFACE, Host, Lab
from tests.lab.processes import Process

from . import keepalived
from .common import NETWORK, renew
from .ledger import Ledger, carried_once, ledger_of
from .servers import Servers

QUIET = 1.0
"""Seconds without any change of an address after which a fleet is steady."""


class Kind(Protocol):
    """One way to carry addresses."""

    @property
    def name(self) -> str:
        """What to call it in a table."""

    @property
    def patience(self) -> float:
        """Seconds after which the others take over from one that is not heard of any more."""

    def begin_anew(self, lab: Lab) -> None:
        """Let nothing be known of those that ran before."""

    def start(self, lab: Lab, host: Host, wanted: Sequence[Address], interface: str) -> Process:
        """Start it on a host."""

    def is_ready(self, lab: Lab, started: dict[str, float]) -> bool:
        """Whether all that were started, at these times, can take over."""

    def processes(self, process: Process) -> list[int]:
        """The ids of the processes that it is made of."""


@frozen
class Kiwi:
    """Agents with a TTL in seconds, and what they rest on."""

    ttl: int
    servers: Servers

    @property
    def name(self) -> str:
        return f"{self.servers.name}, T = {self.ttl} s"

    @property
    def patience(self) -> float:
        return float(self.ttl)

    def begin_anew(self, lab: Lab) -> None:
        self.servers.clear_claims(lab)

    def start(self, lab: Lab, host: Host, wanted: Sequence[Address], interface: str) -> Process:
        options = ["--interface", interface, "-r", NETWORK, "--ttl", str(self.ttl), *self.servers.options(lab)]
        return host.start(f"kiwi-{host.name}", [*lab.kiwi, *options])

    def is_ready(self, lab: Lab, started: dict[str, float]) -> bool:
        return started.keys() <= self.servers.agents(lab)

    def processes(self, process: Process) -> list[int]:
        return [process.pid]


@frozen
class Keepalived:
    """Instances of keepalived with so many seconds from one advertisement to the next."""

    advert: float

    @property
    def name(self) -> str:
        return f"keepalived, {self.advert:g} s"

    @property
    def patience(self) -> float:
        return 4 * self.advert

    def begin_anew(self, lab: Lab) -> None:
        """Nobody knows anything of them."""

    def start(self, lab: Lab, host: Host, wanted: Sequence[Address], interface: str) -> Process:
        return keepalived.start(lab, host, wanted, self.advert, interface)

    def is_ready(self, lab: Lab, started: dict[str, float]) -> bool:
        return time.monotonic() - max(started.values()) > self.patience + 1

    def processes(self, process: Process) -> list[int]:
        # The one that was started only looks after the one that does the work.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return [process.pid, *map(int, children.split())]


@define(eq=False)
class Fleet:
    """
    One of a kind on each host of a lab, and what they carry.

    @ivar wanted: the addresses that there are for them.
    @ivar agents: what runs on each host, by its name.
    """

    lab: Lab
    kind: Kind
    wanted: Sequence[Address]
    interface: str = INTERFACE
    agents: dict[str, Process] = field(factory=dict, init=False)
    ledger: Ledger = field(init=False)
    _started: dict[str, float] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.ledger = ledger_of(self.lab)

    def start(self, host: Host) -> None:
        """Start one on a host."""
        self.agents[host.name] = self.kind.start(self.lab, host, self.wanted, self.interface)
        self._started[host.name] = time.monotonic()

    def kill(self, host: Host) -> None:
        """End at once what runs on a host, with no chance to do anything about it."""
        agent = self.agents[host.name]
        # Stopped first, it cannot notice the end of its child.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            self.signal(host, number)
        agent.kill()

    def signal(self, host: Host, number: signal.Signals) -> None:
        """Send a signal to all processes of what runs on a host."""
        for pid in self.kind.processes(self.agents[host.name]):
            os.kill(pid, number)

    def start_missing(self) -> None:
        """Start one on each host where none runs."""
        for host in self.lab.hosts:
            if host.name not in self.agents or self.agents[host.name].status is not None:
                self.start(host)

    def wait_until_steady(self, limit: float = 60.0) -> None:
        """Wait until all know of each other, each address has one carrier, and nothing has changed for a while."""

        def is_steady() -> bool:
            self.ledger.catch_up()
            quiet = time.monotonic() - self.ledger.last_move() > QUIET
            return quiet and carried_once(self.ledger, self.wanted) and self.kind.is_ready(self.lab, self._started)

        self.lab.wait_until(is_steady, f"{self.kind.name} to be steady", limit, 0.1)
        # Those that were heard of just now may come before others next time.
        time.sleep(QUIET)

    def wait_until_carried(self, addresses: Sequence[Address], limit: float = 60.0) -> None:
        """Wait until each address has one carrier."""
        self.lab.wait_until(lambda: carried_once(self.ledger.catch_up(), addresses), "all to be carried", limit, 0.05)

    def handed_over(self, host: Host, concerned: Sequence[Address], since: float) -> list[float]:
        """
        The outage of each address that a host gave away, from its removal until the client hears its announcement.
        """
        mac = host.run("cat", f"/sys/class/net/{INTERFACE}/address").strip()
        went = self.ledger.catch_up().went(host.name, since)
        heard = self.lab.ears.first_announced(since, mac)
        return [max(0.0, heard[address] - went[address]) for address in concerned]

    def carrier(self, address: Address) -> Host:
        """The host that has an address."""
        (name,) = self.ledger.catch_up().carriers[address]
        return self.host(name)

    def host(self, name: str) -> Host:
        return next(host for host in self.lab.hosts if host.name == name)

    def carried_by(self, host: Host) -> list[Address]:
        """Which of the addresses a host has."""
        there = self.ledger.catch_up().carriers
        return [address for address in self.wanted if host.name in there[address]]


def steady_fleet(lab: Lab, kind: Kind, wanted: Sequence[Address], interface: str = INTERFACE) -> Fleet:
    """A steady fleet on new hosts."""
    renew(lab, wanted, interface)
    kind.begin_anew(lab)
    made = Fleet(lab, kind, wanted, interface)
    made.start_missing()
    made.wait_until_steady(120)
    return made
