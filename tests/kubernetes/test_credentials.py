"""What an agent shows to an API server: tokens, passwords, and what plugins print."""

from __future__ import annotations

import json
import os
import sys
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from kiwi.files import Data, File
from kiwi.http import basic
from kiwi.kubernetes.credentials import (
    CredentialsError,
    FixedHeaders,
    ICredentials,
    NoCredentials,
    TokenFile,
    bearer,
)
from kiwi.kubernetes.kubeconfig import Cluster, Exec
from kiwi.kubernetes.plugins import MARGIN, REST, RUN_TIMEOUT, Answer, PluginCredentials, decode
from kiwi.kubernetes.processes import Command, Finished, run
from tests.fakes.authorities import authority

from .clusters import captured_log

V1 = "client.authentication.k8s.io/v1"
V1BETA1 = "client.authentication.k8s.io/v1beta1"
SH = "/bin/sh"


class Case(SynchronousTestCase):
    def shown(self, credentials: ICredentials) -> Mapping[str, str]:
        return self.successResultOf(credentials.headers())

    def trouble(self, credentials: ICredentials) -> str:
        return str(self.failureResultOf(credentials.headers(), CredentialsError).value)


class FixedTests(Case):
    def test_provided(self) -> None:
        """Each kind is what the client of the API asks for."""
        for credentials in (NoCredentials(), FixedHeaders({}), TokenFile("/nowhere", Clock().seconds)):
            verifyObject(ICredentials, credentials)

    def test_nothing(self) -> None:
        """Nobody shows nothing."""
        self.assertEqual(self.shown(NoCredentials()), {})

    def test_token(self) -> None:
        """A token is shown as it is, also after it was refused."""
        credentials = FixedHeaders(bearer("abc.def"))
        self.assertEqual(self.shown(credentials), {"Authorization": "Bearer abc.def"})
        credentials.refused()
        self.assertEqual(self.shown(credentials), {"Authorization": "Bearer abc.def"})

    def test_password(self) -> None:
        """Name and password are shown together."""
        kind, _, encoded = basic("agent", "påss:word")["Authorization"].partition(" ")
        self.assertEqual((kind, b64decode(encoded).decode()), ("Basic", "agent:påss:word"))
        self.assertRaises(ValueError, basic, "a:b", "")

    def test_secret(self) -> None:
        """Tokens stay out of what is printed."""
        self.assertNotIn("secret", repr(FixedHeaders(bearer("secret"))))

    @given(st.text())
    def test_any_token(self, text: str) -> None:
        """Any text is a header that ends where it should, or an error that does not have it."""
        try:
            header = bearer(text)["Authorization"]
        except ValueError as error:
            self.assertEqual(str(error), "it is no token: a token is one word of printable ASCII characters")
        else:
            self.assertRegex(header, r"\ABearer [!-~]+\Z")


class TokenFileTests(Case):
    """A token as the kubelet puts it: behind a link to a folder that another one replaces."""

    def setUp(self) -> None:
        self.lines = captured_log(self)
        self.clock = Clock()
        self.folder = self.mktemp()
        os.mkdir(self.folder)
        self.rotations = 0
        self.rotate(b"first\n")
        self.path = os.path.join(self.folder, "token")
        os.symlink("..data/token", self.path)
        self.credentials = TokenFile(self.path, self.clock.seconds)

    def rotate(self, content: bytes | None) -> None:
        self.rotations += 1
        folder = f"{self.rotations}"
        os.mkdir(os.path.join(self.folder, folder))
        if content is not None:
            with open(os.path.join(self.folder, folder, "token"), "wb") as file:
                file.write(content)
        os.symlink(folder, os.path.join(self.folder, "..new"))
        os.rename(os.path.join(self.folder, "..new"), os.path.join(self.folder, "..data"))

    def token(self) -> str:
        return self.shown(self.credentials)["Authorization"].removeprefix("Bearer ")

    def test_rotated(self) -> None:
        """A new token is shown as soon as it is there."""
        self.assertEqual(self.token(), "first")
        self.rotate(b"second")
        self.assertEqual(self.token(), "second")

    def test_unseen(self) -> None:
        """A token whose file looks as it did is shown after a minute, or when the one before it was refused."""
        self.assertEqual(self.token(), "first")
        path = os.path.realpath(self.path)
        status = os.stat(path)

        def write(token: bytes) -> None:
            with open(path, "wb") as file:
                file.write(token)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

        write(b"other\n")
        self.assertEqual(self.token(), "first")
        self.clock.advance(60)
        self.assertEqual(self.token(), "other")
        write(b"third\n")
        self.credentials.refused()
        self.assertEqual(self.token(), "third")

    def test_lost(self) -> None:
        """A token is shown until there is a new one, and the log says once that its file cannot be read."""
        self.assertEqual(self.token(), "first")
        self.rotate(None)
        for _ in range(3):
            self.assertEqual(self.token(), "first")
            self.clock.advance(60)
        self.assertEqual(self.lines, [f"{self.path}: No such file or directory; what was there before is used"])
        self.rotate(b"second")
        self.assertEqual(self.token(), "second")
        self.rotate(b"two words")
        self.assertEqual(self.token(), "second")
        self.assertEqual(
            self.lines[1:],
            [
                f"{self.path}: it is no token: a token is one word of printable ASCII characters; "
                "what was there before is used"
            ],
        )

    def test_none(self) -> None:
        """Without any token there are no credentials, until there is one."""
        self.rotate(None)
        self.assertEqual(self.trouble(self.credentials), f"{self.path}: No such file or directory")
        self.assertRaises(CredentialsError, self.credentials.check)
        self.rotate(b"second")
        self.assertEqual(self.token(), "second")
        self.assertEqual(self.lines, [])

    def test_secret(self) -> None:
        """Tokens stay out of what is printed."""
        self.token()
        self.assertNotIn("first", repr(self.credentials))


def printed(version: str = V1, **status: Any) -> bytes:
    return json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status}).encode()


class DecodingTests(SynchronousTestCase):
    """What a plugin may print."""

    def test_token(self) -> None:
        """A token with the time at which it ends, in any zone and with any fraction."""
        for text in ("2030-01-02T03:04:05Z", "2030-01-02T03:04:05.123456789Z", "2030-01-02T05:04:05+02:00"):
            self.assertEqual(
                decode(printed(token="abc", expirationTimestamp=text), V1),
                Answer({"Authorization": "Bearer abc"}, None, 1893553445.0),
            )

    def test_certificate(self) -> None:
        """A certificate, alone or with a token."""
        client = authority("clients").issue("agent")
        pair = {"clientCertificateData": client.pem.decode(), "clientKeyData": client.key_pem.decode()}
        answer = decode(printed(V1BETA1, **pair), V1BETA1)
        assert answer.certificate is not None
        self.assertEqual((answer.headers, answer.certificate.chain), ({}, (client.certificate,)))
        answer = decode(printed(**pair, token="abc"), V1)
        self.assertEqual(answer.headers, {"Authorization": "Bearer abc"})

    def test_nonsense(self) -> None:
        """Anything else is told without what was printed, which may be secret."""
        for output, problem in {
            b"secret": "it is no JSON object",
            b'["secret"]': "it is no JSON object",
            b'{"token": "secret"}': f"it is no ExecCredential of {V1}",
            printed(V1BETA1, token="secret"): f"it is no ExecCredential of {V1}",
            b'{"kind": "ExecCredential", "apiVersion": "%s"}' % V1.encode(): "it has no status",
            printed(): "there is neither a token nor a certificate",
            printed(clientKeyData="secret"): "there is only one of clientCertificateData and clientKeyData",
            printed(clientKeyData="secret", clientCertificateData="?"): "there are no certificates in PEM",
            printed(token=["secret"]): "token is not plain text",
            printed(token="very secret"): "it is no token: a token is one word of printable ASCII characters",
            printed(token="secret", expirationTimestamp="soon"): "expirationTimestamp is no time: 'soon'",
            printed(token="secret", expirationTimestamp="2030-02-30T00:00:00Z"): (
                "expirationTimestamp is no time: '2030-02-30T00:00:00Z'"
            ),
        }.items():
            self.assertEqual(str(self.assertRaises(ValueError, decode, output, V1)), problem)

    def test_secret(self) -> None:
        """Tokens stay out of what is printed."""
        self.assertNotIn("secret", repr(decode(printed(token="secret"), V1)))

    @given(st.dictionaries(st.sampled_from(["token", "expirationTimestamp", "clientKeyData"]), st.text() | st.none()))
    def test_anything(self, status: dict[str, Any]) -> None:
        """Whatever stands there is an answer or a mistake."""
        try:
            decode(printed(**status), V1)
        except ValueError as error:
            self.assertEqual(len(str(error).splitlines()), 1)


@define
class Runner:
    """Runs nothing, and ends what was run when it is told to."""

    commands: list[Command] = field(factory=list)
    running: list[Deferred[Finished]] = field(factory=list)
    killed: int = 0

    def run(self, command: Command) -> Deferred[Finished]:
        self.commands.append(command)
        done: Deferred[Finished] = Deferred(self._kill)
        self.running.append(done)
        return done

    def _kill(self, done: Deferred[Finished]) -> None:
        self.killed += 1
        self.running.remove(done)

    def end(self, output: bytes = b"", status: int = 0, errors: bytes = b"") -> None:
        self.running.pop(0).callback(Finished(status, output, errors))


EPOCH = 1893456000.0
"""2030-01-01T00:00:00Z, when the tests begin."""


def at(minute: int) -> str:
    return f"2030-01-01T00:{minute:02}:00Z"


class PluginTests(Case):
    plugin = Exec(V1, SH, ("-c", "get token"), {"REGION": "north"})
    cluster = Cluster("https://kubernetes.example:6443")

    def setUp(self) -> None:
        self.lines = captured_log(self)
        self.clock = Clock()
        self.runner = Runner()
        self.credentials = self.made(self.plugin)

    def made(self, plugin: Exec, cluster: Cluster | None = None) -> PluginCredentials:
        return PluginCredentials(
            plugin,
            cluster or self.cluster,
            "/etc/kubeconfig: exec",
            self.runner.run,
            self.clock,
            lambda: EPOCH + self.clock.seconds(),
            {"PATH": "/nowhere", "HOME": "/root", "REGION": "south"},
        )

    def got(self, token: str, **more: Any) -> Mapping[str, str]:
        """What is shown after a run that prints this token."""
        asked = self.credentials.headers()
        self.assertNoResult(asked)
        self.runner.end(printed(token=token, **more))
        return self.successResultOf(asked)

    def failing(self, *ended: Any) -> str:
        """What is wrong after a run that ends like this."""
        asked = self.credentials.headers()
        self.runner.end(*ended)
        return str(self.failureResultOf(asked, CredentialsError).value)

    def test_provided(self) -> None:
        """It is what the client of the API asks for."""
        verifyObject(ICredentials, self.credentials)

    def test_command(self) -> None:
        """The command gets its arguments, its environment over that of the agent, and what it is asked."""
        self.assertEqual(self.got("abc"), {"Authorization": "Bearer abc"})
        (command,) = self.runner.commands
        environment = dict(command.environment)
        asked = json.loads(environment.pop("KUBERNETES_EXEC_INFO"))
        self.assertEqual(
            (command.path, command.arguments, environment),
            (SH, ("-c", "get token"), {"PATH": "/nowhere", "HOME": "/root", "REGION": "north"}),
        )
        self.assertEqual(asked, {"apiVersion": V1, "kind": "ExecCredential", "spec": {"interactive": False}})

    def test_cluster(self) -> None:
        """A plugin that wants to is told of the cluster."""
        credentials = self.made(
            evolve(self.plugin, cluster_info=True),
            Cluster("https://k", Data("here", b"CA"), "name", exec_config='{"audience": "a"}'),
        )
        credentials.headers()
        asked = json.loads(self.runner.commands[0].environment["KUBERNETES_EXEC_INFO"])
        self.assertEqual(
            asked["spec"],
            {
                "interactive": False,
                "cluster": {
                    "server": "https://k",
                    "tls-server-name": "name",
                    "certificate-authority-data": "Q0E=",
                    "config": {"audience": "a"},
                },
            },
        )
        unreadable = Cluster("https://k", File("/no/where"))
        self.assertEqual(
            self.trouble(self.made(evolve(self.plugin, cluster_info=True), unreadable)),
            "/no/where: No such file or directory",
        )

    def test_kept(self) -> None:
        """Credentials without an end are kept."""
        self.got("abc")
        self.clock.advance(10**6)
        self.assertEqual(self.shown(self.credentials), {"Authorization": "Bearer abc"})
        self.assertEqual(len(self.runner.commands), 1)

    def test_renewed(self) -> None:
        """Credentials are renewed a minute before they end."""
        self.got("abc", expirationTimestamp=at(30))
        self.clock.advance(30 * 60 - MARGIN - 1)
        self.assertEqual(self.shown(self.credentials), {"Authorization": "Bearer abc"})
        self.clock.advance(1)
        self.assertEqual(self.got("def", expirationTimestamp=at(59)), {"Authorization": "Bearer def"})

    def test_short(self) -> None:
        """Those that end soon are used nonetheless, for nine tenths of their life."""
        self.got("abc", expirationTimestamp=at(1))
        self.clock.advance(53)
        self.assertEqual(self.shown(self.credentials), {"Authorization": "Bearer abc"})
        self.clock.advance(1)
        self.got("def", expirationTimestamp=at(2))

    def test_past(self) -> None:
        """Those that have ended already, by this host's clock, are shown once."""
        self.assertEqual(self.got("abc", expirationTimestamp="2029-01-01T00:00:00Z"), {"Authorization": "Bearer abc"})
        self.got("def")

    def test_refused(self) -> None:
        """What was refused is not shown again."""
        self.got("abc")
        self.credentials.refused()
        self.assertEqual(self.got("def"), {"Authorization": "Bearer def"})

    def test_shared(self) -> None:
        """One run serves all who wait, also those who were refused during it."""
        first, second = self.credentials.headers(), self.credentials.headers()
        self.credentials.refused()
        third = self.credentials.headers()
        self.runner.end(printed(token="abc"))
        for asked in (first, second, third):
            self.assertEqual(self.successResultOf(asked), {"Authorization": "Bearer abc"})
        self.assertEqual(len(self.runner.commands), 1)

    def test_cancelled(self) -> None:
        """Who no longer waits does not disturb the others. With the last one the run ends."""
        first, second = self.credentials.headers(), self.credentials.headers()
        first.cancel()
        self.assertEqual(self.runner.killed, 0)
        second.cancel()
        self.assertEqual((self.runner.killed, self.runner.running), (1, []))
        for asked in (first, second):
            self.failureResultOf(asked)
        self.assertEqual(self.got("abc"), {"Authorization": "Bearer abc"})

    def test_certificate(self) -> None:
        """A certificate is there to be shown with what comes with it."""
        client = authority("clients").issue("agent")
        self.assertIsNone(self.credentials.certificate())
        self.got("a", clientCertificateData=client.pem.decode(), clientKeyData=client.key_pem.decode())
        certificate = self.credentials.certificate()
        assert certificate is not None
        self.assertEqual(certificate.chain, (client.certificate,))

    def test_failures(self) -> None:
        """What goes wrong is told with the file, the command, and its last words."""
        begin = "/etc/kubeconfig: exec: '/bin/sh': "
        for ended, problem in [
            ((b"", 3, b"one\nlog in first\n\n"), "it exited with status 3: log in first"),
            ((b"", -9, b""), "it was ended by signal 9"),
            ((b"", 1, b"\x1b[2J"), "it exited with status 1: \\x1b[2J"),
            ((b"token",), "it printed something else than credentials: it is no JSON object"),
        ]:
            self.assertEqual(self.failing(*ended), begin + problem)
            self.clock.advance(REST)

    def test_rest(self) -> None:
        """A command that failed is not run again at once, however many ask."""
        self.failing(b"", 1)
        self.assertIn("it exited with status 1", self.trouble(self.credentials))
        self.assertEqual(len(self.runner.commands), 1)
        self.clock.advance(REST)
        self.got("abc")

    def test_failed_renewal(self) -> None:
        """While a renewal fails, what is there is shown until its end, and the log says so once."""
        self.got("abc", expirationTimestamp=at(30))
        self.clock.advance(30 * 60 - 10)
        for _ in range(3):
            asked = self.credentials.headers()
            self.runner.end(b"", 1)
            self.assertEqual(self.successResultOf(asked), {"Authorization": "Bearer abc"})
            self.assertEqual(self.shown(self.credentials), {"Authorization": "Bearer abc"})
            self.clock.advance(REST)
        self.assertEqual(
            self.lines,
            [
                "/etc/kubeconfig: exec: '/bin/sh': it exited with status 1; "
                "what it printed before is used until that runs out"
            ],
        )
        self.clock.advance(10)
        self.assertIn("it exited with status 1", self.failing(b"", 1))

    def test_failed_after_refusal(self) -> None:
        """What was refused is not shown again when the renewal fails either."""
        self.got("abc")
        self.credentials.refused()
        self.failing(b"", 1)

    def test_refused_during_failure(self) -> None:
        """Nor is what was refused while the renewal was under way."""
        self.got("abc", expirationTimestamp=at(30))
        self.clock.advance(30 * 60 - 10)
        asked = self.credentials.headers()
        self.credentials.refused()
        self.runner.end(b"", 1)
        self.failureResultOf(asked, CredentialsError)

    def test_slow(self) -> None:
        """A command that does not end is killed."""
        asked = self.credentials.headers()
        self.clock.advance(RUN_TIMEOUT)
        self.assertEqual(
            str(self.failureResultOf(asked, CredentialsError).value),
            "/etc/kubeconfig: exec: '/bin/sh': it printed nothing within 60 s, and was killed",
        )
        self.assertEqual(self.runner.killed, 1)

    def test_missing(self) -> None:
        """A command that is not there is told with the way to get it."""
        self.credentials = self.made(Exec(V1, "kiwi-no-such-plugin", install_hint="Ask Bob\nfor it."))
        self.assertEqual(
            self.trouble(self.credentials),
            "/etc/kubeconfig: exec: 'kiwi-no-such-plugin': there is no such command; Ask Bob\\nfor it.",
        )
        self.assertIn("; install it", self.trouble(self.made(Exec(V1, "./kiwi-no-such-plugin"))))

    def test_unstarted(self) -> None:
        """A command that cannot be started is told of."""

        def refuse(command: Command) -> Deferred[Finished]:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        self.credentials.run = refuse
        self.assertEqual(
            self.trouble(self.credentials), "/etc/kubeconfig: exec: '/bin/sh': Resource temporarily unavailable"
        )

    def test_secret(self) -> None:
        """Tokens, arguments and environments stay out of what is printed."""
        self.got("secret-token")
        shown = repr(self.credentials) + repr(self.runner.commands)
        for secret in ("secret-token", "get token", "north", "south"):
            self.assertNotIn(secret, shown)


class ProcessTests(TestCase):
    """Real commands."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor

    def script(self, text: str) -> str:
        path = os.path.abspath(self.mktemp())
        with open(path, "w") as file:
            file.write(f"#!{SH}\n{text}\n")
        os.chmod(path, 0o755)
        return path

    def run_script(self, text: str, *arguments: str, **environment: str) -> Deferred[Finished]:
        return run(self.reactor, Command(self.script(text), arguments, environment))

    async def until(self, condition: Callable[[], bool]) -> None:
        end = self.reactor.seconds() + 30
        while not condition():
            self.assertLess(self.reactor.seconds(), end, "it did not come")
            await deferLater(self.reactor, 0.01)

    async def test_output(self) -> None:
        """What a command prints comes back with its status."""
        self.assertEqual(
            await self.run_script('echo "$1 $NAME"; echo no >&2; exit 3', "one", NAME="two"),
            Finished(3, b"one two\n", b"no\n"),
        )

    async def test_input(self) -> None:
        """There is nothing to read, and no terminal."""
        self.assertEqual(await self.run_script("cat; test -t 0 || echo none"), Finished(0, b"none\n"))

    async def test_signal(self) -> None:
        """A command that a signal ended says which."""
        self.assertEqual(await self.run_script("kill -TERM $$"), Finished(-15, b""))

    async def test_killed(self) -> None:
        """A command that is cancelled is killed, and nothing is left of it."""
        noted = os.path.abspath(self.mktemp())
        running = self.run_script(
            'echo $$ > "$1.new"; mv "$1.new" "$1"; cat /proc/self/fd/1', noted, PATH="/bin:/usr/bin"
        )
        await self.until(lambda: os.path.exists(noted))
        with open(noted) as file:
            process = f"/proc/{file.read().strip()}"
        running.cancel()
        self.failureResultOf(running)
        await self.until(lambda: not os.path.exists(process))

    async def test_plugin(self) -> None:
        """A real plugin prints credentials."""
        path = self.script(
            f"exec {sys.executable} - <<'END'\n"
            "import json, os\n"
            "asked = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
            "asked['status'] = {'token': os.environ['WORD'] + '-' + asked['spec']['cluster']['server'][-1]}\n"
            "print(json.dumps(asked))\n"
            "END"
        )
        credentials = PluginCredentials(
            Exec(V1BETA1, path, (), {"WORD": "abc"}, cluster_info=True),
            Cluster("https://k"),
            "here",
            lambda command: run(self.reactor, command),
            self.reactor,
            lambda: EPOCH,
            os.environ,
        )
        self.assertEqual(await credentials.headers(), {"Authorization": "Bearer abc-k"})
