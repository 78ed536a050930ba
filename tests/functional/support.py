"""What the functional tests share: labs that are built once, and agents on their hosts."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.lab.laboratory import ETCD_PORT, Host, Lab, service
from tests.lab.processes import Process

ADDRESS = IPv4Address("192.168.1.41")
OTHER = IPv4Address("192.168.1.42")
OUTSIDE = IPv4Address("172.16.1.41")

JUMP = "-A PREROUTING -j KUBE-PUBLIC"
CHAIN = ":KUBE-PUBLIC - [0:0]"

DEBIAN_ETCD = "/usr/bin/etcd"

Ports = Sequence[tuple[int, str]]


def wheel_etcd() -> str:
    """The etcd of the wheel; Debian's where there is no such wheel."""
    wheel = Path(sys.executable).with_name("etcd")
    return str(wheel) if wheel.exists() else DEBIAN_ETCD


def rule(
    port: int = 8080, protocol: str = "tcp", comment: str = "web", address: IPv4Address = ADDRESS, mark: str = "0x1"
) -> str:
    """A rule as C{iptables-save} prints it."""
    return (
        f"-A KUBE-PUBLIC -d {address}/32 -p {protocol} -m {protocol} --dport {port} "
        f"-m comment --comment {comment} -j MARK --set-xmark {mark}/0xffffffff"
    )


@cache
def shared_lab(etcd: str) -> Lab:
    """The lab with this etcd, which lives until the process ends."""
    lab = Lab().open()
    lab.cluster.start_etcd(etcd)
    lab.cluster.start_api()
    return lab


class AgentTestCase(SynchronousTestCase):
    """
    A test with a lab of three hosts, on which no agent runs yet, and a cluster without Services.

    @cvar etcd: the binary.
    """

    etcd = wheel_etcd()
    lab: Lab

    def setUp(self) -> None:
        self.lab = shared_lab(self.etcd)
        self.addCleanup(self._clean)

    def _clean(self) -> None:
        try:
            self.lab.renew()
            self.lab.cluster.clear()
        except BaseException:
            # A lab that cannot be made clean is of no use to the next test.
            self.lab.close()
            shared_lab.cache_clear()
            raise

    def start_agents(
        self, *options: str, hosts: Sequence[Host] = (), store_port: int = ETCD_PORT
    ) -> dict[str, Process]:
        """Start an agent on each of these hosts, or on all; their processes by host name, once all are known."""
        started = {
            host.name: self.lab.start_agent(host, *options, store_port=store_port) for host in hosts or self.lab.hosts
        }

        def known() -> bool:
            for agent in started.values():
                self.assertIsNone(agent.status, agent.story())
            return self.known_agents() >= started.keys()

        self.lab.wait_until(known, "all agents to be known", 30)
        return started

    def wait_for_agents(self, *names: str) -> None:
        self.lab.wait_until(lambda: self.known_agents() >= set(names), f"agents {names} to be known", 30)

    def known_agents(self) -> set[str]:
        """The ids of the agents that have a record in the claim store."""
        folder = "/kiwi/agents/"
        return {key.removeprefix(folder) for key in self.lab.cluster.nodes() if key.startswith(folder)}

    def serve(self) -> None:
        """Run the small web server on all hosts."""
        for host in self.lab.hosts:
            host.serve()

    def wait_for_marks(self, host: Host, *rules: str) -> None:
        """Wait until the host's table C{mangle} has exactly these rules in Kiwi's chain, in any order."""
        expected = sorted([CHAIN, JUMP, *rules])
        self.lab.wait_until(lambda: sorted(host.marks()) == expected, f"{rules} on {host.name}", 10)

    def wait_for_no_rule(self, host: Host) -> None:
        """Wait until the host marks no traffic."""
        self.lab.wait_until(lambda: not any("--dport" in line for line in host.marks()), "the rules to go")

    def wait_for_nobody(self, address: IPv4Address) -> None:
        """Wait until no host has the address and nobody claims it."""
        self.lab.wait_until(
            lambda: not self.lab.carriers(address) and address not in self.lab.cluster.claims(),
            f"nobody to have {address}",
            20,
        )

    def wait_for_line(self, process: Process, *words: str, limit: float = 15.0) -> str:
        """Wait until a process prints a line on standard output that has all of these words; the line."""
        (line,) = self.lab.wait_until(
            lambda: self.lines(process, *words)[:1], f"a line with {words} from {process.name}", limit
        )
        return line

    def lines(self, process: Process, *words: str) -> list[str]:
        """The lines on standard output that have all of these words."""
        return [line for line in process.output().splitlines() if all(word in line for word in words)]

    def assert_untouched(self, host: Host) -> None:
        """The host has no address, chain or rule of Kiwi's."""
        self.assertEqual((host.labels(), host.marks()), ([], []))

    def assert_one_carrier_at_a_time(self, address: IPv4Address) -> None:
        """No two hosts have had the address at the same moment since the hosts were made."""
        self.assertEqual(self.lab.ears.overlaps(address), [])

    def stays_true(self, condition: Any, seconds: float) -> None:
        """The condition is true all the time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.assertTrue(condition())
            time.sleep(0.02)


class CarriedTestCase(AgentTestCase):
    """Three agents, one of which carries the address of a Service."""

    options: tuple[str, ...] = ()

    def setUp(self) -> None:
        super().setUp()
        self.agents = self.start_agents(*self.options)
        self.serve()
        self.lab.cluster.create(service("web", [ADDRESS]))
        self.carrier = self.lab.wait_for_carrier(ADDRESS)
        self.wait_for_marks(self.carrier, rule())

    @property
    def carrying(self) -> Process:
        return self.agents[self.carrier.name]

    def wait_for_another(self, limit: float = 25.0) -> Host:
        """Wait until another host than the first carrier has the address; that host."""

        def another() -> list[Host]:
            return [host for host in self.lab.carriers(ADDRESS) if host is not self.carrier]

        (host,) = self.lab.wait_until(another, "another carrier", limit)
        return host
