"""What the members of an etcd cluster agree on: keys with their revisions, and leases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import eq, gt, lt, ne
from typing import Any

from attrs import define, evolve, field, frozen

SHORTEST_TTL = 2
"""Seconds that a lease lasts at the least: one and a half of the time for an election, rounded up."""

LONGEST_TTL = 9_000_000_000
MOST_OPERATIONS = 128

INVALID, NOT_FOUND, DENIED, PRECONDITION, OUT_OF_RANGE, UNAVAILABLE, UNAUTHENTICATED = 3, 5, 7, 9, 11, 14, 16
"""gRPC's codes."""

COMPACTED = (OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE = (OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
NO_LEASE = (NOT_FOUND, "etcdserver: requested lease not found")
NO_KEY = (INVALID, "etcdserver: key is not provided")


class Refused(Exception):
    """
    @ivar code: gRPC's.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


@frozen
class KeyValue:
    """
    What a key is from one revision on.

    @ivar version: how often it was written since it was created; 0 where it is deleted.
    @ivar lease: 0 for none.
    """

    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    value: bytes = b""
    lease: int = 0


@frozen
class Event:
    kv: KeyValue
    prev: KeyValue | None

    @property
    def is_delete(self) -> bool:
        return self.kv.version == 0


@frozen
class Lease:
    """
    @ivar ttl: seconds.
    @ivar expires: on the clock of the one who leads.
    """

    id: int
    ttl: int
    expires: float


@frozen
class Comparison:
    key: bytes
    end: bytes
    target: str
    result: str
    wanted: int | bytes


@frozen
class Put:
    key: bytes
    value: bytes = b""
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


@frozen
class Range:
    """@ivar revision: 0 for the latest."""

    key: bytes
    end: bytes = b""
    revision: int = 0
    limit: int = 0
    keys_only: bool = False
    count_only: bool = False
    min_mod: int = 0
    max_mod: int = 0
    min_create: int = 0
    max_create: int = 0


@frozen
class DeleteRange:
    key: bytes
    end: bytes = b""
    prev_kv: bool = False


@frozen
class Transaction:
    """What is done if all of it holds, and what is done otherwise."""

    comparisons: Sequence[Comparison]
    success: Sequence[Operation]
    failure: Sequence[Operation]


Operation = Put | Range | DeleteRange | Transaction


@frozen
class _Decided:
    """A transaction of which it is known which part is done. It is decided by what was there before all of it."""

    succeeded: bool
    operations: Sequence[Put | Range | DeleteRange | _Decided]


@frozen
class Found:
    kvs: Sequence[KeyValue]
    count: int
    more: bool


@frozen
class Written:
    prev: KeyValue | None


@frozen
class Deleted:
    count: int
    prevs: Sequence[KeyValue]


@frozen
class Done:
    """
    @ivar revision: of the store after this operation, inside of its transaction.
    """

    revision: int
    outcome: Outcome


@frozen
class Transacted:
    succeeded: bool
    done: Sequence[Done]


Outcome = Found | Written | Deleted | Transacted

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {"EQUAL": eq, "NOT_EQUAL": ne, "GREATER": gt, "LESS": lt}
TARGETS = {
    "VERSION": "version",
    "CREATE": "create_revision",
    "MOD": "mod_revision",
    "VALUE": "value",
    "LEASE": "lease",
}
"""What a comparison looks at, and the name of that."""


def holds(key: bytes, end: bytes, other: bytes) -> bool:
    """Whether a range has a key in it. Without an end it is just the one key; an end of one zero byte is none."""
    if not end:
        return other == key
    return key <= other and (end == b"\0" or other < end)


@define(eq=False)
class Store:
    """
    @ivar revision: the number of the last transaction that has changed something; 1 for a new store.
    @ivar compacted: no older revision is known.
    @ivar log: what changed with each revision that is still known.
    """

    cluster_id: int
    revision: int = 1
    compacted: int = 0
    leases: dict[int, Lease] = field(factory=dict)
    log: list[tuple[int, Sequence[Event]]] = field(factory=list)
    _history: dict[bytes, list[KeyValue]] = field(factory=dict)
    _changes: list[Event] = field(factory=list, init=False)

    def copy(self) -> Store:
        history = {key: list(past) for key, past in self._history.items()}
        return Store(self.cluster_id, self.revision, self.compacted, dict(self.leases), list(self.log), history)

    # Keys.

    def now(self, key: bytes) -> KeyValue | None:
        past = self._history.get(key)
        return past[-1] if past and past[-1].version else None

    def everything(self) -> Sequence[KeyValue]:
        """All keys as they are now."""
        return self._in_range(b"\0", b"\0", 0)

    def transact(self, transaction: Transaction) -> Transacted:
        """
        All of it, as one revision. Nothing is done when it is refused.
        """
        _check_size(transaction, MOST_OPERATIONS)
        for operations in (transaction.success, transaction.failure):
            _changed_keys(operations)
        decided = self._decide(transaction)
        self._check(decided)
        transacted = self._transact(decided)
        self._commit()
        return transacted

    def _decide(self, transaction: Transaction) -> _Decided:
        succeeded = all(self._matches(comparison) for comparison in transaction.comparisons)
        chosen = transaction.success if succeeded else transaction.failure
        return _Decided(succeeded, [self._decide(each) if isinstance(each, Transaction) else each for each in chosen])

    def _transact(self, decided: _Decided) -> Transacted:
        done = []
        for operation in decided.operations:
            outcome = self._perform(operation)
            done.append(Done(self.revision + bool(self._changes), outcome))
        return Transacted(decided.succeeded, done)

    def apply(self, operation: Operation) -> Outcome:
        return self.transact(Transaction((), (operation,), ())).done[0].outcome

    def compact(self, revision: int) -> None:
        if revision <= self.compacted:
            raise Refused(*COMPACTED)
        if revision > self.revision:
            raise Refused(*FUTURE)
        self.compacted = revision
        self.log = [(number, events) for number, events in self.log if number >= revision]
        for key, past in list(self._history.items()):
            last = max((n for n, kv in enumerate(past) if kv.mod_revision <= revision), default=0)
            kept = past[last:]
            if len(kept) == 1 and not kept[0].version and kept[0].mod_revision <= revision:
                del self._history[key]
            else:
                self._history[key] = kept

    def _matches(self, comparison: Comparison) -> bool:
        there = self._in_range(comparison.key, comparison.end, 0)
        if not there:
            if comparison.target == "VALUE":
                return False
            there = [KeyValue(comparison.key, 0, 0, 0)]
        compare, name = _COMPARE[comparison.result], TARGETS[comparison.target]
        return all(compare(getattr(kv, name), comparison.wanted) for kv in there)

    def _check(self, operation: Put | Range | DeleteRange | _Decided) -> None:
        match operation:
            case _Decided(operations=operations):
                for each in operations:
                    self._check(each)
            case Put(key=key, value=value, lease=lease):
                if operation.ignore_value and value:
                    raise Refused(INVALID, "etcdserver: value is provided")
                if operation.ignore_lease and lease:
                    raise Refused(INVALID, "etcdserver: lease is provided")
                if (operation.ignore_value or operation.ignore_lease) and self.now(key) is None:
                    raise Refused(INVALID, "etcdserver: key not found")
                if lease and lease not in self.leases:
                    raise Refused(*NO_LEASE)
            case Range(revision=revision) if revision:
                if revision > self.revision:
                    raise Refused(*FUTURE)
                if revision < self.compacted:
                    raise Refused(*COMPACTED)

    def _perform(self, operation: Put | Range | DeleteRange | _Decided) -> Outcome:
        match operation:
            case _Decided():
                return self._transact(operation)
            case Put():
                prev = self._put(operation)
                return Written(prev if operation.prev_kv else None)
            case DeleteRange(key=key, end=end):
                prevs = self._in_range(key, end, 0)
                self._delete(prevs)
                return Deleted(len(prevs), prevs if operation.prev_kv else ())
            case Range():
                return self._range(operation)

    def _put(self, put: Put) -> KeyValue | None:
        prev, revision = self.now(put.key), self.revision + 1
        kv = KeyValue(put.key, revision, revision, 1, put.value, put.lease)
        if prev is not None:
            kv = evolve(
                kv,
                create_revision=prev.create_revision,
                version=prev.version + 1,
                value=prev.value if put.ignore_value else put.value,
                lease=prev.lease if put.ignore_lease else put.lease,
            )
        self._change(kv, prev)
        return prev

    def _delete(self, kvs: Sequence[KeyValue]) -> None:
        for prev in kvs:
            self._change(KeyValue(prev.key, 0, self.revision + 1, 0), prev)

    def _change(self, kv: KeyValue, prev: KeyValue | None) -> None:
        self._history.setdefault(kv.key, []).append(kv)
        self._changes.append(Event(kv, prev))

    def _commit(self) -> None:
        if self._changes:
            self.revision += 1
            self.log.append((self.revision, self._changes))
            self._changes = []

    def _range(self, wanted: Range) -> Found:
        there = self._in_range(wanted.key, wanted.end, wanted.revision)
        if wanted.count_only:
            return Found((), len(there), False)
        kvs = [
            kv
            for kv in there
            if wanted.min_mod <= kv.mod_revision <= (wanted.max_mod or kv.mod_revision)
            and wanted.min_create <= kv.create_revision <= (wanted.max_create or kv.create_revision)
        ]
        more = 0 < wanted.limit < len(kvs)
        kvs = kvs[: wanted.limit] if more else kvs
        return Found([evolve(kv, value=b"") for kv in kvs] if wanted.keys_only else kvs, len(there), more)

    def _in_range(self, key: bytes, end: bytes, revision: int) -> Sequence[KeyValue]:
        keys = [key] if not end else sorted(other for other in self._history if holds(key, end, other))
        found = []
        for each in keys:
            past = self._history.get(each, [])
            kv = next((kv for kv in reversed(past) if not revision or kv.mod_revision <= revision), None)
            if kv is not None and kv.version:
                found.append(kv)
        return found

    # Leases.

    def grant(self, lease_id: int, ttl: int, now: float) -> Lease:
        if ttl > LONGEST_TTL:
            raise Refused(OUT_OF_RANGE, "etcdserver: too large lease TTL")
        if lease_id in self.leases:
            raise Refused(PRECONDITION, "etcdserver: lease already exists")
        ttl = max(ttl, SHORTEST_TTL)
        lease = self.leases[lease_id] = Lease(lease_id, ttl, now + ttl)
        return lease

    def renew(self, lease_id: int, now: float) -> Lease:
        lease = self.leases[lease_id] = evolve(self.leases[lease_id], expires=now + self.leases[lease_id].ttl)
        return lease

    def revoke(self, lease_id: int) -> None:
        """It goes, and with it all its keys, in one revision."""
        if self.leases.pop(lease_id, None) is None:
            raise Refused(*NO_LEASE)
        self._delete(self.attached(lease_id))
        self._commit()

    def attached(self, lease_id: int) -> Sequence[KeyValue]:
        return [kv for kv in self.everything() if kv.lease == lease_id]

    def promote(self, now: float, extension: float) -> None:
        """Who begins to lead gives each lease the whole of its time, and that of an election (C{Lessor.Promote})."""
        self.leases = {
            number: evolve(lease, expires=now + extension + lease.ttl) for number, lease in self.leases.items()
        }


def _check_size(transaction: Transaction, most: int) -> None:
    """A transaction within another one may be as long as that one leaves room for (C{checkTxnRequest})."""
    comparisons, success, failure = transaction.comparisons, transaction.success, transaction.failure
    size = max(len(comparisons), len(success), len(failure))
    if size > most:
        raise Refused(INVALID, "etcdserver: too many operations in txn request")
    if not all(each.key for each in comparisons):
        raise Refused(*NO_KEY)
    for operation in (*success, *failure):
        if isinstance(operation, Transaction):
            _check_size(operation, most - size)
        elif not operation.key:
            raise Refused(*NO_KEY)


def _changed_keys(operations: Sequence[Operation]) -> tuple[set[bytes], list[DeleteRange]]:
    """
    What is put and what is deleted, which must not meet (C{checkIntervals}). Of a transaction within this one, both
    parts count, though they may put the same; and what it deletes counts only for what comes later, and for this level.
    """
    puts: set[bytes] = set()
    deletes = [each for each in operations if isinstance(each, DeleteRange)]

    def add(keys: set[bytes]) -> None:
        if keys & puts or any(holds(each.key, each.end, key) for each in deletes for key in keys):
            raise Refused(INVALID, "etcdserver: duplicate key given in txn request")
        puts.update(keys)

    for operation in operations:
        if isinstance(operation, Transaction):
            parts = [_changed_keys(part) for part in (operation.success, operation.failure)]
            add(set().union(*(keys for keys, _ in parts)))
            deletes += [each for _, more in parts for each in more]
    for operation in operations:
        if isinstance(operation, Put):
            add({operation.key})
    return puts, deletes
