"""What an agent has seen of the Leases: whatever comes in whatever order, it knows what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.claims.lease_mirror import TURN, LeaseMirror
from kiwi.claims.lease_objects import (
    AgentLease,
    ClaimLease,
    HistoryLease,
    Identity,
    Lease,
    LossLease,
    Strange,
)
from kiwi.model import Address, AgentRecord, Claims, ip

ONE, TWO = ip("192.168.1.41"), ip("fd00::42")
TTL = 10.0
ENDS = TTL * 1.01
A = AgentRecord("a", "host-a", "place-a", "first")
B = AgentRecord("b", "host-b", "place-b", "first")


def agent(record: AgentRecord = A, uid: str = "session-a", version: int = 1) -> AgentLease:
    return AgentLease(f"agent.{record.id}", Identity(uid, str(version)), record.id, TTL, f"at {version}", record)


def claim(address: Address = ONE, holder: str = "a", session: str = "session-a", version: int = 2) -> ClaimLease:
    return ClaimLease(address, Identity(f"claim-{version}", str(version)), holder, session, TTL)


def mirror(*leases: Lease, now: float = 0.0) -> LeaseMirror:
    """One that has seen a list."""
    made = LeaseMirror()
    made.restore(leases, "9", now)
    return made


class SessionTests(SynchronousTestCase):
    """How long claims last."""

    def claims(self, seen: LeaseMirror, now: float, *former: str) -> Mapping[Address, str]:
        return seen.known(now, set(former), 0).holders

    def test_lives(self) -> None:
        """While the Lease of its agent is there, a claim lasts, however old that is."""
        seen = mirror(agent(), claim())
        self.assertEqual(self.claims(seen, 1000.0), {ONE: "a"})
        self.assertFalse(seen.is_over("session-a", 1000.0))
        self.assertFalse(seen.is_over("session-a", 1000.0, {"session-a"}))

    def test_not_there_any_more(self) -> None:
        """A list takes away the claims that are not in it, of either family."""
        seen = mirror(agent(), claim(ONE), claim(TWO))
        for left in ({ONE: "a"}, {}):
            seen.restore([agent(), *(claim(address) for address in left)], "10", 1.0)
            self.assertEqual(self.claims(seen, 1.0), left)

    def test_has_ended(self) -> None:
        """A Lease that is not seen to change for a TTL and 1% of it has ended, and should be deleted."""
        seen = mirror(agent(), claim())
        seen.put(agent(version=3), 5.0)
        self.assertEqual(seen.next_end(5.0), 5.0 + ENDS)
        self.assertEqual(seen.ended(5.0 + ENDS - 0.001), [])
        self.assertEqual(seen.ended(5.0 + ENDS), [agent(version=3)])
        self.assertEqual(seen.next_end(5.0 + ENDS), inf)

    def test_turns(self) -> None:
        """Those that are alive delete it one after the other, in an order that each Lease has for itself."""
        names = [f"node-{number}" for number in range(10)]
        alive = [agent(evolve(B, id=name), f"session-{name}") for name in names]
        firsts = set()
        for number in range(20):
            dead = agent(uid=f"session-{number}")
            seen = mirror(dead, *alive)
            for each in alive:
                seen.put(evolve(each, identity=evolve(each.identity, version="5")), 3.0)
            turns = {name: seen.turn(dead, name) - ENDS for name in names}
            self.assertEqual([round(turn / TURN) for turn in sorted(turns.values())], list(range(10)))
            firsts.add(min(names, key=lambda name: turns[name]))
        self.assertGreater(len(firsts), 4)

    def test_turns_of_the_living(self) -> None:
        """An agent that has ended before, or with it, is not waited for."""
        dead = agent()
        seen = mirror(dead, agent(B, "session-b"))
        self.assertEqual((seen.turn(dead, "b"), seen.turn(dead, "c")), (ENDS, ENDS))

    def test_no_change(self) -> None:
        """To see the same state once more, as in a list, is no change."""
        seen = mirror(agent(), now=0.0)
        seen.restore([agent()], "9", 5.0)
        seen.put(agent(), 6.0)
        self.assertEqual(seen.next_end(6.0), ENDS)

    def test_own_time(self) -> None:
        """Each Lease says its own TTL."""
        seen = mirror(evolve(agent(), ttl=3.0), agent(B, "session-b"))
        self.assertEqual(seen.next_end(0.0), 3.0 * 1.01)
        self.assertEqual(seen.ended(4.0), [evolve(agent(), ttl=3.0)])

    def test_gone(self) -> None:
        """When the Lease is gone, its claims last until its time is over; only for its own agent, they are over."""
        seen = mirror(agent(), claim(), claim(TWO, "b", "session-b"), agent(B, "session-b"))
        seen.remove("agent.a")
        gone = {ONE: "a, whose Lease is gone", TWO: "b"}
        self.assertEqual(self.claims(seen, ENDS - 0.001), gone)
        self.assertEqual(self.claims(seen, ENDS), {TWO: "b"})
        self.assertEqual(self.claims(seen, 0.0, "session-a"), {TWO: "b"})
        self.assertEqual(seen.known(0.0, set(), 0).agents, {"b": B})
        self.assertEqual(seen.ended(0.0), [])
        self.assertEqual(seen.next_end(0.0), ENDS)

    def test_another_one_of_its_name(self) -> None:
        """A Lease that was made anew is another session, on which the claims from before do not rest."""
        seen = mirror(agent(), claim())
        seen.put(agent(uid="another", version=5), 3.0)
        self.assertEqual(self.claims(seen, 3.0), {ONE: "a, whose Lease is gone"})
        self.assertEqual(self.claims(seen, ENDS), {})
        self.assertEqual(seen.known(3.0, set(), 0).agents, {"a": A})

    def test_never_seen(self) -> None:
        """A claim whose session nobody has seen lasts from when it was seen, for as long as it says."""
        seen = mirror(evolve(claim(), ttl=20.0), now=5.0)
        self.assertEqual(self.claims(seen, 5.0 + 20.0 * 1.01 - 0.001), {ONE: "a, whose Lease is gone"})
        self.assertEqual(self.claims(seen, 5.0 + 20.0 * 1.01), {})

    def test_forgotten(self) -> None:
        """Sessions that are over, and that no claim names, are forgotten with the next list; the others are not."""
        seen = mirror(agent(), claim(), agent(B, "session-b"))
        seen.restore([claim()], "10", 1.0)
        seen.restore([claim()], "11", 50.0)
        self.assertEqual(set(seen.sessions), {"session-a"})

    def test_loss(self) -> None:
        """The report of a loss is told until it ends, like an agent that has died."""
        seen = mirror(LossLease(Identity("loss", "1"), TTL))
        self.assertEqual(seen.known(1.0, set(), 2), Claims(losses=2, lost=True))
        self.assertEqual(seen.ended(ENDS), [LossLease(Identity("loss", "1"), TTL)])
        seen.remove("lost")
        self.assertEqual(seen.known(1.0, set(), 2), Claims(losses=2))

    def test_strange(self) -> None:
        """What was of Kiwi's making and is no longer counts as gone."""
        seen = mirror(agent(), claim())
        seen.put(Strange(str(ONE), Identity("claim-2", "3"), "spoiled"), 1.0)
        seen.put(Strange("agent.a", Identity("session-a", "4"), "spoiled"), 1.0)
        self.assertEqual(seen.known(1.0, set(), 0), Claims())


class HistoryTests(SynchronousTestCase):
    """Whether a list shows that the store is not what it was."""

    def test_as_it_was(self) -> None:
        """The first list, the same once more and a later one show nothing."""
        seen = LeaseMirror()
        history = HistoryLease(Identity("first", "1"))
        self.assertFalse(seen.restore([], "5", 0.0))
        self.assertFalse(seen.restore([history, agent()], "7", 0.0))
        self.assertFalse(seen.restore([history, agent()], "7", 0.0))
        self.assertFalse(seen.restore([history], "8", 0.0))

    def test_versions(self) -> None:
        """A lower version does; one that is no number says nothing."""
        self.assertTrue(mirror().restore([], "8", 0.0))
        self.assertFalse(mirror().restore([], "x", 0.0))
        seen = mirror()
        seen.put(agent(version=20), 0.0)
        self.assertTrue(seen.restore([], "19", 0.0))

    def test_objects(self) -> None:
        """Nor may one and the same Lease be in an earlier state; one that was made anew may."""
        for now in (agent(version=3), claim(version=2)):
            later = evolve(now, identity=evolve(now.identity, version="8"))
            self.assertTrue(mirror(later).restore([now], "9", 0.0), now)
            another = evolve(now, identity=evolve(now.identity, uid="another"))
            self.assertFalse(mirror(later).restore([another], "9", 0.0), now)

    def test_history(self) -> None:
        """Another history does, and none where there was one."""
        first, second = (HistoryLease(Identity(uid, "1")) for uid in ("first", "second"))
        self.assertTrue(mirror(first).restore([second], "10", 0.0))
        self.assertTrue(mirror(first).restore([], "10", 0.0))
        self.assertFalse(mirror().restore([second], "10", 0.0))


@frozen
class _Change:
    """A Lease that is written, or deleted."""

    lease: Lease
    deleted: bool = False


def _changes(number: int, what: tuple[str, str, int, bool]) -> _Change:
    """A change with a version of its own."""
    kind, who, uid, deleted = what
    identity = Identity(f"{kind}-{who}-{uid}", str(number + 1))
    record = AgentRecord(who, "host", "place", str(number % 2))
    kinds: dict[str, Lease] = {
        "agent": AgentLease(f"agent.{who}", identity, who, TTL, str(number), record),
        "claim": ClaimLease({"a": ONE, "b": TWO}[who], identity, who, f"agent-{who}-{uid}", TTL),
        "history": HistoryLease(identity),
        "lost": LossLease(identity, TTL),
    }
    return _Change(kinds[kind], deleted)


changes = st.lists(
    st.tuples(
        st.sampled_from(["agent", "claim", "history", "lost"]),
        st.sampled_from("ab"),
        st.integers(1, 2),
        st.booleans(),
    ),
    max_size=20,
).map(lambda drawn: [_changes(number, what) for number, what in enumerate(drawn)])


def after(some: Sequence[_Change]) -> list[Lease]:
    """The Leases that there are then."""
    there: dict[str, Lease] = {}
    for change in some:
        there.pop(change.lease.name, None)
        if not change.deleted:
            there[change.lease.name] = change.lease
    return list(there.values())


class OrderTests(SynchronousTestCase):
    """Lists and events in any order lead to the same."""

    @given(changes, st.lists(st.integers(0, 20), max_size=4))
    def test_events_and_lists(self, some: Sequence[_Change], lists: Sequence[int]) -> None:
        """
        One that has seen all the events, with lists here and there instead of some, knows what one knows that has seen
        the last list only, when the time of what is gone is over.
        """
        seen = LeaseMirror()
        number = 0
        while number < len(some):
            skipped = next((skip for skip in sorted(lists) if skip > number), None)
            if number in lists and skipped is not None and skipped <= len(some):
                seen.restore(after(some[:skipped]), str(skipped), 0.0)
                number = skipped
            elif some[number].deleted:
                seen.remove(some[number].lease.name)
                number += 1
            else:
                seen.put(some[number].lease, 0.0)
                number += 1
        last = LeaseMirror()
        last.restore(after(some), str(len(some)), 0.0)
        for now in (ENDS, 10 * ENDS):
            self.assertEqual(seen.known(now, set(), 0), last.known(now, set(), 0))
            self.assertEqual(
                sorted(lease.name for lease in seen.ended(now)), sorted(lease.name for lease in last.ended(now))
            )
        self.assertEqual((seen.claims, seen.names, seen.history), (last.claims, last.names, last.history))

    @given(changes)
    def test_edition(self, some: Sequence[_Change]) -> None:
        """Whenever something else is known, the edition is another one."""
        seen = LeaseMirror()
        for change in some:
            known, edition = seen.known(0.0, set(), 0), seen.edition
            if change.deleted:
                seen.remove(change.lease.name)
            else:
                seen.put(change.lease, 0.0)
            if seen.known(0.0, set(), 0) != known:
                self.assertNotEqual(seen.edition, edition)
