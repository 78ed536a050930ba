"""The suite of claim stores, on Leases: over the API server in memory; and what is particular to them."""

from __future__ import annotations

from .claimstoretests import make_claim_store_tests, make_server_claim_store_tests
from .stages import lease_stage


class FakeLeaseStoreTests(make_claim_store_tests(lease_stage)):  # type: ignore[misc]
    """Over the fake, in simulated time."""


class FakeLeaseServerTests(make_server_claim_store_tests(lease_stage)):  # type: ignore[misc]
    """Over the fake, in simulated time."""
