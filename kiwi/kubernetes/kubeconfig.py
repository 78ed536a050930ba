"""
Reading kubeconfig files, and nothing else: no file that they name is opened, no command that they name is run.

The fields are those of the page "kubeconfig (v1)" in the reference of Kubernetes. How several files are merged is from
the page "Organizing Cluster Access Using kubeconfig Files".
"""

from __future__ import annotations

import binascii
import json
import os
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from attrs import field, frozen

from kiwi.files import Data, File, Source
from kiwi.http import basic
from kiwi.logs import printable
from kiwi.urls import server_url

from .credentials import bearer
from .reading import quoted

EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
EXTENSION = "client.authentication.k8s.io/exec"
"""The extension of a cluster that is meant for exec plugins."""


class KubeconfigError(Exception):
    """A kubeconfig that cannot be used. The text is one printable line: the file, what is wrong, and what to do."""


@frozen
class Cluster:
    """
    An API server.

    @ivar server: its URL.
    @ivar authority: the certificates that vouch for it; C{None} for those that the system trusts.
    @ivar server_name: the name in its certificate, where that is not the host in the URL.
    @ivar insecure: whether its certificate is not checked at all.
    @ivar exec_config: what it has to say to exec plugins, in JSON.
    """

    server: str
    authority: Source | None = None
    server_name: str | None = None
    insecure: bool = False
    exec_config: str | None = field(default=None, repr=False)


@frozen
class Exec:
    """
    A command that prints credentials.

    @ivar api_version: one of L{EXEC_VERSIONS}.
    @ivar command: a path, or a name that is looked for in C{PATH}.
    @ivar environment: what is added to the environment.
    @ivar cluster_info: whether it wants to be told of the cluster.
    @ivar install_hint: what to do where the command is missing.
    """

    api_version: str
    command: str
    arguments: tuple[str, ...] = field(default=(), repr=False)
    environment: Mapping[str, str] = field(factory=dict, repr=False)
    cluster_info: bool = False
    install_hint: str = ""


@frozen
class User:
    """
    What an agent can show. A certificate goes together with any of the others.

    @ivar token_file: of what is there and in C{token}, the file comes first.
    """

    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    username: str | None = None
    password: str = field(default="", repr=False)
    certificate: Source | None = None
    key: Source | None = None
    exec: Exec | None = None


@frozen
class Kubeconfig:
    """
    What one context of a kubeconfig means.

    @ivar path: the file in which the context stands.
    @ivar user_path: the file in which the user stands.
    """

    path: str
    context: str
    cluster: Cluster
    user: User
    user_path: str


def read(documents: Sequence[tuple[str, bytes]], context: str | None = None) -> Kubeconfig:
    """
    What a context means in these files, of which the first that has a thing counts. Raises L{KubeconfigError}.

    @param documents: paths and contents, one or more.
    @param context: its name, or C{None} for the current one.
    """
    paths = " and ".join(printable(path) for path, _ in documents)
    roots = [_Fields(path, "", _document(path, data)) for path, data in documents]
    contexts, clusters, users = (_named(roots, kind) for kind in ("context", "cluster", "user"))
    current = context or next((name for root in roots if (name := root.text("current-context"))), None)
    if current is None:
        raise KubeconfigError(f"{paths}: there is no current-context; give --context NAME{_one_of(contexts)}")
    if current not in contexts:
        raise KubeconfigError(f"{paths}: there is no context {quoted(current)}; give --context NAME{_one_of(contexts)}")
    meant = contexts[current]
    cluster_name, user_name = meant.text("cluster"), meant.text("user")
    if cluster_name not in clusters:
        raise meant.wrong("cluster", f"there is no cluster {quoted(cluster_name)}; name one that there is")
    if user_name and user_name not in users:
        raise meant.wrong("user", f"there is no user {quoted(user_name)}; name one that there is")
    user = users[user_name] if user_name else _Fields(meant.path, "", {})
    return Kubeconfig(meant.path, current, _cluster(clusters[cluster_name]), _user(user), user.path)


def _one_of(names: Mapping[str, object]) -> str:
    return f", one of {', '.join(quoted(name) for name in list(names)[:10])}" if names else ""


def _document(path: str, data: bytes) -> Mapping[Any, Any]:
    # Nothing of the text itself is told: it has secrets.
    try:
        document = yaml.safe_load(data)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise KubeconfigError(f"{printable(path)}: {line}it is not YAML; see: kubectl config view") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        # PyYAML's constructors trip over a tag such as !!int before something else.
        raise KubeconfigError(f"{printable(path)}: it is not YAML; see: kubectl config view") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise KubeconfigError(f"{printable(path)}: it is not a kubeconfig, which has clusters, users and contexts")
    return document


@frozen
class _Fields:
    """
    The fields of one thing in a file. Those that are null or empty are as good as absent. Each method raises
    L{KubeconfigError} where a field is not what it should be.
    """

    path: str
    place: str
    fields: Mapping[Any, Any] = field(repr=False)

    def wrong(self, name: str, problem: str) -> KubeconfigError:
        return KubeconfigError(f"{printable(self.path)}: {self.place}{name}: {problem}")

    def where(self, name: str) -> str:
        return f"{printable(self.path)}: {self.place}{name}"

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(name, "it is not text; put it in quotes")
        if re.search("[\0\ud800-\udfff]", value):
            raise self.wrong(name, "it has characters that cannot be passed on; take them out")
        return value

    def flag(self, name: str) -> bool:
        value = self.fields.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.wrong(name, "give true or false")
        return value

    def file(self, name: str) -> str | None:
        """A path, which may be relative to the file that it stands in."""
        path = self.text(name)
        return os.path.join(os.path.dirname(self.path), path) if path else None

    def source(self, name: str) -> Source | None:
        """The data that stand here, or else the file that is named here."""
        encoded = self.text(f"{name}-data")
        if not encoded:
            path = self.file(name)
            return File(path) if path else None
        try:
            data = b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError):
            raise self.wrong(f"{name}-data", f"it is not base64; mend it, or give {name} and a file") from None
        return Data(self.where(f"{name}-data"), data)

    def list(self, name: str) -> Sequence[Any]:
        value = self.fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "give a list")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        numbered = {str(number): value for number, value in enumerate(self.list(name), 1)}
        one = _Fields(self.path, f"{self.place}{name}: ", numbered)
        return tuple(map(one.text, numbered))

    def parts(self, name: str) -> _Fields | None:
        """The fields of a field."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "it has no fields; see: kubectl config view")
        return _Fields(self.path, f"{self.place}{name}: ", value)

    def items(self, name: str) -> Sequence[_Fields]:
        """The fields of each member of a list."""
        found = []
        for number, value in enumerate(self.list(name), 1):
            if not isinstance(value, dict):
                raise self.wrong(name, f"the {number}. of them has no fields; see: kubectl config view")
            found.append(_Fields(self.path, f"{self.place}{name}: ", value))
        return found


def _named(roots: Sequence[_Fields], kind: str) -> Mapping[str, _Fields]:
    """All clusters, users or contexts by name."""
    found: dict[str, _Fields] = {}
    for root in roots:
        for item in root.items(f"{kind}s"):
            name = item.text("name")
            if not name:
                raise root.wrong(f"{kind}s", "one of them has no name; give it one")
            parts = item.parts(kind)
            found.setdefault(name, _Fields(root.path, f"{kind} {quoted(name)}: ", parts.fields if parts else {}))
    return found


def _cluster(cluster: _Fields) -> Cluster:
    try:
        server = server_url(cluster.text("server"), ("https", "http"))
    except ValueError as error:
        raise cluster.wrong("server", str(error)) from None
    if cluster.text("proxy-url"):
        raise cluster.wrong("proxy-url", "Kiwi does not speak through proxies; use a context without one")
    server_name = cluster.text("tls-server-name")
    if server_name and not re.fullmatch(r"[A-Za-z0-9._:-]+", server_name):
        raise cluster.wrong("tls-server-name", "give a name or an IP address")
    authority, insecure = cluster.source("certificate-authority"), cluster.flag("insecure-skip-tls-verify")
    if authority and insecure:
        raise cluster.wrong("insecure-skip-tls-verify", "there is a certificate-authority as well; give one of them")
    return Cluster(server, authority, server_name or None, insecure, _exec_config(cluster))


def _exec_config(cluster: _Fields) -> str | None:
    for extension in cluster.items("extensions"):
        if extension.text("name") == EXTENSION:
            try:
                return json.dumps(extension.fields.get("extension"), allow_nan=False)
            except (TypeError, ValueError, RecursionError):
                raise cluster.wrong("extensions", f"{EXTENSION} cannot be told in JSON; put it in quotes") from None
    return None


def _user(user: _Fields) -> User:
    if user.fields.get("auth-provider") is not None:
        raise user.wrong("auth-provider", "Kubernetes has given it up; use exec and a credential plugin instead")
    for name in ("as", "as-uid", "as-groups", "as-user-extra"):
        if user.fields.get(name):
            raise user.wrong(name, "Kiwi does not act in the name of others; use a user of its own")
    token, username, password = user.text("token").strip(), user.text("username"), user.text("password")
    token_file, plugin = user.file("tokenFile"), user.parts("exec")
    ways = [("token", token or token_file), ("username", username or password), ("exec", plugin)]
    given = [name for name, value in ways if value]
    if len(given) > 1:
        raise user.wrong(given[0], f"there is {given[1]} as well; give one of them")
    try:
        if token:
            bearer(token)
        basic(username, password)
    except ValueError as error:
        raise user.wrong(given[0], f"{error}; mend it") from None
    certificate, key = user.source("client-certificate"), user.source("client-key")
    if certificate and not key:
        raise user.wrong("client-certificate", "there is no client-key that goes with it; give it as well")
    if key and not certificate:
        raise user.wrong("client-key", "there is no client-certificate that goes with it; give it as well")
    return User(
        token=token or None,
        token_file=token_file,
        username=username if username or password else None,
        password=password,
        certificate=certificate,
        key=key,
        exec=_exec(plugin) if plugin else None,
    )


def _exec(plugin: _Fields) -> Exec:
    version, command = plugin.text("apiVersion"), plugin.text("command")
    if version not in EXEC_VERSIONS:
        raise plugin.wrong("apiVersion", f"{quoted(version)}: give one of {', '.join(EXEC_VERSIONS)}")
    if not command:
        raise plugin.wrong("command", "there is none; give the command to run")
    mode = plugin.text("interactiveMode")
    if mode == "Always":
        raise plugin.wrong("interactiveMode", "an agent has no terminal; use a plugin that asks nobody")
    if mode not in ("", "Never", "IfAvailable"):
        raise plugin.wrong("interactiveMode", f"{quoted(mode)}: give Never or IfAvailable")
    environment = {}
    for variable in plugin.items("env"):
        name = variable.text("name")
        if not name or "=" in name:
            raise plugin.wrong("env", "one of them has no name that can be; mend it")
        environment[name] = variable.text("value")
    return Exec(
        api_version=version,
        # A name without a slash is looked for in PATH.
        command=os.path.join(os.path.dirname(plugin.path), command) if "/" in command else command,
        arguments=plugin.texts("args"),
        environment=environment,
        cluster_info=plugin.flag("provideClusterInfo"),
        install_hint=plugin.text("installHint"),
    )
