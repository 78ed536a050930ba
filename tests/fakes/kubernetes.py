"""
A small API server for Services, with nothing behind it.

It speaks C{v1}, C{v1beta3} and C{v1beta1}: lists, watches with resource versions and bookmarks, expired versions, and
the many ways in which a server goes away. What it is told in one version it tells in every other. It does not
validate: a Service that no real server would accept is served as it is.

It is also a program::

    python -m tests.fakes.kubernetes --listen 127.0.0.1:8080 --watch examples

which serves the manifests in a folder, as they change, and takes others by POST, PUT and DELETE::

    curl -X PUT --data @web.json http://127.0.0.1:8080/api/v1/namespaces/default/services/web
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import yaml
from attrs import define, evolve, field, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

VERSIONS = ("v1", "v1beta3", "v1beta1")
LONGEST_HISTORY = 10_000

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
    """A Service in no version of the API in particular."""

    namespace: str
    name: str
    ports: tuple[Port, ...] = ()
    external: tuple[Any, ...] = ()
    ingress: tuple[Any, ...] = ()
    type: str = "ClusterIP"
    selector: Mapping[str, str] = field(factory=dict)
    labels: Mapping[str, str] = field(factory=dict)
    annotations: Mapping[str, str] = field(factory=dict)
    created: str = ""
    uid: str = ""
    resource_version: int = 0

    @property
    def key(self) -> Key:
        return (self.namespace, self.name)


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
            "ports": [{"name": f"p{port}", "port": port, "protocol": protocol} for port, protocol in pairs],
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
    ingress = ((document.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return Stored(
        namespace=metadata.get("namespace") or namespace,
        name=name,
        ports=tuple(
            Port(port.get("port"), port.get("protocol") or "TCP", port.get(target), port.get("name") or "")
            for port in ports
        ),
        external=tuple(external),
        ingress=tuple(each.get("ip") for each in ingress),
        type=spec.get("type") or ("LoadBalancer" if ingress else "ClusterIP"),
        selector=spec.get("selector") or {},
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        created=_timestamp(metadata.get("creationTimestamp")),
    )


def _timestamp(value: Any) -> str:
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
        spec |= {"selector": dict(stored.selector), "clusterIP": "10.0.0.10", "type": stored.type}
    else:
        spec |= {"selector": dict(stored.selector), "portalIP": "10.0.0.10"}
        if stored.external:
            spec["publicIPs"] = list(stored.external)
        if stored.type == "LoadBalancer":
            spec["createExternalLoadBalancer"] = True
    spec["sessionAffinity"] = "None"
    balancer = {"ingress": [{"ip": each} for each in stored.ingress]} if stored.ingress else {}
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
        rendered["publicIPs"] = [*stored.external, *stored.ingress]
    return rendered


def status(version: str, code: int, reason: str, message: str) -> dict[str, Any]:
    """What a server says instead of what was asked for."""
    return {
        "kind": "Status",
        "apiVersion": version,
        "metadata": {},
        "status": "Failure" if code >= 400 else "Success",
        "message": message,
        "reason": reason,
        "code": code,
    }


def encode(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


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


@frozen
class Failing:
    """
    How the server answers instead.

    @ivar path: the beginning of the paths that fail, or all of one path if it ends with a question mark.
    """

    code: int
    retry_after: str | None = None
    path: str = "/"


@define(eq=False)
class Watcher:
    """One watch that is open."""

    request: Request
    version: str
    namespace: str | None
    bookmarks: bool
    after: int
    ending: IDelayedCall | None = None

    def send(self, kind: str, rendered: bytes, namespace: str, resource_version: int) -> None:
        if resource_version > self.after and self.namespace in (None, namespace):
            self.line(b'{"type":"%s","object":%s}' % (kind.encode(), rendered))

    def line(self, line: bytes) -> None:
        self.request.write(line + b"\n")


@define(eq=False)
class KubernetesState:
    """
    Services, and how the server behaves.

    @ivar versions: what it offers.
    @ivar clock: ends watches after their C{timeoutSeconds}; without one, they do not end.
    @ivar now: the time of day for creation timestamps.
    @ivar discovery: the body of C{/api}, where it is another one than is right; empty for 404.
    @ivar lists: whether there are lists, and not only watches.
    @ivar list_body: the body of lists, where it is another one than is right.
    @ivar expires_by_status: an expired version is refused with status 410, or else with an event in the watch.
    @ivar requests: the latest requests: method and path with its query.
    """

    versions: Sequence[str] = VERSIONS
    clock: IReactorTime | None = None
    now: Callable[[], str] | None = None
    discovery: bytes | None = None
    lists: bool = True
    list_body: bytes | None = None
    expires_by_status: bool = False
    requests: deque[str] = field(factory=lambda: deque(maxlen=1000), init=False)
    watchers: list[Watcher] = field(factory=list, init=False)
    services: dict[Key, Stored] = field(factory=dict, init=False)
    resource_version: int = field(default=1, init=False)
    failing: Failing | None = field(default=None, init=False)
    hanging: bool = field(default=False, init=False)
    _hung: list[Request] = field(factory=list, init=False)
    _history: deque[tuple[str, Stored]] = field(factory=deque, init=False)
    _oldest: int = field(default=0, init=False)
    _rendered: dict[tuple[str, Key], bytes] = field(factory=dict, init=False)

    # What there is.

    def put(self, document: Mapping[str, Any], namespace: str = "default") -> Stored:
        """Create or change a Service. A change of nothing is none."""
        read = read_manifest(document, namespace)
        before = self.services.get(read.key)
        if before is None:
            uid = str(uuid5(NAMESPACE_URL, f"{read.namespace}/{read.name}/{self.resource_version + 1}"))
            stored = evolve(read, uid=uid, created=read.created or self._time())
        else:
            stored = evolve(read, uid=before.uid, created=before.created, resource_version=before.resource_version)
            if stored == before:
                return before
        return self._store("ADDED" if before is None else "MODIFIED", stored)

    def delete(self, name: str, namespace: str = "default") -> Stored:
        """
        Delete a Service.

        @raise KeyError: where there is none.
        """
        return self._store("DELETED", self.services[namespace, name])

    def _time(self) -> str:
        if self.now is not None:
            return self.now()
        moment = datetime(2015, 6, 1, 12, tzinfo=timezone.utc) + timedelta(seconds=self.resource_version)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _store(self, kind: str, stored: Stored) -> Stored:
        self.resource_version += 1
        stored = evolve(stored, resource_version=self.resource_version)
        if kind == "DELETED":
            del self.services[stored.key]
        else:
            self.services[stored.key] = stored
        for version in self.versions:
            self._rendered.pop((version, stored.key), None)
        self._history.append((kind, stored))
        while len(self._history) > LONGEST_HISTORY:
            self._oldest = self._history.popleft()[1].resource_version
        if not self.hanging:
            self._tell_all(kind, stored)
        return stored

    def _tell_all(self, kind: str, stored: Stored) -> None:
        lines: dict[str, bytes] = {}
        for watcher in list(self.watchers):
            if watcher.version not in lines:
                lines[watcher.version] = self._as_event(watcher.version, stored)
            watcher.send(kind, lines[watcher.version], stored.namespace, stored.resource_version)

    def _as_event(self, version: str, stored: Stored) -> bytes:
        return encode({"kind": "Service", "apiVersion": version, **render(version, stored)})

    def _as_item(self, version: str, stored: Stored) -> bytes:
        key = (version, stored.key)
        if key not in self._rendered:
            self._rendered[key] = encode(render(version, stored))
        return self._rendered[key]

    # How it behaves.

    def compact(self) -> None:
        """Forget what happened until now: to watch from an earlier version is to be told that it has expired."""
        self._oldest = self.resource_version
        self._history.clear()

    def bookmark(self) -> None:
        """Tell those who asked for it how far they are."""
        for watcher in self.watchers:
            if watcher.bookmarks:
                metadata = {"resourceVersion": str(self.resource_version), "creationTimestamp": None}
                bookmark = {"kind": "Service", "apiVersion": watcher.version, "metadata": metadata}
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
        """Break all connections; come back with the same Services, or with none and another history."""
        self.drop_connections()
        if not keep:
            self.services.clear()
            self._rendered.clear()
            self.resource_version = 1
            self._history.clear()
            self._oldest = 0

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
        if self.failing is not None and f"{path}?".startswith(self.failing.path):
            if self.failing.retry_after is not None:
                request.setHeader("Retry-After", self.failing.retry_after)
            return self._refuse(request, self.failing.code, f"{path} is refused")
        if path == "/api" and self.discovery != b"":
            return self.discovery or encode({"kind": "APIVersions", "versions": list(self.versions)})
        match path.strip("/").split("/"):
            case ["api", version, *rest] if version in self.versions:
                return self._answer(request, method, version, rest)
        return self._refuse(request, 404, "the server could not find the requested resource")

    def _answer(self, request: Request, method: str, version: str, rest: list[str]) -> bytes | None:
        watching = _argument(request, "watch") in ("true", "1")
        namespace = _argument(request, "namespace")
        if rest[:1] == ["watch"]:
            watching, rest = True, rest[1:]
        match rest:
            case ["namespaces", namespace, *rest]:
                pass
        match (method, rest):
            case ("GET", ["services"]) if watching:
                return self._watch(request, version, namespace)
            case ("GET", ["services"]) if self.lists:
                return self._list(version, namespace)
            case ("GET", ["services", name]) if (namespace or "default", name) in self.services:
                return self._as_event(version, self.services[namespace or "default", name])
            case ("POST", ["services"]) | ("PUT", ["services", _]):
                return self._write(request, method, version, namespace or "default")
            case ("DELETE", ["services", name]) if (namespace or "default", name) in self.services:
                self.delete(name, namespace or "default")
                return encode(status(version, 200, "", ""))
            case (_, ["services", *_]):
                return self._refuse(request, 404, "there is no such service")
        return self._refuse(request, 404, "the server could not find the requested resource")

    def _refuse(self, request: Request, code: int, message: str) -> bytes:
        request.setResponseCode(code)
        return encode(status("v1", code, REASONS.get(code, "Unknown"), message))

    def _list(self, version: str, namespace: str | None) -> bytes:
        if self.list_body is not None:
            return self.list_body
        kind = b'{"kind":"ServiceList","apiVersion":"%s",' % version.encode()
        items = b",".join(
            self._as_item(version, stored) for stored in self.services.values() if namespace in (None, stored.namespace)
        )
        link = f"/api/{version}/services"
        if version == "v1beta1":
            head = encode({"creationTimestamp": None, "selfLink": link, "resourceVersion": self.resource_version})[1:-1]
        else:
            metadata = {"selfLink": link, "resourceVersion": str(self.resource_version)}
            head = encode({"metadata": metadata})[1:-1]
        return kind + head + b',"items":[' + items + b"]}"

    def _write(self, request: Request, method: str, version: str, namespace: str) -> bytes:
        assert request.content is not None
        try:
            document = json.loads(request.content.read())
            document.setdefault("apiVersion", version)
            key = read_manifest(document, namespace).key
        except (ValueError, AttributeError) as error:
            return self._refuse(request, 400, str(error))
        if method == "POST" and key in self.services:
            return self._refuse(request, 409, f"service {key[1]} already exists")
        if key not in self.services:
            request.setResponseCode(201)
        return self._as_event(version, self.put(document, namespace))

    def _watch(self, request: Request, version: str, namespace: str | None) -> bytes | None:
        since = _argument(request, "resourceVersion") or "0"
        if not since.isdigit():
            return self._refuse(request, 400, f"invalid resource version {since}")
        after = int(since)
        expired = 0 < after < self._oldest
        if expired and self.expires_by_status:
            return self._refuse(request, 410, f"too old resource version: {after} ({self._oldest})")
        bookmarks = version == "v1" and _argument(request, "allowWatchBookmarks") in ("true", "1")
        watcher = Watcher(request, version, namespace, bookmarks, after)
        request.write(b"")
        if expired:
            message = f"too old resource version: {after} ({self._oldest})"
            watcher.line(encode({"type": "ERROR", "object": status(version, 410, "Expired", message)}))
            request.finish()
            return None
        if after == 0:
            for stored in self.services.values():
                rendered = self._as_event(version, stored)
                watcher.send("ADDED", rendered, stored.namespace, stored.resource_version)
        else:
            for kind, stored in self._history:
                if stored.resource_version > after:
                    rendered = self._as_event(version, stored)
                    watcher.send(kind, rendered, stored.namespace, stored.resource_version)
        self._open(watcher, _argument(request, "timeoutSeconds") or "")
        return None

    def _open(self, watcher: Watcher, timeout: str) -> None:
        self.watchers.append(watcher)
        if self.clock is not None and timeout.isdigit():
            watcher.ending = self.clock.callLater(int(timeout), watcher.request.finish)

        def closed(_: object) -> None:
            self.watchers.remove(watcher)
            if watcher.ending is not None and watcher.ending.active():
                watcher.ending.cancel()

        watcher.request.notifyFinish().addBoth(closed)


def _argument(request: Request, name: str) -> str | None:
    values: list[bytes] = request.args.get(name.encode(), [])
    return values[-1].decode("ascii", "replace") if values else None


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


@define(eq=False)
class Folder:
    """
    Keeps the Services of a server equal to the manifests in a folder. A file that cannot be read is reported once, and
    what it said before stays.
    """

    path: Path
    state: KubernetesState
    report: Callable[[str], None]
    _seen: dict[Path, tuple[int, int]] = field(factory=dict, init=False)
    _gave: dict[Path, set[Key]] = field(factory=dict, init=False)

    def read(self) -> None:
        """Read what has changed since the last time."""
        found: dict[Path, tuple[int, int]] = {}
        for path in sorted(self.path.iterdir()):
            if path.suffix in (".yaml", ".yml", ".json"):
                try:
                    about = path.stat()
                except FileNotFoundError:
                    continue
                found[path] = (about.st_mtime_ns, about.st_size)
        for path in found:
            if self._seen.get(path) != found[path]:
                self._read(path)
        for path in self._gave.keys() - found.keys():
            self._give(path, [])
        self._seen = found

    def _read(self, path: Path) -> None:
        try:
            documents = [each for each in yaml.safe_load_all(path.read_text()) if each is not None]
            for document in documents:
                read_manifest(document)
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            self.report(f"{path} cannot be read: {' '.join(str(error).split())}")
            return
        if documents or path not in self._gave:
            self._give(path, documents)
        else:
            self.report(f"{path} is empty; delete it to delete its Services")

    def _give(self, path: Path, documents: list[dict[str, Any]]) -> None:
        given = {self.state.put(document).key for document in documents}
        before = self._gave.pop(path, set())
        if given:
            self._gave[path] = given
        elsewhere = set().union(*self._gave.values())
        for namespace, name in sorted(before - elsewhere):
            if (namespace, name) in self.state.services:
                self.state.delete(name, namespace)


def main(arguments: Sequence[str]) -> None:
    """Serve until told to stop."""
    from twisted.internet import reactor
    from twisted.internet.endpoints import TCP4ServerEndpoint
    from twisted.internet.interfaces import IListeningPort
    from twisted.web.server import Site

    parser = argparse.ArgumentParser(prog="tests.fakes.kubernetes", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="ADDRESS:PORT")
    parser.add_argument("--api", default=",".join(VERSIONS), metavar="VERSION,...", help="the versions to offer")
    parser.add_argument("--watch", type=Path, metavar="FOLDER", help="serve the manifests in it")
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    versions = options.api.split(",")
    if not port.isdigit() or not set(versions) <= set(VERSIONS):
        parser.error("wrong address or version")

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def now() -> str:
        return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    clock: Any = reactor
    state = KubernetesState(versions=versions, clock=clock, now=now)
    if options.watch is not None:
        LoopingCall(Folder(options.watch, state, report).read).start(0.1).addErrback(lambda f: report(f.getTraceback()))
    LoopingCall(state.bookmark).start(60).addErrback(lambda f: report(f.getTraceback()))

    def listening(listener: IListeningPort) -> None:
        where: Any = listener.getHost()
        print(f"Services at http://{where.host}:{where.port} in {', '.join(versions)}", flush=True)

    def failed(failure: Any) -> None:
        report(failure.getErrorMessage())
        clock.stop()

    TCP4ServerEndpoint(clock, int(port), interface=host).listen(Site(KubernetesResource(state))).addCallbacks(
        listening, failed
    )
    clock.run()


if __name__ == "__main__":
    main(sys.argv[1:])
