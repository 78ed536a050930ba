"""Claims that live in this process: one host without a server, or several agents in a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from attrs import define, field, frozen
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from kiwi.logs import logger
from kiwi.model import Address, AgentRecord, Claims

from .interface import Granted, IClaimStore, Lost, Released, Taken, Unavailable

K = TypeVar("K")
V = TypeVar("V")


@define(eq=False)
class _Expiring(Generic[K, V]):
    """Values that go by themselves when their time has come. C{expired} is told each time that one does."""

    clock: IReactorTime
    expired: Callable[[], None]
    values: dict[K, V] = field(factory=dict, init=False)
    _calls: dict[K, IDelayedCall] = field(factory=dict, init=False)

    def put(self, key: K, value: V, ttl: float) -> None:
        self.remove(key)
        self.values[key] = value
        self._calls[key] = self.clock.callLater(ttl, self._expire, key)

    def remove(self, key: K) -> None:
        if key in self.values:
            del self.values[key]
            call = self._calls.pop(key)
            if call.active():
                call.cancel()

    def _expire(self, key: K) -> None:
        self.remove(key)
        self.expired()


@define(eq=False)
class MemoryClaims:
    """
    What the stores of several agents have in common. Claims and records expire under C{clock}; those who watch hear of
    a change in a later call of the clock, never in the call that made it, and once for all changes of one call.
    """

    clock: IReactorTime
    _claims: _Expiring[Address, str] = field(init=False)
    _agents: _Expiring[str, AgentRecord] = field(init=False)
    _watches: list[_MemoryWatch] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._claims = _Expiring(self.clock, self._wake)
        self._agents = _Expiring(self.clock, self._wake)

    def store(self, agent_id: str, ttl: float) -> MemoryClaimStore:
        """
        The store of one agent.

        @param ttl: of its claims and its record, in seconds.
        """
        return MemoryClaimStore(self, agent_id, ttl)

    def _known(self) -> Claims:
        return Claims(dict(self._claims.values), dict(self._agents.values))

    def _wake(self) -> None:
        for watch in self._watches:
            watch.wake()


@implementer(IClaimStore)
@frozen(eq=False)
class MemoryClaimStore:
    """One agent's access to L{MemoryClaims}. It is never unavailable, and answers at once."""

    _shared: MemoryClaims
    _agent_id: str
    _ttl: float

    def acquire(self, address: Address) -> Deferred[Granted | Taken | Unavailable]:
        holder = self._shared._claims.values.get(address)
        if holder is not None:
            return succeed(Taken(holder))
        self._shared._claims.put(address, self._agent_id, self._ttl)
        self._shared._wake()
        return succeed(Granted(self._shared.clock.seconds()))

    def renew(self, addresses: AbstractSet[Address]) -> Deferred[Mapping[Address, Granted | Lost | Unavailable]]:
        return succeed({address: self._renew(address) for address in addresses})

    def _renew(self, address: Address) -> Granted | Lost | Unavailable:
        if self._shared._claims.values.get(address) != self._agent_id:
            return Lost()
        self._shared._claims.put(address, self._agent_id, self._ttl)
        return Granted(self._shared.clock.seconds())

    def release(self, address: Address) -> Deferred[Released | Unavailable]:
        if self._shared._claims.values.get(address) == self._agent_id:
            self._shared._claims.remove(address)
            self._shared._wake()
        return succeed(Released())

    def register(
        self, record: AgentRecord, replacing: AgentRecord | None = None
    ) -> Deferred[Granted | Taken | Unavailable]:
        if self._shared._agents.values.get(record.id) not in (None, record, replacing):
            return succeed(Taken(""))
        self._shared._agents.put(record.id, record, self._ttl)
        self._shared._wake()
        return succeed(Granted(self._shared.clock.seconds()))

    def deregister(self, record: AgentRecord) -> Deferred[Released | Unavailable]:
        if self._shared._agents.values.get(record.id) == record:
            self._shared._agents.remove(record.id)
            self._shared._wake()
        return succeed(Released())

    def watch(self, changed: Callable[[Claims], None]) -> IService:
        return _MemoryWatch(self._shared, changed)


@define(eq=False)
class _MemoryWatch(Service):
    """Tells C{changed} while it runs."""

    _shared: MemoryClaims
    _changed: Callable[[Claims], None]
    _due: IDelayedCall | None = field(default=None, init=False)

    log = logger("kiwi.claims")

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._shared._watches.append(self)
        self.wake()

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self in self._shared._watches:
            self._shared._watches.remove(self)
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def wake(self) -> None:
        """Tell how things stand, soon."""
        if self._due is None:
            self._due = self._shared.clock.callLater(0, self._tell)

    def _tell(self) -> None:
        self._due = None
        try:
            self._changed(self._shared._known())
        except Exception:  # noqa: BLE001 one listener's mistake must not keep it from hearing of the next change
            self.log.failure("the change of a claim could not be acted on")
