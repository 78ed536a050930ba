"""The firewall suite, in memory and on the kernel's own; and what only iptables does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from attrs import define, field
from hypothesis import example, given, settings
from hypothesis.strategies import characters, one_of, sampled_from, text
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Mark, Protocol
from kiwi.network.firewall import IptablesFirewall, check_iptables, rule, rule_comment, valid_chain_name
from kiwi.network.interface import NetworkError
from kiwi.network.memory import MemoryFirewall

from .firewalltests import ADDRESS, DNS, EVIL, MANY, WEB, make_firewall_tests
from .hosts import enter_namespace

JUMP = "-A PREROUTING -j KUBE-PUBLIC"
WEB_RULE = (
    "-A KUBE-PUBLIC -d 192.168.1.41/32 -p tcp -m tcp --dport 8080 -m comment --comment web"
    " -j MARK --set-xmark 0x1/0xffffffff"
)


def iptables(*words: str) -> None:
    """Change table C{mangle} by hand."""
    subprocess.run(["iptables", "-w", "5", "-t", "mangle", *words], check=True)


def rules(*options: str) -> list[str]:
    """The rules of table C{mangle} as iptables-save prints them."""
    saved = subprocess.run(["iptables-save", "-t", "mangle", *options], check=True, capture_output=True, text=True)
    return [line for line in saved.stdout.splitlines() if re.match(r"(\[\d+:\d+\] )?-A ", line)]


def chains() -> list[str]:
    """The chains of table C{mangle} that are not built in."""
    saved = subprocess.run(["iptables-save", "-t", "mangle"], check=True, capture_output=True, text=True)
    return [line.split()[0][1:] for line in saved.stdout.splitlines() if re.match(r":\S+ - ", line)]


@define
class MemoryFixture:
    """A C{FirewallFixture} in memory."""

    firewall: MemoryFirewall = field(factory=MemoryFirewall)

    def spoil(self) -> None:
        self.firewall.spoil()


@define
class IptablesFixture:
    """A C{FirewallFixture} in a network namespace."""

    firewall: IptablesFirewall

    def spoil(self) -> None:
        iptables("-D", "KUBE-PUBLIC", "1")
        iptables("-A", "KUBE-PUBLIC", "-d", str(ADDRESS), "-j", "RETURN")


def make_iptables_fixture(case: SynchronousTestCase) -> IptablesFixture:
    enter_namespace(case)
    return IptablesFixture(IptablesFirewall("KUBE-PUBLIC", 1))


class MemoryFirewallTests(make_firewall_tests(lambda case: MemoryFixture())):  # type: ignore[misc]
    """A firewall that only remembers."""


class IptablesFirewallTests(make_firewall_tests(make_iptables_fixture)):  # type: ignore[misc]
    """The one of a network namespace."""

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

    def test_other_mark(self) -> None:
        """A chain that was made for another mark is not as it should be, and becomes so."""
        other = IptablesFirewall("KUBE-PUBLIC", 0x20)
        self.firewall.replace({WEB})
        self.assertIsNone(other.read())
        other.replace({WEB})
        self.assertEqual(rules(), [JUMP, WEB_RULE.replace("0x1/", "0x20/")])

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
            self.assertRegex(str(caught.exception), r"\Aiptables-restore exited with status 2: [ -~]+\Z")
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

    def tool(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def firewall(self, timeout: float = 10.0) -> IptablesFirewall:
        """One that is made of this test's tools."""
        return IptablesFirewall("KUBE-PUBLIC", 1, family=str(self.folder.absolute() / "tool"), timeout=timeout)

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
            rule("KUBE-PUBLIC", 1, WEB),
            rule("KUBE-PUBLIC", 1, DNS),
        )
        self.assertEqual(
            told.read_text().splitlines(),
            [
                *(call, "*mangle", chain, web, JUMP, "COMMIT"),
                *(call, "*mangle", dns, "COMMIT"),
                *(call, "*mangle", chain, dns, "COMMIT"),
            ],
        )

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
        self.assertIsNone(check_iptables())
        self.assertEqual((rules(), chains()), ([], []))

    def test_check_missing(self) -> None:
        """It is said which of the executables is missing, and what to install."""
        family = self.firewall().family
        self.tool("tool", "exit 0")
        self.tool("tool-restore", "exit 0")
        self.assertEqual(check_iptables(family), f"{family}-save is not installed (Debian: apt-get install iptables)")

    def test_check_refused(self) -> None:
        """It is said if table C{mangle} cannot be used, in the words of iptables."""
        family = self.firewall().family
        for name in ("tool-save", "tool-restore"):
            self.tool(name, "exit 0")
        self.tool("tool", 'echo no table for you: "$@" >&2; exit 3')
        self.assertEqual(
            check_iptables(family), f"{family} exited with status 3: no table for you: -w 2 -t mangle -S PREROUTING"
        )


class NameTests(SynchronousTestCase):
    """What chains and comments can be called."""

    def test_chain(self) -> None:
        """iptables takes these names, and makes the chain."""
        enter_namespace(self)
        for name in ("KUBE-PUBLIC", "a", "x" * 28, "_.:-"):
            self.assertTrue(valid_chain_name(name), name)
            firewall = IptablesFirewall(name, 1)
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
            self.assertRaises(NetworkError, rule_comment, name)

    @given(name=text(max_size=300))
    def test_comment(self, name: str) -> None:
        """A comment is the name, as far as there is room."""
        try:
            comment = rule_comment(name)
        except NetworkError:
            self.assertFalse(re.fullmatch(r"[a-z0-9./-]+", name), name)
        else:
            self.assertTrue(name.startswith(comment) and comment.isprintable() and len(comment.encode()) <= 255)
            self.assertTrue(comment == name or len(comment.encode()) > 251)

    @given(mark=sampled_from(sorted(MANY)))
    def test_rule(self, mark: Mark) -> None:
        """A rule is one line of nine words and options, in which only the comment is quoted."""
        self.assertEqual(
            rule("KUBE-PUBLIC", 7, mark),
            f"-A KUBE-PUBLIC -d {mark.address}/32 -p {mark.protocol.value} -m {mark.protocol.value} --dport {mark.port}"
            f' -m comment --comment "{mark.service}" -j MARK --set-mark 7',
        )
