"""Objects of every kind but Services, as JSON documents; which kinds there are, and what of each has changed."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, evolve, field, frozen

from .services import Key, Stored, timestamp

LONGEST_HISTORY = 10_000


def encode(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


class Refused(Exception):
    """What a server says instead of what was asked for."""

    def __init__(self, code: int, reason: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.more = code, reason, message, more


@frozen
class Kind:
    """
    A kind of object.

    @ivar creates_by_put: a PUT of an object that is not there creates it.
    @ivar needs_version: a PUT without a resource version is refused; else it changes whatever is there.
    @ivar has_status: its status is changed by a path of its own.
    @ivar registry: its name in etcd, which some messages tell.
    """

    group: str
    plural: str
    name: str
    namespaced: bool = True
    creates_by_put: bool = False
    needs_version: bool = False
    has_status: bool = False
    registry: str = ""

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified_name(self) -> str:
        return f"{self.name}.{self.group}" if self.group else self.name

    def details(self, name: str, kind: str | None = None) -> dict[str, str]:
        """What a status says of one object."""
        group = {"group": self.group} if self.group else {}
        return {"name": name, **group, "kind": kind or self.plural}

    def absent(self, name: str) -> Refused:
        details = self.details(name)
        return Refused(404, "NotFound", f'{self.qualified} "{name}" not found', details=details)

    def conflict(self, name: str, why: str, kind: str | None = None) -> Refused:
        of = self.qualified if kind is None else self.qualified_name
        message = f'Operation cannot be fulfilled on {of} "{name}": {why}'
        return Refused(409, "Conflict", message, details=self.details(name, kind))

    def invalid(self, name: str, where: str, why: str, of_storage: bool = False) -> Refused:
        of, kind = (self.qualified, self.plural) if of_storage else (self.qualified_name, self.name)
        cause = "FieldValueRequired" if why.startswith("Required") else "FieldValueInvalid"
        causes = [{"reason": cause, "message": why, "field": where}]
        message = f'{of} "{name}" is invalid: {where}: {why}'
        return Refused(422, "Invalid", message, details={**self.details(name, kind), "causes": causes})


SERVICES = Kind("", "services", "Service", has_status=True, registry="services/specs")
LEASES = Kind("coordination.k8s.io", "leases", "Lease", creates_by_put=True, needs_version=True, registry="leases")
SLICES = Kind("discovery.k8s.io", "endpointslices", "EndpointSlice", registry="endpointslices")
NODES = Kind("", "nodes", "Node", namespaced=False, has_status=True, registry="minions")
NAMESPACES = Kind("", "namespaces", "Namespace", namespaced=False, registry="namespaces")
KINDS = (SERVICES, LEASES, SLICES, NODES, NAMESPACES)


@frozen
class Document:
    """
    An object of any kind but a Service.

    @ivar body: all of it but what the server writes into its metadata; an EndpointSlice in the form of C{v1}. It is
        never changed.
    """

    kind: Kind
    namespace: str
    name: str
    body: Mapping[str, Any]
    created: str = ""
    uid: str = ""
    resource_version: int = 0
    encoded: dict[str, bytes] = field(factory=dict, init=False, eq=False, repr=False)

    @property
    def key(self) -> Key:
        return (self.namespace, self.name)

    @property
    def labels(self) -> Mapping[str, str]:
        labels: Mapping[str, str] = self.body["metadata"].get("labels", {})
        return labels

    def as_item(self, version: str) -> dict[str, Any]:
        """As an item of a list, which has neither kind nor version."""
        written = {
            "uid": self.uid,
            "resourceVersion": str(self.resource_version),
            "creationTimestamp": self.created or None,
        }
        item = {**self.body, "metadata": {**self.body["metadata"], **written}}
        if self.kind is SLICES and version == "v1beta1":
            item["endpoints"] = [_older_endpoint(endpoint) for endpoint in item.get("endpoints") or ()]
        return item


Object = Stored | Document


def kind_of(stored: Object) -> Kind:
    return stored.kind if isinstance(stored, Document) else SERVICES


def encoded(version: str, stored: Object) -> bytes:
    """An item of a list."""
    found = stored.encoded.get(version)
    if found is None:
        found = stored.encoded[version] = encode(stored.as_item(version))
    return found


def encoded_whole(kind: Kind, version: str, stored: Object) -> bytes:
    """An object by itself, or in an event."""
    group = f"{kind.group}/" if kind.group else ""
    return b'{"kind":"%s","apiVersion":"%s%s",' % (kind.name.encode(), group.encode(), version.encode()) + encoded(
        version, stored
    ).removeprefix(b"{")


# Reading.

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
_METADATA = ("name", "namespace", "labels", "annotations", "ownerReferences")
_LEASE = {
    "holderIdentity": str,
    "leaseDurationSeconds": int,
    "acquireTime": str,
    "renewTime": str,
    "leaseTransitions": int,
}
_HOSTNAME, _ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"


def read_document(kind: Kind, version: str, document: Mapping[str, Any], namespace: str) -> Document:
    """
    An object from what was sent.

    @param namespace: of an object that does not say its own.
    @raise Refused: where a real server would; but only Leases are looked at closely.
    """
    metadata = document.get("metadata")
    if not isinstance(metadata, Mapping):
        metadata = {}
    name = metadata.get("name") or ""
    if not name:
        raise kind.invalid("", "metadata.name", "Required value: name or generateName is required")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise kind.invalid(str(name), "metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 subdomain')
    kept = {part: metadata[part] for part in _METADATA if metadata.get(part)}
    if kind.namespaced:
        namespace = kept["namespace"] = metadata.get("namespace") or namespace
    else:
        namespace = ""
        kept.pop("namespace", None)
    body = {part: value for part, value in document.items() if part not in ("kind", "apiVersion", "metadata")}
    body = {"metadata": kept, **json.loads(json.dumps(body, default=timestamp))}
    if kind is LEASES:
        body["spec"] = _read_lease(name, body.get("spec") or {})
    if kind is SLICES and version == "v1beta1":
        body["endpoints"] = [_newer_endpoint(endpoint) for endpoint in body.get("endpoints") or ()]
    return Document(kind, namespace, name, body, created=timestamp(metadata.get("creationTimestamp")))


def _read_lease(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What is not known is dropped. Times have microseconds, no more and no fewer digits."""
    read = {part: spec[part] for part in _LEASE if spec.get(part) is not None}
    for part, value in read.items():
        wrong = not isinstance(value, _LEASE[part]) or isinstance(value, bool)
        if wrong or (part.endswith("Time") and not _MICRO_TIME.fullmatch(value)):
            message = f'Lease in version "v1" cannot be handled as a Lease: {part} is {json.dumps(value)}'
            raise Refused(400, "BadRequest", message)
    if read.get("leaseDurationSeconds", 1) <= 0:
        why = f"Invalid value: {read['leaseDurationSeconds']}: must be greater than 0"
        raise LEASES.invalid(name, "spec.leaseDurationSeconds", why)
    return read


def _newer_endpoint(endpoint: Mapping[str, Any]) -> dict[str, Any]:
    """
    An endpoint of C{v1} from one of C{v1beta1}, as the API server converts it: the zone becomes a field, and the host
    name stays, as a topology that is deprecated, unless it is the node name.
    """
    made = {part: value for part, value in endpoint.items() if part != "topology"}
    topology = dict(endpoint.get("topology") or {})
    if _ZONE in topology:
        made["zone"] = topology.pop(_ZONE)
    if "nodeName" in made and topology.get(_HOSTNAME) == made["nodeName"]:
        del topology[_HOSTNAME]
    return {**made, **({"deprecatedTopology": topology} if topology else {})}


def _older_endpoint(endpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The other way round: the host name is the node name, unless there is one already."""
    made = {part: value for part, value in endpoint.items() if part not in ("deprecatedTopology", "zone")}
    topology = dict(endpoint.get("deprecatedTopology") or {})
    if "zone" in endpoint:
        topology[_ZONE] = endpoint["zone"]
    if "nodeName" in endpoint:
        topology.setdefault(_HOSTNAME, endpoint["nodeName"])
    return {**made, **({"topology": topology} if topology else {})}


# Selecting.

Selector = Callable[[Object], bool]
_TERM = re.compile(
    r"\s*(?P<no>!?)\s*(?P<key>[\w./-]+)\s*"
    r"(?:(?P<is>==|=|!=)\s*(?P<value>[\w.-]*)|\s(?P<among>in|notin)\s*\((?P<values>[\w.,\s-]*)\))?\s*(?:,|$)"
)


def everything(stored: Object) -> bool:
    return True


def read_selector(kind: Kind, fields: str, labels: str) -> Selector:
    """
    What C{fieldSelector} and C{labelSelector} select.

    @raise Refused: where they are not understood.
    """
    tests = [*_field_terms(kind, fields), *_label_terms(labels)]
    return (lambda stored: all(test(stored) for test in tests)) if tests else everything


def _terms(text: str) -> list[re.Match[str]]:
    found, at = [], 0
    while at < len(text):
        term = _TERM.match(text, at)
        if term is None or term.end() == at:
            raise Refused(400, "BadRequest", f"invalid selector: '{text}'; can't understand '{text[at:]}'")
        found.append(term)
        at = term.end()
    return found


def _field_terms(kind: Kind, text: str) -> list[Selector]:
    known = ["metadata.name", *(["metadata.namespace"] if kind.namespaced else [])]
    found: list[Selector] = []
    for term in _terms(text):
        key, value, wanted = term["key"], term["value"], term["is"] != "!="
        if term["is"] is None:
            raise Refused(400, "BadRequest", f"invalid selector: '{text}'; can't understand '{key}'")
        if key not in known:
            only = ", ".join(f'"{each}"' for each in known)
            raise Refused(400, "BadRequest", f'"{key}" is not a known field selector: only {only}')
        attribute = key.removeprefix("metadata.")
        found.append(lambda stored, a=attribute, v=value, w=wanted: (getattr(stored, a) == v) == w)  # type: ignore[misc]
    return found


def _label_terms(text: str) -> list[Selector]:
    def holds(term: re.Match[str]) -> Selector:
        key, found = term["key"], term["is"] or term["among"]
        if found is None:
            return lambda stored: (key in stored.labels) != bool(term["no"])
        values = [term["value"]] if term["is"] else [each.strip() for each in term["values"].split(",")]
        if found in ("!=", "notin"):
            return lambda stored: stored.labels.get(key) not in values
        return lambda stored: stored.labels.get(key) in values

    return [holds(term) for term in _terms(text)]


# Remembering.


@frozen
class Event:
    """
    One change.

    @ivar before: what there was, or C{None}.
    @ivar after: what there is now, or C{None}.
    """

    version: int
    before: Object | None
    after: Object | None

    @property
    def stored(self) -> Object:
        """What it is about, as it is now or, where it is gone, as it was."""
        stored = self.after or self.before
        assert stored is not None
        return stored

    def seen(self, selects: Selector) -> tuple[str, Object] | None:
        """
        The type and the object by which one who watches a selection is told. What leaves the selection is told as a
        deletion of what it was before, with the resource version of the change.
        """
        was = self.before is not None and selects(self.before)
        if self.after is not None and selects(self.after):
            return ("MODIFIED" if was else "ADDED"), self.after
        if was and self.before is not None:
            return "DELETED", self.gone
        return None

    @property
    def gone(self) -> Object:
        assert self.before is not None
        return evolve(self.before, resource_version=self.version)


@define(eq=False)
class Collection:
    """
    All objects of a kind, and their latest changes.

    @ivar oldest: changes after this resource version are known.
    """

    kind: Kind
    objects: dict[Key, Any] = field(factory=dict)
    history: deque[Event] = field(factory=deque)
    oldest: int = 0

    def record(self, event: Event) -> None:
        key = event.stored.key
        if event.after is None:
            del self.objects[key]
        else:
            self.objects[key] = event.after
        self.history.append(event)
        while len(self.history) > LONGEST_HISTORY:
            self.oldest = self.history.popleft().version

    def since(self, version: int) -> list[Event]:
        """The changes after a resource version."""
        return [event for event in self.history if event.version > version]

    def at(self, version: int) -> dict[Key, Object]:
        """
        All objects as they were.

        @raise LookupError: where that is not known any more.
        """
        if version < self.oldest:
            raise LookupError
        objects = dict(self.objects)
        for event in reversed(self.since(version)):
            if event.before is None:
                objects.pop(event.stored.key, None)
            else:
                objects[event.before.key] = event.before
        return objects

    def forget(self, version: int) -> None:
        """Know no change until now."""
        self.oldest = version
        self.history.clear()
