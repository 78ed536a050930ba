"""Claims in an etcd v3 that asks who is there: client certificates, and passwords that are exchanged for tokens."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import define, field
from twisted.logger import eventAsText
from twisted.trial.unittest import TestCase

from kiwi.claims.etcd3 import Etcd3ClaimStore
from kiwi.claims.etcd_user import EtcdUser
from kiwi.claims.interface import Granted, Unavailable
from kiwi.model import Claims
from tests.fakes.etcd_process import ETCD_36, unique_prefix
from tests.fakes.secure_etcd import SecureEtcd, shared_secure_etcd
from tests.fakes.worlds import RealWorld

from .claimstoretests import LONG, ONE, TWO, A, Listener, WatchingTestCase, capture_log, make_claim_store_tests
from .stages import BACKOFF
from .test_etcd_secure import PASSWORD, secure_world


def secure_prefix() -> str:
    return f"/secure{unique_prefix()}"


def known_world(case: TestCase, process: SecureEtcd) -> RealWorld:
    return secure_world(case, process, ca="ca.pem", cert="client.pem", key="client.key")


@define(eq=False)
class SecureEtcd3Stage:
    """A real one, over TLS and with a password, in real time."""

    world: RealWorld
    process: SecureEtcd
    user: EtcdUser
    prefix: str = field(factory=secure_prefix)
    rest_on_records: ClassVar[bool] = True

    def store(self, agent_id: str, ttl: int = LONG) -> Etcd3ClaimStore:
        return Etcd3ClaimStore(
            self.world.http,
            self.world.stream_http,
            self.world.clock,
            [self.process.endpoint],
            self.prefix,
            agent_id,
            ttl,
            BACKOFF,
            self.user,
        )


def debian_stage(case: TestCase) -> SecureEtcd3Stage:
    process = shared_secure_etcd("Debian")
    return SecureEtcd3Stage(known_world(case, process), process, EtcdUser("agent", lambda: "secret"))


def wheel_stage(case: TestCase) -> SecureEtcd3Stage:
    process = shared_secure_etcd("Wheel")
    return SecureEtcd3Stage(known_world(case, process), process, EtcdUser("agent", lambda: "secret"))


class DebianSecureEtcd3StoreTests(make_claim_store_tests(debian_stage)):  # type: ignore[misc]
    """The suite, over TLS with a client certificate, and with a password, on etcd 3.4."""


class WheelSecureEtcd3StoreTests(make_claim_store_tests(wheel_stage)):  # type: ignore[misc]
    """The same on etcd 3.5, where tokens end within the tests."""


class Secured3(WatchingTestCase):
    """A server that wants certificates and passwords."""

    make: Any

    def setUp(self) -> None:
        self.log = capture_log(self)
        self.stage = self.make(self)
        self.world = self.stage.world
        self.process = self.stage.process
        self.password = "secret"
        self.stage.user = EtcdUser("agent", lambda: self.password)

    async def reason(self) -> str:
        answer = await self.world.of(self.stage.store("a").register(A))
        assert isinstance(answer, Unavailable), answer
        self.assertTrue(answer.reason.isprintable(), answer)
        return answer.reason


class Secured3Tests:
    """What etcd makes of certificates and passwords, and what is said of that."""

    async def test_no_certificate(self: Any) -> None:
        """Who shows no certificate is not heard, and is told why."""
        self.stage.world = secure_world(self, self.process, ca="ca.pem")
        reason = await self.reason()
        self.assertIn("TLS failed: ", reason)
        self.assertIn("certificate", reason)

    async def test_common_name(self: Any) -> None:
        """A certificate with a common name is refused, and what to give is told."""
        self.stage.world = secure_world(self, self.process, ca="ca.pem", cert="named.pem", key="named.key")
        self.assertIn("takes no client certificate with a common name (CN); give --etcd-cert", await self.reason())

    async def test_nobody(self: Any) -> None:
        """Who gives no name is told that one is wanted."""
        self.stage.user = None
        self.assertIn("permission denied; give --etcd-user and a password", await self.reason())

    async def test_wrong_password(self: Any) -> None:
        """A wrong password is told with the user and without the password."""
        self.password = PASSWORD
        reason = await self.reason()
        self.assertIn("user agent", reason)
        self.assertIn("password", reason)
        self.assertNotIn(PASSWORD, reason)
        self.password = "secret"
        self.assertIsInstance(await self.world.of(self.stage.store("a").register(A)), Granted)

    async def test_another_prefix(self: Any) -> None:
        """Keys that no role of the user is for are told."""
        self.stage.prefix = "/other"
        self.assertIn("permission denied", await self.reason())

    async def test_watch(self: Any) -> None:
        """A watch that may not read says so, and follows as soon as it may."""
        self.password = PASSWORD
        listener = Listener()
        listener.listen(self, self.stage.store("a"))
        await self.world.until(lambda: bool(self.log))
        self.assertIn("user agent", eventAsText(self.log[0]))
        self.password = "secret"
        await self.hears(listener, Claims({}, {}))

    async def test_rotation(self: Any) -> None:
        """A new password ends all tokens, and is used when it is there, as is a new certificate."""
        store = self.stage.store("a")
        self.assertIsInstance(await self.world.of(store.register(A)), Granted)
        self.assertIsInstance(await self.world.of(store.acquire(ONE)), Granted)
        self.process.change_password_in_v3("agent", "new")
        self.addCleanup(self.process.change_password_in_v3, "agent", "secret")
        self.assertIsInstance(await self.world.of(store.acquire(TWO)), Unavailable)
        self.password = "new"
        self.process.write("client", self.process.authority.issue(""))
        self.assertIsInstance(await self.world.of(store.acquire(TWO)), Granted)
        self.assertIsInstance((await self.world.of(store.renew({ONE})))[ONE], Granted)


class DebianSecured3Tests(Secured3Tests, Secured3):
    """etcd 3.4."""

    make = staticmethod(debian_stage)


class WheelSecured3Tests(Secured3Tests, Secured3):
    """etcd 3.5."""

    make = staticmethod(wheel_stage)

    async def test_token_ends(self) -> None:
        """A token that ends while an address is held is exchanged for a new one, and nobody notices."""
        store = self.stage.store("a")
        listener = await self.watched(self.stage.store("b"))
        self.assertIsInstance(await self.world.of(store.register(A)), Granted)
        self.assertIsInstance(await self.world.of(store.acquire(ONE)), Granted)
        for address in (ONE, TWO):
            # Twice as long as a token lasts that is not used.
            await self.world.seconds(6)
            self.assertIsInstance((await self.world.of(store.renew({ONE})))[ONE], Granted)
            self.assertNotIsInstance(await self.world.of(store.acquire(address)), Unavailable)
        await self.hears(listener, Claims({ONE: "a", TWO: "a"}, {"a": A}))
        self.assertEqual([event["log_level"].name for event in self.log], ["info"])


if ETCD_36:

    def newest_stage(case: TestCase) -> SecureEtcd3Stage:
        process = shared_secure_etcd("Newest")
        return SecureEtcd3Stage(known_world(case, process), process, EtcdUser("agent", lambda: "secret"))

    class NewestSecured3Tests(WheelSecured3Tests):
        """etcd 3.6."""

        make = staticmethod(newest_stage)
