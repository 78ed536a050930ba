"""Agents that mark traffic with nftables, with a mask, or not at all, and agents that change to another firewall."""

from __future__ import annotations

from tests.lab.laboratory import Host, service
from tests.lab.processes import Process

from .support import ADDRESS, AgentTestCase, rule

WEB = f"{ADDRESS} . tcp . 8080"


class FirewallTests(AgentTestCase):
    """One host carries the address of a Service."""

    def setUp(self) -> None:
        super().setUp()
        self.host, *_ = self.lab.hosts
        self.create(service("web", [ADDRESS]))

    def start(self, *options: str) -> Process:
        agent = self.start_agents("--ttl", "4", *options, hosts=[self.host])[self.host.name]
        self.lab.wait_for_carrier(ADDRESS)
        return agent

    def elements(self, host: Host) -> str:
        """The table of Kiwi as nft lists it; nothing where there is none."""
        listed = host.run("nft", "list", "ruleset", "inet")
        return listed if "table inet kiwi" in listed else ""

    def wait_for_nftables(self, *words: str) -> None:
        """Wait until traffic to the address is marked by nftables, and there is nothing of iptables."""
        self.lab.wait_until(
            lambda: all(word in self.elements(self.host) for word in (WEB, *words)) and not self.host.marks(),
            f"nftables to have {words}",
        )

    def test_nftables(self) -> None:
        """Traffic is marked by the map of table C{inet kiwi}; a heartbeat mends it, and in the end nothing is left."""
        agent = self.start("--firewall", "nftables")
        self.wait_for_nftables(
            f'{WEB} comment "web" : 0x00000001', "meta mark set ip daddr . meta l4proto . th dport map"
        )
        before = self.elements(self.host)
        for spoil in ("flush map inet kiwi ipv4", "delete table inet kiwi", "add rule inet kiwi KUBE-PUBLIC accept"):
            self.host.run("nft", *spoil.split())
            self.lab.wait_until(lambda: self.elements(self.host) == before, "the table to be mended", 10)
        self.wait_for_line(agent, "Traffic is marked by nftables, in table inet kiwi")
        agent.terminate(7)
        self.assertEqual(self.elements(self.host), "")
        self.assert_untouched(self.host)

    def test_mask(self) -> None:
        """With a mask, only its bits are set."""
        self.start("--firewall", "nftables", "--fwmark", "0x100/0xff00")
        self.wait_for_nftables("meta mark set meta mark & 0xffff01ff | 0x00000100")

    def test_change(self) -> None:
        """Whatever one life used, killed, is removed by the next one that uses another."""
        agent = self.start()
        self.wait_for_marks(self.host, rule())
        agent.kill()
        agent = self.start("--firewall", "nftables")
        self.wait_for_nftables()
        agent.kill()
        agent = self.start("--firewall", "iptables")
        self.wait_for_marks(self.host, rule())
        self.lab.wait_until(lambda: not self.elements(self.host), "the table to go")
        agent.kill()
        agent = self.start("--firewall", "none")
        self.lab.wait_until(lambda: not self.host.marks(), "the chain to go")
        self.lab.wait_until(lambda: self.host.carried() == {ADDRESS}, "the address to be carried")
        agent.terminate(7)
        self.assert_untouched(self.host)
