"""Where the suite of claim stores runs: in memory, over fakes in simulated time, and over real servers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol
from urllib.parse import quote

from attrs import define, field
from twisted.trial.unittest import TestCase
from twisted.web.client import HTTPConnectionPool

from kiwi.backoff import BackoffPolicy
from kiwi.claims.etcd2 import Etcd2ClaimStore
from kiwi.claims.etcd3 import Etcd3ClaimStore
from kiwi.claims.etcd_user import EtcdUser
from kiwi.claims.leases import LeaseClaimStore
from kiwi.claims.memory import MemoryClaims, MemoryClaimStore
from kiwi.connections import http_clients
from kiwi.http import request
from kiwi.kubernetes.api import KubernetesAPI
from kiwi.kubernetes.credentials import FixedHeaders, ICredentials, NoCredentials, bearer
from kiwi.tls import TLS, certificates
from tests.fakes.apiserver_process import ADMIN_TOKEN, RealAPIServer, shared_api_server
from tests.fakes.etcd2 import FakeEtcd2
from tests.fakes.etcd3 import FakeEtcd3
from tests.fakes.etcd_process import EtcdProcess, free_port, shared_etcd, unique_prefix
from tests.fakes.kubernetes import KubernetesResource, KubernetesState
from tests.fakes.worlds import ClockWorld, RealWorld, World

from .claimstoretests import LONG, ServerStage

BACKOFF = BackoffPolicy(0.1, 0.5, lambda low, high: (low + high) / 2)


@define(eq=False)
class MemoryStage:
    """Claims in memory."""

    world: ClockWorld = field(factory=ClockWorld)
    rest_on_records: ClassVar[bool] = False
    claims: MemoryClaims = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.claims = MemoryClaims(self.world.clock)

    def store(self, agent_id: str, ttl: int = LONG) -> MemoryClaimStore:
        return self.claims.store(agent_id, ttl)


def etcd2_store(world: World, endpoints: Sequence[str], prefix: str, agent_id: str, ttl: int = LONG) -> Etcd2ClaimStore:
    return Etcd2ClaimStore(world.http, world.stream_http, world.clock, endpoints, prefix, agent_id, ttl, BACKOFF)


async def ask_etcd2(world: World, method: str, url: str) -> None:
    """Do what no agent would."""
    response = await world.of(request(world.http, world.clock, method, url, timeout=30))
    assert response.status in (200, 201), response


class EtcdStage(ServerStage, Protocol):
    """A stage over etcd v2."""

    def store_with_dead_first(self, agent_id: str) -> Etcd2ClaimStore:
        """A store with two endpoints, of which the first refuses connections."""

    async def write(self, path: str, value: str | None) -> None:
        """Write under the prefix what no agent would; C{None} for a folder."""

    async def delete(self, path: str) -> None:
        """Delete a folder under the prefix, with all that is in it."""


@define(eq=False)
class FakeEtcd2Stage:
    """The fake, in simulated time."""

    world: ClockWorld = field(factory=ClockWorld)
    fake: FakeEtcd2 = field(init=False)
    where: str = "etcd:2379"
    rest_on_records: ClassVar[bool] = False

    def __attrs_post_init__(self) -> None:
        self.fake = FakeEtcd2(self.world.clock)
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://{self.where}"

    def store(self, agent_id: str, ttl: int = LONG) -> Etcd2ClaimStore:
        return etcd2_store(self.world, [self.endpoint], "/kiwi", agent_id, ttl)

    def store_with_dead_first(self, agent_id: str) -> Etcd2ClaimStore:
        return etcd2_store(self.world, ["http://dead:2379", self.endpoint], "/kiwi", agent_id)

    def crash(self) -> None:
        self.world.network.unplug(self.where)
        self.fake.drop_streams()

    def start(self, wipe: bool = False) -> None:
        if wipe:
            self.fake.lose_data()
        self.world.network.plug(self.where, self.fake)

    def freeze(self) -> None:
        self.fake.hanging = True

    def thaw(self) -> None:
        self.fake.thaw()

    async def write(self, path: str, value: str | None) -> None:
        what = "dir=true" if value is None else f"value={quote(value)}"
        await ask_etcd2(self.world, "PUT", f"{self.endpoint}/v2/keys/kiwi{quote(path)}?{what}")

    async def delete(self, path: str) -> None:
        await ask_etcd2(self.world, "DELETE", f"{self.endpoint}/v2/keys/kiwi{quote(path)}?recursive=true")


@define(eq=False)
class RealEtcdStage:
    """A real etcd, of which each stage has a prefix of its own."""

    world: RealWorld
    process: EtcdProcess
    prefix: str = field(factory=unique_prefix)

    def crash(self) -> None:
        self.process.kill()

    def start(self, wipe: bool = False) -> None:
        self.process.restart(wipe)

    def freeze(self) -> None:
        self.process.freeze()

    def thaw(self) -> None:
        self.process.thaw()


@define(eq=False)
class RealEtcd2Stage(RealEtcdStage):
    """A real one, in real time."""

    rest_on_records: ClassVar[bool] = False

    def store(self, agent_id: str, ttl: int = LONG) -> Etcd2ClaimStore:
        return etcd2_store(self.world, [self.process.endpoint], self.prefix, agent_id, ttl)

    def store_with_dead_first(self, agent_id: str) -> Etcd2ClaimStore:
        dead = f"http://127.0.0.1:{free_port()}"
        return etcd2_store(self.world, [dead, self.process.endpoint], self.prefix, agent_id)

    async def write(self, path: str, value: str | None) -> None:
        what = "dir=true" if value is None else f"value={quote(value)}"
        await ask_etcd2(self.world, "PUT", f"{self.process.endpoint}/v2/keys{self.prefix}{quote(path)}?{what}")

    async def delete(self, path: str) -> None:
        url = f"{self.process.endpoint}/v2/keys{self.prefix}{quote(path)}?recursive=true"
        await ask_etcd2(self.world, "DELETE", url)


def fake_stage(case: TestCase) -> FakeEtcd2Stage:
    return FakeEtcd2Stage()


def debian_stage(case: TestCase) -> RealEtcd2Stage:
    return _real_stage(case, "Debian")


def wheel_stage(case: TestCase) -> RealEtcd2Stage:
    return _real_stage(case, "Wheel")


def _real_stage(case: TestCase, name: str) -> RealEtcd2Stage:
    process = shared_etcd(name)
    case.addCleanup(process.revive)
    return RealEtcd2Stage(RealWorld(case), process)


def etcd3_store(
    world: World,
    endpoints: Sequence[str],
    prefix: str,
    agent_id: str,
    ttl: int = LONG,
    user: EtcdUser | None = None,
) -> Etcd3ClaimStore:
    return Etcd3ClaimStore(world.http, world.stream_http, world.clock, endpoints, prefix, agent_id, ttl, BACKOFF, user)


async def ask_etcd3(world: World, endpoint: str, path: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Do what no agent would."""
    data = json.dumps(document).encode()
    response = await world.of(request(world.http, world.clock, "POST", endpoint + path, timeout=30, data=data))
    assert response.status == 200, response
    answer: Mapping[str, Any] = json.loads(response.body)
    return answer


class Etcd3Stage(ServerStage, Protocol):
    """A stage over etcd v3."""

    def store_with_dead_first(self, agent_id: str) -> Etcd3ClaimStore:
        """A store with two endpoints, of which the first refuses connections."""

    async def ask(self, path: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask the server for what no agent would."""

    @property
    def prefix(self) -> str:
        """Of all keys."""


@define(eq=False)
class FakeEtcd3Stage:
    """The one in memory, in simulated time: one member, or several."""

    world: ClockWorld = field(factory=ClockWorld)
    members: int = 1
    version: str = "3.5.1"
    fake: FakeEtcd3 = field(init=False)
    prefix: ClassVar[str] = "/kiwi"
    rest_on_records: ClassVar[bool] = True

    def __attrs_post_init__(self) -> None:
        self.fake = FakeEtcd3(self.world.clock, self.members, self.version)
        self.start()

    @property
    def endpoints(self) -> Sequence[str]:
        return [f"http://etcd{number}:2379" for number in range(1, self.members + 1)]

    def store(self, agent_id: str, ttl: int = LONG, user: EtcdUser | None = None) -> Etcd3ClaimStore:
        return etcd3_store(self.world, self.endpoints, self.prefix, agent_id, ttl, user)

    def store_with_dead_first(self, agent_id: str) -> Etcd3ClaimStore:
        return etcd3_store(self.world, ["http://dead:2379", *self.endpoints], self.prefix, agent_id)

    def crash(self) -> None:
        for endpoint, member in zip(self.endpoints, self.fake.members, strict=True):
            self.world.network.unplug(endpoint.removeprefix("http://"))
            member.fail()

    def start(self, wipe: bool = False) -> None:
        if wipe:
            self.fake.lose_data()
        for endpoint, member in zip(self.endpoints, self.fake.members, strict=True):
            self.world.network.plug(endpoint.removeprefix("http://"), member)
            member.recover()

    def freeze(self) -> None:
        self.fake.hanging = True

    def thaw(self) -> None:
        self.fake.thaw()

    async def ask(self, path: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        return await ask_etcd3(self.world, self.endpoints[0], path, document)


@define(eq=False)
class RealEtcd3Stage(RealEtcdStage):
    """A real one, in real time."""

    rest_on_records: ClassVar[bool] = True

    def store(self, agent_id: str, ttl: int = LONG) -> Etcd3ClaimStore:
        return etcd3_store(self.world, [self.process.endpoint], self.prefix, agent_id, ttl)

    def store_with_dead_first(self, agent_id: str) -> Etcd3ClaimStore:
        dead = f"http://127.0.0.1:{free_port()}"
        return etcd3_store(self.world, [dead, self.process.endpoint], self.prefix, agent_id)

    async def ask(self, path: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        return await ask_etcd3(self.world, self.process.endpoint, path, document)


def fake_etcd3_stage(case: TestCase) -> FakeEtcd3Stage:
    stage = FakeEtcd3Stage()
    case.addCleanup(stage.fake.stop)
    return stage


def debian_etcd3_stage(case: TestCase) -> RealEtcd3Stage:
    return _real_etcd3_stage(case, "Debian")


def wheel_etcd3_stage(case: TestCase) -> RealEtcd3Stage:
    return _real_etcd3_stage(case, "Wheel")


def newest_etcd3_stage(case: TestCase) -> RealEtcd3Stage:
    return _real_etcd3_stage(case, "Newest")


def _real_etcd3_stage(case: TestCase, name: str) -> RealEtcd3Stage:
    process = shared_etcd(name)
    case.addCleanup(process.revive)
    return RealEtcd3Stage(RealWorld(case), process)


def lease_store(
    world: World, endpoint: str, credentials: ICredentials, namespace: str, agent_id: str, ttl: int = LONG
) -> LeaseClaimStore:
    api = KubernetesAPI(world.http, world.stream_http, world.clock, endpoint, credentials, BACKOFF.uniform)
    return LeaseClaimStore(api, namespace, agent_id, ttl, BACKOFF, world.clock.seconds)


@define(eq=False)
class FakeLeaseStage:
    """The API server in memory, in simulated time."""

    world: ClockWorld = field(factory=ClockWorld)
    state: KubernetesState = field(init=False)
    where: str = "kubernetes:8080"
    rest_on_records: ClassVar[bool] = True

    def __attrs_post_init__(self) -> None:
        self.state = KubernetesState(clock=self.world.clock)
        self.start()

    def store(self, agent_id: str, ttl: int = LONG) -> LeaseClaimStore:
        return lease_store(self.world, f"http://{self.where}", NoCredentials(), "kiwi", agent_id, ttl)

    def crash(self) -> None:
        self.world.network.unplug(self.where)
        self.state.drop_connections()

    def start(self, wipe: bool = False) -> None:
        if wipe:
            self.state.restart()
        self.world.network.plug(self.where, KubernetesResource(self.state))

    def freeze(self) -> None:
        self.state.hang()

    def thaw(self) -> None:
        self.state.recover()


@define(eq=False)
class RealLeaseStage:
    """A real API server, in real time, with TLS and a token."""

    world: RealWorld
    server: RealAPIServer
    namespace: str
    rest_on_records: ClassVar[bool] = True

    def store(self, agent_id: str, ttl: int = LONG) -> LeaseClaimStore:
        token = FixedHeaders(bearer(ADMIN_TOKEN))
        return lease_store(self.world, self.server.endpoint, token, self.namespace, agent_id, ttl)

    def crash(self) -> None:
        self.server.kill()

    def start(self, wipe: bool = False) -> None:
        if wipe:
            self.server.lose_data()
            self.server.create_namespace(self.namespace)
        else:
            self.server.restart()

    def freeze(self) -> None:
        self.server.freeze()

    def thaw(self) -> None:
        self.server.thaw()


def fake_lease_stage(case: TestCase) -> FakeLeaseStage:
    return FakeLeaseStage()


def real_lease_stage(case: TestCase) -> RealLeaseStage:
    server = shared_api_server()
    case.addCleanup(server.revive)
    world = RealWorld(case)
    pool = HTTPConnectionPool(world.clock)
    pool.maxPersistentPerHost = 32
    case.addCleanup(pool.closeCachedConnections)
    authorities = certificates([server.ca_file.read_bytes()])
    world.http, world.stream_http = http_clients(world.clock, lambda: pool, TLS(lambda: authorities))
    return RealLeaseStage(world, server, server.new_namespace())
