"""Schedules of faults that seeds choose. C{scripts/simulate} runs more of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

ROOT = Path(__file__).parents[2]
EACH = 100


def simulate(*arguments: str) -> Deferred[tuple[bytes, bytes, int]]:
    """Run the command that C{scripts/simulate} runs."""
    answer: Deferred[tuple[bytes, bytes, int]] = getProcessOutputAndValue(
        sys.executable, ["-m", "tests.simulation", *arguments], env=dict(os.environ), path=str(ROOT)
    )
    return answer


class ScheduleTests(TestCase):
    """
    Whatever happens, there is at most one carrier of an address, nothing of an agent is on a host without a claim, and
    all is in order soon after the last fault.
    """

    timeout = 900

    async def _assert_right(self, part: int, *options: str) -> None:
        jobs = str(min(2, os.cpu_count() or 1))
        output, errors, status = await simulate(
            "--runs", str(EACH), "--first-seed", str(1 + part * EACH), "--jobs", jobs, *options
        )
        self.assertEqual((status, errors), (0, b""), (output + errors).decode(errors="replace"))
        self.assertIn(f"{EACH} simulations".encode(), output)
        self.assertIn(b"\n0 violations\n", output)

    async def test_first(self) -> None:
        """The first hundred."""
        await self._assert_right(0)

    async def test_second(self) -> None:
        """The second hundred."""
        await self._assert_right(1)

    async def test_first_on_leases(self) -> None:
        """The first hundred, where claims are Leases."""
        await self._assert_right(0, "--leases")

    async def test_first_on_etcd3(self) -> None:
        """The first hundred, where claims are in etcd v3."""
        await self._assert_right(0, "--etcd3")


class ReplayTests(TestCase):
    """A seed says all."""

    timeout = 900

    async def test_same(self) -> None:
        """The same seed is the same simulation, line by line, in another process."""
        first, second = [await simulate("--seed", "29") for _ in range(2)]
        self.assertEqual(first, second)
        self.assertGreater(len(first[0].splitlines()), 50)

    async def test_other(self) -> None:
        """Another seed is another one."""
        self.assertNotEqual(await simulate("--seed", "30"), await simulate("--seed", "29"))

    async def test_unknown(self) -> None:
        """A kind of events that does not exist cannot be left out."""
        output, errors, status = await simulate("--without", "peace")
        self.assertEqual((output, status), (b"", 2))
        self.assertIn(b"'peace' is none of: crash,", errors)
