"""
Runs the linters, the type checker and the tests, and ends with the line C{N passed, N failed}.

The tests run in two halves at the same time: those of one half mostly wait, and those of the other one mostly compute.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_BIN = Path(sys.executable).parent
_SUMMARY = re.compile(r"^(?:PASSED|FAILED)(?: \(([^)]*)\))?$", re.MULTILINE)
_RAN = re.compile(r"^Ran \d+ tests? in ", re.MULTILINE)
_COUNT = re.compile(r"(\w+)=(\d+)")
_GOOD = frozenset({"successes", "expectedFailures"})
_UNABLE = re.compile(r"^\[SKIPPED\]\n(this kernel cannot: [^\n]*)\n\n((?:tests\.[^\n]+\n)+)", re.MULTILINE)

WAITING = ("tests.claims", "tests.fakes", "tests.functional")
"""The half that mostly waits."""

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


def computing() -> list[str]:
    """The other half: every other module and package of tests."""
    found = [path for path in Path("tests").iterdir() if (path / "__init__.py").exists() or path.match("test_*.py")]
    return sorted({f"tests.{path.stem}" for path in found} - set(WAITING))


def trial(*names: str) -> list[str]:
    return [sys.executable, "-m", "twisted.trial", *names]


def run_halves() -> tuple[int, str, int, str]:
    """Exit status and output of both halves, shown one after the other."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        with subprocess.Popen(
            trial(*computing()), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        ) as process:
            waiting, shown = run(trial(*WAITING))
            process.wait()
        output.seek(0)
        later = output.read()
    print(later, end="", flush=True)
    return waiting, shown, process.returncode, later


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
    results = [run(trial(*arguments))] if arguments else []
    if not arguments:
        waiting, shown, computed, later = run_halves()
        results = [(waiting, shown), (computed, later)]
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
