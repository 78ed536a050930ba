"""The suite, on the server in memory, over TCP, and on a real one."""

from __future__ import annotations

from .clusters import MemoryCluster, RealCluster, TCPCluster
from .kubernetestests import make_kubernetes_tests


class MemoryV1Tests(make_kubernetes_tests(MemoryCluster, "v1")):  # type: ignore[misc]
    pass


class MemoryV1Beta3Tests(make_kubernetes_tests(MemoryCluster, "v1beta3")):  # type: ignore[misc]
    pass


class MemoryV1Beta1Tests(make_kubernetes_tests(MemoryCluster, "v1beta1")):  # type: ignore[misc]
    pass


class MemoryOnlyAWatchTests(
    make_kubernetes_tests(lambda case: MemoryCluster(case, versions=["v1beta1"], lists=False))  # type: ignore[misc]
):
    pass


class TCPTests(make_kubernetes_tests(TCPCluster)):  # type: ignore[misc]
    pass


class TCPV1Beta1Tests(make_kubernetes_tests(TCPCluster, "v1beta1")):  # type: ignore[misc]
    pass


class RealTests(make_kubernetes_tests(RealCluster)):  # type: ignore[misc]
    pass
