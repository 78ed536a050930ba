"""
What marks cost a packet, and what they cost an agent.

Two namespaces with a link between them. One sends UDP packets of 64 bytes (with the checksum of the frame) as fast as
one core can, and the same core takes them in at the other side, where a rule after the marks counts and drops them. So
the time for a packet is that for sending it, taking it in and marking it. Each time it is measured with the marks, and
then without them; the difference is what marking takes. The packets go to the last one of the marks, which is the worst
that can happen where rules are tried one after the other.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import resource
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address

from attrs import frozen

from kiwi.model import Mark, Protocol, in_order, ip
from kiwi.network.firewall import FwMark
from kiwi.network.interface import IFirewall
from kiwi.network.iptables import IptablesFirewall, Variant
from kiwi.network.nftables import NftablesFirewall
from tests.lab.namespaces import Namespace, ip_batch, owned_name

from .common import Table, note, show_all

IN_ONE_CALL = 256
FRAME = 60
"""Bytes in a frame without its checksum."""

_PACKET_QDISC_BYPASS = 20
_SOL_PACKET = 263
_LIBC = ctypes.CDLL(None, use_errno=True)

COUNT = """
table inet sink {
    counter seen { packets 0 bytes 0; }
    counter marked { packets 0 bytes 0; }
    chain after {
        type filter hook prerouting priority 0; policy accept;
        meta mark 1 counter name marked;
        udp dport 8080 counter name seen drop;
    }
}
"""

FIREWALLS: dict[str, Callable[[], IFirewall]] = {
    "iptables, legacy": lambda: _iptables("legacy"),
    "iptables, nft": lambda: _iptables("nft"),
    "nftables": lambda: NftablesFirewall("KUBE-PUBLIC", FwMark(1)),
}


def _iptables(name: str) -> IptablesFirewall:
    variant = Variant(name, f"iptables-{name}", f"ip6tables-{name}")
    return IptablesFirewall("KUBE-PUBLIC", FwMark(1), variant, timeout=60)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vectors_size", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    _fields_ = (("header", _MsgHdr), ("size", ctypes.c_uint))


def marks(number: int) -> frozenset[Mark]:
    """So many marks, two for each address."""
    first = IPv4Address("10.10.0.1")
    return frozenset(
        Mark(ip(str(first + index // 2)), protocol, 8080, f"shop/service-{index // 2}")
        for index, protocol in zip(range(number), itertools.cycle((Protocol.UDP, Protocol.TCP)), strict=False)
    )


def last(those: frozenset[Mark]) -> IPv4Address:
    """The address of the last rule that is for UDP."""
    address = in_order({mark.address for mark in those})[-1]
    assert isinstance(address, IPv4Address)
    return address


@frozen
class Link:
    """
    A host, and who sends to it.

    @ivar mac: that of the host's end of the link.
    """

    host: Namespace
    sender: Namespace
    mac: bytes

    def frame(self, address: IPv4Address) -> bytes:
        """A UDP packet to this address."""
        size = FRAME - 14
        header = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 17, 0, IPv4Address("10.9.9.2").packed, address.packed
        )
        total = sum(struct.unpack(">10H", header))
        total = (total & 0xFFFF) + (total >> 16)
        header = header[:10] + struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + header[12:]
        packet = header + struct.pack(">HHHH", 40000, 8080, size - 20, 0)
        return self.mac + bytes.fromhex("0200000000990800") + packet.ljust(size, b"\0")

    def compare(self, firewall: IFirewall, those: frozenset[Mark], seconds: float) -> tuple[float, float]:
        """The time that a packet takes, in seconds, with these marks and without them."""
        frame = self.frame(last(those))
        with self.host.entered():
            firewall.replace(those)
        try:
            marked = self.time(frame, seconds, marked=True)
        finally:
            with self.host.entered():
                firewall.remove()
        return marked, self.time(frame, seconds, marked=False)

    def time(self, content: bytes, seconds: float, marked: bool) -> float:
        """The time that a packet takes, in seconds; each one has to be marked, or not."""
        frame = ctypes.create_string_buffer(content, FRAME)
        vector = _IoVec(ctypes.addressof(frame), FRAME)
        messages = (_MMsgHdr * IN_ONE_CALL)()
        for message in messages:
            message.header.vectors, message.header.vectors_size = ctypes.addressof(vector), 1
        with self.sender.entered():
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with sender:
            sender.bind(("peer", 0))
            sender.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            before = self.counted()
            began = time.monotonic()
            while time.monotonic() < began + seconds:
                if _LIBC.sendmmsg(sender.fileno(), messages, IN_ONE_CALL, 0) < 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            took = time.monotonic() - began
        after = self.counted()
        seen, with_mark = (after[name] - before[name] for name in ("seen", "marked"))
        if with_mark != (seen if marked else 0):
            raise SystemExit(f"of {seen} packets, {with_mark} were marked")
        return took / seen

    def counted(self) -> dict[str, int]:
        """How many packets have come to the rules after the marks."""
        listed = self.run("nft", "-j", "list", "counters")
        return {each["counter"]["name"]: each["counter"]["packets"] for each in json.loads(listed)["nftables"][1:]}

    def run(self, *command: str, text: str = "") -> str:
        """What a command prints on the host."""
        with self.host.entered():
            return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout


@contextmanager
def link() -> Iterator[Link]:
    """Two namespaces and a link between them."""
    host, sender = (Namespace(owned_name(0, part)) for part in ("host", "sender"))
    try:
        ip_batch([f"netns add {host.name}", f"netns add {sender.name}"])
        host.ip([f"link add em1 type veth peer name peer netns {sender.name}", "link set em1 up", "link set lo up"])
        host.ip(["address add 10.9.9.1/24 dev em1"])
        sender.ip(["link set peer up"])
        shown = subprocess.run(
            ["ip", "-n", host.name, "-j", "link", "show", "em1"], check=True, capture_output=True, text=True
        )
        made = Link(host, sender, bytes.fromhex(json.loads(shown.stdout)[0]["address"].replace(":", "")))
        made.run("nft", "-f", "-", text=COUNT)
        yield made
    finally:
        for each in (host, sender):
            each.destroy()


def packet_cost(numbers: list[int], runs: int, seconds: float) -> Table:
    """Packets a second, the time for one, and how much of it is for marking it."""
    rows = []
    with link() as pair:
        for name, number in itertools.product(FIREWALLS, numbers):
            those = marks(number)
            found = [pair.compare(FIREWALLS[name](), those, seconds) for _ in range(runs)]
            each = statistics.median(took for took, _ in found)
            marking = statistics.median(took - bare for took, bare in found)
            rows.append([name, f"{number:,}", f"{1 / each:,.0f}", f"{each * 1e9:,.0f} ns", f"{marking * 1e9:,.0f} ns"])
            note(" | ".join(rows[-1]))
    return Table("A packet to the last one of the marks", ["", "marks", "packets/s", "time each", "for marking"], rows)


def agent_cost(number: int, runs: int) -> Table:
    """What it takes to set marks, to change one of them, and to look at them: time, and processor time."""
    rows = []
    those = marks(number)
    more = those | {Mark(ip("10.200.0.1"), Protocol.TCP, 80, "shop/new")}
    changed = itertools.count()
    with link() as pair, pair.host.entered():
        for name, make in FIREWALLS.items():
            firewall = make()
            cells = [name]
            steps: list[tuple[Callable[[], object], Callable[[], object], int]] = [
                (partial(firewall.replace, those), _nothing, 1),
                (partial(firewall.replace, more), partial(firewall.replace, those), runs),
                (partial(firewall.replace, those), partial(firewall.replace, more), runs),
                (firewall.read, firewall.read, runs),
                (firewall.read, partial(_disturb, changed), runs),
            ]
            for step, before, times in steps:
                cells.append(_median(step, before, times))
            rows.append(cells)
            note(" | ".join(cells))
            firewall.remove()
    columns = ["", "set all", "one more", "one less", "look", "look after others changed theirs"]
    return Table(f"{number:,} marks: time / processor time of the agent and what it runs", columns, rows)


def _nothing() -> None:
    pass


def _disturb(changed: Iterator[int]) -> None:
    """Change the ruleset elsewhere."""
    subprocess.run(["nft", "add", "table", "ip", f"other{next(changed)}"], check=True)


def _median(step: Callable[[], object], before: Callable[[], object], runs: int) -> str:
    found = []
    for _ in range(runs):
        before()
        began, used = time.monotonic(), _processor_time()
        step()
        found.append((time.monotonic() - began, _processor_time() - used))
    elapsed, cpu = (statistics.median(values) for values in zip(*found, strict=True))
    return f"{elapsed * 1000:.2f} / {cpu * 1000:.2f} ms"


def _processor_time() -> float:
    """Seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what marks cost a packet, and an agent.")
    parser.add_argument("--runs", type=int, default=3, help="how often to measure (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for how long to send (default: %(default)s)")
    parser.add_argument("--marks", type=int, nargs="*", default=[1, 10000], help="how many (default: 1 10000)")
    parser.add_argument("--agent", type=int, default=5000, help="marks of the agent (default: %(default)s)")
    parser.add_argument("--rst", action="store_true", help="print the tables for a page of documentation")
    chosen = parser.parse_args()
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    packets = packet_cost(chosen.marks, chosen.runs, chosen.seconds)
    os.sched_setaffinity(0, allowed)
    show_all([packets, agent_cost(chosen.agent, chosen.runs)], chosen.rst)


if __name__ == "__main__":
    main()
