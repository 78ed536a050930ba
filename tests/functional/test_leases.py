"""
The rows of the failure table that have to do with the claim store, on Leases in a real API server.

Others are in L{tests.functional.test_cluster}: a restart within the TTL, a host that dies, and a server that is away
for longer than a TTL.
"""

from __future__ import annotations

from tests.lab.laboratory import CLUSTER, ETCD_PORT, PROXY_PORT, SECURE_API_PORT, SECURE_PROXY_PORT, Host, service
from tests.lab.processes import Process
from tests.lab.ways import with_kubeconfig, write_kubeconfig

# Not their classes: they would be run once more.
from . import test_agents, test_failures, test_stores
from .support import ADDRESS, of_wall_clock
from .test_cluster import ClusterTestCase, deploy


class OnLeases(ClusterTestCase):
    """The claim store is the API server, from which the Services come, too."""

    def freeze_store(self) -> None:
        self.server.freeze()

    def resume_store(self) -> None:
        self.server.thaw()

    def kill_store(self) -> None:
        self.server.kill()

    def start_store(self, keep: bool = False) -> None:
        """Without data, it gets C{deploy/} again, and the Service; the kubelet mounts a token that it knows."""
        if keep:
            self.server.restart()
            return
        self.server.lose_data()
        deploy(self.server)
        self.create(service("web", [ADDRESS]))
        self.give_token(self.server.ca_file.read_bytes())

    def bring_back_store(self) -> None:
        self.server.revive()

    def cut_from_store(self, host: Host) -> None:
        host.block(CLUSTER, SECURE_API_PORT)

    def connect_to_store(self, host: Host) -> None:
        host.unblock(CLUSTER, SECURE_API_PORT)

    def start_proxy(self) -> None:
        self.lab.cluster.start_secure_proxy()

    def start_agent(self, host: Host, *options: str, store_port: int = ETCD_PORT) -> Process:
        """Through the proxy, where the claim store is to be reached through that."""
        if store_port == PROXY_PORT:
            token = {"tokenFile": str(self.volume.folder / "token")}
            path = self.lab.directory / "kubeconfig-proxy"
            write_kubeconfig(path, self.authorities, token, SECURE_PROXY_PORT)
            self.ways[host.name] = with_kubeconfig(path)
        return super().start_agent(host, *options)

    def claim_ends(self, carrier: Host) -> float:
        leases = self.leases()
        session = leases[f"agent.{carrier.name}"]
        self.assertEqual(leases[str(ADDRESS)]["holderIdentity"], carrier.name)
        return of_wall_clock(session["renewTime"]) + float(session["leaseDurationSeconds"])


class LeaseAgentTests(test_failures.AgentTests, OnLeases):
    """The agent that carries the address dies or hangs."""


class LeaseUplinkTests(test_failures.UplinkTests, OnLeases):
    """Its host loses the network."""


class LeaseUnreachableTests(test_stores.UnreachableTests, OnLeases):
    """Its host cannot reach the store."""


class LeaseForgetfulTests(test_stores.ForgetfulTests, OnLeases):
    """The store has lost its data. It takes its time to be back."""

    ttl = 20


class LeasePausedTests(test_stores.PausedTests, OnLeases):
    """The store does nothing for half a TTL."""


class LeaseSlowTests(test_stores.SlowTests, OnLeases):
    """The store is slow."""


class LeaseLossyTests(test_stores.LossyTests, OnLeases):
    """The store loses replies."""


class LeaseStoreHangsTests(test_agents.StoreHangsTests, OnLeases):
    """An agent leaves while the store hangs."""
