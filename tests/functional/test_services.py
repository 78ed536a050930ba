"""From a Service in Kubernetes to an address that answers: whole agents on three hosts, with a real etcd."""

from __future__ import annotations

import re
import time
from ipaddress import IPv4Address

from kiwi.model import Address
from tests.lab.laboratory import service

from .support import ADDRESS, CHAIN, DEBIAN_ETCD, JUMP, OTHER, OUTSIDE, AgentTestCase, rule


class ExampleTests(AgentTestCase):
    """
    The Service C{web} of the documentation: port 8080, public addresses 192.168.1.41 and 172.16.1.41, and agents that
    may take addresses of 192.168.1.0/24.
    """

    def test_address_answers(self) -> None:
        """
        One agent claims the address in etcd; its host has the address and the rule, says so by ARP and answers the
        client; the other hosts have none of that. The address that is out of range is ignored, and each log says so in
        one line.
        """
        agents = self.start_agents("--kube-api", "v1beta1")
        self.serve()
        start = time.monotonic()
        self.lab.cluster.create(service("web", [ADDRESS, OUTSIDE]))
        carrier = self.lab.wait_for_carrier(ADDRESS)

        node = self.lab.cluster.nodes()[f"/kiwi/publicips/{ADDRESS}"]
        self.assertEqual(node["value"], carrier.name)
        self.assertIn(node["ttl"], range(5, 11))
        shown = carrier.run("ip", "addr", "show", "em1")
        self.assertRegex(shown, r"\n    inet 192\.168\.1\.41/32 scope global (dynamic )?(proto \S+ )?em1:kube\n")
        (lifetime,) = re.findall(r"em1:kube\n\s+valid_lft (\d+)sec", shown)
        self.assertIn(int(lifetime), range(1, 10))
        self.assertEqual(sorted(carrier.marks()), sorted([CHAIN, JUMP, rule()]))
        self.lab.wait_until(lambda: self.lab.ears.announced(ADDRESS, start), "gratuitous ARP")
        (mac,) = {heard.mac for heard in self.lab.ears.announced(ADDRESS, start)}
        self.assertIn(mac, carrier.run("ip", "link", "show", "em1"))
        self.assertEqual(self.lab.client.who_answers(ADDRESS), carrier.name)
        for host in self.lab.hosts:
            if host is not carrier:
                self.assertEqual((host.labels(), [line for line in host.marks() if "--dport" in line]), ([], []))
            self.wait_for_line(agents[host.name], str(OUTSIDE))
        self.assertEqual([len(self.lines(agent, str(OUTSIDE))) for agent in agents.values()], [1, 1, 1])
        self.assertNotIn(OUTSIDE, self.lab.cluster.claims())

    def test_lifetime_is_extended(self) -> None:
        """The address stays longer than its kernel lifetime, and the claim longer than its TTL, without a pause."""
        self.start_agents("--ttl", "3", "--kube-api", "v1beta1")
        self.lab.cluster.create(service("web", [ADDRESS]))
        self.lab.wait_for_carrier(ADDRESS)
        with self.lab.client.ping(ADDRESS) as pinger:
            pinger.wait_for_reply()
            time.sleep(7)
            self.assertEqual(pinger.lost(), 0)
        (carriage,) = self.lab.ears.carriages(ADDRESS)
        self.assertIsNone(carriage.until)
        self.assertEqual(self.lab.cluster.claims(), {ADDRESS: carriage.host})


class DebianEtcdExampleTests(ExampleTests):
    """The same with Debian's etcd."""

    etcd = DEBIAN_ETCD


class ChangeTests(AgentTestCase):
    """What changes in Kubernetes changes on the hosts."""

    api = "v1"

    def setUp(self) -> None:
        super().setUp()
        self.agents = self.start_agents("--kube-api", self.api)
        self.lab.cluster.create(service("web", [ADDRESS], created="2020-01-01T00:00:00Z"))
        self.carrier = self.lab.wait_for_carrier(ADDRESS)

    def test_deleted(self) -> None:
        """Deleting the Service takes everything away."""
        self.lab.cluster.delete("web")
        self.wait_for_nobody(ADDRESS)
        self.wait_for_no_rule(self.carrier)

    def test_address_dropped(self) -> None:
        """An address that the Service gives up goes; the one that it keeps stays with its carrier."""
        self.lab.cluster.replace(service("web", [ADDRESS, OTHER]))
        self.lab.wait_for_carrier(OTHER)
        self.lab.cluster.replace(service("web", [ADDRESS]))
        self.wait_for_nobody(OTHER)
        self.assertEqual(len(self.lab.ears.carriages(ADDRESS)), 1)
        self.assertEqual(self.lab.carriers(ADDRESS), [self.carrier])

    def test_ports_changed(self) -> None:
        """Rules follow the ports, with every protocol, while the address stays."""
        self.lab.cluster.replace(service("web", [ADDRESS], [(80, "TCP"), (53, "UDP"), (9, "SCTP")]))
        self.wait_for_marks(self.carrier, rule(80), rule(53, "udp"), rule(9, "sctp"))
        self.assertEqual(len(self.lab.ears.carriages(ADDRESS)), 1)
        self.assertEqual(self.lab.carriers(ADDRESS), [self.carrier])

    def test_shared_address(self) -> None:
        """Two Services share an address on different ports; it goes when the last one goes."""
        self.lab.cluster.create(service("dns", [ADDRESS], [(53, "UDP")], namespace="infra"))
        self.wait_for_marks(self.carrier, rule(), rule(53, "udp", '"infra/dns"'))
        self.lab.cluster.delete("web")
        self.wait_for_marks(self.carrier, rule(53, "udp", '"infra/dns"'))
        self.assertEqual(self.lab.carriers(ADDRESS), [self.carrier])
        self.lab.cluster.delete("dns", "infra")
        self.wait_for_nobody(ADDRESS)

    def test_same_port_twice(self) -> None:
        """The older Service has the port, and the log names both; when it goes, the younger one has it."""
        self.lab.cluster.create(service("impostor", [ADDRESS], created="2021-01-01T00:00:00Z"))
        self.wait_for_line(self.agents[self.carrier.name], "impostor", "web", str(ADDRESS), "8080")
        self.wait_for_marks(self.carrier, rule())
        self.lab.cluster.delete("web")
        self.wait_for_marks(self.carrier, rule(comment="impostor"))
        self.assertEqual(self.lab.carriers(ADDRESS), [self.carrier])

    def test_older_service_comes_later(self) -> None:
        """Age decides, and not who came first."""
        self.lab.cluster.create(service("veteran", [ADDRESS], created="2001-01-01T00:00:00Z"))
        self.wait_for_marks(self.carrier, rule(comment="veteran"))

    def test_server_restarts(self) -> None:
        """While the API server is away everything stays; what changed meanwhile counts when it is back."""
        assert self.lab.cluster.api is not None
        self.lab.cluster.api.kill()
        time.sleep(1)
        self.assertEqual(self.lab.carriers(ADDRESS), [self.carrier])
        self.lab.cluster.start_api()
        self.lab.cluster.create(service("other", [OTHER]))
        self.lab.wait_for_carrier(OTHER)
        self.wait_for_nobody(ADDRESS)


class OldestApiTests(ChangeTests):
    """The same as Kubernetes C{v1beta1} tells it."""

    api = "v1beta1"


class OtherApisTests(AgentTestCase):
    """Every version of the API leads to the same."""

    def test_v1beta3(self) -> None:
        """A server and agents that speak C{v1beta3}."""
        self._carries("v1beta3")

    def test_newest_that_is_offered(self) -> None:
        """Without the option, the agent finds out."""
        self._carries("auto")

    def test_load_balancer(self) -> None:
        """An address in the status of a Service of type LoadBalancer is carried."""
        self.start_agents()
        definition = service("web", [])
        definition["spec"]["type"] = "LoadBalancer"
        definition["status"] = {"loadBalancer": {"ingress": [{"ip": str(ADDRESS)}]}}
        self.lab.cluster.create(definition)
        carrier = self.lab.wait_for_carrier(ADDRESS)
        self.wait_for_marks(carrier, rule())

    def _carries(self, api: str) -> None:
        self.start_agents("--kube-api", api)
        self.lab.cluster.create(service("web", [ADDRESS]))
        carrier = self.lab.wait_for_carrier(ADDRESS)
        self.wait_for_marks(carrier, rule())


def name_of(address: Address) -> str:
    """What to call the Service that wants an address."""
    return f"web-{int(address) % 65536}"


class SpreadTests(AgentTestCase):
    """Many addresses."""

    TTL = 4

    def test_every_agent_has_its_share(self) -> None:
        """
        Of 300 addresses each of three agents carries a third, give or take a fifth of that. When one dies, the others
        take its addresses over in equal parts, by the same measure, and keep their own. When it comes back, nothing
        moves.
        """
        options = ("--ttl", str(self.TTL), "-r", "10.9.0.0/16")
        agents = self.start_agents(*options)
        for agent in agents.values():
            self.wait_for_line(agent, "following Services")
        addresses: set[Address] = {IPv4Address("10.9.0.1") + number for number in range(300)}
        for address in addresses:
            self.lab.cluster.create(service(name_of(address), [address]))
        first = self._wait_for_all(addresses)
        self.assertEqual(first.keys(), agents.keys())
        for host in self.lab.hosts:
            self.assert_about(len(first[host.name]), 100)
            self.wait_for_marks(host, *(rule(comment=name_of(each), address=each) for each in first[host.name]))

        dead = self.lab.hosts[0]
        agents[dead.name].kill()
        self.lab.wait_until(lambda: not dead.carried(), "the addresses to go")
        second = self._wait_for_all(addresses)
        for name in first.keys() - {dead.name}:
            self.assertGreater(second[name], first[name])
            # Who is slow for a moment leaves some of its part to the other one.
            self.assert_about(len(second[name] - first[name]), len(first[dead.name]) / 2, 1 / 2)

        self.lab.wait_until(lambda: dead.name not in self.known_agents(), "the record to end")
        again = self.lab.start_agent(dead, *options)
        self.wait_for_agents(dead.name)
        self.wait_for_line(again, "following Services")
        self.stays_true(lambda: not dead.carried(), 2.5)
        self.assertEqual(self._wait_for_all(addresses), second)
        self.assertEqual([overlap for address in addresses for overlap in self.lab.ears.overlaps(address)], [])

    def assert_about(self, number: float, expected: float, part: float = 1 / 5) -> None:
        """The number is as expected, give or take a part of it."""
        self.assertLessEqual(abs(number - expected), expected * part, f"{number} is not about {expected}")

    def _wait_for_all(self, addresses: set[Address]) -> dict[str, set[Address]]:
        """Wait until each of the addresses is on one host, and the claims say the same; what each host carries."""

        def carried() -> dict[str, set[Address]] | None:
            found = {host.name: host.carried() for host in self.lab.hosts}
            claims = {address: name for name, those in found.items() for address in those}
            if sum(map(len, found.values())) != len(addresses) or self.lab.cluster.claims() != claims:
                return None
            return {name: those for name, those in found.items() if those}

        found = self.lab.wait_until(carried, "all addresses", 30)
        self.assertEqual(set().union(*found.values()), addresses)
        return found
