"""News from the kernel: somebody changed the host's network."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import Any

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
    RTMGRP_LINK,
)
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE
_ALWAYS = frozenset([RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR])
_ROUTES = frozenset([RTM_NEWROUTE, RTM_DELROUTE])
_HEADER = struct.Struct("=IHHII")

_MESSAGES = 1000
"""How many messages are read in one turn of the reactor; the others wait for the next one."""

_RETRY = 1.0
"""Seconds until a socket that could not be had is tried for again."""


def is_news(message: bytes) -> bool:
    """
    Whether a datagram from rtnetlink is about what an agent reads of its host: interfaces, IPv4 addresses and default
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
    Calls C{changed} once in each turn of the reactor that brought news of interfaces, IPv4 addresses or default routes
    of the network namespace that it was started in. News that the kernel had to drop is news too. What this agent
    does itself is told as well.
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
