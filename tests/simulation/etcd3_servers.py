"""The claim store of a simulation whose claims are in etcd v3: a cluster of three members, and how it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from attrs import define, field

from kiwi.model import Address, ip
from tests.fakes.etcd3 import FakeEtcd3, Member
from tests.fakes.etcd3.store import Store

from .timeline import HostClock, Process, Timeline
from .transport import Network, Request

MEMBERS = ("etcd-1:2379", "etcd-2:2379", "etcd-3:2379")
PREFIX = "/kiwi"
CLAIMS, AGENTS = f"{PREFIX}/publicips/", f"{PREFIX}/agents/"
CHANGING = frozenset(
    f"/v3/{path}" for path in ("lease/keepalive", "lease/revoke", "kv/put", "kv/deleterange", "kv/txn")
)
"""What changes or promises something."""


@define(eq=False, repr=False)
class Etcd3Store:
    """
    A cluster of etcd, in one of the versions that there are.

    @ivar places: where its members are.
    @ivar handled: told when a request was carried out that may have changed something; whether it can have promised
        something.
    @ivar cluster: the members, and what they know.
    @ivar compacting: what is past is forgotten at once.
    """

    name = "etcd3"
    places = MEMBERS
    timeline: Timeline
    network: Network
    random: Random
    handled: Callable[[bool], object]
    expired: Callable[[], object]
    cluster: FakeEtcd3 = field(init=False)
    compacting: bool = field(default=False, init=False)
    _backup: Store = field(init=False)
    _seen: int = field(default=0, init=False)
    _process: Process = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._process = Process("etcd", self.timeline, HostClock(self.timeline, 1000.0, 1.0), self.random)
        version = self.random.choice(("3.4.23", "3.5.1", "3.6.0"))
        self.cluster = FakeEtcd3(self._process.clock, len(MEMBERS), version, self._handled, self.expired)
        self._backup = self.cluster.back_up()
        for place in MEMBERS:
            self.network.servers[place] = self

    def _member(self, place: str) -> Member:
        return self.cluster.members[MEMBERS.index(place)]

    def accepts(self, place: str) -> bool:
        return not self._member(place).is_down

    def receive(self, request: Request) -> None:
        self._member(request.place).render(request)  # type: ignore[arg-type]

    def _handled(self, path: str) -> None:
        if self.compacting:
            self.cluster.compact()
        if path in CHANGING:
            store, seen = self.cluster.store, self._seen
            self._seen = store.revision
            news = [event for revision, events in store.log[-1:] if revision > seen for event in events]
            self.handled(not any(event.is_delete for event in news))

    # What it knows.

    def _below(self, folder: str) -> Mapping[str, tuple[str, float]]:
        """The values by name, and the true time until which each one was promised to stay."""
        leases, begins = self.cluster.store.leases, folder.encode()
        return {
            kv.key.removeprefix(begins).decode(): (
                kv.value.decode(),
                (leases[kv.lease].expires if kv.lease in leases else 0.0) - self._process.host_clock.offset,
            )
            for kv in self.cluster.store.everything()
            if kv.key.startswith(begins)
        }

    def claims(self) -> Mapping[Address, tuple[str, float]]:
        """Who has each claim, and the true time until which it was promised."""
        return {ip(name): claim for name, claim in self._below(CLAIMS).items()}

    def agents(self) -> set[str]:
        return set(self._below(AGENTS))

    # What goes wrong.

    def pause(self) -> None:
        """Neither carry out nor answer anything."""
        self.cluster.hanging = True
        self._process.freeze()

    def resume(self) -> None:
        """Do what was asked meanwhile, and let expire what should have; in either order."""
        if self.cluster.hanging:
            for catch_up in self.random.sample((self.cluster.thaw, self._process.thaw), 2):
                catch_up()

    def fail(self, member: str) -> None:
        """One member is gone; others go on, if they are the majority."""
        if not self._member(member).is_down:
            self._member(member).fail()

    def recover(self, member: str) -> None:
        if self._member(member).is_down:
            self._member(member).recover()

    def lose_data(self) -> None:
        self.cluster.lose_data()
        self._seen = 0

    def back_up(self) -> None:
        self._backup = self.cluster.back_up()

    def restore(self) -> None:
        """Come back with what there was when it was backed up; some take themselves for the same cluster then."""
        self.cluster.restore(self._backup, same=self.random.random() < 0.5)
        self._seen = self.cluster.store.revision

    def end_lease(self, number: int) -> None:
        """A lease with claims ends before its time. What was promised is not taken back: others have to wait."""
        store = self.cluster.store
        leases = sorted({kv.lease for kv in store.everything() if kv.key.startswith(CLAIMS.encode())} & {*store.leases})
        if self.cluster.is_led and leases:
            self.cluster.end_lease(leases[number % len(leases)])
            self._seen = store.revision

    def compact(self, compacting: bool) -> None:
        """Forget what is past; and go on with that."""
        self.compacting = compacting
        self.cluster.compact()

    def elect(self) -> None:
        """Another member leads."""
        self.cluster.elect()

    def cut_leader_off(self, notices: float | None = None) -> None:
        """
        The leader does not reach the others.

        @param notices: seconds after which it notices, if not after a usual time. Before etcd 3.5.9, one that waits for
            its disk does not.
        """
        if self.cluster.leader is not None:
            self.cluster.leader.cut_off(self.random.uniform(1, 3) if notices is None else notices)

    def cut_member_off(self, member: str) -> None:
        self._member(member).cut_off()

    def pause_leader(self) -> None:
        """The leader stands still."""
        if self.cluster.leader is not None and not self.cluster.hanging:
            self.cluster.leader.pause()

    def rejoin(self) -> None:
        """Members that stood still or were cut off are there again, and may take a moment to know what happened."""
        for member in self.cluster.members:
            if member.is_paused:
                member.resume(self.random.choice((0.0, self.random.uniform(0, 2))))
            else:
                member.rejoin()

    def silence(self) -> None:
        """Streams fall silent."""
        self.cluster.silence_streams()

    def end_streams(self) -> None:
        self.cluster.end_streams()

    def speak_nonsense(self) -> None:
        self.cluster.send(b'{"result":{"events":[{"kv":{"key":7}}]}}')

    def slow(self, seconds: float) -> None:
        """Take so long for each answer from now on."""
        self.cluster.delay = seconds
