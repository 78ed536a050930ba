"""Packets that a host's neighbour sends to it, and the marks with which they come to the sockets of the host."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import count
from threading import Event, Thread

from attrs import define, field
from pyroute2 import IPRoute
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import Address, Protocol

from .hosts import NamespacedHost, enter_host

_SO_MARK, _SO_RCVMARK = 36, 75
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP, Protocol.SCTP: socket.IPPROTO_SCTP}
_SOURCES = {4: ip_address("10.9.9.2"), 6: ip_address("fd99::2")}
_LOCAL = ("192.168.1.0/24", "fd00::/64")


def checksum(header: bytes) -> int:
    """That of RFC 1071, of an even number of bytes."""
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def transport(protocol: Protocol, port: int, payload: bytes) -> bytes:
    """A TCP SYN, a UDP datagram or an SCTP packet, whose own checksum nobody looks at before it is routed."""
    source = 40000
    if protocol is Protocol.TCP:
        return struct.pack(">HHIIBBHHH", source, port, 1, 0, 5 << 4, 2, 65535, 0, 0) + payload
    if protocol is Protocol.UDP:
        return struct.pack(">HHHH", source, port, 8 + len(payload), 0) + payload
    return struct.pack(">HHII", source, port, 0, 0) + payload


def packet(address: Address, protocol: Protocol, port: int, payload: bytes) -> bytes:
    """An IP packet to here."""
    content, source = transport(protocol, port, payload), _SOURCES[address.version]
    if isinstance(address, IPv6Address):
        return (
            struct.pack(">IHBB", 6 << 28, len(content), _NUMBERS[protocol], 64)
            + source.packed
            + address.packed
            + content
        )
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(content), 0, 0, 64, _NUMBERS[protocol], 0)
    header += source.packed + address.packed
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + content


@define
class Packets:
    """
    A host in the calling thread that takes every packet to 192.168.1.0/24 and fd00::/64 for its own, and its
    neighbour.
    """

    host: NamespacedHost
    _sender: socket.socket = field(init=False)
    _receivers: dict[tuple[int, Protocol], socket.socket] = field(factory=dict, init=False)
    _header: bytes = field(init=False)
    _tokens: count[int] = field(factory=count, init=False)

    @classmethod
    def enter(cls, case: SynchronousTestCase) -> Packets:
        """Put the calling thread on such a host until the end of the test."""
        packets = cls(enter_host(case))
        case.addCleanup(packets.close)
        return packets

    def __attrs_post_init__(self) -> None:
        self.host.address("add", "10.9.9.1/24")
        with IPRoute() as route:
            loopback = route.link_lookup(ifname="lo")[0]
            for network in _LOCAL:
                family = socket.AF_INET6 if ":" in network else socket.AF_INET
                route.route("add", dst=network, type="local", oif=loopback, table=255, scope=254, family=family)
            mac = bytes.fromhex(route.link("get", index=self.host.index())[0].get_attr("IFLA_ADDRESS").replace(":", ""))
        self._header = mac + bytes.fromhex("020000000099")
        with self.host.at_neighbour():
            self._sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sender.bind(("peer", 0))
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            for protocol, number in _NUMBERS.items():
                receiver = socket.socket(family, socket.SOCK_RAW, number)
                receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
                receiver.settimeout(10)
                self._receivers[version, protocol] = receiver

    def close(self) -> None:
        for each in (self._sender, *self._receivers.values()):
            each.close()

    def mark(self, address: Address, protocol: Protocol, port: int) -> int:
        """The mark of a packet that is sent now, as it comes to a socket."""
        token = struct.pack(">I", next(self._tokens))
        kind = _ETH_P_IP if isinstance(address, IPv4Address) else _ETH_P_IPV6
        self._sender.send(self._header + struct.pack(">H", kind) + packet(address, protocol, port, token))
        receiver = self._receivers[address.version, protocol]
        while True:
            received, control, _, _ = receiver.recvmsg(2048, 256)
            if received[-4:] == token:
                return next(
                    int(struct.unpack("=I", value)[0])
                    for level, kind, value in control
                    if (level, kind) == (socket.SOL_SOCKET, _SO_MARK)
                )

    def marks_during(self, work: Callable[[], None], address: Address, protocol: Protocol, port: int) -> set[int]:
        """The different marks of the packets that are sent one after the other while something is being done."""
        found: set[int] = set()
        done, begun = Event(), Event()

        def send() -> None:
            while not done.is_set():
                found.add(self.mark(address, protocol, port))
                begun.set()

        thread = Thread(target=send)
        thread.start()
        try:
            begun.wait(10)
            work()
        finally:
            done.set()
            thread.join()
        return found

    def mark_before(self, value: int) -> None:
        """Let somebody else mark all packets with this, before anything of ours sees them."""
        chain = f"type filter hook prerouting priority raw; meta mark set {value}"
        subprocess.run(
            ["nft", "-f", "-"], input=f"table inet theirs {{ chain raw {{ {chain}; }}; }}", text=True, check=True
        )
