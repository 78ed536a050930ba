"""Who an agent is to etcd v3: a password is exchanged for a token, which etcd forgets from time to time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from kiwi.http import HTTPError
from kiwi.logs import printable

from .etcd3_reading import NOT_NOW, Malformed, Refusal, read_token
from .etcd_user import EtcdUser

Ask = Callable[[dict[str, str]], Deferred[Any]]
"""Asks a member to authenticate, for a document or a L{Refusal}."""


@define(eq=False)
class Login:
    """
    The token of a user, fetched when it is needed: once for all who wait for it, since each time costs etcd as much as
    a hundred other requests.

    @ivar user: C{None} where etcd is not told who asks.
    """

    user: EtcdUser | None
    _token: str | None = field(default=None, init=False, repr=False)
    _unasked: bool = field(default=False, init=False)
    _flying: Deferred[None] | None = field(default=None, init=False, repr=False)
    _waiting: list[Deferred[None]] = field(factory=list, init=False, repr=False)

    async def token(self, ask: Ask) -> str | None:
        """The token to show; C{None} for none. L{HTTPError} says why there is none to be had."""
        if self.user is None or self._token is not None or self._unasked:
            return self._token
        waiting: Deferred[None] = Deferred(self._given_up)
        self._waiting.append(waiting)
        if self._flying is None:
            self._flying = Deferred.fromCoroutine(self._fetch(self.user, ask))
            self._flying.addBoth(self._fetched)
        await waiting
        return self._token

    def refused(self, token: str | None) -> None:
        """Etcd does not know this token; or asks for one where it did not before."""
        if token == self._token:
            self._token, self._unasked = None, False

    async def _fetch(self, user: EtcdUser, ask: Ask) -> None:
        name = printable(user.name)
        try:
            password = user.read_password()
        except (OSError, ValueError) as error:
            raise HTTPError(f"there is no password for user {name}: {printable(error)}") from None
        said = await ask({"name": user.name, "password": password})
        if isinstance(said, Refusal) and said.code == NOT_NOW:
            # Authentication is not enabled there, or not yet.
            self._unasked = True
        elif isinstance(said, Refusal):
            raise HTTPError(f"user {name} is not let in: {said.message}; see that name and password are right")
        else:
            try:
                self._token = read_token(said)
            except Malformed as error:
                raise HTTPError(str(error)) from None

    def _fetched(self, result: Failure | None) -> None:
        self._flying, waiting, self._waiting = None, self._waiting, []
        for each in waiting:
            if isinstance(result, Failure):
                each.errback(result)
            else:
                each.callback(None)

    def _given_up(self, waiting: Deferred[None]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
        if not self._waiting and self._flying is not None:
            flying, self._flying = self._flying, None
            flying.cancel()
