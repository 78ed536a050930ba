"""Where one suite runs both in simulated time, over a network in memory, and in real time, over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from attrs import define, field
from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from twisted.web.resource import Resource
from zope.interface import implementer

T = TypeVar("T")

STEP = 1 / 16
"""Seconds by which simulated time moves; without rounding."""

PATIENCE = 60.0
"""Seconds that a test waits, at most, for what must come."""


class World(Protocol):
    """Time, and the way to wait in it."""

    @property
    def clock(self) -> IReactorTime:
        """Whose time it is."""

    @property
    def http(self) -> HTTPClient:
        """For requests."""

    @property
    def stream_http(self) -> HTTPClient:
        """Opens a connection for each request."""

    async def until(self, condition: Callable[[], bool], within: float = PATIENCE) -> None:
        """Wait until C{condition} holds; fail if it does not within so many seconds."""

    async def of(self, answer: Deferred[T]) -> T:
        """The result of C{answer}."""

    async def seconds(self, seconds: float) -> None:
        """Let time pass."""


@implementer(IBodyProducer)
class _AtOnce:
    """A body that is written in one piece, without the help of a reactor."""

    def __init__(self, body: bytes) -> None:
        self._body, self.length = body, len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is over before anybody can ask for this."""

    resumeProducing = stopProducing = pauseProducing


@implementer(IAgent)
@define(eq=False)
class MemoryNetwork:
    """Servers in memory by C{host:port}. Where there is none, connections are refused."""

    _servers: dict[bytes, RequestTraversalAgent] = field(factory=dict, init=False)
    _gone: list[RequestTraversalAgent] = field(factory=list, init=False)

    def plug(self, where: str, server: Resource) -> None:
        """Accept connections from now on."""
        self.unplug(where)
        self._servers[where.encode()] = RequestTraversalAgent(server)

    def unplug(self, where: str) -> None:
        """Refuse connections from now on. Those that are open stay."""
        agent = self._servers.pop(where.encode(), None)
        if agent is not None:
            self._gone.append(agent)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: Any = None
    ) -> Deferred[IResponse]:
        server = self._servers.get(URI.fromBytes(uri).netloc)
        if server is None:
            return fail(Refused())
        response: Deferred[IResponse] = server.request(method, uri, headers, bodyProducer)
        return response

    def flush(self) -> None:
        for agent in [*self._servers.values(), *self._gone]:
            agent.flush()


class ClockWorld:
    """Simulated time, and a network in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.network = MemoryNetwork()
        self.http = self.stream_http = HTTPClient(self.network, data_to_body_producer=_AtOnce)

    def step(self, seconds: float = STEP) -> None:
        """Let what is on its way arrive, and time pass."""
        self.settle()
        self.clock.advance(seconds)
        self.settle()

    def settle(self) -> None:
        for _ in range(3):
            self.network.flush()
            self.clock.advance(0)

    async def until(self, condition: Callable[[], bool], within: float = PATIENCE) -> None:
        end = self.clock.seconds() + within
        self.settle()
        while not condition():
            if self.clock.seconds() > end:
                raise AssertionError(f"it did not come within {within} s")
            self.step()

    async def of(self, answer: Deferred[T]) -> T:
        done: list[object] = []

        def note(result: T) -> T:
            done.append(result)
            return result

        answer.addBoth(note)
        await self.until(lambda: bool(done))
        return await answer

    async def seconds(self, seconds: float) -> None:
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.step(min(STEP, end - self.clock.seconds()))


class RealWorld:
    """Real time, and real sockets."""

    def __init__(self, case: TestCase) -> None:
        from twisted.internet import reactor

        self.clock: Any = reactor
        pool = HTTPConnectionPool(self.clock)
        pool.maxPersistentPerHost = 32
        case.addCleanup(pool.closeCachedConnections)
        self.http = HTTPClient(Agent(self.clock, pool=pool))
        self.stream_http = HTTPClient(Agent(self.clock))

    async def until(self, condition: Callable[[], bool], within: float = PATIENCE) -> None:
        end = self.clock.seconds() + within
        while not condition():
            if self.clock.seconds() > end:
                raise AssertionError(f"it did not come within {within} s")
            await self.seconds(0.01)

    async def of(self, answer: Deferred[T]) -> T:
        return await answer

    async def seconds(self, seconds: float) -> None:
        await deferLater(self.clock, seconds)
