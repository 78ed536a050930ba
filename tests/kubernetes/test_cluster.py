"""Following all that says which addresses a host is to carry, on a server in memory. Time is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treq.client import HTTPClient
from twisted.trial.unittest import SynchronousTestCase

from kiwi.kubernetes.api import KubernetesAPI
from kiwi.kubernetes.cluster import ClusterWatch
from kiwi.kubernetes.credentials import NoCredentials
from kiwi.kubernetes.nodes import EXCLUDED
from kiwi.kubernetes.services import Sources
from kiwi.kubernetes.watch import DOUBT
from kiwi.model import Cluster, Endpoints, ServiceName
from tests.fakes.kubernetes import service

from .clusters import MemoryCluster, captured_log

WEB, DNS = ServiceName("default", "web"), ServiceName("default", "dns")
ON_NODE_1, ON_NODE_2 = (Endpoints(ready=frozenset({f"node-{n}"})) for n in (1, 2))
LABELLED = f"Node node-1 may not, for it is labelled {EXCLUDED}"
GONE = "there is no Node node-1 in Kubernetes"
FORBIDDEN = "(status 403: 'Forbidden: "


def local(name: str, address: str) -> dict[str, Any]:
    manifest = service(name, [address])
    manifest["spec"] |= {"type": "NodePort", "externalTrafficPolicy": "Local"}
    return manifest


def endpoint_slice(name: str, of: str, *nodes: str) -> dict[str, Any]:
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": node, "conditions": {"ready": True}} for node in nodes],
    }


def node(name: str, **labels: str) -> dict[str, Any]:
    return {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}}


class Case(SynchronousTestCase):
    """A cluster with one Service, C{web}, with a local traffic policy and an endpoint on C{node-1}."""

    def setUp(self) -> None:
        self.begin()

    def begin(self, **behaviour: Any) -> None:
        self.cluster = MemoryCluster(self, **behaviour)
        self.state = self.cluster.state
        self.told: list[Cluster] = []
        self.lines = captured_log(self)
        self.state.put(local("web", "192.168.1.41"))
        if "discovery.k8s.io/v1" in self.state.groups:
            self.state.put(endpoint_slice("web-1", "web", "node-1"))

    def follow(self, node_exists: bool = False, version: str = "auto") -> ClusterWatch:
        http = HTTPClient(self.cluster.agent)
        api = KubernetesAPI(
            http, http, self.cluster.clock, "http://kubernetes:8080", NoCredentials(), self.cluster.policy.uniform
        )
        watch = ClusterWatch(api, self.cluster.policy, version, Sources(), "node-1", node_exists, self.told.append)
        watch.startService()
        self.addCleanup(self.stop, watch)
        for _ in range(5):
            self.cluster.turn()
        return watch

    def stop(self, watch: ClusterWatch) -> None:
        """Stop following; that leaves neither a connection nor a timer."""
        if watch.running:
            watch.stopService()
        self.cluster.turn()
        self.assertEqual((self.state.watchers, self.cluster.clock.getDelayedCalls()), ([], []))

    @property
    def last(self) -> Cluster:
        return self.told[-1]

    def watched(self) -> list[str]:
        """What is watched."""
        return sorted(watcher.kind.plural for watcher in self.state.watchers)

    def asked(self, plural: str) -> Sequence[str]:
        return [request for request in self.state.requests if f"/{plural}" in request]


class EndpointTests(Case):
    """EndpointSlices are followed while a Service has a local traffic policy."""

    def test_known(self) -> None:
        """Services are told at once, and endpoints when they are known."""
        self.follow()
        self.assertEqual(list(self.told[0].services), [WEB])
        self.assertIsNone(self.told[0].endpoints)
        self.assertEqual(self.last, Cluster(self.told[0].services, {WEB: ON_NODE_1}))
        self.assertIs(self.last.services, self.told[0].services)

    def test_changes(self) -> None:
        """Changes of endpoints are told; Services that have not changed are the same object."""
        self.follow()
        before = self.last
        self.state.put(endpoint_slice("web-2", "web", "node-2"))
        self.cluster.turn()
        both = Endpoints(frozenset({"node-1", "node-2"}))
        self.assertEqual(self.last, Cluster(before.services, {WEB: both}))
        self.assertIs(self.last.services, before.services)
        self.state.delete("web-1", plural="endpointslices")
        self.state.delete("web-2", plural="endpointslices")
        self.cluster.turn()
        self.assertEqual(self.last, Cluster(before.services, {}))

    def test_of_no_concern(self) -> None:
        """What happens to the endpoints of other Services is not told."""
        self.state.put(service("dns", ["192.168.1.42"]))
        self.follow()
        before = len(self.told)
        self.state.put(endpoint_slice("dns-1", "dns", "node-1"))
        self.state.put(endpoint_slice("inner-1", "inner", "node-1"))
        self.cluster.turn()
        self.assertEqual(len(self.told), before)

    def test_when_needed(self) -> None:
        """They are followed from the first such Service to the last one, and not known otherwise."""
        self.state.delete("web")
        self.follow()
        self.assertEqual((self.watched(), self.asked("endpointslices")), (["nodes", "services"], []))
        for _ in range(2):
            self.state.put(local("web", "192.168.1.41"))
            self.cluster.wait(0.1)
            self.assertEqual(self.watched(), ["endpointslices", "nodes", "services"])
            self.assertEqual(self.last.endpoints, {WEB: ON_NODE_1})
            self.state.put(service("web", ["192.168.1.41"]))
            self.cluster.turn()
            self.assertEqual(self.watched(), ["nodes", "services"])
            self.assertIsNone(self.last.endpoints)

    def test_older(self) -> None:
        """C{v1beta1} is followed where there is nothing newer."""
        self.begin(groups=["discovery.k8s.io/v1beta1"])
        self.state.put({**endpoint_slice("web-1", "web", "node-2"), "apiVersion": "discovery.k8s.io/v1beta1"})
        self.follow()
        self.assertEqual(self.last.endpoints, {WEB: ON_NODE_2})

    def test_forbidden(self) -> None:
        """Where this agent may not see them, they stay unknown, and that is said once."""
        self.state.authorize = lambda access: access.resource != "endpointslices"
        self.follow()
        self.cluster.wait(30)
        self.assertEqual((len(self.told), self.last.endpoints), (1, None))
        self.assertTrue(self.last.services[WEB].local)
        self.assertEqual(len([line for line in self.lines if FORBIDDEN in line]), 1, self.lines)
        self.state.authorize = lambda access: True
        self.cluster.wait(6)
        self.assertEqual(self.last.endpoints, {WEB: ON_NODE_1})

    def test_none(self) -> None:
        """Where the server has none at all, the policy counts for nothing until it has, and that is said once."""
        self.begin(groups=[])
        self.follow()
        self.cluster.wait(30)
        self.assertFalse(self.last.services[WEB].local)
        self.assertIsNone(self.last.endpoints)
        self.assertEqual(len(self.told), 2)
        self.assertEqual(len([line for line in self.lines if "carried on any node" in line]), 1, self.lines)
        self.state.groups = ["discovery.k8s.io/v1"]
        self.state.put(endpoint_slice("web-1", "web", "node-1"))
        self.cluster.wait(6)
        self.assertTrue(self.last.services[WEB].local)
        self.assertEqual(self.last.endpoints, {WEB: ON_NODE_1})

    def test_none_any_more(self) -> None:
        """A server that had them is believed to have them still."""
        self.follow()
        before = len(self.told)
        self.state.groups = []
        self.state.drop_connections()
        self.cluster.wait(10)
        self.assertEqual((len(self.told), self.last.endpoints), (before, {WEB: ON_NODE_1}))

    def test_server_comes_back_empty(self) -> None:
        """One empty list takes nothing away."""
        self.state.put(node("node-1"))
        self.follow()
        self.state.fail(503)
        self.state.restart()
        self.cluster.wait(0.3)
        self.state.recover()
        self.state.put(local("web", "192.168.1.41"))
        self.cluster.wait(DOUBT)
        self.assertEqual((self.last.endpoints, self.last.unfit), ({WEB: ON_NODE_1}, ""))
        self.cluster.wait(2)
        self.assertEqual((self.last.endpoints, self.last.unfit), ({}, GONE))


class NodeTests(Case):
    """The Node of this host says whether it may carry anything."""

    def test_only_its_own(self) -> None:
        """Of the Nodes, only this host's is asked for."""
        self.state.put(node("node-2", **{EXCLUDED: ""}))
        self.state.put(node("node-1"))
        self.follow()
        self.assertEqual(self.last.unfit, "")
        asked = self.asked("nodes")
        self.assertEqual([request for request in asked if "fieldSelector=metadata.name%3Dnode-1" not in request], [])
        self.assertEqual(len(asked), 2)

    def test_excluded(self) -> None:
        """It is unfit while its Node is labelled; nothing else changes with that."""
        self.state.put(node("node-1"))
        self.follow()
        before = self.last
        self.state.put(node("node-1", **{EXCLUDED: "true"}))
        self.cluster.turn()
        self.assertEqual(self.last, Cluster(before.services, before.endpoints, LABELLED))
        self.assertIs(self.last.services, before.services)
        self.assertIs(self.last.endpoints, before.endpoints)
        self.state.put(node("node-1"))
        self.cluster.turn()
        self.assertEqual(self.last, before)

    def test_gone(self) -> None:
        """It is unfit when its Node is deleted, until there is one again."""
        self.state.put(node("node-1"))
        self.follow()
        self.state.delete("node-1", "", plural="nodes")
        self.cluster.turn()
        self.assertEqual(self.last.unfit, GONE)
        self.state.put(node("node-1"))
        self.cluster.turn()
        self.assertEqual(self.last.unfit, "")

    def test_never_there(self) -> None:
        """A host without a Node is fit, unless it is said to be a Node."""
        watch = self.follow(node_exists=False)
        self.cluster.wait(10)
        self.assertEqual(self.last.unfit, "")
        self.stop(watch)
        self.follow(node_exists=True)
        self.assertEqual(self.last.unfit, GONE)

    def test_forbidden(self) -> None:
        """Where this agent may not see it, the host is fit, and that is said once."""
        self.state.put(node("node-1", **{EXCLUDED: ""}))
        self.state.authorize = lambda access: access.resource != "nodes"
        self.follow(node_exists=True)
        self.cluster.wait(30)
        self.assertEqual(self.last.unfit, "")
        self.assertEqual(len([line for line in self.lines if FORBIDDEN in line]), 1, self.lines)

    def test_at_first(self) -> None:
        """Nothing waits for it."""
        self.state.fail(503, path="/api/v1/nodes")
        self.follow(node_exists=True)
        self.cluster.wait(1)
        self.assertEqual(self.last.endpoints, {WEB: ON_NODE_1})


class OlderVersionTests(Case):
    """Where Services come in an older version of the API, nothing else is asked for."""

    def test_only_services(self) -> None:
        for version in ("v1beta1", "v1beta3"):
            self.begin(versions=[version])
            self.follow(node_exists=True)
            self.assertEqual([list(cluster.services) for cluster in self.told], [[WEB]])
            self.assertEqual(self.watched(), ["services"])
            self.assertEqual([request for request in self.state.requests if version not in request], ["GET /api"])
