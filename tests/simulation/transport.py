"""
A network in memory that carries HTTP requests between processes and servers: late, out of order, twice or not at all.

It stands in for C{treq}'s client on one side, and for Twisted's requests on the other. What it carries are requests,
answers and pieces of them; nothing is parsed. As with HTTP/1.1, there is one request at a time on a connection:
requests overtake each other, and the pieces of one answer do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from random import Random
from typing import Any, Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived

from .timeline import Process, Timeline

CONNECT_TIMEOUT = 2.0
"""Seconds until a client gives up to open a connection; as L{kiwi.tap} has it."""

KEPT_ALIVE = 30.0
"""Seconds after which a server notices that nobody is there any more."""


@frozen
class Quality:
    """
    How well two machines reach each other.

    @ivar cut: nothing arrives, in either direction. What was sent arrives later, when this is over, unless its sender
        has given up.
    @ivar deaf: what the server sends does not arrive.
    @ivar lost: the part of the requests that never arrive.
    @ivar unanswered: the part of the answers that never arrive.
    @ivar twice: the part of the requests that arrive a second time, some time later.
    @ivar delay: seconds that everything takes longer, at most.
    @ivar lag: seconds by which the events of a stream come later.
    """

    cut: bool = False
    deaf: bool = False
    lost: float = 0.0
    unanswered: float = 0.0
    twice: float = 0.0
    delay: float = 0.0
    lag: float = 0.0


GOOD = Quality()


class Server(Protocol):
    """What a request is for."""

    name: str

    def accepts(self, place: str) -> bool:
        """Whether connections are accepted at one of its addresses."""

    def receive(self, request: Request) -> None:
        """A request arrives."""


@define(eq=False, repr=False)
class Network:
    """
    Who reaches whom, and how well.

    @ivar servers: by C{host:port}.
    @ivar qualities: for a client's host and a server's C{host:port}; L{GOOD} where nothing is said.
    @ivar requests: how many were sent, by method and the first parts of the path.
    """

    timeline: Timeline
    random: Random
    servers: dict[str, Server] = field(factory=dict, init=False)
    qualities: dict[tuple[str, str], Quality] = field(factory=dict, init=False)
    connections: dict[Connection, None] = field(factory=dict, init=False)
    sent: list[str] = field(factory=list, init=False)
    all: list[Connection] = field(factory=list, init=False)
    _held: list[tuple[Connection, Callable[[], object]]] = field(factory=list, init=False)

    def quality(self, host: str, place: str) -> Quality:
        return self.qualities.get((host, place), GOOD)

    def change(self, host: str, place: str, **changes: Any) -> None:
        """From now on, they reach each other in another way."""
        before = self.quality(host, place)
        after = evolve(before, **changes)
        self.qualities[host, place] = after
        if (before.cut and not after.cut) or (before.deaf and not after.deaf):
            held, self._held = self._held, []
            waits: dict[Connection, float] = {}
            for connection, arrive in held:
                if (connection.host, connection.place) != (host, place):
                    self._held.append((connection, arrive))
                else:
                    # A sender tries again after some time, whatever happened; and then everything comes in order.
                    if connection not in waits:
                        waits[connection] = self.random.uniform(0, 1.5)
                        connection.held_until(self.timeline.now + waits[connection])
                    connection.later(waits[connection], arrive)

    def reset(self, host: str, place: str) -> None:
        """Break every connection between the two, so that both know."""
        for connection in list(self.connections):
            if (connection.host, connection.place) == (host, place):
                connection.break_off()

    def break_off(self, place: str) -> None:
        """Break every connection to a server, so that everybody knows."""
        for connection in list(self.connections):
            if connection.place == place:
                connection.break_off()

    def forget(self, host: str, place: str) -> None:
        """Let every connection between the two be forgotten in between, so that neither knows."""
        for connection in list(self.connections):
            if (connection.host, connection.place) == (host, place):
                connection.is_forgotten = True

    def delay(self, quality: Quality) -> float:
        """Seconds that one thing takes to arrive."""
        draw = self.random.random()
        if draw < 0.9:
            seconds = 0.0001 + 0.0006 * draw
        elif draw < 0.995:
            seconds = 0.2 * (draw - 0.9)
        else:
            seconds = 40 * (draw - 0.995)
        return seconds + (quality.delay * self.random.random() if quality.delay else 0.0)

    def dispose(self) -> None:
        """Fail whatever somebody still waits for."""
        for connection in self.all:
            connection.dispose()

    def hold(self, connection: Connection, arrive: Callable[[], object]) -> None:
        """Keep something that cannot arrive now."""
        self._held.append((connection, arrive))


@define(eq=False, repr=False)
class Client:
    """
    What a process has instead of C{treq}'s client.

    @ivar new: it opens a connection for each request, and does not use one that is there already.
    """

    network: Network
    process: Process
    host: str
    new: bool

    def request(
        self,
        method: str,
        url: Any,
        params: Mapping[str, str] | None = None,
        data: dict[str, str] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        allow_redirects: bool = True,
        unbuffered: bool = False,
        reactor: Any = None,
    ) -> Deferred[ClientResponse]:
        text = url if isinstance(url, str) else url.to_text()
        place, _, rest = text.removeprefix("http://").partition("/")
        uri = "/" + rest
        if params:
            uri += ("&" if "?" in uri else "?") + urlencode(params)
        return Connection(self.network, self.process, self.host, place).ask(method, uri, data, headers or {}, self.new)


@define(eq=False)
class _Piece:
    """Something on its way to the client."""

    arrive: Callable[[], object]
    is_there: bool = False


@define(eq=False, repr=False)
class Connection:
    """
    One request and its answer.

    @ivar is_forgotten: nothing passes any more, and nobody knows.
    """

    network: Network
    process: Process
    host: str
    place: str
    is_forgotten: bool = field(default=False, init=False)
    is_closed_by_client: bool = field(default=False, init=False)
    is_closed_by_server: bool = field(default=False, init=False)
    is_unanswered: bool = field(default=False, init=False)
    _request: Request = field(init=False)
    _answer: Deferred[ClientResponse] = field(init=False)
    _response: ClientResponse | None = field(default=None, init=False)
    _last: float = field(default=0.0, init=False)
    _was_held: bool = field(default=False, init=False)
    _under_way: deque[_Piece] = field(factory=deque, init=False)

    # The client's end.

    def ask(self, method: str, uri: str, body: Any, headers: Mapping[str, str], new: bool) -> Deferred[ClientResponse]:
        network = self.network
        network.sent.append(f"{method} {uri}")
        self._answer = Deferred(lambda _: self.close())
        self._request = Request(self, method, uri, body, headers)
        network.connections[self] = None
        network.all.append(self)
        quality = network.quality(self.host, self.place)
        random = network.random
        if quality.cut:
            self._was_held = True
            network.hold(self, self._arrive)
            if new or random.random() < 0.5:
                self.later(CONNECT_TIMEOUT, self._cannot_connect)
        elif quality.lost and random.random() < quality.lost:
            self.is_forgotten = True
        else:
            self.later(network.delay(quality), self._arrive)
            if quality.twice and random.random() < quality.twice:
                again = Request(self, method, uri, body, headers, heard=False)
                self.later(random.choice((0.001, 0.1, 1.0, 5.0)) * random.uniform(0.5, 1.5), lambda: self._enter(again))
        return self._answer

    def close(self) -> None:
        """The client closes."""
        if not self.is_closed_by_client:
            self.is_closed_by_client = True
            response = self._response
            if response is not None and not response.is_over:
                # Not within the call that closes.
                self.process.clock.callLater(0, response.broken, ConnectionLost())
            self.die()

    def die(self) -> None:
        """The client's process is no more, or has no use for this. What it has sent may still arrive."""
        self._gone()
        quality = self.network.quality(self.host, self.place)
        if quality.cut:
            self.network.hold(self, self._request.connection_lost)
        elif self.is_forgotten:
            self.later(KEPT_ALIVE, self._request.connection_lost)
        else:
            self.later(self.network.delay(quality), self._request.connection_lost)

    def _cannot_connect(self) -> None:
        if not self._answer.called and self.network.quality(self.host, self.place).cut:
            self.is_closed_by_client = True
            self.process.deliver(self._fail, ConnectTimeout())

    def _fail(self, reason: Exception) -> None:
        self._gone()
        if not self._answer.called:
            self._answer.errback(Failure(reason))

    def _gone(self) -> None:
        self.network.connections.pop(self, None)

    # What passes between the two.

    def later(self, seconds: float, arrive: Callable[[], object]) -> None:
        self.network.timeline.after(seconds, arrive)

    def _arrive(self) -> None:
        self._enter(self._request)

    def _enter(self, request: Request) -> None:
        quality = self.network.quality(self.host, self.place)
        server = self.network.servers.get(self.place)
        if self.is_forgotten:
            return
        if quality.cut:
            if request is self._request:
                self.network.hold(self, self._arrive)
        elif request is self._request and self.is_closed_by_client and self._was_held:
            # It never left.
            return
        elif server is None or not server.accepts(self.place):
            if request is self._request:
                self.process.deliver(self._fail, ConnectionRefusedError())
        else:
            if quality.unanswered and self.network.random.random() < quality.unanswered:
                self.is_unanswered = True
            request.is_received = True
            server.receive(request)
            if self.is_closed_by_client:
                request.connection_lost()

    def held_until(self, time: float) -> None:
        """Nothing that leaves the server from now on arrives before this."""
        self._last = max(self._last, time)

    def break_off(self) -> None:
        """Both sides learn that the connection is broken."""
        if not self.is_forgotten:
            self._request.connection_lost()
            self.to_client(self._broken)

    def to_client(self, arrive: Callable[[], object], lag: float = 0.0) -> None:
        """Something leaves the server, and arrives after what has left before."""
        if self.is_forgotten or self.is_unanswered or self.is_closed_by_client:
            return
        piece = _Piece(arrive)
        self._under_way.append(piece)
        quality = self.network.quality(self.host, self.place)
        if quality.cut or quality.deaf:
            self.network.hold(self, lambda: self._come(piece))
            return
        time = self.network.timeline.now + self.network.delay(quality) + lag
        self._last = max(self._last + 1e-7, time)
        self.network.timeline.at(self._last, self._come, piece)

    def _come(self, piece: _Piece) -> None:
        if self.is_forgotten or self.is_closed_by_client:
            return
        quality = self.network.quality(self.host, self.place)
        if quality.cut or quality.deaf:
            self.network.hold(self, lambda: self._come(piece))
            return
        # What overtook something that was held for longer waits for it.
        piece.is_there = True
        while self._under_way and self._under_way[0].is_there:
            self.process.deliver(self._under_way.popleft().arrive)

    def _broken(self) -> None:
        self._gone()
        if self.is_closed_by_client:
            return
        if not self._answer.called:
            self._answer.errback(Failure(ResponseNeverReceived([Failure(ConnectionLost())])))
        elif self._response is not None:
            self._response.broken(ConnectionLost())

    def dispose(self) -> None:
        if not self._answer.called:
            self._answer.errback(Failure(ResponseNeverReceived([Failure(ConnectionLost())])))
        elif self._response is not None:
            self._response.broken(ConnectionLost())

    def head(self, code: int, headers: Headers) -> None:
        """Status and headers arrive at the client."""
        if not self._answer.called and not self.is_closed_by_client:
            self._response = ClientResponse(self, code, headers)
            self._answer.callback(self._response)

    def piece(self, data: bytes) -> None:
        if self._response is not None and not self.is_closed_by_client:
            self._response.data(data)

    def end(self) -> None:
        self._gone()
        if self._response is not None and not self.is_closed_by_client:
            self._response.ended()


class Headers:
    """As much of Twisted's as is read of them."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def set(self, name: str, value: str) -> None:
        self._values[name.lower()] = value

    def getRawHeaders(self, name: str) -> Sequence[str] | None:
        value = self._values.get(name.lower())
        return None if value is None else [value]


@define(eq=False, repr=False)
class ClientResponse:
    """An answer as the client has it."""

    connection: Connection
    code: int
    headers: Headers
    is_over: bool = field(default=False, init=False)
    _protocol: Any = field(default=None, init=False)
    _early: list[bytes] = field(factory=list, init=False)
    _end: Failure | None = field(default=None, init=False)

    def deliverBody(self, protocol: Any) -> None:
        protocol.makeConnection(self)
        self._protocol = protocol
        for data in self._early:
            protocol.dataReceived(data)
        if self._end is not None:
            protocol.connectionLost(self._end)

    def abortConnection(self) -> None:
        self.connection.close()

    loseConnection = abortConnection

    def data(self, data: bytes) -> None:
        if self._protocol is None:
            self._early.append(data)
        elif not self.is_over:
            self._protocol.dataReceived(data)

    def ended(self) -> None:
        self._finish(Failure(ResponseDone()))

    def broken(self, reason: Exception) -> None:
        self._finish(Failure(ResponseFailed([Failure(reason)])))

    def _finish(self, reason: Failure) -> None:
        if not self.is_over:
            self.is_over, self._end = True, reason
            if self._protocol is not None:
                self._protocol.connectionLost(reason)


class Request:
    """
    A request as the server has it: as much of Twisted's as the fakes use.

    @ivar heard: somebody waits for the answer.
    """

    def __init__(
        self, connection: Connection, method: str, uri: str, body: Any, headers: Mapping[str, str], heard: bool = True
    ) -> None:
        self.connection = connection
        self.heard = heard
        self._asked = {name.lower(): value for name, value in headers.items()}
        self.is_received = False
        self.method, self.uri = method.encode("ascii"), uri.encode("ascii")
        self.path = self.uri.partition(b"?")[0]
        self.content = BytesIO(body if isinstance(body, bytes) else b"")
        self.transport = self.channel = self
        self._code, self._headers = 200, Headers()
        self._body: list[bytes] = []
        self._streams = self._is_over = False
        self._watching: list[Deferred[None]] = []

    @property
    def place(self) -> str:
        return self.connection.place

    @property
    def args(self) -> Mapping[bytes, list[bytes]]:
        return parse_qs(urlsplit(self.uri).query, keep_blank_values=True)

    def getHeader(self, name: str) -> str | None:
        return self._asked.get(name.lower())

    def notifyFinish(self) -> Deferred[None]:
        finished: Deferred[None] = Deferred()
        self._watching.append(finished)
        return finished

    def setResponseCode(self, code: int) -> None:
        self._code = code

    def setHeader(self, name: str, value: str) -> None:
        self._headers.set(name, value)

    def write(self, data: bytes) -> None:
        """The first piece of an answer that has no end yet is empty."""
        if self._is_over or not self.heard:
            return
        if self._streams:
            connection = self.connection
            lag = connection.network.quality(connection.host, connection.place).lag
            connection.to_client(lambda: connection.piece(data), lag)
        elif data:
            self._body.append(data)
        else:
            self._streams = True
            code, headers = self._code, self._headers
            self.connection.to_client(lambda: self.connection.head(code, headers))

    def finish(self) -> None:
        if self._is_over:
            return
        if self.heard:
            self.connection.to_client(self.connection.end if self._streams else self._whole)
        self._over(None)

    def _whole(self) -> None:
        self.connection.head(self._code, self._headers)
        for data in self._body:
            self.connection.piece(data)
        self.connection.end()

    def abortConnection(self) -> None:
        """The server closes."""
        self.connection_lost()
        if self.heard:
            self.connection.to_client(self.connection._broken)

    @property
    def _producer(self) -> Request:
        return self

    def connection_lost(self) -> None:
        """The server learns that the client is gone, or has closed itself."""
        if self.is_received:
            self._over(Failure(ConnectionLost()))

    def _over(self, reason: Failure | None) -> None:
        if not self._is_over:
            self._is_over = True
            watching, self._watching = self._watching, []
            for finished in watching:
                if reason is None:
                    finished.callback(None)
                else:
                    finished.errback(reason)
