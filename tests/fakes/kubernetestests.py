"""
What the API server of Kubernetes does, as far as Kiwi relies on it. A real one and the one in memory run this suite, so
that the latter cannot drift. What is said here was measured on kube-apiserver 1.20.2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from kiwi.http import Response, request, stream

from .worlds import World

Body = Mapping[str, Any]

WRITTEN = ("uid", "resourceVersion", "creationTimestamp", "generation", "selfLink", "managedFields")
"""What a server writes into the metadata of an object."""


@frozen
class Said:
    """An answer."""

    status: int
    body: Any
    headers: Any = field(eq=False, repr=False)

    @property
    def metadata(self) -> Body:
        metadata: Body = self.body["metadata"]
        return metadata

    @property
    def version(self) -> str:
        """The resource version of an object or a list."""
        version: str = self.metadata["resourceVersion"]
        return version

    @property
    def uid(self) -> str:
        uid: str = self.metadata["uid"]
        return uid

    @property
    def names(self) -> Sequence[str]:
        """What is in a list."""
        return [item["metadata"]["name"] for item in self.body["items"]]

    @property
    def refusal(self) -> tuple[int, str | None, str]:
        """The code, the reason and the message of a status."""
        assert (self.body["kind"], self.body["status"], self.body["code"]) == ("Status", "Failure", self.status)
        return self.status, self.body.get("reason"), self.body["message"]


@define(eq=False)
class Server:
    """
    The server under test, and what a test can do to it.

    @ivar token: of one who may do everything.
    @ivar namespace: one that is there, for this test alone.
    @ivar compact: has etcd forget the past.
    @ivar forget: has the server itself forget it, too, from which watches are served; and breaks all connections.
    @ivar bookmark: tells those who want bookmarks how far they are; or does nothing where that happens by itself.
    """

    world: World
    endpoint: str
    token: str
    namespace: str
    compact: Callable[[], None]
    forget: Callable[[], None]
    bookmark: Callable[[], None]

    @property
    def leases(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        content_type: str | None = "application/json",
        token: str | None = "",
    ) -> Said:
        """
        @param body: a document, or bytes as they are.
        @param token: C{None} for none, or empty for that of one who may do everything.
        """
        headers: dict[bytes | str, bytes | str] = {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.token}"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None and content_type:
            headers["Content-Type"] = content_type
        response = await self.world.of(
            request(
                self.world.http,
                self.world.clock,
                method,
                self.endpoint + path,
                timeout=30,
                data=data,
                headers=headers,
            )
        )
        return Said(response.status, json.loads(response.body), response.headers)


@define(eq=False)
class Watch:
    """One that watches."""

    server: Server
    opened: Response | None = None
    lines: list[bytes] = field(factory=list)
    ended: list[Response | None] = field(factory=list)
    _following: Deferred[Any] | None = None

    async def open(self, path: str, case: TestCase) -> Watch:
        world = self.server.world

        def heard(response: Response) -> None:
            self.opened = response

        self._following = stream(
            world.stream_http,
            world.clock,
            self.server.endpoint + path,
            opened=heard,
            line=self.lines.append,
            overlong=self.lines.append,  # type: ignore[arg-type]
            open_timeout=30,
            idle_timeout=600,
            headers={"Authorization": f"Bearer {self.server.token}"},
        )
        self._following.addErrback(lambda failure: failure.trap(CancelledError) and None).addBoth(self.ended.append)
        case.addCleanup(self._following.cancel)
        await world.until(lambda: self.opened is not None or bool(self.ended))
        return self

    async def events(self, count: int) -> Sequence[tuple[str, str, Any]]:
        """That many events, and no more so far: the type, the name, and who holds the Lease."""
        await self.server.world.until(lambda: len(self.lines) >= count)
        return [
            (event["type"], event["object"]["metadata"]["name"], event["object"]["spec"].get("holderIdentity"))
            for event in self.documents
        ]

    @property
    def documents(self) -> Sequence[Any]:
        return [json.loads(line) for line in self.lines]

    @property
    def versions(self) -> Sequence[str]:
        return [event["object"]["metadata"]["resourceVersion"] for event in self.documents]


def lease(name: str, holder: str = "one", *, spec: Body | None = None, **metadata: Any) -> dict[str, Any]:
    """A Lease to be sent."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, **metadata},
        "spec": {"holderIdentity": holder, **(spec or {})},
    }


def sent(document: Any) -> Any:
    """An object without what the server has written into it."""
    metadata = {part: value for part, value in document["metadata"].items() if part not in WRITTEN}
    return {**document, "metadata": metadata}


CHANGED = "the object has been modified; please apply your changes to the latest version and try again"
LEASE = "leases.coordination.k8s.io"


def make_kubernetes_api_tests(make: Callable[[TestCase], Server]) -> type[TestCase]:
    """
    @param make: a running server; it may add cleanups.
    """

    class KubernetesApiTests(TestCase):
        def setUp(self) -> None:
            self.server = make(self)
            self.ask = self.server.ask
            self.leases = self.server.leases

        async def create(self, name: str, holder: str = "one", **metadata: Any) -> Said:
            said = await self.ask("POST", self.leases, lease(name, holder, **metadata))
            self.assertEqual(said.status, 201, said)
            return said

        async def update(self, before: Said, holder: str, **metadata: Any) -> Said:
            metadata = {"resourceVersion": before.version, **metadata}
            name = before.metadata["name"]
            return await self.ask("PUT", f"{self.leases}/{name}", lease(name, holder, **metadata))

        async def delete(self, name: str) -> Said:
            said = await self.ask("DELETE", f"{self.leases}/{name}")
            self.assertEqual(said.status, 200)
            return said

        async def names(self, query: str = "") -> Sequence[str]:
            return sorted((await self.ask("GET", self.leases + query)).names)

        async def watch(self, query: str) -> Watch:
            return await Watch(self.server).open(f"{self.leases}?watch=true{query}", self)

        # Creating.

        async def test_create(self) -> None:
            """What is created is answered, with what the server has written into it."""
            document = lease("a", spec={"leaseDurationSeconds": 10, "renewTime": "2026-01-01T00:00:00.000000Z"})
            said = await self.ask("POST", self.leases, document)
            whole = {**document, "metadata": {"name": "a", "namespace": self.server.namespace}}
            self.assertEqual((said.status, sent(said.body)), (201, whole))
            self.assertTrue(said.version.isdigit())
            self.assertRegex(said.metadata["creationTimestamp"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
            self.assertEqual((await self.ask("GET", f"{self.leases}/a")).body, said.body)

        async def test_create_again(self) -> None:
            """The first to create it has it."""
            await self.create("a")
            again = await self.ask("POST", self.leases, lease("a", "two"))
            self.assertEqual(again.refusal, (409, "AlreadyExists", f'{LEASE} "a" already exists'))
            self.assertEqual((await self.ask("GET", f"{self.leases}/a")).body["spec"], {"holderIdentity": "one"})

        async def test_new_each_time(self) -> None:
            """What is created anew has another C{uid}, and a later resource version."""
            first = await self.create("a")
            await self.delete("a")
            second = await self.create("a", uid=first.uid)
            self.assertNotEqual(second.uid, first.uid)
            self.assertGreater(int(second.version), int(first.version) + 1)

        async def test_create_with_version(self) -> None:
            """What is to be created has no resource version."""
            said = await self.ask("POST", self.leases, lease("a", resourceVersion="5"))
            why = "resourceVersion should not be set on objects to be created"
            self.assertEqual((said.status, said.body["message"]), (500, why))
            self.assertEqual((await self.ask("GET", f"{self.leases}/a")).status, 404)

        async def test_create_elsewhere(self) -> None:
            """It is in the namespace of the path, which must be there."""
            other = await self.ask("POST", self.leases, lease("a", namespace="default"))
            why = "the namespace of the provided object does not match the namespace sent on the request"
            self.assertEqual(other.refusal, (400, "BadRequest", why))
            nowhere = "/apis/coordination.k8s.io/v1/namespaces/no-such/leases"
            absent = (404, "NotFound", 'namespaces "no-such" not found')
            self.assertEqual((await self.ask("POST", nowhere, lease("a"))).refusal, absent)
            self.assertEqual((await self.ask("PUT", f"{nowhere}/a", lease("a"))).refusal, absent)
            self.assertEqual((await self.ask("GET", nowhere)).names, [])
            found = await self.ask("GET", f"{nowhere}/a")
            self.assertEqual(found.refusal, (404, "NotFound", f'{LEASE} "a" not found'))

        async def test_invalid(self) -> None:
            """What makes no sense is refused, and nothing is created."""
            nameless = await self.ask("POST", self.leases, {"metadata": {}, "spec": {}})
            why = "metadata.name: Required value: name or generateName is required"
            self.assertEqual(nameless.refusal, (422, "Invalid", f'Lease.coordination.k8s.io "" is invalid: {why}'))
            short = await self.ask("POST", self.leases, lease("a", spec={"leaseDurationSeconds": 0}))
            why = "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"
            self.assertEqual(short.refusal, (422, "Invalid", f'Lease.coordination.k8s.io "a" is invalid: {why}'))
            self.assertEqual(short.body["details"]["causes"][0]["field"], "spec.leaseDurationSeconds")
            documents: Sequence[tuple[object, int]] = [
                (lease("A_b"), 422),
                (b"{", 400),
                ([], 400),
                ({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}, 400),
                (lease("a", spec={"holderIdentity": 5}), 400),
                (lease("a", spec={"renewTime": "yesterday"}), 400),
            ]
            for document, code in documents:
                said = await self.ask("POST", self.leases, document)
                self.assertEqual((said.status, said.body["kind"]), (code, "Status"), document)
            self.assertEqual(await self.names(), [])

        async def test_times(self) -> None:
            """The times of a Lease have exactly six digits after the point. Its other parts may be absent."""
            for number, (time, code) in enumerate(
                (
                    ("2026-01-01T00:00:00Z", 400),
                    ("2026-01-01T00:00:00.1234567Z", 400),
                    ("2026-01-01T00:00:00.123456Z", 201),
                )
            ):
                said = await self.ask(
                    "POST", self.leases, {"metadata": {"name": f"a{number}"}, "spec": {"renewTime": time}}
                )
                self.assertEqual(said.status, code, time)
            self.assertEqual(said.body["spec"], {"renewTime": "2026-01-01T00:00:00.123456Z"})

        async def test_annotations(self) -> None:
            """Labels and annotations are kept; what is unknown is not."""
            known: dict[str, Any] = {"labels": {"b": "c"}, "annotations": {"kiwi/e": "f"}}
            said = await self.ask("POST", self.leases, lease("a", spec={"more": 1}, unknown="x", **known))
            self.assertEqual(sent(said.body), lease("a", namespace=self.server.namespace, **known))

        async def test_content_type(self) -> None:
            """A body is JSON, if nothing is said of it; a form is refused."""
            body = json.dumps(lease("a")).encode()
            self.assertEqual((await self.ask("POST", self.leases, body, content_type=None)).status, 201)
            form = await self.ask("POST", self.leases, body, content_type="application/x-www-form-urlencoded")
            self.assertEqual(form.refusal[:2], (415, "UnsupportedMediaType"))

        # Changing.

        async def test_update(self) -> None:
            """Who knows the latest resource version may change it, once."""
            first = await self.create("a")
            second = await self.update(first, "two")
            self.assertEqual((second.status, second.body["spec"]), (200, {"holderIdentity": "two"}))
            self.assertGreater(int(second.version), int(first.version))
            late = await self.update(first, "three")
            self.assertEqual(
                late.refusal, (409, "Conflict", f'Operation cannot be fulfilled on {LEASE} "a": {CHANGED}')
            )
            early = await self.update(first, "three", resourceVersion=str(int(second.version) + 1))
            self.assertEqual(early.refusal, late.refusal)
            self.assertEqual((await self.ask("GET", f"{self.leases}/a")).body, second.body)

        async def test_update_without_version(self) -> None:
            """A Lease is not changed by one who does not say which version it has seen."""
            first = await self.create("a")
            why = "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
            for version in ("", "0"):
                said = await self.update(first, "two", resourceVersion=version)
                self.assertEqual(said.refusal, (422, "Invalid", f'{LEASE} "a" is invalid: {why}'))
            self.assertEqual((await self.update(first, "two", resourceVersion="x")).status, 500)
            self.assertEqual((await self.ask("GET", f"{self.leases}/a")).body, first.body)

        async def test_update_of_nothing(self) -> None:
            """A change of nothing leaves the resource version as it is, and is no event."""
            first = await self.create("a")
            watch = await self.watch(f"&resourceVersion={first.version}")
            same = await self.update(first, "one")
            self.assertEqual((same.status, same.version), (200, first.version))
            await self.update(first, "two")
            self.assertEqual(await watch.events(1), [("MODIFIED", "a", "two")])

        async def test_update_keeps(self) -> None:
            """Nobody changes what the server has written."""
            first = await self.create("a")
            second = await self.update(first, "two", creationTimestamp="2001-01-01T00:00:00Z", uid=first.uid)
            self.assertEqual(
                (second.uid, second.metadata["creationTimestamp"]), (first.uid, first.metadata["creationTimestamp"])
            )

        async def test_update_of_another(self) -> None:
            """The document must say what the path says."""
            put = f"{self.leases}/a"
            await self.create("a")
            said = [
                (await self.ask("PUT", put, lease("b"))).refusal,
                (await self.ask("PUT", put, lease("a", namespace="default"))).refusal,
                (await self.ask("PUT", put, {"metadata": {}, "spec": {}})).refusal,
            ]
            self.assertEqual(
                said,
                [
                    (400, "BadRequest", "the name of the object (b) does not match the name on the URL (a)"),
                    (
                        400,
                        "BadRequest",
                        "the namespace of the object (default) does not match the namespace on the request "
                        f"({self.server.namespace})",
                    ),
                    (
                        400,
                        "BadRequest",
                        "the name of the object (a based on URL) was undeterminable: name must be provided",
                    ),
                ],
            )

        async def test_put_creates(self) -> None:
            """A PUT of a Lease that is not there creates it, also with the resource version of one that was deleted."""
            self.assertEqual((await self.ask("PUT", f"{self.leases}/a", lease("a"))).status, 201)
            gone = await self.create("b")
            await self.delete("b")
            again = await self.update(gone, "two")
            self.assertEqual((again.status, again.body["spec"]), (201, {"holderIdentity": "two"}))
            self.assertNotEqual(again.uid, gone.uid)

        async def test_put_with_uid(self) -> None:
            """
            A PUT with the C{uid} of an object that was deleted never creates one, and never changes another that has
            its name now, whatever resource version it has.
            """
            gone = await self.create("a")
            await self.delete("a")
            conflict = f'Operation cannot be fulfilled on {LEASE} "a": StorageError: invalid object, Code: 4, Key: '
            failed = f"Precondition failed: UID in precondition: {gone.uid}, UID in object meta: "

            async def refused(version: str | None, uid: str) -> None:
                metadata: dict[str, Any] = {
                    "uid": gone.uid,
                    **({} if version is None else {"resourceVersion": version}),
                }
                said = await self.ask("PUT", f"{self.leases}/a", lease("a", "two", **metadata))
                code, reason, message = said.refusal
                self.assertEqual((code, reason), (409, "Conflict"))
                self.assertTrue(message.startswith(conflict) and message.endswith(failed + uid), message)

            for version in (None, "0", gone.version):
                await refused(version, "")
            self.assertEqual((await self.ask("GET", f"{self.leases}/a")).status, 404)
            new = await self.create("a", "three")
            for version in (None, "0", gone.version, new.version):
                await refused(version, new.uid)
            self.assertEqual((await self.ask("GET", f"{self.leases}/a")).body, new.body)

        # Deleting.

        async def test_delete(self) -> None:
            """What is deleted is gone, and the answer says what it was."""
            made = await self.create("a")
            said = await self.delete("a")
            self.assertEqual(
                (said.body["kind"], said.body["status"], said.body["details"]),
                (
                    "Status",
                    "Success",
                    {"name": "a", "group": "coordination.k8s.io", "kind": "leases", "uid": made.uid},
                ),
            )
            again = await self.ask("DELETE", f"{self.leases}/a")
            self.assertEqual(again.refusal, (404, "NotFound", f'{LEASE} "a" not found'))

        async def test_preconditions(self) -> None:
            """A deletion can depend on the C{uid} and on the resource version. An absent object is absent first."""
            made = await self.create("a")
            path = f"{self.leases}/a"

            async def delete(**preconditions: str) -> Said:
                options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions}
                return await self.ask("DELETE", path, options)

            on = 'Operation cannot be fulfilled on Lease.coordination.k8s.io "a": the '
            other_uid = (
                f"{on}UID in the precondition (x) does not match the UID in record ({made.uid}). "
                "The object might have been deleted and then recreated"
            )
            other_version = (
                f"{on}ResourceVersion in the precondition (1) does not match the ResourceVersion in record "
                f"({made.version}). The object might have been modified"
            )
            self.assertEqual((await delete(uid="x")).refusal, (409, "Conflict", other_uid))
            self.assertEqual((await delete(uid="x", resourceVersion="1")).refusal, (409, "Conflict", other_uid))
            self.assertEqual((await delete(resourceVersion="1")).refusal, (409, "Conflict", other_version))
            self.assertEqual(
                (await delete(uid=made.uid, resourceVersion="1")).refusal, (409, "Conflict", other_version)
            )
            self.assertEqual((await delete(uid=made.uid, resourceVersion=made.version)).status, 200)
            self.assertEqual((await delete(uid="x", resourceVersion="1")).status, 404)

        async def test_bodies_of_deletions(self) -> None:
            """The options may lack their kind and their type; a form and nonsense are refused."""
            made = await self.create("a")
            path, options = f"{self.leases}/a", {"preconditions": {"uid": "x"}}
            body = json.dumps(options).encode()
            form = await self.ask("DELETE", path, body, content_type="application/x-www-form-urlencoded")
            self.assertEqual(form.status, 415)
            self.assertEqual((await self.ask("DELETE", path, body, content_type=None)).status, 409)
            for nonsense in (b"{", b"[]", b'{"kind":"Pod","apiVersion":"v1"}'):
                self.assertIn((await self.ask("DELETE", path, nonsense)).status, (400, 500))
            self.assertEqual((await self.ask("GET", path)).body, made.body)
            self.assertEqual((await self.ask("DELETE", path, {})).status, 200)
            await self.create("a")
            self.assertEqual((await self.ask("DELETE", path, b"")).status, 200)

        # Listing.

        async def test_list(self) -> None:
            """A list is of one namespace or of all; its items say neither kind nor version."""
            empty = await self.ask("GET", self.leases)
            self.assertEqual(
                (empty.status, {**empty.body, "metadata": None}),
                (200, {"kind": "LeaseList", "apiVersion": "coordination.k8s.io/v1", "metadata": None, "items": []}),
            )
            made = [await self.create(name) for name in ("b", "a")]
            listed = await self.ask("GET", self.leases)
            items = [{part: each.body[part] for part in ("metadata", "spec")} for each in reversed(made)]
            self.assertEqual(listed.body["items"], items)
            self.assertGreaterEqual(int(listed.version), int(made[1].version))
            everywhere = await self.ask("GET", "/apis/coordination.k8s.io/v1/leases")
            found = [item for item in everywhere.body["items"] if item in items]
            self.assertEqual(found, items)
            self.assertEqual((await self.ask("GET", self.leases + "?resourceVersion=")).names, ["a", "b"])
            self.assertEqual(await self.names("?resourceVersion=0"), ["a", "b"])
            self.assertEqual((await self.ask("GET", self.leases + "?resourceVersion=x")).status, 500)

        async def test_pages(self) -> None:
            """The pages of a list are of one moment, whatever happens in between."""
            for name in "abcde":
                await self.create(name)
            first = await self.ask("GET", f"{self.leases}?limit=2")
            await self.delete("c")
            await self.create("f")
            token = quote(first.metadata["continue"])
            second = await self.ask("GET", f"{self.leases}?limit=2&continue={token}")
            third = await self.ask("GET", f"{self.leases}?limit=2&continue={quote(second.metadata['continue'])}")
            rest = await self.ask("GET", f"{self.leases}?continue={token}")
            self.assertEqual(
                [page.names for page in (first, second, third, rest)],
                [["a", "b"], ["c", "d"], ["e"], ["c", "d", "e"]],
            )
            self.assertEqual({page.version for page in (first, second, third, rest)}, {first.version})
            self.assertEqual([page.metadata.get("remainingItemCount") for page in (first, second, third)], [3, 1, None])
            self.assertEqual([page.metadata.get("continue") for page in (third, rest)], [None, None])
            now = await self.ask("GET", f"{self.leases}?limit=5")
            self.assertEqual((now.names, now.metadata.get("continue")), (["a", "b", "d", "e", "f"], None))
            watch = await self.watch(f"&resourceVersion={first.version}")
            self.assertEqual(await watch.events(2), [("DELETED", "c", "one"), ("ADDED", "f", "one")])

        async def test_pages_of_a_selection(self) -> None:
            """Pages can be of a selection; it is not told how many items remain then."""
            for name in "abc":
                await self.create(name, labels={"app": "kiwi" if name != "b" else "other"})
            query = f"{self.leases}?limit=1&labelSelector={quote('app=kiwi')}"
            first = await self.ask("GET", query)
            second = await self.ask("GET", f"{query}&continue={quote(first.metadata['continue'])}")
            self.assertEqual([first.names, second.names], [["a"], ["c"]])
            self.assertNotIn("remainingItemCount", first.metadata)

        async def test_pages_refused(self) -> None:
            """A token is used as it is, and without a resource version."""
            for name in "abc":
                await self.create(name)
            first = await self.ask("GET", f"{self.leases}?limit=1")
            token = quote(first.metadata["continue"])
            said = [
                (await self.ask("GET", f"{self.leases}?limit=1&continue={token}&resourceVersion=5")).refusal[:2],
                (await self.ask("GET", f"{self.leases}?limit=1&continue=abc")).refusal[:2],
                (await self.ask("GET", f"{self.leases}?limit=x")).refusal[:2],
            ]
            self.assertEqual(said, [(400, "BadRequest")] * 3)
            with_zero = await self.ask("GET", f"{self.leases}?limit=1&continue={token}&resourceVersion=0")
            self.assertEqual(with_zero.names, ["b"])

        async def test_expired_page(self) -> None:
            """
            After a compaction a list cannot be gone on with as of its moment, but as of now, with the token that the
            refusal brings.
            """
            for name in "abcd":
                await self.create(name)
            first = await self.ask("GET", f"{self.leases}?limit=2")
            await self.delete("c")
            await self.create("e")
            self.server.compact()
            expired = await self.ask("GET", f"{self.leases}?limit=2&continue={quote(first.metadata['continue'])}")
            self.assertEqual(expired.refusal[:2], (410, "Expired"))
            self.assertTrue(expired.refusal[2].startswith("The provided continue parameter is too old"))
            token = quote(expired.metadata["continue"])
            rest = await self.ask("GET", f"{self.leases}?limit=5&continue={token}")
            self.assertEqual(rest.names, ["d", "e"])
            self.assertGreater(int(rest.version), int(first.version))

        async def test_list_of_the_past(self) -> None:
            """A resource version asks for a list that is no older; with a limit, for exactly that one."""
            made = await self.create("a")
            await self.create("b")
            at = f"resourceVersion={made.version}"
            self.assertEqual(await self.names(f"?{at}"), ["a", "b"])
            for query in (f"?{at}&limit=5", f"?{at}&resourceVersionMatch=Exact"):
                listed = await self.ask("GET", self.leases + query)
                self.assertEqual((listed.names, listed.version), (["a"], made.version))
            await self.create("c")
            self.server.compact()
            expired = await self.ask("GET", f"{self.leases}?{at}&limit=5")
            self.assertEqual(expired.refusal[:2], (410, "Expired"))

        async def test_list_of_the_future(self) -> None:
            """A list or an object that is newer than anything is not to be had, and tried for again in a second."""
            await self.create("a")
            for path in (self.leases, f"{self.leases}/a"):
                said = await self.ask("GET", f"{path}?resourceVersion=99999999")
                code, reason, message = said.refusal
                self.assertEqual((code, reason), (504, "Timeout"))
                self.assertTrue(message.startswith("Timeout: Too large resource version: 99999999, current: "), message)
                self.assertEqual(said.body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge")
                self.assertEqual(said.headers.getRawHeaders("Retry-After"), ["1"])
            self.assertIn((await self.ask("GET", f"{self.leases}?limit=5&resourceVersion=99999999")).status, (500, 504))

        async def test_selectors(self) -> None:
            """A list can be of a name or of labels."""
            await self.create("a", labels={"app": "kiwi"})
            await self.create("b", labels={"app": "other"})
            await self.create("c")
            selections = {
                "fieldSelector=metadata.name=a": ["a"],
                "fieldSelector=metadata.name==a": ["a"],
                "fieldSelector=metadata.name!=a": ["b", "c"],
                f"fieldSelector=metadata.name=a,metadata.namespace={self.server.namespace}": ["a"],
                "labelSelector=app=kiwi": ["a"],
                "labelSelector=app==other": ["b"],
                "labelSelector=app!=kiwi": ["b", "c"],
                "labelSelector=app": ["a", "b"],
                "labelSelector=!app": ["c"],
                "labelSelector=app in (kiwi,other)": ["a", "b"],
                "labelSelector=app notin (kiwi)": ["b", "c"],
                "labelSelector=app=kiwi&fieldSelector=metadata.name=b": [],
            }
            found = {each: await self.names("?" + quote(each, safe="&=!,()")) for each in selections}
            self.assertEqual(found, selections)
            for wrong in ("fieldSelector=spec.holderIdentity=one", "fieldSelector=a", "labelSelector=,,"):
                said = await self.ask("GET", f"{self.leases}?{wrong}")
                self.assertEqual(said.refusal[:2], (400, "BadRequest"), wrong)

        # Watching.

        async def test_watch(self) -> None:
            """A watch tells every change of its kind after its resource version, each with its own."""
            first = await self.create("a")
            second = await self.update(first, "two")
            watch = await self.watch(f"&resourceVersion={first.version}")
            services = f"/api/v1/namespaces/{self.server.namespace}/services"
            await self.ask("POST", services, {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}})
            await self.create("b")
            await self.delete("a")
            events = [("MODIFIED", "a", "two"), ("ADDED", "b", "one"), ("DELETED", "a", "two")]
            self.assertEqual((await watch.events(3), watch.ended), (events, []))
            versions = [int(each) for each in watch.versions]
            self.assertEqual((versions[0], versions), (int(second.version), sorted(set(versions))))
            again = await self.watch(f"&resourceVersion={versions[1]}")
            self.assertEqual(await again.events(1), events[2:])
            event = watch.documents[0]
            self.assertEqual(event["object"], second.body)

        async def test_watch_from_now(self) -> None:
            """A watch without a resource version, or from 0, tells first what is there."""
            await self.create("a")
            made = await self.create("b")
            # A server may be a little behind itself.
            await self.names(f"?resourceVersion={made.version}")
            for query in ("", "&resourceVersion=0"):
                watch = await self.watch(query)
                self.assertEqual(sorted(await watch.events(2)), [("ADDED", "a", "one"), ("ADDED", "b", "one")])

        async def test_watch_one(self) -> None:
            """A watch of a name tells nothing of others; one of all namespaces tells of all."""
            made = await self.create("a")
            one = await self.watch(f"&resourceVersion={made.version}&fieldSelector=metadata.name=b")
            every = await Watch(self.server).open(
                f"/apis/coordination.k8s.io/v1/leases?watch=1&resourceVersion={made.version}", self
            )
            await self.delete("a")
            second = await self.create("b")
            await self.update(second, "two")
            self.assertEqual(await one.events(2), [("ADDED", "b", "one"), ("MODIFIED", "b", "two")])
            self.assertEqual((await every.events(3))[0], ("DELETED", "a", "one"))

        async def test_watch_labels(self) -> None:
            """What leaves the selection is told as a deletion of what it was; what comes into it, as new."""
            first = await self.create("a", labels={"app": "kiwi"})
            watch = await self.watch(f"&resourceVersion={first.version}&labelSelector=app%3Dkiwi")
            second = await self.update(first, "two", labels={"app": "other"})
            third = await self.update(second, "three", labels={"app": "other"})
            await self.update(third, "four", labels={"app": "kiwi"})
            await self.delete("a")
            self.assertEqual(
                await watch.events(3), [("DELETED", "a", "one"), ("ADDED", "a", "four"), ("DELETED", "a", "four")]
            )
            self.assertEqual(watch.versions[0], second.version)

        async def test_watch_from_the_future(self) -> None:
            """A watch from a resource version that is still to come tells what comes after it, and nothing before."""
            first = await self.create("a")
            watch = await self.watch(f"&resourceVersion={int(first.version) + 1}")
            second = await self.update(first, "two")
            self.assertEqual(int(second.version), int(first.version) + 1)
            await self.update(second, "three")
            self.assertEqual(await watch.events(1), [("MODIFIED", "a", "three")])

        async def test_watch_ends(self) -> None:
            """A watch ends after the time that was asked for."""
            made = await self.create("a")
            watch = await self.watch(f"&resourceVersion={made.version}&timeoutSeconds=1")
            await self.server.world.until(lambda: bool(watch.ended))
            self.assertEqual((watch.ended, watch.lines), ([None], []))

        async def test_bookmark(self) -> None:
            """
            A bookmark tells one who watches how far the server is; at the latest, some time before the watch ends, but
            only if something has happened since it began.
            """
            made = await self.create("a")
            watch = await self.watch(f"&resourceVersion={made.version}&allowWatchBookmarks=true&timeoutSeconds=5")
            self.server.bookmark()
            changed = await self.update(made, "two")
            await self.server.world.until(lambda: bool(watch.lines))
            self.server.bookmark()
            await self.server.world.until(lambda: len(watch.lines) > 1)
            bookmark = watch.documents[1]
            about = bookmark["object"]
            self.assertEqual(
                (bookmark["type"], about["kind"], about["apiVersion"], about["metadata"].get("name")),
                ("BOOKMARK", "Lease", "coordination.k8s.io/v1", None),
            )
            self.assertGreaterEqual(int(about["metadata"]["resourceVersion"]), int(changed.version))

        async def test_watch_from_the_past(self) -> None:
            """A watch from what the server does not remember is opened, and ended by an error."""
            first = await self.create("a")
            second = await self.update(first, "two")
            await self.update(second, "three")
            self.server.forget()
            watch = await self.watch(f"&resourceVersion={first.version}")
            await self.server.world.until(lambda: bool(watch.ended))
            (event,) = watch.documents
            self.assertEqual(
                (event["type"], event["object"]["code"], event["object"]["reason"], watch.ended),
                ("ERROR", 410, "Expired", [None]),
            )
            self.assertTrue(event["object"]["message"].startswith(f"too old resource version: {first.version} ("))

        async def test_watch_refused(self) -> None:
            """A watch that makes no sense is refused by its status."""
            for wrong, code in (
                ("&resourceVersion=x", 500),
                ("&resourceVersion=1&fieldSelector=spec.x=a", 400),
                ("&resourceVersion=1&labelSelector=,,", 400),
                ("&resourceVersion=1&timeoutSeconds=x", 400),
            ):
                watch = await self.watch(wrong)
                self.assertEqual([response and response.status for response in watch.ended], [code], wrong)

        # Who asks.

        async def test_unauthorized(self) -> None:
            """A token that is not known is refused as such."""
            said = await self.ask("GET", self.leases, token="wrong")
            self.assertEqual(said.refusal, (401, "Unauthorized", "Unauthorized"))

        async def test_forbidden(self) -> None:
            """Without a right, it is said which."""
            user = 'User "system:anonymous" cannot'
            group = 'in API group "coordination.k8s.io"'
            there = f'in the namespace "{self.server.namespace}"'
            core = 'in API group "" at the cluster scope'
            one, status = f"{self.leases}/a", f"/api/v1/namespaces/{self.server.namespace}/services/web/status"
            slices = "/apis/discovery.k8s.io/v1beta1/endpointslices"
            asked: Sequence[tuple[str, str, object, str]] = [
                ("GET", "/api/v1/services", None, f'services is forbidden: {user} list resource "services" {core}'),
                (
                    "GET",
                    "/api/v1/services?watch=1",
                    None,
                    f'services is forbidden: {user} watch resource "services" {core}',
                ),
                ("GET", "/api/v1/nodes/n", None, f'nodes "n" is forbidden: {user} get resource "nodes" {core}'),
                (
                    "GET",
                    "/api/v1/nodes?watch=1&fieldSelector=metadata.name%3Dn",
                    None,
                    f'nodes "n" is forbidden: {user} watch resource "nodes" {core}',
                ),
                (
                    "GET",
                    slices,
                    None,
                    f'endpointslices.discovery.k8s.io is forbidden: {user} list resource "endpointslices" '
                    'in API group "discovery.k8s.io" at the cluster scope',
                ),
                (
                    "GET",
                    self.leases,
                    None,
                    f'{LEASE} is forbidden: {user} list resource "leases" {group} {there}',
                ),
                ("GET", one, None, f'{LEASE} "a" is forbidden: {user} get resource "leases" {group} {there}'),
                (
                    "POST",
                    self.leases,
                    lease("a"),
                    f'{LEASE} is forbidden: {user} create resource "leases" {group} {there}',
                ),
                ("PUT", one, lease("a"), f'{LEASE} "a" is forbidden: {user} update resource "leases" {group} {there}'),
                ("DELETE", one, None, f'{LEASE} "a" is forbidden: {user} delete resource "leases" {group} {there}'),
                (
                    "PUT",
                    status,
                    {},
                    f'services "web" is forbidden: {user} update resource "services/status" in API group "" {there}',
                ),
                ("GET", "/no-such", None, f'forbidden: {user} get path "/no-such"'),
            ]
            for method, path, body, message in asked:
                said = await self.ask(method, path, body, token=None)
                self.assertEqual(said.refusal, (403, "Forbidden", message))
            self.assertEqual(said.body["details"], {})

        # Other kinds.

        async def test_node(self) -> None:
            """
            A Node is in no namespace. It is created by POST only, and changed without a resource version, too; its
            status, by a path of its own.
            """
            name = f"node-{self.server.namespace}"
            path = f"/api/v1/nodes/{name}"
            absent = await self.ask("PUT", path, {"metadata": {"name": name}})
            self.assertEqual(absent.refusal, (404, "NotFound", f'nodes "{name}" not found'))
            uid = await self.ask("PUT", path, {"metadata": {"name": name, "uid": "x"}})
            self.assertEqual(uid.refusal[:2], (409, "Conflict"))
            conditions = [{"type": "NetworkUnavailable", "status": "True"}]
            made = await self.ask(
                "POST",
                "/api/v1/nodes",
                {"metadata": {"name": name, "labels": {"a": "b"}}, "status": {"conditions": conditions}},
            )
            self.assertEqual((made.status, sent(made.body)["metadata"]), (201, {"name": name, "labels": {"a": "b"}}))
            changed = await self.ask(
                "PUT", path, {"metadata": {"name": name}, "spec": {"unschedulable": True}, "status": {}}
            )
            (condition,) = changed.body["status"]["conditions"]
            self.assertEqual(
                (changed.status, changed.body["spec"]["unschedulable"], condition["status"]), (200, True, "True")
            )
            self.assertNotIn("labels", changed.metadata)
            stale = await self.ask("PUT", path, {"metadata": {"name": name, "resourceVersion": made.version}})
            self.assertEqual(
                stale.refusal, (409, "Conflict", f'Operation cannot be fulfilled on nodes "{name}": {CHANGED}')
            )
            conditions[0]["status"] = "False"
            document = {"metadata": {"name": name}, "spec": {}, "status": {"conditions": conditions}}
            status = await self.ask("PUT", f"{path}/status", document)
            (condition,) = status.body["status"]["conditions"]
            self.assertEqual((status.body["spec"]["unschedulable"], condition["status"]), (True, "False"))
            query = f"/api/v1/nodes?fieldSelector=metadata.name%3D{name}"
            self.assertEqual((await self.ask("GET", query)).names, [name])
            watch = await Watch(self.server).open(f"{query}&watch=1&resourceVersion={made.version}", self)
            self.assertEqual((await self.ask("DELETE", path)).body["details"]["uid"], made.uid)
            self.assertEqual(
                [each[:2] for each in await watch.events(3)],
                [("MODIFIED", name), ("MODIFIED", name), ("DELETED", name)],
            )

        async def test_endpoint_slice(self) -> None:
            """
            An EndpointSlice is created by POST only, and changed without a resource version, too. (1.20 drops
            C{nodeName}, C{serving} and C{terminating}, which are behind feature gates there.)
            """
            group = await self.ask("GET", "/apis/discovery.k8s.io")
            version = group.body["preferredVersion"]["version"]
            path = f"/apis/discovery.k8s.io/{version}/namespaces/{self.server.namespace}/endpointslices"
            node = {"nodeName": "n"} if version == "v1" else {"topology": {"kubernetes.io/hostname": "n"}}

            def document(ready: bool, **metadata: str) -> Body:
                endpoint = {"addresses": ["10.1.1.1"], "conditions": {"ready": ready}, **node}
                labels = {"kubernetes.io/service-name": "web"}
                return {
                    "metadata": {"name": "web-1", "labels": labels, **metadata},
                    "addressType": "IPv4",
                    "endpoints": [endpoint],
                    "ports": [{"name": "p", "protocol": "TCP", "port": 80}],
                }

            absent = await self.ask("PUT", f"{path}/web-1", document(True))
            self.assertEqual(absent.refusal, (404, "NotFound", 'endpointslices.discovery.k8s.io "web-1" not found'))
            made = await self.ask("POST", path, document(True))
            changed = await self.ask("PUT", f"{path}/web-1", document(False))
            same = await self.ask("PUT", f"{path}/web-1", document(False))
            self.assertEqual((made.status, changed.status, same.version), (201, 200, changed.version))
            self.assertEqual(
                sent(changed.body),
                {
                    "kind": "EndpointSlice",
                    "apiVersion": f"discovery.k8s.io/{version}",
                    **document(False),
                    "metadata": {**document(False)["metadata"], "namespace": self.server.namespace},
                },
            )
            stale = await self.ask("PUT", f"{path}/web-1", document(True, resourceVersion=made.version))
            self.assertEqual(stale.refusal[:2], (409, "Conflict"))
            everywhere = f"/apis/discovery.k8s.io/{version}/endpointslices"
            listed = await self.ask("GET", f"{everywhere}?labelSelector=kubernetes.io/service-name%3Dweb")
            self.assertIn("web-1", listed.names)
            self.assertEqual(listed.body["kind"], "EndpointSliceList")
            self.assertEqual((await self.ask("DELETE", f"{path}/web-1")).status, 200)

        async def test_service(self) -> None:
            """A Service keeps what it says of its traffic; its versions protect it like others."""
            path = f"/api/v1/namespaces/{self.server.namespace}/services"
            spec = {
                "type": "LoadBalancer",
                "ports": [{"name": "p", "port": 80, "protocol": "TCP"}],
                "externalIPs": ["192.168.1.41"],
                "externalTrafficPolicy": "Local",
                "publishNotReadyAddresses": True,
            }
            document = {"metadata": {"name": "web"}, "spec": spec}
            self.assertEqual(
                (
                    await self.ask("POST", path, {**document, "metadata": {"name": "web", "resourceVersion": "5"}})
                ).status,
                500,
            )
            made = await self.ask("POST", path, document)
            self.assertEqual(made.status, 201, made)
            kept = ("type", "externalIPs", "externalTrafficPolicy", "publishNotReadyAddresses")
            self.assertEqual({part: made.body["spec"][part] for part in kept}, {part: spec[part] for part in kept})
            again = await self.ask("POST", path, document)
            self.assertEqual(again.refusal, (409, "AlreadyExists", 'services "web" already exists'))
            balanced = {**made.body, "status": {"loadBalancer": {"ingress": [{"ip": "192.168.1.43"}]}}}
            status = await self.ask("PUT", f"{path}/web/status", balanced)
            self.assertEqual(status.body["status"]["loadBalancer"], {"ingress": [{"ip": "192.168.1.43"}]})
            stale = await self.ask("PUT", f"{path}/web", made.body)
            self.assertEqual(
                stale.refusal, (409, "Conflict", f'Operation cannot be fulfilled on services "web": {CHANGED}')
            )
            listed = await self.ask("GET", f"{path}?limit=1&fieldSelector=metadata.name%3Dweb")
            self.assertEqual(listed.names, ["web"])
            refused = await self.ask("DELETE", f"{path}/web", {"preconditions": {"uid": "x"}})
            self.assertEqual(refused.refusal[:2], (409, "Conflict"))
            gone = await self.ask("DELETE", f"{path}/web")
            self.assertEqual(gone.status, 200)

        async def test_groups(self) -> None:
            """A server tells which groups and versions it has; another is not found."""
            group = await self.ask("GET", "/apis/coordination.k8s.io")
            self.assertIn({"groupVersion": "coordination.k8s.io/v1", "version": "v1"}, group.body["versions"])
            groups = await self.ask("GET", "/apis")
            self.assertLessEqual(
                {"coordination.k8s.io", "discovery.k8s.io"}, {each["name"] for each in groups.body["groups"]}
            )
            resources = await self.ask("GET", "/apis/coordination.k8s.io/v1")
            self.assertIn(("leases", "Lease"), [(each["name"], each["kind"]) for each in resources.body["resources"]])
            self.assertIn("v1", (await self.ask("GET", "/api")).body["versions"])
            for path in ("/apis/coordination.k8s.io/v9/leases", "/apis/coordination.k8s.io/v1/no-such"):
                self.assertEqual((await self.ask("GET", path)).refusal[:2], (404, "NotFound"))

        async def test_methods(self) -> None:
            """What is not done to a path is refused."""
            for method, path in (
                ("PUT", self.leases),
                ("POST", f"{self.leases}/a"),
                ("POST", "/apis/coordination.k8s.io/v1/leases"),
            ):
                said = await self.ask(method, path, lease("a"))
                self.assertEqual(said.refusal[:2], (405, "MethodNotAllowed"))
            elsewhere = await self.ask("GET", "/apis/coordination.k8s.io/v1/leases/a")
            self.assertEqual(elsewhere.refusal[:2], (404, "NotFound"))

    return KubernetesApiTests
