"""
A host's kernel: its addresses with their lifetimes, its firewall, and the threads of an agent that touch them.

Note [How the kernel keeps time]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
As C{check_lifetime} in the kernel's C{net/ipv4/devinet.c} does: whatever is written starts a pass at once. A pass
removes what ends within the next 20 ms, and arms a timer for what ends (or becomes deprecated) next: put off to the
next whole second if that is less than 0.25 s away, and at least 1 s from now. The timer is of the kernel's timer wheel
(C{kernel/time/timer.c}), whose levels become coarser the longer the wait: 4, 32, 256 and 2048 ms at 250 jiffies in a
second, for waits up to 0.25, 2.0, 16.1 and 129 s. A real kernel (6.18) was seen to be as late as this says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from math import floor, inf
from random import Random
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from kiwi.model import Address, Assignment, Configured, Host, Link, Mark, Placement, in_order, order
from kiwi.network.addresses import preferred_lifetime
from kiwi.network.interface import (
    Assigned,
    IAddresses,
    IAnnouncer,
    IFirewall,
    INeighbours,
    NetworkError,
    Probed,
    Unassigned,
)

from .timeline import Event, HostClock, Process, Timeline

INTERFACE = "em1"

HZ = 250
CHECK_FREQUENCY, FUZZ_MINUS, FUZZ, FUZZ_MAX = 120 * HZ, HZ // 50, HZ // 4, HZ
"""C{ADDR_CHECK_FREQUENCY}, C{ADDRCONF_TIMER_FUZZ_MINUS}, C{ADDRCONF_TIMER_FUZZ} and C{ADDRCONF_TIMER_FUZZ_MAX}."""


def wheel(now: int, expires: int) -> int:
    """The jiffy at which a timer of the wheel runs: no earlier than it should, and later on coarser levels."""
    level = _level(expires - now)
    return ((expires >> 3 * level) + 1) << 3 * level


def _level(wait: int) -> int:
    level = 0
    while wait >= 63 << 3 * level:
        level += 1
    return level


def latest(entry: Entry) -> float:
    """
    Seconds by which the kernel removes an address after its end, at most; if nothing else is written shortly before.
    """
    if entry.valid == inf:
        return 0.0
    last = int((entry.valid - entry.preferred or entry.valid) * HZ) + FUZZ
    return (FUZZ + (1 << 3 * _level(last))) / HZ


@define(eq=False, repr=False)
class Entry:
    """
    An address of ours in the kernel.

    @ivar written: in jiffies.
    @ivar valid: seconds; infinite for ever.
    @ivar preferred: seconds.
    @ivar by_hand: somebody else's hand has changed its lifetime.
    """

    written: int
    valid: float
    preferred: float
    by_hand: bool = False


@define(eq=False, repr=False)
class Kernel:
    """
    What is on one host, whoever runs there.

    @ivar put: told before an address of ours is added or written again.
    @ivar gone: told after one is removed.
    @ivar listeners: told of each change.
    """

    name: str
    timeline: Timeline
    clock: HostClock
    mac: bytes
    own: frozenset[Configured]
    put: Callable[[Address, Entry, bool], object]
    gone: Callable[[Address, Entry], object]
    link: Link | None = field(init=False)
    entries: dict[Address, Entry] = field(factory=dict, init=False)
    foreign: frozenset[Configured] = field(init=False)
    marks: frozenset[Mark] | None = field(default=None, init=False)
    spoiled: bool = field(default=False, init=False)
    listeners: list[Callable[[], object]] = field(factory=list, init=False)
    index: int = field(default=2, init=False)
    _check: Event | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.link = Link(self.index, INTERFACE, self.mac, ready=True)
        self.foreign = self.own

    def jiffies(self) -> int:
        return int(self.clock.seconds() * HZ)

    def write(self, address: Address, valid: float, preferred: float, by_hand: bool = False) -> None:
        """Add an address, or give it other lifetimes."""
        entry = Entry(self.jiffies(), valid, preferred, by_hand)
        self.put(address, entry, address not in self.entries)
        self.entries[address] = entry
        self._arm(self.jiffies())
        self.changed()

    def delete(self, address: Address) -> None:
        entry = self.entries.pop(address, None)
        if entry is not None:
            self.gone(address, entry)
            self.changed()

    def left(self, entry: Entry) -> float:
        """The seconds that an address has left, as the kernel tells them: whole ones, rounded up."""
        return inf if entry.valid == inf else max(0, entry.valid - (self.jiffies() - entry.written) // HZ)

    def set_ready(self, ready: bool) -> None:
        if self.link is not None and self.link.ready != ready:
            self.link = evolve(self.link, ready=ready)
            self.changed()

    def delete_link(self) -> None:
        """The interface goes, with all that is on it."""
        if self.link is not None:
            self.link, self.foreign = None, frozenset()
            for address in list(self.entries):
                self.delete(address)
            self.changed()

    def make_link(self) -> None:
        """It is made again, with another index and with what somebody else configured on it."""
        if self.link is None:
            self.index += 1
            self.link, self.foreign = Link(self.index, INTERFACE, self.mac, ready=True), self.own
            self.changed()

    def changed(self) -> None:
        for listener in self.listeners:
            listener()

    # See Note [How the kernel keeps time].

    def _arm(self, jiffy: int) -> None:
        if self._check is not None:
            self._check.cancel()
        self._check = self.timeline.at(self.clock.true(jiffy / HZ), self._pass)

    def _pass(self) -> None:
        now = self.jiffies()
        following = _up(now + CHECK_FREQUENCY)
        for address, entry in list(self.entries.items()):
            if entry.valid == inf:
                continue
            age = (now - entry.written + FUZZ_MINUS) // HZ
            if age >= entry.valid:
                self.delete(address)
            else:
                ends = entry.valid if age >= entry.preferred else entry.preferred
                following = min(following, entry.written + int(ends) * HZ)
        if not self.entries:
            self._check = None
            return
        rounded = _up(following)
        scheduled = rounded if rounded < following + FUZZ else following
        self._arm(wheel(now, max(scheduled, now + FUZZ_MAX)))


def _up(jiffy: int) -> int:
    """The next whole second."""
    return -(-jiffy // HZ) * HZ


@implementer(IAddresses)
@define(eq=False, repr=False)
class Addresses:
    """The addresses of a host's kernel, as an agent sees and changes them."""

    kernel: Kernel

    def read(self) -> Host:
        kernel = self.kernel
        now = kernel.clock.seconds()
        own = kernel.foreign
        return Host(
            {} if kernel.link is None else {INTERFACE: kernel.link},
            {address: now + kernel.left(entry) for address, entry in kernel.entries.items()},
            dict.fromkeys(kernel.entries, INTERFACE),
            {INTERFACE: own},
            own,
        )

    def assign(self, assignments: AbstractSet[Assignment]) -> Assigned:
        kernel = self.kernel
        theirs = {interface.ip for interface in kernel.foreign}
        expires: dict[Address, float] = {}
        failed: dict[Address, str] = {}
        for assignment in sorted(assignments, key=lambda each: order(each.address)):
            now = kernel.clock.seconds()
            address, left = assignment.address, assignment.expires - now
            if kernel.link is None:
                failed[address] = "the interface em1 does not exist"
            elif address in theirs:
                failed[address] = "somebody else configured it on this host"
            elif left < 1:
                failed[address] = f"its claim ends in {left:.1f} s"
            else:
                seconds = floor(left)
                kernel.write(address, seconds, preferred_lifetime(seconds))
                expires[address] = now + seconds
        return Assigned(expires, failed)

    def unassign(self, addresses: AbstractSet[Address]) -> Unassigned:
        for address in in_order(addresses):
            self.kernel.delete(address)
        return Unassigned(frozenset(addresses))


@implementer(IFirewall)
@define(eq=False, repr=False)
class Firewall:
    """The firewall of a host's kernel."""

    kernel: Kernel

    def read(self) -> frozenset[Mark] | None:
        return self.kernel.marks

    def replace(self, marks: AbstractSet[Mark]) -> None:
        self.kernel.spoiled = False
        self.kernel.marks = frozenset(marks)

    def remove(self) -> None:
        self.kernel.spoiled = False
        self.kernel.marks = None


@implementer(IAnnouncer)
@define(eq=False, repr=False)
class Announcer:
    """
    Announces to nobody, and tells of it.

    @ivar announced: told of each address whose time has not come.
    """

    kernel: Kernel
    announced: Callable[[Address], object]

    def announce(self, assignments: AbstractSet[Assignment]) -> None:
        if self.kernel.link is None or not self.kernel.link.ready:
            raise NetworkError("announcing addresses on em1: the interface is down")
        now = self.kernel.clock.seconds()
        for address in in_order(each.address for each in assignments if now < each.expires):
            self.announced(address)


@implementer(INeighbours)
@define(eq=False, repr=False)
class Neighbours:
    """
    Asks the other hosts on the link, and hears what they ask meanwhile.

    @ivar owners: who has an address, but for the host itself.
    @ivar asking: for each host what it asks for, and who else has asked for which of that since it began.
    """

    kernel: Kernel
    process: Process
    timeline: Timeline
    owners: Callable[[Kernel, Address], bytes | None]
    asking: dict[Kernel, tuple[AbstractSet[Address], dict[Address, bytes]]]

    def begin(self, placements: AbstractSet[Placement], wait: float) -> None:
        """What is asked for from now on, until L{probe} tells what was heard."""
        addresses = {placement.address for placement in placements}
        self.asking[self.kernel] = (addresses, {})
        for number in range(3):
            self.timeline.after(0.0005 + wait * number / 3, self._ask, addresses)

    def _ask(self, addresses: AbstractSet[Address]) -> None:
        if not self.process.alive or self.process.frozen or not self._is_ready(self.kernel):
            return
        for kernel, (theirs, heard) in self.asking.items():
            if kernel is not self.kernel and self._is_ready(kernel):
                heard.update(dict.fromkeys(addresses & theirs, self.kernel.mac))

    def _is_ready(self, kernel: Kernel) -> bool:
        return kernel.link is not None and kernel.link.ready

    def probe(self, placements: AbstractSet[Placement], wait: float) -> Probed:
        if not self._is_ready(self.kernel):
            raise NetworkError("asking the neighbours on em1: the interface is down")
        found = {
            address: self.owners(self.kernel, address) for address in in_order(each.address for each in placements)
        }
        owners = {address: mac for address, mac in found.items() if mac is not None}
        _, heard = self.asking.pop(self.kernel)
        return Probed(owners, {address: mac for address, mac in heard.items() if address not in owners})


@define(eq=False, repr=False)
class Thread:
    """
    One thread of a process that makes one blocking call at a time. A call has its effect at its end, all of it at once.

    @ivar hangs_until: the true time until which nothing that the thread begins comes to an end.
    """

    process: Process
    timeline: Timeline
    random: Random
    hangs_until: float = field(default=0.0, init=False)
    calls: int = field(default=0, init=False)
    _queue: deque[tuple[Deferred[Any], Callable[[], Any]]] = field(factory=deque, init=False)
    _works: bool = field(default=False, init=False)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """As L{kiwi.network.threads.OneWriter.call}."""
        deferred: Deferred[Any] = Deferred()
        # A probe waits for answers as long as it is told to.
        wait = arguments[1] if len(arguments) == 2 else 0.0
        self._queue.append((deferred, lambda: function(*arguments)))
        self.calls += 1
        self._next(wait)
        return deferred

    def _next(self, wait: float = 0.0) -> None:
        if not self._works and self._queue:
            self._works = True
            draw = self.random.random()
            seconds = 0.0005 + 0.003 * draw if draw < 0.97 else 0.1 * draw
            self.timeline.at(max(self.timeline.now, self.hangs_until) + seconds + wait, self._act)

    def _act(self) -> None:
        if not self.process.alive:
            return
        if self.process.frozen:
            self.process.deliver(self._act_soon)
            return
        deferred, function = self._queue.popleft()
        self.process.entered(self.process)
        try:
            result = function()
        except NetworkError:
            result = Failure()
        self._works = False
        self.timeline.after(0.0001 + 0.001 * self.random.random(), self.process.deliver, self._answer, deferred, result)
        self._next()

    def _act_soon(self) -> None:
        """The process was continued: its threads run beside each other."""
        self.timeline.after(0.002 * self.random.random(), self._act)

    def _answer(self, deferred: Deferred[Any], result: Any) -> None:
        if not deferred.called:
            deferred.callback(result)
