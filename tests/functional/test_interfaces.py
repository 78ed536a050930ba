"""Several interfaces, interfaces of all kinds, and those that come and go."""

from __future__ import annotations

import time
from collections.abc import Sequence

from twisted.trial.unittest import SkipTest

from kiwi.model import Address, ip
from tests.lab.laboratory import Host, service
from tests.lab.namespaces import LabError
from tests.lab.processes import Process

from .support import ADDRESS, SLACK, AgentTestCase

ADDRESS6 = ip("fd00::41")
SECOND, SECOND6 = ip("192.168.2.41"), ip("fd00:0:0:2::41")
FIRST_LAN, SECOND_LAN = "192.168.1.0/24,fd00::/64", "192.168.2.0/24,fd00:0:0:2::/64"


class InterfacesTestCase(AgentTestCase):
    """Agents that are told which addresses go to which interface."""

    def start(self, hosts: Sequence[Host], *interfaces: str) -> dict[str, Process]:
        """Start an agent on each of these hosts, with these interfaces and their ranges."""
        network = [word for interface in interfaces for word in ("--interface", interface)]
        agents = {host.name: self.lab.start_agent(host, "--ttl", "4", network=network) for host in hosts}
        self.wait_for_agents(*agents)
        return agents

    def carriers(self, address: Address) -> list[Host]:
        """The hosts that have an address now, on whatever interface."""
        names = self.lab.ears.having(address)
        return [host for host in self.lab.hosts if host.name in names]

    def wait_for(self, address: Address, *others_than: Host) -> Host:
        """Wait until another host than these has an address; that host."""

        def another() -> Host | None:
            return next((host for host in self.carriers(address) if host not in others_than), None)

        return self.lab.wait_until(another, f"another one to carry {address}", 20)

    def answers(self, address: Address) -> None:
        """Wait until an address answers to the client."""
        with self.lab.client.ping(address) as pinger:
            pinger.wait_for_reply(time.monotonic())


class TwoInterfacesTests(InterfacesTestCase):
    """Each agent has two interfaces, and a Service has an address of each family on both LANs."""

    def setUp(self) -> None:
        super().setUp()
        self.agents = self.start(self.lab.hosts, f"em1={FIRST_LAN}", f"em2={SECOND_LAN}")
        self.create(service("web", [ADDRESS, ADDRESS6, SECOND, SECOND6]))
        self.carrier = {address: self.wait_for(address) for address in (ADDRESS, ADDRESS6, SECOND, SECOND6)}

    def test_each_has_its_interface(self) -> None:
        """Each address is on the interface whose ranges hold it, and answers there; in the end nothing is left."""
        for addresses, interface in (((ADDRESS, ADDRESS6), "em1"), ((SECOND, SECOND6), "em2")):
            for address in addresses:
                self.assertIn(address, self.carrier[address].carried(interface))
                self.answers(address)
        for agent in self.agents.values():
            agent.terminate(7)
        for host in self.lab.hosts:
            self.assert_untouched(host)
            self.assertEqual(host.labels("em2"), [])

    def test_one_cable_is_cut(self) -> None:
        """Where one interface loses its link, its addresses move at once; those of the other one stay."""
        failed = time.monotonic()
        for host in {self.carrier[SECOND], self.carrier[SECOND6]}:
            host.cut_second()
            self.addCleanup(host.plug_second)
        for address in (SECOND, SECOND6):
            another = self.wait_for(address, self.carrier[SECOND], self.carrier[SECOND6])
            self.assertLess(self.lab.ears.carriages(address)[-1].since - failed, 1 + SLACK)
            self.assertIn(address, another.carried("em2"))
            self.answers(address)
            self.assert_one_carrier_at_a_time(address)
        for address in (ADDRESS, ADDRESS6):
            self.assertEqual(
                [carriage.host for carriage in self.lab.ears.carriages(address)], [self.carrier[address].name]
            )


class SomeHostsTests(InterfacesTestCase):
    """Only some hosts are on a LAN."""

    def test_only_where_its_subnet_is(self) -> None:
        """An address goes only to hosts that have its subnet: to nobody where there is none of them any more."""
        both, *others = self.lab.hosts
        agents = self.start([both], "em1", "em2") | self.start(others, "em1")
        self.create(service("web", [ADDRESS, SECOND, SECOND6]))
        for address in (SECOND, SECOND6):
            self.assertIs(self.wait_for(address), both)
        self.wait_for(ADDRESS)
        agents[both.name].terminate(7)
        self.assertIn(self.wait_for(ADDRESS, both), others)
        self.stays_true(lambda: self.carriers(SECOND) == self.carriers(SECOND6) == [], 2)


class LaterTests(InterfacesTestCase):
    """An interface is not there yet when an agent starts."""

    def test_appears(self) -> None:
        """Its addresses are carried when it appears, and when it was deleted and made anew; the others all the time."""
        host = self.lab.hosts[0]
        host.delete_second()
        (agent,) = self.start([host], f"em1={FIRST_LAN}", f"em2={SECOND_LAN}").values()
        self.create(service("web", [ADDRESS, SECOND, SECOND6]))
        self.wait_for(ADDRESS)
        self.stays_true(lambda: self.carriers(SECOND) == self.carriers(SECOND6) == [], 1)
        for _ in range(2):
            host.make_second()
            for address in (SECOND, SECOND6):
                self.wait_for(address)
                self.answers(address)
            host.delete_second()
            self.lab.wait_until(lambda: self.carriers(SECOND) == self.carriers(SECOND6) == [], "them to be gone")
        self.assertEqual(len(self.lab.ears.carriages(ADDRESS)), 1)
        self.assertIsNone(agent.status)


class KindTests(InterfacesTestCase):
    """Interfaces that are made of others, on all hosts and at the client."""

    def check(self, name: str, *make: str, client: str = "") -> None:
        """Addresses answer there, and move to another host and answer when their carrier goes."""
        try:
            for host in self.lab.hosts:
                host.build_on_second(name, *make)
        except LabError as error:
            if "Unknown device type" in str(error):
                raise SkipTest(f"this kernel cannot: ip link {make[0]}") from error
            raise
        if client:
            self.addCleanup(self.lab.client.rebuild_second)
            self.lab.client.build_on_second(client, *make)
        agents = self.start(self.lab.hosts, f"{name}={SECOND_LAN}")
        self.create(service("web", [SECOND, SECOND6]))
        carrier = {address: self.wait_for(address) for address in (SECOND, SECOND6)}
        for address, host in carrier.items():
            self.assertIn(address, host.carried(name))
            with self.lab.client.ping(address) as pinger:
                pinger.wait_for_reply()
                told = time.monotonic()
                agents[host.name].terminate(7)
                answered = pinger.wait_for_reply(time.monotonic()).received
                self.assertLess(pinger.outage(told, answered), 1)
            self.assert_one_carrier_at_a_time(address)
            self.assertEqual(host.labels(name), [])

    def test_vlan(self) -> None:
        """A VLAN."""
        self.check("em2.5", "add link em2 name em2.5 type vlan id 5", client="em2.5")

    def test_bridge(self) -> None:
        """A bridge with one port."""
        self.check("br0", "add br0 type bridge forward_delay 0", "set em2 master br0")

    def test_bond(self) -> None:
        """A bond of one interface."""
        self.check(
            *("bond0", "add bond0 type bond mode active-backup miimon 10"),
            *("set em2 down", "set em2 master bond0"),
        )

    def test_macvlan(self) -> None:
        """A macvlan."""
        self.check("mac0", "add link em2 name mac0 type macvlan mode bridge")
