"""One agent, from its parts: whatever the parts are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from effect import ComposedDispatcher, Effect, base_dispatcher
from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from txeffect import perform

from .backoff import BackoffPolicy
from .claims.intents import claims_dispatcher
from .claims.interface import IClaimStore
from .converger import Converger
from .heartbeat import Heartbeat
from .logs import logger
from .model import Address, Cluster, Network
from .network.intents import Network as HostNetwork
from .network.intents import network_dispatcher
from .planning import Terms
from .selection import Attachment

TIME_TO_DRAIN = 4.0
"""Seconds that an agent takes, at most, to take everything back when it is told to go."""

ClusterChanged = Callable[[Cluster], None]


class Agent(MultiService):
    """
    The converger and what wakes it: both watches, the heartbeat, and the host's own events.

    Stopping it takes everything back first, which takes L{TIME_TO_DRAIN} at most.
    """

    log = logger("kiwi")

    def __init__(
        self,
        terms: Terms,
        attachments: Sequence[Attachment],
        ranges: Sequence[Network],
        clock: IReactorTime,
        store: IClaimStore,
        network: HostNetwork,
        backoff: BackoffPolicy,
        watch_cluster: Callable[[ClusterChanged], IService],
        watch_host: Callable[[Callable[[], None]], IService],
        watch_neighbours: Callable[[Callable[[Address, bytes, str], None]], IService],
        refused: Callable[[str], None],
        parts: Sequence[IService] = (),
    ) -> None:
        """
        @param attachments: the interfaces that addresses go to.
        @param ranges: the addresses that may be taken; where it is empty, that is for the interfaces to say.
        @param watch_cluster: makes the service that tells what Kubernetes asks for.
        @param watch_host: makes the service that tells of changes of the host.
        @param watch_neighbours: makes the service that tells who says to have which address, and on which interface.
        @param refused: told why, once, when this agent must not run.
        @param parts: services that the others need: they start first, and stop when everything is taken back.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        dispatcher = ComposedDispatcher([base_dispatcher, claims_dispatcher(store), network_dispatcher(network)])

        def perform_here(effect: Effect) -> Deferred[object]:
            performed: Deferred[object] = perform(dispatcher, effect)
            return performed

        self._clock = clock
        self.converger = Converger(terms, attachments, ranges, clock, perform_here, backoff, refused)
        for part in (
            *parts,
            self.converger,
            watch_host(self.converger.host_changed),
            watch_neighbours(self.converger.neighbour_heard),
            store.watch(self.converger.claims_changed),
            watch_cluster(self.converger.cluster_changed),
            Heartbeat(clock, terms.ttl, self.converger.beat),
        ):
            part.setServiceParent(self)

    def stopService(self) -> Deferred[None]:
        """Take everything back, then stop every part."""

        def unfinished(failure: Failure) -> None:
            failure.trap(CancelledError)
            self.log.warn(
                "not everything could be taken back within {seconds:g} s; what is left ends by itself: addresses with "
                "their kernel lifetimes, claims with their TTL",
                seconds=TIME_TO_DRAIN,
            )

        def stop(result: object) -> Deferred[None]:
            return maybeDeferred(super(Agent, self).stopService)

        waiting: Deferred[None] = Deferred()
        self.converger.drain().chainDeferred(waiting)
        waiting.addTimeout(TIME_TO_DRAIN, self._clock, lambda failure, _: failure)
        return waiting.addErrback(unfinished).addCallback(stop)
