"""What every L{IClaimStore} does. Each provider runs this suite, so that the ones in memory cannot drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Any, Protocol

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kiwi.claims.interface import Granted, IClaimStore, Lost, Released, Taken, Unavailable
from kiwi.model import AgentRecord, Claims
from tests.fakes.worlds import World

ONE, TWO, THREE = (IPv4Address(f"192.168.1.{last}") for last in (41, 42, 43))
A = AgentRecord("a", "host-a", "place-a", "first")
A_AGAIN = AgentRecord("a", "host-a", "place-a", "second")
B = AgentRecord("b", "host-b", "place-b", "only")

LONG = 30
"""A TTL in seconds that no test outlasts."""

SHORT = 3
"""A TTL in seconds that is waited for."""


class Stage(Protocol):
    """Stores of several agents over one and the same truth."""

    @property
    def world(self) -> World:
        """Where they run."""

    def store(self, agent_id: str, ttl: int = LONG) -> IClaimStore:
        """The store of one agent."""


class ServerStage(Stage, Protocol):
    """Stores over a server, with which something can be wrong."""

    def crash(self) -> None:
        """The server is gone, and refuses connections; its data stays."""

    def start(self, wipe: bool = False) -> None:
        """It is back, with its data or without."""

    def freeze(self) -> None:
        """The server takes connections and requests, and does nothing."""

    def thaw(self) -> None:
        """It goes on, with what was asked meanwhile."""

    def store_with_dead_first(self, agent_id: str) -> IClaimStore:
        """A store with two endpoints, of which the first refuses connections."""

    async def write(self, path: str, value: str | None) -> None:
        """Write under the prefix what no agent would; C{None} for a folder."""

    async def delete(self, path: str) -> None:
        """Delete a folder under the prefix, with all that is in it."""


@define(eq=False)
class Listener:
    """Hears what a watch tells."""

    heard: list[Claims] = field(factory=list)

    @property
    def last(self) -> Claims | None:
        return self.heard[-1] if self.heard else None

    def listen(self, case: TestCase, store: IClaimStore) -> Any:
        """The service, which runs."""
        service = store.watch(self.heard.append)
        service.startService()
        case.addCleanup(lambda: service.stopService() if service.running else None)
        return service


def capture_log(case: TestCase) -> list[LogEvent]:
    """What is logged of the claims, from level info on."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def note(event: LogEvent) -> None:
        if str(event.get("log_namespace")).startswith("kiwi.claims") and event["log_level"] >= LogLevel.info:
            events.append(event)

    globalLogPublisher.addObserver(note)
    case.addCleanup(globalLogPublisher.removeObserver, note)
    return events


def levels(events: Sequence[LogEvent]) -> list[str]:
    return [event["log_level"].name for event in events]


async def granted(stage: Stage, store: IClaimStore, *addresses: IPv4Address) -> None:
    """Claim them, on a machine that may be slow."""
    for address in addresses:
        answer = await stage.world.of(store.acquire(address))
        while answer != Granted(getattr(answer, "sent", 0.0)):
            assert isinstance(answer, Unavailable), answer
            answer = await stage.world.of(store.acquire(address))


def make_claim_store_tests(make: Callable[[TestCase], Stage]) -> type[TestCase]:
    """
    @param make: an empty stage; it may add cleanups.
    """

    class ClaimStoreTests(TestCase):
        def setUp(self) -> None:
            self.stage = make(self)
            self.world = self.stage.world
            self.a, self.b = self.stage.store("a"), self.stage.store("b")

        async def watched(self, store: IClaimStore) -> Listener:
            """A watch that has begun."""
            listener = Listener()
            listener.listen(self, store)
            await self.world.until(lambda: bool(listener.heard))
            return listener

        async def hears(self, listener: Listener, claims: Claims) -> None:
            await self.world.until(lambda: listener.last == claims)

        def test_interface(self) -> None:
            """It provides what it says."""
            verifyObject(IClaimStore, self.a)

        async def test_acquire(self) -> None:
            """A claim that nobody has is granted, from the moment when it was asked for."""
            before = self.world.clock.seconds()
            answer = await self.world.of(self.a.acquire(ONE))
            assert isinstance(answer, Granted), answer
            self.assertTrue(before <= answer.sent <= self.world.clock.seconds())

        async def test_acquire_taken(self) -> None:
            """A claim that another agent has is taken, and it is said by whom."""
            await granted(self.stage, self.a, ONE)
            self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))

        async def test_acquire_own(self) -> None:
            """A claim that the agent itself has is taken by it: also by its life before a restart."""
            await granted(self.stage, self.a, ONE)
            self.assertEqual(await self.world.of(self.a.acquire(ONE)), Taken("a"))
            self.assertEqual(await self.world.of(self.stage.store("a").acquire(ONE)), Taken("a"))

        async def test_race(self) -> None:
            """Of agents that claim an address at the same time, one has it, and the others hear which one."""
            stores = {name: self.stage.store(name) for name in ("a", "b", "c", "d")}
            for address in (ONE, TWO, THREE):
                answers = await self.world.of(gatherResults([store.acquire(address) for store in stores.values()]))
                winners = [name for name, answer in zip(stores, answers, strict=True) if isinstance(answer, Granted)]
                self.assertEqual(len(winners), 1, answers)
                self.assertEqual(
                    [answer for answer in answers if not isinstance(answer, Granted)], [Taken(winners[0])] * 3
                )

        async def test_renew(self) -> None:
            """Each address is answered for: the agent's own are granted anew, all others are lost."""
            await granted(self.stage, self.a, ONE)
            await granted(self.stage, self.b, TWO)
            before = self.world.clock.seconds()
            answers = await self.world.of(self.a.renew({ONE, TWO, THREE}))
            own = answers[ONE]
            assert isinstance(own, Granted), own
            self.assertTrue(before <= own.sent <= self.world.clock.seconds())
            self.assertEqual(answers, {ONE: own, TWO: Lost(), THREE: Lost()})
            self.assertEqual(await self.world.of(self.a.renew(set())), {})

        async def test_renew_keeps(self) -> None:
            """A claim that is renewed outlasts its TTL; one that is not expires, and another agent can have it."""
            brief = self.stage.store("a", SHORT)
            await granted(self.stage, brief, ONE, TWO)
            listener = await self.watched(self.b)
            began = self.world.clock.seconds()
            while self.world.clock.seconds() < began + 2 * SHORT or listener.last != Claims({ONE: "a"}):
                self.assertTrue(self.world.clock.seconds() < began + 20 * SHORT, listener.last)
                await self.world.of(brief.renew({ONE}))
                await self.world.seconds(SHORT / 5)
            self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))
            await granted(self.stage, self.b, TWO)
            self.assertEqual((await self.world.of(brief.renew({TWO}))), {TWO: Lost()})

        async def test_renew_is_silent(self) -> None:
            """Who watches does not hear of renewals."""
            await granted(self.stage, self.a, ONE)
            listener = await self.watched(self.b)
            for _ in range(3):
                await self.world.of(self.a.renew({ONE}))
            await granted(self.stage, self.b, TWO)
            await self.hears(listener, Claims({ONE: "a", TWO: "b"}))
            self.assertEqual(listener.heard, [Claims({ONE: "a"}), Claims({ONE: "a", TWO: "b"})])

        async def test_release(self) -> None:
            """A claim that is released is free."""
            await granted(self.stage, self.a, ONE)
            self.assertEqual(await self.world.of(self.a.release(ONE)), Released())
            await granted(self.stage, self.b, ONE)

        async def test_release_after_renewal(self) -> None:
            """It makes no difference to a release how often the claim was renewed."""
            await granted(self.stage, self.a, ONE)
            await self.world.of(self.a.renew({ONE}))
            await self.world.of(self.a.renew({ONE}))
            self.assertEqual(await self.world.of(self.a.release(ONE)), Released())
            await granted(self.stage, self.b, ONE)

        async def test_release_by_next_life(self) -> None:
            """An agent that was started anew can release what it claimed before."""
            await granted(self.stage, self.a, ONE)
            self.assertEqual(await self.world.of(self.stage.store("a").release(ONE)), Released())
            await granted(self.stage, self.b, ONE)

        async def test_release_by_stranger(self) -> None:
            """An agent cannot release the claim of another; nor does it matter if there is none."""
            await granted(self.stage, self.a, ONE)
            self.assertEqual(await self.world.of(self.b.release(ONE)), Released())
            self.assertEqual(await self.world.of(self.b.release(TWO)), Released())
            self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))

        async def test_release_twice(self) -> None:
            """A claim that was released, and that another agent has since, is left alone."""
            await granted(self.stage, self.a, ONE)
            await self.world.of(self.a.release(ONE))
            await granted(self.stage, self.b, ONE)
            self.assertEqual(await self.world.of(self.a.release(ONE)), Released())
            self.assertEqual(await self.world.of(self.a.acquire(ONE)), Taken("b"))

        async def test_watch_tells_what_there_is(self) -> None:
            """A watch begins with everything that was there before it."""
            await granted(self.stage, self.a, ONE, TWO)
            await self.world.of(self.a.register(A))
            listener = await self.watched(self.b)
            self.assertEqual(listener.heard, [Claims({ONE: "a", TWO: "a"}, {"a": A})])

        async def test_watch_of_nothing(self) -> None:
            """A watch also tells that there is nothing."""
            self.assertEqual((await self.watched(self.a)).heard, [Claims()])

        async def test_watch_hears_changes(self) -> None:
            """A watch hears of claims and releases, whoever makes them."""
            listener = await self.watched(self.a)
            await granted(self.stage, self.a, ONE)
            await self.hears(listener, Claims({ONE: "a"}))
            await granted(self.stage, self.b, TWO)
            await self.hears(listener, Claims({ONE: "a", TWO: "b"}))
            await self.world.of(self.a.release(ONE))
            await self.hears(listener, Claims({TWO: "b"}))
            await granted(self.stage, self.b, ONE)
            await self.hears(listener, Claims({TWO: "b", ONE: "b"}))

        async def test_watch_hears_expiry(self) -> None:
            """A watch hears of a claim and of a record that expire."""
            brief = self.stage.store("a", SHORT)
            await granted(self.stage, brief, ONE)
            await self.world.of(brief.register(A))
            await granted(self.stage, self.b, TWO)
            listener = await self.watched(self.b)
            await self.hears(listener, Claims({TWO: "b"}))
            await granted(self.stage, self.b, ONE)

        async def test_many_expire(self) -> None:
            """When hundreds of claims expire at once, a watch has heard of all of them before long."""
            brief, many = self.stage.store("a", SHORT), [IPv4Address(f"10.0.{n // 250}.{n % 250}") for n in range(400)]
            await self.world.of(gatherResults([brief.acquire(address) for address in many]))
            await granted(self.stage, self.b, ONE)
            listener = await self.watched(self.b)
            await self.world.until(lambda: len(listener.heard) > 1)
            first = self.world.clock.seconds()
            await self.hears(listener, Claims({ONE: "b"}))
            # A watch that lost the thread would notice it when it has heard nothing for its TTL.
            self.assertLess(self.world.clock.seconds() - first, LONG / 2)

        async def test_watch_does_not_interrupt(self) -> None:
            """What a watch tells comes in a call of its own, so that listeners can use the store."""
            deep: list[bool] = []
            inside = False

            def changed(claims: Claims) -> None:
                nonlocal inside
                deep.append(inside)
                if ONE not in claims.holders:
                    inside = True
                    self.a.acquire(ONE)
                    self.a.register(A)
                    inside = False

            service = self.a.watch(changed)
            service.startService()
            self.addCleanup(service.stopService)
            listener = await self.watched(self.b)
            await self.hears(listener, Claims({ONE: "a"}, {"a": A}))
            await self.world.until(lambda: len(deep) > 1)
            self.assertEqual(set(deep), {False})

        async def test_watch_keeps_no_secrets(self) -> None:
            """What a watch has told never changes afterwards."""
            listener = await self.watched(self.a)
            await granted(self.stage, self.a, ONE)
            await self.hears(listener, Claims({ONE: "a"}))
            await self.world.of(self.a.register(A))
            await self.hears(listener, Claims({ONE: "a"}, {"a": A}))
            await self.world.of(self.a.release(ONE))
            await self.hears(listener, Claims({}, {"a": A}))
            self.assertEqual(
                listener.heard, [Claims(), Claims({ONE: "a"}), Claims({ONE: "a"}, {"a": A}), Claims({}, {"a": A})]
            )

        async def test_watch_survives_its_listener(self) -> None:
            """A listener that fails hears of the next change all the same, and the failure is logged."""
            heard: list[Claims] = []

            def changed(claims: Claims) -> None:
                heard.append(claims)
                raise RuntimeError("on purpose")

            service = self.a.watch(changed)
            service.startService()
            self.addCleanup(service.stopService)
            await self.world.until(lambda: len(heard) == 1)
            await granted(self.stage, self.a, ONE)
            await self.world.until(lambda: len(heard) == 2)
            self.assertEqual(heard, [Claims(), Claims({ONE: "a"})])
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

        async def test_watch_stops(self) -> None:
            """A watch that is stopped hears nothing more; started again, it tells how things are then."""
            listener, other = Listener(), await self.watched(self.b)
            service = listener.listen(self, self.a)
            await self.world.until(lambda: bool(listener.heard))
            service.stopService()
            await granted(self.stage, self.b, ONE)
            await self.hears(other, Claims({ONE: "b"}))
            await self.world.seconds(0.2)
            self.assertEqual(listener.heard, [Claims()])
            service.startService()
            await self.hears(listener, Claims({ONE: "b"}))

        async def test_watch_stops_at_once(self) -> None:
            """A watch that is stopped as soon as it is started tells nothing."""
            listener = Listener()
            service = listener.listen(self, self.a)
            service.stopService()
            await self.world.seconds(0.2)
            self.assertEqual(listener.heard, [])

        async def test_register(self) -> None:
            """Those who watch hear of an agent each time that it registers, and when it takes its record back."""
            listener = await self.watched(self.b)
            answer = await self.world.of(self.a.register(A))
            self.assertIsInstance(answer, Granted)
            await self.world.until(lambda: len(listener.heard) == 2)
            await self.world.of(self.a.register(A))
            await self.world.until(lambda: len(listener.heard) == 3)
            await self.world.of(self.b.register(B))
            await self.world.until(lambda: len(listener.heard) == 4)
            self.assertEqual(await self.world.of(self.a.deregister(A)), Released())
            await self.world.until(lambda: len(listener.heard) == 5)
            both = {"a": A, "b": B}
            self.assertEqual(
                listener.heard,
                [Claims(), Claims({}, {"a": A}), Claims({}, {"a": A}), Claims({}, both), Claims({}, {"b": B})],
            )

        async def test_deregister_another(self) -> None:
            """A record is taken back only if it is still the same; and it does not matter if there is none."""
            self.assertEqual(await self.world.of(self.a.deregister(A)), Released())
            await self.world.of(self.a.register(A_AGAIN))
            self.assertEqual(await self.world.of(self.a.deregister(A)), Released())
            self.assertEqual((await self.watched(self.b)).heard, [Claims({}, {"a": A_AGAIN})])

        async def test_register_taken(self) -> None:
            """A process whose id another one has registered is told so, and changes nothing."""
            await self.world.of(self.a.register(A))
            stranger = AgentRecord("a", "host-c", "place-c", "only")
            again = self.stage.store("a")
            self.assertEqual(await self.world.of(again.register(stranger)), Taken(""))
            self.assertEqual(await self.world.of(again.register(stranger, replacing=A_AGAIN)), Taken(""))
            self.assertEqual((await self.watched(self.b)).heard, [Claims({}, {"a": A})])

        async def test_register_in_place_of_a_dead_process(self) -> None:
            """A process that was started anew puts its record in the place of the one before it, which is heard of."""
            await self.world.of(self.a.register(A))
            listener = await self.watched(self.b)
            again = self.stage.store("a")
            self.assertIsInstance(await self.world.of(again.register(A_AGAIN, replacing=A)), Granted)
            await self.hears(listener, Claims({}, {"a": A_AGAIN}))
            self.assertIsInstance(await self.world.of(again.register(A_AGAIN, replacing=A)), Granted)
            self.assertEqual(await self.world.of(self.a.register(A)), Taken(""))

        async def test_register_in_place_of_nothing(self) -> None:
            """It does not matter if the record that was to be replaced is gone."""
            self.assertIsInstance(await self.world.of(self.a.register(A_AGAIN, replacing=A)), Granted)
            self.assertEqual((await self.watched(self.b)).heard, [Claims({}, {"a": A_AGAIN})])

        async def test_two_register_at_once(self) -> None:
            """Of two processes with one id, one is registered, and the other hears that it is not."""
            both = [self.stage.store("a").register(A), self.stage.store("a").register(A_AGAIN)]
            answers = await self.world.of(gatherResults(both))
            self.assertEqual(sorted(type(answer).__name__ for answer in answers), ["Granted", "Taken"])

        async def test_records_of_any_text(self) -> None:
            """What an agent tells of itself is any text, and comes back as it was."""
            record = AgentRecord("web-1.example_x", 'é "quoted" \\ 100% a+b&c=d;#?', "\n\u2028{}", "")
            await self.world.of(self.stage.store(record.id).register(record))
            listener = await self.watched(self.b)
            self.assertEqual(listener.heard, [Claims({}, {record.id: record})])
            await self.world.of(self.a.deregister(record))
            await self.hears(listener, Claims())

    return ClaimStoreTests


def make_server_claim_store_tests(make: Callable[[TestCase], ServerStage]) -> type[TestCase]:
    """
    What a store does about its server.

    @param make: an empty stage; it may add cleanups.
    """

    class ServerClaimStoreTests(TestCase):
        def setUp(self) -> None:
            self.log = capture_log(self)
            self.stage = make(self)
            self.world = self.stage.world
            self.a, self.b = self.stage.store("a"), self.stage.store("b")

        async def watched(self, store: IClaimStore) -> Listener:
            listener = Listener()
            listener.listen(self, store)
            await self.world.until(lambda: bool(listener.heard))
            return listener

        async def hears(self, listener: Listener, claims: Claims) -> None:
            await self.world.until(lambda: listener.last == claims)

        async def test_restart(self) -> None:
            """
            A watch survives that the server is gone for a while: it keeps what it knows, says once that it lost sight
            and once that it sees again, and hears of the next change.
            """
            await granted(self.stage, self.a, ONE)
            listener = await self.watched(self.b)
            self.stage.crash()
            await self.world.seconds(3)
            self.assertEqual(levels(self.log), ["info", "warn"])
            self.stage.start()
            await self.world.until(lambda: len(self.log) == 3)
            await granted(self.stage, self.a, TWO)
            await self.hears(listener, Claims({ONE: "a", TWO: "a"}))
            self.assertEqual(levels(self.log), ["info", "warn", "info"])
            self.assertEqual(listener.heard, [Claims({ONE: "a"}), Claims({ONE: "a", TWO: "a"})])

        async def test_lost_data(self) -> None:
            """A server that lost its data, and counts its changes from the beginning, is believed; the loss is told."""
            await granted(self.stage, self.a, ONE, TWO)
            listener = await self.watched(self.b)
            self.stage.crash()
            self.stage.start(wipe=True)
            await self.hears(listener, Claims(losses=1, lost=True))
            late = await self.watched(self.a)
            await self.hears(late, Claims(lost=True))
            await granted(self.stage, self.b, ONE)
            await self.hears(listener, Claims({ONE: "b"}, losses=1, lost=True))
            self.assertEqual(await self.world.of(self.a.renew({ONE, TWO})), {ONE: Lost(), TWO: Lost()})

        async def test_server_gone(self) -> None:
            """While no server answers, each answer is that it is unavailable, with a reason that names the endpoint."""
            self.stage.crash()
            await self.unavailable(LONG)

        async def test_server_hangs(self) -> None:
            """A server that does not answer is unavailable within a time that the TTL bounds."""
            brief = self.stage.store("a", SHORT)
            self.stage.freeze()
            self.a = brief
            await self.unavailable(SHORT)
            self.stage.thaw()
            await granted(self.stage, self.b, TWO)

        async def unavailable(self, ttl: float) -> None:
            began = self.world.clock.seconds()
            asked: list[Deferred[Any]] = [
                self.a.renew({ONE}),
                self.a.acquire(ONE),
                self.a.release(ONE),
                self.a.register(A),
                self.a.deregister(A),
            ]
            renewed, *answers = await self.world.of(gatherResults(asked))
            self.assertLess(self.world.clock.seconds() - began, ttl)
            for answer in (*answers, renewed[ONE]):
                assert isinstance(answer, Unavailable), answer
                self.assertRegex(answer.reason, r"\Ahttp://[a-z0-9.:]+: [ -~]+\Z")

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
            await write("/publicips/fd00::1", "x")
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

    return ServerClaimStoreTests
