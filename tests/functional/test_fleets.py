"""Agents that were given different prefixes of one etcd, by mistake: what new addresses come to."""

from __future__ import annotations

import time
from ipaddress import IPv4Address

from tests.lab.laboratory import CLUSTER, ETCD_PORT, service

from .support import SLACK, AgentTestCase

PREFIXES = ("/one", "/two")
TEN = [IPv4Address("192.168.1.200") + number for number in range(10)]


class PrefixTests(AgentTestCase):
    """Two agents hear of ten new Services at the same moment, and do not see each other's claims."""

    ttl = 4

    def setUp(self) -> None:
        super().setUp()
        self.agents = {}
        for host, prefix in zip(self.lab.hosts, PREFIXES, strict=False):
            path = f"/v2/keys{prefix}?recursive=true"
            self.addCleanup(self.lab.client.request, "DELETE", CLUSTER, ETCD_PORT, path)
            self.agents[host.name] = self.lab.start_agent(host, "-p", prefix, "--ttl", str(self.ttl))
        for agent in self.agents.values():
            self.wait_for_line(agent, "following the claims")
            self.wait_for_line(agent, "following Services")
        # Who has just started lets others be heard of.
        time.sleep(1)

    def having(self) -> list[list[str]]:
        """The hosts that have each address now."""
        return [self.lab.ears.having(address) for address in TEN]

    def test_ten(self) -> None:
        """
        Soon each address is on one host and stays there, and the other agent has given its claim back and says why. If
        two had one, it was for a moment.
        """
        for address in TEN:
            self.lab.cluster.create(service(f"web-{address}", [address]))
        self.lab.wait_until(self.is_in_order, "one carrier of each address, and one claim", 10)
        carriers = self.having()
        self.stays_true(lambda: self.having() == carriers, 2.5 * self.ttl)
        for address, (carrier,) in zip(TEN, carriers, strict=True):
            for pair in self.lab.ears.overlaps(address):
                until = min(each.until or time.monotonic() for each in pair)
                self.assertLess(until - pair[1].since, SLACK, self.lab.story())
            (other,) = self.agents.keys() - {carrier}
            said = self.lines(self.agents[other], f"{address}: ", "is that an agent with another claim store?")
            self.assertNotEqual(said, [], self.lab.story())

    def is_in_order(self) -> bool:
        """Whether each address is on one host, and claimed by its agent alone."""
        claims = [claim for prefix in PREFIXES for claim in self.lab.cluster.claims(prefix).items()]
        carriers = [(address, host) for address, hosts in zip(TEN, self.having(), strict=True) for host in hosts]
        return sorted(claims) == carriers and len(carriers) == len(TEN)
