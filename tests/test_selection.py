"""Which addresses the Services may have."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address, ip_network

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, Host, Link, Mark, Protocol, Service, ServiceName, ServicePort
from kiwi.selection import Refusal, Selection, select

HTTP = ServicePort(Protocol.TCP, 8080)
DNS = ServicePort(Protocol.UDP, 53)
FIRST = IPv4Address("192.168.1.41")
SECOND = IPv4Address("172.16.1.41")
WEB = Service(ServiceName("default", "web"), frozenset({HTTP}), (FIRST,), "2015-02-01T00:00:00Z")
INTERFACE = IPv4Interface("192.168.1.11/24")
HOST = Host(
    Link(3, "em1", b"\x02\0\0\0\0\1", ready=True),
    subnets=frozenset({INTERFACE}),
    own=frozenset({INTERFACE, IPv4Interface("127.0.0.1/8"), IPv4Interface("10.1.0.5/16")}),
    gateways=frozenset({IPv4Address("192.168.1.1")}),
)
LAN = ip_network("192.168.1.0/24")
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def mark(service: Service, port: ServicePort = HTTP, address: IPv4Address = FIRST) -> Mark:
    return Mark(address, port.protocol, port.port, str(service.name))


class WantedTests(SynchronousTestCase):
    def test_example(self) -> None:
        """Of two addresses, the one in the allowed range is wanted, and the other one is refused with the reason."""
        web = evolve(WEB, addresses=(FIRST, SECOND))
        reason = "it is in none of the allowed ranges (192.168.1.0/24)"
        self.assertEqual(
            select([web], HOST, [LAN]),
            Selection({FIRST: frozenset({mark(web)})}, frozenset({Refusal(web.name, SECOND, reason)})),
        )

    def test_default_ranges(self) -> None:
        """Without ranges, the subnets of the interface are allowed."""
        web = evolve(WEB, addresses=(FIRST, IPv4Address("10.1.0.6")))
        selection = select([web], HOST, [])
        self.assertEqual(list(selection.wanted), [FIRST])
        nowhere = select([web], evolve(HOST, subnets=frozenset()), [])
        self.assertIn("there are none", min(nowhere.refusals, key=str).reason)

    def test_no_ports(self) -> None:
        """A Service without ports wants nothing."""
        self.assertEqual(select([evolve(WEB, ports=frozenset())], HOST, [LAN]), Selection())

    def test_shared_address(self) -> None:
        """Two Services may share an address on different ports."""
        dns = Service(ServiceName("kube-system", "dns"), frozenset({DNS}), (FIRST,))
        self.assertEqual(
            select([WEB, dns], HOST, [LAN]),
            Selection({FIRST: frozenset({mark(WEB), mark(dns, DNS)})}),
        )
        self.assertEqual(str(dns.name), "kube-system/dns")

    def test_one_port_number(self) -> None:
        """The same number is another port in another protocol."""
        udp = evolve(WEB, name=ServiceName("default", "udp"), ports=frozenset({ServicePort(Protocol.UDP, 8080)}))
        self.assertEqual(select([WEB, udp], HOST, [LAN]).refusals, frozenset())

    def test_same_port(self) -> None:
        """The same port goes to the older Service, and the younger one keeps its others."""
        young = Service(ServiceName("default", "app"), frozenset({HTTP, DNS}), (FIRST,), "2016-01-01T00:00:00Z")
        unknown = Service(ServiceName("default", "aaa"), frozenset({HTTP}), (FIRST,))
        reason = "the older Service web has its port 8080/tcp"
        self.assertEqual(
            select([unknown, young, WEB], HOST, [LAN]),
            Selection(
                {FIRST: frozenset({mark(WEB), mark(young, DNS)})},
                frozenset({Refusal(young.name, FIRST, reason), Refusal(unknown.name, FIRST, reason)}),
            ),
        )

    @given(st.permutations([WEB, evolve(WEB, name=ServiceName("b", "web")), evolve(WEB, name=ServiceName("a", "web"))]))
    def test_order(self, services: list[Service]) -> None:
        """Who wins does not depend on the order in which Services are told."""
        winner = evolve(WEB, name=ServiceName("a", "web"))
        self.assertEqual(select(services, HOST, [LAN]).wanted, {FIRST: frozenset({mark(winner)})})


class RefusedTests(SynchronousTestCase):
    """What is never taken, whatever the ranges say."""

    def reason(self, address: Address) -> str:
        selection = select([evolve(WEB, addresses=(address,))], HOST, EVERYTHING)
        self.assertEqual(selection.wanted, {})
        (refusal,) = selection.refusals
        self.assertEqual((refusal.service, refusal.address), (WEB.name, address))
        return refusal.reason

    def test_reasons(self) -> None:
        """Each has its reason."""
        reasons = {
            "192.168.1.11": "this host has it already, by somebody else's hand",
            "10.1.0.5": "this host has it already, by somebody else's hand",
            "192.168.1.1": "it is the default gateway",
            "192.168.1.0": "it is the network address of 192.168.1.0/24",
            "192.168.1.255": "it is the broadcast address of 192.168.1.0/24",
            "10.1.255.255": "it is the broadcast address of 10.1.0.0/16",
            "127.0.0.2": "it is a loopback address",
            "169.254.1.1": "it is a link-local address",
            "224.0.0.18": "it is a multicast address",
            "0.1.2.3": 'it is an address of "this network" (0.0.0.0/8)',
            "240.0.0.1": "it is a reserved address (240.0.0.0/4)",
            "255.255.255.255": "it is the limited broadcast address",
            "2001:db8::41": "IPv6 is not supported yet",
        }
        self.assertEqual({text: self.reason(ip_address(text)) for text in reasons}, reasons)

    def test_small_networks(self) -> None:
        """Networks of one or two addresses have no network and broadcast addresses (RFC 3021)."""
        host = evolve(HOST, own=frozenset({IPv4Interface("192.168.1.40/31")}))
        self.assertEqual(select([WEB], host, [LAN]).refusals, frozenset())

    def test_ours(self) -> None:
        """What this agent itself put on the interface may be taken."""
        self.assertEqual(select([WEB], evolve(HOST, assigned={FIRST: 5.0}), [LAN]).refusals, frozenset())

    @given(st.ip_addresses())
    def test_any(self, address: Address) -> None:
        """Every address is wanted or refused, and no IPv6 address is wanted."""
        selection = select([evolve(WEB, addresses=(address,))], HOST, EVERYTHING)
        self.assertEqual(len(selection.wanted) + len(selection.refusals), 1)
        self.assertFalse(isinstance(address, IPv6Address) and selection.wanted)
