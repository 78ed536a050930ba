"""HTTP clients, over TCP or TLS, and the connections that they keep."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from attrs import define, field
from treq.client import HTTPClient
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.web.client import URI, HTTPConnectionPool
from twisted.web.client import Agent as HTTPAgent
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from .tls import TLS, FreshAgent

CONNECT_TIMEOUT = 2.0


def http_clients(
    reactor: Any, new_pool: Callable[[], HTTPConnectionPool], tls: TLS | None = None
) -> tuple[HTTPClient, HTTPClient]:
    """
    One that keeps connections for requests, and one that opens a connection for each watch.

    @param new_pool: makes what keeps them; called again when the certificates change.
    @param tls: how to speak with servers whose URLs begin with C{https}; C{None} where there are none.
    """
    endpoints = _Endpoints(reactor, tls)

    def pooled() -> tuple[IAgent, Callable[[], object]]:
        pool = new_pool()
        return HTTPAgent.usingEndpointFactory(reactor, endpoints, pool), pool.closeCachedConnections

    return (
        HTTPClient(pooled()[0] if tls is None else FreshAgent(tls, pooled)),
        HTTPClient(HTTPAgent.usingEndpointFactory(reactor, endpoints)),
    )


@implementer(IAgentEndpointFactory)
@define
class _Endpoints:
    """Where servers are. Making an endpoint checks the name, a tenth of what a request costs; so each is made once."""

    _reactor: Any
    _tls: TLS | None
    _made: dict[tuple[bytes, bytes, int], IStreamClientEndpoint] = field(factory=dict, init=False)

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        server = (uri.scheme, uri.host, uri.port)
        if server not in self._made:
            self._made[server] = self._endpoint(*server)
        return self._made[server]

    def _endpoint(self, scheme: bytes, host: bytes, port: int) -> IStreamClientEndpoint:
        endpoint = _endpoint_at(self._reactor, host, port)
        if scheme == b"https" and self._tls is not None:
            return wrapClientTLS(self._tls.creatorForNetloc(host, port), endpoint)
        return endpoint


def _endpoint_at(reactor: Any, host: bytes, port: int) -> IStreamClientEndpoint:
    """A name is looked up in a thread for each connection, and so would be an address if it were taken for a name."""
    text = host.decode("ascii")
    try:
        version = ip_address(text).version
    except ValueError:
        return HostnameEndpoint(reactor, host, port, timeout=CONNECT_TIMEOUT)
    kind = TCP4ClientEndpoint if version == 4 else TCP6ClientEndpoint
    return kind(reactor, text, port, timeout=CONNECT_TIMEOUT)
