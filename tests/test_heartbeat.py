"""The pulse of an agent."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kiwi.heartbeat import Heartbeat


class HeartbeatTests(SynchronousTestCase):
    def test_beats(self) -> None:
        """It beats three times in each TTL, and not after it was stopped."""
        clock = Clock()
        beats: list[float] = []
        heartbeat = Heartbeat(clock, 9, lambda: beats.append(clock.seconds()))
        heartbeat.startService()
        clock.pump([1] * 9)
        self.assertEqual(beats, [3, 6, 9])
        heartbeat.stopService()
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_survives(self) -> None:
        """A beat that fails is logged, and the next one comes."""
        clock = Clock()
        beats: list[float] = []

        def beat() -> None:
            beats.append(clock.seconds())
            raise ZeroDivisionError

        heartbeat = Heartbeat(clock, 3, beat)
        heartbeat.startService()
        clock.pump([1, 1])
        heartbeat.stopService()
        self.assertEqual(beats, [1, 2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
