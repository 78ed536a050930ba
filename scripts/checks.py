"""Runs the linters, the type checker and the tests, and ends with the line C{N passed, N failed}."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_BIN = Path(sys.executable).parent
_SUMMARY = re.compile(r"^(?:PASSED|FAILED)(?: \(([^)]*)\))?$", re.MULTILINE)
_RAN = re.compile(r"^Ran \d+ tests? in ", re.MULTILINE)
_COUNT = re.compile(r"(\w+)=(\d+)")
_GOOD = frozenset({"successes", "expectedFailures"})

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


def main(arguments: Sequence[str]) -> int:
    passed = failed = 0
    for name, command in CHECKS:
        print(f"== {name}", flush=True)
        status, _output = run(command)
        passed, failed = (passed + 1, failed) if status == 0 else (passed, failed + 1)
    print("== trial", flush=True)
    start = time.monotonic()
    status, output = run([sys.executable, "-m", "twisted.trial", *(arguments or ["tests"])])
    good, bad = counts(output)
    if good == 0 or (status != 0 and bad == 0):
        bad += 1
    print(f"Tests took {time.monotonic() - start:.0f} s.")
    print(f"{passed + good} passed, {failed + bad} failed", flush=True)
    return 1 if failed + bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
