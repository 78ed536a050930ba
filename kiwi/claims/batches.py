"""Asking a store about many addresses at once: one request for all that can wait for the same one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from kiwi.model import Address

from .asking import Turns

Q = TypeVar("Q")
A = TypeVar("A")


@define(eq=False)
class Batch(Generic[Q, A]):
    """
    What goes out together.

    @ivar deadline: when all of it must be answered: that of the first.
    @ivar asked: what is asked about each address.
    """

    deadline: float
    asked: dict[Address, Q] = field(factory=dict, init=False)
    work: Deferred[None] | None = field(default=None, init=False)
    _waiting: dict[Address, Deferred[A]] = field(factory=dict, init=False)

    def join(self, address: Address, question: Q) -> Deferred[A]:
        self.asked[address] = question
        answer: Deferred[A] = Deferred(lambda _: self._leave(address))
        self._waiting[address] = answer
        return answer

    def _leave(self, address: Address) -> None:
        del self._waiting[address]
        if not self._waiting and self.work is not None:
            self.work.cancel()

    def close(self) -> Mapping[Address, Q]:
        """What is to be sent: all for which somebody waits."""
        return {address: question for address, question in self.asked.items() if address in self._waiting}

    def end(self, answer: Callable[[Address, Deferred[A]], None]) -> None:
        # Whoever is answered may cancel another one.
        while self._waiting:
            address = next(iter(self._waiting))
            answer(address, self._waiting.pop(address))


@define(eq=False)
class Batches(Generic[Q, A]):
    """
    Gathers what is asked within one turn of the reactor, and after that until it is the batch's turn. There is no more
    than one question about an address in a batch.

    @ivar turns: bounds the requests in flight.
    @ivar most: questions in a batch.
    @ivar send: answers each of the questions until a deadline, or fails for all of them.
    """

    clock: IReactorTime
    turns: Turns
    most: int
    send: Callable[[Mapping[Address, Q], float], Coroutine[Any, Any, Mapping[Address, A]]]
    _next: Batch[Q, A] | None = field(default=None, init=False)

    def ask(self, address: Address, question: Q, deadline: float) -> Deferred[A]:
        """
        The answer, or a failure, no later than C{deadline}. One who cancels does not hinder the others; what has been
        sent already may still have its effect.
        """
        batch = self._next
        if batch is None or address in batch.asked or len(batch.asked) >= self.most:
            batch = self._next = Batch(deadline)
            self.clock.callLater(0, self._start, batch)
        batch.deadline = min(batch.deadline, deadline)
        return batch.join(address, question)

    def _start(self, batch: Batch[Q, A]) -> None:
        batch.work = Deferred.fromCoroutine(self._carry_out(batch))
        batch.work.addErrback(partial(self._failed, batch))

    async def _carry_out(self, batch: Batch[Q, A]) -> None:
        try:
            turn = await self.turns.turn(max(0.0, batch.deadline - self.clock.seconds()))
        finally:
            if self._next is batch:
                self._next = None
        try:
            questions = batch.close()
            answers = await self.send(questions, batch.deadline) if questions else {}
        finally:
            turn.done()
        batch.end(lambda address, waiting: waiting.callback(answers[address]))

    def _failed(self, batch: Batch[Q, A], failure: Failure) -> None:
        batch.end(lambda address, waiting: waiting.errback(failure))
