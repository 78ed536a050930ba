"""
What the Kubernetes API says of Nodes, as values of the model. Pure.

A Node may carry public addresses unless it is excluded from load balancers or has no network. That it is cordoned,
tainted or not ready says nothing about the traffic that it can forward, and a Node that is being deleted is there until
it is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kiwi.model import Node

from .decoding import Decoded, Kind
from .reading import Reader

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
"""The label that excludes a Node, whatever its value (Kubernetes' page "Well-Known Labels, Annotations and Taints")."""

NO_NETWORK = "NetworkUnavailable"
"""The condition of a Node whose network is not set up (the page "Node Status")."""


def _objections(reader: Reader, metadata: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[str]:
    if EXCLUDED in reader.object(metadata, "labels"):
        yield f"it is labelled {EXCLUDED}"
    status = reader.object(document, "status")
    for condition in reader.objects(status, "conditions"):
        if condition.get("type") == NO_NETWORK and condition.get("status") == "True":
            yield f"its condition {NO_NETWORK} is True"


def _decode(version: str, document: Mapping[str, Any]) -> Decoded[str, Node]:
    reader = Reader()
    metadata = reader.object(document, "metadata")
    name = reader.name(reader.text(metadata, "name"))
    if name is None:
        return Decoded(None, None, reader.problems())
    objections = dict.fromkeys(_objections(reader, metadata, document))
    return Decoded(name, Node(name, " and ".join(objections)), reader.problems())


NODES = Kind("", "nodes", "Node", ("v1",), _decode)
