"""
A store that answers badly: an HTTP proxy before etcd or an API server, which can be told while it runs to be slow or to
lose replies.

It is a program::

    python -m tests.lab.proxy --listen 0.0.0.0:2389 --store http://127.0.0.1:2379
    python -m tests.lab.proxy --listen 0.0.0.0:2389 --store https://192.168.1.10:6443 --authorities ca.crt \
        --secure 0.0.0.0:6444 --certificate server.pem

(with C{--secure}, it also listens with TLS), and is told how to behave on the same port, where C{/proxy} answers how
many replies have had which fate so far::

    curl -X PUT http://127.0.0.1:2389/proxy/slow
    curl http://127.0.0.1:2389/proxy

A request is always passed on, and carried out to its end even when nobody waits for the answer any more; only a stream
ends with the connection of the one who follows it. Whatever happens to a reply happens after the store has given it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import PrivateCertificate
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from kiwi.tls import TLS, certificates

PLAIN, SLOW, LOSSY = "plain", "slow", "lossy"
BEHAVIOURS = (PLAIN, SLOW, LOSSY)

LATENESS = 2.0
"""Seconds by which a slow store is late with each reply, and with each event of a stream."""

LOSS = 0.3
"""The part of its replies that a lossy store loses, those that would open a stream among them."""

FATES = ("passed", "late", "swallowed", "dropped")

CONNECTIONS = 64

_OF_ONE_CONNECTION = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade"})
"""Names of headers that are not passed on (RFC 9110, section 7.6.1)."""


def _passed_on(headers: Headers, *others: bytes) -> Headers:
    kept = Headers()
    for name, values in headers.getAllRawHeaders():
        if name.lower() not in _OF_ONE_CONNECTION and name.lower() not in others:
            kept.setRawHeaders(name, values)
    return kept


@define(eq=False)
class Proxy(Resource):
    """
    Passes requests on to a store.

    @ivar behaviour: what becomes of the replies that the store gives from now on.
    @ivar fates: how many replies had which fate: C{passed}, C{late}, C{swallowed} (its connection stays open) or
        C{dropped} (its connection is broken).
    """

    isLeaf = True

    _clock: IReactorTime
    _agent: Agent
    _store: str
    _random: random.Random
    behaviour: str = field(default=PLAIN, init=False)
    fates: dict[str, int] = field(factory=lambda: dict.fromkeys(FATES, 0), init=False)

    def __attrs_post_init__(self) -> None:
        super().__init__()

    def render(self, request: Request) -> bytes | int:
        """Answer, whatever the method is."""
        path = request.path.decode("ascii", "replace").strip("/").split("/")
        if path[0] == "proxy":
            return self._obey(request, path[1:])
        assert request.content is not None
        body = request.content.read()
        gone = request.notifyFinish()
        asked: Deferred[IResponse] = self._agent.request(
            request.method,
            self._store.encode() + request.uri,
            _passed_on(request.requestHeaders, b"host", b"content-length"),
            FileBodyProducer(BytesIO(body)) if body else None,
        )
        reply = _Reply(self, request)
        gone.addErrback(lambda _: reply.abandon())
        asked.addCallbacks(reply.begin, reply.fail)
        return NOT_DONE_YET

    def _obey(self, request: Request, words: list[str]) -> bytes:
        match request.method, words:
            case b"GET", []:
                return json.dumps(self.fates).encode()
            case b"PUT", [behaviour] if behaviour in BEHAVIOURS:
                self.behaviour = behaviour
                return b"{}"
        request.setResponseCode(404)
        return b"{}"

    def decide(self) -> str:
        """The fate of a reply that the store gives now."""
        fate = "late" if self.behaviour == SLOW else "passed"
        if self.behaviour == LOSSY and self._random.random() < LOSS:
            fate = self._random.choice(("swallowed", "dropped"))
        self.fates[fate] += 1
        return fate

    def later(self, call: Callable[[], None]) -> IDelayedCall:
        """Call something when what the store says now is to be heard."""
        return self._clock.callLater(LATENESS if self.behaviour == SLOW else 0.0, call)


@define(eq=False)
class _Reply(Protocol):
    """One reply on its way back: the parts of it that the store has given, in order."""

    _proxy: Proxy
    _request: Request
    _response: IResponse | None = field(default=None, init=False)
    _parts: deque[Callable[[], None]] = field(factory=deque, init=False)
    _abandoned: bool = field(default=False, init=False)
    _lost: bool = field(default=False, init=False)
    _stream: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._stream = not self._request.args.keys().isdisjoint((b"stream", b"watch"))

    def begin(self, response: IResponse) -> None:
        """The store answers."""
        self._response = response
        fate = self._proxy.decide()
        self._lost = fate in ("swallowed", "dropped")
        if fate == "dropped" and not self._abandoned:
            self._drop()
        self._say(lambda: self._head(response))
        response.deliverBody(self)
        if self._stream and (self._lost or self._abandoned):
            self._end_stream()

    def _head(self, response: IResponse) -> None:
        self._request.setResponseCode(response.code, response.phrase)
        for name, values in _passed_on(response.headers).getAllRawHeaders():
            self._request.responseHeaders.setRawHeaders(name, values)
        # Nothing goes out before something is written, and the headers of a stream come long before its first event.
        self._request.write(b"")

    def dataReceived(self, data: bytes) -> None:
        self._say(lambda: self._request.write(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._say(self._request.finish)

    def fail(self, failure: Failure) -> None:
        """The store could not be asked: the one who asks learns it in the same way."""
        if not self._abandoned:
            self._drop()

    def _drop(self) -> None:
        transport: Any = self._request.transport
        transport.abortConnection()

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        self._abandoned = True
        if self._stream and self._response is not None:
            self._end_stream()

    def _end_stream(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()

    def _say(self, part: Callable[[], None]) -> None:
        """Have a part of the reply heard when it is due."""
        self._parts.append(part)
        self._proxy.later(self._said)

    def _said(self) -> None:
        part = self._parts.popleft()
        if not self._lost and not self._abandoned:
            part()


def main(arguments: Sequence[str]) -> None:
    """Serve until told to stop."""
    from twisted.internet import reactor
    from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint

    clock: Any = reactor
    parser = argparse.ArgumentParser(prog="tests.lab.proxy", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--store", required=True, metavar="URL")
    parser.add_argument("--authorities", metavar="FILE", help="the certificates of those who vouch for the store")
    parser.add_argument("--secure", metavar="ADDRESS:PORT", help="where to listen with TLS")
    parser.add_argument("--certificate", metavar="FILE", help="what to show there: certificate and key, in PEM")
    parser.add_argument("--seed", type=int, default=1, help="decides which replies are lost")
    options = parser.parse_args(arguments)
    trusted = certificates([Path(options.authorities).read_bytes()]) if options.authorities else None
    pool = HTTPConnectionPool(clock)
    pool.maxPersistentPerHost = CONNECTIONS
    agent = Agent(clock, TLS(lambda: trusted), pool=pool)
    site = Site(Proxy(clock, agent, options.store, random.Random(options.seed)), timeout=None)

    def failed(failure: Failure) -> None:
        print(failure.getErrorMessage(), file=sys.stderr, flush=True)
        clock.stop()

    host, _, port = options.listen.rpartition(":")
    TCP4ServerEndpoint(clock, int(port), interface=host).listen(site).addErrback(failed)
    if options.secure:
        host, _, port = options.secure.rpartition(":")
        shown = PrivateCertificate.loadPEM(Path(options.certificate).read_bytes()).options()
        SSL4ServerEndpoint(clock, int(port), shown, interface=host).listen(site).addErrback(failed)
    clock.run()


if __name__ == "__main__":
    main(sys.argv[1:])
