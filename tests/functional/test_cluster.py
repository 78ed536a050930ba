"""
Agents in a cluster of today: a real API server with TLS and RBAC, which got C{deploy/}, and claims in its Leases.

Each host has another way into the cluster: C{node1} is in a Pod, C{node2} has a kubeconfig that names the file of a
token, and C{node3} one that names the files of a client certificate. All of them are the service account of C{deploy/}.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Mapping, Sequence
from functools import cache
from ipaddress import IPv4Address
from typing import Any

from attrs import define, field

from kiwi.kubernetes.endpoints import HOST
from kiwi.kubernetes.nodes import EXCLUDED
from kiwi.model import Address, ip
from tests.fakes.apiserver_process import RealAPIServer
from tests.lab.laboratory import CLUSTER, ETCD_PORT, INTERFACE, Host, Lab, service
from tests.lab.processes import Process
from tests.lab.waiting import Impatient
from tests.lab.ways import Volume, WayIn, as_pod, from_environment, with_kubeconfig, write_kubeconfig
from tests.test_deploy import DEPLOY, LEASES, MERGE_PATCH, SLICES, Rule, manifests, rules

from .support import ADDRESS, OTHER, SLACK, AgentTestCase, FailureTestCase, rule, wheel_etcd

NAMESPACE = "kiwi"
MANY = [ADDRESS + number for number in range(10)]
USER = f"system:serviceaccount:{NAMESPACE}:kiwi"
LEASES_PATH = f"/apis/{LEASES}/v1/namespaces/{{}}/leases"
SERVICES_PATH = "/api/v1/namespaces/{}/services/"
RBAC = "rbac.authorization.k8s.io"
ROLES = [each for name in ("base/account.yaml", "leases.yaml") for each in manifests(name) if "rules" in each]


@cache
def secure_lab() -> Lab:
    """A lab with a real API server that got C{deploy/}, which lives until the process ends."""
    lab = Lab().open()
    try:
        deploy(lab.cluster.start_kube_apiserver())
    except BaseException:
        lab.close()
        raise
    return lab


def deploy(server: RealAPIServer) -> None:
    """Give a server what of C{deploy/} agents need that are started in another way."""
    for name in ("base/namespace.yaml", "base/account.yaml", "leases.yaml"):
        server.kubectl("apply", "-f", str(DEPLOY / name))


def local(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A Service whose addresses are carried only where it has an endpoint."""
    return {**definition, "spec": {**definition["spec"], "type": "LoadBalancer", "externalTrafficPolicy": "Local"}}


def node(name: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A Node."""
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels or {}}}


def on_node(version: str, name: str) -> dict[str, Any]:
    """What an endpoint of a version of the API says of the Node that it is on."""
    return {"topology": {HOST: name}} if version.endswith("beta1") else {"nodeName": name}


class ClusterTestCase(AgentTestCase):
    """
    A test with that lab.

    @ivar server: its API server.
    @ivar volume: what the kubelet mounts: the token of the service account, and the authorities of the API server.
    @ivar pair: the certificate of the agent of C{node3}, and its key.
    @ivar authorities: the file in which it has the authorities of the API server.
    @ivar ways: how each agent gets into the cluster, by host.
    """

    def setUp(self) -> None:
        super().setUp()
        folder = self.lab.directory
        self.volume = Volume(folder / "serviceaccount")
        self.pair, self.authorities = (folder / "client.crt", folder / "client.key"), folder / "authorities.crt"
        self.give_token(self.server.ca_file.read_bytes())
        self.give_certificate(self.server.ca_file.read_bytes())
        files = {"client-certificate": str(self.pair[0]), "client-key": str(self.pair[1])}
        token, certificate = folder / "kubeconfig-token", folder / "kubeconfig-certificate"
        write_kubeconfig(token, self.volume.folder / "ca.crt", {"tokenFile": str(self.volume.folder / "token")})
        write_kubeconfig(certificate, self.authorities, files)
        self.ways = {
            "node1": as_pod(self.volume),
            "node2": with_kubeconfig(token),
            "node3": from_environment(certificate),
        }

    @property
    def server(self) -> RealAPIServer:
        server = self.lab.cluster.kubernetes
        assert server is not None
        return server

    def give_token(self, authorities: bytes) -> None:
        """Mount a new token, and these certificates of authorities."""
        token = self.server.service_account_token(NAMESPACE, "kiwi")
        self.volume.put({"token": token.encode(), "ca.crt": authorities})

    def give_certificate(self, authorities: bytes) -> None:
        """Write a new client certificate, and these certificates of authorities."""
        pair = self.server.authority.for_client(USER)
        for path, content in zip(
            (*self.pair, self.authorities), (pair.certificate, pair.key, authorities), strict=True
        ):
            path.write_bytes(content)

    # What the suite's own cases ask for.

    def open_lab(self) -> Lab:
        return secure_lab()

    def forget_lab(self) -> None:
        secure_lab.cache_clear()

    def clear(self) -> None:
        if not self.server.is_running:
            self.server.start()
        for item in self.server.ask("GET", "/api/v1/services")["items"]:
            # This one is the server's own.
            if item["metadata"]["name"] != "kubernetes":
                self.server.ask(
                    "DELETE", SERVICES_PATH.format(item["metadata"]["namespace"]) + item["metadata"]["name"]
                )
        for path in (LEASES_PATH.format(NAMESPACE), "/api/v1/nodes"):
            self.server.ask("DELETE", path)

    def start_agent(self, host: Host, *options: str, store_port: int = ETCD_PORT) -> Process:
        return self.start_kiwi(host, self.ways[host.name], "-r", "192.168.1.0/24", *options)

    def start_kiwi(self, host: Host, way: WayIn, *options: str) -> Process:
        chosen = ["--interface", INTERFACE, *way.options, *options]
        return host.start(f"kiwi-{host.name}", [*way.before, *self.lab.kiwi, *chosen], way.environment)

    def create(self, definition: Mapping[str, Any]) -> None:
        self.server.kubectl("create", "-f", "-", input=json.dumps(definition))

    def apply(self, *definitions: Mapping[str, Any]) -> None:
        """Have C{kubectl} make the cluster have these."""
        everything = {"apiVersion": "v1", "kind": "List", "items": definitions}
        self.server.kubectl("apply", "-f", "-", input=json.dumps(everything))

    def endpoints(self, name: str, nodes: Sequence[str], namespace: str = "default") -> dict[str, Any]:
        """An EndpointSlice of a Service that has one ready endpoint on each of these Nodes."""
        (group,) = (group for group in self.server.ask("GET", "/apis")["groups"] if group["name"] == SLICES)
        version = group["preferredVersion"]["groupVersion"]
        return {
            "apiVersion": version,
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], **on_node(version, name)} for name in nodes],
        }

    def leases(self, namespace: str = NAMESPACE) -> dict[str, dict[str, Any]]:
        """What each Lease of a namespace says, by its name."""
        items = self.server.ask("GET", LEASES_PATH.format(namespace))["items"]
        return {item["metadata"]["name"]: item["spec"] for item in items}

    def claims(self, namespace: str = NAMESPACE) -> dict[Address, str]:
        return {ip(name): spec["holderIdentity"] for name, spec in self.leases(namespace).items() if name[0].isdigit()}

    def known_agents(self) -> set[str]:
        return {name.removeprefix("agent.") for name in self.leases() if name.startswith("agent.")}

    def shown(self) -> dict[str, str]:
        """Who holds each Lease, as C{kubectl get leases} prints it, but for that which names the store."""
        heading, *lines = self.server.kubectl("get", "leases", "-n", NAMESPACE).splitlines()
        self.assertEqual(heading.split(), ["NAME", "HOLDER", "AGE"])
        return {name: holder for name, holder, *_ in map(str.split, lines) if name != "history"}

    def wait_for_heartbeats(self) -> None:
        """Wait until every agent has confirmed its claims anew."""
        before = self.leases()

        def confirmed() -> bool:
            now = self.leases()
            return all(
                now[name]["renewTime"] != spec["renewTime"]
                for name, spec in before.items()
                if name.startswith("agent.")
            )

        self.lab.wait_until(confirmed, "all agents to confirm their claims", 30, 0.1)


class SecureFailureTestCase(FailureTestCase, ClusterTestCase):
    """An address that one of three such agents carries, and a client that pings it."""

    def wait_for_sight(self, times: int) -> None:
        """Wait until every agent has found the server so many times: once more after each time that it was away."""

        def found() -> bool:
            return all(len(self.lines(agent, "following the claims")) >= times for agent in self.agents.values())

        self.lab.wait_until(found, "all agents to find the server", 30)

    def assert_nothing_moved(self) -> None:
        """No ping is lost, and the address is where it was."""
        self.assert_none_lost(self.pinger)
        (carriage,) = self.lab.ears.carriages(ADDRESS)
        self.assertEqual((carriage.host, carriage.until), (self.carrier.name, None))
        self.assertEqual(self.claims()[ADDRESS], self.carrier.name)


class ServiceTests(ClusterTestCase):
    """The way of a Service."""

    def setUp(self) -> None:
        super().setUp()
        self.agents = self.start_agents()
        self.serve()

    def carrier_of(self, address: Address) -> Host:
        """Wait until a host carries the address and a client is answered there; that host."""
        carrier = self.lab.wait_for_carrier(address)
        self.lab.wait_until(lambda: self.lab.client.who_answers(address) == carrier.name, f"{carrier.name} to answer")
        return carrier

    def test_external_ip(self) -> None:
        """It is carried by one host, which C{kubectl get leases} names; it changes, and goes."""
        for name, words in (
            ("node1", "as the service account of this Pod"),
            ("node2", "kubeconfig-token says"),
            ("node3", "kubeconfig-certificate says"),
        ):
            self.wait_for_line(self.agents[name], self.server.endpoint, words)

        self.create(service("web", [ADDRESS]))
        carrier = self.carrier_of(ADDRESS)
        self.wait_for_marks(carrier, rule())
        self.assertEqual({heard.mac for heard in self.lab.ears.said(ADDRESS)}, {carrier.mac()})
        agents = {f"agent.{host.name}": host.name for host in self.lab.hosts}
        self.assertEqual(self.shown(), {**agents, str(ADDRESS): carrier.name})

        changed = service("web", [OTHER], [(8080, "TCP"), (53, "UDP")])
        self.server.kubectl("patch", "service", "web", "-p", json.dumps({"spec": changed["spec"]}))
        another = self.carrier_of(OTHER)
        self.wait_for_marks(another, rule(address=OTHER), rule(53, "udp", address=OTHER))
        self.wait_for_nobody(ADDRESS)
        self.assertEqual(self.shown(), {**agents, str(OTHER): another.name})

        self.server.kubectl("delete", "service", "web")
        self.wait_for_nobody(OTHER)
        for host in self.lab.hosts:
            self.wait_for_no_rule(host)
        self.assertEqual(self.shown(), agents)

    def test_load_balancer(self) -> None:
        """What somebody writes into its status is carried, and given back when it is taken out again."""
        balanced = service("web", [])
        balanced["spec"] = {**balanced["spec"], "type": "LoadBalancer"}
        self.create(balanced)
        self.balance([ADDRESS])
        carrier = self.carrier_of(ADDRESS)
        self.wait_for_marks(carrier, rule())
        self.balance([OTHER])
        self.carrier_of(OTHER)
        self.wait_for_nobody(ADDRESS)
        self.balance([])
        self.wait_for_nobody(OTHER)

    def test_local_endpoints_and_nodes(self) -> None:
        """
        With C{externalTrafficPolicy: Local} it is carried where there is an endpoint, and moves when that does; and it
        is carried by no Node that is excluded or has gone.
        """
        self.apply(*(node(host.name) for host in self.lab.hosts), self.endpoints("web", ["node2"]))
        self.create(local(service("web", [ADDRESS])))
        self.wait_for_move("node2")
        self.apply(self.endpoints("web", ["node3"]))
        self.wait_for_move("node3")
        self.apply(self.endpoints("web", ["node1", "node3"]))
        self.server.kubectl("label", "node", "node3", f"{EXCLUDED}=")
        self.wait_for_move("node1")
        self.apply(self.endpoints("web", ["node1", "node2"]))
        self.server.kubectl("delete", "node", "node1")
        self.wait_for_move("node2")
        self.assert_one_carrier_at_a_time(ADDRESS)
        self.apply(self.endpoints("web", []))
        self.wait_for_nobody(ADDRESS)

    def wait_for_move(self, name: str) -> None:
        self.lab.wait_until(lambda: self.lab.ears.having(ADDRESS) == [name], f"{name} to carry it")
        self.lab.wait_until(lambda: self.claims() == {ADDRESS: name}, f"{name} to have the claim")

    def balance(self, addresses: Sequence[Address]) -> None:
        """Write C{status.loadBalancer} as a controller does."""
        status = {"loadBalancer": {"ingress": [{"ip": str(address)} for address in addresses]}}
        path = SERVICES_PATH.format("default") + "web/status"
        reply = self.server.request("PATCH", path, {"status": status}, content_type=MERGE_PATCH)
        self.assertEqual(reply.status, 200)


class CarrierTests(SecureFailureTestCase):
    """The agent that carries the address goes, in order or not."""

    ttl = 3

    def test_leaving(self) -> None:
        """Told to go, it hands over, and leaves nothing; and it has needed nothing that it may not do."""
        agent = self.carrying
        self.assertEqual(agent.terminate(), -signal.SIGTERM)
        another = self.wait_for_another()
        self.assert_one_carrier_at_a_time(ADDRESS)
        agents = {f"agent.{host.name}": host.name for host in self.others()}
        self.assertEqual(self.shown(), {**agents, str(ADDRESS): another.name})
        self.assert_untouched(self.carrier)
        self.assertEqual([line for each in self.agents.values() for line in self.lines(each, "does not let")], [])

    def test_killed_and_started_again(self) -> None:
        """It is back within a TTL, with a new process: nobody notices."""
        self.wait_for_heartbeat()
        self.carrying.kill()
        again = self.agents[self.carrier.name] = self.start_agent(self.carrier, *self.options)
        self.wait_for_line(again, str(ADDRESS), "adopted")
        self.wait_for_heartbeats()
        self.assert_nothing_moved()

    def test_host_dies(self) -> None:
        """It is dead and unplugged: another host serves the client within a TTL and a bit."""
        failed = time.monotonic()
        self.carrying.kill()
        self.carrier.cut()
        another = self.assert_taken_over(failed, self.ttl + 0.75)
        self.lab.wait_until(lambda: self.claims() == {ADDRESS: another.name}, f"{another.name} to claim it")
        self.assertNotIn(self.carrier.name, self.known_agents())


class ServerDownTests(SecureFailureTestCase):
    """The API server is gone for longer than a TTL."""

    ttl = 3

    def test_gone_for_long(self) -> None:
        """Within a TTL nobody has the address any more; when the server is back it is where it was, at once."""
        failed = time.monotonic()
        self.server.kill()
        self.lab.wait_until(lambda: not self.lab.ears.having(ADDRESS), "the address to go")
        (carriage,) = self.lab.ears.carriages(ADDRESS)
        assert carriage.until is not None
        self.assertLess(carriage.until - failed, self.ttl)
        self.stays_true(lambda: not self.lab.ears.having(ADDRESS), failed + self.ttl + 1 - time.monotonic())
        self.server.start()
        back = time.monotonic()
        self.assertIs(self.lab.wait_for_carrier(ADDRESS), self.carrier)
        _, again = self.lab.ears.carriages(ADDRESS)
        self.assertLess(again.since - back, 2 + SLACK)
        self.pinger.wait_for_reply(again.since)
        self.wait_for_heartbeats()
        self.assertEqual(self.lab.ears.carriages(ADDRESS), [carriage, again])
        self.assertEqual(self.claims(), {ADDRESS: self.carrier.name})


class UnnoticedTests(SecureFailureTestCase):
    """What happens to the server within a TTL, and to what it and the agents show each other, is noticed by nobody."""

    ttl = 20

    def test_restart_and_compaction(self) -> None:
        """The server is killed, and started again with its data; then all versions from before are too old."""
        self.server.kill()
        for agent in self.agents.values():
            self.wait_for_line(agent, "lost sight of the claims")
        self.server.start()
        self.wait_for_sight(2)
        self.server.forget()
        self.wait_for_sight(3)
        self.assert_still_works()

    def test_rotation(self) -> None:
        """The server gets new certificates, also from another authority; and the agents new tokens and certificates."""
        server, authorities = self.server, self.server.ca_file.read_bytes
        server.rotate_certificate()
        self.wait_for_sight(2)

        server.add_authority()
        self.give_token(authorities())
        self.give_certificate(authorities())
        server.rotate_certificate()
        self.wait_for_sight(3)

        token = (self.volume.folder / "token").read_text()
        server.drop_authorities()
        self.give_certificate(authorities())
        server.rotate_service_account_key()
        self.assertEqual(server.request("GET", LEASES_PATH.format(NAMESPACE), token=token).status, 401)
        self.give_token(authorities())
        self.wait_for_sight(4)
        self.assert_still_works()

    def assert_still_works(self) -> None:
        """Nothing has moved; claims are confirmed, and agents see what changes from now on."""
        self.wait_for_heartbeats()
        self.create(service("other", [OTHER]))
        other = self.lab.wait_for_carrier(OTHER)
        self.assertEqual(self.claims(), {ADDRESS: self.carrier.name, OTHER: other.name})
        self.assert_nothing_moved()


class MistakeTests(ClusterTestCase):
    """The first agent was given another claim store than the others, by mistake."""

    ttl = 3

    def setUp(self) -> None:
        super().setUp()
        self.mistaken, *self.right = self.lab.hosts
        self.agents: dict[str, Process] = {}

    def start(self, hosts: Sequence[Host], *options: str) -> None:
        """Start an agent on each of these hosts, and wait until it follows Services and claims."""
        started = {host.name: self.start_agent(host, "--ttl", str(self.ttl), *options) for host in hosts}
        for agent in started.values():
            self.wait_for_line(agent, "following the claims")
            self.wait_for_line(agent, "following Services")
        self.agents.update(started)

    def is_refused(self, address: Address) -> bool:
        """
        Whether one host has the address, and an agent with another store has asked for it and says who has it.
        """
        carriers = [host for host in self.lab.hosts if host.name in self.lab.ears.having(address)]
        if len(carriers) != 1:
            return False
        strangers = self.right if carriers == [self.mistaken] else [self.mistaken]
        words = (f"{address}: refused, for another machine, with the MAC address {carriers[0].mac()}, has it",)
        return any(self.lines(self.agents[host.name], *words) for host in strangers)

    def test_another_namespace(self) -> None:
        """It is refused what one of the others carries."""
        namespace = self.server.new_namespace()
        self.allow(namespace)
        self.start(self.right)
        self.create(service("web", [ADDRESS]))
        self.lab.wait_for_carrier(ADDRESS)
        self.start([self.mistaken], "--lease-namespace", namespace)
        self.lab.wait_until(lambda: self.is_refused(ADDRESS), "the refusal")
        self.assertEqual(len(self.lab.ears.carriages(ADDRESS)), 1)

    def allow(self, namespace: str) -> None:
        """Let agents keep Leases in this namespace, too."""
        role, binding = (
            {**each, "metadata": {"name": "kiwi", "namespace": namespace}} for each in manifests("leases.yaml")
        )
        for each in (role, binding):
            self.server.kubectl("create", "-f", "-", input=json.dumps(each))

    def test_etcd(self) -> None:
        """Where both try at the same moment, and neither has the address yet, one lets go."""
        etcd = self.lab.cluster.start_etcd(wheel_etcd())
        self.addCleanup(etcd.kill)
        self.start(self.right)
        self.start([self.mistaken], "--store", "etcd2", "-s", f"http://{CLUSTER}:{ETCD_PORT}")
        # Agents that are new wait for each other, and these would not do so for equally long.
        time.sleep(2)
        self.create(service("web", MANY))

        self.lab.wait_until(lambda: all(map(self.is_refused, MANY)), "one carrier of each address", 30, 0.2)


FIRST, SECOND, LOCAL = "first", "second", "local"

Claimed = frozenset[str]
NOTHING: Claimed = frozenset()
BEFORE, AFTER = frozenset([FIRST, LOCAL]), frozenset([SECOND])

WELL = (BEFORE, AFTER, NOTHING)
"""
Which Services' addresses an agent claims that lacks nothing: at first; when another one is wanted instead of the first,
and the last local endpoint of the other one has gone; and when its Node is excluded.
"""

WITHOUT: Mapping[Rule, tuple[Claimed, Claimed, Claimed]] = {
    ("list", "", "services"): (NOTHING, NOTHING, NOTHING),
    ("list", "", "nodes"): (BEFORE, AFTER, AFTER),
    ("list", SLICES, "endpointslices"): (frozenset([FIRST]), AFTER, NOTHING),
    # It hears of all changes, but late.
    **{("watch", group, name): WELL for group, name in (("", "services"), ("", "nodes"), (SLICES, "endpointslices"))},
    **{(verb, LEASES, "leases"): (NOTHING, NOTHING, NOTHING) for verb in ("get", "list", "watch", "create")},
    # What it could claim ends by itself, and then it cannot claim anything again, nor delete what is there.
    ("update", LEASES, "leases"): (BEFORE, BEFORE, BEFORE),
    # It takes addresses off its interface, and cannot give the claims back.
    ("delete", LEASES, "leases"): (BEFORE, BEFORE | AFTER, BEFORE | AFTER),
}
"""What one claims that lacks one permission."""


@define(eq=False)
class World:
    """
    An agent with a namespace, a service account, a Node and addresses of its own.

    @ivar missing: what its roles lack.
    @ivar namespace: also the names of its Node and its agent.
    @ivar first: the first of its four addresses.
    """

    missing: Rule | None
    namespace: str
    first: Address
    agent: Process = field(init=False)

    def address(self, name: str) -> Address:
        return self.first + [FIRST, SECOND, LOCAL].index(name)

    def service(self, name: str) -> dict[str, Any]:
        return service(name, [self.address(name)], namespace=self.namespace)


class PermissionTests(ClusterTestCase):
    """Each permission of C{deploy/} is needed."""

    def setUp(self) -> None:
        """Agents that touch nothing, so that a host can have several."""
        super().setUp()
        lacks = sorted(frozenset().union(*(rules(role["rules"]) for role in ROLES)))
        first = IPv4Address("192.168.1.128")
        self.worlds = [
            World(missing, self.server.new_namespace(), first + 4 * number)
            for number, missing in enumerate([None, *lacks])
        ]
        for world in self.worlds:
            self.grant(world)
        self.apply(
            *(node(world.namespace) for world in self.worlds),
            *(self.endpoints(LOCAL, [world.namespace], world.namespace) for world in self.worlds),
            *(world.service(FIRST) for world in self.worlds),
            *(local(world.service(LOCAL)) for world in self.worlds),
        )
        for number, world in enumerate(self.worlds):
            world.agent = self.start_in(world, self.lab.hosts[number % len(self.lab.hosts)])

    def grant(self, world: World) -> None:
        """Make a service account that may do all that is in the roles of C{deploy/}, but for what is missing."""
        ask, name = self.server.ask, world.namespace
        ask("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "kiwi"}})
        subject = {"kind": "ServiceAccount", "name": "kiwi", "namespace": name}
        for role in ROLES:
            kind = role["kind"]
            granted = [
                {"verbs": [verb], "apiGroups": [group], "resources": [resource]}
                for verb, group, resource in sorted(rules(role["rules"]) - {world.missing})
            ]
            reference = {"apiGroup": RBAC, "kind": kind, "name": name}
            scope = "" if kind == "ClusterRole" else f"/namespaces/{name}"
            path = f"/apis/{RBAC}/v1{scope}/{kind.lower()}"
            ask("POST", f"{path}s", {"metadata": {"name": name}, "rules": granted})
            ask("POST", f"{path}bindings", {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]})

    def start_in(self, world: World, host: Host) -> Process:
        user = {"token": self.server.service_account_token(world.namespace, "kiwi")}
        kubeconfig = self.lab.directory / f"kubeconfig-{world.namespace}"
        write_kubeconfig(kubeconfig, self.server.ca_file, user)
        options = ("--no-driver", "--ttl", "3", "--reconnect-interval", "1", "-r", f"{world.first}/30")
        names = ("--agent-id", world.namespace, "--lease-namespace", world.namespace)
        return self.start_kiwi(host, with_kubeconfig(kubeconfig), *options, *names)

    def claimed(self, world: World) -> Claimed:
        """The Services whose addresses are claimed."""
        claims = self.claims(world.namespace)
        return frozenset(name for name in (FIRST, SECOND, LOCAL) if world.address(name) in claims)

    def wait_for_stage(self, stage: int) -> None:
        """Wait until each has claimed what it claims at that stage."""

        def strange() -> dict[Rule | None, Claimed]:
            claimed = {world.missing: self.claimed(world) for world in self.worlds}
            return {
                missing: names
                for missing, names in claimed.items()
                if names != (WITHOUT[missing] if missing else WELL)[stage]
            }

        with contextlib.suppress(Impatient):
            self.lab.wait_until(lambda: not strange(), f"stage {stage}", 40, 0.1)
        self.assertEqual(strange(), {})

    def wait_for_complaint(self, world: World) -> None:
        """Wait until the agent says what it lacks."""
        assert world.missing is not None
        verb, group, resource = world.missing
        where = f" in namespace {world.namespace}" if group == LEASES else ""
        self.wait_for_line(world.agent, f"it does not let this agent {verb} {resource}{where} (status 403", limit=30)

    def test_each_is_needed(self) -> None:
        """Without any one of them something does not work, and the agent says which one it lacks."""
        well, *lacking = self.worlds
        self.assertEqual(WITHOUT.keys(), {world.missing for world in lacking})
        self.wait_for_stage(0)
        for world in lacking:
            if world.missing == ("update", LEASES, "leases"):
                self.wait_for_line(world.agent, "letting go, for the claim store has not confirmed the claim")

        self.apply(
            *(world.service(SECOND) for world in self.worlds),
            *(self.endpoints(LOCAL, [], world.namespace) for world in self.worlds),
        )
        for world in self.worlds:
            self.server.ask("DELETE", SERVICES_PATH.format(world.namespace) + FIRST)
        self.wait_for_stage(1)

        self.apply(*(node(world.namespace, {EXCLUDED: ""}) for world in self.worlds))
        self.wait_for_stage(2)

        self.assertEqual(self.lines(well.agent, "does not let"), [])
        for world in lacking:
            self.wait_for_complaint(world)
