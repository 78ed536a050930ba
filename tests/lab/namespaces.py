"""Network namespaces: making, entering, destroying, and sweeping up those of processes that died."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import frozen

PREFIX = "kiwi-lab"
_OWNED = re.compile(rf"{PREFIX}-(\d+)-")
_RUN = Path("/run/netns")
_LIBC = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab cannot be built here. Its text says what is missing."""


def owned_name(serial: int, part: str) -> str:
    """A name that tells which process owns it."""
    return f"{PREFIX}-{os.getpid()}-{serial}-{part}"


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@frozen
class Namespace:
    """A network namespace with a name that C{ip netns} knows."""

    name: str

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in the namespace meanwhile. Sockets that it opens stay there for their life."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(_RUN / self.name, os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    def ip(self, lines: Iterable[str]) -> None:
        """Run lines of C{ip -batch} in the namespace."""
        ip_batch(lines, "-n", self.name)

    def processes(self) -> list[int]:
        """The ids of the processes that are in the namespace."""
        answer = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in answer.stdout.split()]

    def destroy(self) -> None:
        """End what runs in the namespace and remove it. It is no error if it is gone."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)


def ip_batch(lines: Iterable[str], *options: str) -> None:
    """
    Run lines of C{ip -batch}.

    @raise LabError: with what C{ip} answered.
    """
    batch = "\n".join(lines) + "\n"
    answer = subprocess.run(["ip", *options, "-batch", "-"], input=batch, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise LabError(f"ip {' '.join(options)} -batch: {answer.stderr.strip()}")


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def sweep() -> list[str]:
    """Destroy the namespaces and folders of labs whose process is gone; their names."""
    swept = []
    for folder in (_RUN, Path(tempfile.gettempdir())):
        for path in sorted(folder.glob(f"{PREFIX}-*")):
            owner = _OWNED.match(path.name)
            if owner is None or _alive(int(owner[1])):
                continue
            if folder == _RUN:
                Namespace(path.name).destroy()
            else:
                shutil.rmtree(path, ignore_errors=True)
            swept.append(path.name)
    return swept
