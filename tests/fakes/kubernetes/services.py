"""Services, as every version of the API has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from attrs import field, frozen

VERSIONS = ("v1", "v1beta3", "v1beta1")
POLICIES = ("loadBalancerClass", "externalTrafficPolicy", "internalTrafficPolicy", "publishNotReadyAddresses")

Key = tuple[str, str]
"""Namespace and name."""


@frozen
class Port:
    """One port of a Service, of whatever type the manifest has it."""

    port: Any
    protocol: Any = "TCP"
    target: Any = None
    name: Any = ""


@frozen
class Stored:
    """
    A Service in no version of the API in particular.

    @ivar ingress: what a load balancer was given, each with C{ip}, C{hostname} and C{ipMode} where it has them.
    @ivar policies: as much of L{POLICIES} as it has, which only C{v1} knows.
    """

    namespace: str
    name: str
    ports: tuple[Port, ...] = ()
    external: tuple[Any, ...] = ()
    ingress: tuple[Any, ...] = ()
    type: str = "ClusterIP"
    selector: Mapping[str, str] = field(factory=dict)
    labels: Mapping[str, str] = field(factory=dict)
    annotations: Mapping[str, str] = field(factory=dict)
    policies: Mapping[str, Any] = field(factory=dict)
    created: str = ""
    uid: str = ""
    resource_version: int = 0
    encoded: dict[str, bytes] = field(factory=dict, init=False, eq=False, repr=False)

    @property
    def key(self) -> Key:
        return (self.namespace, self.name)

    def as_item(self, version: str) -> dict[str, Any]:
        """As an item of a list, which has neither kind nor version."""
        return render(version, self)


def service(
    name: str,
    addresses: Iterable[Any] = (),
    ports: Iterable[Any] = (8080,),
    *,
    namespace: str = "default",
    ingress: Iterable[str] = (),
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """
    A manifest in C{v1}.

    @param ports: a number, or a number with a protocol.
    @param ingress: the addresses that a load balancer was given; the Service has that type where there are any.
    """
    pairs = [port if isinstance(port, tuple) else (port, "TCP") for port in ports]
    ingress = list(ingress)
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": namespace, "annotations": dict(annotations or {})},
        "spec": {
            "ports": [
                {"name": f"p{port}-{str(protocol).lower()}", "port": port, "protocol": protocol}
                for port, protocol in pairs
            ],
            "externalIPs": list(addresses),
            "type": "LoadBalancer" if ingress else "ClusterIP",
        },
        "status": {"loadBalancer": {"ingress": [{"ip": each} for each in ingress]}},
    }


def read_manifest(document: Mapping[str, Any], namespace: str = "default") -> Stored:
    """
    A Service from a manifest in any version.

    @param namespace: of a Service that does not say its own.
    @raise ValueError: where it is no manifest of a Service.
    """
    if document.get("kind", "Service") != "Service" or document.get("apiVersion") not in VERSIONS:
        raise ValueError(f"not a Service in one of {', '.join(VERSIONS)}")
    flat = document["apiVersion"] == "v1beta1"
    metadata = document if flat else document.get("metadata") or {}
    spec = document if flat else document.get("spec") or {}
    name = metadata.get("id" if flat else "name")
    if not isinstance(name, str) or not name:
        raise ValueError("a Service without a name")
    ports = spec.get("ports") or ([spec] if flat and "port" in spec else [])
    target = "containerPort" if flat else "targetPort"
    external = [
        each for key in ("externalIPs", "publicIPs", "publicIps", "deprecatedPublicIPs") for each in spec.get(key) or ()
    ]
    balancer = (document.get("status") or {}).get("loadBalancer") or {}
    ingress = tuple(dict(each) for each in balancer.get("ingress") or ())
    return Stored(
        namespace=metadata.get("namespace") or namespace,
        name=name,
        ports=tuple(
            Port(port.get("port"), port.get("protocol") or "TCP", port.get(target), port.get("name") or "")
            for port in ports
        ),
        external=tuple(external),
        ingress=ingress,
        type=spec.get("type") or ("LoadBalancer" if ingress else "ClusterIP"),
        selector=spec.get("selector") or {},
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        policies={policy: spec[policy] for policy in POLICIES if spec.get(policy) is not None},
        created=timestamp(metadata.get("creationTimestamp")),
    )


def timestamp(value: Any) -> str:
    """YAML reads a time as a time."""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return value or ""


def render(version: str, stored: Stored) -> dict[str, Any]:
    """A Service as an item of a list, which has neither kind nor version."""
    if version == "v1beta1":
        return _render_flat(stored)
    path = f"/api/{version}/namespaces/{stored.namespace}/services/{stored.name}"
    metadata: dict[str, Any] = {
        "name": stored.name,
        "namespace": stored.namespace,
        "selfLink": path,
        "uid": stored.uid,
        "resourceVersion": str(stored.resource_version),
        "creationTimestamp": stored.created or None,
    }
    if stored.labels:
        metadata["labels"] = dict(stored.labels)
    if stored.annotations:
        metadata["annotations"] = dict(stored.annotations)
    spec: dict[str, Any] = {"ports": [_render_port(port, "targetPort") for port in stored.ports]}
    if version == "v1":
        if stored.external:
            spec["externalIPs"] = list(stored.external)
        spec |= {"selector": dict(stored.selector), "clusterIP": "10.0.0.10", "type": stored.type, **stored.policies}
    else:
        spec |= {"selector": dict(stored.selector), "portalIP": "10.0.0.10"}
        if stored.external:
            spec["publicIPs"] = list(stored.external)
        if stored.type == "LoadBalancer":
            spec["createExternalLoadBalancer"] = True
    spec["sessionAffinity"] = "None"
    balancer = {"ingress": list(stored.ingress)} if stored.ingress else {}
    return {"metadata": metadata, "spec": spec, "status": {"loadBalancer": balancer}}


def _render_port(port: Port, target: str) -> dict[str, Any]:
    rendered = {"name": port.name} if port.name else {}
    return {**rendered, "protocol": port.protocol, "port": port.port, target: port.target or port.port}


def _render_flat(stored: Stored) -> dict[str, Any]:
    """A load balancer's addresses are public addresses like others here: this version has no status."""
    ports = [_render_port(port, "containerPort") for port in stored.ports]
    rendered = {
        "id": stored.name,
        "uid": stored.uid,
        "creationTimestamp": stored.created or None,
        "selfLink": f"/api/v1beta1/services/{stored.name}?namespace={stored.namespace}",
        "resourceVersion": stored.resource_version,
        "namespace": stored.namespace,
        "port": ports[0]["port"] if ports else 0,
        "protocol": ports[0]["protocol"] if ports else "",
        "selector": dict(stored.selector),
        "containerPort": ports[0]["containerPort"] if ports else 0,
        "portalIP": "10.0.0.10",
        "sessionAffinity": "None",
        "ports": ports,
    }
    if stored.labels:
        rendered["labels"] = dict(stored.labels)
    if stored.annotations:
        rendered["annotations"] = dict(stored.annotations)
    if stored.external or stored.ingress:
        given = [each["ip"] for each in stored.ingress if "ip" in each]
        rendered["publicIPs"] = [*stored.external, *given]
    return rendered
