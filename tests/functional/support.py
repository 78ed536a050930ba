"""What the functional tests share: labs that are built once, and agents on their hosts."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, ip
from tests.lab.laboratory import CLUSTER, ETCD_PORT, Host, Lab, service
from tests.lab.listening import Carriage
from tests.lab.pinging import Pinger
from tests.lab.processes import Process

ADDRESS = ip("192.168.1.41")
OTHER = ip("192.168.1.42")
OUTSIDE = ip("172.16.1.41")

SLACK = 1.5
"""Seconds that a busy machine is given on top of what is promised."""

JUMP = "-A PREROUTING -j KUBE-PUBLIC"
CHAIN = ":KUBE-PUBLIC - [0:0]"

DEBIAN_ETCD = "/usr/bin/etcd"

Ports = Sequence[tuple[int, str]]


def wheel_etcd() -> str:
    """The etcd of the wheel; Debian's where there is no such wheel."""
    wheel = Path(sys.executable).with_name("etcd")
    return str(wheel) if wheel.exists() else DEBIAN_ETCD


def rule(
    port: int = 8080, protocol: str = "tcp", comment: str = "web", address: Address = ADDRESS, mark: str = "0x1"
) -> str:
    """A rule as C{iptables-save} prints it."""
    return (
        f"-A KUBE-PUBLIC -d {address}/{address.max_prefixlen} -p {protocol} -m {protocol} --dport {port} "
        f"-m comment --comment {comment} -j MARK --set-xmark {mark}/0xffffffff"
    )


def of_wall_clock(text: str) -> float:
    """A moment that a store tells (with nanoseconds, say), in seconds of L{time.monotonic}."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    moment = datetime.fromisoformat(f"{seconds}+00:00").timestamp() + float(f"0.{fraction or 0}")
    return moment - time.time() + time.monotonic()


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
    @cvar address: what the test is about.
    @cvar store: the options that say where claims are, if not in etcd v2.
    """

    address: Address = ADDRESS
    store: Sequence[str] = ()

    etcd = wheel_etcd()
    lab: Lab

    def setUp(self) -> None:
        self.lab = self.open_lab()
        self.addCleanup(self._clean)

    def open_lab(self) -> Lab:
        """The lab that the tests share."""
        return shared_lab(self.etcd)

    def forget_lab(self) -> None:
        """The next test gets another one."""
        shared_lab.cache_clear()

    def clear(self) -> None:
        """Take everything out of the cluster again."""
        self.lab.cluster.clear()

    def create(self, definition: Mapping[str, Any]) -> None:
        """Create a Service of Kubernetes C{v1}."""
        self.lab.cluster.create(definition)

    def claims(self) -> Mapping[Address, str]:
        """Which agent claims each address, as the claim store says."""
        return self.lab.cluster.claims()

    # The claim store; other test cases have another one.

    @property
    def _etcd(self) -> Process:
        etcd = self.lab.cluster.etcd
        assert etcd is not None
        return etcd

    def freeze_store(self) -> None:
        """It takes connections and requests, and does nothing."""
        self._etcd.freeze()

    def resume_store(self) -> None:
        """It goes on."""
        self._etcd.resume()

    def kill_store(self) -> None:
        """It is gone at once."""
        self._etcd.kill()

    def start_store(self, keep: bool = False) -> None:
        """Start it again, with the data that it had or with none, and wait until it answers."""
        self.lab.cluster.start_etcd(self.etcd, data=self.lab.cluster.data if keep else None)

    def bring_back_store(self) -> None:
        """Let it run, whatever was done to it."""
        self.resume_store()
        if self._etcd.status is not None:
            self.start_store()

    def cut_from_store(self, host: Host) -> None:
        """Lose whatever the host sends to the store, and whatever comes from there."""
        host.block(CLUSTER, ETCD_PORT)

    def connect_to_store(self, host: Host) -> None:
        """Lose it no longer."""
        host.unblock(CLUSTER, ETCD_PORT)

    def start_proxy(self) -> None:
        """Start the proxy that can spoil the replies of the store."""
        self.lab.cluster.start_proxy()

    def claim_ends(self, carrier: Host) -> float:
        """Until when the address is promised to its carrier unless it confirms that, by L{time.monotonic}."""
        node = self.lab.cluster.nodes()[f"/kiwi/publicips/{self.address}"]
        self.assertEqual(node["value"], carrier.name)
        return of_wall_clock(node["expiration"])

    def _clean(self) -> None:
        try:
            self.lab.renew()
            self.clear()
        except BaseException:
            # A lab that cannot be made clean is of no use to the next test.
            self.lab.close()
            self.forget_lab()
            raise

    def start_agents(
        self, *options: str, hosts: Sequence[Host] = (), store_port: int = ETCD_PORT
    ) -> dict[str, Process]:
        """Start an agent on each of these hosts, or on all; their processes by host name, once all are known."""
        started = {
            host.name: self.start_agent(host, *options, store_port=store_port) for host in hosts or self.lab.hosts
        }

        def known() -> bool:
            for agent in started.values():
                self.assertIsNone(agent.status, agent.story())
            return self.known_agents() >= started.keys()

        self.lab.wait_until(known, "all agents to be known", 30)
        return started

    def start_agent(self, host: Host, *options: str, store_port: int = ETCD_PORT) -> Process:
        """Start an agent on a host, in the way in which all of the test case are started."""
        return self.lab.start_agent(host, *self.store, *options, store_port=store_port)

    def wait_for_agents(self, *names: str) -> None:
        self.lab.wait_until(lambda: self.known_agents() >= set(names), f"agents {names} to be known", 30)

    def known_agents(self) -> set[str]:
        """The ids of the agents that have a record in the claim store."""
        folder = "/kiwi/agents/"
        return {key.removeprefix(folder) for key in self.keys() if key.startswith(folder)}

    def keys(self) -> set[str]:
        """The keys of Kiwi's that are in etcd."""
        return set(self.lab.cluster.nodes())

    def serve(self) -> None:
        """Run the small web server on all hosts."""
        for host in self.lab.hosts:
            host.serve()

    def wait_for_marks(self, host: Host, *rules: str) -> None:
        """Wait until the host's table C{mangle} has exactly these rules in Kiwi's chain, in any order."""
        expected, version = sorted([CHAIN, JUMP, *rules]), self.address.version
        self.lab.wait_until(lambda: sorted(host.marks(version)) == expected, f"{rules} on {host.name}", 10)

    def wait_for_no_rule(self, host: Host) -> None:
        """Wait until the host marks no traffic."""
        version = self.address.version
        self.lab.wait_until(lambda: not any("--dport" in line for line in host.marks(version)), "the rules to go")

    def wait_for_nobody(self, address: Address) -> None:
        """Wait until no host has the address and nobody claims it."""
        self.lab.wait_until(
            lambda: not self.lab.carriers(address) and address not in self.claims(),
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
        self.assertEqual((host.labels(), host.marks(4), host.marks(6)), ([], [], []))

    def assert_one_carrier_at_a_time(self, address: Address) -> None:
        """No two hosts have had the address at the same moment since the hosts were made."""
        self.assertEqual(self.lab.ears.overlaps(address), [])

    def assert_none_lost(self, pinger: Pinger, since: float = 0.0) -> None:
        """Every ping that was sent since a moment has been answered, but for the latest."""
        lost = pinger.unanswered(since)
        if lost:
            self.fail(
                f"{len(lost)} pings got no answer, sent from {lost[0]:.3f} to {lost[-1]:.3f}; "
                f"{self.lab.ears.carriages(pinger.address)}\n{self.lab.story()}"
            )

    def stays_true(self, condition: Any, seconds: float) -> None:
        """The condition is true all the time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.assertTrue(condition())
            time.sleep(0.02)


class CarriedTestCase(AgentTestCase):
    """
    Three agents, one of which carries the address of a Service.

    @cvar store_port: where they find the claim store.
    """

    options: tuple[str, ...] = ()
    store_port = ETCD_PORT

    def setUp(self) -> None:
        super().setUp()
        self.prepare()
        self.agents = self.start_agents(*self.options, store_port=self.store_port)
        self.serve()
        self.create(service("web", [self.address]))
        self.carrier = self.lab.wait_for_carrier(self.address)
        self.wait_for_marks(self.carrier, rule(address=self.address))

    def prepare(self) -> None:
        """What is to be done before the agents start."""

    def others(self) -> list[Host]:
        """The hosts that do not carry the address at first."""
        return [host for host in self.lab.hosts if host is not self.carrier]

    @property
    def carrying(self) -> Process:
        return self.agents[self.carrier.name]

    def wait_for_another(self, limit: float = 25.0) -> Host:
        """Wait until another host than the first carrier has the address; that host."""

        def another() -> list[Host]:
            return [host for host in self.lab.carriers(self.address) if host is not self.carrier]

        (host,) = self.lab.wait_until(another, "another carrier", limit)
        return host


class FailureTestCase(CarriedTestCase):
    """
    An address that one of three agents carries, and a client that pings it every 2 ms.

    @cvar ttl: seconds.
    """

    ttl = 4

    def setUp(self) -> None:
        self.options = ("--ttl", str(self.ttl), "--verbose")
        super().setUp()
        self.pinger = self.lab.client.ping(self.address).start()
        self.pinger.wait_for_reply()

    def wait_for_heartbeat(self) -> None:
        """Wait until the claim has just been confirmed, and the kernel told to keep the address for longer."""
        known = len(self.lab.ears.changes)
        self.lab.wait_until(lambda: len(self.lab.ears.changes) > known, "the lifetime to be extended")

    def assert_taken_over(self, failed: float, outage: float) -> Host:
        """
        Another host takes the address over when the carrier has it no more, exactly once, and the client is without an
        answer for no longer than this; that host.
        """
        another = self.wait_for_another()
        self.assert_one_carrier_at_a_time(self.address)
        first, second = self.lab.ears.carriages(self.address)
        self.assertEqual((first.host, second.host), (self.carrier.name, another.name))
        assert first.until is not None
        self.assertLess(first.until, second.since)
        answered = self.pinger.wait_for_reply(second.since).received
        self.assertLess(self.pinger.outage(failed, answered), outage + SLACK)
        self.lab.wait_until(
            lambda: self.lab.client.who_answers(self.address) == another.name, f"{another.name} to serve"
        )
        self.wait_for_marks(another, rule(address=self.address))
        return another

    def last_carriage(self) -> Carriage:
        return self.lab.ears.carriages(self.address)[-1]
