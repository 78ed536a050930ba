"""What an agent tells of itself, as the text that a store keeps. Pure; what is read is not trusted."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

from kiwi.model import AgentRecord, Network


def parsed(text: bytes) -> Any:
    """JSON; or L{ValueError} for whatever is not."""
    try:
        return json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_record(record: AgentRecord) -> str:
    """The value that tells of an agent. Equal records are equal texts. What is as it mostly is, is not written."""
    told: dict[str, object] = {"host": record.host, "place": record.place, "instance": record.instance}
    if record.leaving:
        told["leaving"] = True
    if record.node:
        told["node"] = record.node
    if record.standby:
        told["standby"] = True
    if record.networks is not None:
        told["networks"] = [str(network) for network in record.networks]
    return json.dumps(told, separators=(",", ":"))


def read_record(agent_id: str, text: str) -> AgentRecord | None:
    """What a value tells of an agent, or C{None}."""
    try:
        raw = parsed(text.encode("utf-8"))
    except ValueError:
        return None
    if not isinstance(raw, dict):
        return None
    host, place, instance = (raw.get(name) for name in ("host", "place", "instance"))
    if not (isinstance(host, str) and isinstance(place, str) and isinstance(instance, str)):
        return None
    node, networks = raw.get("node"), raw.get("networks")
    return AgentRecord(
        agent_id,
        host,
        place,
        instance,
        leaving=raw.get("leaving") is True,
        node=node if isinstance(node, str) else "",
        standby=raw.get("standby") is True,
        networks=_networks(networks) if isinstance(networks, list) else None,
    )


def _networks(raw: list[Any]) -> tuple[Network, ...] | None:
    """Networks; C{None} where one of them is none: then nobody can tell what the agent may carry."""
    if not all(isinstance(text, str) for text in raw):
        return None
    try:
        return tuple(map(ip_network, raw))
    except ValueError:
        return None
