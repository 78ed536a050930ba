"""
Lists and watches of the Kubernetes API, whatever kind of object they are of. Pure.

The shapes are those of the API types of lists, C{Status} and C{WatchEvent} of each version. Nothing is taken on trust:
text comes out of here only as what the decoder of a kind lets through, as a resource version of a few plain characters,
or escaped and cut to length inside a sentence for the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from attrs import Factory, field, frozen

from .reading import quoted, shown

N = TypeVar("N")
"""What objects of a kind are named by; its text is the name that people know."""

T = TypeVar("T")
"""What is known of an object."""

_RESOURCE_VERSION = re.compile(r"[0-9A-Za-z._:-]{1,128}")


@frozen
class Decoded(Generic[N, T]):
    """
    What came of one object.

    @ivar name: C{None} where it cannot even be named.
    @ivar value: what is right about it; C{None} where there is nothing about it that Kiwi needs to know.
    @ivar problems: what is wrong with it, in sentences for the log: one printable line of bounded length each.
    """

    name: N | None
    value: T | None
    problems: tuple[str, ...] = ()


@frozen
class Kind(Generic[N, T]):
    """
    One kind of object, and how it is read.

    @ivar group: of the API; empty for the oldest one, which has no name.
    @ivar plural: its name in paths.
    @ivar kind: its name in objects.
    @ivar versions: those that Kiwi speaks, the newest first.
    """

    group: str
    plural: str
    kind: str
    versions: tuple[str, ...]
    _decode: Callable[[str, Mapping[str, Any]], Decoded[N, T]] = field(repr=False)

    def path(self, version: str, namespace: str = "", name: str = "") -> str:
        """Where a server has all objects of this kind, those of one namespace, or one of them."""
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        inner = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{inner}/{self.plural}" + (f"/{name}" if name else "")

    def is_flat(self, version: str) -> bool:
        """Whether objects of this version have at their top what is in their C{metadata} later."""
        return not self.group and version == "v1beta1"

    def decode(self, version: str, document: object) -> Decoded[N, T]:
        """One object, as a list or an event has it."""
        if not isinstance(document, dict):
            return Decoded(None, None, (f"it is {shown(document)}, not an object",))
        if document.get("kind") not in (None, self.kind):
            return Decoded(None, None, (f"its kind is {shown(document['kind'])}, not {self.kind}",))
        return self._decode(version, document)


@frozen
class Listed(Generic[N, T]):
    """
    The objects of a kind at one moment.

    @ivar resource_version: where to watch from; empty where the server did not say.
    @ivar more: asks for those that come after these; empty where these are the last ones.
    @ivar empty: there is no object at all, also none of which there is nothing to know.
    """

    items: tuple[Decoded[N, T], ...]
    resource_version: str = ""
    more: str = ""
    empty: bool = field(default=Factory(lambda self: not self.items, takes_self=True))


@frozen
class Changed(Generic[N, T]):
    """An object was created or changed."""

    decoded: Decoded[N, T]
    resource_version: str = ""


@frozen
class Deleted(Generic[N]):
    """An object is gone."""

    name: N
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


def _resource_version(kind: Kind[N, T], version: str, document: Mapping[str, Any]) -> str:
    """
    The resource version of an object or a list; empty where there is none that can be used. It is a number at the top
    of a flat object, and text in its metadata later.
    """
    if kind.is_flat(version):
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
        return Nonsense(f"it is {shown(document)}, not an object")
    return document


def _start(data: bytes) -> str:
    return quoted(data[:101].decode("latin-1"))


def decode_list(kind: Kind[N, T], version: str, body: bytes) -> Listed[N, T] | Nonsense:
    """A list of objects. C{items} may be null, which is how Go writes an empty list; it may not be something else."""
    document = parse(body)
    if isinstance(document, Nonsense):
        return document
    listed, items = document.get("kind"), document.get("items")
    if listed not in (None, f"{kind.kind}List"):
        return Nonsense(f"its kind is {shown(listed)}, not {kind.kind}List")
    if not isinstance(items, list) and (items is not None or listed is None):
        return Nonsense("it has no list of items")
    decoded = tuple(kind.decode(version, item) for item in items or ())
    metadata = document.get("metadata")
    more = metadata.get("continue") if isinstance(metadata, dict) else None
    return Listed(decoded, _resource_version(kind, version, document), more if isinstance(more, str) else "")


def _error(status: Mapping[str, Any]) -> Expired | ServerError:
    if status.get("code") == 410 or status.get("reason") in ("Expired", "Gone"):
        return Expired()
    return ServerError(describe_status(status) or "it does not say why")


def describe_status(status: Mapping[str, Any]) -> str:
    """What a C{Status} says in words, printable; empty where it says nothing."""
    words = [word for key in ("reason", "message") if isinstance(word := status.get(key), str) and word]
    return quoted(": ".join(words), 200) if words else ""


def decode_event(
    kind: Kind[N, T], version: str, line: bytes
) -> Changed[N, T] | Deleted[N] | Bookmark | Expired | ServerError | Nonsense:
    """One line of a watch."""
    event = parse(line)
    if isinstance(event, Nonsense):
        return event
    what, document = event.get("type"), event.get("object")
    if not isinstance(document, dict):
        return Nonsense(f"an event of type {shown(what)} has no object")
    resource_version = _resource_version(kind, version, document)
    if what in ("ADDED", "MODIFIED"):
        return Changed(kind.decode(version, document), resource_version)
    if what == "DELETED":
        decoded = kind.decode(version, document)
        if decoded.name is None:
            return Nonsense(f"what was deleted is no {kind.kind}: {decoded.problems[-1]}")
        return Deleted(decoded.name, resource_version)
    if what == "BOOKMARK":
        return Bookmark(resource_version) if resource_version else Nonsense("a bookmark has no resourceVersion")
    if what == "ERROR":
        return _error(document)
    return Nonsense(f"events of type {shown(what)} are unknown")
