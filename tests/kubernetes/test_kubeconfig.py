"""What kubeconfig files say."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kiwi.files import Data, File
from kiwi.kubernetes.kubeconfig import Cluster, Exec, Kubeconfig, KubeconfigError, User, read

V1 = "client.authentication.k8s.io/v1"
PATH = "/etc/kiwi/kubeconfig"
SERVER = "https://kubernetes.example:6443"


def document(cluster: Any = None, user: Any = None, **more: Any) -> bytes:
    """A kubeconfig of one context, C{main}."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "main",
            "clusters": [{"name": "there", "cluster": {"server": SERVER} if cluster is None else cluster}],
            "users": [{"name": "agent", "user": user}],
            "contexts": [{"name": "main", "context": {"cluster": "there", "user": "agent"}}],
            **more,
        }
    ).encode()


def encoded(data: bytes) -> str:
    return b64encode(data).decode()


class Case(SynchronousTestCase):
    def problem(self, *documents: bytes, context: str | None = None) -> str:
        """What is wrong with files, without the path of the only one."""
        named = [(f"{PATH}{number or ''}", data) for number, data in enumerate(documents)]
        text = str(self.assertRaises(KubeconfigError, read, named, context))
        self.assertEqual(len(text.splitlines()), 1)
        self.assertNotIn("secret", text)
        return text.removeprefix(f"{PATH}: ") if len(documents) == 1 else text


class ClusterTests(Case):
    def cluster(self, **fields: Any) -> Cluster:
        return read([(PATH, document({"server": SERVER, **fields}))]).cluster

    def wrong(self, **fields: Any) -> str:
        return self.problem(document({"server": SERVER, **fields})).removeprefix("cluster 'there': ")

    def test_plain(self) -> None:
        """A server's URL is enough."""
        self.assertEqual(self.cluster(), Cluster(SERVER))
        self.assertEqual(
            self.cluster(server="https://host/k8s/clusters/c-1/"), Cluster("https://host/k8s/clusters/c-1")
        )

    def test_authority(self) -> None:
        """Those who vouch for the server stand in a file, by its path from this one, or here, which comes first."""
        self.assertEqual(self.cluster(**{"certificate-authority": "ca.crt"}).authority, File("/etc/kiwi/ca.crt"))
        self.assertEqual(self.cluster(**{"certificate-authority": "/ca.crt"}).authority, File("/ca.crt"))
        both = {"certificate-authority": "ca.crt", "certificate-authority-data": encoded(b"PEM")}
        self.assertEqual(
            self.cluster(**both).authority,
            Data(f"{PATH}: cluster 'there': certificate-authority-data", b"PEM"),
        )

    def test_options(self) -> None:
        """The server may have another name in its certificate, and may be taken unchecked."""
        self.assertEqual(self.cluster(**{"tls-server-name": "k"}), Cluster(SERVER, server_name="k"))
        self.assertEqual(self.cluster(**{"insecure-skip-tls-verify": True}), Cluster(SERVER, insecure=True))

    def test_extension(self) -> None:
        """What the cluster has to say to exec plugins is kept."""
        extensions = [
            {"name": "other", "extension": {"a": 1}},
            {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}},
        ]
        self.assertEqual(self.cluster(extensions=extensions), Cluster(SERVER, exec_config='{"audience": "a"}'))

    def test_mistakes(self) -> None:
        """What is wrong is told with the field and what to give instead."""
        mistakes: list[tuple[dict[str, Any], str]] = [
            ({"server": ""}, "server: give https://HOST:PORT or http://HOST:PORT"),
            ({"server": "kubernetes:6443"}, "server: give https://HOST:PORT or http://HOST:PORT"),
            ({"server": 7}, "server: it is not text; put it in quotes"),
            (
                {"proxy-url": "http://secret@proxy"},
                "proxy-url: Kiwi does not speak through proxies; use a context without one",
            ),
            ({"tls-server-name": "a b"}, "tls-server-name: give a name or an IP address"),
            ({"insecure-skip-tls-verify": "yes"}, "insecure-skip-tls-verify: give true or false"),
            (
                {"insecure-skip-tls-verify": True, "certificate-authority": "ca"},
                "insecure-skip-tls-verify: there is a certificate-authority as well; give one of them",
            ),
            (
                {"certificate-authority-data": "secret!"},
                "certificate-authority-data: it is not base64; mend it, or give certificate-authority and a file",
            ),
            (
                {"extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"a": float("nan")}}]},
                "extensions: client.authentication.k8s.io/exec cannot be told in JSON; put it in quotes",
            ),
            ({"extensions": ["secret"]}, "extensions: the 1. of them has no fields; see: kubectl config view"),
        ]
        for fields, problem in mistakes:
            self.assertEqual(self.wrong(**fields), problem)


class UserTests(Case):
    def user(self, **fields: Any) -> User:
        return read([(PATH, document(user=fields))]).user

    def wrong(self, **fields: Any) -> str:
        return self.problem(document(user=fields)).removeprefix("user 'agent': ")

    def test_nobody(self) -> None:
        """A user may have nothing to show, and a context may have no user."""
        self.assertEqual(self.user(), User())
        self.assertEqual(
            read([(PATH, document(contexts=[{"name": "main", "context": {"cluster": "there"}}]))]).user, User()
        )

    def test_token(self) -> None:
        """A token stands here or in a file."""
        self.assertEqual(self.user(token=" abc\n"), User(token="abc"))
        self.assertEqual(self.user(tokenFile="token"), User(token_file="/etc/kiwi/token"))
        self.assertEqual(self.user(token="abc", tokenFile="/t"), User(token="abc", token_file="/t"))

    def test_password(self) -> None:
        """So do name and password."""
        self.assertEqual(self.user(username="me", password="abc"), User(username="me", password="abc"))

    def test_certificate(self) -> None:
        """A certificate and its key stand here or in files, in any mixture, and may come with a token."""
        self.assertEqual(
            self.user(**{"client-certificate": "tls.crt", "client-key-data": encoded(b"PEM"), "token": "abc"}),
            User(
                token="abc",
                certificate=File("/etc/kiwi/tls.crt"),
                key=Data(f"{PATH}: user 'agent': client-key-data", b"PEM"),
            ),
        )

    def test_exec(self) -> None:
        """A plugin with all that it may have."""
        self.assertEqual(
            self.user(
                exec={
                    "apiVersion": V1,
                    "command": "get-token",
                    "args": ["--for", "agent"],
                    "env": [{"name": "A", "value": "b"}],
                    "installHint": "Install it.",
                    "provideClusterInfo": True,
                    "interactiveMode": "IfAvailable",
                }
            ),
            User(exec=Exec(V1, "get-token", ("--for", "agent"), {"A": "b"}, True, "Install it.")),
        )

    def test_command(self) -> None:
        """A command with a slash is a path from this file."""
        for command, path in {"get": "get", "./get": "/etc/kiwi/./get", "/bin/get": "/bin/get"}.items():
            user = self.user(exec={"apiVersion": f"{V1}beta1", "command": command})
            self.assertEqual(user, User(exec=Exec(f"{V1}beta1", path)))

    def test_mistakes(self) -> None:
        """What is wrong is told with the field and what to give instead, and never with what stands in it."""
        plugin = {"apiVersion": V1, "command": "get"}
        mistakes: list[tuple[dict[str, Any], str]] = [
            (
                {"auth-provider": {"name": "secret"}},
                "auth-provider: Kubernetes has given it up; use exec and a credential plugin instead",
            ),
            ({"as": "other"}, "as: Kiwi does not act in the name of others; use a user of its own"),
            ({"token": 12345}, "token: it is not text; put it in quotes"),
            (
                {"token": "se cret"},
                "token: it is no token: a token is one word of printable ASCII characters; mend it",
            ),
            ({"token": "secret", "exec": plugin}, "token: there is exec as well; give one of them"),
            (
                {"username": "a:b", "password": "secret"},
                "username: there is a colon in the username, which cannot be sent; mend it",
            ),
            (
                {"client-certificate": "c"},
                "client-certificate: there is no client-key that goes with it; give it as well",
            ),
            ({"client-key": "k"}, "client-key: there is no client-certificate that goes with it; give it as well"),
            ({"client-key": "a\0b"}, "client-key: it has characters that cannot be passed on; take them out"),
            ({"exec": "secret"}, "exec: it has no fields; see: kubectl config view"),
            (
                {"exec": {"command": "get"}},
                f"exec: apiVersion: '': give one of {V1}, {V1}beta1",
            ),
            ({"exec": {"apiVersion": V1}}, "exec: command: there is none; give the command to run"),
            (
                {"exec": {**plugin, "interactiveMode": "Always"}},
                "exec: interactiveMode: an agent has no terminal; use a plugin that asks nobody",
            ),
            (
                {"exec": {**plugin, "interactiveMode": "Perhaps"}},
                "exec: interactiveMode: 'Perhaps': give Never or IfAvailable",
            ),
            ({"exec": {**plugin, "args": "secret"}}, "exec: args: give a list"),
            ({"exec": {**plugin, "args": ["a", 2]}}, "exec: args: 2: it is not text; put it in quotes"),
            (
                {"exec": {**plugin, "env": [{"value": "secret"}]}},
                "exec: env: one of them has no name that can be; mend it",
            ),
        ]
        for fields, problem in mistakes:
            self.assertEqual(self.wrong(**fields), problem)

    def test_secret(self) -> None:
        """Secrets stay out of what is printed."""
        for fields in (
            {"token": "secret"},
            {"username": "me", "password": "secret"},
            {"client-certificate": "c", "client-key-data": encoded(b"secret")},
            {"exec": {"apiVersion": V1, "command": "c", "args": ["secret"], "env": [{"name": "A", "value": "secret"}]}},
        ):
            shown = repr(read([(PATH, document(user=fields))]))
            self.assertNotIn("secret", shown)
            self.assertNotIn(encoded(b"secret"), shown)


class ContextTests(Case):
    two = {
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}"}} for name in ("a", "b")],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "agent"}} for name in ("a", "b")],
    }

    def test_current(self) -> None:
        """The current context counts, unless another one is given."""
        data = document(**{**self.two, "current-context": "a"})
        self.assertEqual(read([(PATH, data)]), Kubeconfig(PATH, "a", Cluster("https://a"), User(), PATH))
        self.assertEqual(read([(PATH, data)], "b"), Kubeconfig(PATH, "b", Cluster("https://b"), User(), PATH))

    def test_others(self) -> None:
        """What is wrong with another user does not matter."""
        users = [
            {"name": "agent", "user": {"token": "abc"}},
            {"name": "other", "user": {"auth-provider": {"name": "x"}}},
        ]
        self.assertEqual(read([(PATH, document(users=users))]).user, User(token="abc"))

    def test_mistakes(self) -> None:
        """Who names what is not there is told what is."""
        data = document(**{**self.two, "current-context": ""})
        self.assertEqual(self.problem(data), "there is no current-context; give --context NAME, one of 'a', 'b'")
        self.assertEqual(
            self.problem(data, context="c"), "there is no context 'c'; give --context NAME, one of 'a', 'b'"
        )
        self.assertEqual(self.problem(b""), "there is no current-context; give --context NAME")
        self.assertEqual(
            self.problem(document(clusters=[])),
            "context 'main': cluster: there is no cluster 'there'; name one that there is",
        )
        self.assertEqual(
            self.problem(document(users=[])),
            "context 'main': user: there is no user 'agent'; name one that there is",
        )

    def test_structure(self) -> None:
        """What is no kubeconfig at all is told of as such, with the line where that is known."""
        for data, problem in {
            b"- secret": "it is not a kubeconfig, which has clusters, users and contexts",
            b"a: b\nsecret: [": "line 2: it is not YAML; see: kubectl config view",
            b"\xff\xfe\x00": "it is not YAML; see: kubectl config view",
            b"a: !!int secret": "it is not YAML; see: kubectl config view",
            b"a: !!python/name:os.system ''": "line 1: it is not YAML; see: kubectl config view",
            b"[" * 100_000: "it is not YAML; see: kubectl config view",
            b"current-context: [a]": "current-context: it is not text; put it in quotes",
            b"clusters: {a: secret}": "clusters: give a list",
            b"contexts: [secret]": "contexts: the 1. of them has no fields; see: kubectl config view",
            b"users: [{user: {token: secret}}]": "users: one of them has no name; give it one",
        }.items():
            self.assertEqual(self.problem(data), problem)

    def test_merged(self) -> None:
        """Of several files the first that has a thing counts, whole, and paths are those from where it stands."""
        first = yaml.safe_dump({"users": [{"name": "agent", "user": {"tokenFile": "mine"}}]}).encode()
        second = document({"server": SERVER, "certificate-authority": "ca"}, {"token": "abc", "username": "me"})
        third = document({"server": "https://other"}, {}, **{"current-context": "other"})
        self.assertEqual(
            read([("/home/kubeconfig", first), (PATH, second), ("/else/kubeconfig", third)]),
            Kubeconfig(
                PATH,
                "main",
                Cluster(SERVER, File("/etc/kiwi/ca")),
                User(token_file="/home/mine"),
                "/home/kubeconfig",
            ),
        )
        self.assertEqual(
            self.problem(first, first),
            f"{PATH} and {PATH}1: there is no current-context; give --context NAME",
        )


NAMES = st.sampled_from(["main", "there", "agent"])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | NAMES | st.dates() | st.binary(max_size=5)
FIELDS = st.sampled_from(
    [
        *("server", "certificate-authority-data", "tls-server-name", "insecure-skip-tls-verify", "extensions"),
        *("client-key", "client-certificate-data", "token", "tokenFile", "username", "password", "exec", "apiVersion"),
        *("command", "args", "env", "name", "value", "extension"),
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS | SCALARS, inner, max_size=4),
    max_leaves=10,
)
THINGS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": NAMES | VALUES,
            "cluster": VALUES,
            "user": VALUES,
            "context": st.just({"cluster": "there"}) | VALUES,
        },
    ),
    max_size=3,
)


TAGS = ("int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "str", "seq", "map", "merge")
ODDITIES = ("", "''", "x", "[]", "{}", "[a]", "{a: b}", "0x", "0b", ":", "1:x", "2020-99-99", "1" * 5000)


class AnythingTests(SynchronousTestCase):
    """Whatever stands in a file is a value or the one kind of mistake, in one line."""

    def check(self, data: bytes) -> None:
        try:
            read([(PATH, data)])
        except KubeconfigError as error:
            self.assertEqual(len(str(error).splitlines()), 1)
            self.assertTrue(str(error).isascii() and str(error).isprintable(), error)

    @given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "replace")))
    def test_bytes(self, data: bytes) -> None:
        """Any bytes."""
        self.check(data)

    @given(st.text("!&*<{}[]:,-?#|>@`\"'%=ab01.~\n\t -int float bool timestamp null"))
    def test_syntax(self, text: str) -> None:
        """Anything that looks like YAML."""
        self.check(text.encode())

    @given(st.sampled_from(TAGS), st.sampled_from(ODDITIES))
    def test_tags(self, tag: str, value: str) -> None:
        """Any of YAML's own tags on anything."""
        self.check(f"current-context: !!{tag} {value}".encode())

    @given(VALUES, VALUES, THINGS)
    def test_fields(self, cluster: Any, user: Any, contexts: Any) -> None:
        """Any fields in any places."""
        self.check(document(cluster, user))
        self.check(document({"server": SERVER}, user))
        self.check(document(cluster, user, contexts=contexts))
        self.check(document(clusters=contexts, users=contexts))

    def test_alias(self) -> None:
        """A thing that is within itself."""
        extension = b"&a [{name: client.authentication.k8s.io/exec, extension: *a}]"
        self.check(document().replace(b"server: ", b"extensions: " + extension + b"\n    server: "))
        self.check(b"current-context: main\nclusters: &a [*a]\nusers: *a\ncontexts: *a\n")
