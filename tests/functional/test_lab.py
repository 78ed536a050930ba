"""The troubles that the lab makes are real."""

from __future__ import annotations

import contextlib
import json
import time

from tests.fakes.apiserver_process import kubectl_binary
from tests.lab.laboratory import CLUSTER, PROXY_PORT
from tests.lab.proxy import LATENESS, LOSSY, PLAIN, SLOW

from .support import AgentTestCase


class ProxyTests(AgentTestCase):
    """What the proxy before the store makes of its replies."""

    KEYS = "/v2/keys/kiwi/test"

    def setUp(self) -> None:
        super().setUp()
        self.lab.cluster.start_proxy()

    def _ask(self, method: str, query: str = "", limit: float = 5.0) -> int:
        return self.lab.client.request(method, CLUSTER, PROXY_PORT, self.KEYS + query, limit=limit).status

    def test_plain(self) -> None:
        """Requests, replies and the events of a stream go through as they are, on one connection."""
        with self.lab.client.connect(CLUSTER, PROXY_PORT) as sock:
            for number in (1, 2):
                sock.sendall(f"PUT {self.KEYS}?value={number} HTTP/1.1\r\nHost: store\r\n\r\n".encode())
                reply = sock.recv(1 << 16)
                self.assertIn(b" 201 Created\r\n" if number == 1 else b" 200 OK\r\n", reply)
                self.assertIn(b"\r\nX-Etcd-Index: ", reply)
            sock.sendall(f"GET {self.KEYS}?wait=true&stream=true HTTP/1.1\r\nHost: store\r\n\r\n".encode())
            self.assertIn(b"\r\nX-Etcd-Index: ", sock.recv(1 << 16))
            self.assertEqual(self._ask("PUT", "?value=3"), 200)
            event = sock.recv(1 << 16)
            self.assertEqual(json.loads(event[event.index(b"{") : event.rindex(b"}") + 1])["node"]["value"], "3")

    def test_slow(self) -> None:
        """The store acts at once, but each of its replies is 2 s late, and so is each event."""
        with self.lab.client.connect(CLUSTER, PROXY_PORT) as sock:
            sock.sendall(f"GET {self.KEYS}?wait=true&stream=true HTTP/1.1\r\nHost: store\r\n\r\n".encode())
            self.assertIn(b"\r\nX-Etcd-Index: ", sock.recv(1 << 16))
            self.lab.cluster.behave(SLOW)
            start = time.monotonic()
            with self.assertRaises(OSError):
                self._ask("PUT", "?value=1", limit=0.5)
            self.assertEqual(self.lab.cluster.nodes("/kiwi/test")["/kiwi/test"]["value"], "1")
            self.assertIn(b'"value":"1"', sock.recv(1 << 16))
            self.assertGreater(time.monotonic() - start, LATENESS)
            self.assertEqual(self._ask("GET"), 200)
            self.assertGreater(time.monotonic() - start, LATENESS + 0.5)

    def test_lossy(self) -> None:
        """Some replies do not arrive, on connections that stay open or break; what was asked for is done each time."""
        self.lab.cluster.behave(LOSSY)
        for number in range(20):
            with contextlib.suppress(OSError):
                self._ask("PUT", f"?value={number}", limit=0.1)
            self.assertEqual(self.lab.cluster.nodes("/kiwi/test")["/kiwi/test"]["value"], str(number))
        fates = self.lab.cluster.fates()
        self.lab.cluster.behave(PLAIN)
        self.assertEqual(self._ask("GET"), 200)
        self.assertGreater(fates["swallowed"], 0)
        self.assertGreater(fates["dropped"], 0)
        self.assertGreater(fates["passed"], 8)


class KubernetesTests(AgentTestCase):
    """The real API server on the cluster's host."""

    def test_reached(self) -> None:
        """Hosts reach it by its address, also those that are made after it; its certificate is good for that."""
        server = self.lab.cluster.kubernetes or self.lab.cluster.start_kube_apiserver()

        def asked() -> str:
            command = (kubectl_binary(), "--kubeconfig", str(server.kubeconfig()), "get", "--raw=/readyz")
            return self.lab.hosts[0].run(*command, check=False)

        self.assertEqual((server.endpoint, asked()), ("https://192.168.1.10:6443", "ok"))
        self.lab.renew()
        self.assertEqual(asked(), "ok")
        server.kill()
        self.assertIn("refused", asked())
        server.start()
        self.assertEqual(asked(), "ok")
