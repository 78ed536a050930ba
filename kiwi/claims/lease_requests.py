"""Asking an API server about Leases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred

from kiwi.http import HTTPError, Response
from kiwi.kubernetes.api import KubernetesAPI, Trouble, said_of, trouble_of
from kiwi.kubernetes.decoding import Decoded, Kind, Nonsense, parse

from .asking import asked_again
from .lease_objects import GROUP, VERSION, Identity, Lease, Strange, delete_options, read_lease


@frozen
class Gone:
    """There is no such Lease."""


@frozen
class Conflict:
    """The Lease is not (any more) as the request takes it to be."""


@frozen
class Deleted:
    """The Lease has been deleted."""


def _decode(version: str, document: Mapping[str, Any]) -> Decoded[str, Lease]:
    lease = read_lease(document)
    return Decoded(lease.name or None, lease, (lease.why,) if isinstance(lease, Strange) else ())


LEASES: Kind[str, Lease] = Kind(GROUP, "leases", "Lease", (VERSION,), _decode)


@frozen
class LeaseRequests:
    """
    The requests for single Leases. L{HTTPError}, with one printable line, says that there was no answer that tells how
    things stand. See Note [Asked again] in L{kiwi.claims.leases}.

    @ivar ttl: seconds; says how soon a request is sent again.
    """

    api: KubernetesAPI
    namespace: str
    ttl: float

    async def get(self, name: str, deadline: float) -> Lease | Gone:
        """A Lease as it is now."""
        response = await self._ask("GET", name, deadline)
        return Gone() if self._is_absent(response, name) else self._lease(response, "get", name)

    async def create(self, name: str, document: Mapping[str, Any], deadline: float) -> tuple[float, Lease | Conflict]:
        """A Lease that was made, and when that was first sent; a L{Conflict} where there is one of that name."""
        sent = self.api.clock.seconds()
        response = await self._ask("POST", "", deadline, document)
        return sent, Conflict() if response.status == 409 else self._lease(response, "create", name)

    async def replace(
        self, name: str, document: Mapping[str, Any], deadline: float
    ) -> tuple[float, Lease | Conflict | Gone]:
        """A Lease that was changed, and when that was first sent."""
        sent = self.api.clock.seconds()
        response = await self._ask("PUT", name, deadline, document)
        if response.status == 409:
            return sent, Conflict()
        return sent, Gone() if self._is_absent(response, name) else self._lease(response, "update", name)

    async def delete(self, name: str, identity: Identity, deadline: float) -> Deleted | Conflict | Gone:
        """Delete a Lease in one of its states, and in no other."""
        response = await self._ask("DELETE", name, deadline, delete_options(identity))
        if response.status == 409:
            return Conflict()
        if self._is_absent(response, name):
            return Gone()
        if response.status not in (200, 202):
            raise HTTPError(self._because(response, "delete", name))
        return Deleted()

    async def _ask(
        self, method: str, name: str, deadline: float, document: Mapping[str, Any] | None = None
    ) -> Response:
        left = deadline - self.api.clock.seconds()
        if left <= 0:
            raise HTTPError("no time was left to ask the API server")
        path = LEASES.path(VERSION, self.namespace, name)

        def send() -> Deferred[Response]:
            left = max(0.0, deadline - self.api.clock.seconds())
            return Deferred.fromCoroutine(self.api.ask(method, path, None, document, left))

        try:
            return await asked_again(self.api.clock, self.ttl, send)
        except Trouble as trouble:
            raise HTTPError(f"{self.api.endpoint}: {trouble}") from trouble

    def _is_absent(self, response: Response, name: str) -> bool:
        """Whether the Lease is absent, and not its namespace or the whole API."""
        if response.status != 404:
            return False
        status = parse(response.body)
        details = None if isinstance(status, Nonsense) else status.get("details")
        return isinstance(details, dict) and details.get("name") == name and details.get("kind") == "leases"

    def _lease(self, response: Response, verb: str, name: str) -> Lease:
        if response.status not in (200, 201):
            raise HTTPError(self._because(response, verb, name))
        document = parse(response.body)
        lease = None if isinstance(document, Nonsense) else read_lease(document)
        if lease is None or lease.name != name:
            raise HTTPError(f"{self.api.endpoint}: an answer that is not the Lease {name}")
        return lease

    def _because(self, response: Response, verb: str, name: str) -> str:
        if response.status == 404:
            return (
                f"{self.api.endpoint}: it has no Leases in namespace {self.namespace} (status 404{said_of(response)}); "
                f"create the namespace, or give --lease-namespace"
            )
        wish = f"{verb} leases in namespace {self.namespace}"
        return f"{self.api.endpoint}: {trouble_of(response, wish, LEASES.path(VERSION, self.namespace, name))}"
