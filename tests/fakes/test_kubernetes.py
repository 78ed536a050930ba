"""The suite of the API server on the fake, in memory and over TCP; and what only the fake can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve
from twisted.trial.unittest import TestCase
from twisted.web.server import Site

from kiwi.http import HTTPError, request

from .kubernetes import ANONYMOUS, Access, KubernetesResource, KubernetesState, service
from .kubernetes.objects import LONGEST_HISTORY
from .kubernetestests import Said, Server, Watch, lease, make_kubernetes_api_tests
from .worlds import ClockWorld, RealWorld, World

TOKENS = {"token-of-admin": "admin"}


def server_of(state: KubernetesState, world: World, endpoint: str) -> Server:
    def forget() -> None:
        state.compact()
        state.restart(keep=True)

    return Server(world, endpoint, "token-of-admin", "kiwi", state.compact, forget, state.bookmark)


def memory_server(case: TestCase) -> Server:
    world = ClockWorld()
    state = KubernetesState(clock=world.clock, tokens=TOKENS)
    world.network.plug("kubernetes:6443", KubernetesResource(state))
    return server_of(state, world, "http://kubernetes:6443")


def tcp_server(case: TestCase) -> Server:
    world = RealWorld(case)
    state = KubernetesState(clock=world.clock, tokens=TOKENS)
    port = world.clock.listenTCP(0, Site(KubernetesResource(state)), interface="127.0.0.1")
    case.addCleanup(port.stopListening)
    case.addCleanup(state.drop_connections)
    return server_of(state, world, f"http://127.0.0.1:{port.getHost().port}")


class MemoryTests(make_kubernetes_api_tests(memory_server)):  # type: ignore[misc]
    """The one in memory."""


class TCPTests(make_kubernetes_api_tests(tcp_server)):  # type: ignore[misc]
    """The same over TCP, in real time."""


class Case(TestCase):
    """A fake in memory."""

    behaviour: Mapping[str, Any] = {}

    def setUp(self) -> None:
        self.world = ClockWorld()
        self.state = KubernetesState(clock=self.world.clock, **self.behaviour)
        self.world.network.plug("kubernetes:6443", KubernetesResource(self.state))
        self.server = server_of(self.state, self.world, "http://kubernetes:6443")
        self.ask, self.leases = self.server.ask, self.server.leases

    async def create(self, name: str, holder: str = "one") -> Said:
        return await self.ask("POST", self.leases, lease(name, holder))

    async def watch(self, path: str, version: str) -> Watch:
        return await Watch(self.server).open(f"{path}?watch=1&resourceVersion={version}", self)

    @property
    def holders(self) -> Mapping[str, str]:
        return {name: each.body["spec"]["holderIdentity"] for (_, name), each in self.state.objects("leases").items()}


class AccessTests(Case):
    """Who may do what."""

    behaviour = {"tokens": {"token-of-admin": "admin", "token-of-one": "one"}}

    async def test_authorizer(self) -> None:
        """The test says what is allowed; it is told who wants to do what."""
        asked: list[Access] = []

        def authorize(access: Access) -> bool:
            asked.append(access)
            return access.verb != "create"

        self.state.authorize = authorize
        for method, path in (("POST", self.leases), ("GET", f"{self.leases}/a"), ("GET", "/version")):
            await self.ask(method, path, lease("a") if method == "POST" else None, token="token-of-one")
        await self.ask("PUT", "/api/v1/nodes/n/status", {}, token=None)
        lease_access = Access(
            "one", "create", self.leases, "coordination.k8s.io", "v1", "leases", "", self.server.namespace
        )
        self.assertEqual(
            asked,
            [
                lease_access,
                evolve(lease_access, verb="get", path=f"{self.leases}/a", name="a"),
                Access("one", "get", "/version"),
                Access(ANONYMOUS, "update", "/api/v1/nodes/n/status", "", "v1", "nodes", "status", "", "n"),
            ],
        )
        self.assertEqual(self.holders, {})

    async def test_tokens_come_and_go(self) -> None:
        """A token that is known no more is refused, and one that is known now is not."""
        self.state.tokens = {"new": "admin"}
        codes = [(await self.ask("GET", self.leases, token=token)).status for token in ("token-of-admin", "new")]
        self.assertEqual(codes, [401, 200])


class OpenTests(Case):
    async def test_nobody_is_asked(self) -> None:
        """Where there are no tokens, everybody may do everything."""
        codes = [(await self.ask("GET", self.leases, token=token)).status for token in ("any", None)]
        self.assertEqual(codes, [200, 200])


class TroubleTests(Case):
    """What happens to Services happens to all."""

    async def test_failing(self) -> None:
        """It refuses for a while, by path, and says when to come again."""
        self.state.fail(429, "3", "/apis/coordination.k8s.io/")
        said = await self.ask("PUT", f"{self.leases}/a", lease("a"))
        self.assertEqual((said.status, said.headers.getRawHeaders("Retry-After")), (429, ["3"]))
        self.assertEqual((await self.ask("GET", "/api/v1/nodes")).status, 200)
        self.state.recover()
        self.assertEqual(((await self.create("a")).status, self.holders), (201, {"a": "one"}))

    async def test_hanging(self) -> None:
        """It does not do what is asked while it hangs, and tells nothing to those who watch."""
        made = await self.create("a")
        watch = await self.watch(self.leases, made.version)
        self.state.hang()
        self.state.put(lease("a", "two", namespace="kiwi"))
        url = f"{self.server.endpoint}{self.leases}/a"
        lost = request(self.world.http, self.world.clock, "DELETE", url, timeout=1)
        with self.assertRaises(HTTPError):
            await self.world.of(lost)
        self.assertEqual((self.holders, watch.lines, watch.ended), ({"a": "two"}, [], []))
        self.state.recover()
        again = await self.watch(self.leases, made.version)
        self.assertEqual(await again.events(1), [("MODIFIED", "a", "two")])

    async def test_restart(self) -> None:
        """It comes back with what it had, or with nothing and another history."""
        made = await self.create("a")
        watch = await self.watch(self.leases, made.version)
        self.state.restart(keep=True)
        self.world.settle()
        self.assertEqual((self.holders, len(watch.ended)), ({"a": "one"}, 1))
        self.state.restart()
        self.assertEqual((self.holders, self.state.resource_version), ({}, 1))
        again = await self.create("a")
        self.assertEqual(again.version, made.version)
        self.assertNotEqual(again.uid, made.uid)

    async def test_restore(self) -> None:
        """
        A backup brings back what there was. What comes after it has resource versions that were there before, and never
        a C{uid} that was.
        """
        await self.create("a")
        backup = self.state.snapshot()
        lost = await self.create("b")
        last = await self.ask("PUT", f"{self.leases}/b", lease("b", "two", resourceVersion=lost.version))
        watch = await self.watch(self.leases, lost.version)
        self.state.restore(backup)
        await self.world.until(lambda: bool(watch.ended))
        self.assertEqual(self.holders, {"a": "one"})
        ahead = await self.watch(self.leases, last.version)
        other = await self.create("b", "three")
        self.assertEqual(other.version, lost.version)
        self.assertNotEqual(other.uid, lost.uid)
        for name in ("c", "d"):
            await self.create(name)
        self.assertEqual(await ahead.events(1), [("ADDED", "d", "one")])
        old = await self.watch(self.leases, "1")
        self.assertEqual(old.documents[0]["object"]["reason"], "Expired")

    async def test_watch_from_the_future(self) -> None:
        """It can also end such a watch at once, by an error."""
        self.state.refuses_future = True
        watch = await self.watch(self.leases, "99")
        await self.world.until(lambda: bool(watch.ended))
        (event,) = watch.documents
        causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
        about = event["object"]
        self.assertEqual((event["type"], about["code"], about["details"]["causes"]), ("ERROR", 504, causes))

    async def test_expired_by_status(self) -> None:
        """A watch that has expired can be refused by status."""
        await self.create("a")
        await self.create("b")
        self.state.expires_by_status = True
        self.state.compact()
        watch = await self.watch(self.leases, "2")
        self.assertEqual([response and response.status for response in watch.ended], [410])

    async def test_own_memory(self) -> None:
        """The changes of one kind do not push those of another out of its memory."""
        self.state.put(service("web"))
        self.state.put(service("web", ["192.168.1.41"]))
        for number in range(LONGEST_HISTORY + 1):
            self.state.put(lease("a", f"holder-{number}", namespace="kiwi"))
        services = await self.watch("/api/v1/services", "2")
        leases = await self.watch(self.leases, "3")
        self.assertEqual([event["type"] for event in services.documents], ["MODIFIED"])
        self.assertEqual([event["type"] for event in leases.documents], ["ERROR"])


class OfferTests(Case):
    """What a server has depends on its age."""

    async def codes(self) -> Sequence[int]:
        paths = (
            self.leases,
            "/apis/discovery.k8s.io/v1/endpointslices",
            "/apis/discovery.k8s.io/v1beta1/endpointslices",
            "/api/v1/nodes",
            "/api/v1/services",
        )
        return [(await self.ask("GET", path)).status for path in paths]

    async def test_all(self) -> None:
        """At first, it has everything."""
        self.assertEqual(await self.codes(), [200, 200, 200, 200, 200])

    async def test_older(self) -> None:
        """One of 1.20 has no newer EndpointSlices."""
        self.state.groups = ("coordination.k8s.io/v1", "discovery.k8s.io/v1beta1")
        self.assertEqual(await self.codes(), [200, 404, 200, 200, 200])
        group = await self.ask("GET", "/apis/discovery.k8s.io")
        self.assertEqual([each["version"] for each in group.body["versions"]], ["v1beta1"])

    async def test_oldest(self) -> None:
        """One of 2015 has Services and nothing else."""
        self.state.groups, self.state.versions = (), ("v1beta3", "v1beta1")
        self.assertEqual(await self.codes(), [404, 404, 404, 404, 404])
        self.assertEqual((await self.ask("GET", "/api/v1beta3/services")).status, 200)


class EndpointSliceTests(Case):
    """The two versions of EndpointSlices show the same objects."""

    async def shown(self, version: str, *endpoints: Mapping[str, Any]) -> Mapping[str, Any]:
        """What each version shows of endpoints that were written in one."""
        document = {
            "apiVersion": f"discovery.k8s.io/{version}",
            "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": list(endpoints),
        }
        self.state.put(document)
        shown = {}
        for each in ("v1", "v1beta1"):
            listed = await self.ask("GET", f"/apis/discovery.k8s.io/{each}/endpointslices")
            (item,) = listed.body["items"]
            shown[each] = item["endpoints"]
        return shown

    async def test_newer(self) -> None:
        """The node of C{v1} is the host name of C{v1beta1}; its zone is part of the topology there."""
        conditions = {"ready": False, "serving": True, "terminating": True}
        endpoint = {"addresses": ["10.1.1.1"], "conditions": conditions, "nodeName": "n", "zone": "z"}
        topology = {"kubernetes.io/hostname": "n", "topology.kubernetes.io/zone": "z"}
        older = {"addresses": ["10.1.1.1"], "conditions": conditions, "nodeName": "n", "topology": topology}
        self.assertEqual(await self.shown("v1", endpoint), {"v1": [endpoint], "v1beta1": [older]})

    async def test_older(self) -> None:
        """A host name of C{v1beta1} without a node name is a deprecated topology in C{v1}; a zone is a zone."""
        topology = {"kubernetes.io/hostname": "n", "topology.kubernetes.io/zone": "z"}
        endpoint = {"addresses": ["10.1.1.1"], "topology": topology}
        newer = {"addresses": ["10.1.1.1"], "zone": "z", "deprecatedTopology": {"kubernetes.io/hostname": "n"}}
        self.assertEqual(await self.shown("v1beta1", endpoint), {"v1": [newer], "v1beta1": [endpoint]})

    async def test_between(self) -> None:
        """A node name that is the host name as well is not said twice, and one that is another is."""
        same = {"addresses": ["10.1.1.1"], "nodeName": "n", "topology": {"kubernetes.io/hostname": "n"}}
        other = {"addresses": ["10.1.1.2"], "nodeName": "n", "topology": {"kubernetes.io/hostname": "m"}}
        newer = [
            {"addresses": ["10.1.1.1"], "nodeName": "n"},
            {"addresses": ["10.1.1.2"], "nodeName": "n", "deprecatedTopology": {"kubernetes.io/hostname": "m"}},
        ]
        self.assertEqual(await self.shown("v1beta1", same, other), {"v1": newer, "v1beta1": [same, other]})


class ServiceTests(Case):
    async def test_today(self) -> None:
        """A Service of today keeps its policies, and what its load balancer says, in C{v1}."""
        ingress = [{"ip": "192.168.1.43", "ipMode": "Proxy"}, {"hostname": "shop.example"}]
        policies = {
            "loadBalancerClass": "kiwi/kiwi",
            "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Cluster",
            "publishNotReadyAddresses": False,
        }
        document = service("shop", ["192.168.1.41"])
        document["spec"] |= policies
        document["status"]["loadBalancer"]["ingress"] = ingress
        self.state.put(document)
        shown = (await self.ask("GET", "/api/v1/namespaces/default/services/shop")).body
        self.assertEqual(
            ({each: shown["spec"][each] for each in policies}, shown["status"]),
            (policies, {"loadBalancer": {"ingress": ingress}}),
        )
        old = (await self.ask("GET", "/api/v1beta1/services/shop")).body
        self.assertEqual(old["publicIPs"], ["192.168.1.41", "192.168.1.43"])
