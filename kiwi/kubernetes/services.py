"""
What the versions of the Kubernetes API say of Services, as values of the model. Pure.

The shapes are those of the API type C{Service} of each version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from kiwi.model import Address, Protocol, Service, ServiceName, ServicePort, ip

from .decoding import Decoded, Kind
from .reading import Reader, quoted, shown

VERSIONS = ("v1", "v1beta3", "v1beta1")
"""The versions that Kiwi speaks, the newest first."""

PUBLIC = "with public addresses"
"""Which Services there is something to know of, for the log."""

_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


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


def _ingress(reader: Reader, document: Mapping[str, Any]) -> Iterable[object]:
    """The addresses that a load balancer was given. An entry with only a host name has none."""
    balancer = reader.object(reader.object(document, "status"), "loadBalancer")
    return [entry["ip"] for entry in reader.objects(balancer, "ingress") if entry.get("ip") not in (None, "")]


def _v1beta1(reader: Reader, document: Mapping[str, Any]) -> Service | None:
    """The flat form, in which C{port} is the only port or the first of C{ports}."""
    name = reader.namespaced(ServiceName, reader.text(document, "namespace"), reader.text(document, "id"))
    if name is None:
        return None
    entries = list(reader.objects(document, "ports"))
    if not entries and document.get("port") not in (None, 0):
        # 0 is how Go writes that there is none.
        entries = [document]
    addresses = [each for key in ("publicIPs", "publicIps") for each in reader.list(document, key)]
    return Service(name, _ports(reader, entries), _addresses(reader, addresses), _created(reader, document))


def _nested(
    reader: Reader, document: Mapping[str, Any], keys: Iterable[str], balanced: Callable[[Mapping[str, Any]], bool]
) -> Service | None:
    """The form with C{metadata}, C{spec} and C{status}."""
    metadata = reader.object(document, "metadata")
    name = reader.namespaced(ServiceName, reader.text(metadata, "namespace"), reader.text(metadata, "name"))
    if name is None:
        return None
    spec = reader.object(document, "spec")
    addresses = [each for key in keys for each in reader.list(spec, key)]
    if balanced(spec):
        addresses.extend(_ingress(reader, document))
    return Service(
        name,
        _ports(reader, reader.objects(spec, "ports")),
        _addresses(reader, addresses),
        _created(reader, metadata),
    )


def _v1beta3(reader: Reader, document: Mapping[str, Any]) -> Service | None:
    return _nested(reader, document, ("publicIPs", "publicIps", "deprecatedPublicIPs"), lambda spec: True)


def _v1(reader: Reader, document: Mapping[str, Any]) -> Service | None:
    return _nested(
        reader, document, ("externalIPs", "deprecatedPublicIPs"), lambda spec: spec.get("type") == "LoadBalancer"
    )


_DECODERS: Mapping[str, Callable[[Reader, Mapping[str, Any]], Service | None]] = {
    "v1": _v1,
    "v1beta3": _v1beta3,
    "v1beta1": _v1beta1,
}


def _decode(version: str, document: Mapping[str, Any]) -> Decoded[ServiceName, Service]:
    """A Service that asks for no address says nothing that matters."""
    reader = Reader()
    service = _DECODERS[version](reader, document)
    if service is None:
        return Decoded(None, None, reader.problems())
    return Decoded(service.name, service if service.addresses else None, reader.problems())


SERVICES: Kind[ServiceName, Service] = Kind("", "services", "Service", VERSIONS, _decode)


def decode_service(version: str, document: object) -> Decoded[ServiceName, Service]:
    """One object of a version of the API, as a list or an event has it."""
    return SERVICES.decode(version, document)
