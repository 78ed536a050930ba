"""What the tests rely on in a real Kubernetes API server."""

from __future__ import annotations

import ssl
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.lab.waiting import wait_until

from .apiserver_process import (
    ADMIN_TOKEN,
    LOOPBACK,
    KubectlError,
    Missing,
    RealAPIServer,
    apiserver_binary,
    shared_api_server,
)

SERVICES = "/api/v1/services"


def a_service(name: str) -> dict[str, object]:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}


class RealAPIServerTests(SynchronousTestCase):
    """A running server."""

    def setUp(self) -> None:
        self.server = shared_api_server()
        self.namespace = self.server.new_namespace()

    def status(self, token: str, path: str = SERVICES) -> int:
        return self.server.request("GET", path, token=token).status

    def service_account(self) -> str:
        """The token of a service account that may do everything."""
        self.server.ask("POST", f"/api/v1/namespaces/{self.namespace}/serviceaccounts", {"metadata": {"name": "it"}})
        self.server.kubectl(
            *("create", "clusterrolebinding", self.namespace, "--clusterrole=cluster-admin"),
            f"--serviceaccount={self.namespace}:it",
        )
        return self.server.service_account_token(self.namespace, "it")

    def test_tokens(self) -> None:
        """Who has no token that it knows is not let in; who has one may do what the roles say, and no more."""
        token = self.service_account()
        wait_until(lambda: self.status(token) == 200, "the role to be good")
        self.assertEqual([self.status(one) for one in (ADMIN_TOKEN, token, "unknown")], [200, 200, 401])
        self.server.kubectl("delete", "clusterrolebinding", self.namespace)
        wait_until(lambda: self.status(token) == 403, "the role to be good no longer")

    def test_client_certificates(self) -> None:
        """A client certificate says who somebody is, and in which groups."""
        admin = self.server.kubeconfig("somebody", ["system:masters"])
        nobody = self.server.kubeconfig("nobody")
        self.assertIn("kube-system", self.server.kubectl("get", "namespaces", kubeconfig=admin))
        with self.assertRaisesRegex(KubectlError, 'User "nobody" cannot list resource "namespaces"'):
            self.server.kubectl("get", "namespaces", kubeconfig=nobody)

    def test_certificate(self) -> None:
        """Its certificate is good for its address and the names that it has in a cluster, and for no other."""
        context = ssl.create_default_context(cafile=str(self.server.ca_file))
        for name, good in (
            ("127.0.0.1", True),
            ("kubernetes.default.svc", True),
            ("kubernetes.example", False),
            ("127.0.0.2", False),
        ):
            with self.server.place.connect(LOOPBACK, self.server.port, 5) as plain:
                try:
                    context.wrap_socket(plain, server_hostname=name).close()
                except ssl.SSLCertVerificationError:
                    self.assertFalse(good, name)
                else:
                    self.assertTrue(good, name)

    def test_restart(self) -> None:
        """
        After the server was killed, its data is there, and tokens that were added since it started are known. With a
        new key for service accounts, their old tokens are refused, and new ones are good.
        """
        self.server.add_token("new", "somebody", ["system:masters"])
        old = self.service_account()
        self.assertEqual(self.status("new"), 401)
        self.server.restart()
        self.assertEqual([self.status(token) for token in ("new", old)], [200, 200])
        self.server.remove_token("new")
        self.server.rotate_service_account_key()
        renewed = self.server.service_account_token(self.namespace, "it")
        self.assertEqual([self.status(token) for token in ("new", old, renewed)], [401, 401, 200])

    def test_certificate_rotation(self) -> None:
        """The server shows another certificate, from the same authority."""

        def shown() -> bytes:
            with self.server.place.connect(LOOPBACK, self.server.port, 5) as plain:
                context = ssl.create_default_context(cafile=str(self.server.ca_file))
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                    certificate = secure.getpeercert(binary_form=True)
            assert certificate is not None
            return certificate

        before = shown()
        self.assertEqual(shown(), before)
        self.server.rotate_certificate()
        self.assertNotEqual(shown(), before)

    def test_old_versions(self) -> None:
        """
        After a compaction, a list cannot be continued that began before it, but a watch can be opened where it was.
        Only a server that has started since then calls that too old.
        """
        services = f"/api/v1/namespaces/{self.namespace}/services"
        version = self.server.ask("GET", services)["metadata"]["resourceVersion"]
        for name in ("one", "two"):
            self.server.ask("POST", services, a_service(name))
        page = self.server.ask("GET", f"{services}?limit=1")["metadata"]["continue"]

        def seen() -> tuple[int, bool]:
            watch = self.server.request("GET", f"{services}?watch=1&timeoutSeconds=1&resourceVersion={version}")
            status = self.server.request("GET", f"{services}?limit=1&continue={page}").status
            return status, watch.status == 410 or b'"code":410' in watch.body

        self.assertEqual(seen(), (200, False))
        # The next page would not be there any more, and nor is what was before.
        self.server.ask("DELETE", f"{services}/one")
        self.server.compact()
        self.assertEqual(seen(), (410, False))
        self.server.forget()
        self.assertEqual(seen(), (410, True))

    def test_freeze(self) -> None:
        """A frozen server answers nothing, and goes on where it was."""
        self.server.freeze()
        self.addCleanup(self.server.thaw)
        with self.assertRaises(OSError):
            self.server.request("GET", "/readyz", limit=0.5)
        self.server.thaw()
        self.assertEqual(self.server.request("GET", "/readyz").status, 200)


class BeginningAndEndTests(SynchronousTestCase):
    """A server that is not there."""

    def test_binary(self) -> None:
        """Where there is no kube-apiserver, the message says what to do."""
        for environment in ({}, {"KUBEBUILDER_ASSETS": str(Path(__file__).parent)}):
            with self.assertRaisesRegex(Missing, "no kube-apiserver is there: .*scripts/kube-apiserver"):
                apiserver_binary(environment)

    def test_failure(self) -> None:
        """A server that does not start says why, and nothing is left of it."""
        server = RealAPIServer.on_loopback(["--no-such-option"])
        with self.assertRaisesRegex(RuntimeError, "unknown flag: --no-such-option"), server:
            self.fail("it runs")
        self.assertEqual((server.processes, Path(server.directory).exists()), ([], False))
