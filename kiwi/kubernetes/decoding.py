"""
What the versions of the Kubernetes API say of Services, as values of the model. Pure.

The shapes are those of the API types C{Service}, C{ServiceList}, C{Status} and C{WatchEvent} of each version. Nothing
is taken on trust: text comes out of here only as a name that matches DNS-1123, as a resource version of a few plain
characters, as a time in one fixed form, or escaped and cut to length inside a sentence for the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from attrs import define, field, frozen

from kiwi.model import Address, Protocol, Service, ServiceName, ServicePort, ip

VERSIONS = ("v1", "v1beta3", "v1beta1")
"""The versions that Kiwi speaks, the newest first."""

_MOST_PROBLEMS = 8
"""How many problems of one Service are told one by one."""

_LABEL = "[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_RESOURCE_VERSION = re.compile(r"[0-9A-Za-z._:-]{1,128}")
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


@frozen
class Decoded:
    """
    What came of one object.

    @ivar service: the Service with what is right about it; C{None} where it cannot even be named.
    @ivar problems: what is wrong with it, in sentences for the log: one printable line of bounded length each.
    """

    service: Service | None
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> ServiceName | None:
        return None if self.service is None else self.service.name


@frozen
class Listed:
    """
    Every Service of a cluster at one moment.

    @ivar resource_version: where to watch from; empty where the server did not say.
    """

    items: tuple[Decoded, ...]
    resource_version: str = ""


@frozen
class Changed:
    """A Service was created or changed."""

    decoded: Decoded
    resource_version: str = ""


@frozen
class Deleted:
    """A Service is gone."""

    name: ServiceName
    resource_version: str = ""


@frozen
class Bookmark:
    """Nothing happened up to this resource version."""

    resource_version: str


@frozen
class Expired:
    """The server no longer knows what happened since the resource version that was asked for."""


@frozen
class ServerError:
    """The server ends the watch. C{reason} is one printable line."""

    reason: str


@frozen
class Nonsense:
    """It cannot be understood. C{problem} is one printable line."""

    problem: str


Event = Changed | Deleted | Bookmark | Expired | ServerError | Nonsense


def quoted(text: str, limit: int = 100) -> str:
    """Text from outside in plain ASCII on one line, quoted, cut after C{limit} characters."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def _shown(value: object) -> str:
    """A JSON value in a sentence."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    return text if len(text) <= 40 else text[:40] + "..."


@define
class _Reader:
    """Reads fields that may be absent, null or of the wrong type, and gathers what is wrong with them."""

    _told: list[str] = field(factory=list, init=False)
    _untold: int = field(default=0, init=False)

    def complain(self, problem: str) -> None:
        if problem in self._told:
            return
        if len(self._told) < _MOST_PROBLEMS:
            self._told.append(problem)
        else:
            self._untold += 1

    def problems(self) -> tuple[str, ...]:
        return (*self._told, f"{self._untold} more problems") if self._untold else tuple(self._told)

    def text(self, holder: Mapping[str, Any], key: str) -> str:
        """A text; empty where there is none."""
        value = holder.get(key)
        if value is None or isinstance(value, str):
            return value or ""
        self.complain(f"its {key} is {_shown(value)}, not a text")
        return ""

    def object(self, holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """An object; empty where there is none."""
        value = holder.get(key)
        if value is None or isinstance(value, dict):
            return value or {}
        self.complain(f"its {key} is {_shown(value)}, not an object")
        return {}

    def list(self, holder: Mapping[str, Any], key: str) -> Iterable[Any]:
        """The elements of a list which are not null; none where there is no list."""
        value = holder.get(key)
        if value is None or isinstance(value, list):
            return [each for each in value or () if each is not None]
        self.complain(f"its {key} is {_shown(value)}, not a list")
        return []

    def objects(self, holder: Mapping[str, Any], key: str) -> Iterable[Mapping[str, Any]]:
        """The objects in a list."""
        for each in self.list(holder, key):
            if isinstance(each, dict):
                yield each
            else:
                self.complain(f"{_shown(each)} in its {key} is not an object")


def _name(reader: _Reader, namespace: str, name: str) -> ServiceName | None:
    """The name of a Service, if the server may give it (RFC 1123, as Kubernetes reads it)."""
    if not _NAME.fullmatch(name):
        reader.complain(f"its name {quoted(name)} is not a DNS name" if name else "it has no name")
        return None
    if not _NAMESPACE.fullmatch(namespace or "default"):
        reader.complain(f"the namespace {quoted(namespace)} of {name} is not a DNS label")
        return None
    return ServiceName(namespace or "default", name)


def _created(reader: _Reader, holder: Mapping[str, Any]) -> str:
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


def _port(reader: _Reader, entry: Mapping[str, Any]) -> ServicePort | None:
    port = entry.get("port")
    if port is None:
        reader.complain("one of its ports has no number")
        return None
    if not isinstance(port, int) or isinstance(port, bool):
        reader.complain(f"port {_shown(port)} of its ports is not a whole number")
        return None
    if not 1 <= port <= 65535:
        reader.complain(f"port {_shown(port)} of its ports is not between 1 and 65535")
        return None
    protocol = entry.get("protocol")
    if protocol is None or protocol == "":
        return ServicePort(Protocol.TCP, port)
    try:
        return ServicePort(Protocol(protocol.lower() if isinstance(protocol, str) else protocol), port)
    except ValueError:
        reader.complain(f"protocol {_shown(protocol)} of its port {port} is not TCP, UDP or SCTP")
        return None


def _ports(reader: _Reader, entries: Iterable[Mapping[str, Any]]) -> frozenset[ServicePort]:
    return frozenset(port for entry in entries if (port := _port(reader, entry)) is not None)


def _address(reader: _Reader, value: object) -> Address | None:
    if isinstance(value, str) and "%" not in value:
        try:
            return ip(value)
        except ValueError:
            pass
    reader.complain(f"public address {_shown(value)} is not an IP address")
    return None


def _addresses(reader: _Reader, values: Iterable[object]) -> tuple[Address, ...]:
    """The addresses in these texts, in order, each once."""
    return tuple(dict.fromkeys(found for value in values if (found := _address(reader, value)) is not None))


def _ingress(reader: _Reader, document: Mapping[str, Any]) -> Iterable[object]:
    """The addresses that a load balancer was given. An entry with only a host name has none."""
    balancer = reader.object(reader.object(document, "status"), "loadBalancer")
    return [entry["ip"] for entry in reader.objects(balancer, "ingress") if entry.get("ip") not in (None, "")]


def _v1beta1(reader: _Reader, document: Mapping[str, Any]) -> Service | None:
    """The flat form, in which C{port} is the only port or the first of C{ports}."""
    name = _name(reader, reader.text(document, "namespace"), reader.text(document, "id"))
    if name is None:
        return None
    entries = list(reader.objects(document, "ports"))
    if not entries and document.get("port") not in (None, 0):
        # 0 is how Go writes that there is none.
        entries = [document]
    addresses = [each for key in ("publicIPs", "publicIps") for each in reader.list(document, key)]
    return Service(name, _ports(reader, entries), _addresses(reader, addresses), _created(reader, document))


def _nested(
    reader: _Reader, document: Mapping[str, Any], keys: Iterable[str], balanced: Callable[[Mapping[str, Any]], bool]
) -> Service | None:
    """The form with C{metadata}, C{spec} and C{status}."""
    metadata = reader.object(document, "metadata")
    name = _name(reader, reader.text(metadata, "namespace"), reader.text(metadata, "name"))
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


def _v1beta3(reader: _Reader, document: Mapping[str, Any]) -> Service | None:
    return _nested(reader, document, ("publicIPs", "publicIps", "deprecatedPublicIPs"), lambda spec: True)


def _v1(reader: _Reader, document: Mapping[str, Any]) -> Service | None:
    return _nested(
        reader, document, ("externalIPs", "deprecatedPublicIPs"), lambda spec: spec.get("type") == "LoadBalancer"
    )


_DECODERS: Mapping[str, Callable[[_Reader, Mapping[str, Any]], Service | None]] = {
    "v1": _v1,
    "v1beta3": _v1beta3,
    "v1beta1": _v1beta1,
}


def decode_service(version: str, document: object) -> Decoded:
    """One object of a version of the API, as a list or an event has it."""
    if not isinstance(document, dict):
        return Decoded(None, (f"it is {_shown(document)}, not an object",))
    if document.get("kind") not in (None, "Service"):
        return Decoded(None, (f"its kind is {_shown(document['kind'])}, not Service",))
    reader = _Reader()
    service = _DECODERS[version](reader, document)
    return Decoded(service, reader.problems())


def _resource_version(version: str, document: Mapping[str, Any]) -> str:
    """
    The resource version of a Service or a list; empty where there is none that can be used. It is a number at the top
    of the object in C{v1beta1}, and text in its metadata later.
    """
    if version == "v1beta1":
        value = document.get("resourceVersion")
        return str(value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else ""
    metadata = document.get("metadata")
    value = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    return value if isinstance(value, str) and _RESOURCE_VERSION.fullmatch(value) else ""


def parse(data: bytes) -> dict[str, Any] | Nonsense:
    """A JSON object."""
    try:
        document = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        return Nonsense(f"it is not UTF-8: {_start(data)}")
    except (ValueError, RecursionError):
        return Nonsense(f"it is not JSON: {_start(data)}")
    if not isinstance(document, dict):
        return Nonsense(f"it is {_shown(document)}, not an object")
    return document


def _start(data: bytes) -> str:
    return quoted(data[:101].decode("latin-1"))


def decode_list(version: str, body: bytes) -> Listed | Nonsense:
    """A list of Services. C{items} may be null, which is how Go writes an empty list; it may not be something else."""
    document = parse(body)
    if isinstance(document, Nonsense):
        return document
    kind, items = document.get("kind"), document.get("items")
    if kind not in (None, "ServiceList"):
        return Nonsense(f"its kind is {_shown(kind)}, not ServiceList")
    if not isinstance(items, list) and (items is not None or kind is None):
        return Nonsense("it has no list of items")
    return Listed(tuple(decode_service(version, item) for item in items or ()), _resource_version(version, document))


def _error(status: Mapping[str, Any]) -> Expired | ServerError:
    if status.get("code") == 410 or status.get("reason") in ("Expired", "Gone"):
        return Expired()
    return ServerError(describe_status(status) or "it does not say why")


def describe_status(status: Mapping[str, Any]) -> str:
    """What a C{Status} says in words, printable; empty where it says nothing."""
    words = [word for key in ("reason", "message") if isinstance(word := status.get(key), str) and word]
    return quoted(": ".join(words), 200) if words else ""


def decode_event(version: str, line: bytes) -> Event:
    """One line of a watch."""
    event = parse(line)
    if isinstance(event, Nonsense):
        return event
    kind, document = event.get("type"), event.get("object")
    if not isinstance(document, dict):
        return Nonsense(f"an event of type {_shown(kind)} has no object")
    resource_version = _resource_version(version, document)
    if kind in ("ADDED", "MODIFIED"):
        return Changed(decode_service(version, document), resource_version)
    if kind == "DELETED":
        decoded = decode_service(version, document)
        if decoded.name is None:
            return Nonsense(f"what was deleted is no Service: {decoded.problems[-1]}")
        return Deleted(decoded.name, resource_version)
    if kind == "BOOKMARK":
        return Bookmark(resource_version) if resource_version else Nonsense("a bookmark has no resourceVersion")
    if kind == "ERROR":
        return _error(document)
    return Nonsense(f"events of type {_shown(kind)} are unknown")
