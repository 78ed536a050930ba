"""
Conversations with the kernel's nf_tables over netlink: messages as in C{linux/netfilter/nfnetlink.h} and
C{linux/netfilter/nf_tables.h}.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from attrs import frozen
from pyroute2.netlink import (
    NETLINK_EXT_ACK,
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
)

from .interface import NetworkError
from .netlink import CAP_ACK, HEADER, attribute, attributes, refusal, split

NFPROTO_UNSPEC, NFPROTO_INET = 0, 1

# Note [Generations]
# The kernel counts the transactions on nf_tables in each network namespace, whoever makes them, and tells the number
# (NFT_MSG_GETGEN) in 20 microseconds. While it is the same, nothing has changed. A transaction may name the number that
# it is for, and the kernel refuses it (ERESTART) if there was another one meanwhile. So what was read, decided and
# written is one step as seen by everybody else, and the number afterwards is known: it is the next one.
#
# iptables in its nft variant works on nf_tables, too, so the number tells of its changes as well. Its legacy variant
# does not.

_SUBSYSTEM = 10
_GETGEN = 16
_GEN_ID = 1
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_BATCH_GENID = 1
_SO_SNDBUFFORCE = 32
_ERESTART = 85
_NFGENMSG = struct.Struct(">BBH")

_PATIENCE = 5.0
"""Seconds to wait for an answer. A transaction waits for those of others."""


class Superseded(Exception):
    """The transaction was refused, for the generation that it is for is over."""


@frozen
class Message:
    """One part of a transaction: its type (C{NFT_MSG_*}), flags of netlink, and attributes."""

    kind: int
    flags: int
    body: bytes


@frozen
class Nftables:
    """A conversation with nf_tables of one network namespace. What the kernel refuses is raised as L{OSError}."""

    _socket: socket.socket

    def generation(self) -> int:
        """The number of the latest transaction. See Note [Generations]."""
        (found,) = self.ask(_GETGEN, b"", family=NFPROTO_UNSPEC)
        return int(struct.unpack(">I", attributes(found)[_GEN_ID])[0])

    def ask(self, kind: int, body: bytes, dump: bool = False, family: int = NFPROTO_INET) -> list[bytes]:
        """
        Make one request, and read the answer to its very end.

        @return: the attributes of each message; of less than all where the ruleset changed meanwhile, which its
            generation tells.
        """
        flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else NLM_F_ACK)
        self._socket.send(_message(_SUBSYSTEM << 8 | kind, flags, 0, family, 0, body))
        found: list[bytes] = []
        while True:
            for answer, _, _, message in split(self._socket.recv(65536)):
                if answer in (NLMSG_DONE, NLMSG_ERROR):
                    code = -struct.unpack_from("=i", message)[0] if len(message) >= 4 else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    return found
                found.append(message[_NFGENMSG.size :])

    def commit(self, messages: Sequence[Message], generation: int) -> int:
        """
        Make one transaction: all of it or nothing. Raises L{Superseded} where the generation is over.

        @return: the generation that follows from it. See Note [Generations].
        """
        self._transact(messages, attribute(_BATCH_GENID, struct.pack(">I", generation)), commit=True)
        return (generation + 1) & 0xFFFFFFFF or 1

    def rehearse(self, messages: Sequence[Message]) -> None:
        """Have the kernel prepare a transaction, and give it up: nothing changes, but what it refuses is raised."""
        self._transact(messages, b"", commit=False)

    def _transact(self, messages: Sequence[Message], body: bytes, commit: bool) -> None:
        last = len(messages)
        batch = [_message(_BATCH_BEGIN, NLM_F_REQUEST, 0, NFPROTO_UNSPEC, _SUBSYSTEM, body)]
        for number, each in enumerate(messages, 1):
            # The kernel answers to the others only if it refuses them, and in order.
            flags = NLM_F_REQUEST | each.flags | (NLM_F_ACK if number == last else 0)
            batch.append(_message(_SUBSYSTEM << 8 | each.kind, flags, number, NFPROTO_INET, 0, each.body))
        if commit:
            # The kernel gives up what has no end.
            batch.append(_message(_BATCH_END, NLM_F_REQUEST, last + 1, NFPROTO_UNSPEC, _SUBSYSTEM, b""))
        datagram = b"".join(batch)
        self._make_room(len(datagram))
        self._socket.send(datagram)
        refused: tuple[int, str] | None = None
        while True:
            for kind, flags, sequence, message in split(self._socket.recv(65536)):
                if kind != NLMSG_ERROR:
                    continue
                code = -struct.unpack_from("=i", message)[0]
                if code == _ERESTART and not sequence:
                    raise Superseded
                if code and refused is None:
                    refused = (code, refusal(code, flags, message))
                # What concerns the whole transaction has the first number.
                if sequence == last or (code and not sequence):
                    if refused is not None:
                        raise OSError(*refused)
                    return

    def _make_room(self, size: int) -> None:
        """The kernel takes a transaction as one datagram."""
        wanted = size + 4096
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < wanted:
            with suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, wanted)


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    content = _NFGENMSG.pack(family, 0, resource) + body
    return HEADER.pack(HEADER.size + len(content), kind, flags, sequence, 0) + content


@contextmanager
def nftables(asked: str) -> Iterator[Nftables]:
    """
    Talk with nf_tables of the network namespace of this thread; turn what it refuses into L{NetworkError}.

    @param asked: what for; the beginning of the error.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as connection:
            connection.settimeout(_PATIENCE)
            for option in (NETLINK_EXT_ACK, CAP_ACK):
                # An older kernel lacks some. Its answers are longer or less friendly then, and mean the same.
                with suppress(OSError):
                    connection.setsockopt(SOL_NETLINK, option, 1)
            yield Nftables(connection)
    except TimeoutError as error:
        raise NetworkError(f"{asked}: the kernel did not answer within {_PATIENCE:g} s") from error
    except OSError as error:
        raise NetworkError(f"{asked}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP):
        return f"{error.strerror}; does this kernel have nf_tables (CONFIG_NF_TABLES_INET)?"
    return error.strerror or str(error)
