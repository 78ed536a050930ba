"""The neighbour's end of a link, as the frames of ARP or NDP that come and go there."""

from __future__ import annotations

import contextlib
import socket

from attrs import define, field

from kiwi.network.arp import ARP
from kiwi.network.ndp import NDP
from kiwi.network.packets import NeighbourProtocol, attach_filter, passing

from .hosts import NamespacedHost

SO_RCVBUFFORCE = 33

WHAT_KERNELS_SAY = 0x30, 20, 58, 58
"""The kernels of both hosts are members of groups, and say so behind an option: only plain ICMPv6 is heard."""


@define
class Wire:
    """
    The neighbour hears every frame of a protocol that the host sends to the link, and can send the host any frame.

    @ivar protocol: ARP or NDP.
    @ivar interface: that of the host at the other end; its own if none is named.
    """

    host: NamespacedHost
    protocol: NeighbourProtocol = ARP
    interface: str | None = None
    _socket: socket.socket = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.listen()

    def listen(self) -> None:
        """Listen at the other end of the link, as it is now."""
        with self.host.at_neighbour():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            if self.protocol is NDP:
                attach_filter(self._socket, passing([WHAT_KERNELS_SAY], [[]], 2048))
            self._socket.bind((self.host.peer(self.interface), self.protocol.kind))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * 2**20)

    def close(self) -> None:
        self._socket.close()

    def frame(self, seconds: float = 20.0) -> bytes:
        """The next frame; L{TimeoutError} if none comes."""
        self._socket.settimeout(seconds)
        return self._socket.recv(2048)

    def frames(self) -> list[bytes]:
        """What came since, until it is quiet."""
        frames = []
        with contextlib.suppress(TimeoutError):
            while True:
                frames.append(self.frame(0.2))
        return frames

    def send(self, *frames: bytes) -> None:
        """Let the host receive these."""
        for frame in frames:
            self._socket.send(frame)


def passed(program: bytes, sent: bytes) -> bytes | None:
    """What the kernel gives a socket with a filter of what it is sent."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with near, far:
        attach_filter(far, program)
        near.send(sent)
        with contextlib.suppress(BlockingIOError):
            return far.recv(2048)
    return None
