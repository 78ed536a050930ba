"""What an operator may choose."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.kubernetes.services import Sources
from kiwi.network.firewall import FwMark
from kiwi.selection import Attachment
from kiwi.settings import BadSetting, Settings, settings

DEFAULTS = Settings(
    interfaces=(),
    cidr_ranges=(),
    kube_endpoint=None,
    kubeconfig=None,
    context=None,
    kube_api="auto",
    etcd_endpoints=("http://localhost:2379",),
    etcd_prefix="/kiwi",
    etcd_is_given=False,
    etcd_ca=None,
    etcd_cert=None,
    etcd_key=None,
    etcd_user=None,
    etcd_password_file=None,
    store="auto",
    lease_namespace="kiwi",
    agent_id="node-1",
    node_name="node-1",
    node_given=False,
    sources=Sources(external_ips=True, load_balancer=True, load_balancer_class=""),
    ttl=10,
    firewall="iptables",
    fwchain="KUBE-PUBLIC",
    fwmark=FwMark(1),
    driver=True,
    reconnect_interval=5.0,
    probe_wait=0.03,
    verbose=False,
    debug=False,
)

CHOSEN = Settings(
    interfaces=(Attachment("em1", (ip_network("10.0.0.0/8"), ip_network("fd00::/64"))), Attachment("em2")),
    cidr_ranges=(ip_network("192.168.1.0/24"), ip_network("::/0")),
    kube_endpoint="https://kube:8001",
    kubeconfig=None,
    context="admin@kube",
    kube_api="v1beta1",
    etcd_endpoints=("https://a:2379", "http://b:4001"),
    etcd_prefix="/some/where",
    etcd_is_given=True,
    etcd_ca="/etc/kiwi/ca.pem",
    etcd_cert="/etc/kiwi/agent.pem",
    etcd_key="/etc/kiwi/agent.key",
    etcd_user="agent",
    etcd_password_file="/etc/kiwi/password",
    store="memory",
    lease_namespace="public-ips",
    agent_id="one",
    node_name="node-1.example.com",
    node_given=True,
    sources=Sources(external_ips=False, load_balancer=True, load_balancer_class="example.com/internal-vip"),
    ttl=3,
    firewall="nftables",
    fwchain="PUBLIC",
    fwmark=FwMark(0x100, 0xFF00),
    driver=False,
    reconnect_interval=0.5,
    probe_wait=0.1,
    verbose=True,
    debug=True,
)

OPTIONS: dict[str, Any] = {
    "interface": ["em1=10.0.0.0/8,fd00::/64", "em2"],
    "cidr-range": ["192.168.1.0/24", "::/0"],
    "kube-endpoint": "https://kube:8001/",
    "context": "admin@kube",
    "kube-api": "v1beta1",
    "etcd-endpoint": ["https://a:2379", "http://b:4001/"],
    "etcd-prefix": "/some/where/",
    "etcd-ca": "/etc/kiwi/ca.pem",
    "etcd-cert": "/etc/kiwi/agent.pem",
    "etcd-key": "/etc/kiwi/agent.key",
    "etcd-user": "agent",
    "etcd-password-file": "/etc/kiwi/password",
    "store": "memory",
    "lease-namespace": "public-ips",
    "agent-id": "one",
    "node-name": "node-1.example.com",
    "sources": "loadBalancer",
    "load-balancer-class": "example.com/internal-vip",
    "ttl": "3",
    "firewall": "nftables",
    "fwchain": "PUBLIC",
    "fwmark": "0x100/0xff00",
    "no-driver": 1,
    "reconnect-interval": "0.5",
    "probe-wait": "100",
    "verbose": 1,
    "debug": 1,
}


class SettingsTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        """Without options and variables, the defaults hold."""
        self.assertEqual(settings({}, {}, "node-1"), DEFAULTS)

    def test_options(self) -> None:
        """Every option counts."""
        self.assertEqual(settings(OPTIONS, {}, "node-1"), CHOSEN)

    def test_environment(self) -> None:
        """Every option is read from the environment too, with several values separated by commas or spaces."""
        environment = {
            f"KIWI_{name.upper().replace('-', '_')}": ", ".join(value) if isinstance(value, list) else str(value)
            for name, value in OPTIONS.items()
        }
        self.assertEqual(settings({}, environment, "node-1"), CHOSEN)

    def test_option_first(self) -> None:
        """An option comes before its variable."""
        self.assertEqual(settings({"ttl": "5"}, {"KIWI_TTL": "7"}, "node-1").ttl, 5)

    def test_interfaces(self) -> None:
        """Interfaces may have ranges, of both families and single addresses, however they are separated."""
        expected = (
            Attachment("em1", (ip_network("10.0.0.0/8"), ip_network("fd00::/64"))),
            Attachment("br-lan.7", (ip_network("192.168.1.5/32"), ip_network("fd01::5/128"))),
            Attachment("em3"),
        )
        for text in (
            "em1=10.0.0.0/8,fd00::/64 br-lan.7=192.168.1.5,fd01::5 em3",
            "em1=10.0.0.0/8, fd00::/64, br-lan.7=192.168.1.5, fd01::5, em3",
        ):
            self.assertEqual(settings({"interface": text.split()}, {}, "node-1").interfaces, expected)
            self.assertEqual(settings({}, {"KIWI_INTERFACE": text}, "node-1").interfaces, expected)

    def test_node_name(self) -> None:
        """A host's Node has the agent's id for its name, whatever that looks like."""
        chosen = settings({"agent-id": "Node_1"}, {}, "node-1")
        self.assertEqual((chosen.agent_id, chosen.node_name), ("Node_1", "Node_1"))

    def test_sources(self) -> None:
        """Sources are one or both, in any order; a class has a prefix or none."""
        both = Sources()
        for text, expected in (
            ("externalIPs", evolve(both, load_balancer=False)),
            ("loadBalancer", evolve(both, external_ips=False)),
            ("loadBalancer, externalIPs", both),
            ("externalIPs,externalIPs,", evolve(both, load_balancer=False)),
        ):
            self.assertEqual(settings({"sources": text}, {}, "node-1").sources, expected)
        for text in ("internal-vip", "example.com/Internal_vip.1", "a" * 63):
            chosen = settings({"load-balancer-class": text}, {}, "node-1")
            self.assertEqual(chosen.sources, evolve(both, load_balancer_class=text))

    def test_mistakes(self) -> None:
        """A mistake is told in one line, with its option, the value, and what to give instead."""
        mistakes = {
            ("interface", "no/such"): "give an interface such as em1, or with its ranges: em1=192.168.1.0/24,fd00::/64",
            ("interface", "192.168.1.0/24"): "give an interface such as em1",
            ("interface", "an-interface-of-16"): "'an-interface-of-16' cannot be the name of an interface",
            ("interface", "em1="): "give a range such as 192.168.1.0/24",
            ("interface", "em1=192.168.1.5/24"): "has host bits set",
            ("interface", "em1=fd00::/64 em2 em1=fd01::/64"): "em1 is there twice; give all of its ranges at once",
            ("interface", "em1=fd00::/64 em2=10.0.0.0/8,fd00::/64"): "fd00::/64 is a range of both em1 and em2",
            ("lease-namespace", "Kiwi"): "give the name of a namespace",
            ("cidr-range", "192.168.1.0/33"): "give a range such as 192.168.1.0/24",
            ("cidr-range", "192.168.1.5/24"): "has host bits set",
            ("cidr-range", "lan"): "give a range such as",
            ("ttl", "2"): "give a whole number of seconds, 3 or more",
            ("ttl", "ten"): "give a whole number of seconds, 3 or more",
            ("kube-endpoint", "http://kube:70000"): "its port is not between 1 and 65535",
            ("kube-endpoint", "http://kube:0"): "its port is not between 1 and 65535",
            ("kube-endpoint", "kube:8080"): "give https://HOST:PORT or http://HOST:PORT",
            ("kube-endpoint", "http://[kube]"): "give https://HOST:PORT or http://HOST:PORT",
            ("etcd-endpoint", "etcd://etcd"): "give https://HOST:PORT or http://HOST:PORT",
            ("etcd-endpoint", "http://"): "give https://HOST:PORT or http://HOST:PORT",
            ("etcd-endpoint", "http://a b"): "give https://HOST:PORT or http://HOST:PORT",
            ("etcd-endpoint", "http://a/?b"): "nothing behind it",
            ("etcd-cert", "a.pem"): "give --etcd-key FILE, which may be the same file, as well",
            ("etcd-key", "a.key"): "give --etcd-cert FILE, which may be the same file, as well",
            ("etcd-user", "agent"): "give --etcd-password-file FILE (or the variable KIWI_ETCD_PASSWORD) as well",
            ("etcd-password-file", "secret"): "give --etcd-user NAME as well",
            ("etcd-ca", "ca.pem"): "it is for https, and etcd is at http://localhost:2379; give --etcd-endpoint https:",
            ("kube-api", "v2"): "give one of auto, v1, v1beta3, v1beta1",
            ("store", "etcd4"): "give one of auto, kubernetes, etcd2, etcd3, memory",
            ("etcd-prefix", "kiwi"): "give a path such as /kiwi",
            ("etcd-prefix", "/a/../b"): "give a path such as /kiwi",
            ("agent-id", "a b"): "letters, digits",
            ("node-name", "Node_1"): "give the name of a Node",
            ("node-name", "a" * 64): "give the name of a Node",
            ("sources", "externalIP"): "give one of externalIPs, loadBalancer, or both with a comma between them",
            ("sources", "externalIPs,dns"): "give one of externalIPs, loadBalancer",
            ("sources", ","): "give one of externalIPs, loadBalancer",
            ("load-balancer-class", "/vip"): "give a class such as example.com/internal-vip or internal-vip",
            ("load-balancer-class", "Example.com/vip"): "give a class such as",
            ("load-balancer-class", "a/b/c"): "give a class such as",
            ("load-balancer-class", "vip-"): "give a class such as",
            ("load-balancer-class", "a" * 64): "give a class such as",
            ("fwchain", "X" * 29): "give at most 28",
            ("fwchain", "A B"): "give at most 28",
            ("fwchain", "PREROUTING"): "and no name of iptables' own",
            ("fwmark", "0"): "give a number from 1 to 0xffffffff",
            ("fwmark", "0x100000000"): "give a number from 1 to 0xffffffff",
            ("fwmark", "0/0xff"): "give a number from 1 to 0xffffffff, or a mark and the bits that it sets",
            ("fwmark", "1/2/3"): "give a number from 1 to 0xffffffff, or a mark and the bits that it sets",
            ("fwmark", "1/"): "give a number from 1 to 0xffffffff, or a mark and the bits that it sets",
            ("fwmark", "0x101/0xff00"): "the value 0x101 has bits outside of the mask 0xff00",
            ("firewall", "ufw"): "give one of iptables, nftables, none",
            ("reconnect-interval", "0"): "give seconds, from 0.1 to 3600",
            ("probe-wait", "2000"): "give milliseconds, from 0 (do not ask) to 1000",
            ("reconnect-interval", "nan"): "give seconds, from 0.1 to 3600",
        }
        for (name, value), advice in mistakes.items():
            given_value = [value] if name in ("interface", "cidr-range", "etcd-endpoint") else value
            error = self.assertRaises(BadSetting, settings, {name: given_value}, {}, "node-1")
            self.assertTrue(str(error).startswith(f"--{name}: {value!r}: "), error)
            self.assertIn(advice, str(error))

    def test_chain_of_nftables(self) -> None:
        """With nftables, a chain has a name that nft can read."""
        for name in ("1st", "A:B"):
            self.assertEqual(settings({"fwchain": name}, {}, "node-1").fwchain, name)
            error = self.assertRaises(BadSetting, settings, {"fwchain": name, "firewall": "nftables"}, {}, "node-1")
            self.assertIn("give a name without colons that does not begin with a digit", str(error))
        self.assertRaises(BadSetting, settings, {"fwchain": "X" * 29, "firewall": "nftables"}, {}, "node-1")

    def test_mistakes_in_environment(self) -> None:
        """A mistake in a variable is told with the variable's name."""
        error = self.assertRaises(BadSetting, settings, {}, {"KIWI_TTL": "2"}, "node-1")
        self.assertTrue(str(error).startswith("KIWI_TTL: '2': "), error)
        error = self.assertRaises(BadSetting, settings, {}, {"KIWI_NO_DRIVER": "maybe"}, "node-1")
        self.assertEqual(str(error), "KIWI_NO_DRIVER: 'maybe': give 1 for yes or 0 for no")

    def test_certificate(self) -> None:
        """A certificate for etcd has a key, which may be in the same file, and is for https."""
        chosen = settings(
            {"etcd-endpoint": ["https://etcd:2379"], "etcd-cert": "agent.pem", "etcd-key": "agent.pem"}, {}, "node-1"
        )
        self.assertEqual((chosen.etcd_cert, chosen.etcd_key, chosen.etcd_is_given), ("agent.pem", "agent.pem", True))
        error = self.assertRaises(BadSetting, settings, {"etcd-cert": "a", "etcd-key": "a"}, {}, "node-1")
        self.assertIn("--etcd-cert: 'a': it is for https", str(error))

    def test_user(self) -> None:
        """A user of etcd has a password, from a file or from the environment, and is no user without one."""
        password = {"KIWI_ETCD_PASSWORD": "s3cret"}
        chosen = settings({"etcd-user": "agent"}, password, "node-1")
        self.assertEqual(chosen, evolve(DEFAULTS, etcd_user="agent", etcd_is_given=True))
        for options, advice in (
            ({}, "KIWI_ETCD_PASSWORD: give --etcd-user NAME as well"),
            (
                {"etcd-user": "agent", "etcd-password-file": "f"},
                "--etcd-password-file: 'f': the variable KIWI_ETCD_PASSWORD is there as well; give one of them",
            ),
            (
                {"etcd-user": "a:b"},
                "--etcd-user: 'a:b': give the name of a user of etcd: printable characters, and no colon",
            ),
        ):
            self.assertEqual(str(self.assertRaises(BadSetting, settings, options, password, "node-1")), advice)

    def test_credentials_in_urls(self) -> None:
        """A URL has no name and no password in it; who gives one is told what to give, and it is not shown again."""
        for options, environment, message in (
            ({"etcd-endpoint": ["https://a:2379", "https://agent:s3cret@b:2379"]}, {}, "--etcd-endpoint: '...@b:2379'"),
            ({}, {"KIWI_ETCD_ENDPOINT": "https://agent:s3,s3cret@b"}, "KIWI_ETCD_ENDPOINT: '...@b'"),
        ):
            self.assertEqual(
                str(self.assertRaises(BadSetting, settings, options, environment, "node-1")),
                f"{message}: a URL may not have a name or a password in it; give --etcd-user NAME and "
                "--etcd-password-file FILE instead",
            )
        error = self.assertRaises(BadSetting, settings, {"kube-endpoint": "http://agent:s3cret@kube"}, {}, "node-1")
        self.assertEqual(
            str(error),
            "--kube-endpoint: '...@kube': a URL may not have a name or a password in it; give --kubeconfig FILE, which "
            "may have them, instead",
        )

    def test_kubeconfig(self) -> None:
        """A kubeconfig is an option, too, and in place of an endpoint: who gives both is told which."""
        self.assertEqual(
            settings({"kubeconfig": "/etc/kubeconfig"}, {}, "node-1"), evolve(DEFAULTS, kubeconfig="/etc/kubeconfig")
        )
        error = self.assertRaises(
            BadSetting, settings, {"kube-endpoint": "http://kube"}, {"KIWI_KUBECONFIG": "/etc/kubeconfig"}, "node-1"
        )
        self.assertEqual(
            str(error), "KIWI_KUBECONFIG: '/etc/kubeconfig': there is --kube-endpoint as well; give one of them"
        )

    @given(st.sampled_from(sorted(OPTIONS)), st.text(min_size=1))
    def test_any_text(self, name: str, text: str) -> None:
        """Any text is a setting or a mistake told in one line."""
        value: object = [text] if isinstance(OPTIONS[name], list) else text
        try:
            settings({name: value}, {}, "node-1")
        except BadSetting as error:
            self.assertEqual(len(str(error).splitlines()), 1)
