"""The suite of the API server on a real one."""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from .apiserver_process import ADMIN_TOKEN, shared_api_server
from .kubernetestests import Server, make_kubernetes_api_tests
from .worlds import RealWorld


@implementer(IPolicyForHTTPS)
class _Trust:
    """Trusts one authority."""

    def __init__(self, pem: bytes) -> None:
        self._root = trustRootFromCertificates([Certificate.loadPEM(pem)])

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        return optionsForClientTLS(hostname.decode("ascii"), trustRoot=self._root)


def real_server(case: TestCase) -> Server:
    server = shared_api_server()
    world = RealWorld(case)
    trust = _Trust(server.ca_file.read_bytes())
    pool = HTTPConnectionPool(world.clock)
    case.addCleanup(pool.closeCachedConnections)
    world.http = HTTPClient(Agent(world.clock, trust, pool=pool))
    world.stream_http = HTTPClient(Agent(world.clock, trust))
    return Server(
        world, server.endpoint, ADMIN_TOKEN, server.new_namespace(), server.compact, server.forget, lambda: None
    )


class RealTests(make_kubernetes_api_tests(real_server)):  # type: ignore[misc]
    """C{kube-apiserver}."""
