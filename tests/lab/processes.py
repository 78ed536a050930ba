"""Processes on the lab's hosts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import define, field

from .waiting import Impatient, wait_until

_AS_HOST = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'


def on_host(namespace: str, hostname: str, argv: Sequence[str]) -> list[str]:
    """
    The command that runs C{argv} in a network namespace, under a host name of its own, and kills it when the thread
    that started it ends. Every step replaces itself by the next, so that the process id is that of C{argv}.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", namespace),
        *("unshare", "--uts", "sh", "-c", _AS_HOST, hostname, *argv),
    ]


@define(eq=False)
class Process:
    """
    One process that a lab started.

    @ivar name: what to call it in messages.
    @ivar out: the file that its standard output goes to.
    @ivar err: the same for standard error.
    """

    name: str
    out: Path
    err: Path
    _popen: subprocess.Popen[bytes] = field(repr=False)

    @classmethod
    def start(
        cls, name: str, argv: Sequence[str], directory: Path, environment: Mapping[str, str], working: Path
    ) -> Process:
        """
        Start it, with nothing to read from.

        @param directory: where its output goes.
        @param environment: on top of this process's own.
        @param working: its working directory.
        """
        # A shell has what it starts in the background ignore SIGINT, and a child would inherit that.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        out, err = directory / f"{name}.out", directory / f"{name}.err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
                env={**os.environ, **environment},
                cwd=working,
                start_new_session=True,
            )
        return cls(name, out, err, popen)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """The exit status, a negative signal number, or C{None} while it runs."""
        return self._popen.poll()

    def output(self) -> str:
        """What it printed on standard output so far."""
        return self.out.read_text(errors="replace")

    def errors(self) -> str:
        """What it printed on standard error so far."""
        return self.err.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal. It is no error if the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    def wait(self, limit: float) -> int:
        """Wait for its end; the exit status."""
        try:
            return self._popen.wait(limit)
        except subprocess.TimeoutExpired:
            raise Impatient(f"{self.name} (process {self.pid}) still runs after {limit:g} s\n{self.story()}") from None

    def terminate(self, limit: float = 10.0) -> int:
        """Ask it to end in order, and wait; the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(limit)

    def kill(self) -> None:
        """End it at once, with no chance to do anything about it."""
        self.signal(signal.SIGKILL)
        self._popen.wait()

    def freeze(self) -> None:
        """Stop it from running, and return when the kernel has stopped all of its threads."""
        self.signal(signal.SIGSTOP)
        wait_until(self._is_stopped, f"{self.name} to stop")

    def _is_stopped(self) -> bool:
        states = []
        for stat in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                states.append(stat.read_text().rpartition(")")[2].split()[0])
        return all(state == "T" for state in states)

    def resume(self) -> None:
        """Let it run again."""
        self.signal(signal.SIGCONT)

    def story(self, lines: int = 30) -> str:
        """The end of what it printed, for a message."""
        text = [f"--- {self.name} (process {self.pid}, status {self.status})"]
        for stream in (self.output(), self.errors()):
            text += [f"    {line}" for line in stream.splitlines()[-lines:]]
        return "\n".join(text)
