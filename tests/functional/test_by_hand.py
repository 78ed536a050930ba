"""What hands, strangers and namesakes do to an agent's addresses, and what it does about that."""

from __future__ import annotations

import time
from ipaddress import IPv4Address

from pyroute2 import IPRoute

from kiwi.network.addresses import PROTOCOL
from tests.lab.laboratory import service

from .support import ADDRESS, SLACK, AgentTestCase, FailureTestCase, rule

FOREVER = 0xFFFFFFFF
"""A lifetime without an end, as the kernel has it."""

STRANGE = IPv4Address("192.168.1.60")
"""An address that a Service wants and a machine has on which no agent runs."""


class HandTestCase(FailureTestCase):
    """What somebody does by hand is mended, by the host that carries the address."""

    def assert_alone(self) -> None:
        """No other host had the address at any time."""
        self.assertEqual({carriage.host for carriage in self.lab.ears.carriages(ADDRESS)}, {self.carrier.name})
        self.assertEqual(self.claims(), {ADDRESS: self.carrier.name})


class AddressTests(HandTestCase):
    """News from the kernel has the address mended at once. Here a heartbeat has just been, and the next one is far."""

    ttl = 10

    def test_removed(self) -> None:
        """It is back within a second, announced anew."""
        self.wait_for_heartbeat()
        removed = time.monotonic()
        self.carrier.run("ip", "addr", "del", f"{ADDRESS}/32", "dev", "em1")
        self.lab.wait_until(lambda: len(self.lab.ears.carriages(ADDRESS)) == 2, "the address to be back")
        first, second = self.lab.ears.carriages(ADDRESS)
        assert first.until is not None
        self.assertLess(second.since - first.until, 1 + SLACK)
        self.lab.wait_until(lambda: self.lab.ears.announced(ADDRESS, second.since), "an announcement")
        self.assertLess(self.pinger.outage(removed, self.pinger.wait_for_reply(second.since).received), 1 + SLACK)
        self.assert_alone()

    def test_made_permanent(self) -> None:
        """The kernel is told within a second to remove it in time again; the address stays meanwhile."""
        self.wait_for_heartbeat()
        with self.carrier.namespace.entered(), IPRoute() as route:
            (index,) = route.link_lookup(ifname="em1")
            address = {"local": str(ADDRESS), "address": str(ADDRESS), "prefixlen": 32, "label": "em1:kube"}
            lifetimes = {"valid_lft": FOREVER, "preferred_lft": FOREVER}
            route.addr("replace", index=index, **address, **lifetimes, proto=PROTOCOL)
        self._assert_mended()

    def test_made_permanent_and_tag_lost(self) -> None:
        """The same with a command that does not repeat the address's protocol, which the kernel then forgets."""
        self.wait_for_heartbeat()
        forever = ("valid_lft", "forever", "preferred_lft", "forever")
        self.carrier.run("ip", "addr", "change", f"{ADDRESS}/32", "dev", "em1", *forever)
        self._assert_mended()

    def _assert_mended(self) -> None:
        """The address stays where it is, no longer than it may, and the kernel knows within a second."""
        changed = time.monotonic()
        self.lab.wait_until(lambda: self._lifetime() <= self.ttl, "the lifetime to end", 5)
        self.assertLess(time.monotonic() - changed, 1 + SLACK)
        self.assertEqual(len(self.lab.ears.carriages(ADDRESS)), 1)
        time.sleep(0.5)
        self.assert_none_lost(self.pinger)
        self.assert_alone()

    def _lifetime(self) -> int:
        (label,) = self.carrier.labels()
        return label.lifetime


class FirewallTests(HandTestCase):
    """Heartbeats mend the firewall."""

    ttl = 3

    def test_chain_flushed_and_jump_deleted(self) -> None:
        """Rule and jump are back within a heartbeat, once each; the address has nothing to do with it."""
        for command in (["-F", "KUBE-PUBLIC"], ["-D", "PREROUTING", "-j", "KUBE-PUBLIC"]):
            self.carrier.run("iptables", "-w", "-t", "mangle", *command)
            changed = time.monotonic()
            self.wait_for_marks(self.carrier, rule())
            self.assertLess(time.monotonic() - changed, self.ttl / 3 + SLACK)
        self.assertEqual(len(self.lab.ears.carriages(ADDRESS)), 1)
        self.assert_none_lost(self.pinger)
        self.assert_alone()

    def test_what_others_have_stays(self) -> None:
        """An address and a rule that somebody else configured are as they were when the agent has gone."""
        self.carrier.run("ip", "addr", "add", "192.168.1.77/32", "dev", "em1", "label", "em1:mine")
        self.carrier.run("iptables", "-t", "mangle", "-A", "PREROUTING", "-p", "udp", "-j", "MARK", "--set-mark", "7")
        before = self.carrier.run("ip", "-o", "-4", "addr", "show", "label", "em1:mine")
        self.carrying.terminate()
        self.assertEqual(self.carrier.run("ip", "-o", "-4", "addr", "show", "label", "em1:mine"), before)
        self.assertEqual(
            (self.carrier.labels(), self.carrier.marks()),
            ([], ["-A PREROUTING -p udp -j MARK --set-xmark 0x7/0xffffffff"]),
        )


class StrangerTests(AgentTestCase):
    """A machine on which no agent runs has a public address already."""

    TTL = 3

    def test_stranger_keeps_the_address(self) -> None:
        """
        Each agent that tries refuses to carry it, names the MAC address, and tries again later; the neighbours hear of
        the stranger only. When it is gone, an agent carries the address.
        """
        stranger = self.lab.cluster.host
        stranger.run("ip", "addr", "add", f"{STRANGE}/32", "dev", "em1")
        self.addCleanup(stranger.run, "ip", "addr", "del", f"{STRANGE}/32", "dev", "em1", check=False)
        mac = stranger.mac()
        agents = self.start_agents("--ttl", str(self.TTL))
        start = time.monotonic()
        with self.lab.client.ping(STRANGE) as pinger:
            pinger.wait_for_reply()
            self.lab.cluster.create(service("strange", [STRANGE]))
            refusals = [str(STRANGE), "refused", mac]
            self.lab.wait_until(
                lambda: any(len(self.lines(agent, *refusals)) > 1 for agent in agents.values()), "a second refusal", 20
            )
            self.assertGreater(time.monotonic() - start, self.TTL)
            self.assertEqual(self.lab.ears.carriages(STRANGE), [])
            self.assertEqual({heard.mac for heard in self.lab.ears.said(STRANGE)}, {mac})
            self.assert_none_lost(pinger)
            self.assertEqual(self.lab.client.neighbour(STRANGE), mac)

            stranger.run("ip", "addr", "del", f"{STRANGE}/32", "dev", "em1")
            carrier = self.lab.wait_for_carrier(STRANGE)
            self.lab.wait_until(lambda: self.lab.client.neighbour(STRANGE) == carrier.mac(), "the client to know")
        self.assertEqual(len(self.lab.ears.carriages(STRANGE)), 1)


class NamesakeTests(FailureTestCase):
    """Two agents with one id is a mistake that does not go unnoticed."""

    ttl = 3

    def test_second_one_refuses(self) -> None:
        """
        Whether it is started on the same host or on another one, it ends with exit status 1 and one line that says why,
        and has touched nothing; the first one goes on.
        """
        name = self.carrier.name
        elsewhere = self.others()[0]
        options, network = ("--id", name, "--fwchain", "NAMESAKE", "--ttl", str(self.ttl)), ("--interface", "em2")
        second = {
            host.name: self.lab.start_agent(host, *self.store, *options, network=network)
            for host in (self.carrier, elsewhere)
        }
        for process in second.values():
            self.assertEqual(process.wait(20), 1, process.story())
            (line,) = process.errors().splitlines()
            self.assertIn(name, line)
            self.assertTrue(line.startswith("kiwi: --agent-id: "), line)
        self.assertNotIn("NAMESAKE", "".join(self.carrier.marks() + elsewhere.marks()))
        self.assertIsNone(self.carrying.status)
        self.assertEqual(len(self.lab.ears.carriages(ADDRESS)), 1)
        self.assertEqual(self.claims(), {ADDRESS: name})
        self.assertLessEqual(set(self.agents), self.known_agents())
        self.assert_none_lost(self.pinger)
