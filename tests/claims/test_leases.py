"""The suite of claim stores, on Leases: over the API server in memory, and over a real one."""

from __future__ import annotations

from .claimstoretests import make_claim_store_tests, make_server_claim_store_tests
from .stages import fake_lease_stage, real_lease_stage


class FakeLeaseStoreTests(make_claim_store_tests(fake_lease_stage)):  # type: ignore[misc]
    """Over the fake, in simulated time."""


class FakeLeaseServerTests(make_server_claim_store_tests(fake_lease_stage)):  # type: ignore[misc]
    """Over the fake, in simulated time."""


class RealLeaseStoreTests(make_claim_store_tests(real_lease_stage)):  # type: ignore[misc]
    """Over C{kube-apiserver}."""


class RealLeaseServerTests(make_server_claim_store_tests(real_lease_stage)):  # type: ignore[misc]
    """Over C{kube-apiserver}."""
