"""Who an agent is to etcd v3, and what an operator is told where etcd refuses. In simulated time."""

from __future__ import annotations

import json

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import formatEvent

from kiwi.claims.etcd_user import EtcdUser
from kiwi.claims.interface import Granted, Released, Taken, Unavailable
from kiwi.model import Claims

from .claimstoretests import ONE, TWO, A, B, Listener, granted, known, levels
from .etcd3cases import TTL, OverFake, text64
from .test_etcd3_session import MANY

SECRET = "s3cret"


@define
class Passwords:
    """Where the password is, which may change."""

    now: str | None = SECRET
    reads: int = field(default=0, init=False)

    def read(self) -> str:
        self.reads += 1
        if self.now is None:
            raise OSError("there is no such file")
        return self.now


class LoginTests(OverFake):
    """An etcd that lets only those in who have a name and a password."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        for agent, store in ((A, self.a), (B, self.b)):
            self.assertEqual(await self.world.of(store.deregister(agent)), Released())
        self.passwords = Passwords()
        access = self.fake.access
        for name, password in (("root", "root"), ("kiwi", SECRET), ("other", SECRET)):
            access.add_user(name, password)
        access.add_role("root")
        access.add_role("claims")
        access.grant("root", "root")
        access.grant("kiwi", "claims")
        access.enable()
        root = access.authenticate("root", "root", 0)
        whole = {"permType": "READWRITE", "key": text64("/kiwi/"), "range_end": text64("/kiwi0")}
        await self.ask("/v3/auth/role/grant", {"name": "claims", "perm": whole}, root)
        self.a = self.stage.store("a", TTL, EtcdUser("kiwi", self.passwords.read))
        self.asked()

    async def ask(self, path: str, document: object, token: str) -> None:
        data, url = json.dumps(document).encode(), self.stage.endpoints[0] + path
        headers: dict[bytes | str, bytes | str] = {"Authorization": token}
        response = await self.world.of(self.world.http.request("POST", url, data=data, headers=headers))
        assert response.code == 200, response

    def tearDown(self) -> None:
        """No password and no token is ever logged or shown."""
        shown = [formatEvent(event) for event in self.log] + [repr(self.a), repr(self.a.requests), repr(self.a.user)]
        for text in shown:
            self.assertNotIn(SECRET, text)
            self.assertNotIn("abcdefghijklmnop", text)

    async def test_once(self) -> None:
        """A password is exchanged for a token once, for all requests and the watch."""
        asked: list[Deferred[object]] = [
            self.a.register(A),  # type: ignore[list-item]
            *(self.a.release(address) for address in MANY[:50]),  # type: ignore[list-item]
        ]
        answers = await self.world.of(gatherResults(asked))
        self.assertEqual(answers, [Granted(0), *[Released()] * 50])
        listener = await self.watched(self.a)
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, Claims({ONE: "a"}, {"a": A}))
        self.assertEqual(self.asked().count("auth/authenticate"), 1)
        self.assertEqual(self.passwords.reads, 1)

    async def test_forgotten_token(self) -> None:
        """A token that etcd has forgotten is fetched anew, once for all; and nothing is lost."""
        await self.world.of(self.a.register(A))
        await granted(self.stage, self.a, ONE)
        self.fake.access.forget_tokens()
        self.asked()
        answers = await self.world.of(gatherResults([self.a.acquire(address) for address in MANY]))
        self.assertEqual({type(answer) for answer in answers}, {Granted})
        self.assertEqual(self.asked().count("auth/authenticate"), 1)
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)

    async def test_forgotten_token_of_a_watch(self) -> None:
        """So it is where a watch is opened anew."""
        await self.world.of(self.a.register(A))
        listener = await self.watched(self.a)
        await self.world.seconds(2)
        self.fake.access.forget_tokens()
        self.fake.drop_streams()
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, Claims({ONE: "a"}, {"a": A}))

    async def test_refused_watch(self) -> None:
        """A watch that etcd does not allow, which may be for the token, is tried with another one."""
        await self.world.of(self.a.register(A))
        refused: list[str] = []

        def handled(path: str) -> None:
            # Between the question that precedes a watch and the watch itself.
            if path == "/v3/kv/range" and not refused:
                refused.append(path)
                self.fake.access.forget_tokens()

        self.fake.handled = handled
        listener = await self.watched(self.a)
        self.assertEqual(listener.last, Claims({}, {"a": A}))
        await granted(self.stage, self.a, ONE)
        await self.hears(listener, Claims({ONE: "a"}, {"a": A}))
        self.assertEqual(self.asked().count("auth/authenticate"), 2)

    async def test_changed_password(self) -> None:
        """When the password is changed, the one that is to be read then is used."""
        await self.world.of(self.a.register(A))
        self.fake.access.change_password("kiwi", "other")
        answer = await self.world.of(self.a.register(A))
        reason = "authentication failed, invalid user ID or password; see that name and password are right"
        self.assertEqual(answer, Unavailable(f"http://etcd1:2379: user kiwi is not let in: etcdserver: {reason}"))
        self.passwords.now = "other"
        self.assertIsInstance(await self.world.of(self.a.register(A)), Granted)

    async def test_no_password(self) -> None:
        """Where there is none to be had, the reason says so."""
        self.passwords.now = None
        answer = await self.world.of(self.a.register(A))
        self.assertEqual(
            answer, Unavailable("http://etcd1:2379: there is no password for user kiwi: there is no such file")
        )

    async def test_nobody(self) -> None:
        """Without a user, the reason says what to give."""
        answer = await self.world.of(self.b.register(B))
        self.assertEqual(
            answer, Unavailable("http://etcd1:2379: etcdserver: user name is empty; give --etcd-user and a password")
        )

    async def test_no_permission(self) -> None:
        """A user who may not do it is told what is missing; by the watch as well."""
        other = self.stage.store("c", TTL, EtcdUser("other", self.passwords.read))
        missing = (
            "http://etcd1:2379: etcdserver: permission denied; give a role of user other readwrite on all keys that "
            "begin with /kiwi/"
        )
        self.assertEqual(await self.world.of(other.register(A)), Unavailable(missing))
        Listener().listen(self, other)
        await self.world.until(lambda: bool(self.log))
        self.assertIn("permission denied; give a role of user other", formatEvent(self.log[0]))

    async def test_not_asked_for(self) -> None:
        """An etcd that asks for no password is asked without one; and with it, as soon as it does ask."""
        self.fake.access.disable()
        self.assertIsInstance(await self.world.of(self.a.register(A)), Granted)
        await granted(self.stage, self.a, ONE)
        self.assertEqual(self.asked().count("auth/authenticate"), 1)
        self.fake.access.enable()
        self.assertIsInstance((await self.world.of(self.a.renew({ONE})))[ONE], Granted)
        self.assertEqual(self.asked().count("auth/authenticate"), 1)

    async def test_given_up(self) -> None:
        """When nobody waits for a token any more, nothing is left that would."""
        before = self.world.clock.getDelayedCalls()
        self.fake.hanging = True
        asked: list[Deferred[object]] = [self.a.release(ONE), self.a.release(TWO)]  # type: ignore[list-item]
        self.world.settle()
        for each in asked:
            each.addErrback(lambda failure: failure.trap(CancelledError))
            each.cancel()
        self.assertEqual(self.world.clock.getDelayedCalls(), before)
        self.fake.thaw()
        self.assertIsInstance(await self.world.of(self.a.register(A)), Granted)


class RefusalTests(OverFake):
    """What else etcd may answer."""

    async def answers(self, status: int, body: str) -> str:
        """Why a claim is unavailable, with this as the answer."""
        self.fake.fail_next(3, status, body.encode("latin-1"))
        answer = await self.world.of(self.a.acquire(ONE))
        renewed = (await self.world.of(self.a.renew({ONE})))[ONE]
        self.fake._failures.clear()
        assert isinstance(answer, Unavailable), answer
        assert isinstance(renewed, Unavailable), renewed
        self.assertTrue(answer.reason.isascii() and answer.reason.isprintable(), answer.reason)
        return answer.reason.removeprefix("http://etcd1:2379: ")

    async def test_reasons(self) -> None:
        """What is no answer neither grants a claim nor ends one; one printable line says what came, and what to do."""
        space = '{"error":"etcdserver: mvcc: database space exceeded","code":8}'
        full = "etcdserver: mvcc: database space exceeded; compact and defragment etcd, then disarm its alarm"
        gateway = "status 404: it has no v3 API in JSON; give an etcd 3.4 to 3.6 with its gRPC gateway"
        header = f'{{"header":{{"cluster_id":"{self.fake.store.cluster_id}","revision":"3","raft_term":"2"}}'
        for status, body, reason in (
            (404, "404 page not found", gateway),
            (200, "", "an answer that is no JSON object"),
            (200, "[]", "an answer that is no JSON object"),
            (200, "{}", "an answer without a valid header"),
            (200, "\xff", "an answer that is no JSON object"),
            (200, "[" * 100_000, "an answer that is no JSON object"),
            (200, '{"header":{"revision":"x"}}', "its revision is no number"),
            (200, '{"header":{"revision":true}}', "its revision is no number"),
            (200, header + ',"responses":1}', "an answer without valid responses"),
            (204, "", "status 204"),
            (301, "", "status 301"),
            (503, "<html>", "status 503"),
            (500, '{"error":"x\\u001b\\n","code":2}', "x\\x1b\\n"),
            (503, '{"code":14,"message":"etcdserver: no leader"}', "etcdserver: no leader"),
            (503, '{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}', "etcdserver: no leader"),
            (429, space, full),
        ):
            self.assertEqual(await self.answers(status, body), reason)
        self.assertEqual(await self.world.of(self.a.acquire(ONE)), Granted(0))

    async def test_watch(self) -> None:
        """A watch says it as well, and tries again."""
        listener = await self.watched(self.b)
        await self.world.seconds(2)
        self.fake.fail_next(2, 429, b'{"error":"etcdserver: too many requests","code":8}')
        self.fake.end_streams()
        await granted(self.stage, self.a, TWO)
        await self.hears(listener, known({TWO: "a"}))
        self.assertEqual(levels(self.log), ["info", "warn", "info"])

    async def test_next_endpoint(self) -> None:
        """An endpoint that fails is followed by the next, once; and the one that works is asked first from then on."""
        store = self.stage.store_with_dead_first("a")
        self.assertEqual(store.requests.rotation.first, 0)
        await self.world.of(store.release(ONE))
        self.assertEqual(store.requests.rotation.first, 1)

    async def test_both_endpoints_fail(self) -> None:
        """The reason names each endpoint that was tried."""
        self.stage.crash()
        answer = await self.world.of(self.stage.store_with_dead_first("a").release(ONE))
        refused = "Connection was refused by other side"
        self.assertEqual(answer, Unavailable(f"http://dead:2379: {refused}; http://etcd1:2379: {refused}"))

    async def test_in_flight(self) -> None:
        """At most four requests are in flight while answers are quick; the others wait."""
        self.fake.delay = 0.015
        claims = gatherResults([self.a.acquire(address) for address in MANY])
        self.world.settle()
        self.assertEqual(len(self.asked()), 4)
        self.assertEqual({type(answer) for answer in await self.world.of(claims)}, {Granted})

    async def test_cancel(self) -> None:
        """A request that is cancelled leaves no call for later, and its turn goes to the next."""
        self.fake.hanging = True
        asked: list[Deferred[object]] = [self.a.acquire(address) for address in MANY[:20]]  # type: ignore[misc]
        self.world.settle()
        for answer in asked:
            answer.addErrback(lambda failure: failure.trap(CancelledError))
            answer.cancel()
        self.fake.thaw()
        self.world.settle()
        for address in MANY[:20]:
            self.assertIn(await self.world.of(self.a.acquire(address)), (Granted(0), Taken("a")))
