"""The API server of the tests, where it does more than the tests of the watch show; and the examples that it serves."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, cast

import treq
from treq.testing import StubTreq
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent

from kiwi.kubernetes.decoding import Listed, decode_list
from kiwi.kubernetes.services import SERVICES, VERSIONS
from kiwi.model import Protocol, Service, ServicePort
from tests.fakes.kubernetes import Folder, KubernetesResource, KubernetesState, encode, service

EXAMPLES = Path(__file__).parents[2] / "examples"


def example_services() -> dict[str, Service]:
    """What Kiwi understands of the examples, by name."""
    reports: list[str] = []
    state = KubernetesState()
    Folder(EXAMPLES, state, reports.append).read()
    assert not reports, reports
    found: list[dict[str, Service]] = []
    for version in VERSIONS:
        body = cast(Any, StubTreq(KubernetesResource(state))).get(f"http://kubernetes/api/{version}/services")
        response = SynchronousTestCase().successResultOf(body)
        listed = decode_list(SERVICES, version, SynchronousTestCase().successResultOf(treq.content(response)))
        assert isinstance(listed, Listed)
        assert not any(item.problems for item in listed.items)
        found.append({str(item.name): item.value for item in listed.items if item.value is not None})
    first, *others = found
    assert all(other == first for other in others)
    return first


class ExamplesTests(SynchronousTestCase):
    def test_examples(self) -> None:
        """The examples are Services, the same in every version."""

        def ports(*pairs: tuple[int, Protocol]) -> frozenset[ServicePort]:
            return frozenset(ServicePort(protocol, port) for port, protocol in pairs)

        tcp, udp = Protocol.TCP, Protocol.UDP
        services = example_services()
        self.assertEqual(
            {name: (each.ports, tuple(map(str, each.addresses))) for name, each in services.items()},
            {
                "web": (ports((8080, tcp)), ("192.168.1.41", "172.16.1.41")),
                "infra/dns": (ports((53, tcp), (53, udp)), ("192.168.1.42",)),
                "shop": (ports((443, tcp)), ("192.168.1.43",)),
                "smtp": (ports((25, tcp), (587, tcp)), ("192.168.1.44",)),
                "imap": (ports((993, tcp)), ("192.168.1.44",)),
            },
        )

    def test_addresses(self) -> None:
        """But for the one that is to be ignored, the addresses are on the demo's network, and no host's."""
        addresses = {each for found in example_services().values() for each in found.addresses}
        addresses.remove(IPv4Address("172.16.1.41"))
        for address in addresses:
            self.assertIn(address, IPv4Network("192.168.1.32/27"))


class WritingTests(SynchronousTestCase):
    """Services can be made by HTTP."""

    def setUp(self) -> None:
        self.state = KubernetesState()
        self.http: Any = StubTreq(KubernetesResource(self.state))

    def ask(self, method: str, path: str, document: object = None) -> tuple[int, dict[str, Any]]:
        data = None if document is None else encode(document)
        response = self.successResultOf(self.http.request(method, f"http://kubernetes{path}", data=data))
        return response.code, json.loads(self.successResultOf(treq.content(response)))

    def test_life(self) -> None:
        """A Service is created, changed, read and deleted."""
        path = "/api/v1/namespaces/infra/services"
        manifest = {"metadata": {"name": "dns"}, "spec": {"ports": [{"port": 53}], "externalIPs": ["192.168.1.42"]}}
        codes = [
            self.ask("POST", path, manifest)[0],
            self.ask("POST", path, manifest)[0],
            self.ask("PUT", f"{path}/dns", manifest | {"spec": {"ports": [{"port": 54}]}})[0],
        ]
        code, document = self.ask("GET", f"{path}/dns")
        ports = [{"protocol": "TCP", "port": 54, "targetPort": 54}]
        self.assertEqual((codes, code, document["spec"]["ports"]), ([201, 409, 200], 200, ports))
        self.assertEqual(self.ask("DELETE", f"{path}/dns")[0], 200)
        self.assertEqual(self.ask("DELETE", f"{path}/dns")[0], 404)
        self.assertEqual(self.state.services, {})

    def test_older_version(self) -> None:
        """The oldest version has the namespace in the query."""
        web = {"id": "web", "port": 80, "publicIPs": ["192.168.1.41"]}
        self.assertEqual(self.ask("PUT", "/api/v1beta1/services/web?namespace=shop", web)[0], 201)
        self.assertEqual(list(self.state.services), [("shop", "web")])

    def test_refused(self) -> None:
        """What is no Service is refused."""
        for document in (list[object](), 7, {}, {"kind": "Pod", "metadata": {"name": "web"}}):
            self.assertEqual(self.ask("PUT", "/api/v1/namespaces/default/services/web", document)[0], 400)

    def test_absent(self) -> None:
        """What is not there is not found."""
        self.state.versions, self.state.groups = ["v1"], ()
        for path in ("/", "/api/v1beta1/services", "/api/v1/pods", "/api/v1/namespaces/default/services/web", "/apis"):
            code, document = self.ask("GET", path)
            self.assertEqual((code, document["kind"], document["reason"]), (404, "Status", "NotFound"))

    def test_namespace(self) -> None:
        """A list can be of one namespace."""
        for namespace in ("a", "b"):
            self.state.put(service("web", namespace=namespace))
        for path in ("/api/v1/namespaces/a/services", "/api/v1beta1/services?namespace=a"):
            _, document = self.ask("GET", path)
            self.assertEqual(len(document["items"]), 1)


class FolderTests(SynchronousTestCase):
    """The Services of a server follow the manifests in a folder."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.mkdir()
        self.state = KubernetesState()
        self.reports: list[str] = []
        self.folder = Folder(self.path, self.state, self.reports.append)
        self.moment = 0

    def write(self, name: str, text: str) -> None:
        """Write a file at a time of its own."""
        path = self.path / name
        path.write_text(text)
        self.moment += 1
        os.utime(path, (self.moment, self.moment))

    def served(self) -> list[str]:
        self.folder.read()
        return [stored.name for stored in self.state.services.values()]

    def test_follow(self) -> None:
        """Files come, change and go."""
        self.assertEqual(self.served(), [])
        self.write("web.json", json.dumps(service("web")))
        self.write("two.yaml", "{kind: Service, apiVersion: v1beta1, id: a}\n---\n{apiVersion: v1beta1, id: b}\n---\n")
        self.write("README", "not a manifest")
        self.assertEqual(self.served(), ["a", "b", "web"])
        version = self.state.resource_version
        self.assertEqual((self.served(), self.state.resource_version), (["a", "b", "web"], version))
        self.write("two.yaml", "{apiVersion: v1beta1, id: b}")
        self.assertEqual(self.served(), ["b", "web"])
        (self.path / "two.yaml").unlink()
        self.assertEqual(self.served(), ["web"])

    def test_moved(self) -> None:
        """A Service that goes to another file stays."""
        self.write("a.yaml", "{apiVersion: v1beta1, id: web}")
        self.served()
        version = self.state.resource_version
        (self.path / "a.yaml").rename(self.path / "b.yaml")
        self.assertEqual((self.served(), self.state.resource_version), (["web"], version))

    def test_other_kinds(self) -> None:
        """A folder may have every kind of object that the server has."""
        lease = "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: a}, spec: {holderIdentity: one}}"
        self.write("many.yaml", lease + "\n---\n{apiVersion: v1, kind: Node, metadata: {name: web}}\n")
        self.write("web.json", json.dumps(service("web")))
        self.assertEqual(self.served(), ["web"])
        self.assertEqual(list(self.state.objects("leases")), [("default", "a")])
        self.assertEqual(list(self.state.objects("nodes")), [("", "web")])
        self.write("many.yaml", lease.replace("one", "two"))
        self.assertEqual(self.served(), ["web"])
        self.assertEqual(self.state.objects("leases")["default", "a"].body["spec"], {"holderIdentity": "two"})
        self.assertEqual(self.state.objects("nodes"), {})
        self.write("many.yaml", "{apiVersion: coordination.k8s.io/v1, kind: Pod, metadata: {name: a}}")
        self.served()
        why = "there is no Pod in coordination.k8s.io/v1"
        self.assertEqual(self.reports, [f"{self.path / 'many.yaml'} cannot be read: {why}"])

    def test_broken(self) -> None:
        """A file that cannot be read is reported once, and what it said before stays."""
        self.write("web.yaml", "{apiVersion: v1beta1, id: web}")
        self.served()
        for text in ("{", "[1, 2]", "apiVersion: v1", "{apiVersion: v2, id: web}", "", "\x00"):
            self.write("web.yaml", text)
            self.assertEqual([self.served(), self.served(), len(self.reports)], [["web"], ["web"], 1], text)
            self.reports.clear()


class Program(ProcessProtocol):
    """The program, until it says where it is."""

    def __init__(self) -> None:
        self.said: Deferred[str] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self.output = b""

    def outReceived(self, data: bytes) -> None:
        self.output += data
        if b"\n" in self.output and not self.said.called:
            self.said.callback(self.output.decode())

    def errReceived(self, data: bytes) -> None:
        self.output += data

    def processEnded(self, reason: Failure) -> None:
        if not self.said.called:
            self.said.errback(AssertionError(self.output))
        self.ended.callback(None)


class ProgramTests(TestCase):
    async def test_serve(self) -> None:
        """It serves the manifests of a folder, and says where."""
        reactor = cast(Any, global_reactor)
        program = Program()
        command = [sys.executable, "-m", "tests.fakes.kubernetes", "--listen", "127.0.0.1:0", "--api", "v1,v1beta1"]
        process = reactor.spawnProcess(
            program, sys.executable, [*command, "--watch", str(EXAMPLES)], env=None, path=str(EXAMPLES.parent)
        )

        def stop() -> Deferred[None]:
            with contextlib.suppress(ProcessExitedAlready):
                process.signalProcess("KILL")
            return program.ended

        self.addCleanup(stop)
        said = await program.said.addTimeout(30, reactor)
        where = said.split()[2]
        self.assertEqual(said, f"Services at {where} in v1, v1beta1\n")
        response = await treq.get(f"{where}/api/v1beta1/services", agent=Agent(reactor))
        document = await response.json()
        self.assertEqual(sorted(item["id"] for item in document["items"]), ["dns", "imap", "shop", "smtp", "web"])
