"""Following all in a cluster that says which addresses this host is to carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from attrs import evolve
from twisted.application.service import IService, MultiService
from twisted.logger import Logger

from kiwi.backoff import BackoffPolicy
from kiwi.logs import logger, printable
from kiwi.model import Cluster, EndpointSlice, Node, Service, ServiceName, SliceName
from kiwi.selection import gather

from .api import KubernetesAPI
from .client import Objects
from .endpoints import ENDPOINT_SLICES
from .nodes import NODES
from .services import PUBLIC, Sources, services
from .watch import ObjectWatch

# Note [Only what is needed]
# A cluster has far more EndpointSlices than Services with public addresses, and they change far more often. They are
# followed only while a Service that is known has a local traffic policy. Of the Nodes, only that of this host is
# followed. The older versions of the API have neither, nor the policies: where the Services come in one of those,
# nothing else is asked for. Nothing waits for an answer, either: until it is there, the host is fit, and what goes to
# local endpoints only stays where it is.

# Note [No EndpointSlices]
# A server may not let this agent see EndpointSlices, or not have them at all (before Kubernetes 1.17). In the first
# case they are as not known yet, which withdraws nothing and leaves what is free to agents that see more. In the second
# case nobody will ever know, so the policy cannot be heeded. A server that has had them is believed to have them still.

T = TypeVar("T")


class ClusterWatch(MultiService):
    """
    While it runs, it calls C{changed} with what the cluster asks of this host: once its Services are known, and
    whenever anything of it changes. A part that has not changed is the same object as before.
    """

    log: Logger = logger("kiwi")

    def __init__(
        self,
        api: KubernetesAPI,
        backoff: BackoffPolicy,
        version: str,
        sources: Sources,
        node: str,
        node_exists: bool,
        changed: Callable[[Cluster], None],
    ) -> None:
        """
        @param version: of the API for Services, or C{auto} for the newest that the server offers.
        @param sources: the fields of Services that count.
        @param node: the name that the Node of this host has, if it is one.
        @param node_exists: it is one, and so may carry nothing where there is none of that name. Otherwise that holds
            only once there has been one.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._api = api
        self._backoff = backoff
        self._changed = changed
        self._told: Cluster | None = None
        self._services: Mapping[ServiceName, Service] | None = None
        self._service_watch = ObjectWatch(
            Objects(api, services(sources)), version, backoff, self._services_changed, PUBLIC
        )
        self._start(self._service_watch)
        # See Note [Only what is needed].
        self._slices: Mapping[SliceName, EndpointSlice] | None = None
        self._slice_watch: ObjectWatch[SliceName, EndpointSlice] | None = None
        self._has_slices = True
        self._node = node
        self._node_exists = node_exists
        self._node_watch: ObjectWatch[str, Node] | None = None
        self._unfit = ""

    def _services_changed(self, known: Mapping[ServiceName, Service]) -> None:
        self._services = known
        if self._node_watch is None and self._service_watch.version == "v1":
            selected = Objects(self._api, NODES, selector={"fieldSelector": f"metadata.name={self._node}"})
            self._node_watch = ObjectWatch(
                selected, "v1", self._backoff, self._node_changed, f"of the name {printable(self._node)}"
            )
            self._start(self._node_watch)
        needed = any(service.local for service in known.values())
        if needed and self._slice_watch is None:
            self._slice_watch = ObjectWatch(
                Objects(self._api, ENDPOINT_SLICES), "auto", self._backoff, self._slices_changed, absent=self._no_slices
            )
            self._start(self._slice_watch)
        elif not needed and self._slice_watch is not None:
            self._end(self._slice_watch)
            self._slice_watch, self._slices, self._has_slices = None, None, True
        self._tell()

    def _start(self, part: IService) -> None:
        part.setServiceParent(self)

    def _end(self, part: IService) -> None:
        part.disownServiceParent()

    def _slices_changed(self, known: Mapping[SliceName, EndpointSlice]) -> None:
        self._slices, self._has_slices = known, True
        self._tell()

    def _no_slices(self) -> None:
        """See Note [No EndpointSlices]."""
        if self._slices is None and self._has_slices:
            self._has_slices = False
            self.log.warn(
                "this Kubernetes cannot say where Services have their endpoints: their addresses are carried on any "
                "node, also where externalTrafficPolicy is Local"
            )
            self._tell()

    def _node_changed(self, known: Mapping[str, Node]) -> None:
        node = known.get(self._node)
        if node is not None:
            self._node_exists = True
            self._unfit = f"Node {printable(self._node)} may not, for {node.unfit}" if node.unfit else ""
        elif self._node_exists:
            self._unfit = f"there is no Node {printable(self._node)} in Kubernetes"
        self._tell()

    def _tell(self) -> None:
        """Tell what is known, if that is something else than before."""
        if self._services is None:
            return
        services, endpoints = self._services, None
        if not self._has_slices:
            services = {name: evolve(service, local=False) for name, service in services.items()}
        elif self._slices is not None:
            local = {name for name, service in services.items() if service.local}
            endpoints = gather(part for part in self._slices.values() if part.service in local)
        before = self._told or Cluster()
        cluster = Cluster(_kept(before.services, services), _kept(before.endpoints, endpoints), self._unfit)
        if cluster != self._told:
            self._told = cluster
            self._changed(cluster)


def _kept(before: T, now: T) -> T:
    """What was there before, where it is equal."""
    return before if now is before or now == before else now
