"""What an agent tells of itself, as the text that a store keeps. Pure; what is read is not trusted."""

from __future__ import annotations

import json
from typing import Any

from kiwi.model import AgentRecord


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
    node = raw.get("node")
    return AgentRecord(
        agent_id,
        host,
        place,
        instance,
        leaving=raw.get("leaving") is True,
        node=node if isinstance(node, str) else "",
        standby=raw.get("standby") is True,
    )
