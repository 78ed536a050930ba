"""The loop: gather what is known, plan, perform, remember what came of it, and sleep until there is reason to wake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import singledispatchmethod
from math import inf
from operator import attrgetter
from typing import Any

from attrs import define, evolve, field, frozen
from effect import Effect
from twisted.application.service import Service as TwistedService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from .backoff import BackoffPolicy
from .claims.interface import Granted, Lost, Released, Taken, Unavailable
from .logs import logger, printable
from .model import (
    CLOCK_DRIFT,
    Address,
    AgentRecord,
    Assignment,
    Claims,
    Cluster,
    Configured,
    Hold,
    Host,
    Link,
    Mark,
    Network,
    in_order,
    order,
)
from .network.interface import Assigned, NetworkError, Probed, Unassigned
from .planning import FRESH, LONGEST_SETTLING, QUIET_LASTS, Announced, Plan, Recorded, Situation, Terms, Written, plan
from .selection import Attachment, Reach, Refusal, Selection, Selector, reach
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

ANNOUNCEMENT_GAPS = (0.2, 0.8, 1.5, 2.5)
"""Seconds between the first rounds of announcements."""

ANNOUNCEMENT_INTERVAL = 60.0
"""
Seconds between the later rounds, give or take a tenth. All addresses have their rounds together, and so the first of
these may come sooner.
"""

BEATS_TO_A_LOOK = 3
"""Heartbeats from one look at the host to the next, where nothing is said to have changed."""

REST_OF_GIVEN_UP = 30.0
"""Seconds for which an agent leaves an address to the others that it could not put up itself."""

LONGEST_WAIT_FOR_STORE = 0.5
"""Seconds between tries while something is wanted of the store: until it answers, nothing is carried."""

REST_OF_TAKEN = 0.1
"""Seconds until an agent tries again for an address that was taken although nobody was seen to have it."""

REFUSED_AGAIN = 60.0
"""Seconds within which a wish that is granted and refused by turns is not called refused once more."""


TWIN_PATIENCE = 2.0
"""
Seconds more than a TTL, as slow clocks count it, for which the record of another agent with this agent's id must last
to be of one alive.
"""

TIME_TO_BE_REFUSED, TIME_TO_GIVE_WAY = 1.0, FRESH + 2.0
"""
Seconds within which an agent that claims an address hears that a stranger has it, and gives the claim back; and within
which it does so because a stranger took it at the same time.
"""

DEFENCE_INTERVAL = 10.0
"""Seconds between answers to a machine that says that it has an address of ours (RFC 5227, section 2.4)."""

SHORT_PASS = 0.01
"""Seconds that a pass may take after which the loop need not rest. After a longer one, it rests for the difference."""

TIME_TO_YIELD = 0.5
"""Seconds in which a machine that has taken a fresh address of ours hears our answer and gives it up, if it does."""

SILENCE, LONGEST_SILENCE = 4, 32
"""Rounds of questions that an agent leaves out, at the most, when others asked as well: at first, and at last."""

TIME_TO_TAKE_OVER = 2.0
"""Seconds for which an agent that has given up a claim counts as one that cannot carry what is free."""

NAMESAKE = "another agent with this agent's id"
"""Who holds what is held in the name of this agent, but not by it. No agent has such an id."""

HEARSAY = 1.0
"""Seconds for which an answer about one address counts more than what the watch tells, unless the watch has news."""


@frozen
class _Heard:
    """What the store answered about one address: who has the claim, C{None} for nobody, and when it said so."""

    holder: str | None
    at: float


@frozen
class _Contest:
    """How many rounds of questions for an address, in a row, were not quiet, and when the next one may be."""

    rounds: int
    next: float


@frozen
class _Foreign:
    """A machine that has an address, and until when that is believed."""

    mac: bytes
    until: float


def _takes_part(claims: Claims) -> set[str]:
    """The agents that carry what is theirs to carry."""
    return {agent for agent, record in claims.agents.items() if not record.standby}


@define(eq=False)
class Converger(TwistedService):
    """
    Makes what is so what should be so, for one agent.

    @ivar perform: performs an Effect on the reactor.
    @ivar attachments: the interfaces that addresses go to.
    @ivar ranges: the addresses that may be taken; where it is empty, that is for the interfaces to say.
    @ivar refused: told why, once, when this agent must not run: another one has its id.
    """

    terms: Terms
    attachments: Sequence[Attachment]
    ranges: Sequence[Network]
    clock: IReactorTime
    perform: Callable[[Effect], Deferred[Any]]
    backoff: BackoffPolicy
    refused: Callable[[str], None]

    _cluster: Cluster | None = field(default=None, init=False)
    _selector: Selector = field(factory=Selector, init=False)
    _selection: Selection | None = field(default=None, init=False)
    _selected_for: tuple[object, ...] = field(default=(None, None, None), init=False)
    _reach: Reach | None = field(default=None, init=False)
    _networks: tuple[Network, ...] | None = field(default=None, init=False)
    _told_refused: dict[Refusal, float] = field(factory=dict, init=False)
    _claims: Claims | None = field(default=None, init=False)
    _heard: dict[Address, _Heard] = field(factory=dict, init=False)
    _holds: dict[Address, Hold] = field(factory=dict, init=False)
    _renewals_due: set[Address] = field(factory=set, init=False)
    _host: Host | None = field(default=None, init=False)
    _looked: float = field(default=-inf, init=False)
    _host_stale: bool = field(default=False, init=False)
    _host_unsure: bool = field(default=False, init=False)
    _assigning: frozenset[Address] = field(default=frozenset(), init=False)
    _adoptable: set[Address] = field(factory=set, init=False)
    _extended: dict[Address, float] = field(factory=dict, init=False)
    _written: Written | None = field(default=None, init=False)
    _marks: frozenset[Mark] | None = field(default=None, init=False)
    _marks_stale: bool = field(default=True, init=False)
    _announced: dict[Address, Announced] = field(factory=dict, init=False)
    _all_announced_at: float = field(default=-inf, init=False)
    _beats: int = field(default=0, init=False)
    _beat_at: float = field(default=-inf, init=False)
    _wary_until: float = field(default=-inf, init=False)
    _own: AbstractSet[Address] = field(default=frozenset(), init=False)
    _dropped: dict[Address, float] = field(factory=dict, init=False)
    _carried: dict[Address, tuple[str, float]] = field(factory=dict, init=False)
    _clear: set[Address] = field(factory=set, init=False)
    _quiet: dict[Address, float] = field(factory=dict, init=False)
    _contests: dict[Address, _Contest] = field(factory=dict, init=False)
    _fresh: dict[Address, float] = field(factory=dict, init=False)
    _foreign: dict[Address, _Foreign] = field(factory=dict, init=False)
    _defended: dict[Address, float] = field(factory=dict, init=False)
    _free_since: dict[Address, float] = field(factory=dict, init=False)
    _registration_due: bool = field(default=True, init=False)
    _registered: bool = field(default=False, init=False)
    _recorded: Recorded | None = field(default=None, init=False)
    _session: str = field(default="", init=False)
    _admitted: float | None = field(default=None, init=False)
    _recorded_at: float = field(default=-inf, init=False)
    _claimed_here: set[Address] = field(factory=set, init=False)
    _newest_agent: float = field(default=-inf, init=False)
    _known_until: dict[str, tuple[AgentRecord, float]] = field(factory=dict, init=False)
    _gave_up: dict[str, float] = field(factory=dict, init=False)
    _recalled: Mapping[str, AgentRecord] = field(factory=dict, init=False)
    _recalled_until: float = field(default=-inf, init=False)
    _is_refused: bool = field(default=False, init=False)
    _twin_until: float | None = field(default=None, init=False)
    _unmarked: bool = field(default=False, init=False)
    _busy: set[Subject] = field(factory=set, init=False)
    _failures: dict[Subject, int] = field(factory=dict, init=False)
    _rests: dict[Subject, float] = field(factory=dict, init=False)
    _store_trouble: bool = field(default=False, init=False)
    _draining: bool = field(default=False, init=False)
    _going_since: float = field(default=-inf, init=False)
    _fit_since: float = field(default=-inf, init=False)
    _drained: Deferred[None] = field(factory=Deferred, init=False)
    _next_pass: IDelayedCall | None = field(default=None, init=False)
    _rested_at: float = field(default=0.0, init=False)

    log = logger("kiwi")

    # What wakes it.

    def cluster_changed(self, cluster: Cluster) -> None:
        """This is what Kubernetes asks for now."""
        before, self._cluster = self._unfit, cluster
        if cluster.unfit != before:
            self._note_fitness(before)
        self._wake()

    @property
    def _unfit(self) -> str:
        return self._cluster.unfit if self._cluster is not None else ""

    def _note_fitness(self, before: str) -> None:
        """See Note [Handing over] in L{kiwi.planning}."""
        if self._unfit:
            self.log.warn("{agent}: carries nothing for now: {reason}", agent=self.terms.id, reason=self._unfit)
        else:
            self.log.info("{agent}: may carry addresses again", agent=self.terms.id)
        if bool(self._unfit) != bool(before):
            now = self.clock.seconds()
            if not self._unfit:
                self._fit_since = now
            elif not self._draining:
                self._going_since = now
            self._registration_due = True

    def claims_changed(self, claims: Claims) -> None:
        """This is what the claim store knows now."""
        claims = self._tell_namesakes_apart(claims)
        before = self._claims.holders if self._claims else {}
        gone = set(before) - set(claims.holders)
        changed = gone.union(address for address, holder in claims.holders.items() if before.get(address) != holder)
        # The watch may be behind an answer: news about other addresses do not take that back.
        self._heard = {
            address: heard
            for address, heard in self._heard.items()
            if address not in changed and before.get(address) != heard.holder
        }
        now = self.clock.seconds()
        self._note_who_carries(claims, changed if self._carried else set(claims.holders), now)
        known = {a: known for a, known in self._known_until.items() if now < known[1] + self.terms.ttl}
        self._known_until = known | {a: (record, now) for a, record in (self._claims or Claims()).agents.items()}
        self._note_who_gave_up(claims, gone, now)
        if self._claims is None or _takes_part(claims) - _takes_part(self._claims):
            self._newest_agent = now
        self._note_loss(claims, now)
        self._claims = claims
        self._wake()

    def _note_who_carries(self, claims: Claims, changed: AbstractSet[Address], now: float) -> None:
        """What another agent has carried is no stranger's: a takeover asks nobody. See Note [Two who ask]."""
        stays = {agent for agent in _takes_part(claims) if not claims.agents[agent].leaving}
        for address in changed:
            holder = claims.holders.get(address)
            carrier, since = self._carried.get(address, (None, now))
            if carrier is not None and carrier != holder:
                del self._carried[address]
                if now - since >= (TIME_TO_GIVE_WAY if carrier in stays else TIME_TO_BE_REFUSED):
                    self._clear.add(address)
            if holder not in (None, self.terms.id):
                self._carried.setdefault(address, (holder, now))
        mine = (None, self.terms.id)
        self._quiet = {a: until for a, until in self._quiet.items() if claims.holders.get(a) in mine}

    def _note_loss(self, claims: Claims, now: float) -> None:
        """
        When the store has lost its data, whoever carried an address may do so until a TTL later. What is held here may
        be claimed at once.
        """
        before = self._claims or Claims()
        is_lost = (claims.lost and not before.lost) or claims.losses != before.losses
        if is_lost:
            held = self._holds.keys() | {a for a, until in self._dropped.items() if now < until}
            self._own = held | (self._own if now < self._wary_until else frozenset())
            self._wary_until = now + self.terms.ttl
        if is_lost or (self.terms.id in before.agents and self.terms.id not in claims.agents):
            self._doubt_record()
        if self._dropped or now < self._wary_until:
            self._disown({address for address, holder in claims.holders.items() if holder != self.terms.id})

    def _tell_namesakes_apart(self, claims: Claims) -> Claims:
        """See Note [One agent of a name] in L{kiwi.planning}."""
        own, there = self.terms.record, claims.agents.get(self.terms.id)
        held = {address for address, holder in claims.holders.items() if holder == own.id}
        if there is not None and there.place == own.place and there.instance != own.instance:
            self._claimed_here |= held
        others = held - self._claimed_here
        return evolve(claims, holders={**claims.holders, **dict.fromkeys(others, NAMESAKE)}) if others else claims

    def _disown(self, addresses: AbstractSet[Address]) -> None:
        """Another agent has these, or may have them now, whatever the store forgets."""
        self._dropped = {address: until for address, until in self._dropped.items() if address not in addresses}
        self._own = self._own - addresses

    def _doubt_record(self) -> None:
        """The store was heard of, and may have no record of this agent any more."""
        self._recorded_at = -inf
        self._rests.pop(RECORD, None)
        self._registration_due = True

    def _recall_agents(self) -> None:
        """
        When a store that was away comes back, the records of all agents have ended, and each one that is alive would
        think itself alone. Those that were known when this agent's own record was still there are as alive as it is.
        """
        self._clear.clear()
        self._carried.clear()
        known = {agent: record for agent, (record, _) in self._known_until.items()}
        known |= self._claims.agents if self._claims else {}
        known.pop(self.terms.id, None)
        self._recalled, self._recalled_until = known, self.clock.seconds() + LONGEST_SETTLING

    def _note_who_gave_up(self, claims: Claims, gone: AbstractSet[Address], now: float) -> None:
        """
        An agent that gives up a claim to what it may still carry, or lets it end, cannot carry anything at the moment,
        or is dead and its record ends later. The others share without it.
        """
        selection = self._selection or Selection()
        holders = self._claims.holders if self._claims else {}
        for address in gone:
            record = claims.agents.get(holders[address])
            if address in selection.wanted and record is not None:
                nodes = selection.eligible.get(address)
                if (nodes is None or record.node_name in nodes) and record.reaches(address):
                    self._gave_up[record.id] = now + TIME_TO_TAKE_OVER

    def host_changed(self) -> None:
        """Something about the host's addresses or links changed."""
        self._host_stale = True
        self._wake()

    def neighbour_heard(self, address: Address, mac: bytes, interface: str) -> None:
        """
        A machine on the link of an interface says that it has an address. See Note [Two who ask] in L{kiwi.planning}.
        """
        if self._selection is not None and self._selection.places.get(address, interface) != interface:
            return
        now = self.clock.seconds()
        self._quiet.pop(address, None)
        if self._host is None or self._host.where.get(address) != interface or address in self._foreign:
            return
        own = self._host.links[interface].mac if interface in self._host.links else b""
        fresh, defended = now < self._fresh.get(address, -inf), self._defended.get(address, -inf)
        if fresh and (own < mac or TIME_TO_YIELD <= now - defended < DEFENCE_INTERVAL):
            self._give_way(address, mac)
        elif now - defended >= DEFENCE_INTERVAL:
            self._defended[address] = now
            if fresh:
                self._fresh[address] = now + FRESH
            self._announced.pop(address, None)
            self.log.error(
                "{address}: another machine, with the MAC address {mac}, says that it has this address too; "
                "announcing anew",
                address=address,
                mac=mac.hex(":"),
            )
            self._wake()

    def _give_way(self, address: Address, mac: bytes) -> None:
        seconds = self.terms.ttl * self.backoff.uniform(0.8, 1.2)
        self._foreign[address] = _Foreign(mac, self.clock.seconds() + seconds)
        self.log.error(
            "{address}: giving it up to another machine, with the MAC address {mac}, which came to have it at the same "
            "moment: is that an agent with another claim store? Asking again in {seconds:.1f} s",
            address=address,
            mac=mac.hex(":"),
            seconds=seconds,
        )
        self._wake()

    def beat(self) -> None:
        """Time to confirm what is held, to be heard of, and to look whether the host is as it was left."""
        self._renewals_due.update(
            a for a, hold in self._holds.items() if not hold.session or hold.session != self._session
        )
        self._registration_due = True
        self._marks_stale = True
        self._beats += 1
        self._beat_at = self.clock.seconds()
        if self._beats % BEATS_TO_A_LOOK == 0:
            self._host_stale = True
        self._wake()

    def drain(self) -> Deferred[None]:
        """Take everything back, in order; fires when nothing is left."""
        if not self._draining:
            self._draining = True
            if not self._unfit:
                self._going_since = self.clock.seconds()
            self.log.info("{agent}: going; taking everything back", agent=self.terms.id)
            self._wake()
        return self._drained

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._wake()

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._next_pass is not None:
            self._next_pass.cancel()
            self._next_pass = None

    # The loop.

    def _wake(self) -> None:
        """Look soon. After a pass that took long the loop rests for a while, so that events may gather."""
        self._sleep(max(0.0, self._rested_at - self.clock.seconds()))

    def _sleep(self, seconds: float) -> None:
        if not self.running:
            return
        when = self.clock.seconds() + seconds
        if self._next_pass is None:
            self._next_pass = self.clock.callLater(seconds, self._pass)
        elif when < self._next_pass.getTime():
            self._next_pass.reset(seconds)

    def _pass(self) -> None:
        self._next_pass = None
        started = self.clock.seconds()
        made = Plan(look=started + 1.0)
        try:
            made = plan(self._gather(), self.terms)
        except Exception:  # noqa: BLE001 the loop outlives a mistake in one pass
            self.log.failure("planning failed; trying again in 1 s")
        for step in made.steps:
            self._do(step)
        now = self.clock.seconds()
        self._rested_at = now + max(0.0, now - started - SHORT_PASS)
        look = min(
            (
                made.look,
                self._twin_until or inf,
                *(heard.at + HEARSAY for heard in self._heard.values()),
                *(foreign.until for foreign in self._foreign.values()),
            )
        )
        if look < inf:
            self._sleep(max(0.0, look - now, self._rested_at - now))
        if self._draining and not (self._drained.called or made.steps or self._busy or self._is_left()):
            self._drained.callback(None)

    def _is_left(self) -> bool:
        """Whether an agent that is going has still something to take back."""
        assigned = self._host is None or self._host_unsure or bool(self._host.assigned)
        claims = self._claims.holders if self._claims else {}
        recorded = self.clock.seconds() < self.terms.record_ends(self._recorded_at)
        claimed = recorded and any(self._holder(a) == self.terms.id for a in (*claims, *self._heard))
        return assigned or bool(self._holds) or claimed or not self._unmarked or self._registered

    def _gather(self) -> Situation:
        now = self.clock.seconds()
        wanted = self._select()
        self._end_holds(now)
        self._watch_for_twin(now)
        self._heard = {address: heard for address, heard in self._heard.items() if now < heard.at + HEARSAY}
        heard = {address: heard.holder for address, heard in self._heard.items()}
        everything = set(wanted or ())
        if wanted is not None and self._claims is not None:
            claimed = (set(self._claims.holders) - set(heard)) | {a for a, holder in heard.items() if holder}
            free = self._may_try_for(everything) - set(self._holds) - claimed
            self._free_since = {a: self._free_since.get(a, now) for a in free}
            self._note_what_stays(now)
            self._clear &= everything
            self._quiet = {a: until for a, until in self._quiet.items() if now < until and a in wanted}
            mine = (None, self.terms.id)
            self._contests = {a: c for a, c in self._contests.items() if a in wanted and self._holder(a) in mine}
            self._dropped = {a: until for a, until in self._dropped.items() if now < until}
            self._foreign = {
                a: foreign
                for a, foreign in self._foreign.items()
                if now < foreign.until and a in wanted and a not in self._clear
            }
        return Situation(
            now=now,
            wanted=wanted,
            eligible=self._selection.eligible if self._selection else {},
            undecided=self._selection.undecided if self._selection else frozenset(),
            places=self._selection.places if self._selection else {},
            networks=self._networks,
            claims=self._claims,
            heard=heard,
            holds=self._holds,
            store_troubled=self._store_trouble,
            renewals_due=self._renewals_due,
            host=self._host,
            looked=self._looked,
            host_stale=self._host_stale,
            host_unsure=self._host_unsure,
            assigning=self._assigning,
            adoptable=self._adoptable,
            extended=self._extended,
            written=self._written,
            marks=self._marks,
            marks_stale=self._marks_stale,
            announced=self._announced,
            new=everything - self._clear - set(self._quiet) - set(self._foreign),
            contested={a: contest.next for a, contest in self._contests.items()},
            foreign=self._foreign.keys(),
            wary_until=self._wary_until,
            own=self._own,
            free_since=self._free_since,
            registration_due=self._registration_due,
            admitted=self._admitted,
            recorded_until=self.terms.record_ends(self._recorded_at),
            newest_agent=self._newest_agent,
            gave_up={a for a, until in self._gave_up.items() if now < until and a != self.terms.id},
            recalled=self._recalled if now < self._recalled_until else {},
            busy=self._busy,
            failures=self._failures,
            rests=self._rests,
            draining=self._draining,
            unfit=bool(self._unfit),
            going_since=self._going_since,
            fit_since=self._fit_since,
            unmarked=self._unmarked,
            registered=self._registered,
            recorded=self._recorded,
        )

    def _note_what_stays(self, now: float) -> None:
        """What is fresh no more is this agent's."""
        assigned = self._host.assigned if self._host else {}
        over = {a for a, until in self._fresh.items() if until <= now or a not in assigned}
        self._clear |= over & assigned.keys() & self._holds.keys()
        self._fresh = {a: until for a, until in self._fresh.items() if a not in over}

    def _select(self) -> Mapping[Address, frozenset[Mark]] | None:
        """The addresses that the Services may have; made anew only when what it rests on has changed."""
        if self._cluster is None or self._host is None or self._reach is None:
            return None
        services, endpoints = self._cluster.services, self._cluster.endpoints
        own = self._configured_by_others(self._host)
        rests_on = (own, self._host.gateways, self._reach)
        for_services, for_endpoints, for_host = self._selected_for
        if not (services is for_services and endpoints is for_endpoints and rests_on == for_host and self._selection):
            before, host = self._selection, evolve(self._host, own=own)
            self._selection = self._selector.select(services.values(), host, self._reach, endpoints)
            self._selected_for = (services, endpoints, rests_on)
            self._tell_refusals(self._selection.refusals, before.refusals if before else frozenset())
            self._tell_moves(self._selection, before)
        return self._selection.wanted

    def _configured_by_others(self, host: Host) -> frozenset[Configured]:
        """Where the kernel cannot tell, the claim does: what this agent has claimed, an earlier life put there."""
        if not host.unclear:
            return host.own
        return frozenset(c for c in host.own if c.ip not in host.unclear or self._holder(c.ip) != self.terms.id)

    def _tell_refusals(self, refusals: frozenset[Refusal], before: frozenset[Refusal]) -> None:
        now = self.clock.seconds()
        self._told_refused = {refusal: until for refusal, until in self._told_refused.items() if now < until}
        for refusal in sorted(refusals - before, key=lambda r: (r.service, str(r.address), r.reason)):
            tell = self.log.debug if refusal in self._told_refused else self.log.warn
            self._told_refused.setdefault(refusal, now + REFUSED_AGAIN)
            tell(
                "{address} of Service {service} is ignored: {reason}",
                address=refusal.address,
                service=refusal.service,
                reason=refusal.reason,
            )

    def _tell_moves(self, selection: Selection, before: Selection | None) -> None:
        """Why what is held here is given back, where other hosts may carry it."""
        node = self.terms.record.node_name
        for address in in_order(self._holds.keys() & selection.eligible.keys()):
            nodes, earlier = selection.eligible[address], before.eligible.get(address) if before else None
            if nodes and node not in nodes and (earlier is None or node in earlier):
                self.log.info(
                    "{address}: left to other hosts, for {services} has no ready endpoint on node {node}",
                    address=address,
                    services=self._services_of(address),
                    node=node,
                )

    def _may_try_for(self, wanted: AbstractSet[Address]) -> AbstractSet[Address]:
        """The wanted addresses that this agent would carry if nobody did."""
        if self._selection is None or self._unfit:
            return frozenset()
        node = self.terms.record.node_name
        elsewhere = {a for a, nodes in self._selection.eligible.items() if node not in nodes}
        return wanted - elsewhere - self._selection.undecided

    def _end_holds(self, now: float) -> None:
        holds = self._holds.values()
        if not holds or now < self.terms.hold_ends(min(holds, key=attrgetter("sent"))):
            return
        for hold in [hold for hold in holds if self.terms.hold_ends(hold) <= now]:
            del self._holds[hold.address]
            self._renewals_due.discard(hold.address)
            self.log.warn(
                "{address}: letting go, for the claim store has not confirmed the claim for {seconds:.1f} s",
                address=hold.address,
                seconds=now - hold.sent,
            )

    def _do(self, step: Step) -> None:
        subjects = frozenset(step.subjects)
        self._busy |= subjects
        self.log.debug("{step}", step=step)
        if isinstance(step, MarkTraffic) and self._marks is not None:
            # Until it is done, only this is a fact.
            self._marks &= step.marks
        elif isinstance(step, Assign):
            self._assigning = frozenset(assignment.address for assignment in step.assignments)
        elif isinstance(step, Acquire):
            self._claimed_here.add(step.address)
        elif isinstance(step, Release):
            # The store may carry it out at any moment from now on, whether or not it is heard to.
            self._holds.pop(step.address, None)
            self._renewals_due.discard(step.address)
            self._disown({step.address})

        def ended() -> None:
            self._busy -= subjects
            if isinstance(step, Assign):
                self._assigning = frozenset()

        def done(result: Any) -> None:
            ended()
            self._note(step, result)
            self._wake()

        def failed(failure: Failure) -> None:
            ended()
            if not failure.check(NetworkError):
                self.log.failure("{step} failed in a way that nobody thought of", failure, step=step)
            if ADDRESSES in subjects:
                self._host_unsure = True
            if FIREWALL in subjects:
                self._marks_stale = True
            for subject in subjects:
                self._failed(subject, failure.getErrorMessage())
            self._wake()

        self.perform(step.as_effect()).addCallbacks(done, failed).addErrback(
            lambda failure: self.log.failure("noting what came of {step} failed", failure, step=step)
        )

    # Success and failure.

    def _succeeded(self, subject: Subject) -> None:
        self._rests.pop(subject, None)
        if self._failures.pop(subject, 0) and not isinstance(subject, ClaimTo):
            self.log.info("{subject}: all is well again", subject=subject)

    def _failed(self, subject: Subject, reason: str) -> None:
        failures = self._failures[subject] = self._failures.get(subject, 0) + 1
        wait = self.backoff.wait(failures)
        self._rests[subject] = self.clock.seconds() + wait
        if failures == 1:
            self.log.error("{subject}: {reason}; trying again", subject=subject, reason=reason)
        else:
            self.log.debug("{subject}: {reason}; try {failures}", subject=subject, reason=reason, failures=failures)

    def _store_failed(self, subject: Subject, answer: Unavailable) -> None:
        """The store is one thing: it is said once that it fails, however many claims that concerns."""
        self._failures[subject] = self._failures.get(subject, 0) + 1
        wait = min(LONGEST_WAIT_FOR_STORE, self.backoff.wait(self._failures[subject]))
        self._rests[subject] = self.clock.seconds() + wait
        if not self._store_trouble:
            self._store_trouble = True
            self.log.error("the claim store does not answer: {reason}; trying again", reason=answer.reason)

    def _store_answered(self, subject: Subject) -> None:
        self._rests.pop(subject, None)
        self._failures.pop(subject, None)
        if self._store_trouble:
            self._store_trouble = False
            self.log.info("the claim store answers again")

    # What came of each step.

    @singledispatchmethod
    def _note(self, step: Step, result: Any) -> None:
        raise TypeError(f"nobody notes what comes of {step!r}")

    @_note.register
    def _note_acquire(self, step: Acquire, result: Granted | Taken | Unavailable) -> None:
        address, subject = step.address, ClaimTo(step.address)
        if isinstance(result, Unavailable):
            self._store_failed(subject, result)
            return
        tries = self._failures.get(subject, 0) + 1
        self._store_answered(subject)
        if isinstance(result, Granted):
            self._hear(address, self.terms.id)
            self._holds[address] = Hold(address, result.sent, self.clock.seconds(), result.session)
            self.log.info(
                "{address}: claimed for {services}", address=address, services=self._services_of(address) or "nobody"
            )
        elif result.holder:
            self._hear(address, result.holder)
            self.log.debug("{address}: {holder} was faster", address=address, holder=result.holder)
        else:
            # Mostly a matter of milliseconds. But it may also be something unreadable that is there for good.
            self._failures[subject] = tries
            self._rests[subject] = self.clock.seconds() + max(REST_OF_TAKEN, self.backoff.wait(tries))

    @_note.register
    def _note_renew(self, step: Renew, results: Mapping[Address, Granted | Lost | Unavailable]) -> None:
        for address in in_order(results):
            result, subject = results[address], ClaimTo(address)
            if isinstance(result, Unavailable):
                self._store_failed(subject, result)
                continue
            self._store_answered(subject)
            self._renewals_due.discard(address)
            self._adoptable.discard(address)
            held = self._holds.get(address)
            if isinstance(result, Lost):
                self._hear(address, None)
                if held is not None:
                    del self._holds[address]
                    self._dropped[address] = held.sent + self.terms.ttl
                    if self._recorded_at <= held.sent:
                        self._doubt_record()
                    self.log.warn("{address}: the claim is lost; letting go", address=address)
            elif held is None:
                self._hear(address, self.terms.id)
                self._clear.add(address)
                self._holds[address] = Hold(address, result.sent, self.clock.seconds(), result.session)
                self.log.info("{address}: the claim is this agent's already; adopted", address=address)
            else:
                if self._claims is not None and self._claims.holders.get(address) != self.terms.id:
                    self._hear(address, self.terms.id)
                if result.sent > held.sent or result.session != held.session:
                    sent = max(result.sent, held.sent)
                    self._holds[address] = evolve(held, sent=sent, session=result.session)

    @_note.register
    def _note_release(self, step: Release, result: Released | Unavailable) -> None:
        subject = ClaimTo(step.address)
        if isinstance(result, Unavailable):
            self._hear(step.address, self.terms.id)
            self._store_failed(subject, result)
            return
        self._store_answered(subject)
        self._hear(step.address, None)
        given_up = self._failures.pop(AssignmentOf(step.address), 0) or max(
            self._failures.get(FIREWALL, 0), self._failures.get(PROBES, 0)
        )
        if given_up:
            self._rests[subject] = self.clock.seconds() + REST_OF_GIVEN_UP
            self.log.warn("{address}: cannot be put up here; left to other agents", address=step.address)
        else:
            self.log.info("{address}: claim released", address=step.address)

    @_note.register
    def _note_register(self, step: Register, result: Granted | Taken | Unavailable) -> None:
        if isinstance(result, Unavailable):
            self._registered = True
            self._store_failed(RECORD, result)
            return
        self._store_answered(RECORD)
        if isinstance(result, Granted):
            # A heartbeat that came while it was under way is still to be sent.
            self._registration_due = step.record != self._own_record() or result.sent < self._beat_at
            self._registered = True
            if self._admitted is not None and self.terms.record_ends(self._recorded_at) <= result.sent:
                self._recall_agents()
            self._recorded_at = result.sent
            self._confirm(result)
            if self._recorded is None or self._recorded.record != step.record:
                self._recorded = Recorded(step.record, self.clock.seconds())
            if self._admitted is None:
                self._admitted = self.clock.seconds()
        elif step.record.leaving:
            # Somebody else has the id by now, or the record is gone: there is nothing to say any more.
            self._registered = False
        elif self._admitted is not None and not self._is_earlier_life(step.replacing):
            self._refuse("another agent has taken its id while its record in the claim store had ended")
        else:
            self._rests[RECORD] = self.clock.seconds() + REST_OF_TAKEN

    def _confirm(self, result: Granted) -> None:
        """A session is confirmed, and with it every hold that rests on it."""
        self._session = result.session
        for address, held in self._holds.items():
            if held.session and held.session == result.session and held.sent < result.sent:
                self._holds[address] = Hold(address, result.sent, held.since, held.session)

    def _own_record(self) -> AgentRecord:
        """What the store should have as this agent's record."""
        return evolve(self.terms.record, standby=bool(self._unfit), networks=self._networks)

    def _is_earlier_life(self, replaced: AgentRecord | None) -> bool:
        """
        Whether it may be an earlier life of this agent that has its id in the store, which knows no better: where the
        watch tells of one that was not yet to be replaced, or of nothing yet.
        """
        there = self._claims.agents.get(self.terms.id) if self._claims else None
        own = self.terms.record
        return there is None or (there.place == own.place and (there != replaced or there.instance == own.instance))

    def _watch_for_twin(self, now: float) -> None:
        """See Note [One agent of a name] in L{kiwi.planning}."""
        undecided = self._admitted is None and not self._is_refused
        there = self._claims.agents.get(self.terms.id) if undecided and self._claims else None
        if there is None or there.instance == self.terms.record.instance or there.place == self.terms.record.place:
            self._twin_until = None
        elif self._twin_until is None:
            self._twin_until = now + self.terms.ttl * (1 + 2 * CLOCK_DRIFT) + TWIN_PATIENCE
            self.log.warn(
                "an agent with the id {agent} is registered on host {host}; waiting {ttl} s for its record to end",
                agent=self.terms.id,
                host=printable(there.host),
                ttl=self.terms.ttl,
            )
        elif now >= self._twin_until:
            self._twin_until = None
            self._refuse(f"another agent with the id {self.terms.id!r} runs on host {printable(there.host)}")

    def _refuse(self, reason: str) -> None:
        if not self._is_refused:
            self._is_refused = True
            self.log.critical("{agent}: refusing to run: {reason}", agent=self.terms.id, reason=reason)
            self.refused(f"--agent-id: {reason}; give each agent an id of its own")

    @_note.register
    def _note_deregister(self, step: Deregister, result: Released | Unavailable) -> None:
        if isinstance(result, Unavailable):
            self._store_failed(RECORD, result)
        else:
            self._registered = False
            self._store_answered(RECORD)

    @_note.register
    def _note_host(self, step: LookAtHost, host: Host) -> None:
        before, self._host = self._host, host
        if self._reach is None or before is None or before.subnets != host.subnets:
            self._reach = reach(self.attachments, self.ranges, host.subnets)
        networks = self._reach.networks(name for name, link in host.links.items() if link.ready)
        if networks != self._networks:
            self._networks = networks
            self._registration_due = True
        self._host_stale = self._host_unsure = False
        self._looked = self.clock.seconds()
        self._succeeded(ADDRESSES)
        if before is None:
            self._adoptable = set(host.assigned)
            self._claimed_here |= host.assigned.keys()
            if self._claims is not None:
                holders = self._claims.holders
                earlier = {a: self.terms.id for a in host.assigned if holders.get(a) == NAMESAKE}
                self._claims = evolve(self._claims, holders={**holders, **earlier})
        for attachment in self.attachments:
            name = attachment.interface
            link = host.links.get(name)
            if before is None or before.links.get(name) != link:
                self._log_link(name, link)
                # Behind a carrier that has come back there may be another switch, which knows nothing yet.
                self._announced = {a: last for a, last in self._announced.items() if host.where.get(a) != name}
        for missing in in_order(before.assigned.keys() - host.assigned.keys() if before else ()):
            self._announced.pop(missing, None)
            self._extended.pop(missing, None)
            self.log.warn("{address}: is gone from the interface", address=missing)

    def _log_link(self, name: str, link: Link | None) -> None:
        if link is None:
            self.log.warn("{interface} does not exist; nothing can be carried there until it does", interface=name)
        elif not link.ready:
            self.log.warn("{interface} is down; nothing can be carried there until it is up", interface=name)
        else:
            self.log.info("{interface} is up", interface=name)

    @_note.register
    def _note_assign(self, step: Assign, result: Assigned) -> None:
        asked = {assignment.address: assignment.expires for assignment in step.assignments}
        before = self._host.assigned if self._host else {}
        if set(before) <= set(asked):
            self._written = Written(self.clock.seconds(), min(asked.values()))
        if self._host is not None:
            places = {each.address: each.interface for each in step.assignments if each.address in result.expires}
            where = {**self._host.where, **places}
            self._host = evolve(self._host, assigned={**before, **result.expires}, where=where)
        self._extended |= {address: asked[address] for address in result.expires}
        for subject in [*self._failures, *self._rests]:
            if isinstance(subject, AssignmentOf) and subject.address in result.expires:
                self._succeeded(subject)
        for address in in_order(set(result.expires) - set(before)):
            self._announced.pop(address, None)
            if address not in self._clear:
                self._fresh[address] = self.clock.seconds() + FRESH
            self.log.info("{address}: assigned", address=address)
        for address, reason in result.failed.items():
            self._failed(AssignmentOf(address), reason)
            self._host_stale = True

    @_note.register
    def _note_unassign(self, step: Unassign, result: Unassigned) -> None:
        if self._host is not None:
            left = {a: expires for a, expires in self._host.assigned.items() if a not in result.gone}
            self._host = evolve(self._host, assigned=left, where={a: self._host.where[a] for a in left})
        for address in in_order(result.gone):
            self._adoptable.discard(address)
            self._announced.pop(address, None)
            self._extended.pop(address, None)
            self._rests.pop(AssignmentOf(address), None)
            self.log.info("{address}: unassigned", address=address)
        for address, reason in result.failed.items():
            self._failed(AssignmentOf(address), reason)
            self._host_stale = True

    @_note.register
    def _note_announce(self, step: Announce, result: None) -> None:
        self._succeeded(NEIGHBOURS)
        for assignment in sorted(step.assignments, key=lambda each: order(each.address)):
            self._note_announcement(assignment)

    def _note_announcement(self, assignment: Assignment) -> None:
        last = self._announced.get(assignment.address)
        rounds = last.rounds + 1 if last else 1
        now = self.clock.seconds()
        if rounds <= len(ANNOUNCEMENT_GAPS):
            following = now + ANNOUNCEMENT_GAPS[rounds - 1]
        else:
            if self._all_announced_at < now + ANNOUNCEMENT_INTERVAL / 4:
                self._all_announced_at = now + self.backoff.uniform(0.9, 1.1) * ANNOUNCEMENT_INTERVAL
            following = self._all_announced_at
        self._announced[assignment.address] = Announced(rounds, following)
        if rounds == 1:
            self.log.info("{address}: announced", address=assignment.address)

    @_note.register
    def _note_probe(self, step: Probe, result: Probed) -> None:
        """See Note [Two who ask] in L{kiwi.planning}."""
        self._succeeded(PROBES)
        now = self.clock.seconds()
        # What another agent has claimed by now, that one may have answered for.
        asked = (placement.address for placement in step.placements)
        for address in in_order(a for a in asked if self._holder(a) in (None, self.terms.id)):
            contest = self._contests.pop(address, None)
            if address in result.owners:
                self._foreign[address] = _Foreign(result.owners[address], now + self.terms.ttl)
                self.log.error(
                    "{address}: refused, for another machine, with the MAC address {mac}, has it already: is that an "
                    "agent with another claim store? Asking again in {seconds:g} s",
                    address=address,
                    mac=result.owners[address].hex(":"),
                    seconds=self.terms.ttl,
                )
            elif address in result.contested:
                self._note_contest(address, result.contested[address], contest.rounds + 1 if contest else 1)
            else:
                self._quiet[address] = now + QUIET_LASTS

    def _note_contest(self, address: Address, mac: bytes, rounds: int) -> None:
        """Another machine has asked for an address, too."""
        shortest, longest = SILENCE * self.terms.probe_wait, LONGEST_SILENCE * self.terms.probe_wait
        wait = BackoffPolicy(shortest, longest, self.backoff.uniform).wait(rounds)
        self._contests[address] = _Contest(rounds, self.clock.seconds() + wait)
        tell = self.log.info if rounds == 1 else self.log.debug
        tell(
            "{address}: another machine, with the MAC address {mac}, asks for it as well; asking again in {wait:.2f} s",
            address=address,
            mac=mac.hex(":"),
            wait=wait,
        )

    @_note.register
    def _note_marks(self, step: LookAtMarks, marks: frozenset[Mark] | None) -> None:
        if marks != self._marks:
            if self._marks is not None:
                self.log.warn("the firewall's marks were changed by somebody else; mending them")
            self._marks = marks
        self._marks_stale = False
        self._succeeded(FIREWALL)

    @_note.register
    def _note_marked(self, step: MarkTraffic, result: None) -> None:
        before = self._marks or frozenset()
        self._marks = step.marks
        self._succeeded(FIREWALL)
        self.log.debug(
            "marking {added} more, {removed} fewer, {all} in all",
            added=len(step.marks - before),
            removed=len(before - step.marks),
            all=len(step.marks),
        )

    @_note.register
    def _note_unmarked(self, step: Unmark, result: None) -> None:
        self._marks, self._unmarked = None, True
        self._succeeded(FIREWALL)

    def _holder(self, address: Address) -> str | None:
        """Who has the claim to an address, as far as this agent knows."""
        if address in self._heard:
            return self._heard[address].holder
        return self._claims.holders.get(address) if self._claims else None

    def _hear(self, address: Address, holder: str | None) -> None:
        self._heard[address] = _Heard(holder, self.clock.seconds())

    def _services_of(self, address: Address) -> str:
        """The Services that want an address, for the log."""
        marks = self._selection.wanted.get(address, frozenset()) if self._selection else frozenset()
        return ", ".join(sorted({mark.service for mark in marks}))
