"""
The rows of the failure table that have to do with the claim store, on etcd v3.

L{tests.functional.test_quorum} has an etcd of several members.
"""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from kiwi.model import Address, ip
from tests.lab.laboratory import CLUSTER, ETCD_PORT, Host

# Not their classes: they would be run once more.
from . import test_agents, test_by_hand, test_failures, test_stores
from .support import ADDRESS, AgentTestCase

BELOW = {"key": b64encode(b"/kiwi/").decode(), "range_end": b64encode(b"/kiwi0").decode()}


class OnEtcd3(AgentTestCase):
    """Claims are in etcd's v3 API."""

    store = ("--store", "etcd3")

    def ask(self, path: str, message: Mapping[str, Any]) -> Any:
        answer = self.lab.client.request("POST", CLUSTER, ETCD_PORT, path, message)
        self.assertEqual(answer.status, 200)
        return answer.json()

    def clear(self) -> None:
        super().clear()
        self.ask("/v3/kv/deleterange", BELOW)

    def keys(self) -> set[str]:
        return set(self._found())

    def claims(self) -> Mapping[Address, str]:
        folder = "/kiwi/publicips/"
        return {
            ip(key.removeprefix(folder)): b64decode(kv["value"]).decode()
            for key, kv in self._found().items()
            if key.startswith(folder)
        }

    def _found(self) -> Mapping[str, Mapping[str, str]]:
        return {b64decode(kv["key"]).decode(): kv for kv in self.ask("/v3/kv/range", BELOW).get("kvs", ())}

    def claim_ends(self, carrier: Host) -> float:
        """etcd tells in whole seconds for how long a lease lasts: it is known when that changes."""
        claim = self._found()[f"/kiwi/publicips/{ADDRESS}"]
        self.assertEqual(b64decode(claim["value"]).decode(), carrier.name)

        def left() -> int:
            return int(self.ask("/v3/lease/timetolive", {"ID": claim["lease"]}).get("TTL", 0))

        first = left()
        self.lab.wait_until(lambda: left() != first, "the lease to grow older")
        return time.monotonic() + first


class Etcd3ExitTests(test_agents.OrderlyExitTests, OnEtcd3):
    """Agents leave in order."""


class Etcd3StoreHangsTests(test_agents.StoreHangsTests, OnEtcd3):
    """An agent leaves while the store hangs."""


class Etcd3AgentTests(test_failures.AgentTests, OnEtcd3):
    """The agent that carries the address dies or hangs."""


class Etcd3RestartTests(test_failures.RestartTests, OnEtcd3):
    """It is started again."""


class Etcd3UplinkTests(test_failures.UplinkTests, OnEtcd3):
    """Its host loses the network."""


class Etcd3NamesakeTests(test_by_hand.NamesakeTests, OnEtcd3):
    """Another one has its id."""


class Etcd3UnreachableTests(test_stores.UnreachableTests, OnEtcd3):
    """Its host cannot reach the store."""


class Etcd3DownTests(test_stores.DownTests, OnEtcd3):
    """The store is down, and comes back as it was."""


class Etcd3ForgetfulTests(test_stores.ForgetfulTests, OnEtcd3):
    """The store has lost its data."""


class Etcd3PausedTests(test_stores.PausedTests, OnEtcd3):
    """The store does nothing for half a TTL."""


class Etcd3SlowTests(test_stores.SlowTests, OnEtcd3):
    """The store is slow."""


class Etcd3LossyTests(test_stores.LossyTests, OnEtcd3):
    """The store loses replies. A heartbeat needs two of them, and so more are lost."""

    ttl = 8
