"""An etcd cluster: who leads, what is promised to whom, and what may go wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import ceil

from attrs import define, evolve
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.web.http import Request

from .access import Access
from .gateway import Dialect, encode
from .member import Member
from .store import Store

PASS = 0.5
"""Seconds between the moments when a leader revokes leases whose time is over."""

ELECTION = 1.0
"""Seconds without a word from the leader after which the others elect one, at the least; by default."""


@define(eq=False)
class _Waiting:
    """A request that needs a majority, while there is none."""

    member: Member
    request: Request
    act: Callable[[], None]


class FakeEtcd3:
    """
    A cluster of one or several members, which are resources to plug in somewhere, under simulated or real time.

    Each lease ends on the clock of the leader, in passes, and a new leader gives each of them its whole time anew. A
    member that is cut off from the others knows what there was when that happened, and answers nothing that needs a
    majority. If it was the leader, it goes on to confirm leases alone until it notices, which counts for nothing.

    @ivar requests: what was asked, such as C{POST /v3/kv/range {"key":"YQ=="}}; the last thousands.
    @ivar hanging: requests are read by all members, and neither carried out nor answered, until L{thaw}. Nobody is
        elected meanwhile, and no lease is revoked.
    @ivar delay: seconds that each answer takes to leave, once the request is carried out.
    @ivar election: seconds without a leader after which there is another one.
    @ivar handled: told the path of each request that was carried out on the store.
    @ivar expired: told each time that leases were revoked because their time is over.
    """

    def __init__(
        self,
        clock: IReactorTime,
        members: int = 1,
        version: str = "3.5.1",
        handled: Callable[[str], object] = lambda path: None,
        expired: Callable[[], object] = lambda: None,
    ) -> None:
        self.clock = clock
        self.dialect = Dialect(version)
        self.access = Access()
        self.handled, self.expired = handled, expired
        self.requests: deque[str] = deque(maxlen=10_000)
        self.hanging = False
        self.delay = 0.0
        self.election = 1.5 * ELECTION
        self.term = 2
        self.store = Store(_cluster_id(1))
        self.members = tuple(Member(self, number) for number in range(1, members + 1))
        self.leader: Member | None = self.members[0]
        self._clusters = 1
        self._leases_made = 0
        self._waiting: list[_Waiting] = []
        self._renewing: list[Callable[[], None]] = []
        self._failures: deque[tuple[int, bytes]] = deque()
        self._unanswered = 0
        self._passing: IDelayedCall | None = None
        self._electing: IDelayedCall | None = None

    # What may go wrong.

    def fail_next(self, requests: int, status: int = 503, body: bytes | None = None) -> None:
        """Answer that many requests with this status, and do nothing."""
        error = self.dialect.error(14, "etcdserver: request timed out")
        self._failures.extend([(status, encode(error) if body is None else body)] * requests)

    def lose_replies(self, requests: int) -> None:
        """Carry out that many requests, and break the connection instead of answering."""
        self._unanswered += requests

    def thaw(self) -> None:
        """End a hang: carry out what was asked meanwhile, also for those who no longer wait; then let leases end."""
        self.hanging = False
        for member in self.members:
            member.carry_out_late()
        self._publish()
        self.pass_soon()

    def compact(self, revision: int | None = None) -> None:
        """Forget the past, by default all of it."""
        wanted = self.store.revision if revision is None else revision
        if wanted > self.store.compacted:
            self.store.compact(wanted)

    def elect(self, member: Member | None = None) -> None:
        """Another one leads now, or this one; without an interruption that anybody sees."""
        if self.leader is not None:
            others = [each for each in self.members if each.is_connected and each is not self.leader]
            self._lead(member or (others or [self.leader])[0])

    def end_lease(self, lease_id: int) -> None:
        """
        End a lease whose time is not over, as somebody may; and as a leader of the past may in older versions, which
        has not heard that others have kept it.
        """
        self.store.revoke(lease_id)
        self._publish()

    def lose_data(self) -> None:
        """Be a new cluster, with none of the data, and with revisions that begin again."""
        self._clusters += 1
        self._begin_with(Store(_cluster_id(self._clusters)))

    def back_up(self) -> Store:
        """What there is now, for L{restore}."""
        return self.store.copy()

    def restore(self, backup: Store, same: bool = False) -> None:
        """
        Come back with what there was once.

        @param same: it takes itself for the same cluster, as where a disk was put back; and not for another one, as
            after C{etcdctl snapshot restore}.
        """
        self._clusters += not same
        cluster_id = self.store.cluster_id if same else _cluster_id(self._clusters)
        restored = backup.copy()
        restored.cluster_id = cluster_id
        self._begin_with(restored)

    def restart(self) -> None:
        """All members come back, with the data they had."""
        self._begin_with(self.store)

    def drop_streams(self) -> None:
        """Break every connection on which somebody waits."""
        for member in self.members:
            member.drop_streams()

    def end_streams(self) -> None:
        """End every stream, in order."""
        for member in self.members:
            member.end_streams()

    def silence_streams(self) -> None:
        """Nothing comes on the streams that are open now, for ever."""
        for member in self.members:
            member.silence_streams()

    def send(self, line: bytes) -> None:
        """Give every stream this line, whatever it is."""
        for member in self.members:
            member.send(line)

    def stop(self) -> None:
        """Leave no delayed call."""
        for call in (self._passing, self._electing):
            if call is not None and call.active():
                call.cancel()
        for member in self.members:
            member.stop()

    # What members ask for.

    @property
    def is_led(self) -> bool:
        return self.leader is not None

    def next_failure(self) -> tuple[int, bytes] | None:
        return self._failures.popleft() if self._failures else None

    def is_unanswered(self) -> bool:
        """Whether the answer that would leave now does not."""
        lost, self._unanswered = self._unanswered > 0, max(self._unanswered - 1, 0)
        return lost

    def next_lease(self) -> int:
        """What a lease is called that has no name of its own."""
        self._leases_made += 1
        return 7_587_870_000_000_000_000 + self._leases_made

    def wait(self, member: Member, request: Request, act: Callable[[], None]) -> None:
        """Do this when the member is one of a majority that has a leader."""
        self._waiting.append(_Waiting(member, request, act))

    def give_up(self, request: Request) -> bool:
        """Whether a request still waited, which it no longer does."""
        left = [each for each in self._waiting if each.request is not request]
        waited, self._waiting = len(left) < len(self._waiting), left
        return waited

    def forget_waiting(self, member: Member) -> None:
        """What this member was asked is lost."""
        self._waiting = [each for each in self._waiting if each.member is not member]

    def carried_out(self, path: str) -> None:
        """A request may have changed something."""
        self.pass_soon()
        self._publish()
        self.handled(path)

    def when_passed(self, act: Callable[[], None]) -> None:
        """Do this when the leases are revoked whose time is over."""
        self._renewing.append(act)
        self.pass_soon()

    def _publish(self) -> None:
        for member in self.members:
            member.publish()

    # Time.

    def pass_soon(self) -> None:
        """See to it that leases end when their time is over."""
        if not self.is_led or self.hanging or not self.store.leases:
            return
        first = min(lease.expires for lease in self.store.leases.values())
        due = max(ceil(first / PASS) * PASS - self.clock.seconds(), 0.0)
        if self._passing is None or not self._passing.active():
            self._passing = self.clock.callLater(due, self._pass)
        elif self._passing.getTime() > self.clock.seconds() + due:
            self._passing.reset(due)

    def _pass(self) -> None:
        self._passing = None
        if not self.is_led or self.hanging:
            return
        now = self.clock.seconds()
        due = sorted((lease.expires, lease.id) for lease in self.store.leases.values() if lease.expires <= now)
        for _, number in due:
            self.store.revoke(number)
        if due:
            self._publish()
            self.expired()
        self._renew_parked()
        self.pass_soon()

    def _renew_parked(self) -> None:
        renewing, self._renewing = self._renewing, []
        for act in renewing:
            act()

    # Who leads.

    def members_changed(self) -> None:
        """Some member is connected to the others, or is no longer."""
        connected = [member for member in self.members if member.is_connected]
        quorum = 2 * len(connected) > len(self.members)
        if self.leader is not None and not (quorum and self.leader.is_connected):
            former, self.leader = self.leader, None
            former.lead_alone()
            self._cannot_elect()
            for member in connected:
                member.lose_leader()
        if self.leader is None and quorum:
            alone = next((each for each in connected if each.leads_alone and each.term == self.term), None)
            if alone is not None:
                # It has not noticed, and nor has anybody else: what it has confirmed meanwhile counts.
                self.store.leases = {
                    number: evolve(lease, expires=alone.known.leases[number].expires)
                    for number, lease in self.store.leases.items()
                }
                self._be_led(alone)
            elif self._electing is None:
                self._electing = self.clock.callLater(self.election, self._elected)
        elif not quorum:
            self._cannot_elect()

    def _cannot_elect(self) -> None:
        if self._electing is not None:
            self._electing.cancel()
            self._electing = None

    def _elected(self) -> None:
        self._electing = None
        self._lead(next(member for member in self.members if member.is_connected))

    def _lead(self, member: Member) -> None:
        self.term += 1
        self.store.promote(self.clock.seconds(), ELECTION)
        self._be_led(member)

    def _be_led(self, leader: Member) -> None:
        self._cannot_elect()
        self.leader = leader
        for member in self.members:
            if member.is_connected:
                member.find_leader()
        self.carry_out_waiting()
        self._renew_parked()
        self.pass_soon()

    def carry_out_waiting(self) -> None:
        """What could not be carried out, and now can."""
        if self.is_led:
            ready = [each for each in self._waiting if each.member.is_connected]
            self._waiting = [each for each in self._waiting if not each.member.is_connected]
            for each in ready:
                each.act()

    def _begin_with(self, store: Store) -> None:
        self.store = store
        self.access.forget_tokens()
        self.leader = None
        self._cannot_elect()
        for member in self.members:
            member.begin()
        connected = [member for member in self.members if member.is_connected]
        if 2 * len(connected) > len(self.members):
            self._lead(connected[0])


def _cluster_id(number: int) -> int:
    return 14_841_639_068_965_178_000 + number
