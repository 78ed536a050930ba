"""Following the objects of a kind in a cluster: list, then watch, for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from twisted.application import service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from kiwi.backoff import Backoff, BackoffPolicy
from kiwi.logs import logger, printable

from .api import Absent, Broken, Trouble, Unreachable
from .client import Ended, NoList, Objects
from .decoding import Bookmark, Changed, Deleted, Expired, Listed, Nonsense
from .known import Known

# Note [Losing nothing]
# What is known stays known until a server says otherwise, and taking everything away needs more than one word: a
# server that has just been restarted may answer with an empty list before it has read its own store. So a list that
# would leave nothing, where there was something, is asked for again during DOUBT seconds. A deletion, on the other
# hand, is something that somebody did, and is believed at once. Where nothing is known yet, an empty list is believed,
# but asked for once more after a while: a watch that begins there never tells of what the list has left out.

# Note [Where to watch from]
# A watch that was open and ended is followed by one from the last resource version that was seen. That misses nothing
# and costs nothing, but it only holds within one history. So everything is listed anew after anything else: the
# version is too old (410), the server reported an error or could not be reached (it may come back with another
# history), it was silent, or the last list is RELIST seconds old (which mends whatever else went unnoticed, such as an
# event that could not be read).

# Note [Only a watch]
# A server of the older versions that has no list (404) may still have a watch, which repeats all Services when it
# opens. What it does not repeat within STEADY seconds is gone. At first, they are known when the repetition pauses for
# SETTLED seconds: to tell of half of them would take away the addresses of the other half after a restart of the agent.

# Note [Flapping]
# A watch counts as a connection when it has been open for STEADY seconds. One that ends earlier is a failure like those
# before it: the waits go on growing, and the log does not hear of every turn.

DOUBT = 5.0
DOUBT_INTERVAL = 1.0
DOUBT_AT_FIRST = 6.0
RELIST = 600.0
SETTLED = 0.5
STEADY = 5.0
"""Seconds, all of them."""


def _cancel(call: IDelayedCall | None) -> None:
    if call is not None and call.active():
        call.cancel()


def _over(result: object, seconds: float) -> Any:
    """A watch has lasted as long as it was meant to."""
    if isinstance(result, Failure):
        result.trap(CancelledError)
    return Ended()


N = TypeVar("N")
T = TypeVar("T")


class ObjectWatch(service.Service, Generic[N, T]):
    """
    While it runs, it calls C{changed} with all that there is to know: once that is known at first, and whenever it
    changes, at most once in a turn of the reactor. The mapping stays as it is afterwards. It connects again for ever
    and keeps what it knows in between. See Note [Losing nothing].
    """

    log: Logger = logger("kiwi")

    def __init__(
        self,
        objects: Objects[N, T],
        api: str,
        backoff: BackoffPolicy,
        changed: Callable[[Mapping[N, T]], None],
        counted: str = "",
        absent: Callable[[], None] = lambda: None,
    ) -> None:
        """
        @param api: a version of the API, or C{auto} for the newest that the server offers.
        @param counted: for the log, which of the objects are told of: words that go behind a number of them.
        @param absent: called each time that the server says to have no such objects, in no version that Kiwi speaks.
        """
        self._clock = objects.api.clock
        self._endpoint = printable(objects.api.endpoint)
        self._objects = objects
        self._kind = objects.kind.kind
        self._counted = f" {counted}" if counted else ""
        self._api = api
        self._backoff = Backoff(backoff)
        self._changed = changed
        self._absent = absent
        self._loop: Deferred[None] | None = None
        self._telling: IDelayedCall | None = None
        # What is known of the objects. It is complete once they have been known in full.
        self._known: Known[N, T] = Known()
        self._complete = False
        # What is known of the server: its version, where to watch from (None: list first), and when it was listed.
        self._version: str | None = None
        self._since: str | None = None
        self._listed = 0.0
        self._is_doubtful = False
        # What the log has heard.
        self._connected = False
        self._flapping = False
        self._told: set[type[Trouble]] = set()
        # The watch that is open: what it has not repeated yet, and its timers.
        self._unrepeated: set[N] = set()
        self._proving: IDelayedCall | None = None
        self._settling: IDelayedCall | None = None

    def startService(self) -> None:
        """Begin to follow."""
        super().startService()  # type: ignore[no-untyped-call]
        self._start(0)

    def stopService(self) -> None:
        """Close every connection and cancel every timer."""
        super().stopService()  # type: ignore[no-untyped-call]
        _cancel(self._telling)
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()

    @property
    def version(self) -> str | None:
        """The version of the API by which they are followed, or C{None} while that is not known."""
        return self._version

    def _start(self, wait: float) -> None:
        self._loop = Deferred.fromCoroutine(self._run(wait))
        self._loop.addErrback(self._ended)

    def _ended(self, failure: Failure) -> None:
        """The loop ends because it was cancelled, or by a mistake of ours, which must not be the end of it."""
        if self.running:
            self.log.failure("a mistake in Kiwi keeps it from following Kubernetes, trying again", failure=failure)
            self._version = self._since = None
            self._start(self._backoff.failed())

    async def _run(self, wait: float) -> None:
        while True:
            await deferLater(self._clock, wait)
            try:
                orderly = await self._follow()
                wait = 0.0 if orderly else self._backoff.failed()
            except Trouble as trouble:
                wait = max(self._backoff.failed(), trouble.wait)
                self._lost(trouble)
                self.log.debug("trying Kubernetes again in {wait:.2f} s: {reason}", wait=wait, reason=str(trouble))

    async def _follow(self) -> bool:
        """From what is known of the server to the end of one watch. Whether the next one may begin at once."""
        if self._version is None:
            self._version = await self._objects.detect() if self._api == "auto" else self._api
        if self._since is None or self._clock.seconds() - self._listed >= self._list_lasts:
            self._since = await self._list(self._version)
        self._unrepeated = self._known.names() if self._since is None else set()
        watching = Deferred.fromCoroutine(
            self._objects.watch(self._version, self._since or "", self._opened, self._happened)
        )
        if self._is_doubtful:
            watching.addTimeout(DOUBT_AT_FIRST, self._clock, _over)
        try:
            end = await watching
        finally:
            _cancel(self._proving)
            _cancel(self._settling)
        if not isinstance(end, Ended):
            self._since = None
        return not self._flapping and not isinstance(end, Expired)

    @property
    def _list_lasts(self) -> float:
        """Seconds from one list to the next one."""
        return DOUBT_AT_FIRST if self._is_doubtful else RELIST

    def _lost(self, trouble: Trouble) -> None:
        if not isinstance(trouble, Broken):
            # See Note [Where to watch from].
            self._since = None
        if isinstance(trouble, Absent):
            self._version = None
            self._absent()
        kind = Unreachable if isinstance(trouble, Unreachable) else type(trouble)
        if kind in self._told:
            return
        self._told.add(kind)
        self._connected = False
        self.log.warn(
            "cannot follow Kubernetes at {endpoint}: {reason}; the {kind}s known so far stay ({count}{counted})",
            endpoint=self._endpoint,
            reason=str(trouble),
            kind=self._kind,
            count=len(self._known),
            counted=self._counted or " of them",
        )

    def _is_connected(self) -> None:
        self._told.clear()
        if not self._connected:
            self._connected = True
            self.log.info(
                "following {kind}s from Kubernetes at {endpoint}, API {version}: {count}{counted}",
                kind=self._kind,
                endpoint=self._endpoint,
                version=self._version,
                count=len(self._known),
                counted=self._counted,
            )

    async def _list(self, version: str) -> str | None:
        """Learn how everything is. Where to watch from, or C{None} where the server has no list."""
        doubted: float | None = None
        while True:
            listed = await self._objects.list(version)
            if isinstance(listed, NoList):
                # See Note [Only a watch].
                return None
            now = self._clock.seconds()
            if not self._takes_everything(listed) or (doubted is not None and now - doubted >= DOUBT):
                break
            if doubted is None:
                doubted = now
                self.log.warn(
                    "Kubernetes at {endpoint} lists no {kind}{counted}, where there were {count}; "
                    "they stay unless it says the same for {seconds:g} s",
                    endpoint=self._endpoint,
                    kind=self._kind,
                    counted=self._counted,
                    count=len(self._known),
                    seconds=DOUBT,
                )
            await deferLater(self._clock, DOUBT_INTERVAL)
        self._listed = now
        self._is_doubtful = listed.empty and not self._is_doubtful
        edition = self._known.edition
        self._report(self._known.replace(listed.items))
        self._news(edition)
        self._completed()
        return listed.resource_version

    def _takes_everything(self, listed: Listed[N, T]) -> bool:
        return len(self._known) > 0 and not any(each.value for each in listed.items)

    def _opened(self) -> None:
        if not self._flapping:
            self._is_connected()
        # See Note [Flapping].
        self._flapping = True
        self._proving = self._clock.callLater(STEADY, self._proved)

    def _proved(self) -> None:
        self._flapping = False
        self._backoff.succeeded()
        self._is_connected()
        edition = self._known.edition
        for name in self._unrepeated:
            self._known.forget(name)
        self._unrepeated = set()
        self._news(edition)
        self._completed()

    def _happened(self, event: Changed[N, T] | Deleted[N] | Bookmark | Nonsense) -> None:
        """Learn from one event."""
        if not self._complete:
            _cancel(self._settling)
            self._settling = self._clock.callLater(SETTLED, self._completed)
        if isinstance(event, Nonsense):
            self.log.warn("an event from Kubernetes makes no sense: {problem}", problem=event.problem)
            return
        edition = self._known.edition
        if isinstance(event, Changed):
            if event.decoded.name is not None:
                self._unrepeated.discard(event.decoded.name)
            self._report(self._known.learn(event.decoded))
        elif isinstance(event, Deleted):
            self._known.forget(event.name)
        if self._since is not None and event.resource_version:
            self._since = event.resource_version
        self._news(edition)

    def _report(self, problems: list[tuple[N | None, str]]) -> None:
        for name, problem in problems:
            if name is None:
                self.log.warn("one {kind} from Kubernetes is left aside: {problem}", kind=self._kind, problem=problem)
            else:
                self.log.warn("{kind} {name}: {problem}", kind=self._kind, name=str(name), problem=problem)

    def _completed(self) -> None:
        """They are known in full."""
        if not self._complete:
            self._complete = True
            self._tell_soon()

    def _news(self, edition: int) -> None:
        """Tell what is known if that is something else than in that edition."""
        if self._complete and self._known.edition != edition:
            self._tell_soon()

    def _tell_soon(self) -> None:
        if self._telling is None or not self._telling.active():
            self._telling = self._clock.callLater(0, lambda: self._changed(self._known.values()))
