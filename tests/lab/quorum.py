"""An etcd of three members, each on a host of its own on the LAN."""

from __future__ import annotations

import tempfile
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from tests.fakes.etcd_process import serving_v2

from .processes import Process

if TYPE_CHECKING:
    from .laboratory import Host, Lab

SIZE = 3
FIRST = IPv4Address("192.168.1.21")
CLIENT_PORT = 2379
PEER_PORT = 2380
START_TIME = 60.0
"""Seconds that members may take until they agree, on a busy machine."""


@define(eq=False)
class Member:
    """
    One member.

    @ivar data: the folder where it keeps what it knows.
    @ivar process: the one of its present life, once it is started.
    """

    host: Host
    data: Path
    _command: Sequence[str]
    process: Process | None = field(default=None, init=False)

    @property
    def endpoint(self) -> str:
        return f"http://{self.host.address}:{CLIENT_PORT}"

    def start(self) -> None:
        """Start it, with the data that it has."""
        assert not self.runs, f"{self.host.name} runs already"
        self.process = self.host.start(self.host.name, self._command)

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.status is None

    def kill(self) -> None:
        """End it at once, as a crash would. It is no error if it does not run."""
        if self.process is not None:
            self.process.kill()

    def stop(self) -> None:
        """End it in order: a leader has another member lead first."""
        assert self.process is not None
        self.process.terminate()

    def freeze(self) -> None:
        """Have it stand still: it takes connections and requests, and does nothing."""
        assert self.process is not None
        self.process.freeze()

    def resume(self) -> None:
        """Let it go on. It is no error if it does."""
        if self.process is not None:
            self.process.resume()

    def ask(self, path: str, body: Mapping[str, Any] | None = None, limit: float = 2.0) -> Any:
        """
        What it answers on its own host, whatever becomes of its network; C{None} where it does not, or not well.

        @param body: posted as JSON, where there is one.
        """
        method = "GET" if body is None else "POST"
        try:
            answer = self.host.request(method, self.host.address, CLIENT_PORT, path, body, limit)
        except OSError:
            return None
        return answer.json() if answer.status == 200 else None

    def is_healthy(self) -> bool:
        """Whether it can read what most members agree on."""
        return self.ask("/health") is not None

    def leads(self) -> bool:
        """Whether it says so itself, which may be no longer true."""
        status = self.ask("/v3/maintenance/status", {})
        return status is not None and status.get("leader") == status["header"]["member_id"]


@define(eq=False)
class Quorum:
    """
    The members. They elect and beat as often as they do where nobody says otherwise: 1 s and 0.1 s.

    @ivar members: C{etcd1} and so on, from 192.168.1.21 on.
    """

    members: Sequence[Member]
    _lab: Lab = field(repr=False)

    @classmethod
    def start(cls, lab: Lab, binary: str) -> Quorum:
        """Start a new one, and wait until all are healthy."""
        hosts = [lab.add_host(f"etcd{number + 1}", FIRST + number) for number in range(SIZE)]
        peers = {host.name: f"http://{host.address}:{PEER_PORT}" for host in hosts}
        together = ",".join(f"{name}={url}" for name, url in peers.items())
        members = []
        for host in hosts:
            data = Path(tempfile.mkdtemp(prefix=f"{host.name}-", dir=lab.directory))
            client = f"http://{host.address}:{CLIENT_PORT}"
            command = [
                *(binary, *serving_v2(binary), "--name", host.name, "--data-dir", str(data), "--log-level", "warn"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peers[host.name], "--initial-advertise-peer-urls", peers[host.name]),
                *("--initial-cluster", together),
            ]
            members.append(Member(host, data, command))
        quorum = cls(members, lab)
        quorum.revive()
        return quorum

    def endpoints(self, first: int = 0) -> list[str]:
        """Those of all members, from one of them on, as agents want them."""
        endpoints = [member.endpoint for member in self.members]
        return endpoints[first % SIZE :] + endpoints[: first % SIZE]

    def processes(self) -> list[Process]:
        """Those of all members that were started."""
        return [member.process for member in self.members if member.process is not None]

    def others(self, member: Member) -> list[Member]:
        return [each for each in self.members if each is not member]

    def wait_until_healthy(self, members: Sequence[Member] | None = None) -> None:
        """Wait until these members are, or all."""
        chosen = self.members if members is None else members
        self._lab.wait_until(
            lambda: all(member.is_healthy() for member in chosen), "etcd's members to be healthy", START_TIME
        )

    def leader(self, among: Sequence[Member] | None = None) -> Member:
        """Wait until one of these members leads, or of all; that one."""
        chosen = self.members if among is None else among
        (leader,) = self._lab.wait_until(
            lambda: [member for member in chosen if member.leads()][:1], "a member of etcd to lead", START_TIME
        )
        return leader

    def make_leader(self, member: Member) -> None:
        """Have this member lead."""
        leader = self.leader()
        if leader is not member:
            status = member.ask("/v3/maintenance/status", {})
            leader.ask("/v3/maintenance/transfer-leadership", {"targetID": status["header"]["member_id"]})
            self.leader([member])

    def follower(self) -> Member:
        """One that does not lead."""
        return self.others(self.leader())[0]

    def cut_from_peers(self, member: Member) -> None:
        """Have the other members and this one hear nothing of each other. Agents reach it as before."""
        for other in self.others(member):
            member.host.block(other.host.address, PEER_PORT)
            other.host.block(member.host.address, PEER_PORT)

    def revive(self) -> None:
        """Let all members run and reach each other, whatever was done to them, and wait until they are healthy."""
        for member in self.members:
            member.host.mend_uplink()
            member.host.run("iptables", "-w", "-F")
            member.resume()
            if not member.runs:
                member.start()
        self.wait_until_healthy()

    def keys(self, store: str, path: str = "/kiwi") -> dict[str, str]:
        """
        All keys below a path and their values, as most members agree on them.

        @param store: C{etcd2} or C{etcd3}, which know nothing of each other.
        """
        found: dict[str, str] = {}
        for member in self.members:
            if not member.is_healthy():
                continue
            if store == "etcd2":
                answer = member.ask(f"/v2/keys{path}?recursive=true&quorum=true")
                _collect((answer or {}).get("node", {}), found)
            else:
                answer = member.ask("/v3/kv/range", _below(path)) or {}
                found.update({_text(each["key"]): _text(each.get("value", "")) for each in answer.get("kvs", ())})
            break
        return found

    def clear(self) -> None:
        """Delete every key of Kiwi's, in both stores."""
        member = self.leader()
        member.ask("/v3/kv/deleterange", _below("/kiwi"))
        member.host.request("DELETE", member.host.address, CLIENT_PORT, "/v2/keys/kiwi?recursive=true")


def _collect(node: Mapping[str, Any], found: dict[str, str]) -> None:
    """Put what etcd v2 has below a node into C{found}."""
    if "value" in node:
        found[node["key"]] = node["value"]
    for child in node.get("nodes", ()):
        _collect(child, found)


def _below(path: str) -> dict[str, str]:
    """The range of all keys below a path, as etcd v3 has it."""
    return {"key": b64encode(f"{path}/".encode()).decode(), "range_end": b64encode(f"{path}0".encode()).decode()}


def _text(encoded: str) -> str:
    return b64decode(encoded).decode()
