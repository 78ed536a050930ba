"""
Runs simulations, and replays one::

    scripts/simulate --runs 20000 --jobs 2
    scripts/simulate --seed 4711

A simulation follows from its seed and from nothing else. The order of sets is part of it, so that Python's hashes are
made the same each time.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from twisted.logger import globalLogBeginner

from .runs import Outcome, run
from .schedules import ALL_KINDS

BATCH = 10
"""Simulations that a process makes before it tells of them."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description="Simulate whole agents under faults.")
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="how many simulations [default: 100]")
    parser.add_argument("--first-seed", type=int, default=1, metavar="SEED", help="of the first one [default: 1]")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes that share the work [default: 1]")
    parser.add_argument("--seed", type=int, metavar="SEED", help="simulate this one, and print all of it")
    parser.add_argument("--only", metavar="N,N...", help="with --seed: only these events of its schedule")
    parser.add_argument("--minimise", action="store_true", help="with --seed: leave out what is not needed to fail")
    parser.add_argument(
        "--without", action="append", default=[], metavar="KIND", help="leave out one kind of events; repeatable"
    )
    parser.set_defaults(backend="etcd2")
    for backend, what in (("etcd3", "etcd v3"), ("leases", "Leases of Kubernetes")):
        help = f"with {what} instead of etcd v2"
        parser.add_argument(f"--{backend}", dest="backend", action="store_const", const=backend, help=help)
    options = parser.parse_args(arguments)
    for kind in options.without:
        if kind not in ALL_KINDS:
            parser.error(f"{kind!r} is none of: {', '.join(ALL_KINDS)}")
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    if options.seed is not None:
        only = [int(number) for number in options.only.split(",")] if options.only else None
        return _one(options.seed, options.without, only, options.minimise, options.backend)
    seeds = range(options.first_seed, options.first_seed + options.runs)
    return _many(seeds, options.jobs, options.without, options.backend)


def _one(seed: int, without: Sequence[str], only: Sequence[int] | None, minimise: bool, backend: str) -> int:
    outcome = run(seed, without, only, keep=True, backend=backend)
    if minimise and outcome.violation:
        kept = list(only) if only is not None else list(outcome.schedule.numbers)
        for number in list(kept):
            fewer = [other for other in kept if other != number]
            shorter = run(seed, without, fewer, keep=True, backend=backend)
            if shorter.violation:
                kept, outcome = fewer, shorter
        print(f"--only {','.join(map(str, kept))}")
    print(outcome.report())
    return 1 if outcome.violation else 0


def _batch(without: Sequence[str], backend: str, seeds: Sequence[int]) -> list[Outcome]:
    outcomes = [run(seed, without, backend=backend) for seed in seeds]
    gc.collect()
    return outcomes


def _many(seeds: range, jobs: int, without: Sequence[str], backend: str) -> int:
    started, used = time.monotonic(), os.times()
    batches = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    happened: Counter[str] = Counter()
    failed: list[Outcome] = []
    simulated = settled = requests = events = 0.0
    gc.disable()
    gc.freeze()
    with ProcessPoolExecutor(jobs) as pool:
        for outcomes in pool.map(partial(_batch, without, backend), batches):
            for outcome in outcomes:
                happened.update(happening.kind for happening in outcome.schedule.happenings)
                simulated += outcome.simulated
                requests += outcome.requests
                events += outcome.events
                settled = max(settled, outcome.settled)
                if outcome.violation:
                    failed.append(outcome)
                    again = "".join(f" --without '{kind}'" for kind in without) + (
                        "" if backend == "etcd2" else f" --{backend}"
                    )
                    print(
                        f"{outcome.report()}\nreplay with: scripts/simulate --seed {outcome.schedule.seed}{again}\n",
                        flush=True,
                    )
    now = os.times()
    cpu = now.user + now.children_user - used.user - used.children_user
    print(
        f"{len(seeds)} simulations, {simulated / 3600:.1f} hours of simulated time, {requests:.0f} requests, "
        f"{events:.0f} events"
    )
    print(f"in {time.monotonic() - started:.0f} s; {cpu / len(seeds):.3f} s of CPU each")
    print("happenings: " + ", ".join(f"{number} {kind}" for kind, number in sorted(happened.items())))
    print(f"in order again after at most {settled:.2f} s")
    print(
        f"{len(failed)} violations"
        + (f", of seeds {', '.join(str(o.schedule.seed) for o in failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main(sys.argv[1:]))
