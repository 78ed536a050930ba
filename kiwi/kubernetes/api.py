"""
Asking an API server, whatever it is asked for.

Protocol facts are from the page "Kubernetes API Concepts".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from treq.client import HTTPClient
from twisted.internet.interfaces import IReactorTime

from kiwi.backoff import Uniform
from kiwi.http import HTTPError, Response, request, stream

from .credentials import CredentialsError, ICredentials
from .decoding import Nonsense, describe_status, parse

REQUEST_TIMEOUT = 30.0
LONGEST_RETRY_AFTER = 60.0
"""Seconds, all of them."""


class Trouble(Exception):
    """
    The server does not give what was asked for, for now. The text is one printable line: what the server ("it") said or
    did.

    @ivar wait: the least number of seconds before the next try.
    """

    wait = 0.0


class Unreachable(Trouble):
    """There is no answer, or one that says to come later."""


class Broken(Unreachable):
    """A watch that was open broke off."""


class Forbidden(Trouble):
    """The server does not know this agent, or does not let it do what it asked for."""


class Absent(Trouble):
    """The server does not have what was asked for."""


class Senseless(Trouble):
    """The answer cannot be understood."""


def said_of(response: Response) -> str:
    """What a server says in words of a status that was not hoped for: empty, or with a colon before it."""
    document = parse(response.body)
    words = "" if isinstance(document, Nonsense) else describe_status(document)
    return f": {words}" if words else ""


def trouble_of(response: Response, wish: str, path: str) -> Trouble:
    """
    What a status that was not hoped for means.

    @param wish: what was asked for: a verb and its object, as in C{list services}, which is also how a role names it.
    """
    status, because = response.status, said_of(response)
    if status == 401:
        return Forbidden(f"it does not accept the credentials shown for: {wish} (status 401{because})")
    if status == 403:
        return Forbidden(f"it does not let this agent {wish} (status 403{because})")
    if status == 404:
        return Absent(f"it has no {path} (status 404)")
    trouble = Unreachable(f"it answers {path} with status {status}{because}")
    after = response.header("Retry-After") or ""
    if status in (429, 503) and after.isascii() and after.isdigit():
        # Cut, because a number of thousands of digits is not worth reading.
        trouble.wait = min(float(after[:9]), LONGEST_RETRY_AFTER)
    return trouble


@frozen
class KubernetesAPI:
    """
    One API server, and who asks it.

    @ivar http: for requests; may keep connections.
    @ivar stream_http: for watches; a connection for each.
    @ivar endpoint: its URL, without a slash at its end.
    @ivar uniform: spreads the ends of watches.
    """

    http: HTTPClient
    stream_http: HTTPClient
    clock: IReactorTime
    endpoint: str
    credentials: ICredentials
    uniform: Uniform

    async def ask(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        document: Mapping[str, Any] | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> Response:
        """
        The answer to one request, whatever its status; L{Unreachable} where there is none, and L{Forbidden} where there
        are no credentials.

        @param document: sent as JSON.
        @param timeout: seconds for all of it.
        """
        body = None if document is None else json.dumps(document, separators=(",", ":")).encode()
        extra: dict[str, str] = {} if body is None else {"Content-Type": "application/json"}
        ends = self.clock.seconds() + timeout

        async def send() -> Response:
            headers = await self._headers(extra)
            left = max(0.0, ends - self.clock.seconds())
            try:
                return await request(
                    self.http,
                    self.clock,
                    method,
                    self.endpoint + path,
                    timeout=left,
                    params=params,
                    data=body,
                    headers=headers,
                )
            except HTTPError as error:
                raise Unreachable(str(error)) from error

        response = await send()
        if response.status == 401:
            self.credentials.refused()
            response = await send()
        return response

    async def follow(
        self,
        path: str,
        params: Mapping[str, str],
        opened: Callable[[Response], None],
        line: Callable[[bytes], None],
        overlong: Callable[[int], None],
        timeout: float,
        idle: float,
    ) -> Response | None:
        """
        Follow a response that does not end by itself: as L{kiwi.http.stream} does.

        @param timeout: seconds until it begins.
        @param idle: seconds without a byte, after which the connection counts as dead.
        """

        async def open_it() -> Response | None:
            headers = await self._headers({})
            return await stream(
                self.stream_http,
                self.clock,
                self.endpoint + path,
                params=params,
                opened=opened,
                line=line,
                overlong=overlong,
                open_timeout=timeout,
                idle_timeout=idle,
                headers=headers,
            )

        response = await open_it()
        if response is not None and response.status == 401:
            self.credentials.refused()
            response = await open_it()
        return response

    async def _headers(self, others: Mapping[str, str]) -> dict[bytes | str, bytes | str]:
        try:
            own = await self.credentials.headers()
        except CredentialsError as error:
            raise Forbidden(f"this agent has no credentials for it: {error}") from error
        return {name: value for headers in (others, own) for name, value in headers.items()}
