"""How the store of etcd v3 confirms claims, and makes and ends them; whatever fails. In simulated time."""

from __future__ import annotations

import json
from ipaddress import IPv4Address

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults

from kiwi.claims.etcd3 import Etcd3ClaimStore
from kiwi.claims.interface import Granted, Lost, Released, Taken, Unavailable
from kiwi.model import Claims

from .claimstoretests import C_AGAIN, ONE, TWO, A, B, C, Listener, granted, known, registered
from .etcd3cases import TTL, OverFake, text64
from .stages import etcd3_store

MANY = [IPv4Address(f"10.0.{n // 250}.{n % 250}") for n in range(1000)]


class HeartbeatTests(OverFake):
    """What a heartbeat is, and what it proves."""

    async def test_two_requests(self) -> None:
        """Registration and renewal together are two requests, however many claims there are."""
        await self.world.of(gatherResults([self.a.acquire(address) for address in MANY]))
        await self.watched(self.a)
        self.asked()
        await self.world.seconds(1)
        before = self.seconds()
        asked: list[Deferred[object]] = [self.a.register(A), self.a.renew(set(MANY))]  # type: ignore[list-item]
        answers = await self.world.of(gatherResults(asked))
        self.assertEqual(answers, [Granted(before), dict.fromkeys(MANY, Granted(before))])
        self.assertEqual(self.asked(), ["lease/keepalive", "kv/txn"])

    async def test_first(self) -> None:
        """The first one reads the record, takes a lease, and writes the record, if nobody else has."""
        await self.registered("c", C)
        self.assertEqual(self.asked(), ["kv/range", "lease/grant", "kv/txn"])

    async def test_claim(self) -> None:
        """A claim is one request, whether it is free or taken, and rests on what was confirmed last."""
        await self.world.seconds(1)
        self.assertEqual(await self.world.of(self.a.acquire(ONE)), Granted(0))
        self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))
        self.assertEqual(await self.world.of(self.a.release(ONE)), Released())
        self.assertEqual(self.asked(), ["kv/txn"] * 3)

    async def test_one_at_a_time(self) -> None:
        """What is asked for while a heartbeat is under way is the next one."""
        self.fake.delay = 0.25
        first = self.a.renew({ONE})
        await self.world.seconds(0.125)
        others: list[Deferred[object]] = [
            self.a.register(evolve(A, leaving=True), A),  # type: ignore[list-item]
            self.a.renew({TWO}),  # type: ignore[list-item]
        ]
        await self.world.of(first)
        self.fake.delay = 0
        answers = await self.world.of(gatherResults(others))
        self.assertEqual(answers, [Granted(0.5), {TWO: Lost()}])

    async def test_lasts(self) -> None:
        """A claim lasts for a TTL from when the heartbeat was sent, and ends then, with the record."""
        await granted(self.stage, self.a, ONE)
        await self.world.seconds(7)
        answer = (await self.world.of(self.a.renew({ONE})))[ONE]
        self.assertEqual(answer, Granted(7))
        listener = await self.watched(self.b)
        while listener.last != Claims({}, {"b": B}):
            await self.world.of(self.b.register(B))
            self.assertLess(self.seconds(), 20)
            await self.world.seconds(0.25)
        self.assertGreaterEqual(self.seconds(), 17)

    async def test_lost_answers(self) -> None:
        """An answer that is lost on its way costs a confirmation some time, and not the claims."""
        await granted(self.stage, self.a, ONE)
        for replies in (1, 2, 3):
            await self.world.seconds(3)
            self.fake.lose_replies(replies)
            answers = await self.world.of(self.a.renew({ONE}))
            while isinstance(answers[ONE], Unavailable):
                answers = await self.world.of(self.a.renew({ONE}))
            self.assertIsInstance(answers[ONE], Granted)
            self.assertIsInstance(await self.world.of(self.a.register(A)), Granted)

    async def test_change_that_worked(self) -> None:
        """A record that was changed, of which nothing was heard, is found to be the agent's own."""
        leaving = evolve(A, leaving=True)
        path = []

        def handled(which: str) -> None:
            path.append(which)
            if which == "/v3/lease/keepalive":
                self.fake.lose_replies(1)

        self.fake.handled = handled
        self.assertIsInstance(await self.world.of(self.a.register(leaving, A)), Unavailable)
        self.fake.handled = lambda which: None
        self.assertIn("/v3/kv/txn", path)
        self.assertIsInstance(await self.world.of(self.a.register(leaving, A)), Granted)

    async def test_slow_store(self) -> None:
        """A store that takes a second for each answer works with a TTL of 10 s."""
        self.fake.delay = 1
        some = MANY[:100]
        listener = Listener()
        listener.listen(self, self.b)
        answers = await self.world.of(gatherResults([self.a.acquire(address) for address in some]))
        taken = {address for address, answer in zip(some, answers, strict=True) if answer == Taken("a")}
        self.assertEqual({type(answer) for answer in answers} - {Taken}, {Granted})
        renewals = await self.world.of(self.a.renew(set(some)))
        self.assertEqual({type(answer) for answer in renewals.values()}, {Granted}, taken)
        await self.world.until(lambda: listener.last == known(dict.fromkeys(some, "a")), within=10)

    async def test_short_lease(self) -> None:
        """A lease that is shorter than was asked for is none to rest on."""
        store = self.stage.store("c", TTL)
        body = json.dumps({"header": {"cluster_id": str(self.fake.store.cluster_id)}, "ID": "5", "TTL": "9"}).encode()
        await self.world.of(store.release(ONE))
        asked = store.register(C)
        self.fake.handled = lambda path: self.fake.fail_next(1, 200, body) if path == "/v3/kv/range" else None
        answer = await self.world.of(asked)
        self.fake.handled = lambda path: None
        self.assertEqual(answer, Unavailable("http://etcd1:2379: a lease of 9 s where 10 s were asked for"))


class LeaderTests(OverFake):
    """See Note [A leader of the past] in L{kiwi.claims.etcd3}."""

    members = 3

    def alone(self, member: int) -> Etcd3ClaimStore:
        """The store of c, which knows one member only."""
        return etcd3_store(self.world, [self.stage.endpoints[member]], "/kiwi", "c", TTL)

    async def test_cut_off(self) -> None:
        """A leader that is cut off, and goes on to renew leases, confirms nothing."""
        c = self.alone(0)
        await registered(self.stage, c, C)
        await granted(self.stage, c, ONE)
        self.fake.members[0].cut_off(notices=60)
        await self.world.seconds(3)
        self.asked()
        answer = (await self.world.of(c.renew({ONE})))[ONE]
        self.assertIsInstance(answer, Unavailable)
        self.assertIn("lease/keepalive", self.asked())
        while (await self.world.of(self.b.acquire(ONE))) == Taken("c"):
            await self.world.of(self.b.register(B))
            self.assertIsInstance((await self.world.of(c.renew({ONE})))[ONE], Unavailable)
            self.assertLess(self.seconds(), 20)

    async def test_next_leader(self) -> None:
        """An agent that reaches the others, too, is confirmed by the next leader, from when that one was asked."""
        c = etcd3_store(self.world, self.stage.endpoints, "/kiwi", "c", TTL)
        await registered(self.stage, c, C)
        await granted(self.stage, c, ONE)
        self.fake.members[0].cut_off(notices=60)
        await self.world.seconds(3)
        answer = (await self.world.of(c.renew({ONE})))[ONE]
        while isinstance(answer, Unavailable):
            answer = (await self.world.of(c.renew({ONE})))[ONE]
        assert isinstance(answer, Granted), answer
        lease = self.fake.store.leases[c.session.own.lease]  # type: ignore[union-attr]
        self.assertGreaterEqual(lease.expires, answer.sent + TTL)

    async def test_election_between(self) -> None:
        """A renewal and a transaction of different terms are both asked for again."""
        await granted(self.stage, self.a, ONE)
        await self.world.seconds(1)
        self.asked()
        elections = [1]

        def handled(path: str) -> None:
            if path == "/v3/lease/keepalive" and elections:
                elections.pop()
                self.fake.elect()

        self.fake.handled = handled
        answers = await self.world.of(self.a.renew({ONE}))
        self.assertEqual(answers, {ONE: Granted(1)})
        self.assertEqual(self.asked(), ["lease/keepalive", "kv/txn"] * 2)

    async def test_endless_elections(self) -> None:
        """Where leaders change all the time, nothing is confirmed."""
        self.fake.handled = lambda path: self.fake.elect() if path == "/v3/lease/keepalive" else None
        answer = await self.world.of(self.a.register(A))
        assert isinstance(answer, Unavailable), answer
        self.assertRegex(answer.reason, "the leader changes all the time")


class LateTests(OverFake):
    """What is carried out later than it was asked for. See Note [The late delete] in L{kiwi.claims.etcd3}."""

    async def test_release(self) -> None:
        """A release that is carried out too late does not end the claim that was made since."""
        await granted(self.stage, self.a, ONE)
        self.fake.hanging = True
        self.assertIsInstance(await self.world.of(self.a.release(ONE)), Unavailable)
        self.fake.hanging = False
        self.assertEqual(await self.world.of(self.a.release(ONE)), Released())
        await granted(self.stage, self.a, ONE)
        self.fake.thaw()
        self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))

    async def test_release_of_what_is_kept(self) -> None:
        """Nor the claim that it was meant for, where the agent has taken it for held since."""
        await granted(self.stage, self.a, ONE)
        self.fake.hanging = True
        self.assertIsInstance(await self.world.of(self.a.release(ONE)), Unavailable)
        self.fake.hanging = False
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)
        self.fake.thaw()
        self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)

    async def test_release_of_an_earlier_life(self) -> None:
        """Nor one that the next life of the agent has adopted."""
        await granted(self.stage, self.a, ONE)
        self.fake.hanging = True
        self.assertIsInstance(await self.world.of(self.a.release(ONE)), Unavailable)
        self.fake.hanging = False
        again = self.stage.store("a", TTL)
        second = evolve(A, instance="second")
        self.assertIsInstance(await self.world.of(again.register(second, A)), Granted)
        self.assertIsInstance((await self.world.of(again.renew({ONE})))[ONE], Granted)
        self.fake.thaw()
        self.assertEqual(await self.world.of(self.b.acquire(ONE)), Taken("a"))

    async def test_heartbeat(self) -> None:
        """A heartbeat of an earlier life that is carried out too late changes nothing."""
        self.fake.hanging = True
        self.assertIsInstance(await self.world.of(self.a.register(A)), Unavailable)
        self.fake.hanging = False
        again, second = self.stage.store("a", TTL), evolve(A, instance="second")
        self.assertIsInstance(await self.world.of(again.register(second, A)), Granted)
        self.fake.thaw()
        listener = await self.watched(self.b)
        self.assertEqual(listener.last, Claims({}, {"a": second, "b": B}))
        self.assertIsInstance(await self.world.of(again.register(second)), Granted)

    async def test_claim(self) -> None:
        """A claim that is carried out too late is not made where the record has gone meanwhile."""
        self.fake.hanging = True
        self.assertIsInstance(await self.world.of(self.a.acquire(ONE)), Unavailable)
        self.fake.hanging = False
        self.assertEqual(await self.world.of(self.a.deregister(A)), Released())
        self.fake.thaw()
        await granted(self.stage, self.b, ONE)

    async def test_claim_of_an_earlier_life(self) -> None:
        """Nor where it would rest on the lease of an earlier life, which the agent has left since."""
        self.fake.hanging = True
        self.assertIsInstance(await self.world.of(self.a.acquire(ONE)), Unavailable)
        self.fake.hanging = False
        again, second = self.stage.store("a", 2 * TTL), evolve(A, instance="second")
        self.assertIsInstance(await self.world.of(again.register(second, A)), Granted)
        self.fake.thaw()
        await granted(self.stage, again, ONE)

    async def test_claim_that_worked(self) -> None:
        """A claim of which nothing was heard is found to be the agent's own, and is written again once."""
        self.fake.lose_replies(1)
        self.assertIsInstance(await self.world.of(self.a.acquire(ONE)), Unavailable)
        self.assertEqual(await self.world.of(self.a.acquire(ONE)), Taken("a"))
        self.asked()
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)
        self.assertEqual(self.asked(), ["lease/keepalive", "kv/txn", "kv/range", "kv/txn"])
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)
        self.assertEqual(self.asked(), ["lease/keepalive", "kv/txn"])

    async def test_deregistration(self) -> None:
        """A heartbeat that is under way does not bring back a record that is taken back meanwhile."""
        self.fake.delay = 0.25
        beat = self.a.register(A)
        await self.world.seconds(0.125)
        end = self.a.deregister(A)
        self.assertEqual(await self.world.of(end), Released())
        self.assertIsInstance(await self.world.of(beat), Granted)
        self.fake.delay = 0
        last = ["kv/txn", "kv/txn", "lease/timetolive", "lease/revoke"]
        self.assertEqual(self.asked(), ["lease/keepalive", "kv/txn", *last])
        self.assertEqual((await self.watched(self.b)).last, Claims({}, {"b": B}))


class AdoptionTests(OverFake):
    """An agent that is started anew."""

    async def test_same_lease(self) -> None:
        """It goes on with the lease of its earlier life, and so with all claims; each is written again once."""
        await granted(self.stage, self.a, ONE, TWO)
        again, second = self.stage.store("a", TTL), evolve(A, instance="second")
        await self.watched(again)
        await self.world.seconds(5)
        self.asked()
        self.assertEqual(await self.world.of(again.register(second, A)), Granted(5))
        self.assertEqual(self.asked(), ["kv/range", "lease/keepalive", "kv/txn"])
        self.assertEqual(await self.world.of(again.renew({ONE, TWO})), dict.fromkeys((ONE, TWO), Granted(5)))
        self.assertEqual(self.asked(), ["lease/keepalive", "kv/txn", "kv/txn"])
        self.assertEqual(await self.world.of(again.renew({ONE, TWO})), dict.fromkeys((ONE, TWO), Granted(5)))
        self.assertEqual(self.asked(), ["lease/keepalive", "kv/txn"])
        self.assertEqual(await self.world.of(self.a.register(A)), Taken(""))
        self.assertEqual(await self.world.of(self.a.renew({ONE})), {ONE: Lost()})

    async def test_other_ttl(self) -> None:
        """With another TTL, it takes a lease of its own, and moves the claims to it."""
        await granted(self.stage, self.a, ONE)
        again = self.stage.store("a", 2 * TTL)
        second = evolve(A, instance="second")
        self.assertIsInstance(await self.world.of(again.register(second, A)), Granted)
        self.assertIsInstance((await self.world.of(again.renew({ONE})))[ONE], Granted)
        await self.world.seconds(2 * TTL - 1)
        self.assertEqual((await self.watched(again)).last, Claims({ONE: "a"}, {"a": second}))

    async def test_too_late(self) -> None:
        """After the end of its lease, it begins with nothing."""
        await granted(self.stage, self.a, ONE)
        await self.world.seconds(TTL + 1)
        again, second = self.stage.store("a", TTL), evolve(A, instance="second")
        self.assertIsInstance(await self.world.of(again.register(second, A)), Granted)
        self.assertEqual(await self.world.of(again.renew({ONE})), {ONE: Lost()})

    async def test_claim_of_another_process(self) -> None:
        """A claim of its id that rests on a lease which it has not taken over is not its own."""
        await granted(self.stage, self.a, ONE)
        await self.stage.ask("/v3/kv/deleterange", {"key": text64("/kiwi/agents/a")})
        again = await self.registered("a", evolve(A, instance="second"))
        self.assertEqual(await self.world.of(again.acquire(ONE)), Taken("a"))
        self.assertEqual(await self.world.of(again.renew({ONE})), {ONE: Lost()})

    async def test_not_without_a_record(self) -> None:
        """An agent that has not registered claims nothing, and asks nothing."""
        answer = await self.world.of(self.stage.store("c", TTL).acquire(ONE))
        self.assertEqual(answer, Unavailable("this agent has no record in the store, on which a claim could rest"))
        self.assertEqual(self.asked(), [])

    async def test_unreadable_record(self) -> None:
        """A record that says nothing is nobody's."""
        self.write("/agents/c", "{")
        await self.registered("c", C_AGAIN)
        self.assertEqual((await self.watched(self.b)).last, Claims({}, {"a": A, "b": B, "c": C_AGAIN}))
