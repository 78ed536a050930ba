"""
Lists and watches of one kind of object.

Protocol facts are from the page "Kubernetes API Concepts" (chunks, watches, bookmarks, 410 Gone), and for C{v1beta1}
and C{v1beta3} from the API server of those versions, which has its watches under C{/watch/} and begins a watch without
a resource version by repeating all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from attrs import field, frozen

from kiwi.http import HTTPError, Response

from .api import REQUEST_TIMEOUT, Absent, Broken, KubernetesAPI, Senseless, Unreachable, trouble_of
from .decoding import (
    Bookmark,
    Changed,
    Decoded,
    Deleted,
    Expired,
    Kind,
    Listed,
    Nonsense,
    ServerError,
    decode_event,
    decode_list,
    parse,
)
from .reading import quoted

# Note [Silence]
# A connection that is only half there looks like a cluster in which nothing happens, and so does one that something in
# between has forgotten. A watch of today ends by itself after the timeoutSeconds that it asked for, so silence beyond
# that means a dead peer; since the next one goes on where it ended, it asks for less than the minute after which some
# load balancers cut connections. The oldest versions promise no such end: there, SILENCE seconds without a word end the
# watch. Silence is no trouble in either case. A dead peer becomes one when the request that follows fails.

LONGEST_WATCH = (48.0, 56.0)
LENIENCE = 15.0
SILENCE = 60.0
"""Seconds, all of them. See Note [Silence]."""

PAGE = 500
"""Objects that a server is asked for at once."""

N = TypeVar("N")
T = TypeVar("T")


class _Over(Exception):
    """The server has forgotten what came after the resource version."""


@frozen
class NoList:
    """The server has no list of these objects. It may still have a watch."""


@frozen
class Ended:
    """The server ended the watch, as it does now and then."""


@frozen
class Silent:
    """Nothing was heard for so long that the connection may be dead. See Note [Silence]."""


@frozen
class Objects(Generic[N, T]):
    """
    The objects of one kind. Whatever keeps an answer from coming raises L{kiwi.kubernetes.api.Trouble}.

    @ivar namespace: of the objects; empty for all namespaces.
    @ivar selector: which of them, as parameters of the API: C{fieldSelector} and C{labelSelector}.
    @ivar timeout: seconds for a part of a list, and for opening a watch.
    @ivar lasting: the least and the most seconds that a watch is asked to last.
    """

    api: KubernetesAPI
    kind: Kind[N, T]
    namespace: str = ""
    selector: Mapping[str, str] = field(factory=dict)
    timeout: float = REQUEST_TIMEOUT
    lasting: tuple[float, float] = LONGEST_WATCH

    async def detect(self) -> str:
        """The newest version that the server offers and Kiwi speaks: by its own word, or else by trying each."""
        root = f"/apis/{self.kind.group}" if self.kind.group else "/api"
        response = await self.api.ask("GET", root)
        if response.status not in (200, 401, 403, 404):
            raise trouble_of(response, "see the API versions", root)
        document = parse(response.body) if response.status == 200 else {}
        offered = None if isinstance(document, Nonsense) else document.get("versions")
        if not isinstance(offered, list):
            return await self._try_each()
        names = [each.get("version") if isinstance(each, dict) else each for each in offered]
        for version in self.kind.versions:
            if version in names:
                return version
        shown = ", ".join(quoted(each, 20) for each in names[:10] if isinstance(each, str)) or "no version"
        raise Absent(f"it offers {shown}, and {self._spoken}")

    async def _try_each(self) -> str:
        for version in self.kind.versions:
            path = self._path(version)
            response = await self.api.ask("GET", path, {"limit": "1"})
            if response.status == 200:
                return version
            if response.status in (401, 403, 429) or response.status >= 500:
                raise trouble_of(response, f"list {self.kind.plural}", path)
        if self._is_paged(self.kind.versions[-1]):
            raise Absent(f"it has no {self._path(self.kind.versions[-1])} (status 404), and {self._spoken}")
        # The oldest has a watch even where it has no list. Whether this server has it shows when it is opened.
        return self.kind.versions[-1]

    async def list(self, version: str) -> Listed[N, T] | NoList:
        """All of them, but for those of which there is nothing to know."""
        try:
            return await self._list(version, PAGE)
        except _Over:
            # It took so long that the server has forgotten how things were at its beginning.
            return await self._list(version, 0)

    async def _list(self, version: str, page: int) -> Listed[N, T] | NoList:
        path, params = self._path(version), dict(self.selector)
        if page and self._is_paged(version):
            params["limit"] = str(page)
        items: list[Decoded[N, T]] = []
        empty = True
        while True:
            response = await self.api.ask("GET", path, params or None, timeout=self.timeout)
            if response.status == 404 and not self._is_paged(version):
                return NoList()
            if response.status == 410 and "continue" in params:
                raise _Over
            if response.status != 200:
                raise self._trouble(response, "list", path)
            listed = decode_list(self.kind, version, response.body)
            if isinstance(listed, Nonsense):
                raise Senseless(f"its list of {self.kind.plural} makes no sense: {listed.problem}")
            empty = empty and not listed.items
            items += (item for item in listed.items if item.value is not None or item.problems)
            if not listed.more:
                return Listed(tuple(items), listed.resource_version, empty=empty)
            params["continue"] = listed.more

    async def watch(
        self,
        version: str,
        since: str,
        opened: Callable[[], None],
        happened: Callable[[Changed[N, T] | Deleted[N] | Bookmark | Nonsense], None],
        idle: float | None = None,
    ) -> Ended | Silent | Expired:
        """
        What happens to them, until the watch ends.

        @param since: the resource version after which to begin. Where it is empty, the server begins with all there is.
        @param opened: called when the server has agreed.
        @param happened: called with each event.
        @param idle: seconds of silence that are in order, where those of Note [Silence] are not meant.
        @raise Broken: when the connection breaks after it was opened.
        """
        path, params, patience = self._watch_request(version, since)
        patience = patience if idle is None else idle
        heard: float | None = None

        def agreed(response: Response) -> None:
            nonlocal heard
            heard = self.api.clock.seconds()
            opened()

        def line(data: bytes) -> None:
            nonlocal heard
            heard = self.api.clock.seconds()
            event = decode_event(self.kind, version, data)
            # What is raised here closes the connection and comes out below.
            if isinstance(event, Expired):
                raise _Over
            if isinstance(event, ServerError):
                raise Unreachable(f"it ended the watch: {event.reason}")
            happened(event)

        try:
            response = await self.api.follow(
                path,
                params,
                agreed,
                line,
                lambda size: happened(Nonsense(f"a line of {size} bytes is too long")),
                self.timeout,
                patience,
            )
        except _Over:
            return Expired()
        except HTTPError as error:
            if heard is None:
                raise Unreachable(str(error)) from error
            if self.api.clock.seconds() - heard > patience - 1:
                return Silent()
            raise Broken(str(error)) from error
        if response is None:
            return Ended()
        if response.status == 410:
            return Expired()
        raise self._trouble(response, "watch", path)

    def _watch_request(self, version: str, since: str) -> tuple[str, Mapping[str, str], float]:
        """Path, parameters, and the seconds of silence that are in order."""
        params = {**self.selector, "resourceVersion": since} if since else dict(self.selector)
        if not self._is_paged(version):
            return f"/api/{version}/watch/{self.kind.plural}", params, SILENCE
        seconds = int(self.api.uniform(*self.lasting))
        params |= {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        return self._path(version), params, seconds + LENIENCE

    def _path(self, version: str) -> str:
        return self.kind.path(version, self.namespace)

    def _is_paged(self, version: str) -> bool:
        """Whether this is an API as it is today: with lists in chunks, and watches that are requests like others."""
        return bool(self.kind.group) or version == "v1"

    def _trouble(self, response: Response, verb: str, path: str) -> Exception:
        if response.status == 404:
            return Absent(f"it has no {path} (status 404), and {self._spoken}")
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return trouble_of(response, f"{verb} {self.kind.plural}{where}", path)

    @property
    def _spoken(self) -> str:
        *others, last = self.kind.versions
        group = f" of {self.kind.group}" if self.kind.group else ""
        return f"Kiwi speaks {', '.join(others)} and {last}{group}" if others else f"Kiwi speaks {last}{group}"
