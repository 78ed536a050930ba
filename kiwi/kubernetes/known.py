"""What is known of the Services of a cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import define, field

from kiwi.model import Service, ServiceName

from .decoding import Decoded

Problem = tuple[ServiceName | None, str]
"""What is wrong with a Service, and its name where it has one."""


@define
class Known:
    """
    The Services that ask for addresses, and what is wrong with Services, as far as lists and events have told.

    What L{learn} and L{replace} return are the problems that were not there before, to be told now. A Service without
    a name is not remembered, nor are its problems.

    @ivar edition: another number whenever the Services are others.
    """

    edition: int = field(default=0, init=False)
    _services: dict[ServiceName, Service] = field(factory=dict, init=False)
    _problems: dict[ServiceName, tuple[str, ...]] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._services)

    def services(self) -> Mapping[ServiceName, Service]:
        """The Services that ask for addresses, in a mapping of its own that stays as it is."""
        return dict(self._services)

    def names(self) -> set[ServiceName]:
        """The names of all that is remembered."""
        return {*self._services, *self._problems}

    def learn(self, decoded: Decoded[ServiceName, Service]) -> list[Problem]:
        """A Service is now like this."""
        name, service = decoded.name, decoded.value
        if name is None:
            return [(None, ", ".join(decoded.problems))]
        if service is None:
            self._drop(name)
        elif self._services.get(name) != service:
            self._services[name] = service
            self.edition += 1
        before = self._problems.pop(name, ())
        if decoded.problems:
            self._problems[name] = decoded.problems
        return [(name, problem) for problem in decoded.problems if problem not in before]

    def forget(self, name: ServiceName) -> None:
        """A Service is gone."""
        self._drop(name)
        self._problems.pop(name, None)

    def replace(self, items: Iterable[Decoded[ServiceName, Service]]) -> list[Problem]:
        """These are all the Services there are."""
        gone = self.names()
        problems: list[Problem] = []
        for decoded in items:
            if decoded.name is not None:
                gone.discard(decoded.name)
            problems.extend(self.learn(decoded))
        for name in gone:
            self.forget(name)
        return problems

    def _drop(self, name: ServiceName) -> None:
        if self._services.pop(name, None) is not None:
            self.edition += 1
