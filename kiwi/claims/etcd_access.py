"""How to get into etcd: certificates and passwords, from settings, environment and files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import TypeVar
from urllib.parse import urlsplit

from attrs import frozen

from kiwi.files import File, Rotating, Unusable
from kiwi.logs import logger, printable
from kiwi.settings import PASSWORD, Settings
from kiwi.tls import TLS, Certificates, ClientCertificate, certificates, client_certificate

from .etcd_user import EtcdUser

T = TypeVar("T")


class EtcdAccessError(Exception):
    """There is no way into etcd as things stand. The text is one printable line that says what to do."""


@frozen
class EtcdAccess:
    """
    The way into etcd.

    @ivar tls: how to make connections; C{None} where all endpoints are plain HTTP.
    @ivar user: who asks, where that is not for a certificate to say.
    @ivar warnings: what an operator should know about it, a line each.
    """

    tls: TLS | None = None
    user: EtcdUser | None = None
    warnings: tuple[str, ...] = ()


def find_etcd_access(chosen: Settings, environment: Mapping[str, str], seconds: Callable[[], float]) -> EtcdAccess:
    """
    The way into etcd. Everything is read once; what stands in files is read again when these change. Raises
    L{EtcdAccessError}. Nobody is asked.

    @param seconds: the time.
    """
    user = _user(chosen, environment, seconds)
    return EtcdAccess(_tls(chosen, seconds), user, tuple(_warnings(chosen)))


def _tls(chosen: Settings, seconds: Callable[[], float]) -> TLS | None:
    secure = [urlsplit(url) for url in chosen.etcd_endpoints if url.startswith("https://")]
    if not secure:
        return None
    authorities: Callable[[], Certificates | None] = lambda: None  # noqa: E731
    client: Callable[[], ClientCertificate | None] = lambda: None  # noqa: E731
    if chosen.etcd_ca is not None:
        authorities = _checked("--etcd-ca", [chosen.etcd_ca], certificates, seconds, "a file with certificates in PEM")
    if chosen.etcd_cert is not None and chosen.etcd_key is not None:
        paths = [chosen.etcd_cert, chosen.etcd_key]
        client = _checked(
            "--etcd-cert and --etcd-key", paths, client_certificate, seconds, "a certificate and its key, in PEM"
        )
    tls = TLS(authorities, client)
    for parts in secure:
        host = parts.hostname or ""
        try:
            tls.creatorForNetloc(host.encode("ascii"), parts.port or 443)
        except ValueError:
            raise EtcdAccessError(
                f"--etcd-endpoint: {parts.geturl()!r}: no certificate can be for {host!r}; give another name"
            ) from None
    return tls


def _user(chosen: Settings, environment: Mapping[str, str], seconds: Callable[[], float]) -> EtcdUser | None:
    if chosen.etcd_user is None:
        return None
    if chosen.etcd_password_file is None:
        password = environment[PASSWORD]
        return EtcdUser(chosen.etcd_user, lambda: password)
    current = _checked(
        "--etcd-password-file", [chosen.etcd_password_file], _password, seconds, "a file with the password in it"
    )

    def read_password() -> str:
        try:
            return current()
        except Unusable as error:
            raise ValueError(str(error)) from None

    return EtcdUser(chosen.etcd_user, read_password)


def _checked(
    option: str,
    paths: Sequence[str],
    parse: Callable[[Sequence[bytes]], T],
    seconds: Callable[[], float],
    what: str,
) -> Callable[[], T]:
    """What some files have together, as it is whenever this is called; read once, to see that it is of use."""
    current = Rotating([File(os.path.abspath(path)) for path in paths], parse, seconds, logger("kiwi.claims")).current
    try:
        current()
    except Unusable as error:
        raise EtcdAccessError(f"{option}: {error}; give {what}") from None
    return current


def _password(contents: Sequence[bytes]) -> str:
    """A password, without the end of its line. The errors do not show it."""
    try:
        text = contents[0].decode()
    except UnicodeDecodeError:
        raise ValueError("what is in it is no UTF-8") from None
    password = text.removesuffix("\n").removesuffix("\r")
    if not password:
        raise ValueError("it is empty")
    if not password.isprintable():
        raise ValueError("it has more than one line of printable characters")
    return password


def _warnings(chosen: Settings) -> list[str]:
    found = []
    if chosen.etcd_user is not None:
        found = [
            f"the password of etcd's user {printable(chosen.etcd_user)} goes to {url} unencrypted: whoever is between "
            "can read it; give https endpoints"
            for url in chosen.etcd_endpoints
            if url.startswith("http://") and not _is_loopback(urlsplit(url).hostname or "")
        ]
    if chosen.etcd_password_file is not None and os.stat(chosen.etcd_password_file).st_mode & stat.S_IROTH:
        path = printable(chosen.etcd_password_file)
        found.append(f"{path} has a password and can be read by everybody on this host; see: chmod o= {path}")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
