"""What a request is about, and whose it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from .objects import Refused

ANONYMOUS = "system:anonymous"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@frozen
class Access:
    """
    What somebody wants to do, as an API server's authorizer sees it.

    @ivar user: the name of the user, or L{ANONYMOUS}.
    @ivar verb: C{get}, C{list}, C{watch}, C{create}, C{update}, C{patch}, C{delete} or C{deletecollection}; for what is
        no resource, the method in small letters.
    @ivar group: the API group; empty for that of Services and Nodes.
    @ivar resource: its name in the plural; empty for what is no resource, such as C{/version}.
    @ivar subresource: C{status}, or empty.
    @ivar namespace: empty where it is about the whole cluster.
    @ivar name: of the one object that it is about, or empty.
    """

    user: str
    verb: str
    path: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def forbidden(self) -> Refused:
        """In the words of a real server."""
        if not self.resource:
            message = f'forbidden: User "{self.user}" cannot {self.verb} path "{self.path}"'
            return Refused(403, "Forbidden", message, details={})
        what = f"{self.resource}.{self.group}" if self.group else self.resource
        named = f'{what} "{self.name}"' if self.name else what
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        where = f'in the namespace "{self.namespace}"' if self.namespace else "at the cluster scope"
        details = {
            **({"name": self.name} if self.name else {}),
            **({"group": self.group} if self.group else {}),
            "kind": self.resource,
        }
        message = (
            f'{named} is forbidden: User "{self.user}" cannot {self.verb} resource "{resource}" '
            f'in API group "{self.group}" {where}'
        )
        return Refused(403, "Forbidden", message, details=details)


Authorizer = Callable[[Access], bool]


def known_users(access: Access) -> bool:
    """Lets everybody do everything who says who it is."""
    return access.user != ANONYMOUS


def user_of(request: Any, tokens: Mapping[str, str] | None) -> str:
    """
    Who asks.

    @param tokens: users by their bearer tokens; C{None} where everybody is let in.
    @raise Refused: for a token that is not known. A request without one is L{ANONYMOUS}'s.
    """
    if tokens is None:
        return "admin"
    header = request.getHeader("Authorization") or ""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        return ANONYMOUS
    if token not in tokens:
        raise Refused(401, "Unauthorized", "Unauthorized")
    return tokens[token]


def read_access(user: str, method: str, path: str, arguments: Mapping[str, str]) -> Access:
    """What a request is about; C{arguments} are those of its query."""
    group, version, rest = "", "", [""]
    match path.strip("/").split("/"):
        case ["api", version, *rest]:
            pass
        case ["apis", group, version, *rest]:
            pass
    if not any(rest):
        return Access(user, method.lower(), path)
    watching = arguments.get("watch") in ("true", "1")
    if rest[0] == "watch":
        watching, rest = True, rest[1:]
    namespace = ""
    match rest:
        case ["namespaces", namespace, part, *_] if part != "status":
            rest = rest[2:]
    if version == "v1beta1" and not group:
        namespace = namespace or arguments.get("namespace", "")
    resource, name, subresource = (*rest[:3], "", "", "")[:3]
    if method in ("GET", "HEAD"):
        verb = "get" if name else "watch" if watching else "list"
    else:
        verb = _VERBS.get(method, method.lower())
        if verb == "delete" and not name:
            verb = "deletecollection"
    if verb in ("list", "watch", "deletecollection"):
        named = arguments.get("fieldSelector", "").replace("==", "=").partition("metadata.name=")[2]
        name = named.partition(",")[0]
    return Access(user, verb, path, group, version, resource, subresource, namespace, name)
