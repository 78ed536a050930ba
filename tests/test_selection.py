"""Which addresses the Services may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Interface, ip_address, ip_interface, ip_network
from typing import Any, ClassVar

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import (
    Address,
    Configured,
    Endpoints,
    EndpointSlice,
    Host,
    Link,
    Mark,
    Network,
    Protocol,
    Service,
    ServiceName,
    ServicePort,
    SliceName,
    ip,
)
from kiwi.selection import Attachment, Refusal, Selection, Selector, gather, reach, select

HTTP = ServicePort(Protocol.TCP, 8080)
DNS = ServicePort(Protocol.UDP, 53)
FIRST = ip("192.168.1.41")
SECOND = ip("172.16.1.41")
WEB = Service(ServiceName("default", "web"), frozenset({HTTP}), (FIRST,), "2015-02-01T00:00:00Z")
INTERFACE = IPv4Interface("192.168.1.11/24")
HOST = Host(
    {"em1": Link(3, "em1", b"\x02\0\0\0\0\1", ready=True)},
    subnets={"em1": frozenset({INTERFACE})},
    own=frozenset({INTERFACE, *map(ip_interface, ("127.0.0.1/8", "10.1.0.5/16", "fd00::11/64", "::1/128"))}),
    gateways=frozenset({ip("192.168.1.1"), ip("fd00::1")}),
)
LAN = ip_network("192.168.1.0/24")
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))


LOCAL = evolve(WEB, local=True)
OTHER = Service(ServiceName("default", "dns"), frozenset({DNS}), (FIRST,), local=True)
NOWHERE = "its externalTrafficPolicy is Local, and no node has a ready endpoint of it"


def on(ready: str = "", terminating: str = "") -> Endpoints:
    """Endpoints on these nodes."""
    return Endpoints(frozenset(ready.split()), frozenset(terminating.split()))


def allowed(
    services: Iterable[Service],
    host: Host,
    ranges: Sequence[Network],
    endpoints: Mapping[ServiceName, Endpoints] | None = None,
) -> Selection:
    """What is selected on a host with one interface."""
    return select(services, host, reach([Attachment("em1")], ranges, host.subnets), endpoints)


def on_em1(wanted: Mapping[Address, frozenset[Mark]], *rest: Any, **named: Any) -> Selection:
    """A selection of addresses that all go to one interface."""
    return evolve(Selection(wanted, *rest, **named), places=dict.fromkeys(wanted, "em1"))


def mark(service: Service, port: ServicePort = HTTP, address: Address = FIRST) -> Mark:
    return Mark(address, port.protocol, port.port, str(service.name))


class WantedTests(SynchronousTestCase):
    def test_example(self) -> None:
        """Of two addresses, the one in the allowed range is wanted, and the other one is refused with the reason."""
        web = evolve(WEB, addresses=(FIRST, SECOND))
        reason = "it is in none of the allowed ranges (192.168.1.0/24)"
        self.assertEqual(
            allowed([web], HOST, [LAN]),
            on_em1({FIRST: frozenset({mark(web)})}, frozenset({Refusal(web.name, SECOND, reason)})),
        )

    def test_default_ranges(self) -> None:
        """Without ranges, the subnets of the interface are allowed."""
        web = evolve(WEB, addresses=(FIRST, ip("10.1.0.6")))
        selection = allowed([web], HOST, [])
        self.assertEqual(list(selection.wanted), [FIRST])
        nowhere = allowed([web], evolve(HOST, subnets={}), [])
        self.assertIn("there are none", min(nowhere.refusals, key=str).reason)

    def test_no_ports(self) -> None:
        """A Service without ports wants nothing."""
        self.assertEqual(allowed([evolve(WEB, ports=frozenset())], HOST, [LAN]), Selection())

    def test_shared_address(self) -> None:
        """Two Services may share an address on different ports."""
        dns = Service(ServiceName("kube-system", "dns"), frozenset({DNS}), (FIRST,))
        self.assertEqual(
            allowed([WEB, dns], HOST, [LAN]),
            on_em1({FIRST: frozenset({mark(WEB), mark(dns, DNS)})}),
        )
        self.assertEqual(str(dns.name), "kube-system/dns")

    def test_one_port_number(self) -> None:
        """The same number is another port in another protocol."""
        udp = evolve(WEB, name=ServiceName("default", "udp"), ports=frozenset({ServicePort(Protocol.UDP, 8080)}))
        self.assertEqual(allowed([WEB, udp], HOST, [LAN]).refusals, frozenset())

    def test_same_port(self) -> None:
        """The same port goes to the older Service, and the younger one keeps its others."""
        young = Service(ServiceName("default", "app"), frozenset({HTTP, DNS}), (FIRST,), "2016-01-01T00:00:00Z")
        unknown = Service(ServiceName("default", "aaa"), frozenset({HTTP}), (FIRST,))
        reason = "the older Service web has its port 8080/tcp"
        self.assertEqual(
            allowed([unknown, young, WEB], HOST, [LAN]),
            on_em1(
                {FIRST: frozenset({mark(WEB), mark(young, DNS)})},
                frozenset({Refusal(young.name, FIRST, reason), Refusal(unknown.name, FIRST, reason)}),
            ),
        )

    @given(st.permutations([WEB, evolve(WEB, name=ServiceName("b", "web")), evolve(WEB, name=ServiceName("a", "web"))]))
    def test_order(self, services: list[Service]) -> None:
        """Who wins does not depend on the order in which Services are told."""
        winner = evolve(WEB, name=ServiceName("a", "web"))
        self.assertEqual(allowed(services, HOST, [LAN]).wanted, {FIRST: frozenset({mark(winner)})})


class ReachTests(SynchronousTestCase):
    """Which interface an address goes to."""

    SUBNETS: ClassVar[Mapping[str, list[Configured]]] = {
        "em1": [ip_interface("192.168.1.11/24"), ip_interface("fd00::11/64"), ip_interface("fe80::11/64")],
        "em2": [ip_interface("10.0.0.11/8"), ip_interface("fe80::12/64")],
    }

    def places(self, attachments: Sequence[Attachment], ranges: str, *addresses: str) -> list[str | None]:
        found = reach(attachments, [ip_network(text) for text in ranges.split()], self.SUBNETS)
        return [found.place(ip(address)) for address in addresses]

    def test_subnets(self) -> None:
        """An address goes to the interface that has its subnet; those of a single link do not count."""
        both = [Attachment("em1"), Attachment("em2")]
        where = self.places(both, "", "192.168.1.41", "fd00::41", "10.1.2.3", "172.16.1.41", "fe80::41")
        self.assertEqual(where, ["em1", "em1", "em2", None, None])

    def test_ranges(self) -> None:
        """Where an interface has ranges, these count instead; the smallest one, if there are several."""
        both = [Attachment("em1", (ip_network("10.0.0.0/8"),)), Attachment("em2", (ip_network("10.1.0.0/16"),))]
        where = self.places(both, "", "10.2.0.1", "10.1.0.1", "192.168.1.41")
        self.assertEqual(where, ["em1", "em2", None])

    def test_versions(self) -> None:
        """An interface may be for one version of IP only."""
        only = Attachment("em1", versions=frozenset({4}))
        for ranges in ("", "192.168.1.0/24 fd00::/64"):
            self.assertEqual(self.places([only], ranges, "192.168.1.41", "fd00::41"), ["em1", None])
            found = reach([only], [ip_network(text) for text in ranges.split()], self.SUBNETS)
            self.assertEqual(list(map(str, found.networks(["em1"]))), ["192.168.1.0/24"])

    def test_ranges_of_all(self) -> None:
        """What may be taken at all limits every interface, and with only one of them it all goes there."""
        both = [Attachment("em1"), Attachment("em2")]
        self.assertEqual(self.places(both, "10.1.0.0/16", "10.1.0.1", "10.2.0.1"), ["em2", None])
        self.assertEqual(self.places([Attachment("em1")], "172.16.0.0/12", "172.16.1.41"), ["em1"])

    def test_networks(self) -> None:
        """Agents tell of the networks of their interfaces that are up, as far as they may be taken."""
        both = [Attachment("em1"), Attachment("em2", (ip_network("10.0.0.0/8"), ip_network("fd01::/64")))]
        found = reach(both, (), self.SUBNETS)
        texts = [" ".join(map(str, found.networks(names))) for names in (["em1", "em2"], ["em1"], [])]
        self.assertEqual(texts, ["10.0.0.0/8 192.168.1.0/24 fd00::/64 fd01::/64", "192.168.1.0/24 fd00::/64", ""])
        limited = reach(both, [ip_network("10.1.0.0/16"), ip_network("192.168.0.0/16")], self.SUBNETS)
        self.assertEqual(list(map(str, limited.networks(["em1", "em2"]))), ["10.1.0.0/16", "192.168.1.0/24"])


class EligibleTests(SynchronousTestCase):
    """Who may carry the addresses of Services with C{externalTrafficPolicy: Local}."""

    def select(self, *services: Service, **endpoints: Endpoints) -> Selection:
        """With the endpoints of Services by their names."""
        return allowed(services, HOST, [LAN], {ServiceName("default", each): endpoints[each] for each in endpoints})

    def test_anyone(self) -> None:
        """Without the policy, endpoints are of no importance."""
        everywhere = allowed([WEB], HOST, [LAN])
        self.assertEqual(self.select(WEB, web=on("node1")), everywhere)
        self.assertEqual((everywhere.eligible, everywhere.undecided), ({}, frozenset()))

    def test_ready(self) -> None:
        """The nodes that have a ready endpoint may carry the addresses; those that lose theirs do not count."""
        self.assertEqual(
            self.select(LOCAL, web=on("node1 node2", "node3")),
            on_em1({FIRST: frozenset({mark(WEB)})}, eligible={FIRST: frozenset({"node1", "node2"})}),
        )

    def test_terminating(self) -> None:
        """When no endpoint is ready, those that still serve count."""
        selection = self.select(LOCAL, web=on("", "node3"))
        self.assertEqual((selection.eligible, selection.refusals), ({FIRST: frozenset({"node3"})}, frozenset()))

    def test_nowhere(self) -> None:
        """Where no node has an endpoint, the address is nobody's, with the reason; and the marks stay."""
        wanted = on_em1(
            {FIRST: frozenset({mark(WEB)})},
            frozenset({Refusal(WEB.name, FIRST, NOWHERE)}),
            {FIRST: frozenset()},
        )
        self.assertEqual(self.select(LOCAL, web=on()), wanted)
        self.assertEqual(self.select(LOCAL, other=on("node1")), wanted)

    def test_unknown(self) -> None:
        """While it is not known where endpoints are, it is not known who may carry the address, nor is it refused."""
        cluster = evolve(WEB, name=ServiceName("default", "a"), addresses=(ip("192.168.1.42"),))
        selection = allowed([LOCAL, cluster], HOST, [LAN], None)
        self.assertEqual(
            selection,
            on_em1(allowed([WEB, cluster], HOST, [LAN]).wanted, undecided=frozenset({FIRST})),
        )

    def test_shared(self) -> None:
        """Of an address that several Services share, the nodes that have a ready endpoint of each may carry it."""
        selection = self.select(LOCAL, OTHER, web=on("node1 node2"), dns=on("node2 node3"))
        self.assertEqual((selection.eligible, selection.refusals), ({FIRST: frozenset({"node2"})}, frozenset()))

    def test_shared_with_others(self) -> None:
        """Services without the policy restrict nobody who shares an address with them."""
        selection = self.select(evolve(LOCAL, local=False), OTHER, web=on("node1"), dns=on("node2"))
        self.assertEqual(selection.eligible, {FIRST: frozenset({"node2"})})

    def test_shared_in_vain(self) -> None:
        """Where no node has an endpoint of each, all of them are named; else those that have none anywhere."""
        selection = self.select(LOCAL, OTHER, web=on("node1"), dns=on("node2"))
        reason = "the externalTrafficPolicy is Local, and no node has a ready endpoint of each of its Services "
        self.assertEqual(selection.eligible, {FIRST: frozenset()})
        self.assertEqual(selection.refusals, frozenset({Refusal(OTHER.name, FIRST, f"{reason}dns, web")}))
        selection = self.select(LOCAL, OTHER, web=on("node1"))
        self.assertEqual(selection.refusals, frozenset({Refusal(OTHER.name, FIRST, NOWHERE)}))
        many = [
            Service(ServiceName("default", f"s{n}"), frozenset({ServicePort(Protocol.TCP, n)}), (FIRST,), local=True)
            for n in range(1, 10)
        ]
        selection = self.select(*many, **{f"s{n}": on(f"node{n}") for n in range(1, 10)})
        self.assertEqual(
            selection.refusals, frozenset({Refusal(many[0].name, FIRST, f"{reason}s1, s2, s3, s4, s5 and 4 more")})
        )

    def test_without_traffic(self) -> None:
        """A Service that has no port left on an address does not restrict who may carry it."""
        younger = Service(
            ServiceName("default", "app"), frozenset({HTTP}), (FIRST,), "2016-01-01T00:00:00Z", local=True
        )
        portless = evolve(OTHER, ports=frozenset())
        selection = self.select(WEB, younger, portless)
        self.assertEqual(
            (selection.eligible, selection.undecided, [each.service for each in selection.refusals]),
            ({}, frozenset(), [younger.name]),
        )
        self.assertEqual(allowed([WEB, younger, portless], HOST, [LAN]).undecided, frozenset())

    def test_with_some_traffic(self) -> None:
        """A Service restricts who may carry an address once it has a port there, whichever, and however many."""
        two = evolve(LOCAL, ports=frozenset({HTTP, DNS}), created="2016-01-01T00:00:00Z")
        for older in ([], [WEB], [evolve(WEB, ports=frozenset({DNS}))]):
            others = [evolve(each, name=ServiceName("default", "older")) for each in older]
            self.assertEqual(self.select(two, *others, web=on("node1")).eligible, {FIRST: frozenset({"node1"})}, others)

    def test_address_that_is_refused(self) -> None:
        """Of an address that nobody may have, nothing else is said."""
        selection = self.select(evolve(LOCAL, addresses=(SECOND,)))
        self.assertEqual((selection.eligible, len(selection.refusals)), ({}, 1))

    @given(st.data())
    def test_intersection(self, data: st.DataObject) -> None:
        """Whatever the Services and slices are: each local Service must be on a node that carries its addresses."""
        names = [ServiceName("default", each) for each in "abc"]
        nodes = st.frozensets(st.sampled_from(["node1", "node2", "node3"]))
        pool = st.sampled_from([FIRST, ip("192.168.1.42"), SECOND])
        services = [
            Service(
                name,
                frozenset({ServicePort(Protocol.TCP, port)}),
                tuple(data.draw(st.lists(pool, unique=True))),
                local=data.draw(st.booleans()),
            )
            for port, name in enumerate(names, 1)
        ]
        slices = [
            EndpointSlice(SliceName("default", f"s{n}"), name, endpoints)
            for n, (name, endpoints) in enumerate(
                data.draw(st.lists(st.tuples(st.sampled_from(names), st.builds(Endpoints, nodes, nodes)), max_size=6))
            )
        ]

        def carriers(service: Service) -> set[str]:
            ready = {node for each in slices if each.service == service.name for node in each.endpoints.ready}
            late = {node for each in slices if each.service == service.name for node in each.endpoints.terminating}
            return ready or late

        expected: dict[Address, set[str]] = {}
        for service in services:
            for address in service.addresses:
                if service.local and isinstance(address, Address) and address != SECOND:
                    expected[address] = expected.get(address, {"node1", "node2", "node3"}) & carriers(service)
        selection = allowed(services, HOST, [LAN], gather(slices))
        self.assertEqual(selection.eligible, expected)
        self.assertEqual(
            {each.address for each in selection.refusals} - {SECOND},
            {address for address, found in expected.items() if not found},
        )
        self.assertEqual(allowed(services, HOST, [LAN]).undecided, expected.keys())


class SelectorTests(SynchronousTestCase):
    """One who selects again and again."""

    POOL = (FIRST, ip("192.168.1.42"), ip("fd00::41"), SECOND)

    def test_nothing_new(self) -> None:
        """Where nothing is new, the selection is the same object."""
        selector, where = Selector(), reach([Attachment("em1")], [LAN], HOST.subnets)
        first = selector.select([WEB, LOCAL], HOST, where, {WEB.name: on("node1")})
        again = selector.select([LOCAL, WEB], evolve(HOST), evolve(where), {WEB.name: on("node1", "node2")})
        self.assertIs(again, first)

    @given(st.data())
    def test_as_from_scratch(self, data: st.DataObject) -> None:
        """Whatever changes, in any order: it selects what one would that has not seen anything before."""
        selector = Selector()
        names = [ServiceName("default", each) for each in "abcd"]
        services: dict[ServiceName, Service] = {}
        nodes = st.frozensets(st.sampled_from(["node1", "node2"]))
        for _ in range(data.draw(st.integers(1, 6))):
            for name in data.draw(st.lists(st.sampled_from(names), max_size=3)):
                services[name] = Service(
                    name,
                    data.draw(st.frozensets(st.sampled_from([HTTP, DNS]))),
                    tuple(data.draw(st.lists(st.sampled_from(self.POOL), unique=True))),
                    data.draw(st.sampled_from(["", "2015-02-01T00:00:00Z", "2016-02-01T00:00:00Z"])),
                    data.draw(st.booleans()),
                )
            for name in data.draw(st.lists(st.sampled_from(names), max_size=2)):
                services.pop(name, None)
            endpoints = data.draw(
                st.none() | st.dictionaries(st.sampled_from(names), st.builds(Endpoints, nodes, nodes))
            )
            host = evolve(HOST, own=HOST.own | data.draw(st.sampled_from([frozenset(), {ip_interface("fd00::41/64")}])))
            where = reach([Attachment("em1")], data.draw(st.sampled_from([(), (LAN,), EVERYTHING])), HOST.subnets)
            selected = selector.select(services.values(), host, where, endpoints)
            self.assertEqual(selected, select(services.values(), host, where, endpoints))


class RefusedTests(SynchronousTestCase):
    """What is never taken, whatever the ranges say."""

    def reason(self, address: Address) -> str:
        selection = allowed([evolve(WEB, addresses=(address,))], HOST, EVERYTHING)
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
            "fd00::11": "this host has it already, by somebody else's hand",
            "fd00::1": "it is the default gateway",
            "fd00::": "it is the anycast address of the routers of fd00::/64",
            "::": "it is the unspecified address",
            "::1": "it is a loopback address",
            "fe80::41": "it is a link-local address",
            "ff02::1": "it is a multicast address",
            "::ffff:192.168.1.41": "it is an IPv4 address in IPv6 (::ffff:0:0/96)",
        }
        self.assertEqual({text: self.reason(ip_address(text)) for text in reasons}, reasons)

    def test_small_networks(self) -> None:
        """Networks of one or two addresses have no network and broadcast addresses (RFC 3021)."""
        host = evolve(HOST, own=frozenset({IPv4Interface("192.168.1.40/31")}))
        self.assertEqual(allowed([WEB], host, [LAN]).refusals, frozenset())

    def test_ours(self) -> None:
        """What this agent itself put on the interface may be taken."""
        self.assertEqual(allowed([WEB], evolve(HOST, assigned={FIRST: 5.0}), [LAN]).refusals, frozenset())

    @given(st.ip_addresses())
    def test_any(self, address: Address) -> None:
        """Every address of either family is wanted or refused."""
        selection = allowed([evolve(WEB, addresses=(address,))], HOST, EVERYTHING)
        self.assertEqual(len(selection.wanted) + len(selection.refusals), 1)
