"""Which firewall it is, and what becomes of those of earlier lives."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kiwi.network.firewall import FwMark
from kiwi.network.firewalls import choose_firewall
from kiwi.network.interface import IFirewall
from kiwi.network.iptables import IptablesFirewall, Variant
from kiwi.network.nftables import NftablesFirewall

from .firewalltests import DNS, WEB, WEB6
from .packets import Packets

CHAIN, FWMARK = "KUBE-PUBLIC", FwMark(1)
NFT, LEGACY = (Variant(name, f"iptables-{name}", f"ip6tables-{name}") for name in ("nft", "legacy"))


def providers() -> dict[str, IFirewall]:
    """Other processes' ways to each of the host's firewalls."""
    return {
        "nftables": NftablesFirewall(CHAIN, FWMARK),
        "iptables-nft": IptablesFirewall(CHAIN, FWMARK, NFT),
        "iptables-legacy": IptablesFirewall(CHAIN, FWMARK, LEGACY),
    }


class ChooseFirewallTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.packets = Packets.enter(self)
        self.told: list[str] = []

    def choose(self, kind: str) -> IFirewall:
        chosen = choose_firewall(kind, CHAIN, FWMARK, self.told.append)
        self.assertIsNone(chosen.without_ipv6)
        return chosen.firewall

    def test_change(self) -> None:
        """
        What an earlier life has left in another firewall goes, in both families, and not one packet is unmarked
        meanwhile.
        """
        for kind in ("nftables", "iptables"):
            for name, earlier in providers().items():
                earlier.replace({WEB, WEB6})
                firewall = self.choose(kind)

                def start(firewall: IFirewall = firewall) -> None:
                    if firewall.read() is None:
                        firewall.replace({WEB, WEB6})

                for mark in (WEB, WEB6):
                    marks = self.packets.marks_during(start, mark.address, mark.protocol, mark.port)
                    self.assertEqual(marks, {1}, (kind, name))
                left = [each.read() for each in providers().values()]
                self.assertEqual((left.count(frozenset({WEB, WEB6})), left.count(None)), (1, 2), (kind, name))
                firewall.remove()
                self.assertEqual({each.read() for each in providers().values()}, {None})
        self.assertEqual(self.told, [])

    def test_none(self) -> None:
        """With none of them, what an earlier life has left goes, and nothing is marked."""
        for name, earlier in providers().items():
            earlier.replace({WEB, WEB6})
            firewall = self.choose("none")
            firewall.replace({WEB, DNS})
            self.assertEqual(firewall.read(), {WEB, DNS})
            self.assertEqual({each.read() for each in providers().values()}, {None}, name)
            self.assertEqual(self.packets.mark(WEB.address, WEB.protocol, WEB.port), 0)

    def test_killed_between(self) -> None:
        """What was killed after it marked and before it removed what was left is made good for by the next look."""
        for each in providers().values():
            each.replace({WEB, WEB6})
        self.assertEqual(self.choose("nftables").read(), {WEB, WEB6})
        self.assertEqual([each.read() for each in providers().values()], [{WEB, WEB6}, None, None])

    def test_name(self) -> None:
        """The log says what it is, and why."""
        names = {kind: choose_firewall(kind, CHAIN, FWMARK, print).name for kind in ("nftables", "iptables", "none")}
        self.assertEqual(names["nftables"], "nftables, in table inet kiwi")
        self.assertRegex(
            names["iptables"], r"\Aiptables, in its (nft|legacy) variant, for it is this host's iptables\Z"
        )
        self.assertEqual(names["none"], "nothing")
