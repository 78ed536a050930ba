"""The frames, to the byte, and who is read from them; by this process and by the kernel alike."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from hypothesis import example, given
from hypothesis.strategies import SearchStrategy, binary, builds, integers, just, one_of, sampled_from
from twisted.trial.unittest import SynchronousTestCase

from kiwi.network.arp import arp_announcement, arp_probe, read_probe, read_sender, sender_filter
from kiwi.network.packets import DEAF

from .wires import passed

FIRST = IPv4Address("192.168.1.41")
LAST = FIRST + 9
OURS = bytes.fromhex("0250c2000a01")
EVERYBODY = (IPv4Address("0.0.0.0"), IPv4Address("255.255.255.255"))
VALID = (0x0806, 1, 0x0800, 6, 4, 2)


def frame(head: tuple[int, ...], mac: bytes, sender: int, rest: bytes) -> bytes:
    """An Ethernet frame with ARP in it, of which each part is free."""
    return bytes(12) + struct.pack("!HHHBBH6sI", *head, mac, sender) + rest


def nearly(value: int, most: int) -> SearchStrategy[int]:
    """Usually this number."""
    return one_of(just(value), just(value), sampled_from([0, 1, 2, 3, value + 1]), integers(0, most))


def frames() -> SearchStrategy[bytes]:
    """Anything, and much that is nearly right."""
    sizes = [0xFFFF, 0xFFFF, 0xFFFF, 0xFF, 0xFF, 0xFFFF]
    heads = builds(lambda *numbers: numbers, *map(nearly, VALID, sizes))
    senders = one_of(nearly(int(FIRST), 0xFFFFFFFF), integers(int(FIRST) - 2, int(LAST) + 2))
    targets = builds(lambda mac, target: mac + target.to_bytes(4, "big"), binary(min_size=6, max_size=6), senders)
    rests = one_of(targets, binary(min_size=10, max_size=28))
    whole = builds(frame, heads, binary(min_size=6, max_size=6), senders, rests)
    return one_of(whole, builds(lambda full, size: full[:size], whole, integers(0, 60)), binary(max_size=60))


class FrameTests(SynchronousTestCase):
    """What is sent."""

    def test_announcement(self) -> None:
        """Both forms are broadcast and have the address at both places; the reply has the MAC at both, too."""
        request, reply = arp_announcement(OURS, FIRST)
        self.assertEqual(
            (request.hex(" ", -2), reply.hex(" ", -2)),
            (
                "ffff ffff ffff 0250 c200 0a01 0806 0001 0800 0604 0001"
                " 0250 c200 0a01 c0a8 0129 0000 0000 0000 c0a8 0129",
                "ffff ffff ffff 0250 c200 0a01 0806 0001 0800 0604 0002"
                " 0250 c200 0a01 c0a8 0129 0250 c200 0a01 c0a8 0129",
            ),
        )

    def test_probe(self) -> None:
        """A probe is a broadcast request for the address, from nobody's address."""
        self.assertEqual(
            arp_probe(OURS, FIRST).hex(" ", -2),
            "ffff ffff ffff 0250 c200 0a01 0806 0001 0800 0604 0001 0250 c200 0a01 0000 0000 0000 0000 0000 c0a8 0129",
        )


class SenderTests(SynchronousTestCase):
    """What is read."""

    def test_announcement(self) -> None:
        """The sender of an announcement is the address with its MAC, padded or not."""
        for announcement in arp_announcement(OURS, FIRST):
            self.assertEqual(read_sender(announcement), (FIRST.packed, OURS))
            self.assertEqual(read_sender(announcement + bytes(18)), (FIRST.packed, OURS))

    def test_probe(self) -> None:
        """A probe has no sender's address."""
        self.assertIsNone(read_sender(arp_probe(OURS, FIRST)))

    def test_others(self) -> None:
        """Whatever is not ARP for IPv4 on Ethernet, or is neither request nor reply, or cut short, is nobody's."""
        for place in range(len(VALID)):
            for wrong in (0, 3):
                head = (*VALID[:place], wrong, *VALID[place + 1 :])
                self.assertIsNone(read_sender(frame(head, OURS, int(FIRST), bytes(10))), head)
        self.assertEqual(read_sender(frame(VALID, OURS, int(FIRST), bytes(10))), (FIRST.packed, OURS))
        self.assertIsNone(read_sender(frame(VALID, OURS, int(FIRST), bytes(9))))

    @given(sent=frames())
    def test_any(self, sent: bytes) -> None:
        """Whatever came, it is nobody's, or it says itself who sent it."""
        sender = read_sender(sent)
        if sender is not None:
            self.assertEqual((sender, len(sent) >= 42), ((sent[28:32], sent[22:28]), True))
            self.assertNotEqual(sender[0], bytes(4))


class ProbeTests(SynchronousTestCase):
    """What is asked for."""

    def test_probe(self) -> None:
        """A probe asks for its target, from the MAC address of who sent it, padded or not."""
        self.assertEqual(read_probe(arp_probe(OURS, FIRST)), (FIRST.packed, OURS))
        self.assertEqual(read_probe(arp_probe(OURS, FIRST) + bytes(18)), (FIRST.packed, OURS))

    def test_others(self) -> None:
        """Who says who it is, answers, asks for nothing, or is cut short does not probe."""
        probe = arp_probe(OURS, FIRST)
        answer = probe[:20] + b"\0\2" + probe[22:]
        for sent in (*arp_announcement(OURS, FIRST), answer, arp_probe(OURS, IPv4Address(0)), probe[:41]):
            self.assertIsNone(read_probe(sent), sent.hex())


class FilterTests(SynchronousTestCase):
    """What the kernel passes."""

    @given(sent=frames())
    @example(sent=frame(VALID, OURS, int(FIRST) - 1, bytes(10)))
    @example(sent=frame(VALID, OURS, int(FIRST), bytes(10)))
    @example(sent=frame(VALID, OURS, int(LAST), bytes(10)))
    @example(sent=frame(VALID, OURS, int(LAST) + 1, bytes(10)))
    @example(sent=frame(VALID, OURS, int(FIRST), bytes(9)))
    @example(sent=frame(VALID, OURS, 0, bytes(10)))
    @example(sent=arp_probe(OURS, FIRST - 1))
    @example(sent=arp_probe(OURS, FIRST))
    @example(sent=arp_probe(OURS, LAST))
    @example(sent=arp_probe(OURS, LAST + 1))
    @example(sent=arp_probe(OURS, IPv4Address(0)))
    def test_agrees(self, sent: bytes) -> None:
        """
        The kernel passes what this process reads a sender from, or also who probes, if the address is in the range; the
        whole ARP.
        """
        for read, probes in ((read_sender, False), (lambda sent: read_sender(sent) or read_probe(sent), True)):
            about = read(sent)
            expected = None if about is None else sent[:42]
            self.assertEqual(passed(sender_filter(*EVERYBODY, probes), sent), expected)
            if about is not None and not FIRST <= IPv4Address(about[0]) <= LAST:
                expected = None
            self.assertEqual(passed(sender_filter(FIRST, LAST, probes), sent), expected)

    def test_deaf(self) -> None:
        """A deaf socket gets nothing."""
        self.assertIsNone(passed(DEAF, arp_announcement(OURS, FIRST)[0]))
