"""The command line of C{twistd kiwi} and C{kiwi}: options in, one agent out. The only place that knows the reactor."""

from __future__ import annotations

import atexit
import os
import random
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from attrs import evolve
from treq.client import HTTPClient
from twisted.application.service import IService, Service
from twisted.internet.defer import setDebugging
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.python import usage
from twisted.scripts import twistd
from twisted.web.client import HTTPConnectionPool

from . import __version__
from .agent import Agent
from .backoff import BackoffPolicy
from .claims.etcd2 import Etcd2ClaimStore
from .claims.etcd3 import Etcd3ClaimStore
from .claims.etcd_access import EtcdAccess, EtcdAccessError, find_etcd_access
from .claims.etcd_choice import ChosenEtcd
from .claims.etcd_user import EtcdUser
from .claims.interface import IClaimStore
from .claims.leases import LeaseClaimStore
from .claims.memory import MemoryClaims
from .connections import http_clients
from .converger import LONGEST_WAIT_FOR_STORE
from .kubernetes.access import Access, AccessError, find_access
from .kubernetes.api import KubernetesAPI
from .kubernetes.cluster import ClusterWatch
from .kubernetes.processes import run
from .logs import LogLevel, logger, threshold
from .model import AgentRecord
from .names import NameTaken, take_name
from .network.addresses import NetlinkAddresses, can_administer, default_interface
from .network.announcer import LinkAnnouncer
from .network.firewalls import ChosenFirewall, choose_firewall
from .network.intents import Network
from .network.interface import IFirewall, NetworkError
from .network.listener import LinkListener
from .network.memory import MemoryAddresses, MemoryAnnouncer, MemoryFirewall, MemoryNeighbours
from .network.monitor import NetlinkMonitor
from .network.neighbours import LinkNeighbours
from .network.threads import OneWriter, immediately
from .planning import Terms
from .selection import Attachment
from .settings import BadSetting, Settings, settings

SHORTEST_WAIT = 0.1
CONNECTIONS = 32
ETCD = "etcd"
"""A store of either version of etcd's API, whichever the fleet has."""
ETCD_STORES = (ETCD, "etcd2", "etcd3")


class Options(usage.Options):
    """
    The options of one agent. Each of them is also read from the environment, as C{KIWI_<NAME>}.

    A mistake in them is one line on standard error and exit status 1.
    """

    longdesc = (
        "Gives Kubernetes Services their public IP addresses on plain hosts: claims each address, puts it on the "
        "interface, announces it, and marks its traffic. Every option can also be given as an environment "
        "variable: --etcd-prefix as KIWI_ETCD_PREFIX, and so on; several values are separated by commas."
    )

    optParameters = [
        ["kube-endpoint", "k", None, "Kubernetes API. [default: the Pod's, or http://localhost:8080]"],
        ["kubeconfig", None, None, "File that says where Kubernetes is. [default: the variable KUBECONFIG]"],
        ["context", None, None, "Which part of the kubeconfig. [default: its current-context]"],
        ["kube-api", None, None, "v1, v1beta3, v1beta1, or auto: the newest that is offered. [default: auto]"],
        ["etcd-prefix", "p", None, "Where Kiwi's keys are. [default: /kiwi]"],
        ["etcd-ca", None, None, "Certificates, in PEM, that etcd's must be signed by. [default: the system's]"],
        ["etcd-cert", None, None, "Certificate, in PEM, to show etcd; with --etcd-key. [default: none]"],
        ["etcd-key", None, None, "Its key, in PEM, which may be in the same file."],
        ["etcd-user", None, None, "Who this agent is to etcd; with --etcd-password-file. [default: nobody]"],
        [
            "etcd-password-file",
            None,
            None,
            "File with the user's password. It may also be in the variable KIWI_ETCD_PASSWORD.",
        ],
        [
            "store",
            None,
            None,
            "Claim store: kubernetes (Leases), etcd2, etcd3, memory for a single host, or auto: etcd where an etcd "
            "option is given, kubernetes in a Pod or with a kubeconfig. [default: auto]",
        ],
        ["lease-namespace", None, None, "Where Leases are, with --store kubernetes. [default: kiwi]"],
        ["agent-id", None, None, "Unique among the agents; --id is the same. [default: the host name]"],
        ["node-name", None, None, "Name of this host's Node in Kubernetes. [default: the agent's id]"],
        [
            "sources",
            None,
            None,
            "Where addresses come from: externalIPs, loadBalancer, or both with a comma. [default: both]",
        ],
        [
            "load-balancer-class",
            None,
            None,
            "loadBalancerClass of the Services whose loadBalancer counts. [default: none]",
        ],
        ["ttl", None, None, "Lifetime of a claim in seconds, 3 or more. [default: 10]"],
        ["firewall", None, None, "What marks traffic: iptables, nftables, or none. [default: iptables]"],
        ["fwchain", None, None, "Chain in table mangle, or in nftables' table kiwi. [default: KUBE-PUBLIC]"],
        ["fwmark", None, None, "Mark for traffic to public addresses, or VALUE/MASK. [default: 1]"],
        ["reconnect-interval", None, None, "Longest wait between tries, in seconds. [default: 5]"],
        ["probe-wait", None, None, "Milliseconds for another owner of a new address to speak up. [default: 30]"],
    ]
    optFlags = [
        ["no-driver", "n", "Claim and log, but touch neither interface nor firewall."],
        ["verbose", "v", "Also log each step."],
        ["debug", "d", "Also log where errors inside Kiwi come from."],
    ]

    settings: Settings

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["interface"] = []
        self["cidr-range"] = []
        self["etcd-endpoint"] = []

    def opt_interface(self, value: str) -> None:
        """
        Interface that addresses go to; repeatable, and with the ranges that belong there: em1=192.168.1.0/24,fd00::/64.
        [default: the default route's]
        """
        self["interface"].append(value)

    opt_i = opt_interface

    def opt_cidr_range(self, value: str) -> None:
        """Range of addresses that may be taken; repeatable. [default: the interfaces' ranges, or their subnets]"""
        self["cidr-range"].append(value)

    opt_r = opt_cidr_range

    def opt_etcd_endpoint(self, value: str) -> None:
        """etcd; repeatable: the next one is used when one fails. [default: http://localhost:2379]"""
        self["etcd-endpoint"].append(value)

    opt_s = opt_etcd_endpoint

    def opt_id(self, value: str) -> None:
        """The same as --agent-id."""
        self["agent-id"] = value

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"kiwi {__version__}")
        sys.exit(0)

    def getSynopsis(self) -> str:
        return "Usage: kiwi [options]\n       twistd [twistd's options] kiwi [options]"

    def parseArgs(self, *args: str) -> None:
        if args:
            raise usage.UsageError(f"{args[0]!r} is not an option; see kiwi --help")

    def postOptions(self) -> None:
        try:
            self.settings = settings(self, os.environ, socket.gethostname())
        except BadSetting as error:
            raise usage.UsageError(str(error)) from None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            # twistd would print the whole usage on standard output.
            raise SystemExit(f"kiwi: {error}") from None


def makeService(options: Options) -> IService:
    """One agent, as the options say; raises L{SystemExit} with one line where this host cannot run it."""
    from twisted.internet import reactor

    # Twisted's timers follow the wall clock by default, and deadlines must not jump with it.
    clock: Any = reactor
    clock.seconds = time.monotonic
    # Each connection would be two lines in the log.
    Factory.noisy = False

    chosen = options.settings
    if chosen.debug:
        setDebugging(True)
    if chosen.verbose or chosen.debug:
        threshold.setLogLevelForNamespace("kiwi", LogLevel.debug)
    try:
        access = find_access(chosen, os.environ, partial(run, reactor), clock, time.time)
    except AccessError as error:
        raise SystemExit(f"kiwi: {error}") from None
    store = choose_store(chosen, access)
    try:
        etcd = find_etcd_access(chosen, os.environ, clock.seconds) if store in ETCD_STORES else EtcdAccess()
    except EtcdAccessError as error:
        raise SystemExit(f"kiwi: {error}") from None
    attachments = _checked_interfaces(chosen)
    interfaces = [attachment.interface for attachment in attachments]
    log = logger("kiwi")
    firewall = _chosen_firewall(chosen, lambda line: clock.callFromThread(log.warn, "{line}", line=line))
    if firewall.without_ipv6 is not None:
        attachments = tuple(evolve(attachment, versions=frozenset({4})) for attachment in attachments)
    names = _only_one(chosen, interfaces)
    network, watch_host, watch_neighbours, parts = (
        _network(firewall.firewall, interfaces, reactor) if chosen.driver else _no_network(interfaces)
    )
    to_store = http_clients(reactor, partial(_pool, reactor), etcd.tls)
    to_kubernetes = http_clients(reactor, partial(_pool, reactor), access.tls)
    backoff = _backoff(chosen)
    server = KubernetesAPI(*to_kubernetes, clock, access.endpoint, access.credentials, backoff.uniform)
    log.info(
        "{agent}: Kiwi {version}, on {interface}, for {ranges}, claims in {store}",
        agent=chosen.agent_id,
        version=__version__,
        interface=", ".join(interfaces),
        ranges=", ".join(map(str, chosen.cidr_ranges or [r for each in attachments for r in each.ranges]))
        or "the subnets of the interface",
        store={
            "memory": "memory",
            "kubernetes": f"Leases of Kubernetes in namespace {chosen.lease_namespace}",
            **{
                each: f"{' '.join(chosen.etcd_endpoints)}{chosen.etcd_prefix}, API {version}"
                for each, version in ((ETCD, "v2 or v3"), ("etcd2", "v2"), ("etcd3", "v3"))
            },
        }[store],
    )
    log.info("Kubernetes is at {endpoint} ({source})", endpoint=access.endpoint, source=access.source)
    log.info("Traffic is marked by {firewall}", firewall=firewall.name)
    if firewall.without_ipv6 is not None:
        log.warn("IPv6 addresses are not carried, for they cannot be marked: {reason}", reason=firewall.without_ipv6)
    for warning in (*access.warnings, *etcd.warnings):
        log.warn("{warning}", warning=warning)
    return Agent(
        Terms(_record(chosen), chosen.ttl, chosen.probe_wait),
        attachments,
        chosen.cidr_ranges,
        clock,
        _store(store, chosen, server, *to_store, clock, etcd.user),
        network,
        backoff,
        partial(ClusterWatch, server, backoff, chosen.kube_api, chosen.sources, chosen.node_name, chosen.node_given),
        watch_host,
        watch_neighbours,
        partial(_refused, reactor),
        [_Names(names), *parts],
    )


def _refused(reactor: Any, reason: str) -> None:
    """End the process with a line on standard error and exit status 1. C{twistd} has no way to say that itself."""

    def end() -> None:
        print(f"kiwi: {reason}", file=sys.__stderr__, flush=True)
        sys.stdout.flush()
        os._exit(1)

    atexit.register(end)
    reactor.stop()


def _only_one(chosen: Settings, interfaces: Sequence[str]) -> list[socket.socket]:
    """Take the names of which a host can have only one agent each, for as long as this process lives."""
    names = [("agent-id", chosen.agent_id)]
    if chosen.driver:
        names += [*(("interface", interface) for interface in interfaces), ("fwchain", chosen.fwchain)]
    try:
        return [take_name(option, name) for option, name in names]
    except NameTaken as taken:
        raise SystemExit(f"kiwi: --{taken.kind}: {taken.name!r}: another agent on this host has it already") from None


def _record(chosen: Settings) -> AgentRecord:
    """What this process is. Its place is one boot of one machine, and one network namespace there."""
    with open("/proc/sys/kernel/random/boot_id") as boot_id:
        place = f"{boot_id.read().strip()}/{os.stat('/proc/self/ns/net').st_ino}"
    node = "" if chosen.node_name == chosen.agent_id else chosen.node_name
    return AgentRecord(chosen.agent_id, socket.gethostname(), place, secrets.token_hex(8), node=node)


def _checked_interfaces(chosen: Settings) -> tuple[Attachment, ...]:
    """
    The interfaces to use, on a host that can do what Kiwi asks of it. One that an operator names may appear later.
    """
    attachments = chosen.interfaces
    if not attachments:
        try:
            interface = default_interface()
        except NetworkError as error:
            raise SystemExit(f"kiwi: --interface: {error}; give the interface's name") from None
        if interface is None:
            raise SystemExit("kiwi: --interface: there is no default route to take it from; give the interface's name")
        attachments = (Attachment(interface),)
    if chosen.driver and not can_administer():
        raise SystemExit(
            "kiwi: needs the capabilities NET_ADMIN and NET_RAW to change addresses and firewall; run it as root, "
            "or with --no-driver to only claim and log"
        )
    return attachments


def _chosen_firewall(chosen: Settings, tell: Callable[[str], object]) -> ChosenFirewall:
    """What marks traffic on this host."""
    if not chosen.driver:
        return ChosenFirewall(MemoryFirewall(), "nothing")
    try:
        return choose_firewall(chosen.firewall, chosen.fwchain, chosen.fwmark, tell)
    except NetworkError as error:
        raise SystemExit(f"kiwi: --firewall: {chosen.firewall!r}: {error}") from None


def choose_store(chosen: Settings, access: Access) -> str:
    """
    Which claim store it is: one of those that can be chosen, or L{ETCD}. Raises L{SystemExit} with one line where
    C{auto} finds none.
    """
    if chosen.store != "auto":
        return chosen.store
    if chosen.etcd_is_given:
        return ETCD
    if access.is_personal:
        return "kubernetes"
    raise SystemExit(
        "kiwi: --store: 'auto': this is no Pod, and there is neither a kubeconfig nor an etcd option; give "
        "--kubeconfig FILE, --etcd-endpoint URL, or --store memory on a single host"
    )


def _store(
    store: str,
    chosen: Settings,
    server: KubernetesAPI,
    pooled: HTTPClient,
    unpooled: HTTPClient,
    clock: IReactorTime,
    user: EtcdUser | None,
) -> IClaimStore:
    backoff = evolve(_backoff(chosen), longest=min(LONGEST_WAIT_FOR_STORE, chosen.reconnect_interval))
    if store == "memory":
        return MemoryClaims(clock).store(chosen.agent_id, chosen.ttl)
    if store == "kubernetes":
        return LeaseClaimStore(server, chosen.lease_namespace, chosen.agent_id, chosen.ttl, backoff, time.time)

    def etcd(kind: type[Etcd2ClaimStore] | type[Etcd3ClaimStore]) -> IClaimStore:
        return kind(
            pooled,
            unpooled,
            clock,
            chosen.etcd_endpoints,
            chosen.etcd_prefix,
            chosen.agent_id,
            chosen.ttl,
            backoff,
            user,
        )

    etcd2, etcd3 = partial(etcd, Etcd2ClaimStore), partial(etcd, Etcd3ClaimStore)
    if store == ETCD:
        return ChosenEtcd(
            pooled,
            clock,
            chosen.etcd_endpoints,
            chosen.etcd_prefix,
            chosen.ttl,
            backoff,
            {2: etcd2, 3: etcd3},
            user,
        )
    return etcd2() if store == "etcd2" else etcd3()


def _backoff(chosen: Settings) -> BackoffPolicy:
    return BackoffPolicy(SHORTEST_WAIT, chosen.reconnect_interval, random.uniform)


def _pool(reactor: Any) -> HTTPConnectionPool:
    pool = HTTPConnectionPool(reactor)
    pool.maxPersistentPerHost = CONNECTIONS
    return pool


Watch = Callable[[Callable[..., None]], IService]


class _Names(Service):
    """The names that this agent has taken on its host, until the process ends."""

    def __init__(self, names: Sequence[socket.socket]) -> None:
        self._names = names


class _Threads(Service):
    """The threads in which the host is touched."""

    def __init__(self, *writers: OneWriter) -> None:
        self._writers = writers

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        for writer in self._writers:
            writer.start()

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        for writer in self._writers:
            writer.stop()


def _network(
    firewall: IFirewall, interfaces: Sequence[str], reactor: Any
) -> tuple[Network, Watch, Watch, Sequence[IService]]:
    """This host's own addresses and neighbours, with this firewall."""
    threads = for_addresses, for_firewall, for_probes = [OneWriter(reactor.callFromThread) for _ in range(3)]
    network = Network(
        NetlinkAddresses(interfaces, time.monotonic),
        firewall,
        LinkAnnouncer(time.monotonic),
        LinkNeighbours(time.monotonic),
        for_addresses.call,
        for_firewall.call,
        for_probes.call,
    )
    return network, partial(NetlinkMonitor, reactor), partial(LinkListener, reactor, interfaces), [_Threads(*threads)]


def _no_network(interfaces: Sequence[str]) -> tuple[Network, Watch, Watch, Sequence[IService]]:
    """Providers that only remember, on a host like this one."""
    host = NetlinkAddresses(interfaces, time.monotonic).read()
    network = Network(
        MemoryAddresses.like(host, interfaces, time.monotonic),
        MemoryFirewall(),
        MemoryAnnouncer(time.monotonic),
        MemoryNeighbours(),
        immediately,
        immediately,
        immediately,
    )
    return network, lambda changed: Service(), lambda heard: Service(), []


def main() -> None:
    """The console script C{kiwi}: C{twistd} in the foreground, with this one service."""
    sys.argv[1:] = ["--nodaemon", "--pidfile=", "kiwi", *sys.argv[1:]]
    twistd.run()
