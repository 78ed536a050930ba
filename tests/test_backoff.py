"""How long to wait between tries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.backoff import Backoff, BackoffPolicy


class BackoffTests(SynchronousTestCase):
    def test_doubles(self) -> None:
        """Waits double, up to the longest one."""
        backoff = Backoff(BackoffPolicy(0.1, 5, lambda low, high: high))
        self.assertEqual([backoff.failed() for _ in range(8)], [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])

    def test_success(self) -> None:
        """After a success, waits are short again."""
        backoff = Backoff(BackoffPolicy(0.1, 5, lambda low, high: high))
        backoff.failed()
        backoff.failed()
        backoff.succeeded()
        self.assertEqual(backoff.failed(), 0.1)

    @given(st.integers(1, 10**9), st.floats(0, 1))
    def test_jitter(self, failures: int, at: float) -> None:
        """Waits are shortened by up to half, and never longer than the longest one."""
        policy = BackoffPolicy(0.1, 5, lambda low, high: low + (high - low) * at)
        self.assertTrue(0.05 <= policy.wait(failures) <= 5)
