"""Requests with one time limit for the whole of them, and streams of lines that can be cancelled."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from attrs import define, field, frozen
from hyperlink import EncodedURL
from OpenSSL import SSL
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (  # type: ignore[attr-defined]
    RequestGenerationFailed,
    RequestNotSent,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from .logs import printable

T = TypeVar("T")


class HTTPError(Exception):
    """No whole response. Its text is one printable line that says why."""


@frozen
class Response:
    """A whole response."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        """The last value of a header, or C{None}."""
        values = self.headers.getRawHeaders(name)
        return values[-1] if values else None


_WRAPPERS = (RequestGenerationFailed, RequestTransmissionFailed, ResponseFailed)

_FAILURES = (
    *_WRAPPERS,
    ConnectError,
    ConnectTimeout,
    ConnectingCancelledError,
    ConnectionClosed,
    DNSLookupError,
    PotentialDataLoss,
    RequestNotSent,
    SSL.Error,
    OSError,
)


def _reason(failure: Failure) -> str:
    """What went wrong underneath, in one line."""
    error = failure.value
    if isinstance(error, _WRAPPERS) and error.reasons:
        return _reason(error.reasons[0])
    if isinstance(error, SSL.Error):
        return printable(f"TLS failed: {describe(error)}")
    text = " ".join(str(error).split()).rstrip(".")
    return printable(text or type(error).__name__)


def describe(error: Exception) -> str:
    """What OpenSSL has to say. Its errors carry a list of library, function and reason."""
    if len(error.args) == 1 and isinstance(error.args[0], list):
        return "; ".join(str(reason) for *_, reason in error.args[0]) or type(error).__name__
    return str(error) or type(error).__name__


def basic(username: str, password: str) -> Mapping[str, str]:
    """The headers that show a name and a password (RFC 7617). Raises L{ValueError} where the name cannot be one."""
    if ":" in username:
        raise ValueError("there is a colon in the username, which cannot be sent")
    return {"Authorization": f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"}


def _nothing_within(result: object, seconds: float) -> Any:
    raise HTTPError(f"no answer within {seconds:g} s")


def _cancellable(work: Coroutine[Any, Any, T], cancelled: Callable[[], None] = lambda: None) -> Deferred[T]:
    """
    A Deferred for C{work} that fails with L{CancelledError} when it is cancelled, whatever the layers below make of
    that; and with L{HTTPError} for what a broken connection raises.

    @param cancelled: told first, for work that is cancelled by a function that it calls itself.
    """

    # Not the Deferred of the work itself: a cancelled request ends with ConnectingCancelledError or
    # ResponseNeverReceived, depending on how far it came, which a caller could not tell from a broken connection.
    cancelling = False

    def cancel(_: object) -> None:
        nonlocal cancelling
        cancelling = True
        cancelled()
        inner.cancel()

    def ended(result: T | Failure) -> None:
        if cancelling:
            # Deferred.cancel fires it with CancelledError as soon as the canceller returns.
            return
        if not isinstance(result, Failure):
            outer.callback(result)
        elif result.check(*_FAILURES):
            outer.errback(Failure(HTTPError(_reason(result))))
        else:
            outer.errback(result)

    outer: Deferred[T] = Deferred(cancel)
    inner = Deferred.fromCoroutine(work)
    inner.addBoth(ended)
    return outer


def _close(transport: Any) -> None:
    """Close at once, without waiting for the peer (which may be dead)."""
    # What a response has for a transport is a proxy that knows only loseConnection, and that one waits for the peer's
    # farewell on TLS. The real transport is behind it, until the response has ended (when it may serve another one).
    real = getattr(transport, "_producer", transport)
    if real is not None:
        getattr(real, "abortConnection", real.loseConnection)()


@define(eq=False)
class _Body(Protocol):
    """Gathers a body, up to a limit."""

    limit: int
    done: Deferred[bytes] = field(init=False)
    _chunks: list[bytes] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.done = Deferred(lambda _: _close(self.transport))

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self.limit:
            self._chunks.append(data)
        elif not self.done.called:
            self._chunks.clear()
            self.done.errback(Failure(HTTPError(f"the response is larger than {self.limit} bytes")))
            _close(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._chunks))
        else:
            self.done.errback(reason)


async def _whole(response: IResponse, limit: int) -> Response:
    body = _Body(limit)
    response.deliverBody(body)
    return Response(response.code, response.headers, await body.done)


def request(
    http: HTTPClient,
    clock: IReactorTime,
    method: str,
    url: str,
    *,
    timeout: float,
    limit: int = 256 * 2**20,
    params: Mapping[str, str] | None = None,
    data: dict[str, str] | bytes | None = None,
    headers: dict[bytes | str, bytes | str] | None = None,
) -> Deferred[Response]:
    """
    A response with its body, whatever its status. Redirects are not followed.

    @param timeout: seconds for all of it, from now until the last byte.
    @param limit: the largest body that is taken, in bytes.
    @param data: a form, or a body as it is.

    The Deferred fails with L{HTTPError}. Cancelling it closes the connection.
    """

    async def whole() -> Response:
        response = await _respond(http, clock, method, url, params=params, data=data, headers=headers)
        return await _whole(response, limit)

    return _cancellable(whole()).addTimeout(timeout, clock, _nothing_within)


class _Verbatim(EncodedURL):
    """
    A URL that goes out as it is written. treq would take it apart, check the host's name, and write it again, which is
    a seventh of what a request costs.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def to_uri(self) -> EncodedURL:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return self._text

    def __getattr__(self, name: str) -> Any:
        """Whatever else may be asked of it."""
        return getattr(EncodedURL.from_text(self._text), name)


def _respond(
    http: HTTPClient, clock: Any, method: str, url: str, *, params: Any, headers: Any, data: Any = None
) -> Deferred[IResponse]:
    """Status and headers, with the body still to come."""
    return http.request(  # type: ignore[return-value]
        method,
        _Verbatim(url) if url.isascii() and not params else url,
        params=params,
        data=data,
        headers=headers,
        allow_redirects=False,
        unbuffered=True,
        # treq would import the global one.
        reactor=clock,
    )


@define(eq=False)
class _Lines(Protocol):
    """Splits a body into lines. A line that is too long is passed over, and the ones after it still come."""

    line: Callable[[bytes], None]
    overlong: Callable[[int], None]
    alive: Callable[[], None]
    limit: int
    done: Deferred[None] = field(init=False)
    _parts: list[bytes] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.done = Deferred(lambda _: self.close())

    def dataReceived(self, data: bytes) -> None:
        if self.done.called:
            return
        self.alive()
        try:
            self._split(data)
        except Exception:  # noqa: BLE001 what the caller's own functions raise goes to the caller
            self.fail(Failure())

    def _split(self, data: bytes) -> None:
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._add(part)
            size, line = self._size, b"".join(self._parts)
            self._parts, self._size = [], 0
            if size > self.limit:
                self.overlong(size)
            elif line and not line.isspace():
                self.line(line)
            if self.done.called:
                return
        self._add(rest)

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self.limit:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(None)
        else:
            self.done.errback(reason)

    def fail(self, reason: Failure) -> None:
        """End with this, whether or not the peer ever lets go."""
        if not self.done.called:
            self.done.errback(reason)
            self.close()

    def close(self) -> None:
        _close(self.transport)


def stream(
    http: HTTPClient,
    clock: IReactorTime,
    url: str,
    *,
    opened: Callable[[Response], None],
    line: Callable[[bytes], None],
    overlong: Callable[[int], None],
    open_timeout: float,
    idle_timeout: float,
    limit: int = 8 * 2**20,
    params: Mapping[str, str] | None = None,
    headers: dict[bytes | str, bytes | str] | None = None,
    method: str = "GET",
    data: bytes | None = None,
) -> Deferred[Response | None]:
    """
    Follow a response that does not end by itself. Redirects are not followed.

    @param opened: told of status and headers (the body is empty there) when the status is 200.
    @param line: told of every line that is not blank, without its end. What it (or another of these functions) raises
        is the caller's mistake: it ends the stream and fails the Deferred. A last line without an end is not told.
    @param overlong: told the length of each line that was passed over for being longer than C{limit} bytes.
    @param open_timeout: seconds until the headers are there.
    @param idle_timeout: seconds without a byte, after which the connection counts as dead.

    The Deferred fires with C{None} when the server ends the stream, and with the whole response where its status is not
    200. It fails with L{HTTPError} when the connection breaks or is silent for too long. Cancelling it closes the
    connection, and nothing is told any more.
    """

    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True

    async def follow() -> Response | None:
        response = await _respond(http, clock, method, url, params=params, headers=headers, data=data).addTimeout(
            open_timeout, clock, _nothing_within
        )
        if response.code != 200:
            return await Deferred.fromCoroutine(_whole(response, 2**20)).addTimeout(
                open_timeout, clock, _nothing_within
            )
        lines = _Lines(line, overlong, lambda: idle.reset(idle_timeout), limit)
        # A dead peer may keep connectionLost from ever being called, so that silence ends our own Deferred first.
        idle: IDelayedCall = clock.callLater(
            idle_timeout, lambda: lines.fail(Failure(HTTPError(f"nothing was heard for {idle_timeout:g} s")))
        )
        try:
            opened(Response(response.code, response.headers, b""))
        except Exception:  # noqa: BLE001 it goes to the caller, once the connection is closed
            lines.fail(Failure())
        if stopped:
            lines.fail(Failure(CancelledError()))
        try:
            response.deliverBody(lines)
            if lines.done.called:
                lines.close()
            await lines.done
        finally:
            if idle.active():
                idle.cancel()
        return None

    return _cancellable(follow(), stop)


def hedged(
    clock: IReactorTime, send: Callable[[], Deferred[Response]], interval: float, most: int
) -> Deferred[Response]:
    """
    The first response to a request that may be repeated: while there is none it is sent again, so that a reply which is
    lost costs an interval and not a time limit.

    @param send: sends it, each time on a connection of its own.
    @param interval: seconds between one sending and the next.
    @param most: how often it is sent at the most.

    The Deferred fails as the first one did, as soon as none is under way. Cancelling it cancels all.
    """
    flying: list[Deferred[Response]] = []
    again: IDelayedCall | None = None
    settled = False
    sent = 0
    first_failure: Failure | None = None

    def go() -> None:
        nonlocal again, sent
        sent += 1
        again = clock.callLater(interval, go) if sent < most else None
        one = send()
        flying.append(one)
        one.addBoth(ended, one)

    def ended(outcome: Response | Failure, one: Deferred[Response]) -> None:
        nonlocal first_failure
        flying.remove(one)
        if settled:
            return
        if not isinstance(outcome, Failure):
            settle()
            result.callback(outcome)
            return
        first_failure = first_failure or outcome
        if not flying:
            settle()
            result.errback(first_failure)

    def settle(cancelled: object = None) -> None:
        nonlocal settled
        settled = True
        if again is not None and again.active():
            again.cancel()
        for one in flying.copy():
            one.cancel()

    result: Deferred[Response] = Deferred(settle)
    go()
    return result
