"""The API server itself: what there is, how it behaves, and what it answers."""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from attrs import define, evolve, field, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from .access import Access, Authorizer, known_users, read_access, user_of
from .objects import (
    KINDS,
    NAMESPACES,
    SERVICES,
    Collection,
    Document,
    Event,
    Kind,
    Object,
    Refused,
    Selector,
    encode,
    encoded,
    encoded_whole,
    kind_of,
    read_document,
    read_selector,
)
from .services import VERSIONS, Key, Stored, read_manifest

GROUPS = ("coordination.k8s.io/v1", "discovery.k8s.io/v1", "discovery.k8s.io/v1beta1")
NAMESPACES_AT_FIRST = ("default", "kube-system", "kiwi")
_MEDIA_TYPES = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
_TOO_OLD_TO_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)
_CHANGED = "the object has been modified; please apply your changes to the latest version and try again"

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "AlreadyExists",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}


def status(code: int, reason: str, message: str, **more: Any) -> dict[str, Any]:
    """What a server says instead of what was asked for. Where it does not know why, it has no reason."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        **({"reason": reason} if reason else {}),
        **more,
        "code": code,
    }


def _nowhere() -> Refused:
    return Refused(404, "NotFound", "the server could not find the requested resource", details={})


def _not_allowed() -> Refused:
    message = "the server does not allow this method on the requested resource"
    return Refused(405, "MethodNotAllowed", message, details={})


def _too_large(version: int, current: int, **more: Any) -> Refused:
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    message = f"Timeout: Too large resource version: {version}, current: {current}"
    return Refused(504, "Timeout", message, details={"causes": causes, **more})


@frozen
class Failing:
    """
    How the server answers instead.

    @ivar path: the beginning of the paths that fail, or all of one path if it ends with a question mark.
    """

    code: int
    retry_after: str | None = None
    path: str = "/"


@frozen
class Snapshot:
    """All that a server had at one moment, as a backup of its etcd has it."""

    resource_version: int
    objects: Mapping[str, Mapping[Key, Object]]


@define(eq=False)
class Watcher:
    """One watch that is open."""

    request: Request
    kind: Kind
    version: str
    namespace: str
    selects: Selector
    bookmarks: bool
    after: int
    ending: IDelayedCall | None = None

    def covers(self, stored: Object) -> bool:
        return self.namespace in ("", stored.namespace) and self.selects(stored)

    def tell(self, event: Event) -> None:
        """Tell of a change what can be seen of it."""
        seen = event.seen(self.covers) if event.version > self.after else None
        if seen is not None:
            self.send(*seen)

    def send(self, kind: str, stored: Object) -> None:
        self.line(b'{"type":"%s","object":%s}' % (kind.encode(), encoded_whole(self.kind, self.version, stored)))

    def line(self, line: bytes) -> None:
        self.request.write(line + b"\n")


@define(eq=False)
class KubernetesState:
    """
    All objects, and how the server behaves.

    @ivar versions: what it offers of the API that has no group. Nodes and Namespaces are only in C{v1}.
    @ivar clock: ends watches after their C{timeoutSeconds}; without one, they do not end.
    @ivar now: the time of day for creation timestamps.
    @ivar discovery: the body of C{/api}, where it is another one than is right; empty for 404.
    @ivar lists: whether there are lists of Services, and not only watches.
    @ivar list_body: the body of lists of Services, where it is another one than is right.
    @ivar expires_by_status: an expired version is refused with status 410, or else, as 1.20 does, with an event in the
        watch.
    @ivar groups: each group and version that it offers beside C{versions}.
    @ivar tokens: users by their bearer tokens. Where there are none, nobody is asked who it is.
    @ivar authorize: says what is allowed; at first, everything to all who have a token.
    @ivar refuses_future: a watch from a resource version that is still to come is ended by an error event, or else, as
        1.20 does, told nothing until after that version.
    @ivar requests: the latest requests: method and path with its query.
    """

    versions: Sequence[str] = VERSIONS
    clock: IReactorTime | None = None
    now: Callable[[], str] | None = None
    discovery: bytes | None = None
    lists: bool = True
    list_body: bytes | None = None
    expires_by_status: bool = False
    groups: Sequence[str] = GROUPS
    tokens: Mapping[str, str] | None = None
    authorize: Authorizer = known_users
    refuses_future: bool = False
    requests: deque[str] = field(factory=lambda: deque(maxlen=1000), init=False)
    watchers: list[Watcher] = field(factory=list, init=False)
    resource_version: int = field(default=1, init=False)
    failing: Failing | None = field(default=None, init=False)
    hanging: bool = field(default=False, init=False)
    _hung: list[Request] = field(factory=list, init=False)
    _created: int = field(default=0, init=False)
    _collections: dict[str, Collection] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._collections = {kind.plural: Collection(kind) for kind in KINDS}
        self._begin()

    def _begin(self) -> None:
        """A cluster in which nothing has happened but that its first namespaces were made."""
        self.resource_version = 1
        for collection in self._collections.values():
            collection.objects.clear()
            collection.forget(0)
        for name in NAMESPACES_AT_FIRST:
            made = read_document(NAMESPACES, "v1", {"metadata": {"name": name}}, "")
            self._collections["namespaces"].objects[made.key] = evolve(
                made, uid=self._new_uid(made), created=self._time(), resource_version=1
            )

    # What there is.

    @property
    def services(self) -> dict[Key, Stored]:
        return self._collections["services"].objects

    def objects(self, plural: str) -> Mapping[Key, Document]:
        """All C{leases}, C{endpointslices}, C{nodes} or C{namespaces}, by namespace, or C{""}, and name."""
        return self._collections[plural].objects

    def put(self, document: Mapping[str, Any], namespace: str = "default") -> Object:
        """
        Create or change an object of any kind, whatever its resource version is. A change of nothing is none.

        @raise ValueError: where it is none that this server has.
        """
        return self._put(self.read(document, namespace))

    def read(self, document: Mapping[str, Any], namespace: str = "default") -> Object:
        """
        An object from its manifest.

        @raise ValueError: where it is none that this server has.
        """
        api_version, name = document.get("apiVersion"), document.get("kind", "Service")
        group, _, version = str(api_version).rpartition("/")
        for kind in KINDS:
            if kind is not SERVICES and (kind.group, kind.name) == (group, name) and self._offers(kind, version):
                try:
                    return read_document(kind, version, document, namespace)
                except Refused as refused:
                    raise ValueError(refused.message) from None
        if name != "Service":
            raise ValueError(f"there is no {name} in {api_version}")
        return read_manifest(document, namespace)

    def delete(self, name: str, namespace: str = "default", plural: str = "services") -> Object:
        """
        Delete an object. A Node's namespace is empty.

        @raise KeyError: where there is none.
        """
        return self._delete(self._collections[plural].objects[namespace, name])

    def _put(self, stored: Object) -> Object:
        before = self._collections[kind_of(stored).plural].objects.get(stored.key)
        if before is None:
            stored = evolve(stored, uid=self._new_uid(stored), created=stored.created or self._time())
        else:
            stored = evolve(stored, uid=before.uid, created=before.created, resource_version=before.resource_version)
            if stored == before:
                return before
        self.resource_version += 1
        stored = evolve(stored, resource_version=self.resource_version)
        self._record(Event(self.resource_version, before, stored))
        return stored

    def _delete(self, stored: Object) -> Object:
        self.resource_version += 1
        event = Event(self.resource_version, stored, None)
        self._record(event)
        return event.gone

    def _new_uid(self, stored: Object) -> str:
        """Never the same twice, also not after a backup was restored."""
        self._created += 1
        return str(uuid5(NAMESPACE_URL, f"{stored.namespace}/{stored.name}/{self._created}"))

    def _time(self) -> str:
        if self.now is not None:
            return self.now()
        moment = datetime(2015, 6, 1, 12, tzinfo=timezone.utc) + timedelta(seconds=self.resource_version)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _record(self, event: Event) -> None:
        kind = kind_of(event.stored)
        self._collections[kind.plural].record(event)
        if not self.hanging:
            for watcher in list(self.watchers):
                if watcher.kind is kind:
                    watcher.tell(event)

    # How it behaves.

    def compact(self) -> None:
        """
        Forget what happened until now: to watch from an earlier version is to be told that it has expired. A real
        server must also be restarted before its watches do that.
        """
        for collection in self._collections.values():
            collection.forget(self.resource_version)

    def bookmark(self) -> None:
        """
        Tell those who asked for it, and are not ahead, how far they are. 1.20 does that each minute, and two seconds
        before a watch ends, but only where something of the kind has happened since it began.
        """
        for watcher in self.watchers:
            if watcher.bookmarks and self.resource_version > watcher.after:
                metadata = {"resourceVersion": str(self.resource_version), "creationTimestamp": None}
                api_version = f"{watcher.kind.group}/{watcher.version}".lstrip("/")
                bookmark = {"kind": watcher.kind.name, "apiVersion": api_version, "metadata": metadata}
                watcher.line(encode({"type": "BOOKMARK", "object": bookmark}))

    def send(self, line: bytes) -> None:
        """Send a line to every watch, whatever it is."""
        for watcher in self.watchers:
            watcher.line(line)

    def end_watches(self) -> None:
        """End every watch, as a server does now and then."""
        for watcher in list(self.watchers):
            watcher.request.finish()

    def drop_connections(self) -> None:
        """Break every connection that is in use."""
        for request in [*self._hung, *(watcher.request for watcher in self.watchers)]:
            transport: Any = request.channel.transport
            transport.abortConnection()

    def hang(self) -> None:
        """Take requests and never answer; say nothing more to those who watch."""
        self.hanging = True

    def fail(self, code: int, retry_after: str | None = None, path: str = "/") -> None:
        """Answer requests for paths that begin like this with a status. Watches that are open stay so."""
        self.failing = Failing(code, retry_after, path)

    def recover(self) -> None:
        """Hang and fail no longer. Connections that were left hanging are broken."""
        self.failing = None
        if self.hanging:
            self.hanging = False
            self.drop_connections()

    def restart(self, keep: bool = False) -> None:
        """Break all connections; come back with the same objects, or with none and another history."""
        self.drop_connections()
        if not keep:
            self._begin()

    def snapshot(self) -> Snapshot:
        """A backup."""
        return Snapshot(
            self.resource_version, {plural: dict(each.objects) for plural, each in self._collections.items()}
        )

    def restore(self, snapshot: Snapshot) -> None:
        """
        Break all connections; come back with what there was, and with the resource versions from then on once more: who
        knows a later one waits in vain for what happens until then.
        """
        self.drop_connections()
        self.resource_version = snapshot.resource_version
        for plural, collection in self._collections.items():
            collection.objects.clear()
            collection.objects.update(snapshot.objects[plural])
            collection.forget(snapshot.resource_version)

    # What it answers.

    def answer(self, request: Request) -> bytes | None:
        """The body of the answer, or C{None} where it is still to come."""
        method = request.method.decode()
        uri = request.uri.decode("ascii", "replace")
        self.requests.append(f"{method} {uri}")
        path = uri.split("?")[0]
        if self.hanging:
            self._hung.append(request)
            request.notifyFinish().addBoth(lambda _: self._hung.remove(request))
            return None
        try:
            if self.failing is not None and f"{path}?".startswith(self.failing.path):
                if self.failing.retry_after is not None:
                    request.setHeader("Retry-After", self.failing.retry_after)
                code = self.failing.code
                raise Refused(code, REASONS.get(code, "Unknown"), f"{path} is refused")
            arguments = {name.decode(): values[-1].decode() for name, values in request.args.items()}
            access = read_access(user_of(request, self.tokens), method, path, arguments)
            if not self.authorize(access):
                raise access.forbidden
            return self._answer(request, access, arguments) if access.resource else self._discover(method, path)
        except Refused as refused:
            request.setResponseCode(refused.code)
            if refused.more.get("details", {}).get("retryAfterSeconds"):
                request.setHeader("Retry-After", str(refused.more["details"]["retryAfterSeconds"]))
            return encode(status(refused.code, refused.reason, refused.message, **refused.more))

    def _offers(self, kind: Kind, version: str) -> bool:
        if kind.group:
            return f"{kind.group}/{version}" in self.groups
        return version in self.versions and (kind is SERVICES or version == "v1")

    def _discover(self, method: str, path: str) -> bytes:
        groups: dict[str, list[str]] = {}
        for each in self.groups:
            group, _, version = each.partition("/")
            groups.setdefault(group, []).append(version)
        match path.strip("/").split("/"):
            case _ if method not in ("GET", "HEAD"):
                raise _not_allowed()
            case ["api"] if self.discovery != b"":
                return self.discovery or encode({"kind": "APIVersions", "versions": list(self.versions)})
            case ["api", version] if version in self.versions:
                return self._describe("", version)
            case ["version"]:
                return encode({"major": "1", "minor": "20", "gitVersion": "v1.20.2"})
            case ["apis"] if groups:
                described = [_describe_group(name, groups[name]) for name in groups]
                return encode({"kind": "APIGroupList", "apiVersion": "v1", "groups": described})
            case ["apis", group] if group in groups:
                return encode({"kind": "APIGroup", "apiVersion": "v1", **_describe_group(group, groups[group])})
            case ["apis", group, version] if version in groups.get(group, ()):
                return self._describe(group, version)
        raise _nowhere()

    def _describe(self, group: str, version: str) -> bytes:
        verbs = ["create", "delete", "get", "list", "update", "watch"]
        resources = [
            {"name": kind.plural, "singularName": "", "namespaced": kind.namespaced, "kind": kind.name, "verbs": verbs}
            for kind in KINDS
            if kind.group == group and self._offers(kind, version)
        ]
        group_version = f"{group}/{version}".lstrip("/")
        return encode(
            {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}
        )

    def _answer(self, request: Request, access: Access, arguments: Mapping[str, str]) -> bytes | None:
        collection = self._collections.get(access.resource)
        if collection is None or collection.kind.group != access.group:
            raise _nowhere()
        kind, namespace = collection.kind, access.namespace
        if kind is SERVICES and access.version != "v1":
            arguments = {name: arguments[name] for name in ("resourceVersion", "timeoutSeconds") if name in arguments}
            namespace = namespace or ("default" if access.name or access.verb == "create" else "")
        is_one = bool(access.name) and access.verb not in ("list", "watch")
        if (
            not self._offers(kind, access.version)
            or (access.subresource and (access.subresource != "status" or not kind.has_status))
            or (namespace and not kind.namespaced)
            or (is_one and not namespace and kind.namespaced)
            or (access.verb == "list" and not self.lists and kind is SERVICES)
        ):
            raise _nowhere()
        match access.verb:
            case "watch":
                return self._watch(request, collection, access, arguments)
            case "list":
                return self._list(collection, access, arguments)
            case "get":
                self._check_fresh(_read_version(arguments.get("resourceVersion", "")))
                return encoded_whole(kind, access.version, self._find(collection, namespace, access.name))
            case "create" if not access.name and bool(namespace) == kind.namespaced:
                return self._write(request, collection, access, namespace)
            case "update" if access.name:
                return self._write(request, collection, access, namespace)
            case "delete" if not access.subresource and kind is not NAMESPACES:
                return self._remove(request, collection, namespace, access.name)
        raise _not_allowed()

    def _find(self, collection: Collection, namespace: str, name: str) -> Object:
        found: Object | None = collection.objects.get((namespace, name))
        if found is None:
            raise collection.kind.absent(name)
        return found

    def _check_fresh(self, version: int) -> None:
        """
        What is asked for must have happened. A real server waits three seconds for it, and knows for each kind only how
        far that has come; this one refuses at once, and has one version for all.
        """
        if version > self.resource_version:
            raise _too_large(version, self.resource_version, retryAfterSeconds=1)

    # Lists.

    def _list(self, collection: Collection, access: Access, arguments: Mapping[str, str]) -> bytes:
        """
        All pages of a list are of one moment, of which the token for the next page tells. A resource version in the
        past is a demand for a list that is no older; but together with a limit, or with C{resourceVersionMatch=Exact},
        for the list as it was then.

        A list is in the order of namespaces and names. In 1.20, it is in no order where it need not be the latest and
        has no limit, and may be behind when its resource version is 0. A limit and a version of the future together
        are there an error of etcd (500), and of newer servers the same as without a limit, but for C{Retry-After}.
        """
        kind, version = collection.kind, access.version
        if self.list_body is not None and kind is SERVICES:
            return self.list_body
        selects = _selector(kind, arguments)
        limit = max(0, _number(arguments, "limit"))
        token, wanted = arguments.get("continue", ""), arguments.get("resourceVersion", "")
        if token and wanted not in ("", "0"):
            raise Refused(400, "BadRequest", "specifying resource version is not allowed when using continue")
        at, start = _read_token(token, access.namespace) if token else (_read_version(wanted), ("", ""))
        exact = at > 0 and bool(token or limit or arguments.get("resourceVersionMatch") == "Exact")
        objects: Mapping[Key, Object] = collection.objects
        if exact:
            objects = self._at(collection, at, token, start, access.namespace)
        else:
            self._check_fresh(at)
        resource_version = at if exact else self.resource_version
        found = [
            objects[key]
            for key in sorted(objects)
            if key >= start and access.namespace in ("", key[0]) and selects(objects[key])
        ]
        metadata: dict[str, Any] = {"resourceVersion": str(resource_version)}
        if kind is SERVICES:
            metadata = {"selfLink": f"/api/{version}/services", **metadata}
        if limit and len(found) > limit:
            metadata["continue"] = _write_token(resource_version, found[limit - 1].key, access.namespace)
            if not (arguments.get("fieldSelector") or arguments.get("labelSelector")):
                metadata["remainingItemCount"] = len(found) - limit
            found = found[:limit]
        head: dict[str, Any] = {"metadata": metadata}
        if kind is SERVICES and version == "v1beta1":
            head = {"creationTimestamp": None, **metadata, "resourceVersion": resource_version}
        api_version = f"{kind.group}/{version}".lstrip("/")
        items = b",".join(encoded(version, stored) for stored in found)
        start_of_list = encode({"kind": f"{kind.name}List", "apiVersion": api_version, **head})
        return start_of_list[:-1] + b',"items":[' + items + b"]}"

    def _at(self, collection: Collection, version: int, token: str, start: Key, namespace: str) -> Mapping[Key, Object]:
        if version > self.resource_version:
            raise _too_large(version, self.resource_version)
        try:
            return collection.at(version)
        except LookupError:
            if not token:
                raise Refused(410, "Expired", "The resourceVersion for the provided list is too old.") from None
            metadata = {"continue": _write_token(-1, start, namespace, after=False)}
            raise Refused(410, "Expired", _TOO_OLD_TO_CONTINUE, metadata=metadata) from None

    # Writes.

    def _write(self, request: Request, collection: Collection, access: Access, namespace: str) -> bytes:
        """
        What the versions of objects protect. It is so in 1.20.2, in this order:

         - a C{metadata.uid} must be that of the object that is there. Where there is none, a PUT with one is refused
           with 409, and never creates anything, whatever its resource version is;
         - a PUT of a Lease that is not there, without a C{uid}, creates it, even with a C{resourceVersion};
         - a resource version that is not that of the object is a conflict, and an absent one, or 0, too much for a
           Lease (422), while it lets a Node or an EndpointSlice change in any case;
         - nothing in the document that is sent can change C{uid} or C{creationTimestamp};
         - a PUT that changes nothing is answered with the object as it was, and nobody is told.

        Other than a real one, a server of here creates a Service by PUT as well, takes its status with the rest, and
        lets it make its own namespace.
        """
        kind, creating = collection.kind, access.verb == "create"
        document = self._read_body(request, kind)
        metadata = document.get("metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        if kind is not SERVICES or access.version == "v1":
            self._check_path(kind, access, metadata)
        if kind is SERVICES:
            try:
                stored: Object = read_manifest({"apiVersion": access.version, **document}, namespace)
            except (ValueError, AttributeError) as error:
                raise Refused(400, "BadRequest", str(error)) from None
        else:
            stored = read_document(kind, access.version, document, namespace)
        if access.subresource and stored.key not in collection.objects:
            raise kind.absent(stored.name)
        before = collection.objects.get(stored.key)
        version, uid = metadata.get("resourceVersion"), metadata.get("uid")
        if not creating:
            if uid and uid != (before.uid if before is not None else ""):
                raise kind.conflict(stored.name, _other_uid(stored, uid, before))
            if before is None and not kind.creates_by_put and kind is not SERVICES:
                raise kind.absent(stored.name)
        needs_namespace = before is None and kind.namespaced and kind is not SERVICES
        if needs_namespace and ("", namespace) not in self.objects("namespaces"):
            raise NAMESPACES.absent(namespace)
        if creating and version and version != "0" and str(version).isdigit():
            raise Refused(500, "", "resourceVersion should not be set on objects to be created")
        if before is None:
            request.setResponseCode(201)
        elif creating:
            message = f'{kind.qualified} "{stored.name}" already exists'
            raise Refused(409, "AlreadyExists", message, details=kind.details(stored.name))
        else:
            self._check_version(kind, before, version)
            if kind.has_status and kind is not SERVICES:
                stored = _with_status(before, stored) if access.subresource else _with_status(stored, before)
            elif access.subresource and isinstance(stored, Stored):
                stored = evolve(before, ingress=stored.ingress)
        return encoded_whole(kind, access.version, self._put(stored))

    def _check_path(self, kind: Kind, access: Access, metadata: Mapping[str, Any]) -> None:
        name, namespace = metadata.get("name"), metadata.get("namespace")
        if access.name and not name:
            message = f"the name of the object ({access.name} based on URL) was undeterminable: name must be provided"
            raise Refused(400, "BadRequest", message)
        if access.name and name != access.name:
            message = f"the name of the object ({name}) does not match the name on the URL ({access.name})"
            raise Refused(400, "BadRequest", message)
        if kind.namespaced and namespace and namespace != access.namespace:
            message = "the namespace of the provided object does not match the namespace sent on the request"
            if access.verb == "update":
                message = (
                    f"the namespace of the object ({namespace}) does not match the namespace on the request "
                    f"({access.namespace})"
                )
            raise Refused(400, "BadRequest", message)

    def _check_version(self, kind: Kind, before: Object, version: Any) -> None:
        if version and not str(version).isdigit():
            raise Refused(500, "", f'strconv.ParseUint: parsing "{version}": invalid syntax')
        if not int(version or 0):
            if kind.needs_version:
                where, why = "metadata.resourceVersion", "Invalid value: 0x0: must be specified for an update"
                raise kind.invalid(before.name, where, why, of_storage=True)
        elif int(version) != before.resource_version:
            raise kind.conflict(before.name, _CHANGED)

    def _read_body(self, request: Request, kind: Kind, of: str | None = None) -> dict[str, Any]:
        """A Service is read whatever the type of its body is said to be, which for C{curl --data} is a form."""
        said = (request.getHeader("Content-Type") or "").partition(";")[0].strip()
        if said and said not in _MEDIA_TYPES and kind is not SERVICES:
            types = ", ".join(_MEDIA_TYPES)
            message = f"the body of the request was in an unknown format - accepted media types include: {types}"
            raise Refused(415, "UnsupportedMediaType", message)
        content = request.content.read() if request.content is not None else b""
        if of and not content:
            return {}
        try:
            document = json.loads(content)
        except ValueError as error:
            document = str(error)
        if not isinstance(document, dict) or (document.get("kind") or of or kind.name) != (of or kind.name):
            message = f"the object provided is unrecognized (must be of type {of or kind.name})"
            raise Refused(500, "", message) if of else Refused(400, "BadRequest", message)
        return document

    def _remove(self, request: Request, collection: Collection, namespace: str, name: str) -> bytes:
        """
        Preconditions are in the body, if there is one. They are looked at once it is clear that there is something to
        delete.
        """
        kind = collection.kind
        preconditions = self._read_body(request, kind, "DeleteOptions").get("preconditions") or {}
        stored = self._find(collection, namespace, name)
        uid, version = preconditions.get("uid"), preconditions.get("resourceVersion")
        if uid is not None and uid != stored.uid:
            why = (
                f"the UID in the precondition ({uid}) does not match the UID in record ({stored.uid}). "
                "The object might have been deleted and then recreated"
            )
            raise kind.conflict(name, why, kind.name)
        if version is not None and version != str(stored.resource_version):
            why = (
                f"the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record "
                f"({stored.resource_version}). The object might have been modified"
            )
            raise kind.conflict(name, why, kind.name)
        self._delete(stored)
        details = {**kind.details(name), "uid": stored.uid}
        return encode({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    # Watches.

    def _watch(
        self, request: Request, collection: Collection, access: Access, arguments: Mapping[str, str]
    ) -> bytes | None:
        """
        A watch without a resource version, or from 0, tells first of all that is there, in no order. From a version
        that is not remembered, 1.20 opens the watch (200), and ends it with an error event. From one of the future, it
        tells nothing until after that, and no bookmark either: who watches a server that was restored from a backup
        is not told that it waits in vain.

        A real server has the changes of each kind in a memory of its own, which a compaction of etcd leaves alone and
        a restart empties.
        """
        kind, version = collection.kind, access.version
        after = _read_version(arguments.get("resourceVersion", ""))
        selects, timeout = _selector(kind, arguments), _number(arguments, "timeoutSeconds")
        message = f"too old resource version: {after} ({collection.oldest})"
        refused = Refused(410, "Expired", message) if 0 < after < collection.oldest else None
        if refused is not None and self.expires_by_status:
            raise refused
        if self.refuses_future and after > self.resource_version:
            refused = _too_large(after, self.resource_version, retryAfterSeconds=1)
        bookmarks = arguments.get("allowWatchBookmarks") in ("true", "1")
        watcher = Watcher(request, kind, version, access.namespace, selects, bookmarks, after)
        request.write(b"")
        if refused is not None:
            error = status(refused.code, refused.reason, refused.message, **refused.more)
            watcher.line(encode({"type": "ERROR", "object": error}))
            request.finish()
            return None
        if after == 0:
            for stored in collection.objects.values():
                if watcher.covers(stored):
                    watcher.send("ADDED", stored)
        else:
            for event in collection.since(after):
                watcher.tell(event)
        self._open(watcher, timeout)
        return None

    def _open(self, watcher: Watcher, timeout: int) -> None:
        self.watchers.append(watcher)
        if self.clock is not None and timeout > 0:
            watcher.ending = self.clock.callLater(timeout, watcher.request.finish)

        def closed(_: object) -> None:
            self.watchers.remove(watcher)
            if watcher.ending is not None and watcher.ending.active():
                watcher.ending.cancel()

        watcher.request.notifyFinish().addBoth(closed)


def _number(arguments: Mapping[str, str], name: str) -> int:
    value = arguments.get(name, "")
    try:
        return int(value or "0")
    except ValueError:
        message = f'strconv.ParseInt: parsing "{value}": invalid syntax'
        raise Refused(400, "BadRequest", message) from None


def _selector(kind: Kind, arguments: Mapping[str, str]) -> Selector:
    return read_selector(kind, arguments.get("fieldSelector", ""), arguments.get("labelSelector", ""))


def _read_version(value: str) -> int:
    if value and not value.isdigit():
        message = f'resourceVersion: Invalid value: "{value}": strconv.ParseUint: parsing "{value}": invalid syntax'
        raise Refused(500, "", message)
    return int(value or "0")


def _write_token(version: int, key: Key, namespace: str, after: bool = True) -> str:
    """Where the next page begins, and as of when. It is opaque, but looks like a real one."""
    name = key[1] if namespace else "/".join(filter(None, key))
    token = {"v": "meta.k8s.io/v1", "rv": version, "start": name + ("\0" if after else "")}
    return base64.urlsafe_b64encode(encode(token)).decode().rstrip("=")


def _read_token(token: str, namespace: str) -> tuple[int, Key]:
    try:
        read = json.loads(base64.urlsafe_b64decode(token + "=="))
        version, start = int(read["rv"]), str(read["start"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(400, "BadRequest", f"invalid continue token: continue key is not valid: {error}") from None
    if namespace:
        return version, (namespace, start)
    first, slash, name = start.partition("/")
    return version, (first, name) if slash else ("", first)


def _other_uid(stored: Object, uid: str, before: Object | None) -> str:
    key = "/".join(filter(None, ("/registry", kind_of(stored).registry, *stored.key)))
    return (
        f"StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition "
        f"failed: UID in precondition: {uid}, UID in object meta: {before.uid if before is not None else ''}"
    )


def _with_status(stored: Object, other: Object) -> Object:
    """An object with the status of another."""
    assert isinstance(stored, Document) and isinstance(other, Document)
    body = {part: value for part, value in stored.body.items() if part != "status"}
    if "status" in other.body:
        body["status"] = other.body["status"]
    return evolve(stored, body=body)


def _describe_group(name: str, versions: Sequence[str]) -> dict[str, Any]:
    described = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": described, "preferredVersion": described[0]}


class KubernetesResource(Resource):
    """The server itself, for a C{Site} or for an agent in memory."""

    isLeaf = True

    def __init__(self, state: KubernetesState) -> None:
        super().__init__()
        self.state = state

    def render(self, request: Request) -> bytes | int:
        """Answer, whatever the method is."""
        request.setHeader("Content-Type", "application/json")
        body = self.state.answer(request)
        return NOT_DONE_YET if body is None else body
