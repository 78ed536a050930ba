"""What each version of the API says of Services."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.kubernetes.decoding import Decoded
from kiwi.kubernetes.services import SERVICES, VERSIONS, Sources, services
from kiwi.model import Address, Protocol, Service, ServiceName, ServicePort
from tests.fakes.kubernetes import read_manifest, render, service

from .anything import anything, check_problems, unhurried

WEB = ServiceName("default", "web")
A, B = IPv4Address("192.168.1.41"), IPv4Address("172.16.1.41")


def tcp(*ports: int) -> frozenset[ServicePort]:
    return frozenset(ServicePort(Protocol.TCP, port) for port in ports)


def web(
    addresses: tuple[Address, ...] = (A,),
    ports: frozenset[ServicePort] = frozenset(),
    created: str = "",
    problems: tuple[str, ...] = (),
    local: bool = False,
) -> Decoded[ServiceName, Service]:
    """What becomes of a Service C{web}."""
    return Decoded(WEB, Service(WEB, ports, addresses, created, local), problems)


def balanced(*ingress: object, **spec: Any) -> dict[str, Any]:
    """A Service C{web} with what a load balancer has written into its status."""
    return nested(**{"type": "LoadBalancer", **spec}) | {"status": {"loadBalancer": {"ingress": list(ingress)}}}


def nameless(*problems: str) -> Decoded[ServiceName, Service]:
    return Decoded(None, None, problems)


def flat(**fields: Any) -> dict[str, Any]:
    return {"kind": "Service", "apiVersion": "v1beta1", "id": "web", "publicIPs": [str(A)], **fields}


def nested(version: str = "v1", **spec: Any) -> dict[str, Any]:
    return {"kind": "Service", "apiVersion": version, "metadata": {"name": "web"}, "spec": spec}


class FlatTests(SynchronousTestCase):
    """C{v1beta1}."""

    def test_example(self) -> None:
        """A Service has a port and public addresses at the top of the object."""
        document = flat(port=8080, selector={"name": "web"}, containerPort=80, publicIPs=[str(A), str(B)])
        self.assertEqual(SERVICES.decode("v1beta1", document), web((A, B), tcp(8080)))

    def test_spellings(self) -> None:
        """Both spellings of the addresses count, each address once, in order."""
        document = flat(port=1, publicIPs=[str(B)], publicIps=[str(A), str(B)])
        self.assertEqual(SERVICES.decode("v1beta1", document), web((B, A), tcp(1)))

    def test_several_ports(self) -> None:
        """A list of ports stands instead of the one port."""
        document = flat(port=1, protocol="UDP", ports=[{"port": 53, "protocol": "UDP"}, {"port": 53, "name": "x"}])
        ports = frozenset({ServicePort(Protocol.UDP, 53), ServicePort(Protocol.TCP, 53)})
        self.assertEqual(SERVICES.decode("v1beta1", document), web(ports=ports))

    def test_empty_list_of_ports(self) -> None:
        """An empty list of ports leaves the one port in force."""
        for ports in (list[object](), None):
            document = flat(port=53, protocol="sctp", ports=ports)
            expected = web(ports=frozenset({ServicePort(Protocol.SCTP, 53)}))
            self.assertEqual(SERVICES.decode("v1beta1", document), expected)

    def test_no_port(self) -> None:
        """A port of 0 is none."""
        self.assertEqual(SERVICES.decode("v1beta1", flat(port=0, protocol="", ports=[])), web())

    def test_namespace(self) -> None:
        """A Service that does not say its namespace is in C{default}."""
        names = [SERVICES.decode("v1beta1", flat(namespace=each)).name for each in ("shop", "", None)]
        self.assertEqual(names, [ServiceName("shop", "web"), WEB, WEB])


class NestedTests(SynchronousTestCase):
    """C{v1beta3} and C{v1}."""

    def test_v1beta3_addresses(self) -> None:
        """In C{v1beta3} the addresses have had three names, and a load balancer's are in the status."""
        document = nested("v1beta3", publicIPs=["10.1.0.1"], publicIps=["10.1.0.2"], deprecatedPublicIPs=["10.1.0.3"])
        document["status"] = {"loadBalancer": {"ingress": [{"ip": "10.1.0.4"}, {"hostname": "h"}, {"ip": "10.1.0.1"}]}}
        addresses = tuple(IPv4Address(f"10.1.0.{last}") for last in (1, 2, 3, 4))
        self.assertEqual(SERVICES.decode("v1beta3", document), web(addresses))

    def test_v1_addresses(self) -> None:
        """In C{v1} they are external IPs, the deprecated field, and those of a load balancer."""
        document = nested(externalIPs=["10.1.0.1"], deprecatedPublicIPs=["10.1.0.2"], type="LoadBalancer")
        document["status"] = {"loadBalancer": {"ingress": [{"ip": "10.1.0.3"}, {"ip": "10.1.0.2"}]}}
        addresses = tuple(IPv4Address(f"10.1.0.{last}") for last in (1, 2, 3))
        self.assertEqual(SERVICES.decode("v1", document), web(addresses))

    def test_v1_status_of_another_type(self) -> None:
        """A Service that is no load balancer (any more) has none of a load balancer's addresses."""
        for kind in ("ClusterIP", "NodePort", None):
            document = nested(type=kind, externalIPs=[str(A)])
            document["status"] = {"loadBalancer": {"ingress": [{"ip": "10.1.0.3"}]}}
            self.assertEqual(SERVICES.decode("v1", document), web())

    def test_addresses_are_normalised(self) -> None:
        """Two spellings of an IPv6 address are one address."""
        document = nested(externalIPs=["2001:DB8:0::1", "2001:db8::1"])
        self.assertEqual(SERVICES.decode("v1", document), web((IPv6Address("2001:db8::1"),)))

    def test_nothing(self) -> None:
        """A Service that asks for no address has nothing that matters, which is no problem."""
        for version in ("v1", "v1beta3"):
            for document in (
                {"metadata": {"name": "web"}},
                nested(ports=None, externalIPs=None, publicIPs=None),
                nested(ports=[{"port": 80}]),
            ):
                self.assertEqual(SERVICES.decode(version, document), Decoded(WEB, None))

    def test_created(self) -> None:
        """Times are told in UTC to the second, so that they sort by age."""
        for text, expected in (
            ("2015-06-01T12:00:00Z", "2015-06-01T12:00:00Z"),
            ("2015-06-01T12:00:00.75Z", "2015-06-01T12:00:00Z"),
            ("2015-06-01T12:00:00+02:30", "2015-06-01T09:30:00Z"),
            ("2015-12-31t23:59:59-00:01", "2016-01-01T00:00:59Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            (None, ""),
            ("", ""),
        ):
            document = nested(externalIPs=[str(A)])
            document["metadata"]["creationTimestamp"] = text
            self.assertEqual(SERVICES.decode("v1", document), web(created=expected))

    def test_no_time(self) -> None:
        """What is no time leaves the Service without one."""
        for text in (
            "yesterday",
            "2015-02-30T12:00:00Z",
            "2015-06-01",
            "0001-01-01T00:00:00+01:00",
            "\uff12015-06-01T12:00:00Z",
        ):
            document = nested(externalIPs=[str(A)])
            document["metadata"]["creationTimestamp"] = text
            problem = f"its creationTimestamp {text!a} is not a time"
            self.assertEqual(SERVICES.decode("v1", document), web(problems=(problem,)))


class SourcesTests(SynchronousTestCase):
    """Which fields count is for the operator to say."""

    def addresses(self, sources: Sources, version: str, document: object) -> tuple[Address, ...]:
        decoded = services(sources).decode(version, document)
        self.assertEqual((decoded.name, decoded.problems), (WEB, ()))
        return decoded.value.addresses if decoded.value else ()

    def test_sources(self) -> None:
        """The addresses of a source that does not count are not asked for, in any version."""
        external, balancer = Sources(load_balancer=False), Sources(external_ips=False)
        for version, keys in (
            ("v1", ("externalIPs", "deprecatedPublicIPs")),
            ("v1beta3", ("publicIPs", "publicIps", "deprecatedPublicIPs")),
        ):
            for key in keys:
                document = balanced({"ip": str(B)}, **{key: [str(A)]})
                self.assertEqual(
                    [self.addresses(each, version, document) for each in (external, balancer, Sources())],
                    [(A,), (B,), (A, B)],
                )
        for key in ("publicIPs", "publicIps"):
            document = {"id": "web", key: [str(A)]}
            self.assertEqual([self.addresses(each, "v1beta1", document) for each in (external, balancer)], [(A,), ()])

    def test_class(self) -> None:
        """A load balancer's addresses count for Services of our class: of none where we have none."""
        classes = (None, "", "example.com/ours", "example.com/other")
        for ours, expected in (("", [(B,), (B,), (), ()]), ("example.com/ours", [(), (), (B,), ()])):
            sources = Sources(load_balancer_class=ours)
            documents = [balanced({"ip": str(B)}, loadBalancerClass=each) for each in classes]
            self.assertEqual([self.addresses(sources, "v1", each) for each in documents], expected)

    def test_class_of_external_ips(self) -> None:
        """External IPs have nothing to do with the class."""
        document = balanced({"ip": str(B)}, externalIPs=[str(A)], loadBalancerClass="example.com/other")
        self.assertEqual(self.addresses(Sources(), "v1", document), (A,))

    def test_no_class(self) -> None:
        """What is no class is not ours."""
        for bad, shown in ((0, "0"), ([], "a list"), (False, "false")):
            document = balanced({"ip": str(B)}, loadBalancerClass=bad, externalIPs=[str(A)])
            problem = f"its loadBalancerClass is {shown}, not a text"
            self.assertEqual(SERVICES.decode("v1", document), web(problems=(problem,)))


class PolicyTests(SynchronousTestCase):
    """How an address is to be carried."""

    def test_ip_mode(self) -> None:
        """An address is carried by hosts unless it is the load balancer's own."""
        entries = [{"ip": f"10.1.0.{n}", "ipMode": mode} for n, mode in enumerate(("VIP", "Proxy", None, ""))]
        addresses = tuple(IPv4Address(f"10.1.0.{n}") for n in (0, 2, 3))
        self.assertEqual(SERVICES.decode("v1", balanced(*entries)), web(addresses))

    def test_no_ip_mode(self) -> None:
        """In a mode that is not known, an address is not carried."""
        for bad, shown in (("proxy", "'proxy'"), (7, "7"), (["VIP"], "a list")):
            document = balanced({"ip": str(A)}, {"ip": str(B), "ipMode": bad})
            problem = f"ipMode {shown} of its address '{B}' is neither VIP nor Proxy"
            self.assertEqual(SERVICES.decode("v1", document), web(problems=(problem,)))

    def test_external_traffic_policy(self) -> None:
        """With the policy C{Local}, only hosts that have an endpoint may carry the addresses."""
        for policy, local in (("Local", True), ("Cluster", False), ("", False), (None, False)):
            for document in (
                nested(externalTrafficPolicy=policy, externalIPs=[str(A)]),
                balanced({"ip": str(A)}, externalTrafficPolicy=policy),
            ):
                self.assertEqual(SERVICES.decode("v1", document), web(local=local))

    def test_no_external_traffic_policy(self) -> None:
        """What is no policy is no restriction."""
        for bad, problem in (
            ("local", "its externalTrafficPolicy 'local' is neither Cluster nor Local, and taken for Cluster"),
            (True, "its externalTrafficPolicy is true, not a text"),
        ):
            document = nested(externalTrafficPolicy=bad, externalIPs=[str(A)])
            self.assertEqual(SERVICES.decode("v1", document), web(problems=(problem,)))

    def test_older_versions(self) -> None:
        """C{v1beta3} knows neither types nor classes nor policies."""
        document = balanced({"ip": str(A)}, type="x", loadBalancerClass="x", externalTrafficPolicy="Local")
        self.assertEqual(SERVICES.decode("v1beta3", document), web())


class ProblemTests(SynchronousTestCase):
    """What is wrong with a Service is told in sentences; what is right with it counts."""

    def problems(self, document: object, version: str = "v1") -> tuple[str, ...]:
        return SERVICES.decode(version, document).problems

    def test_the_good_ones_stay(self) -> None:
        """One bad port and one bad address do not take the others with them."""
        document = nested(ports=[{"port": 70000}, {"port": 80}], externalIPs=["192.168.1.300", str(A)])
        problems = (
            "port 70000 of its ports is not between 1 and 65535",
            "public address '192.168.1.300' is not an IP address",
        )
        self.assertEqual(SERVICES.decode("v1", document), web((A,), tcp(80), problems=problems))

    def test_ports(self) -> None:
        """A port is a whole number from 1 to 65535 of TCP, UDP or SCTP."""
        for port, problem in (
            ({"port": 0}, "port 0 of its ports is not between 1 and 65535"),
            ({"port": -1}, "port -1 of its ports is not between 1 and 65535"),
            ({"port": 65536}, "port 65536 of its ports is not between 1 and 65535"),
            ({"port": "80"}, "port '80' of its ports is not a whole number"),
            ({"port": True}, "port true of its ports is not a whole number"),
            ({"port": 80.5}, "port 80.5 of its ports is not a whole number"),
            ({"port": [80]}, "port a list of its ports is not a whole number"),
            ({}, "one of its ports has no number"),
            ({"port": None}, "one of its ports has no number"),
            ({"port": 80, "protocol": "ICMP"}, "protocol 'ICMP' of its port 80 is not TCP, UDP or SCTP"),
            ({"port": 80, "protocol": {}}, "protocol an object of its port 80 is not TCP, UDP or SCTP"),
            (
                {"port": 80, "protocol": "tcp --dport 1"},
                "protocol 'tcp --dport 1' of its port 80 is not TCP, UDP or SCTP",
            ),
            (80, "80 in its ports is not an object"),
        ):
            document = nested(ports=[port], externalIPs=[str(A)])
            self.assertEqual(SERVICES.decode("v1", document), web(problems=(problem,)))

    def test_addresses(self) -> None:
        """An address is an address and nothing besides."""
        for bad in (
            "",
            "web",
            "192.168.1.041",
            "192.168.1.41/32",
            " 192.168.1.41",
            "192.168.1.41\n",
            "fe80::1%eth0",
            7,
        ):
            document = nested(externalIPs=[bad])
            self.assertEqual(self.problems(document), (f"public address {bad!a} is not an IP address",))

    def test_wrong_types(self) -> None:
        """Whatever is of the wrong type is left out."""
        for document, problem in (
            (nested(externalIPs="192.168.1.41"), "its externalIPs is '192.168.1.41', not a list"),
            (nested(ports={"port": 80}), "its ports is an object, not a list"),
            ({"metadata": {"name": "web"}, "spec": []}, "its spec is a list, not an object"),
            ({"metadata": {"name": "web", "creationTimestamp": 7}}, "its creationTimestamp is 7, not a text"),
            (nested(type="LoadBalancer") | {"status": "new"}, "its status is 'new', not an object"),
        ):
            self.assertEqual(SERVICES.decode("v1", document), Decoded(WEB, None, (problem,)))

    def test_names(self) -> None:
        """A Service that does not have a name that a server would give is refused."""
        for name, problem in (
            ('web" -j ACCEPT', "its name 'web\" -j ACCEPT' is not a DNS name"),
            ("web\n-A INPUT", "its name 'web\\n-A INPUT' is not a DNS name"),
            ("Web", "its name 'Web' is not a DNS name"),
            ("-web", "its name '-web' is not a DNS name"),
            ("web.", "its name 'web.' is not a DNS name"),
            ("w..b", "its name 'w..b' is not a DNS name"),
            ("wéb", "its name 'w\\xe9b' is not a DNS name"),
            ("a" * 64, f"its name '{'a' * 64}' is not a DNS name"),
            ("", "it has no name"),
            (None, "it has no name"),
        ):
            document = {"metadata": {"name": name}}
            self.assertEqual(SERVICES.decode("v1", document), nameless(problem))
            self.assertEqual(SERVICES.decode("v1beta1", {"id": name}), nameless(problem))

    def test_long_names(self) -> None:
        """A name has at most 253 characters."""
        label = "a" * 63
        for name, accepted in ((".".join([label] * 4)[:253], True), (".".join([label] * 4), False)):
            decoded = SERVICES.decode("v1", {"metadata": {"name": name}})
            self.assertEqual(decoded.name, ServiceName("default", name) if accepted else None)

    def test_namespaces(self) -> None:
        """A namespace is one label."""
        for namespace in ("a.b", "a/b", "A", "a" * 64, "a\x00"):
            document = {"metadata": {"name": "web", "namespace": namespace}}
            problem = f"the namespace {namespace!a} of web is not a DNS label"
            self.assertEqual(SERVICES.decode("v1", document), nameless(problem))

    def test_no_service(self) -> None:
        """What is no Service is refused."""
        self.assertEqual(
            self.problems({"kind": "Pod", "metadata": {"name": "web"}}), ("its kind is 'Pod', not Service",)
        )
        self.assertEqual(self.problems(None), ("it is None, not an object",))

    def test_bounds(self) -> None:
        """Many problems are told as a few, and long ones in short."""
        problems = self.problems(nested(externalIPs=["\u2028" * (5000 + n) for n in range(3)] + ["x"] * 100))
        self.assertEqual(len(problems), 2)
        problems = self.problems(nested(ports=[{"port": -n} for n in range(1000)]))
        self.assertEqual((len(problems), problems[-1]), (9, "992 more problems"))
        self.assertTrue(all(len(each) < 1000 for each in problems))


addresses = st.lists(st.ip_addresses(), max_size=5, unique=True)
ports = st.frozensets(st.builds(ServicePort, st.sampled_from(Protocol), st.integers(1, 65535)), max_size=5)
labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)


def with_name(version: str, document: dict[str, Any], spec: object, ports: object) -> dict[str, Any]:
    """A document that gets further than most, because it has a name and fields where they belong."""
    if version == "v1beta1":
        return {"publicIPs": [str(A)], **document, "kind": "Service", "id": "web", "namespace": None, "ports": ports}
    spec = {"externalIPs": [str(A)], **spec, "ports": ports} if isinstance(spec, dict) else spec
    return {**document, "kind": "Service", "metadata": {"name": "web"}, "spec": spec}


class PropertyTests(SynchronousTestCase):
    """What holds for everything that a server could say."""

    def check(self, decoded: Decoded[ServiceName, Service]) -> None:
        check_problems(self, decoded)
        if decoded.name is not None:
            self.assertRegex(decoded.name.name, r"\A[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")
            self.assertRegex(decoded.name.namespace, r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
        service = decoded.value
        if service is None:
            return
        self.assertEqual(service.name, decoded.name)
        self.assertRegex(service.created, r"\A([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?\Z")
        self.assertTrue(service.addresses)
        self.assertEqual(len(set(service.addresses)), len(service.addresses))
        for address in service.addresses:
            self.assertEqual(ip_address(str(address)), address)
        for port in service.ports:
            self.assertTrue(type(port.port) is int and 1 <= port.port <= 65535 and type(port.protocol) is Protocol)

    @unhurried
    @given(st.sampled_from(VERSIONS), anything, anything, anything)
    def test_objects(self, version: str, document: object, spec: object, ports: object) -> None:
        """No object is too much for a decoder, and nothing invalid comes out."""
        self.check(SERVICES.decode(version, document))
        if isinstance(document, dict):
            self.check(SERVICES.decode(version, with_name(version, document, spec, ports)))

    @unhurried
    @given(labels, labels, addresses, ports)
    def test_versions_agree(
        self, namespace: str, name: str, addresses: list[Address], ports: frozenset[ServicePort]
    ) -> None:
        """A Service is the same in every version."""
        external, ingress = addresses[:2], addresses[2:]
        manifest = service(
            name,
            map(str, external),
            [(port.port, str(port.protocol).upper()) for port in ports],
            namespace=namespace,
            ingress=map(str, ingress),
        )
        manifest["metadata"]["creationTimestamp"] = "2015-06-01T12:00:00Z"
        stored = read_manifest(manifest)
        expected = Service(ServiceName(namespace, name), ports, tuple(addresses), "2015-06-01T12:00:00Z")
        for version in VERSIONS:
            self.assertEqual(
                SERVICES.decode(version, render(version, stored)),
                Decoded(expected.name, expected if addresses else None),
            )
