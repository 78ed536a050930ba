"""Certificates for tests, and a TLS server that shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from typing import Any

from attrs import field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

DAY = timedelta(days=1)


@frozen
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any = field(repr=False)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        pem: bytes = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem

    def issue(
        self,
        name: str,
        *alternatives: str,
        authority: bool = False,
        begins: timedelta = -DAY,
        ends: timedelta = DAY,
        key: Any = None,
    ) -> Issued:
        """
        A certificate that this one signs.

        @param name: its common name; empty for none.
        @param alternatives: host names and IP addresses that it is for.
        @param begins: from now, and so is C{ends}.
        @param key: that of the new certificate; by default one is made.
        """
        return _issue(self, name, alternatives, authority, begins, ends, key)


def authority(name: str) -> Issued:
    """One that is signed by itself, and may sign others."""
    return _issue(None, name, (), True, -DAY, DAY)


def _issue(
    by: Issued | None,
    name: str,
    alternatives: Sequence[str],
    authority: bool,
    begins: timedelta,
    ends: timedelta,
    key: Any = None,
) -> Issued:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_alternative, alternatives))), False)
    return Issued(builder.sign(by.key if by else key, SHA256()), key)


def _alternative(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


class _Conversation(Protocol):
    """Answers each request with what the server knows of the client."""

    def __init__(self, server: SecureServer) -> None:
        self.server = server
        self.heard = b""
        self.closed = False

    def connectionMade(self) -> None:
        self.server.conversations.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        if not self.heard.endswith(b"\r\n\r\n"):
            return
        lines = self.heard.decode("latin-1").split("\r\n")
        self.heard = b""
        shown = next((line.partition(": ")[2] for line in lines if line.lower().startswith("authorization:")), None)
        transport: Any = self.transport
        peer = transport.getPeerCertificate()
        certificate = peer.get_subject().CN if peer else None
        self.server.seen.append(certificate)
        body = json.dumps({"certificate": certificate, "authorization": shown}).encode() + b"\n"
        status = b"401 Unauthorized" if certificate in self.server.refused else b"200 OK"
        transport.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True


@implementer(IOpenSSLServerConnectionCreator)
class SecureServer(Factory):
    """
    A server on loopback that says, in JSON, what it was shown.

    @ivar server_names: the names that clients have asked for in their handshakes.
    @ivar seen: whose certificate came with each request.
    @ivar refused: those whose requests are answered with 401.
    """

    def __init__(self) -> None:
        self.conversations: list[_Conversation] = []
        self.server_names: list[bytes | None] = []
        self.seen: list[str | None] = []
        self.refused: set[str] = set()
        self.context: SSL.Context | None = None

    def show(self, *chain: Issued, clients: Issued | None = None) -> None:
        """
        Show these certificates from now on.

        @param clients: who must have signed a client's certificate; nobody needs one if that is C{None}.
        """
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate(chain[0].certificate)
        context.use_privatekey(chain[0].key)
        for issued in chain[1:]:
            context.add_extra_chain_cert(issued.certificate)
        context.set_tlsext_servername_callback(lambda connection: self.server_names.append(connection.get_servername()))
        if clients is not None:
            store = context.get_cert_store()
            assert store is not None
            store.add_cert(crypto.X509.from_cryptography(clients.certificate))
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *asked: bool(asked[-1]))
        self.context = context

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        assert self.context is not None
        return SSL.Connection(self.context, None)

    def buildProtocol(self, address: object) -> _Conversation:
        return _Conversation(self)

    def hang_up(self) -> None:
        for conversation in self.conversations:
            transport: Any = conversation.transport
            if not conversation.closed:
                transport.abortConnection()

    @property
    def all_closed(self) -> bool:
        return all(conversation.closed for conversation in self.conversations)
