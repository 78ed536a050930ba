"""How much is logged."""

from __future__ import annotations

from twisted.logger import FilteringLogObserver, Logger, LogLevelFilterPredicate, globalLogPublisher
from twisted.logger import LogLevel as LogLevel

threshold = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
"""
What of Kiwi's own events goes to the log. Twisted's log is one for the whole process, and this is the gate before it,
which L{kiwi.tap} sets.
"""


def logger(namespace: str) -> Logger:
    """A logger behind the gate."""
    return Logger(namespace, observer=FilteringLogObserver(globalLogPublisher, [threshold]))


def printable(text: object) -> str:
    """Text from outside in a form that stays on its line and has no control characters, cut to a bearable length."""
    shown = str(text).encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= 300 else f"{shown[:300]}..."
