"""What can be asked of the claim store, as intents, and how each is performed."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen
from effect import TypeDispatcher
from twisted.internet.defer import Deferred
from txeffect import deferred_performer

from kiwi.model import Address, AgentRecord

from .interface import Granted, IClaimStore, Lost, Released, Taken, Unavailable


@frozen
class AcquireClaim:
    """The intent to create the claim to an address. Performed, it gives what L{IClaimStore.acquire} gives."""

    address: Address


@frozen
class RenewClaims:
    """The intent to give claims a whole TTL again. Performed, it gives what L{IClaimStore.renew} gives."""

    addresses: frozenset[Address]


@frozen
class ReleaseClaim:
    """The intent to delete this agent's claim to an address. Performed, it gives what L{IClaimStore.release} gives."""

    address: Address


@frozen
class RegisterAgent:
    """The intent to tell the other agents of this one. Performed, it gives what L{IClaimStore.register} gives."""

    record: AgentRecord
    replacing: AgentRecord | None = None


@frozen
class DeregisterAgent:
    """The intent to take that back. Performed, it gives what L{IClaimStore.deregister} gives."""

    record: AgentRecord


def claims_dispatcher(store: IClaimStore) -> TypeDispatcher:
    """Perform this module's intents on C{store}."""

    @deferred_performer
    def acquire(dispatcher: object, intent: AcquireClaim) -> Deferred[Granted | Taken | Unavailable]:
        return store.acquire(intent.address)

    @deferred_performer
    def renew(dispatcher: object, intent: RenewClaims) -> Deferred[Mapping[Address, Granted | Lost | Unavailable]]:
        return store.renew(intent.addresses)

    @deferred_performer
    def release(dispatcher: object, intent: ReleaseClaim) -> Deferred[Released | Unavailable]:
        return store.release(intent.address)

    @deferred_performer
    def register(dispatcher: object, intent: RegisterAgent) -> Deferred[Granted | Taken | Unavailable]:
        return store.register(intent.record, intent.replacing)

    @deferred_performer
    def deregister(dispatcher: object, intent: DeregisterAgent) -> Deferred[Released | Unavailable]:
        return store.deregister(intent.record)

    return TypeDispatcher(
        {
            AcquireClaim: acquire,
            RenewClaims: renew,
            ReleaseClaim: release,
            RegisterAgent: register,
            DeregisterAgent: deregister,
        }
    )
