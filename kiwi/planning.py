"""
What to do next: values in, steps out. Nothing here can touch the world, and time is an argument.

Note [Order]
~~~~~~~~~~~~
A plan holds only steps whose preconditions are facts already: an address is assigned when its claim I{is} held and
its traffic I{is} marked, announced when it I{is} assigned, released when it I{is not} assigned. What follows from a
step is planned in the next pass, which comes as soon as the step is done. So the steps of one plan may be performed in
any order and at the same time, and no order of failures can break the rule.

Note [One agent of a name]
~~~~~~~~~~~~~~~~~~~~~~~~~~
Claims say whose they are by the agent's id, so two agents with one id would both take a claim for theirs. Therefore an
agent claims nothing before the store has its record, which it takes only while it has none with that id. A record of
the same place is what a dead process left (see L{kiwi.names} for why it is dead) and is replaced at once; one of
another place either ends with its TTL or belongs to an agent that is alive.

A record can end while its agent is alive: when the store was out of reach for a TTL, or has lost its data. From then on
another agent may have taken the id. So where the store may have no record of this agent any more, it renews what it
surely holds, and does nothing else about claims until it has its record again; and claims with its id that neither this
agent has asked for, nor an earlier life of it on the same host, are another agent's.

Note [Deadlines]
~~~~~~~~~~~~~~~~
The store keeps a claim for a TTL from when it handled the last confirmed request, which is no earlier than when the
request was sent. So no other agent can have the address before C{sent + TTL} on a clock that runs true. From that
moment we count back, twice:

 - a living agent has let go by L{hold_ends}: 1% for a clock that runs slow, and L{TIME_TO_ACT} to do it;
 - the kernel of a dead or frozen agent has let go by then too: an assignment is asked for until L{assignment_ends}
   only, which leaves the kernel L{KERNEL_LATENESS}. See Note [Written together].

Note [Written together]
~~~~~~~~~~~~~~~~~~~~~~~
The kernel removes expired addresses in passes that are at least 1 s apart; a pass takes along what expires within the
next 20 ms, and is put off by up to 0.25 s to the next whole second (C{check_lifetime} in the kernel's
C{net/ipv4/devinet.c}). So an address whose lifetime ends 0.1 s after another one's is removed a whole second late.
Lifetimes are whole seconds: what is written together ends together, or whole seconds apart, and then nothing is more
than 0.25 s late, and 0.26 s more where the kernel's timer is coarse (Note [Two looks at the clock] in
L{kiwi.network.addresses}). So whenever one address is written, all are. What is confirmed bit by bit is therefore
extended when all of it is, or when half a TTL is left. Up to L{WRITTEN_TOGETHER} addresses are written
well within 20 ms; where there are more, the kernel is left L{KERNEL_LATENESS_OF_MANY}, if the TTL allows it.

To write hundreds for each one that comes takes longer than anything else in a takeover. So where there are more than a
few, all of them are written every L{ALL_AGAIN} seconds at the most. What comes in between is written alone, with a
lifetime that ends L{ALONE_ENDS_BEFORE} seconds before those of the others: the last pass for it is over more than a
second before the pass for the others is due. Where a lifetime is too short for that, all are written nevertheless.

Somebody else who writes an address of this host in the second before ours end can make the kernel a second late, too;
that matters only if this agent is dead at that moment, and is not provided for.

Note [Handing over]
~~~~~~~~~~~~~~~~~~~
An address that is given back does not answer until another agent has it. So an agent that is going to carry nothing
tells the others first, and goes on carrying for L{TIME_TO_PREPARE}, in which those that will try first mark the
traffic: that takes longer than all the rest of a takeover. Then it gives back only so many addresses at once as change
hands in some milliseconds, and carries the others on until it is their turn. All of that is a courtesy with an end:
where the store does not answer or nobody else can carry anything, and after L{LONGEST_HAND_OVER} in any case,
everything is given back at once.

An agent that leaves does so, and its record goes with it. One whose host is unfit does the same, but it stays: its
record says that it is on standby, for as long as that lasts. What it finds of an earlier life it adopts only to hand it
over. When the host is fit again it takes part like an agent that has just started, and what others carry stays there.

Note [Two who ask]
~~~~~~~~~~~~~~~~~~
Agents with different claim stores do not see each other's claims. What keeps them from carrying one address is that
each asks the neighbours for it before it assigns it, and hears who else asks (L{Probe}; RFC 5227, section 2.1.1). An
address is assigned only after a I{quiet} round of questions: nobody answers, and nobody else asks. A round takes
C{w = probe_wait}, and asks at its begin, after C{w/3} and after C{2w/3}; all is heard that is said from before its
first question on.

 - Of two rounds that overlap, the one that begins first hears the other's first question and is not quiet. The later
   one is quiet only if it begins in the last third of the other. (If they begin together, both hear a question.) So
   there is one who may go on, at the most.
 - Whose round was not quiet asks again, but is silent first, for a time that is drawn at random from C{2w} to C{4w},
   and twice as long each time. Were it to go on asking, two could keep each other from a quiet round for ever; after
   the first silence they do so in half of all cases, and then in fewer. And the one who goes on has the time to assign
   the address. Then the other's next round has an answer: it refuses the address, and gives its claim back.
 - Of two rounds that do not overlap, the first one is quiet, and the second one ends more than C{w} after it. It hears
   an answer or an announcement if the first agent has assigned the address by then. Mostly that takes some
   milliseconds, for its claim is held and its traffic marked already.

What is left is an agent that is slow to assign after a quiet round, because its store or its firewall is. For
L{QUIET_LASTS} the round counts, unless somebody is heard to have the address; and within that time, all of the other's
round may be quiet, too. Then both assign and announce, and each hears the other. What an agent has assigned after
asking is I{fresh} for L{FRESH} seconds. Of two that hear each other, the one with the lower MAC address gives up what
is fresh, at once; the other one announces it anew. If that one still hears the first half a second later, then to the
first it is not fresh, or it is no agent, and the other one gives it up, too (RFC 5227, section 2.4 b). What is not
fresh is defended, for it was carried when the other came.

Within one fleet, only the agent that comes first for an address asks for it while it tries for the claim; the others
ask when they have it. Where two ask nevertheless, who gets the claim asks again after its silence, and the other one
stops when it hears of it. In a takeover nobody is asked: that would take time. But an agent that stays and gives back a
claim soon after it got it may have refused the address, or given it up; and when the store was out of reach for longer
than a TTL, nobody knows who has had the address since. In both cases it is asked for.

Note [Eligible]
~~~~~~~~~~~~~~~
Some addresses may be only on some Nodes (L{kiwi.selection}), and agents say in their records which Node each one is on.
Only agents that are on one of those are ranked for such an address and try for it. The same is so for agents whose
records say that no interface of theirs that is up holds it (C{networks}). Nobody is told when a carrier's Node
is not among them any more: all agents hear it from Kubernetes. The carrier takes the address off and gives the claim
back at once, for nothing on its host answers any more; who will try first marks the traffic meanwhile. An agent that
has not heard it yet waits for nobody for long, and takes nothing away from anybody: the claim decides, as ever.

While it is not known who may carry an address, nobody tries for it, and who carries it goes on, also over a restart.
So a host that cannot see endpoints, or not yet, withdraws nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from math import ceil, inf
from operator import attrgetter

from attrs import evolve, field, frozen

from .model import CLOCK_DRIFT, Address, AgentRecord, Assignment, Claims, Hold, Host, Mark, Network, Placement, in_order
from .steps import (
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
    Step,
    Subject,
    Unassign,
    Unmark,
)

TIME_TO_ACT = 0.2
KERNEL_LATENESS = 0.55
KERNEL_LATENESS_OF_MANY = 1.55
LONG_TTL, KERNEL_LATENESS_OF_LONG = 100, 1 / 50
"""
Seconds, but for the last one, which is a part of the TTL: so much more is left to the kernel with a long TTL. Its timer
is late by a 63rd of that, since an eighth of it is left when it looks for the last time (Note [Two looks at the clock]
in L{kiwi.network.addresses}).
"""
WRITTEN_TOGETHER = 1000

FEW, ALL_AGAIN, ALONE_ENDS_BEFORE, SHORTEST_ALONE = 64, 0.5, 3.6, 1.5
"""See Note [Written together]. Addresses, and seconds; the last one is the least that is left of a lifetime alone."""

STAGGER, STAGGER_OF_EACH = 0.05, 0.001
"""
Seconds by which each agent in the ranking for an address lets the one before it go first, and how many more for each
other address that is free at the same time or about to be: the one before may have as many to try for.
"""

SETTLING, LONGEST_SETTLING = 0.5, 2.0
"""
Seconds for which an agent that starts lets others be heard of, so that agents that start together share: from the last
one that was heard of for the first time, and at the most.
"""

FAIR_SHARE, OVER_SHARE = 1.02, 3
"""
Times the average, and one more, that an agent takes before it lets all the others go first, and how many turns of each
of them.
"""

RENEW_TOGETHER = 16
"""Claims in one renewal: a slow answer for one of them keeps back no more than these."""

TRIES_IN_TROUBLE = 4
"""Claims that are asked about at once while the store does not answer. When it does, all the others follow."""

TRIES_TO_PROVISION = 3
"""Failures in a row after which an agent that cannot put up what it has claimed lets others try."""

QUIET_LASTS, FRESH = 0.5, 3.0
"""See Note [Two who ask]. Seconds."""

LATER, EARLIER = 1.5, 2.5
"""
Seconds by which an address may expire later than it should, or earlier than was asked for, as far as the kernel tells:
lifetimes are whole seconds, which it tells rounded up.
"""

LOOK_INTERVAL = 0.05
"""Seconds from one look at the host to the next, where it is only said to have changed: mostly by this agent itself."""

HAND_OVER_TOGETHER, HAND_OVER_PART = 16, 8
"""
Addresses that a leaving agent takes off the interface before the store has answered to their releases, and the part of
what is left that it takes off if that is more: with many, it is better to have all of it over soon.
"""

TIME_TO_PREPARE, LONGEST_PREPARATION, LONGEST_HAND_OVER = 0.1, 0.5, 2.0
"""See Note [Handing over]. Seconds: from when the others were told, and twice from when the agent began to leave."""


_sent, _next = attrgetter("sent"), attrgetter("next")


@frozen
class Terms:
    """
    What an agent is and how long its claims last.

    @ivar ttl: seconds.
    @ivar probe_wait: seconds to wait for a machine that has an address already to say so; 0 for not asking.
    @ivar few: as many addresses are always written together. See Note [Written together].
    """

    record: AgentRecord
    ttl: float
    probe_wait: float = 0.03
    few: int = FEW

    @property
    def id(self) -> str:
        return self.record.id

    def hold_ends(self, hold: Hold) -> float:
        """When a living agent must have let go. See Note [Deadlines]."""
        return hold.sent + self.ttl * (1 - CLOCK_DRIFT) - TIME_TO_ACT

    def record_ends(self, sent: float) -> float:
        """Until when the store surely keeps the agent's record, which was confirmed last by what was sent then."""
        return sent + self.ttl * (1 - CLOCK_DRIFT)

    def assignment_ends(self, hold: Hold, together: int = 1) -> float:
        """
        Until when the kernel may be asked to keep the address. See Note [Deadlines].

        @param together: how many addresses are kept in all.
        """
        many = together > WRITTEN_TOGETHER and self.ttl >= 4
        lateness = KERNEL_LATENESS_OF_MANY if many else KERNEL_LATENESS
        if self.ttl > LONG_TTL:
            lateness += self.ttl * KERNEL_LATENESS_OF_LONG
        return hold.sent + self.ttl * (1 - CLOCK_DRIFT) - lateness


@frozen
class Announced:
    """The last round of announcements for an address: which one it was (the first is 1), and when the next is due."""

    rounds: int
    next: float


@frozen
class Written:
    """
    The last time that all addresses were written together. Seconds on the agent's monotonic clock.

    @ivar at: when.
    @ivar ends: until when the kernel was asked to keep the first of them to go.
    """

    at: float
    ends: float


@frozen
class Recorded:
    """
    What the store was last heard to have as this agent's record.

    @ivar since: when it was first heard to have just that. Seconds on the agent's monotonic clock.
    """

    record: AgentRecord
    since: float


@frozen
class Situation:
    """
    All that a decision rests on. Times are seconds on the agent's monotonic clock.

    @ivar wanted: the traffic to mark by address, or C{None} while the Services are not known.
    @ivar eligible: names of the Nodes that may carry an address. One that is not here may be carried by any.
    @ivar undecided: addresses of which it is not known yet who may carry them.
    @ivar places: the interface that each wanted address goes to.
    @ivar networks: where addresses must be for this host to carry them now; C{None} before the host was looked at.
    @ivar claims: what the store was last heard to know, or C{None} before that.
    @ivar heard: what the store answered about single addresses since then: the holder, or C{None} for no claim.
    @ivar holds: this agent's own claims. A hold that has ended is as none.
    @ivar store_troubled: the store gave no answer when it was asked last.
    @ivar renewals_due: holds to confirm with the store.
    @ivar host: the host as last seen, or C{None} before that.
    @ivar looked: when it was looked at last.
    @ivar host_stale: the host may have changed since.
    @ivar host_unsure: a step on the addresses failed since, and may have had half of its effect.
    @ivar assigning: addresses that a step is putting on the interface right now.
    @ivar adoptable: addresses that an earlier life of this agent left on the interface, and that nobody decided on yet.
    @ivar extended: until when each address was last asked to stay on the interface.
    @ivar written: the last time that all addresses were written together, if they were.
    @ivar marks: what the firewall marks; C{None} where it is not as it should be.
    @ivar marks_stale: the firewall may have changed since, or was never looked at.
    @ivar announced: the last announcement of each address since it was assigned.
    @ivar new: wanted addresses of which nothing tells yet that no machine but the agents has them.
    @ivar contested: of these, until when each one is not asked for that another machine has asked for, too.
    @ivar foreign: wanted addresses that a machine has which is no agent.
    @ivar wary_until: until when others may still carry addresses whose claims the store has lost.
    @ivar own: addresses that this agent held when the store lost its claims.
    @ivar free_since: when each wanted address was first seen without a claim.
    @ivar registration_due: the agent's record wants to be written (again).
    @ivar admitted: since when the store has had this agent's record, so that no other agent has its id; C{None} before.
    @ivar recorded_until: until when the store surely keeps the record; from then on another agent may take the id.
    @ivar newest_agent: when an agent was last heard of for the first time.
    @ivar recalled: by id, agents whose records have ended together with this agent's own, and that may be as alive as
        it is.
    @ivar gave_up: agents whose claims to wanted addresses ended a moment ago, and that are not waited for therefore.
    @ivar busy: what steps are working on right now.
    @ivar failures: how often in a row something failed.
    @ivar rests: until when something that failed is left alone.
    @ivar draining: the agent is going, and takes everything with it.
    @ivar unfit: its host may carry nothing, for now.
    @ivar going_since: since when one of these has been so.
    @ivar fit_since: since when the host has been fit again, if it was not.
    @ivar unmarked: no trace of ours is left in the firewall.
    @ivar registered: the agent's record may be in the store.
    @ivar recorded: what the store confirmed last of it; C{None} before that.
    """

    now: float
    wanted: Mapping[Address, frozenset[Mark]] | None = None
    eligible: Mapping[Address, frozenset[str]] = field(factory=dict)
    undecided: AbstractSet[Address] = frozenset()
    places: Mapping[Address, str] = field(factory=dict)
    networks: tuple[Network, ...] | None = None
    claims: Claims | None = None
    heard: Mapping[Address, str | None] = field(factory=dict)
    holds: Mapping[Address, Hold] = field(factory=dict)
    store_troubled: bool = False
    renewals_due: AbstractSet[Address] = frozenset()
    host: Host | None = None
    looked: float = -inf
    host_stale: bool = False
    host_unsure: bool = False
    assigning: AbstractSet[Address] = frozenset()
    adoptable: AbstractSet[Address] = frozenset()
    extended: Mapping[Address, float] = field(factory=dict)
    written: Written | None = None
    marks: frozenset[Mark] | None = None
    marks_stale: bool = False
    announced: Mapping[Address, Announced] = field(factory=dict)
    new: AbstractSet[Address] = frozenset()
    contested: Mapping[Address, float] = field(factory=dict)
    foreign: AbstractSet[Address] = frozenset()
    wary_until: float = -inf
    own: AbstractSet[Address] = frozenset()
    free_since: Mapping[Address, float] = field(factory=dict)
    registration_due: bool = False
    admitted: float | None = -inf
    recorded_until: float = inf
    newest_agent: float = -inf
    recalled: Mapping[str, AgentRecord] = field(factory=dict)
    gave_up: AbstractSet[str] = frozenset()
    busy: AbstractSet[Subject] = frozenset()
    failures: Mapping[Subject, int] = field(factory=dict)
    rests: Mapping[Subject, float] = field(factory=dict)
    draining: bool = False
    unfit: bool = False
    going_since: float = -inf
    fit_since: float = -inf
    unmarked: bool = False
    registered: bool = False
    recorded: Recorded | None = None


@frozen
class Plan:
    """
    @ivar steps: what to do now, in no order.
    @ivar look: when to plan again even if nothing happens; infinity for never.
    """

    steps: tuple[Step, ...] = ()
    look: float = inf


def rank(address: Address, agent: str, others: Iterable[str]) -> int:
    """
    How many agents come before this one for an address, by rendezvous hashing: every agent ranks all the same, and when
    one goes, the addresses for which it came first spread evenly over the others.
    """
    own = _weight(address, agent)
    return sum(_weight(address, other) > own for other in others if other != agent)


@lru_cache(2**17)
def _weight(address: Address, agent: str) -> bytes:
    return blake2b(address.packed + agent.encode(), digest_size=8).digest()


def plan(situation: Situation, terms: Terms) -> Plan:
    """What to do now, and when to look again."""
    return _Planner(situation, terms).plan()


class _Planner:
    """
    One plan in the making. Each method plans one concern and notes when it wants to look again.

    There may be thousands of addresses, of which mostly nothing is to be said. So what concerns all of them is decided
    by sets, and one by one come only those for which there may be something to do.
    """

    def __init__(self, situation: Situation, terms: Terms) -> None:
        self.see = situation
        self.terms = terms
        self.now = situation.now
        self.look = inf
        self.assigned: Mapping[Address, float] = situation.host.assigned if situation.host else {}
        self.there = set(self.assigned)
        self.wanted = set(situation.wanted or ())
        self.asked = {subject.address for subject in situation.busy if isinstance(subject, ClaimTo)}
        self.resting = {s.address: until for s, until in situation.rests.items() if isinstance(s, ClaimTo)}
        self.live = self._live_holds()
        self.holders = self._holders()
        own = terms.id
        self.mine = {a for a, holder in self.holders.items() if holder == own}
        self.where: Mapping[Address, str] = situation.host.where if situation.host else {}
        self.up = {name for name, link in situation.host.links.items() if link.ready} if situation.host else set()
        self.all_up = bool(self.up) and situation.wanted is not None and self.up.issuperset(situation.places.values())
        places = {*self.where.values(), *situation.places.values()}
        self.misplaced = {a for a in self.there if self._is_misplaced(a)} if len(places) > 1 else set()
        self.recorded = situation.admitted is not None and self.now < situation.recorded_until
        self.agents = {**situation.recalled, **(situation.claims.agents if situation.claims else {})}
        self.leaving = {agent for agent, record in self.agents.items() if record.leaving or record.standby}
        self.staying = self.agents.keys() - self.leaving - situation.gave_up
        self.elsewhere = {
            agent
            for agent in self.staying - {terms.id}
            if self.agents[agent].networks not in (None, situation.networks)
        }
        self.going = situation.draining or situation.unfit
        self.handing_over = self._is_handing_over()
        self.not_yet = self._waiting_for_their_turn()
        self.adopting = {a for a in situation.adoptable if a not in self.live and self._may_adopt(a)}
        self.kept = self._kept()
        self.claims_to_ask = TRIES_IN_TROUBLE - len(self.asked) if situation.store_troubled else inf

    def _live_holds(self) -> Mapping[Address, Hold]:
        holds = self.see.holds
        if holds and self._is_ahead(self.terms.hold_ends(min(holds.values(), key=_sent))):
            return holds
        return {a: hold for a, hold in holds.items() if self._is_ahead(self.terms.hold_ends(hold))}

    def _holders(self) -> Mapping[Address, str]:
        known = self.see.claims.holders if self.see.claims else {}
        if not self.see.heard:
            return known
        return {a: holder for a, holder in {**known, **self.see.heard}.items() if holder is not None}

    def _kept(self) -> set[Address]:
        """What is held and stays where it is, or comes there."""
        kept = set(self.live)
        if self.see.wanted is not None:
            kept &= self.wanted
        if self.going or self.see.eligible or not self.all_up:
            kept = {a for a in kept if self._is_wanted_here(a)}
        return kept - {a for a in kept - self.there if self._is_given_up(a)} - set(self.see.foreign)

    def plan(self) -> Plan:
        claiming = (*self._renewals(), *self._releases(), *self._acquisitions())
        trying = {step.address for step in claiming if isinstance(step, Acquire)} | self._tried_for()
        # What is assigned is announced before anything else is done in the same thread.
        provisioning = (
            *self._announcements(),
            *self._addresses(),
            *self._firewall(trying),
            *self._probes(trying),
        )
        return Plan((*self._record(claiming), *provisioning, *claiming), self.look)

    def _is_ahead(self, moment: float) -> bool:
        """Whether a moment is still to come; if so, it is one to look at again."""
        if moment > self.now:
            self.look = min(self.look, moment)
            return True
        return False

    def _is_available(self, subject: Subject) -> bool:
        """Whether a step may work on something: no other one does, and it is not resting from a failure."""
        return subject not in self.see.busy and not self._is_ahead(self.see.rests.get(subject, -inf))

    def _may_ask_about(self, address: Address) -> bool:
        """Whether a step may ask the store about a claim now. If so, count it as asked about."""
        if self.claims_to_ask < 1 or address in self.asked:
            return False
        if address in self.resting and self._is_ahead(self.resting[address]):
            return False
        self.claims_to_ask -= 1
        return True

    def _is_wanted_here(self, address: Address) -> bool:
        """Whether this agent would carry an address that it holds. Services that are not known want what they did."""
        if self.going and address not in self.not_yet:
            return False
        is_wanted = self.see.wanted is None or address in self.see.wanted
        return is_wanted and self._is_up(address) and self._is_eligible(address)

    def _place(self, address: Address) -> str:
        """The interface that an address goes to, or is on while that is not known."""
        return self.see.places.get(address) or self.where.get(address, "")

    def _is_up(self, address: Address) -> bool:
        """Whether the interface of an address is ready."""
        place = self._place(address)
        return place in self.up if place else bool(self.up)

    def _is_misplaced(self, address: Address) -> bool:
        """Whether an address is on an interface that it does not go to (any more)."""
        place = self.see.places.get(address)
        return place is not None and self.where.get(address, place) != place

    def _is_eligible(self, address: Address) -> bool:
        """Whether this agent's Node may carry an address, as far as is known. See Note [Eligible]."""
        nodes = self.see.eligible.get(address)
        return nodes is None or self.terms.record.node_name in nodes

    def _candidates(self, address: Address) -> AbstractSet[str]:
        """The agents that would carry an address. See Note [Eligible]."""
        nodes = self.see.eligible.get(address)
        if nodes is None and not self.elsewhere:
            return self.staying
        return {
            agent
            for agent in self.staying
            if (nodes is None or self.agents[agent].node_name in nodes)
            and (agent not in self.elsewhere or self.agents[agent].reaches(address))
        }

    def _is_moving(self, address: Address, holder: str) -> bool:
        """Whether an agent that has the claim to an address is about to give it back."""
        if holder in self.leaving:
            return True
        nodes = self.see.eligible.get(address)
        return nodes is not None and holder in self.agents and self.agents[holder].node_name not in nodes

    def _is_handing_over(self) -> bool:
        """Whether this agent is going and others are ready to have what it carries. See Note [Handing over]."""
        return (
            self.going
            and not self.see.store_troubled
            and bool(self.staying - {self.terms.id})
            and self._is_ahead(self.see.going_since + LONGEST_HAND_OVER)
        )

    def _waiting_for_their_turn(self) -> AbstractSet[Address]:
        """What an agent that is going still carries. See Note [Handing over]."""
        if not self.handing_over:
            return frozenset()
        carried = self.live.keys() & self.assigned.keys()
        last = self.see.recorded
        if last is not None and (last.record.leaving or last.record.standby):
            prepared = last.since + TIME_TO_PREPARE
        else:
            prepared = self.see.going_since + LONGEST_PREPARATION
        if self._is_ahead(prepared):
            return carried
        going = len(self.live) - len(carried) + self._asked_about_what_is_not_held()
        # What is being renewed could not be released at once.
        can_go = in_order(carried - self.asked)
        together = max(HAND_OVER_TOGETHER, len(self.live) // HAND_OVER_PART)
        return carried.difference(can_go[: max(0, together - going)])

    def _asked_about_what_is_not_held(self) -> int:
        return len(self.asked - set(self.live))

    def _is_given_up(self, address: Address) -> bool:
        """Whether an address that is held cannot be put up here, or is another machine's."""
        if address in self.assigned or address in self.see.foreign:
            return address in self.see.foreign
        return self.see.failures.get(AssignmentOf(address), 0) >= TRIES_TO_PROVISION or self._cannot_provision()

    def _cannot_provision(self) -> bool:
        """
        Whether nothing can be put up here. The firewall is tried again all the time, but the neighbours are asked again
        only when there is something to ask.
        """
        failures, rests = self.see.failures, self.see.rests
        cannot_ask = failures.get(PROBES, 0) >= TRIES_TO_PROVISION and self._is_ahead(rests.get(PROBES, -inf))
        return cannot_ask or failures.get(FIREWALL, 0) >= TRIES_TO_PROVISION

    def _may_adopt(self, address: Address) -> bool:
        """
        Whether to wait for word on an address of an earlier life: it may be ours still, and the kernel removes it in
        time if it is not.
        """
        if (
            not self._is_wanted_here_or_unknown(address)
            or not self.assigned.get(address, inf) <= self.now + self.terms.ttl
        ):
            return False
        return self.see.claims is None or self.holders.get(address) == self.terms.id

    def _is_wanted_here_or_unknown(self, address: Address) -> bool:
        if self.see.draining or (self.see.unfit and not self.handing_over):
            return False
        return (self.see.wanted is None or address in self.see.wanted) and self._is_eligible(address)

    def _record(self, claiming: Sequence[Step]) -> Iterable[Step]:
        """
        A leaving agent says so first, so that others do not wait for it, and keeps its id until it has taken everything
        back: whoever has the id next would take what is left for its own.

        What the record has to say may change while the store does not answer, and then nobody knows what it has as this
        agent's record: it replaces what the watch tells of, or else what was confirmed last.
        """
        see, own = self.see, evolve(self.terms.record, standby=self.see.unfit, networks=self.see.networks)
        if not self._is_available(RECORD):
            return
        last = see.recorded.record if see.recorded is not None else own
        if see.draining and see.registered:
            if not (claiming or self.asked or self.live or self.assigned or see.host is None):
                yield Deregister(last)
            elif not last.leaving:
                yield Register(evolve(own, leaving=True, standby=False), last)
        elif not see.draining and see.registration_due and see.claims is not None and see.host is not None:
            # A store that was restored from a backup may know an earlier life of this agent.
            there = see.claims.agents.get(self.terms.id)
            is_another = there is not None and there.place != own.place
            if see.admitted is not None or not (self._is_ahead(see.wary_until) or is_another):
                before = (there, last, evolve(own, standby=not own.standby))
                replaced = next((each for each in before if each not in (None, own)), None)
                yield Register(own, None if is_another else replaced)

    def _addresses(self) -> Iterable[Step]:
        see = self.see
        if not self._is_available(ADDRESSES):
            return
        leaving = (self.there - self.kept - self.adopting) | self.misplaced
        away = frozenset(a for a in leaving if self._is_available(AssignmentOf(a)))
        if away:
            yield Unassign(away)
        elif not self._is_all_as_it_should_be() and (assignments := self._assignments()):
            yield Assign(assignments)
        elif see.host is None or see.host_unsure or (see.host_stale and not self._is_ahead(see.looked + LOOK_INTERVAL)):
            yield LookAtHost()

    def _is_all_as_it_should_be(self) -> bool:
        """Whether no address is to be written, as far as can be told of all of them at once."""
        see = self.see
        if not (self.kept <= self.there and self.kept <= set(see.extended)):
            return False
        if not self.kept:
            return True
        expires, asked_for = self.assigned.values(), see.extended.values()
        newest, oldest = (self._ends_of(which(self.live.values(), key=_sent)) for which in (max, min))
        is_extended = newest <= min(asked_for)
        return is_extended and max(expires) <= oldest + LATER and min(expires) >= max(asked_for) - EARLIER

    def _assignments(self) -> frozenset[Assignment]:
        """What to write of all that may be written. See Note [Written together]."""
        due = [a for a in self._due_for_writing() if self._is_writable(a) and self._is_available(AssignmentOf(a))]
        if not due:
            return frozenset()
        written = self.see.written
        missing = [a for a in due if a not in self.assigned]
        if written is not None and len(self.there) + len(missing) > self.terms.few:
            ends = written.ends - ALONE_ENDS_BEFORE
            is_long_enough = ends - self.now >= SHORTEST_ALONE and all(self._ends(a) >= written.ends for a in missing)
            if is_long_enough and self._is_ahead(written.at + ALL_AGAIN):
                return frozenset(Assignment(a, ends, self._place(a)) for a in missing)
        return frozenset(Assignment(a, self._ends(a), self._place(a)) for a in self.kept if self._is_writable(a))

    def _due_for_writing(self) -> list[Address]:
        """Addresses that the kernel should be told to keep, or to keep for longer, or not so long."""
        see, due = self.see, []
        ends_of = {sent: self._ends_of(hold) for sent, hold in {hold.sent: hold for hold in self.live.values()}.items()}
        for address in self.kept:
            ends, expires = ends_of[self.live[address].sent], self.assigned.get(address)
            asked_for = see.extended.get(address, -inf)
            if expires is None or expires > ends + LATER or expires < asked_for - EARLIER:
                # It is missing, or somebody changed the lifetime by hand.
                due.append(address)
            elif ends > asked_for and not (see.renewals_due and self._is_ahead(asked_for - self.terms.ttl / 2)):
                due.append(address)
        return due

    def _is_writable(self, address: Address) -> bool:
        return self._is_marked(address) and not self._is_new(address) and self._ends(address) - self.now >= 1

    def _is_new(self, address: Address) -> bool:
        """Whether the neighbours must be asked before an address is assigned."""
        return address in self.see.new and address not in self.assigned and self.terms.probe_wait > 0

    def _probes(self, trying: AbstractSet[Address]) -> Iterable[Step]:
        """
        The answer is needed before an address is assigned, and may be waited for while it is claimed, by the agent that
        mostly gets the claim: others of its fleet would disturb it. See Note [Two who ask].
        """
        contested = self.see.contested
        hopeful = {a for a in trying if not rank(a, self.terms.id, self._candidates(a))}
        asked = frozenset(
            Placement(a, self._place(a))
            for a in set(self.see.new).intersection(self.kept | hopeful)
            if self._is_new(a) and self._is_up(a) and not self._is_ahead(contested.get(a, -inf))
        )
        if asked and not self.going and self._is_available(PROBES):
            yield Probe(asked, self.terms.probe_wait)

    def _is_marked(self, address: Address) -> bool:
        if self.see.wanted is None:
            return address in self.assigned
        return self.see.marks is not None and self.see.wanted[address] <= self.see.marks

    def _ends(self, address: Address) -> float:
        """Until when an address that is kept may be assigned."""
        return self._ends_of(self.live[address])

    def _ends_of(self, hold: Hold) -> float:
        return self.terms.assignment_ends(hold, len(self.kept))

    def _tried_for(self) -> AbstractSet[Address]:
        """Addresses that are being claimed right now."""
        wanted = self.see.wanted or {}
        # The watch may tell of a claim that was won before the answer does.
        return {
            a for a in self.asked if a in wanted and a not in self.live and self.holders.get(a) in (None, self.terms.id)
        }

    def _firewall(self, trying: AbstractSet[Address]) -> Iterable[Step]:
        """
        Marks do nothing where the address is not, so those of an address that is being claimed may be set meanwhile,
        or before that (Note [Handing over]); but not over and over while the store does not answer. They stay as long
        as the address may be there.
        """
        see = self.see
        if not self._is_available(FIREWALL):
            return
        if self.handing_over and (self.live or self._asked_about_what_is_not_held()):
            return
        there = self.there | see.assigning
        if see.draining:
            if not (see.unmarked or there):
                yield Unmark()
        elif see.marks_stale:
            yield LookAtMarks()
        elif see.wanted is not None:
            marked = self.kept | self.adopting
            if not (see.store_troubled or self.going):
                marked |= trying | self._about_to_be_free()
            due: frozenset[Mark] = frozenset().union(*(see.wanted[a] for a in marked & self.wanted))
            if going := there - marked:
                due |= frozenset(mark for mark in see.marks or () if mark.address in going)
            if due != see.marks:
                yield MarkTraffic(due)

    def _about_to_be_free(self) -> AbstractSet[Address]:
        """What agents are about to give back, and what this one will be the first to try for."""
        see = self.see
        if not (self.leaving or see.eligible) or see.admitted is None:
            return frozenset()
        return {
            a
            for a, holder in self.holders.items()
            if self._is_moving(a, holder)
            and a in (see.wanted or ())
            and self._may_try_for(a)
            and not rank(a, self.terms.id, self._candidates(a))
        }

    def _may_try_for(self, address: Address) -> bool:
        return address not in self.see.undecided and self._is_eligible(address) and self._is_up(address)

    def _announcements(self) -> Iterable[Step]:
        if not self._is_available(NEIGHBOURS):
            return
        announced = self.see.announced
        due = (self.kept & self.there) - self.misplaced
        if not due:
            return
        if announced and self._is_ahead(min(announced.values(), key=_next).next):
            due -= set(announced)
        due = {a for a in due if a not in announced or not self._is_ahead(announced[a].next)}
        if due:
            yield Announce(frozenset(Assignment(a, self.terms.hold_ends(self.live[a]), self._place(a)) for a in due))

    def _renewals(self) -> Iterable[Step]:
        if self.see.admitted is None:
            return
        doubtful = self.kept - self.mine if self.see.claims is not None else set()
        soon = {a for a in self.kept.intersection(self.see.renewals_due) if self._is_due_soon(a)}
        due = sorted(in_order(soon | doubtful), key=lambda address: self.live[address].sent)
        if self.recorded:
            due += [
                a
                for a in in_order(self.mine - set(self.live))
                if a in self.adopting or (self.see.wanted is not None and self._is_wanted_here(a) and self._is_safe(a))
            ]
        free = (a for a in due if self._may_ask_about(a))
        while together := frozenset(islice(free, RENEW_TOGETHER)):
            yield Renew(together)

    def _is_due_soon(self, address: Address) -> bool:
        """Whether a claim must be confirmed now: not where it is given back long before it ends."""
        given_back = self.see.going_since + LONGEST_HAND_OVER
        return not self.handing_over or self.terms.hold_ends(self.live[address]) < given_back

    def _is_safe(self, address: Address) -> bool:
        """Whether no other agent may still carry an address whose claim the store has lost."""
        return address in self.see.own or not self._is_ahead(self.see.wary_until)

    def _releases(self) -> Iterable[Step]:
        see = self.see
        if see.host is None or see.host_unsure or ADDRESSES in see.busy or see.admitted is None:
            return
        done = set(self.live)
        if self.recorded and (see.wanted is not None or self.going):
            done |= {a for a in self.mine - self.kept if not self._is_wanted_here(a)}
        for address in in_order(done - self.kept - self.adopting - self.there):
            if self._may_ask_about(address):
                yield Release(address)

    def _acquisitions(self) -> Iterable[Step]:
        see = self.see
        if see.admitted is None or see.wanted is None or see.claims is None:
            return
        if self.going or not (self.recorded and self.up):
            return
        began = max(see.admitted, see.fit_since)
        settled = min(max(began, see.newest_agent) + SETTLING, began + LONGEST_SETTLING)
        if self._is_ahead(settled):
            return
        if self._cannot_provision():
            return
        unclaimed = self.wanted - set(self.live) - set(self.holders) - self.there - set(see.foreign)
        free = [a for a in see.wanted if a in unclaimed and self._may_try_for(a)] if unclaimed else []
        if not free:
            return
        fair = self._fair_share(self.wanted)
        carried = len(self.live) + self._asked_about_what_is_not_held()
        moving = self.leaving or see.eligible
        soon_free = sum(self._is_moving(*claim) for claim in self.holders.items()) if moving else 0
        stagger = STAGGER + STAGGER_OF_EACH * max(0, len(free) + soon_free - 1)
        for address in free:
            if address in self.asked or not self._is_safe(address):
                continue
            candidates = self._candidates(address)
            before = rank(address, self.terms.id, candidates)
            if carried >= fair:
                before += len(candidates - {self.terms.id}) * OVER_SHARE
            turn = max(see.free_since.get(address, self.now), settled) + before * stagger
            if not self._is_ahead(turn) and self._may_ask_about(address):
                carried += 1
                yield Acquire(address)

    def _fair_share(self, wanted: AbstractSet[Address]) -> int:
        """How many addresses this agent takes before it lets the others go first: its part of each one, and more."""
        others = len(self.staying - {self.terms.id})
        restricted = wanted if self.elsewhere else wanted & self.see.eligible.keys()
        part = (len(wanted) - len(restricted)) / (others + 1)
        part += sum(1 / (len(self._candidates(a) - {self.terms.id}) + 1) for a in restricted if self._may_try_for(a))
        return ceil(part * FAIR_SHARE) + 1
