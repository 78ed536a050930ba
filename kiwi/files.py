"""Secrets and certificates, which stand in files that may be written anew at any time, or in a document."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from attrs import define, field, frozen
from twisted.logger import Logger

from .logs import logger, printable

T = TypeVar("T")

REREAD = 60.0
"""Seconds after which a file is read again although it looks unchanged."""

LARGEST = 16 * 2**20
"""Bytes."""


class Unusable(Exception):
    """What a file or document has is of no use. The text is one printable line: where it stands and what is wrong."""


@frozen
class File:
    """A file by its path."""

    path: str

    def __str__(self) -> str:
        return printable(self.path)

    def read(self) -> bytes:
        """What it has. Raises L{OSError}."""
        with open(self.path, "rb") as file:
            return file.read(LARGEST)

    def stamp(self) -> object:
        """Something else after the file, or a symbolic link on the way to it, was changed."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            return error.errno
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


@frozen
class Data:
    """
    Bytes that stand in a document.

    @ivar place: where they stand, in words.
    """

    place: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.place

    def read(self) -> bytes:
        return self.data

    def stamp(self) -> object:
        return None


Source = File | Data


def _contents(source: Source) -> bytes:
    try:
        return source.read()
    except OSError as error:
        raise Unusable(f"{source}: {printable(error.strerror or error)}") from None


@define(eq=False)
class Rotating(Generic[T]):
    """
    What some sources have together, as it is now. What is of use is kept while what comes after it is not, and the log
    says so once.

    @ivar parse: makes a value of what the sources have. Raises L{ValueError}, whose text finishes the sentence "FILE:".
    @ivar seconds: the time.
    """

    sources: Sequence[Source]
    parse: Callable[[Sequence[bytes]], T]
    seconds: Callable[[], float]
    log: Logger = field(factory=lambda: logger("kiwi"))
    _stamps: Sequence[object] | None = field(default=None, init=False)
    _reread_at: float = field(default=0.0, init=False)
    _contents: Sequence[bytes] | None = field(default=None, init=False, repr=False)
    _value: T | None = field(default=None, init=False, repr=False)
    _trouble: Unusable | None = field(default=None, init=False)

    def current(self) -> T:
        """
        The value. Raises L{Unusable} where there was none yet.

        It is the same object for as long as the sources have the same.
        """
        stamps = [source.stamp() for source in self.sources]
        if stamps != self._stamps or self.seconds() >= self._reread_at:
            self._read(stamps)
        if self._value is None:
            assert self._trouble is not None
            raise self._trouble
        return self._value

    def look_again(self) -> None:
        """The next value is read, even if nothing looks changed."""
        self._stamps = None

    def _read(self, stamps: Sequence[object]) -> None:
        # The stamps are from before the reading, so that what changes meanwhile is read again.
        self._stamps = stamps
        self._reread_at = self.seconds() + REREAD
        try:
            self._take([_contents(source) for source in self.sources])
        except Unusable as trouble:
            if self._value is not None and self._trouble is None:
                self.log.warn("{trouble}; what was there before is used", trouble=str(trouble))
            self._trouble = trouble
        else:
            self._trouble = None

    def _take(self, contents: Sequence[bytes]) -> None:
        if contents == self._contents:
            return
        try:
            self._value = self.parse(contents)
        except ValueError as error:
            raise Unusable(f"{' and '.join(map(str, self.sources))}: {error}") from None
        self._contents = contents
