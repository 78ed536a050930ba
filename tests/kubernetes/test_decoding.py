"""Decoding is bytes in, values out."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.kubernetes.decoding import (
    Bookmark,
    Changed,
    Decoded,
    Deleted,
    Expired,
    Kind,
    Listed,
    Nonsense,
    ServerError,
    decode_event,
    decode_list,
)
from kiwi.kubernetes.endpoints import ENDPOINT_SLICES
from kiwi.kubernetes.nodes import NODES
from kiwi.kubernetes.services import SERVICES
from kiwi.model import Service, ServiceName
from tests.fakes.kubernetes import encode

from .anything import check_problems, objects, unhurried

WEB = ServiceName("default", "web")
A = IPv4Address("192.168.1.41")
SPEC = {"externalIPs": [str(A)]}
KINDS = st.sampled_from([(kind, version) for kind in (SERVICES, ENDPOINT_SLICES, NODES) for version in kind.versions])
WEB_NOW: Decoded[ServiceName, Service] = Decoded(WEB, Service(WEB, frozenset(), (A,)))


class KindTests(SynchronousTestCase):
    """Kinds of objects."""

    def test_paths(self) -> None:
        """The oldest group of the API has no name, and a path of its own."""
        self.assertEqual(
            [SERVICES.path("v1beta1"), ENDPOINT_SLICES.path("v1"), NODES.path("v1")],
            ["/api/v1beta1/services", "/apis/discovery.k8s.io/v1/endpointslices", "/api/v1/nodes"],
        )

    def test_flat(self) -> None:
        """Only that group has ever been flat."""
        for kind, expected in ((SERVICES, "7"), (ENDPOINT_SLICES, "8")):
            body = encode({"resourceVersion": 7, "metadata": {"resourceVersion": "8"}, "items": []})
            self.assertEqual(decode_list(kind, "v1beta1", body), Listed((), expected))


class ListTests(SynchronousTestCase):
    """Lists."""

    def test_items(self) -> None:
        """Items have neither kind nor version, and the list says where to watch from."""
        items = [{"metadata": {"name": "web", "resourceVersion": "3"}, "spec": SPEC}, 7]
        body = encode({"kind": "ServiceList", "metadata": {"resourceVersion": "12"}, "items": items})
        self.assertEqual(
            decode_list(SERVICES, "v1", body), Listed((WEB_NOW, Decoded(None, None, ("it is 7, not an object",))), "12")
        )

    def test_flat(self) -> None:
        """The oldest version has its resource version as a number at the top."""
        body = encode({"kind": "ServiceList", "resourceVersion": 12, "items": [{"id": "web", "publicIPs": [str(A)]}]})
        self.assertEqual(decode_list(SERVICES, "v1beta1", body), Listed((WEB_NOW,), "12"))

    def test_empty(self) -> None:
        """Go writes an empty list as null."""
        for items in (list[object](), None):
            body = encode({"kind": "ServiceList", "metadata": {"resourceVersion": "12"}, "items": items})
            self.assertEqual(decode_list(SERVICES, "v1", body), Listed((), "12"))

    def test_resource_version(self) -> None:
        """A resource version that cannot be one is none."""
        for bad in ("1&watch=false", "a" * 200, "", 12, None, ["12"]):
            body = encode({"metadata": {"resourceVersion": bad}, "items": []})
            self.assertEqual(decode_list(SERVICES, "v1", body), Listed((), ""))
        for number in ("12", -1, True, 1.5):
            self.assertEqual(
                decode_list(SERVICES, "v1beta1", encode({"resourceVersion": number, "items": []})), Listed((), "")
            )

    def test_nonsense(self) -> None:
        """What is no list is not taken for an empty one."""
        for body, problem in (
            (b"", "it is not JSON: ''"),
            (b"<html>", "it is not JSON: '<html>'"),
            (b"\xff{}", "it is not UTF-8: '\\xff{}'"),
            (b"[]", "it is a list, not an object"),
            (b"{}", "it has no list of items"),
            (b'{"kind":"ServiceList","items":{}}', "it has no list of items"),
            (b'{"items":null}', "it has no list of items"),
            (b'{"kind":"Status","items":[]}', "its kind is 'Status', not ServiceList"),
            (b"[" * 100_000, f"it is not JSON: '{'[' * 100}...'"),
        ):
            self.assertEqual(decode_list(SERVICES, "v1", body), Nonsense(problem))


class EventTests(SynchronousTestCase):
    """Lines of a watch."""

    OBJECT: dict[str, Any] = {"kind": "Service", "metadata": {"name": "web", "resourceVersion": "7"}, "spec": SPEC}

    def event(self, kind: object, document: object) -> object:
        return decode_event(SERVICES, "v1", encode({"type": kind, "object": document}))

    def test_kinds(self) -> None:
        """Services come, change and go."""
        self.assertEqual(self.event("ADDED", self.OBJECT), Changed(WEB_NOW, "7"))
        self.assertEqual(self.event("MODIFIED", self.OBJECT), Changed(WEB_NOW, "7"))
        self.assertEqual(self.event("DELETED", self.OBJECT), Deleted(WEB, "7"))

    def test_flat(self) -> None:
        """The oldest version has the resource version as a number."""
        line = encode({"type": "ADDED", "object": {"id": "web", "publicIPs": [str(A)], "resourceVersion": 7}})
        self.assertEqual(decode_event(SERVICES, "v1beta1", line), Changed(WEB_NOW, "7"))

    def test_bookmark(self) -> None:
        """A bookmark is a resource version."""
        self.assertEqual(self.event("BOOKMARK", {"metadata": {"resourceVersion": "9"}}), Bookmark("9"))
        self.assertEqual(self.event("BOOKMARK", {}), Nonsense("a bookmark has no resourceVersion"))

    def test_errors(self) -> None:
        """A version that has expired is one kind of error."""
        self.assertEqual(self.event("ERROR", {"kind": "Status", "code": 410}), Expired())
        self.assertEqual(self.event("ERROR", {"kind": "Status", "reason": "Expired"}), Expired())
        error = {"kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd\nis away" + "!" * 1000}
        self.assertEqual(self.event("ERROR", error), ServerError(ascii(f"InternalError: etcd\nis away{'!' * 173}...")))
        self.assertEqual(self.event("ERROR", {}), ServerError("it does not say why"))

    def test_refused(self) -> None:
        """A Service that is refused still tells how far the watch is."""
        document = {"metadata": {"name": "W", "resourceVersion": "8"}}
        self.assertEqual(
            self.event("ADDED", document), Changed(Decoded(None, None, ("its name 'W' is not a DNS name",)), "8")
        )

    def test_nonsense(self) -> None:
        """What is no event is told in short."""
        for line, problem in (
            (b'{"type":"ADDED","obj', """it is not JSON: '{"type":"ADDED","obj'"""),
            (b"\xc3(", "it is not UTF-8: '\\xc3('"),
            (b"7", "it is 7, not an object"),
            (b"null", "it is None, not an object"),
            (b"{}", "an event of type None has no object"),
            (b'{"type":"ADDED","object":null}', "an event of type 'ADDED' has no object"),
            (b'{"type":"SYNC","object":{}}', "events of type 'SYNC' are unknown"),
            (b'{"type":["ADDED"],"object":{}}', "events of type a list are unknown"),
            (b'{"type":"DELETED","object":{"metadata":{}}}', "what was deleted is no Service: it has no name"),
        ):
            self.assertEqual(decode_event(SERVICES, "v1", line), Nonsense(problem))


class PropertyTests(SynchronousTestCase):
    """What holds for everything that a server could say."""

    @unhurried
    @given(KINDS, objects, st.binary(max_size=3), st.integers(0, 100))
    def test_lines(self, spoken: tuple[Kind, str], document: dict[str, Any], junk: bytes, cut: int) -> None:
        """No line is too much either, whole, cut or broken."""
        line = json.dumps(document).encode()
        for each in (line, line[:cut], line[:cut] + junk + line[cut:], junk):
            event = decode_event(*spoken, each)
            if isinstance(event, Changed):
                check_problems(self, event.decoded)
            listed = decode_list(*spoken, each)
            if isinstance(listed, Listed):
                for decoded in listed.items:
                    check_problems(self, decoded)
