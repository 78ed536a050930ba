"""ARP: its frames, and a socket that sends and receives them on one interface."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Final

from attrs import define, field

# Note [One socket for long]
# Closing a packet socket waits for every processor to let go of it, which took 14 ms when it was measured. So one
# socket is kept, and bound anew each time before it is used, which takes 2 microseconds: the kernel does nothing where
# it is bound to this interface already, and goes over to the new one where the interface went and came back.

_ETHERNET_ARP = 0x0806
_ARPHRD_ETHER = 1
_FRAME = struct.Struct("!6s6sH HHBBH 6s4s6s4s")
_BROADCAST: Final = b"\xff" * 6
_NOBODY: Final = bytes(6)
_NOWHERE: Final = bytes(4)
_REQUEST, _REPLY = 1, 2
_QUESTION, _ANSWER = (struct.pack("!HHHBBH", _ETHERNET_ARP, 1, 0x0800, 6, 4, kind) for kind in (_REQUEST, _REPLY))
"""The bytes from the type of the frame to the kind of the message, in a frame that is heeded."""

_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_LOAD_WORD, _LOAD_HALF, _UNLESS_AT_LEAST, _IF_GREATER, _RETURN = 0x20, 0x28, 0x35, 0x25, 0x06
_PACKET_TYPE = 0xFFFFF000 + 4
_PACKET_MULTICAST = 2

_PATIENCE = 2.0
"""Seconds that one frame may wait for room in the queue of the interface."""

_PAUSE = 0.001
"""Seconds to let a full queue drain."""

_RECEIVE_BUFFER = 4 * 2**20
"""Bytes in which the kernel keeps what is not read yet; a frame takes 768 there."""


def arp_announcement(mac: bytes, address: IPv4Address) -> tuple[bytes, bytes]:
    """
    The two Ethernet frames that tell a whole link that C{address} is at C{mac}, in request and in reply form: some
    neighbours heed only one of them.

    Both are broadcast, and have the address as sender and as target (RFC 826 for the layout). In the request, the
    target's hardware address is zero (RFC 5227, 1.1 and 3: an ARP Announcement). In the reply it is the one that
    caches shall learn (RFC 5944, 4.6).
    """
    ip = address.packed
    # fmt: off
    return (
        _FRAME.pack(_BROADCAST, mac, _ETHERNET_ARP, 1, 0x0800, 6, 4, _REQUEST, mac, ip, _NOBODY, ip),
        _FRAME.pack(_BROADCAST, mac, _ETHERNET_ARP, 1, 0x0800, 6, 4, _REPLY, mac, ip, mac, ip),
    )
    # fmt: on


def arp_probe(mac: bytes, address: IPv4Address) -> bytes:
    """
    The Ethernet frame that asks a whole link who has C{address}, and tells nobody that we would have it: a broadcast
    request whose sender's address is zero (RFC 5227, 1.1 and 2.1.1).
    """
    # fmt: off
    return _FRAME.pack(
        _BROADCAST, mac, _ETHERNET_ARP, 1, 0x0800, 6, 4, _REQUEST, mac, _NOWHERE, _NOBODY, address.packed
    )
    # fmt: on


def read_sender(frame: bytes) -> tuple[bytes, bytes] | None:
    """
    Who sent a frame, as the ARP in it says: the four bytes of the IPv4 address and the six of the MAC address.

    @return: C{None} for all that is not a request or a reply between IPv4 addresses on Ethernet, and for a probe, whose
        sender has no address.
    """
    if len(frame) < _FRAME.size or frame[12:22] not in (_QUESTION, _ANSWER):
        return None
    sender = frame[28:32]
    return None if sender == _NOWHERE else (sender, frame[22:28])


def read_probe(frame: bytes) -> tuple[bytes, bytes] | None:
    """
    Which address a frame probes for, and who sent it: the four bytes of the IPv4 address, the six of the MAC address.

    @return: C{None} for all that is not a request between IPv4 addresses on Ethernet whose sender has no address (RFC
        5227, 1.1), and for one that asks for no address either.
    """
    if len(frame) < _FRAME.size or frame[12:22] != _QUESTION or frame[28:32] != _NOWHERE:
        return None
    target = frame[38:42]
    return None if target == _NOWHERE else (target, frame[22:28])


def sender_filter(lowest: IPv4Address, highest: IPv4Address, probes: bool = False) -> bytes:
    """
    A program for the kernel (C{linux/filter.h}) that passes the frames that L{read_sender} understands and whose sender
    is in a range of addresses.

    It does not pass what is meant for another machine: the kernel also counts frames of a VLAN as such for which there
    is no interface here, and what is said there says nothing about this link.

    @param probes: pass the frames that L{read_probe} understands as well, where they ask for an address in the range.
    """
    least, most = max(1, int(lowest)), int(highest)
    arp = [
        (_LOAD_WORD, _PACKET_TYPE, 0, _PACKET_MULTICAST),
        (_LOAD_HALF, 12, _ETHERNET_ARP, _ETHERNET_ARP),
        (_LOAD_WORD, 14, 0x00010800, 0x00010800),
        (_LOAD_HALF, 18, 0x0604, 0x0604),
        (_LOAD_HALF, 20, _REQUEST, _REPLY),
        (_LOAD_WORD, 38, 0, 0xFFFFFFFF),  # It has its whole length.
    ]
    kinds = [[(_LOAD_WORD, 28, least, most)]]
    if probes:
        kinds.append([(_LOAD_HALF, 20, _REQUEST, _REQUEST), (_LOAD_WORD, 28, 0, 0), (_LOAD_WORD, 38, least, most)])
    program = [(_RETURN, 0, 0, 0)]
    for kind in reversed(kinds):
        program = [*_within(kind, 1), (_RETURN, 0, 0, _FRAME.size), *program]
    return _assembled([*_within(arp, len(program) - 1), *program])


def _within(ranges: Sequence[tuple[int, int, int, int]], beyond: int) -> Iterator[tuple[int, int, int, int]]:
    """
    Instructions that go on to the next one where everything that is loaded is in its range, and leap over so many more
    where something is not.
    """
    for number, (load, offset, low, high) in enumerate(ranges):
        # The numbers of instructions to leap over, from the second and from the third of these.
        over = 3 * (len(ranges) - number) - 2 + beyond
        yield from ((load, 0, 0, offset), (_UNLESS_AT_LEAST, 0, over, low), (_IF_GREATER, over - 1, 0, high))


def _assembled(program: Sequence[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


DEAF: Final = _assembled([(_RETURN, 0, 0, 0)])
"""The program that passes nothing."""


def attach_filter(receiver: socket.socket, program: bytes) -> None:
    """Have the kernel give a socket only what a program passes, from now on (socket(7))."""
    code = array("B", program)
    address, size = code.buffer_info()
    receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", size // 8, address))


@define(eq=False)
class ArpSocket:
    """
    A socket for ARP on an interface, in the network namespace of the thread that binds it first. It does not block.
    What the kernel refuses is raised as L{OSError}.

    What this host sends itself is not received: the kernel gives that only to those who ask for every protocol
    (packet(7)).

    See Note [One socket for long].

    @ivar hearing: the program that passes what is received.
    """

    interface: str
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
        self._socket.bind((self.interface, _ETHERNET_ARP))
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

    def frames(self, most: int = sys.maxsize) -> Iterator[bytes]:
        """What was received, until nothing is left or so many frames were read."""
        for _ in range(most):
            if self._socket is None:
                break
            try:
                yield self._socket.recv(_FRAME.size)
            except BlockingIOError:
                break

    def heard(self, most: int = sys.maxsize) -> Iterator[tuple[bytes, bytes]]:
        """Who sent what was received, as L{read_sender} says, until nothing is left or so many frames were read."""
        return filter(None, map(read_sender, self.frames(most)))

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
    packets: ArpSocket,
    frame: bytes,
    expires: float,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Send one frame while there is time left, waiting for room if need be."""
    patience = monotonic() + _PATIENCE
    while (now := monotonic()) < expires and not packets.send(frame, last=now >= patience):
        sleep(_PAUSE)
