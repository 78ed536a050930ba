"""The frames, to the byte, and what is read from them; by this process and by the kernel alike."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

from hypothesis import example, given
from hypothesis.strategies import SearchStrategy, binary, builds, integers, just, one_of, sampled_from
from twisted.trial.unittest import SynchronousTestCase

from kiwi.network.ndp import (
    NDP,
    advertisement_filter,
    ndp_advertisement,
    ndp_probe,
    read_advertisement,
    read_solicitation,
    solicited_node,
)

from .wires import passed

FIRST = IPv6Address("fd00::1:41")
LAST = FIRST + 9
OURS = bytes.fromhex("0250c2000a01")
THEIRS = bytes.fromhex("0250c2000a02")
EVERYBODY = (IPv6Address("::1"), IPv6Address("ffff::") - 1)
(ADVERTISEMENT,) = ndp_advertisement(OURS, FIRST)
PROBE = ndp_probe(OURS, FIRST)


def changed(frame: bytes, place: int, value: bytes) -> bytes:
    """A frame with something else in one place."""
    return frame[:place] + value + frame[place + len(value) :]


def frames() -> SearchStrategy[bytes]:
    """Anything, and much that is nearly right."""
    right = one_of(just(ADVERTISEMENT), just(PROBE))
    nearly = builds(changed, right, integers(0, 85), binary(min_size=1, max_size=2))
    targets = integers(int(FIRST) - 2, int(LAST) + 2).map(IPv6Address)
    about = builds(lambda frame, target: changed(frame, 62, target.packed), right, targets)
    whole = one_of(right, nearly, about)
    return one_of(whole, builds(lambda full, size: full[:size], whole, integers(0, 90)), binary(max_size=90))


class FrameTests(SynchronousTestCase):
    """What is sent."""

    def test_advertisement(self) -> None:
        """
        It goes from the address to all nodes, with the override flag and no other, and has the MAC address behind the
        target.
        """
        self.assertEqual(
            ADVERTISEMENT.hex(" ", -2),
            "3333 0000 0001 0250 c200 0a01 86dd 6000 0000 0020 3aff"
            " fd00 0000 0000 0000 0000 0000 0001 0041 ff02 0000 0000 0000 0000 0000 0000 0001"
            " 8800 8dc8 2000 0000 fd00 0000 0000 0000 0000 0000 0001 0041 0201 0250 c200 0a01",
        )

    def test_probe(self) -> None:
        """A probe goes from the unspecified address to the group of the solicited node, and says nothing of us."""
        self.assertEqual(
            PROBE.hex(" ", -2),
            "3333 ff01 0041 0250 c200 0a01 86dd 6000 0000 0018 3aff"
            " 0000 0000 0000 0000 0000 0000 0000 0000 ff02 0000 0000 0000 0000 0001 ff01 0041"
            " 8700 7d23 0000 0000 fd00 0000 0000 0000 0000 0000 0001 0041",
        )

    def test_solicited_node(self) -> None:
        """The group has the last three bytes of the address."""
        group = IPv6Address(solicited_node(IPv6Address("4037::1:800:200e:8c6c")))
        self.assertEqual(group, IPv6Address("ff02::1:ff0e:8c6c"))  # The example in RFC 4291, section 2.7.1.

    @given(address=integers(0, 2**128 - 1).map(IPv6Address), mac=binary(min_size=6, max_size=6))
    def test_checksum(self, address: IPv6Address, mac: bytes) -> None:
        """What is summed up over message and pseudo-header, with the checksum in its place, is nothing (RFC 1071)."""
        for frame in (*ndp_advertisement(mac, address), ndp_probe(mac, address)):
            message = frame[54:]
            summed = frame[22:54] + struct.pack("!II", len(message), 58) + message
            total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
            self.assertEqual(total % 0xFFFF, 0)
            self.assertEqual(len(message), int.from_bytes(frame[18:20], "big"))


class ReadingTests(SynchronousTestCase):
    """What is read."""

    def test_advertisement(self) -> None:
        """It says that its target is at the MAC address in it, padded or not; or at the sender's if there is none."""
        for frame in (ADVERTISEMENT, ADVERTISEMENT + bytes(18), changed(ADVERTISEMENT, 6, THEIRS)):
            self.assertEqual(read_advertisement(frame), (FIRST.packed, OURS))
        without = changed(ADVERTISEMENT, 18, b"\0\x18")
        for frame in (without, without[:78], changed(ADVERTISEMENT, 78, b"\x0e\1")):
            self.assertEqual(read_advertisement(changed(frame, 6, THEIRS)), (FIRST.packed, THEIRS))

    def test_solicited(self) -> None:
        """An answer to one machine may be solicited; to a group it may not."""
        solicited = changed(ADVERTISEMENT, 58, b"\x60")
        self.assertIsNone(read_advertisement(solicited))
        to_us = changed(solicited, 38, IPv6Address("fd00::2").packed)
        self.assertEqual(read_advertisement(to_us), (FIRST.packed, OURS))

    def test_probe(self) -> None:
        """A probe asks for its target, from the MAC address of who sent it, padded or not."""
        self.assertEqual(read_solicitation(PROBE), (FIRST.packed, OURS))
        self.assertEqual(read_solicitation(PROBE + bytes(18)), (FIRST.packed, OURS))
        self.assertIsNone(read_advertisement(PROBE))

    def test_no_probe(self) -> None:
        """Who says who it is, or advertises, does not probe."""
        self.assertIsNone(read_solicitation(changed(PROBE, 22, FIRST.packed)))
        self.assertIsNone(read_solicitation(ADVERTISEMENT))

    def test_others(self) -> None:
        """What is of another protocol, from beyond the link, about a group or nothing, or cut short, says nothing."""
        for frame, read in ((ADVERTISEMENT, read_advertisement), (PROBE, read_solicitation)):
            for wrong in (
                changed(frame, 12, b"\x08\x00"),
                changed(frame, 14, b"\x40"),
                changed(frame, 18, b"\0\x17"),
                changed(frame, 20, b"\x11"),
                changed(frame, 21, b"\xfe"),
                changed(frame, 54, b"\x89"),
                changed(frame, 55, b"\x01"),
                changed(frame, 62, solicited_node(FIRST)),
                changed(frame, 62, bytes(16)),
                frame[:77],
            ):
                self.assertIsNone(read(wrong), wrong.hex())


class FilterTests(SynchronousTestCase):
    """What the kernel passes."""

    @given(sent=frames())
    @example(sent=ndp_advertisement(OURS, FIRST - 1)[0])
    @example(sent=ADVERTISEMENT)
    @example(sent=ndp_advertisement(OURS, LAST)[0])
    @example(sent=ndp_advertisement(OURS, LAST + 1)[0])
    @example(sent=PROBE)
    @example(sent=ndp_probe(OURS, LAST + 1))
    @example(sent=ADVERTISEMENT[:78])
    def test_passes(self, sent: bytes) -> None:
        """The kernel passes what this process reads something about, if that is in the range."""
        for probes in (False, True):
            about = read_advertisement(sent) or (read_solicitation(sent) if probes else None)
            if about is not None:
                self.assertEqual(passed(advertisement_filter(*EVERYBODY, probes), sent), sent[:86])
                if FIRST <= IPv6Address(about[0]) <= LAST:
                    self.assertEqual(passed(advertisement_filter(FIRST, LAST, probes), sent), sent[:86])

    @given(
        place=sampled_from([12, 13, 20, 21, 54, 55]), value=integers(0, 255), frame=sampled_from([ADVERTISEMENT, PROBE])
    )
    def test_passes_no_more(self, place: int, value: int, frame: bytes) -> None:
        """It does not pass what is of another protocol, from beyond the link, or not about such an address."""
        sent = changed(frame, place, bytes([value]))
        if read_advertisement(sent) is None and read_solicitation(sent) is None:
            self.assertIsNone(passed(advertisement_filter(*EVERYBODY, True), sent))
        for other in (FIRST - 1, LAST + 1, IPv6Address("fd01::1:41"), IPv6Address("fd00:0:0:1::1:41")):
            self.assertIsNone(passed(advertisement_filter(FIRST, LAST, True), changed(frame, 62, other.packed)))

    def test_probes(self) -> None:
        """It passes probes where it is asked to, and no question of who says who it is."""
        self.assertIsNone(passed(NDP.everything, PROBE))
        self.assertEqual(passed(NDP.everything, ADVERTISEMENT), ADVERTISEMENT)
        self.assertIsNone(passed(advertisement_filter(FIRST, LAST, True), changed(PROBE, 22, FIRST.packed)))
