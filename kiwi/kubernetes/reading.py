"""
Reading what an API server says, field by field. Pure.

Nothing is taken on trust: text comes out of here only as a name that matches DNS-1123, or escaped and cut to length
inside a sentence for the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from attrs import define, field

N = TypeVar("N")

_MOST_PROBLEMS = 8
"""How many problems of one object are told one by one."""

_LABEL = "[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


def is_dns_name(text: str) -> bool:
    """Whether this is a DNS subdomain (RFC 1123, as Kubernetes reads it), as most names of objects are."""
    return _NAME.fullmatch(text) is not None


def quoted(text: str, limit: int = 100) -> str:
    """Text from outside in plain ASCII on one line, quoted, cut after C{limit} characters."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def shown(value: object) -> str:
    """A JSON value in a sentence."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    return text if len(text) <= 40 else text[:40] + "..."


@define
class Reader:
    """Reads fields that may be absent, null or of the wrong type, and gathers what is wrong with them."""

    _told: list[str] = field(factory=list, init=False)
    _untold: int = field(default=0, init=False)

    def complain(self, problem: str) -> None:
        if problem in self._told:
            return
        if len(self._told) < _MOST_PROBLEMS:
            self._told.append(problem)
        else:
            self._untold += 1

    def problems(self) -> tuple[str, ...]:
        return (*self._told, f"{self._untold} more problems") if self._untold else tuple(self._told)

    def text(self, holder: Mapping[str, Any], key: str) -> str:
        """A text; empty where there is none."""
        value = holder.get(key)
        if value is None or isinstance(value, str):
            return value or ""
        self.complain(f"its {key} is {shown(value)}, not a text")
        return ""

    def object(self, holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """An object; empty where there is none."""
        value = holder.get(key)
        if value is None or isinstance(value, dict):
            return value or {}
        self.complain(f"its {key} is {shown(value)}, not an object")
        return {}

    def list(self, holder: Mapping[str, Any], key: str) -> Iterable[Any]:
        """The elements of a list which are not null; none where there is no list."""
        value = holder.get(key)
        if value is None or isinstance(value, list):
            return [each for each in value or () if each is not None]
        self.complain(f"its {key} is {shown(value)}, not a list")
        return []

    def objects(self, holder: Mapping[str, Any], key: str) -> Iterable[Mapping[str, Any]]:
        """The objects in a list."""
        for each in self.list(holder, key):
            if isinstance(each, dict):
                yield each
            else:
                self.complain(f"{shown(each)} in its {key} is not an object")

    def flag(self, holder: Mapping[str, Any], key: str, default: bool) -> bool:
        """A truth value: the default where there is none, and false where it is something else."""
        value = holder.get(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.complain(f"its {key} is {shown(value)}, not true or false")
        return False

    def name(self, text: str) -> str | None:
        """The name of an object, if a server may give it."""
        if is_dns_name(text):
            return text
        self.complain(f"its name {quoted(text)} is not a DNS name" if text else "it has no name")
        return None

    def namespaced(self, make: Callable[[str, str], N], namespace: str, name: str) -> N | None:
        """The name of an object in a namespace, made of both, if a server may give them."""
        if self.name(name) is None:
            return None
        if not _NAMESPACE.fullmatch(namespace or "default"):
            self.complain(f"the namespace {quoted(namespace)} of {name} is not a DNS label")
            return None
        return make(namespace or "default", name)
