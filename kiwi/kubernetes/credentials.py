"""What an agent shows an API server to be let in."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from zope.interface import Interface, implementer


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
