"""What one agent knows of the keys in etcd v3. Pure; what is read is not trusted."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field, frozen

from kiwi.model import Address, AgentRecord, Claims, ip

from .etcd3_reading import KeyEvent, KeyValue
from .records import read_record
from .telling import Oddity


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


@define(eq=False)
class Etcd3Mirror:
    """
    All keys at one moment, and the changes after that.

    @ivar latest: the last revision whose changes are in it.
    @ivar lost: some agent reports that the store has lost its data.
    @ivar history: see L{history_of}.
    """

    keys: Keys
    latest: int = field(default=0, init=False)
    claims: dict[Address, ClaimKey] = field(factory=dict, init=False)
    agents: dict[str, AgentRecord] = field(factory=dict, init=False)
    lost: bool = field(default=False, init=False)
    history: str | None = field(default=None, init=False)
    oddities: list[Oddity] = field(factory=list, init=False)
    _claims: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._claims = f"{self.keys.prefix}/publicips/"

    def known(self, losses: int) -> Claims:
        """What that means."""
        holders = {address: claim.holder for address, claim in self.claims.items()}
        return Claims(holders, dict(self.agents), losses, self.lost)

    def put(self, kv: KeyValue) -> bool:
        """Hear of a key as it is. Whether that says anything new about the claims."""
        key = kv.key
        if key.startswith(self._claims):
            return self._put_claim(kv)
        if key.startswith(self.keys.agents):
            return self._put_agent(kv)
        if key == self.keys.loss:
            self.lost, before = True, self.lost
            return not before
        if key == self.keys.history:
            self.history = history_of(kv)
        else:
            self.oddities.append(Oddity(key, "it is no key of Kiwi's"))
        return False

    def hear(self, events: Iterable[KeyEvent]) -> bool:
        """Hear of changes, of which some may be known. Whether they say anything new about the claims."""
        known, is_news = self.latest, False
        for event in events:
            kv = event.kv
            if kv.modified > known:
                self.latest = max(self.latest, kv.modified)
                is_news |= self._remove(kv.key) if event.gone else self.put(kv)
        return is_news

    def _put_claim(self, kv: KeyValue) -> bool:
        address, claim = self._address(kv.key), claim_key(kv)
        if address is None:
            self.oddities.append(Oddity(kv.key, "it names no address, or not in its usual form"))
            return False
        before = self.claims.pop(address, None)
        if claim is None:
            self.oddities.append(Oddity(kv.key, "it does not say whose it is"))
            return before is not None
        self.claims[address] = claim
        return before is None or before.holder != claim.holder

    def _put_agent(self, kv: KeyValue) -> bool:
        name = kv.key.removeprefix(self.keys.agents)
        before = self.agents.pop(name, None)
        record = None if kv.text is None or "/" in name or not name else read_record(name, kv.text)
        if record is None:
            self.oddities.append(Oddity(kv.key, "it is no record of an agent"))
        else:
            self.agents[name] = record
        return record != before

    def _remove(self, key: str) -> bool:
        if key.startswith(self._claims):
            address = self._address(key)
            return address is not None and self.claims.pop(address, None) is not None
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
