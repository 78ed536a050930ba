"""Asking the neighbours on each link whether an address is one of theirs already."""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from math import inf
from time import sleep

from attrs import define, field
from zope.interface import implementer

from kiwi.model import Address, Placement, ip

from .interface import INeighbours, NetworkError, Probed
from .links import Link, LinkSockets, by_link
from .ndp import NDP, solicited_node
from .packets import DEAF, PacketSocket, send_in_time

# Note [Deaf between probes]
# A socket that is kept also keeps what came in while nobody read it: old answers, up to megabytes of them, and an old
# answer may be that of a carrier which is gone by now. So the kernel gives the socket nothing between one probe and the
# next. What was on its way when the kernel was told can still arrive: what is there before a probe is thrown away.

# Note [Who else asks]
# Answers to a probe for an IPv6 address go to all nodes, and every interface lets them in. The probe of another machine
# goes to a group of its own for (nearly) each address, which neither an interface nor a switch that minds groups lets
# through to a host that is not in it. So the host is in the groups of what it asks for while it asks (RFC 4862, section
# 5.4.2 wants that). To be in a group takes memory that is scarce (C{net.core.optmem_max}), and a message to the switch.
# Of what asks for more at once, the interface lets all groups in; a switch may keep some back then, and a rival that is
# not heard now is heard when it announces the address.

_PROBES = 3
"""How often each address is asked for (RFC 5227, 1.1: C{PROBE_NUM})."""

_FRAMES = 1000
"""How many frames are read before the clock is looked at."""

_GROUPS = 64
"""In so many groups the host is at once. See Note [Who else asks]."""


@implementer(INeighbours)
@define(eq=False)
class LinkNeighbours:
    """
    Asks on interfaces in the network namespace of the thread that asks first: by ARP, and by Neighbor Solicitations.

    An interface whose link layer is not Ethernet has no neighbours to ask.

    @ivar monotonic: the agent's monotonic clock, in seconds.
    @ivar sleep: waits for so many seconds.
    """

    monotonic: Callable[[], float]
    sleep: Callable[[float], None] = sleep
    _sockets: LinkSockets = field(factory=LinkSockets, init=False)

    def probe(self, placements: AbstractSet[Placement], wait: float) -> Probed:
        """
        Ask for each address at once, and again after one and after two thirds of the wait, as long as nobody answers.

        The wait is the same for all links. It begins when each address was asked for once, so that the last one has as
        much of it as the first one. A thousand take some milliseconds.

        Raises L{NetworkError} where some link cannot be asked on, after all others were.
        """
        asking = _Asking(self.monotonic, self.sleep)
        try:
            for link, those in by_link(placements).items():
                asking.begin(_Question(link, self._sockets.socket(link), [each.address for each in those]))
            asking.ask(wait)
        finally:
            asking.end()
        return asking.probed()

    def close(self) -> None:
        """Give the sockets back. The next probe opens some."""
        self._sockets.close()


@define(eq=False)
class _Question:
    """
    A question on one link, and what is known of its answer. What the kernel refuses is raised as L{OSError}.

    @ivar addresses: what is asked for, in order.
    @ivar own: the MAC address of the interface itself.
    @ivar probes: the frame to ask with, for each address that nobody answered for.
    @ivar answers: the MAC address of who has each of the others.
    @ivar askers: the MAC address of who else has asked for an address.
    @ivar _groups: a socket that is in groups. See Note [Who else asks].
    """

    link: Link
    packets: PacketSocket
    addresses: Sequence[Address]
    own: bytes = b""
    probes: dict[bytes, bytes] = field(factory=dict)
    answers: dict[bytes, bytes] = field(factory=dict)
    askers: dict[bytes, bytes] = field(factory=dict)
    _groups: socket.socket | None = None
    _hears_all_groups: bool = False

    def begin(self) -> None:
        """Hear, from now on, what is said about the addresses, and nothing of what was said before."""
        self.own = self.packets.bind()
        if self.own:
            self.probes = {address.packed: self.link.protocol.probe(self.own, address) for address in self.addresses}
            # See Note [Deaf between probes].
            for _ in self.packets.frames():
                pass
            self.packets.hear(self.link.protocol.hearing(self.addresses[0], self.addresses[-1], True))
            if self.link.protocol is NDP:
                self._join()

    def note(self, most: int = sys.maxsize) -> None:
        """Note what was heard about what is asked for, or so many frames of it."""
        for frame in self.packets.frames(most):
            owner = self.link.protocol.read_owner(frame)
            about, mac = owner or self.link.protocol.read_probe(frame) or (b"", self.own)
            if mac == self.own or about not in self.probes:
                continue
            if owner is None:
                self.askers[about] = mac
            else:
                del self.probes[about]
                self.answers[about] = mac

    def end(self) -> None:
        """Hear no more. What was heard before is still there to be noted."""
        self.packets.hear(DEAF)
        if self._groups is not None:
            self._groups.close()
        if self._hears_all_groups:
            # An interface that has gone has no groups any more.
            with suppress(OSError):
                self.packets.hear_all_groups(False)

    def _join(self) -> None:
        groups = {solicited_node(address) for address in self.addresses}
        # Without IPv6 on the interface there are no groups; then nobody else would ask there for an address, either.
        with suppress(OSError):
            if len(groups) > _GROUPS:
                self.packets.hear_all_groups(True)
                self._hears_all_groups = True
            else:
                self._groups = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                index = socket.if_nametoindex(self.link.interface)
                for group in groups:
                    joined = struct.pack("=16si", group, index)
                    self._groups.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, joined)


@define(eq=False)
class _Asking:
    """Questions on several links at once. One that fails is given up, and the others go on."""

    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    _questions: list[_Question] = field(factory=list)
    _failures: dict[Link, str] = field(factory=dict)

    def begin(self, question: _Question) -> None:
        """Prepare to ask a question, too."""
        self._questions.append(question)
        self._try(_Question.begin, question)

    def ask(self, wait: float) -> None:
        """Ask all questions, and hear answers until the wait is over, or there is nothing more to be answered."""
        self._send(inf)
        begun = self.monotonic()
        for number in range(1, _PROBES):
            self._listen(begun + wait * number / _PROBES)
            self._send(begun + wait)
        self._listen(begun + wait)

    def end(self) -> None:
        """Hear no more, and note what was heard."""
        for act in (_Question.end, _Question.note):
            self._each(act, self._questions)

    def probed(self) -> Probed:
        """What is known now. Raises L{NetworkError} if some question failed."""
        if self._failures:
            raise NetworkError("; ".join(dict.fromkeys(self._failures.values())))
        owners: dict[Address, bytes] = {}
        contested: dict[Address, bytes] = {}
        for each in self._questions:
            owners.update((ip(address), mac) for address, mac in each.answers.items())
            contested.update((ip(address), mac) for address, mac in each.askers.items() if address in each.probes)
        return Probed(owners, contested)

    def _open(self) -> list[_Question]:
        return [question for question in self._questions if question.probes]

    def _send(self, expires: float) -> None:
        """Ask for what nobody answered for, while there is time."""

        def send(question: _Question) -> None:
            for probe in question.probes.values():
                send_in_time(question.packets, probe, expires, self.monotonic, self.sleep)

        self._each(send, self._open())

    def _listen(self, until: float) -> None:
        receiver = select.poll()
        open_ = {question.packets.fileno(): question for question in self._open()}
        for number in open_:
            receiver.register(number, select.POLLIN)
        while open_ and (left := until - self.monotonic()) > 0:
            for number, _ in receiver.poll(left * 1000):
                question = open_[number]
                self._try(lambda question: question.note(_FRAMES), question)
                if not question.probes:
                    receiver.unregister(number)
                    del open_[number]

    def _each(self, act: Callable[[_Question], None], questions: Iterable[_Question]) -> None:
        for question in list(questions):
            self._try(act, question)

    def _try(self, act: Callable[[_Question], None], question: _Question) -> None:
        try:
            act(question)
        except OSError as error:
            question.probes.clear()
            reason = f"probing for addresses on {question.link.interface}: {error.strerror or error}"
            self._failures.setdefault(question.link, reason)
