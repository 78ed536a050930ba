"""What one agent knows of the keys in etcd v3. Pure; what is read is not trusted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from math import inf

from attrs import define, evolve, field, frozen

from kiwi.model import CLOCK_DRIFT, Address, AgentRecord, Claims, ip

from .etcd3_reading import KeyEvent, KeyValue
from .records import parsed, read_record, write_record
from .telling import Oddity

LONGEST_TTL = 86400


@frozen
class ClaimKey:
    """
    A claim as it is.

    @ivar lease: on which it rests.
    @ivar modified: the revision that changed it last.
    """

    holder: str
    lease: int
    modified: int


def claim_key(kv: KeyValue) -> ClaimKey | None:
    """The claim that a key is; C{None} where it does not say whose."""
    return ClaimKey(kv.text, kv.lease, kv.modified) if kv.text else None


def write_session(record: AgentRecord, ttl: int) -> str:
    """The value that tells of an agent and of how long its lease is, in seconds. Equal ones are equal texts."""
    return json.dumps({**json.loads(write_record(record)), "ttl": ttl}, separators=(",", ":"))


def _read_ttl(text: str) -> float | None:
    """How long an agent's lease is, where its record says so."""
    ttl = parsed(text.encode()).get("ttl")
    return float(ttl) if type(ttl) is int and 0 < ttl <= LONGEST_TTL else None


@frozen
class _Session:
    """
    An agent that is alive.

    @ivar value: the text of its record.
    @ivar ttl: of its lease, in seconds.
    @ivar heard: when it was heard of last.
    """

    value: bytes
    ttl: float
    heard: float

    @property
    def until(self) -> float:
        """How long it may take itself for alive, if nothing more is heard."""
        return self.heard + self.ttl * (1 + CLOCK_DRIFT)


@frozen
class Keys:
    """
    The names of keys.

    @ivar prefix: of all of them, without a slash at its end.
    """

    prefix: str

    def claim(self, address: Address) -> str:
        return f"{self.prefix}/publicips/{address}"

    def agent(self, agent_id: str) -> str:
        return self.agents + agent_id

    @property
    def agents(self) -> str:
        return f"{self.prefix}/agents/"

    @property
    def history(self) -> str:
        return f"{self.prefix}/store"

    @property
    def loss(self) -> str:
        return f"{self.prefix}/lost"


def history_of(kv: KeyValue | None) -> str | None:
    """What names the store as it has been since it last lost its data; C{None} where nothing does yet."""
    return None if kv is None else f"{kv.created} {kv.value!r}"


@frozen
class _Orphan:
    """A claim that has ended with its agent's lease, and until when the agent may still act on it."""

    holder: str
    until: float


@define(eq=False)
class Etcd3Mirror:
    """
    All keys at one moment, and the changes after that. Time is an argument: seconds on this agent's monotonic clock.

    @ivar agent_id: this agent's own.
    @ivar ttl: of leases of agents that do not say theirs, in seconds.
    @ivar latest: the last revision whose changes are in it.
    @ivar lost: some agent reports that the store has lost its data.
    @ivar history: see L{history_of}.
    """

    keys: Keys
    agent_id: str
    ttl: float
    latest: int = field(default=0, init=False)
    claims: dict[Address, ClaimKey] = field(factory=dict, init=False)
    agents: dict[str, AgentRecord] = field(factory=dict, init=False)
    lost: bool = field(default=False, init=False)
    history: str | None = field(default=None, init=False)
    oddities: list[Oddity] = field(factory=list, init=False)
    _orphans: dict[Address, _Orphan] = field(factory=dict, init=False)
    _holders: dict[Address, str] = field(factory=dict, init=False)
    _sessions: dict[str, _Session] = field(factory=dict, init=False)
    _claims: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._claims = f"{self.keys.prefix}/publicips/"

    def known(self, losses: int) -> Claims:
        """What that means."""
        return Claims(dict(self._holders), dict(self.agents), losses, self.lost)

    def put(self, kv: KeyValue, now: float) -> bool:
        """Hear of a key as it is. Whether that says anything new about the claims."""
        key = kv.key
        if key.startswith(self._claims):
            return self._put_claim(kv)
        if key.startswith(self.keys.agents):
            return self._put_agent(kv, now)
        if key == self.keys.loss:
            self.lost, before = True, self.lost
            return not before
        if key == self.keys.history:
            self.history = history_of(kv)
        else:
            self.oddities.append(Oddity(key, "it is no key of Kiwi's"))
        return False

    def hear(self, events: Sequence[KeyEvent], now: float) -> bool:
        """
        Hear of changes, of which some may be known; those of one revision come together. Whether they say anything new
        about the claims.
        """
        known, is_news = self.latest, False
        ended = {(event.kv.key, event.kv.modified) for event in events if event.gone}
        for event in events:
            kv = event.kv
            if kv.modified <= known:
                continue
            self.latest = max(self.latest, kv.modified)
            if not event.gone:
                is_news |= self.put(kv, now)
            elif kv.key.startswith(self._claims):
                is_news |= self._remove_claim(kv, ended, now)
            else:
                is_news |= self._remove(kv.key)
        return is_news

    def follow(self, before: Etcd3Mirror, now: float) -> None:
        """This one comes after another, and nobody has told of what was between."""
        for address, claim in before.claims.items():
            if claim.holder in before.agents and claim.holder not in self.agents:
                self._orphan(address, claim.holder, evolve(before._sessions[claim.holder], heard=now).until, now)
        for address, orphan in {**before._orphans, **self._orphans}.items():
            if address not in self.claims:
                self._orphans[address], self._holders[address] = orphan, orphan.holder
            else:
                self._orphans.pop(address, None)

    def let_go(self, now: float) -> bool:
        """Whether any claim is free now that has ended with its agent's lease."""
        over = [address for address, orphan in self._orphans.items() if orphan.until <= now]
        for address in over:
            del self._orphans[address], self._holders[address]
        return bool(over)

    def next_end(self) -> float:
        """When the next one will be; infinity for never."""
        return min((orphan.until for orphan in self._orphans.values()), default=inf)

    def _orphan(self, address: Address, holder: str, until: float, now: float) -> None:
        """See Note [A lease that ended too early] in L{kiwi.claims.etcd3}."""
        if until > now and holder != self.agent_id:
            self._orphans[address] = _Orphan(holder, until)

    def _remove_claim(self, kv: KeyValue, ended: AbstractSet[tuple[str, int]], now: float) -> bool:
        address = self._address(kv.key)
        claim = None if address is None else self.claims.pop(address, None)
        if address is None or claim is None:
            return False
        session = self._sessions.get(claim.holder)
        if session is not None and (self.keys.agent(claim.holder), kv.modified) in ended:
            self._orphan(address, claim.holder, session.until, now)
        if address in self._orphans:
            return False
        del self._holders[address]
        return True

    def _put_claim(self, kv: KeyValue) -> bool:
        address, claim = self._address(kv.key), claim_key(kv)
        if address is None:
            self.oddities.append(Oddity(kv.key, "it names no address, or not in its usual form"))
            return False
        before = self.claims.pop(address, None) or self._orphans.pop(address, None)
        if claim is None:
            self._holders.pop(address, None)
            self.oddities.append(Oddity(kv.key, "it does not say whose it is"))
            return before is not None
        self.claims[address], self._holders[address] = claim, claim.holder
        return before is None or before.holder != claim.holder

    def _put_agent(self, kv: KeyValue, now: float) -> bool:
        name = kv.key.removeprefix(self.keys.agents)
        session = self._sessions.get(name)
        if session is not None and session.value == kv.value and name in self.agents:
            self._sessions[name] = evolve(session, heard=now)
            return False
        before = self.agents.pop(name, None)
        record = None if kv.text is None or "/" in name or not name else read_record(name, kv.text)
        if record is None:
            self.oddities.append(Oddity(kv.key, "it is no record of an agent"))
        else:
            self.agents[name] = record
            self._sessions[name] = _Session(kv.value, _read_ttl(kv.text or "") or self.ttl, now)
        return record != before

    def _remove(self, key: str) -> bool:
        if key.startswith(self.keys.agents):
            return self.agents.pop(key.removeprefix(self.keys.agents), None) is not None
        if key == self.keys.loss:
            self.lost, before = False, self.lost
            return before
        if key == self.keys.history:
            self.history = None
        return False

    def _address(self, key: str) -> Address | None:
        """Which address a claim is for. One that is spelt in another way than agents do is nobody's claim."""
        text = key.removeprefix(self._claims)
        try:
            address = ip(text)
        except ValueError:
            return None
        return address if str(address) == text else None
