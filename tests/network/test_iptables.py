"""The firewall suite with iptables, and what only iptables does."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from attrs import define, evolve, frozen
from hypothesis import example, given, settings
from hypothesis.strategies import characters, one_of, sampled_from, text
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, Mark, Protocol
from kiwi.network.firewall import FwMark, rule_comment
from kiwi.network.interface import NetworkError
from kiwi.network.iptables import (
    COMMENT_SIZE,
    Choice,
    IptablesFirewall,
    Variant,
    choose_variant,
    rule,
    valid_chain_name,
)

from .firewalltests import ADDRESS, BOTH, DNS, DNS6, EVIL, MANY, WEB, WEB6, make_firewall_tests
from .hosts import enter_namespace
from .packets import Packets

JUMP = "-A PREROUTING -j KUBE-PUBLIC"
WEB_RULE = (
    "-A KUBE-PUBLIC -d 192.168.1.41/32 -p tcp -m tcp --dport 8080 -m comment --comment web"
    " -j MARK --set-xmark 0x1/0xffffffff"
)


@frozen
class Table:
    """Table C{mangle} of one family of one variant, by its executable."""

    family: str

    def change(self, *words: str) -> None:
        """Change it by hand."""
        subprocess.run([self.family, "-w", "5", "-t", "mangle", *words], check=True)

    def _saved(self, *options: str) -> list[str]:
        done = subprocess.run(
            [f"{self.family}-save", "-t", "mangle", *options], check=True, capture_output=True, text=True
        )
        return done.stdout.splitlines()

    def rules(self, *options: str) -> list[str]:
        """Its rules."""
        return [line for line in self._saved(*options) if re.match(r"(\[\d+:\d+\] )?-A ", line)]

    def chains(self) -> list[str]:
        """Its chains that are not built in."""
        return [line.split()[0][1:] for line in self._saved() if re.match(r":\S+ - ", line)]


@define
class IptablesFixture:
    """A C{FirewallFixture} in a network namespace."""

    firewall: IptablesFirewall
    packets: Packets

    def another(self, fwmark: FwMark) -> IptablesFirewall:
        return IptablesFirewall("KUBE-PUBLIC", fwmark, self.firewall.variant)

    def spoil(self) -> None:
        Table(self.firewall.variant.ipv4).change("-A", "KUBE-PUBLIC", "-d", str(ADDRESS), "-j", "RETURN")

    def mark(self, address: Address, protocol: Protocol, port: int) -> int:
        return self.packets.mark(address, protocol, port)

    def marks_during(self, work: Callable[[], None], address: Address, protocol: Protocol, port: int) -> set[int]:
        return self.packets.marks_during(work, address, protocol, port)

    def mark_before(self, value: int) -> None:
        self.packets.mark_before(value)


def iptables_fixture(variant: Variant) -> Callable[[SynchronousTestCase], IptablesFixture]:
    return lambda case: IptablesFixture(IptablesFirewall("KUBE-PUBLIC", FwMark(1), variant), Packets.enter(case))


NFT, LEGACY = (Variant(name, f"iptables-{name}", f"ip6tables-{name}") for name in ("nft", "legacy"))
table, table6 = Table(NFT.ipv4), Table(NFT.ipv6)
iptables, rules, chains = table.change, table.rules, table.chains


class LegacyFirewallTests(make_firewall_tests(iptables_fixture(LEGACY))):  # type: ignore[misc]
    """The suite with the legacy variant."""

    def test_untouched(self) -> None:
        """What was never used has no tables afterwards either: not for reading, nor for removing."""
        self.firewall.read()
        self.firewall.remove()
        for family in ("ip", "ip6"):
            self.assertEqual(Path(f"/proc/net/{family}_tables_names").read_text(), "")


class IptablesFirewallTests(make_firewall_tests(iptables_fixture(NFT))):  # type: ignore[misc]
    """The suite with the nft variant, and what is true of both."""

    def test_rule(self) -> None:
        """The rules and the jump are as people know them."""
        self.firewall.replace({WEB, DNS})
        dns = WEB_RULE.replace("tcp", "udp").replace("8080", "53").replace("web", '"kube-system/dns"')
        self.assertEqual(rules(), [JUMP, WEB_RULE, dns])

    def test_mended(self) -> None:
        """Whatever was done to the chain by hand is told of, and mended to the letter."""
        self.firewall.replace({WEB})
        for spoil in (
            ["-D", *JUMP.split()[1:]],
            JUMP.split(),
            ["-F", "KUBE-PUBLIC"],
            WEB_RULE.split(),
            WEB_RULE.replace("0x1/", "0x2/").split(),
            WEB_RULE.replace("0xffffffff", "0xff").split(),
            WEB_RULE.replace("8080", "8080:8081").split(),
            WEB_RULE.replace("-d 192.168.1.41/32", "-d 192.168.1.40/31").split(),
            WEB_RULE.replace("-m comment --comment web", "").split(),
            ["-A", "KUBE-PUBLIC", "-j", "ACCEPT"],
        ):
            iptables(*spoil)
            read = self.firewall.read()
            self.assertEqual(read, frozenset() if spoil[0] == "-F" else None, spoil)
            self.firewall.replace({WEB})
            self.assertEqual(rules(), [JUMP, WEB_RULE], spoil)

    def test_ipv6_when_needed(self) -> None:
        """The chain for IPv6 comes with the first mark for it."""
        self.firewall.replace({WEB})
        self.assertEqual(table6.chains(), [])
        self.firewall.replace({WEB, DNS6})
        rule = '-A KUBE-PUBLIC -d fd00::1:41/128 -p udp -m udp --dport 53 -m comment --comment "kube-system/dns"'
        self.assertEqual(table6.rules(), [JUMP, f"{rule} -j MARK --set-xmark 0x1/0xffffffff"])
        self.firewall.replace({WEB})
        self.assertEqual((table6.rules(), rules()), ([JUMP], [JUMP, WEB_RULE]))

    def test_ipv6_of_earlier_life(self) -> None:
        """A chain for IPv6 that an earlier life has left is looked at, whatever is to be marked now."""
        for take in (lambda firewall: firewall.replace({WEB}), lambda firewall: firewall.remove()):
            self.host.another(FwMark(1)).replace(BOTH)
            later = self.host.another(FwMark(1))
            take(later)
            self.assertEqual([line for line in table6.rules() if line != JUMP], [])
        self.assertEqual((chains(), table6.chains()), ([], []))

    def test_mended_for_ipv6(self) -> None:
        """What was done to the chain for IPv6 is told of, and mended."""
        self.firewall.replace({WEB, WEB6})
        before = table6.rules()
        for spoil in (["-A", "KUBE-PUBLIC", "-j", "ACCEPT"], ["-D", *JUMP.split()[1:]]):
            table6.change(*spoil)
            self.assertIsNone(self.firewall.read(), spoil)
            self.firewall.replace({WEB, WEB6})
            self.assertEqual(table6.rules(), before)
        table6.change("-F", "KUBE-PUBLIC")
        self.assertEqual(self.firewall.read(), {WEB})
        self.firewall.replace({WEB, WEB6})
        self.assertEqual(table6.rules(), before)

    def test_without_ipv6(self) -> None:
        """On a host without IPv6 nothing is made for it, and its marks count as set."""
        self.firewall = IptablesFirewall("KUBE-PUBLIC", FwMark(1), evolve(NFT, net=self.mktemp()))
        for marks in ({WEB, WEB6}, {DNS, WEB6}, {DNS}):
            self.firewall.replace(marks)
            self.assertEqual(self.firewall.read(), marks)
            self.assertEqual(table6.chains(), [])
        self.firewall.remove()
        self.assertEqual(chains(), [])

    def test_without_ip6tables(self) -> None:
        """Without ip6tables, marks for IPv6 fail, and all others are set."""
        self.firewall = IptablesFirewall("KUBE-PUBLIC", FwMark(1), evolve(NFT, ipv6="ip6tables-none"))
        with self.assertRaises(NetworkError) as caught:
            self.firewall.replace({WEB, WEB6})
        self.assertEqual(
            str(caught.exception), "ip6tables-none-save is not installed (Debian: apt-get install iptables)"
        )
        self.assertEqual((self.firewall.read(), rules()), ({WEB}, [JUMP, WEB_RULE]))
        self.firewall.replace({DNS})
        self.assertEqual(self.firewall.read(), {DNS})
        self.firewall.remove()
        self.assertEqual(chains(), [])

    def test_others_untouched(self) -> None:
        """Rules, counters and chains of others stay as they are, also where they look like ours."""
        iptables("-N", "KUBE-PUBLIC-2")
        for other in (
            "PREROUTING -p tcp -j KUBE-PUBLIC-2",
            "PREROUTING -j KUBE-PUBLIC-2",
            "KUBE-PUBLIC-2 -d 192.168.1.41/32 -p tcp -m tcp --dport 8080 -m comment --comment web -j MARK --set-mark 1",
            "OUTPUT -d 127.0.0.9/32 -j MARK --set-mark 1",
        ):
            iptables("-A", *other.split())
        subprocess.run(["ping", "-q", "-c", "3", "-i", "0.01", "127.0.0.9"], check=True, capture_output=True)
        before = rules("-c")
        self.assertIn("[3:252] -A OUTPUT -d 127.0.0.9/32 -j MARK --set-xmark 0x1/0xffffffff", before)
        self.firewall.replace({WEB})
        self.firewall.replace({DNS})
        during = [line for line in rules("-c") if not re.search(r"KUBE-PUBLIC( |$)", line)]
        self.assertEqual(during, before)
        self.firewall.remove()
        self.assertEqual((rules("-c"), chains()), (before, ["KUBE-PUBLIC-2"]))

    def test_removed(self) -> None:
        """Nothing of ours is left, however often somebody jumped to it as we do."""
        self.firewall.replace({WEB})
        iptables(*JUMP.split())
        self.firewall.remove()
        self.assertEqual((rules(), chains()), ([], []))

    def test_removed_without_jump(self) -> None:
        """A chain that nothing leads to is removed too."""
        iptables("-N", "KUBE-PUBLIC")
        self.firewall.remove()
        self.assertEqual(chains(), [])

    def test_remove_referenced(self) -> None:
        """A chain that somebody else's rule leads to stays, empty, and whose fault it is is said."""
        self.firewall.replace({WEB})
        theirs = '-A FORWARD -m comment --comment "a -j b" -g KUBE-PUBLIC'
        iptables("-A", "FORWARD", "-m", "comment", "--comment", "a -j b", "-g", "KUBE-PUBLIC")
        with self.assertRaises(NetworkError) as caught:
            self.firewall.remove()
        self.assertEqual(
            str(caught.exception),
            f"chain KUBE-PUBLIC is empty now but stays, for a rule of somebody else leads to it: {theirs}",
        )
        self.assertEqual(rules(), [theirs])

    def test_mentioned(self) -> None:
        """A rule that only speaks of the chain does not lead to it."""
        self.firewall.replace({WEB})
        iptables("-A", "FORWARD", "-m", "comment", "--comment", 'like "-j KUBE-PUBLIC" does')
        self.firewall.remove()
        self.assertEqual(chains(), [])

    def test_refused_by_iptables(self) -> None:
        """What iptables refuses changes nothing, and its answer is told in one line."""
        self.firewall.replace({WEB})
        for marks in ({Mark(ADDRESS, Protocol.TCP, 70000, "web")}, {WEB, Mark(ADDRESS, Protocol.TCP, 70000, "web")}):
            with self.assertRaises(NetworkError) as caught:
                self.firewall.replace(marks)
            self.assertRegex(str(caught.exception), r"\Aiptables-nft-restore exited with status 2: [ -~]+\Z")
            self.assertEqual(rules(), [JUMP, WEB_RULE])

    @settings(max_examples=60, deadline=None)
    @given(name=one_of(text(max_size=300), text(characters(codec="ascii"), min_size=1, max_size=300)))
    @example(name="-j DROP")
    @example(name="--table nat")
    @example(name="-t")
    @example(name="!")
    @example(name=" ")
    @example(name="web -j ACCEPT -A PREROUTING")
    @example(name="$(reboot)`reboot`%s%n#;|&")
    @example(name="é" * 255)
    def test_injection(self, name: str) -> None:
        """Whatever a Service is called, it gets the rule that is due, or none."""
        mark = Mark(ADDRESS, Protocol.TCP, 8080, name)
        self.firewall.replace(set())
        try:
            self.firewall.replace({mark})
        except NetworkError:
            self.assertEqual((rules(), chains()), ([JUMP], ["KUBE-PUBLIC"]))
        else:
            self.assertEqual(self.firewall.read(), {mark})
            jump, ours = rules()
            self.assertEqual((jump, chains()), (JUMP, ["KUBE-PUBLIC"]))
            before, after = WEB_RULE.split(" web ")
            self.assertTrue(ours.startswith(before) and ours.endswith(after), ours)


class ToolTests(SynchronousTestCase):
    """How iptables is called."""

    def setUp(self) -> None:
        enter_namespace(self)
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        tool = str(self.folder.absolute() / "tool")
        self.variant = Variant("nft", tool, f"{tool}6")

    def tool(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def firewall(self, timeout: float = 10.0) -> IptablesFirewall:
        """One that is made of this test's tools."""
        return IptablesFirewall("KUBE-PUBLIC", FwMark(1), self.variant, timeout=timeout)

    def test_only_added(self) -> None:
        """Where rules are only missing, they are added to the others; else the chain is written whole, once."""
        real = {name: shutil.which(name, path="/usr/sbin:/sbin") for name in ("iptables-save", "iptables-restore")}
        told = self.folder / "told"
        self.tool("tool", "exit 1")
        self.tool("tool-save", f'exec {real["iptables-save"]} "$@"')
        self.tool(
            "tool-restore",
            f'echo "$@" >> {told.absolute()}; tee -a {told.absolute()} | {real["iptables-restore"]} "$@"',
        )
        firewall = self.firewall()
        for marks in ({WEB}, {WEB}, {WEB, DNS}, {DNS}):
            firewall.replace(marks)
        call, chain, web, dns = (
            "--noflush --wait 2",
            ":KUBE-PUBLIC - [0:0]",
            rule("KUBE-PUBLIC", FwMark(1), WEB),
            rule("KUBE-PUBLIC", FwMark(1), DNS),
        )
        self.assertEqual(
            told.read_text().splitlines(),
            [
                *(call, "*mangle", chain, web, JUMP, "COMMIT"),
                *(call, "*mangle", dns, "COMMIT"),
                *(call, "*mangle", chain, dns, "COMMIT"),
            ],
        )

    def test_not_read_again(self) -> None:
        """While nobody has changed any rules, they are not read again."""
        told = self.folder / "told"
        self.tool("tool", "exit 1")
        self.tool("tool-save", f'echo read >> {told.absolute()}; exec iptables-nft-save "$@"')
        self.tool("tool-restore", 'exec iptables-nft-restore "$@"')
        firewall = self.firewall()
        firewall.replace({WEB})
        for _ in range(3):
            self.assertEqual(firewall.read(), {WEB})
        firewall.replace({DNS})
        self.assertEqual((firewall.read(), told.read_text()), ({DNS}, "read\n"))
        iptables("-A", "KUBE-PUBLIC", "-j", "ACCEPT")
        self.assertEqual((firewall.read(), firewall.read(), told.read_text()), (None, None, "read\n" * 2))

    def test_changed_meanwhile(self) -> None:
        """What somebody changes while rules are written or read is seen the next time."""
        spoil = "iptables-nft -t mangle -A KUBE-PUBLIC -j ACCEPT"
        self.tool("tool", "exit 1")
        self.tool("tool-save", 'exec iptables-nft-save "$@"')
        self.tool("tool-restore", f'iptables-nft-restore "$@" && {spoil}')
        firewall = self.firewall()
        firewall.replace({WEB})
        self.assertIsNone(firewall.read())
        self.tool("tool-restore", 'exec iptables-nft-restore "$@"')
        firewall.replace({WEB})
        iptables("-t", "mangle", "-N", "theirs")
        self.tool("tool-save", f'iptables-nft-save "$@" && {spoil}')
        self.assertEqual((firewall.read(), firewall.read()), ({WEB}, None))

    def test_hangs(self) -> None:
        """A process that does not end in time is killed."""
        self.tool("tool", "exit 1")
        self.tool("tool-save", "exec sleep 1000")
        self.tool("tool-restore", "exit 1")
        with self.assertRaises(NetworkError) as caught:
            self.firewall(timeout=0.1).read()
        self.assertRegex(str(caught.exception), r"/tool-save did not finish within 0.1 s\Z")

    def test_cannot_start(self) -> None:
        """A file that cannot be executed is told of."""
        self.tool("tool-save", "")
        (self.folder / "tool-save").write_text("not a program")
        with self.assertRaises(NetworkError) as caught:
            self.firewall().read()
        self.assertRegex(str(caught.exception), r"/tool-save did not start: Exec format error\Z")

    def test_complaint(self) -> None:
        """What a process complains of comes in one printable line, and not without end."""
        self.tool("tool-save", "printf 'first\\n\\033[31msecond\\377' >&2; yes | head -c 1000 >&2; exit 3")
        with self.assertRaises(NetworkError) as caught:
            self.firewall().read()
        self.assertRegex(
            str(caught.exception), r"/tool-save exited with status 3: first \\x1b\[31msecond\\ufffdy y [ -~]{1,300}\Z"
        )

    def test_missing(self) -> None:
        """It says what to install."""
        for call in (self.firewall().read, self.firewall().remove, lambda: self.firewall().replace({WEB})):
            with self.assertRaises(NetworkError) as caught:
                call()
            self.assertRegex(
                str(caught.exception), r"tool-save is not installed \(Debian: apt-get install iptables\)\Z"
            )

    def test_check(self) -> None:
        """Nothing is wrong where table C{mangle} can be read, and looking leaves no trace."""
        self.assertEqual((NFT.check(), NFT.without_ipv6()), (None, None))
        self.assertEqual((rules(), chains()), ([], []))

    def test_check_ipv6(self) -> None:
        """It is said what is missing for IPv6, where there is IPv6."""
        reason = f"{self.variant.ipv6} is not installed (Debian: apt-get install iptables)"
        self.assertEqual(self.variant.without_ipv6(), reason)
        self.assertIsNone(evolve(self.variant, net=self.mktemp()).without_ipv6())

    def test_check_missing(self) -> None:
        """It is said which of the executables is missing, and what to install."""
        family = self.variant.ipv4
        self.tool("tool", "exit 0")
        self.tool("tool-restore", "exit 0")
        self.assertEqual(self.variant.check(), f"{family}-save is not installed (Debian: apt-get install iptables)")

    def test_check_refused(self) -> None:
        """It is said if table C{mangle} cannot be used, in the words of iptables."""
        family = self.variant.ipv4
        for name in ("tool-save", "tool-restore"):
            self.tool(name, "exit 0")
        self.tool("tool", 'echo no table for you: "$@" >&2; exit 3')
        self.assertEqual(
            self.variant.check(), f"{family} exited with status 3: no table for you: -w 2 -t mangle -S PREROUTING"
        )


class ChoiceTests(SynchronousTestCase):
    """Which variant is used."""

    def setUp(self) -> None:
        enter_namespace(self)
        choice = choose_variant("KUBE-PUBLIC")
        assert choice.other is not None
        self.usual, self.other = choice.variant, choice.other
        self.assertEqual(choice, Choice(self.usual, "it is this host's iptables", self.other))

    def choice(self) -> tuple[Variant, str]:
        choice = choose_variant("KUBE-PUBLIC")
        self.assertEqual({choice.variant, choice.other}, {self.usual, self.other})
        return choice.variant, choice.reason

    def test_hints(self) -> None:
        """It is the one in which kubelet has its chains, in either family, however many rules the other one has."""
        for _ in range(3):
            Table(self.usual.ipv4).change("-A", "OUTPUT", "-j", "ACCEPT")
        Table(self.other.ipv6).change("-N", "KUBE-KUBELET-CANARY")
        self.assertEqual(self.choice(), (self.other, "kubelet has its chains there"))

    def test_hints_in_both(self) -> None:
        """A hint in both is none."""
        for variant in (self.usual, self.other):
            Table(variant.ipv4).change("-N", "KUBE-IPTABLES-HINT")
        self.assertEqual(self.choice(), (self.usual, "it is this host's iptables"))

    def test_more_rules(self) -> None:
        """Without such chains, it is the one in which others have more rules. Ours do not count."""
        IptablesFirewall("KUBE-PUBLIC", FwMark(1), self.other).replace(BOTH)
        self.assertEqual(self.choice(), (self.usual, "it is this host's iptables"))
        subprocess.run([self.other.ipv4, "-t", "nat", "-A", "OUTPUT", "-j", "ACCEPT"], check=True)
        self.assertEqual(self.choice(), (self.other, "others have 1 rules there, and 0 in the other one"))
        Table(self.usual.ipv6).change("-A", "OUTPUT", "-j", "ACCEPT")
        self.assertEqual(self.choice(), (self.usual, "it is this host's iptables"))

    def test_untouched(self) -> None:
        """Looking makes no tables of the legacy variant."""
        self.assertEqual(Path("/proc/net/ip_tables_names").read_text(), "")

    def test_only_one(self) -> None:
        """An iptables whose other variant is not installed is the one."""
        folder = Path(self.mktemp())
        folder.mkdir()
        for version, name in {"iptables v1.6.1": "legacy", "iptables v1.8.9 (nf_tables)": "nft"}.items():
            tool = folder / name
            tool.write_text(f"#!/bin/sh\necho '{version}'\n")
            tool.chmod(0o755)
            path = str(tool.absolute())
            self.assertEqual(choose_variant("C", path).variant.name, name)

    def test_missing(self) -> None:
        """Where there is no iptables, it is said what to install."""
        with self.assertRaises(NetworkError) as caught:
            choose_variant("KUBE-PUBLIC", "no-iptables")
        self.assertEqual(str(caught.exception), "no-iptables is not installed (Debian: apt-get install iptables)")


class NameTests(SynchronousTestCase):
    """What chains and comments can be called."""

    def test_chain(self) -> None:
        """iptables takes these names, and makes the chain."""
        enter_namespace(self)
        for name in ("KUBE-PUBLIC", "a", "x" * 28, "_.:-"):
            self.assertTrue(valid_chain_name(name), name)
            firewall = IptablesFirewall(name, FwMark(1), NFT)
            firewall.replace({WEB})
            self.assertEqual((firewall.read(), chains()), ({WEB}, [name]))
            firewall.remove()

    def test_not_a_chain(self) -> None:
        """These are not taken."""
        names = [
            "",
            "x" * 29,
            "-a",
            "!a",
            "a b",
            "a\n",
            "a\tb",
            "é",
            "a'b",
            "PREROUTING",
            "ACCEPT",
            "RETURN",
            "MARK",
            ":a",
        ]
        self.assertEqual([name for name in names if valid_chain_name(name)], [])

    def test_evil(self) -> None:
        """No comment can end its quotes or its line."""
        for name in EVIL:
            self.assertRaises(NetworkError, rule_comment, name, COMMENT_SIZE)

    @given(name=text(max_size=300))
    def test_comment(self, name: str) -> None:
        """A comment is the name, as far as there is room."""
        try:
            comment = rule_comment(name, COMMENT_SIZE)
        except NetworkError:
            self.assertFalse(re.fullmatch(r"[a-z0-9./-]+", name), name)
        else:
            self.assertTrue(name.startswith(comment) and comment.isprintable() and len(comment.encode()) <= 255)
            self.assertTrue(comment == name or len(comment.encode()) > 251)

    @given(mark=sampled_from(sorted(MANY, key=str)))
    def test_rule(self, mark: Mark) -> None:
        """A rule is one line of nine words and options, in which only the comment is quoted."""
        to = f"{mark.address}/{32 if mark.address.version == 4 else 128}"
        self.assertEqual(
            rule("KUBE-PUBLIC", FwMark(7, 0xFF), mark),
            f"-A KUBE-PUBLIC -d {to} -p {mark.protocol.value} -m {mark.protocol.value} --dport {mark.port}"
            f' -m comment --comment "{mark.service}" -j MARK --set-xmark 0x7/0xff',
        )
