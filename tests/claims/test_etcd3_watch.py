"""How the store of etcd v3 follows the keys, and finds out that etcd has lost its data. In simulated time."""

from __future__ import annotations

import json

from twisted.internet.defer import gatherResults
from twisted.logger import formatEvent

from kiwi.claims.etcd3 import Etcd3ClaimStore
from kiwi.claims.interface import Granted, Lost, Unavailable
from kiwi.claims.telling import MOST_ODDITIES
from kiwi.model import Claims

from .claimstoretests import ONE, THREE, TWO, A, B, C, Listener, granted, known, levels, registered
from .etcd3cases import TTL, OverFake, text64
from .stages import etcd3_store
from .test_etcd3_session import MANY

LOST = Unavailable("http://etcd1:2379: it has lost its data")


class WatchTests(OverFake):
    """Lists, and the changes after them."""

    def elsewhere(self, agent_id: str) -> Etcd3ClaimStore:
        """A store whose requests go to the same member at another place."""
        self.world.network.plug("aside:2379", self.fake.members[0])
        return etcd3_store(self.world, ["http://aside:2379"], "/kiwi", agent_id, TTL)

    async def follow(self) -> Listener:
        """What b hears."""
        listener = Listener()
        self.service = listener.listen(self, self.b)
        await self.world.until(lambda: len(self.log) == 1)
        return listener

    async def test_requests(self) -> None:
        """All is read once, and named if need be; then the changes are followed, until the member has no leader."""
        await self.follow()
        paths = [request.split()[1] for request in self.fake.requests]
        self.assertEqual(paths, ["/v3/kv/range", "/v3/kv/txn", "/v3/watch"])
        watch = next(request for request in self.fake.requests if "watch" in request)
        self.assertEqual(
            json.loads(watch.split(maxsplit=2)[2]),
            {"create_request": {"key": text64("/kiwi/"), "range_end": text64("/kiwi0"), "start_revision": "4"}},
        )

    async def test_heartbeats_are_not_told(self) -> None:
        """A heartbeat is an event, but nothing new."""
        listener = await self.follow()
        for _ in range(3):
            await registered(self.stage, self.a, A)
        await self.world.seconds(1)
        self.assertEqual(listener.heard, [known()])

    async def test_many_keys(self) -> None:
        """Thousands of keys are read page by page, as they were at one moment."""
        for number in range(4500):
            self.write(f"/publicips/10.{number // 250}.0.{number % 250}", "x")
        listener = await self.follow()
        assert listener.last is not None
        self.assertEqual(len(listener.last.holders), 4500)
        self.assertEqual(self.asked().count("kv/range"), 3)

    async def test_goes_on(self) -> None:
        """A watch that breaks goes on from where it was, and misses nothing, and reads nothing again."""
        other = await self.registered_elsewhere()
        listener = await self.follow()
        await self.world.seconds(2)
        self.world.network.unplug("etcd1:2379")
        self.fake.drop_streams()
        await granted(self.stage, other, ONE, TWO)
        await self.world.of(other.release(ONE))
        await self.world.seconds(1)
        self.asked()
        self.stage.start()
        await self.hears(listener, known({TWO: "a"}))
        self.assertEqual(listener.heard, [known(), known({TWO: "a"})])
        self.assertEqual(self.asked(), ["kv/range"])
        self.assertEqual(levels(self.log), ["info", "warn", "info"])

    async def registered_elsewhere(self) -> Etcd3ClaimStore:
        other = self.elsewhere("a")
        await registered(self.stage, other, A)
        return other

    async def test_compaction(self) -> None:
        """Where etcd no longer knows what has changed meanwhile, everything is read again."""
        other = await self.registered_elsewhere()
        listener = await self.follow()
        await self.world.seconds(2)
        self.world.network.unplug("etcd1:2379")
        self.fake.drop_streams()
        await granted(self.stage, other, ONE, TWO)
        await self.world.of(other.release(ONE))
        self.fake.compact()
        self.stage.start()
        await self.hears(listener, known({TWO: "a"}))
        self.assertEqual(listener.heard, [known(), known({TWO: "a"})])
        await granted(self.stage, self.a, THREE)
        await self.hears(listener, known({TWO: "a", THREE: "a"}))

    async def test_compaction_while_reading(self) -> None:
        """So it is where that happens between two pages."""
        for number in range(2500):
            self.write(f"/publicips/10.{number // 250}.0.{number % 250}", "x")

        def handled(path: str) -> None:
            if path == "/v3/kv/range":
                self.fake.handled = lambda path: None
                self.write("/publicips/10.99.0.1", "x")
                self.fake.compact()

        self.fake.handled = handled
        listener = await self.follow()
        assert listener.last is not None
        self.assertEqual(len(listener.last.holders), 2501)
        self.assertEqual(self.asked().count("kv/range"), 4)

    async def test_silent(self) -> None:
        """A watch on which nothing comes for a TTL is dead: other agents register all the time."""
        listener = await self.follow()
        self.fake.silence_streams()
        await granted(self.stage, self.a, ONE)
        for _ in range(8):
            await self.world.of(self.a.register(A))
            await self.world.of(self.b.register(B))
            await self.world.seconds(1.5)
        await self.hears(listener, known({ONE: "a"}))
        self.assertEqual(levels(self.log), ["info", "warn", "info"])
        self.assertIn("nothing was heard for 10 s", formatEvent(self.log[1]))

    async def test_garbage(self) -> None:
        """What makes no sense on a watch is passed over, with one line for all of it."""
        listener = await self.follow()
        for line in (
            b"{",
            b"[]",
            b"\xff",
            b"{}",
            b'{"result":[]}',
            b'{"result":{"header":{"revision":"x"}}}',
            b"[" * 10**5,
        ):
            self.fake.send(line)
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, known({ONE: "a"}))
        self.assertEqual(levels(self.log), ["info", "warn"])

    async def test_too_long(self) -> None:
        """A line that is too long may have told anything: everything is read again."""
        listener = await self.follow()
        self.fake.send(b'{"result":"' + b"x" * 9 * 2**20 + b'"}')
        await self.world.until(lambda: len(self.log) == 3)
        self.assertRegex(formatEvent(self.log[1]), "a line of 9437197 bytes, which is too long")
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, known({ONE: "a"}))

    async def test_known_events(self) -> None:
        """What is known already is not heard twice."""
        listener = await self.follow()
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, known({ONE: "a"}))
        header = {"cluster_id": str(self.fake.store.cluster_id), "revision": "9", "raft_term": "2"}
        kv = {"key": text64("/kiwi/publicips/192.168.1.41"), "mod_revision": "3"}
        self.fake.send(json.dumps({"result": {"header": header, "events": [{"type": "DELETE", "kv": kv}]}}).encode())
        await self.world.seconds(1)
        self.assertEqual(listener.last, known({ONE: "a"}))

    async def test_many_oddities(self) -> None:
        """Of whatever is passed over, there are not more lines than can be read."""
        await self.follow()
        for number in range(MOST_ODDITIES + 10):
            self.write(f"/{number}", "")
        await granted(self.stage, self.a, ONE)
        await self.world.seconds(1)
        self.assertEqual(len(self.log), 1 + MOST_ODDITIES + 1)


class MemberTests(OverFake):
    """Where there are several members."""

    members = 3

    async def follow(self, place: int) -> Listener:
        """What b hears at a member, and after that at the next ones."""
        self.b.requests.rotation.first = place
        listener = await self.watched(self.b)
        await self.world.seconds(2)
        return listener

    async def test_next_member(self) -> None:
        """When a member goes, the watch goes on at the next one, and neither misses anything nor hears it twice."""
        listener = await self.follow(1)
        self.world.network.unplug("etcd2:2379")
        self.fake.members[1].fail()
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, known({ONE: "a"}))
        await granted(self.stage, self.a, TWO)
        await self.hears(listener, known({ONE: "a", TWO: "a"}))
        self.assertEqual(listener.heard, [known(), known({ONE: "a"}), known({ONE: "a", TWO: "a"})])

    async def test_without_a_leader(self) -> None:
        """A member that is cut off from the others ends the watch, which goes on at the next one."""
        listener = await self.follow(2)
        self.fake.members[2].cut_off()
        await granted(self.stage, self.a, ONE)
        began = self.seconds()
        await self.hears(listener, known({ONE: "a"}))
        self.assertLess(self.seconds() - began, TTL)
        self.assertIn("etcdserver: no leader", formatEvent(self.log[-2]))


class EndTests(OverFake):
    """When a lease ends. See Note [A lease that ended too early] in L{kiwi.claims.etcd3}."""

    async def follow(self) -> Listener:
        """What b hears, while a has two claims and was last heard of after two seconds."""
        await granted(self.stage, self.a, ONE, TWO)
        listener = await self.watched(self.b)
        await self.world.seconds(2)
        await registered(self.stage, self.a, A)
        return listener

    async def revoke(self) -> None:
        own = self.a.session.own
        assert own is not None
        await self.stage.ask("/v3/lease/revoke", {"ID": str(own.lease)})

    async def is_free(self, listener: Listener) -> float:
        """When the claims are told to be free."""
        while listener.last is None or listener.last.holders:
            await self.world.of(self.b.register(B))
            self.assertLess(self.seconds(), 20)
            await self.world.seconds(0.0625)
        return self.seconds()

    async def test_too_early(self) -> None:
        """Who had claims on a lease that was revoked may act on them for as long as its last heartbeat lasts."""
        listener = await self.follow()
        await self.revoke()
        await self.hears(listener, Claims({ONE: "a", TWO: "a"}, {"b": B}))
        self.assertGreaterEqual(await self.is_free(listener), 12.1)
        both = {ONE: "a", TWO: "a"}
        self.assertEqual(listener.heard, [known(both), Claims(both, {"b": B}), Claims({}, {"b": B})])

    async def test_in_time(self) -> None:
        """The claims of a dead agent are free a moment after that."""
        listener = await self.follow()
        self.assertLess(await self.is_free(listener), 12.75)

    async def test_other_ttl(self) -> None:
        """It is the TTL of that agent that counts."""
        listener = await self.follow()
        c = self.stage.store("c", 4)
        await registered(self.stage, c, C)
        await granted(self.stage, c, THREE)
        await self.hears(listener, Claims({ONE: "a", TWO: "a", THREE: "c"}, {"a": A, "b": B, "c": C}))
        while THREE in (listener.last.holders if listener.last else {}):
            await self.world.of(gatherResults([self.a.register(A), self.b.register(B)]))
            await self.world.seconds(0.0625)
        self.assertTrue(6 <= self.seconds() < 7, self.seconds())

    async def test_itself(self) -> None:
        """The agent itself need not wait: it claims again, and all hear of that."""
        listener, own = await self.follow(), await self.watched(self.a)
        await self.revoke()
        await self.hears(own, Claims({}, {"b": B}))
        await registered(self.stage, self.a, A)
        await granted(self.stage, self.a, ONE)
        await self.hears(own, known({ONE: "a"}))
        await self.hears(listener, known({ONE: "a", TWO: "a"}))
        await self.world.of(self.a.release(ONE))
        await self.hears(listener, known({TWO: "a"}))

    async def test_somebody_else(self) -> None:
        """Who claims it nevertheless has it: the store is the judge."""
        listener = await self.follow()
        await self.revoke()
        await granted(self.stage, self.b, ONE)
        await self.hears(listener, Claims({ONE: "b", TWO: "a"}, {"b": B}))

    async def test_out_of_sight(self) -> None:
        """Nobody knows when an agent was last heard of that has gone while a watch was away."""
        listener = await self.follow()
        self.world.network.unplug("etcd1:2379")
        self.fake.drop_streams()
        own = self.a.session.own
        assert own is not None
        self.fake.store.revoke(own.lease)
        self.write("/elsewhere", "x")
        self.fake.compact()
        await self.world.seconds(1)
        self.stage.start()
        await self.hears(listener, Claims({ONE: "a", TWO: "a"}, {"b": B}))
        self.assertGreaterEqual(await self.is_free(listener), 13.1)

    async def test_stops(self) -> None:
        """A watch that is stopped waits for nothing any more."""
        await self.follow()
        await self.revoke()
        await self.world.seconds(1)
        for watch in self.b.watches.copy():
            watch.stopService()
        self.fake.stop()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])


class ForgetfulTests(OverFake):
    """A store that comes back without its data, or with that of an earlier time."""

    async def follow(self, store: Etcd3ClaimStore) -> Listener:
        """What a store tells, once the data has a name."""
        listener = await self.watched(store)
        await self.world.until(lambda: store.mirror is not None and store.mirror.history is not None)
        return listener

    async def lost(self, listener: Listener, claims: Claims) -> None:
        await self.hears(listener, claims)
        self.assertEqual(levels(self.log).count("error"), 1)

    async def test_another_cluster(self) -> None:
        """An etcd that was restored from a backup is another cluster."""
        listener = await self.follow(self.b)
        backup = self.fake.back_up()
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, known({ONE: "a"}))
        self.fake.restore(backup)
        await self.lost(listener, known(losses=1, lost=True))

    async def test_revisions_go_back(self) -> None:
        """One whose disk was put back is the same, but it has a lower revision than was heard of."""
        listener = await self.follow(self.b)
        backup = self.fake.back_up()
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, known({ONE: "a"}))
        self.fake.restore(backup, same=True)
        await self.lost(listener, known(losses=1, lost=True))

    async def test_another_history(self) -> None:
        """And one that has come to higher revisions since has another name for its data."""
        listener = await self.follow(self.b)
        self.stage.crash()
        await self.world.seconds(1)
        self.write("/store", "another")
        self.stage.start()
        await self.lost(listener, known(losses=1, lost=True))

    async def test_another_session(self) -> None:
        """A lease that is there as before confirms no claim that was made before the loss."""
        backup = self.fake.back_up()
        before = await self.world.of(self.a.acquire(ONE))
        self.fake.restore(backup)
        answers = [await self.world.of(self.a.register(A)) for _ in range(3)]
        self.assertEqual([type(answer) for answer in answers], [Unavailable, Granted, Granted])
        sessions = [before.session, *(answer.session for answer in answers[1:])]  # type: ignore[union-attr]
        lease = self.a.session.own.lease  # type: ignore[union-attr]
        self.assertEqual(sessions, [f"{lease}/0", f"{lease}/1", f"{lease}/1"])

    async def test_record_goes_back(self) -> None:
        """A heartbeat finds an earlier state of the record, tells of the loss, and the next one goes on from there."""
        listener = await self.follow(self.a)
        backup = self.fake.back_up()
        await registered(self.stage, self.a, A)
        self.fake.silence_streams()
        self.fake.store = backup.copy()
        for number in range(50):
            self.write("/elsewhere", str(number))
        self.assertEqual(await self.world.of(self.a.register(A)), LOST)
        self.assertEqual(await self.world.of(self.a.register(A)), Granted(self.seconds()))
        await self.lost(listener, known(losses=1, lost=True))

    async def test_claim_on_a_record_that_went_back(self) -> None:
        """No claim is made in a store that does not remember the last heartbeat."""
        await self.follow(self.a)
        backup = self.fake.back_up()
        await registered(self.stage, self.a, A)
        self.fake.silence_streams()
        self.fake.store = backup.copy()
        for number in range(50):
            self.write("/elsewhere", str(number))
        self.assertEqual(await self.world.of(self.a.acquire(ONE)), LOST)

    async def test_answer_goes_back(self) -> None:
        """An answer with a lower revision than was heard of tells it as well, before the watch has."""
        listener = await self.follow(self.a)
        self.fake.silence_streams()
        backup = self.fake.back_up()
        await granted(self.stage, self.a, ONE, TWO, *MANY[:20])
        self.fake.store = backup.copy()
        self.assertEqual(await self.world.of(self.a.acquire(THREE)), LOST)
        # It was carried out nevertheless.
        await self.lost(listener, known({THREE: "a"}, losses=1, lost=True))
        await registered(self.stage, self.a, A)
        self.assertEqual(await self.world.of(self.a.renew({TWO, *MANY[:20]})), dict.fromkeys((TWO, *MANY[:20]), Lost()))
        await granted(self.stage, self.a, ONE)

    async def test_report_ends(self) -> None:
        """The key that tells of the loss is gone after a TTL."""
        listener = await self.follow(self.b)
        self.fake.lose_data()
        await self.lost(listener, Claims(losses=1, lost=True))
        while listener.last != Claims({}, {"b": B}, losses=1):
            await registered(self.stage, self.b, B)
            self.assertLess(self.seconds(), 20)
            await self.world.seconds(1)
        self.assertGreaterEqual(self.seconds(), 10)

    async def test_told_once(self) -> None:
        """What is known of a loss is not told again by what comes after it."""
        listener = await self.follow(self.a)
        backup = self.fake.back_up()
        await registered(self.stage, self.a, A)
        self.fake.restore(backup, same=True)
        await self.hears(listener, known(losses=1, lost=True))
        await registered(self.stage, self.a, A)
        await self.world.seconds(1)
        await self.lost(listener, known(losses=1, lost=True))
