"""
Runs the linters, the type checker and the tests, and ends with the line C{N passed, N failed}.

The tests run in parts, several at the same time, since most of them mostly wait.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

_BIN = Path(sys.executable).parent
_SUMMARY = re.compile(r"^(?:PASSED|FAILED)(?: \(([^)]*)\))?$", re.MULTILINE)
_RAN = re.compile(r"^Ran \d+ tests? in ", re.MULTILINE)
_COUNT = re.compile(r"(\w+)=(\d+)")
_GOOD = frozenset({"successes", "expectedFailures"})
_UNABLE = re.compile(r"^\[SKIPPED\]\n(this kernel cannot: [^\n]*)\n\n((?:tests\.[^\n]+\n)+)", re.MULTILINE)

AT_ONCE = 4
"""Parts that run at the same time: most of them mostly wait."""

LONGEST = (
    "tests.simulation.test_schedules",
    "tests.simulation.test_mutants",
    "tests.functional.test_etcd3",
    "tests.functional.test_leases",
    "tests.functional.test_cluster",
    "tests.functional.test_failures",
    "tests.functional.test_ipv6",
    "tests.functional.test_stores",
    "tests.functional.test_quorum",
    "tests.functional.test_services",
    "tests.functional.test_etcd_access",
    "tests.claims.test_etcd3_secure",
    "tests.claims.test_etcd3",
)
"""Parts that begin first, so that no long one is left alone at the end."""

WHOLE = ("tests.kubernetes", "tests.network", "tests.fakes")
"""Packages whose modules run together: each would be short."""

CHECKS = (
    ("ruff check", [str(_BIN / "ruff"), "check", "."]),
    ("ruff format", [str(_BIN / "ruff"), "format", "--check", "."]),
    ("mypy", [str(_BIN / "mypy")]),
)


def counts(output: str) -> tuple[int, int]:
    """
    How many tests trial's output says have passed, and how many have not. What was skipped has not. An output that
    stops before the summary is one more that has not.
    """
    summaries = _SUMMARY.findall(output)
    if not _RAN.search(output) or not summaries:
        return 0, 1
    found = {name: int(number) for name, number in _COUNT.findall(summaries[-1])}
    return (
        sum(number for name, number in found.items() if name in _GOOD),
        sum(number for name, number in found.items() if name not in _GOOD),
    )


def run(command: Sequence[str]) -> tuple[int, str]:
    """Run a command; its exit status, and its output, which is shown as it comes."""
    lines = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    return process.returncode, "".join(lines)


def parts() -> list[list[str]]:
    """What runs by itself: each module or package of tests, but the small ones of the top together."""
    modules = [".".join(path.with_suffix("").parts) for path in sorted(Path("tests").rglob("test_*.py"))]
    small = [name for name in modules if name.count(".") == 1]
    whole = [package for package in WHOLE if any(name.startswith(f"{package}.") for name in modules)]
    alone = {
        name for name in modules if name.count(".") > 1 and not name.startswith(tuple(f"{each}." for each in whole))
    }
    first = [name for name in LONGEST if name in alone]
    return [*([name] for name in [*first, *whole]), small, *([name] for name in sorted(alone - set(first)))]


def trial(names: Sequence[str], temporary: str) -> list[str]:
    return [sys.executable, "-m", "twisted.trial", "--temp-directory", temporary, *names]


def run_parts() -> list[tuple[int, str]]:
    """Exit status and output of each part; the output is shown when the part is over."""
    showing = Lock()

    def run_part(number: int, names: Sequence[str], temporary: str) -> tuple[int, str]:
        began = time.monotonic()
        done = subprocess.run(
            trial(names, f"{temporary}/{number}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        with showing:
            print(f"{done.stdout}-- {' '.join(names)}: {time.monotonic() - began:.0f} s", flush=True)
        return done.returncode, done.stdout

    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(run_part, number, names, temporary) for number, names in enumerate(parts())]
        return [each.result() for each in running]


def judge(status: int, output: str) -> tuple[int, int]:
    """
    How many tests have passed, and how many have not. Something has not where trial says so and no test does. What this
    kernel cannot do counts as neither, and is told at the end.
    """
    good, bad = counts(output)
    bad += good == 0 or (status != 0 and bad == 0)
    return good, bad - sum(len(names) for names in unable(output).values())


def unable(output: str) -> dict[str, list[str]]:
    """The tests that this kernel cannot run, by what it cannot do."""
    return {reason: names.split() for reason, names in _UNABLE.findall(output)}


def main(arguments: Sequence[str]) -> int:
    passed = failed = 0
    for name, command in CHECKS:
        print(f"== {name}", flush=True)
        status, _output = run(command)
        passed, failed = (passed + 1, failed) if status == 0 else (passed, failed + 1)
    print("== trial", flush=True)
    start = time.monotonic()
    results = [run([sys.executable, "-m", "twisted.trial", *arguments])] if arguments else run_parts()
    for status, output in results:
        good, bad = judge(status, output)
        passed, failed = passed + good, failed + bad
    if not os.environ.get("KIWI_ETCD_36"):
        print("Not run: what is for etcd 3.6, which is not there (scripts/etcd says why).")
    for _status, output in results:
        for reason, names in unable(output).items():
            print(f"Not run: {', '.join(names)}: {reason}.")
    print(f"Tests took {time.monotonic() - start:.0f} s.")
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
