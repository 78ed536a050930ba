"""An agent as C{deploy/} runs it: with no more rights than its container has."""

from __future__ import annotations

import signal

from tests.lab.laboratory import INTERFACE, KIWI_OF_CHECKOUT, service
from tests.lab.processes import Process
from tests.test_deploy import manifests

from .support import ADDRESS, AgentTestCase, rule

_READ_ONLY = """
touch /run/xtables.lock
mount --make-rprivate /
mount --bind /run/xtables.lock /run/xtables.lock
for folder in / /run /tmp /var/tmp; do
    if mountpoint -q $folder; then mount -o remount,bind,ro $folder; fi
done
if touch /run/other /tmp/other 2>/dev/null; then exit 70; fi
exec "$0" "$@"
"""
"""Runs what it is given where nothing can be written but the lock of iptables."""


class ContainerTests(AgentTestCase):
    """A host whose agent has the capabilities of the DaemonSet's container, and a read-only root file system."""

    def start_contained(self, *capabilities: str) -> Process:
        bounds = ",".join(["-all", *(f"+{capability.lower()}" for capability in capabilities)])
        return self.lab.hosts[0].start(
            "kiwi-contained",
            [
                *("unshare", "--mount", "sh", "-ec", _READ_ONLY),
                *("setpriv", "--no-new-privs", "--bounding-set", bounds, "--inh-caps", "-all"),
                *(*KIWI_OF_CHECKOUT, "--interface", INTERFACE, "-r", "192.168.1.0/24", *self.lab.agent_options()),
            ],
        )

    def test_life(self) -> None:
        """It carries an address, and takes everything back when it is told to go."""
        (daemon_set,) = manifests("base/daemonset.yaml")
        (container,) = daemon_set["spec"]["template"]["spec"]["containers"]
        agent = self.start_contained(*container["securityContext"]["capabilities"]["add"])
        self.lab.cluster.create(service("web", [ADDRESS]))
        self.assertIs(self.lab.wait_for_carrier(ADDRESS), self.lab.hosts[0])
        self.wait_for_marks(self.lab.hosts[0], rule())
        self.wait_for_line(agent, "announced")
        agent.terminate()
        self.wait_for_nobody(ADDRESS)
        self.assert_untouched(self.lab.hosts[0])
        self.assertEqual((agent.status, agent.errors()), (-signal.SIGTERM, ""))

    def test_need(self) -> None:
        """It needs both of the capabilities."""
        for only in ("NET_ADMIN", "NET_RAW"):
            agent = self.start_contained(only)
            self.assertEqual(agent.wait(15), 1)
            self.assertIn("needs the capabilities NET_ADMIN and NET_RAW", agent.errors())
