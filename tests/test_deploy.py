"""What C{deploy/} puts into a cluster, and what the agents may do there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml
from twisted.trial.unittest import SynchronousTestCase

from kiwi.agent import TIME_TO_DRAIN
from kiwi.selection import Attachment
from kiwi.settings import Settings, settings
from tests.fakes.apiserver_process import RealAPIServer, shared_api_server
from tests.lab.waiting import wait_until

DEPLOY = Path(__file__).parent.parent / "deploy"
LEASES = "coordination.k8s.io"
SLICES = "discovery.k8s.io"
OTHER_NAMESPACES = ("default", "kube-system", "kube-node-lease")
MERGE_PATCH = "application/merge-patch+json"

Rule = tuple[str, str, str]
"""A verb, an API group and a resource, which may have a C{/status} or the like behind it."""

READING: frozenset[Rule] = frozenset(
    product(("list", "watch"), [""], ("services", "nodes")),
) | frozenset(product(("list", "watch"), [SLICES], ["endpointslices"]))
"""What every agent may do, in all namespaces."""

KEEPING: frozenset[Rule] = frozenset(
    product(("get", "list", "watch", "create", "update", "delete"), [LEASES], ["leases"])
)
"""What an agent that keeps its claims in Leases may do as well, in its own namespace."""


def manifests(*names: str) -> list[dict[str, Any]]:
    """The objects in these files."""
    return [document for name in names for document in yaml.safe_load_all((DEPLOY / name).read_text())]


def literals(name: str) -> dict[str, str]:
    """The variables that a kustomization gives to the agents."""
    (generator,) = manifests(name)[0]["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generator["literals"])


def rules(found: Iterable[Mapping[str, Sequence[str]]]) -> frozenset[Rule]:
    """Rules of a role, or of a review, one by one."""
    return frozenset(
        rule for entry in found for rule in product(entry["verbs"], entry["apiGroups"], entry["resources"])
    )


class ManifestTests(SynchronousTestCase):
    """The files."""

    def setUp(self) -> None:
        (self.daemon_set,) = manifests("base/daemonset.yaml")
        self.pod = self.daemon_set["spec"]["template"]["spec"]

    def test_container(self) -> None:
        """An agent may change the host's network, and has no other privilege. It can write to nothing but the lock."""
        (container,) = self.pod["containers"]
        self.assertEqual(
            container["securityContext"],
            {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        )
        self.assertEqual(container["volumeMounts"], [{"name": "xtables-lock", "mountPath": "/run/xtables.lock"}])
        self.assertEqual(
            self.pod["volumes"],
            [{"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}}],
        )
        self.assertEqual([*container["resources"]], ["requests"])

    def test_pod(self) -> None:
        """It is on the host's network, on every Linux node, for as long as the node runs."""
        self.assertEqual(
            {
                key: self.pod[key]
                for key in self.pod.keys() - {"containers", "volumes", "terminationGracePeriodSeconds"}
            },
            {
                "serviceAccountName": "kiwi",
                "hostNetwork": True,
                "priorityClassName": "system-node-critical",
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "tolerations": [{"operator": "Exists"}],
            },
        )

    def test_leaving(self) -> None:
        """An agent has the time that it takes to leave in order; and they leave one by one."""
        self.assertGreater(self.pod["terminationGracePeriodSeconds"], 2 * TIME_TO_DRAIN)
        self.assertEqual(
            self.daemon_set["spec"]["updateStrategy"], {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
        )

    def test_names(self) -> None:
        """The id of an agent is the name of its node, and its Leases are in the namespace of its Pod."""
        (container,) = self.pod["containers"]
        self.assertEqual(
            {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container["env"]},
            {
                "KIWI_AGENT_ID": "spec.nodeName",
                "KIWI_NODE_NAME": "spec.nodeName",
                "KIWI_LEASE_NAMESPACE": "metadata.namespace",
            },
        )

    def test_options(self) -> None:
        """What the files give as options is valid, also what is commented out."""

        def chosen(name: str, *others: str) -> Settings:
            suggested = re.findall(r"^ +# - (KIWI_\w+)=(.*)$", (DEPLOY / name).read_text(), re.MULTILINE)
            self.assertEqual([variable for variable, _ in suggested], [*others, "KIWI_INTERFACE", "KIWI_CIDR_RANGE"])
            return settings({}, {**literals(name), **dict(suggested)}, "node1")

        access = ("CA", "CERT", "KEY", "USER", "PASSWORD_FILE")
        ours = chosen("kustomization.yaml")
        etcd = chosen("etcd/kustomization.yaml", *(f"KIWI_ETCD_{name}" for name in ("ENDPOINT", *access)))
        (patch,) = manifests("etcd/access.yaml")
        (container,) = patch["spec"]["template"]["spec"]["containers"]
        (mount,) = container["volumeMounts"]
        files = (etcd.etcd_ca, etcd.etcd_cert, etcd.etcd_key, etcd.etcd_password_file)
        self.assertEqual(
            files, tuple(f"{mount['mountPath']}/{name}" for name in ("ca.pem", "client.pem", "client.key", "password"))
        )
        self.assertEqual((ours.interfaces, len(ours.cidr_ranges), ours.ttl), ((Attachment("eth0"),), 2, 10))
        self.assertEqual((etcd.interfaces, etcd.cidr_ranges, etcd.ttl), ((Attachment("eth0"),), ours.cidr_ranges, 10))
        self.assertEqual((etcd.store, etcd.etcd_endpoints), ("etcd2", ("https://192.168.1.10:2379",)))

    def test_roles(self) -> None:
        """The roles hold what the agents need."""
        _account, cluster_role, _binding = manifests("base/account.yaml")
        role, _binding = manifests("leases.yaml")
        self.assertEqual((rules(cluster_role["rules"]), rules(role["rules"])), (READING, KEEPING))


def for_this_kubectl(server: RealAPIServer, folder: Path) -> None:
    """
    Rewrite a copy of C{deploy/} where C{kubectl} is older than 1.21: what kustomize is in there (2.0.3) reads folders
    from C{bases} only, which the ones of today warn of, as of its word for patches.
    """
    version = json.loads(server.kubectl("version", "--client", "--output=json"))["clientVersion"]
    if (int(version["major"]), int(re.sub(r"\D", "", version["minor"]))) >= (1, 21):
        return
    for path in folder.glob("**/kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        resources = content["resources"]
        content["bases"] = [name for name in resources if (path.parent / name).is_dir()]
        content["resources"] = [name for name in resources if name not in content["bases"]]
        content["patchesStrategicMerge"] = [patch["path"] for patch in content.pop("patches", ())]
        path.write_text(yaml.safe_dump(content))


class ServerTests(SynchronousTestCase):
    """A real API server that gets C{deploy/}."""

    def setUp(self) -> None:
        self.server = shared_api_server()
        folder = Path(mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        self.deploy = folder / "deploy"
        shutil.copytree(DEPLOY, self.deploy)
        for_this_kubectl(self.server, self.deploy)
        self.server.kubectl("apply", "-f", str(self.deploy / "base" / "namespace.yaml"))
        self.addCleanup(self.forget)
        self.server.kubectl("create", "serviceaccount", "nobody", "--namespace=kiwi")
        self.nobody = self.server.service_account_token("kiwi", "nobody")

    def forget(self) -> None:
        """Take everything away but the namespace, which would be there half deleted for ever."""
        for kind in ("daemonset", "serviceaccount", "role", "rolebinding", "configmap", "lease"):
            self.server.kubectl("delete", kind, "--all", "--namespace=kiwi")
        for kind in ("clusterrole", "clusterrolebinding"):
            self.server.kubectl("delete", kind, "kiwi", "--ignore-not-found")

    def allowed(self, token: str, namespace: str) -> frozenset[Rule]:
        """What a service account may do in a namespace, beyond what all of them may do who are let in."""
        return self.permitted(token, namespace) - self.permitted(self.nobody, namespace)

    def permitted(self, token: str, namespace: str) -> frozenset[Rule]:
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        reply = self.server.request("POST", path, {"spec": {"namespace": namespace}}, token)
        self.assertEqual(reply.status, 201)
        status = reply.json()["status"]
        self.assertFalse(status["incomplete"])
        return rules(status["resourceRules"])

    def token(self) -> str:
        return self.server.service_account_token("kiwi", "kiwi")

    def test_dry_run(self) -> None:
        """The server accepts all of it, and knows every field."""
        for overlay, expected in (("", 8), ("etcd", 6)):
            printed = self.server.kubectl("apply", "--dry-run=server", "-k", str(self.deploy / overlay))
            lines = printed.splitlines()
            self.assertEqual((len(lines), [line for line in lines if "server dry run" not in line]), (expected, []))

    def test_rights(self) -> None:
        """Agents may read what they need everywhere, keep Leases in their own namespace, and do nothing else."""
        self.server.kubectl("apply", "-k", str(self.deploy))
        token = self.token()
        wait_until(lambda: self.allowed(token, "kiwi") >= KEEPING, "the roles to be good")
        self.assertEqual(self.allowed(token, "kiwi"), READING | KEEPING)
        for namespace in OTHER_NAMESPACES:
            self.assertEqual(self.allowed(token, namespace), READING, namespace)

    def test_access_to_etcd(self) -> None:
        """Agents with etcd have the files of a Secret, which nobody else in the container can read."""
        self.server.kubectl("apply", "-k", str(self.deploy / "etcd"))
        pod = self.server.ask("GET", "/apis/apps/v1/namespaces/kiwi/daemonsets/kiwi")["spec"]["template"]["spec"]
        self.assertEqual(
            [volume for volume in pod["volumes"] if volume["name"] == "etcd"],
            [{"name": "etcd", "secret": {"secretName": "kiwi-etcd", "optional": True, "defaultMode": 0o400}}],
        )
        (container,) = pod["containers"]
        self.assertEqual(sorted(mount["name"] for mount in container["volumeMounts"]), ["etcd", "xtables-lock"])

    def test_rights_with_etcd(self) -> None:
        """Agents with etcd may read what they need, and do nothing else."""
        self.server.kubectl("apply", "-k", str(self.deploy / "etcd"))
        token = self.token()
        wait_until(lambda: self.allowed(token, "kiwi") >= READING, "the roles to be good")
        for namespace in ("kiwi", *OTHER_NAMESPACES):
            self.assertEqual(self.allowed(token, namespace), READING, namespace)

    def test_requests(self) -> None:
        """The server carries out what agents ask it for, and refuses what they must not do."""
        self.server.kubectl("apply", "-k", str(self.deploy))
        token = self.token()
        wait_until(lambda: self.allowed(token, "kiwi") >= KEEPING, "the roles to be good")
        groups = {group["name"]: group for group in self.server.ask("GET", "/apis")["groups"]}
        slices = f"/apis/{groups[SLICES]['preferredVersion']['groupVersion']}/endpointslices"
        leases = f"/apis/{LEASES}/v1/namespaces/{{}}/leases"
        ours, lease = leases.format("kiwi"), {"metadata": {"name": "it"}, "spec": {"holderIdentity": "node1"}}

        def good(method: str, path: str, body: Any = None) -> Any:
            reply = self.server.request(method, path, body, token)
            self.assertLess(reply.status, 300, f"{method} {path}: {reply.body!r}")
            return reply.json()

        for path in ("/api/v1/services", "/api/v1/nodes", slices, ours):
            good("GET", path)
        created = good("POST", ours, lease)
        changed = good("PUT", f"{ours}/it", {**created, "spec": {"holderIdentity": "node2"}})
        self.assertEqual(good("GET", f"{ours}/it")["spec"], changed["spec"])
        good("DELETE", f"{ours}/it")

        own, others = "/api/v1/namespaces/kiwi", "/api/v1/namespaces/default"
        roles = "/apis/rbac.authorization.k8s.io/v1"
        refused = (
            *((method, leases.format(namespace)) for method in ("GET", "POST") for namespace in OTHER_NAMESPACES),
            *(("PUT", f"{leases.format(namespace)}/it") for namespace in OTHER_NAMESPACES),
            *(("GET", f"/apis/{LEASES}/v1/leases"), ("DELETE", ours), ("PATCH", f"{ours}/it")),
            *(("GET", "/api/v1/secrets"), ("GET", f"{own}/secrets"), ("GET", f"{own}/configmaps")),
            *(("GET", "/api/v1/pods"), ("POST", f"{own}/pods"), ("POST", f"{own}/serviceaccounts/kiwi/token")),
            *((method, f"{others}/services/kubernetes") for method in ("GET", "PUT", "PATCH", "DELETE")),
            *((method, "/api/v1/nodes/node1") for method in ("GET", "PUT", "PATCH", "DELETE")),
            *(("POST", f"{others}/services"), ("PUT", f"{others}/services/kubernetes/status")),
            *(("PUT", "/api/v1/nodes/node1/status"), ("PUT", f"{roles}/clusterroles/kiwi")),
        )
        self.assertEqual(
            {
                (method, path): self.server.request(method, path, {}, token, MERGE_PATCH).status
                for method, path in refused
            },
            dict.fromkeys(refused, 403),
        )
