"""Simulated time: one line of events for everything, and for each process a clock of its own that it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from math import ceil
from random import Random
from typing import Any

from attrs import define, field
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

TICK = 0.0005
"""Seconds of host time: a process looks at what is due so often."""


class Event:
    """Something that happens at a moment, unless it is cancelled before."""

    __slots__ = ("arguments", "call")

    def __init__(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.call: Callable[..., object] | None = call
        self.arguments = arguments

    def cancel(self) -> None:
        self.call = None


class Timeline:
    """
    What happens, in its order.

    @ivar now: true time, in seconds.
    @ivar stopped: nothing happens any more.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.stopped = False
        self.happened = 0
        self._queue: list[tuple[float, float, int, Event]] = []
        self._numbers = count()

    def at(self, time: float, call: Callable[..., object], *arguments: Any, order: float = 0.0) -> Event:
        """
        Let something happen at a moment, or now if that is over.

        @param order: of what happens at one moment, the lesser first.
        """
        event = Event(call, arguments)
        heappush(self._queue, (max(time, self.now), order, next(self._numbers), event))
        return event

    def after(self, seconds: float, call: Callable[..., object], *arguments: Any) -> Event:
        return self.at(self.now + seconds, call, *arguments)

    def run_until(self, end: float) -> None:
        """Let everything happen that happens before C{end}, unless it is stopped before."""
        queue = self._queue
        while queue and queue[0][0] < end and not self.stopped:
            time, _, _, event = heappop(queue)
            call = event.call
            if call is not None:
                self.now = time
                self.happened += 1
                call(*event.arguments)
        if not self.stopped:
            self.now = end


@implementer(IDelayedCall)
class Timer:
    """A call that a process wants to be made later."""

    __slots__ = ("_arguments", "_clock", "_event", "_function", "_keywords", "_state", "_time")

    def __init__(
        self, clock: ProcessClock, time: float, function: Callable[..., object], arguments: Any, keywords: Any
    ) -> None:
        self._clock, self._time = clock, time
        self._function, self._arguments, self._keywords = function, arguments, keywords
        self._state = "active"
        self._event: Event = clock._arm(self)

    def getTime(self) -> float:
        return self._time

    def active(self) -> bool:
        return self._state == "active"

    def cancel(self) -> None:
        self._check()
        self._state = "cancelled"
        self._event.cancel()

    def reset(self, secondsFromNow: float) -> None:
        self._check()
        self._time = self._clock.seconds() + secondsFromNow
        self._event.cancel()
        self._event = self._clock._arm(self)

    def delay(self, secondsLater: float) -> None:
        self._check()
        self._time += secondsLater
        self._event.cancel()
        self._event = self._clock._arm(self)

    def _check(self) -> None:
        if self._state == "cancelled":
            raise AlreadyCancelled
        if self._state == "called":
            raise AlreadyCalled

    def fire(self, event: Event) -> None:
        """Make the call, if this is still what it waits for."""
        if self._state == "active" and self._event is event:
            self._state = "called"
            self._function(*self._arguments, **self._keywords)


@define(eq=False, repr=False)
class HostClock:
    """
    The monotonic clock of one host.

    @ivar rate: its seconds in each true second.
    """

    timeline: Timeline
    offset: float
    rate: float

    def seconds(self) -> float:
        return self.offset + self.timeline.now * self.rate

    def true(self, seconds: float) -> float:
        """The true time at which this clock shows so many seconds; or a little later, but never earlier."""
        time = (seconds - self.offset) / self.rate
        while self.offset + time * self.rate < seconds:
            time += 1e-9
        return time


@define(eq=False, repr=False)
class Process:
    """
    Something that runs on a host, and may be frozen or killed. It sees nothing of what happens while it is frozen; when
    it is continued, that comes all at once.

    @ivar entered: told each time when the process does something.
    """

    name: str
    timeline: Timeline
    host_clock: HostClock
    random: Random
    entered: Callable[[Process], object] = lambda process: None
    alive: bool = field(default=True, init=False)
    frozen: bool = field(default=False, init=False)
    clock: ProcessClock = field(init=False)
    _timers: list[tuple[float, Timer, Event]] = field(factory=list, init=False)
    _arrivals: list[tuple[Callable[..., object], tuple[Any, ...]]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.clock = ProcessClock(self)

    def deliver(self, call: Callable[..., object], *arguments: Any) -> None:
        """Something arrives from outside."""
        if self.frozen:
            self._arrivals.append((call, arguments))
        elif self.alive:
            self.entered(self)
            call(*arguments)

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        """Go on: with the timers that are due, and with what has arrived, in an order that chance chooses."""
        self.frozen = False
        timers, self._timers = sorted(self._timers, key=lambda each: each[0]), []
        arrivals, self._arrivals = self._arrivals, []
        first_timers = self.random.random() < 0.5
        for turn in (first_timers, not first_timers):
            if turn:
                for due, timer, event in timers:
                    self._fire(due, timer, event)
            else:
                for call, arguments in arrivals:
                    self.deliver(call, *arguments)

    def kill(self) -> None:
        """It is no more."""
        self.alive = False
        self.frozen = False
        self._timers.clear()
        self._arrivals.clear()

    def _fire(self, due: float, timer: Timer, event: Event) -> None:
        if self.frozen:
            self._timers.append((due, timer, event))
        elif self.alive:
            self.entered(self)
            timer.fire(event)


@implementer(IReactorTime)
class ProcessClock:
    """
    What a process knows of time: its host's clock. Its calls are made in order, never early, and up to a L{TICK} late.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._host = process.host_clock
        self._phase = process.random.random() * TICK
        self._made: list[Timer] = []

    def seconds(self) -> float:
        return self._host.seconds()

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> Timer:
        assert delay >= 0, delay
        timer = Timer(self, self._host.seconds() + delay, callable, args, kw)
        self._made.append(timer)
        if len(self._made) > 1000:
            self._made = [made for made in self._made if made.active()]
        return timer

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        return [made for made in self._made if made.active()]

    def _arm(self, timer: Timer) -> Event:
        due = timer._time
        tick = (ceil((due - self._phase) / TICK) + 1e-6) * TICK + self._phase
        timeline, fire = self._process.timeline, self._process._fire
        event = timeline.at(self._host.true(max(tick, due)), fire, order=due)
        event.arguments = (due, timer, event)
        return event
