"""What following a cluster is like, whichever server it has."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from attrs import evolve
from twisted.trial.unittest import TestCase

from kiwi.model import Protocol, Service, ServiceName, ServicePort
from tests.fakes.kubernetes import service

from .clusters import Cluster


def expected(name: str, *addresses: str, ports: tuple[ServicePort, ...] = ()) -> Service:
    """A Service as it is told, but for when it was created."""
    return Service(
        ServiceName("default", name),
        frozenset(ports or {ServicePort(Protocol.TCP, 8080)}),
        tuple(map(IPv4Address, addresses)),
    )


def make_kubernetes_tests(make: Callable[[Any], Cluster], api: str = "auto") -> type[TestCase]:
    """
    @param make: a fresh cluster without Services that ask for addresses. It may add cleanups to the test.
    @param api: the version by which the cluster is followed.
    """

    class KubernetesTests(TestCase):
        def setUp(self) -> None:
            self.cluster = make(self)

        async def told(self, *services: Service) -> None:
            """Wait until exactly these Services have been told."""

            wanted = {each.name: each for each in services}

            def same() -> bool:
                now = self.following.services
                return now is not None and {name: evolve(now[name], created="") for name in now} == wanted

            await self.cluster.until(same, f"the Services {sorted(map(str, wanted))}")

        async def follow(self, *services: Service) -> None:
            self.following = self.cluster.follow(api)
            await self.told(*services)

        async def test_at_first(self) -> None:
            """The Services that are there are told together."""
            await self.cluster.put(service("web", ["192.168.1.41"]))
            await self.cluster.put(service("dns", ["192.168.1.42"], [(53, "UDP"), (53, "TCP")]))
            both = (ServicePort(Protocol.UDP, 53), ServicePort(Protocol.TCP, 53))
            await self.follow(expected("web", "192.168.1.41"), expected("dns", "192.168.1.42", ports=both))
            self.assertEqual(len(self.following.told), 1)
            created = [each.created for each in self.following.told[0].values()]
            self.assertTrue(all(created), created)

        async def test_no_services(self) -> None:
            """That there are none is told as well."""
            await self.follow()
            self.assertEqual(self.following.told, [{}])

        async def test_changes(self) -> None:
            """A Service that comes, changes or goes is told at once."""
            await self.follow()
            await self.cluster.put(service("web", ["192.168.1.41"]))
            await self.told(expected("web", "192.168.1.41"))
            await self.cluster.put(service("web", ["192.168.1.41", "192.168.1.42"]))
            await self.told(expected("web", "192.168.1.41", "192.168.1.42"))
            await self.cluster.put(service("web", ["192.168.1.42"], [443]))
            await self.told(expected("web", "192.168.1.42", ports=(ServicePort(Protocol.TCP, 443),)))
            await self.cluster.delete("web")
            await self.told()

        async def test_without_addresses(self) -> None:
            """A Service is told while it asks for addresses."""
            await self.follow()
            await self.cluster.put(service("inner"))
            await self.cluster.put(service("web", ["192.168.1.41"]))
            await self.told(expected("web", "192.168.1.41"))
            await self.cluster.put(service("web"))
            await self.told()

        async def test_load_balancer(self) -> None:
            """The address that a load balancer was given is an address that the Service asks for."""
            await self.follow()
            await self.cluster.put(service("shop", ["192.168.1.41"], ingress=["192.168.1.43"]))
            await self.told(expected("shop", "192.168.1.41", "192.168.1.43"))

        async def test_interrupted(self) -> None:
            """What happens after a connection broke is told as well."""
            await self.cluster.put(service("web", ["192.168.1.41"]))
            await self.follow(expected("web", "192.168.1.41"))
            for last in range(42, 45):
                await self.cluster.interrupt()
                await self.cluster.put(service("web", [f"192.168.1.{last}"]))
                await self.told(expected("web", f"192.168.1.{last}"))
            self.assertEqual(len(self.following.told), 4)

        async def test_huge(self) -> None:
            """A Service may be as large as the server allows, in a list and in a watch."""
            await self.cluster.put(service("web", ["192.168.1.41"], annotations={"huge": "x" * self.cluster.largest}))
            await self.follow(expected("web", "192.168.1.41"))
            await self.cluster.put(service("web", ["192.168.1.42"], annotations={"huge": "y" * self.cluster.largest}))
            await self.told(expected("web", "192.168.1.42"))

        async def test_many(self) -> None:
            """Many Services are no trouble."""
            services = {f"s{n}": f"10.1.{n // 250}.{n % 250 + 1}" for n in range(self.cluster.many)}
            for name, address in services.items():
                await self.cluster.put(service(name, [address]))
            await self.follow(*(expected(name, address) for name, address in services.items()))

        async def test_stop(self) -> None:
            """After it is stopped, nothing is told."""
            await self.follow()
            await self.cluster.stop(self.following)
            await self.cluster.put(service("web", ["192.168.1.41"]))
            self.assertEqual(self.following.told, [{}])

    return KubernetesTests
