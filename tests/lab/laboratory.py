"""The lab: a LAN with a switch, hosts, a client, and a cluster's etcd and Kubernetes API server."""

from __future__ import annotations

import atexit
import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection
from ipaddress import IPv4Address, IPv6Address
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from attrs import define, field, frozen

from kiwi.model import Address, ip
from tests.fakes.apiserver_process import RealAPIServer

from .clocks import WallClock
from .listening import Ears
from .namespaces import LabError, Namespace, ip_batch, owned_name, sweep
from .pinging import Pinger
from .processes import Process, on_host
from .quorum import Quorum
from .waiting import wait_until

T = TypeVar("T")

CHECKOUT = Path(__file__).resolve().parent.parent.parent
INTERFACE = "em1"
SECOND_INTERFACE = "em2"
ROUTER = IPv4Address("192.168.1.1")
ROUTER6 = IPv6Address("fd00::1")
LAN6, SECOND_LAN6 = IPv6Address("fd00::"), IPv6Address("fd00:0:0:2::")
CLUSTER = IPv4Address("192.168.1.10")
CLIENT = IPv4Address("192.168.1.100")
ETCD_PORT = 2379
PROXY_PORT = 2389
API_PORT = 8080
SECURE_API_PORT = 6443
SECURE_PROXY_PORT = 6444
WEB_PORT = 8080

KIWI_OF_CHECKOUT = (sys.executable, "-c", "import sys; from kiwi.tap import main; sys.exit(main())")
"""What the console script runs, from the checkout's own code."""

IPTABLES = {4: "iptables", 6: "ip6tables"}
"""What marks the traffic of each version of IP."""

_serials = count(1)

_BOTH_WAYS: Sequence[tuple[str, Callable[[IPv4Address, int], Sequence[str]]]] = (
    ("OUTPUT", lambda address, port: ("-d", str(address), "--dport", str(port))),
    ("INPUT", lambda address, port: ("-s", str(address), "--sport", str(port))),
)
"""Chains of iptables, and how each one knows the packets to a port of another machine, or from there."""


@frozen
class Label:
    """
    A public address on a host's interface, as C{ip} tells it: what has a C{:kube} label, or is of IPv6, without a route
    for its prefix, and the source of nothing.

    @ivar lifetime: whole seconds that are left of it.
    """

    address: Address
    prefix: int
    label: str
    lifetime: int


@frozen
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class _NameHandler(http.server.BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        body = f"hello from {self.server.hostname}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class WebServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Stands for kube-proxy and the pods behind it: answers with the name of the host that it runs on."""

    daemon_threads = True
    address_family = socket.AF_INET6  # It takes connections over IPv4, too.

    def __init__(self, namespace: Namespace, hostname: str) -> None:
        self.hostname = hostname
        with namespace.entered():
            super().__init__(("::", WEB_PORT), _NameHandler)
        threading.Thread(target=self.serve_forever, args=(0.02,), name=f"web-{hostname}", daemon=True).start()

    def server_bind(self) -> None:
        # The library's version looks the host's name up, which may take long.
        socketserver.TCPServer.server_bind(self)

    def close(self) -> None:
        self.shutdown()
        self.server_close()


@define(eq=False)
class Host:
    """
    A host on the LAN.

    @ivar name: its host name, and the name of its port on the switch.
    @ivar address: where it is reached, in 192.168.1.0/24 on C{em1}; in fd00::/64 it has the same last number.
    @ivar number: what the switch's namespace calls its namespace.
    """

    name: str
    address: IPv4Address
    namespace: Namespace
    number: int
    _lab: Lab = field(repr=False)
    _web: WebServer | None = field(default=None, repr=False, init=False)

    def command(self, *argv: str) -> list[str]:
        """The command that runs C{argv} on the host, for a process that the lab need not know of."""
        return ["ip", "netns", "exec", self.namespace.name, *argv]

    def run(self, *argv: str, check: bool = True, input: str | None = None) -> str:
        """Run a command on the host and return what it printed on both its outputs."""
        answer = subprocess.run(
            self.command(*argv),
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check and answer.returncode != 0:
            raise LabError(f"{' '.join(argv)} on {self.name}: exit status {answer.returncode}: {answer.stdout}")
        return answer.stdout

    def start(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None, working: Path = CHECKOUT
    ) -> Process:
        """Start a process on the host. The lab ends it at last."""
        return self._lab.start(self, name, argv, environment or {}, working)

    def _shown(self, interface: str = INTERFACE) -> list[dict[str, Any]]:
        (link,) = json.loads(self.run("ip", "-json", "addr", "show", "dev", interface)) or [{"addr_info": []}]
        return [info for info in link["addr_info"] if info["scope"] != "link"]

    def addresses(self) -> set[Address]:
        """All addresses that are on C{em1} now, whoever put them there, but for those that mean nothing elsewhere."""
        return {ip(info["local"]) for info in self._shown()}

    def labels(self, interface: str = INTERFACE) -> list[Label]:
        """The public addresses that are on an interface now."""
        return [
            Label(ip(info["local"]), info["prefixlen"], info.get("label", ""), info["valid_life_time"])
            for info in self._shown(interface)
            if info.get("label", "").endswith(":kube") or (info.get("noprefixroute") and info.get("deprecated"))
        ]

    def carried(self, interface: str = INTERFACE) -> set[Address]:
        """These addresses alone."""
        return {label.address for label in self.labels(interface)}

    def marks(self, version: int = 4) -> list[str]:
        """
        Everything in table C{mangle} that is not a built-in chain's policy, as C{iptables-save} prints it, or
        C{ip6tables-save}.
        """
        return [
            line
            for line in self.run(f"{IPTABLES[version]}-save", "-t", "mangle").splitlines()
            if line.startswith(("-A", ":")) and not line.endswith("ACCEPT [0:0]") and " ACCEPT [" not in line
        ]

    def cut(self) -> None:
        """Pull the cable out at the switch."""
        self._lab.switch.ip([f"link set {self.name} down"])

    def plug(self) -> None:
        """Put the cable back in."""
        self._lab.switch.ip([f"link set {self.name} up"])

    def cut_uplink(self) -> None:
        """Have the switch pass nothing to the host's C{em1} nor from there, while the link itself stays up."""
        self._lab.switch.ip([f"link set {self.name} nomaster"])

    def mend_uplink(self) -> None:
        """Have the switch pass it again."""
        self._lab.switch.ip([f"link set {self.name} master lan"])

    def strand(self) -> None:
        """Have the switch pass on nothing but to and from others that are stranded, while the link itself stays up."""
        self._lab.switch.ip([f"link set {self.name} master island"])

    def cut_second(self) -> None:
        """Pull the cable of C{em2} out at the switch."""
        self._lab.switch.ip([f"link set {self.name}-2 down"])

    def plug_second(self) -> None:
        """Put the cable of C{em2} back in."""
        self._lab.switch.ip([f"link set {self.name}-2 up"])

    def build_on_second(self, name: str, *make: str) -> None:
        """
        Make an interface out of C{em2}, by C{ip link} with each of these, and have it take the place of that one: it
        gets its addresses.

        @raise LabError: where the kernel cannot.
        """
        addresses = [info for info in self._shown(SECOND_INTERFACE) if info["family"] in ("inet", "inet6")]
        self.namespace.ip(
            [
                *(f"link {command}" for command in make),
                f"addr flush dev {SECOND_INTERFACE} scope global",
                *(f"addr add {info['local']}/{info['prefixlen']} dev {name} nodad" for info in addresses),
                f"link set {name} up",
            ]
        )

    def rebuild_second(self) -> None:
        """Undo that."""
        self.delete_second()
        self.make_second()

    def delete_second(self) -> None:
        """Delete the interface C{em2}."""
        self.namespace.ip([f"link delete {SECOND_INTERFACE}"])

    def make_second(self) -> None:
        """Make the interface C{em2} again, with the host's address and a cable, but with another MAC address."""
        self._lab.connect_second(self)

    def mac(self, interface: str = INTERFACE) -> str:
        """The MAC address of an interface."""
        (link,) = json.loads(self.run("ip", "-json", "link", "show", "dev", interface))
        return str(link["address"])

    def neighbour(self, address: Address) -> str | None:
        """The MAC address at which the host believes a neighbour on C{em1} to be."""
        shown = json.loads(self.run("ip", "-json", "neigh", "show", "to", str(address), "dev", INTERFACE) or "[]")
        return next((entry["lladdr"] for entry in shown if "lladdr" in entry), None)

    def block(self, address: IPv4Address, port: int) -> None:
        """Lose whatever the host sends to a TCP port of another one, and whatever comes from there."""
        for chain, direction in _BOTH_WAYS:
            self.run("iptables", "-w", "-A", chain, "-p", "tcp", *direction(address, port), "-j", "DROP")

    def unblock(self, address: IPv4Address, port: int) -> None:
        """Lose it no longer."""
        for chain, direction in _BOTH_WAYS:
            self.run("iptables", "-w", "-D", chain, "-p", "tcp", *direction(address, port), "-j", "DROP")

    def serve(self) -> None:
        """Run the small web server on the host."""
        if self._web is None:
            self._web = WebServer(self.namespace, self.name)

    def connect(self, address: Address, port: int, limit: float = 5.0) -> socket.socket:
        """
        A TCP connection from the host.

        @raise OSError: where it cannot be made.
        """
        with self.namespace.entered():
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(limit)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((str(address), port))
        except BaseException:
            sock.close()
            raise
        return sock

    def request(
        self, method: str, address: Address, port: int, path: str, body: Any = None, limit: float = 5.0
    ) -> Answer:
        """
        One HTTP request from the host; a body is sent as JSON.

        @raise OSError: where no answer comes.
        """
        connection = HTTPConnection(str(address), port, timeout=limit)
        connection.sock = self.connect(address, port, limit)
        with contextlib.closing(connection):
            headers = {"Connection": "close"}
            if body is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return Answer(response.status, response.read())

    def who_answers(self, address: Address) -> str:
        """The name of the host that answers a request of this one to the web server at an address; empty if none."""
        try:
            answer = self.request("GET", address, WEB_PORT, "/", limit=1.0)
        except OSError:
            return ""
        return answer.body.decode().removeprefix("hello from ").strip()

    def ping(self, address: Address, interval: float = 0.002) -> Pinger:
        """Something that sends echo requests from this host, once it is started."""
        return self._lab.keep_pinger(Pinger(self.namespace, address, interval))

    def close(self) -> None:
        """Take the host away, with all that runs on it."""
        if self._web is not None:
            self._web.close()
            self._web = None
        # The kernel takes its time to clean a namespace up; the cable is gone at once.
        with contextlib.suppress(LabError):
            self._lab.switch.ip([f"link delete {self.name}", f"link delete {self.name}-2"])
        self.namespace.destroy()


def _service_path(namespace: str, name: str = "") -> str:
    path = f"/api/v1/namespaces/{namespace}/services"
    return f"{path}/{name}" if name else path


def service(
    name: str,
    addresses: Sequence[Address | str],
    ports: Sequence[tuple[int, str]] = ((8080, "TCP"),),
    namespace: str = "default",
    created: str | None = None,
) -> dict[str, Any]:
    """A Service with C{spec.externalIPs}, as JSON of Kubernetes C{v1}."""
    metadata = {"name": name, "namespace": namespace}
    if created is not None:
        metadata["creationTimestamp"] = created
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": metadata,
        "spec": {
            "ports": [
                {"name": f"p{port}-{protocol.lower()}", "port": port, "protocol": protocol} for port, protocol in ports
            ],
            "selector": {"name": name},
            "externalIPs": [str(address) for address in addresses],
        },
    }


@define(eq=False)
class Cluster:
    """
    The host with etcd and the Kubernetes API server, and what can be asked of them from the client.

    @ivar etcd: the process of etcd, once it is started.
    @ivar data: the folder where etcd keeps what it knows, once it is started.
    @ivar api: the process of the API server, once it is started.
    @ivar kubernetes: the real API server, once it is started.
    @ivar quorum: the etcd of three members on other hosts, once it is started.
    """

    host: Host
    _lab: Lab = field(repr=False)
    etcd: Process | None = field(default=None, init=False)
    data: Path | None = field(default=None, init=False)
    api: Process | None = field(default=None, init=False)
    kubernetes: RealAPIServer | None = field(default=None, init=False)
    quorum: Quorum | None = field(default=None, init=False)

    def start_etcd(self, binary: str, port: int = ETCD_PORT, name: str = "etcd", data: Path | None = None) -> Process:
        """
        Start an etcd that speaks its v2 API, and wait until it does and has elected itself.

        @param data: where an earlier one kept what it knew; it begins with an empty store where this is left out.
        """
        if data is None:
            data = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._lab.directory))
        client, peer = f"http://{CLUSTER}:{port}", f"http://127.0.0.1:{port + 1}"
        process = self.host.start(
            name,
            [
                *(binary, "--enable-v2", "--data-dir", str(data), "--log-level", "warn"),
                *("--listen-client-urls", f"http://0.0.0.0:{port}", "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"default={peer}"),
            ],
        )
        self._lab.wait_until(lambda: self._answers(port, "/v2/keys/?quorum=true"), f"{binary} to answer", 30)
        if port == ETCD_PORT:
            self.etcd, self.data = process, data
        return process

    def start_proxy(self, port: int = PROXY_PORT) -> Process:
        """Start a proxy before etcd, which passes everything on until it is told otherwise, and wait for it."""
        return self._start_proxy(port, f"http://127.0.0.1:{ETCD_PORT}")

    def start_secure_proxy(self, port: int = PROXY_PORT) -> Process:
        """The same before the real API server, with TLS at C{https://192.168.1.10:6444}."""
        assert self.kubernetes is not None
        pair = self.kubernetes.authority.for_server([str(CLUSTER)])
        certificate = self._lab.directory / "proxy.pem"
        certificate.write_bytes(pair.certificate + pair.key)
        return self._start_proxy(
            port,
            self.kubernetes.endpoint,
            *("--authorities", str(self.kubernetes.ca_file)),
            *("--secure", f"0.0.0.0:{SECURE_PROXY_PORT}", "--certificate", str(certificate)),
        )

    def _start_proxy(self, port: int, store: str, *options: str) -> Process:
        command = [sys.executable, "-m", "tests.lab.proxy", "--listen", f"0.0.0.0:{port}", "--store", store]
        process = self.host.start("proxy", [*command, *options])
        self._lab.wait_until(lambda: self._answers(port, "/"), "the proxy to answer", 30)
        return process

    def behave(self, behaviour: str, port: int = PROXY_PORT) -> None:
        """Tell the proxy what is to become of the store's replies from now on; see L{tests.lab.proxy}."""
        answer = self._lab.client.request("PUT", CLUSTER, port, f"/proxy/{behaviour}")
        if answer.status != 200:
            raise LabError(f"the proxy cannot be {behaviour}")

    def fates(self, port: int = PROXY_PORT) -> dict[str, int]:
        """How many replies had which fate so far."""
        return dict(self._lab.client.request("GET", CLUSTER, port, "/proxy").json())

    def start_api(self, *options: str) -> Process:
        """Start the Kubernetes API server of the tests, and wait until it answers."""
        self.api = self.host.start(
            "kubernetes",
            [sys.executable, "-m", "tests.fakes.kubernetes", "--listen", f"0.0.0.0:{API_PORT}", *options],
        )
        self._lab.wait_until(lambda: self._answers(API_PORT, "/api"), "the API server to answer", 30)
        return self.api

    def start_kube_apiserver(self, options: Sequence[str] = ()) -> RealAPIServer:
        """
        Start a real Kubernetes API server at C{https://192.168.1.10:6443}, with an etcd of its own, and wait until it
        answers. The lab ends it at last.

        @param options: further options of C{kube-apiserver}.
        """
        self.kubernetes = RealAPIServer(
            Path(tempfile.mkdtemp(prefix="kube-apiserver-", dir=self._lab.directory)),
            self.host,
            CLUSTER,
            SECURE_API_PORT,
            options=options,
        )
        self.kubernetes.start()
        return self.kubernetes

    def start_quorum(self, binary: str) -> Quorum:
        """Start an etcd of three members, each on a host that is new, and wait until all are healthy."""
        self.quorum = Quorum.start(self._lab, binary)
        return self.quorum

    def processes(self) -> Sequence[Process]:
        """What runs for as long as the lab does, or until a test ends it: etcds, and both kinds of API servers."""
        found = [process for process in (self.etcd, self.api) if process is not None]
        members = self.quorum.processes() if self.quorum else ()
        return [*found, *members, *(self.kubernetes.processes if self.kubernetes else ())]

    def _answers(self, port: int, path: str) -> bool:
        try:
            return self._lab.client.request("GET", CLUSTER, port, path, limit=2.0).status < 500
        except OSError:
            return False

    def _ask_api(self, method: str, path: str, body: Any = None) -> Answer:
        answer = self._lab.client.request(method, CLUSTER, API_PORT, path, body, limit=30.0)
        if answer.status >= 300:
            raise LabError(f"{method} {path}: {answer.status} {answer.body.decode(errors='replace')}")
        return answer

    def create(self, definition: Mapping[str, Any]) -> None:
        """Create a Service of Kubernetes C{v1}."""
        self._ask_api("POST", _service_path(definition["metadata"]["namespace"]), definition)

    def replace(self, definition: Mapping[str, Any]) -> None:
        """Change a Service to this."""
        metadata = definition["metadata"]
        self._ask_api("PUT", _service_path(metadata["namespace"], metadata["name"]), definition)

    def delete(self, name: str, namespace: str = "default") -> None:
        """Delete a Service."""
        self._ask_api("DELETE", _service_path(namespace, name))

    def services(self) -> list[tuple[str, str]]:
        """Namespace and name of every Service that there is."""
        items = self._ask_api("GET", "/api/v1/services").json()["items"]
        return [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in items]

    def nodes(self, path: str = "/kiwi", port: int = ETCD_PORT) -> dict[str, dict[str, Any]]:
        """The nodes of etcd v2 with a value, below a path, by their keys."""
        answer = self._lab.client.request("GET", CLUSTER, port, f"/v2/keys{path}?recursive=true")
        found: dict[str, dict[str, Any]] = {}

        def collect(node: dict[str, Any]) -> None:
            if node.get("dir"):
                for child in node.get("nodes", ()):
                    collect(child)
            else:
                found[node["key"]] = node

        if answer.status == 200:
            collect(answer.json()["node"])
        return found

    def claims(self, prefix: str = "/kiwi") -> dict[Address, str]:
        """Which agent claims each address, as etcd says."""
        folder = f"{prefix}/publicips/"
        return {
            ip(key.removeprefix(folder)): node["value"]
            for key, node in self.nodes(prefix).items()
            if key.startswith(folder)
        }

    def clear(self) -> None:
        """Delete every Service and every key."""
        for namespace, name in self.services():
            self.delete(name, namespace)
        self.clear_claims()

    def clear_claims(self) -> None:
        """Delete every key of Kiwi's."""
        self._lab.client.request("DELETE", CLUSTER, ETCD_PORT, "/v2/keys/kiwi?recursive=true")


@define(eq=False)
class Lab:
    """
    A LAN 192.168.1.0/24 and fd00::/64: a switch that is also the router, some hosts, a client and a cluster. All but
    the switch are also on a second LAN, 192.168.2.0/24 and fd00:0:0:2::/64, by their interface C{em2}. The last number
    of all addresses of a host is the same.

    Everything is gone after L{close}, which also happens when the process exits in any way in which Python can still
    act; the next lab on the machine removes what is left of one that was killed.

    @ivar hosts: C{node1}, C{node2} and so on, from 192.168.1.11 on.
    @ivar client: a host that runs nothing, at 192.168.1.100.
    @ivar cluster: etcd and the Kubernetes API server, at 192.168.1.10.
    @ivar directory: where outputs and data go.
    @ivar ears: hears addresses and ARP; made anew when the hosts are.
    """

    size: int = 3
    kiwi: Sequence[str] = KIWI_OF_CHECKOUT
    hosts: list[Host] = field(factory=list, init=False)
    switch: Namespace = field(init=False)
    client: Host = field(init=False)
    cluster: Cluster = field(init=False)
    directory: Path = field(init=False)
    ears: Ears = field(init=False)
    _serial: int = field(factory=lambda: next(_serials), init=False)
    _added: list[Host] = field(factory=list, init=False)
    _processes: list[Process] = field(factory=list, init=False)
    _pingers: list[Pinger] = field(factory=list, init=False)
    _names: count[int] = field(factory=count, init=False)
    _numbers: count[int] = field(factory=lambda: count(1), init=False)
    _restore: Callable[[], None] = field(default=lambda: None, init=False)
    _opened: bool = field(default=False, init=False)

    def __enter__(self) -> Lab:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Lab:
        """
        Build it.

        @raise LabError: where that is not possible; nothing is left then.
        """
        if os.geteuid() != 0:
            raise LabError("network namespaces can be made by root only")
        sweep()
        self.directory = Path(tempfile.mkdtemp(prefix=owned_name(self._serial, "")))
        self._opened = True
        atexit.register(self.close)
        self._catch_sigterm()
        try:
            self.switch = Namespace(owned_name(self._serial, "switch"))
            ip_batch([f"netns add {self.switch.name}"])
            self.switch.ip(
                [
                    "link add lan type bridge",
                    f"addr add {ROUTER}/24 dev lan",
                    f"addr add {ROUTER6}/64 dev lan nodad",
                    "link set lan up",
                ]
            )
            self.switch.ip(["link add lan2 type bridge", "link set lan2 up"])
            self.switch.ip(["link add island type bridge", "link set island up"])
            self.cluster = Cluster(self._host("cluster", CLUSTER), self)
            self.client = self._host("client", CLIENT)
            self._build_hosts()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End every process and remove everything. It is no error if that was done before."""
        if not self._opened:
            return
        self._opened = False
        atexit.unregister(self.close)
        self._stop_everything()
        staying = [*self._attribute("client"), *(cluster.host for cluster in self._attribute("cluster")), *self._added]
        for host in [*self.hosts, *staying]:
            host.close()
        for switch in self._attribute("switch"):
            switch.destroy()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._restore()

    def renew(self) -> None:
        """End the processes on the hosts and make the hosts new; the client and the cluster stay as they are."""
        staying = {id(process) for process in self.cluster.processes()}
        self._stop_everything(lambda process: id(process) not in staying)
        for host in self.hosts:
            host.close()
        self.hosts = []
        self.client.run("ip", "neigh", "flush", "all")
        self.client.run("ip", "-6", "neigh", "flush", "all")
        self._build_hosts()

    def add_host(self, name: str, address: IPv4Address) -> Host:
        """Another host on the LAN. It is none of L{hosts}, and stays as it is when these are made new."""
        self._added.append(self._host(name, address))
        return self._added[-1]

    def start(
        self, host: Host, name: str, argv: Sequence[str], environment: Mapping[str, str], working: Path
    ) -> Process:
        """Start a process on a host."""
        unique = f"{name}-{next(self._names)}"
        command = on_host(host.namespace.name, host.name, argv)
        process = Process.start(unique, command, self.directory, environment, working)
        self._processes.append(process)
        return process

    def agent_options(self, store_port: int = ETCD_PORT, endpoints: Sequence[str] = ()) -> list[str]:
        """
        The options that every agent of the lab needs to find its cluster; see L{start_agent}. Claims are in etcd v2,
        unless later options say otherwise.
        """
        stores = endpoints or [f"http://{CLUSTER}:{store_port}"]
        found = [word for url in stores for word in ("-s", url)]
        return [*found, "-k", f"http://{CLUSTER}:{API_PORT}", "--store", "etcd2"]

    def start_agent(
        self,
        host: Host,
        *options: str,
        environment: Mapping[str, str] | None = None,
        store_port: int = ETCD_PORT,
        endpoints: Sequence[str] = (),
        clock: WallClock | None = None,
        network: Sequence[str] = ("--interface", INTERFACE, "-r", "192.168.1.0/24", "-r", f"{LAN6}/64"),
    ) -> Process:
        """
        Start C{kiwi --interface em1 -r 192.168.1.0/24 -r fd00::/64} on a host, with further options.

        @param store_port: the port at which it finds the claim store.
        @param endpoints: where it finds the claim store instead, where it is not on the cluster's host.
        @param clock: the wall clock that it has instead of the machine's.
        @param network: the options that say what it may carry, and where.
        """
        chosen = [*network, *self.agent_options(store_port, endpoints), *options]
        command = [*self.kiwi, *chosen]
        return host.start(f"kiwi-{host.name}", clock.command(command) if clock else command, environment)

    def make_clock(self, name: str) -> WallClock:
        """A wall clock for one agent."""
        return WallClock(self.directory / f"{name}-{next(self._names)}.clock")

    def keep_pinger(self, pinger: Pinger) -> Pinger:
        self._pingers.append(pinger)
        return pinger

    def carriers(self, address: Address) -> list[Host]:
        """The hosts that have the address now."""
        return [host for host in self.hosts if address in host.addresses()]

    def wait_until(
        self, condition: Callable[[], T | None], what: str, limit: float = 15.0, interval: float = 0.01
    ) -> T:
        """L{wait_until}, which tells what all processes printed when it was in vain."""
        return wait_until(condition, what, limit, self.story, interval)

    def wait_for_carrier(self, address: Address, limit: float = 20.0) -> Host:
        """Wait until one host has the address; that host."""
        (carrier,) = self.wait_until(lambda: self.carriers(address), f"somebody to carry {address}", limit)
        return carrier

    def story(self) -> str:
        """The end of what every process printed."""
        return "\n".join(process.story() for process in self._processes)

    def _build_hosts(self) -> None:
        for index in range(self.size):
            self.hosts.append(self._host(f"node{index + 1}", IPv4Address("192.168.1.11") + index))
        self.ears = Ears(self.switch, self.client.namespace, {host.number: host.name for host in self.hosts})
        self.ears.start()

    def _host(self, name: str, address: IPv4Address) -> Host:
        namespace = Namespace(owned_name(self._serial, name))
        # A number is not free again as soon as its namespace is gone.
        number = next(self._numbers)
        ip_batch([f"netns add {namespace.name}"])
        self.switch.ip(
            [
                f"netns set {namespace.name} {number}",
                f"link add {name} type veth peer name {INTERFACE} netns {namespace.name}",
                f"link set {name} master lan up",
            ]
        )
        namespace.ip(
            [
                "link set lo up",
                f"addr add {address}/24 dev {INTERFACE}",
                f"addr add {LAN6 + int(address) % 256}/64 dev {INTERFACE} nodad",
                f"link set {INTERFACE} up",
                f"route add default via {ROUTER}",
                f"route add ::/0 via {ROUTER6}",
            ]
        )
        host = Host(name, address, namespace, number, self)
        self.connect_second(host)
        return host

    def connect_second(self, host: Host) -> None:
        """Give a host an interface C{em2}, on the second LAN."""
        self.switch.ip(
            [
                f"link add {host.name}-2 type veth peer name {SECOND_INTERFACE} netns {host.namespace.name}",
                f"link set {host.name}-2 master lan2 up",
            ]
        )
        host.namespace.ip(
            [
                f"addr add {IPv4Address('192.168.2.0') + int(host.address) % 256}/24 dev {SECOND_INTERFACE}",
                f"addr add {SECOND_LAN6 + int(host.address) % 256}/64 dev {SECOND_INTERFACE} nodad",
                f"link set {SECOND_INTERFACE} up",
            ]
        )

    def _stop_everything(self, chosen: Callable[[Process], bool] = lambda _: True) -> None:
        for pinger in self._pingers:
            pinger.stop()
        self._pingers = []
        for ears in self._attribute("ears"):
            ears.stop()
        for process in [process for process in self._processes if chosen(process)]:
            process.kill()
            self._processes.remove(process)

    def _attribute(self, name: str) -> list[Any]:
        """The attribute in a list, or nothing where building never came that far."""
        return [getattr(self, name)] if hasattr(self, name) else []

    def _catch_sigterm(self) -> None:
        """Have SIGTERM end the process the way that runs the exit handlers, where nobody cares for it yet."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return

        def exit_in_order(_number: int, _frame: FrameType | None) -> None:
            raise SystemExit(128 + signal.SIGTERM)

        signal.signal(signal.SIGTERM, exit_in_order)

        def restore() -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        self._restore = restore
