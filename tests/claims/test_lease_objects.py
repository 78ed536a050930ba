"""Claims and agents as documents: what is written can be read, and nothing that is read does harm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.claims.lease_objects import (
    HISTORY,
    LONGEST_TTL,
    LOSS,
    AgentLease,
    ClaimLease,
    HistoryLease,
    Identity,
    LossLease,
    Strange,
    agent_lease_name,
    delete_options,
    has_gone_back,
    number,
    read_lease,
    time_text,
    write_agent,
    write_claim,
    write_history,
    write_loss,
)
from kiwi.model import AgentRecord, ip

NOW = "2026-11-25T14:05:00.123456Z"
MADE = Identity("uid-1", "7")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

ids = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", fullmatch=True)
"""What C{--agent-id} allows."""

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
records = st.builds(AgentRecord, ids, texts, texts, texts, st.booleans())
addresses = st.ip_addresses().map(lambda address: ip(address.packed))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


def made(document: dict[str, Any], identity: Identity = MADE) -> dict[str, Any]:
    """A document as a server has it."""
    metadata = {**document["metadata"], "uid": identity.uid, "resourceVersion": identity.version}
    return {**document, "metadata": metadata}


class NameTests(SynchronousTestCase):
    """The names of agents' Leases."""

    def test_readable(self) -> None:
        """An id that can be a name is one; of all others as much as can be."""
        self.assertEqual(agent_lease_name("node-1.example.org"), "agent.node-1.example.org")
        self.assertEqual(agent_lease_name("Node_1"), "agent.node-1-f147816e0a78bf4f")

    @given(ids)
    @example("a" * 247)
    @example("a" * 248)
    @example("a" * 64)
    @example("a..b")
    @example("A")
    @example("A" * 39 + "-A")
    def test_are_subdomains(self, agent_id: str) -> None:
        """Each is what the API takes for a name, and a claim can never have it."""
        name = agent_lease_name(agent_id)
        self.assertRegex(name, rf"\A{SUBDOMAIN.pattern}\Z")
        self.assertLessEqual(len(name), 253)
        self.assertTrue(name.startswith("agent."))

    @given(st.lists(ids | st.from_regex(r"[aA]{1,3}[._-]?[aA]", fullmatch=True), unique=True, max_size=20))
    @example(["aa", "AA", "a_a", "a-a", "a.a"])
    @example(["x" * 252 + "1", "x" * 252 + "2"])
    def test_differ(self, some: list[str]) -> None:
        """No two agents share one."""
        self.assertEqual(len({agent_lease_name(agent_id) for agent_id in some}), len(some))


class WriteTests(SynchronousTestCase):
    """What is written, and read again."""

    def test_agent(self) -> None:
        """The Lease of an agent, as C{kubectl} shows it."""
        record = AgentRecord("node-1", "node-1", "place", "first")
        document = write_agent("kiwi", record, 10, NOW)
        self.assertEqual(
            document,
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": "agent.node-1",
                    "namespace": "kiwi",
                    "labels": {"app.kubernetes.io/managed-by": "kiwi"},
                    "annotations": {"kiwi/record": '{"host":"node-1","place":"place","instance":"first"}'},
                },
                "spec": {"holderIdentity": "node-1", "leaseDurationSeconds": 10, "renewTime": NOW},
            },
        )
        changed = write_agent("kiwi", record, 10, NOW, MADE)
        self.assertEqual(changed["metadata"], {**document["metadata"], "uid": "uid-1", "resourceVersion": "7"})

    def test_claim(self) -> None:
        """A claim says who has it, on which session, and how often it went from one agent to another."""
        document = write_claim("kiwi", ip("192.168.1.41"), "a", "session", 10, NOW)
        self.assertEqual(
            document,
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": "192.168.1.41",
                    "namespace": "kiwi",
                    "labels": {"app.kubernetes.io/managed-by": "kiwi"},
                    "annotations": {"kiwi/session": "session"},
                },
                "spec": {"holderIdentity": "a", "leaseDurationSeconds": 10, "acquireTime": NOW, "leaseTransitions": 0},
            },
        )
        over = ClaimLease(ip("192.168.1.41"), MADE, "a", "session", 10.0, 3)
        for holder, transitions in {"a": 3, "b": 4}.items():
            again = write_claim("kiwi", over.address, holder, "another", 10, NOW, over)
            self.assertEqual(again["spec"]["leaseTransitions"], transitions)
            self.assertEqual((again["metadata"]["uid"], again["metadata"]["resourceVersion"]), ("uid-1", "7"))

    def test_deletion(self) -> None:
        """What is deleted is one state of one object."""
        self.assertEqual(
            delete_options(MADE),
            {
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "preconditions": {"uid": "uid-1", "resourceVersion": "7"},
            },
        )

    @given(records, st.integers(1, LONGEST_TTL))
    def test_agents_are_read_again(self, record: AgentRecord, ttl: int) -> None:
        """An agent's Lease says what was written."""
        lease = read_lease(made(write_agent("kiwi", record, ttl, NOW)))
        self.assertEqual(lease, AgentLease(agent_lease_name(record.id), MADE, record.id, ttl, NOW, record))

    @given(addresses, ids, ids, st.integers(1, LONGEST_TTL))
    def test_claims_are_read_again(self, address: Any, holder: str, session: str, ttl: int) -> None:
        """So does a claim."""
        lease = read_lease(made(write_claim("kiwi", address, holder, session, ttl, NOW)))
        self.assertEqual(lease, ClaimLease(address, MADE, holder, session, ttl))

    def test_others_are_read_again(self) -> None:
        """So do the two others."""
        self.assertEqual(read_lease(made(write_history("kiwi", NOW))), HistoryLease(MADE))
        self.assertEqual(read_lease(made(write_loss("kiwi", "a", 10, NOW))), LossLease(MADE, 10.0))


class ReadTests(SynchronousTestCase):
    """What somebody else has written."""

    def test_strange(self) -> None:
        """What is none of Kiwi's, or makes no sense, says why."""
        holder = {"holderIdentity": "a"}
        foreign = "it names neither an agent nor an address, or not in the usual form"
        for name, spec, noted, why in [
            ("kube-scheduler", holder, {}, foreign),
            ("fd00::1", holder, {"kiwi/session": "s"}, foreign),
            ("192.168.1.999", holder, {"kiwi/session": "s"}, foreign),
            ("192.168.001.1", holder, {"kiwi/session": "s"}, foreign),
            ("192.168.1.1", holder, {}, "it does not say who has the address"),
            ("192.168.1.1", {}, {"kiwi/session": "s"}, "it does not say who has the address"),
            ("agent.a", {}, {}, "its holder is nobody, not the agent it is named for"),
            ("agent.a", {"holderIdentity": "b"}, {}, "its holder is b, not the agent it is named for"),
            ("agent.a", {"holderIdentity": "\x1b[31m"}, {}, "its holder is \\x1b[31m, not the agent it is named for"),
        ]:
            document = made({"metadata": {"name": name, "annotations": noted}, "spec": spec})
            self.assertEqual(read_lease(document), Strange(name, MADE, why))

    def test_unnamed(self) -> None:
        """What has no name, uid or version is nothing."""
        for metadata in ({}, {"name": "a"}, {"name": "a", "uid": "u"}, {"uid": "u", "resourceVersion": "1"}):
            lease = read_lease({"metadata": metadata})
            assert isinstance(lease, Strange), lease
            self.assertEqual(lease.why, "it has no name, uid or resourceVersion")

    def test_duration(self) -> None:
        """A Lease that does not say how long it lasts lasts for long, for nothing may be taken too early."""
        record = AgentRecord("a", "host", "place", "1")
        for said, lasts in {
            10: 10.0,
            LONGEST_TTL: LONGEST_TTL,
            **dict.fromkeys((0, -1, LONGEST_TTL + 1, True, "10", 2.5, None), float(LONGEST_TTL)),
        }.items():
            document = made(write_agent("kiwi", record, 10, NOW))
            document["spec"] = {**document["spec"], "leaseDurationSeconds": said}
            lease = read_lease(document)
            assert isinstance(lease, AgentLease)
            self.assertEqual(lease.ttl, lasts, said)

    def test_spoiled_record(self) -> None:
        """An agent whose annotation makes no sense is one of which nothing is known."""
        document = made(write_agent("kiwi", AgentRecord("a", "host", "place", "1"), 10, NOW))
        spoiled: Sequence[Any] = ({}, {"kiwi/record": "{"}, {"kiwi/record": 1}, None, [])
        for noted in spoiled:
            document["metadata"] = {**document["metadata"], "annotations": noted}
            self.assertEqual(read_lease(document), AgentLease("agent.a", MADE, "a", 10.0, NOW, None))

    def test_transitions(self) -> None:
        """How often a claim went over is for people, and whatever makes no sense is 0."""
        document = made(write_claim("kiwi", ip("192.168.1.41"), "a", "s", 10, NOW))
        for said, read in {3: 3, **dict.fromkeys((-1, 2**31, "3", None), 0)}.items():
            document["spec"] = {**document["spec"], "leaseTransitions": said}
            self.assertEqual(read_lease(document), ClaimLease(ip("192.168.1.41"), MADE, "a", "s", 10.0, read))

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                "metadata": json_values
                | st.fixed_dictionaries(
                    {
                        "name": json_values | st.sampled_from(["agent.a", "192.168.1.41", HISTORY, LOSS]),
                        "uid": json_values | st.just("u"),
                        "resourceVersion": json_values | st.just("1"),
                    },
                    optional={
                        "annotations": json_values
                        | st.dictionaries(st.sampled_from(["kiwi/record", "kiwi/session"]), json_values)
                    },
                ),
                "spec": json_values
                | st.dictionaries(
                    st.sampled_from(["holderIdentity", "leaseDurationSeconds", "renewTime", "leaseTransitions"]),
                    json_values | st.just("a"),
                ),
            },
        )
    )
    def test_anything(self, document: dict[str, Any]) -> None:
        """Whatever JSON is there, it is read; and what is told of it can be printed."""
        lease = read_lease(document)
        if isinstance(lease, Strange):
            self.assertTrue(lease.why.isprintable())


class VersionTests(SynchronousTestCase):
    """Resource versions, which are compared where that is possible."""

    def test_number(self) -> None:
        """Numbers are; all else is not."""
        numbers = {text: number(text) for text in ("0", "17", "9" * 19, "9" * 20, "", "-1", "1.0", "x", "٣", " 1")}
        self.assertEqual({t: n for t, n in numbers.items() if n is not None}, {"0": 0, "17": 17, "9" * 19: 10**19 - 1})

    def test_gone_back(self) -> None:
        """A Lease has gone back where it is the same object with a lower version."""
        before = HistoryLease(Identity("u", "7"))
        for uid, version, has in [
            ("u", "6", True),
            ("u", "7", False),
            ("u", "10", False),
            ("v", "6", False),
        ]:
            self.assertEqual(has_gone_back(before, HistoryLease(Identity(uid, version))), has)
        self.assertFalse(has_gone_back(HistoryLease(Identity("u", "b")), HistoryLease(Identity("u", "a"))))

    def test_time(self) -> None:
        """A moment as the API has it, with microseconds always."""
        self.assertEqual(time_text(0), "1970-01-01T00:00:00.000000Z")
        self.assertEqual(time_text(1764079500.25), "2025-11-25T14:05:00.250000Z")
