"""
A small API server, with nothing behind it.

It has Services in C{v1}, C{v1beta3} and C{v1beta1}, and what it is told of one in one version it tells in every other;
and, as far as Kiwi has to do with them, Leases (C{coordination.k8s.io/v1}), EndpointSlices (C{discovery.k8s.io}, C{v1}
and C{v1beta1}), Nodes and Namespaces. It does lists in pages, watches with resource versions, selectors and bookmarks,
expired versions, the refusals that a client must understand, and the many ways in which a server goes away. All objects
share one resource version, as with one etcd.

What it does of all this as a real server does is what L{tests.fakes.kubernetestests} runs against both; what was
measured is kube-apiserver 1.20.2. It does not validate much: a Service that no real server would accept is served as it
is. It knows no PATCH, no deletion of whole collections, no finalizers and no defaults.

It is also a program::

    python -m tests.fakes.kubernetes --listen 127.0.0.1:8080 --watch examples

which serves the manifests in a folder, as they change, and takes others by POST, PUT and DELETE::

    curl -X PUT --data @web.json http://127.0.0.1:8080/api/v1/namespaces/default/services/web
"""

from .access import ANONYMOUS, Access, Authorizer
from .folder import Folder
from .objects import Document, encode
from .server import GROUPS, KubernetesResource, KubernetesState, Snapshot
from .services import VERSIONS, Stored, read_manifest, render, service

__all__ = [
    "ANONYMOUS",
    "GROUPS",
    "VERSIONS",
    "Access",
    "Authorizer",
    "Document",
    "Folder",
    "KubernetesResource",
    "KubernetesState",
    "Snapshot",
    "Stored",
    "encode",
    "read_manifest",
    "render",
    "service",
]
