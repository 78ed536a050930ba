"""
Agents, hosts and links that fail: no moment has two carriers, and the address is back in time.

What is promised of time is measured by C{bench}; the limits here leave a busy machine L{SLACK} more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from ipaddress import IPv4Address

from tests.lab.clocks import WallClock
from tests.lab.laboratory import ETCD_PORT, IPTABLES, Host, service
from tests.lab.processes import Process

from .support import ADDRESS, SLACK, AgentTestCase, FailureTestCase

SECOND_ADDRESS = IPv4Address("192.168.2.41")
"""A public address on the second LAN, which is not the one through which agents reach store and API."""


class AgentTests(FailureTestCase):
    """The agent that carries the address dies or hangs, while its host and network are well."""

    ttl = 3

    def test_killed(self) -> None:
        """Its kernel takes the address away, and then another agent carries it, within a TTL and a second."""
        failed = time.monotonic()
        self.carrying.kill()
        self.assert_taken_over(failed, 2.5)
        self.assertLess(self.last_carriage().since - failed, self.ttl + 1 + SLACK)
        self.assertEqual(self.carrier.labels(), [])

    def test_frozen(self) -> None:
        """
        The same, when it is frozen. When it goes on after three TTLs it lets go of what it lost before it touches
        address, neighbours or firewall. After that it carries the address again when the others leave.
        """
        failed = time.monotonic()
        self.carrying.freeze()
        another = self.assert_taken_over(failed, 2.5)
        mac = another.mac()
        self.stays_true(
            lambda: self.lab.ears.having(self.address) == [another.name], failed + 3 * self.ttl - time.monotonic()
        )

        known = len(self.carrying.output())
        resumed = time.monotonic()
        self.carrying.resume()
        self.wait_for_line(self.carrying, str(self.address), "letting go")
        self.wait_for_no_rule(self.carrier)
        self.stays_true(lambda: self.lab.ears.having(self.address) == [another.name], 1.5)
        news = self.carrying.output()[known:]
        before, letting_go, after = news.partition(f"{self.address}: letting go")
        self.assertEqual(touching(before), [])
        self.assertTrue(letting_go)
        self.assertEqual([line for line in touching(after) if "Assign(" in line or "Announce(" in line], [])
        self.assertEqual({heard.mac for heard in self.lab.ears.said(self.address, resumed)} - {mac}, set())
        self.assert_none_lost(self.pinger, resumed)

        for host in sorted(self.others(), key=lambda host: host is another):
            self.agents[host.name].terminate()
        self.lab.wait_until(lambda: self.lab.ears.having(self.address) == [self.carrier.name], "it to carry again")
        self.lab.wait_until(lambda: self.lab.client.who_answers(self.address) == self.carrier.name, "it to serve again")
        self.assert_one_carrier_at_a_time(self.address)


def touching(log: str) -> list[str]:
    """The lines of a verbose log that tell of steps on the host or the network."""
    steps = ("Assign(", "Unassign(", "Announce(", "Probe(", "MarkTraffic(", "Unmark(")
    return [line for line in log.splitlines() if any(step in line for step in steps)]


class RestartTests(FailureTestCase):
    """A restart is not an outage."""

    ttl = 6

    def test_agent_comes_back_within_the_ttl(self) -> None:
        """It adopts its claim, its address and its rules: no ping is lost, and no packet goes unmarked."""
        packets = [IPTABLES[self.address.version], "-t", "mangle", "-L", "KUBE-PUBLIC", "-v", "-x", "-n"]
        self.assertEqual(self.lab.client.who_answers(self.address), self.carrier.name)
        counted = self.carrier.run(*packets).splitlines()[2].split()
        self.assertNotEqual(counted[0], "0")
        (before,) = self.lab.ears.carriages(self.address)
        self.wait_for_heartbeat()
        killed = time.monotonic()
        self.carrying.kill()
        # What starts it again takes its time.
        time.sleep(1)
        again = self.agents[self.carrier.name] = self.start_agent(self.carrier, *self.options)
        self.wait_for_line(again, str(self.address), "adopted")
        time.sleep(max(0.0, killed + 1.5 * self.ttl - time.monotonic()))
        self.assert_none_lost(self.pinger)
        self.assertIsNone(again.status)
        self.assertEqual(self.lab.ears.carriages(self.address), [before])
        self.assertEqual(self.claims(), {self.address: self.carrier.name})
        # The counters would start from zero if the rule had been written anew.
        self.assertEqual(self.carrier.run(*packets).splitlines()[2].split(), counted)

    def test_service_deleted_meanwhile(self) -> None:
        """What is no longer wanted goes when the agent is back."""
        self.carrying.kill()
        self.lab.cluster.delete("web")
        self.agents[self.carrier.name] = self.start_agent(self.carrier, *self.options)
        self.wait_for_nobody(self.address)
        self.wait_for_no_rule(self.carrier)
        self.assert_one_carrier_at_a_time(self.address)


class HostTests(FailureTestCase):
    """The host that carries the address is gone."""

    def test_host_dies(self) -> None:
        """It is dead and unplugged: another host serves the client within a TTL and a bit."""
        failed = time.monotonic()
        # In this order: an agent that lives sees its link go.
        self.carrying.kill()
        self.carrier.cut()
        self.assert_taken_over(failed, self.ttl + 0.75)


class NetworkTestCase(FailureTestCase):
    """The host that carries the address loses the network, and has it again."""

    def loses_the_network(self, cut: Callable[[], None], heal: Callable[[], None]) -> None:
        """
        The host lets go by itself, before its claim ends, and another one takes the address over after that. The heal
        changes nothing: the address stays, and nobody on the LAN loses its way for a moment.
        """
        failed = time.monotonic()
        cut()
        claim_ends = self.claim_ends(self.carrier)
        another = self.assert_taken_over(failed, self.ttl + 0.75)
        first, second = self.lab.ears.carriages(self.address)
        assert first.until is not None
        self.assertLess(first.until, claim_ends)
        self.assertLess(claim_ends, second.since)

        (neighbour,) = (host for host in self.others() if host is not another)
        also = neighbour.ping(self.address, 0.01).start()
        also.wait_for_reply()
        mac = another.mac()
        healed = time.monotonic()
        heal()
        self.wait_for_line(self.carrying, "the claim store answers again")
        self.stays_true(
            lambda: {self.lab.client.neighbour(self.address), neighbour.neighbour(self.address)} == {mac}, 3
        )
        self.assertEqual(self.lab.ears.carriages(self.address), [first, second])
        self.assertEqual({heard.mac for heard in self.lab.ears.said(self.address, healed)} - {mac}, set())
        self.assert_none_lost(self.pinger, healed)
        self.assert_none_lost(also, healed)
        self.assertEqual(self.claims(), {self.address: another.name})


class CableTests(NetworkTestCase):
    """Its link goes."""

    def test_cable_is_cut_and_plugged_in_again(self) -> None:
        """The host, which loses its link, lets go; when it has the link again it carries nothing."""
        self.loses_the_network(self.carrier.cut, self.carrier.plug)


class UplinkTests(NetworkTestCase):
    """Its link stays up, and only nothing comes through."""

    def test_uplink_is_cut_and_mended(self) -> None:
        """The claim cannot be confirmed. The host lets go; when it has the network again it carries nothing."""
        self.loses_the_network(self.carrier.cut_uplink, self.carrier.mend_uplink)


class LinkTests(AgentTestCase):
    """The interface that carries the address is not the one through which the agents reach store and API."""

    def setUp(self) -> None:
        super().setUp()
        self.agents = self.start_agents()
        self.create(service("web", [SECOND_ADDRESS]))
        self.carrier = self._carrier()

    def start_agent(self, host: Host, *options: str, store_port: int = ETCD_PORT) -> Process:
        network = ("--interface", "em2", "-r", "192.168.2.0/24")
        return self.lab.start_agent(host, *options, store_port=store_port, network=network)

    def _having(self) -> list[Host]:
        names = self.lab.ears.having(SECOND_ADDRESS)
        return [host for host in self.lab.hosts if host.name in names]

    def _carrier(self) -> Host:
        (carrier,) = self.lab.wait_until(self._having, "a carrier")
        return carrier

    def _assert_moves(self, failed: float) -> Host:
        """Another agent has the address within a second of the failure, and not before the one that had it let go."""
        another = self.lab.wait_until(
            lambda: next((host for host in self._having() if host is not self.carrier), None), "another carrier"
        )
        self.assertLess(self.lab.ears.carriages(SECOND_ADDRESS)[-1].since - failed, 1 + SLACK)
        self.assert_one_carrier_at_a_time(SECOND_ADDRESS)
        self.lab.wait_until(
            lambda: self.claims() == {SECOND_ADDRESS: another.name}, f"{another.name} to have the claim"
        )
        return another

    def _assert_stays(self, carrier: Host) -> None:
        """What comes back takes nothing."""
        self.stays_true(lambda: self._having() == [carrier], 1.5)
        self.assert_one_carrier_at_a_time(SECOND_ADDRESS)

    def test_link_down(self) -> None:
        """Somebody sets the interface down, and up again."""
        failed = time.monotonic()
        self.carrier.run("ip", "link", "set", "em2", "down")
        another = self._assert_moves(failed)
        self.carrier.run("ip", "link", "set", "em2", "up")
        self._assert_stays(another)

    def test_cable_cut(self) -> None:
        """The interface loses its carrier, and has it again."""
        failed = time.monotonic()
        self.carrier.cut_second()
        another = self._assert_moves(failed)
        self.carrier.plug_second()
        self._assert_stays(another)

    def test_interface_deleted_and_made_again(self) -> None:
        """The interface disappears. When there is a new one of its name, the agent is a candidate again."""
        failed = time.monotonic()
        self.carrier.delete_second()
        another = self._assert_moves(failed)
        self.carrier.make_second()
        self._assert_stays(another)
        revived, self.carrier = self.carrier, another
        for host in self.lab.hosts:
            if host not in (revived, another):
                host.run("ip", "link", "set", "em2", "down")
        failed = time.monotonic()
        another.run("ip", "link", "set", "em2", "down")
        self.assertIs(self._assert_moves(failed), revived)


class WallClockTests(AgentTestCase):
    """Deadlines are not the wall clock's business."""

    TTL = 6

    def _is_off(self, agent: Process, seconds: int) -> bool:
        """Whether the last line in an agent's log shows a time of day that is so far from the right one."""
        stamp = agent.output().splitlines()[-1].split()[0]
        shown = datetime.fromisoformat(f"{stamp[:-2]}:{stamp[-2:]}").timestamp()
        return abs(shown - time.time() - seconds) < 60

    def test_wall_clock_jumps(self) -> None:
        """
        The clock of the carrier's host is an hour ahead all at once, and then an hour behind, each for longer than a
        TTL: nothing happens to the address.
        """
        clocks = {host.name: self.lab.make_clock(host.name) for host in self.lab.hosts}
        agents = {
            host.name: self.lab.start_agent(host, "--ttl", str(self.TTL), "--verbose", clock=clocks[host.name])
            for host in self.lab.hosts
        }
        for agent in agents.values():
            self.addCleanup(WallClock.clean, agent.pid)
        self.wait_for_agents(*agents)
        self.create(service("web", [ADDRESS]))
        carrier = self.lab.wait_for_carrier(ADDRESS)
        agent, clock = agents[carrier.name], clocks[carrier.name]
        self.assertTrue(self._is_off(agent, 0))
        with self.lab.client.ping(ADDRESS) as pinger:
            pinger.wait_for_reply()
            for hours in (1, -1):
                clock.step(hours * 3600)
                self.lab.wait_until(partial(self._is_off, agent, hours * 3600), f"the clock to jump {hours} h")
                time.sleep(1.3 * self.TTL)
            self.assert_none_lost(pinger)
        (carriage,) = self.lab.ears.carriages(ADDRESS)
        self.assertEqual((carriage.host, carriage.until), (carrier.name, None))
        self.assertEqual(self.claims(), {ADDRESS: carrier.name})
