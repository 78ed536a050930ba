"""
TLS to a server: whom to trust, what to show, and why a server was not trusted.

Certificates are taken as they are when a connection is made, so that they may be put in place anew at any time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from .http import describe
from .logs import printable

Certificates = tuple[x509.Certificate, ...]


class Untrusted(Exception):
    """A server's certificate is not what it should be. The text is one printable line that says why ("its ...")."""


@frozen
class ClientCertificate:
    """
    What a client shows.

    @ivar chain: the certificate itself, and those between it and the one that the server trusts.
    """

    chain: Certificates
    key: Any = field(repr=False)


def certificates(pems: Sequence[bytes]) -> Certificates:
    """All certificates of a bundle. Raises L{ValueError} where there is none, or one that makes no sense."""
    try:
        found = tuple(x509.load_pem_x509_certificates(b"\n".join(pems)))
    except ValueError:
        raise ValueError("there are no certificates in PEM") from None
    if not found:
        raise ValueError("there are no certificates in PEM")
    return found


def client_certificate(pems: Sequence[bytes]) -> ClientCertificate:
    """A certificate with its key, from the PEM of each. Raises L{ValueError}."""
    chain, key = certificates(pems[:1]), _key(pems[1])
    try:
        matches = key.public_key() == chain[0].public_key()
    except ValueError:
        raise ValueError("the certificate has a key of an unknown kind") from None
    if not matches:
        raise ValueError("the key is not that of the certificate")
    client = ClientCertificate(chain, key)
    try:
        _context((), client)
    except (SSL.Error, crypto.Error, TypeError) as error:
        # A key that is too small, or of a kind that is not for signatures.
        raise ValueError(f"TLS cannot use it: {printable(describe(error))}") from None
    return client


def _key(pem: bytes) -> Any:
    try:
        return load_pem_private_key(pem, None)
    except TypeError:
        raise ValueError("the key is encrypted, and there is nobody to ask for its passphrase") from None
    except ValueError:
        raise ValueError("there is no private key in PEM") from None


def _nothing() -> None:
    return None


@implementer(IPolicyForHTTPS)
@define(eq=False)
class TLS:
    """
    How connections are made.

    @ivar authorities: the certificates that vouch for the server, or C{None} for those that the system trusts.
    @ivar client: what is shown, if anything.
    @ivar server_name: the name in the server's certificate, where that is not the host that is spoken to.
    @ivar insecure: whether the server's certificate is not checked at all.
    """

    authorities: Callable[[], Certificates | None] = _nothing
    client: Callable[[], ClientCertificate | None] = _nothing
    server_name: str | None = None
    insecure: bool = False
    _made: tuple[Any, SSL.Context] | None = field(default=None, init=False, repr=False)

    def context(self) -> SSL.Context:
        """The same for as long as the certificates are the same."""
        authorities, client = self.authorities(), self.client()
        made = self._made
        if made is None or made[0][0] is not authorities or made[0][1] is not client:
            made = self._made = (authorities, client), _context(authorities, client)
        return made[1]

    def creatorForNetloc(self, hostname: bytes, port: int) -> _Connections:
        """Raises L{ValueError} where the host has no name that a certificate can have."""
        name = self.server_name or hostname.decode("ascii")
        return _Connections(self, name, _identity(name))


def _identity(name: str) -> DNS_ID | IPAddress_ID:
    return IPAddress_ID(name) if isIPAddress(name) or isIPv6Address(name) else DNS_ID(name)


def _context(authorities: Certificates | None, client: ClientCertificate | None) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    if authorities is None:
        context.set_default_verify_paths()
    else:
        store = context.get_cert_store()
        assert store is not None
        # Whatever stands in a bundle is trusted, as it is by the other clients of such servers, and not only where it
        # is signed by itself.
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        for certificate in authorities:
            store.add_cert(crypto.X509.from_cryptography(certificate))
    if client is not None:
        context.use_certificate(client.chain[0])
        context.use_privatekey(client.key)
        for certificate in client.chain[1:]:
            context.add_extra_chain_cert(certificate)
    return context


@implementer(IOpenSSLClientConnectionCreator)
@frozen
class _Connections:
    """Connections to one host, each with the certificates of its time."""

    _tls: TLS
    _name: str
    _identity: DNS_ID | IPAddress_ID

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._tls.context(), None)
        if isinstance(self._identity, DNS_ID):
            connection.set_tlsext_host_name(self._name.encode("ascii"))
        if self._tls.insecure:
            connection.set_verify(SSL.VERIFY_NONE, lambda *_: True)
        else:
            connection.set_verify(SSL.VERIFY_PEER, _judge(self._name, self._identity, weakref.ref(tlsProtocol)))
        return connection


def _judge(
    name: str, identity: DNS_ID | IPAddress_ID, protocol: Callable[[], TLSMemoryBIOProtocol | None]
) -> Callable[[SSL.Connection, crypto.X509, int, int, int], bool]:
    """
    What OpenSSL asks about each certificate of a chain. What is wrong is told to the protocol, because OpenSSL itself
    only says that something is.

    @param protocol: lets go of it, which has the connection, which has this function.
    """

    def judge(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, good: int) -> bool:
        problem = _problem(error) if not good else _other_name(name, identity, certificate) if depth == 0 else None
        asking = protocol()
        if problem is not None and asking is not None:
            asking.failVerification(Failure(Untrusted(problem)))
        return problem is None

    return judge


def _other_name(name: str, identity: DNS_ID | IPAddress_ID, certificate: crypto.X509) -> str | None:
    try:
        verify_service_identity(extract_patterns(certificate), [identity], [])
    except VerificationError:
        return f"its certificate is for another name than {name}"
    except (CertificateError, ValueError):
        return f"its certificate has no subjectAltName that makes sense, and so is not for {name}"
    return None


_CODES = SSL.X509VerificationCodes
_UNTRUSTED = {
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "it is signed by itself",
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: "the authority that signed it is not",
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: "unable to get issuer certificate",
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "unable to get local issuer certificate",
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: "unable to verify the first certificate",
    _CODES.ERR_CERT_SIGNATURE_FAILURE: "its signature is false",
    _CODES.ERR_INVALID_CA: "the one that signed it is no authority",
    _CODES.ERR_INVALID_PURPOSE: "it is not for servers",
    _CODES.ERR_CERT_CHAIN_TOO_LONG: "its chain is too long",
}


def _problem(code: int) -> str:
    """An error of OpenSSL's verification, by its number (see openssl-verification-options(1))."""
    if code == _CODES.ERR_CERT_HAS_EXPIRED:
        return "its certificate has expired"
    if code == _CODES.ERR_CERT_NOT_YET_VALID:
        return "its certificate is not valid yet"
    return f"its certificate is not trusted: {_UNTRUSTED.get(code, f'error {code} of X.509 verification')}"


@implementer(IAgent)
@define(eq=False)
class FreshAgent:
    """
    Requests on connections that were made with the certificates of now: when these change, those that are kept are no
    longer used.

    @ivar tls: what makes the connections.
    @ivar make: makes an agent that keeps connections, and the function that closes those.
    """

    tls: TLS
    make: Callable[[], tuple[IAgent, Callable[[], object]]]
    _made: tuple[SSL.Context, IAgent, Callable[[], object]] | None = field(default=None, init=False)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        context = self.tls.context()
        if self._made is not None and self._made[0] is not context:
            self._made[2]()
            self._made = None
        if self._made is None:
            self._made = context, *self.make()
        return self._made[1].request(method, uri, headers, bodyProducer)
