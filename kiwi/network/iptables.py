"""The marks on traffic to public addresses, in chains of iptables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import pairwise

from attrs import define, evolve, field, frozen
from zope.interface import implementer

from kiwi.model import Mark, Protocol, ip

from .firewall import WHOLE_MARK, FwMark, rule_comment
from .interface import IFirewall, NetworkError
from .nfnetlink import nftables

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

# Note [IPv6 when it is needed]
# A host may have no ip6tables, or no IPv6 at all. So the chain for IPv6 is made when there is the first mark for IPv6,
# and ip6tables is not run before that, except to see whether an earlier life of this agent has left a chain. On a host
# without IPv6 no packet can come that such a mark is for, so it counts as set. Where there is IPv6 but no ip6tables,
# marks for IPv6 fail, and all others are set all the same.

MANGLE = "mangle"
HOOK = "PREROUTING"
NFT, LEGACY = "nft", "legacy"
HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
"""Chains that kubelet makes, in table C{mangle}, in the variant that its host uses."""

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


def rule(chain: str, fwmark: FwMark, mark: Mark) -> str:
    """
    A line for iptables-restore, or ip6tables-restore. Raises L{NetworkError} where the name of the Service cannot be a
    comment.
    """
    return (
        f"-A {chain} -d {mark.address}/{mark.address.max_prefixlen} -p {mark.protocol} -m {mark.protocol}"
        f' --dport {mark.port:d} -m comment --comment "{rule_comment(mark.service, COMMENT_SIZE)}"'
        f" -j MARK --set-xmark {fwmark}"
    )


def _not_installed(name: str) -> str:
    return f"{name} is not installed (Debian: apt-get install iptables)"


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
            raise NetworkError(_not_installed(name))
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


@frozen
class Variant:
    """
    One of the two variants of iptables, as it is installed here.

    @ivar name: C{nft} or C{legacy}. The one keeps its rules in nf_tables, the other one has tables of its own, and each
        knows nothing of what the other one has.
    @ivar ipv4: the name of the executable, to which C{-save} and C{-restore} are added for the others.
    @ivar ipv6: the same for IPv6.
    @ivar net: the folder of what the kernel tells of the network namespace of the calling thread.
    """

    name: str
    ipv4: str = "iptables"
    ipv6: str = "ip6tables"
    net: str = "/proc/thread-self/net"

    @property
    def other(self) -> Variant:
        """The other one, under the names that it has where both are installed."""
        name = LEGACY if self.name == NFT else NFT
        return Variant(name, f"iptables-{name}", f"ip6tables-{name}")

    def check(self) -> str | None:
        """What is wrong with it on this host, in one line; C{None} if nothing is. It changes nothing."""
        try:
            tools = _Tools.find(self.ipv4)
            for name in tools.paths:
                tools.path(name)
            tools.run(self.ipv4, "-w", "2", "-t", MANGLE, "-S", HOOK, timeout=5)
        except NetworkError as error:
            return str(error)
        return None

    def without_ipv6(self) -> str | None:
        """What is missing for IPv6, where there is IPv6; C{None} if nothing is. See Note [IPv6 when it is needed]."""
        missing = [name for name, path in _Tools.find(self.ipv6).paths.items() if path is None]
        return _not_installed(missing[0]) if missing and self.has_ipv6() else None

    @property
    def in_nf_tables(self) -> bool:
        return self.name == NFT

    def has_ipv6(self) -> bool:
        """Whether this host has IPv6 at all."""
        return os.path.exists(f"{self.net}/if_inet6")

    def in_use(self, family: str) -> bool:
        """
        Whether a family may have any rules. Asking iptables itself would make tables of the legacy variant, for good.
        """
        if self.in_nf_tables:
            return True
        try:
            with open(f"{self.net}/{'ip' if family == self.ipv4 else 'ip6'}_tables_names") as names:
                return MANGLE in names.read().split()
        except OSError:
            return False

    def saved(self, family: str) -> list[str]:
        """All rules and chains of one family; none where it cannot tell."""
        if not self.in_use(family):
            return []
        try:
            return _Tools.find(family).run(f"{family}-save", timeout=10).splitlines()
        except NetworkError:
            return []


@frozen
class Choice:
    """
    Which variant of iptables this host uses.

    @ivar reason: how that was seen: the end of a sentence.
    @ivar other: the other one, where it is installed.
    """

    variant: Variant
    reason: str
    other: Variant | None


def choose_variant(chain: str, family: str = "iptables") -> Choice:
    """
    The variant that others use on this host. Raises L{NetworkError} where there is no iptables.

    On a host, C{iptables} is the one that its administrator has chosen. In a container it is the image's, and what
    counts is the host's: the one where kubelet has put its chains (Kubernetes enhancement 3178), or else the one in
    which others have more rules.

    @param chain: ours, which does not count.
    """
    version = _Tools.find(family).run(family, "--version", timeout=5)
    usual = Variant(NFT if "nf_tables" in version else LEGACY, family, family.replace("iptables", "ip6tables"))
    if not all(_Tools.find(usual.other.ipv4).paths.values()):
        return Choice(usual, "there is no other one", None)
    found = [
        (each, [line for family in (each.ipv4, each.ipv6) for line in each.saved(family)])
        for each in (usual, usual.other)
    ]
    hinted = [each for each, lines in found if any(line.startswith(HINTS) for line in lines)]
    if len(hinted) == 1:
        return Choice(hinted[0], "kubelet has its chains there", hinted[0].other if hinted[0] is usual else usual)
    mine = re.compile(rf"-A {re.escape(chain)} |-A {HOOK} -j {re.escape(chain)}$")
    rules = [sum(line.startswith("-A ") and not mine.match(line) for line in lines) for _, lines in found]
    if rules[1] > rules[0]:
        return Choice(usual.other, f"others have {rules[1]} rules there, and {rules[0]} in the other one", usual)
    return Choice(usual, f"it is this host's {family}", usual.other)


@frozen
class _Found:
    """
    A chain as it is.

    @ivar exists: there is a chain of this name.
    @ivar jumps: how often it is jumped to as we do.
    @ivar marks: the marks that are set; C{None} as in L{IFirewall.read}.
    """

    exists: bool
    jumps: int
    marks: frozenset[Mark] | None


@define
class _Chain:
    """
    The chain of one family. See Note [The whole chain at once].

    @ivar family: the name of the executable, to which C{-save} and C{-restore} are added for the others.
    @ivar restored: how many transactions there were.
    @ivar _cut: the names that are too long for a comment, by what is left of them there, as last written.
    @ivar _known: the rules of the chain as last read, and the mark that each one sets.
    """

    chain: str
    fwmark: FwMark
    family: str
    wait: int
    timeout: float
    restored: int = field(default=0, init=False)
    found: _Found | None = field(default=None, init=False)
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
            rf"-A {re.escape(self.chain)} -d ([0-9a-f.:]+)/([0-9]+) -p (tcp|udp|sctp) -m \3 --dport ([0-9]+)"
            r' -m comment --comment ("[^"\\]*"|[^"\\\s]+) -j MARK --set-x?mark (0x[0-9a-f]+)(?:/(0x[0-9a-f]+))?'
        )

    @property
    def is_installed(self) -> bool:
        return all(self._tools.paths.values())

    def none(self) -> _Found:
        """No chain, where it is known that there is none."""
        self.found = _Found(exists=False, jumps=0, marks=None)
        return self.found

    def look(self) -> _Found:
        """The chain as it is now."""
        exists, jumps, rules = False, 0, 0
        known, self._known = self._known, {}
        for line in self._save():
            if line.startswith(f"-A {self.chain} "):
                rules += 1
                self._known[line] = known[line] if line in known else self._mark(line)
            elif line.startswith(f":{self.chain} "):
                exists = True
            elif line == self._jump:
                jumps += 1
        marks = frozenset(self._named(mark) for mark in self._known.values() if mark is not None)
        self.found = _Found(exists, jumps, marks if exists and jumps == 1 and len(marks) == rules else None)
        return self.found

    def rules(self, marks: AbstractSet[Mark]) -> Mapping[Mark, str]:
        """The rule for each mark. Raises L{NetworkError} as L{rule} does."""
        return {mark: rule(self.chain, self.fwmark, mark) for mark in sorted(marks, key=_order)}

    def replace(self, rules: Mapping[Mark, str], found: _Found) -> None:
        """Make a chain that is like this have exactly these rules, in one transaction."""
        self.found = None
        names = {mark.service for mark in rules}
        self._cut = {comment: name for name in names if (comment := rule_comment(name, COMMENT_SIZE)) != name}
        if found.marks is not None and found.marks <= rules.keys():
            missing = [line for mark, line in rules.items() if mark not in found.marks]
            if missing:
                self._restore(missing)
        else:
            mended = [self._jump] if not found.jumps else [self._unjump] * (found.jumps - 1)
            self._restore([f":{self.chain} - [0:0]", *rules.values(), *mended])
        self.found = _Found(exists=True, jumps=1, marks=frozenset(rules))

    def remove(self) -> None:
        """As L{IptablesFirewall.remove}."""
        self.found = None
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

    def _named(self, mark: Mark) -> Mark:
        """The mark with the whole name of its Service."""
        name = self._cut.get(mark.service)
        return mark if name is None else evolve(mark, service=name)

    def _mark(self, line: str) -> Mark | None:
        """The mark that a rule of the chain sets, if the rule is one of ours."""
        match = self._pattern.fullmatch(line)
        if match is None:
            return None
        address, prefix, protocol, port, comment, value, mask = match.groups(default=hex(WHOLE_MARK))
        if (int(value, 0), int(mask, 0)) != (self.fwmark.value, self.fwmark.mask):
            return None
        try:
            found = ip(address)
        except ValueError:
            return None
        if int(prefix) != found.max_prefixlen:
            return None
        return Mark(found, Protocol(protocol), int(port), comment.strip('"'))

    def _leads_here(self, line: str) -> bool:
        """Whether a rule has the chain as its target, by C{-j} or C{-g}."""
        words = re.findall(r'"(?:[^"\\]|\\.)*"|\S+', line)
        return any(word in ("-j", "-g") and target == self.chain for word, target in pairwise(words))

    def _save(self) -> list[str]:
        return self._run(f"{self.family}-save", "-t", MANGLE).splitlines()

    def _restore(self, lines: Iterable[str]) -> None:
        text = "\n".join([f"*{MANGLE}", *lines, "COMMIT", ""])
        self._run(f"{self.family}-restore", "--noflush", "--wait", str(self.wait), text=text)
        self.restored += 1

    def _run(self, name: str, *arguments: str, text: str = "") -> str:
        return self._tools.run(name, *arguments, timeout=self.timeout, text=text)


@implementer(IFirewall)
@define
class IptablesFirewall:
    """
    A chain for each family in the network namespace of the calling thread. See Note [The whole chain at once] and
    Note [IPv6 when it is needed].

    @ivar chain: its name, for which L{valid_chain_name} holds.
    @ivar fwmark: the mark.
    @ivar variant: what it is written with.
    @ivar wait: whole seconds to wait for others to let go of the firewall.
    @ivar timeout: seconds after which a process is killed.
    @ivar _generation: when the chains were last known to be as last found. See Note [Generations].
    @ivar _marks: what L{read} gave last.
    @ivar _ipv6_absent: there is no chain for IPv6, and none is needed.
    @ivar _unseen: the marks for IPv6 that were asked for on a host that has no IPv6.
    """

    chain: str
    fwmark: FwMark
    variant: Variant
    wait: int = 2
    timeout: float = 4.0
    _ipv4: _Chain = field(init=False)
    _ipv6: _Chain = field(init=False)
    _generation: int | None = field(default=None, init=False)
    _marks: frozenset[Mark] | None = field(default=None, init=False)
    _ipv6_absent: bool = field(default=False, init=False)
    _unseen: frozenset[Mark] = field(default=frozenset(), init=False)

    @_ipv4.default
    def _chain_for_ipv4(self) -> _Chain:
        return _Chain(self.chain, self.fwmark, self.variant.ipv4, self.wait, self.timeout)

    @_ipv6.default
    def _chain_for_ipv6(self) -> _Chain:
        return _Chain(self.chain, self.fwmark, self.variant.ipv6, self.wait, self.timeout)

    def read(self) -> frozenset[Mark] | None:
        """As L{IFirewall.read}. What is equal to what it gave last is the same object."""
        generation = self._current()
        if generation is None or generation != self._generation:
            self._look(self._ipv4)
            if not self._ipv6_absent and self.variant.has_ipv6() and self._ipv6.is_installed:
                self._look(self._ipv6)
            self._generation = generation
        return self._remembered()

    def replace(self, marks: AbstractSet[Mark]) -> None:
        """
        Make the chains mark exactly this traffic, in one transaction for each family. Where one family fails, the other
        one is marked all the same.
        """
        for_ipv6 = frozenset(mark for mark in marks if mark.address.version == 6)
        rules = {self._ipv4.family: self._ipv4.rules(marks - for_ipv6), self._ipv6.family: self._ipv6.rules(for_ipv6)}
        chains = [self._ipv4]
        if not self.variant.has_ipv6():
            self._unseen = for_ipv6
        elif for_ipv6 or (self._ipv6.is_installed and not self._ipv6_absent):
            chains.append(self._ipv6)
        generation, restored = self._current(), self._restored
        known = generation is not None and generation == self._generation
        self._generation = None

        def write(chain: _Chain) -> None:
            found = (chain.found if known else None) or self._look(chain)
            if chain is self._ipv6:
                if self._ipv6_absent and not for_ipv6:
                    return
                self._ipv6_absent = False
            chain.replace(rules[chain.family], found)

        _for_each(chains, write)
        if generation is not None:
            # If there was another transaction than ours meanwhile, this is not the generation that comes now.
            self._generation = generation + self._restored - restored

    def remove(self) -> None:
        """
        Leave no trace of the chains. Where a rule of somebody else leads to one, it has to stay, but empty and without
        our jump; that raises L{NetworkError}.
        """
        self._generation = None
        chains = [self._ipv4]
        if not self._ipv6_absent and self.variant.has_ipv6() and self._ipv6.is_installed:
            chains.append(self._ipv6)
        self._unseen = frozenset()
        _for_each([chain for chain in chains if self.variant.in_use(chain.family)], _Chain.remove)

    def _look(self, chain: _Chain) -> _Found:
        """A chain as it is now. See Note [IPv6 when it is needed]."""
        in_use = self.variant.in_use(chain.family)
        found = chain.look() if in_use else chain.none()
        if chain is self._ipv6:
            self._ipv6_absent = not (found.exists or found.jumps)
        return found

    def _remembered(self) -> frozenset[Mark] | None:
        """What the chains mark as they were last found."""
        marks = None if self._ipv4.found is None else self._ipv4.found.marks
        also: frozenset[Mark] | None = self._unseen
        if self.variant.has_ipv6():
            found = self._ipv6.found
            also = frozenset() if self._ipv6_absent or found is None else found.marks
        whole = None if marks is None or also is None else marks | also
        if whole != self._marks:
            self._marks = whole
        return self._marks

    @property
    def _restored(self) -> int:
        return self._ipv4.restored + self._ipv6.restored

    def _current(self) -> int | None:
        """The generation of the ruleset, where that says anything about these chains. See Note [Generations]."""
        if not self.variant.in_nf_tables:
            return None
        with nftables("cannot read the generation of the firewall's rules") as kernel:
            return kernel.generation()


def _for_each(chains: Iterable[_Chain], do: Callable[[_Chain], object]) -> None:
    """Do something for every chain, also where it fails for one; then raise the first L{NetworkError}."""

    def attempt(chain: _Chain) -> NetworkError | None:
        try:
            do(chain)
        except NetworkError as error:
            return error
        return None

    errors = [error for error in map(attempt, chains) if error is not None]
    if errors:
        raise errors[0]


def _order(mark: Mark) -> tuple[bytes, str, int, str]:
    return mark.address.packed, mark.protocol.value, mark.port, mark.service
