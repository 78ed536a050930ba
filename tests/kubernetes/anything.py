"""Whatever a server could say."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.kubernetes.decoding import Decoded

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.sampled_from(
    [
        *("kind", "type", "object", "metadata", "spec", "status", "name", "id", "namespace", "items", "code", "reason"),
        *("ports", "port", "protocol", "publicIPs", "publicIps", "externalIPs", "deprecatedPublicIPs", "loadBalancer"),
        *("ingress", "ip", "ipMode", "loadBalancerClass", "externalTrafficPolicy", "creationTimestamp"),
        *("resourceVersion", "message", "labels", "kubernetes.io/service-name", "addressType", "endpoints"),
        *("nodeName", "topology", "kubernetes.io/hostname", "conditions", "ready", "serving", "terminating"),
    ]
)
plausible = scalars | st.sampled_from(
    [
        "Service",
        "ServiceList",
        "LoadBalancer",
        "EndpointSlice",
        "Node",
        "NetworkUnavailable",
        "True",
        "Local",
        "Proxy",
        "web",
        "TCP",
        "192.168.1.41",
        "ADDED",
        "DELETED",
        "ERROR",
        "BOOKMARK",
        80,
    ]
)
anything = st.recursive(
    plausible,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | st.text(max_size=3), inner, max_size=8),
    max_leaves=40,
)
objects = st.dictionaries(keys, anything, max_size=10)


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check_problems(case: SynchronousTestCase, decoded: Decoded) -> None:
    """Each problem is one printable line of bounded length, and an object without a name has one."""
    for problem in decoded.problems:
        case.assertTrue(problem.isascii() and problem.isprintable() and len(problem) < 1200, problem)
    if decoded.name is None:
        case.assertTrue(decoded.problems)
        case.assertIsNone(decoded.value)
