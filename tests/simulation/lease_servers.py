"""The claim store of a simulation whose claims are Leases: an API server apart from the one with the Services."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from random import Random

from attrs import define, field

from kiwi.claims.lease_objects import AgentLease, ClaimLease, Lease, agent_lease_name, read_lease
from kiwi.model import Address
from tests.fakes.kubernetes import KubernetesResource, KubernetesState
from tests.fakes.kubernetes.server import Snapshot

from .timeline import HostClock, Process, Timeline
from .transport import Network, Request

LEASE_SERVER = "leases:6443"
NAMESPACE = "kiwi"


@define(eq=False, repr=False)
class LeaseStore:
    """
    An API server with Leases.

    While it is paused it takes requests, and carries them out when it goes on.

    @ivar places: where it is.
    @ivar handled: told when a request was carried out that has changed something; whether it can have promised
        something.
    @ivar slowness: seconds that it takes to carry out a request.
    """

    name = "leases"
    places = (LEASE_SERVER,)
    timeline: Timeline
    network: Network
    random: Random
    handled: Callable[[bool], object]
    down: bool = field(default=False, init=False)
    slowness: float = field(default=0.0, init=False)
    state: KubernetesState = field(init=False)
    _paused: bool = field(default=False, init=False)
    _waiting: deque[Request] = field(factory=deque, init=False)
    _confirmed: dict[tuple[str, str], float] = field(factory=dict, init=False)
    _deleted: dict[str, float] = field(factory=dict, init=False)
    _backup: Snapshot = field(init=False)
    _process: Process = field(init=False)
    _resource: KubernetesResource = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._process = Process("leases", self.timeline, HostClock(self.timeline, 1000.0, 1.0), self.random)
        self.state = KubernetesState(versions=("v1",), clock=self._process.clock)
        self._resource = KubernetesResource(self.state)
        self._backup = self.state.snapshot()
        self.network.servers[LEASE_SERVER] = self

    def accepts(self, place: str) -> bool:
        return not self.down

    def receive(self, request: Request) -> None:
        if self._paused:
            self._waiting.append(request)
        elif self.slowness:
            self.timeline.after(self.slowness, self._carry_out, request)
        else:
            self._carry_out(request)

    def _carry_out(self, request: Request) -> None:
        if self._paused:
            self._waiting.append(request)
            return
        if self.down:
            return
        before = self.state.resource_version
        answer = self._resource.render(request)  # type: ignore[arg-type]
        if self.state.resource_version != before:
            self._note()
            self.handled(request.method != b"DELETE")
        if isinstance(answer, bytes):
            request.write(answer)
            request.finish()

    def _note(self) -> None:
        """See until when which session was promised to last."""
        for lease in self._leases():
            if isinstance(lease, AgentLease) and _key(lease) not in self._confirmed:
                self._confirmed = {k: t for k, t in self._confirmed.items() if k[0] != lease.identity.uid}
                self._confirmed[_key(lease)] = self.timeline.now

    def _leases(self) -> list[Lease]:
        return [read_lease(document.as_item("v1")) for document in self.state.objects("leases").values()]

    # What it knows.

    def claims(self) -> Mapping[Address, tuple[str, float]]:
        """
        Who has each claim, and the true time until which it was promised. A session that somebody has deleted by hand
        lasts as long as it would have: nobody takes what rests on it before.
        """
        leases = self._leases()
        sessions = {
            lease.identity.uid: self._confirmed.get(_key(lease), -inf) + lease.ttl
            for lease in leases
            if isinstance(lease, AgentLease)
        }
        sessions = {uid: end for uid, end in self._deleted.items() if self.timeline.now < end} | sessions
        return {
            lease.address: (lease.holder, sessions[lease.session])
            for lease in leases
            if isinstance(lease, ClaimLease) and lease.session in sessions
        }

    def agents(self) -> set[str]:
        return {lease.agent_id for lease in self._leases() if isinstance(lease, AgentLease)}

    # What goes wrong.

    def pause(self) -> None:
        """Neither carry out nor answer anything."""
        if not self._paused:
            self._paused = True
            self._process.freeze()

    def resume(self) -> None:
        """Do what was asked meanwhile, in any order."""
        if self._paused:
            self._paused = False
            self._process.thaw()
            waiting, self._waiting = list(self._waiting), deque()
            self.random.shuffle(waiting)
            for request in waiting:
                self._carry_out(request)

    def fail(self, member: str) -> None:
        """It is gone, and its data stays."""
        if not self.down:
            self.down = True
            self._waiting.clear()
            self.state.drop_connections()
            self.network.break_off(LEASE_SERVER)

    def recover(self, member: str) -> None:
        self.down = False

    def lose_data(self) -> None:
        """Come back with nothing."""
        self.state.restart()
        self.network.break_off(LEASE_SERVER)

    def delete_session(self, agent_id: str) -> None:
        """Somebody deletes the Lease of an agent."""
        key = (NAMESPACE, agent_lease_name(agent_id))
        if not (self.down or self._paused) and key in self.state.objects("leases"):
            for lease in self._leases():
                if isinstance(lease, AgentLease) and lease.agent_id == agent_id:
                    self._deleted[lease.identity.uid] = self._confirmed.get(_key(lease), -inf) + lease.ttl
            self.state.delete(key[1], NAMESPACE, "leases")

    def back_up(self) -> None:
        self._backup = self.state.snapshot()

    def restore(self) -> None:
        """Come back with what there was when it was backed up. Whoever sees a session then gives it a whole TTL."""
        self.state.restore(self._backup)
        self._confirmed = {_key(lease): self.timeline.now for lease in self._leases() if isinstance(lease, AgentLease)}
        self.network.break_off(LEASE_SERVER)

    def slow(self, seconds: float) -> None:
        self.slowness = seconds


def _key(lease: AgentLease) -> tuple[str, str]:
    return (lease.identity.uid, lease.identity.version)
