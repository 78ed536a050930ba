"""What the API says of EndpointSlices."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.kubernetes.decoding import Decoded
from kiwi.kubernetes.endpoints import ENDPOINT_SLICES
from kiwi.model import Endpoints, EndpointSlice, ServiceName, SliceName

from .anything import anything, check_problems, unhurried

NAME, WEB = SliceName("shop", "web-x2d4q"), ServiceName("shop", "web")


def endpoint(node: object = "node1", **conditions: object) -> dict[str, Any]:
    return {"addresses": ["10.2.0.7"], "nodeName": node, "conditions": conditions}


def slice_of(*endpoints: object, **fields: object) -> dict[str, Any]:
    metadata = {"name": NAME.name, "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}
    document = {"kind": "EndpointSlice", "addressType": "IPv4", "metadata": metadata, "endpoints": list(endpoints)}
    return document | fields


def decoded(ready: str = "", terminating: str = "", *problems: str) -> Decoded[SliceName, EndpointSlice]:
    """What becomes of a slice with such endpoints on these nodes."""
    endpoints = Endpoints(frozenset(ready.split()), frozenset(terminating.split()))
    return Decoded(NAME, EndpointSlice(NAME, WEB, endpoints) if ready or terminating else None, problems)


class EndpointsTests(SynchronousTestCase):
    def test_nodes(self) -> None:
        """The nodes of all endpoints that are ready, each once."""
        document = slice_of(endpoint("node1", ready=True), endpoint("node1", ready=True), endpoint("node2", ready=True))
        self.assertEqual(ENDPOINT_SLICES.decode("v1", document), decoded("node1 node2"))

    def test_conditions(self) -> None:
        """What is not said means ready, serving as much as it is ready, and not terminating."""
        for ready, serving, terminating, expected in (
            (None, None, None, decoded("node1")),
            (True, True, False, decoded("node1")),
            (True, False, False, decoded("node1")),
            (False, None, None, decoded()),
            (False, True, None, decoded()),
            (False, True, False, decoded()),
            (False, True, True, decoded("", "node1")),
            (False, None, True, decoded()),
            (False, False, True, decoded()),
            (True, True, True, decoded("node1", "node1")),
            (None, None, True, decoded("node1", "node1")),
        ):
            document = slice_of(endpoint(ready=ready, serving=serving, terminating=terminating))
            self.assertEqual(ENDPOINT_SLICES.decode("v1", document), expected, document["endpoints"])

    def test_no_conditions(self) -> None:
        """An endpoint of which nothing is said is ready."""
        unsaid: list[dict[str, object]] = [{}, {"conditions": None}, {"conditions": {}}]
        for said in unsaid:
            document = slice_of({"nodeName": "node1", **said})
            self.assertEqual(ENDPOINT_SLICES.decode("v1", document), decoded("node1"))

    def test_older_version(self) -> None:
        """In C{v1beta1}, the node may be in the topology; what C{v1} calls by that name does not count."""
        topology = {"conditions": {"ready": True}, "topology": {"kubernetes.io/hostname": "node2"}}
        documents = [slice_of(topology), slice_of(topology | {"nodeName": "node3"})]
        for version, expected in (("v1beta1", ["node2", "node3"]), ("v1", ["", "node3"])):
            self.assertEqual(
                [ENDPOINT_SLICES.decode(version, each) for each in documents], [decoded(each) for each in expected]
            )

    def test_nowhere(self) -> None:
        """An endpoint that is on no node is on none of the hosts."""
        for node in (None, ""):
            self.assertEqual(ENDPOINT_SLICES.decode("v1", slice_of(endpoint(node, ready=True))), decoded())

    def test_empty(self) -> None:
        """A slice without endpoints says nothing that matters."""
        for endpoints in (None, list[object]()):
            self.assertEqual(ENDPOINT_SLICES.decode("v1", slice_of(endpoints=endpoints)), decoded())

    def test_of_no_service(self) -> None:
        """A slice that belongs to no Service says nothing that matters."""
        for labels in (None, {}, {"kubernetes.io/service-name": ""}, {"kubernetes.io/service-name": None}):
            document = slice_of(endpoint(), metadata={"name": NAME.name, "namespace": "shop", "labels": labels})
            self.assertEqual(ENDPOINT_SLICES.decode("v1", document), decoded())

    def test_address_types(self) -> None:
        """Endpoints of which only host names are known cannot answer for an IP address."""
        for kind, expected in (("IPv4", decoded("node1")), ("IPv6", decoded("node1")), ("FQDN", decoded())):
            self.assertEqual(ENDPOINT_SLICES.decode("v1", slice_of(endpoint(), addressType=kind)), expected)

    def test_problems(self) -> None:
        """One bad endpoint does not take the others with it, and what cannot be understood is not ready."""
        good = endpoint("node2")
        for bad, problem in (
            (7, "7 in its endpoints is not an object"),
            (endpoint(["node1"]), "its nodeName is a list, not a text"),
            (endpoint("node1\n"), "the Node 'node1\\n' of its endpoints is not a DNS name"),
            (endpoint(ready="yes"), "its ready is 'yes', not true or false"),
            (endpoint(ready=False, serving=1, terminating=True), "its serving is 1, not true or false"),
            (endpoint(ready=False, serving=True, terminating="no"), "its terminating is 'no', not true or false"),
        ):
            document = slice_of(bad, good)
            self.assertEqual(ENDPOINT_SLICES.decode("v1", document), decoded("node2", "", problem), document)

    def test_bad_service(self) -> None:
        """A slice whose Service has no name that a server would give belongs to none."""
        for bad, problem in (
            ("Web!", "its label kubernetes.io/service-name is 'Web!', not a DNS name"),
            (7, "its kubernetes.io/service-name is 7, not a text"),
        ):
            labels = {"kubernetes.io/service-name": bad}
            document = slice_of(endpoint(), metadata={"name": NAME.name, "namespace": "shop", "labels": labels})
            self.assertEqual(ENDPOINT_SLICES.decode("v1", document), decoded("", "", problem))

    def test_nameless(self) -> None:
        """A slice without a name is left aside."""
        document = slice_of(endpoint(), metadata={})
        self.assertEqual(ENDPOINT_SLICES.decode("v1", document), Decoded(None, None, ("it has no name",)))


class PropertyTests(SynchronousTestCase):
    @unhurried
    @given(st.sampled_from(ENDPOINT_SLICES.versions), anything, st.lists(anything, max_size=4), anything)
    def test_anything(self, version: str, document: object, endpoints: list[object], conditions: object) -> None:
        """No object is too much, and nothing but names of nodes comes out."""
        among = [*endpoints, {"nodeName": "node1", "conditions": conditions}]
        for each in (document, slice_of(*among), slice_of(endpoints=document)):
            found = ENDPOINT_SLICES.decode(version, each)
            check_problems(self, found)
            if found.value is not None:
                self.assertEqual(found.value.name, found.name)
                for node in found.value.endpoints.ready | found.value.endpoints.terminating:
                    self.assertRegex(node, r"\A[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")
