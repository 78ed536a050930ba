"""What an agent shows an API server to be let in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import Interface, implementer

from kiwi.files import File, Rotating, Unusable


class CredentialsError(Exception):
    """There are no credentials for now. Its text is one printable line that names what is wrong, and where."""


class ICredentials(Interface):
    """The headers that say who is asking. Certificates are shown by the connection and are not among them."""

    def headers() -> Deferred[Mapping[str, str]]:
        """
        The headers to send with the next request. Fails with L{CredentialsError} where there are none for now.

        Made anew when they are about to run out; cheap otherwise.
        """

    def refused() -> None:
        """The server has refused the latest ones (401): the next ones must not come from a cache."""


@implementer(ICredentials)
@frozen
class NoCredentials:
    """Nobody in particular is asking."""

    def headers(self) -> Deferred[Mapping[str, str]]:
        return succeed({})

    def refused(self) -> None:
        """There is nothing else to show."""


@implementer(ICredentials)
@frozen
class FixedHeaders:
    """The same headers always. See L{bearer} and L{basic}."""

    _headers: Mapping[str, str] = field(repr=False)

    def headers(self) -> Deferred[Mapping[str, str]]:
        return succeed(self._headers)

    def refused(self) -> None:
        """There is nothing else to show."""


def bearer(token: str) -> Mapping[str, str]:
    """The headers that show a token (RFC 6750). Raises L{ValueError}, without the token, where it cannot be one."""
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("it is no token: a token is one word of printable ASCII characters")
    return {"Authorization": f"Bearer {token}"}


def _bearer(contents: Sequence[bytes]) -> Mapping[str, str]:
    return bearer(contents[0].decode("latin-1").strip())


@implementer(ICredentials)
@define(eq=False)
class TokenFile:
    """
    The token in a file, whatever it is at the time. The kubelet puts a new one there before the last one runs out.

    @ivar path: the file.
    @ivar seconds: the time.
    """

    path: str
    seconds: Callable[[], float]
    _token: Rotating[Mapping[str, str]] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._token = Rotating([File(self.path)], _bearer, self.seconds)

    def check(self) -> None:
        """Raises L{CredentialsError} where there is no token."""
        try:
            self._token.current()
        except Unusable as error:
            raise CredentialsError(str(error)) from None

    def headers(self) -> Deferred[Mapping[str, str]]:
        try:
            return succeed(self._token.current())
        except Unusable as error:
            return fail(CredentialsError(str(error)))

    def refused(self) -> None:
        self._token.look_again()
