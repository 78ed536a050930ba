"""How long to wait between tries."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

Uniform = Callable[[float, float], float]
"""A number drawn evenly between two others, such as L{random.uniform}."""


@frozen
class BackoffPolicy:
    """
    Waits that double from C{shortest} to C{longest} seconds, each shortened by up to half at random, so that agents
    which failed together do not try again together.
    """

    shortest: float
    longest: float
    uniform: Uniform

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, one or more."""
        longest: float = min(self.longest, self.shortest * 2.0 ** min(failures - 1, 32))
        return self.uniform(longest / 2, longest)


@define
class Backoff:
    """The failures in a row of one thing that is tried again and again."""

    policy: BackoffPolicy
    failures: int = field(default=0, init=False)

    def failed(self) -> float:
        """Count a failure; seconds to wait before the next try."""
        self.failures += 1
        return self.policy.wait(self.failures)

    def succeeded(self) -> None:
        """The next failure is a first one."""
        self.failures = 0
