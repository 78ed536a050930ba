"""Agents whose etcd asks who they are: certificates, a user and a password, all of them in files."""

from __future__ import annotations

import time

from tests.fakes.secure_etcd import SecureEtcd
from tests.lab.laboratory import API_PORT, CLUSTER, ETCD_PORT, Host, service
from tests.lab.processes import Process

from .support import ADDRESS, AgentTestCase

SECURE_ETCD_PORT = 2399
PASSWORD, NEXT_PASSWORD = "a-password-in-a-file", "another-password"


class SecureEtcd2Tests(AgentTestCase):
    """The whole agent, on etcd's API v2."""

    store = "etcd2"
    ttl = 20
    refused: tuple[str, ...] = ("user agent may not ask for /kiwi", "see that the password is right")

    def setUp(self) -> None:
        super().setUp()
        self.secure = SecureEtcd(self.etcd, also_at=[str(CLUSTER)])
        self.addCleanup(self.secure.remove)
        self.secure.start()
        self.require_passwords()
        self.secure.kill()
        self.write_password(PASSWORD)
        self.start_secure_etcd()

    def require_passwords(self) -> None:
        self.secure.require_passwords_in_v2("agent", PASSWORD, ["/kiwi*"])

    def change_password(self) -> None:
        self.secure.change_password_in_v2("agent", NEXT_PASSWORD)

    def write_password(self, password: str) -> None:
        file = self.secure.path("password")
        file.touch(0o600)
        file.write_text(f"{password}\n")

    def start_secure_etcd(self) -> None:
        """The server, in the lab."""
        host = self.lab.cluster.host
        self.server = host.start("secure-etcd", self.secure.elsewhere(str(CLUSTER), SECURE_ETCD_PORT))

    def start_agent(self, host: Host, *options: str, store_port: int = ETCD_PORT) -> Process:
        path = self.secure.path
        return host.start(
            f"kiwi-{host.name}",
            [
                *(*self.lab.kiwi, "--interface", "em1", "-r", "192.168.1.0/24", "-k", f"http://{CLUSTER}:{API_PORT}"),
                *("--store", self.store, "-s", f"https://{CLUSTER}:{SECURE_ETCD_PORT}", "--ttl", str(self.ttl)),
                *("--etcd-ca", str(path("ca.pem")), "--etcd-cert", str(path("client.pem"))),
                *("--etcd-key", str(path("client.key")), "--etcd-user", "agent"),
                *("--etcd-password-file", str(path("password")), "--debug", *options),
            ],
        )

    def known_agents(self) -> set[str]:
        """Those that follow the claims; what is in the store is not shown to everybody."""
        return {name for name, agent in self.agents.items() if self.lines(agent, "following the claims")}

    def test_rotation(self) -> None:
        """
        An address is carried, and no ping is lost while etcd is started again with another password, which comes into
        the file later, and with other certificates. Then the carrier leaves, and another one takes the address. No
        password is in any log.
        """
        self.agents = {host.name: self.start_agent(host) for host in self.lab.hosts}
        self.lab.wait_until(lambda: self.known_agents() == self.agents.keys(), "all agents to follow the claims", 30)
        self.create(service("web", [ADDRESS]))
        carrier = self.lab.wait_for_carrier(ADDRESS)
        pinger = self.lab.client.ping(ADDRESS)
        pinger.start()
        pinger.wait_for_reply(time.monotonic())

        self.server.kill()
        self.secure.write("server", self.secure.authority.issue("server", "127.0.0.1", "localhost", str(CLUSTER)))
        self.secure.write("client", self.secure.authority.issue(""))
        self.secure.start()
        self.change_password()
        self.secure.kill()
        self.start_secure_etcd()
        agent = self.agents[carrier.name]
        self.wait_for_line(agent, *self.refused)
        self.write_password(NEXT_PASSWORD)
        # Longer than any claim lasts that was not confirmed since.
        self.stays_true(lambda: self.lab.carriers(ADDRESS) == [carrier], self.ttl + 1)
        self.assert_none_lost(pinger)

        agent.terminate(7)
        self.lab.wait_until(lambda: self.lab.carriers(ADDRESS) not in ([], [carrier]), "another carrier")
        self.assert_one_carrier_at_a_time(ADDRESS)
        story = "".join(agent.output() + agent.errors() for agent in self.agents.values())
        self.assertNotIn(PASSWORD, story)
        self.assertNotIn(NEXT_PASSWORD, story)


class SecureEtcd3Tests(SecureEtcd2Tests):
    """The same on API v3."""

    store = "etcd3"
    refused = ("user agent is not let in", "see that name and password are right")

    def require_passwords(self) -> None:
        self.secure.require_passwords_in_v3("agent", PASSWORD, "/kiwi/")

    def change_password(self) -> None:
        self.secure.change_password_in_v3("agent", NEXT_PASSWORD)
