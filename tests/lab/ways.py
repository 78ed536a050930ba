"""Ways into a cluster: what an agent is given so that its API server lets it in, as files that may change."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp

from attrs import field, frozen

from .laboratory import CLUSTER, SECURE_API_PORT

_AS_POD = """
mount --make-rprivate /
mount -t tmpfs run /run
mkdir -p "$1"
mount --bind "$0" "$1"
shift
exec "$@"
"""
"""Runs what it is given where a folder is mounted at the path of another one, in an empty C{/run}."""

_SERVICE_ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"
"""C{/var/run} leads there."""


@frozen
class WayIn:
    """
    How an agent gets into the cluster.

    @ivar options: of the agent.
    @ivar environment: what it has in its environment.
    @ivar before: what runs the agent's command, which comes behind.
    """

    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(factory=dict)
    before: Sequence[str] = ()


@frozen
class Volume:
    """
    A folder of files as the kubelet mounts it into a Pod. They change all at once: each one is a symbolic link through
    C{..data}, which is one itself and is replaced by renaming (C{AtomicWriter}, pkg/volume/util in Kubernetes).
    """

    folder: Path

    def put(self, files: Mapping[str, bytes]) -> None:
        """These are the files now."""
        self.folder.mkdir(exist_ok=True)
        edition = Path(mkdtemp(prefix="..", dir=self.folder))
        for name, content in files.items():
            (edition / name).write_bytes(content)
        data, new = self.folder / "..data", self.folder / "..data_tmp"
        before = data.resolve()
        new.symlink_to(edition.name)
        os.replace(new, data)
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        if before != data:
            shutil.rmtree(before)


def as_pod(volume: Volume) -> WayIn:
    """That of a Pod, with a volume that has C{token} and C{ca.crt}."""
    return WayIn(
        environment={
            "KUBERNETES_SERVICE_HOST": str(CLUSTER),
            "KUBERNETES_SERVICE_PORT": str(SECURE_API_PORT),
            "KUBECONFIG": "",
        },
        before=("unshare", "--mount", "sh", "-ec", _AS_POD, str(volume.folder), _SERVICE_ACCOUNT),
    )


def with_kubeconfig(path: Path) -> WayIn:
    """That of C{--kubeconfig}."""
    return WayIn(options=("--kubeconfig", str(path)))


def from_environment(path: Path) -> WayIn:
    """That of a kubeconfig which the environment names."""
    return WayIn(environment={"KUBECONFIG": str(path)})


def write_kubeconfig(path: Path, authorities: Path, user: Mapping[str, str], port: int = SECURE_API_PORT) -> Path:
    """
    A kubeconfig for the lab's cluster.

    @param authorities: the file with the certificates of those who vouch for the server.
    @param user: the credentials, as a kubeconfig has them.
    @param port: of the server.
    """
    cluster = {"server": f"https://{CLUSTER}:{port}", "certificate-authority": str(authorities)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": dict(user)}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    }
    path.write_text(json.dumps(config))
    return path
