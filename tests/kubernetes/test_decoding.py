"""Decoding is bytes in, values out."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.kubernetes.decoding import (
    VERSIONS,
    Bookmark,
    Changed,
    Decoded,
    Deleted,
    Expired,
    Listed,
    Nonsense,
    ServerError,
    decode_event,
    decode_list,
    decode_service,
)
from kiwi.model import Address, Protocol, Service, ServiceName, ServicePort
from tests.fakes.kubernetes import encode, read_manifest, render, service

WEB = ServiceName("default", "web")


def tcp(*ports: int) -> frozenset[ServicePort]:
    return frozenset(ServicePort(Protocol.TCP, port) for port in ports)


def web(addresses: tuple[Address, ...] = (), ports: frozenset[ServicePort] = frozenset(), created: str = "") -> Decoded:
    """What becomes of a Service C{web} that has no problems."""
    return Decoded(Service(WEB, ports, addresses, created))


def flat(**fields: Any) -> dict[str, Any]:
    return {"kind": "Service", "apiVersion": "v1beta1", "id": "web", **fields}


def nested(version: str = "v1", **spec: Any) -> dict[str, Any]:
    return {"kind": "Service", "apiVersion": version, "metadata": {"name": "web"}, "spec": spec}


A, B = IPv4Address("192.168.1.41"), IPv4Address("172.16.1.41")


class FlatTests(SynchronousTestCase):
    """C{v1beta1}."""

    def test_example(self) -> None:
        """A Service has a port and public addresses at the top of the object."""
        document = flat(port=8080, selector={"name": "web"}, containerPort=80, publicIPs=[str(A), str(B)])
        self.assertEqual(decode_service("v1beta1", document), web((A, B), tcp(8080)))

    def test_spellings(self) -> None:
        """Both spellings of the addresses count, each address once, in order."""
        document = flat(port=1, publicIPs=[str(B)], publicIps=[str(A), str(B)])
        self.assertEqual(decode_service("v1beta1", document), web((B, A), tcp(1)))

    def test_several_ports(self) -> None:
        """A list of ports stands instead of the one port."""
        document = flat(port=1, protocol="UDP", ports=[{"port": 53, "protocol": "UDP"}, {"port": 53, "name": "x"}])
        ports = frozenset({ServicePort(Protocol.UDP, 53), ServicePort(Protocol.TCP, 53)})
        self.assertEqual(decode_service("v1beta1", document), web((), ports))

    def test_empty_list_of_ports(self) -> None:
        """An empty list of ports leaves the one port in force."""
        for ports in (list[object](), None):
            document = flat(port=53, protocol="sctp", ports=ports)
            expected = web((), frozenset({ServicePort(Protocol.SCTP, 53)}))
            self.assertEqual(decode_service("v1beta1", document), expected)

    def test_no_port(self) -> None:
        """A port of 0 is none."""
        self.assertEqual(decode_service("v1beta1", flat(port=0, protocol="", ports=[])), web())

    def test_namespace(self) -> None:
        """A Service that does not say its namespace is in C{default}."""
        names = [decode_service("v1beta1", flat(namespace=each)).name for each in ("shop", "", None)]
        self.assertEqual(names, [ServiceName("shop", "web"), WEB, WEB])


class NestedTests(SynchronousTestCase):
    """C{v1beta3} and C{v1}."""

    def test_v1beta3_addresses(self) -> None:
        """In C{v1beta3} the addresses have had three names, and a load balancer's are in the status."""
        document = nested("v1beta3", publicIPs=["10.1.0.1"], publicIps=["10.1.0.2"], deprecatedPublicIPs=["10.1.0.3"])
        document["status"] = {"loadBalancer": {"ingress": [{"ip": "10.1.0.4"}, {"hostname": "h"}, {"ip": "10.1.0.1"}]}}
        addresses = tuple(IPv4Address(f"10.1.0.{last}") for last in (1, 2, 3, 4))
        self.assertEqual(decode_service("v1beta3", document), web(addresses))

    def test_v1_addresses(self) -> None:
        """In C{v1} they are external IPs, the deprecated field, and those of a load balancer."""
        document = nested(externalIPs=["10.1.0.1"], deprecatedPublicIPs=["10.1.0.2"], type="LoadBalancer")
        document["status"] = {"loadBalancer": {"ingress": [{"ip": "10.1.0.3"}, {"ip": "10.1.0.2"}]}}
        addresses = tuple(IPv4Address(f"10.1.0.{last}") for last in (1, 2, 3))
        self.assertEqual(decode_service("v1", document), web(addresses))

    def test_v1_status_of_another_type(self) -> None:
        """A Service that is no load balancer (any more) has none of a load balancer's addresses."""
        for kind in ("ClusterIP", "NodePort", None):
            document = nested(type=kind)
            document["status"] = {"loadBalancer": {"ingress": [{"ip": "10.1.0.3"}]}}
            self.assertEqual(decode_service("v1", document), web())

    def test_addresses_are_normalised(self) -> None:
        """Two spellings of an IPv6 address are one address."""
        document = nested(externalIPs=["2001:DB8:0::1", "2001:db8::1"])
        self.assertEqual(decode_service("v1", document), web((IPv6Address("2001:db8::1"),)))

    def test_nothing(self) -> None:
        """A Service without ports and addresses is a Service all the same, and no problem."""
        for version in ("v1", "v1beta3"):
            for document in ({"metadata": {"name": "web"}}, nested(ports=None, externalIPs=None, publicIPs=None)):
                self.assertEqual(decode_service(version, document), web())

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
            document = {"metadata": {"name": "web", "creationTimestamp": text}}
            self.assertEqual(decode_service("v1", document), web(created=expected))

    def test_no_time(self) -> None:
        """What is no time leaves the Service without one."""
        for text in (
            "yesterday",
            "2015-02-30T12:00:00Z",
            "2015-06-01",
            "0001-01-01T00:00:00+01:00",
            "\uff12015-06-01T12:00:00Z",
        ):
            document = {"metadata": {"name": "web", "creationTimestamp": text}}
            problem = f"its creationTimestamp {text!a} is not a time"
            self.assertEqual(decode_service("v1", document), Decoded(Service(WEB, frozenset(), ()), (problem,)))


class ProblemTests(SynchronousTestCase):
    """What is wrong with a Service is told in sentences; what is right with it counts."""

    def problems(self, document: object, version: str = "v1") -> tuple[str, ...]:
        return decode_service(version, document).problems

    def test_the_good_ones_stay(self) -> None:
        """One bad port and one bad address do not take the others with them."""
        document = nested(ports=[{"port": 70000}, {"port": 80}], externalIPs=["192.168.1.300", str(A)])
        problems = (
            "port 70000 of its ports is not between 1 and 65535",
            "public address '192.168.1.300' is not an IP address",
        )
        self.assertEqual(decode_service("v1", document), Decoded(Service(WEB, tcp(80), (A,)), problems))

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
            document = nested(ports=[port])
            self.assertEqual(decode_service("v1", document), Decoded(Service(WEB, frozenset(), ()), (problem,)))

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
            self.assertEqual(decode_service("v1", document), Decoded(Service(WEB, frozenset(), ()), (problem,)))

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
            self.assertEqual(decode_service("v1", document), Decoded(None, (problem,)))
            self.assertEqual(decode_service("v1beta1", {"id": name}), Decoded(None, (problem,)))

    def test_long_names(self) -> None:
        """A name has at most 253 characters."""
        label = "a" * 63
        for name, accepted in ((".".join([label] * 4)[:253], True), (".".join([label] * 4), False)):
            decoded = decode_service("v1", {"metadata": {"name": name}})
            self.assertEqual(decoded.name, ServiceName("default", name) if accepted else None)

    def test_namespaces(self) -> None:
        """A namespace is one label."""
        for namespace in ("a.b", "a/b", "A", "a" * 64, "a\x00"):
            document = {"metadata": {"name": "web", "namespace": namespace}}
            problem = f"the namespace {namespace!a} of web is not a DNS label"
            self.assertEqual(decode_service("v1", document), Decoded(None, (problem,)))

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


class ListTests(SynchronousTestCase):
    """Lists."""

    def test_items(self) -> None:
        """Items have neither kind nor version, and the list says where to watch from."""
        items = [{"metadata": {"name": "web", "resourceVersion": "3"}}, 7]
        body = encode({"kind": "ServiceList", "metadata": {"resourceVersion": "12"}, "items": items})
        self.assertEqual(decode_list("v1", body), Listed((web(), Decoded(None, ("it is 7, not an object",))), "12"))

    def test_flat(self) -> None:
        """The oldest version has its resource version as a number at the top."""
        body = encode({"kind": "ServiceList", "resourceVersion": 12, "items": [{"id": "web"}]})
        self.assertEqual(decode_list("v1beta1", body), Listed((web(),), "12"))

    def test_empty(self) -> None:
        """Go writes an empty list as null."""
        for items in (list[object](), None):
            body = encode({"kind": "ServiceList", "metadata": {"resourceVersion": "12"}, "items": items})
            self.assertEqual(decode_list("v1", body), Listed((), "12"))

    def test_resource_version(self) -> None:
        """A resource version that cannot be one is none."""
        for bad in ("1&watch=false", "a" * 200, "", 12, None, ["12"]):
            body = encode({"metadata": {"resourceVersion": bad}, "items": []})
            self.assertEqual(decode_list("v1", body), Listed((), ""))
        for number in ("12", -1, True, 1.5):
            self.assertEqual(decode_list("v1beta1", encode({"resourceVersion": number, "items": []})), Listed((), ""))

    def test_nonsense(self) -> None:
        """What is no list is not taken for an empty one."""
        for body, problem in (
            (b"", "it is not JSON: ''"),
            (b"<html>", "it is not JSON: '<html>'"),
            (b"\xff{}", "it is not UTF-8: '\\xff{}'"),
            (b"[]", "it is a list, not an object"),
            (b"{}", "it has no list of items"),
            (b'{"kind":"ServiceList","items":{}}', "it has no list of items"),
            (b'{"items":null}', "it has no list of items"),
            (b'{"kind":"Status","items":[]}', "its kind is 'Status', not ServiceList"),
            (b"[" * 100_000, f"it is not JSON: '{'[' * 100}...'"),
        ):
            self.assertEqual(decode_list("v1", body), Nonsense(problem))


class EventTests(SynchronousTestCase):
    """Lines of a watch."""

    OBJECT: dict[str, Any] = {"kind": "Service", "metadata": {"name": "web", "resourceVersion": "7"}}

    def event(self, kind: object, document: object) -> object:
        return decode_event("v1", encode({"type": kind, "object": document}))

    def test_kinds(self) -> None:
        """Services come, change and go."""
        self.assertEqual(self.event("ADDED", self.OBJECT), Changed(web(), "7"))
        self.assertEqual(self.event("MODIFIED", self.OBJECT), Changed(web(), "7"))
        self.assertEqual(self.event("DELETED", self.OBJECT), Deleted(WEB, "7"))

    def test_flat(self) -> None:
        """The oldest version has the resource version as a number."""
        line = encode({"type": "ADDED", "object": {"id": "web", "resourceVersion": 7}})
        self.assertEqual(decode_event("v1beta1", line), Changed(web(), "7"))

    def test_bookmark(self) -> None:
        """A bookmark is a resource version."""
        self.assertEqual(self.event("BOOKMARK", {"metadata": {"resourceVersion": "9"}}), Bookmark("9"))
        self.assertEqual(self.event("BOOKMARK", {}), Nonsense("a bookmark has no resourceVersion"))

    def test_errors(self) -> None:
        """A version that has expired is one kind of error."""
        self.assertEqual(self.event("ERROR", {"kind": "Status", "code": 410}), Expired())
        self.assertEqual(self.event("ERROR", {"kind": "Status", "reason": "Expired"}), Expired())
        error = {"kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd\nis away" + "!" * 1000}
        self.assertEqual(self.event("ERROR", error), ServerError(ascii(f"InternalError: etcd\nis away{'!' * 173}...")))
        self.assertEqual(self.event("ERROR", {}), ServerError("it does not say why"))

    def test_refused(self) -> None:
        """A Service that is refused still tells how far the watch is."""
        document = {"metadata": {"name": "W", "resourceVersion": "8"}}
        self.assertEqual(
            self.event("ADDED", document), Changed(Decoded(None, ("its name 'W' is not a DNS name",)), "8")
        )

    def test_nonsense(self) -> None:
        """What is no event is told in short."""
        for line, problem in (
            (b'{"type":"ADDED","obj', """it is not JSON: '{"type":"ADDED","obj'"""),
            (b"\xc3(", "it is not UTF-8: '\\xc3('"),
            (b"7", "it is 7, not an object"),
            (b"null", "it is None, not an object"),
            (b"{}", "an event of type None has no object"),
            (b'{"type":"ADDED","object":null}', "an event of type 'ADDED' has no object"),
            (b'{"type":"SYNC","object":{}}', "events of type 'SYNC' are unknown"),
            (b'{"type":["ADDED"],"object":{}}', "events of type a list are unknown"),
            (b'{"type":"DELETED","object":{"metadata":{}}}', "what was deleted is no Service: it has no name"),
        ):
            self.assertEqual(decode_event("v1", line), Nonsense(problem))


addresses = st.lists(st.ip_addresses(), max_size=5, unique=True)
ports = st.frozensets(st.builds(ServicePort, st.sampled_from(Protocol), st.integers(1, 65535)), max_size=5)
labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.sampled_from(
    [
        *("kind", "type", "object", "metadata", "spec", "status", "name", "id", "namespace", "items", "code", "reason"),
        *("ports", "port", "protocol", "publicIPs", "publicIps", "externalIPs", "deprecatedPublicIPs", "loadBalancer"),
        *("ingress", "ip", "creationTimestamp", "resourceVersion", "message"),
    ]
)
plausible = scalars | st.sampled_from(
    [
        "Service",
        "ServiceList",
        "LoadBalancer",
        "web",
        "TCP",
        "192.168.1.41",
        "ADDED",
        "DELETED",
        "ERROR",
        "BOOKMARK",
        80,
    ]
)
anything = st.recursive(
    plausible,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | st.text(max_size=3), inner, max_size=8),
    max_leaves=40,
)
objects = st.dictionaries(keys, anything, max_size=10)


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def with_name(version: str, document: dict[str, Any], spec: object, ports: object) -> dict[str, Any]:
    """A document that gets further than most, because it has a name and fields where they belong."""
    if version == "v1beta1":
        return {**document, "kind": "Service", "id": "web", "namespace": None, "ports": ports}
    spec = {**spec, "ports": ports} if isinstance(spec, dict) else spec
    return {**document, "kind": "Service", "metadata": {"name": "web"}, "spec": spec}


class PropertyTests(SynchronousTestCase):
    """What holds for everything that a server could say."""

    def check(self, decoded: Decoded) -> None:
        for problem in decoded.problems:
            self.assertTrue(problem.isascii() and problem.isprintable() and len(problem) < 1200, problem)
        if decoded.service is None:
            self.assertTrue(decoded.problems)
            return
        service = decoded.service
        self.assertRegex(service.name.name, r"\A[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")
        self.assertRegex(service.name.namespace, r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
        self.assertRegex(service.created, r"\A([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?\Z")
        self.assertEqual(len(set(service.addresses)), len(service.addresses))
        for address in service.addresses:
            self.assertEqual(ip_address(str(address)), address)
        for port in service.ports:
            self.assertTrue(type(port.port) is int and 1 <= port.port <= 65535 and type(port.protocol) is Protocol)

    @unhurried
    @given(st.sampled_from(VERSIONS), anything, anything, anything)
    def test_objects(self, version: str, document: object, spec: object, ports: object) -> None:
        """No object is too much for a decoder, and nothing invalid comes out."""
        self.check(decode_service(version, document))
        if isinstance(document, dict):
            self.check(decode_service(version, with_name(version, document, spec, ports)))

    @unhurried
    @given(st.sampled_from(VERSIONS), objects, st.binary(max_size=3), st.integers(0, 100))
    def test_lines(self, version: str, document: dict[str, Any], junk: bytes, cut: int) -> None:
        """No line is too much either, whole, cut or broken."""
        line = json.dumps(document).encode()
        for each in (line, line[:cut], line[:cut] + junk + line[cut:], junk):
            event = decode_event(version, each)
            if isinstance(event, Changed):
                self.check(event.decoded)
            listed = decode_list(version, each)
            if isinstance(listed, Listed):
                for decoded in listed.items:
                    self.check(decoded)

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
            self.assertEqual(decode_service(version, render(version, stored)), Decoded(expected))
