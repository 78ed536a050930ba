"""A real etcd that asks for a certificate and, once that is wanted, for a password."""

from __future__ import annotations

import atexit
import json
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from attrs import define, field

from .authorities import Issued, authority
from .etcd_process import EtcdProcess, etcd_binaries, serving_v2

ROOT = "root-password"


@define(eq=False)
class SecureEtcd(EtcdProcess):
    """
    One server over TLS (C{--client-cert-auth}), whose clients need a certificate of its authority.

    @ivar authority: signs the server's certificate and those of clients.
    @ivar also_at: other hosts that the server's certificate is for.
    @ivar token_ttl: seconds after which a token of v3 ends that is not used, where that can be chosen (etcd 3.5).
    """

    authority: Issued = field(factory=lambda: authority("etcd-ca"))
    also_at: Sequence[str] = ()
    token_ttl: int | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        # It is good for clients, too: the gateway of v3 shows it to the server itself.
        self.write("server", self.authority.issue("server", self.host, "localhost", *self.also_at))
        # Where there are users, v2 takes a common name for the user, and the gateway of v3 takes no common name.
        self.write("client", self.authority.issue(""))
        self.write("named", self.authority.issue("agent"))
        self.write("stranger", self.authority.issue("stranger"))
        self.path("ca.pem").write_bytes(self.authority.pem)

    def path(self, name: str) -> Path:
        """A file in the server's folder, which goes with it."""
        return Path(self._folder) / name

    def write(self, name: str, issued: Issued) -> None:
        """Write a certificate to C{<name>.pem} and its key to C{<name>.key}."""
        self.path(f"{name}.key").write_bytes(issued.key_pem)
        self.path(f"{name}.pem").write_bytes(issued.pem)

    @property
    def endpoint(self) -> str:
        return f"https://{self.host}:{self.port}"

    def elsewhere(self, address: str, port: int) -> Sequence[str]:
        """The command that runs the server, with its data, at another address. This one must not run then."""
        url = f"https://{address}:{port}"
        return [
            *(
                self.binary,
                *serving_v2(self.binary),
                "--name",
                "kiwi",
                "--data-dir",
                str(self.path("data")),
                "--log-level",
                "warn",
            ),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", f"http://127.0.0.1:{port + 1}"),
            *self._security(),
        ]

    def _security(self) -> Sequence[str]:
        return [
            "--client-cert-auth",
            *("--trusted-ca-file", str(self.path("ca.pem"))),
            *("--cert-file", str(self.path("server.pem")), "--key-file", str(self.path("server.key"))),
            *(("--auth-token-ttl", str(self.token_ttl)) if self.token_ttl else ()),
        ]

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | str = "", user: tuple[str, str] | str | None = None
    ) -> tuple[int, bytes]:
        """
        Ask it as its administrator would: with a certificate, and possibly with name and password, or with a token of
        v3. It blocks.
        """
        context = ssl.create_default_context(cafile=str(self.path("ca.pem")))
        context.load_cert_chain(self.path("client.pem"), self.path("client.key"))
        data = body if isinstance(body, str) else json.dumps(body)
        asking = Request(self.endpoint + path, data.encode() or None, {"Content-Type": "application/json"})
        asking.method = method
        if isinstance(user, str):
            asking.add_header("Authorization", user)
        elif user is not None:
            asking.add_header("Authorization", f"Basic {b64encode(':'.join(user).encode()).decode()}")
        try:
            with build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open(asking, timeout=10) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/health")[0] == 200
        except (URLError, OSError):
            return False

    def require_passwords_in_v2(self, user: str, password: str, patterns: Sequence[str]) -> None:
        """From now on, only this user may use keys of v2: those that match. (C{etcdctl auth enable} in API v2.)"""
        root = ("root", ROOT)
        self._done("PUT", "/v2/auth/users/root", {"user": "root", "password": ROOT})
        self._done("PUT", f"/v2/auth/users/{user}", {"user": user, "password": password})
        kv = {"read": patterns, "write": patterns}
        self._done("PUT", "/v2/auth/roles/agent", {"role": "agent", "permissions": {"kv": kv}})
        self._done("PUT", f"/v2/auth/users/{user}", {"user": user, "grant": ["agent"]})
        self._done("PUT", "/v2/auth/enable", "", root)
        self._done("DELETE", "/v2/auth/roles/guest", "", root)

    def change_password_in_v2(self, user: str, password: str) -> None:
        self._done("PUT", f"/v2/auth/users/{user}", {"user": user, "password": password}, ("root", ROOT))

    def require_passwords_in_v3(self, user: str, password: str, prefix: str) -> None:
        """
        From now on, only this user may use keys of v3: those below a prefix, which ends with a slash. (C{etcdctl auth
        enable} in API v3.)
        """
        permission = {
            "permType": "READWRITE",
            "key": b64encode(prefix.encode()).decode(),
            "range_end": b64encode(f"{prefix[:-1]}0".encode()).decode(),
        }
        for path, document in (
            ("user/add", {"name": "root", "password": ROOT}),
            ("user/add", {"name": user, "password": password}),
            ("role/add", {"name": "root"}),
            ("role/add", {"name": "agent"}),
            ("role/grant", {"name": "agent", "perm": permission}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("user/grant", {"user": user, "role": "agent"}),
            ("enable", {}),
        ):
            self._done("POST", f"/v3/auth/{path}", document)

    def change_password_in_v3(self, user: str, password: str) -> None:
        """It ends the tokens of this user."""
        status, answer = self.ask("POST", "/v3/auth/authenticate", {"name": "root", "password": ROOT})
        assert status == 200, answer
        token = json.loads(answer)["token"]
        self._done("POST", "/v3/auth/user/changepw", {"name": user, "password": password}, token)

    def _done(
        self, method: str, path: str, body: Mapping[str, Any] | str, user: tuple[str, str] | str | None = None
    ) -> None:
        status, answer = self.ask(method, path, body, user)
        if status not in (200, 201):
            raise RuntimeError(f"{method} {path}: {status} {answer.decode(errors='replace')}")


@cache
def shared_secure_etcd(name: str) -> SecureEtcd:
    """
    The one of L{etcd_binaries} with this name, over TLS and with passwords for what it serves, for all tests of this
    process. Its only user is C{agent}, with the password C{secret}. Where that can be chosen, tokens end after 3 s.
    """
    process = SecureEtcd(etcd_binaries()[name], token_ttl=None if name == "Debian" else 3)
    atexit.register(process.remove)
    process.start()
    if serving_v2(process.binary):
        process.require_passwords_in_v2("agent", "secret", ["/test*"])
    process.require_passwords_in_v3("agent", "secret", "/secure/")
    return process
