"""Waiting for something to become true, with a limit and a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Impatient(AssertionError):
    """What was waited for did not happen in time."""


def wait_until(
    condition: Callable[[], T | None],
    what: str,
    limit: float = 15.0,
    explain: Callable[[], str] = lambda: "",
    interval: float = 0.01,
) -> T:
    """
    Ask C{condition} again and again until its answer is true, and return that answer.

    @param what: finishes the sentence "waited in vain for ...".
    @param limit: seconds.
    @param explain: called when the time is up, for the rest of the message.
    @raise Impatient: when the limit is reached.
    """
    end = time.monotonic() + limit
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Impatient(f"waited in vain for {what} ({limit:g} s); the last answer was {answer!r}\n{explain()}")
        time.sleep(interval)
