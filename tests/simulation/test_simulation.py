"""Tests of what simulations are made of: time, the network and the kernel."""

from __future__ import annotations

from math import floor, inf
from random import Random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived

from kiwi.http import HTTPError, Response, request, stream
from kiwi.model import Address
from kiwi.network.addresses import preferred_lifetime
from kiwi.planning import ALONE_ENDS_BEFORE, KERNEL_LATENESS

from .kernel import HZ, Entry, Kernel, Thread, latest, wheel
from .timeline import TICK, HostClock, Process, Timeline
from .transport import Client, Network, Request
from .world import ADDRESSES, World

PLACE = "server:80"


class TimeTests(SynchronousTestCase):
    """Each process has its own clock, and may be frozen or killed."""

    def setUp(self) -> None:
        self.timeline = Timeline()
        self.process = Process("one", self.timeline, HostClock(self.timeline, 500.0, 0.99), Random(1))
        self.clock = self.process.clock
        self.called: list[Any] = []

    def test_rate(self) -> None:
        """A slow clock's second is longer; a call comes on time on that clock, or a moment later."""
        self.clock.callLater(99.0, lambda: self.called.append((self.timeline.now, self.clock.seconds())))
        self.timeline.run_until(200.0)
        ((true, seen),) = self.called
        self.assertTrue(100 <= true <= 100 + 2 * TICK, true)
        self.assertTrue(599 <= seen <= 599 + 2 * TICK, seen)

    def test_order(self) -> None:
        """Calls come in the order of their times, and those of one time in the order of asking."""
        for number, delay in enumerate((0.3, 0.1, 0.0, 0.10001, 0.0)):
            self.clock.callLater(delay, self.called.append, number)
        self.timeline.run_until(1.0)
        self.assertEqual(self.called, [2, 4, 1, 3, 0])

    def test_timer(self) -> None:
        """A call may be put off, moved, and cancelled."""
        put_off, moved, cancelled = (self.clock.callLater(1.0, self.called.append, name) for name in "abc")
        put_off.delay(1.0)
        moved.reset(0.5)
        cancelled.cancel()
        self.timeline.run_until(5.0)
        self.assertEqual(self.called, ["b", "a"])
        self.assertFalse(put_off.active() or moved.active() or cancelled.active())

    def test_frozen(self) -> None:
        """What is due or arrives while a process is frozen happens when it is continued. Its time has passed."""
        loop = LoopingCall(lambda: self.called.append(round(self.clock.seconds())))
        loop.clock = self.clock
        loop.start(1.0, now=False)
        self.process.freeze()
        self.process.deliver(self.called.append, "arrived")
        self.timeline.run_until(10.0)
        self.assertEqual(self.called, [])
        self.process.thaw()
        self.assertEqual(sorted(map(str, self.called)), ["510", "arrived"])

    def test_killed(self) -> None:
        """Nothing happens in a process that was killed."""
        self.clock.callLater(1.0, self.called.append, "called")
        self.process.kill()
        self.process.deliver(self.called.append, "arrived")
        self.timeline.run_until(10.0)
        self.assertEqual(self.called, [])


class _Echo:
    """A server that answers with the path, or keeps the request."""

    name = "echo"

    def __init__(self) -> None:
        self.open = True
        self.keeps = False
        self.requests: list[Request] = []

    def accepts(self, place: str) -> bool:
        return self.open

    def receive(self, request: Request) -> None:
        self.requests.append(request)
        if not self.keeps:
            request.setHeader("X-Etcd-Index", "7")
            request.write(request.uri)
            request.finish()


class NetworkTests(SynchronousTestCase):
    """Requests arrive, sooner or later or not at all."""

    def setUp(self) -> None:
        self.timeline = Timeline()
        self.network = Network(self.timeline, Random(1))
        self.server = _Echo()
        self.network.servers[PLACE] = self.server
        self.process = Process("one", self.timeline, HostClock(self.timeline, 0.0, 1.0), Random(1))
        self.client: Any = Client(self.network, self.process, "host", new=False)

    def ask(self, path: str = "/x?y=1", timeout: float = 5.0) -> Deferred[Response]:
        return request(self.client, self.process.clock, "GET", f"http://{PLACE}{path}", timeout=timeout)

    def test_answered(self) -> None:
        """The real client's functions get what the server wrote."""
        answer = self.ask()
        self.assertNoResult(answer)
        self.timeline.run_until(1.0)
        response = self.successResultOf(answer)
        self.assertEqual((response.status, response.body, response.header("x-etcd-index")), (200, b"/x?y=1", "7"))
        self.assertEqual(self.network.connections, {})

    def test_refused(self) -> None:
        """Where nobody accepts connections, they are refused."""
        self.server.open = False
        answer = self.client.request("GET", f"http://{PLACE}/")
        self.timeline.run_until(1.0)
        self.failureResultOf(answer, ConnectionRefusedError)

    def test_reset(self) -> None:
        """Connections that are reset fail at both ends."""
        self.server.keeps = True
        answer = self.client.request("GET", f"http://{PLACE}/")
        self.timeline.run_until(1.0)
        gone = self.server.requests[0].notifyFinish()
        self.network.reset("host", PLACE)
        self.timeline.run_until(2.0)
        self.failureResultOf(answer, ResponseNeverReceived)
        self.failureResultOf(gone)

    def test_cut(self) -> None:
        """What is sent while two are cut off arrives later, unless it was given up."""
        self.network.change("host", PLACE, cut=True)
        patient, hasty = self.ask("/patient", timeout=60.0), self.ask("/hasty", timeout=1.0)
        self.timeline.run_until(1.5)
        self.failureResultOf(hasty, HTTPError)
        self.network.change("host", PLACE, cut=False)
        self.timeline.run_until(5.0)
        self.assertEqual(self.successResultOf(patient).body, b"/patient")
        self.assertEqual([kept.uri for kept in self.server.requests], [b"/patient"])

    def test_deaf(self) -> None:
        """A request may arrive and its answer may not, until later."""
        self.network.change("host", PLACE, deaf=True)
        answer = self.ask(timeout=60.0)
        self.timeline.run_until(1.0)
        self.assertEqual(len(self.server.requests), 1)
        self.assertNoResult(answer)
        self.network.change("host", PLACE, deaf=False)
        self.timeline.run_until(5.0)
        self.successResultOf(answer)

    def test_lost(self) -> None:
        """Requests and answers may be lost for good, and requests may arrive twice."""
        for quality, arrive in (({"lost": 1.0}, 0), ({"unanswered": 1.0, "lost": 0.0}, 1)):
            self.server.requests.clear()
            self.network.change("host", PLACE, **quality)
            answer = self.ask()
            self.timeline.run_until(self.timeline.now + 10.0)
            self.assertEqual(len(self.server.requests), arrive)
            self.failureResultOf(answer, HTTPError)
        self.server.requests.clear()
        self.network.change("host", PLACE, unanswered=0.0, twice=1.0)
        answer = self.ask()
        self.timeline.run_until(self.timeline.now + 10.0)
        self.assertEqual(len(self.server.requests), 2)
        self.successResultOf(answer)

    def test_stream(self) -> None:
        """The pieces of one answer come in order, whatever each one takes, and also what was held in between."""
        self.server.keeps = True
        lines: list[bytes] = []
        followed = stream(
            self.client,
            self.process.clock,
            f"http://{PLACE}/stream",
            opened=lambda response: None,
            line=lines.append,
            overlong=lambda size: None,
            open_timeout=5.0,
            idle_timeout=60.0,
        )
        self.timeline.run_until(1.0)
        (kept,) = self.server.requests
        kept.write(b"")
        for number in range(100):
            if number in (30, 60):
                self.network.change("host", PLACE, cut=number == 30)
            kept.write(b"%d\n" % number)
            self.timeline.run_until(self.timeline.now + 0.001)
        self.timeline.run_until(self.timeline.now + 5.0)
        self.assertEqual(lines, [b"%d" % number for number in range(100)])
        gone = kept.notifyFinish()
        followed.cancel()
        self.failureResultOf(followed, CancelledError)
        self.timeline.run_until(self.timeline.now + 5.0)
        self.failureResultOf(gone)


class KernelTests(SynchronousTestCase):
    """A kernel that is as late as a real one, and no later than it is said to be."""

    def setUp(self) -> None:
        self.timeline = Timeline()
        self.gone: list[tuple[Address, float]] = []

    def kernel(self, offset: float) -> Kernel:
        return Kernel(
            "host",
            self.timeline,
            HostClock(self.timeline, offset, 1.0),
            bytes(6),
            frozenset(),
            lambda address, entry, new: None,
            lambda address, entry: self.gone.append((address, self.timeline.now)),
        )

    def lateness(self, offset: float, valid: int, preferred: int) -> float:
        start = self.timeline.now
        self.gone.clear()
        self.kernel(offset - start).write(ADDRESSES[0], valid, preferred)
        self.timeline.run_until(start + 60.0)
        ((_, end),) = self.gone
        return end - start - valid

    def test_wheel(self) -> None:
        """A timer runs no earlier than it should, and later by what its level is coarse."""
        self.assertEqual(
            [wheel(0, wait) for wait in (1, 62, 63, 503, 504, 4031, 4032)], [2, 63, 64, 504, 512, 4032, 4096]
        )

    def test_late(self) -> None:
        """A long lifetime ends up to two seconds late."""
        lateness = [self.lateness(1000 + part / 37, 29, 29) for part in range(400)]
        self.assertGreater(max(lateness), 1.5)
        self.assertGreater(min(lateness), -0.03)
        self.assertLessEqual(max(lateness), latest(Entry(0, 29, 29)) + 2 / HZ)

    def test_preferred(self) -> None:
        """With the preferred lifetimes that Kiwi asks for, none ends more than half a second late."""
        for valid in (2, 3, 4, 9, 14, 16, 17, 19, 29, 40):
            preferred = preferred_lifetime(valid)
            lateness = max(self.lateness(1000 + part / 37, valid, preferred) for part in range(100))
            self.assertLessEqual(lateness, latest(Entry(0, valid, preferred)) + 2 / HZ)
            self.assertLess(lateness, 0.55, valid)

    def test_apart(self) -> None:
        """Of two that end a moment apart, the second one waits for the next pass, a second later."""
        kernel = self.kernel(1000.0)
        kernel.write(ADDRESSES[0], 5, 5)
        self.timeline.run_until(0.1)
        kernel.write(ADDRESSES[1], 5, 5)
        self.timeline.run_until(20.0)
        (_, first), (_, second) = self.gone
        self.assertGreater(second - first, 0.99)

    def test_alone(self) -> None:
        """What is written alone, as Kiwi does where there are many, makes the others late only if it ends with them."""
        random = Random(1)
        self.assertLess(max(self.latest_of_all(random, ALONE_ENDS_BEFORE) for _ in range(500)), KERNEL_LATENESS)
        self.assertGreater(max(self.latest_of_all(random, 0.6) for _ in range(500)), KERNEL_LATENESS)

    def latest_of_all(self, random: Random, before: float) -> float:
        """
        Seconds by which the last one of addresses goes late, of which two are written together and the others after
        them, with lifetimes that end so many seconds before.
        """
        start = self.timeline.now
        self.gone.clear()
        kernel = self.kernel(1000 + random.random() - start)
        asked = start + random.choice((5, 6, 10, 20, 40)) * 0.99 - KERNEL_LATENESS - random.uniform(0, 0.4)

        def write(number: int, until: float) -> None:
            seconds = floor(until - self.timeline.now)
            kernel.write(ADDRESSES[number], seconds, preferred_lifetime(seconds))

        write(0, asked)
        write(1, asked)
        for number in range(2, random.randint(3, 6)):
            self.timeline.run_until(self.timeline.now + random.uniform(0, 0.2))
            if asked - before - self.timeline.now >= 1:
                write(number, asked - before)
        self.timeline.run_until(start + 60.0)
        return max(when for _, when in self.gone) - asked

    def test_for_ever(self) -> None:
        """What has no lifetime stays."""
        kernel = self.kernel(1000.0)
        kernel.write(ADDRESSES[0], inf, inf)
        self.timeline.run_until(1000.0)
        self.assertEqual(list(kernel.entries), [ADDRESSES[0]])

    def test_thread(self) -> None:
        """Calls in a thread come one after the other; one that a frozen process has begun ends when it is continued."""
        process = Process("one", self.timeline, HostClock(self.timeline, 0.0, 1.0), Random(1))
        thread = Thread(process, self.timeline, Random(1))
        done: list[str] = []
        answers = [thread.call(done.append, name) for name in "ab"]
        process.freeze()
        self.timeline.run_until(10.0)
        self.assertEqual(done, [])
        process.thaw()
        self.timeline.run_until(11.0)
        self.assertEqual(done, ["a", "b"])
        for answer in answers:
            self.successResultOf(answer)


class JudgeTests(SynchronousTestCase):
    """What must never be is noticed."""

    def setUp(self) -> None:
        self.world = World("judge", ttl=10)
        self.hosts = [self.world.add_host() for _ in range(2)]

    def promise(self, host: int, seconds: float) -> None:
        self.world.judge.deadlines[self.hosts[host].name, ADDRESSES[0]] = self.world.timeline.now + seconds

    def put(self, host: int, seconds: float) -> None:
        kernel = self.hosts[host].kernel
        kernel.spoiled = True
        kernel.write(ADDRESSES[0], seconds, seconds)

    def assert_noticed(self, *words: str) -> None:
        violations = self.world.judge.violations
        self.assertEqual(len(violations), len(words), violations)
        for word, violation in zip(words, violations, strict=True):
            self.assertIn(word, violation)

    def test_right(self) -> None:
        """Nothing is wrong with an address that is promised for long enough."""
        self.promise(0, 10.0)
        self.put(0, 9)
        self.assert_noticed()

    def test_two(self) -> None:
        """Two carriers are noticed."""
        for host in range(2):
            self.promise(host, 10.0)
            self.put(host, 9)
        self.assert_noticed("two carriers")

    def test_unclaimed(self) -> None:
        """An address without a claim is noticed."""
        self.put(0, 9)
        self.assert_noticed("without a claim")

    def test_too_long(self) -> None:
        """A lifetime that ends after the claim is noticed, and one that the kernel may end too late."""
        self.promise(0, 9.0)
        self.put(0, 10)
        self.promise(0, 9.1)
        self.put(0, 9)
        self.assert_noticed("longer than it is promised", "too late")

    def test_unmarked(self) -> None:
        """An address whose traffic is not marked is noticed."""
        self.promise(0, 10.0)
        self.hosts[0].kernel.write(ADDRESSES[0], 9, 9)
        self.assert_noticed("before its traffic is marked")

    def test_released(self) -> None:
        """An address that is on a host after its claim was given up is noticed."""
        self.promise(0, 10.0)
        self.put(0, 9)
        self.world.judge.deadlines.clear()
        self.world.judge.look()
        self.assert_noticed("has no claim to it")

    def test_announced(self) -> None:
        """A host that announces what another one has is noticed."""
        self.promise(0, 10.0)
        self.put(0, 9)
        self.world.announced(self.hosts[1], ADDRESSES[0])
        self.assert_noticed("announces")

    def test_by_hand(self) -> None:
        """What somebody's hand has done is not an agent's mistake."""
        self.hosts[0].kernel.write(ADDRESSES[0], inf, inf, by_hand=True)
        self.assert_noticed()
