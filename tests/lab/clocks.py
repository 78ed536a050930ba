"""A wall clock that one process has for itself, and that can be stepped while the process runs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from .namespaces import LabError

LIBRARY = "faketime/libfaketimeMT.so.1"

_START = """\
import select, time

# Where it leaves monotonic clocks alone, libfaketime 0.9.10 refuses to sleep until a moment of one, as Python does.
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""
"""What Python does first under L{LIBRARY}."""


def find_library() -> Path:
    """
    The library of Debian's C{libfaketime}, which stands between a process and its clocks.

    @raise LabError: where it is not installed.
    """
    for folder in (Path("/usr/lib"), Path("/usr/local/lib")):
        for found in sorted([*folder.glob(LIBRARY), *folder.glob(f"*/{LIBRARY}")]):
            return found
    raise LabError(f"there is no {LIBRARY}: install faketime")


@frozen
class WallClock:
    """
    The wall clock of a Python process that is started by L{command}. Only that one is changed: the machine's own clock
    is right all the time, and monotonic clocks are nobody's but the kernel's.
    """

    _folder: Path

    @property
    def _file(self) -> Path:
        return self._folder / "offset"

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs C{argv} with this clock."""
        self._folder.mkdir()
        (self._folder / "sitecustomize.py").write_text(_START)
        self.step(0)
        return [
            "env",
            f"LD_PRELOAD={find_library()}",
            f"PYTHONPATH={self._folder}",
            f"FAKETIME_TIMESTAMP_FILE={self._file}",
            "FAKETIME_CACHE_DURATION=1",
            # Older versions know the one name, newer ones the other.
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "DONT_FAKE_MONOTONIC=1",
            *argv,
        ]

    def step(self, seconds: int) -> None:
        """Be this far from the right time, within a second."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(self._file)

    @staticmethod
    def clean(pid: int) -> None:
        """Remove what the library leaves in shared memory of a process that was killed."""
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            with contextlib.suppress(FileNotFoundError):
                (Path("/dev/shm") / name).unlink()
