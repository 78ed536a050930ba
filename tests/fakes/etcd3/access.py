"""Who may do what, where etcd asks."""

from __future__ import annotations

from attrs import define, field, frozen

from .store import DENIED, INVALID, PRECONDITION, UNAUTHENTICATED, DeleteRange, Put, Range, Refused

TOKEN_TTL = 300.0
"""Seconds for which a token lasts that nobody uses."""

WRONG = (INVALID, "etcdserver: authentication failed, invalid user ID or password")
BAD_TOKEN = (UNAUTHENTICATED, "etcdserver: invalid auth token")


@frozen
class Permission:
    key: bytes
    end: bytes
    reads: bool
    writes: bool

    def covers(self, key: bytes, end: bytes) -> bool:
        if not end:
            return self.key == key if not self.end else self.key <= key and (self.end == b"\0" or key < self.end)
        return bool(self.end) and self.key <= key and (self.end == b"\0" or (end != b"\0" and end <= self.end))


@define(eq=False)
class Access:
    """
    Users, their roles, and the tokens that were given to them.

    @ivar enabled: it is asked who somebody is.
    """

    enabled: bool = field(default=False, init=False)
    users: dict[str, str] = field(factory=dict, init=False)
    grants: dict[str, set[str]] = field(factory=dict, init=False)
    roles: dict[str, list[Permission]] = field(factory=dict, init=False)
    _tokens: dict[str, tuple[str, float]] = field(factory=dict, init=False)
    _given: int = field(default=0, init=False)

    def authenticate(self, name: str, password: str, now: float) -> str:
        """A new token."""
        if not self.enabled:
            raise Refused(PRECONDITION, "etcdserver: authentication is not enabled")
        if name not in self.users or self.users[name] != password:
            raise Refused(*WRONG)
        self._given += 1
        token = f"abcdefghijklmnop.{self._given}"
        self._tokens[token] = (name, now + TOKEN_TTL)
        return token

    def user_of(self, token: str | None, now: float) -> str | None:
        """Whose token it is; nobody's without one. A token is looked at even where nobody is asked for one."""
        if token is None:
            return None
        name, expires = self._tokens.get(token, ("", 0.0))
        if expires <= now:
            raise Refused(*BAD_TOKEN)
        self._tokens[token] = (name, now + TOKEN_TTL)
        return name

    def check(self, user: str | None, operation: Put | Range | DeleteRange) -> None:
        if not self.enabled:
            return
        if user is None:
            raise Refused(INVALID, "etcdserver: user name is empty")
        writes = isinstance(operation, Put | DeleteRange)
        reads = not writes or operation.prev_kv  # type: ignore[union-attr]
        end = b"" if isinstance(operation, Put) else operation.end
        if "root" not in self.grants[user]:
            permissions = [each for role in self.grants[user] for each in self.roles.get(role, ())]
            covering = [each for each in permissions if each.covers(operation.key, end)]
            if (writes and not any(each.writes for each in covering)) or (
                reads and not any(each.reads for each in covering)
            ):
                raise Refused(DENIED, "etcdserver: permission denied")

    def administer(self, user: str | None) -> None:
        if self.enabled and (user is None or "root" not in self.grants[user]):
            raise Refused(DENIED, "etcdserver: permission denied")

    def forget_tokens(self, of: str | None = None) -> None:
        """Of one user, or all: they live in the memory of the members."""
        self._tokens = {token: (name, ends) for token, (name, ends) in self._tokens.items() if of not in (None, name)}

    # What an administrator asks for.

    def add_user(self, name: str, password: str) -> None:
        if name in self.users:
            raise Refused(PRECONDITION, "etcdserver: user name already exists")
        self.users[name], self.grants[name] = password, set()

    def change_password(self, name: str, password: str) -> None:
        self._user(name)
        self.users[name] = password
        self.forget_tokens(name)

    def delete_user(self, name: str) -> None:
        self._user(name)
        del self.users[name], self.grants[name]
        self.forget_tokens(name)

    def grant(self, name: str, role: str) -> None:
        self._user(name)
        self.grants[name].add(role)

    def add_role(self, name: str) -> None:
        if name in self.roles:
            raise Refused(PRECONDITION, "etcdserver: role name already exists")
        self.roles[name] = []

    def delete_role(self, name: str) -> None:
        self.roles.pop(name, None)
        for granted in self.grants.values():
            granted.discard(name)

    def enable(self) -> None:
        if "root" not in self.grants.get("root", ()):
            raise Refused(PRECONDITION, "etcdserver: root user does not have root role")
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False
        self.forget_tokens()

    def _user(self, name: str) -> None:
        if name not in self.users:
            raise Refused(PRECONDITION, "etcdserver: user name not found")
