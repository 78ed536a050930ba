"""What tests of the store of etcd v3 have in common."""

from __future__ import annotations

from base64 import b64encode

from kiwi.claims.etcd3 import Etcd3ClaimStore
from kiwi.model import AgentRecord
from tests.fakes.etcd3.store import Put
from tests.fakes.worlds import ClockWorld

from .claimstoretests import A, B, WatchingTestCase, capture_log, registered
from .stages import FakeEtcd3Stage

TTL = 10


def text64(text: str) -> str:
    """Text as the gateway takes it."""
    return b64encode(text.encode()).decode()


class OverFake(WatchingTestCase):
    """One member in memory, and agents with a TTL of 10 s."""

    members = 1
    world: ClockWorld

    async def setUp(self) -> None:  # type: ignore[override]
        self.log = capture_log(self)
        self.stage = FakeEtcd3Stage(members=self.members)
        self.world, self.fake = self.stage.world, self.stage.fake
        self.addCleanup(self.fake.stop)
        self.a = await self.registered("a", A)
        self.b = await self.registered("b", B)
        self.asked()

    async def registered(self, agent_id: str, record: AgentRecord) -> Etcd3ClaimStore:
        store = self.stage.store(agent_id, TTL)
        await registered(self.stage, store, record)
        return store

    def asked(self) -> list[str]:
        """What was asked since the last time, without that of watches."""
        paths = [request.split()[1].removeprefix("/v3/") for request in self.fake.requests]
        self.fake.requests.clear()
        return [path for path in paths if path != "watch"]

    def seconds(self) -> float:
        return self.world.clock.seconds()

    def write(self, path: str, value: str) -> None:
        """Write below the prefix what no agent would. Those who watch hear of it with the next change."""
        self.fake.store.apply(Put(f"/kiwi{path}".encode(), value.encode()))
