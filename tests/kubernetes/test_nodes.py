"""What the API says of Nodes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from kiwi.kubernetes.decoding import Decoded
from kiwi.kubernetes.nodes import EXCLUDED, NODES
from kiwi.model import Node

from .anything import anything, check_problems, unhurried


def node(labels: object = None, conditions: object = None, spec: object = None, **metadata: object) -> dict[str, Any]:
    return {
        "kind": "Node",
        "metadata": {"name": "node1", "labels": labels, **metadata},
        "spec": spec,
        "status": {"conditions": conditions},
    }


def condition(status: object, kind: object = "NetworkUnavailable") -> dict[str, object]:
    return {"type": kind, "status": status}


class NodesTests(SynchronousTestCase):
    def unfit(self, document: object) -> str:
        decoded = NODES.decode("v1", document)
        assert decoded.value is not None
        self.assertEqual(decoded, Decoded("node1", Node("node1", decoded.value.unfit)))
        return decoded.value.unfit

    def test_excluded(self) -> None:
        """A node with the label is excluded, whatever the label's value."""
        for value in ("", "true", "false", None):
            self.assertEqual(self.unfit(node({EXCLUDED: value, "a": "b"})), f"it is labelled {EXCLUDED}")

    def test_no_network(self) -> None:
        """A node whose network is not set up cannot carry anything; one of which that is not known can."""
        self.assertEqual(self.unfit(node(conditions=[condition("True")])), "its condition NetworkUnavailable is True")
        for status in ("False", "Unknown", None, True):
            self.assertEqual(self.unfit(node(conditions=[condition(status)])), "")

    def test_both(self) -> None:
        """Every reason is given, once."""
        self.assertEqual(
            self.unfit(node({EXCLUDED: ""}, [condition("True"), condition("True")])),
            f"it is labelled {EXCLUDED} and its condition NetworkUnavailable is True",
        )

    def test_fit(self) -> None:
        """Nothing else excludes a node: not that it is cordoned, tainted, under pressure, or being deleted."""
        taints = [{"key": "node.kubernetes.io/unschedulable", "effect": "NoExecute"}]
        for document in (
            {"metadata": {"name": "node1"}},
            node(),
            node({"node-role.kubernetes.io/control-plane": ""}),
            node(spec={"unschedulable": True, "taints": taints}),
            node(conditions=[condition("True", "MemoryPressure"), condition("False", "Ready")]),
            node(deletionTimestamp="2015-06-01T12:00:00Z"),
        ):
            self.assertEqual(self.unfit(document), "")

    def test_problems(self) -> None:
        """What cannot be understood excludes nothing, and is told."""
        for document, problem in (
            (node(labels=[EXCLUDED]), "its labels is a list, not an object"),
            (node(conditions={}), "its conditions is an object, not a list"),
            (node(conditions=["NetworkUnavailable"]), "'NetworkUnavailable' in its conditions is not an object"),
        ):
            self.assertEqual(NODES.decode("v1", document), Decoded("node1", Node("node1"), (problem,)))

    def test_names(self) -> None:
        """A node without a name that a server would give is left aside."""
        for name, problem in ((None, "it has no name"), ("Node 1", "its name 'Node 1' is not a DNS name")):
            self.assertEqual(NODES.decode("v1", {"metadata": {"name": name}}), Decoded(None, None, (problem,)))

    @unhurried
    @given(anything, anything, anything)
    def test_anything(self, document: object, labels: object, conditions: object) -> None:
        """No object is too much."""
        for each in (document, node(labels, conditions)):
            found = NODES.decode("v1", each)
            check_problems(self, found)
            self.assertEqual(found.name, found.value and found.value.name)
