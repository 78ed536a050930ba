"""The command line."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

from kiwi import __version__
from kiwi.kubernetes.access import Access
from kiwi.settings import settings
from kiwi.tap import ETCD, Options, _record, choose_store, makeService

ANONYMOUS = Access("http://localhost:8080", "the default")
PERSONAL = Access("https://kubernetes:6443", "a kubeconfig", is_personal=True)


class OptionsTests(SynchronousTestCase):
    def parsed(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(list(arguments))
        return options

    def test_defaults(self) -> None:
        """Without options, the defaults hold."""
        chosen = self.parsed("--id", "node-1").settings
        self.assertEqual(chosen, settings({}, {}, "node-1"))

    def test_short(self) -> None:
        """Each option that is used by hand has a short form, and two of them may be repeated."""
        short = self.parsed(
            *("-i", "em1", "-r", "192.168.1.0/24", "-r", "::/0", "-k", "http://k:1", "-s", "http://a:2"),
            *("-s", "http://b:3", "-p", "/p", "-n", "-v", "-d"),
        )
        long = self.parsed(
            *("--interface", "em1", "--cidr-range", "192.168.1.0/24", "--cidr-range=::/0"),
            *("--kube-endpoint", "http://k:1", "--etcd-endpoint", "http://a:2", "--etcd-endpoint", "http://b:3"),
            *("--etcd-prefix", "/p", "--no-driver", "--verbose", "--debug"),
        )
        self.assertEqual(short.settings, long.settings)

    def test_mistakes(self) -> None:
        """Any mistake is one line, and ends the process with status 1."""
        for arguments in (["--ttl", "2"], ["--no-such-option"], ["--ttl"], ["em1"]):
            exit_ = self.assertRaises(SystemExit, self.parsed, *arguments)
            self.assertTrue(str(exit_).startswith("kiwi: "), exit_)
            self.assertEqual(len(str(exit_).splitlines()), 1)

    def test_help(self) -> None:
        """The help names every option that there is."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            self.assertRaises(SystemExit, self.parsed, "--help")
        for name in (
            *("--interface=", "--cidr-range=", "--kube-endpoint=", "--kube-api=", "--etcd-endpoint=", "--etcd-prefix="),
            *("--kubeconfig=", "--context=", "--lease-namespace="),
            *("--store=", "--agent-id=", "--id=", "--ttl=", "--fwchain=", "--fwmark=", "--no-driver"),
            *("--etcd-ca=", "--etcd-cert=", "--etcd-key=", "--etcd-user=", "--etcd-password-file="),
            *("--node-name=", "--sources=", "--load-balancer-class="),
            *("--reconnect-interval=", "--verbose", "--debug"),
        ):
            self.assertIn(name, printed.getvalue())

    def test_version(self) -> None:
        """It tells its version."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            exit_ = self.assertRaises(SystemExit, self.parsed, "--version")
        self.assertEqual((exit_.code, printed.getvalue()), (0, f"kiwi {__version__}\n"))


class StoreTests(SynchronousTestCase):
    """Which claim store C{auto} is."""

    def chosen(self, access: Access, **options: str) -> str:
        return choose_store(settings(options, {}, "node-1"), access)

    def test_etcd(self) -> None:
        """It is etcd where somebody has said something of etcd, also in a variable, and also in a Pod."""
        for options, variables in (
            ({"etcd-endpoint": ["http://a:2379"]}, {}),
            ({"etcd-prefix": "/p"}, {}),
            ({}, {"KIWI_ETCD_ENDPOINT": "http://a:2379"}),
            ({}, {"KIWI_ETCD_PREFIX": "/p"}),
            ({"etcd-user": "a", "etcd-password-file": "f"}, {}),
            ({"etcd-endpoint": ["https://a:2379"], "etcd-ca": "f"}, {}),
        ):
            for access in (PERSONAL, ANONYMOUS):
                self.assertEqual(choose_store(settings(options, variables, "node-1"), access), ETCD)

    def test_kubernetes(self) -> None:
        """It is Kubernetes in a Pod, or with a kubeconfig."""
        self.assertEqual(self.chosen(PERSONAL), "kubernetes")

    def test_neither(self) -> None:
        """Elsewhere, what to give is said in one line."""
        exit_ = self.assertRaises(SystemExit, self.chosen, ANONYMOUS)
        self.assertIn("--kubeconfig FILE, --etcd-endpoint URL, or --store memory", str(exit_))
        self.assertEqual(len(str(exit_).splitlines()), 1)

    def test_chosen(self) -> None:
        """What is chosen is taken, whatever there is."""
        for store in ("kubernetes", "etcd2", "etcd3", "memory"):
            for access in (PERSONAL, ANONYMOUS):
                self.assertEqual(self.chosen(access, store=store), store)


class RecordTests(SynchronousTestCase):
    def test_node(self) -> None:
        """An agent tells the name of its Node where that is not its id."""
        for name, node in (("a", ""), ("node-1", "node-1")):
            record = _record(settings({"agent-id": "a", "node-name": name}, {}, "host"))
            self.assertEqual((record.id, record.node, record.node_name), ("a", node, name))


class PluginTests(SynchronousTestCase):
    def test_found(self) -> None:
        """twistd finds the service, with these options."""
        (maker,) = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "kiwi"]
        self.assertIs(maker.options, Options)
        self.assertIs(maker.makeService, makeService)
