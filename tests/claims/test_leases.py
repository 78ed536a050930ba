"""The suite of claim stores, on Leases: over the fake API server and over a real one; and how this store works."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.trial.unittest import TestCase
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from kiwi.claims.interface import Granted, Lost, Released, Taken, Unavailable
from kiwi.claims.lease_objects import HISTORY, LOSS
from kiwi.claims.lease_watch import GRACE
from kiwi.claims.leases import LeaseClaimStore
from kiwi.model import CLOCK_DRIFT, Claims, ip
from tests.fakes.kubernetes import Access, KubernetesResource, KubernetesState
from tests.fakes.worlds import STEP, ClockWorld

from .claimstoretests import (
    C_AGAIN,
    ONE,
    THREE,
    TWO,
    A,
    B,
    C,
    Listener,
    WatchingTestCase,
    capture_log,
    granted,
    known,
    levels,
    make_claim_store_tests,
    make_server_claim_store_tests,
    registered,
)
from .stages import FakeLeaseStage, fake_lease_stage, real_lease_stage


class FakeLeaseStoreTests(make_claim_store_tests(fake_lease_stage)):  # type: ignore[misc]
    """Over the fake, in simulated time."""


class FakeLeaseServerTests(make_server_claim_store_tests(fake_lease_stage)):  # type: ignore[misc]
    """Over the fake, in simulated time."""


class RealLeaseStoreTests(make_claim_store_tests(real_lease_stage)):  # type: ignore[misc]
    """Over C{kube-apiserver}."""


class RealLeaseServerTests(make_server_claim_store_tests(real_lease_stage)):  # type: ignore[misc]
    """Over C{kube-apiserver}."""


TTL = 10
GONE = "a, whose Lease is gone"


@define(eq=False)
class Gate(Resource):
    """
    Stands before a server, and decides what becomes of requests and answers.

    @ivar asked: what was asked: C{PUT agent.a}, C{POST 192.168.1.41}, C{LIST}, C{WATCH}.
    @ivar bodies: the latest body of each of these.
    @ivar fates: what becomes of the next ones, in turn: the answer to one that is C{lost} does not arrive; one that is
        C{late} is carried out when the test says so; before one that is C{after} something, that happens.
    """

    isLeaf = True

    _server: Resource
    asked: list[str] = field(factory=list, init=False)
    bodies: dict[str, Any] = field(factory=dict, init=False)
    fates: dict[str, list[str | Callable[[], object]]] = field(factory=dict, init=False)
    _late: list[tuple[Request, bytes]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        super().__init__()

    def render(self, request: Request) -> bytes | int:
        assert request.content is not None
        body = request.content.read()
        request.content.seek(0)
        document = json.loads(body) if body else {}
        name = request.path.decode().partition("/leases")[2].strip("/") or document.get("metadata", {}).get("name")
        line = f"{request.method.decode()} {name}" if name else "WATCH" if b"watch" in request.args else "LIST"
        self.asked.append(line)
        self.bodies[line] = document
        fate = self.fates.get(line, []).pop(0) if self.fates.get(line) else "answered"
        if fate == "late":
            self._late.append((request, body))
            return NOT_DONE_YET
        if callable(fate):
            fate()
        answer: bytes | int = self._server.render(request)
        return NOT_DONE_YET if fate == "lost" else answer

    def carry_out(self) -> list[int]:
        """Carry out what is late; the statuses, which nobody hears of any more."""
        late, self._late = self._late, []
        statuses = []
        for request, body in late:
            request.content = BytesIO(body)
            self._server.render(request)
            statuses.append(request.code)
        return statuses


class OverFake(WatchingTestCase):
    """One server in memory, and agents with a TTL of 10 s, of which a and b are registered."""

    world: ClockWorld

    async def setUp(self) -> None:  # type: ignore[override]
        self.log = capture_log(self)
        self.stage = FakeLeaseStage()
        self.world, self.state = self.stage.world, self.stage.state
        self.gate = Gate(KubernetesResource(self.state))
        self.world.network.plug(self.stage.where, self.gate)
        self.a, self.b = self.stage.store("a", TTL), self.stage.store("b", TTL)
        await registered(self.stage, self.a, A)
        await registered(self.stage, self.b, B)
        self.gate.asked.clear()

    def start(self) -> None:
        """The server is back after a crash, as it was."""
        self.world.network.plug(self.stage.where, self.gate)

    def asked(self, *verbs: str) -> list[str]:
        """What was asked since the last time; with these verbs only, if there are any."""
        asked = [line for line in self.gate.asked if not verbs or line.split()[0] in verbs]
        self.gate.asked.clear()
        return asked

    def names(self) -> list[str]:
        """Of the Leases that there are."""
        return sorted(name for _, name in self.state.objects("leases"))

    def lease(self, name: str) -> dict[str, Any]:
        return self.state.objects("leases")["kiwi", name].as_item("v1")

    def identity(self, name: str) -> dict[str, str]:
        metadata = self.lease(name)["metadata"]
        return {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}

    def write(self, name: str, **spec: Any) -> None:
        """Write a Lease by hand."""
        annotations = spec.pop("annotations", {})
        metadata = {"name": name, "annotations": annotations}
        document = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        self.state.put(document, "kiwi")

    def delete(self, name: str) -> None:
        """Delete a Lease by hand."""
        self.state.delete(name, "kiwi", "leases")

    def change(self, times: int) -> None:
        """Have the cluster's resource version grow, which others use, too."""
        for number in range(times):
            self.state.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{number}"}})

    def deafen(self) -> None:
        """The watches of now hear nothing any more, and do not know."""
        for watcher in self.state.watchers:
            watcher.selects = lambda stored: False

    async def beat_until(self, condition: Callable[[], bool], *stores: LeaseClaimStore) -> None:
        """Have agents confirm their sessions three times in each TTL until something is so."""
        began = self.world.clock.seconds()
        while not condition():
            self.assertLess(self.world.clock.seconds(), began + 60)
            for store in stores:
                await self.world.of(store.renew({THREE}))
            await self.world.seconds(TTL / 3)


class HeartbeatTests(OverFake):
    """The confirmation of a session."""

    async def test_one_request(self) -> None:
        """A record and many renewals of one turn are one request, whose moment counts for all."""
        await granted(self.stage, self.a, ONE, TWO)
        self.asked()
        await self.world.seconds(1)
        now = self.world.clock.seconds()
        asked: list[Deferred[Any]] = [self.a.register(A), self.a.renew({ONE, TWO}), self.a.renew({ONE})]
        record, *renewals = await self.world.of(gatherResults(asked))
        self.assertEqual(record, Granted(now))
        self.assertEqual(renewals, [{ONE: Granted(now), TWO: Granted(now)}, {ONE: Granted(now)}])
        self.assertEqual(self.asked(), ["PUT agent.a"])

    async def test_claim(self) -> None:
        """A claim lasts from when the session was confirmed last."""
        confirmed = self.world.clock.seconds()
        await registered(self.stage, self.a, A)
        await self.world.seconds(3)
        self.assertEqual(await self.world.of(self.a.acquire(ONE)), Granted(confirmed))

    async def test_one_at_a_time(self) -> None:
        """What is asked for while a request is on its way is another one, which waits for its answer."""
        await granted(self.stage, self.a, ONE)
        self.asked()
        self.gate.fates["PUT agent.a"] = ["lost"]
        first = self.a.renew({ONE})
        self.world.settle()
        second, third = self.a.renew({ONE}), self.a.register(A)
        await self.world.seconds(0.5)
        self.assertEqual(self.asked(), ["PUT agent.a"])
        asked: list[Deferred[Any]] = [first, second, third]
        answers = await self.world.of(gatherResults(asked))
        self.assertEqual(self.asked(), ["PUT agent.a", "GET agent.a", "PUT agent.a"])
        self.assertGreater(answers[1][ONE].sent, answers[0][ONE].sent)
        self.assertEqual(answers[2], answers[1][ONE])

    async def test_lost_answer(self) -> None:
        """
        The answer to a confirmation is lost, and when it is sent again it is refused: it is found to have been carried
        out, and counts from when it was sent first.
        """
        await granted(self.stage, self.a, ONE)
        self.asked()
        before = self.world.clock.seconds()
        self.gate.fates["PUT agent.a"] = ["lost"]
        self.assertEqual(await self.world.of(self.a.renew({ONE})), {ONE: Granted(before)})
        self.assertEqual(self.asked(), ["PUT agent.a", "PUT agent.a", "GET agent.a"])

    async def test_lost_answer_at_first(self) -> None:
        """The same with the first registration."""
        before = self.world.clock.seconds()
        self.gate.fates["POST agent.c"] = ["lost"]
        self.assertEqual(await self.world.of(self.stage.store("c", TTL).register(C)), Granted(before))
        self.assertEqual(self.asked(), ["GET agent.c", "POST agent.c", "POST agent.c", "GET agent.c"])

    async def test_claim_that_worked(self) -> None:
        """A claim that was made, but not answered for in time, is found to be the agent's own; it is renewed then."""
        self.gate.fates["POST 192.168.1.41"] = ["lost"]
        self.assertEqual(await self.world.of(self.a.acquire(ONE)), Taken("a"))
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)

    async def test_earlier_answers_unheard(self) -> None:
        """An earlier confirmation was carried out after its time was up: the next one goes on from there."""
        await granted(self.stage, self.a, ONE)
        self.gate.fates["PUT agent.a"] = ["late"] * 3
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Unavailable)
        self.assertEqual(self.gate.carry_out(), [200, 409, 409])
        before = self.world.clock.seconds()
        self.assertEqual(await self.world.of(self.a.renew({ONE})), {ONE: Granted(before)})


class EndTests(OverFake):
    """The end of a session that nobody confirms any more."""

    async def test_in_this_order(self) -> None:
        """
        A Lease that has not been changed for a TTL and 1% of it is read, and deleted as it was; only then are the
        claims that rest on it free.
        """
        await granted(self.stage, self.a, ONE)
        listener = await self.watched(self.b)
        await registered(self.stage, self.a, A)
        await self.world.until(lambda: self.identity("agent.a")["resourceVersion"] == str(self.state.resource_version))
        # It is heard of when time moves on.
        self.world.settle()
        heard = self.world.clock.seconds()
        identity = self.identity("agent.a")
        self.asked()
        free: list[Any] = []

        def try_it() -> None:
            self.b.acquire(ONE).addCallback(free.append)

        self.gate.fates["DELETE agent.a"] = [try_it]
        until = heard + TTL * (1 + CLOCK_DRIFT)
        while self.world.clock.seconds() + 2 < until:
            await registered(self.stage, self.b, B)
            await self.world.seconds(1)
        await self.world.seconds(until - 0.01 - self.world.clock.seconds())
        self.assertEqual(self.asked("GET", "DELETE"), [])
        self.assertEqual(listener.last, known({ONE: "a"}))
        await self.world.seconds(0.02)
        self.assertEqual(self.asked("GET", "DELETE"), ["GET agent.a", "DELETE agent.a"])
        self.assertEqual(self.gate.bodies["DELETE agent.a"]["preconditions"], identity)
        await self.hears(listener, Claims({}, {"b": B}))
        self.assertEqual(free, [Taken("a")])
        await granted(self.stage, self.b, ONE)

    async def test_comes_back_too_late(self) -> None:
        """An agent whose Lease was deleted has lost all its claims, and a session begins anew under another uid."""
        await granted(self.stage, self.a, ONE, TWO)
        before = self.identity("agent.a")
        await self.watched(self.a)
        listener = await self.watched(self.b)
        await self.beat_until(lambda: listener.last == Claims({}, {"b": B}), self.b)
        await granted(self.stage, self.b, ONE)
        self.assertEqual(await self.world.of(self.a.renew({ONE, TWO})), {ONE: Lost(), TWO: Lost()})
        self.assertNotIn("agent.a", self.names())
        self.assertEqual(await self.world.of(self.a.renew({TWO})), {TWO: Lost()})
        await registered(self.stage, self.a, A)
        self.assertNotEqual(self.identity("agent.a")["uid"], before["uid"])
        self.assertEqual(await self.world.of(self.a.renew({ONE, TWO})), {ONE: Lost(), TWO: Lost()})
        await granted(self.stage, self.a, TWO)

    async def test_comes_back_in_time(self) -> None:
        """An agent that confirms its session right before the deletion keeps it, and all claims."""
        await granted(self.stage, self.a, ONE)
        listener = await self.watched(self.b)
        stamped = self.lease("agent.a")

        def confirm() -> None:
            self.write(
                "agent.a",
                **{**stamped["spec"], "renewTime": "2026-01-01T00:00:00.000000Z"},
                annotations=stamped["metadata"]["annotations"],
            )

        self.gate.fates["DELETE agent.a"] = [confirm]
        await self.beat_until(lambda: "DELETE agent.a" in self.gate.asked, self.b)
        self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)
        self.assertEqual(listener.heard, [known({ONE: "a"})])

    async def test_was_not_heard(self) -> None:
        """An agent that is only not heard of is left alone, because its Lease is read first."""
        await granted(self.stage, self.a, ONE)
        listener = await self.watched(self.b)
        self.deafen()
        await self.world.seconds(TTL / 2)
        await registered(self.stage, self.a, A)
        self.asked()
        await self.world.until(lambda: "GET agent.a" in self.gate.asked or "LIST" in self.gate.asked)
        await self.world.seconds(0.5)
        self.assertEqual(self.asked("DELETE"), [])
        self.assertEqual(listener.heard, [known({ONE: "a"})])

    async def test_late_confirmation(self) -> None:
        """A confirmation that is carried out after the deletion makes no Lease."""
        await granted(self.stage, self.a, ONE)
        listener = await self.watched(self.b)
        self.gate.fates["PUT agent.a"] = ["late"] * 3
        await self.world.of(self.a.renew({ONE}))
        await self.beat_until(lambda: listener.last == Claims({}, {"b": B}), self.b)
        self.assertEqual(self.gate.carry_out(), [409] * 3)
        self.assertEqual(self.names(), ["192.168.1.41", "agent.b", HISTORY])

    async def test_alone_among_the_dead(self) -> None:
        """Where no agent is alive that could be heard of, the Leases of the dead end no later."""
        self.delete("agent.b")
        listener = await self.watched(self.stage.store("c", TTL))
        self.assertEqual(listener.last, Claims({}, {"a": A}))
        await self.world.until(lambda: listener.last == Claims(), within=TTL * (1 + CLOCK_DRIFT) + 0.5)

    async def test_silent_watch(self) -> None:
        """A watch that is silent for a TTL is opened anew, and hears again."""
        listener = await self.watched(self.b)
        self.deafen()
        self.asked()
        await self.world.seconds(TTL - 0.1)
        self.assertEqual(self.asked("LIST", "WATCH"), [])
        await self.world.seconds(0.2)
        self.assertEqual(self.asked("LIST", "WATCH"), ["LIST", "WATCH"])
        await registered(self.stage, self.stage.store("c", TTL), C)
        await self.world.until(lambda: listener.last is not None and "c" in listener.last.agents)


class DeletedTests(OverFake):
    """Somebody deletes the Lease of an agent."""

    async def test_for_others(self) -> None:
        """For a TTL the others take nothing of that agent, which may not know yet; then they do."""
        await granted(self.stage, self.a, ONE)
        listener = await self.watched(self.b)
        await registered(self.stage, self.a, A)
        self.world.settle()
        heard = self.world.clock.seconds()
        self.delete("agent.a")
        await self.hears(listener, Claims({ONE: GONE}, {"b": B}))
        until = heard + TTL * (1 + CLOCK_DRIFT)
        while self.world.clock.seconds() + 0.1 < until:
            await registered(self.stage, self.b, B)
            self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken(GONE))
            await self.world.seconds(min(1, until - 0.05 - self.world.clock.seconds()))
        self.assertEqual(listener.last, Claims({ONE: GONE}, {"b": B}))
        await self.world.seconds(0.2)
        self.assertEqual(listener.last, Claims({}, {"b": B}))
        await granted(self.stage, self.b, ONE)

    async def test_for_itself(self) -> None:
        """The agent itself waits for nobody: it begins another session and has its claims at once."""
        await granted(self.stage, self.a, ONE, TWO)
        listener = await self.watched(self.a)
        before = self.world.clock.seconds()
        self.delete("agent.a")
        await self.hears(listener, Claims({}, {"b": B}))
        self.assertEqual(await self.world.of(self.a.renew({ONE})), {ONE: Lost()})
        await registered(self.stage, self.a, A)
        await granted(self.stage, self.a, ONE, TWO)
        self.assertLess(self.world.clock.seconds(), before + 1)
        await self.hears(listener, known({ONE: "a", TWO: "a"}))

    async def test_for_the_next_life(self) -> None:
        """An agent that is started anew after that waits like the others: it does not know what was its own."""
        await granted(self.stage, self.a, ONE)
        self.delete("agent.a")
        again = await registered(self.stage, self.stage.store("a", TTL), A)
        assert isinstance(again, LeaseClaimStore)
        await self.watched(again)
        self.assertEqual(await self.world.of(again.acquire(ONE)), Taken(GONE))


class AwayTests(OverFake):
    """The server was away for longer than a TTL."""

    async def test_all_are_alive(self) -> None:
        """When it is back, those who confirm their sessions within some time keep them, and all claims."""
        await granted(self.stage, self.a, ONE)
        await granted(self.stage, self.b, TWO)
        listeners = [await self.watched(store) for store in (self.a, self.b)]
        self.stage.crash()
        await self.world.seconds(2 * TTL)
        self.start()
        self.asked()
        await self.world.until(lambda: self.gate.asked.count("WATCH") == 2)
        await self.world.seconds(GRACE - 0.5)
        await registered(self.stage, self.a, A)
        await registered(self.stage, self.b, B)
        await self.world.seconds(GRACE)
        self.assertEqual(self.asked("PUT", "POST", "DELETE"), ["PUT agent.a", "PUT agent.b"])
        self.assertEqual([listener.heard for listener in listeners], [[known({ONE: "a", TWO: "b"})]] * 2)
        answers = [await self.world.of(store.renew({ONE, TWO})) for store in (self.a, self.b)]
        self.assertEqual([type(answer[own]) for answer, own in zip(answers, (ONE, TWO), strict=True)], [Granted] * 2)

    async def test_one_is_dead(self) -> None:
        """Who does not confirm its session is gone after that time."""
        await granted(self.stage, self.a, ONE)
        listener = await self.watched(self.b)
        self.stage.crash()
        await self.world.seconds(2 * TTL)
        self.start()
        self.asked()
        await self.world.until(lambda: "WATCH" in self.gate.asked)
        await registered(self.stage, self.b, B)
        await self.world.seconds(GRACE - 0.1)
        self.assertEqual(listener.last, known({ONE: "a"}))
        await self.world.seconds(0.2)
        self.assertEqual(listener.last, Claims({}, {"b": B}))


class AdoptionTests(OverFake):
    """Claims that an earlier life of an agent has made, and requests of it that are carried out late."""

    async def test_written_again(self) -> None:
        """They are written again before they count; after that they are renewed like all others."""
        await granted(self.stage, self.a, ONE)
        before = self.identity("192.168.1.41")
        again = await registered(self.stage, self.stage.store("a", TTL), A)
        assert isinstance(again, LeaseClaimStore)
        await self.watched(again)
        self.asked()
        self.assertIsInstance((await self.world.of(again.renew({ONE})))[ONE], Granted)
        self.assertEqual(self.asked("PUT"), ["PUT agent.a", "PUT 192.168.1.41"])
        after = self.identity("192.168.1.41")
        self.assertEqual(after["uid"], before["uid"])
        self.assertNotEqual(after["resourceVersion"], before["resourceVersion"])
        self.assertIsInstance((await self.world.of(again.renew({ONE})))[ONE], Granted)
        self.assertEqual(self.asked(), ["PUT agent.a"])

    async def test_late_delete(self) -> None:
        """A deletion of the earlier life that is carried out after that does nothing."""
        await granted(self.stage, self.a, ONE)
        self.gate.fates["DELETE 192.168.1.41"] = ["late"] * 3
        self.assertIsInstance(await self.world.of(self.a.release(ONE)), Unavailable)
        again = await registered(self.stage, self.stage.store("a", TTL), A)
        assert isinstance(again, LeaseClaimStore)
        await self.watched(again)
        self.assertIsInstance((await self.world.of(again.renew({ONE})))[ONE], Granted)
        self.assertEqual(self.gate.carry_out(), [409] * 3)
        self.assertIsInstance((await self.world.of(again.renew({ONE})))[ONE], Granted)

    async def test_late_delete_of_its_own(self) -> None:
        """Nor does one of the same life, where the claim was to be kept after all."""
        await granted(self.stage, self.a, ONE)
        await self.watched(self.a)
        self.gate.fates["DELETE 192.168.1.41"] = ["late"] * 3
        self.assertIsInstance(await self.world.of(self.a.release(ONE)), Unavailable)
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)
        self.assertEqual(self.gate.carry_out(), [409] * 3)

    async def test_another_life_on_the_same_session(self) -> None:
        """An earlier life that still runs has lost its session when its next life has gone on with it."""
        c = await registered(self.stage, self.stage.store("c", TTL), C)
        again = await registered(self.stage, self.stage.store("c", TTL), C)
        self.assertIsInstance(await self.world.of(again.register(C_AGAIN, replacing=C)), Granted)
        await granted(self.stage, again, ONE)
        self.assertEqual(await self.world.of(c.renew({ONE})), {ONE: Lost()})

    async def test_released_claim_is_free_at_once(self) -> None:
        """A claim that was given back can be made again before the watch has told of its end."""
        await granted(self.stage, self.a, ONE)
        await self.watched(self.a)
        self.deafen()
        self.assertEqual(await self.world.of(self.a.release(ONE)), Released())
        await granted(self.stage, self.a, ONE)

    async def test_not_without_a_record(self) -> None:
        """An agent that has no Lease of its own claims nothing."""
        answer = await self.world.of(self.stage.store("c", TTL).acquire(ONE))
        assert isinstance(answer, Unavailable), answer
        self.assertEqual(self.asked(), [])


class ForgetfulTests(OverFake):
    """A store that comes back without its data, or with that of an earlier time."""

    async def lost(self, listener: Listener) -> None:
        await self.world.until(lambda: listener.last is not None and listener.last.losses == 1)
        self.assertEqual([event["log_level"].name for event in self.log].count("error"), 1)
        self.assertIn(LOSS, self.names())

    async def test_versions_go_back(self) -> None:
        """A list with an earlier resource version than was known shows that data was lost."""
        listener = await self.watched(self.b)
        backup = self.state.snapshot()
        self.change(1)
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, known({ONE: "a"}))
        self.state.restore(backup)
        await self.lost(listener)
        self.assertEqual(listener.last, known(losses=1, lost=True))

    async def test_objects_go_back(self) -> None:
        """So does a Lease that is in an earlier state than was known, whatever else has happened since."""
        listener = await self.watched(self.b)
        backup = self.state.snapshot()
        await registered(self.stage, self.a, A)
        self.world.settle()
        self.state.restore(backup)
        self.change(20)
        await self.lost(listener)

    async def test_another_history(self) -> None:
        """So does another history, also where versions are higher than before."""
        listener = await self.watched(self.b)
        self.state.restart()
        self.change(50)
        self.write(HISTORY, holderIdentity="kiwi")
        await self.lost(listener)

    async def test_answer_goes_back(self) -> None:
        """So does an answer with an earlier version, before the watch has told."""
        await self.watched(self.a)
        for number in range(20):
            await registered(self.stage, self.a, evolve(A, leaving=bool(number % 2)))
        listener = await self.watched(self.a)
        self.deafen()
        self.state.restart()
        answer = await self.world.of(self.a.acquire(ONE))
        assert isinstance(answer, Unavailable), answer
        self.assertEqual(answer.reason, "http://kubernetes:8080: it has lost its data")
        await self.world.until(lambda: listener.last is not None and listener.last.losses == 1)

    async def test_answer_to_a_heartbeat_goes_back(self) -> None:
        """The same for a session that is begun anew."""
        await self.watched(self.a)
        for number in range(20):
            await registered(self.stage, self.a, evolve(A, leaving=bool(number % 2)))
        listener = await self.watched(self.a)
        self.deafen()
        self.state.restart()
        self.assertEqual(
            await self.world.of(self.a.register(A)), Unavailable("http://kubernetes:8080: it has lost its data")
        )
        await self.world.until(lambda: listener.last is not None and listener.last.losses == 1)

    async def test_answers_from_before(self) -> None:
        """What the store answered before it lost its data counts no longer."""
        listener = await self.watched(self.a)
        backup = self.state.snapshot()
        self.change(20)
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, known({ONE: "a"}))
        self.state.restore(backup)
        await self.lost(listener)
        await granted(self.stage, self.a, ONE)

    async def test_claims_out_of_sight(self) -> None:
        """
        A claim that is made while the watch is away does not count where the server has lost the session on which it
        rests, though its versions have caught up.
        """
        listener = await self.watched(self.a)
        self.gate.fates["LIST"] = ["lost"] * 9
        self.state.restart()
        self.change(50)
        self.world.settle()
        answer = await self.world.of(self.a.acquire(ONE))
        assert isinstance(answer, Unavailable), answer
        self.assertEqual(answer.reason, "this agent's own Lease, on which the claim rests, has gone meanwhile")
        self.assertEqual(listener.heard, [known()])

    async def test_claims_out_of_sight_after_a_restoration(self) -> None:
        """Nor where the server has an earlier state of the session."""
        await self.watched(self.a)
        backup = self.state.snapshot()
        await registered(self.stage, self.a, A)
        self.world.settle()
        self.gate.fates["LIST"] = ["lost"] * 9
        self.state.restore(backup)
        self.change(50)
        self.world.settle()
        answer = await self.world.of(self.a.acquire(ONE))
        assert isinstance(answer, Unavailable), answer
        self.assertEqual(answer.reason, "http://kubernetes:8080: it has lost its data")

    async def test_claims_with_a_dead_watch(self) -> None:
        """Nor where the watch, which does not know that it is dead, has not told of the last heartbeat."""
        await self.watched(self.a)
        backup = self.state.snapshot()
        self.deafen()
        await registered(self.stage, self.a, A)
        self.state = KubernetesState(clock=self.world.clock)
        self.state.restore(backup)
        self.change(50)
        self.world.network.plug(self.stage.where, KubernetesResource(self.state))
        answer = await self.world.of(self.a.acquire(ONE))
        assert isinstance(answer, Unavailable), answer
        self.assertEqual(answer.reason, "http://kubernetes:8080: it has lost its data")

    async def test_session_goes_back(self) -> None:
        """A heartbeat finds an earlier state of the session, tells of the loss, and the next one goes on from there."""
        backup = self.state.snapshot()
        await registered(self.stage, self.a, A)
        listener = await self.watched(self.a)
        self.deafen()
        self.state = KubernetesState(clock=self.world.clock)
        self.state.restore(backup)
        self.change(50)
        self.world.network.plug(self.stage.where, KubernetesResource(self.state))
        self.assertEqual(
            await self.world.of(self.a.register(A)), Unavailable("http://kubernetes:8080: it has lost its data")
        )
        self.assertEqual(await self.world.of(self.a.register(A)), Granted(self.world.clock.seconds()))
        await self.hears(listener, known(losses=1, lost=True))

    async def test_told_once(self) -> None:
        """What the watch has told of a restored store, the heartbeat after that does not tell again."""
        backup = self.state.snapshot()
        await registered(self.stage, self.a, A)
        listener = await self.watched(self.a)
        self.state.restore(backup)
        await self.lost(listener)
        await registered(self.stage, self.a, A)
        await self.world.seconds(1)
        await self.lost(listener)

    async def test_claims_in_sight(self) -> None:
        """While the watch is there, a claim is one request."""
        await self.watched(self.a)
        self.asked()
        await granted(self.stage, self.a, ONE)
        self.assertEqual(self.asked(), ["POST 192.168.1.41"])

    async def test_report_ends(self) -> None:
        """The Lease that tells of the loss is gone after a TTL, like that of an agent that has died."""
        listener = await self.watched(self.b)
        self.state.restart()
        await self.lost(listener)
        await registered(self.stage, self.b, B)
        await self.beat_until(lambda: listener.last == Claims({}, {"b": B}, losses=1), self.b)
        self.assertEqual(self.names(), ["agent.b", HISTORY])


class StrangeTests(OverFake):
    """What somebody writes into the namespace."""

    async def test_one_line_each(self) -> None:
        """What is not of Kiwi's making is passed over, with one line each, and stops nobody."""
        await granted(self.stage, self.a, ONE, TWO)
        self.write("kube-controller-manager", holderIdentity="x", leaseDurationSeconds=15)
        self.write("192.168.1.999", holderIdentity="a", annotations={"kiwi/session": "x"})
        self.write("fd00--1", holderIdentity="a", annotations={"kiwi/session": "x"})
        self.write("192.168.1.43", holderIdentity="a")
        self.write("agent.x", holderIdentity="y")
        self.write("agent.z", holderIdentity="z", annotations={"kiwi/record": "{"})
        listener = await self.watched(self.b)
        self.assertEqual(listener.heard, [known({ONE: "a", TWO: "a"})])
        self.assertEqual(sorted(levels(self.log)), ["info", *["warn"] * 6], self.log)
        self.write("kube-controller-manager", holderIdentity="y", leaseDurationSeconds=15)
        await registered(self.stage, self.stage.store("c", TTL), C)
        three = {"a": A, "b": B, "c": C}
        await self.hears(listener, Claims({ONE: "a", TWO: "a"}, three))
        self.assertEqual(len(self.log), 7, self.log)
        self.assertEqual(await self.world.of(self.b.acquire(THREE)), Taken(""))
        self.assertEqual(await self.world.of(self.b.release(THREE)), Released())

    async def test_spoiled_record(self) -> None:
        """An agent whose annotation somebody spoils is unknown until it confirms its session; its claims stay."""
        await granted(self.stage, self.a, ONE)
        listener = await self.watched(self.b)
        self.write("agent.a", **self.lease("agent.a")["spec"], annotations={"kiwi/record": "[]"})
        await self.hears(listener, Claims({ONE: "a"}, {"b": B}))
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)
        await self.hears(listener, known({ONE: "a"}))

    async def test_spoiled_claim(self) -> None:
        """A claim that somebody spoils is lost; a Lease that says nothing of a holder belongs to nobody's agent."""
        await granted(self.stage, self.a, ONE)
        listener = await self.watched(self.a)
        self.write("192.168.1.41", holderIdentity="a")
        await self.hears(listener, known())
        self.assertEqual(await self.world.of(self.a.renew({ONE})), {ONE: Lost()})
        self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken(""))

    async def test_other_holder(self) -> None:
        """Whoever writes another holder into the Lease of an agent takes it from that agent, which makes a new one."""
        listener = await self.watched(self.b)
        self.write("agent.a", **{**self.lease("agent.a")["spec"], "holderIdentity": "x"})
        await self.hears(listener, Claims({}, {"b": B}))
        await registered(self.stage, self.a, A)
        await self.hears(listener, known())
        self.assertEqual(self.lease("agent.a")["spec"]["holderIdentity"], "a")


class RefusalTests(OverFake):
    """What an agent is told when the server does not let it."""

    async def test_no_namespace(self) -> None:
        """Where the namespace is missing, that is what is said, and what to do."""
        self.state.delete("kiwi", "", "namespaces")
        answer = await self.world.of(self.stage.store("c", TTL).register(C))
        assert isinstance(answer, Unavailable), answer
        self.assertRegex(
            answer.reason,
            r"\Ahttp://kubernetes:8080: it has no Leases in namespace kiwi \(status 404: [ -~]+\); "
            r"create the namespace, or give --lease-namespace\Z",
        )

    async def test_no_leases(self) -> None:
        """Where the server has no Leases at all, nothing counts as given back."""
        await granted(self.stage, self.a, ONE)
        self.state.groups = ()
        answer = await self.world.of(self.a.release(ONE))
        assert isinstance(answer, Unavailable), answer
        self.assertIn("http://kubernetes:8080: it has no Leases in namespace kiwi (status 404", answer.reason)

    async def test_forbidden(self) -> None:
        """A refusal names verb and resource, as a role does."""
        await granted(self.stage, self.a, ONE)
        store = self.stage.store("c", TTL)
        asks: dict[str, Callable[[], Deferred[Any]]] = {
            "get": lambda: store.register(C),
            "create": lambda: self.a.acquire(TWO),
            "update": lambda: self.a.register(A),
            "delete": lambda: self.a.release(ONE),
        }
        for verb, ask in asks.items():

            def allowed(access: Access, verb: str = verb) -> bool:
                return access.verb != verb

            self.state.authorize = allowed
            answer = await self.world.of(ask())
            assert isinstance(answer, Unavailable), answer
            self.assertIn(
                f"http://kubernetes:8080: it does not let this agent {verb} leases in namespace kiwi (status 403",
                answer.reason,
            )

    async def test_forbidden_watch(self) -> None:
        """So does one of the watch, in the log."""
        for verb in ("list", "watch"):

            def allowed(access: Access, verb: str = verb) -> bool:
                return access.verb != verb

            self.state.authorize = allowed
            service = self.b.watch(lambda claims: None)
            service.startService()
            self.addCleanup(service.stopService)
            await self.world.until(lambda: bool(self.log))
            self.assertIn(f"it does not let this agent {verb} leases in namespace kiwi", self.log.pop()["why"])


class InFlightTests(TestCase):
    """How many claims are asked for at once."""

    async def test_in_flight(self) -> None:
        """At most 16, each of which counts for 0.1 s, and so for two steps; 256 in the end."""
        stage = FakeLeaseStage()
        world, requests, store = stage.world, stage.state.requests, stage.store("a")
        Listener().listen(self, store)
        await world.of(store.register(A))
        stage.freeze()
        requests.clear()
        addresses = [ip("10.10.0.1") + index for index in range(300)]
        for address in addresses:
            claim = store.acquire(address).addErrback(lambda failure: failure.trap(CancelledError))
            self.addCleanup(claim.cancel)
        counts = []
        for _ in range(40):
            counts.append(len(requests))
            requests.clear()
            world.clock.advance(STEP)
        self.assertEqual(counts, [16, 0] * 16 + [0] * 8)
