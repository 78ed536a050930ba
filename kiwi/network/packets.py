"""Packets: a socket that sends and receives the frames of one protocol on one interface, and what it is to receive."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from attrs import define, field, frozen

from kiwi.model import Address

# Note [One socket for long]
# Closing a packet socket waits for every processor to let go of it, which took 14 ms when it was measured. So one
# socket is kept, and bound anew each time before it is used, which takes 2 microseconds: the kernel does nothing where
# it is bound to this interface already, and goes over to the new one where the interface went and came back.

_ARPHRD_ETHER = 1

_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SOL_PACKET = 26, 33, 263
_PACKET_ADD_MEMBERSHIP, _PACKET_DROP_MEMBERSHIP, _PACKET_MR_ALLMULTI = 1, 2, 2
LOAD_WORD, LOAD_HALF = 0x20, 0x28
_UNLESS_AT_LEAST, _IF_GREATER, _RETURN = 0x35, 0x25, 0x06
_PACKET_TYPE = 0xFFFFF000 + 4
_PACKET_MULTICAST = 2

FOR_THIS_HOST: Final = (LOAD_WORD, _PACKET_TYPE, 0, _PACKET_MULTICAST)
"""
What is not meant for another machine. The kernel also counts frames of a VLAN as such for which there is no interface
here, and what is said there says nothing about this link.
"""

_PATIENCE = 2.0
"""Seconds that one frame may wait for room in the queue of the interface."""

_PAUSE = 0.001
"""Seconds to let a full queue drain."""

_RECEIVE_BUFFER = 4 * 2**20
"""Bytes in which the kernel keeps what is not read yet; a frame takes 768 there."""

Range = tuple[int, int, int, int]
"""How a part of a frame is loaded, from where, and the least and the most that it may be."""


@frozen
class NeighbourProtocol:
    """
    How the addresses of one family are announced and asked for on a link. Addresses are bytes in what is read.

    @ivar name: for people.
    @ivar kind: of the frames (C{linux/if_ether.h}).
    @ivar size: the most bytes of a frame that say something.
    @ivar announcement: the frames that tell a whole link that an address is at a MAC address.
    @ivar probe: the frame that asks a whole link who has an address, and tells nobody that we would have it.
    @ivar read_owner: which address a frame says to be at which MAC address.
    @ivar read_probe: which address a frame probes for, and from which MAC address.
    @ivar hearing: a program for the kernel that passes the frames that C{read_owner} understands, and (where it is
        asked to) those that C{read_probe} understands as well, if they are about an address in a range. It may pass
        more.
    @ivar everything: such a program without the latter, for all addresses.
    """

    name: str
    kind: int
    size: int
    announcement: Callable[[bytes, Address], tuple[bytes, ...]]
    probe: Callable[[bytes, Address], bytes]
    read_owner: Callable[[bytes], tuple[bytes, bytes] | None]
    read_probe: Callable[[bytes], tuple[bytes, bytes] | None]
    hearing: Callable[[Address, Address, bool], bytes]
    everything: bytes


def passing(all_of: Sequence[Range], any_of: Sequence[Sequence[Range]], size: int) -> bytes:
    """
    A program for the kernel (C{linux/filter.h}) that passes so many bytes of the frames in which everything is in its
    range: all of the first ones, and of the others those of one kind.
    """
    program = [(_RETURN, 0, 0, 0)]
    for kind in reversed(any_of):
        program = [*_within(kind, 1), (_RETURN, 0, 0, size), *program]
    return assembled([*_within(all_of, len(program) - 1), *program])


def _within(ranges: Sequence[Range], beyond: int) -> Iterator[tuple[int, int, int, int]]:
    """
    Instructions that go on to the next one where everything that is loaded is in its range, and leap over so many more
    where something is not.
    """
    for number, (load, offset, low, high) in enumerate(ranges):
        # The numbers of instructions to leap over, from the second and from the third of these.
        over = 3 * (len(ranges) - number) - 2 + beyond
        yield from ((load, 0, 0, offset), (_UNLESS_AT_LEAST, 0, over, low), (_IF_GREATER, over - 1, 0, high))


def assembled(program: Sequence[tuple[int, int, int, int]]) -> bytes:
    """A program for the kernel (C{struct sock_filter} in C{linux/filter.h})."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


DEAF: Final = assembled([(_RETURN, 0, 0, 0)])
"""The program that passes nothing."""


def attach_filter(receiver: socket.socket, program: bytes) -> None:
    """Have the kernel give a socket only what a program passes, from now on (socket(7))."""
    code = array("B", program)
    address, size = code.buffer_info()
    receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", size // 8, address))


@define(eq=False)
class PacketSocket:
    """
    A socket for the frames of a protocol on an interface, in the network namespace of the thread that binds it first.
    It does not block. What the kernel refuses is raised as L{OSError}.

    What this host sends itself is not received: the kernel gives that only to those who ask for every protocol
    (packet(7)).

    See Note [One socket for long].

    @ivar hearing: the program that passes what is received.
    """

    interface: str
    protocol: NeighbourProtocol
    hearing: bytes = DEAF
    _socket: socket.socket | None = field(default=None, init=False)

    def bind(self) -> bytes:
        """
        Be bound to the interface as it is now.

        @return: its MAC address; empty where its link layer is not Ethernet.
        """
        if self._socket is None:
            packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            try:
                attach_filter(packets, self.hearing)
                # Without the privilege the buffer stays as small as it is by default.
                with suppress(PermissionError):
                    packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            except OSError:
                packets.close()
                raise
            self._socket = packets
        self._socket.bind((self.interface, self.protocol.kind))
        # That the interface went down at some time is no news any more. If it is down now, sending says so.
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return self.mac()

    def mac(self) -> bytes:
        """The MAC address of the interface, now; empty where there is none."""
        if self._socket is None:
            return b""
        _, _, _, kind, mac = self._socket.getsockname()
        return mac if kind == _ARPHRD_ETHER else b""

    def hear(self, program: bytes) -> None:
        """Receive what this program passes, from now on. What was received before stays."""
        self.hearing = program
        if self._socket is not None:
            attach_filter(self._socket, program)

    def hear_all_groups(self, wanted: bool) -> None:
        """Have the interface receive what is sent to any group, or no longer (C{PACKET_MR_ALLMULTI} in packet(7))."""
        if self._socket is not None:
            request = struct.pack("=iHH8s", socket.if_nametoindex(self.interface), _PACKET_MR_ALLMULTI, 0, bytes(8))
            option = _PACKET_ADD_MEMBERSHIP if wanted else _PACKET_DROP_MEMBERSHIP
            self._socket.setsockopt(_SOL_PACKET, option, request)

    def frames(self, most: int = sys.maxsize) -> Iterator[bytes]:
        """What was received, until nothing is left or so many frames were read."""
        for _ in range(most):
            if self._socket is None:
                break
            try:
                yield self._socket.recv(self.protocol.size)
            except BlockingIOError:
                break

    def heard(self, most: int = sys.maxsize) -> Iterator[tuple[bytes, bytes]]:
        """
        Who has what, as the frames that were received say (C{read_owner}), until nothing is left or so many were read.
        """
        return filter(None, map(self.protocol.read_owner, self.frames(most)))

    def send(self, frame: bytes, last: bool) -> bool:
        """
        Send a frame, if there is room for it in the queue of the interface or of the socket (packet(7)). Having none is
        an error at the last try.
        """
        if self._socket is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            self._socket.send(frame)
        except OSError as error:
            if last or error.errno not in (errno.ENOBUFS, errno.EAGAIN):
                raise
            return False
        return True

    def fileno(self) -> int:
        """Its file descriptor; -1 where it is closed."""
        return -1 if self._socket is None else self._socket.fileno()

    def close(self) -> None:
        """Give the socket back. The next L{bind} opens one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def send_in_time(
    packets: PacketSocket,
    frame: bytes,
    expires: float,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Send one frame while there is time left, waiting for room if need be."""
    patience = monotonic() + _PATIENCE
    while (now := monotonic()) < expires and not packets.send(frame, last=now >= patience):
        sleep(_PAUSE)
