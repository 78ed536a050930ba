"""The firewall suite with nftables, and what only nftables does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

from attrs import define
from hypothesis import example, given, settings
from hypothesis.strategies import characters, one_of, text
from pyroute2.netlink import NLM_F_CREATE
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, Mark, Protocol
from kiwi.network.firewall import FwMark
from kiwi.network.interface import NetworkError
from kiwi.network.netlink import attribute
from kiwi.network.nfnetlink import Message, Superseded, nftables
from kiwi.network.nftables import COMMENT_SIZE, NftablesFirewall

from .firewalltests import ADDRESS, ADDRESS6, BOTH, DNS, WEB, WEB6, make_firewall_tests
from .packets import Packets

WHOLE = """\
table inet kiwi {
	map ipv4 {
		type ipv4_addr . inet_proto . inet_service : mark
		elements = { 192.168.1.41 . tcp . 8080 comment "web" : 0x00000001 }
	}

	map ipv6 {
		type ipv6_addr . inet_proto . inet_service : mark
		elements = { fd00::1:41 . tcp . 8080 comment "web" : 0x00000001 }
	}

	chain KUBE-PUBLIC {
		type filter hook prerouting priority mangle; policy accept;
		meta mark set ip daddr . meta l4proto . th dport map @ipv4
		meta mark set ip6 daddr . meta l4proto . th dport map @ipv6
	}
}
"""

MASKED = """\
table inet kiwi-PUBLIC {
	set ipv4 {
		type ipv4_addr . inet_proto . inet_service
		elements = { 192.168.1.41 . tcp . 8080 comment "web" }
	}

	set ipv6 {
		type ipv6_addr . inet_proto . inet_service
	}

	chain PUBLIC {
		type filter hook prerouting priority mangle; policy accept;
		ip daddr . meta l4proto . th dport @ipv4 meta mark set meta mark & 0xffff01ff | 0x00000100
		ip6 daddr . meta l4proto . th dport @ipv6 meta mark set meta mark & 0xffff01ff | 0x00000100
	}
}
"""


def nft(commands: str) -> None:
    """Change the ruleset by hand."""
    subprocess.run(["nft", "-f", "-"], input=commands, text=True, check=True)


def ruleset(*options: str) -> str:
    """The ruleset as nft lists it."""
    return subprocess.run(["nft", *options, "list", "ruleset"], check=True, capture_output=True, text=True).stdout


@define
class NftablesFixture:
    """A C{FirewallFixture} in a network namespace."""

    firewall: NftablesFirewall
    packets: Packets

    def another(self, fwmark: FwMark) -> NftablesFirewall:
        return NftablesFirewall("KUBE-PUBLIC", fwmark)

    def spoil(self) -> None:
        nft("add chain inet kiwi theirs")

    def mark(self, address: Address, protocol: Protocol, port: int) -> int:
        return self.packets.mark(address, protocol, port)

    def marks_during(self, work: Callable[[], None], address: Address, protocol: Protocol, port: int) -> set[int]:
        return self.packets.marks_during(work, address, protocol, port)

    def mark_before(self, value: int) -> None:
        self.packets.mark_before(value)


def make_nftables_fixture(case: SynchronousTestCase) -> NftablesFixture:
    return NftablesFixture(NftablesFirewall("KUBE-PUBLIC", FwMark(1)), Packets.enter(case))


class NftablesFirewallTests(make_firewall_tests(make_nftables_fixture)):  # type: ignore[misc]
    """The suite, and more."""

    def test_listed(self) -> None:
        """nft lists the table as a person would write it, and makes the same one of that."""
        self.firewall.replace({WEB, WEB6})
        self.assertEqual(ruleset(), WHOLE)
        nft(f"flush ruleset; {ruleset()}")
        self.assertEqual((self.host.another(FwMark(1)).read(), ruleset()), ({WEB, WEB6}, WHOLE))

    def test_masked(self) -> None:
        """With a mask, value and mask stand in the rules; with another chain it is another table."""
        masked = NftablesFirewall("PUBLIC", FwMark(0x100, 0xFF00))
        masked.replace({WEB})
        # nft folds both numbers into one that sets and keeps the same bits.
        self.assertEqual(ruleset(), MASKED)
        nft(f"flush ruleset; {ruleset()}")
        self.assertEqual(masked.read(), {WEB})

    def test_mended(self) -> None:
        """Whatever was done to the table by hand is told of, and mended to the letter."""
        self.firewall.replace({WEB, WEB6})
        for spoil in (
            'add element inet kiwi ipv4 { 192.168.1.42 . tcp . 8080 comment "x" : 2 }',
            "add element inet kiwi ipv4 { 192.168.1.42 . tcp . 8080 : 1 }",
            'add element inet kiwi ipv6 { fd00::2 . 77 . 8080 comment "x" : 1 }',
            "add rule inet kiwi KUBE-PUBLIC accept",
            "insert rule inet kiwi KUBE-PUBLIC meta mark set 7",
            "flush chain inet kiwi KUBE-PUBLIC",
            "flush chain inet kiwi KUBE-PUBLIC; add rule inet kiwi KUBE-PUBLIC accept;"
            " add rule inet kiwi KUBE-PUBLIC accept",
            "add chain inet kiwi KUBE-PUBLIC { policy drop; }",
            "add chain inet kiwi theirs { type filter hook prerouting priority 0; policy drop; }",
            "add set inet kiwi theirs { type ipv4_addr; }",
            "add counter inet kiwi theirs",
            "add table inet kiwi { flags dormant; }",
            "delete chain inet kiwi KUBE-PUBLIC",
            "delete table inet kiwi",
            "delete table inet kiwi; add table inet kiwi",
            "flush ruleset",
        ):
            nft(spoil)
            self.assertIsNone(self.firewall.read(), spoil)
            self.firewall.replace({WEB, WEB6})
            self.assertEqual((self.firewall.read(), ruleset()), ({WEB, WEB6}, WHOLE), spoil)

    def test_elements_changed(self) -> None:
        """Elements that somebody deleted, added or made over to another Service are told of, and made right."""
        self.firewall.replace({WEB, WEB6})
        moved = Mark(WEB.address, WEB.protocol, WEB.port, "theirs")
        for spoil, read in {
            "flush map inet kiwi ipv4": {WEB6},
            "delete element inet kiwi ipv6 { fd00::1:41 . tcp . 8080 }": {WEB},
            'add element inet kiwi ipv4 { 192.168.1.41 . udp . 53 comment "kube-system/dns" : 1 }': {WEB, WEB6, DNS},
            "delete element inet kiwi ipv4 { 192.168.1.41 . tcp . 8080 };"
            ' add element inet kiwi ipv4 { 192.168.1.41 . tcp . 8080 comment "theirs" : 1 }': {moved, WEB6},
        }.items():
            nft(spoil)
            self.assertEqual(self.firewall.read(), read, spoil)
            self.firewall.replace({WEB, WEB6})
            self.assertEqual(ruleset(), WHOLE)

    def test_others_untouched(self) -> None:
        """Tables of others stay as they are, also those that look like ours."""
        nft("table ip kiwi { chain KUBE-PUBLIC { counter packets 3 bytes 7; }; }")
        nft("table inet kiwi-2 { chain theirs { accept; }; }")
        before = ruleset()
        for marks in ({WEB}, BOTH, {DNS}):
            self.firewall.replace(marks)
            self.assertTrue(ruleset().startswith(before))
        self.firewall.remove()
        self.assertEqual(ruleset(), before)

    def test_others_change(self) -> None:
        """What others change elsewhere in the ruleset is no reason to tell of something else."""
        self.firewall.replace(BOTH)
        read = self.firewall.read()
        nft("add table ip kube-proxy")
        self.assertIs(self.firewall.read(), read)

    def test_two_writers(self) -> None:
        """A change that is based on what another one has changed meanwhile is not made, but thought over."""
        self.firewall.replace({WEB})
        later = self.host.another(FwMark(1))
        for _ in range(3):
            later.replace(BOTH)
            self.firewall.replace({WEB6})
            self.assertEqual((later.read(), self.firewall.read()), ({WEB6}, {WEB6}))

    def test_others_change_meanwhile(self) -> None:
        """However often others change theirs, each change is made, and what is told is true."""
        done = Event()

        def disturb() -> None:
            with nftables("test") as kernel:
                for number in count():
                    with contextlib.suppress(Superseded):
                        name = attribute(1, f"other{number}".encode() + b"\0")
                        kernel.commit([Message(0, NLM_F_CREATE, name)], kernel.generation())
                    if done.wait(0.001):
                        return

        thread = Thread(target=disturb)
        thread.start()
        try:
            for marks in [{WEB}, BOTH, {WEB6, DNS}] * 50:
                self.firewall.replace(marks)
                self.assertEqual(self.firewall.read(), marks)
        finally:
            done.set()
            thread.join()
        self.assertEqual(self.host.another(FwMark(1)).read(), {WEB6, DNS})

    def test_check(self) -> None:
        """Nothing is wrong where such a table can be made. Looking leaves no trace, also where there is one."""
        for _ in range(2):
            before = ruleset()
            self.assertIsNone(self.firewall.check())
            self.assertEqual(ruleset(), before)
            self.firewall.replace({WEB})

    def test_not_permitted(self) -> None:
        """What the kernel refuses is told in one line."""
        code = (
            "from kiwi.network.nftables import *; firewall = NftablesFirewall('KUBE-PUBLIC', FwMark(1))\n"
            "for call in firewall.read, lambda: firewall.replace(set()), firewall.remove:\n"
            "    try: call()\n"
            "    except NetworkError as error: print(error)\n"
            "print(firewall.check())"
        )
        unable = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code]
        checkout = Path(__file__).parent.parent.parent
        done = subprocess.run(unable, check=True, capture_output=True, text=True, cwd=checkout)
        self.assertEqual(
            done.stdout.splitlines(),
            [
                "cannot read table inet kiwi: Operation not permitted",
                "cannot write table inet kiwi: Operation not permitted",
                "cannot remove table inet kiwi: Operation not permitted",
                "nftables cannot be used: Operation not permitted",
            ],
        )

    def test_cut(self) -> None:
        """A name is cut to the size of a comment, also after a restart; and then nothing is written."""
        long = Mark(ADDRESS, Protocol.TCP, 1, "n" * 63 + "/" + "s" * 253)
        self.firewall.replace({long})
        self.assertIn(f'"{long.service[:COMMENT_SIZE]}"', ruleset())
        later = self.host.another(FwMark(1))
        before = ruleset("-a")
        later.replace({long})
        self.assertEqual((later.read(), ruleset("-a")), ({long}, before))

    @settings(max_examples=100, deadline=None)
    @given(name=one_of(text(max_size=200), text(characters(codec="ascii"), min_size=1, max_size=200)))
    @example(name=", ")
    @example(name='" : 1 }; flush ruleset; #')
    @example(name="$(reboot)`reboot`%s%n#;|&{}")
    @example(name="é" * 128)
    def test_injection(self, name: str) -> None:
        """Whatever a Service is called, it gets the element that is due, or none."""
        mark = Mark(ADDRESS6, Protocol.TCP, 8080, name)
        self.firewall.replace(set())
        try:
            self.firewall.replace({mark})
        except NetworkError:
            self.assertNotIn("elements", ruleset())
        else:
            self.assertEqual(self.firewall.read(), {mark})
            self.assertEqual(comments(), [name.encode()[:COMMENT_SIZE].decode(errors="ignore")])
            again = ruleset()
            nft(f"flush ruleset; {again}")
            self.assertEqual(ruleset(), again)


def comments() -> list[str]:
    """The comments of all elements, as nft tells them in JSON."""
    found: list[dict[str, Any]] = json.loads(ruleset("-j"))["nftables"]
    maps = [each["map"] for each in found if "map" in each]
    return [element[0]["elem"]["comment"] for each in maps for element in each.get("elem", ())]
