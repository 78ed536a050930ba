"""Clusters to follow: what a test can do with one, in memory and over TCP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, cast

from attrs import define, field
from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock, deferLater
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.server import Site
from zope.interface import provider

from kiwi.backoff import BackoffPolicy
from kiwi.connections import http_clients
from kiwi.kubernetes.api import KubernetesAPI
from kiwi.kubernetes.client import Objects
from kiwi.kubernetes.credentials import FixedHeaders, ICredentials, NoCredentials, bearer
from kiwi.kubernetes.services import PUBLIC, SERVICES
from kiwi.kubernetes.watch import ObjectWatch
from kiwi.model import Service, ServiceName
from kiwi.tls import TLS, certificates
from tests.fakes.apiserver_process import ADMIN_TOKEN, shared_api_server
from tests.fakes.kubernetes import KubernetesResource, KubernetesState

Services = Mapping[ServiceName, Service]


def latest(low: float, high: float) -> float:
    """The longest wait there can be."""
    return high


@define(eq=False)
class Following:
    """A watch that has been started, and what it told."""

    watch: ObjectWatch[ServiceName, Service]
    told: list[Services] = field(factory=list)

    @property
    def services(self) -> Services | None:
        return self.told[-1] if self.told else None

    @property
    def names(self) -> list[str] | None:
        """The names of the Services that were told last."""
        return sorted(map(str, self.told[-1])) if self.told else None


class Cluster(Protocol):
    """
    A cluster with an API server of one version.

    @cvar largest: characters in an annotation of a Service.
    @cvar many: how many Services are many.
    """

    largest: ClassVar[int]
    many: ClassVar[int]

    async def put(self, manifest: Mapping[str, Any]) -> None:
        """Create or change a Service, from its C{v1} manifest."""

    async def delete(self, name: str) -> None:
        """Delete a Service in namespace C{default}."""

    async def interrupt(self) -> None:
        """Break every connection to the server once."""

    def follow(self, api: str) -> Following:
        """Start to follow the Services."""

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something; fail if it does not come to be."""

    async def stop(self, following: Following) -> None:
        """Stop following them; fail if that leaves a connection or a timer behind."""


def _follow(
    http: HTTPClient,
    stream_http: HTTPClient,
    clock: IReactorTime,
    endpoint: str,
    api: str,
    policy: BackoffPolicy,
    credentials: ICredentials | None = None,
) -> Following:
    told: list[Services] = []
    server = KubernetesAPI(
        http, stream_http, clock, endpoint.rstrip("/"), credentials or NoCredentials(), policy.uniform
    )
    watch = ObjectWatch(Objects(server, SERVICES), api, policy, told.append, PUBLIC)
    watch.startService()
    return Following(watch, told)


class MemoryCluster:
    """The server in memory, and simulated time."""

    largest, many = 2**20, 2000

    def __init__(self, case: SynchronousTestCase | TestCase, **behaviour: Any) -> None:
        self.case = case
        self.clock = Clock()
        self.state = KubernetesState(clock=self.clock, **behaviour)
        self.agent = RequestTraversalAgent(KubernetesResource(self.state))
        self.policy = BackoffPolicy(0.1, 5.0, latest)

    async def put(self, manifest: Mapping[str, Any]) -> None:
        self.state.put(manifest)
        self.turn()

    async def delete(self, name: str) -> None:
        self.state.delete(name)
        self.turn()

    async def interrupt(self) -> None:
        self.state.drop_connections()
        self.turn()

    def follow(self, api: str = "auto") -> Following:
        http = HTTPClient(self.agent)
        following = _follow(http, http, self.clock, "http://kubernetes:8080/", api, self.policy)
        self.case.addCleanup(self._stop, following)
        self.turn()
        return following

    def turn(self, seconds: float = 0.0) -> None:
        """Let what is due happen, and what is on its way arrive."""
        self.clock.advance(seconds)
        for _ in range(5):
            self.agent.flush()
            self.clock.advance(0)

    def wait(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass."""
        for _ in range(round(seconds / step)):
            self.turn(step)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        for _ in range(1000):
            if condition():
                return
            self.turn(0.01)
        self.case.fail(f"waited in vain for {what}")

    async def stop(self, following: Following) -> None:
        self._stop(following)

    def _stop(self, following: Following) -> None:
        if following.watch.running:
            following.watch.stopService()
        self.turn()
        self.case.assertEqual((self.state.watchers, self.clock.getDelayedCalls()), ([], []))


class _InRealTime:
    """What there is to do with a cluster in the time of day."""

    case: TestCase
    clock: Any

    def _stop(self, following: Following) -> None:
        if following.watch.running:
            following.watch.stopService()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        end = self.clock.seconds() + 30
        while not condition():
            if self.clock.seconds() > end:
                self.case.fail(f"waited in vain for {what}")
            await deferLater(self.clock, 0.01)

    async def stop(self, following: Following) -> None:
        self._stop(following)


class TCPCluster(_InRealTime):
    """The server on the loopback, and the time of day."""

    largest, many = 2**20, 2000

    def __init__(self, case: TestCase) -> None:
        reactor = cast(Any, global_reactor)
        self.case = case
        self.clock = reactor
        self.state = KubernetesState(clock=reactor)
        site = Site(KubernetesResource(self.state))
        self.pool = HTTPConnectionPool(reactor)
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.endpoint = f"http://127.0.0.1:{self.port.getHost().port}"
        case.addCleanup(self.close)

    def close(self) -> Deferred[Any]:
        """Let go of the port and of every connection."""
        self.state.drop_connections()
        return gatherResults([self.port.stopListening(), self.pool.closeCachedConnections()]).addCallback(
            lambda _: deferLater(self.clock, 0.05)
        )

    async def put(self, manifest: Mapping[str, Any]) -> None:
        self.state.put(manifest)

    async def delete(self, name: str) -> None:
        self.state.delete(name)

    async def interrupt(self) -> None:
        self.state.drop_connections()

    def follow(self, api: str = "auto") -> Following:
        http = HTTPClient(Agent(self.clock, pool=self.pool))
        stream_http = HTTPClient(Agent(self.clock))
        following = _follow(http, stream_http, self.clock, self.endpoint, api, BackoffPolicy(0.01, 0.1, latest))
        self.case.addCleanup(self._stop, following)
        return following

    async def stop(self, following: Following) -> None:
        await super().stop(following)
        await self.until(lambda: not self.state.watchers, "the server to see that nobody watches")


class RealCluster(_InRealTime):
    """A real server on the loopback, with TLS and a token, and the time of day. It is shared with other tests."""

    # All annotations of an object together may have 256 KiB, and each Service takes a real server some milliseconds.
    largest, many = 250_000, 300

    def __init__(self, case: TestCase) -> None:
        self.case = case
        self.clock = cast(Any, global_reactor)
        self.server = shared_api_server()
        case.addCleanup(self.server.revive)
        case.addCleanup(self._clear)
        self._clear()
        authorities = certificates([self.server.ca_file.read_bytes()])
        pool = HTTPConnectionPool(self.clock)
        case.addCleanup(pool.closeCachedConnections)
        self.clients = http_clients(self.clock, lambda: pool, TLS(lambda: authorities))

    def _clear(self) -> None:
        for item in self.server.ask("GET", _SERVICES)["items"]:
            if item["metadata"]["name"] != "kubernetes":
                self.server.ask("DELETE", f"{_SERVICES}/{item['metadata']['name']}")

    async def put(self, manifest: Mapping[str, Any]) -> None:
        path = f"{_SERVICES}/{manifest['metadata']['name']}"
        there = self.server.request("GET", path)
        if there.status == 404:
            stored = self.server.ask("POST", _SERVICES, {"apiVersion": "v1", **manifest})
        else:
            before = there.json()
            spec = {**before["spec"], **manifest["spec"]}
            metadata = {**before["metadata"], "annotations": manifest["metadata"]["annotations"]}
            stored = self.server.ask("PUT", path, {**before, "metadata": metadata, "spec": spec})
        if manifest["status"]["loadBalancer"]["ingress"]:
            self.server.ask("PUT", f"{path}/status", {**stored, "status": manifest["status"]})

    async def delete(self, name: str) -> None:
        self.server.ask("DELETE", f"{_SERVICES}/{name}")

    async def interrupt(self) -> None:
        self.server.restart()

    def follow(self, api: str = "auto") -> Following:
        token = FixedHeaders(bearer(ADMIN_TOKEN))
        policy = BackoffPolicy(0.01, 0.1, latest)
        following = _follow(*self.clients, self.clock, self.server.endpoint, api, policy, token)
        self.case.addCleanup(self._stop, following)
        return following


_SERVICES = "/api/v1/namespaces/default/services"


def captured_log(case: SynchronousTestCase | TestCase) -> list[str]:
    """The lines that the log has heard from Kiwi since now."""
    lines: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("kiwi"):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    case.addCleanup(globalLogPublisher.removeObserver, observe)
    return lines
