"""What the agents of a lab rest on: a claim store, and a Kubernetes API."""

from __future__ import annotations

import json
import socket
import ssl
import time
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field, frozen

from kiwi.model import Address
from tests.fakes.apiserver_process import ADMIN_TOKEN, RealAPIServer
from tests.lab.laboratory import API_PORT, CHECKOUT, CLUSTER, ETCD_PORT, Lab, service
from tests.lab.waiting import wait_until

SERVICES = "/api/v1/namespaces/default/services"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kiwi/leases"

Ask = Callable[..., Any]
Create = Callable[[Mapping[str, Any]], None]


class Servers(Protocol):
    """A claim store and a Kubernetes API of one kind, which several labs may have; and how agents find them."""

    @property
    def name(self) -> str:
        """What to call agents that rest on them, in a table."""

    def start(self, lab: Lab) -> None:
        """Start those of them that the lab does not have yet."""

    def restart(self, lab: Lab) -> None:
        """Start them anew, whatever state a failure left them in; the Services stay."""

    def options(self, lab: Lab) -> Sequence[str]:
        """The options with which an agent finds them."""

    def agents(self, lab: Lab) -> set[str]:
        """The ids of the agents that are known to the claim store."""

    def clear_claims(self, lab: Lab) -> None:
        """Have a claim store that knows nobody."""

    def publish(self, lab: Lab, wanted: Sequence[Address], ports: int = 1) -> None:
        """Have one Service for each address, with so many ports, and no others."""

    def creating(self, lab: Lab) -> AbstractContextManager[Create]:
        """Something that creates a Service at once."""

    def kill_store(self, lab: Lab) -> None:
        """Kill the claim store."""

    def start_store_again(self, lab: Lab) -> float:
        """Start it again with the data that it had; when it answered first."""


def services_of(wanted: Sequence[Address], ports: int) -> list[dict[str, Any]]:
    """One Service for each address."""
    return [
        service(f"web-{number}", [address], [(8000 + port, "TCP") for port in range(ports)])
        for number, address in enumerate(wanted)
    ]


class _InEtcd:
    """Claims in the lab's etcd v2."""

    etcd: str

    def agents(self, lab: Lab) -> set[str]:
        return {key.rpartition("/")[2] for key in lab.cluster.nodes("/kiwi/agents")}

    def clear_claims(self, lab: Lab) -> None:
        lab.cluster.clear_claims()

    def kill_store(self, lab: Lab) -> None:
        assert lab.cluster.etcd is not None
        lab.cluster.etcd.kill()

    def start_store_again(self, lab: Lab) -> float:
        lab.cluster.start_etcd(self.etcd, data=lab.cluster.data)
        return time.monotonic()


@frozen
class Plain(_InEtcd):
    """
    Etcd v2 and the API server of the tests, over plain TCP.

    @ivar etcd: the path of etcd.
    """

    etcd: str
    name = "Kiwi"

    def start(self, lab: Lab) -> None:
        if lab.cluster.etcd is None:
            lab.cluster.start_etcd(self.etcd)
            self._manifests(lab).mkdir()
            self.start_api(lab)

    def restart(self, lab: Lab) -> None:
        for process in (lab.cluster.etcd, lab.cluster.api):
            if process is not None:
                process.kill()
        lab.cluster.start_etcd(self.etcd)
        self.start_api(lab)

    def start_api(self, lab: Lab) -> None:
        """Start an API server, which knows what was published last."""
        lab.cluster.start_api("--watch", str(self._manifests(lab)))

    def options(self, lab: Lab) -> Sequence[str]:
        return lab.agent_options()

    def publish(self, lab: Lab, wanted: Sequence[Address], ports: int = 1) -> None:
        # Unlike those that are created, these outlast the server.
        folder = self._manifests(lab)
        (folder / "new").write_text("\n---\n".join(map(json.dumps, services_of(wanted, ports))))
        (folder / "new").rename(folder / "services.yaml")
        lab.wait_until(
            lambda: len(lab.cluster.services()) == len(wanted), "the API server to read the Services", 60, 0.1
        )

    def creating(self, lab: Lab) -> AbstractContextManager[Create]:
        return nullcontext(lab.cluster.create)

    def _manifests(self, lab: Lab) -> Path:
        return lab.directory / "manifests"


@frozen
class Etcd3(Plain):
    """
    Etcd v3 and the API server of the tests, over plain TCP.

    @ivar firewall: what agents mark traffic with.
    """

    firewall: str = "nftables"
    name = "etcd v3"

    def options(self, lab: Lab) -> Sequence[str]:
        api = f"http://{CLUSTER}:{API_PORT}"
        return [
            *("-s", f"http://{CLUSTER}:{ETCD_PORT}", "-k", api),
            *("--store", "etcd3", "--firewall", self.firewall),
        ]

    def agents(self, lab: Lab) -> set[str]:
        found = self._ask(lab, "range", **below("/kiwi/agents/"), keys_only=True).get("kvs", [])
        return {b64decode(each["key"]).decode().rpartition("/")[2] for each in found}

    def clear_claims(self, lab: Lab) -> None:
        self._ask(lab, "deleterange", **below("/kiwi/"))

    def _ask(self, lab: Lab, what: str, **body: Any) -> Mapping[str, Any]:
        found: Mapping[str, Any] = lab.client.request("POST", CLUSTER, ETCD_PORT, f"/v3/kv/{what}", body).json()
        return found


def below(prefix: str) -> Mapping[str, str]:
    """The keys that begin with a prefix, as etcd v3 is asked for them."""
    last = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    return {"key": b64encode(prefix.encode()).decode(), "range_end": b64encode(last.encode()).decode()}


@contextmanager
def asking(server: RealAPIServer) -> Iterator[Ask]:
    """Requests of the admin as L{RealAPIServer.ask} has them, but all on one connection, which is much faster."""
    connection = HTTPConnection(str(server.address), server.port, timeout=60)
    plain = server.place.connect(server.address, server.port, 10)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with closing(connection), closing(plain):
        plain.settimeout(60)
        context = ssl.create_default_context(cafile=str(server.ca_file))
        connection.sock = context.wrap_socket(plain, server_hostname=str(server.address))

        def ask(method: str, path: str, body: Any = None) -> Any:
            headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            answer = response.read()
            assert response.status < 300, f"{method} {path}: {response.status} {answer.decode(errors='replace')}"
            return json.loads(answer)

        yield ask


def set_up(server: RealAPIServer, nodes: Sequence[str]) -> None:
    """Give a new API server the service account of C{deploy/} with its rights, and some Nodes."""
    for name in ("base/namespace.yaml", "base/account.yaml", "leases.yaml"):
        server.kubectl("apply", "-f", str(CHECKOUT / "deploy" / name))
    with asking(server) as ask:
        for node in nodes:
            ask("POST", "/api/v1/nodes", {"metadata": {"name": node}})
    token = account_token(server)
    wait_until(lambda: is_served(server, token), "the service account to be let in", 30, interval=0.05)


def account_token(server: RealAPIServer) -> str:
    """A token of that service account."""
    return server.service_account_token("kiwi", "kiwi")


def is_served(server: RealAPIServer, token: str) -> bool:
    """Whether an agent with a token is answered what it asks about claims."""
    try:
        return server.request("GET", f"{LEASES}?limit=1", token=token, limit=1.0).status == 200
    except OSError:
        return False


def known_agents(server: RealAPIServer) -> set[str]:
    """The ids of the agents that have a Lease."""
    items = server.ask("GET", LEASES)["items"]
    return {item["spec"]["holderIdentity"] for item in items if item["metadata"]["name"].startswith("agent.")}


def put_services(server: RealAPIServer, definitions: Sequence[Mapping[str, Any]]) -> None:
    """Have these Services in the namespace C{default}, and no others."""

    def about(definition: Mapping[str, Any]) -> Any:
        spec = definition["spec"]
        return spec.get("externalIPs"), [port["port"] for port in spec["ports"]]

    wanted = {definition["metadata"]["name"]: definition for definition in definitions}
    with asking(server) as ask:
        there = {item["metadata"]["name"]: about(item) for item in ask("GET", SERVICES)["items"]}
        # Kubernetes' own would be made anew.
        del there["kubernetes"]
        for name, what in there.items():
            if name not in wanted or about(wanted[name]) != what:
                ask("DELETE", f"{SERVICES}/{name}")
            else:
                del wanted[name]
        for definition in wanted.values():
            ask("POST", SERVICES, definition)


class _Secure(ABC):
    """
    A real API server, over TLS, of which agents ask with a token of the service account that C{deploy/} makes, and with
    its rights.
    """

    def start(self, lab: Lab) -> None:
        if lab.cluster.kubernetes is None:
            set_up(lab.cluster.start_kube_apiserver(), [host.name for host in lab.hosts])

    def restart(self, lab: Lab) -> None:
        server = self.server(lab)
        server.thaw()
        server.restart()

    @staticmethod
    def server(lab: Lab) -> RealAPIServer:
        assert lab.cluster.kubernetes is not None
        return lab.cluster.kubernetes

    def options(self, lab: Lab) -> Sequence[str]:
        server = self.server(lab)
        return ["--kubeconfig", str(server.kubeconfig(token=account_token(server))), *self.store_options()]

    @abstractmethod
    def store_options(self) -> Sequence[str]:
        """The options that say where claims are."""

    def publish(self, lab: Lab, wanted: Sequence[Address], ports: int = 1) -> None:
        put_services(self.server(lab), services_of(wanted, ports))

    @contextmanager
    def creating(self, lab: Lab) -> Iterator[Create]:
        with asking(self.server(lab)) as ask:

            def create(definition: Mapping[str, Any]) -> None:
                ask("POST", SERVICES, definition)

            yield create


@define
class Leases(_Secure):
    """A real API server, in which the claims are, too."""

    name = "Leases"
    _token: str = field(default="", init=False, eq=False)

    def store_options(self) -> Sequence[str]:
        return ["--store", "kubernetes"]

    def agents(self, lab: Lab) -> set[str]:
        return known_agents(self.server(lab))

    def clear_claims(self, lab: Lab) -> None:
        self.server(lab).ask("DELETE", LEASES)

    def kill_store(self, lab: Lab) -> None:
        self._token = account_token(self.server(lab))
        self.server(lab).kill()

    def start_store_again(self, lab: Lab) -> float:
        server = self.server(lab)
        server.start(wait=False)
        lab.wait_until(lambda: is_served(server, self._token), "the API server to answer agents again", 60, 0.02)
        return time.monotonic()


@frozen
class Etcd2(_InEtcd, _Secure):
    """
    Etcd v2 over plain TCP, and a real API server for everything else.

    @ivar etcd: the path of etcd.
    """

    etcd: str
    name = "etcd v2"

    def start(self, lab: Lab) -> None:
        super().start(lab)
        if lab.cluster.etcd is None:
            lab.cluster.start_etcd(self.etcd)

    def restart(self, lab: Lab) -> None:
        super().restart(lab)
        if lab.cluster.etcd is not None:
            lab.cluster.etcd.kill()
        lab.cluster.start_etcd(self.etcd)

    def store_options(self) -> Sequence[str]:
        return ["--store", "etcd2", "--etcd-endpoint", f"http://{CLUSTER}:{ETCD_PORT}"]
