"""
Which version of etcd's API the claims are in, where nobody has said so.

That is a decision about a fleet and not about an agent: see Note [One version for all].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any
from urllib.parse import quote

from attrs import define, field, frozen
from treq.client import HTTPClient
from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from kiwi.backoff import Backoff, BackoffPolicy
from kiwi.http import HTTPError, Response, request
from kiwi.logs import logger, printable
from kiwi.model import Address, AgentRecord, Claims

from .asking import CLAIM_TIME
from .etcd2 import HISTORY, NOT_FOUND, read_refusal, read_snapshot, refused_user, user_headers
from .etcd_user import EtcdUser
from .interface import Granted, IClaimStore, Lost, Released, Taken, Unavailable
from .records import parsed

# Note [One version for all]
# Agents of which some have their claims in v2 and others in v3 are two fleets. So each of them must come to the same
# choice, although they ask at different times, and different members of etcd, some of which may be down:
#
# - What is asked for is what all members say alike. "etcdcluster" in /version is the least version of all members, on
#   which the cluster agrees, and not that of the member which answers. Keys are read through the leader.
# - A fleet that is in v2 stays there, whatever else etcd can do: agents of before know nothing else, and are replaced
#   one by one. That it is there shows in its agents' records, which end with a TTL, and in the name of what the store
#   knows (Note [A store that forgets] in L{kiwi.claims.etcd2}), which the last agent takes away when it leaves in
#   order. So a fleet that was cut off from etcd until all records had ended is one still.
# - A member that does not serve v2 cannot say whether there is a fleet in it. Where no member that answers does, one
#   that does not answer might (members can be different while etcd is upgraded). It is waited for, for a TTL: then no
#   claim in v2 was confirmed either, since that would have taken this member (if it is silent to all).
# - Who may not read the keys cannot know, and does not choose.
#
# The choice is made once, when the agent starts, and holds until it ends. Until it is made, no question is answered.

FIRST_WITH_V3 = (3, 4)
"""The first version with the JSON gateway at C{/v3} (etcd's documentation, "gRPC gateway")."""


class V2(Enum):
    """
    What the v2 API says of Kiwi's keys.

    C{ABSENT}: there is no such API, as in etcd 3.6, or in 3.4 and 3.5 without C{--enable-v2}. C{FORBIDDEN}: they may
    not be read.
    """

    FLEET = "fleet"
    EMPTY = "empty"
    ABSENT = "absent"
    FORBIDDEN = "forbidden"


@frozen
class Heard:
    """
    What one endpoint answered.

    @ivar cluster: the version of etcd that all members are capable of.
    @ivar note: what more there is to say of C{v2}, in a printable line.
    """

    cluster: tuple[int, int]
    v2: V2
    note: str = ""


@frozen
class Silent:
    """There was no answer. C{why} is one printable line."""

    why: str


def etcd_version_of(answers: Sequence[Heard | Silent], waited: bool) -> int | None:
    """
    Which version of the API the claims are in, 2 or 3, or C{None} while that cannot be known. See Note [One version for
    all].

    @param answers: of each endpoint.
    @param waited: whether they have been asked for a whole TTL.
    """
    heard = [answer for answer in answers if isinstance(answer, Heard)]
    states = {answer.v2 for answer in heard}
    if V2.FLEET in states:
        return 2
    if not heard or V2.FORBIDDEN in states:
        return None
    if min(answer.cluster for answer in heard) < FIRST_WITH_V3:
        return 2 if V2.EMPTY in states else None
    if V2.EMPTY in states or waited or len(heard) == len(answers):
        return 3
    return None


def read_version(response: Response) -> tuple[int, int] | Silent:
    """
    The version of the cluster, from an answer to C{/version}: C{{"etcdserver": "3.5.1", "etcdcluster": "3.5.0"}}. A
    cluster that has just been started says C{"not_decided"} (seen with 3.4 and 3.5).
    """
    if response.status != 200:
        return Silent(f"status {response.status} for /version")
    try:
        raw = parsed(response.body)
    except ValueError:
        return Silent("a version that is no JSON")
    text = raw.get("etcdcluster") if isinstance(raw, dict) else None
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})\.", text) if isinstance(text, str) else None
    return (int(found[1]), int(found[2])) if found else Silent(f"no version of the cluster, but {printable(text)}")


def read_presence(response: Response) -> bool | Silent | None:
    """Whether a key of v2 is there: with something in it, if it is a folder. C{None} where there is no v2 API."""
    refusal = read_refusal(response.body)
    if response.status == 404:
        # Where there is no v2 API, this is the page of a web server that has nothing at this path.
        return None if refusal is None else False if refusal.code == NOT_FOUND else Silent(refusal.text)
    snapshot = read_snapshot(response)
    if isinstance(snapshot, str):
        return Silent(snapshot)
    return any(not node.folder for node in snapshot.nodes)


@implementer(IClaimStore)
@define(eq=False)
class ChosenEtcd:
    """
    The store of one version or the other. It is chosen when a watch begins; until then nothing is answered.

    @ivar http: for requests.
    @ivar endpoints: such as C{http://localhost:2379}.
    @ivar prefix: of all keys, such as C{/kiwi}.
    @ivar ttl: in seconds.
    @ivar backoff: the waits between tries.
    @ivar stores: makes the store of a version.
    @ivar user: who this agent is to etcd.
    """

    http: HTTPClient
    clock: IReactorTime
    endpoints: Sequence[str]
    prefix: str
    ttl: int
    backoff: BackoffPolicy
    stores: Mapping[int, Callable[[], IClaimStore]]
    user: EtcdUser | None = None
    _chosen: IClaimStore | None = field(default=None, init=False)
    _why: str = field(default="etcd has not been asked yet", init=False)

    log = logger("kiwi.claims")

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"it is not known yet whether claims are in API v2 or v3 of etcd: {self._why}")

    def acquire(self, address: Address) -> Deferred[Granted | Taken | Unavailable]:
        return succeed(self._unavailable()) if self._chosen is None else self._chosen.acquire(address)

    def renew(self, addresses: AbstractSet[Address]) -> Deferred[Mapping[Address, Granted | Lost | Unavailable]]:
        if self._chosen is None:
            return succeed(dict.fromkeys(addresses, self._unavailable()))
        return self._chosen.renew(addresses)

    def release(self, address: Address) -> Deferred[Released | Unavailable]:
        return succeed(self._unavailable()) if self._chosen is None else self._chosen.release(address)

    def register(
        self, record: AgentRecord, replacing: AgentRecord | None = None
    ) -> Deferred[Granted | Taken | Unavailable]:
        return succeed(self._unavailable()) if self._chosen is None else self._chosen.register(record, replacing)

    def deregister(self, record: AgentRecord) -> Deferred[Released | Unavailable]:
        return succeed(self._unavailable()) if self._chosen is None else self._chosen.deregister(record)

    def watch(self, changed: Callable[[Claims], None]) -> IService:
        return _ChoosingWatch(self, changed)

    async def choose(self) -> IClaimStore:
        """Ask until it is known which one it is."""
        backoff, began = Backoff(self.backoff), self.clock.seconds()
        while self._chosen is None:
            answers = await self._ask_all()
            version = etcd_version_of(answers, self.clock.seconds() - began >= self.ttl)
            if version is not None:
                self._say(version, answers)
                self._chosen = self.stores[version]()
                break
            self._note(answers)
            await deferLater(self.clock, backoff.failed())
        return self._chosen

    async def _ask_all(self) -> Sequence[Heard | Silent]:
        asking = [Deferred.fromCoroutine(self._ask(url)) for url in self.endpoints]
        try:
            return [await one for one in asking]
        finally:
            for one in asking:
                one.addErrback(lambda failure: None)
                one.cancel()

    async def _ask(self, url: str) -> Heard | Silent:
        base = url.rstrip("/")
        keys = f"{base}/v2/keys{quote(self.prefix)}"
        try:
            cluster = read_version(await self._get(f"{base}/version"))
            if isinstance(cluster, Silent):
                return cluster
            for path, there in (("/agents", "agents are there"), (HISTORY, "a fleet has left its name")):
                response = await self._get(f"{keys}{path}?quorum=true")
                forbidden = refused_user(response, self.user, self.prefix, path)
                if forbidden is not None:
                    return Heard(cluster, V2.FORBIDDEN, forbidden)
                present = read_presence(response)
                if isinstance(present, Silent):
                    return present
                if present is None:
                    return Heard(cluster, V2.ABSENT, "it does not serve v2")
                if present:
                    return Heard(cluster, V2.FLEET, f"{there}, in {printable(self.prefix)}{path}")
            return Heard(cluster, V2.EMPTY)
        except HTTPError as error:
            return Silent(str(error))
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 whatever it was, the next answer may be better
            self.log.failure("etcd could not be asked for its version")
            return Silent(printable(error))

    def _get(self, url: str) -> Deferred[Response]:
        return request(
            self.http,
            self.clock,
            "GET",
            url,
            timeout=self.ttl * CLAIM_TIME,
            limit=2**20,
            headers=user_headers(self.user),
        )

    def _note(self, answers: Sequence[Heard | Silent]) -> None:
        why = "; ".join(
            f"{printable(url)}: {answer.why if isinstance(answer, Silent) else answer.note or 'it cannot say alone'}"
            for url, answer in zip(self.endpoints, answers, strict=True)
        )
        if why != self._why:
            self._why = why
            self.log.warn("{unavailable}; asking again and again", unavailable=self._unavailable().reason)

    def _say(self, version: int, answers: Sequence[Heard | Silent]) -> None:
        heard = [answer for answer in answers if isinstance(answer, Heard)]
        fleet = next((answer.note for answer in heard if answer.v2 is V2.FLEET), None)
        if version == 2 and fleet is not None and min(answer.cluster for answer in heard) >= FIRST_WITH_V3:
            self.log.info(
                "claims stay in API v2 of etcd, although it has v3 as well: {fleet}; docs/stores.rst says how to move",
                fleet=fleet,
            )
        else:
            self.log.info("claims are in API v{version} of etcd", version=version)


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)


@define(eq=False)
class _ChoosingWatch(Service):
    """The watch of the store that is chosen, once it is."""

    _store: ChosenEtcd
    _changed: Callable[[Claims], None]
    _choosing: Deferred[Any] | None = field(default=None, init=False)
    _watch: IService | None = field(default=None, init=False)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        choosing = self._choosing = Deferred.fromCoroutine(self._store.choose())
        choosing.addCallbacks(self._follow, _cancelled)
        choosing.addErrback(lambda failure: self._store.log.failure("the claim store could not be chosen", failure))

    def _follow(self, store: IClaimStore) -> None:
        self._watch = store.watch(self._changed)
        self._watch.startService()

    def stopService(self) -> object:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._choosing is not None:
            self._choosing.cancel()
        watch, self._watch = self._watch, None
        return None if watch is None else watch.stopService()
