"""Hosts for these tests: a network namespace, and in another the neighbour at the other end of its link."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from time import monotonic, sleep
from typing import Any

from attrs import frozen
from pyroute2 import IPRoute, netns
from twisted.trial.unittest import SynchronousTestCase, TestCase

_NUMBERS = count()


@frozen
class NamespacedHost:
    """
    A host that has entered the calling thread.

    Its interface is a veth whose other end is up in the neighbour's namespace, under the name C{peer}.
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

    def create_link(self) -> None:
        """Make the interface and its other end, both up."""
        with IPRoute() as route:
            route.link("add", ifname=self.interface, kind="veth", peer="peer")
            route.link("set", index=self.index("peer"), net_ns_fd=self.neighbour)
            self.link(state="up")
        with self.at_neighbour(), IPRoute() as route:
            route.link("set", index=self.index("peer"), state="up")

    def remove_link(self) -> None:
        """Delete the interface, and with it the other end."""
        with IPRoute() as route:
            route.link("del", index=self.index())

    def address(self, command: str, address: str, interface: str | None = None, **attributes: Any) -> None:
        """Change an address with its prefix, as a person does by hand."""
        local, prefix = address.split("/")
        with IPRoute() as route:
            route.addr(command, index=self.index(interface), address=local, prefixlen=int(prefix), **attributes)

    def addresses(self, interface: str | None = None) -> dict[str, dict[str, Any]]:
        """The attributes of each IPv4 address of an interface (the host's own if none is named), read by pyroute2."""
        with IPRoute() as route:
            return {
                f"{message.get_attr('IFA_LOCAL')}/{message['prefixlen']}": {
                    "label": message.get_attr("IFA_LABEL"),
                    "proto": message.get_attr("IFA_PROTO"),
                    "scope": message["scope"],
                    "valid": message.get_attr("IFA_CACHEINFO")["ifa_valid"],
                    "preferred": message.get_attr("IFA_CACHEINFO")["ifa_preferred"],
                }
                for message in route.get_addr(family=socket.AF_INET, index=self.index(interface))
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
    return name


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something to become true, for so many seconds at most."""
    end = monotonic() + seconds
    while not condition():
        if monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain")
        sleep(0.01)
