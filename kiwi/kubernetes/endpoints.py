"""
What the Kubernetes API says of EndpointSlices, as values of the model. Pure.

The shapes are those of the API type C{EndpointSlice} of group C{discovery.k8s.io}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kiwi.model import Endpoints, EndpointSlice, ServiceName, SliceName

from .decoding import Decoded, Kind
from .reading import Reader, is_dns_name, quoted

SERVICE = "kubernetes.io/service-name"
"""The label that says whose endpoints these are."""

HOST = "kubernetes.io/hostname"
"""The key of an endpoint's topology that says on which Node it is, before there was C{nodeName}."""


def _service(reader: Reader, namespace: str, metadata: Mapping[str, Any]) -> ServiceName | None:
    """The Service that a slice belongs to. Those that somebody made for other ends belong to none."""
    service = reader.text(reader.object(metadata, "labels"), SERVICE)
    if not service or is_dns_name(service):
        return ServiceName(namespace, service) if service else None
    reader.complain(f"its label {SERVICE} is {quoted(service)}, not a DNS name")
    return None


def _node(reader: Reader, version: str, endpoint: Mapping[str, Any]) -> str:
    """The Node that an endpoint is on; empty where it is on none."""
    node = reader.text(endpoint, "nodeName")
    if not node and version == "v1beta1":
        node = reader.text(reader.object(endpoint, "topology"), HOST)
    if not node or is_dns_name(node):
        return node
    reader.complain(f"the Node {quoted(node)} of its endpoints is not a DNS name")
    return ""


def _endpoints(reader: Reader, version: str, document: Mapping[str, Any]) -> Endpoints:
    """
    What is not said means ready, serving as much as it is ready, and not terminating (the descriptions of the API type
    C{EndpointConditions}). A Service that publishes addresses that are not ready has them called ready here.
    """
    ready, terminating = set(), set()
    for endpoint in reader.objects(document, "endpoints"):
        node = _node(reader, version, endpoint)
        if not node:
            continue
        conditions = reader.object(endpoint, "conditions")
        is_ready = reader.flag(conditions, "ready", True)
        if is_ready:
            ready.add(node)
        if reader.flag(conditions, "terminating", False) and reader.flag(conditions, "serving", is_ready):
            terminating.add(node)
    return Endpoints(frozenset(ready), frozenset(terminating))


def _decode(version: str, document: Mapping[str, Any]) -> Decoded[SliceName, EndpointSlice]:
    """A slice that belongs to no Service, or has nobody who can answer, has nothing that Kiwi needs to know."""
    reader = Reader()
    metadata = reader.object(document, "metadata")
    name = reader.namespaced(SliceName, reader.text(metadata, "namespace"), reader.text(metadata, "name"))
    if name is None:
        return Decoded(None, None, reader.problems())
    service = _service(reader, name.namespace, metadata)
    # Traffic to an IP address cannot go to an endpoint that has only a host name.
    if service is None or reader.text(document, "addressType") == "FQDN":
        return Decoded(name, None, reader.problems())
    endpoints = _endpoints(reader, version, document)
    value = None if endpoints == Endpoints() else EndpointSlice(name, service, endpoints)
    return Decoded(name, value, reader.problems())


ENDPOINT_SLICES = Kind("discovery.k8s.io", "endpointslices", "EndpointSlice", ("v1", "v1beta1"), _decode)
