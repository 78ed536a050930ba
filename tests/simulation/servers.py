"""The claim store and the API server of a simulation, and how they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any

from attrs import define, field

from kiwi.kubernetes.endpoints import SERVICE
from kiwi.kubernetes.nodes import EXCLUDED
from kiwi.model import Address, ip
from tests.fakes.etcd2 import FakeEtcd2
from tests.fakes.kubernetes import KubernetesResource, KubernetesState, encode, service

from .timeline import HostClock, Process, Timeline
from .transport import Network, Request

MEMBERS = ("etcd-1:2379", "etcd-2:2379")
KUBERNETES = "kubernetes:8080"
PREFIX = "/kiwi"
CLAIMS, AGENTS = f"{PREFIX}/publicips/", f"{PREFIX}/agents/"


class _Etcd(FakeEtcd2):
    """Tells when it has changed or promised something."""

    def __init__(self, clock: Any, handled: Callable[[str, Request], object], expired: Callable[[], object]) -> None:
        super().__init__(clock)
        self.handled, self.expired = handled, expired

    def _carry_out(self, request: Any) -> None:
        super()._carry_out(request)
        self.handled(request.method.decode(), request)

    def _sync(self) -> None:
        super()._sync()
        self.expired()


@define(eq=False, repr=False)
class Store:
    """
    A cluster of etcd with members that all know the same, and one that leads.

    While it is down or paused its clock goes on, and what has expired meanwhile expires when it is back.

    @ivar places: where its members are.
    @ivar handled: told when a request was carried out that may have changed something; whether it can have promised
        something.
    @ivar down: the members that accept no connection.
    @ivar etcd: what they know.
    """

    name = "etcd"
    places = MEMBERS
    timeline: Timeline
    network: Network
    random: Random
    handled: Callable[[bool], object]
    expired: Callable[[], object]
    down: set[str] = field(factory=set, init=False)
    etcd: _Etcd = field(init=False)
    _process: Process = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._process = Process("etcd", self.timeline, HostClock(self.timeline, 1000.0, 1.0), self.random)
        self.etcd = _Etcd(self._process.clock, self._handled, self.expired)
        for member in MEMBERS:
            self.network.servers[member] = self

    def accepts(self, place: str) -> bool:
        return place not in self.down

    def receive(self, request: Request) -> None:
        self.etcd.render(request)  # type: ignore[arg-type]

    def _handled(self, method: str, request: Request) -> None:
        if method != "GET":
            self.handled(method == "PUT")

    # What it knows.

    def agents(self) -> set[str]:
        return set(self.nodes(AGENTS))

    def nodes(self, folder: str) -> Mapping[str, tuple[str, float]]:
        """The values in a folder by name, and the true time until which each one was promised to stay."""
        node: Any = self.etcd._root
        for name in folder.strip("/").split("/"):
            node = (node.children or {}).get(name)
            if node is None:
                return {}
        return {
            key: (child.value, (child.expires or 0.0) - self._process.host_clock.offset)
            for key, child in node.children.items()
        }

    def claims(self) -> Mapping[Address, tuple[str, float]]:
        return {ip(name): node for name, node in self.nodes(CLAIMS).items()}

    # What goes wrong.

    def pause(self) -> None:
        """Neither carry out nor answer anything."""
        self.etcd.hanging = True
        self._process.freeze()

    def resume(self) -> None:
        """Do what was asked meanwhile, and let expire what should have; in either order."""
        if self.etcd.hanging:
            for catch_up in self.random.sample((self.etcd.thaw, self._process.thaw), 2):
                catch_up()

    def fail(self, member: str) -> None:
        """One member is gone; others go on."""
        if member not in self.down:
            self.down.add(member)
            self._break(member)
            if self.down == set(MEMBERS):
                self._process.freeze()

    def recover(self, member: str) -> None:
        if member in self.down:
            self.down.discard(member)
            if self._process.frozen and not self.etcd.hanging:
                self._process.thaw()

    def lose_data(self) -> None:
        self.etcd.lose_data()

    def slow(self, seconds: float) -> None:
        """Take so long for each answer from now on."""
        self.etcd.delay = seconds

    def _break(self, member: str) -> None:
        for request in list(self.etcd._open):
            if request.place == member:  # type: ignore[attr-defined]
                request.abortConnection()  # type: ignore[attr-defined]
        self.etcd._frozen = [request for request in self.etcd._frozen if request.place != member]  # type: ignore[attr-defined]


@define(eq=False, repr=False)
class Kubernetes:
    """An API server with Services, their endpoints, and Nodes."""

    name = "kubernetes"
    timeline: Timeline
    network: Network
    random: Random
    down: bool = field(default=False, init=False)
    state: KubernetesState = field(init=False)
    _resource: KubernetesResource = field(init=False)

    def __attrs_post_init__(self) -> None:
        process = Process("kubernetes", self.timeline, HostClock(self.timeline, 5.0, 1.0), self.random)
        self.state = KubernetesState(versions=("v1",), clock=process.clock)
        self._resource = KubernetesResource(self.state)
        self.network.servers[KUBERNETES] = self

    def accepts(self, place: str) -> bool:
        return not self.down

    def receive(self, request: Request) -> None:
        answer = self._resource.render(request)  # type: ignore[arg-type]
        if isinstance(answer, bytes):
            request.write(answer)
            request.finish()

    def put(self, name: str, addresses: Sequence[Address], port: int, local: bool = False) -> None:
        """
        A Service is like this now.

        @param local: only hosts with an endpoint may carry its addresses.
        """
        manifest = service(name, map(str, addresses), (port,))
        manifest["spec"] |= {"type": "NodePort", "externalTrafficPolicy": "Local" if local else "Cluster"}
        self.state.put(manifest)

    def put_endpoints(self, name: str, nodes: Iterable[str]) -> None:
        """A Service has endpoints on these Nodes now."""
        metadata = {"name": f"{name}-1", "namespace": "default", "labels": {SERVICE: name}}
        endpoints = [{"addresses": ["10.0.0.1"], "nodeName": node, "conditions": {"ready": True}} for node in nodes]
        self.state.put(
            {
                "kind": "EndpointSlice",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": metadata,
                "addressType": "IPv4",
                "endpoints": endpoints,
            }
        )

    def put_node(self, name: str, excluded: bool = False) -> None:
        """A Node is like this now."""
        labels = {EXCLUDED: ""} if excluded else {}
        self.state.put({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}})

    def delete_node(self, name: str) -> None:
        if ("", name) in self.state.objects("nodes"):
            self.state.delete(name, "", plural="nodes")

    def delete(self, name: str) -> None:
        if ("default", name) in self.state.services:
            self.state.delete(name)

    def wanted(self) -> Mapping[Address, frozenset[int]]:
        """The ports that Services want marked, by address."""
        wanted: dict[Address, frozenset[int]] = {}
        for stored in self.state.services.values():
            for address in stored.external:
                ports = frozenset(port.port for port in stored.ports)
                wanted[ip(address)] = wanted.get(ip(address), frozenset()) | ports
        return wanted

    def eligible(self, nodes: frozenset[str]) -> Mapping[Address, frozenset[str]]:
        """Which of these Nodes may carry each wanted address."""
        found = self.state.objects("nodes")
        fit = frozenset(node for node in nodes if ("", node) in found and EXCLUDED not in found["", node].labels)
        eligible: dict[Address, frozenset[str]] = {}
        for stored in self.state.services.values():
            here = fit
            if stored.policies.get("externalTrafficPolicy") == "Local":
                part = self.state.objects("endpointslices").get(("default", f"{stored.name}-1"))
                here &= {each["nodeName"] for each in part.body["endpoints"]} if part else set()
            for address in map(ip, stored.external):
                eligible[address] = eligible.get(address, here) & here
        return eligible

    def stop(self) -> None:
        """Break all connections, and accept none."""
        self.down = True
        self.state.drop_connections()

    def start(self, empty: bool = False) -> None:
        """
        Accept connections again.

        @param empty: it has not read its own store yet, and lists nothing.
        """
        self.down = False
        if empty:
            version = str(self.state.resource_version)
            self.state.list_body = encode(
                {"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": []}
            )
        else:
            self.state.list_body = None
