"""What is known of the objects of one kind in a cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from attrs import define, field

from .decoding import Decoded

N = TypeVar("N")
T = TypeVar("T")


@define
class Known(Generic[N, T]):
    """
    What there is to know of objects, and what is wrong with them, as far as lists and events have told.

    What L{learn} and L{replace} return are the problems that were not there before, to be told now, with the name of
    the object where it has one. An object without a name is not remembered, nor are its problems.

    @ivar edition: another number whenever something else is known.
    """

    edition: int = field(default=0, init=False)
    _values: dict[N, T] = field(factory=dict, init=False)
    _problems: dict[N, tuple[str, ...]] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> Mapping[N, T]:
        """What is known, in a mapping of its own that stays as it is."""
        return dict(self._values)

    def names(self) -> set[N]:
        """The names of all that is remembered."""
        return {*self._values, *self._problems}

    def learn(self, decoded: Decoded[N, T]) -> list[tuple[N | None, str]]:
        """An object is now like this."""
        name, value = decoded.name, decoded.value
        if name is None:
            return [(None, ", ".join(decoded.problems))]
        if value is None:
            self._drop(name)
        elif self._values.get(name) != value:
            self._values[name] = value
            self.edition += 1
        before = self._problems.pop(name, ())
        if decoded.problems:
            self._problems[name] = decoded.problems
        return [(name, problem) for problem in decoded.problems if problem not in before]

    def forget(self, name: N) -> None:
        """An object is gone."""
        self._drop(name)
        self._problems.pop(name, None)

    def replace(self, items: Iterable[Decoded[N, T]]) -> list[tuple[N | None, str]]:
        """These are all objects of which there is something to know."""
        gone = self.names()
        problems: list[tuple[N | None, str]] = []
        for decoded in items:
            if decoded.name is not None:
                gone.discard(decoded.name)
            problems.extend(self.learn(decoded))
        for name in gone:
            self.forget(name)
        return problems

    def _drop(self, name: N) -> None:
        if self._values.pop(name, None) is not None:
            self.edition += 1
