"""News from the kernel: somebody changed the host's network."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
)
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .addresses import PROTOCOL
from .packets import assembled, attach_filter

_GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
_ALWAYS = frozenset([RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR])
_ROUTES = frozenset([RTM_NEWROUTE, RTM_DELROUTE])
_HEADER = struct.Struct("=IHHII")

_JUMP_IF, _LOAD, _LOAD_AT_X, _LOAD_BYTE, _LOAD_BYTE_AT_X, _LOAD_HALF = 0x15, 0x20, 0x40, 0x30, 0x50, 0x28
_SET, _SET_X, _MOVE_TO_X, _RETURN = 0x00, 0x01, 0x07, 0x06
_FIND_ATTRIBUTE = 0xFFFFF000 + 12
"""Where a program that loads from there finds the offset of the attribute in X, from A on; 0 where there is none."""

_IFA_CACHEINFO, _IFA_PROTO = 6, 11
_ATTRIBUTES = _HEADER.size + 8
_NEW_ADDRESS, _NEW_ROUTE, _OLD_ROUTE = (
    int.from_bytes(struct.pack("=H", kind), "big") for kind in (RTM_NEWADDR, RTM_NEWROUTE, RTM_DELROUTE)
)

_NEWS: Final = assembled(
    [
        (_LOAD_HALF, 0, 0, 4),
        (_JUMP_IF, 0, 14, _NEW_ADDRESS),
        # It is not ours if it has no protocol, or another one;
        (_SET, 0, 0, _ATTRIBUTES),
        (_SET_X, 0, 0, _IFA_PROTO),
        (_LOAD, 0, 0, _FIND_ATTRIBUTE),
        (_JUMP_IF, 14, 0, 0),
        (_MOVE_TO_X, 0, 0, 0),
        (_LOAD_BYTE_AT_X, 0, 0, 4),
        (_JUMP_IF, 0, 11, PROTOCOL),
        # and not as we left it if it has no end.
        (_SET, 0, 0, _ATTRIBUTES),
        (_SET_X, 0, 0, _IFA_CACHEINFO),
        (_LOAD, 0, 0, _FIND_ATTRIBUTE),
        (_JUMP_IF, 7, 0, 0),
        (_MOVE_TO_X, 0, 0, 0),
        (_LOAD_AT_X, 0, 0, 8),
        (_JUMP_IF, 4, 5, 0xFFFFFFFF),
        # A route is news if its destination is everything.
        (_JUMP_IF, 1, 0, _NEW_ROUTE),
        (_JUMP_IF, 0, 2, _OLD_ROUTE),
        (_LOAD_BYTE, 0, 0, _HEADER.size + 1),
        (_JUMP_IF, 0, 1, 0),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    ]
)
"""
A program for the kernel that keeps back most of what is no news: the routes of single addresses, and that an address of
ours came or was extended. Five thousand of these a heartbeat would be told of, and each time all of them looked at.
"""

_MESSAGES = 1000
"""How many messages are read in one turn of the reactor; the others wait for the next one."""

_RETRY = 1.0
"""Seconds until a socket that could not be had is tried for again."""


def is_news(message: bytes) -> bool:
    """
    Whether a datagram from rtnetlink is about what an agent reads of its host: interfaces, addresses and default
    routes. The kernel sends one message in each. It also tells of the route of every single address, which is not news.
    """
    if len(message) < _HEADER.size:
        return False
    _, kind, _, _, _ = _HEADER.unpack_from(message)
    # The second byte of struct rtmsg is the size of the destination's prefix; 0 is a default route.
    return kind in _ALWAYS or (kind in _ROUTES and message[_HEADER.size + 1 : _HEADER.size + 2] == b"\0")


@implementer(IReadDescriptor)
class NetlinkMonitor(Service):
    """
    Calls C{changed} once in each turn of the reactor that brought news of interfaces, addresses or default routes
    of the network namespace that it was started in. News that the kernel had to drop is news too. That an address with
    our protocol number (L{PROTOCOL}) and a lifetime came or was extended is none, for this agent did that itself.
    """

    log = Logger()

    def __init__(self, reactor: Any, changed: Callable[[], None]) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        """
        self._reactor = reactor
        self._changed = changed
        self._socket: socket.socket | None = None
        self._retry: IDelayedCall | None = None

    def startService(self) -> None:
        Service.startService(self)
        self._open()

    def stopService(self) -> None:
        Service.stopService(self)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._close()

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        return "netlink"

    def doRead(self) -> Failure | None:
        """Read what there is, and tell once if any of it is news."""
        news = False
        for _ in range(_MESSAGES):
            if self._socket is None:
                break
            try:
                # The head is enough; the rest of the message is discarded.
                news = is_news(self._socket.recv(64)) or news
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return Failure(error)
                news = True
        if news:
            self._changed()
        return None

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave up on the socket. Open another one; what was missed is news."""
        self._close()
        if self.running:
            self.log.warn("News from the network broke off and begins anew: {reason}", reason=reason.getErrorMessage())
            self._open()
            self._changed()

    def _open(self) -> None:
        self._retry = None
        try:
            route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_ROUTE)
            attach_filter(route, _NEWS)
            route.bind((0, _GROUPS))
        except OSError as error:
            self.log.warn("News from the network cannot be had yet: {reason}", reason=error.strerror)
            self._retry = self._reactor.callLater(_RETRY, self._open)
            return
        self._socket = route
        self._reactor.addReader(self)

    def _close(self) -> None:
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None
