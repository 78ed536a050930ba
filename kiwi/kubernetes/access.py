"""Where the API server is, how to speak to it, and what to show: from settings, environment and files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from kiwi.files import File, Rotating, Source, Unusable
from kiwi.http import basic
from kiwi.logs import printable
from kiwi.settings import Settings
from kiwi.tls import TLS, Certificates, ClientCertificate, certificates, client_certificate
from kiwi.urls import server_url

from .credentials import CredentialsError, FixedHeaders, ICredentials, NoCredentials, TokenFile, bearer
from .kubeconfig import Cluster, Kubeconfig, KubeconfigError, User, read
from .plugins import PluginCredentials
from .processes import Command, Finished
from .reading import quoted

DEFAULT_ENDPOINT = "http://localhost:8080"

SERVICE_ACCOUNT = "var/run/secrets/kubernetes.io/serviceaccount"
"""
Where a Pod has its token and the certificates of its API server, below the root folder (the page "Accessing the
Kubernetes API from a Pod").
"""


class AccessError(Exception):
    """There is no way to an API server as things stand. The text is one printable line that says what to do."""


@frozen
class Access:
    """
    The way to an API server.

    @ivar endpoint: its URL.
    @ivar source: what says so, in words.
    @ivar credentials: what to show with each request.
    @ivar tls: how to make connections; C{None} for plain HTTP.
    @ivar warnings: what an operator should know about it, a line each.
    @ivar is_personal: it comes with who this agent is there: from a kubeconfig, or from the Pod that it is.
    """

    endpoint: str
    source: str
    credentials: ICredentials = field(factory=NoCredentials)
    tls: TLS | None = None
    warnings: tuple[str, ...] = ()
    is_personal: bool = False


def find_access(
    chosen: Settings,
    environment: Mapping[str, str],
    run: Callable[[Command], Deferred[Finished]],
    clock: IReactorTime,
    now: Callable[[], float],
    root: str = "/",
) -> Access:
    """
    The way to the API server: C{--kube-endpoint}, or else C{--kubeconfig}, or else C{KUBECONFIG}, or else that of the
    Pod that this is, or else the one on this host. Raises L{AccessError}. No command is run, and nobody is asked.

    @param run: runs a command later on, for credentials.
    @param now: the time of day, in seconds since the epoch.
    @param root: the folder in which a Pod's files are.
    """
    paths = [chosen.kubeconfig] if chosen.kubeconfig else environment.get("KUBECONFIG", "").split(os.pathsep)
    paths = [os.path.abspath(path) for path in paths if path]
    try:
        if chosen.kube_endpoint is None and paths:
            return _of_kubeconfig(
                _kubeconfig(paths, chosen.context, one=chosen.kubeconfig is not None), environment, run, clock, now
            )
        if chosen.context is not None:
            raise AccessError(
                f"--context: {quoted(chosen.context)}: there is no kubeconfig that it is in; "
                "give --kubeconfig FILE, without --kube-endpoint"
            )
        if chosen.kube_endpoint is not None:
            return Access(chosen.kube_endpoint, "as --kube-endpoint says", tls=_tls(Cluster(chosen.kube_endpoint)))
        host, folder = environment.get("KUBERNETES_SERVICE_HOST"), os.path.join(root, SERVICE_ACCOUNT)
        if host and os.path.exists(os.path.join(folder, "token")):
            return _of_pod(host, environment.get("KUBERNETES_SERVICE_PORT") or "443", folder, clock)
        return Access(DEFAULT_ENDPOINT, "the default")
    except (CredentialsError, KubeconfigError, Unusable) as error:
        raise AccessError(str(error)) from None


def _kubeconfig(paths: Sequence[str], context: str | None, one: bool) -> Kubeconfig:
    """
    @param one: whether this is one file that must be there. Of several, some may be missing.
    """
    documents = [(path, data) for path in paths if (data := _contents(path)) is not None]
    if not documents:
        source = "--kubeconfig" if one else "KUBECONFIG"
        missing = " or ".join(map(printable, paths))
        raise AccessError(f"{source}: there is no file {missing}; give a kubeconfig that there is")
    return read(documents, context)


def _contents(path: str) -> bytes | None:
    try:
        return File(path).read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AccessError(f"{printable(path)}: {error.strerror}; give a kubeconfig that can be read") from None


def _of_kubeconfig(
    config: Kubeconfig,
    environment: Mapping[str, str],
    run: Callable[[Command], Deferred[Finished]],
    clock: IReactorTime,
    now: Callable[[], float],
) -> Access:
    cluster, user = config.cluster, config.user
    source = f"as context {quoted(config.context)} of {printable(config.path)} says"
    if urlsplit(cluster.server).scheme != "https":
        warning = f"{cluster.server} is not https: the credentials in {printable(config.user_path)} are not sent to it"
        return Access(cluster.server, source, warnings=() if user == User() else (warning,), is_personal=True)
    client = _client(user, clock.seconds)
    credentials: ICredentials
    if user.exec is not None:
        place = f"{printable(config.user_path)}: exec"
        credentials = plugin = PluginCredentials(user.exec, cluster, place, run, clock, now, environment)
        tls = _tls(cluster, clock.seconds, lambda: plugin.certificate() or client())
    else:
        credentials = _credentials(user, clock.seconds)
        tls = _tls(cluster, clock.seconds, client)
    warning = (
        f"the certificate of {cluster.server} is NOT checked (insecure-skip-tls-verify): whoever answers there is "
        "believed, and is shown the credentials"
    )
    warnings = (warning,) if cluster.insecure else ()
    return Access(cluster.server, source, credentials, tls, warnings, is_personal=True)


def _of_pod(host: str, port: str, folder: str, clock: IReactorTime) -> Access:
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    try:
        endpoint = server_url(url, ["https"])
    except ValueError as error:
        raise AccessError(f"KUBERNETES_SERVICE_HOST and _PORT: {quoted(url)}: {error}") from None
    token = TokenFile(os.path.join(folder, "token"), clock.seconds)
    token.check()
    cluster = Cluster(endpoint, File(os.path.join(folder, "ca.crt")))
    tls = _tls(cluster, clock.seconds)
    return Access(endpoint, "as the service account of this Pod", token, tls, is_personal=True)


def _credentials(user: User, seconds: Callable[[], float]) -> ICredentials:
    if user.token_file is not None:
        file = TokenFile(user.token_file, seconds)
        file.check()
        return file
    if user.token is not None:
        return FixedHeaders(bearer(user.token))
    if user.username is not None:
        return FixedHeaders(basic(user.username, user.password))
    return NoCredentials()


def _client(user: User, seconds: Callable[[], float]) -> Callable[[], ClientCertificate | None]:
    if user.certificate is None or user.key is None:
        return lambda: None
    return Rotating([user.certificate, user.key], client_certificate, seconds).current


def _tls(
    cluster: Cluster,
    seconds: Callable[[], float] = lambda: 0.0,
    client: Callable[[], ClientCertificate | None] = lambda: None,
) -> TLS | None:
    """C{None} for plain HTTP. Everything is read once. Raises L{Unusable} and L{AccessError}."""
    parts = urlsplit(cluster.server)
    if parts.scheme != "https":
        return None
    tls = TLS(_authorities(cluster.authority, seconds), client, cluster.server_name, cluster.insecure)
    host = parts.hostname or ""
    try:
        tls.creatorForNetloc(host.encode("ascii"), parts.port or 443)
        tls.context()
    except ValueError:
        name = cluster.server_name or host
        raise AccessError(f"{cluster.server}: no certificate can be for {quoted(name)}; give another name") from None
    return tls


def _authorities(source: Source | None, seconds: Callable[[], float]) -> Callable[[], Certificates | None]:
    return Rotating([source], certificates, seconds).current if source is not None else lambda: None
