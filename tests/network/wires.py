"""The neighbour's end of a link, as the frames of ARP that come and go there."""

from __future__ import annotations

import contextlib
import socket

from attrs import define, field

from .hosts import NamespacedHost

ETH_P_ARP = 0x0806
SO_RCVBUFFORCE = 33


@define
class Wire:
    """The neighbour hears every frame of ARP that the host sends, and can send the host any frame."""

    host: NamespacedHost
    _socket: socket.socket = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.listen()

    def listen(self) -> None:
        """Listen at the other end of the link, as it is now."""
        with self.host.at_neighbour():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
            self._socket.bind(("peer", ETH_P_ARP))
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
