"""
Asking an API server for Services.

Protocol facts are from the page "Kubernetes API Concepts" (watches, bookmarks, 410 Gone), and for C{v1beta1} and
C{v1beta3} from the API server of those versions, which has its watches under C{/watch/} and begins a watch without a
resource version by repeating all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import frozen
from treq.client import HTTPClient
from twisted.internet.interfaces import IReactorTime

from kiwi.backoff import Uniform
from kiwi.http import HTTPError, Response, request, stream
from kiwi.model import Service, ServiceName

from .decoding import (
    Bookmark,
    Changed,
    Deleted,
    Expired,
    Listed,
    Nonsense,
    ServerError,
    decode_event,
    decode_list,
    describe_status,
    parse,
)
from .reading import quoted
from .services import SERVICES, VERSIONS

# Note [Silence]
# A connection that is only half there looks like a cluster in which nothing happens. A v1 watch ends by itself after
# the timeoutSeconds that it asked for, so silence well beyond that means a dead peer. The older versions promise no
# such end: there, SILENCE seconds without a word end the watch. Silence is no trouble in either case. A dead peer
# becomes one when the request that follows fails.

SILENCE = 60.0
OPEN_TIMEOUT = 30.0
REQUEST_TIMEOUT = 30.0
LONGEST_RETRY_AFTER = 60.0
"""Seconds, all of them."""

_SPOKEN = f"Kiwi speaks {', '.join(VERSIONS[:-1])} and {VERSIONS[-1]}"


class Trouble(Exception):
    """
    The server gives no Services for now. The text is one printable line: what the server ("it") said or did.

    @ivar wait: the least number of seconds before the next try.
    """

    wait = 0.0


class Unreachable(Trouble):
    """There is no answer, or one that says to come later."""


class Broken(Unreachable):
    """A watch that was open broke off."""


class Forbidden(Trouble):
    """The server does not know this agent, or does not let it see Services."""


class Absent(Trouble):
    """The server does not have what was asked for."""


class Senseless(Trouble):
    """The answer cannot be understood."""


class _Over(Exception):
    """The server has forgotten what came after the resource version."""


@frozen
class NoList:
    """The server has no list of Services. It may still have a watch."""


@frozen
class Ended:
    """The server ended the watch, as it does now and then."""


@frozen
class Silent:
    """Nothing was heard for so long that the connection may be dead. See Note [Silence]."""


def _trouble(response: Response, what: str, path: str) -> Trouble:
    """What a status that was not hoped for means."""
    status = response.status
    document = parse(response.body)
    said = "" if isinstance(document, Nonsense) else describe_status(document)
    because = f": {said}" if said else ""
    if status in (401, 403):
        return Forbidden(f"it does not let this agent {what} (status {status}{because})")
    if status == 404:
        return Absent(f"it has no {path} (status 404), and {_SPOKEN}")
    trouble = Unreachable(f"it answers {path} with status {status}{because}")
    after = response.header("Retry-After") or ""
    if status in (429, 503) and after.isascii() and after.isdigit():
        # Cut, because a number of thousands of digits is not worth reading.
        trouble.wait = min(float(after[:9]), LONGEST_RETRY_AFTER)
    return trouble


@frozen
class ServicesAPI:
    """
    The part of an API server that has to do with Services. Whatever keeps an answer from coming raises L{Trouble}.

    @ivar http: for requests; may keep connections.
    @ivar stream_http: for watches; a connection for each.
    @ivar endpoint: the URL of the server.
    @ivar uniform: spreads the ends of watches.
    """

    http: HTTPClient
    stream_http: HTTPClient
    clock: IReactorTime
    endpoint: str
    uniform: Uniform

    async def detect(self) -> str:
        """The newest version that the server offers: by its own word, or else by trying each."""
        response = await self._get("/api")
        if response.status not in (200, 401, 403, 404):
            raise _trouble(response, "see the API versions", "/api")
        document = parse(response.body) if response.status == 200 else {}
        offered = None if isinstance(document, Nonsense) else document.get("versions")
        if not isinstance(offered, list):
            return await self._try_each()
        for version in VERSIONS:
            if version in offered:
                return version
        shown = ", ".join(quoted(each, 20) for each in offered[:10] if isinstance(each, str)) or "no version"
        raise Absent(f"it offers {shown}, and {_SPOKEN}")

    async def _try_each(self) -> str:
        for version in VERSIONS:
            path = f"/api/{version}/services"
            response = await self._get(path, {"limit": "1"})
            if response.status == 200:
                return version
            if response.status in (401, 403, 429) or response.status >= 500:
                raise _trouble(response, "list services", path)
        # The oldest has a watch even where it has no list. Whether this server has it shows when it is opened.
        return VERSIONS[-1]

    async def list(self, version: str) -> Listed[ServiceName, Service] | NoList:
        """All Services of all namespaces."""
        path = f"/api/{version}/services"
        response = await self._get(path)
        if response.status == 404 and version != "v1":
            return NoList()
        if response.status != 200:
            raise _trouble(response, "list services", path)
        listed = decode_list(SERVICES, version, response.body)
        if isinstance(listed, Nonsense):
            raise Senseless(f"its list of services makes no sense: {listed.problem}")
        return listed

    async def watch(
        self,
        version: str,
        since: str,
        opened: Callable[[], None],
        happened: Callable[[Changed[ServiceName, Service] | Deleted[ServiceName] | Bookmark | Nonsense], None],
    ) -> Ended | Silent | Expired:
        """
        What happens to Services, until the watch ends.

        @param since: the resource version after which to begin. Where it is empty, the server begins with all there is.
        @param opened: called when the server has agreed.
        @param happened: called with each event.
        @raise Broken: when the connection breaks after it was opened.
        """
        path, params, patience = self._watch_request(version, since)
        heard: float | None = None

        def agreed(response: Response) -> None:
            nonlocal heard
            heard = self.clock.seconds()
            opened()

        def line(data: bytes) -> None:
            nonlocal heard
            heard = self.clock.seconds()
            event = decode_event(SERVICES, version, data)
            # What is raised here closes the connection and comes out below.
            if isinstance(event, Expired):
                raise _Over
            if isinstance(event, ServerError):
                raise Unreachable(f"it ended the watch: {event.reason}")
            happened(event)

        try:
            response = await stream(
                self.stream_http,
                self.clock,
                self.endpoint + path,
                params=params,
                opened=agreed,
                line=line,
                overlong=lambda size: happened(Nonsense(f"a line of {size} bytes is too long")),
                open_timeout=OPEN_TIMEOUT,
                idle_timeout=patience,
            )
        except _Over:
            return Expired()
        except HTTPError as error:
            if heard is None:
                raise Unreachable(str(error)) from error
            if self.clock.seconds() - heard > patience - 1:
                return Silent()
            raise Broken(str(error)) from error
        if response is None:
            return Ended()
        if response.status == 410:
            return Expired()
        raise _trouble(response, "watch services", path)

    def _watch_request(self, version: str, since: str) -> tuple[str, Mapping[str, str], float]:
        """Path, parameters, and the seconds of silence that are in order."""
        params = {"resourceVersion": since} if since else {}
        if version != "v1":
            return f"/api/{version}/watch/services", params, SILENCE
        seconds = int(self.uniform(270, 330))
        params |= {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        return "/api/v1/services", params, seconds + 30.0

    async def _get(self, path: str, params: Mapping[str, str] | None = None) -> Response:
        try:
            return await request(
                self.http, self.clock, "GET", self.endpoint + path, timeout=REQUEST_TIMEOUT, params=params
            )
        except HTTPError as error:
            raise Unreachable(str(error)) from error
