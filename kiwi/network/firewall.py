"""What all firewalls have in common: the mark that they set, comments, and how one takes over from another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from attrs import define, field, frozen
from zope.interface import implementer

from kiwi.model import Mark

from .interface import IFirewall, NetworkError

WHOLE_MARK = 0xFFFFFFFF


@frozen
class FwMark:
    """
    The firewall mark that traffic gets.

    @ivar value: what is set; it has no bits outside of the mask.
    @ivar mask: the bits that are set to it. The others stay as they are.
    """

    value: int
    mask: int = WHOLE_MARK

    def __attrs_post_init__(self) -> None:
        for number in (self.value, self.mask):
            if not 0 < number <= WHOLE_MARK:
                raise ValueError(f"{number:#x} is not a number from 1 to 0xffffffff")
        if self.value & ~self.mask:
            raise ValueError(
                f"the value {self.value:#x} has bits outside of the mask {self.mask:#x}; they could never be set"
            )

    def __str__(self) -> str:
        return f"{self.value:#x}/{self.mask:#x}"


def rule_comment(service: str, size: int) -> str:
    """
    The comment of what marks traffic for a Service: its name, cut to so many bytes.

    Raises L{NetworkError} where the name has characters that do not belong there: those that are not printable, and
    those by which a comment in quotes would end before its end, for whoever reads or writes it.
    """
    if not service or not service.isprintable() or any(character in "\"'\\" for character in service):
        raise NetworkError(f"{service!a} cannot be the comment of a rule")
    return service.encode()[:size].decode(errors="ignore")


@implementer(IFirewall)
@define
class Successor:
    """
    A firewall that takes over from those that an earlier life of this agent may have used.

    What they still mark is removed as soon as the same traffic is marked here: when it is there already, or when it
    has been set. What cannot be removed is told of once, and tried again with the next look.

    @ivar firewall: the one that counts.
    @ivar earlier: those of which nothing may stay.
    @ivar tell: called with one printable line; in the thread that calls this firewall.
    """

    firewall: IFirewall
    earlier: Sequence[IFirewall]
    tell: Callable[[str], object]
    _told: set[str] = field(factory=set, init=False)

    def read(self) -> frozenset[Mark] | None:
        marks: frozenset[Mark] | None = self.firewall.read()
        if marks is not None:
            self._succeed()
        return marks

    def replace(self, marks: AbstractSet[Mark]) -> None:
        self.firewall.replace(marks)
        self._succeed()

    def remove(self) -> None:
        self._succeed()
        self.firewall.remove()

    def _succeed(self) -> None:
        if self.earlier:
            self.earlier = [firewall for firewall in self.earlier if not self._is_gone(firewall)]

    def _is_gone(self, firewall: IFirewall) -> bool:
        try:
            firewall.remove()
        except NetworkError as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                self.tell(f"something of an earlier life of this agent is still in the firewall: {error}")
            return False
        return True
