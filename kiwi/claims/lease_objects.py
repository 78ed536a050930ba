"""
The Leases that agents and claims are, as documents of C{coordination.k8s.io/v1}. Pure; what is read is not trusted.

In one namespace there are:

 - C{agent.<id>}, the Lease of an agent, which it writes anew all the time. C{holderIdentity} is its id, C{renewTime}
   the time of day for people, and an annotation what the agent tells of itself, as JSON;
 - C{<address>}, a claim; for IPv6 with all eight groups and dashes between them, C{fd00-0-0-0-0-0-0-29}.
   C{holderIdentity} is the id of the agent that has it, and an annotation the uid of the agent's Lease on which it
   depends (Note [Sessions] in L{kiwi.claims.leases});
 - C{history} and C{lost} (Note [A store that forgets] in L{kiwi.claims.leases}).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from hashlib import blake2b
from typing import Any

from attrs import frozen

from kiwi.logs import printable
from kiwi.model import Address, AgentRecord, ip

from .records import read_record, write_record

GROUP, VERSION = "coordination.k8s.io", "v1"
HISTORY, LOSS = "history", "lost"
"""The names of two Leases of which there is one each."""

RECORD, SESSION = "kiwi/record", "kiwi/session"
"""Annotations."""

LABELS = {"app.kubernetes.io/managed-by": "kiwi"}

LONGEST_TTL = 86400

_AGENT = "agent."
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")


@frozen
class Identity:
    """
    One state of one object.

    @ivar uid: never the same again, also if an object of this name is made anew.
    @ivar version: its resource version, which each change changes.
    """

    uid: str
    version: str


@frozen
class AgentLease:
    """
    The Lease of an agent.

    @ivar ttl: seconds that it lasts from each change.
    @ivar renewed: the text of C{renewTime}, which no two changes have in common.
    @ivar record: C{None} where it is not readable.
    """

    name: str
    identity: Identity
    agent_id: str
    ttl: float
    renewed: str
    record: AgentRecord | None


@frozen
class ClaimLease:
    """
    A claim.

    @ivar session: the uid of the Lease of the agent that has it.
    @ivar ttl: of that Lease, in seconds.
    """

    address: Address
    identity: Identity
    holder: str
    session: str
    ttl: float
    transitions: int = 0

    @property
    def name(self) -> str:
        return claim_lease_name(self.address)


@frozen
class HistoryLease:
    """Its uid names what the store knows."""

    identity: Identity
    name: str = HISTORY


@frozen
class LossLease:
    """Some agent has found that the store has lost its data. It is gone like the Lease of an agent that has died."""

    identity: Identity
    ttl: float
    name: str = LOSS


@frozen
class Strange:
    """A Lease that is none of Kiwi's, or that cannot be read, and why."""

    name: str
    identity: Identity
    why: str


Lease = AgentLease | ClaimLease | HistoryLease | LossLease | Strange


def agent_lease_name(agent_id: str) -> str:
    """
    The name of an agent's Lease, which must be a DNS subdomain: the id itself where it is one, or else as much of it as
    can be, and a digest of it.
    """
    if len(agent_id) + len(_AGENT) <= 253 and _SUBDOMAIN.fullmatch(agent_id):
        return _AGENT + agent_id
    legible = re.sub(r"[^a-z0-9]+", "-", agent_id.lower()).strip("-")[:40].rstrip("-")
    return f"{_AGENT}{legible}-{blake2b(agent_id.encode(), digest_size=8).hexdigest()}"


def claim_lease_name(address: Address) -> str:
    """The name of a claim's Lease, which must be a DNS subdomain: no colons, and no dash at an end."""
    if address.version == 4:
        return str(address)
    return "-".join(f"{int(group, 16):x}" for group in address.exploded.split(":"))


def address_of(name: str) -> Address:
    """The address that a claim's Lease is for. Raises L{ValueError} where no agent would give it this name."""
    address = ip(name.replace("-", ":"))
    if claim_lease_name(address) != name:
        raise ValueError(f"{name!r} is not the name of a claim to {address}")
    return address


def number(version: str) -> int | None:
    """
    A resource version as a number that grows with each change of anything in the cluster, which it is wherever the API
    server keeps its data in etcd (and by definition from Kubernetes 1.35 on); C{None} where it is something else.
    """
    return int(version) if version.isascii() and version.isdigit() and len(version) < 20 else None


def has_gone_back(before: Lease, now: Lease) -> bool:
    """Whether this is one and the same Lease, and now in an earlier state than before."""
    is_same = before.identity.uid == now.identity.uid
    return is_same and (number(now.identity.version) or 0) < (number(before.identity.version) or 0)


def read_lease(document: Mapping[str, Any]) -> Lease:
    """What a Lease is to Kiwi."""
    metadata, spec = _mapping(document.get("metadata")), _mapping(document.get("spec"))
    name = _text(metadata.get("name"))
    identity = Identity(_text(metadata.get("uid")), _text(metadata.get("resourceVersion")))
    annotations = _mapping(metadata.get("annotations"))
    holder = _text(spec.get("holderIdentity"))
    if not name or not identity.uid or not identity.version:
        return Strange(name, identity, "it has no name, uid or resourceVersion")
    if name == HISTORY:
        return HistoryLease(identity)
    if name == LOSS:
        return LossLease(identity, _ttl(spec))
    if name.startswith(_AGENT):
        if not holder or agent_lease_name(holder) != name:
            return Strange(
                name, identity, f"its holder is {printable(holder) or 'nobody'}, not the agent it is named for"
            )
        record = read_record(holder, _text(annotations.get(RECORD)))
        return AgentLease(name, identity, holder, _ttl(spec), _text(spec.get("renewTime")), record)
    try:
        address = address_of(name)
    except ValueError:
        return Strange(name, identity, "it names neither an agent nor an address, or not in the usual form")
    session = _text(annotations.get(SESSION))
    if not holder or not session:
        return Strange(name, identity, "it does not say who has the address")
    transitions = spec.get("leaseTransitions")
    if not (isinstance(transitions, int) and 0 <= transitions < 2**31 - 1):
        transitions = 0
    return ClaimLease(address, identity, holder, session, _ttl(spec), transitions)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _ttl(spec: Mapping[str, Any]) -> float:
    """Seconds; the longest there are where a Lease does not say, since nothing may be taken too early."""
    value = spec.get("leaseDurationSeconds")
    return float(value) if type(value) is int and 0 < value <= LONGEST_TTL else float(LONGEST_TTL)


def time_text(seconds: float) -> str:
    """A moment, in seconds since the epoch, as the API's C{MicroTime}."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def write_agent(
    namespace: str, record: AgentRecord, ttl: int, now: str, over: Identity | None = None
) -> dict[str, Any]:
    """
    The Lease of an agent.

    @param over: the state that it replaces.
    """
    spec = {"holderIdentity": record.id, "leaseDurationSeconds": ttl, "renewTime": now}
    return _document(namespace, agent_lease_name(record.id), spec, {RECORD: write_record(record)}, over)


def write_claim(
    namespace: str, address: Address, holder: str, session: str, ttl: int, now: str, over: ClaimLease | None = None
) -> dict[str, Any]:
    """
    A claim.

    @param ttl: of the session; the claim itself needs no renewal.

    @param over: the one that it replaces.
    """
    transitions = 0 if over is None else over.transitions + (over.holder != holder)
    spec = {
        "holderIdentity": holder,
        "leaseDurationSeconds": ttl,
        "acquireTime": now,
        "leaseTransitions": transitions,
    }
    return _document(namespace, claim_lease_name(address), spec, {SESSION: session}, over.identity if over else None)


def write_history(namespace: str, now: str) -> dict[str, Any]:
    return _document(namespace, HISTORY, {"holderIdentity": "kiwi", "acquireTime": now}, {}, None)


def write_loss(namespace: str, reporter: str, ttl: int, now: str) -> dict[str, Any]:
    spec = {"holderIdentity": reporter, "leaseDurationSeconds": ttl, "acquireTime": now, "renewTime": now}
    return _document(namespace, LOSS, spec, {}, None)


def _document(
    namespace: str, name: str, spec: Mapping[str, Any], annotations: Mapping[str, str], over: Identity | None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": LABELS}
    if annotations:
        metadata["annotations"] = annotations
    if over is not None:
        metadata |= {"uid": over.uid, "resourceVersion": over.version}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Lease", "metadata": metadata, "spec": spec}


def delete_options(identity: Identity) -> dict[str, Any]:
    """Delete this state and no other."""
    return {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": identity.uid, "resourceVersion": identity.version},
    }
