"""How servers are reached."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import HTTPConnectionPool

from kiwi.connections import CONNECT_TIMEOUT, http_clients
from kiwi.http import request


class Names:
    """Where names are looked up, which takes long."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def resolveHostName(self, receiver: object, name: str, **more: object) -> None:
        self.asked.append(name)


class ConnectionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.names = Names()
        reactor: Any = MemoryReactorClock()
        reactor.nameResolver = self.names
        self.reactor = reactor

    def connecting(self, url: str) -> list[tuple[str, int, float]]:
        """Where connections are opened for a request, and for how long that is tried."""
        http, _ = http_clients(self.reactor, lambda: HTTPConnectionPool(self.reactor))
        request(http, self.reactor, "GET", url, timeout=30).addErrback(lambda failure: None)
        return [(host, port, timeout) for host, port, _, timeout, _ in self.reactor.tcpClients]

    def test_address(self) -> None:
        """An address is connected to as it is, of either family; nothing is looked up."""
        self.assertEqual(self.connecting("http://192.168.1.1:2379/"), [("192.168.1.1", 2379, CONNECT_TIMEOUT)])
        self.reactor.tcpClients.clear()
        self.assertEqual(self.connecting("http://[fd00::1]:2379/"), [("fd00::1", 2379, CONNECT_TIMEOUT)])
        self.assertEqual(self.names.asked, [])

    def test_name(self) -> None:
        """A name is looked up."""
        self.assertEqual(self.connecting("http://etcd.example:2379/"), [])
        self.assertEqual(self.names.asked, ["etcd.example"])
