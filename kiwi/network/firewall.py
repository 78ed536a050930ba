"""The marks on traffic to public addresses, in a chain of iptables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import AddressValueError
from itertools import pairwise

from attrs import define, evolve, field, frozen
from zope.interface import implementer

from kiwi.model import Mark, Protocol, ipv4

from .interface import IFirewall, NetworkError

# Note [The whole chain at once]
# The chain is ours alone and is written whole, in one transaction: iptables-restore commits all of it or nothing. A
# chain that somebody edited is mended by the very act that creates one. PREROUTING is not ours: one jump is added to it
# or taken out, and nothing else there is named.
#
# There is one short cut. Where the chain is as we would leave it and only lacks rules, those alone are added, which is
# the case for a new Service and in a takeover. For a transaction that takes a rule away keeps iptables-restore waiting
# until no processor uses the old rules any more: 16 ms when it was measured, against 2 ms for one that only adds.

# Note [Quoting]
# iptables-restore splits its lines at blanks outside quotes, and takes a backslash or a quote inside quotes as special.
# A comment therefore goes in quotes and may have only printable characters, without quotes and backslashes: then it is
# one word and ends where it should. In quotes it is never taken for an option either.

MANGLE = "mangle"
HOOK = "PREROUTING"

COMMENT_SIZE = 255
"""Bytes in the comment of a rule (C{XT_MAX_COMMENT_LEN} in C{linux/netfilter/xt_comment.h}, less its terminator)."""

CHAIN_SIZE = 28
"""Characters in the name of a chain (C{XT_EXTENSION_MAXNAMELEN} in C{linux/netfilter/x_tables.h}, less the end)."""

_TAKEN = re.compile(
    r"PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING|ACCEPT|DROP|QUEUE|RETURN|MARK|"
    r"CONNMARK|REJECT|LOG|NFLOG|NFQUEUE|DNAT|SNAT|MASQUERADE|REDIRECT|NETMAP|TPROXY|"
    r"TOS|DSCP|TTL|TCPMSS|CLASSIFY|CHECKSUM|CT|NOTRACK|TRACE|TEE|SET|AUDIT|"
    r"CLUSTERIP|ECN|HMARK|IDLETIMER|LED|RATEEST|SECMARK|CONNSECMARK|SYNPROXY|TCPOPTSTRIP"
)


def valid_chain_name(name: str) -> bool:
    """
    Whether iptables takes a chain of this name: 1 to 28 plain characters, no dash or exclamation mark at the beginning,
    and not the name of a built-in chain or of a target.
    """
    return re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.:-]{0,27}", name) is not None and _TAKEN.fullmatch(name) is None


def rule_comment(service: str) -> str:
    """
    The comment of a rule for a Service: its name, cut to 255 bytes. See Note [Quoting].

    Raises L{NetworkError} where the name has characters that do not belong there.
    """
    if not service or not service.isprintable() or any(character in "\"'\\" for character in service):
        raise NetworkError(f"{service!a} cannot be the comment of a rule")
    return service.encode()[:COMMENT_SIZE].decode(errors="ignore")


def rule(chain: str, fwmark: int, mark: Mark) -> str:
    """A line for iptables-restore. Raises L{NetworkError} as L{rule_comment} does."""
    return (
        f"-A {chain} -d {mark.address}/32 -p {mark.protocol} -m {mark.protocol} --dport {mark.port:d}"
        f' -m comment --comment "{rule_comment(mark.service)}" -j MARK --set-mark {fwmark:d}'
    )


def check_iptables(family: str = "iptables") -> str | None:
    """
    What is wrong with iptables on this host, in one line; C{None} if nothing is. It changes nothing.

    @param family: as in L{IptablesFirewall}.
    """
    try:
        tools = _Tools.find(family)
        for name in tools.paths:
            tools.path(name)
        tools.run(family, "-w", "2", "-t", MANGLE, "-S", HOOK, timeout=5)
    except NetworkError as error:
        return str(error)
    return None


@frozen
class _Tools:
    """
    The executables of iptables.

    @ivar paths: where each one is, or C{None} where it is not installed.
    """

    paths: Mapping[str, str | None]

    @classmethod
    def find(cls, family: str) -> _Tools:
        # A service's PATH often lacks the folders for administrators.
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
        return cls({name: shutil.which(name, path=path) for name in (family, f"{family}-save", f"{family}-restore")})

    def path(self, name: str) -> str:
        found = self.paths[name]
        if found is None:
            raise NetworkError(f"{name} is not installed (Debian: apt-get install iptables)")
        return found

    def run(self, name: str, *arguments: str, timeout: float, text: str = "") -> str:
        """What it prints, within so many seconds. Raises L{NetworkError} where it exits with another status than 0."""
        try:
            done = subprocess.run(
                [self.path(name), *arguments],
                check=False,
                input=text.encode(),
                capture_output=True,
                timeout=timeout,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired as error:
            raise NetworkError(f"{name} did not finish within {timeout:g} s") from error
        except OSError as error:
            raise NetworkError(f"{name} did not start: {error.strerror}") from error
        if done.returncode:
            complaint = " ".join(done.stderr.decode(errors="replace").split())
            raise NetworkError(f"{name} exited with status {done.returncode}: {ascii(complaint)[1:-1][:300]}")
        return done.stdout.decode(errors="replace")


@implementer(IFirewall)
@define
class IptablesFirewall:
    """
    A chain in the network namespace of the calling thread. See Note [The whole chain at once].

    @ivar chain: its name, for which L{valid_chain_name} holds.
    @ivar fwmark: the mark, 0 to 2**32 - 1.
    @ivar family: the name of the executable, to which C{-save} and C{-restore} are added for the others.
    @ivar wait: whole seconds to wait for others to let go of the firewall.
    @ivar timeout: seconds after which a process is killed.
    @ivar _cut: the names that are too long for a comment, by what is left of them there, as last written.
    @ivar _known: the rules of the chain as last read, and the mark that each one sets.
    """

    chain: str
    fwmark: int
    family: str = "iptables"
    wait: int = 2
    timeout: float = 4.0
    _tools: _Tools = field(init=False)
    _pattern: re.Pattern[str] = field(init=False)
    _cut: dict[str, str] = field(factory=dict, init=False)
    _known: dict[str, Mark | None] = field(factory=dict, init=False)

    @_tools.default
    def _find_tools(self) -> _Tools:
        return _Tools.find(self.family)

    @_pattern.default
    def _pattern_of_rule(self) -> re.Pattern[str]:
        return re.compile(
            rf"-A {re.escape(self.chain)} -d ([0-9.]+)/32 -p (tcp|udp|sctp) -m \2 --dport ([0-9]+)"
            r' -m comment --comment ("[^"\\]*"|[^"\\\s]+) -j MARK --set-x?mark (0x[0-9a-f]+|[0-9]+)(?:/0xffffffff)?'
        )

    def read(self) -> frozenset[Mark] | None:
        return self._marks(self._save())

    def replace(self, marks: AbstractSet[Mark]) -> None:
        """Make the chain mark exactly this traffic, in one transaction. See Note [The whole chain at once]."""
        rules = {mark: rule(self.chain, self.fwmark, mark) for mark in sorted(marks, key=_order)}
        names = {mark.service for mark in marks}
        self._cut = {comment: name for name in names if (comment := rule_comment(name)) != name}
        saved = self._save()
        present = self._marks(saved)
        if present is not None and present <= rules.keys():
            missing = [line for mark, line in rules.items() if mark not in present]
            if missing:
                self._restore(missing)
        else:
            jumps = saved.count(self._jump)
            mended = [self._jump] if not jumps else [self._unjump] * (jumps - 1)
            self._restore([f":{self.chain} - [0:0]", *rules.values(), *mended])

    def remove(self) -> None:
        """
        Leave no trace of the chain. Where a rule of somebody else leads to it, it has to stay, but empty and without
        our jump; that raises L{NetworkError}.
        """
        saved = self._save()
        if not any(line.startswith(f":{self.chain} ") for line in saved):
            return
        jumps = [self._unjump] * saved.count(self._jump)
        others = [line for line in saved if line != self._jump and self._leads_here(line)]
        self._restore([*jumps, f"-F {self.chain}", *([] if others else [f"-X {self.chain}"])])
        if others:
            raise NetworkError(
                f"chain {self.chain} is empty now but stays, for a rule of somebody else leads to it:"
                f" {ascii(others[0])[1:-1]}"
            )

    @property
    def _jump(self) -> str:
        return f"-A {HOOK} -j {self.chain}"

    @property
    def _unjump(self) -> str:
        return f"-D {HOOK} -j {self.chain}"

    def _marks(self, saved: Iterable[str]) -> frozenset[Mark] | None:
        """The marks that are set, by what iptables-save tells; C{None} as in L{IFirewall.read}."""
        known, self._known = self._known, {}
        present, jumps, rules = False, 0, 0
        for line in saved:
            if line.startswith(f"-A {self.chain} "):
                rules += 1
                self._known[line] = known[line] if line in known else self._mark(line)
            elif line.startswith(f":{self.chain} "):
                present = True
            elif line == self._jump:
                jumps += 1
        marks = frozenset(self._named(mark) for mark in self._known.values() if mark is not None)
        return marks if present and jumps == 1 and len(marks) == rules else None

    def _named(self, mark: Mark) -> Mark:
        """The mark with the whole name of its Service."""
        name = self._cut.get(mark.service)
        return mark if name is None else evolve(mark, service=name)

    def _mark(self, line: str) -> Mark | None:
        """The mark that a rule of the chain sets, if the rule is one of ours."""
        match = self._pattern.fullmatch(line)
        if match is None or int(match[5], 0) != self.fwmark:
            return None
        try:
            return Mark(ipv4(match[1]), Protocol(match[2]), int(match[3]), match[4].strip('"'))
        except AddressValueError:
            return None

    def _leads_here(self, line: str) -> bool:
        """Whether a rule has the chain as its target, by C{-j} or C{-g}."""
        words = re.findall(r'"(?:[^"\\]|\\.)*"|\S+', line)
        return any(word in ("-j", "-g") and target == self.chain for word, target in pairwise(words))

    def _save(self) -> list[str]:
        return self._run(f"{self.family}-save", "-t", MANGLE).splitlines()

    def _restore(self, lines: Iterable[str]) -> None:
        text = "\n".join([f"*{MANGLE}", *lines, "COMMIT", ""])
        self._run(f"{self.family}-restore", "--noflush", "--wait", str(self.wait), text=text)

    def _run(self, name: str, *arguments: str, text: str = "") -> str:
        return self._tools.run(name, *arguments, timeout=self.timeout, text=text)


def _order(mark: Mark) -> tuple[bytes, str, int, str]:
    return mark.address.packed, mark.protocol.value, mark.port, mark.service
