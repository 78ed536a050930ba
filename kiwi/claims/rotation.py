"""Servers of which any one will do."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field


@define(eq=False)
class Rotation:
    """
    Where to begin asking: where it last went well.

    @ivar count: how many servers there are. Each is known by its place, from 0 on.
    @ivar first: where to begin.
    """

    count: int
    first: int = field(default=0, init=False)

    def in_order(self) -> Iterator[tuple[int, bool]]:
        """The places, the best one first, and whether there are others after it."""
        first = self.first
        return (((first + step) % self.count, step + 1 < self.count) for step in range(self.count))

    def failed(self, place: int) -> None:
        """Begin with the next one from now on, if this is where to begin."""
        if self.first == place:
            self.first = (place + 1) % self.count
