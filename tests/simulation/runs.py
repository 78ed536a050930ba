"""One simulation from its seed to its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attrs import frozen

from kiwi.kubernetes.client import LONGEST_WATCH
from kiwi.kubernetes.watch import DOUBT_AT_FIRST

from .schedules import Happening, Schedule, draw, heal, let_happen
from .world import AS_IT_IS, Mutation, Violation, World

SETTLED = 12.0
"""Seconds more than a TTL within which everything is in order again once nothing is wrong any more."""

STEADY = 2.0
"""TTLs for which it is watched then that nothing happens but heartbeats."""


@frozen
class Outcome:
    """
    What came of one simulation.

    @ivar violation: what was wrong, or empty.
    @ivar settled: seconds from when nothing was wrong any more until everything was in order.
    @ivar simulated: seconds.
    @ivar trace: a line for each thing that was seen, as far as it was kept.
    """

    schedule: Schedule
    violation: str
    settled: float
    simulated: float
    events: int
    requests: int
    lines: Sequence[str]

    def report(self) -> str:
        return "\n".join(
            [
                str(self.schedule),
                "",
                *self.lines,
                "",
                f"seed {self.schedule.seed}: {self.violation or 'nothing was wrong'}",
            ]
        )


def run(
    seed: int,
    without: Sequence[str] = (),
    only: Sequence[int] | None = None,
    mutation: Mutation = AS_IT_IS,
    keep: bool = False,
    backend: str = "etcd2",
) -> Outcome:
    """
    Simulate what a seed says.

    @param keep: keep what was logged even if nothing is wrong.
    @param backend: where claims are: C{etcd2}, C{etcd3} or C{leases}.
    """
    return play(draw(seed, without, only, backend), mutation, keep)


def play(schedule: Schedule, mutation: Mutation = AS_IT_IS, keep: bool = False) -> Outcome:
    """Simulate a schedule."""
    world = World(
        str(schedule.seed),
        schedule.ttl,
        members=schedule.members,
        mutation=mutation,
        few=schedule.few,
        backend=schedule.backend,
    )
    violation, settled = "", 0.0
    with world:
        try:
            settled = _play(world, schedule)
        except Violation as wrong:
            violation = str(wrong)
    return Outcome(
        schedule,
        violation,
        settled,
        world.timeline.now,
        world.timeline.happened,
        len(world.network.sent),
        world.lines() if violation or keep else (),
    )


def _play(world: World, schedule: Schedule) -> float:
    for _ in range(schedule.agents):
        world.add_host()
    for number in schedule.services:
        let_happen(world, Happening(0.0, "Service set", number=number))
    for host in world.hosts:
        world.timeline.at(world.network.random.uniform(0, 1), host.start)
    for happening in schedule.happenings:
        world.timeline.at(happening.at, let_happen, world, happening)
    world.run_until(schedule.calm + 0.01)
    heal(world)
    settled = _settle(world)
    _stay_steady(world)
    world.check()
    return settled


def _settle(world: World) -> float:
    """Everything gets in order within some time; how long it took."""
    start = world.timeline.now
    while True:
        world.pass_time(0.25)
        unsettled = world.unsettled()
        passed = world.timeline.now - start
        if not unsettled:
            return passed
        if passed > world.ttl + SETTLED:
            world.judge.complain(f"not in order {passed:.1f} s after everything was healed: {'; '.join(unsettled)}")
            world.check()


def _stay_steady(world: World) -> None:
    """Nothing happens any more but heartbeats."""
    # What was deferred while things settled comes to its end first; so does the doubt in an empty list of Services.
    world.pass_time(max(DOUBT_AT_FIRST + 8.0, 1.5 * world.ttl + 5.0))
    before = len(world.network.sent)
    world.wakings.clear()
    for thread in (thread for host in world.hosts for thread in host.threads):
        thread.calls = 0
    seconds = STEADY * world.ttl
    world.pass_time(seconds)
    unsettled = world.unsettled()
    if unsettled:
        world.judge.complain(f"out of order again: {'; '.join(unsettled)}")
    beats = 3 * STEADY + 2
    addresses, agents = len(world.holders()), len(world.hosts)
    sent = Counter(_about(request) for request in world.network.sent[before:])
    # Of Services, EndpointSlices, one Node, and Leases; each watch ends by itself after a while.
    watches = agents * 4 * (seconds / LONGEST_WATCH[0] + 1)
    allowed = {
        "renewal": addresses * beats,
        "record": agents * beats,
        "lease": agents * beats,
        "watch": watches,
        "other": 0,
    }
    for kind, requests in sorted(sent.items()):
        if requests > allowed[kind]:
            world.judge.complain(f"{requests} requests of kind {kind} in {seconds:.1f} s of calm")
    for host in world.hosts:
        calls = sum(thread.calls for thread in host.threads)
        if calls > 6 * beats + seconds / 10 + 4:
            world.judge.complain(f"{host.name} touches its host {calls} times in {seconds:.1f} s of calm")
        if world.wakings[host.name] > beats * (40 + 30 * addresses):
            world.judge.complain(f"{host.name} wakes {world.wakings[host.name]} times in {seconds:.1f} s of calm")


def _about(request: str) -> str:
    if "refresh=true" in request:
        return "renewal"
    if request.startswith("PUT") and ("/agents/" in request or "/leases/agent." in request):
        return "record"
    if request == "POST /v3/kv/txn":
        return "record"
    if request == "POST /v3/lease/keepalive":
        return "lease"
    if "watch=true" in request or request == "POST /v3/watch":
        return "watch"
    return "other"
