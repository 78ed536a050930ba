"""Agents that were given different claim stores by mistake, on one link, under simulated time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from random import Random

from attrs import define, field
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from kiwi.claims.interface import IClaimStore
from kiwi.claims.memory import MemoryClaims
from kiwi.model import Address, ip

from .test_agent import DistantStore
from .world import ADDRESS, Lan, SimulatedHost, World, service

WEB = service("web", ADDRESS)
TEN = [ip("192.168.1.100") + number for number in range(10)]
OFFSETS = range(0, 61, 2)
"""Milliseconds: two rounds of questions."""

Overlap = tuple[float, float]
"""Since when two hosts had one address, and until when."""


@define(eq=False)
class Fleets(World):
    """
    Two fleets on one link, whose agents may be mistaken.

    @ivar overlaps: by address, when two had it.
    """

    seed: str = ""
    lan: Lan = field(init=False)
    others: MemoryClaims = field(init=False)
    overlaps: dict[Address, Overlap] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.lan = Lan(self.clock)
        self.others = MemoryClaims(self.clock)

    def agent(self, fleet: int, delay: float = 0.001) -> SimulatedHost:
        """
        An agent of one fleet, on a host of its own.

        @param delay: seconds that its store takes.
        """
        claims = (self.claims, self.others)[fleet]

        def store(agent_id: str) -> IClaimStore:
            inner = claims.store(agent_id, self.ttl)
            return DistantStore(inner, clock=self.clock, tries=[], delay=delay)

        uniform = Random(f"{self.seed}/{len(self.hosts)}").uniform
        return self.host(store, lan=self.lan, uniform=uniform)

    def check(self) -> None:
        now = self.clock.seconds()
        for one, other in combinations(self.hosts, 2):
            for address in one.carried & other.carried:
                since, _ = self.overlaps.get(address, (now, now))
                self.overlaps[address] = (since, now)


def said(events: Sequence[LogEvent], *words: str) -> list[str]:
    lines = [formatEvent(event) for event in events]
    return [line for line in lines if all(word in line for word in words)]


class TwoFleetsTests(SynchronousTestCase):
    """Of agents that do not see each other's claims, one carries an address, and the others refuse it."""

    def fleets(self, *delays: float, seed: object = "", sizes: Sequence[int] = (1, 1)) -> Fleets:
        """Two fleets that have run for a moment, with stores that take so many seconds."""
        world = Fleets(seed=str(seed))
        self.addCleanup(world.stop)
        for fleet, (size, delay) in enumerate(zip(sizes, delays or (0.001, 0.001), strict=True)):
            for _ in range(size):
                world.agent(fleet, delay)
        world.pass_time(4)
        return world

    def tell_apart(self, world: Fleets, first: int, offset: float, *services: object) -> None:
        """One fleet hears of these Services so many seconds before the other one."""
        fleets = [world.hosts[: len(world.hosts) // 2], world.hosts[len(world.hosts) // 2 :]]
        for host in fleets[first]:
            host.tell(*services)  # type: ignore[arg-type]
        world.pass_time(offset)
        for host in fleets[1 - first]:
            host.tell(*services)  # type: ignore[arg-type]

    def test_at_once(self) -> None:
        """However shortly one asks after the other, never do both have the address, and soon one has."""
        for offset in OFFSETS:
            for first in (0, 1):
                world = self.fleets(seed=offset)
                self.tell_apart(world, first, offset / 1000, WEB)
                world.pass_time(3)
                self.assertEqual((len(world.carriers(ADDRESS)), world.overlaps), (1, {}), (offset, first))
                (carrier,) = world.carriers(ADDRESS)
                world.pass_time(2.5 * world.ttl)
                self.assertEqual((world.carriers(ADDRESS), world.overlaps), ([carrier], {}), (offset, first))
                world.stop()

    def test_refused(self) -> None:
        """The one that does not get it says why, and keeps no claim."""
        world = self.fleets()
        with capturedLogs() as events:
            self.tell_apart(world, 0, 0.0, WEB)
            world.pass_time(3)
        (carrier,) = world.carriers(ADDRESS)
        words = (
            f"{ADDRESS}: refused, for another machine, with the MAC address {carrier.mac.hex(':')}, has it already",
        )
        self.assertEqual(len(said(events, *words)), 1)
        self.assertEqual(len(said(events, f"{ADDRESS}: claim released")), 1)
        self.assertEqual(said(events, "too; announcing anew"), [])

    def test_many(self) -> None:
        """The same with three agents in each fleet, and ten addresses."""
        for seed in range(5):
            world = self.fleets(seed=seed, sizes=(3, 3))
            self.tell_apart(world, 0, 0.0, *(service(f"web-{address}", address) for address in TEN))
            world.pass_time(5)
            for _ in range(2):
                self.assertEqual([len(world.carriers(address)) for address in TEN], [1] * 10)
                world.pass_time(1.5 * world.ttl)
            self.assertEqual(world.overlaps, {})
            world.stop()

    def test_slow_stores(self) -> None:
        """
        Where a store takes its time, both may come to have the address. Then one of them gives it up as soon as it has
        heard the other.
        """
        overlapped = 0
        for delays in ((0.1, 0.1), (0.001, 0.1), (0.4, 0.001), (0.3, 0.35), (0.8, 0.7)):
            for offset in (0, 15, 25, 35, 60, 200):
                world = self.fleets(*delays, seed=f"{delays} {offset}")
                self.tell_apart(world, offset % 2, offset / 1000, WEB)
                world.pass_time(8)
                for _ in range(3):
                    self.assertEqual(len(world.carriers(ADDRESS)), 1, (delays, offset))
                    world.pass_time(world.ttl)
                since, until = world.overlaps.get(ADDRESS, (0, 0))
                self.assertLess(until - since, 0.1, (delays, offset))
                overlapped += until > since
                world.stop()
        self.assertGreater(overlapped, 0)
