"""The command line: what can be chosen, every way to start an agent, and what happens when an option is wrong."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.laboratory import CHECKOUT, CLUSTER, Host, service
from tests.lab.waiting import wait_until

from .support import ADDRESS, JUMP, AgentTestCase, rule


def installed(name: str) -> str:
    """
    The path of a script beside the Python that runs the tests.

    @raise AssertionError: where this checkout's code is not what is installed there.
    """
    script = Path(sys.executable).with_name(name)
    site = CHECKOUT / "nowhere"
    for folder in map(Path, sys.path):
        if folder != CHECKOUT and (folder / "kiwi" / "tap.py").exists():
            site = folder
    for ours in [*(CHECKOUT / "kiwi").rglob("*.py"), *(CHECKOUT / "twisted").rglob("*.py")]:
        theirs = site / ours.relative_to(CHECKOUT)
        if not script.exists() or not theirs.exists() or theirs.read_bytes() != ours.read_bytes():
            raise AssertionError(f"{theirs} is not {ours}: run scripts/test, which installs the checkout")
    return str(script)


class StartTests(AgentTestCase):
    """All the ways to start an agent lead to the same."""

    def _carries(self, host: Host, command: Sequence[str], working: Path) -> None:
        """Started so, the agent carries the address of a Service, and leaves nothing when it is told to go."""
        options = ["--interface", "em1", "-r", "192.168.1.0/24", *self.lab.agent_options()]
        agent = host.start("kiwi", [*command, *options], working=working)
        self.wait_for_agents(host.name)
        self.lab.cluster.create(service("web", [ADDRESS]))
        self.lab.wait_for_carrier(ADDRESS)
        self.wait_for_marks(host, rule())
        agent.terminate(7)
        self.assert_untouched(host)
        self.assertEqual(self.lab.cluster.nodes(), {})

    def test_console_script(self) -> None:
        """The installed C{kiwi}."""
        self._carries(self.lab.hosts[0], [installed("kiwi")], self.lab.directory)

    def test_twistd_in_the_foreground(self) -> None:
        """The installed C{twistd -n kiwi}."""
        self._carries(self.lab.hosts[0], [installed("twistd"), "-n", "--pidfile=", "kiwi"], self.lab.directory)

    def test_twist_from_a_checkout(self) -> None:
        """C{python -m twisted kiwi} in the checkout, where nothing needs to be installed."""
        self._carries(self.lab.hosts[0], [sys.executable, "-m", "twisted", "kiwi"], CHECKOUT)

    def test_daemon(self) -> None:
        """C{twistd kiwi} goes to the background with its process id in a file, and ends in order on SIGTERM."""
        (host, *_) = self.lab.hosts
        pidfile, log = self.lab.directory / "kiwi.pid", self.lab.directory / "kiwi.log"
        starter = host.start(
            "twistd",
            [
                *(installed("twistd"), "--pidfile", str(pidfile), "--logfile", str(log)),
                *("kiwi", "--interface", "em1", "-r", "192.168.1.0/24", *self.lab.agent_options()),
            ],
            working=self.lab.directory,
        )
        self.assertEqual((starter.wait(20), starter.errors()), (0, ""))
        self.wait_for_agents(host.name)
        self.lab.cluster.create(service("web", [ADDRESS]))
        self.lab.wait_for_carrier(ADDRESS)
        pid = int(pidfile.read_text())
        self.assertEqual(host.namespace.processes(), [pid])
        os.kill(pid, signal.SIGTERM)
        self.lab.wait_until(lambda: not host.namespace.processes(), "the daemon to end", 10)
        self.assert_untouched(host)
        self.assertFalse(pidfile.exists())


class ChoiceTests(AgentTestCase):
    """What can be chosen."""

    def test_environment(self) -> None:
        """Every option can be given in the environment, and the command line comes first."""
        (host, *_) = self.lab.hosts
        endpoint_options = self.lab.agent_options()
        host.start(
            "kiwi",
            [*self.lab.kiwi, "--id", "from-the-command-line"],
            {
                "KIWI_INTERFACE": "em1",
                "KIWI_CIDR_RANGE": "10.0.0.0/8,192.168.1.0/24",
                "KIWI_ETCD_ENDPOINT": endpoint_options[1],
                "KIWI_KUBE_ENDPOINT": endpoint_options[3],
                "KIWI_STORE": "etcd2",
                "KIWI_AGENT_ID": "from-the-environment",
                "KIWI_FWCHAIN": "MY-CHAIN",
                "KIWI_FWMARK": "0x10",
                "KIWI_TTL": "5",
            },
        )
        self.lab.cluster.create(service("web", [ADDRESS]))
        self.lab.wait_for_carrier(ADDRESS)
        self.assertEqual(self.lab.cluster.claims(), {ADDRESS: "from-the-command-line"})
        self.assertLessEqual(self.lab.cluster.nodes()[f"/kiwi/publicips/{ADDRESS}"]["ttl"], 5)
        expected = [
            ":MY-CHAIN - [0:0]",
            JUMP.replace("KUBE-PUBLIC", "MY-CHAIN"),
            rule(mark="0x10").replace("KUBE-PUBLIC", "MY-CHAIN"),
        ]
        self.lab.wait_until(lambda: sorted(host.marks()) == sorted(expected), f"{expected}")

    def test_defaults(self) -> None:
        """Interface and ranges come from the default route and its interface's subnets; the id is the host's name."""
        (host, *_) = self.lab.hosts
        agent = host.start("kiwi", [*self.lab.kiwi, *self.lab.agent_options()])
        self.lab.cluster.create(service("web", [ADDRESS, "10.1.1.1"]))
        self.lab.wait_for_carrier(ADDRESS)
        self.assertEqual(self.lab.cluster.claims(), {ADDRESS: host.name})
        self.wait_for_line(agent, "10.1.1.1")

    def test_next_endpoint_is_used(self) -> None:
        """With several endpoints of etcd, one that does not answer is no trouble."""
        (host, *_) = self.lab.hosts
        dead = f"http://{self.lab.cluster.host.address}:1"
        host.start("kiwi", [*self.lab.kiwi, "-s", dead, *self.lab.agent_options()])
        self.lab.cluster.create(service("web", [ADDRESS]))
        self.lab.wait_for_carrier(ADDRESS)

    def test_auto(self) -> None:
        """
        With C{--store auto}, an agent joins a fleet that is in v2 of etcd, and says so. Where there is none, its claims
        are in v3.
        """
        (first, second, third) = self.lab.hosts
        old = self.start_agents(hosts=[first])
        new = self.start_agents("--store", "auto", hosts=[second])
        self.wait_for_line(new[second.name], "claims stay in API v2 of etcd", "agents are there, in /kiwi/agents")
        self.lab.cluster.create(service("web", [ADDRESS]))
        carrier = self.lab.wait_for_carrier(ADDRESS)
        self.assertEqual(self.lab.cluster.claims(), {ADDRESS: carrier.name})
        for agent in (*old.values(), *new.values()):
            agent.terminate(7)
        self.lab.cluster.clear_claims()
        agent = self.start_agent(third, "--store", "auto")
        self.wait_for_line(agent, "claims are in API v3 of etcd")
        self.assertEqual(self.lab.wait_for_carrier(ADDRESS), third)
        self.assertEqual(self.lab.cluster.nodes(), {})
        agent.terminate(7)
        self.assert_untouched(third)

    def test_no_driver(self) -> None:
        """With C{--no-driver} the agent claims and logs, and touches neither interface nor firewall."""
        (host, *_) = self.lab.hosts
        agent = self.start_agents("--no-driver", "--verbose", hosts=[host])[host.name]
        self.lab.cluster.create(service("web", [ADDRESS]))
        self.lab.wait_until(lambda: self.lab.cluster.claims() == {ADDRESS: host.name}, "the claim")
        self.wait_for_line(agent, str(ADDRESS))
        time.sleep(1)
        self.assert_untouched(host)
        self.assertEqual(self.lab.ears.carriages(ADDRESS), [])
        agent.terminate(7)
        self.assertEqual(self.lab.cluster.nodes(), {})

    def test_memory(self) -> None:
        """With C{--store memory} a single host carries addresses without any etcd."""
        (host, *_) = self.lab.hosts
        host.serve()
        agent = self.lab.start_agent(host, "--store", "memory", "-s", "http://127.0.0.1:1")
        self.lab.cluster.create(service("web", [ADDRESS]))
        self.lab.wait_for_carrier(ADDRESS)
        self.wait_for_marks(host, rule())
        self.assertEqual(self.lab.client.who_answers(ADDRESS), host.name)
        self.assertEqual(self.lab.cluster.nodes(), {})
        agent.terminate(7)
        self.assert_untouched(host)


class WrongOptionTests(AgentTestCase):
    """A wrong option is one line on standard error and exit status 1, before anything is touched."""

    def _refused(self, *argv: str) -> str:
        """The line that says why."""
        (host, *_) = self.lab.hosts

        def state() -> tuple[str, str, str]:
            return (
                host.run("ip", "-o", "-4", "addr"),
                # Other namespaces of the machine come and go, and it may say so.
                host.run("ip", "-o", "link").replace("Error: Peer netns reference is invalid.\n", ""),
                host.run("iptables-save", "-t", "mangle").partition("*mangle")[2].partition("# Completed")[0],
            )

        before = state()
        agent = host.start("kiwi", argv)
        self.assertEqual(agent.wait(20), 1, agent.story())
        self.assertEqual(state(), before)
        self.assertEqual(self.lab.cluster.nodes(), {})
        (line,) = agent.errors().splitlines()
        self.assertTrue(line.startswith("kiwi: "), line)
        return line

    def test_values(self) -> None:
        """Each option's value is checked, and the line names the option or the value."""
        for option, value in [
            ("--interface", "no/such name"),
            ("-r", "192.168.1.0/33"),
            ("-r", "192.168.1.1/24"),
            ("--cidr-range", "everything"),
            ("--ttl", "2"),
            ("--ttl", "ten"),
            ("-s", "http://localhost:65536"),
            ("-s", "http://localhost:0"),
            ("--etcd-endpoint", "localhost"),
            ("-k", "http://localhost:port"),
            ("--kube-api", "v2"),
            ("--store", "etcd9"),
            ("--etcd-prefix", "kiwi"),
            ("--id", "two words"),
            ("--fwchain", "A-NAME-THAT-IPTABLES-WOULD-REFUSE"),
            ("--fwchain", "PREROUTING"),
            ("--fwmark", "-1"),
            ("--reconnect-interval", "soon"),
        ]:
            self.assertIn(value, self._refused(*self.lab.kiwi, *self.lab.agent_options(), option, value))

    def test_access_to_etcd(self) -> None:
        """What cannot get into etcd: files that are not there, and a password where everybody can see it."""
        secure = ("-s", f"https://{CLUSTER}:2379")
        for options, word in (
            ((*secure, "--etcd-ca", "/no/such/file"), "--etcd-ca: /no/such/file: No such file or directory"),
            ((*secure, "--etcd-cert", "/proc/version", "--etcd-key", "/proc/version"), "no certificates in PEM"),
            (("--etcd-user", "a", "--etcd-password-file", "/no/such/file"), "--etcd-password-file: /no/such/file"),
            (("--etcd-ca", "/no/such/file"), "it is for https"),
            (("--etcd-user", "a"), "--etcd-password-file"),
        ):
            self.assertIn(word, self._refused(*self.lab.kiwi, *self.lab.agent_options(), *options))
        line = self._refused(*self.lab.kiwi, "-s", f"https://agent:s3cret@{CLUSTER}")
        self.assertIn("--etcd-user NAME and --etcd-password-file FILE", line)
        self.assertNotIn("s3cret", line)

    def test_unknown_option(self) -> None:
        """An option that does not exist, and a word that is no option."""
        self.assertIn("--colour", self._refused(*self.lab.kiwi, "--colour"))
        self.assertIn("please", self._refused(*self.lab.kiwi, "please"))

    def test_environment(self) -> None:
        """A wrong variable is named."""
        self.assertIn("KIWI_TTL", self._refused("env", "KIWI_TTL=2", *self.lab.kiwi))

    def test_missing_privileges(self) -> None:
        """Without the capability to change the network."""
        without = ("setpriv", "--bounding-set", "-net_admin,-net_raw", "--inh-caps", "-net_admin,-net_raw")
        self.assertIn("NET_ADMIN", self._refused(*without, *self.lab.kiwi, "--store", "etcd2", "--interface", "em1"))

    def test_no_iptables(self) -> None:
        """Where there is no iptables."""
        without = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /usr/sbin && exec "$@"', "sh")
        self.assertIn("iptables", self._refused(*without, *self.lab.kiwi, "--store", "etcd2", "--interface", "em1"))

    def test_no_store(self) -> None:
        """Where nothing says which claim store it should be, that is what to give."""
        self.assertIn("--store: 'auto'", self._refused(*self.lab.kiwi, "--interface", "em1"))

    def test_no_default_route(self) -> None:
        """Where the interface cannot be told."""
        for family in ("-4", "-6"):
            self.lab.hosts[0].run("ip", family, "route", "del", "default")
        self.assertIn("--interface", self._refused(*self.lab.kiwi, "--store", "etcd2"))


class LogTests(AgentTestCase):
    """The log goes to standard output, and stays calm."""

    def test_server_away(self) -> None:
        """While nothing answers, the agent says so and tries again; when told to go, it goes."""
        (host, *_) = self.lab.hosts
        agent = host.start(
            "kiwi", [*self.lab.kiwi, "-i", "em1", "-s", "http://192.168.1.10:1", "-k", "http://192.168.1.10:2"]
        )
        self.wait_for_line(agent, "192.168.1.10:1")
        self.wait_for_line(agent, "192.168.1.10:2")
        wait_until(lambda: agent.status is None, "the agent to go on")
        agent.signal(signal.SIGTERM)
        agent.wait(7)
        self.assertEqual(agent.errors(), "")
        self.assert_untouched(host)
