"""What every L{IClaimStore} does. Each provider runs this suite, so that the ones in memory cannot drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network
from typing import Any, Protocol

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kiwi.claims.interface import Granted, IClaimStore, Lost, Released, Taken, Unavailable
from kiwi.model import Address, AgentRecord, Claims, ip
from tests.fakes.worlds import World

ONE, TWO, THREE = map(ip, ("192.168.1.41", "fd00::42", "192.168.1.43"))
A = AgentRecord("a", "host-a", "place-a", "first")
B = AgentRecord("b", "host-b", "place-b", "only")
C = AgentRecord("c", "host-c", "place-c", "first")
C_AGAIN = AgentRecord("c", "host-c", "place-c", "second")

LONG = 30
"""A TTL in seconds that no test outlasts."""

SHORT = 3
"""A TTL in seconds that is waited for."""


class Stage(Protocol):
    """Stores of several agents over one and the same truth."""

    @property
    def world(self) -> World:
        """Where they run."""

    @property
    def rest_on_records(self) -> bool:
        """Whether claims last as long as the record of their agent does, and none ends by itself."""

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


class WatchingTestCase(TestCase):
    """A test of what is told by watches."""

    world: World

    async def watched(self, store: IClaimStore) -> Listener:
        """A watch that has begun."""
        listener = Listener()
        listener.listen(self, store)
        await self.world.until(lambda: bool(listener.heard))
        return listener

    async def hears(self, listener: Listener, claims: Claims) -> None:
        await self.world.until(lambda: listener.last == claims)


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


def known(holders: Mapping[Address, str] | None = None, **more: Any) -> Claims:
    """What is told while both agents are registered."""
    return Claims(holders or {}, {"a": A, "b": B}, **more)


async def registered(stage: Stage, store: IClaimStore, record: AgentRecord) -> IClaimStore:
    """A store of an agent that is registered, on a machine that may be slow."""
    answer = await stage.world.of(store.register(record))
    while isinstance(answer, Unavailable):
        answer = await stage.world.of(store.register(record))
    assert isinstance(answer, Granted), answer
    return store


async def granted(stage: Stage, store: IClaimStore, *addresses: Address) -> None:
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

    class ClaimStoreTests(WatchingTestCase):
        async def setUp(self) -> None:  # type: ignore[override]
            self.stage = make(self)
            self.world = self.stage.world
            self.began = self.world.clock.seconds()
            self.a = await registered(self.stage, self.stage.store("a"), A)
            self.b = await registered(self.stage, self.stage.store("b"), B)

        def test_interface(self) -> None:
            """It provides what it says."""
            verifyObject(IClaimStore, self.a)

        async def test_acquire(self) -> None:
            """
            A claim that nobody has is granted, from the moment when it was asked for; or from when the record on which
            it rests was confirmed.
            """
            before = self.began if self.stage.rest_on_records else self.world.clock.seconds()
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
            again = await registered(self.stage, self.stage.store("a"), A)
            self.assertEqual(await self.world.of(again.acquire(ONE)), Taken("a"))

        async def test_race(self) -> None:
            """Of agents that claim an address at the same time, one has it, and the others hear which one."""
            stores = {"a": self.a, "b": self.b}
            for name in ("c", "d"):
                stores[name] = await registered(self.stage, self.stage.store(name), evolve(C, id=name))
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

        async def brief(self) -> IClaimStore:
            """The store of a, with a TTL that is waited for."""
            return await registered(self.stage, self.stage.store("a", SHORT), A)

        async def test_renew_keeps(self) -> None:
            """
            A claim that is renewed outlasts its TTL. One that is not expires, and another agent can have it; unless
            claims rest on records, which this one goes on to confirm.
            """
            brief, rest = await self.brief(), self.stage.rest_on_records
            await granted(self.stage, brief, ONE, TWO)
            listener = await self.watched(self.b)
            kept = {ONE: "a", TWO: "a"} if rest else {ONE: "a"}
            began = self.world.clock.seconds()
            while self.world.clock.seconds() < began + 2 * SHORT or self.holders(listener) != kept:
                self.assertTrue(self.world.clock.seconds() < began + 20 * SHORT, listener.last)
                await self.world.of(brief.renew({ONE}))
                await self.world.seconds(SHORT / 5)
            self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))
            if not rest:
                await granted(self.stage, self.b, TWO)
                self.assertEqual((await self.world.of(brief.renew({TWO}))), {TWO: Lost()})

        def holders(self, listener: Listener) -> Mapping[Address, str] | None:
            return None if listener.last is None else listener.last.holders

        async def test_renew_is_silent(self) -> None:
            """Who watches does not hear of renewals."""
            await granted(self.stage, self.a, ONE)
            listener = await self.watched(self.b)
            for _ in range(3):
                await self.world.of(self.a.renew({ONE}))
            await granted(self.stage, self.b, TWO)
            await self.hears(listener, known({ONE: "a", TWO: "b"}))
            self.assertEqual(listener.heard, [known({ONE: "a"}), known({ONE: "a", TWO: "b"})])

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
            listener = await self.watched(self.b)
            self.assertEqual(listener.heard, [known({ONE: "a", TWO: "a"})])

        async def test_watch_of_nothing(self) -> None:
            """A watch also tells that there is nothing."""
            await self.world.of(self.a.deregister(A))
            await self.world.of(self.b.deregister(B))
            self.assertEqual((await self.watched(self.a)).heard, [Claims()])

        async def test_watch_hears_changes(self) -> None:
            """A watch hears of claims and releases, whoever makes them."""
            listener = await self.watched(self.a)
            await granted(self.stage, self.a, ONE)
            await self.hears(listener, known({ONE: "a"}))
            await granted(self.stage, self.b, TWO)
            await self.hears(listener, known({ONE: "a", TWO: "b"}))
            await self.world.of(self.a.release(ONE))
            await self.hears(listener, known({TWO: "b"}))
            await granted(self.stage, self.b, ONE)
            await self.hears(listener, known({TWO: "b", ONE: "b"}))

        async def test_watch_hears_expiry(self) -> None:
            """A watch hears of claims and of a record that expire."""
            brief = await self.brief()
            await granted(self.stage, brief, ONE)
            await granted(self.stage, self.b, TWO)
            listener = await self.watched(self.b)
            await self.hears(listener, Claims({TWO: "b"}, {"b": B}))
            await granted(self.stage, self.b, ONE)

        async def test_many_expire(self) -> None:
            """When hundreds of claims expire at once, a watch has heard of all of them before long."""
            brief = await self.brief()
            many = [ip(f"10.0.{n // 250}.{n % 250}") for n in range(400)]
            await self.world.of(gatherResults([brief.acquire(address) for address in many]))
            await granted(self.stage, self.b, ONE)
            listener = await self.watched(self.b)
            await self.world.until(lambda: len(listener.heard) > 1)
            first = self.world.clock.seconds()
            await self.hears(listener, Claims({ONE: "b"}, {"b": B}))
            # A watch that lost the thread would notice it when it has heard nothing for its TTL.
            self.assertLess(self.world.clock.seconds() - first, LONG / 2)

        async def test_watch_does_not_interrupt(self) -> None:
            """What a watch tells comes in a call of its own, so that listeners can use the store."""
            deep: list[bool] = []
            asked: list[Deferred[Any]] = []
            inside = False

            def changed(claims: Claims) -> None:
                nonlocal inside
                deep.append(inside)
                if ONE not in claims.holders:
                    inside = True
                    asked.extend([self.a.acquire(ONE), self.a.register(A)])
                    inside = False

            service = self.a.watch(changed)
            service.startService()
            self.addCleanup(service.stopService)
            listener = await self.watched(self.b)
            await self.hears(listener, known({ONE: "a"}))
            await self.world.until(lambda: len(deep) > 1)
            self.assertEqual(set(deep), {False})
            await self.world.of(gatherResults(asked))

        async def test_watch_keeps_no_secrets(self) -> None:
            """What a watch has told never changes afterwards."""
            listener = await self.watched(self.a)
            await granted(self.stage, self.a, ONE)
            await self.hears(listener, known({ONE: "a"}))
            await self.world.of(self.b.deregister(B))
            await self.hears(listener, Claims({ONE: "a"}, {"a": A}))
            await self.world.of(self.a.release(ONE))
            await self.hears(listener, Claims({}, {"a": A}))
            self.assertEqual(
                listener.heard, [known(), known({ONE: "a"}), Claims({ONE: "a"}, {"a": A}), Claims({}, {"a": A})]
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
            self.assertEqual(heard, [known(), known({ONE: "a"})])
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

        async def test_watch_stops(self) -> None:
            """A watch that is stopped hears nothing more; started again, it tells how things are then."""
            listener, other = Listener(), await self.watched(self.b)
            service = listener.listen(self, self.a)
            await self.world.until(lambda: bool(listener.heard))
            service.stopService()
            await granted(self.stage, self.b, ONE)
            await self.hears(other, known({ONE: "b"}))
            await self.world.seconds(0.2)
            self.assertEqual(listener.heard, [known()])
            service.startService()
            await self.hears(listener, known({ONE: "b"}))

        async def test_watch_stops_at_once(self) -> None:
            """A watch that is stopped as soon as it is started tells nothing."""
            listener = Listener()
            service = listener.listen(self, self.a)
            service.stopService()
            await self.world.seconds(0.2)
            self.assertEqual(listener.heard, [])

        async def test_register(self) -> None:
            """Those who watch hear of an agent when it registers, and when it takes its record back."""
            listener, c = await self.watched(self.b), self.stage.store("c")
            self.assertIsInstance(await self.world.of(c.register(C)), Granted)
            three = {"a": A, "b": B, "c": C}
            await self.hears(listener, Claims({}, three))
            self.assertIsInstance(await self.world.of(c.register(C)), Granted)
            leaving = evolve(C, leaving=True)
            self.assertIsInstance(await self.world.of(c.register(leaving, replacing=C)), Granted)
            await self.hears(listener, Claims({}, {**three, "c": leaving}))
            self.assertEqual(await self.world.of(c.deregister(leaving)), Released())
            await self.hears(listener, known())

        async def test_deregister_another(self) -> None:
            """A record is taken back only if it is still the same; and it does not matter if there is none."""
            c = self.stage.store("c")
            self.assertEqual(await self.world.of(c.deregister(C)), Released())
            await self.world.of(c.register(C_AGAIN))
            self.assertEqual(await self.world.of(c.deregister(C)), Released())
            self.assertEqual((await self.watched(self.b)).heard, [Claims({}, {"a": A, "b": B, "c": C_AGAIN})])

        async def test_register_taken(self) -> None:
            """A process whose id another one has registered is told so, and changes nothing."""
            stranger = AgentRecord("a", "host-c", "place-c", "only")
            again = self.stage.store("a")
            self.assertEqual(await self.world.of(again.register(stranger)), Taken(""))
            earlier = evolve(A, instance="earlier")
            self.assertEqual(await self.world.of(again.register(stranger, replacing=earlier)), Taken(""))
            self.assertEqual((await self.watched(self.b)).heard, [known()])

        async def test_register_in_place_of_a_dead_process(self) -> None:
            """
            A process that was started anew puts its record in the place of the one before it, which is heard of, and
            has the claims of that one.
            """
            c, again = await registered(self.stage, self.stage.store("c"), C), self.stage.store("c")
            await granted(self.stage, c, ONE)
            listener = await self.watched(self.b)
            self.assertIsInstance(await self.world.of(again.register(C_AGAIN, replacing=C)), Granted)
            await self.hears(listener, Claims({ONE: "c"}, {"a": A, "b": B, "c": C_AGAIN}))
            self.assertIsInstance(await self.world.of(again.register(C_AGAIN, replacing=C)), Granted)
            self.assertEqual(await self.world.of(c.register(C)), Taken(""))
            self.assertIsInstance((await self.world.of(again.renew({ONE})))[ONE], Granted)

        async def test_register_in_place_of_nothing(self) -> None:
            """It does not matter if the record that was to be replaced is gone."""
            c = self.stage.store("c")
            self.assertIsInstance(await self.world.of(c.register(C_AGAIN, replacing=C)), Granted)
            self.assertEqual((await self.watched(self.b)).heard, [Claims({}, {"a": A, "b": B, "c": C_AGAIN})])

        async def test_two_register_at_once(self) -> None:
            """Of two processes with one id, one is registered, and the other hears that it is not."""
            both = [self.stage.store("c").register(C), self.stage.store("c").register(C_AGAIN)]
            answers = await self.world.of(gatherResults(both))
            self.assertEqual(sorted(type(answer).__name__ for answer in answers), ["Granted", "Taken"])

        async def test_session(self) -> None:
            """Where claims rest on records, answers say on which session, and it is one until the record is gone."""
            first = await self.session_of(self.a.register(A))
            self.assertEqual(await self.session_of(self.a.acquire(ONE)), first)
            renewed = self.a.renew({ONE}).addCallback(lambda found: found[ONE])
            self.assertEqual({await self.session_of(renewed), await self.session_of(self.a.register(A))}, {first})
            self.assertEqual(first != "", self.stage.rest_on_records)
            await self.world.of(self.a.release(ONE))
            await self.world.of(self.a.deregister(A))
            self.assertEqual(await self.session_of(self.a.register(A)) != first, self.stage.rest_on_records)

        async def session_of(self, answer: Deferred[Any]) -> str:
            granted = await self.world.of(answer)
            self.assertIsInstance(granted, Granted)
            return str(granted.session)

        async def test_records_of_any_text(self) -> None:
            """What an agent tells of itself is any text, and comes back as it was; its id is any that is allowed."""
            networks = (ip_network("192.168.1.0/24"), ip_network("fd00::/64"))
            record = AgentRecord(
                "Web-1.example_x", 'é "quoted" \\ 100% a+b&c=d;#?', "\n\u2028{}", "", networks=networks
            )
            store = await registered(self.stage, self.stage.store(record.id), record)
            listener = await self.watched(self.b)
            self.assertEqual(listener.heard, [Claims({}, {"a": A, "b": B, record.id: record})])
            await granted(self.stage, store, ONE)
            await self.hears(listener, Claims({ONE: record.id}, {"a": A, "b": B, record.id: record}))
            await self.world.of(store.release(ONE))
            await self.world.of(store.deregister(record))
            await self.hears(listener, known())

    return ClaimStoreTests


def make_server_claim_store_tests(make: Callable[[TestCase], ServerStage]) -> type[TestCase]:
    """
    What a store does about its server.

    @param make: an empty stage; it may add cleanups.
    """

    class ServerClaimStoreTests(WatchingTestCase):
        async def setUp(self) -> None:  # type: ignore[override]
            self.log = capture_log(self)
            self.stage = make(self)
            self.world = self.stage.world
            self.a = await registered(self.stage, self.stage.store("a"), A)
            self.b = await registered(self.stage, self.stage.store("b"), B)

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
            await self.hears(listener, known({ONE: "a", TWO: "a"}))
            self.assertEqual(levels(self.log), ["info", "warn", "info"])
            self.assertEqual(listener.heard, [known({ONE: "a"}), known({ONE: "a", TWO: "a"})])

        async def test_lost_data(self) -> None:
            """A server that lost its data, and counts its changes from the beginning, is believed; the loss is told."""
            await granted(self.stage, self.a, ONE, TWO)
            listener = await self.watched(self.b)
            self.stage.crash()
            self.stage.start(wipe=True)
            await self.hears(listener, Claims(losses=1, lost=True))
            late = await self.watched(self.a)
            await self.hears(late, Claims(lost=True))
            await registered(self.stage, self.b, B)
            await granted(self.stage, self.b, ONE)
            await self.hears(listener, Claims({ONE: "b"}, {"b": B}, losses=1, lost=True))
            self.assertEqual(await self.world.of(self.a.renew({ONE, TWO})), {ONE: Lost(), TWO: Lost()})

        async def test_server_gone(self) -> None:
            """While no server answers, each answer is that it is unavailable, with a reason that names the endpoint."""
            self.stage.crash()
            await self.unavailable(LONG)

        async def test_server_hangs(self) -> None:
            """A server that does not answer is unavailable within a time that the TTL bounds."""
            self.a = await registered(self.stage, self.stage.store("a", SHORT), A)
            self.stage.freeze()
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
                self.assertRegex(answer.reason, r"\Ahttps?://[a-z0-9.:]+: [ -~]+\Z")

    return ServerClaimStoreTests
