"""Claims in an etcd that asks who is there: certificates, users and passwords, over both real ones."""

from __future__ import annotations

import os
from base64 import b64encode
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field
from twisted.internet.defer import Deferred, setDebugging
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, eventAsText, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import HTTPConnectionPool

from kiwi.claims.etcd2 import Etcd2ClaimStore
from kiwi.claims.etcd_access import EtcdAccess, EtcdAccessError, find_etcd_access
from kiwi.claims.etcd_user import EtcdUser
from kiwi.claims.interface import Granted, Unavailable
from kiwi.connections import http_clients
from kiwi.logs import threshold
from kiwi.model import Claims
from kiwi.settings import settings
from tests.fakes.authorities import authority
from tests.fakes.etcd_process import unique_prefix
from tests.fakes.secure_etcd import SecureEtcd, shared_secure_etcd
from tests.fakes.worlds import RealWorld

from .claimstoretests import (
    LONG,
    ONE,
    A,
    Listener,
    WatchingTestCase,
    capture_log,
    levels,
    make_claim_store_tests,
)
from .stages import BACKOFF

AUTHORITY = authority("authority")
PASSWORD = "s3cret-p\u00e4ssword"


class Folder(SynchronousTestCase):
    """Files that an operator has made."""

    def setUp(self) -> None:
        self.folder = Path(os.path.abspath(self.mktemp()))
        self.folder.mkdir()
        agent = AUTHORITY.issue("agent")
        self.write("ca.pem", AUTHORITY.pem)
        self.write("agent.pem", agent.pem)
        self.write("agent.key", agent.key_pem)
        self.write("both.pem", agent.pem + agent.key_pem)
        self.write("password", f"{PASSWORD}\n".encode())

    def write(self, name: str, contents: bytes) -> None:
        path = self.folder / name
        path.write_bytes(contents)
        path.chmod(0o600)

    def options(self, **names: str) -> dict[str, Any]:
        return {f"etcd-{option.replace('_', '-')}": str(self.folder / name) for option, name in names.items()}

    def access(
        self, options: dict[str, Any], endpoint: str = "https://etcd:2379", environment: dict[str, str] | None = None
    ) -> EtcdAccess:
        found = environment or {}
        return find_etcd_access(settings({"etcd-endpoint": [endpoint], **options}, found, "a"), found, Clock().seconds)


class AccessTests(Folder):
    """The way into etcd, from options."""

    def test_plain(self) -> None:
        """Plain HTTP needs nothing."""
        self.assertEqual(self.access({}, "http://etcd:2379"), EtcdAccess())

    def test_certificates(self) -> None:
        """Certificates come from files; a certificate and its key may be in one, in any order."""
        for certificate, key in (("agent.pem", "agent.key"), ("both.pem", "both.pem"), ("both.pem", "agent.key")):
            access = self.access(self.options(ca="ca.pem", cert=certificate, key=key))
            assert access.tls is not None
            self.assertEqual(access.tls.authorities(), (AUTHORITY.certificate,))
            client = access.tls.client()
            assert client is not None
            self.assertEqual(client.chain[0].subject.rfc4514_string(), "CN=agent")
            self.assertEqual((access.user, access.warnings), (None, ()))

    def test_system(self) -> None:
        """Without options, https is checked against what the system trusts, and nothing is shown."""
        access = self.access({})
        assert access.tls is not None
        self.assertEqual((access.tls.authorities(), access.tls.client()), (None, None))

    def test_password_file(self) -> None:
        """A password is what its file has now, without the end of the line; what was there before while it is gone."""
        access = self.access({"etcd-user": "agent", **self.options(password_file="password")})
        assert access.user is not None
        self.assertEqual((access.user.name, access.user.read_password()), ("agent", PASSWORD))
        self.write("password", b"another one\r\n")
        self.assertEqual(access.user.read_password(), "another one")
        (self.folder / "password").unlink()
        self.assertEqual(access.user.read_password(), "another one")

    def test_password_variable(self) -> None:
        """A password may come from the environment."""
        access = self.access({"etcd-user": "agent"}, environment={"KIWI_ETCD_PASSWORD": PASSWORD})
        assert access.user is not None
        self.assertEqual((access.user.name, access.user.read_password()), ("agent", PASSWORD))

    def test_unusable(self) -> None:
        """What is of no use is told in one line: the option, the file, what is wrong with it, and what to give."""
        self.write("other.key", AUTHORITY.issue("other").key_pem)
        self.write("empty", b"\n")
        self.write("lines", b"one\ntwo\n")
        self.write("binary", b"\xff")
        user = {"etcd-user": "agent"}
        path = self.folder
        pair = "--etcd-cert and --etcd-key: "
        for options, message in (
            (self.options(ca="none"), f"--etcd-ca: {path}/none: No such file or directory; "),
            (self.options(ca="password"), f"--etcd-ca: {path}/password: there are no certificates in PEM; "),
            (
                self.options(cert="agent.key", key="agent.key"),
                f"{pair}{path}/agent.key and {path}/agent.key: there are no certificates in PEM; ",
            ),
            (
                self.options(cert="agent.pem", key="agent.pem"),
                f"{pair}{path}/agent.pem and {path}/agent.pem: there is no private key in PEM; ",
            ),
            (
                self.options(cert="agent.pem", key="other.key"),
                f"{pair}{path}/agent.pem and {path}/other.key: the key is not that of the certificate; ",
            ),
            (
                {**user, **self.options(password_file="none")},
                f"--etcd-password-file: {path}/none: No such file or directory; ",
            ),
            ({**user, **self.options(password_file="empty")}, f"--etcd-password-file: {path}/empty: it is empty; "),
            (
                {**user, **self.options(password_file="lines")},
                f"--etcd-password-file: {path}/lines: it has more than one line of printable characters; ",
            ),
            (
                {**user, **self.options(password_file="binary")},
                f"--etcd-password-file: {path}/binary: what is in it is no UTF-8; ",
            ),
        ):
            text = str(self.assertRaises(EtcdAccessError, self.access, options))
            self.assertTrue(text.startswith(f"{message}give a "), text)
            self.assertEqual(len(text.splitlines()), 1)

    def test_names(self) -> None:
        """A host that no certificate can be for is refused at the start."""
        text = str(self.assertRaises(EtcdAccessError, self.access, {}, "https://1:2379"))
        self.assertIn("no certificate can be for '1'; give another name", text)

    def test_warnings(self) -> None:
        """A password that others can read, on the way or on this host, is warned of."""
        options = {"etcd-user": "agent", **self.options(password_file="password")}
        for loopback in ("http://localhost:1", "http://127.0.0.2:1", "http://[::1]:1", "https://etcd:1"):
            self.assertEqual(self.access(options, loopback).warnings, ())
        (self.folder / "password").chmod(0o604)
        self.assertEqual(
            self.access(options, "http://etcd:2379").warnings,
            (
                "the password of etcd's user agent goes to http://etcd:2379 unencrypted: whoever is between can read "
                "it; give https endpoints",
                f"{self.folder}/password has a password and can be read by everybody on this host; see: chmod o= "
                f"{self.folder}/password",
            ),
        )


@define(eq=False)
class SecureStage:
    """A real one over TLS, in real time. Certificates say who is who."""

    world: RealWorld
    process: SecureEtcd
    prefix: str = field(factory=unique_prefix)
    rest_on_records: ClassVar[bool] = False

    def store(self, agent_id: str, ttl: int = LONG) -> Etcd2ClaimStore:
        return secure_store(self.world, self.process, self.prefix, agent_id, None, ttl)


def secure_store(
    world: RealWorld, process: SecureEtcd, prefix: str, agent_id: str, user: EtcdUser | None, ttl: int = LONG
) -> Etcd2ClaimStore:
    return Etcd2ClaimStore(
        world.http, world.stream_http, world.clock, [process.endpoint], prefix, agent_id, ttl, BACKOFF, user
    )


def secure_world(case: TestCase, process: SecureEtcd, **names: str) -> RealWorld:
    """
    A world whose connections are made as options say.

    @param names: files in the server's folder, by option.
    """
    world = RealWorld(case)
    options: dict[str, Any] = {f"etcd-{option}": str(process.path(name)) for option, name in names.items()}
    chosen = settings({"etcd-endpoint": [process.endpoint], **options}, {}, "a")

    def pool() -> HTTPConnectionPool:
        pool = HTTPConnectionPool(world.clock)
        pool.maxPersistentPerHost = 32
        case.addCleanup(pool.closeCachedConnections)
        return pool

    tls = find_etcd_access(chosen, {}, world.clock.seconds).tls
    world.http, world.stream_http = http_clients(world.clock, pool, tls)
    return world


def secure_stage(case: TestCase) -> SecureStage:
    process = shared_secure_etcd("Wheel")
    # With a password, each request would cost etcd 55 ms of a processor.
    return SecureStage(secure_world(case, process, ca="ca.pem", cert="named.pem", key="named.key"), process)


class SecureEtcd2StoreTests(make_claim_store_tests(secure_stage)):  # type: ignore[misc]
    """The suite, over TLS with a client certificate, which names a user."""


class Secured(WatchingTestCase):
    """A server that wants certificates and passwords."""

    binary: str

    def setUp(self) -> None:
        self.log = capture_log(self)
        self.process = shared_secure_etcd(self.binary)
        self.prefix = unique_prefix()
        self.password = "secret"
        self.user = EtcdUser("agent", lambda: self.password)

    def over(self, world: RealWorld, user: EtcdUser | None, prefix: str | None = None) -> Etcd2ClaimStore:
        self.world = world
        return secure_store(world, self.process, prefix or self.prefix, "a", user)

    def known(self) -> RealWorld:
        return secure_world(self, self.process, ca="ca.pem", cert="client.pem", key="client.key")

    async def reason(self, store: Etcd2ClaimStore) -> str:
        answer = await self.world.of(store.acquire(ONE))
        assert isinstance(answer, Unavailable), answer
        self.assertTrue(answer.reason.isprintable() and answer.reason.startswith(self.process.endpoint), answer)
        return answer.reason.removeprefix(f"{self.process.endpoint}: ")


class SecuredTests:
    """What etcd makes of certificates and passwords, and what is said of that."""

    async def test_no_certificate(self: Any) -> None:
        """Who shows no certificate is not heard, and is told why."""
        reason = await self.reason(self.over(secure_world(self, self.process, ca="ca.pem"), self.user))
        self.assertIn("TLS failed: ", reason)
        self.assertIn("certificate", reason)

    async def test_foreign_authority(self: Any) -> None:
        """A server that is not of the authority that was given is told nothing."""
        self.process.path("other.pem").write_bytes(AUTHORITY.pem)
        store = self.over(secure_world(self, self.process, ca="other.pem"), self.user)
        self.assertIn("its certificate is not trusted", await self.reason(store))

    async def test_nobody(self: Any) -> None:
        """Who gives no name, and whose certificate has one that is no user's, is told to."""
        stranger = secure_world(self, self.process, ca="ca.pem", cert="stranger.pem", key="stranger.key")
        self.assertEqual(
            await self.reason(self.over(stranger, None)),
            "status 401, error 110: The request requires user authentication (Insufficient credentials): nobody "
            f"without a name may ask for {self.prefix}/publicips/192.168.1.41; give --etcd-user and "
            "--etcd-password-file, or a client certificate of a user",
        )

    async def test_common_name(self: Any) -> None:
        """A certificate says who shows it, where no other name is given."""
        store = self.over(secure_world(self, self.process, ca="ca.pem", cert="named.pem", key="named.key"), None)
        self.assertIsInstance(await self.world.of(store.acquire(ONE)), Granted)

    async def test_wrong_password(self: Any) -> None:
        """A wrong password is told without the password, and the right one helps at once."""
        store = self.over(self.known(), self.user)
        self.password = PASSWORD
        reason = await self.reason(store)
        self.assertEqual(
            reason,
            "status 401, error 110: The request requires user authentication (Insufficient credentials): user agent "
            f"may not ask for {self.prefix}/publicips/192.168.1.41; see that the password is right, and that a role of "
            f"the user may read and write {self.prefix}*",
        )
        self.password = "secret"
        self.assertIsInstance(await self.world.of(store.acquire(ONE)), Granted)

    async def test_another_prefix(self: Any) -> None:
        """Keys that no role of the user is for are told."""
        reason = await self.reason(self.over(self.known(), self.user, "/other"))
        self.assertIn("a role of the user may read and write /other*", reason)

    async def test_watch(self: Any) -> None:
        """A watch that may not read says so once, and follows as soon as it may."""
        self.password = PASSWORD
        store = self.over(self.known(), self.user)
        listener = Listener()
        listener.listen(self, store)
        await self.world.until(lambda: bool(self.log))
        self.password = "secret"
        await self.hears(listener, Claims({}, {}))
        self.assertEqual(levels(self.log), ["warn", "info"])
        self.assertIn(f"user agent may not ask for {self.prefix}; see that", eventAsText(self.log[0]))

    async def test_watch_after_outage(self: Any) -> None:
        """It says so also where it had lost sight of the claims for another reason before."""
        store = self.over(self.known(), self.user)
        known, store.stream_http = store.stream_http, RealWorld(self).stream_http
        listener = Listener()
        listener.listen(self, store)
        await self.world.until(lambda: bool(self.log))
        self.password, store.stream_http = PASSWORD, known
        await self.world.until(lambda: len(self.log) == 2)
        self.assertIn(f"user agent may not ask for {self.prefix}; see that", eventAsText(self.log[1]))
        self.password = "secret"
        await self.hears(listener, Claims({}, {}))

    async def test_rotation(self: Any) -> None:
        """A new password, and a new certificate, are used without a restart."""
        store = self.over(self.known(), self.user)
        self.assertIsInstance(await self.world.of(store.acquire(ONE)), Granted)
        self.process.change_password_in_v2("agent", "new")
        self.addCleanup(self.process.change_password_in_v2, "agent", "secret")
        self.assertIsInstance((await self.world.of(store.renew({ONE})))[ONE], Unavailable)
        self.password = "new"
        self.process.write("client", self.process.authority.issue(""))
        self.assertIsInstance((await self.world.of(store.renew({ONE})))[ONE], Granted)


class DebianSecuredTests(SecuredTests, Secured):
    """etcd 3.4."""

    binary = "Debian"


class WheelSecuredTests(SecuredTests, Secured):
    """etcd 3.5."""

    binary = "Wheel"


class SecretTests(Folder):
    """What must not be seen."""

    def test_secret(self) -> None:
        """
        A password is in no setting, in nothing that is printed, and not in the log, even where a mistake inside Kiwi is
        told with all that --debug says.
        """
        setDebugging(True)
        self.addCleanup(setDebugging, False)
        log: list[LogEvent] = []
        note: Any = log.append
        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        threshold.setLogLevelForNamespace("kiwi", LogLevel.debug)
        self.addCleanup(threshold.clearLogLevels)
        user = {"etcd-user": "agent", **self.options(password_file="password")}
        chosen = settings({"etcd-endpoint": ["http://localhost:2379"], **user}, {}, "a")
        access = find_etcd_access(chosen, {}, Clock().seconds)
        asked: list[object] = []

        class Broken:
            def request(self, *arguments: Any, headers: Any, **_: Any) -> Any:
                asked.append(headers)
                raise RuntimeError("a mistake")

        broken: Any = Broken()
        store = Etcd2ClaimStore(
            broken, broken, Clock(), chosen.etcd_endpoints, chosen.etcd_prefix, "a", 10, BACKOFF, access.user
        )
        watch: Any = store.watch(lambda claims: None)
        asking: list[Deferred[Any]] = [store.acquire(ONE), store.renew({ONE}), store.register(A)]
        answers = [self.successResultOf(answer) for answer in asking]
        watch.startService()
        watch.stopService()
        told = [
            *(repr(each) for each in (chosen, access, store, watch, answers)),
            *(eventAsText(event) for event in log),
        ]
        encoded = b64encode(f"agent:{PASSWORD}".encode()).decode()
        self.assertEqual(asked[-1], {"Authorization": f"Basic {encoded}"})
        self.assertGreater(len(self.flushLoggedErrors(RuntimeError)), 3)
        for secret in (PASSWORD, repr(PASSWORD)[1:-1], encoded):
            self.assertEqual([text for text in told if secret in text], [])
