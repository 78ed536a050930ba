"""Who carries which address, from what the kernels of all hosts tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

from attrs import define, field

from kiwi.model import Address
from tests.lab.laboratory import Lab
from tests.lab.listening import Change, Ears


@define(eq=False)
class Ledger:
    """
    Follows the ears of a lab. A change that says what is known already (a lifetime was extended) is none here.

    @ivar carriers: the hosts that have each address, as of the last L{catch_up}.
    @ivar moves: all that came and went, in order.
    """

    _ears: Ears
    carriers: dict[Address, set[str]] = field(factory=lambda: defaultdict(set), init=False)
    moves: list[Change] = field(factory=list, init=False)
    _read: int = field(default=0, init=False)

    def catch_up(self) -> Ledger:
        """Take in what was heard since the last time."""
        self._ears.check()
        news = self._ears.changes[self._read :]
        self._read += len(news)
        for change in news:
            there = self.carriers[change.address]
            if (change.host in there) != change.present:
                (there.add if change.present else there.discard)(change.host)
                self.moves.append(change)
        return self

    def carried_by(self, host: str) -> list[Address]:
        """The addresses that a host has."""
        return sorted(address for address, there in self.carriers.items() if host in there)

    def last_move(self) -> float:
        """When something came or went last; 0 if nothing did."""
        return self.moves[-1].when if self.moves else 0.0

    def came(self, since: float, elsewhere_than: str = "") -> dict[Address, float]:
        """When each address first came to a host after a moment, not counting one host."""
        return self._first(since, lambda move: move.present and move.host != elsewhere_than)

    def went(self, host: str, since: float) -> dict[Address, float]:
        """When each address first went from a host after a moment."""
        return self._first(since, lambda move: not move.present and move.host == host)

    def most_carriers(self, wanted: Collection[Address], since: float) -> int:
        """The most hosts that had any one of the addresses at the same instant, from a moment on."""
        now: dict[Address, int] = defaultdict(int)
        earlier = [move for move in self.moves if move.when < since]
        for move in earlier:
            now[move.address] += 1 if move.present else -1
        most = max((now[address] for address in wanted), default=0)
        for move in self.moves[len(earlier) :]:
            now[move.address] += 1 if move.present else -1
            if move.address in wanted:
                most = max(most, now[move.address])
        return most

    def _first(self, since: float, chosen: Callable[[Change], bool]) -> dict[Address, float]:
        found: dict[Address, float] = {}
        for move in self.moves:
            if move.when >= since and chosen(move):
                found.setdefault(move.address, move.when)
        return found


def carried_once(ledger: Ledger, wanted: Iterable[Address]) -> bool:
    """Whether each address has one carrier."""
    return all(len(ledger.carriers[address]) == 1 for address in wanted)


def ledger_of(lab: Lab) -> Ledger:
    """A ledger of all that was heard since the lab's hosts were made."""
    return Ledger(lab.ears)
