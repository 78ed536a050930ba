"""Hosts for these tests: a network namespace, and in another the neighbour at the other end of its link."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from attrs import frozen
from pyroute2 import IPRoute, netns
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

_NUMBERS = count()

IFA_F_NODAD = 0x2
"""Use an IPv6 address at once, and do not ask the link for it (C{linux/if_addr.h})."""


@frozen
class NamespacedHost:
    """
    A host that has entered the calling thread.

    Its interface is a veth whose other end is up in the neighbour's namespace, under the name C{peer}. No interface has
    a link-local address: those come a second after it, as news that no test waits for.
    """

    interface: str
    neighbour: str

    def index(self, name: str | None = None) -> int:
        """The index of an interface; the host's own if none is named."""
        with IPRoute() as route:
            return int(route.link_lookup(ifname=name or self.interface)[0])

    def link(self, **changes: Any) -> None:
        """Change the interface."""
        with IPRoute() as route:
            route.link("set", index=self.index(), **changes)

    def peer(self, name: str | None = None) -> str:
        """The name of the other end of an interface, in the neighbour's namespace."""
        return "peer" if name in (None, self.interface) else f"peer-{name}"

    def create_link(self, name: str | None = None) -> None:
        """Make an interface and its other end, both up."""
        name, peer = name or self.interface, self.peer(name)
        with IPRoute() as route:
            route.link("add", ifname=name, kind="veth", peer=peer)
            route.link("set", index=self.index(peer), net_ns_fd=self.neighbour)
            route.link("set", index=self.index(name), state="up")
        with self.at_neighbour(), IPRoute() as route:
            route.link("set", index=self.index(peer), state="up")

    def remove_link(self, name: str | None = None) -> None:
        """Delete an interface, and with it the other end."""
        with IPRoute() as route:
            route.link("del", index=self.index(name))

    def address(self, command: str, address: str, interface: str | None = None, **attributes: Any) -> None:
        """Change an address with its prefix, as a person does by hand."""
        local, prefix = address.split("/")
        if ":" in address and command != "del":
            attributes.setdefault("flags", IFA_F_NODAD)
        with IPRoute() as route:
            route.addr(command, index=self.index(interface), address=local, prefixlen=int(prefix), **attributes)

    def addresses(self, interface: str | None = None) -> dict[str, dict[str, Any]]:
        """The attributes of each address of an interface (the host's own if none is named), read by pyroute2."""
        with IPRoute() as route:
            return {
                f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}": {
                    "label": message.get_attr("IFA_LABEL"),
                    "proto": message.get_attr("IFA_PROTO"),
                    "scope": message["scope"],
                    "flags": message.get_attr("IFA_FLAGS"),
                    "valid": message.get_attr("IFA_CACHEINFO")["ifa_valid"],
                    "preferred": message.get_attr("IFA_CACHEINFO")["ifa_preferred"],
                }
                for message in route.get_addr(index=self.index(interface))
            }

    @contextmanager
    def at_neighbour(self) -> Iterator[None]:
        """Be in the neighbour's namespace meanwhile."""
        netns.pushns(self.neighbour)
        try:
            yield
        finally:
            netns.popns()


def enter_namespace(case: SynchronousTestCase | TestCase) -> None:
    """Put the calling thread into a fresh network namespace until the end of the test."""
    netns.pushns(_create(case))
    case.addCleanup(netns.popns)
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")


def enter_host(case: SynchronousTestCase | TestCase, interface: str = "em1") -> NamespacedHost:
    """Put the calling thread on a fresh host until the end of the test."""
    neighbour = _create(case)
    enter_namespace(case)
    host = NamespacedHost(interface, neighbour)
    host.create_link()
    return host


def _create(case: SynchronousTestCase | TestCase) -> str:
    name = f"kiwi-test-{os.getpid()}-{next(_NUMBERS)}"
    netns.create(name)
    case.addCleanup(netns.remove, name)
    netns.pushns(name)
    try:
        sysctl("net/ipv6/conf/default/addr_gen_mode", 1)
    finally:
        netns.popns()
    return name


def make_link(case: SynchronousTestCase | TestCase, *commands: str) -> None:
    """Make an interface, by C{ip link} with each of these; skip the test where the kernel has none of its kind."""
    for command in commands:
        done = subprocess.run(["ip", "link", *command.split()], check=False, capture_output=True, text=True)
        if "Unknown device type" in done.stderr:
            raise SkipTest(f"this kernel cannot: ip link {command}")
        case.assertEqual(done.stderr, "")


def sysctl(name: str, value: int) -> None:
    """Set a variable of the calling thread's network namespace."""
    Path(f"/proc/sys/{name}").write_text(str(value))


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something to become true, for so many seconds at most."""
    end = monotonic() + seconds
    while not condition():
        if monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain")
        sleep(0.01)
