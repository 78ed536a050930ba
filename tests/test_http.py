"""Requests and streams, over real sockets on loopback, from a server that says exactly what it is told to."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from kiwi.http import HTTPError, Response, request, stream

from .fakes.etcd_process import free_port

OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: 5\r\nX-Kind: test\r\n\r\nhello"
ENDLESS = OK + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Conversation(Protocol):
    """One connection, as the server sees it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.heard = b""
        self.closed = False

    def connectionMade(self) -> None:
        self.server.conversations.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        if self.heard.endswith(b"\r\n\r\n"):
            self.server.requests.append(self.heard)
            self.heard = b""
            self.say(self.server.answer)

    def say(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def hang_up(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True


class Server(Factory):
    """
    @ivar answer: what is said to each request; it need not be whole.
    """

    def __init__(self) -> None:
        self.answer = WHOLE
        self.requests: list[bytes] = []
        self.conversations: list[Conversation] = []

    def buildProtocol(self, address: object) -> Conversation:
        return Conversation(self)


class OverLoopback(TestCase):
    """A server, and clients as Kiwi has them."""

    async def setUp(self) -> None:  # type: ignore[override]
        from twisted.internet import reactor

        self.clock: Any = reactor
        self.server = Server()
        port = await TCP4ServerEndpoint(self.clock, 0, interface="127.0.0.1").listen(self.server)
        self.addCleanup(self.all_closed)
        self.addCleanup(port.stopListening)
        pool = HTTPConnectionPool(self.clock)
        self.addCleanup(pool.closeCachedConnections)
        self.pooled = HTTPClient(Agent(self.clock, pool=pool))
        self.unpooled = HTTPClient(Agent(self.clock))
        self.url = f"http://127.0.0.1:{port.getHost().port}/"

    async def all_closed(self) -> None:
        for conversation in self.server.conversations:
            if not conversation.closed:
                conversation.hang_up()
        await self.until(lambda: all(conversation.closed for conversation in self.server.conversations))

    async def until(self, condition: Callable[[], bool]) -> None:
        end = self.clock.seconds() + 30
        while not condition():
            self.assertLess(self.clock.seconds(), end, "it did not come")
            await deferLater(self.clock, 0.005)

    async def asked(self) -> Conversation:
        """The last connection, once there was a request."""
        await self.until(lambda: bool(self.server.requests))
        return self.server.conversations[-1]

    async def error(self, answer: Deferred[Any]) -> str:
        """What L{HTTPError} says."""
        try:
            await answer
        except HTTPError as error:
            return str(error)
        raise AssertionError("there was an answer")

    async def cancelled(self, answer: Deferred[Any]) -> bool:
        answer.cancel()
        try:
            await answer
        except CancelledError:
            return True
        return False


class RequestTests(OverLoopback):
    """L{request}."""

    def get(self, timeout: float = 30, **more: Any) -> Deferred[Response]:
        return request(self.pooled, self.clock, "GET", self.url, timeout=timeout, **more)

    async def test_whole(self) -> None:
        """A response is its status, its headers and its body."""
        response = await self.get()
        self.assertEqual((response.status, response.header("x-kind"), response.body), (200, "test", b"hello"))
        self.assertIsNone(response.header("x-other"))

    async def test_any_status(self) -> None:
        """A status that tells of a failure, or of another place, is a response like any other."""
        for status in (b"404 Not Found", b"500 Oh", b"302 Found\r\nLocation: http://127.0.0.1:1/"):
            self.server.answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
            self.assertEqual((await self.get()).status, int(status[:3]))

    async def test_what_is_sent(self) -> None:
        """The URL is sent as it is written; arguments and headers are added, and a form is the body."""
        await request(self.pooled, self.clock, "PUT", self.url + "a%2Fb?x=%20%2B", timeout=30, params={"y": "&"})
        self.assertEqual(self.server.requests[-1].split(b"\r\n")[0], b"PUT /a%2Fb?x=%20%2B&y=%26 HTTP/1.1")
        await self.get(headers={"Authorization": "Bearer x"})
        self.assertIn(b"\r\nAuthorization: Bearer x\r\n", self.server.requests[-1])
        asked = request(self.pooled, self.clock, "PUT", self.url, timeout=30, data={"value": "a b"})
        await self.until(lambda: self.server.conversations[-1].heard.endswith(b"value=a+b"))
        self.server.conversations[-1].say(WHOLE)
        await asked

    async def test_connection_is_kept(self) -> None:
        """One request after the other goes over one connection."""
        for _ in range(3):
            await self.get()
        self.assertEqual(len(self.server.conversations), 1)

    async def test_no_length(self) -> None:
        """A body may end with its connection, or come in chunks."""
        self.server.answer = OK + b"Connection: close\r\n\r\nhel"
        asked = self.get()
        conversation = await self.asked()
        conversation.say(b"lo")
        conversation.hang_up()
        self.assertEqual((await asked).body, b"hello")
        self.server.answer = ENDLESS + chunk(b"hel") + chunk(b"lo") + END
        self.assertEqual((await self.get()).body, b"hello")

    async def test_no_headers_in_time(self) -> None:
        """Where no answer begins within the time, that is the error, and the connection is closed."""
        self.server.answer = b""
        self.assertEqual(await self.error(self.get(0.2)), "no answer within 0.2 s")
        await self.until(lambda: self.server.conversations[0].closed)

    async def test_no_body_in_time(self) -> None:
        """Where an answer begins and does not end within the time, it is the same."""
        self.server.answer = WHOLE[:-1]
        self.assertEqual(await self.error(self.get(0.2)), "no answer within 0.2 s")
        await self.until(lambda: self.server.conversations[0].closed)

    async def test_trickle(self) -> None:
        """The time is one for the whole, however much comes meanwhile."""
        self.server.answer = ENDLESS
        asked = self.get(0.5)
        conversation = await self.asked()
        while not asked.called:
            conversation.say(chunk(b"x"))
            await deferLater(self.clock, 0.05)
        self.assertEqual(await self.error(asked), "no answer within 0.5 s")

    async def test_nothing_is_left(self) -> None:
        """An answer in time leaves no call for later."""
        await deferLater(self.clock, 0)
        before = len(self.clock.getDelayedCalls())
        await request(self.unpooled, self.clock, "GET", self.url, timeout=30)
        self.assertEqual(len(self.clock.getDelayedCalls()), before)

    async def test_too_large(self) -> None:
        """A body above the limit is not taken, and the connection is closed; one at the limit is."""
        self.assertEqual((await self.get(limit=5)).body, b"hello")
        self.assertEqual(await self.error(self.get(limit=4)), "the response is larger than 4 bytes")
        self.server.answer = ENDLESS + chunk(b"x" * 1000)
        self.assertEqual(await self.error(self.get(limit=999)), "the response is larger than 999 bytes")
        await self.until(lambda: self.server.conversations[-1].closed)

    async def test_cancel_before_headers(self) -> None:
        """Cancelling closes the connection."""
        self.server.answer = b""
        asked = self.get()
        conversation = await self.asked()
        self.assertTrue(await self.cancelled(asked))
        await self.until(lambda: conversation.closed)

    async def test_cancel_in_body(self) -> None:
        """Cancelling closes the connection, also in the middle of the body."""
        self.server.answer = WHOLE[:-1]
        asked = self.get()
        conversation = await self.asked()
        await deferLater(self.clock, 0.05)
        self.assertTrue(await self.cancelled(asked))
        await self.until(lambda: conversation.closed)

    async def test_cancel_at_once(self) -> None:
        """Cancelling ends the attempt to connect."""
        self.assertTrue(await self.cancelled(self.get()))

    async def test_refused(self) -> None:
        """A refused connection is one line."""
        asked = request(self.pooled, self.clock, "GET", f"http://127.0.0.1:{free_port()}/", timeout=30)
        self.assertIn("refused", await self.error(asked))

    async def test_no_such_host(self) -> None:
        """So is a name that means nothing."""
        asked = request(self.pooled, self.clock, "GET", "http://no-such-host.invalid/", timeout=30)
        self.assertIn("no-such-host.invalid", await self.error(asked))

    async def test_broken_off(self) -> None:
        """So is an answer that breaks off, in its headers or in its body."""
        for answer in (b"", OK, WHOLE[:-1], ENDLESS + b"5\r\nhel"):
            self.server.answer = answer
            self.server.requests.clear()
            asked = request(self.unpooled, self.clock, "GET", self.url, timeout=30)
            (await self.asked()).hang_up()
            self.assertRegex(await self.error(asked), "(?i)connection .*clos|connection .*lost")

    async def test_rubbish(self) -> None:
        """So is an answer that is no HTTP; and nothing of it reaches a terminal."""
        for answer in (b"\x1b[31mhello\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n", OK + b"Content-Length: x\x1b\r\n\r\n"):
            self.server.answer = answer
            text = await self.error(self.get())
            self.assertTrue(text and text.isprintable() and text.isascii(), text)


class StreamTests(OverLoopback):
    """L{stream}."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.server.answer = ENDLESS
        self.opened: list[Response] = []
        self.lines: list[bytes] = []
        self.overlong: list[int] = []

    def follow(
        self,
        opened: Callable[[Response], None] | None = None,
        line: Callable[[bytes], None] | None = None,
        open_timeout: float = 30,
        idle_timeout: float = 30,
        limit: int = 100,
    ) -> Deferred[Response | None]:
        return stream(
            self.unpooled,
            self.clock,
            self.url,
            opened=opened or self.opened.append,
            line=line or self.lines.append,
            overlong=self.overlong.append,
            open_timeout=open_timeout,
            idle_timeout=idle_timeout,
            limit=limit,
        )

    async def test_lines(self) -> None:
        """Every line is told, wherever the borders of chunks and packets are; blank ones are not."""
        following = self.follow()
        conversation = await self.asked()
        for part in (b"one\ntw", b"o", b"\n\n  \nthr", b"ee\r\n", b"\n", b"four\n"):
            conversation.say(chunk(part))
            await deferLater(self.clock, 0.01)
        conversation.say(chunk(b"unfinished") + END)
        self.assertIsNone(await following)
        self.assertEqual(self.lines, [b"one", b"two", b"three\r", b"four"])

    async def test_opened(self) -> None:
        """The headers are told before the first line, once."""
        self.server.answer = OK + b"X-Kind: test\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one\n") + END
        told: list[object] = []
        await self.follow(lambda response: told.append(response.header("X-Kind")), told.append)
        self.assertEqual(told, ["test", b"one"])

    async def test_overlong(self) -> None:
        """A line above the limit is passed over, in whichever pieces it comes; those around it are told."""
        following = self.follow()
        conversation = await self.asked()
        exact = b"e" * 100
        conversation.say(chunk(b"one\n" + b"x" * 101 + b"\n" + exact + b"\n"))
        for _ in range(5):
            conversation.say(chunk(b"y" * 60))
            await deferLater(self.clock, 0.01)
        conversation.say(chunk(b"\ntwo\n") + END)
        await following
        self.assertEqual((self.lines, self.overlong), ([b"one", exact, b"two"], [101, 300]))

    async def test_other_status(self) -> None:
        """A status other than 200 gives the response, and no line."""
        self.server.answer = b"HTTP/1.1 410 Gone\r\nContent-Length: 5\r\n\r\nold\n\n"
        response = await self.follow()
        assert response is not None
        self.assertEqual((response.status, response.body, self.opened, self.lines), (410, b"old\n\n", [], []))

    async def test_other_status_that_stalls(self) -> None:
        """The body of such a response has as much time as the headers have."""
        self.server.answer = b"HTTP/1.1 410 Gone\r\nContent-Length: 5\r\n\r\nold"
        self.assertEqual(await self.error(self.follow(open_timeout=0.3)), "no answer within 0.3 s")

    async def test_no_headers_in_time(self) -> None:
        """Where no answer begins within the time, that is the error, and the connection is closed."""
        self.server.answer = b""
        self.assertEqual(await self.error(self.follow(open_timeout=0.2)), "no answer within 0.2 s")
        await self.until(lambda: self.server.conversations[0].closed)

    async def test_idle(self) -> None:
        """Silence ends the stream and closes the connection; any byte ends the silence."""
        following = self.follow(idle_timeout=0.5)
        conversation = await self.asked()
        began = self.clock.seconds()
        for _ in range(10):
            conversation.say(chunk(b"."))
            await deferLater(self.clock, 0.1)
        self.assertFalse(following.called)
        self.assertEqual(await self.error(following), "nothing was heard for 0.5 s")
        self.assertGreater(self.clock.seconds() - began, 1.4)
        await self.until(lambda: conversation.closed)

    async def test_broken_off(self) -> None:
        """A connection that breaks is an error, and what came before it is told."""
        following = self.follow()
        conversation = await self.asked()
        conversation.say(chunk(b"one\ntwo"))
        conversation.hang_up()
        self.assertRegex(await self.error(following), "(?i)connection")
        self.assertEqual(self.lines, [b"one"])

    async def test_end_without_length(self) -> None:
        """Where the body has no end of its own, the end of the connection is the end of the stream."""
        self.server.answer = OK + b"Connection: close\r\n\r\none\n"
        following = self.follow()
        conversation = await self.asked()
        conversation.hang_up()
        self.assertIsNone(await following)
        self.assertEqual(self.lines, [b"one"])

    async def test_cancel(self) -> None:
        """Cancelling closes the connection; nothing is told any more, and no call is left for later."""
        following = self.follow()
        conversation = await self.asked()
        conversation.say(chunk(b"one\n"))
        await self.until(lambda: bool(self.lines))
        before = len(self.clock.getDelayedCalls())
        conversation.say(chunk(b"two\n"))
        self.assertTrue(await self.cancelled(following))
        await self.until(lambda: conversation.closed)
        self.assertEqual((self.lines, len(self.clock.getDelayedCalls()) < before), ([b"one"], True))

    async def test_cancel_before_headers(self) -> None:
        """Cancelling closes the connection, also before there was an answer."""
        self.server.answer = b""
        following = self.follow()
        conversation = await self.asked()
        self.assertTrue(await self.cancelled(following))
        await self.until(lambda: conversation.closed)
        self.assertEqual(self.opened, [])

    async def test_cancel_from_within(self) -> None:
        """A stream can be cancelled by what it tells: of the headers, or of a line."""
        self.server.answer = ENDLESS + chunk(b"one\ntwo\n")
        following: Deferred[Any] = Deferred()

        def cancel_at_once(response: Response) -> None:
            following.cancel()

        def cancel_at_line(line: bytes) -> None:
            self.lines.append(line)
            following.cancel()

        for opened, line in ((cancel_at_once, None), (None, cancel_at_line)):
            following = self.follow(opened, line)
            with self.assertRaises(CancelledError):
                await following
            await self.until(lambda: self.server.conversations[-1].closed)
        self.assertEqual(self.lines, [b"one"])
        # Nor does anything fail unheard: that would be logged when the garbage is collected, and end this test.
        gc.collect()

    async def test_mistakes_of_the_caller(self) -> None:
        """What the caller's functions raise ends the stream, and is what it fails with."""
        self.server.answer = ENDLESS + chunk(b"one\n" + b"x" * 200 + b"\n")

        def fail(_: object) -> None:
            raise RuntimeError("on purpose")

        for opened, line in ((fail, None), (None, fail)):
            with self.assertRaises(RuntimeError):
                await self.follow(opened, line)
            await self.until(lambda: self.server.conversations[-1].closed)
        self.assertEqual(len(self.server.conversations), 2)

    async def test_refused(self) -> None:
        """A refused connection is one line."""
        self.url = f"http://127.0.0.1:{free_port()}/"
        self.assertIn("refused", await self.error(self.follow()))


@implementer(IResponse)
class BodyToCome:
    """A response whose body comes in the pieces that a test wants."""

    version, code, phrase, length = (b"HTTP", 1, 1), 200, b"OK", None
    request = previousResponse = None

    def __init__(self) -> None:
        self.headers = Headers()
        self.transport = StringTransport()

    def deliverBody(self, protocol: Protocol) -> None:
        self.protocol = protocol
        protocol.makeConnection(self.transport)

    def setPreviousResponse(self, response: object) -> None:
        """There is none."""


@implementer(IAgent)
class OneResponse:
    """Gives it to whoever asks."""

    def __init__(self, response: BodyToCome) -> None:
        self.response = response

    def request(self, method: bytes, uri: bytes, headers: object = None, bodyProducer: object = None) -> Any:
        return succeed(self.response)


class PiecesTests(SynchronousTestCase):
    """Lines in whichever pieces they come, in simulated time."""

    LIMIT = 50

    def setUp(self) -> None:
        self.clock, self.response = Clock(), BodyToCome()
        self.lines: list[bytes] = []
        self.overlong: list[int] = []

    def follow(self) -> Deferred[Response | None]:
        return stream(
            HTTPClient(OneResponse(self.response)),
            self.clock,
            "http://example/",
            opened=lambda response: None,
            line=self.lines.append,
            overlong=self.overlong.append,
            open_timeout=5,
            idle_timeout=10,
            limit=self.LIMIT,
        )

    @given(st.lists(st.binary(max_size=70).map(lambda line: line.replace(b"\n", b"")), max_size=20), st.data())
    def test_pieces(self, lines: list[bytes], data: st.DataObject) -> None:
        """The same lines are told, wherever the body is cut; and no call is left for later."""
        self.setUp()
        following = self.follow()
        body = b"\n".join([*lines, b""])
        cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=10)))
        for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            self.response.protocol.dataReceived(body[start:end])
        self.response.protocol.connectionLost(Failure(ResponseDone()))
        self.assertIsNone(self.successResultOf(following))
        short = [line for line in lines if line.strip() and len(line) <= self.LIMIT]
        long = [len(line) for line in lines if len(line) > self.LIMIT]
        self.assertEqual((self.lines, self.overlong, self.clock.getDelayedCalls()), (short, long, []))

    def test_line_without_end(self) -> None:
        """Of a line that is too long nothing is kept, however long it becomes."""
        self.follow()
        size = 2**18
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for _ in range(200):
            self.response.protocol.dataReceived(b"x" * size)
        _, most = tracemalloc.get_traced_memory()
        self.assertLess(most, 10 * size)
        self.response.protocol.dataReceived(b"\none\n")
        self.assertEqual((self.lines, self.overlong), ([b"one"], [200 * size]))

    def test_silence(self) -> None:
        """The time of silence begins anew with each piece, and a peer that never lets go is not waited for."""
        following = self.follow()
        for _ in range(5):
            self.clock.advance(9.9)
            self.response.protocol.dataReceived(b"x")
        self.assertNoResult(following)
        self.clock.advance(10)
        self.assertEqual(str(self.failureResultOf(following, HTTPError).value), "nothing was heard for 10 s")
        self.assertTrue(self.response.transport.disconnecting)
        # It may still say something; nobody listens.
        self.response.protocol.dataReceived(b"\nmore\n")
        self.response.protocol.connectionLost(Failure(ResponseDone()))
        self.assertEqual((self.lines, self.clock.getDelayedCalls()), ([], []))

    def test_cancelled(self) -> None:
        """What comes after a stream was cancelled is not told."""
        following = self.follow()
        following.cancel()
        self.failureResultOf(following, CancelledError)
        self.response.protocol.dataReceived(b"more\n")
        self.assertEqual((self.lines, self.clock.getDelayedCalls()), ([], []))
