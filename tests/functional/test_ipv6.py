"""Addresses of IPv6: what fails for them as for those of IPv4, and what only they have."""

from __future__ import annotations

import time
from functools import partial

from kiwi.model import Address, ip
from tests.lab.laboratory import LAN6, Host, service

from . import test_agents, test_failures
from .support import ADDRESS, AgentTestCase, CarriedTestCase, rule

ADDRESS6 = ip("fd00::41")
ADVERTISEMENT = 136


class IPv6Tests(CarriedTestCase):
    """A Service with an IPv6 address."""

    address = ADDRESS6

    def test_carried(self) -> None:
        """
        One host has it, alone in its prefix and with a lifetime; the others hear of it by unsolicited advertisements,
        and reach the Service.
        """
        (label,) = self.carrier.labels()
        self.assertEqual((label.address, label.prefix), (ADDRESS6, 128))
        self.assertLessEqual(label.lifetime, 10)
        self.assertEqual(self.claims(), {ADDRESS6: self.carrier.name})
        announced = self.lab.wait_until(lambda: self.lab.ears.announced(ADDRESS6), "an announcement")
        self.assertEqual({(heard.mac, heard.operation) for heard in announced}, {(self.carrier.mac(), ADVERTISEMENT)})
        self.assertEqual(self.lab.client.who_answers(ADDRESS6), self.carrier.name)

    def test_never_a_source(self) -> None:
        """The carrier opens nothing from it, however like the destination it is."""
        route = self.carrier.run("ip", "route", "get", str(LAN6 + 0x43))
        self.assertIn(f" src {LAN6 + int(self.carrier.address) % 256} ", route)

    def test_removed(self) -> None:
        """It is mended when somebody takes it away."""
        self.carrier.run("ip", "addr", "del", f"{ADDRESS6}/128", "dev", "em1")
        self.lab.wait_until(lambda: len(self.lab.ears.carriages(ADDRESS6)) == 2, "the address to be back")
        self.assertEqual({carriage.host for carriage in self.lab.ears.carriages(ADDRESS6)}, {self.carrier.name})


class IPv6OrderlyExitTests(test_agents.OrderlyExitTests):
    """An agent that carries an IPv6 address is asked to go."""

    address = ADDRESS6


class IPv6AgentTests(test_failures.AgentTests):
    """An agent that carries an IPv6 address dies or hangs."""

    address = ADDRESS6


class IPv6RestartTests(test_failures.RestartTests):
    """An agent that carries an IPv6 address is restarted."""

    address = ADDRESS6


class IPv6HostTests(test_failures.HostTests):
    """A host that carries an IPv6 address dies."""

    address = ADDRESS6


class IPv6CableTests(test_failures.CableTests):
    """A host that carries an IPv6 address loses its link."""

    address = ADDRESS6


class IPv6UplinkTests(test_failures.UplinkTests):
    """A host that carries an IPv6 address loses the network."""

    address = ADDRESS6


class DualStackTests(AgentTestCase):
    """A Service with addresses of both families."""

    def is_answered(self, address: Address, carrier: Host) -> bool:
        """Whether the client reaches this host at the address."""
        return self.lab.client.who_answers(address) == carrier.name

    def test_both(self) -> None:
        """Both are carried and marked, also when all agents but one have gone, and both go with the Service."""
        agents = self.start_agents()
        self.serve()
        self.create(service("web", [ADDRESS, "FD00:0::0041"]))
        for address in (ADDRESS, ADDRESS6):
            carrier = self.lab.wait_for_carrier(address)
            self.assertIn(rule(address=address), carrier.marks(address.version))
            self.lab.wait_until(partial(self.is_answered, address, carrier), f"{carrier.name} to serve")
        last, *others = self.lab.hosts
        for host in others:
            agents[host.name].terminate(7)
        self.lab.wait_until(lambda: last.carried() == {ADDRESS, ADDRESS6}, "the last one to carry both")
        for address in (ADDRESS, ADDRESS6):
            self.assert_one_carrier_at_a_time(address)
        self.lab.cluster.delete("web")
        for address in (ADDRESS, ADDRESS6):
            self.wait_for_nobody(address)
        agents[last.name].terminate(7)
        self.assert_untouched(last)


class ForeignTests(AgentTestCase):
    """A machine without an agent has an IPv6 address that a Service wants."""

    def test_left_alone(self) -> None:
        """No agent carries it; when the machine has it no more, one does."""
        self.lab.client.run("ip", "addr", "add", f"{ADDRESS6}/128", "dev", "em1", "nodad")
        self.addCleanup(self.lab.client.run, "ip", "addr", "del", f"{ADDRESS6}/128", "dev", "em1", check=False)
        (host, *_) = self.lab.hosts
        agent = self.start_agents(hosts=[host])[host.name]
        self.create(service("web", [ADDRESS6]))
        self.wait_for_line(agent, str(ADDRESS6), self.lab.client.mac())
        known = time.monotonic()
        self.stays_true(lambda: not host.carried(), 1.5)
        self.assertEqual(self.lab.ears.said(ADDRESS6, known), [])
        self.lab.client.run("ip", "addr", "del", f"{ADDRESS6}/128", "dev", "em1")
        self.assertIs(self.lab.wait_for_carrier(ADDRESS6, 60), host)
