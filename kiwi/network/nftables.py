"""The marks on traffic to public addresses, in a table of nftables."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain

from attrs import define, evolve, field, frozen
from pyroute2.netlink import NLM_F_APPEND, NLM_F_CREATE
from zope.interface import implementer

from kiwi.model import Mark, Protocol, ip

from .firewall import WHOLE_MARK, FwMark, rule_comment
from .interface import IFirewall, NetworkError
from .netlink import attribute, attributes, nested, walk
from .nfnetlink import Message, Nftables, Superseded, nftables

# Note [One lookup]
# There is one map for each family, from (address, protocol, port) to the mark, and one rule that looks there:
#
#     table inet kiwi {
#         map ipv4 {
#             type ipv4_addr . inet_proto . inet_service : mark
#             elements = { 192.168.1.41 . tcp . 8080 comment "web" : 0x00000001 }
#         }
#         map ipv6 { type ipv6_addr . inet_proto . inet_service : mark }
#         chain KUBE-PUBLIC {
#             type filter hook prerouting priority mangle; policy accept;
#             meta mark set ip daddr . meta l4proto . th dport map @ipv4
#             meta mark set ip6 daddr . meta l4proto . th dport map @ipv6
#         }
#     }
#
# The kernel keeps both as hash tables, so a packet costs the same however many marks there are.

# Note [Masks]
# Where only some bits are to be set, what a map gives would have to be mixed with the mark that is there. Only late
# kernels can compute with two registers (C{NFTA_BITWISE_SREG2}), and Debian 12's nft does not know of that. But all
# traffic gets the same mark here, so it may as well stand in the rule, and then a set will do:
#
#     ip daddr . meta l4proto . th dport @ipv4 meta mark set meta mark & 0xffff00ff | 0x00000100
#
# A map of verdicts, which jump to a chain that sets the mark, would do as well. But with each element that is added
# to one, the kernel checks all others for loops.

# Note [Why not by nft]
# The table is what nft would make of the text above, and nft lists it as such. It is written and read here over netlink
# because a process that runs nft takes 3 to 8 ms, cannot be told the generation that a change is for (Note
# [Generations]), and tells 5,000 elements as half a megabyte of JSON, in 0.1 s. Names of Services are values here, not
# text that somebody parses. And nothing has to be installed.

# Note [One transaction]
# Whatever is to be changed goes into one transaction, and packets see what was before or what comes after. Where the
# table is ours and whole, that is elements to be added and deleted. Where it is not, the whole table is deleted and
# made anew.

HOOK_PRIORITY = -150
"""The priority C{mangle} (C{NF_IP_PRI_MANGLE} in C{linux/netfilter_ipv4.h})."""

COMMENT_SIZE = 128
"""Bytes in the comment of an element (C{NFTNL_UDATA_COMMENT_MAXLEN} of libnftnl), without its terminator."""

DEFAULT_CHAIN = "KUBE-PUBLIC"

_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN = 0, 1, 2, 3, 4
_NEWRULE, _GETRULE, _NEWSET, _GETSET = 6, 7, 9, 10
_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_TABLE_NAME, _TABLE_FLAGS, _TABLE_USE = 1, 2, 3
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE, _CHAIN_TYPE = 1, 3, 4, 5, 6, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LEN, _SET_DATA_TYPE, _SET_DATA_LEN = 1, 2, 3, 4, 5, 6, 7
_SET_ID, _SET_TIMEOUT, _SET_USERDATA = 10, 11, 13
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS = 1, 2, 3
_LIST_ELEM = 1
_ELEM_KEY, _ELEM_DATA, _ELEM_FLAGS, _ELEM_TIMEOUT, _ELEM_EXPR, _ELEM_USERDATA = 1, 2, 3, 4, 7, 6
_DATA_VALUE = 1
_EXPR_NAME, _EXPR_DATA = 1, 2

_PREROUTING, _ACCEPT = 0, 1
_NFPROTO_IPV4, _NFPROTO_IPV6 = 2, 10
_META_MARK, _META_NFPROTO, _META_L4PROTO = 3, 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SET_IS_MAP = 8

# Types of values as nft numbers them (C{enum datatypes} in its C{datatype.h}), which only nft itself reads. In a
# concatenation each one has 6 bits.
_TYPE_IPV4_ADDR, _TYPE_IPV6_ADDR, _TYPE_INET_PROTO, _TYPE_INET_SERVICE, _TYPE_MARK = 7, 8, 12, 13, 19

# What nft notes of a map: that the mark in it has the byte order of the host. (Type, size and value.)
_MAP_USERDATA = bytes([0, 4, 0, 0, 0, 0, 1, 4]) + struct.pack("=I", 1)
_COMMENT = 0
"""The type of a comment in what nft notes of an element."""

_PROTOCOLS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP, Protocol.SCTP: socket.IPPROTO_SCTP}
_NUMBERS = {number: protocol for protocol, number in _PROTOCOLS.items()}

_TRIES = 20
"""How often a look or a change is begun anew because somebody changed the ruleset meanwhile."""

_IN_ONE_MESSAGE = 250
"""Elements in one message, whose size has to fit into 16 bits: one takes up to 200 bytes."""

Expression = tuple[str, Mapping[int, bytes]]


def _number(value: int) -> bytes:
    return struct.pack(">I", value)


def _name(text: str) -> bytes:
    return text.encode() + b"\0"


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(_DATA_VALUE, value))


@frozen
class _Family:
    """
    How traffic of one family is looked up.

    @ivar name: of the map.
    @ivar registers: for address, protocol and port, which are side by side in the map's keys.
    """

    name: str
    nfproto: int
    address_type: int
    address_size: int
    address_offset: int
    registers: tuple[int, int, int]

    @property
    def key_size(self) -> int:
        return self.address_size + 8

    @property
    def key_type(self) -> int:
        return self.address_type << 12 | _TYPE_INET_PROTO << 6 | _TYPE_INET_SERVICE

    def rule(self, fwmark: FwMark) -> list[Expression]:
        """The expressions of the rule. See Note [One lookup] and Note [Masks]."""
        address, protocol, port = map(_number, self.registers)
        one = _number(1)
        lookup = {1: _name(self.name), 2: address, 5: _number(0)}
        set_mark: Expression = ("meta", {2: _number(_META_MARK), 3: one})
        found: list[Expression] = [
            ("meta", {1: one, 2: _number(_META_NFPROTO)}),
            ("cmp", {1: one, 2: _number(0), 3: attribute(_DATA_VALUE, bytes([self.nfproto]))}),
            (
                "payload",
                {
                    1: address,
                    2: _number(_NETWORK_HEADER),
                    3: _number(self.address_offset),
                    4: _number(self.address_size),
                },
            ),
            ("meta", {1: protocol, 2: _number(_META_L4PROTO)}),
            ("payload", {1: port, 2: _number(_TRANSPORT_HEADER), 3: _number(2), 4: _number(2)}),
        ]
        if fwmark.mask == WHOLE_MARK:
            return [*found, ("lookup", lookup | {3: one}), set_mark]
        others, value = struct.pack("=I", ~fwmark.mask & WHOLE_MARK), struct.pack("=I", fwmark.value)
        return [
            *found,
            ("lookup", lookup),
            ("meta", {1: one, 2: _number(_META_MARK)}),
            (
                "bitwise",
                {
                    1: one,
                    2: one,
                    3: _number(4),
                    4: attribute(_DATA_VALUE, others),
                    5: attribute(_DATA_VALUE, value),
                    6: _number(0),
                },
            ),
            set_mark,
        ]


_IPV4 = _Family("ipv4", _NFPROTO_IPV4, _TYPE_IPV4_ADDR, 4, 16, (1, 9, 10))
_IPV6 = _Family("ipv6", _NFPROTO_IPV6, _TYPE_IPV6_ADDR, 16, 24, (1, 2, 13))
_FAMILIES = (_IPV4, _IPV6)

_NESTED_IN_EXPRESSIONS = {("cmp", 3), ("bitwise", 4), ("bitwise", 5)}


def _encode(expressions: Sequence[Expression]) -> bytes:
    return nested(
        _RULE_EXPRESSIONS,
        *(
            nested(
                _LIST_ELEM,
                attribute(_EXPR_NAME, _name(name)),
                nested(
                    _EXPR_DATA,
                    *(
                        nested(kind, value) if (name, kind) in _NESTED_IN_EXPRESSIONS else attribute(kind, value)
                        for kind, value in values.items()
                    ),
                ),
            )
            for name, values in expressions
        ),
    )


def _is(encoded: bytes, expected: Sequence[Expression]) -> bool:
    """Whether expressions of a rule are these. What a newer kernel tells of them besides does not matter."""
    found = [attributes(each) for kind, each in walk(encoded) if kind == _LIST_ELEM]
    return len(found) == len(expected) and all(
        each.get(_EXPR_NAME) == _name(name) and values.items() <= attributes(each.get(_EXPR_DATA, b"")).items()
        for each, (name, values) in zip(found, expected, strict=True)
    )


def _key(mark: Mark) -> bytes:
    """The key of an element: address, protocol and port, each one padded to four bytes."""
    return mark.address.packed + struct.pack(">BxxxHxx", _PROTOCOLS[mark.protocol], mark.port)


def _mark(key: bytes, service: str) -> Mark | None:
    """The mark of an element; C{None} where no mark of ours has such a key."""
    number, port = struct.unpack(">BxxxHxx", key[-8:])
    protocol = _NUMBERS.get(number)
    if protocol is None:
        return None
    return Mark(ip(key[:-8]), protocol, port, service)


Services = tuple[str, ...]
"""On whose behalf traffic is marked: names of Services, in order."""


@frozen
class _Marked:
    """
    What the table marks when it is as it should be.

    @ivar services: on whose behalf each key is there.
    @ivar comments: what its comment is.
    """

    marks: frozenset[Mark] = frozenset()
    services: Mapping[bytes, Services] = field(factory=dict)
    comments: Mapping[bytes, bytes] = field(factory=dict)

    def changed_to(self, marks: frozenset[Mark]) -> tuple[_Marked, AbstractSet[bytes]]:
        """
        The same with these marks instead, and the keys that this is about. Raises L{NetworkError} where the name of a
        Service cannot be in a comment.
        """
        added, removed = marks - self.marks, self.marks - marks
        if not (added or removed):
            return self, frozenset()
        names: dict[bytes, set[str]] = {}
        for mark in chain(added, removed):
            key = _key(mark)
            names[key] = set(self.services.get(key, ()))
        for mark in removed:
            names[_key(mark)].discard(mark.service)
        for mark in added:
            rule_comment(mark.service, COMMENT_SIZE)
            names[_key(mark)].add(mark.service)
        services, comments = dict(self.services), dict(self.comments)
        for key, those in names.items():
            if those:
                services[key] = tuple(sorted(those))
                comments[key] = rule_comment(", ".join(services[key]), COMMENT_SIZE).encode()
            else:
                del services[key], comments[key]
        return _Marked(marks, services, comments), names.keys()


@frozen
class _Seen:
    """
    The table in one generation of the ruleset.

    @ivar exists: there is a table of this name.
    @ivar marked: what it marks; C{None} where it is not as it should be.
    """

    generation: int
    exists: bool
    marked: _Marked | None


@implementer(IFirewall)
@define
class NftablesFirewall:
    """
    A table in one network namespace, which the calling thread is in. See Note [One lookup] and Note [One transaction].

    @ivar chain: the name of the chain in it. Under another name than the default one, the table has another name, too,
        so that several agents may be on one host.
    @ivar fwmark: the mark.
    @ivar _seen: the table as last read or written.
    @ivar _known: the elements as last read, and the key and the comment of each one.
    """

    chain: str
    fwmark: FwMark
    _seen: _Seen | None = field(default=None, init=False)
    _known: dict[bytes, tuple[bytes, bytes]] = field(factory=dict, init=False)

    @property
    def table(self) -> str:
        """The name of the table, in family C{inet}."""
        return "kiwi" if self.chain == DEFAULT_CHAIN else f"kiwi-{self.chain}"

    def check(self) -> str | None:
        """What keeps this host from having such a table, in one line; C{None} if nothing does. It changes nothing."""
        try:
            with nftables("nftables cannot be used") as kernel:
                kernel.rehearse(list(evolve(self, chain=f"{self.chain}-check")._whole(_Marked())))
        except NetworkError as error:
            return str(error)
        return None

    def read(self) -> frozenset[Mark] | None:
        """As L{IFirewall.read}. While the table is as it was, it gives the same object."""
        with nftables(f"cannot read table inet {self.table}") as kernel:
            marked = self._look(kernel).marked
        return None if marked is None else marked.marks

    def replace(self, marks: AbstractSet[Mark]) -> None:
        """Make the table mark exactly this traffic. See Note [One transaction]."""
        wanted = frozenset(marks)
        with nftables(f"cannot write table inet {self.table}") as kernel:
            for _ in range(_TRIES):
                seen = self._look(kernel)
                before = seen.marked or _Marked()
                after, keys = before.changed_to(wanted)
                if seen.marked is None:
                    messages = [*self._removal(seen), *self._whole(after)]
                else:
                    messages = list(self._difference(before, after, keys))
                try:
                    generation = kernel.commit(messages, seen.generation) if messages else seen.generation
                except Superseded:
                    continue
                self._seen = _Seen(generation, exists=True, marked=after)
                return
            raise _restless()

    def remove(self) -> None:
        """Leave no trace of the table. It is no error if there is none."""
        with nftables(f"cannot remove table inet {self.table}") as kernel:
            for _ in range(_TRIES):
                seen = self._look(kernel)
                if not seen.exists:
                    return
                try:
                    generation = kernel.commit(list(self._removal(seen)), seen.generation)
                except Superseded:
                    continue
                self._seen, self._known = _Seen(generation, exists=False, marked=None), {}
                return
            raise _restless()

    # Reading.

    def _look(self, kernel: Nftables) -> _Seen:
        """The table as it is now. Where nothing has changed, it is not read again. See Note [Generations]."""
        for _ in range(_TRIES):
            generation = kernel.generation()
            if self._seen is not None and self._seen.generation == generation:
                return self._seen
            exists = self._exists(kernel)
            whole = exists and self._is_whole(kernel)
            elements = [self._elements(kernel, family) for family in _FAMILIES] if whole else None
            if kernel.generation() == generation:
                marked = None if elements is None else self._marked(elements)
                self._seen = _Seen(generation, exists, marked)
                return self._seen
        raise _restless()

    def _exists(self, kernel: Nftables) -> bool:
        return bool(_ask_for(kernel, _GETTABLE, attribute(_TABLE_NAME, _name(self.table))))

    def _is_whole(self, kernel: Nftables) -> bool:
        """Whether the table has what it should have, and nothing else, not looking at elements."""
        own = attribute(_TABLE_NAME, _name(self.table))
        table = _ask_for(kernel, _GETTABLE, own)
        base = _ask_for(kernel, _GETCHAIN, own + attribute(_CHAIN_NAME, _name(self.chain)))
        sets = [_ask_for(kernel, _GETSET, own + attribute(_SET_NAME, _name(family.name))) for family in _FAMILIES]
        rules = [attributes(each) for each in kernel.ask(_GETRULE, own, dump=True)]
        expected = [family.rule(self.fwmark) for family in _FAMILIES]
        hook = attributes(base.get(_CHAIN_HOOK, b""))
        return (
            table.get(_TABLE_FLAGS) == _number(0)
            and table.get(_TABLE_USE) == _number(1 + len(_FAMILIES))
            and hook.get(_HOOK_NUMBER) == _number(_PREROUTING)
            and hook.get(_HOOK_PRIORITY) == struct.pack(">i", HOOK_PRIORITY)
            and base.get(_CHAIN_TYPE) == _name("filter")
            and base.get(_CHAIN_POLICY) == _number(_ACCEPT)
            and base.get(_CHAIN_USE) == _number(len(_FAMILIES))
            and all(
                found.get(_SET_KEY_LEN) == _number(family.key_size)
                and found.get(_SET_FLAGS, _number(0)) == _number(self._set_flags)
                for family, found in zip(_FAMILIES, sets, strict=True)
            )
            and len(rules) == len(expected)
            and all(_is(rule.get(_RULE_EXPRESSIONS, b""), each) for rule, each in zip(rules, expected, strict=True))
        )

    def _marked(self, elements: Iterable[Sequence[bytes]]) -> _Marked | None:
        """What the elements of each family mark; C{None} where there is one that is not as it should be."""
        known, self._known = self._known, {}
        comments: dict[bytes, bytes] = {}
        for family, those in zip(_FAMILIES, elements, strict=True):
            for raw in those:
                element = known.get(raw) or self._element(raw, family)
                if element is None:
                    return None
                self._known[raw] = element
                comments[element[0]] = element[1]
        before = (self._seen.marked if self._seen is not None else None) or _Marked()
        if comments == before.comments:
            return before
        services = {
            key: before.services[key] if before.comments.get(key) == comment else (comment.decode(errors="replace"),)
            for key, comment in comments.items()
        }
        marks = [_mark(key, name) for key, names in services.items() for name in names]
        whole = frozenset(mark for mark in marks if mark is not None)
        return _Marked(whole, services, comments) if None not in marks else None

    def _elements(self, kernel: Nftables, family: _Family) -> list[bytes]:
        return [
            element
            for message in kernel.ask(_GETSETELEM, self._of(family), dump=True)
            for kind, elements in walk(message)
            if kind == _ELEMENTS
            for _, element in walk(elements)
        ]

    def _element(self, raw: bytes, family: _Family) -> tuple[bytes, bytes] | None:
        """The key and the comment of an element, if it is as it should be."""
        found = attributes(raw)
        key = attributes(found.get(_ELEM_KEY, b"")).get(_DATA_VALUE, b"")
        data = found.get(_ELEM_DATA)
        note = found.get(_ELEM_USERDATA, b"")
        if (
            found.keys() <= {_ELEM_KEY, _ELEM_DATA, _ELEM_USERDATA}
            and len(key) == family.key_size
            and (data is None if self._data is None else attributes(data or b"").get(_DATA_VALUE) == self._data)
            and len(note) > 3
            and note[0] == _COMMENT
            and note[1] == len(note) - 2
        ):
            return key, note[2:].rstrip(b"\0")
        return None

    # Writing.

    @property
    def _data(self) -> bytes | None:
        """What a map gives; C{None} where it is a set. See Note [Masks]."""
        return struct.pack("=I", self.fwmark.value) if self.fwmark.mask == WHOLE_MARK else None

    @property
    def _set_flags(self) -> int:
        return 0 if self._data is None else _SET_IS_MAP

    def _of(self, family: _Family) -> bytes:
        """The attributes that say which map elements are in."""
        return attribute(_ELEMENTS_TABLE, _name(self.table)) + attribute(_ELEMENTS_SET, _name(family.name))

    def _removal(self, seen: _Seen) -> Iterator[Message]:
        if seen.exists:
            yield Message(_DELTABLE, 0, attribute(_TABLE_NAME, _name(self.table)))

    def _whole(self, marked: _Marked) -> Iterator[Message]:
        """The table, where there is none."""
        own = attribute(_TABLE_NAME, _name(self.table))
        yield Message(_NEWTABLE, NLM_F_CREATE, own + attribute(_TABLE_FLAGS, _number(0)))
        hook = nested(
            _CHAIN_HOOK,
            attribute(_HOOK_NUMBER, _number(_PREROUTING)),
            attribute(_HOOK_PRIORITY, struct.pack(">i", HOOK_PRIORITY)),
        )
        yield Message(
            _NEWCHAIN,
            NLM_F_CREATE,
            own
            + attribute(_CHAIN_NAME, _name(self.chain))
            + hook
            + attribute(_CHAIN_POLICY, _number(_ACCEPT))
            + attribute(_CHAIN_TYPE, _name("filter")),
        )
        for number, family in enumerate(_FAMILIES, 1):
            body = (
                self._of(family)
                + attribute(_SET_FLAGS, _number(self._set_flags))
                + attribute(_SET_KEY_TYPE, _number(family.key_type))
                + attribute(_SET_KEY_LEN, _number(family.key_size))
                + attribute(_SET_ID, _number(number))
            )
            if self._data is not None:
                body += attribute(_SET_DATA_TYPE, _number(_TYPE_MARK)) + attribute(_SET_DATA_LEN, _number(4))
                body += attribute(_SET_USERDATA, _MAP_USERDATA)
            yield Message(_NEWSET, NLM_F_CREATE, body)
        yield from self._difference(_Marked(), marked, marked.comments.keys())
        for family in _FAMILIES:
            rule = own + attribute(_RULE_CHAIN, _name(self.chain)) + _encode(family.rule(self.fwmark))
            yield Message(_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, rule)

    def _difference(self, before: _Marked, after: _Marked, keys: Iterable[bytes]) -> Iterator[Message]:
        """What makes the elements with these keys those of the other one."""
        old, new = before.comments, after.comments
        changed = [key for key in keys if old.get(key) != new.get(key)]
        for kind, flags, chosen in (
            (_DELSETELEM, 0, [key for key in changed if key in old]),
            (_NEWSETELEM, NLM_F_CREATE, [key for key in changed if key in new]),
        ):
            for family in _FAMILIES:
                those = [key for key in chosen if len(key) == family.key_size]
                for start in range(0, len(those), _IN_ONE_MESSAGE):
                    some = those[start : start + _IN_ONE_MESSAGE]
                    elements = [self._new_element(key, new[key]) if flags else _old_element(key) for key in some]
                    yield Message(kind, flags, self._of(family) + nested(_ELEMENTS, *elements))

    def _new_element(self, key: bytes, comment: bytes) -> bytes:
        data = b"" if self._data is None else _value(_ELEM_DATA, self._data)
        note = bytes([_COMMENT, len(comment) + 1]) + comment + b"\0"
        return nested(_LIST_ELEM, _value(_ELEM_KEY, key), data, attribute(_ELEM_USERDATA, note))


def _old_element(key: bytes) -> bytes:
    return nested(_LIST_ELEM, _value(_ELEM_KEY, key))


def _ask_for(kernel: Nftables, kind: int, body: bytes) -> dict[int, bytes]:
    """The attributes of one thing; none where it does not exist."""
    try:
        found = kernel.ask(kind, body)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return {}
    return attributes(found[0]) if found else {}


def _restless() -> OSError:
    return OSError(errno.EAGAIN, f"somebody else changed the ruleset {_TRIES} times meanwhile")
