"""Following the keys in etcd v3."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from math import inf
from typing import TYPE_CHECKING, Any

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater

from kiwi.backoff import Backoff
from kiwi.http import HTTPError, Response
from kiwi.logs import logger, printable
from kiwi.model import Claims

from .asking import CLAIM_TIME, answer_of
from .errands import Errands
from .etcd3_mirror import Etcd3Mirror, history_of
from .etcd3_reading import Malformed, Refusal, Told, read_answer, read_told
from .etcd3_requests import Compacted, Forgotten, if_created_at, put
from .telling import Oddities, Teller

if TYPE_CHECKING:
    from .etcd3 import Etcd3ClaimStore

LIVED = 1.0
"""Seconds that a stream must have lasted to be opened again without a wait."""

MOST_LISTS = 4
"""How often it is begun anew to read everything, where etcd forgets what was begun with."""


@define(eq=False)
class Etcd3Watch(Service):
    """
    Reads everything, then follows the changes after it, for ever. See Note [List and watch] in L{kiwi.claims.etcd3}.
    """

    store: Etcd3ClaimStore
    _changed: Callable[[Claims], None]
    _mirror: Etcd3Mirror | None = field(default=None, init=False)
    _is_stale: bool = field(default=False, init=False)
    _streaming: Deferred[Response | None] | None = field(default=None, init=False)
    _trouble: str | None = field(default=None, init=False)
    _opened_at: float | None = field(default=None, init=False)
    _token: str | None = field(default=None, init=False, repr=False)
    _ended: bool = field(default=False, init=False)
    _place: int = field(default=0, init=False)
    _is_garbled: bool = field(default=False, init=False)
    _lost: bool = field(default=False, init=False)
    _seen: bool = field(default=False, init=False)
    _losses: int = field(default=0, init=False)
    _teller: Teller = field(init=False)
    _oddities: Oddities = field(init=False)
    _errands: Errands = field(factory=Errands, init=False)
    _look: IDelayedCall | None = field(default=None, init=False)

    log = logger("kiwi.claims")

    def __attrs_post_init__(self) -> None:
        self._teller = Teller(self.store.clock, self._changed, self._known, self.log)
        self._oddities = Oddities(self.log)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self.store.watches.append(self)
        self._errands.run(Deferred.fromCoroutine(self._follow()))

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        self.store.watches.remove(self)
        if self.store.mirror is self._mirror:
            self.store.mirror = None
        self._is_stale = True
        self._errands.cancel()
        self._teller.stop()
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _now(self) -> float:
        return self.store.clock.seconds()

    # Following.

    async def _follow(self) -> None:
        backoff = Backoff(self.store.backoff)
        while True:
            self._opened_at, self._place = None, self.store.requests.rotation.first
            try:
                await self._follow_once()
            except Forgotten:
                # It is told already, and everything is read anew.
                pass
            except HTTPError as error:
                self._failed(str(error))
            except CancelledError:
                if not self.running:
                    raise
                self._failed("the connection was closed")
            except Exception as error:  # noqa: BLE001 whatever it was, the next connection may do better
                self.log.failure("the watch of the claim store failed")
                self._failed(printable(error))
            lived = self._opened_at is not None and self._now() - self._opened_at >= LIVED
            if lived:
                backoff.succeeded()
            await deferLater(self.store.clock, 0 if lived else backoff.failed())

    def _failed(self, why: str) -> None:
        if not self._lost:
            self._lost = True
            text = (
                "lost sight of the claims at {endpoint}: {why}; going on with the last known ones"
                if self._seen
                else "the claims at {endpoint} cannot be followed: {why}; trying again and again"
            )
            self.log.warn(text, endpoint=self.store.requests.name(self._place), why=why)

    async def _follow_once(self) -> None:
        mirror, requests = self._mirror, self.store.requests
        if mirror is None or self._is_stale or not await self._is_the_same(mirror):
            mirror = await self._list()
        place = self._place = requests.rotation.first
        self._token = await requests.token(place, self._deadline())
        self._ended, self._trouble = False, None
        self._streaming = requests.follow(place, self._token, mirror.latest + 1, self._line, self._overlong)
        if self._ended:
            self._streaming.cancel()
        try:
            refused = await self._streaming
        except CancelledError:
            if not self.running:
                raise
            refused = None
        except HTTPError:
            requests.rotation.failed(place)
            raise
        finally:
            self._streaming = None
        if refused is not None:
            self._trouble = self._why(refused)
        elif self._trouble is None and not self._is_stale:
            self._trouble = "it has ended the watch"
        if self._trouble is not None:
            requests.rotation.failed(place)
            raise HTTPError(self._trouble)

    async def _is_the_same(self, mirror: Etcd3Mirror) -> bool:
        """Whether the store still is the one that is known, so that it is enough to hear of what has changed since."""
        requests = self.store.requests
        return history_of(await requests.get(self.store.keys.history, self._deadline())) == mirror.history is not None

    async def _list(self) -> Etcd3Mirror:
        """Everything as it is at one moment."""
        for _ in range(MOST_LISTS):
            mirror = Etcd3Mirror(self.store.keys, self.store.agent_id, self.store.ttl)
            after: str | None = None
            try:
                while True:
                    found = await self.store.requests.page(after, mirror.latest, self._deadline())
                    mirror.latest = mirror.latest or found.header.revision
                    for kv in found.kvs:
                        mirror.put(kv, self._now())
                        after = kv.key
                    if not (found.more and found.kvs):
                        self._restored(mirror)
                        return mirror
            except Compacted:
                continue
        raise HTTPError(f"{self._endpoint}: it forgets everything too soon to be read")

    def _restored(self, mirror: Etcd3Mirror) -> None:
        """There is a new truth."""
        before = self._mirror
        if before is not None and before.history is not None and mirror.history != before.history:
            self.store.forgotten()
        if before is not None and before.history is not None:
            mirror.follow(before, self._now())
        self.store.mirror = self._mirror = mirror
        self._is_stale = False
        self._note_oddities()
        if mirror.history is None:
            self._write(self._begin_history())
        if self._teller.told != self._known():
            self._teller.soon()
        self._sleep()

    def _line(self, line: bytes) -> None:
        try:
            told = read_told(line)
        except Malformed as error:
            if not self._is_garbled:
                self._is_garbled = True
                self.log.warn(
                    "passing over what makes no sense in the watch of claims at {endpoint}: {why}",
                    endpoint=self._endpoint,
                    why=str(error),
                )
            return
        if isinstance(told, Refusal):
            self._end(self.store.requests.explain(told))
        elif told.cancelled is not None:
            self._cancelled(told)
        else:
            self._heard(told)

    def _cancelled(self, told: Told) -> None:
        if told.compacted:
            self._is_stale = True
            self._end(None)
            return
        refusal = Refusal(0, told.cancelled or "")
        requests = self.store.requests
        # etcd before 3.5.2 says that permission is denied when it does not know the token.
        if requests.login.user is not None and (refusal.wants_login or "permission denied" in refusal.message):
            requests.login.refused(self._token)
        self._end(f"it has cancelled the watch: {requests.explain(refusal)}")

    def _heard(self, told: Told) -> None:
        mirror, requests = self._mirror, self.store.requests
        assert mirror is not None
        if requests.latest is not None and told.header.cluster != requests.latest.cluster:
            self._is_stale = True
            self._end("it is a member of another cluster")
            return
        if told.created:
            self._in_sight(mirror)
        if mirror.hear(told.events, self._now()):
            self._teller.soon()
        self._sleep()
        requests.hear(told.header.cluster, mirror.latest)
        self._note_oddities()

    def _sleep(self) -> None:
        """Until the next claim is free that has ended with its agent's lease."""
        mirror, now = self._mirror, self._now()
        assert mirror is not None
        ends = mirror.next_end()
        if ends < inf and self._look is None:
            self._look = self.store.clock.callLater(max(0.0, ends - now), self._wake)

    def _wake(self) -> None:
        self._look = None
        assert self._mirror is not None
        if self._mirror.let_go(self._now()):
            self._teller.soon()
        self._sleep()

    def _in_sight(self, mirror: Etcd3Mirror) -> None:
        self._opened_at = self._now()
        if self._lost or not self._seen:
            self.log.info(
                "following the claims at {endpoint}; now there are {claims} claims and {agents} agents",
                endpoint=self._endpoint,
                claims=len(mirror.claims),
                agents=len(mirror.agents),
            )
        self._lost, self._seen = False, True

    def _overlong(self, size: int) -> None:
        self._is_stale = True
        self._end(f"a line of {size} bytes, which is too long")

    def _why(self, refused: Response) -> str:
        """Why no watch was opened."""
        try:
            said = read_answer(refused)
        except Malformed as error:
            return str(error)
        if not isinstance(said, Refusal):
            return f"status {refused.status}"
        if said.wants_login:
            self.store.requests.login.refused(self._token)
        return self.store.requests.explain(said)

    def _end(self, trouble: str | None) -> None:
        self._trouble, self._ended = trouble, True
        if self._streaming is not None:
            self._streaming.cancel()

    def _note_oddities(self) -> None:
        assert self._mirror is not None
        for oddity in self._mirror.oddities:
            self._oddities.note(oddity.subject, oddity.why)
        self._mirror.oddities.clear()

    def _deadline(self) -> float:
        return self._now() + self.store.ttl * CLAIM_TIME

    @property
    def _endpoint(self) -> str:
        return self.store.requests.name(self.store.requests.rotation.first)

    # A store that forgets.

    def forgotten(self) -> None:
        """
        The store has lost its data, which counts where this watch knew some. See Note [A store that forgets] in
        L{kiwi.claims.etcd3}.
        """
        self._is_stale = True
        if self._mirror is not None:
            self._losses += 1
            self._mirror.history = None
        self.log.error("the claim store at {endpoint} has lost its data", endpoint=self._endpoint)
        self._write(self._report_loss())
        if self._mirror is not None:
            self._teller.soon()
        self._end(None)

    async def _report_loss(self) -> None:
        """Tell all agents for a TTL."""
        deadline = self._deadline()
        _, lease = await self.store.requests.grant(deadline)
        reported = put(self.store.keys.loss, self.store.agent_id, lease.id)
        await self.store.requests.transaction([], [reported], [], deadline)

    async def _begin_history(self) -> None:
        """Give what the store knows a name, unless it has one."""
        key, name = self.store.keys.history, f"{self.store.agent_id} {self._now():.6f}"
        await self.store.requests.transaction([if_created_at(key, 0)], [put(key, name)], [], self._deadline())

    def _write(self, work: Coroutine[Any, Any, None]) -> None:
        """Let this come to its end, unless the watch ends first. If it fails, the next list leads here again."""
        self._errands.run(answer_of(work, self.log))

    def _known(self) -> Claims:
        assert self._mirror is not None
        return self._mirror.known(self._losses)
