"""Following a cluster whose server goes away, forgets, refuses, or talks nonsense. Time is simulated."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kiwi.kubernetes.api import KubernetesAPI
from kiwi.kubernetes.client import Objects
from kiwi.kubernetes.credentials import NoCredentials
from kiwi.kubernetes.services import SERVICES
from kiwi.kubernetes.watch import ObjectWatch
from tests.fakes.kubernetes import encode, service
from tests.fakes.kubernetes.access import Access

from .clusters import Following, MemoryCluster, captured_log, latest

LIST = "GET /api/v1/services?limit=500"
FOLLOWING = "following Services from Kubernetes at http://kubernetes:8080, API {}: {} with public addresses"
LOST = (
    "cannot follow Kubernetes at http://kubernetes:8080: {}; the Services known so far stay ({} with public addresses)"
)
BROKEN = "Connection was closed cleanly: Connection done"
SPOKEN = "Kiwi speaks v1, v1beta3 and v1beta1"


def watch_from(version: int, seconds: int = 56) -> str:
    """The request for a C{v1} watch."""
    return (
        f"GET /api/v1/services?resourceVersion={version}&watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}"
    )


def listing(version: str) -> str:
    """The request for a list."""
    return LIST if version == "v1" else f"GET /api/{version}/services"


class Case(SynchronousTestCase):
    """A cluster with one Service, C{web}, and the means to follow it."""

    behaviour: dict[str, Any] = {}
    api = "v1"

    def setUp(self) -> None:
        self.cluster = MemoryCluster(self, **self.behaviour)
        self.state = self.cluster.state
        self.state.put(service("web", ["192.168.1.41"]))
        self.lines = captured_log(self)

    def follow(self, api: str | None = None) -> Following:
        following = self.cluster.follow(api or self.api)
        self.cluster.turn()
        return following

    def restart(self) -> None:
        """Restart the server, which takes a moment and loses everything."""
        self.state.fail(503)
        self.state.restart()
        self.cluster.wait(0.3)
        self.state.recover()

    def requests(self) -> list[str]:
        """The requests since the last time, and forget them."""
        requests = list(self.state.requests)
        self.state.requests.clear()
        return requests

    def heard(self) -> list[str]:
        """The lines of log since the last time, and forget them."""
        lines = list(self.lines)
        self.lines.clear()
        return lines

    def followed(self, seconds: float = 6.0) -> Following:
        """Follow the Services for a while, and forget what led there."""
        following = self.follow()
        self.cluster.wait(seconds)
        self.assertEqual(following.names, ["web"])
        self.requests()
        self.heard()
        following.told.clear()
        return following


class ResumingTests(Case):
    """Where a watch begins."""

    def test_list_then_watch(self) -> None:
        """A watch begins where the list ended."""
        self.follow()
        self.assertEqual(self.requests(), [LIST, watch_from(2)])

    def test_resume(self) -> None:
        """A watch that ended goes on after the last event."""
        self.followed()
        self.state.put(service("dns", ["192.168.1.42"]))
        self.state.end_watches()
        self.cluster.turn()
        self.assertEqual(self.requests(), [watch_from(3)])
        self.assertEqual(self.heard(), [])

    def test_bookmark(self) -> None:
        """A bookmark counts like an event."""
        self.followed()
        self.state.resource_version = 70
        self.state.bookmark()
        self.state.end_watches()
        self.cluster.turn()
        self.assertEqual(self.requests(), [watch_from(70)])

    def test_events_that_are_no_use(self) -> None:
        """A Service that is refused counts as well."""
        self.followed()
        self.state.put(service("WEB"))
        self.state.end_watches()
        self.cluster.turn()
        self.assertEqual(self.requests(), [watch_from(3)])

    def test_missed(self) -> None:
        """What happened between two watches is told by the second."""
        following = self.followed()
        self.state.drop_connections()
        self.state.put(service("dns", ["192.168.1.42"]))
        self.state.delete("web")
        self.cluster.wait(0.2)
        self.assertEqual(self.requests(), [watch_from(2)])
        self.assertEqual(following.names, ["dns"])

    def test_the_servers_own_end(self) -> None:
        """The server ends a watch when its time is over, which is no loss."""
        following = self.followed(0)
        self.cluster.wait(57)
        self.assertEqual(self.requests(), [watch_from(2)])
        self.assertEqual((self.heard(), following.told), ([], []))

    def test_expired(self) -> None:
        """When the version has expired, as a status or as an event, everything is listed; so a deletion shows."""
        for by_status in (False, True):
            self.state.expires_by_status = by_status
            self.state.put(service("web", ["192.168.1.41"]))
            self.state.put(service("dns", ["192.168.1.42"]))
            following = self.follow()
            self.cluster.wait(6)
            self.assertEqual(following.names, ["dns", "web"])
            version = self.state.resource_version
            self.requests()
            self.heard()
            self.state.hang()
            self.state.delete("web")
            self.state.compact()
            self.state.hanging = False
            self.state.end_watches()
            self.cluster.wait(0.5)
            self.assertEqual(self.requests(), [watch_from(version), LIST, watch_from(version + 1)])
            self.assertEqual(following.names, ["dns"])
            self.assertEqual(self.heard(), [])
            following.watch.stopService()
            self.cluster.turn()

    def test_expired_for_ever(self) -> None:
        """A server by which every version has expired is not asked without end."""
        self.followed()
        self.state.resource_version = 70
        self.state.compact()
        self.state.resource_version = 1
        for by_status in (True, False):
            self.state.expires_by_status = by_status
            self.state.drop_connections()
            self.cluster.wait(60)
            self.assertLess(len(self.requests()), 50)

    def test_other_history(self) -> None:
        """After a server could not be reached, everything is listed: it may have another history."""
        following = self.followed()
        self.state.fail(503)
        self.state.restart()
        self.state.put(service("dns", ["192.168.1.42"]))
        self.cluster.wait(0.2)
        self.state.recover()
        self.cluster.wait(1)
        self.assertEqual(self.requests()[-2:], [LIST, watch_from(2)])
        self.assertEqual(following.names, ["dns"])

    def test_from_time_to_time(self) -> None:
        """A watch that ends long after the last list is followed by a list."""
        self.followed()
        self.cluster.wait(20 * 56, step=1)
        self.assertEqual(self.requests(), [*[watch_from(2)] * 10, LIST, *[watch_from(2)] * 10])

    def test_server_error(self) -> None:
        """After an error in the watch, everything is listed."""
        self.followed()
        error = {"kind": "Status", "code": 500, "message": "etcd cluster\nis unavailable"}
        self.state.send(encode({"type": "ERROR", "object": error}))
        self.cluster.wait(0.3)
        self.assertEqual(self.requests(), [LIST, watch_from(2)])
        self.assertEqual(self.heard()[0], LOST.format(r"it ended the watch: 'etcd cluster\nis unavailable'", 1))


class LosingNothingTests(Case):
    """Losing Kubernetes withdraws nothing."""

    def test_away(self) -> None:
        """While the server is away, what is known stays."""
        following = self.followed()
        for code in (500, 503, 404, 403, 429):
            self.state.fail(code)
            self.state.drop_connections()
            self.cluster.wait(30)
        self.state.recover()
        self.cluster.wait(6)
        self.assertEqual((following.told, self.heard()[-1]), ([], FOLLOWING.format("v1", 1)))

    def test_nonsense_for_a_list(self) -> None:
        """An answer that is no list says nothing about Services."""
        following = self.followed()
        for body in (b"", b"<html>", b"{}", b'{"kind":"Status","status":"Success"}', b"\xff", b'{"items":{}}'):
            self.state.list_body = body
            self.state.compact()
            self.state.fail(500)
            self.state.drop_connections()
            self.cluster.wait(1)
            self.state.recover()
            self.cluster.wait(10)
        self.assertEqual(following.told, [])

    def test_restarted_and_empty_for_a_while(self) -> None:
        """An empty list is not believed at once."""
        following = self.followed()
        web = dict(self.state.services)
        self.restart()
        self.cluster.wait(4)
        self.state.services.update(web)
        self.cluster.wait(10)
        self.assertEqual(following.told, [])
        self.assertIn(
            "Kubernetes at http://kubernetes:8080 lists no Service with public addresses, where there were 1; "
            "they stay unless it says the same for 5 s",
            self.heard(),
        )

    def test_restarted_and_empty(self) -> None:
        """An empty list is believed when it is still empty after five seconds."""
        following = self.followed()
        self.restart()
        self.cluster.wait(5)
        self.assertEqual(following.told, [])
        self.cluster.wait(1.5)
        self.assertEqual(following.told, [{}])

    def test_doubt_begins_anew(self) -> None:
        """An empty list, a time without a server, and another empty list are no confirmation."""
        following = self.followed()
        self.restart()
        self.cluster.wait(3)
        self.state.fail(503)
        self.cluster.wait(10)
        self.state.recover()
        self.cluster.wait(4)
        self.assertEqual(following.told, [])

    def test_deletion(self) -> None:
        """The deletion of the last Service is believed at once."""
        following = self.followed()
        self.state.delete("web")
        self.cluster.turn()
        self.assertEqual(following.told, [{}])

    def test_some_are_missing(self) -> None:
        """A list that only lacks some Services is believed at once."""
        self.state.put(service("dns", ["192.168.1.42"]))
        following = self.follow()
        self.cluster.wait(6)
        self.state.drop_connections()
        self.state.delete("web")
        self.state.compact()
        self.cluster.wait(0.5)
        self.assertEqual(following.names, ["dns"])


class TellingTests(Case):
    """What is told, and how often."""

    def test_once_in_a_turn(self) -> None:
        """Events that arrive together are told together."""
        following = self.followed()
        for last in range(2, 20):
            self.state.put(service(f"s{last}", [f"192.168.1.{last}"]))
        self.cluster.turn()
        self.assertEqual(list(map(len, following.told)), [19])

    def test_nothing_new(self) -> None:
        """What changes nothing for Kiwi is not told."""
        following = self.followed()
        self.state.put(service("web", ["192.168.1.41"], annotations={"seen": "today"}))
        self.state.compact()
        self.state.drop_connections()
        self.cluster.wait(6)
        self.assertEqual(following.told, [])

    def test_handed_out(self) -> None:
        """What was told stays as it was told."""
        following = self.follow()
        first = following.told[0]
        copy = dict(first)
        self.state.put(service("web", ["192.168.1.42"]))
        self.cluster.turn()
        self.assertEqual((len(following.told), first), (2, copy))


class OnlyAWatchTests(Case):
    """A server of an old version which has no list."""

    behaviour = {"versions": ["v1beta1"], "lists": False}
    api = "v1beta1"
    WATCH = "GET /api/v1beta1/watch/services"

    def reconnect(self) -> None:
        self.state.drop_connections()
        self.cluster.wait(0.3)

    def test_at_first(self) -> None:
        """The Services are told when the server pauses."""
        following = self.follow()
        for last in range(2, 6):
            self.cluster.wait(0.4)
            self.assertEqual(following.told, [])
            self.state.put(service(f"s{last}", [f"192.168.1.{last}"]))
            self.cluster.turn()
        self.cluster.wait(0.6)
        self.assertEqual(list(map(len, following.told)), [5])
        self.assertEqual(self.requests(), ["GET /api/v1beta1/services", self.WATCH])

    def test_half_at_first(self) -> None:
        """What a broken connection told is not all there is."""
        following = self.follow()
        self.cluster.wait(0.3)
        self.state.fail(503)
        self.state.drop_connections()
        self.cluster.wait(20)
        self.assertEqual(following.told, [])
        self.state.recover()
        self.state.put(service("dns", ["192.168.1.42"]))
        self.cluster.wait(6)
        self.assertEqual(list(map(len, following.told)), [2])

    def test_none_at_first(self) -> None:
        """A server that says nothing has none."""
        self.state.delete("web")
        following = self.follow()
        self.cluster.wait(4)
        self.assertEqual(following.told, [])
        self.cluster.wait(2)
        self.assertEqual(following.told, [{}])

    def test_not_repeated(self) -> None:
        """After a reconnect, what the server does not repeat within five seconds is gone."""
        self.state.put(service("dns", ["192.168.1.42"]))
        following = self.follow()
        self.cluster.wait(6)
        self.state.drop_connections()
        self.state.delete("web")
        self.cluster.wait(4)
        self.assertEqual(following.names, ["dns", "web"])
        self.cluster.wait(2)
        self.assertEqual(following.names, ["dns"])

    def test_repeated(self) -> None:
        """What it does repeat stays."""
        following = self.followed()
        self.reconnect()
        self.cluster.wait(20)
        self.assertEqual(following.told, [])

    def test_short_connections(self) -> None:
        """A connection that does not last says nothing about what is gone."""
        following = self.followed()
        self.state.delete("web")
        self.cluster.turn()
        self.state.put(service("web", ["192.168.1.41"]))
        self.cluster.turn()
        following.told.clear()
        del self.state.services["default", "web"]
        for _ in range(10):
            self.state.drop_connections()
            self.cluster.wait(4)
        self.assertEqual(following.told, [])

    def test_away(self) -> None:
        """While the server is away, what is known stays."""
        following = self.followed()
        self.state.fail(503)
        self.state.drop_connections()
        self.cluster.wait(100)
        self.assertEqual(following.told, [])


class SilenceTests(Case):
    """A connection of which only this end is left."""

    def test_v1(self) -> None:
        """A watch that outlives the time it asked for is dead, and nothing is known of the time since."""
        following = self.followed()
        self.state.hang()
        self.state.put(service("dns", ["192.168.1.42"]))
        for watcher in self.state.watchers:
            assert watcher.ending is not None
            watcher.ending.cancel()
        self.cluster.wait(64)
        self.assertEqual(self.requests(), [])
        self.state.hanging = False
        self.cluster.wait(20)
        self.assertEqual(self.requests(), [LIST, watch_from(3)])
        self.assertEqual((following.names, self.heard()), (["dns", "web"], []))

    def test_older(self) -> None:
        """An old version's watch without a word for a minute is followed by a list, which is no loss."""
        following = self.follow("v1beta1")
        self.cluster.wait(50)
        self.state.put(service("web", ["192.168.1.42"]))
        self.cluster.wait(50)
        self.requests()
        self.heard()
        self.cluster.wait(20)
        requests = ["GET /api/v1beta1/services", "GET /api/v1beta1/watch/services?resourceVersion=3"]
        self.assertEqual((self.requests(), self.heard(), len(following.told)), (requests, [], 2))

    def test_dead(self) -> None:
        """A dead peer is lost when the request after the silence is not answered either."""
        self.followed()
        self.state.hang()
        for watcher in self.state.watchers:
            assert watcher.ending is not None
            watcher.ending.cancel()
        self.cluster.wait(395)
        self.assertEqual(self.heard(), [LOST.format("no answer within 30 s", 1)])


class DetectionTests(Case):
    """Which version of the API is spoken."""

    def test_the_newest(self) -> None:
        """The newest version that the server offers."""
        for offered, chosen in (
            (("v1beta1", "v1beta3", "v1"), "v1"),
            (("v1beta1", "v1beta3"), "v1beta3"),
            (("v1beta1",), "v1beta1"),
        ):
            cluster = MemoryCluster(self, versions=offered)
            following = cluster.follow("auto")
            self.assertEqual(list(cluster.state.requests)[:2], ["GET /api", listing(chosen)])
            self.assertEqual(following.told, [{}])

    def test_by_trying(self) -> None:
        """Where the server does not say what it offers, each version is tried."""
        for discovery in (b"", b"<html>", b"[]", b'{"versions":null}'):
            for offered, chosen in (("v1", "v1"), ("v1beta3", "v1beta3"), ("v1beta1", "v1beta1")):
                cluster = MemoryCluster(self, versions=[offered], discovery=discovery)
                following = cluster.follow("auto")
                tried = ["v1", "v1beta3", "v1beta1"]
                requests = [f"GET /api/{each}/services?limit=1" for each in tried[: tried.index(chosen) + 1]]
                self.assertEqual(list(cluster.state.requests)[:-1], ["GET /api", *requests, listing(chosen)])
                self.assertEqual(following.told, [{}])

    def test_no_hasty_step_back(self) -> None:
        """A version that cannot be had now is not given up for an older one."""
        for code in (401, 403, 429, 500, 503):
            cluster = MemoryCluster(self, discovery=b"")
            cluster.state.fail(code, path="/api/v1/")
            following = cluster.follow("auto")
            cluster.wait(20)
            self.assertEqual(set(cluster.state.requests), {"GET /api", "GET /api/v1/services?limit=1"})
            cluster.state.recover()
            cluster.wait(6)
            self.assertEqual((following.told, cluster.state.requests[-1]), ([{}], watch_from(1)))

    def test_only_a_watch(self) -> None:
        """A server with nothing but the oldest watch is understood."""
        cluster = MemoryCluster(self, versions=["v1beta1"], lists=False, discovery=b"")
        cluster.state.put(service("web", ["192.168.1.41"]))
        following = cluster.follow("auto")
        cluster.wait(1)
        self.assertEqual(following.names, ["web"])

    def test_not_anew(self) -> None:
        """A reconnect does not ask for the version again."""
        self.follow("auto")
        self.cluster.wait(6)
        self.requests()
        self.state.drop_connections()
        self.cluster.wait(1)
        self.state.fail(503)
        self.state.drop_connections()
        self.cluster.wait(1)
        self.state.recover()
        self.cluster.wait(6)
        requests = self.requests()
        self.assertEqual((requests[-1], requests.count("GET /api")), (watch_from(2), 0))

    def test_another_server(self) -> None:
        """A version that is gone is looked for again."""
        following = self.follow("auto")
        self.cluster.wait(6)
        self.state.versions = ["v1beta3"]
        self.state.drop_connections()
        self.cluster.wait(6)
        self.assertEqual(
            self.heard(),
            [
                FOLLOWING.format("v1", 1),
                LOST.format(BROKEN, 1),
                LOST.format(f"it has no /api/v1/services (status 404), and {SPOKEN}", 1),
                FOLLOWING.format("v1beta3", 1),
            ],
        )
        self.assertEqual(len(following.told), 1)

    def test_none(self) -> None:
        """A server that offers no version that Kiwi speaks is told of once, and asked again."""
        self.state.discovery = encode({"versions": ["v2", "v1beta2\n", 7]})
        following = self.follow("auto")
        self.cluster.wait(30)
        self.assertEqual(self.heard(), [LOST.format(rf"it offers 'v2', 'v1beta2\n', and {SPOKEN}", 0)])
        self.assertEqual(following.told, [])
        self.state.discovery = None
        self.cluster.wait(6)
        self.assertEqual((following.names, self.heard()), (["web"], [FOLLOWING.format("v1", 1)]))

    def test_nothing(self) -> None:
        """A server that has no Services in any version is told of once."""
        self.state.versions = []
        self.state.discovery = b""
        self.follow("auto")
        self.cluster.wait(30)
        problem = f"it has no /api/v1beta1/watch/services (status 404), and {SPOKEN}"
        self.assertEqual(self.heard(), [LOST.format(problem, 0)])

    def test_no_right_to_discover(self) -> None:
        """A server that tells its versions to nobody can still be tried."""
        self.state.fail(403, path="/api?")
        following = self.follow("auto")
        self.assertEqual(following.names, ["web"])
        self.assertEqual(self.requests(), ["GET /api", "GET /api/v1/services?limit=1", LIST, watch_from(2)])


class PagesTests(Case):
    """Lists come in parts."""

    def setUp(self) -> None:
        super().setUp()
        for number in range(1200):
            self.state.put(service(f"s{number:04}", [f"10.1.{number // 250}.{number % 250 + 1}"]))

    def test_pages(self) -> None:
        """Everything is known when the last part is there, as of one moment, and is told together."""
        following = self.follow()
        self.cluster.wait(0.1)
        self.assertEqual([len(told) for told in following.told], [1201])
        *pages, watch = self.requests()
        self.assertEqual([request.partition("&")[0] for request in pages], [LIST] * 3)
        self.assertEqual(["&continue=" in request for request in pages], [False, True, True])
        self.assertEqual(watch, watch_from(1202))

    def before_the_second_part(self, act: Callable[[], object]) -> None:
        """Let something happen while a list is asked for."""
        asked: list[str] = []

        def authorize(access: Access) -> bool:
            asked.append(access.verb)
            if asked == ["list", "list"]:
                act()
            return True

        self.state.authorize = authorize

    def test_changed_meanwhile(self) -> None:
        """What happens between two parts is told by the watch."""

        def act() -> None:
            self.state.delete("s0001")
            self.state.put(service("new", ["10.2.0.1"]))

        self.before_the_second_part(act)
        following = self.follow()
        self.cluster.wait(0.1)
        self.assertEqual(len(following.told[-1]), 1201)
        self.assertEqual({"new", "s0001"} & set(following.names or ()), {"new"})

    def test_forgotten_meanwhile(self) -> None:
        """A server that has forgotten how things were at the first part is asked for all at once."""

        def act() -> None:
            self.state.put(service("new", ["10.2.0.1"]))
            self.state.compact()

        self.before_the_second_part(act)
        following = self.follow()
        self.cluster.wait(0.1)
        self.assertEqual([len(told) for told in following.told], [1202])
        self.assertEqual(self.requests()[-2:], ["GET /api/v1/services", watch_from(1203)])

    def test_memory(self) -> None:
        """What there is nothing to know of is not kept beyond its part."""
        for number in range(9000):
            self.state.put(service(f"inner{number}", annotations={"large": "x" * 1000}))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        following = self.follow()
        self.cluster.wait(0.1)
        self.assertEqual([len(told) for told in following.told], [1201])
        # The server in memory is in the same process: what it renders of a part counts here, too.
        self.assertLess(tracemalloc.get_traced_memory()[1], 40 * 2**20)


class InBetweenTests(Case):
    """What is between the agent and the server, and servers that take turns."""

    def test_cut_after_a_minute(self) -> None:
        """A balancer that cuts connections when they are a minute old never finds one."""
        self.followed()
        born: dict[object, float] = {}
        for _ in range(600):
            self.cluster.turn(1)
            born = {each: born.get(each, self.cluster.clock.seconds()) for each in self.state.watchers}
            self.assertLess(self.cluster.clock.seconds() - min(born.values()), 60)
        self.assertEqual((set(self.requests()) - {LIST}, self.heard()), ({watch_from(2)}, []))

    def test_behind(self) -> None:
        """A server that does not know yet what another one has told is asked for everything."""
        following = self.followed()
        self.state.refuses_future = True
        self.state.put(service("dns", ["192.168.1.42"]))
        self.cluster.turn()
        self.state.resource_version = 2
        self.state.end_watches()
        self.cluster.wait(1)
        self.assertEqual(self.requests(), [watch_from(3), LIST, watch_from(2)])
        self.assertEqual(following.names, ["dns", "web"])

    def test_too_many_requests(self) -> None:
        """A server that is asked too much says when to come again, and is left alone until then."""
        self.followed()
        self.state.fail(429, retry_after="20")
        self.state.drop_connections()
        self.cluster.wait(19)
        self.assertEqual(len(self.requests()), 1)
        self.state.recover()
        self.cluster.wait(3)
        self.assertEqual(self.requests(), [LIST, watch_from(2)])


class RefusalTests(Case):
    """A server that answers, but not with Services."""

    def test_forbidden(self) -> None:
        """What was refused, and on what, is told once."""
        for code, refused in (
            (401, "it does not accept the credentials shown for: list services (status 401: 'Unauthorized: {}')"),
            (403, "it does not let this agent list services (status 403: 'Forbidden: {}')"),
        ):
            self.state.fail(code)
            following = self.follow()
            self.cluster.wait(60)
            self.assertEqual(self.heard(), [LOST.format(refused.format("/api/v1/services is refused"), 0)])
            following.watch.stopService()

    def test_forbidden_to_watch(self) -> None:
        """A watch can be refused where a list is not."""
        self.state.fail(403, path="/api/v1beta1/watch")
        following = self.follow("v1beta1")
        self.cluster.wait(60)
        because = "'Forbidden: /api/v1beta1/watch/services is refused'"
        problem = f"it does not let this agent watch services (status 403: {because})"
        self.assertEqual((self.heard(), following.names), ([LOST.format(problem, 1)], ["web"]))

    def test_another_reason(self) -> None:
        """When the reason is another one, that is told too."""
        self.followed()
        self.state.drop_connections()
        for code in (503, 403, 503, 403, 404, 500):
            self.state.fail(code)
            self.cluster.wait(20)
        absent = f"it has no /api/v1/services (status 404), and {SPOKEN}"
        forbidden = "it does not let this agent list services (status 403: 'Forbidden: /api/v1/services is refused')"
        self.assertEqual(self.heard(), [LOST.format(each, 1) for each in (BROKEN, forbidden, absent)])

    def test_backoff(self) -> None:
        """The waits double up to the longest."""
        self.state.fail(500)
        self.follow()
        times: list[float] = []
        while len(times) < 8:
            self.cluster.turn(0.01)
            if len(self.state.requests) > len(times) + 1:
                times.append(round(self.cluster.clock.seconds(), 1))
        self.assertEqual(times, [0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 11.3, 16.3])

    def test_backoff_ends(self) -> None:
        """After a connection that lasted, the first wait is short again."""
        self.state.fail(500)
        self.follow()
        self.cluster.wait(30)
        self.state.recover()
        self.cluster.wait(12)
        self.requests()
        self.state.drop_connections()
        self.cluster.wait(0.2)
        self.assertEqual(self.requests(), [watch_from(2)])

    def test_retry_after(self) -> None:
        """A server that says when to come back is not asked before, within reason."""
        for code in (429, 503):
            for after, wait in (("7", 7.0), ("0", 0.1), ("99999999999999", 60.0), ("soon", 0.1), ("-1", 0.1)):
                cluster = MemoryCluster(self)
                cluster.state.fail(code, after)
                following = cluster.follow("v1")
                cluster.wait(wait - 0.05, step=0.05)
                asked = len(cluster.state.requests)
                cluster.wait(0.1, step=0.05)
                self.assertEqual((asked, len(cluster.state.requests)), (1, 2), after)
                following.watch.stopService()

    def test_flapping(self) -> None:
        """A server that ends every watch at once is asked less and less often, and the log is not full of it."""
        self.followed()
        for _ in range(600):
            self.state.end_watches()
            self.cluster.turn(0.1)
        self.assertLess(len(self.requests()), 30)
        for _ in range(600):
            self.state.drop_connections()
            self.cluster.turn(0.1)
        self.assertEqual(self.heard(), [LOST.format(BROKEN, 1)])
        self.cluster.wait(12)
        self.assertEqual(self.heard(), [FOLLOWING.format("v1", 1)])


class LogTests(Case):
    """What an operator reads."""

    def test_connection(self) -> None:
        """One line when the server is found, one when it is lost, none for what is between."""
        self.follow("auto")
        self.cluster.wait(6)
        self.state.fail(503)
        self.state.drop_connections()
        self.cluster.wait(60)
        self.state.recover()
        self.cluster.wait(6)
        self.assertEqual(
            self.heard(),
            [FOLLOWING.format("v1", 1), LOST.format(BROKEN, 1), FOLLOWING.format("v1", 1)],
        )

    def test_problems(self) -> None:
        """A problem of a Service is told once, and again when it was gone in between."""
        self.followed()
        bad = service("dns", ["300.1.1.1", "192.168.1.42"], [(53, "UDP"), (70000, "TCP")])
        problems = [
            "Service infra/dns: port 70000 of its ports is not between 1 and 65535",
            "Service infra/dns: public address '300.1.1.1' is not an IP address",
        ]
        bad["metadata"]["namespace"] = "infra"
        for _ in range(3):
            self.state.put(bad | {"status": {}})
            bad["metadata"]["labels"] = {"n": str(self.state.resource_version)}
            self.cluster.turn()
        self.state.compact()
        self.state.drop_connections()
        self.cluster.wait(6)
        self.assertEqual([line for line in self.heard() if "dns" in line], problems)
        self.state.delete("dns", "infra")
        self.state.put(bad)
        self.cluster.turn()
        self.assertEqual([line for line in self.heard() if "dns" in line], problems)

    def test_refused(self) -> None:
        """A Service with a name that is none is left aside."""
        self.followed()
        self.state.put(service('web"\n-A INPUT -j ACCEPT', ["192.168.1.49"]))
        self.cluster.turn()
        self.assertEqual(
            self.heard(),
            ["one Service from Kubernetes is left aside: its name 'web\"\\n-A INPUT -j ACCEPT' is not a DNS name"],
        )


class NonsenseTests(Case):
    """Lines of a watch that nobody can understand."""

    LINES: tuple[bytes, ...] = (
        b'{"type":"ADDED","object":{"kind":"Serv',
        b"\x00\xff\xfe garbage {service}",
        b"[]",
        b"null",
        b"{}",
        b'{"type":null,"object":null}',
        b'{"type":"ADDED","object":[]}',
        b'{"type":"SYNC","object":{}}',
        b'{"type":{},"object":{}}',
        b'{"type":"BOOKMARK","object":{"metadata":null}}',
        b'{"type":"DELETED","object":{"kind":"Service","metadata":{"name":null}}}',
        b'{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"web"}}}',
        b'{"type":"ADDED","object":{"kind":"Service","metadata":{"name":["web"]}}}',
        b'{"type":"ADDED","object":{"kind":"Service","metadata":null,"spec":null}}',
        b"[" * 200_000,
        b'{"type":"ADDED","object":{"kind":"' + b"x" * 2**20 + b'"}}',
        b"x" * (9 * 2**20),
    )

    def check(self, line: bytes, number: int) -> None:
        """It makes one line of log, and the event after it counts."""
        self.state.send(line)
        self.state.put(service("web", [f"192.168.1.{number + 1}"]))
        self.cluster.turn()
        [told] = self.following.told
        self.following.told.clear()
        [web] = told.values()
        self.assertEqual(list(map(str, web.addresses)), [f"192.168.1.{number + 1}"])
        [heard] = self.heard()
        self.assertTrue(heard.isascii() and heard.isprintable() and len(heard) < 1500, heard)

    def test_lines(self) -> None:
        """Each makes one line of log, and the event after it counts."""
        self.following = self.followed()
        for number, line in enumerate(self.LINES):
            self.check(line, number)

    def test_why(self) -> None:
        """The line of log says why."""
        self.followed()
        self.state.send(b'{"type":"SYNC","object":{}}')
        self.state.send(b"\xffoops\n\n\n")
        self.cluster.turn()
        self.assertEqual(
            self.heard(),
            [
                "an event from Kubernetes makes no sense: events of type 'SYNC' are unknown",
                "an event from Kubernetes makes no sense: it is not UTF-8: '\\xffoops'",
            ],
        )

    def test_cut_at_the_end(self) -> None:
        """A line that the end of the connection cuts is no event, and the server repeats the event."""
        following = self.followed()
        for watcher in self.state.watchers:
            watcher.request.write(b'{"type":"DELETED","object":{"kind":"Service","metadata":{"name":"web"}}}')
        self.state.drop_connections()
        self.cluster.wait(1)
        self.assertEqual((following.told, self.requests()), ([], [watch_from(2)]))

    def test_memory(self) -> None:
        """However much nonsense there is, none of it is kept."""
        following = self.followed()
        globally = self.lines
        kinds: list[Callable[[int], bytes]] = [
            lambda n: b"nonsense %d" % n,
            lambda n: encode({"type": "ADDED", "object": {"kind": "Service", "metadata": {"name": f"W{n}"}}}),
            lambda n: encode({"type": "DELETED", "object": {"kind": "Service", "metadata": {"name": f"w{n}"}}}),
            lambda n: encode({"type": f"KIND{n}", "object": {}}),
        ]

        def send(first: int, last: int) -> None:
            for number in range(first, last):
                self.state.send(kinds[number % 4](number))
                if number % 100 == 0:
                    self.cluster.turn()
                    globally.clear()

        send(0, 1000)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        send(1000, 21_000)
        self.cluster.turn()
        globally.clear()
        after, _ = tracemalloc.get_traced_memory()
        self.assertLess(after - before, 300_000)
        self.assertEqual(following.told, [])

    def test_memory_of_problems(self) -> None:
        """The problems of Services that are gone are forgotten."""
        following = self.followed()
        for number in range(100):
            self.state.put(service(f"s{number}", ["bad"]))
            self.state.delete(f"s{number}")
        self.cluster.turn()
        self.assertEqual(len(self.heard()), 100)
        self.assertEqual(following.told, [])


class StoppingTests(Case):
    """Stopping leaves nothing behind, whatever is under way. (Each test's clean-up checks timers and connections.)"""

    def test_while_it_asks(self) -> None:
        """In the middle of a request."""
        for api in ("auto", "v1"):
            cluster = MemoryCluster(self)
            cluster.state.hang()
            following = cluster.follow(api)
            self.assertEqual(len(cluster.state.requests), 1)
            following.watch.stopService()
            self.assertEqual(cluster.clock.getDelayedCalls(), [])

    def test_while_it_opens_a_watch(self) -> None:
        """Before the server has agreed to a watch."""
        following = self.follow("v1beta1")
        self.state.hang()
        self.state.end_watches()
        self.cluster.wait(6)
        following.watch.stopService()
        self.assertEqual(self.cluster.clock.getDelayedCalls(), [])

    def test_while_it_watches(self) -> None:
        """With a watch open, also when there is something to tell."""
        following = self.follow()
        self.state.put(service("web", ["192.168.1.42"]))
        self.cluster.agent.flush()
        following.watch.stopService()
        self.cluster.turn()
        self.assertEqual((following.names, len(following.told), self.state.watchers), (["web"], 1, []))

    def test_while_it_waits(self) -> None:
        """Between two tries, and in doubt of an empty list."""
        self.state.fail(500)
        following = self.follow()
        following.watch.stopService()
        self.assertEqual(self.cluster.clock.getDelayedCalls(), [])

    def test_while_it_doubts(self) -> None:
        """In doubt of an empty list."""
        following = self.followed()
        self.restart()
        self.cluster.wait(2)
        self.assertEqual(self.state.watchers, [])
        following.watch.stopService()
        self.assertEqual(self.cluster.clock.getDelayedCalls(), [])

    def test_never_started(self) -> None:
        """Without having begun."""
        server = KubernetesAPI(None, None, Clock(), "http://k", NoCredentials(), latest)  # type: ignore[arg-type]
        watch = ObjectWatch(Objects(server, SERVICES), "v1", self.cluster.policy, lambda services: None)
        watch.stopService()

    def test_a_mistake(self) -> None:
        """A mistake in the loop is logged, and is not the end of it."""
        mistakes = [ZeroDivisionError()]

        def uniform(low: float, high: float) -> float:
            if mistakes:
                raise mistakes.pop()
            return high

        self.cluster.policy = type(self.cluster.policy)(0.1, 5.0, uniform)
        following = self.follow()
        self.cluster.wait(1)
        self.assertEqual((following.names, len(self.state.watchers)), (["web"], 1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
