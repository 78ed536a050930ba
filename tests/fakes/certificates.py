"""A certificate authority of the tests' own."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from ipaddress import ip_address

from attrs import field, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = datetime.timedelta(days=1)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key in SEC 1 and PEM, the only form of such a key that is good for C{--service-account-key-file}."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


@frozen
class Pair:
    """A certificate and its private key, each in PEM."""

    certificate: bytes
    key: bytes


def _name(common: str, organizations: Iterable[str] = ()) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations),
        ]
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@frozen
class Authority:
    """
    Issues certificates that are valid for a day. They pass the strict checks of Python 3.13 and later.

    @ivar name: its common name.
    """

    name: str = "Tests"
    _key: ec.EllipticCurvePrivateKey = field(factory=new_key, repr=False)

    def certificate(self) -> bytes:
        """Its own certificate, in PEM."""
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        return (
            self._builder(_name(self.name), self._key.public_key())
            .add_extension(x509.BasicConstraints(True, None), True)
            .add_extension(usage, True)
            .sign(self._key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )

    def for_server(self, names: Iterable[str]) -> Pair:
        """For a server that is reached by these host names and IP addresses."""
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
        return self._issue(_name("server"), ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def for_client(self, user: str, groups: Iterable[str] = ()) -> Pair:
        """For a client that Kubernetes is to know as this user of these groups."""
        return self._issue(_name(user, groups), ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(self, subject: x509.Name, usage: x509.ObjectIdentifier, *extensions: x509.ExtensionType) -> Pair:
        key = new_key()
        builder = self._builder(subject, key.public_key())
        for extension in (x509.ExtendedKeyUsage([usage]), *extensions):
            builder = builder.add_extension(extension, False)
        return Pair(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM), key_pem(key))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        issuer = self._key.public_key()
        return (
            x509.CertificateBuilder(_name(self.name), subject, key, x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), False)
        )
