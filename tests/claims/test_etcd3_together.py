"""How the store of etcd v3 makes and ends many claims at once. In simulated time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from kiwi.claims.etcd3 import Etcd3ClaimStore
from kiwi.claims.interface import Granted, Released, Taken, Unavailable
from kiwi.model import Address

from .claimstoretests import ONE, THREE, TWO, A, B, granted, known
from .etcd3cases import TTL, OverFake, text64
from .test_etcd3_session import MANY

SOME = MANY[:300]


def acquire(store: Etcd3ClaimStore, addresses: Iterable[Address]) -> Deferred[list[Any]]:
    return gatherResults([store.acquire(address) for address in addresses])


def release(store: Etcd3ClaimStore, addresses: Iterable[Address]) -> Deferred[list[Any]]:
    return gatherResults([store.release(address) for address in addresses])


class TogetherTests(OverFake):
    """See Note [Many claims at once] in L{kiwi.claims.etcd3}."""

    async def test_few_requests(self) -> None:
        """What is asked for at the same time is a request for each 64, to make claims as to give them back."""
        listener = await self.watched(self.b)
        self.asked()
        self.assertEqual(await self.world.of(acquire(self.a, SOME)), [Granted(0)] * 300)
        self.assertEqual(self.asked(), ["kv/txn"] * 5)
        await self.hears(listener, known(dict.fromkeys(SOME, "a")))
        self.assertEqual(await self.world.of(release(self.a, SOME)), [Released()] * 300)
        self.assertEqual(self.asked(), ["kv/txn"] * 5)
        await self.hears(listener, known())

    async def test_at_once(self) -> None:
        """A claim waits for no other one that is asked for later."""
        first = self.a.acquire(ONE)
        self.world.settle()
        self.assertEqual(self.successResultOf(first), Granted(0))
        self.assertEqual(self.seconds(), 0)

    async def test_those_who_wait(self) -> None:
        """What is asked for while all requests are under way goes out together, when one of them is answered."""
        self.fake.delay = 0.015
        first = acquire(self.a, MANY[:256])
        self.world.settle()
        later = []
        for address in MANY[256:300]:
            later.append(self.a.acquire(address))
            self.world.settle()
        self.assertEqual(self.asked(), ["kv/txn"] * 4)
        self.assertEqual(await self.world.of(first), [Granted(0)] * 256)
        self.assertEqual(await self.world.of(gatherResults(later)), [Granted(0)] * 44)
        self.assertEqual(self.asked(), ["kv/txn"])

    async def test_one_is_taken(self) -> None:
        """One that another agent has does not hinder the others."""
        await granted(self.stage, self.b, TWO)
        answers = await self.world.of(acquire(self.a, (ONE, TWO, THREE)))
        self.assertEqual(answers, [Granted(0), Taken("b"), Granted(0)])
        self.assertEqual(await self.world.of(acquire(self.b, (ONE, TWO, THREE))), [Taken("a"), Taken("b"), Taken("a")])

    async def test_same_address(self) -> None:
        """A claim that is asked for twice at once is made once. (No key may be twice in a transaction.)"""
        self.assertEqual(await self.world.of(acquire(self.a, (ONE, ONE, TWO))), [Granted(0), Taken("a"), Granted(0)])
        self.assertEqual(self.asked(), ["kv/txn"] * 2)

    async def test_lost_reply(self) -> None:
        """Claims that were made, of which nothing was heard, are the agent's own, and are written again together."""
        self.fake.lose_replies(1)
        lost = await self.world.of(acquire(self.a, MANY[:50]))
        self.assertEqual({type(answer) for answer in lost}, {Unavailable})
        self.assertEqual(await self.world.of(acquire(self.a, MANY[:50])), [Taken("a")] * 50)
        await self.watched(self.a)
        self.asked()
        answers = await self.world.of(self.a.renew(set(MANY[:50])))
        self.assertEqual(answers, dict.fromkeys(MANY[:50], Granted(self.seconds())))
        self.assertEqual(self.asked(), ["lease/keepalive", "kv/txn", "kv/txn"])

    async def test_asked_again(self) -> None:
        """A request that is not answered in time is sent again, has its effect once, and either answer counts."""
        self.fake.hanging = True
        answers = acquire(self.a, (ONE, TWO))
        await self.world.seconds(0.15 * TTL)
        self.fake.thaw()
        self.assertIn(await self.world.of(answers), ([Granted(0)] * 2, [Taken("a")] * 2))
        self.assertEqual(self.asked(), ["kv/txn"] * 2)
        there = await self.stage.ask("/v3/kv/range", {"key": text64("/kiwi/p"), "range_end": text64("/kiwi/q")})
        self.assertEqual([(kv["version"], kv["value"]) for kv in there["kvs"]], [("1", text64("a"))] * 2)

    async def test_late_release(self) -> None:
        """Of claims that are given back too late, those stay that were made again since."""
        await granted(self.stage, self.a, ONE, TWO)
        self.fake.hanging = True
        lost = await self.world.of(release(self.a, (ONE, TWO)))
        self.assertEqual({type(answer) for answer in lost}, {Unavailable})
        self.fake.hanging = False
        self.assertEqual(await self.world.of(self.a.release(ONE)), Released())
        await granted(self.stage, self.a, ONE)
        self.fake.thaw()
        self.assertEqual(await self.world.of(acquire(self.b, (ONE, TWO))), [Taken("a"), Granted(0)])

    async def test_release_of_what_has_changed(self) -> None:
        """Claims that are not as the agent knew them are given back as they are, if they are its own."""
        await granted(self.stage, self.a, ONE, TWO, THREE)
        self.write("/publicips/192.168.1.41", "a")
        self.write("/publicips/fd00::42", "b")
        await self.stage.ask("/v3/kv/deleterange", {"key": text64("/kiwi/publicips/192.168.1.43")})
        self.asked()
        self.assertEqual(await self.world.of(release(self.a, (ONE, TWO, THREE))), [Released()] * 3)
        self.assertEqual(self.asked(), ["kv/txn"] * 2)
        answers = await self.world.of(acquire(self.b, (ONE, TWO, THREE)))
        self.assertEqual(answers, [Granted(0), Taken("b"), Granted(0)])

    async def test_lease_is_gone(self) -> None:
        """Where the lease is gone, none of them is made."""
        lease = self.a.session.own.lease  # type: ignore[union-attr]
        await self.stage.ask("/v3/lease/revoke", {"ID": str(lease)})
        self.asked()
        answers = await self.world.of(acquire(self.a, (ONE, TWO)))
        self.assertEqual({type(answer) for answer in answers}, {Unavailable})
        self.assertEqual(self.asked(), ["kv/txn"])
        self.assertEqual(await self.world.of(acquire(self.b, (ONE, TWO))), [Granted(0)] * 2)

    async def test_lease_goes_meanwhile(self) -> None:
        """Where the session ends while the answer is on its way, only what others have is known."""
        await granted(self.stage, self.b, TWO)
        self.fake.delay = 0.25
        asked = acquire(self.a, (ONE, TWO))
        await self.world.seconds(0.125)
        self.a.session.end(self.a.session.own.lease)  # type: ignore[union-attr]
        gone = Unavailable("the lease of this agent, on which the claim rests, has gone meanwhile")
        self.assertEqual(await self.world.of(asked), [gone, Taken("b")])

    async def test_record_is_gone(self) -> None:
        """Where the record is gone, none is made, and it is told which of them others have."""
        await granted(self.stage, self.b, TWO)
        await self.stage.ask("/v3/kv/deleterange", {"key": text64("/kiwi/agents/a")})
        gone = Unavailable("the record of this agent, on which the claim would rest, has gone meanwhile")
        self.assertEqual(await self.world.of(acquire(self.a, (ONE, TWO, THREE))), [gone, Taken("b"), gone])

    async def test_record_changes_meanwhile(self) -> None:
        """Where the record is written anew meanwhile, the claims that are free are asked for again, on what it is."""
        await granted(self.stage, self.b, TWO)
        await self.stage.ask("/v3/kv/deleterange", {"key": text64("/kiwi/agents/a")})
        self.fake.delay = 0.25
        asked = acquire(self.a, (ONE, TWO, THREE))
        await self.world.seconds(0.125)
        self.fake.delay = 0
        self.assertIsInstance(await self.world.of(self.a.register(A)), Granted)
        self.assertEqual(await self.world.of(asked), [Granted(0.125), Taken("b"), Granted(0.125)])

    async def test_forgotten(self) -> None:
        """Where the store has gone back, nothing is believed."""
        past = self.fake.store.copy()
        await self.world.of(self.a.register(evolve(A, leaving=True), A))
        await self.world.of(self.b.register(evolve(B, leaving=True), B))
        self.fake.store = past
        answers = await self.world.of(acquire(self.a, (ONE, TWO)))
        self.assertEqual(answers, [Unavailable("http://etcd1:2379: it has lost its data")] * 2)

    async def test_cancelled_before(self) -> None:
        """One that is cancelled before it is sent is not made; the others are."""
        asked = [self.a.acquire(address) for address in (ONE, TWO, THREE)]
        asked[1].cancel()
        self.failureResultOf(asked[1], CancelledError)
        self.assertEqual(await self.world.of(gatherResults([asked[0], asked[2]])), [Granted(0)] * 2)
        await granted(self.stage, self.b, TWO)

    async def test_cancelled_after(self) -> None:
        """One that is cancelled when it is under way takes no answer from the others."""
        self.fake.delay = 0.25
        asked = [self.a.acquire(address) for address in (ONE, TWO, THREE)]
        await self.world.seconds(0.125)
        asked[1].cancel()
        self.failureResultOf(asked[1], CancelledError)
        self.assertEqual(await self.world.of(gatherResults([asked[0], asked[2]])), [Granted(0)] * 2)

    async def test_cancelled_by_another(self) -> None:
        """Who is answered may cancel one that is still to be answered, and ask anew."""
        asked = [self.a.acquire(address) for address in (ONE, TWO)]
        again: list[Deferred[Any]] = []

        def answered(answer: object) -> None:
            asked[1].cancel()
            again.append(self.a.acquire(THREE))

        asked[0].addCallback(answered)
        await self.world.until(lambda: bool(again))
        self.failureResultOf(asked[1], CancelledError)
        self.assertEqual(await self.world.of(again[0]), Granted(0))

    async def test_all_cancelled(self) -> None:
        """When all are cancelled, nothing is sent; or what was sent is no longer waited for, and no call is left."""
        before = self.world.clock.getDelayedCalls()
        for waits in (False, True):
            self.fake.hanging = waits
            asked = [self.a.acquire(address) for address in (ONE, TWO)]
            if waits:
                self.world.settle()
            for each in asked:
                each.cancel()
                self.failureResultOf(each, CancelledError)
            self.world.settle()
            self.assertEqual(self.asked(), ["kv/txn"] * waits)
            self.assertEqual(self.world.clock.getDelayedCalls(), before)
        self.fake.hanging = False
        self.assertEqual(await self.world.of(acquire(self.b, (ONE, TWO))), [Granted(0)] * 2)

    async def test_no_answer(self) -> None:
        """All are answered in time, whether their request was sent or not."""
        self.fake.hanging = True
        asked = acquire(self.a, MANY)
        await self.world.seconds(TTL / 2)
        self.world.settle()
        self.assertEqual({type(answer) for answer in self.successResultOf(asked)}, {Unavailable})

    async def test_strange_answer(self) -> None:
        """An answer that is about another number of claims is none."""
        header = {"cluster_id": str(self.fake.store.cluster_id), "revision": "1000"}
        body = json.dumps({"header": header, "succeeded": True, "responses": [{"response_txn": {}}]}).encode()
        self.fake.fail_next(1, 200, body)
        answers = await self.world.of(acquire(self.a, (ONE, TWO)))
        self.assertEqual(answers, [Unavailable("an answer about 1 claims to a request about 2")] * 2)

    async def test_small_transactions(self) -> None:
        """What to do is said where etcd takes no transaction that is as long."""
        message = b'{"error":"etcdserver: too many operations in txn request","code":3}'
        self.fake.fail_next(1, 400, message)
        reason = (
            "http://etcd1:2379: etcdserver: too many operations in txn request; start etcd with --max-txn-ops=128, "
            "which is its default, or more"
        )
        self.assertEqual(await self.world.of(self.a.acquire(ONE)), Unavailable(reason))
