"""
What the versions of the Kubernetes API say of Services, as values of the model. Pure.

The shapes are those of the API type C{Service} of each version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from attrs import frozen

from kiwi.model import Address, Protocol, Service, ServiceName, ServicePort, ip

from .decoding import Decoded, Kind
from .reading import Reader, quoted, shown

VERSIONS = ("v1", "v1beta3", "v1beta1")
"""The versions that Kiwi speaks, the newest first."""

PUBLIC = "with public addresses"
"""Which Services there is something to know of, for the log."""

_EXTERNAL = {
    "v1": ("externalIPs", "deprecatedPublicIPs"),
    "v1beta3": ("publicIPs", "publicIps", "deprecatedPublicIPs"),
    "v1beta1": ("publicIPs", "publicIps"),
}
"""What the addresses that whoever makes a Service asks for have been called."""

_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


@frozen
class Sources:
    """
    Which fields of Services count.

    @ivar external_ips: C{externalIPs}, and what it was called before.
    @ivar load_balancer: C{status.loadBalancer}.
    @ivar load_balancer_class: the C{loadBalancerClass} of the Services whose C{status.loadBalancer} counts; empty for
        those that have none.
    """

    external_ips: bool = True
    load_balancer: bool = True
    load_balancer_class: str = ""


def _created(reader: Reader, holder: Mapping[str, Any]) -> str:
    """The creation timestamp in UTC to the second, which is the precision of the API; empty where there is none."""
    text = reader.text(holder, "creationTimestamp")
    match = _TIME.fullmatch(text)
    try:
        if match:
            *moment, sign, hours, minutes = match.groups()
            offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
            utc = datetime(*map(int, moment), tzinfo=timezone.utc) - offset  # type: ignore[arg-type, misc]
            return f"{utc.year:04}" + utc.strftime("-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        pass  # Of the right form, but no such day or hour.
    if text:
        reader.complain(f"its creationTimestamp {quoted(text)} is not a time")
    return ""


def _port(reader: Reader, entry: Mapping[str, Any]) -> ServicePort | None:
    port = entry.get("port")
    if port is None:
        reader.complain("one of its ports has no number")
        return None
    if not isinstance(port, int) or isinstance(port, bool):
        reader.complain(f"port {shown(port)} of its ports is not a whole number")
        return None
    if not 1 <= port <= 65535:
        reader.complain(f"port {shown(port)} of its ports is not between 1 and 65535")
        return None
    protocol = entry.get("protocol")
    if protocol is None or protocol == "":
        return ServicePort(Protocol.TCP, port)
    try:
        return ServicePort(Protocol(protocol.lower() if isinstance(protocol, str) else protocol), port)
    except ValueError:
        reader.complain(f"protocol {shown(protocol)} of its port {port} is not TCP, UDP or SCTP")
        return None


def _ports(reader: Reader, entries: Iterable[Mapping[str, Any]]) -> frozenset[ServicePort]:
    return frozenset(port for entry in entries if (port := _port(reader, entry)) is not None)


def _address(reader: Reader, value: object) -> Address | None:
    if isinstance(value, str) and "%" not in value:
        try:
            return ip(value)
        except ValueError:
            pass
    reader.complain(f"public address {shown(value)} is not an IP address")
    return None


def _addresses(reader: Reader, values: Iterable[object]) -> tuple[Address, ...]:
    """The addresses in these texts, in order, each once."""
    return tuple(dict.fromkeys(found for value in values if (found := _address(reader, value)) is not None))


def _external(reader: Reader, version: str, holder: Mapping[str, Any]) -> Iterable[object]:
    return [each for key in _EXTERNAL[version] for each in reader.list(holder, key)]


def _ingress(reader: Reader, document: Mapping[str, Any]) -> Iterable[object]:
    """
    The addresses that a load balancer was given and that are for hosts to carry. An entry with only a host name has
    none, and one of mode C{Proxy} is at the load balancer itself.
    """
    balancer = reader.object(reader.object(document, "status"), "loadBalancer")
    for entry in reader.objects(balancer, "ingress"):
        address, mode = entry.get("ip"), entry.get("ipMode")
        if address in (None, "") or mode == "Proxy":
            continue
        if mode in (None, "", "VIP"):
            yield address
        else:
            reader.complain(f"ipMode {shown(mode)} of its address {shown(address)} is neither VIP nor Proxy")


def _is_ours(reader: Reader, spec: Mapping[str, Any], ours: str) -> bool:
    """
    Whether a Service is of our load balancer class. One without a class is for those who have none either (Kubernetes'
    page "Service", on load balancer classes).
    """
    found = spec.get("loadBalancerClass")
    if found is None or isinstance(found, str):
        return (found or "") == ours
    reader.complain(f"its loadBalancerClass is {shown(found)}, not a text")
    return False


def _is_local(reader: Reader, spec: Mapping[str, Any]) -> bool:
    policy = reader.text(spec, "externalTrafficPolicy")
    if policy not in ("", "Cluster", "Local"):
        reader.complain(
            f"its externalTrafficPolicy {quoted(policy)} is neither Cluster nor Local, and taken for Cluster"
        )
    return policy == "Local"


def _flat(reader: Reader, version: str, document: Mapping[str, Any], sources: Sources) -> Service | None:
    """The form of C{v1beta1}, in which C{port} is the only port or the first of C{ports}."""
    name = reader.namespaced(ServiceName, reader.text(document, "namespace"), reader.text(document, "id"))
    if name is None:
        return None
    entries = list(reader.objects(document, "ports"))
    if not entries and document.get("port") not in (None, 0):
        # 0 is how Go writes that there is none.
        entries = [document]
    addresses = _external(reader, version, document) if sources.external_ips else ()
    return Service(name, _ports(reader, entries), _addresses(reader, addresses), _created(reader, document))


def _nested(reader: Reader, version: str, document: Mapping[str, Any], sources: Sources) -> Service | None:
    """
    The form with C{metadata}, C{spec} and C{status}. What type a Service has, and the policies that go with it, came
    with C{v1}.
    """
    metadata = reader.object(document, "metadata")
    name = reader.namespaced(ServiceName, reader.text(metadata, "namespace"), reader.text(metadata, "name"))
    if name is None:
        return None
    spec = reader.object(document, "spec")
    addresses: list[object] = []
    if sources.external_ips:
        addresses += _external(reader, version, spec)
    if sources.load_balancer and (
        version != "v1" or (spec.get("type") == "LoadBalancer" and _is_ours(reader, spec, sources.load_balancer_class))
    ):
        addresses += _ingress(reader, document)
    return Service(
        name,
        _ports(reader, reader.objects(spec, "ports")),
        _addresses(reader, addresses),
        _created(reader, metadata),
        local=version == "v1" and _is_local(reader, spec),
    )


def services(sources: Sources) -> Kind[ServiceName, Service]:
    """
    Services, as far as they ask for addresses in those fields. One that asks for none has nothing that Kiwi needs to
    know.
    """

    def decode(version: str, document: Mapping[str, Any]) -> Decoded[ServiceName, Service]:
        reader = Reader()
        service = (_flat if version == "v1beta1" else _nested)(reader, version, document, sources)
        if service is None:
            return Decoded(None, None, reader.problems())
        return Decoded(service.name, service if service.addresses else None, reader.problems())

    return Kind("", "services", "Service", VERSIONS, decode)


SERVICES = services(Sources())
"""Services, wherever they ask for addresses."""
