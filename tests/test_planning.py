"""Planning is values in, values out: no doubles of anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, ip_network
from math import inf

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, AgentRecord, Assignment, Claims, Hold, Host, Link, Mark, Placement, Protocol, ip
from kiwi.planning import (
    ALL_AGAIN,
    ALONE_ENDS_BEFORE,
    HAND_OVER_PART,
    HAND_OVER_TOGETHER,
    LONGEST_HAND_OVER,
    LONGEST_PREPARATION,
    LONGEST_SETTLING,
    OVER_SHARE,
    SETTLING,
    SHORTEST_ALONE,
    STAGGER,
    STAGGER_OF_EACH,
    TIME_TO_PREPARE,
    TRIES_IN_TROUBLE,
    TRIES_TO_PROVISION,
    Announced,
    Plan,
    Recorded,
    Situation,
    Terms,
    Written,
    plan,
    rank,
)
from kiwi.steps import (
    ADDRESSES,
    FIREWALL,
    NEIGHBOURS,
    PROBES,
    RECORD,
    Acquire,
    Announce,
    Assign,
    AssignmentOf,
    ClaimTo,
    Deregister,
    LookAtHost,
    LookAtMarks,
    MarkTraffic,
    Probe,
    Register,
    Release,
    Renew,
    Unassign,
    Unmark,
)

ADDRESS = ip("192.168.1.41")
OTHER = ip("192.168.1.42")
WEB = Mark(ADDRESS, Protocol.TCP, 8080, "web")
DNS = Mark(OTHER, Protocol.UDP, 53, "dns")
ME = AgentRecord("me", "host", "here", "1")
STANDBY = evolve(ME, standby=True)
TERMS = Terms(ME, 10)
LINK = Link(3, "em1", b"\x02\0\0\0\0\1", ready=True)
NOW = 1000.0
HOLD = Hold(ADDRESS, NOW - 1, NOW - 1)
ENDS = TERMS.assignment_ends(HOLD)

ON_EM1 = {ADDRESS: "em1", OTHER: "em1"}


def nth(number: int) -> Address:
    """Some address."""
    return IPv4Address(number)


def host(link: Link | None, assigned: Mapping[Address, float] | None = None) -> Host:
    """One with a single interface, and with addresses of ours on it."""
    there = assigned or {}
    return Host({} if link is None else {link.name: link}, there, dict.fromkeys(there, "em1"))


QUIET = Situation(
    now=NOW,
    wanted={ADDRESS: frozenset({WEB})},
    places=ON_EM1,
    claims=Claims(),
    host=host(LINK),
    marks=frozenset(),
    registered=True,
)
"""One Service wants one address; nobody has it, and nothing else is to be done."""

HELD = evolve(QUIET, holds={ADDRESS: HOLD}, claims=Claims({ADDRESS: "me"}))
MARKED = evolve(HELD, marks=frozenset({WEB}))
ASSIGNED = evolve(MARKED, host=host(LINK, {ADDRESS: NOW + 7}), extended={ADDRESS: ENDS})
CARRIED = evolve(ASSIGNED, announced={ADDRESS: Announced(1, NOW + 60)})


class WayInTests(SynchronousTestCase):
    """Claimed and marked before assigned, assigned before announced."""

    def test_free(self) -> None:
        """An address that nobody has is tried for, and its traffic is marked meanwhile."""
        marked = MarkTraffic(frozenset({WEB}))
        self.assertEqual(plan(QUIET, TERMS).steps, (marked, Acquire(ADDRESS)))
        self.assertEqual(plan(evolve(QUIET, busy={ClaimTo(ADDRESS)}), TERMS).steps, (marked,))

    def test_not_won(self) -> None:
        """The marks go again when another agent was faster."""
        lost = evolve(QUIET, marks=frozenset({WEB}), heard={ADDRESS: "other"})
        self.assertEqual(plan(lost, TERMS).steps, (MarkTraffic(frozenset()),))

    def test_taken(self) -> None:
        """An address that another agent has is left to it."""
        taken = evolve(QUIET, claims=Claims({ADDRESS: "other"}))
        self.assertEqual(plan(taken, TERMS), Plan())

    def test_heard_to_be_taken(self) -> None:
        """What the store answered counts more than what it was heard to know before."""
        self.assertEqual(plan(evolve(QUIET, heard={ADDRESS: "other"}), TERMS), Plan())
        freed = evolve(QUIET, claims=Claims({ADDRESS: "other"}), heard={ADDRESS: None})
        self.assertIn(Acquire(ADDRESS), plan(freed, TERMS).steps)

    def test_held(self) -> None:
        """The traffic of an address that is held is marked first."""
        self.assertEqual(plan(HELD, TERMS).steps, (MarkTraffic(frozenset({WEB})),))

    def test_marked(self) -> None:
        """An address that is held and marked is assigned, until well before its claim ends."""
        self.assertEqual(plan(MARKED, TERMS).steps, (Assign(frozenset({Assignment(ADDRESS, ENDS, "em1")})),))
        self.assertTrue(ENDS < TERMS.hold_ends(HOLD) < HOLD.sent + TERMS.ttl)

    def test_new(self) -> None:
        """Before a new address is assigned, the neighbours are asked for it; meanwhile it is claimed and marked."""
        probe = Probe(frozenset({Placement(ADDRESS, "em1")}), TERMS.probe_wait)
        new = evolve(QUIET, new={ADDRESS})
        self.assertEqual(plan(new, TERMS).steps, (MarkTraffic(frozenset({WEB})), probe, Acquire(ADDRESS)))
        self.assertEqual(plan(evolve(MARKED, new={ADDRESS}), TERMS).steps, (probe,))
        self.assertEqual(plan(evolve(MARKED, new={ADDRESS}), evolve(TERMS, probe_wait=0)), plan(MARKED, TERMS))

    def test_second(self) -> None:
        """Who does not come first for an address asks for it when it has the claim, so as not to disturb who does."""
        first, second = sorted(("me", "another"), key=lambda agent: rank(ADDRESS, agent, ("me", "another")))
        agents = {agent: evolve(ME, id=agent) for agent in (first, second)}
        trying = evolve(QUIET, new={ADDRESS}, claims=Claims({}, agents), busy={ClaimTo(ADDRESS)}, marks=MARKED.marks)
        holding = evolve(MARKED, new={ADDRESS}, claims=Claims({ADDRESS: second}, agents))
        probe = Probe(frozenset({Placement(ADDRESS, "em1")}), TERMS.probe_wait)
        self.assertEqual(plan(trying, evolve(TERMS, record=agents[first])).steps, (probe,))
        self.assertEqual(plan(trying, evolve(TERMS, record=agents[second])).steps, ())
        self.assertEqual(plan(holding, evolve(TERMS, record=agents[second])).steps, (probe,))

    def test_contested(self) -> None:
        """Nobody is asked for a while for what others ask for as well, and it is not assigned."""
        contested = evolve(MARKED, new={ADDRESS}, contested={ADDRESS: NOW + 1})
        self.assertEqual(plan(contested, TERMS), Plan((), NOW + 1))
        self.assertEqual(
            plan(evolve(contested, now=NOW + 1), TERMS).steps, (Probe(frozenset({Placement(ADDRESS, "em1")}), 0.03),)
        )

    def test_lost(self) -> None:
        """When the store has lost its claims, only what was held is tried for while others may still carry the rest."""
        wary = evolve(QUIET, wary_until=NOW + 5)
        mine = evolve(wary, claims=Claims({ADDRESS: "me"}))
        self.assertEqual(plan(mine, TERMS), Plan((), NOW + 5))
        self.assertEqual(plan(evolve(mine, admitted=None, registration_due=True), TERMS), Plan((), NOW + 5))
        self.assertEqual(plan(wary, TERMS), Plan((), NOW + 5))
        self.assertIn(Acquire(ADDRESS), plan(evolve(wary, own={ADDRESS}), TERMS).steps)

    def test_foreign(self) -> None:
        """An address that another machine has is given back, and not tried for."""
        self.assertEqual(
            plan(evolve(MARKED, foreign={ADDRESS}), TERMS).steps, (MarkTraffic(frozenset()), Release(ADDRESS))
        )
        self.assertEqual(plan(evolve(QUIET, foreign={ADDRESS}), TERMS).steps, ())
        carried = plan(evolve(CARRIED, foreign={ADDRESS}), TERMS).steps
        self.assertEqual(carried, (Unassign(frozenset({ADDRESS})),))

    def test_assigned(self) -> None:
        """An address that is assigned is announced, as long as it is held."""
        announced = Announce(frozenset({Assignment(ADDRESS, TERMS.hold_ends(HOLD), "em1")}))
        self.assertEqual(plan(ASSIGNED, TERMS).steps, (announced,))

    def test_carried(self) -> None:
        """An address that is carried asks for nothing until its next announcement or the end of its claim."""
        self.assertEqual(plan(CARRIED, TERMS), Plan((), TERMS.hold_ends(HOLD)))

    def test_announced_again(self) -> None:
        """Announcements are repeated when their time comes."""
        due = evolve(CARRIED, announced={ADDRESS: Announced(1, NOW)})
        self.assertEqual(
            plan(due, TERMS).steps, (Announce(frozenset({Assignment(ADDRESS, TERMS.hold_ends(HOLD), "em1")})),)
        )

    def test_not_ready(self) -> None:
        """An agent whose interface is down or away tries for nothing."""
        for link in (None, evolve(LINK, ready=False)):
            self.assertEqual(plan(evolve(QUIET, host=host(link)), TERMS), Plan())

    def test_broken_firewall(self) -> None:
        """An agent that cannot mark traffic tries for nothing."""
        self.assertEqual(plan(evolve(QUIET, failures={FIREWALL: TRIES_TO_PROVISION}), TERMS), Plan())

    def test_nobody_to_ask(self) -> None:
        """One that cannot ask the neighbours tries for nothing for a while, and then it does."""
        resting = evolve(QUIET, new={ADDRESS}, failures={PROBES: TRIES_TO_PROVISION}, rests={PROBES: NOW + 1})
        self.assertEqual(plan(resting, TERMS), Plan((), NOW + 1))
        later = evolve(resting, now=NOW + 1)
        probe = Probe(frozenset({Placement(ADDRESS, "em1")}), TERMS.probe_wait)
        self.assertEqual(plan(later, TERMS).steps, (MarkTraffic(frozenset({WEB})), probe, Acquire(ADDRESS)))
        asking = evolve(later, holds={ADDRESS: HOLD}, claims=HELD.claims, marks=MARKED.marks, busy={PROBES})
        self.assertEqual(plan(asking, TERMS).steps, ())
        unplugged = evolve(later, host=host(evolve(LINK, ready=False)), busy={ClaimTo(ADDRESS)})
        self.assertNotIn(probe, plan(unplugged, TERMS).steps)

    def test_store_in_trouble(self) -> None:
        """While the store does not answer, only a few claims at a time are asked about."""
        many = {nth(n): frozenset({Mark(nth(n), Protocol.TCP, 80, "web")}) for n in range(9, 109)}
        troubled = evolve(QUIET, wanted=many, store_troubled=True)
        self.assertEqual(len(plan(troubled, TERMS).steps), TRIES_IN_TROUBLE)
        asked = frozenset(ClaimTo(nth(n)) for n in range(9, 9 + TRIES_IN_TROUBLE))
        self.assertEqual(plan(evolve(troubled, busy=asked), TERMS).steps, ())
        self.assertEqual(len(plan(evolve(troubled, store_troubled=False), TERMS).steps), 101)

    def test_nothing_known(self) -> None:
        """An agent that knows nothing yet looks around, and tries for nothing."""
        start = Situation(now=NOW, marks_stale=True, registration_due=True)
        self.assertEqual(plan(start, TERMS).steps, (LookAtHost(), LookAtMarks()))

    def test_not_admitted(self) -> None:
        """An agent whose record the store has not taken yet claims nothing, not even what looks like its own."""
        for claims in (Claims(), Claims({ADDRESS: "me"})):
            start = evolve(QUIET, claims=claims, admitted=None, registration_due=True)
            self.assertEqual(plan(start, TERMS).steps, (Register(ME, STANDBY),))

    def test_records(self) -> None:
        """A record of an earlier life here is replaced, and one of an agent elsewhere is waited for."""
        start = evolve(QUIET, admitted=None, registration_due=True)
        earlier, elsewhere = evolve(ME, instance="0"), evolve(ME, place="there", instance="0")
        self.assertEqual(plan(evolve(start, claims=Claims({}, {"me": earlier})), TERMS).steps, (Register(ME, earlier),))
        self.assertEqual(plan(evolve(start, claims=Claims({}, {"me": elsewhere})), TERMS).steps, ())


class RankingTests(SynchronousTestCase):
    """Who tries first."""

    def test_order(self) -> None:
        """Each agent has its own place in the order for an address, whoever asks."""
        agents = ["a", "b", "c", "d"]
        self.assertEqual(sorted(rank(ADDRESS, agent, agents) for agent in agents), [0, 1, 2, 3])

    def test_departure(self) -> None:
        """When an agent goes, the others keep their order."""
        order = sorted("abcd", key=lambda agent: rank(ADDRESS, agent, "abcd"))
        left = [agent for agent in order if agent != "b"]
        self.assertEqual(sorted("acd", key=lambda agent: rank(ADDRESS, agent, "acd")), left)

    def test_spread(self) -> None:
        """Each agent comes first for its share of many addresses."""
        firsts = Counter(
            next(agent for agent in "abc" if rank(nth(n), agent, "abc") == 0) for n in range(2**24, 2**24 + 3000)
        )
        for agent in "abc":
            self.assertTrue(900 <= firsts[agent] <= 1100, firsts)

    def test_settling(self) -> None:
        """An agent that has just started lets others be heard of, before it takes what they might share."""
        started = evolve(QUIET, admitted=NOW - 0.1)
        self.assertEqual(plan(started, TERMS), Plan((), NOW - 0.1 + SETTLING))
        heard = evolve(QUIET, admitted=NOW - 1, newest_agent=NOW - 0.2)
        self.assertEqual(plan(heard, TERMS), Plan((), NOW - 0.2 + SETTLING))
        self.assertIn(Acquire(ADDRESS), plan(evolve(heard, admitted=NOW - LONGEST_SETTLING), TERMS).steps)

    def test_leaving(self) -> None:
        """An agent that is leaving is not waited for."""
        first = next(name for name in map(str, range(100)) if rank(ADDRESS, "me", [name]) == 1)
        leaving = Claims({}, {first: AgentRecord(first, "host", "there", "2", leaving=True)})
        self.assertIn(Acquire(ADDRESS), plan(evolve(QUIET, claims=leaving, free_since={ADDRESS: NOW}), TERMS).steps)

    def test_gave_up(self) -> None:
        """An agent that has just given up what is wanted is not waited for."""
        first = next(name for name in map(str, range(100)) if rank(ADDRESS, "me", [name]) == 1)
        claims = Claims({}, {first: AgentRecord(first, "host", "there", "2")})
        gave_up = evolve(QUIET, claims=claims, gave_up={first}, free_since={ADDRESS: NOW})
        self.assertIn(Acquire(ADDRESS), plan(gave_up, TERMS).steps)

    def test_recalled(self) -> None:
        """An agent whose record ended together with this agent's own is let go first, unless it is leaving."""
        first = next(name for name in map(str, range(100)) if rank(ADDRESS, "me", [name]) == 1)
        recalled = evolve(QUIET, recalled={first: AgentRecord(first, "host", "there", "2")}, free_since={ADDRESS: NOW})
        self.assertEqual(plan(recalled, TERMS), Plan((), NOW + STAGGER))
        leaving = Claims({}, {first: AgentRecord(first, "host", "there", "2", leaving=True)})
        self.assertIn(Acquire(ADDRESS), plan(evolve(recalled, claims=leaving), TERMS).steps)

    def test_not_recorded(self) -> None:
        """While another agent may have taken its id, an agent renews what it holds, and asks for nothing else."""
        unsure = evolve(QUIET, recorded_until=NOW, registration_due=True)
        self.assertEqual(plan(unsure, TERMS).steps, (Register(ME, STANDBY),))
        claimed = evolve(unsure, claims=Claims({ADDRESS: "me"}))
        self.assertEqual(plan(claimed, TERMS).steps, (Register(ME, STANDBY),))
        unwanted = evolve(claimed, wanted={}, draining=True)
        self.assertEqual([step for step in plan(unwanted, TERMS).steps if isinstance(step, Release)], [])
        held = evolve(CARRIED, recorded_until=NOW, renewals_due={ADDRESS})
        self.assertEqual(plan(held, TERMS).steps, (Renew(frozenset({ADDRESS})),))

    def test_fair_share(self) -> None:
        """An agent that has more than its share lets all the others go first."""
        claims = Claims({}, {name: AgentRecord(name, name, name, name) for name in ("me", "a", "b")})
        wanted = {nth(n): frozenset({Mark(nth(n), Protocol.TCP, 80, "web")}) for n in range(9, 309)}
        many = evolve(QUIET, claims=claims, wanted=wanted, free_since=dict.fromkeys(wanted, NOW))
        acquired = [step for step in plan(many, TERMS).steps if isinstance(step, Acquire)]
        self.assertTrue(80 <= len(acquired) <= 116, len(acquired))
        enough = evolve(many, holds={nth(n): Hold(nth(n), NOW, NOW) for n in range(9, 129)})
        waiting = plan(enough, TERMS)
        self.assertEqual([step for step in waiting.steps if isinstance(step, Acquire)], [])
        patient = plan(evolve(enough, now=NOW + (2 + 2 * OVER_SHARE) * (STAGGER + 179 * STAGGER_OF_EACH)), TERMS)
        self.assertEqual(len([step for step in patient.steps if isinstance(step, Acquire)]), 180)

    def test_second(self) -> None:
        """An agent lets those before it try first, and tries if the address is free a moment later."""
        first = next(name for name in map(str, range(100)) if rank(ADDRESS, "me", [name]) == 1)
        claims = Claims({}, {first: AgentRecord(first, "host", "there", "2")})
        waiting = evolve(QUIET, claims=claims, free_since={ADDRESS: NOW})
        self.assertEqual(plan(waiting, TERMS), Plan((), NOW + STAGGER))
        later = evolve(waiting, now=NOW + STAGGER)
        self.assertIn(Acquire(ADDRESS), plan(later, TERMS).steps)
        marks = {ADDRESS: frozenset({WEB}), OTHER: frozenset({DNS})}
        many = evolve(later, wanted=marks, free_since=dict.fromkeys(marks, NOW))
        self.assertNotIn(Acquire(ADDRESS), plan(many, TERMS).steps)
        self.assertIn(Acquire(ADDRESS), plan(evolve(many, now=NOW + (STAGGER + STAGGER_OF_EACH)), TERMS).steps)
        leaving = {**claims.agents, "gone": AgentRecord("gone", "host", "there", "3", leaving=True)}
        soon_free = evolve(later, wanted=marks, claims=Claims({OTHER: "gone"}, leaving))
        self.assertNotIn(Acquire(ADDRESS), plan(soon_free, TERMS).steps)
        self.assertIn(Acquire(ADDRESS), plan(evolve(soon_free, now=NOW + (STAGGER + STAGGER_OF_EACH)), TERMS).steps)


class WayOutTests(SynchronousTestCase):
    """Unassigned before released."""

    def test_unwanted(self) -> None:
        """An address that no Service wants any more is unassigned; its marks and its claim are kept until then."""
        unwanted = evolve(CARRIED, wanted={})
        self.assertEqual(plan(unwanted, TERMS).steps, (Unassign(frozenset({ADDRESS})),))
        being_assigned = evolve(MARKED, wanted={}, busy={ADDRESSES}, assigning={ADDRESS})
        self.assertEqual(plan(being_assigned, TERMS).steps, ())
        unassigned = evolve(unwanted, host=host(LINK))
        self.assertEqual(plan(unassigned, TERMS).steps, (MarkTraffic(frozenset()), Release(ADDRESS)))

    def test_unassigned(self) -> None:
        """A claim is released when its address is off the interface."""
        self.assertEqual(plan(evolve(QUIET, wanted={}, holds={ADDRESS: HOLD}), TERMS).steps, (Release(ADDRESS),))

    def test_not_sure(self) -> None:
        """A claim is not released while the address may be on the interface."""
        for doubt in ({"busy": {ADDRESSES}}, {"host_unsure": True, "rests": {ADDRESSES: NOW + 1}}):
            doubtful = evolve(QUIET, wanted={}, holds={ADDRESS: HOLD}, **doubt)
            self.assertEqual(plan(doubtful, TERMS).steps, ())

    def test_earlier_claim(self) -> None:
        """A claim of an earlier life that nobody wants any more is released."""
        self.assertEqual(
            plan(evolve(QUIET, wanted={}, claims=Claims({ADDRESS: "me"})), TERMS).steps, (Release(ADDRESS),)
        )

    def test_ended(self) -> None:
        """When a claim has ended unconfirmed, its address goes at once, whatever the store was last heard to know."""
        ended = evolve(CARRIED, now=TERMS.hold_ends(HOLD))
        steps = plan(ended, TERMS).steps
        self.assertIn(Unassign(frozenset({ADDRESS})), steps)
        self.assertEqual([step for step in steps if isinstance(step, Assign | Announce | Acquire | Release)], [])

    def test_link_lost(self) -> None:
        """An interface that goes down gives up what it has, so that another host can have it."""
        down = evolve(CARRIED, host=host(evolve(LINK, ready=False), {ADDRESS: NOW + 7}))
        self.assertIn(Unassign(frozenset({ADDRESS})), plan(down, TERMS).steps)
        gone = evolve(CARRIED, host=host(None))
        self.assertIn(Release(ADDRESS), plan(gone, TERMS).steps)

    def test_cannot_be_put_up(self) -> None:
        """An address that the host refuses again and again is left to others."""
        for subject in (AssignmentOf(ADDRESS), FIREWALL):
            refused = evolve(HELD, failures={subject: TRIES_TO_PROVISION}, rests={subject: NOW + 1})
            self.assertEqual(plan(refused, TERMS).steps, (Release(ADDRESS),))

    def test_kubernetes_unknown(self) -> None:
        """Services that are not known withdraw nothing."""
        self.assertEqual(plan(evolve(CARRIED, wanted=None), TERMS).steps, ())

    def test_draining(self) -> None:
        """An agent that goes takes everything back: first the address, and only then the claim."""
        draining = evolve(CARRIED, draining=True)
        leaving = evolve(ME, leaving=True)
        self.assertEqual(plan(draining, TERMS).steps, (Register(leaving, ME), Unassign(frozenset({ADDRESS}))))
        unassigned = evolve(draining, recorded=Recorded(leaving, NOW), host=host(LINK))
        self.assertEqual(plan(unassigned, TERMS).steps, (Unmark(), Release(ADDRESS)))
        releasing = evolve(unassigned, unmarked=True, holds={}, claims=Claims(), busy={ClaimTo(ADDRESS)})
        self.assertEqual(plan(releasing, TERMS).steps, ())
        released = evolve(releasing, busy=frozenset())
        self.assertEqual(plan(released, TERMS).steps, (Deregister(leaving),))
        self.assertEqual(plan(evolve(released, registered=False), TERMS), Plan())


class HandingOverTests(SynchronousTestCase):
    """An agent that leaves others behind lets them get ready, and gives back what it carries bit by bit."""

    other = AgentRecord("other", "host", "there", "2")
    leaving = evolve(ME, leaving=True)
    alone = Claims({ADDRESS: "me"}, {"me": leaving})
    claims = evolve(alone, agents={"me": leaving, "other": other})
    going = evolve(CARRIED, claims=claims, draining=True, going_since=NOW, recorded=Recorded(leaving, NOW))

    def addresses(self, number: int) -> list[Address]:
        return [ip("192.168.1.100") + each for each in range(number)]

    def going_with(self, many: Sequence[Address]) -> Situation:
        """The others have had the time to get ready for all of these."""
        return evolve(
            self.going,
            wanted={a: frozenset({Mark(a, Protocol.TCP, 80, "many")}) for a in many},
            holds={a: Hold(a, NOW, NOW) for a in many},
            claims=evolve(self.claims, holders=dict.fromkeys(many, "me")),
            host=host(LINK, dict.fromkeys(many, NOW + 7)),
            extended=dict.fromkeys(many, NOW + 20),
            announced=dict.fromkeys(many, Announced(6, NOW + 60)),
            going_since=NOW - 1,
            recorded=Recorded(self.leaving, NOW - 1),
        )

    def test_others_get_ready(self) -> None:
        """While the others get ready, it goes on as before; then the address goes."""
        self.assertEqual(plan(self.going, TERMS), Plan((), NOW + TIME_TO_PREPARE))
        beaten = evolve(self.going, renewals_due={ADDRESS})
        self.assertEqual(plan(beaten, TERMS).steps, ())
        last = evolve(beaten, holds={ADDRESS: evolve(HOLD, sent=NOW - TERMS.ttl + LONGEST_HAND_OVER)})
        self.assertIn(Renew(frozenset({ADDRESS})), plan(last, TERMS).steps)
        ready = evolve(self.going, now=NOW + TIME_TO_PREPARE)
        self.assertEqual(plan(ready, TERMS).steps, (Unassign(frozenset({ADDRESS})),))

    def test_not_told(self) -> None:
        """If the others cannot be told, it does not wait for long."""
        untold = evolve(self.going, recorded=None, busy={RECORD})
        self.assertEqual(plan(untold, TERMS), Plan((), NOW + LONGEST_PREPARATION))
        late = evolve(untold, now=NOW + LONGEST_PREPARATION)
        self.assertEqual(plan(late, TERMS).steps, (Unassign(frozenset({ADDRESS})),))

    def test_nobody_to_wait_for(self) -> None:
        """Without others, or while the store does not answer or the link is down, everything goes at once."""
        for alone in (
            evolve(self.going, claims=self.alone),
            evolve(self.going, claims=evolve(self.alone, agents={"other": evolve(self.other, leaving=True)})),
            evolve(self.going, store_troubled=True),
            evolve(self.going, host=host(evolve(LINK, ready=False), {ADDRESS: NOW + 7})),
        ):
            self.assertIn(Unassign(frozenset({ADDRESS})), plan(alone, TERMS).steps)

    def test_bit_by_bit(self) -> None:
        """No more is under way than can change hands in some milliseconds; in the end, all of it is."""
        many = self.addresses(HAND_OVER_TOGETHER + 2)
        going = self.going_with(many)
        first = frozenset(many[:HAND_OVER_TOGETHER])
        self.assertEqual(plan(going, TERMS).steps, (Unassign(first),))
        off = evolve(going, host=host(LINK, dict.fromkeys(many[HAND_OVER_TOGETHER:], NOW + 7)))
        self.assertEqual(set(plan(off, TERMS).steps), {Release(a) for a in first})
        released = evolve(
            off,
            holds={a: Hold(a, NOW, NOW) for a in many[HAND_OVER_TOGETHER:]},
            busy={ClaimTo(a) for a in many[1:HAND_OVER_TOGETHER]},
            heard=dict.fromkeys(first),
        )
        self.assertEqual(plan(released, TERMS).steps, (Unassign(frozenset({many[HAND_OVER_TOGETHER]})),))
        late = evolve(going, going_since=NOW - LONGEST_HAND_OVER)
        self.assertEqual(plan(late, TERMS).steps, (Unassign(frozenset(many)),))

    def test_part_by_part(self) -> None:
        """Of very many, a part of what is left is under way."""
        many = self.addresses(HAND_OVER_PART * (HAND_OVER_TOGETHER + 1))
        first = Unassign(frozenset(many[: HAND_OVER_TOGETHER + 1]))
        self.assertEqual(plan(self.going_with(many), TERMS).steps, (first,))

    def test_being_renewed(self) -> None:
        """What the store is being asked about stays until it has answered, so that it can be given back at once."""
        asked = evolve(self.going, now=NOW + 1, busy={ClaimTo(ADDRESS)})
        self.assertEqual(plan(asked, TERMS).steps, ())
        self.assertEqual(plan(evolve(asked, busy=frozenset()), TERMS).steps, (Unassign(frozenset({ADDRESS})),))

    def test_marks_stay(self) -> None:
        """What takes time on the host is left for when the addresses are with others."""
        off = evolve(self.going, host=host(LINK))
        self.assertEqual(plan(off, TERMS).steps, (Release(ADDRESS),))
        asked = evolve(off, holds={}, busy={ClaimTo(ADDRESS)}, heard={ADDRESS: "me"})
        self.assertEqual(plan(asked, TERMS).steps, ())
        self.assertEqual(plan(evolve(asked, now=NOW + LONGEST_HAND_OVER), TERMS).steps, (Unmark(),))
        gone = evolve(asked, busy=frozenset(), heard={ADDRESS: None})
        self.assertEqual(set(plan(gone, TERMS).steps), {Unmark(), Deregister(self.leaving)})

    def test_getting_ready(self) -> None:
        """Who will try first for what a leaving agent carries marks its traffic, and nobody else does."""
        ids = ["me", "one", "two"]
        agents = {i: AgentRecord(i, i, i, i) for i in ids}
        agents["gone"] = AgentRecord("gone", "host", "there", "3", leaving=True)
        see = evolve(QUIET, claims=Claims({ADDRESS: "gone"}, agents))
        first = min(ids, key=lambda i: rank(ADDRESS, i, ids))
        for agent in ids:
            marked = (MarkTraffic(frozenset({WEB})),) if agent == first else ()
            self.assertEqual(plan(see, Terms(agents[agent], 10)).steps, marked)
        stays = evolve(see, claims=Claims({ADDRESS: "gone"}, {**agents, "gone": evolve(agents["gone"], leaving=False)}))
        self.assertEqual(plan(stays, Terms(agents[first], 10)).steps, ())


class StandbyTests(SynchronousTestCase):
    """An agent on a host that is not fit hands over like one that leaves, and stays."""

    other = AgentRecord("other", "host", "there", "2")
    claims = Claims({ADDRESS: "me"}, {"me": STANDBY, "other": other})
    unfit = evolve(
        CARRIED, claims=claims, unfit=True, going_since=NOW, admitted=NOW - 60, recorded=Recorded(ME, NOW - 60)
    )

    def test_says_so_first(self) -> None:
        """It says so in its record, and goes on until others have had the time to get ready."""
        beginning = evolve(self.unfit, registration_due=True)
        self.assertEqual(plan(beginning, TERMS), Plan((Register(STANDBY, ME),), NOW + LONGEST_PREPARATION))
        told = evolve(self.unfit, recorded=Recorded(STANDBY, NOW + 0.01))
        self.assertEqual(plan(told, TERMS), Plan((), NOW + 0.01 + TIME_TO_PREPARE))
        ready = evolve(told, now=NOW + 0.01 + TIME_TO_PREPARE)
        self.assertEqual(plan(ready, TERMS).steps, (Unassign(frozenset({ADDRESS})),))
        off = evolve(ready, host=host(LINK))
        self.assertEqual(plan(off, TERMS).steps, (Release(ADDRESS),))

    def test_nobody_to_hand_over_to(self) -> None:
        """When nobody else may carry anything, or it takes too long, everything goes at once."""
        for others in ({}, {"other": evolve(self.other, standby=True)}, {"other": evolve(self.other, leaving=True)}):
            alone = evolve(self.unfit, claims=evolve(self.claims, agents={"me": STANDBY, **others}))
            self.assertIn(Unassign(frozenset({ADDRESS})), plan(alone, TERMS).steps)
        late = evolve(self.unfit, going_since=NOW - LONGEST_HAND_OVER)
        self.assertEqual(plan(late, TERMS).steps, (Unassign(frozenset({ADDRESS})),))

    def test_stays(self) -> None:
        """In the end it carries and marks nothing, tries for nothing, and is still heard of; its chain stays."""
        empty = evolve(
            QUIET, claims=Claims({}, self.claims.agents), unfit=True, going_since=NOW - 60, marks=frozenset({WEB})
        )
        self.assertEqual(plan(empty, TERMS).steps, (MarkTraffic(frozenset()),))
        beat = evolve(empty, marks=frozenset(), registration_due=True, recorded=Recorded(STANDBY, NOW - 60))
        self.assertEqual(plan(beat, TERMS).steps, (Register(STANDBY, ME),))
        trying = evolve(empty, marks=frozenset(), new={ADDRESS}, busy={ClaimTo(ADDRESS)})
        self.assertEqual(plan(trying, TERMS).steps, ())
        leaving = Claims({ADDRESS: "other"}, {"other": evolve(self.other, leaving=True)})
        self.assertEqual(plan(evolve(empty, marks=frozenset(), claims=leaving), TERMS).steps, ())

    def test_starts_unfit(self) -> None:
        """One that starts so registers so, and adopts what an earlier life left only to hand it over."""
        start = evolve(AdoptionTests.LEFT, claims=Claims(), admitted=None, registration_due=True, unfit=True)
        self.assertIn(Register(STANDBY, ME), plan(start, TERMS).steps)
        left = evolve(AdoptionTests.LEFT, claims=self.claims, unfit=True, going_since=NOW)
        self.assertEqual(plan(left, TERMS).steps, (Renew(frozenset({ADDRESS})),))
        for too_late in (
            evolve(left, going_since=NOW - LONGEST_HAND_OVER),
            evolve(left, claims=evolve(self.claims, holders={ADDRESS: "other"})),
        ):
            self.assertIn(Unassign(frozenset({ADDRESS})), plan(too_late, TERMS).steps)

    def test_fit_again(self) -> None:
        """When it ends, it says so, keeps what it still has, and lets others be heard of before it takes more."""
        again = evolve(self.unfit, unfit=False, fit_since=NOW, registration_due=True)
        self.assertEqual(plan(again, TERMS).steps, (Register(ME, STANDBY),))
        free = evolve(QUIET, fit_since=NOW - 0.1)
        self.assertEqual(plan(free, TERMS), Plan((), NOW - 0.1 + SETTLING))
        self.assertIn(Acquire(ADDRESS), plan(evolve(free, now=NOW - 0.1 + SETTLING), TERMS).steps)

    def test_leaves(self) -> None:
        """One that leaves meanwhile replaces and deletes the record that is there."""
        leaving = evolve(ME, leaving=True)
        going = evolve(self.unfit, draining=True, recorded=Recorded(STANDBY, NOW - 1))
        self.assertEqual(plan(going, TERMS).steps, (Register(leaving, STANDBY), Unassign(frozenset({ADDRESS}))))
        gone = evolve(going, host=host(LINK), holds={}, claims=Claims(), unmarked=True)
        self.assertEqual(plan(gone, TERMS).steps, (Deregister(STANDBY),))

    def test_others(self) -> None:
        """Nobody waits for an agent on standby, and who comes first without it gets ready for what it carries."""
        first = next(name for name in map(str, range(100)) if rank(ADDRESS, "me", [name]) == 1)
        agents = {first: AgentRecord(first, "host", "there", "2", standby=True)}
        free = evolve(QUIET, claims=Claims({}, agents), free_since={ADDRESS: NOW})
        self.assertIn(Acquire(ADDRESS), plan(free, TERMS).steps)
        carried = evolve(QUIET, claims=Claims({ADDRESS: first}, agents))
        self.assertEqual(plan(carried, TERMS).steps, (MarkTraffic(frozenset({WEB})),))


class EligibleTests(SynchronousTestCase):
    """Some addresses may be on some Nodes only."""

    ids = ("me", "one", "two", "three")
    agents = {i: AgentRecord(i, "host", i, i, node="" if i == "me" else f"node-{i}") for i in ids}

    def may(self, see: Situation, *names: str) -> Situation:
        return evolve(see, eligible={ADDRESS: frozenset(names)})

    def test_not_here(self) -> None:
        """An address that may not be on this agent's Node is left alone."""
        self.assertEqual(plan(self.may(QUIET, "elsewhere"), TERMS), Plan())
        self.assertEqual(plan(self.may(QUIET), TERMS), Plan())
        self.assertIn(Acquire(ADDRESS), plan(self.may(QUIET, "me", "elsewhere"), TERMS).steps)

    def test_not_here_any_more(self) -> None:
        """One that is carried here goes at once: first the address, and then the claim."""
        for nodes in (("elsewhere",), ()):
            moved = self.may(CARRIED, *nodes)
            self.assertEqual(plan(moved, TERMS).steps, (Unassign(frozenset({ADDRESS})),))
            off = evolve(moved, host=host(LINK))
            self.assertEqual(plan(off, TERMS).steps, (MarkTraffic(frozenset()), Release(ADDRESS)))

    def test_undecided(self) -> None:
        """While it is not known who may carry one, nobody tries for it, and who carries or held it goes on."""
        free = evolve(QUIET, undecided={ADDRESS})
        self.assertEqual(plan(free, TERMS), Plan())
        beaten = evolve(CARRIED, undecided={ADDRESS}, renewals_due={ADDRESS})
        self.assertEqual(plan(beaten, TERMS).steps, (Renew(frozenset({ADDRESS})),))
        left = evolve(AdoptionTests.LEFT, undecided={ADDRESS}, claims=Claims({ADDRESS: "me"}))
        self.assertEqual(plan(left, TERMS).steps, (Renew(frozenset({ADDRESS})),))

    def test_adoption(self) -> None:
        """What an earlier life left where it must not be any more is taken away."""
        left = self.may(evolve(AdoptionTests.LEFT, claims=Claims({ADDRESS: "me"})), "elsewhere")
        self.assertEqual(plan(left, TERMS).steps, (Unassign(frozenset({ADDRESS})),))

    def test_ranking(self) -> None:
        """Only agents on those Nodes are waited for; an agent's Node is what its record says."""
        first = next(name for name in map(str, range(100)) if rank(ADDRESS, "me", [name]) == 1)
        agents = {first: AgentRecord(first, "host", "there", "2", node="their-node")}
        free = evolve(QUIET, claims=Claims({}, agents), free_since={ADDRESS: NOW})
        self.assertIn(Acquire(ADDRESS), plan(self.may(free, "me", first), TERMS).steps)
        self.assertEqual(plan(self.may(free, "me", "their-node"), TERMS), Plan((), NOW + STAGGER))

    def test_getting_ready(self) -> None:
        """Who will try first for what must move marks its traffic, and nobody else does."""
        agents = {**self.agents, "gone": AgentRecord("gone", "host", "gone", "gone")}
        see = evolve(QUIET, claims=Claims({ADDRESS: "gone"}, agents))
        for staying, nodes, candidates in (
            (("gone", "me", "node-one"), 0, ()),
            (("me", "node-one"), 1, ("me", "one")),
            (("node-two",), 1, ("two",)),
        ):
            first = sorted(candidates, key=lambda i: rank(ADDRESS, i, candidates))[:nodes]
            for i in self.ids:
                marked = (MarkTraffic(frozenset({WEB})),) if i in first else ()
                self.assertEqual(plan(self.may(see, *staying), Terms(agents[i], 10)).steps, marked)

    def test_fair_share(self) -> None:
        """An agent's share is that of what it may carry, divided by those that may, too."""
        wanted = {nth(n): frozenset({Mark(nth(n), Protocol.TCP, 80, "web")}) for n in range(9, 109)}
        see = evolve(QUIET, claims=Claims({}, self.agents), wanted=wanted, free_since=dict.fromkeys(wanted, NOW))
        for nodes, share in ((("me", "node-one"), 52), (("me", "node-one", "node-two"), 35)):
            only = evolve(see, eligible=dict.fromkeys(wanted, frozenset(nodes)))
            for held, tries in ((share - 1, True), (share, False)):
                full = evolve(only, holds={nth(n): Hold(nth(n), NOW, NOW) for n in range(200, 200 + held)})
                acquired = [step for step in plan(full, TERMS).steps if isinstance(step, Acquire)]
                self.assertEqual(acquired != [], tries, (nodes, held))


class KeepingTests(SynchronousTestCase):
    """What is carried stays so."""

    def test_confirmed(self) -> None:
        """A heartbeat extends the time that an address may stay on the interface."""
        hold = evolve(HOLD, sent=NOW)
        confirmed = evolve(CARRIED, holds={ADDRESS: hold})
        self.assertEqual(
            plan(confirmed, TERMS).steps,
            (Assign(frozenset({Assignment(ADDRESS, TERMS.assignment_ends(hold), "em1")})),),
        )

    def test_deleted_by_hand(self) -> None:
        """An address that somebody deleted is put back."""
        deleted = evolve(CARRIED, host=host(LINK))
        self.assertEqual(plan(deleted, TERMS).steps, (Assign(frozenset({Assignment(ADDRESS, ENDS, "em1")})),))

    def test_lifetime_changed_by_hand(self) -> None:
        """A lifetime that somebody made permanent, longer or shorter is put right."""
        for expires in (inf, NOW + 100, NOW + 3):
            changed = evolve(CARRIED, host=host(LINK, {ADDRESS: expires}))
            self.assertEqual(plan(changed, TERMS).steps, (Assign(frozenset({Assignment(ADDRESS, ENDS, "em1")})),))

    def test_rounded(self) -> None:
        """The kernel tells a lifetime rounded up to whole seconds, which is no change."""
        for expires in (ENDS - 0.99, ENDS, ENDS + 1):
            self.assertEqual(plan(evolve(CARRIED, host=host(LINK, {ADDRESS: expires})), TERMS).steps, ())

    def test_chain_changed_by_hand(self) -> None:
        """A chain that is not as it should be is written anew."""
        self.assertEqual(plan(evolve(CARRIED, marks=None), TERMS).steps, (MarkTraffic(frozenset({WEB})),))

    def test_ports_change(self) -> None:
        """Other ports are other marks, and nothing else."""
        mark = evolve(WEB, port=8081)
        changed = evolve(CARRIED, wanted={ADDRESS: frozenset({mark})})
        self.assertEqual(plan(changed, TERMS).steps, (MarkTraffic(frozenset({mark})),))

    def test_heartbeat(self) -> None:
        """What is held is confirmed with the store when that is due."""
        self.assertEqual(plan(evolve(CARRIED, renewals_due={ADDRESS}), TERMS).steps, (Renew(frozenset({ADDRESS})),))

    def test_doubtful(self) -> None:
        """A claim that the store is heard not to know, or to know as another agent's, is confirmed at once."""
        for holders in ({}, {ADDRESS: "other"}):
            self.assertEqual(plan(evolve(CARRIED, claims=Claims(holders)), TERMS).steps, (Renew(frozenset({ADDRESS})),))

    def test_together(self) -> None:
        """Whenever one address is written, all are, so that their lifetimes end together."""
        hold = Hold(OTHER, NOW, NOW)
        both = evolve(
            CARRIED,
            wanted={ADDRESS: frozenset({WEB}), OTHER: frozenset({DNS})},
            holds={ADDRESS: HOLD, OTHER: hold},
            claims=Claims({ADDRESS: "me", OTHER: "me"}),
            marks=frozenset({WEB, DNS}),
        )
        written = frozenset({Assignment(ADDRESS, ENDS, "em1"), Assignment(OTHER, TERMS.assignment_ends(hold), "em1")})
        self.assertEqual(plan(both, TERMS).steps, (Assign(written),))

    def test_alone(self) -> None:
        """Where that takes long, what comes soon after is written alone, and ends well before the others."""
        one, hold = evolve(TERMS, few=1), Hold(OTHER, NOW, NOW)
        both = evolve(
            CARRIED,
            wanted={ADDRESS: frozenset({WEB}), OTHER: frozenset({DNS})},
            holds={ADDRESS: HOLD, OTHER: hold},
            claims=Claims({ADDRESS: "me", OTHER: "me"}),
            marks=frozenset({WEB, DNS}),
            written=Written(NOW - 0.1, ENDS),
        )
        alone = (Assign(frozenset({Assignment(OTHER, ENDS - ALONE_ENDS_BEFORE, "em1")})),)
        self.assertEqual(plan(both, one).steps, alone)
        together = (
            Assign(frozenset({Assignment(ADDRESS, ENDS, "em1"), Assignment(OTHER, one.assignment_ends(hold), "em1")})),
        )
        for otherwise in (
            evolve(both, written=None),
            evolve(both, written=Written(NOW - ALL_AGAIN, ENDS)),
            evolve(both, written=Written(NOW - 0.1, NOW + ALONE_ENDS_BEFORE + SHORTEST_ALONE - 0.01)),
            evolve(both, written=Written(NOW - 0.1, one.assignment_ends(hold) + 0.01)),
        ):
            self.assertEqual(plan(otherwise, one).steps, together)
        self.assertEqual(plan(both, evolve(one, few=2)).steps, together)
        written = evolve(
            both,
            host=host(LINK, {ADDRESS: NOW + 7, OTHER: NOW + 4}),
            extended={ADDRESS: ENDS, OTHER: ENDS - ALONE_ENDS_BEFORE},
            announced={ADDRESS: Announced(1, NOW + 60), OTHER: Announced(1, NOW + 60)},
        )
        self.assertEqual(plan(written, one), Plan((), NOW - 0.1 + ALL_AGAIN))
        self.assertEqual(plan(evolve(written, now=NOW - 0.1 + ALL_AGAIN), one).steps, together)

    def test_bit_by_bit(self) -> None:
        """What is confirmed bit by bit is written when all of it is, or when half a TTL is left."""
        confirmed = evolve(CARRIED, holds={ADDRESS: evolve(HOLD, sent=NOW)}, renewals_due={OTHER})
        self.assertEqual(plan(confirmed, TERMS).steps, ())
        late = evolve(confirmed, now=ENDS - TERMS.ttl / 2)
        self.assertIsInstance(plan(late, TERMS).steps[0], Assign)

    def test_many(self) -> None:
        """Where there are too many addresses to be written together, the kernel is left more time."""
        self.assertLess(TERMS.assignment_ends(HOLD, 1001), TERMS.assignment_ends(HOLD, 1000) - 0.9)
        self.assertGreater(Terms(ME, 3).assignment_ends(HOLD, 1001), HOLD.sent + 2)

    def test_nearly_over(self) -> None:
        """The kernel counts whole seconds: with less than one left it is told nothing."""
        self.assertEqual(plan(evolve(MARKED, now=ENDS - 0.9), TERMS).steps, ())


class AdoptionTests(SynchronousTestCase):
    """A restart is not an outage."""

    LEFT = evolve(
        QUIET,
        host=host(LINK, {ADDRESS: NOW + 5}),
        marks=frozenset({WEB}),
        adoptable=frozenset({ADDRESS}),
    )

    def test_store_unknown(self) -> None:
        """An address of an earlier life stays while the store is not known; the kernel removes it in time."""
        self.assertEqual(plan(evolve(self.LEFT, claims=None), TERMS).steps, ())

    def test_still_ours(self) -> None:
        """It is confirmed when the claim is still there, and neither address nor marks are touched."""
        ours = evolve(self.LEFT, claims=Claims({ADDRESS: "me"}))
        self.assertEqual(plan(ours, TERMS).steps, (Renew(frozenset({ADDRESS})),))
        self.assertEqual(plan(evolve(ours, wanted=None), TERMS).steps, (Renew(frozenset({ADDRESS})),))

    def test_taken_by_another(self) -> None:
        """It goes when another agent has the claim."""
        taken = evolve(self.LEFT, claims=Claims({ADDRESS: "other"}))
        self.assertEqual(plan(taken, TERMS).steps, (Unassign(frozenset({ADDRESS})),))

    def test_unclaimed(self) -> None:
        """It goes when nobody has the claim; then everybody may try for it."""
        steps = plan(self.LEFT, TERMS).steps
        self.assertEqual(steps, (Unassign(frozenset({ADDRESS})),))

    def test_permanent(self) -> None:
        """One that the kernel would keep for ever is not waited for."""
        for_ever = evolve(self.LEFT, claims=None, host=host(LINK, {ADDRESS: inf}))
        self.assertIn(Unassign(frozenset({ADDRESS})), plan(for_ever, TERMS).steps)

    def test_claim_without_address(self) -> None:
        """A claim of ours without an address is confirmed before anything is put up."""
        self.assertEqual(
            plan(evolve(QUIET, claims=Claims({ADDRESS: "me"})), TERMS).steps, (Renew(frozenset({ADDRESS})),)
        )


SIX = ip("fd00::43")
addresses = st.sampled_from([ADDRESS, OTHER, SIX])
interfaces = st.sampled_from(["em1", "em2"])
moments = st.one_of(st.floats(NOW - 20, NOW + 20), st.just(inf))
marks_of = {
    address: frozenset({Mark(address, Protocol.TCP, port, "web") for port in (80, 443)})
    for address in (ADDRESS, OTHER, SIX)
}
ids = st.sampled_from(["me", "other", "third"])
subjects = st.one_of(
    st.sampled_from([ADDRESSES, FIREWALL, NEIGHBOURS, PROBES, RECORD]),
    addresses.map(ClaimTo),
    addresses.map(AssignmentOf),
)
nodes = st.sampled_from(["me", "other", "elsewhere"])
networks = st.sampled_from([None, (), (ip_network("192.168.1.0/24"),), (ip_network("fd00::/64"),)])
agents = st.dictionaries(ids, st.tuples(st.booleans(), nodes, st.booleans(), networks), max_size=3).map(
    lambda drawn: {i: AgentRecord(i, i, i, i, *flags) for i, flags in drawn.items()}
)
own_records = st.sampled_from([ME, evolve(ME, leaving=True), STANDBY])
some_marks = st.frozensets(
    st.sampled_from([mark for marks in marks_of.values() for mark in sorted(marks, key=lambda mark: mark.port)])
)


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    """Two interfaces, which may be down or away, with some addresses on them."""
    links = draw(st.dictionaries(interfaces, st.booleans()))
    where = draw(st.dictionaries(addresses, interfaces))
    return Host(
        {name: evolve(LINK, name=name, ready=ready) for name, ready in links.items()},
        {address: draw(moments) for address in where},
        where,
    )


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Any situation at all, the impossible ones included."""
    wanted = draw(st.none() | st.dictionaries(addresses, st.none()))
    holds = {
        address: Hold(address, draw(st.floats(NOW - 20, NOW)), NOW - 30) for address in draw(st.frozensets(addresses))
    }
    return Situation(
        now=NOW,
        wanted=None if wanted is None else {address: marks_of[address] for address in wanted},
        eligible=draw(st.dictionaries(addresses, st.frozensets(nodes))),
        undecided=draw(st.frozensets(addresses)),
        places=dict.fromkeys(wanted or (), "em1") | draw(st.dictionaries(addresses, interfaces)),
        networks=draw(networks),
        claims=draw(
            st.none()
            | st.builds(
                Claims,
                st.dictionaries(addresses, ids),
                agents,
            )
        ),
        heard=draw(st.dictionaries(addresses, st.none() | ids)),
        holds=holds,
        store_troubled=draw(st.booleans()),
        renewals_due=draw(st.frozensets(addresses)),
        host=draw(st.none() | hosts()),
        looked=draw(st.sampled_from([-inf, NOW - 1, NOW - 0.01])),
        host_stale=draw(st.booleans()),
        host_unsure=draw(st.booleans()),
        assigning=draw(st.frozensets(addresses)),
        adoptable=draw(st.frozensets(addresses)),
        extended=draw(st.dictionaries(addresses, moments)),
        written=draw(st.none() | st.builds(Written, st.floats(NOW - 1, NOW), moments)),
        marks=draw(st.none() | some_marks),
        marks_stale=draw(st.booleans()),
        announced=draw(st.dictionaries(addresses, moments.map(lambda moment: Announced(1, moment)))),
        new=draw(st.frozensets(addresses)),
        foreign=draw(st.frozensets(addresses)),
        wary_until=draw(moments | st.just(-inf)),
        own=draw(st.frozensets(addresses)),
        free_since=draw(st.dictionaries(addresses, st.floats(NOW - 20, NOW))),
        registration_due=draw(st.booleans()),
        admitted=draw(st.none() | st.floats(NOW - 20, NOW)),
        recorded_until=draw(moments),
        newest_agent=draw(st.floats(NOW - 20, NOW)),
        recalled=draw(agents),
        gave_up=draw(st.frozensets(ids)),
        busy=draw(st.frozensets(subjects)),
        failures=draw(st.dictionaries(subjects, st.integers(0, 5))),
        rests=draw(st.dictionaries(subjects, moments)),
        draining=draw(st.booleans()),
        unfit=draw(st.booleans()),
        going_since=draw(st.sampled_from([-inf, NOW - 3, NOW - 1, NOW - 0.2, NOW])),
        fit_since=draw(st.sampled_from([-inf, NOW - 3, NOW - 0.2])),
        unmarked=draw(st.booleans()),
        registered=draw(st.booleans()),
        recorded=draw(st.none() | st.builds(Recorded, own_records, st.sampled_from([NOW - 0.05, NOW - 1]))),
    )


class InterfacesTests(SynchronousTestCase):
    """An address goes to the interface that it belongs to, and to hosts that have one."""

    TWO = evolve(
        QUIET,
        wanted={ADDRESS: frozenset({WEB}), SIX: frozenset()},
        places={ADDRESS: "em1", SIX: "em2"},
        holds={ADDRESS: HOLD, SIX: Hold(SIX, NOW - 1, NOW - 1)},
        claims=Claims({ADDRESS: "me", SIX: "me"}),
        marks=frozenset({WEB}),
        host=Host({"em1": LINK, "em2": evolve(LINK, index=4, name="em2")}),
    )
    ON_EM1 = Assignment(ADDRESS, ENDS, "em1")
    ON_EM2 = Assignment(SIX, ENDS, "em2")

    def test_each(self) -> None:
        """Each address is put on its own interface, all at once."""
        self.assertEqual(plan(self.TWO, TERMS).steps, (Assign(frozenset({self.ON_EM1, self.ON_EM2})),))

    def test_one_down(self) -> None:
        """Where one of the interfaces is down or away, its address is given back, and the other one carried on."""
        for links in ({"em1": LINK}, {"em1": LINK, "em2": evolve(LINK, name="em2", ready=False)}):
            there = Host(links, {ADDRESS: NOW + 7, SIX: NOW + 7}, {ADDRESS: "em1", SIX: "em2"})
            down = evolve(self.TWO, host=there, extended={ADDRESS: ENDS, SIX: ENDS})
            self.assertIn(Unassign(frozenset({SIX})), plan(down, TERMS).steps)
            off = evolve(down, host=evolve(there, assigned={ADDRESS: NOW + 7}))
            self.assertIn(Release(SIX), plan(off, TERMS).steps)

    def test_misplaced(self) -> None:
        """An address on another interface than its own is taken off there first."""
        there = evolve(self.TWO.host or Host(), assigned={ADDRESS: NOW + 7}, where={ADDRESS: "em2"})
        moved = evolve(self.TWO, host=there, extended={ADDRESS: ENDS})
        self.assertEqual(plan(moved, TERMS).steps, (Unassign(frozenset({ADDRESS})),))

    def test_others(self) -> None:
        """An agent whose record says that it cannot carry an address is not waited for."""
        first = next(a for a in "abcdefgh" if rank(ADDRESS, "me", {a}))
        other = AgentRecord(first, "host", "there", "1", networks=(ip_network("fd00::/64"),))
        free = evolve(QUIET, free_since={ADDRESS: NOW}, networks=(ip_network("192.168.1.0/24"),))
        self.assertIn(Acquire(ADDRESS), plan(evolve(free, claims=Claims(agents={first: other})), TERMS).steps)
        for networks in (None, (ip_network("192.168.1.0/28"), ip_network("192.168.1.32/28"))):
            able = Claims(agents={first: evolve(other, networks=networks)})
            self.assertNotIn(Acquire(ADDRESS), plan(evolve(free, claims=able), TERMS).steps)

    def test_record(self) -> None:
        """The record is written anew when what it has to say changes, instead of what the store is known to have."""
        before = evolve(ME, networks=(ip_network("192.168.1.0/24"),))
        after = evolve(ME, networks=())
        due = evolve(QUIET, registration_due=True, networks=(), recorded=Recorded(before, NOW - 1))
        self.assertIn(Register(after, before), plan(due, TERMS).steps)
        unconfirmed = evolve(due, claims=Claims(agents={"me": STANDBY}))
        self.assertIn(Register(after, STANDBY), plan(unconfirmed, TERMS).steps)
        unseen = evolve(due, host=None, admitted=None)
        self.assertEqual([step for step in plan(unseen, TERMS).steps if isinstance(step, Register)], [])


class PropertyTests(SynchronousTestCase):
    """What holds for every plan, whatever the situation."""

    @given(situations(), st.sampled_from([TERMS, evolve(TERMS, few=0)]))
    def test_invariants(self, see: Situation, terms: Terms) -> None:
        """No step comes before its time, none is in the way of another, and the next look is ahead."""
        made = plan(see, terms)
        assigned = set(see.host.assigned) if see.host else set()
        live = {a for a, hold in see.holds.items() if TERMS.hold_ends(hold) > NOW}
        claimed = {a for a, holder in {**(see.claims.holders if see.claims else {}), **see.heard}.items() if holder}
        elsewhere = {a for a, nodes in see.eligible.items() if terms.record.node_name not in nodes}
        ready = {name for name, link in see.host.links.items() if link.ready} if see.host else set()
        for step in made.steps:
            if isinstance(step, Assign):
                for assignment in step.assignments:
                    self.assertIn(assignment.address, live - elsewhere)
                    self.assertIn(assignment.interface, ready)
                    if see.wanted is not None:
                        self.assertEqual(assignment.interface, see.places[assignment.address])
                    self.assertTrue(assignment.address in assigned or assignment.address not in see.new | see.foreign)
                    self.assertLess(assignment.expires, see.holds[assignment.address].sent + TERMS.ttl)
                    if see.wanted is None:
                        self.assertIn(assignment.address, assigned)
                    else:
                        self.assertTrue(see.wanted[assignment.address] <= (see.marks or frozenset()))
            elif isinstance(step, Announce):
                self.assertTrue({each.address for each in step.assignments} <= (live & assigned) - elsewhere)
                self.assertTrue(
                    all(see.host and each.interface == see.host.where[each.address] for each in step.assignments)
                )
            elif isinstance(step, Release):
                self.assertNotIn(step.address, assigned)
                self.assertFalse(ADDRESSES in see.busy or see.host_unsure or see.host is None)
            elif isinstance(step, Acquire):
                self.assertNotIn(step.address, live | claimed | assigned | elsewhere | see.undecided)
                self.assertIn(step.address, see.wanted or {})
                self.assertIn(see.places[step.address], ready)
                self.assertTrue(step.address in see.own or see.wary_until <= NOW)
                self.assertLess(NOW, see.recorded_until)
            elif isinstance(step, Unassign):
                self.assertTrue(step.addresses <= assigned)
            elif isinstance(step, MarkTraffic):
                unmarked = {mark.address for mark in (see.marks or frozenset()) - step.marks}
                self.assertFalse(unmarked & (assigned | see.assigning) - set(see.wanted or ()))
        self.assertFalse(
            see.admitted is None and [step for step in made.steps if isinstance(step, Acquire | Renew | Release)]
        )
        if see.draining:
            self.assertEqual([step for step in made.steps if isinstance(step, MarkTraffic)], [])
        if see.draining or see.unfit:
            self.assertEqual([step for step in made.steps if isinstance(step, Acquire | Probe)], [])
            carrying_on = [step for step in made.steps if isinstance(step, Assign | Announce)]
            self.assertTrue(all(each.address in assigned for step in carrying_on for each in step.assignments))
            going_on = {a for step in made.steps if isinstance(step, Renew) for a in step.addresses}
            self.assertTrue(going_on <= assigned & (live if see.draining else live | see.adoptable))
            if see.going_since + LONGEST_HAND_OVER <= NOW:
                self.assertEqual((carrying_on, going_on), ([], set()))
        busy = [subject for step in made.steps for subject in step.subjects]
        self.assertEqual(len(busy), len(set(busy)), made.steps)
        self.assertFalse([s for s in busy if s in see.busy or see.rests.get(s, NOW) > NOW], made.steps)
        self.assertGreater(made.look, NOW)

    @given(situations())
    def test_lapsed(self, see: Situation) -> None:
        """
        No address stays past the end of its hold, but one of an earlier life that the kernel removes in time; nor where
        it must not be.
        """
        made = plan(evolve(see, busy=frozenset(), rests={}), TERMS)
        away = {a for step in made.steps if isinstance(step, Unassign) for a in step.addresses}
        for address, expires in (see.host.assigned if see.host else {}).items():
            held = address in see.holds and TERMS.hold_ends(see.holds[address]) > NOW
            over = see.unfit and see.going_since + LONGEST_HAND_OVER <= NOW
            elsewhere = "me" not in see.eligible.get(address, {"me"})
            misplaced = (
                see.host is not None and see.places.get(address, see.host.where[address]) != see.host.where[address]
            )
            adoptable = address in see.adoptable and expires <= NOW + TERMS.ttl
            if over or elsewhere or misplaced or not (held or adoptable):
                self.assertIn(address, away)

    @given(situations())
    def test_equal_situations(self, see: Situation) -> None:
        """The same situation makes the same plan."""
        self.assertEqual(plan(see, TERMS), plan(see, TERMS))
