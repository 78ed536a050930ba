"""What a process takes."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen

from tests.lab.processes import Process


@frozen
class Usage:
    """What a process has taken: processor seconds with those of its children that have ended, and memory in MB."""

    cpu: float
    memory: float
    most_memory: float

    @classmethod
    def of(cls, process: Process) -> Usage:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if ":" in line
        )
        # proc(5): utime, stime, cutime and cstime are fields 14 to 17; the first one after the name is number 3.
        ticks = sum(int(text) for text in fields[11:15])
        return cls(ticks / os.sysconf("SC_CLK_TCK"), _megabytes(status["VmRSS"]), _megabytes(status["VmHWM"]))


def _megabytes(text: str) -> float:
    return int(text.split()[0]) * 1024 / 1e6
