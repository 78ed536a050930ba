"""Which API server an agent turns to, and how."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from typing import Any

import yaml
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kiwi.connections import http_clients
from kiwi.kubernetes.access import SERVICE_ACCOUNT, Access, AccessError, find_access
from kiwi.kubernetes.api import KubernetesAPI
from kiwi.kubernetes.credentials import ICredentials, NoCredentials
from kiwi.kubernetes.processes import Command, Finished
from kiwi.settings import settings
from tests.fakes.authorities import authority
from tests.test_tls import OverTLS

from .test_credentials import printed

V1 = "client.authentication.k8s.io/v1"


class Places:
    """Files in a folder of their own, and the way to an API server from there."""

    folder: str
    commands: list[Command]
    outputs: list[bytes]

    def write(self, name: str, content: bytes) -> str:
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        return path

    def kubeconfig(self, cluster: Mapping[str, Any], user: Mapping[str, Any], name: str = "kubeconfig") -> str:
        document = {
            "current-context": name,
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        }
        return self.write(name, yaml.safe_dump(document).encode())

    def run_plugin(self, command: Command) -> Deferred[Finished]:
        self.commands.append(command)
        return succeed(Finished(0, self.outputs.pop(0)))

    def found(self, environment: Mapping[str, str] | None = None, **options: str) -> Access:
        chosen = settings({name.replace("_", "-"): value for name, value in options.items()}, {}, "node-1")
        return find_access(chosen, environment or {}, self.run_plugin, Clock(), lambda: 0.0, self.folder)


class AccessTests(Places, SynchronousTestCase):
    def setUp(self) -> None:
        self.commands = []
        self.folder = os.path.abspath(self.mktemp())
        self.authority = authority("authority")
        self.one = self.kubeconfig({"server": "https://one:6443"}, {"token": "one"}, "one")
        self.two = self.kubeconfig({"server": "https://two:6443"}, {"token": "two"}, "two")
        self.pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}

    def service_account(self) -> None:
        self.write(f"{SERVICE_ACCOUNT}/token", b"of the Pod".replace(b" ", b"-"))
        self.write(f"{SERVICE_ACCOUNT}/ca.crt", self.authority.pem)

    def shown(self, credentials: ICredentials) -> str | None:
        return self.successResultOf(credentials.headers()).get("Authorization")

    def summary(self, environment: Mapping[str, str] | None = None, **options: str) -> tuple[str, str, str | None]:
        """Where it is, what says so, and what is shown there."""
        access = self.found(environment, **options)
        self.assertEqual(access.tls is not None, access.endpoint.startswith("https"))
        self.assertEqual(access.warnings, ())
        return access.endpoint, access.source, self.shown(access.credentials)

    def problem(self, environment: Mapping[str, str] | None = None, **options: str) -> str:
        text = str(self.assertRaises(AccessError, self.found, environment, **options))
        self.assertEqual(len(text.splitlines()), 1)
        return text.replace(self.folder, "FOLDER")

    def test_order(self) -> None:
        """What is given comes first, then what the environment names, then the Pod, then this host."""
        one = ("https://one:6443", f"as context 'one' of {self.one} says", "Bearer one")
        two = ("https://two:6443", f"as context 'two' of {self.two} says", "Bearer two")
        everything = {"KUBECONFIG": self.one, **self.pod}
        self.assertEqual(
            self.summary(everything, kube_endpoint="https://kube/"), ("https://kube", "as --kube-endpoint says", None)
        )
        self.assertEqual(self.summary(everything, kubeconfig=self.two), two)
        self.assertEqual(self.summary(everything), one)
        self.assertEqual(self.summary(self.pod), ("http://localhost:8080", "the default", None))
        self.service_account()
        self.assertEqual(
            self.summary(self.pod),
            ("https://10.0.0.1:443", "as the service account of this Pod", "Bearer of-the-Pod"),
        )
        self.assertEqual(self.summary(everything), one)
        self.assertEqual(self.summary({"KUBECONFIG": ""}), ("http://localhost:8080", "the default", None))

    def test_plain(self) -> None:
        """An endpoint in plain HTTP is as good as ever."""
        self.assertEqual(
            self.found(kube_endpoint="http://kube:8080"), Access("http://kube:8080", "as --kube-endpoint says")
        )

    def test_context(self) -> None:
        """A context is that of the kubeconfig, given or in the environment."""
        both = os.pathsep.join([self.one, self.two])
        self.assertEqual(self.summary({"KUBECONFIG": both}, context="two")[2], "Bearer two")
        self.assertIn("there is no context 'two'", self.problem(kubeconfig=self.one, context="two"))
        for environment, options in [({}, {}), (self.pod, {}), ({"KUBECONFIG": both}, {"kube_endpoint": "http://k"})]:
            self.assertEqual(
                self.problem(environment, context="two", **options),
                "--context: 'two': there is no kubeconfig that it is in; "
                "give --kubeconfig FILE, without --kube-endpoint",
            )

    def test_missing(self) -> None:
        """Of several files some may be missing, but not all; the only one may not."""
        nowhere = os.path.join(self.folder, "nowhere")
        self.assertEqual(self.summary({"KUBECONFIG": f"{nowhere}::{self.one}"})[2], "Bearer one")
        self.assertEqual(
            self.problem({"KUBECONFIG": f"{nowhere}:{nowhere}2"}),
            "KUBECONFIG: there is no file FOLDER/nowhere or FOLDER/nowhere2; give a kubeconfig that there is",
        )
        self.assertEqual(
            self.problem(kubeconfig=nowhere),
            "--kubeconfig: there is no file FOLDER/nowhere; give a kubeconfig that there is",
        )
        self.assertEqual(
            self.problem(kubeconfig=self.folder), "FOLDER: Is a directory; give a kubeconfig that can be read"
        )

    def test_pod(self) -> None:
        """A Pod's server may have an IPv6 address; what is missing or wrong is told."""
        self.service_account()
        self.assertEqual(
            self.summary({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"})[0],
            "https://[fd00::1]:6443",
        )
        self.assertIn("give https://HOST:PORT", self.problem({"KUBERNETES_SERVICE_HOST": "a b"}))
        os.remove(os.path.join(self.folder, SERVICE_ACCOUNT, "ca.crt"))
        self.assertEqual(self.problem(self.pod), f"FOLDER/{SERVICE_ACCOUNT}/ca.crt: No such file or directory")
        self.write(f"{SERVICE_ACCOUNT}/token", b"")
        self.assertIn(f"FOLDER/{SERVICE_ACCOUNT}/token: it is no token", self.problem(self.pod))

    def test_users(self) -> None:
        """Each kind of user shows what it has."""
        path = self.write("token", b"of-a-file")
        for user, shown in [
            ({}, None),
            ({"token": "abc"}, "Bearer abc"),
            ({"token": "abc", "tokenFile": "token"}, "Bearer of-a-file"),
            ({"tokenFile": path}, "Bearer of-a-file"),
            ({"username": "me", "password": "abc"}, "Basic bWU6YWJj"),
        ]:
            access = self.found(kubeconfig=self.kubeconfig({"server": "https://k"}, user))
            self.assertEqual(self.shown(access.credentials), shown)

    def test_unusable(self) -> None:
        """Files that cannot be used are told of at once."""
        for cluster, user, problem in [
            ({"certificate-authority": "ca"}, {}, "FOLDER/ca: No such file or directory"),
            ({"certificate-authority": "one"}, {}, "FOLDER/one: there are no certificates in PEM"),
            ({}, {"tokenFile": "token"}, "FOLDER/token: No such file or directory"),
            (
                {},
                {"client-certificate": "one", "client-key": "one"},
                "FOLDER/one and FOLDER/one: there are no certificates in PEM",
            ),
            ({"tls-server-name": "a..b:c"}, {}, "https://k: no certificate can be for 'a..b:c'; give another name"),
        ]:
            path = self.kubeconfig({"server": "https://k", **cluster}, user)
            self.assertEqual(self.problem(kubeconfig=path), problem)

    def test_insecure(self) -> None:
        """Who does not check a server is warned."""
        path = self.kubeconfig({"server": "https://k", "insecure-skip-tls-verify": True}, {})
        (warning,) = self.found(kubeconfig=path).warnings
        self.assertIn("the certificate of https://k is NOT checked (insecure-skip-tls-verify)", warning)

    def test_secrets_in_plain(self) -> None:
        """No secret is sent in plain HTTP, and that is told."""
        access = self.found(kubeconfig=self.kubeconfig({"server": "http://k"}, {"token": "abc"}))
        self.assertEqual((access.credentials, access.tls), (NoCredentials(), None))
        self.assertEqual(
            access.warnings,
            (f"http://k is not https: the credentials in {self.folder}/kubeconfig are not sent to it",),
        )
        self.assertEqual(self.found(kubeconfig=self.kubeconfig({"server": "http://k"}, {})).warnings, ())

    def test_plugin(self) -> None:
        """A plugin is not run before its credentials are asked for."""
        self.outputs = [printed(token="abc")]
        self.write("get", b"#!/bin/sh\n")
        os.chmod(os.path.join(self.folder, "get"), 0o755)
        path = self.kubeconfig({"server": "https://k"}, {"exec": {"apiVersion": V1, "command": "./get"}})
        access = self.found({"A": "b"}, kubeconfig=path)
        self.assertEqual(self.commands, [])
        self.assertEqual(self.shown(access.credentials), "Bearer abc")
        (command,) = self.commands
        self.assertEqual((command.path, command.environment["A"]), (f"{self.folder}/./get", "b"))

    def test_secret(self) -> None:
        """Secrets stay out of what is printed."""
        for user in ({"token": "hush"}, {"username": "me", "password": "hush"}):
            access = self.found(kubeconfig=self.kubeconfig({"server": "https://k"}, user))
            self.shown(access.credentials)
            self.assertNotIn("hush", repr(access))


class SecureTests(Places, OverTLS):
    """All of it against a TLS server that wants a client's certificate."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.commands = []
        self.folder = os.path.abspath(self.mktemp())
        self.clients = authority("clients")
        self.server.show(self.authority.issue("server", "kubernetes.example"), clients=self.clients)
        self.there = {
            "server": f"https://127.0.0.1:{self.port}",
            "certificate-authority": self.write("ca.crt", self.authority.pem),
            "tls-server-name": "kubernetes.example",
        }

    async def answer(self, access: Access) -> Any:
        """What the server was shown, as the client of the API asks it."""
        clients = http_clients(self.reactor, self.pool, access.tls)
        api = KubernetesAPI(*clients, self.reactor, access.endpoint, access.credentials, random.uniform)
        return json.loads((await api.ask("GET", "/api")).body)

    async def test_files(self) -> None:
        """A certificate and a token from files."""
        client = self.clients.issue("agent")
        user = {
            "client-certificate": self.write("tls.crt", client.pem),
            "client-key": self.write("tls.key", client.key_pem),
            "tokenFile": self.write("token", b"abc"),
        }
        self.assertEqual(
            await self.answer(self.found(kubeconfig=self.kubeconfig(self.there, user))),
            {"certificate": "agent", "authorization": "Bearer abc"},
        )

    async def test_plugin(self) -> None:
        """A certificate from a plugin, and another one, on another connection, when that is refused."""
        plugin = {"apiVersion": V1, "command": "/bin/sh"}
        access = self.found(kubeconfig=self.kubeconfig(self.there, {"exec": plugin}))
        self.outputs = [
            printed(clientCertificateData=client.pem.decode(), clientKeyData=client.key_pem.decode())
            for client in (self.clients.issue("first"), self.clients.issue("second"))
        ]
        self.server.refused = {"first"}
        self.assertEqual(await self.answer(access), {"certificate": "second", "authorization": None})
        self.assertEqual(self.server.seen, ["first", "second"])
