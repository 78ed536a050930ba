"""
Exec credential plugins: commands that print what to show to an API server.

The protocol is that of the pages "Client Authentication (v1)" and "(v1beta1)" in the reference of Kubernetes.
"""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from kiwi.logs import logger, printable
from kiwi.tls import ClientCertificate, client_certificate

from .credentials import CredentialsError, ICredentials, bearer
from .decoding import Nonsense, parse
from .kubeconfig import Cluster, Exec
from .processes import Command, Finished
from .reading import quoted

RUN_TIMEOUT = 60.0
"""Seconds that a plugin may take: it may ask others over the network."""

MARGIN = 60.0
"""Seconds before the end of credentials at which new ones are got, or a tenth of their life if that is shorter."""

REST = 1.0
"""Seconds after a failure in which it is not tried again, however many requests ask for it."""


@frozen
class Answer:
    """
    What a plugin printed.

    @ivar expires: in seconds since the epoch; C{None} if never.
    """

    headers: Mapping[str, str] = field(repr=False)
    certificate: ClientCertificate | None = None
    expires: float | None = None


def question(plugin: Exec, cluster: Cluster) -> str:
    """
    The C{ExecCredential} for C{KUBERNETES_EXEC_INFO}. Raises L{CredentialsError} where the cluster's certificates
    cannot be read.
    """
    spec: dict[str, Any] = {"interactive": False}
    if plugin.cluster_info:
        spec["cluster"] = _described(cluster)
    return json.dumps({"kind": "ExecCredential", "apiVersion": plugin.api_version, "spec": spec})


def _described(cluster: Cluster) -> Mapping[str, Any]:
    described: dict[str, Any] = {"server": cluster.server}
    if cluster.server_name is not None:
        described["tls-server-name"] = cluster.server_name
    if cluster.insecure:
        described["insecure-skip-tls-verify"] = True
    if cluster.authority is not None:
        try:
            described["certificate-authority-data"] = b64encode(cluster.authority.read()).decode()
        except OSError as error:
            raise CredentialsError(f"{cluster.authority}: {printable(error.strerror or error)}") from None
    if cluster.exec_config is not None:
        described["config"] = json.loads(cluster.exec_config)
    return described


def decode(output: bytes, version: str) -> Answer:
    """
    What a plugin printed, which must be of this version. Raises L{ValueError}, which finishes the sentence "It printed
    something else than credentials:", and has nothing of what was printed where that may be secret.
    """
    document = parse(output)
    if isinstance(document, Nonsense):
        raise ValueError("it is no JSON object")
    if document.get("kind") != "ExecCredential" or document.get("apiVersion") != version:
        raise ValueError(f"it is no ExecCredential of {version}")
    status = document.get("status")
    if not isinstance(status, dict):
        raise ValueError("it has no status")
    token, certificate, key, expires = (
        _text(status, name) for name in ("token", "clientCertificateData", "clientKeyData", "expirationTimestamp")
    )
    if bool(certificate) != bool(key):
        raise ValueError("there is only one of clientCertificateData and clientKeyData")
    if not token and not certificate:
        raise ValueError("there is neither a token nor a certificate")
    return Answer(
        bearer(token) if token else {},
        client_certificate([certificate.encode(), key.encode()]) if certificate else None,
        _moment(expires) if expires else None,
    )


def _text(status: Mapping[str, Any], name: str) -> str:
    value = status.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not value.isascii():
        raise ValueError(f"{name} is not plain text")
    return value


def _moment(text: str) -> float:
    """Seconds since the epoch (RFC 3339)."""
    whole = re.fullmatch(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.\d+)?(?:[Zz]|([+-]\d\d:\d\d))", text)
    if whole is None:
        raise ValueError(f"expirationTimestamp is no time: {quoted(text)}")
    date, time, zone = whole.groups()
    try:
        return datetime.fromisoformat(f"{date}T{time}{zone or '+00:00'}").timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"expirationTimestamp is no time: {quoted(text)}") from None


@implementer(ICredentials)
@define(eq=False)
class PluginCredentials:
    """
    The credentials that a plugin prints, until they run out. One run at a time serves all who wait.

    @ivar plugin: what to run.
    @ivar cluster: what for.
    @ivar place: where the plugin is named, in words.
    @ivar run: runs a command.
    @ivar now: the time of day in seconds since the epoch, which the plugin goes by, too.
    @ivar environment: that of this process.
    """

    plugin: Exec
    cluster: Cluster
    place: str
    run: Callable[[Command], Deferred[Finished]]
    clock: IReactorTime
    now: Callable[[], float]
    environment: Mapping[str, str] = field(repr=False)
    _answer: Answer | None = field(default=None, init=False)
    _renew_at: float | None = field(default=None, init=False)
    _certificate: ClientCertificate | None = field(default=None, init=False)
    _failure: CredentialsError | None = field(default=None, init=False)
    _rest_until: float = field(default=0.0, init=False)
    _running: Deferred[None] | None = field(default=None, init=False)
    _waiting: list[Deferred[Mapping[str, str]]] = field(factory=list, init=False)

    log = logger("kiwi.kubernetes")

    def headers(self) -> Deferred[Mapping[str, str]]:
        """Cancelling the last one that waits for a run kills that."""
        if self._running is None:
            if self._answer is not None and (self._renew_at is None or self.now() < self._renew_at):
                return succeed(self._answer.headers)
            if self._failure is not None and self.clock.seconds() < self._rest_until:
                return self._without_run(self._failure)
        waiting: Deferred[Mapping[str, str]] = Deferred(self._leave)
        self._waiting.append(waiting)
        if self._running is None:
            self._start()
        return waiting

    def refused(self) -> None:
        # A run that is under way brings others: who is refused meanwhile was so for what was before it.
        self._answer = None

    def certificate(self) -> ClientCertificate | None:
        """The certificate to show with what L{headers} gave last."""
        return self._certificate

    def _leave(self, waiting: Deferred[Mapping[str, str]]) -> None:
        self._waiting.remove(waiting)
        if not self._waiting and self._running is not None:
            self._running.cancel()

    def _start(self) -> None:
        running = Deferred.fromCoroutine(self._renew())
        if not running.called:
            self._running = running

    async def _renew(self) -> None:
        try:
            answer = await self._ask()
        except CancelledError:
            self._running = None
        except CredentialsError as error:
            self._failed(error)
        else:
            self._succeeded(answer)

    def _succeeded(self, answer: Answer) -> None:
        self._answer, self._failure = answer, None
        self._certificate = answer.certificate
        now = self.now()
        self._renew_at = None
        if answer.expires is not None:
            self._renew_at = answer.expires - min(MARGIN, max(0.0, answer.expires - now) / 10)
        for waiting in self._ended():
            waiting.callback(answer.headers)

    def _failed(self, error: CredentialsError) -> None:
        if self._answer is not None and self._failure is None:
            self.log.warn("{error}; what it printed before is used until that runs out", error=str(error))
        self._failure = error
        self._rest_until = self.clock.seconds() + REST
        for waiting in self._ended():
            self._without_run(error).chainDeferred(waiting)

    def _without_run(self, error: CredentialsError) -> Deferred[Mapping[str, str]]:
        """What was there before, while that lasts."""
        answer = self._answer
        if answer is not None and (answer.expires is None or self.now() < answer.expires):
            return succeed(answer.headers)
        return fail(error)

    def _ended(self) -> list[Deferred[Mapping[str, str]]]:
        waiting, self._waiting, self._running = self._waiting, [], None
        return waiting

    async def _ask(self) -> Answer:
        environment = {
            **self.environment,
            **self.plugin.environment,
            "KUBERNETES_EXEC_INFO": question(self.plugin, self.cluster),
        }
        path = shutil.which(self.plugin.command, path=environment.get("PATH"))
        if path is None:
            hint = f"; {printable(self.plugin.install_hint)}" if self.plugin.install_hint else "; install it"
            raise self._error(f"there is no such command{hint}")
        try:
            finished = await self.run(Command(path, self.plugin.arguments, environment)).addTimeout(
                RUN_TIMEOUT, self.clock, self._too_slow
            )
        except OSError as error:
            raise self._error(printable(error.strerror or error)) from None
        if finished.status != 0:
            raise self._error(f"it {_end(finished.status)}{_last_words(finished.errors)}")
        try:
            return decode(finished.output, self.plugin.api_version)
        except ValueError as error:
            raise self._error(f"it printed something else than credentials: {error}") from None

    def _too_slow(self, result: object, seconds: float) -> Any:
        raise self._error(f"it printed nothing within {seconds:g} s, and was killed")

    def _error(self, problem: str) -> CredentialsError:
        return CredentialsError(f"{self.place}: {quoted(self.plugin.command)}: {problem}")


def _end(status: int) -> str:
    return f"exited with status {status}" if status > 0 else f"was ended by signal {-status}"


def _last_words(errors: bytes) -> str:
    lines = [line for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    return f": {printable(lines[-1].strip())}" if lines else ""
