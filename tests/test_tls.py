"""Connections to TLS servers on loopback, with certificates of all kinds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from twisted.web.client import HTTPConnectionPool

from kiwi.connections import http_clients
from kiwi.files import Data, File, Rotating, Unusable
from kiwi.http import HTTPError, Response, request, stream
from kiwi.tls import TLS, Certificates, ClientCertificate, certificates, client_certificate
from tests.fakes.authorities import DAY, Issued, SecureServer, authority
from tests.test_http import Server


def trusting(*issued: Issued) -> Callable[[], Certificates]:
    found = tuple(each.certificate for each in issued)
    return lambda: found


def showing(*chain: Issued) -> Callable[[], ClientCertificate]:
    client = client_certificate([b"".join(each.pem for each in chain), chain[0].key_pem])
    return lambda: client


class OverTLS(TestCase):
    """A server whose certificate is signed by C{self.authority}, and clients as Kiwi has them."""

    interface = "127.0.0.1"

    async def setUp(self) -> None:  # type: ignore[override]
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.authority = authority("authority")
        self.server = SecureServer()
        self.server.show(self.authority.issue("server", "localhost", "127.0.0.1", "::1"))
        self.port = self.listen(self.server, self.interface)

    def listen(self, factory: Any, interface: str) -> int:
        port = self.reactor.listenSSL(0, factory, factory, interface=interface)
        self.addCleanup(self.until, lambda: factory.all_closed)
        self.addCleanup(factory.hang_up)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    def pool(self) -> HTTPConnectionPool:
        pool = HTTPConnectionPool(self.reactor)
        self.addCleanup(pool.closeCachedConnections)
        return pool

    async def until(self, condition: Callable[[], bool]) -> None:
        end = self.reactor.seconds() + 30
        while not condition():
            self.assertLess(self.reactor.seconds(), end, "it did not come")
            await deferLater(self.reactor, 0.005)

    def asker(self, tls: TLS, host: str = "localhost") -> Callable[[], Deferred[Response]]:
        """What sends a request, each time over the same client."""
        http, _ = http_clients(self.reactor, self.pool, tls)
        return lambda: request(http, self.reactor, "GET", f"https://{host}:{self.port}/", timeout=30)

    async def shown(self, asking: Deferred[Response]) -> Any:
        """Whose certificate the server saw."""
        return json.loads((await asking).body)["certificate"]

    async def accepted(self, tls: TLS, host: str = "localhost") -> Any:
        return await self.shown(self.asker(tls, host)())

    async def failed(self, asking: Deferred[Any]) -> str:
        """Why there is no answer."""
        return str(await self.assertFailure(asking, HTTPError))

    async def reason(self, tls: TLS, host: str = "localhost") -> str:
        return await self.failed(self.asker(tls, host)())


class ServerCertificateTests(OverTLS):
    async def test_name(self) -> None:
        """A server that is called by a name in its certificate is trusted, and is told the name."""
        self.assertIsNone(await self.accepted(TLS(trusting(self.authority))))
        self.assertEqual(self.server.server_names, [b"localhost"])

    async def test_address(self) -> None:
        """So is one that is called by an address in its certificate; an address is no name to tell."""
        self.assertIsNone(await self.accepted(TLS(trusting(self.authority)), "127.0.0.1"))
        self.assertEqual(self.server.server_names, [None])

    async def test_unknown(self) -> None:
        """One whose certificate is signed by somebody else is not trusted."""
        self.assertEqual(
            await self.reason(TLS(trusting(authority("other")))),
            "its certificate is not trusted: unable to get local issuer certificate",
        )

    async def test_system(self) -> None:
        """Where no authority is named, those of the system decide, which do not know this one."""
        self.assertEqual(
            await self.reason(TLS()), "its certificate is not trusted: unable to get local issuer certificate"
        )

    async def test_system_trusts(self) -> None:
        """An authority that the system trusts vouches for servers."""
        bundle = os.path.abspath(self.mktemp())
        with open(bundle, "wb") as file:
            file.write(self.authority.pem)
        os.environ["SSL_CERT_FILE"] = bundle
        self.addCleanup(os.environ.pop, "SSL_CERT_FILE")
        self.assertIsNone(await self.accepted(TLS()))

    async def test_own_signature(self) -> None:
        """One that vouches for itself is not trusted."""
        self.server.show(authority("server"))
        self.assertEqual(
            await self.reason(TLS(trusting(self.authority))),
            "its certificate is not trusted: it is signed by itself",
        )

    async def test_authority_in_chain(self) -> None:
        """One that shows its unknown authority as well is not trusted."""
        other = authority("other")
        self.server.show(other.issue("server", "localhost"), other)
        self.assertEqual(
            await self.reason(TLS(trusting(self.authority))),
            "its certificate is not trusted: the authority that signed it is not",
        )

    async def test_no_authority(self) -> None:
        """A certificate that may not sign others does not vouch for them."""
        server = self.authority.issue("server", "localhost")
        self.server.show(server.issue("sub", "localhost"), server)
        self.assertIn("its certificate is not trusted: ", await self.reason(TLS(trusting(self.authority))))

    async def test_expired(self) -> None:
        """One whose certificate has run out is not trusted."""
        self.server.show(self.authority.issue("server", "localhost", begins=-2 * DAY, ends=-DAY))
        self.assertEqual(await self.reason(TLS(trusting(self.authority))), "its certificate has expired")

    async def test_too_early(self) -> None:
        """Neither is one whose certificate is from the future, or a clock is wrong."""
        self.server.show(self.authority.issue("server", "localhost", begins=timedelta(hours=1)))
        self.assertEqual(await self.reason(TLS(trusting(self.authority))), "its certificate is not valid yet")

    async def test_other_name(self) -> None:
        """One whose certificate has another name, or another address, is not trusted."""
        self.server.show(self.authority.issue("localhost", "kubernetes.example", "10.0.0.1"))
        tls = TLS(trusting(self.authority))
        self.assertEqual(await self.reason(tls), "its certificate is for another name than localhost")
        self.assertEqual(await self.reason(tls, "127.0.0.1"), "its certificate is for another name than 127.0.0.1")

    async def test_no_name(self) -> None:
        """One whose certificate has no name but the common name is not trusted: that counts no more (RFC 9525)."""
        self.server.show(self.authority.issue("localhost"))
        self.assertIn("and so is not for localhost", await self.reason(TLS(trusting(self.authority))))

    async def test_server_name(self) -> None:
        """Where another name is expected, the certificate must have that, and the server is told that."""
        self.server.show(self.authority.issue("server", "kubernetes.example"))
        tls = TLS(trusting(self.authority), server_name="kubernetes.example")
        self.assertIsNone(await self.accepted(tls, "127.0.0.1"))
        self.assertEqual(self.server.server_names, [b"kubernetes.example"])
        self.server.show(self.authority.issue("server", "127.0.0.1"))
        self.assertEqual(
            await self.reason(tls, "127.0.0.1"), "its certificate is for another name than kubernetes.example"
        )

    async def test_insecure(self) -> None:
        """Whoever does not check takes any certificate."""
        self.server.show(authority("anybody").issue("else", "elsewhere", begins=-2 * DAY, ends=-DAY))
        self.assertIsNone(await self.accepted(TLS(insecure=True)))

    async def test_bundle(self) -> None:
        """Every authority of a bundle is trusted, not only the first."""
        bundle = b"the first:\n" + authority("other").pem + b"\nand the second:\n" + self.authority.pem
        found = certificates([bundle])
        self.assertIsNone(await self.accepted(TLS(lambda: found)))

    async def test_intermediate(self) -> None:
        """An authority that is signed by an unknown one is trusted where it stands in the bundle itself."""
        intermediate = self.authority.issue("intermediate", authority=True)
        self.server.show(intermediate.issue("server", "localhost"))
        self.assertIsNone(await self.accepted(TLS(trusting(intermediate))))

    async def test_chain(self) -> None:
        """A server may show those that are between its certificate and the authority."""
        intermediate = self.authority.issue("intermediate", authority=True)
        self.server.show(intermediate.issue("server", "localhost"), intermediate)
        self.assertIsNone(await self.accepted(TLS(trusting(self.authority))))

    async def test_stream(self) -> None:
        """Watches check the server as well."""
        _, http = http_clients(self.reactor, self.pool, TLS(trusting(self.authority)))
        _, distrustful = http_clients(self.reactor, self.pool, TLS(trusting(authority("other"))))
        lines: list[bytes] = []

        def following(client: Any) -> Deferred[Any]:
            return stream(
                client,
                self.reactor,
                f"https://localhost:{self.port}/",
                opened=lambda response: None,
                line=lines.append,
                overlong=lambda size: None,
                open_timeout=30,
                idle_timeout=30,
            )

        self.assertIsNone(await following(http))
        self.assertEqual(lines, [b'{"certificate": null, "authorization": null}'])
        self.assertIn("its certificate is not trusted", await self.failed(following(distrustful)))

    async def test_no_tls(self) -> None:
        """A server that speaks plain HTTP is told of as such."""
        plain = Server()
        port = self.reactor.listenTCP(0, plain, interface="127.0.0.1")
        self.addCleanup(self.until, lambda: all(conversation.closed for conversation in plain.conversations))
        self.addCleanup(port.stopListening)
        self.port = port.getHost().port
        asking = self.asker(TLS(trusting(self.authority)), "127.0.0.1")()
        await self.until(lambda: bool(plain.conversations))
        plain.conversations[0].say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.assertEqual(await self.failed(asking), "TLS failed: wrong version number")


class IPv6Tests(OverTLS):
    interface = "::1"

    def listen(self, factory: Any, interface: str) -> int:
        if not os.path.exists("/proc/net/if_inet6"):
            raise SkipTest("there is no IPv6 here")
        return super().listen(factory, interface)

    async def test_address(self) -> None:
        """An IPv6 address stands in brackets in a URL, and without them in a certificate."""
        self.assertIsNone(await self.accepted(TLS(trusting(self.authority)), "[::1]"))


class ClientCertificateTests(OverTLS):
    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.clients = authority("clients")
        self.server.show(self.authority.issue("server", "localhost"), clients=self.clients)

    async def test_shown(self) -> None:
        """A client shows its certificate."""
        tls = TLS(trusting(self.authority), showing(self.clients.issue("agent")))
        self.assertEqual(await self.accepted(tls), "agent")

    async def test_chain(self) -> None:
        """It also shows those between its certificate and the authority."""
        intermediate = self.clients.issue("intermediate", authority=True)
        tls = TLS(trusting(self.authority), showing(intermediate.issue("agent"), intermediate))
        self.assertEqual(await self.accepted(tls), "agent")

    async def test_missing(self) -> None:
        """Where the server asks for one and there is none, it says so."""
        self.assertIn("certificate required", await self.reason(TLS(trusting(self.authority))))

    async def test_unknown(self) -> None:
        """So it does where it does not know who signed it."""
        tls = TLS(trusting(self.authority), showing(authority("other").issue("agent")))
        self.assertIn("TLS failed: ", await self.reason(tls))


class RotationTests(OverTLS):
    """Files that are written anew while an agent runs."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.clients = authority("clients")
        self.server.show(self.authority.issue("server", "localhost"), clients=self.clients)
        self.folder = self.mktemp()
        os.mkdir(self.folder)
        self.write("ca", self.authority.pem)
        self.write_client(self.clients.issue("first"))
        clock = Clock()
        self.ca = Rotating([self.file("ca")], certificates, clock.seconds)
        self.client = Rotating([self.file("cert"), self.file("key")], client_certificate, clock.seconds)
        self.ask = self.asker(TLS(self.ca.current, self.client.current))

    def file(self, name: str) -> File:
        return File(os.path.join(self.folder, name))

    def write(self, name: str, data: bytes) -> None:
        """In one step, as whoever rotates should do it."""
        path = self.file(name).path
        with open(f"{path}.new", "wb") as file:
            file.write(data)
        os.rename(f"{path}.new", path)

    def write_client(self, client: Issued) -> None:
        self.write("cert", client.pem)
        self.write("key", client.key_pem)

    async def test_kept(self) -> None:
        """While nothing changes, one connection serves all requests, also when the same is written again."""
        for _ in range(3):
            self.assertEqual(await self.shown(self.ask()), "first")
            self.write("ca", self.authority.pem)
        self.assertEqual(len(self.server.conversations), 1)

    async def test_client(self) -> None:
        """A new client certificate is shown with the next request, though a connection was kept."""
        self.assertEqual(await self.shown(self.ask()), "first")
        self.write_client(self.clients.issue("second"))
        self.assertEqual(await self.shown(self.ask()), "second")
        await self.until(lambda: self.server.conversations[0].closed)

    async def test_half_a_client(self) -> None:
        """Between the writing of a certificate and that of its key, the pair from before is shown."""
        second = self.clients.issue("second")
        self.assertEqual(await self.shown(self.ask()), "first")
        self.write("cert", second.pem)
        self.assertEqual(await self.shown(self.ask()), "first")
        self.write("key", second.key_pem)
        self.assertEqual(await self.shown(self.ask()), "second")

    async def test_under_way(self) -> None:
        """A request that is under way when the certificate changes is answered; its connection is not used again."""
        asking = self.ask()
        self.write_client(self.clients.issue("second"))
        self.assertEqual(await self.shown(self.ask()), "second")
        await asking
        self.assertEqual(await self.shown(self.ask()), "second")

    async def test_authority(self) -> None:
        """A new authority is trusted with the next connection."""
        self.assertEqual(await self.shown(self.ask()), "first")
        other = authority("other")
        self.server.show(other.issue("server", "localhost"), clients=self.clients)
        self.write("ca", other.pem)
        self.assertEqual(await self.shown(self.ask()), "first")

    async def test_authority_withdrawn(self) -> None:
        """What is no longer in the bundle is no longer trusted."""
        self.assertEqual(await self.shown(self.ask()), "first")
        self.write("ca", authority("other").pem)
        self.assertIn("its certificate is not trusted", await self.failed(self.ask()))


class ReadingTests(SynchronousTestCase):
    """What stands in PEM."""

    def setUp(self) -> None:
        self.authority = authority("authority")
        self.client = self.authority.issue("agent")

    def problem(self, certificate: bytes, key: bytes) -> str:
        return str(self.assertRaises(ValueError, client_certificate, [certificate, key]))

    def test_order(self) -> None:
        """Certificate and key may stand in one file, in any order."""
        both = self.client.key_pem + self.client.pem
        self.assertEqual(client_certificate([both, both]).chain, (self.client.certificate,))

    def test_no_certificates(self) -> None:
        """A bundle without a certificate, or with a broken one, is of no use."""
        broken = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
        for pem in (b"", b"\0\xff", self.client.key_pem, broken, self.client.pem + broken):
            error = self.assertRaises(ValueError, certificates, [pem])
            self.assertEqual(str(error), "there are no certificates in PEM")

    def test_other_key(self) -> None:
        """A key must be that of the certificate."""
        other = self.authority.issue("other")
        self.assertEqual(self.problem(self.client.pem, other.key_pem), "the key is not that of the certificate")

    def test_no_key(self) -> None:
        """There must be a key."""
        self.assertEqual(self.problem(self.client.pem, b"key"), "there is no private key in PEM")

    def test_encrypted_key(self) -> None:
        """A key with a passphrase is refused: nobody is there to be asked for it."""
        encrypted = self.client.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase")
        )
        self.assertIn("the key is encrypted", self.problem(self.client.pem, encrypted))

    def test_useless_key(self) -> None:
        """A key with which TLS does nothing is found before it is needed."""
        client = self.authority.issue("agent", key=x25519.X25519PrivateKey.generate())
        self.assertIn("TLS cannot use it: ", self.problem(client.pem, client.key_pem))

    def test_rotating(self) -> None:
        """What is wrong is told with the files that it is in."""
        pair = Rotating([Data("here", self.client.pem), Data("there", b"secret")], client_certificate, Clock().seconds)
        error = self.assertRaises(Unusable, pair.current)
        self.assertEqual(str(error), "here and there: there is no private key in PEM")

    def test_secret(self) -> None:
        """Keys stay out of what is printed."""
        client = client_certificate([self.client.pem, self.client.key_pem])
        self.assertNotIn("key", repr(client).lower())
        self.assertNotIn("PRIVATE", repr(Data("here", self.client.key_pem)))
