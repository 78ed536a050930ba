"""Whole agents, under simulated time, on hosts in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Interface
from math import inf

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from kiwi.claims.interface import Granted, IClaimStore, Released, Taken, Unavailable
from kiwi.model import Address, AgentRecord, Claims, Endpoints, Protocol, ServicePort, ip
from kiwi.planning import LONGEST_HAND_OVER, SETTLING, TIME_TO_PREPARE, rank

from .world import ADDRESS, INTERFACE, OTHER, SimulatedHost, World, mark, service

WEB = service("web", ADDRESS, created="2015-01-01T00:00:00Z")


def said(events: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


@implementer(IClaimStore)
@define(eq=False)
class BrokenStore:
    """
    A store that can be out of reach: it says so, or it says nothing at all.

    @ivar deaf: it takes records, and says that it is out of reach.
    @ivar renewals_left: how many renewals it answers before it says nothing to them any more.
    @ivar unreadable: addresses whose claims are somebody's that it cannot name; and how often it was asked for them.
    """

    inner: IClaimStore
    reachable: bool = True
    hangs: bool = False
    deaf: bool = False
    renewals_left: float = inf
    unreadable: dict[Address, int] = field(factory=dict)

    def _answer(self, ask: Callable[[], Deferred]) -> Deferred:
        if self.hangs:
            return Deferred()
        return ask() if self.reachable else succeed(Unavailable("it is out of reach"))

    def acquire(self, address: Address) -> Deferred[Granted | Taken | Unavailable]:
        if address in self.unreadable:
            self.unreadable[address] += 1
            return succeed(Taken(""))
        return self._answer(lambda: self.inner.acquire(address))

    def renew(self, addresses):  # type: ignore[no-untyped-def]
        self.renewals_left -= 1
        if self.renewals_left < 0:
            return Deferred()
        if not self.reachable and not self.hangs:
            return succeed({address: Unavailable("it is out of reach") for address in addresses})
        return self._answer(lambda: self.inner.renew(addresses))

    def release(self, address: Address) -> Deferred[Released | Unavailable]:
        return self._answer(lambda: self.inner.release(address))

    def register(
        self, record: AgentRecord, replacing: AgentRecord | None = None
    ) -> Deferred[Granted | Taken | Unavailable]:
        answer = self._answer(lambda: self.inner.register(record, replacing))
        return succeed(Unavailable("it is out of reach")) if self.deaf else answer

    def deregister(self, record: AgentRecord) -> Deferred[Released | Unavailable]:
        return self._answer(lambda: self.inner.deregister(record))

    def watch(self, changed):  # type: ignore[no-untyped-def]
        return self.inner.watch(lambda claims: changed(claims) if self.reachable and not self.hangs else None)


class AgentTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.addCleanup(self.world.stop)
        self.stores: dict[str, BrokenStore] = {}

    def host(self) -> SimulatedHost:
        """A host more, whose agent has run for a moment."""

        def store(agent_id: str) -> IClaimStore:
            self.stores[agent_id] = BrokenStore(self.world.claims.store(agent_id, self.world.ttl))
            return self.stores[agent_id]

        host = self.world.host(store)
        self.world.pass_time(0.6)
        return host

    def three(self) -> list[SimulatedHost]:
        hosts = [self.host() for _ in range(3)]
        self.world.pass_time(1)
        return hosts

    def carrier(self, address: Address = ADDRESS) -> SimulatedHost:
        (carrier,) = self.world.carriers(address)
        return carrier

    def known(self) -> Claims:
        """What the store knows."""
        known: list[Claims] = []
        watch = self.world.claims.store("nobody", 10).watch(known.append)
        watch.startService()
        self.world.clock.advance(0)
        watch.stopService()
        return known[-1]

    def holders(self) -> dict[Address, str]:
        return dict(self.known().holders)


class ServiceTests(AgentTestCase):
    """From a Service to an address that answers, and back."""

    def test_carried(self) -> None:
        """One agent of three claims the address, marks its traffic, assigns and announces it; the others do nothing."""
        self.three()
        self.world.tell(WEB)
        self.world.pass_time(0.2)
        carrier = self.carrier()
        self.assertEqual(self.holders(), {ADDRESS: carrier.name})
        self.assertEqual(carrier.firewall.read(), frozenset({mark("web")}))
        self.assertEqual(carrier.announcer.announced[:1], [ADDRESS])
        for other in self.world.hosts:
            if other is not carrier:
                self.assertEqual((other.firewall.read(), other.announcer.announced), (frozenset(), []))

    def test_stays(self) -> None:
        """The carrier keeps the address, with a lifetime in the kernel that always ends before the claim."""
        self.three()
        self.world.tell(WEB)
        self.world.pass_time(0.2)
        carrier = self.carrier()
        for _ in range(100):
            self.world.pass_time(0.5)
            self.assertIs(self.carrier(), carrier)
            self.assertLess(carrier.addresses.read().assigned[ADDRESS], self.world.clock.seconds() + self.world.ttl)

    def test_announced_again(self) -> None:
        """It is announced several times at first, and then every minute."""
        host = self.host()
        self.world.tell(WEB)
        self.world.pass_time(10)
        self.assertEqual(len(host.announcer.announced), 5)
        self.world.pass_time(180)
        self.assertEqual(len(host.announcer.announced), 8)

    def test_carrier_returns(self) -> None:
        """It is announced anew when carrier went and came back, however quickly."""
        host = self.host()
        self.world.tell(WEB)
        self.world.pass_time(10)
        host.addresses.set_ready(INTERFACE, False)
        host.addresses.set_ready(INTERFACE, True)
        host.changed()
        self.world.pass_time(0.1)
        self.assertEqual((len(host.announcer.announced), host.carried), (6, {ADDRESS}))

    def test_deleted(self) -> None:
        """When the Service goes, everything of it goes."""
        self.three()
        self.world.tell(WEB)
        self.world.pass_time(0.2)
        carrier = self.carrier()
        self.world.tell()
        self.world.pass_time(0.1)
        self.assertEqual(self.world.carriers(ADDRESS), [])
        self.assertEqual(carrier.firewall.read(), frozenset())
        self.assertEqual(self.holders(), {})

    def test_dropped_address(self) -> None:
        """When a Service drops one of its addresses, the other one stays."""
        self.host()
        self.world.tell(service("web", ADDRESS, OTHER))
        self.world.pass_time(0.2)
        self.world.tell(WEB)
        self.world.pass_time(0.1)
        self.assertEqual(self.world.carriers(OTHER), [])
        self.assertEqual(self.holders(), {ADDRESS: self.carrier().name})

    def test_changed_ports(self) -> None:
        """When the ports change, the marks do, and the address is not touched."""
        host = self.host()
        self.world.tell(WEB)
        self.world.pass_time(6)
        announced = host.announcer.announced
        port = ServicePort(Protocol.UDP, 53)
        self.world.tell(evolve(WEB, ports=frozenset({port})))
        self.world.pass_time(0.1)
        self.assertEqual(host.firewall.read(), frozenset({mark("web", port=port)}))
        self.assertEqual((self.carrier(), host.announcer.announced), (host, announced))

    def test_shared(self) -> None:
        """An address that two Services share goes when the last one goes."""
        host = self.host()
        dns = service("dns", ADDRESS, port=ServicePort(Protocol.UDP, 53))
        for services, carried in (((WEB, dns), {ADDRESS}), ((dns,), {ADDRESS}), ((), set())):
            self.world.tell(*services)
            self.world.pass_time(0.2)
            self.assertEqual(host.carried, carried)

    def test_ignored(self) -> None:
        """An address out of range is ignored, with one line that says why, however often the Services change."""
        self.host()
        outside = service("web", ADDRESS, ip("172.16.1.41"))
        with capturedLogs() as events:
            for _ in range(3):
                self.world.tell(outside)
                self.world.pass_time(11)
                self.world.tell(outside, service("dns", OTHER))
                self.world.pass_time(11)
        self.assertEqual(
            [line for line in said(events) if "172.16.1.41" in line],
            [
                "172.16.1.41 of Service web is ignored: it is in none of the allowed ranges (192.168.1.0/24)",
            ],
        )

    def test_own_address_later(self) -> None:
        """An address that somebody configures on the host is given up, and not touched."""
        host = self.host()
        self.world.tell(WEB, service("other", OTHER))
        self.world.pass_time(0.2)
        host.addresses.delete(ADDRESS)
        host.addresses.subnets[INTERFACE].add(IPv4Interface("192.168.1.41/32"))
        host.changed()
        self.world.pass_time(0.2)
        self.assertEqual((host.carried, self.holders()), ({OTHER}, {OTHER: host.name}))


class TakeoverTests(AgentTestCase):
    """One carrier, whatever happens to one of them."""

    def setUp(self) -> None:
        super().setUp()
        self.three()
        self.world.tell(WEB)
        self.world.pass_time(0.2)
        self.first = self.carrier()

    def test_stopped(self) -> None:
        """An agent that is stopped takes everything back, and another one carries the address a moment later."""
        stopped = self.first.stop()
        self.world.pass_time(0.2)
        self.successResultOf(stopped)
        self.assertIsNot(self.carrier(), self.first)
        self.assertEqual((self.first.carried, self.first.firewall.read()), (set(), None))
        self.assertNotIn(self.first.name, self.holders().values())

    def test_killed(self) -> None:
        """The kernel of a dead agent removes the address, and another one carries it when the claim has ended."""
        self.first.kill()
        self.world.pass_time(self.world.ttl + 1)
        self.assertIsNot(self.carrier(), self.first)

    def test_restarted(self) -> None:
        """An agent that comes back within its TTL adopts what it left: address, marks and claim are not touched."""
        self.world.pass_time(4)
        self.first.kill()
        marks = self.first.firewall.read()
        for services in ((), (WEB,)):
            self.first.start()
            if services:
                self.first.tell(*services)
            for _ in range(40):
                self.world.pass_time(0.5)
                self.assertIs(self.carrier(), self.first)
                self.assertEqual(self.first.firewall.read(), marks)
            if not services:
                self.first.kill()

    def test_restarted_too_late(self) -> None:
        """An agent that comes back after another one has taken over is a candidate like any."""
        self.first.kill()
        self.world.pass_time(self.world.ttl + 1)
        second = self.carrier()
        self.first.start()
        self.first.tell(WEB)
        self.world.pass_time(20)
        self.assertIs(self.carrier(), second)
        self.assertEqual(self.first.firewall.read(), frozenset())

    def test_restarted_without_service(self) -> None:
        """What an earlier life left behind is taken away when no Service wants it any more."""
        self.first.kill()
        for host in self.world.hosts:
            if host.agent is not None:
                host.tell()
        self.first.start()
        self.first.tell()
        self.world.pass_time(0.2)
        self.assertEqual((self.world.carriers(ADDRESS), self.holders()), ([], {}))
        self.assertEqual(self.first.firewall.read(), frozenset())

    def test_store_unreachable(self) -> None:
        """A carrier that cannot reach the store lets go before its claim ends, and another one takes over."""
        self.stores[self.first.name].reachable = False
        self.world.pass_time(self.world.ttl + 1)
        self.assertIsNot(self.carrier(), self.first)
        self.assertEqual(self.first.firewall.read(), frozenset())

    def test_store_hangs(self) -> None:
        """So does one whose store does not answer at all."""
        self.stores[self.first.name].hangs = True
        self.world.pass_time(self.world.ttl + 1)
        self.assertIsNot(self.carrier(), self.first)

    def test_store_back(self) -> None:
        """A store that is out of reach for less than a TTL is noticed by nobody, and logged once."""
        with capturedLogs() as events:
            self.stores[self.first.name].reachable = False
            self.world.pass_time(4)
            self.stores[self.first.name].reachable = True
            for _ in range(20):
                self.world.pass_time(0.5)
                self.assertIs(self.carrier(), self.first)
        self.assertEqual(
            [line for line in said(events) if "store" in line],
            [
                "the claim store does not answer: it is out of reach; trying again",
                "the claim store answers again",
            ],
        )

    def test_all_forgotten(self) -> None:
        """When the store comes back after the end of all claims and records, nobody thinks itself alone."""
        for store in self.stores.values():
            store.reachable = False
        self.world.pass_time(self.world.ttl + 1)
        self.assertEqual(self.world.carriers(ADDRESS), [])
        services = [service(f"web-{n}", ip("192.168.1.100") + n) for n in range(90)]
        self.world.tell(*services)
        for store in self.stores.values():
            store.reachable = True
            self.world.pass_time(0.1)
        self.world.pass_time(2)
        shares = [len(host.carried) for host in self.world.hosts]
        self.assertEqual(sum(shares), 90)
        self.assertTrue(all(24 <= share <= 36 for share in shares), shares)

    def test_given_back_before_a_loss(self) -> None:
        """What an agent held at one loss of the store, and has given back since, is not its own at the next one."""
        host = self.first
        assert host.agent is not None
        converger = host.agent.converger
        agents = {host.name: converger.terms.record}
        converger.claims_changed(Claims({}, agents, losses=1))
        self.world.pass_time(1)
        self.assertEqual(host.carried, {ADDRESS})
        for each in self.world.hosts:
            each.addresses.set_ready(INTERFACE, False)
            each.changed()
        self.world.pass_time(1)
        converger.claims_changed(Claims({}, agents, losses=2))
        host.addresses.set_ready(INTERFACE, True)
        host.changed()
        self.world.pass_time(self.world.ttl - 2)
        self.assertEqual(host.carried, set())
        self.world.pass_time(4)
        self.assertEqual(host.carried, {ADDRESS})

    def test_unreadable_claim(self) -> None:
        """For what is somebody's that the store cannot name, an agent tries less and less often; then it has it."""
        store = self.stores[self.first.name]
        self.first.stop()
        self.world.pass_time(3)
        for each in self.stores.values():
            each.unreadable = {OTHER: 0}
        self.world.tell(WEB, service("other", OTHER))
        self.world.pass_time(30)
        asked = [each.unreadable[OTHER] for each in self.stores.values() if each is not store]
        self.assertTrue(all(5 < number < 25 for number in asked), asked)
        for each in self.stores.values():
            each.unreadable = {}
        self.world.pass_time(6)
        self.assertEqual(len(self.world.carriers(OTHER)), 1)

    def test_watch_behind(self) -> None:
        """A claim that the store confirms, and the watch does not show, is not confirmed over and over."""
        assert self.first.agent is not None
        converger, store = self.first.agent.converger, self.stores[self.first.name]
        converger.claims_changed(Claims({}, {self.first.name: converger.terms.record}))
        store.renewals_left = 10
        self.world.pass_time(0.9)
        self.assertGreater(store.renewals_left, 7)
        self.assertEqual(self.first.carried, {ADDRESS})

    def test_stopped_while_store_hangs(self) -> None:
        """An agent that cannot give its claims back takes its addresses down all the same, and ends in time."""
        self.stores[self.first.name].hangs = True
        stopped = self.first.stop()
        self.world.pass_time(LONGEST_HAND_OVER + 0.1)
        self.assertEqual((self.first.carried, self.first.firewall.read()), (set(), None))
        self.world.pass_time(2)
        self.successResultOf(stopped)

    def test_link_down(self) -> None:
        """When the interface goes down, another host carries the address."""
        self.first.addresses.set_ready(INTERFACE, False)
        self.first.changed()
        self.world.pass_time(0.2)
        self.assertIsNot(self.carrier(), self.first)

    def test_link_deleted(self) -> None:
        """When the interface is deleted, another host carries the address."""
        self.first.addresses.remove_link(INTERFACE)
        self.first.changed()
        self.world.pass_time(0.2)
        self.assertIsNot(self.carrier(), self.first)

    def test_nobody_left_behind(self) -> None:
        """When all are stopped, nothing is left anywhere."""
        for host in self.world.hosts:
            stopped = host.stop()
            self.world.pass_time(0.2)
            self.successResultOf(stopped)
        self.assertEqual(self.holders(), {})
        for host in self.world.hosts:
            self.assertEqual((host.carried, host.firewall.read()), (set(), None))
        self.world.pass_time(30)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])


LOCAL = service("web", ADDRESS, created="2015-01-01T00:00:00Z", local=True)


def on(*hosts: SimulatedHost) -> dict[str, Endpoints]:
    """The Service C{web} has endpoints on these hosts."""
    return {"web": Endpoints(frozenset(host.name for host in hosts))}


class EligibleTests(AgentTestCase):
    """A Service with a local traffic policy is carried where it has endpoints."""

    def setUp(self) -> None:
        super().setUp()
        self.first, self.second, self.third = self.three()

    def test_where_its_endpoints_are(self) -> None:
        """Its address goes to a host with an endpoint, whatever the ranking of the others is."""
        for host in (self.first, self.second, self.third):
            self.world.tell(LOCAL, endpoints=on(host))
            self.world.pass_time(0.3)
            self.assertIs(self.carrier(), host)
            self.assertEqual(self.holders(), {ADDRESS: host.name})

    def test_moves_on(self) -> None:
        """When the last endpoint on its host goes, it moves on at once, in order, and the log says why."""
        self.world.tell(LOCAL, endpoints=on(self.first, self.second))
        self.world.pass_time(1)
        carrier, other = self.carrier(), (self.first, self.second)[self.carrier() is self.first]
        with capturedLogs() as events:
            self.world.tell(LOCAL, endpoints=on(other, self.third))
            self.world.pass_time(0.05)
        self.assertIn(self.carrier(), (other, self.third))
        self.assertEqual(
            [line for line in said(events) if line.startswith(str(ADDRESS))],
            [
                f"{ADDRESS}: left to other hosts, for web has no ready endpoint on node {carrier.name}",
                f"{ADDRESS}: unassigned",
                f"{ADDRESS}: claim released",
                f"{ADDRESS}: claimed for web",
                f"{ADDRESS}: assigned",
                f"{ADDRESS}: announced",
            ],
        )

    def test_stays(self) -> None:
        """It stays where it is while there is an endpoint."""
        self.world.tell(LOCAL, endpoints=on(self.first))
        self.world.pass_time(1)
        for hosts in ((self.first, self.second), (self.third, self.first), (self.first,)):
            self.world.tell(LOCAL, endpoints=on(*hosts))
            self.world.pass_time(5)
            self.assertIs(self.carrier(), self.first)

    def test_nowhere(self) -> None:
        """While there is no endpoint anywhere, nobody carries it; one that comes and goes is told of now and then."""
        with capturedLogs() as events:
            for _ in range(4):
                self.world.tell(LOCAL, endpoints=on(self.first))
                self.world.pass_time(8)
                self.assertIs(self.carrier(), self.first)
                self.world.tell(LOCAL, endpoints={})
                self.world.pass_time(8)
                self.assertEqual((self.world.carriers(ADDRESS), self.holders()), ([], {}))
        nowhere = f"{ADDRESS} of Service web is ignored: its externalTrafficPolicy is Local, and no node has a ready"
        warned = [e for e in events if e["log_level"] is LogLevel.warn and formatEvent(e).startswith(nowhere)]
        self.assertEqual(len(warned), 3)
        self.world.tell(LOCAL, endpoints=on(self.second))
        self.world.pass_time(0.3)
        self.assertIs(self.carrier(), self.second)

    def test_not_known(self) -> None:
        """While endpoints are not known, nobody takes it; who has it keeps it, over a restart and any time."""
        self.world.tell(LOCAL)
        self.world.pass_time(3)
        self.assertEqual((self.world.carriers(ADDRESS), self.holders()), ([], {}))
        self.world.tell(LOCAL, endpoints=on(self.first))
        self.world.pass_time(4)
        self.first.kill()
        self.first.start()
        self.world.tell(LOCAL)
        for _ in range(40):
            self.world.pass_time(0.5)
            self.assertIs(self.carrier(), self.first)
        self.world.tell(LOCAL, endpoints=on(self.second))
        self.world.pass_time(0.3)
        self.assertIs(self.carrier(), self.second)

    def test_carrier_dies(self) -> None:
        """When its carrier dies, another host with an endpoint has it, and none without."""
        self.world.tell(LOCAL, endpoints=on(self.first, self.second))
        self.world.pass_time(1)
        carrier = self.carrier()
        carrier.kill()
        self.world.pass_time(self.world.ttl + 1)
        self.assertIs(self.carrier(), (self.first, self.second)[carrier is self.first])


class StandbyTests(AgentTestCase):
    """A host that must not carry anything hands over, and takes part again when it may."""

    def setUp(self) -> None:
        super().setUp()
        self.hosts = self.three()
        self.services = [service(f"web-{n}", ip("192.168.1.100") + n) for n in range(60)]
        self.world.tell(*self.services)
        self.world.pass_time(3)
        self.first = self.hosts[0]

    def carried(self) -> list[int]:
        """How many addresses each host carries."""
        return [len(host.carried) for host in self.hosts]

    def standing_by(self) -> list[str]:
        return sorted(agent for agent, record in self.known().agents.items() if record.standby)

    def test_hands_over(self) -> None:
        """It goes on until the others are ready, hands over bit by bit, and is still heard of when all is gone."""
        before = self.carried()
        with capturedLogs() as events:
            self.first.tell(*self.services, unfit="there is no Node node-1 in Kubernetes")
            self.world.pass_time(TIME_TO_PREPARE - 0.01)
            self.assertEqual((self.carried(), self.standing_by()), (before, [self.first.name]))
            self.world.pass_time(0.5)
        self.assertEqual((self.carried()[0], sum(self.carried())), (0, 60))
        self.assertEqual(self.first.firewall.read(), frozenset())
        self.assertIn("node-1: carries nothing for now: there is no Node node-1 in Kubernetes", said(events))
        self.world.pass_time(5 * self.world.ttl)
        self.assertEqual((self.carried()[0], sum(self.carried()), self.standing_by()), (0, 60, [self.first.name]))

    def test_takes_part_again(self) -> None:
        """When it may carry again, nothing moves back, and it has its part of what is new."""
        self.first.tell(*self.services, unfit="it is labelled")
        self.world.pass_time(3)
        before = self.carried()
        self.first.tell(*self.services)
        self.world.pass_time(3)
        self.assertEqual((self.carried(), self.standing_by()), (before, []))
        more = [service(f"dns-{n}", ip("192.168.1.200") + n) for n in range(30)]
        self.world.tell(*self.services, *more)
        self.world.pass_time(3)
        self.assertTrue(5 <= self.carried()[0] <= 40, self.carried())

    def test_for_a_moment(self) -> None:
        """If it is over before anything was handed over, nothing was."""
        before = {host.name: host.carried for host in self.hosts}
        self.first.tell(*self.services, unfit="it is labelled")
        self.world.pass_time(TIME_TO_PREPARE / 2)
        self.first.tell(*self.services)
        self.world.pass_time(5)
        self.assertEqual({host.name: host.carried for host in self.hosts}, before)
        self.assertEqual(self.standing_by(), [])

    def test_all(self) -> None:
        """When no host may carry anything, nothing is carried; when all may again, they share."""
        for host in self.hosts:
            host.tell(*self.services, unfit="it is labelled")
        self.world.pass_time(LONGEST_HAND_OVER + 0.1)
        self.assertEqual((self.carried(), self.holders()), ([0, 0, 0], {}))
        self.world.pass_time(2 * self.world.ttl)
        self.assertEqual(len(self.standing_by()), 3)
        for host in self.hosts:
            host.tell(*self.services)
            self.world.pass_time(SETTLING - 0.1)
        self.world.pass_time(3)
        self.assertEqual(sum(self.carried()), 60)
        self.assertTrue(all(14 <= share <= 26 for share in self.carried()), self.carried())

    def test_starts_so(self) -> None:
        """One that is started so hands over what its earlier life left, and takes nothing."""
        self.first.kill()
        self.first.start()
        self.first.tell(*self.services, unfit="it is labelled")
        self.world.pass_time(0.6)
        self.assertEqual((self.carried()[0], sum(self.carried()), self.standing_by()), (0, 60, [self.first.name]))

    def test_leaves(self) -> None:
        """It can be stopped meanwhile, and leaves nothing."""
        for seconds in (0.05, 3.0):
            self.first.tell(*self.services, unfit="it is labelled")
            self.world.pass_time(seconds)
            stopped = self.first.stop()
            self.world.pass_time(1)
            self.successResultOf(stopped)
            self.assertEqual((self.first.carried, self.first.firewall.read()), (set(), None))
            self.assertEqual((self.carried()[0], sum(self.carried())), (0, 60))
            self.assertEqual(len(self.known().agents), 2)
            self.first.start()
            self.first.tell(*self.services)
            self.world.pass_time(3)

    def test_store_away(self) -> None:
        """While the store does not answer, it may change back and forth, and the agent runs on."""
        store = self.stores[self.first.name]
        for lost in ("the request", "the answer"):
            for unfit in ("it is labelled", "", "it is labelled", ""):
                store.reachable, store.deaf = lost == "the answer", lost == "the answer"
                self.first.tell(*self.services, unfit=unfit)
                self.world.pass_time(0.2)
            store.reachable, store.deaf = True, False
            self.world.pass_time(5)
            self.assertEqual((self.first.refusals, self.standing_by(), sum(self.carried())), ([], [], 60))


MAC = bytes.fromhex("0200000000aa")


@implementer(IClaimStore)
@define(eq=False)
class DistantStore(BrokenStore):
    """
    A store whose answers and events take a while.

    @ivar tries: when each try for a claim was made, by whichever agent.
    """

    clock: Clock = field(kw_only=True)
    tries: list[float] = field(kw_only=True)
    delay: float = 0.02

    def _answer(self, ask: Callable[[], Deferred]) -> Deferred:
        return deferLater(self.clock, self.delay, ask)

    def acquire(self, address: Address) -> Deferred[Granted | Taken | Unavailable]:
        self.tries.append(self.clock.seconds())
        return super().acquire(address)

    def watch(self, changed):  # type: ignore[no-untyped-def]
        def later(claims: Claims) -> None:
            self.clock.callLater(self.delay, changed, claims)

        return self.inner.watch(later)


class CrowdTests(AgentTestCase):
    """A hundred agents."""

    def setUp(self) -> None:
        super().setUp()
        self.tries: list[float] = []
        for _ in range(100):
            self.world.host(self._store)
        self.world.pass_time(3)

    def _store(self, agent_id: str) -> IClaimStore:
        inner = self.world.claims.store(agent_id, self.world.ttl)
        return DistantStore(inner, clock=self.world.clock, tries=self.tries)

    def test_new_address(self) -> None:
        """All of them hear of a new address, and few try for it."""
        self.world.tell(WEB)
        self.world.pass_time(2)
        self.assertEqual(len(self.world.carriers(ADDRESS)), 1)
        self.assertIn(len(self.tries), range(1, 4))

    def test_expiry(self) -> None:
        """All of them see that the claim of a dead agent ends, and few try for it."""
        self.world.tell(WEB)
        self.world.pass_time(2)
        (carrier,) = self.world.carriers(ADDRESS)
        del self.tries[:]
        carrier.kill()
        self.world.pass_time(self.world.ttl + 2)
        self.assertNotIn(carrier, self.world.carriers(ADDRESS))
        self.assertEqual(len(self.world.carriers(ADDRESS)), 1)
        self.assertIn(len(self.tries), range(1, 6))

    def test_back_and_forth(self) -> None:
        """A host that is fit again before the store has answered is soon known to be."""
        host = self.world.hosts[0]
        host.tell(unfit="it is labelled")
        self.world.pass_time(0.01)
        host.tell()
        self.world.pass_time(0.2)
        self.assertEqual([agent for agent, record in self.known().agents.items() if record.standby], [])

    def test_moved_from(self) -> None:
        """An agent that has let go of what may not be on its host counts as one that can carry other addresses."""
        names = [host.name for host in self.world.hosts]
        first = next(host for host in self.world.hosts if rank(OTHER, host.name, names) == 0)
        self.world.tell(LOCAL, endpoints=on(first))
        self.world.pass_time(3)
        self.assertEqual(self.world.carriers(ADDRESS), [first])
        self.world.tell(LOCAL, endpoints={})
        self.world.pass_time(0.5)
        del self.tries[:]
        self.world.tell(LOCAL, service("other", OTHER), endpoints={})
        self.world.pass_time(1)
        self.assertEqual((self.world.carriers(OTHER), len(self.tries)), ([first], 1))

    def test_endpoints_come(self) -> None:
        """An address that was free for long may be carried at last, on any of many hosts, and few try for it."""
        self.world.tell(LOCAL, endpoints={})
        self.world.pass_time(5)
        self.world.tell(LOCAL, endpoints=on(*self.world.hosts[:60]))
        self.world.pass_time(2)
        (carrier,) = self.world.carriers(ADDRESS)
        self.assertIn(carrier, self.world.hosts[:60])
        self.assertIn(len(self.tries), range(1, 4))


class NeighbourTests(AgentTestCase):
    """An address that another machine has is not fought over."""

    def test_foreign(self) -> None:
        """It is refused, with the other's MAC address, and asked for again later."""
        hosts = self.three()
        for host in hosts:
            host.neighbours.foreign[ADDRESS] = MAC
        with capturedLogs() as events:
            self.world.tell(WEB)
            for _ in range(30):
                self.world.pass_time(1)
                self.assertEqual(self.world.carriers(ADDRESS), [])
        self.assertIn(
            f"{ADDRESS}: refused, for another machine, with the MAC address 02:00:00:00:00:aa, has it already: is that "
            "an agent with another claim store? Asking again in 10 s",
            said(events),
        )
        self.assertEqual(self.holders(), {})
        for host in hosts:
            host.neighbours.foreign.clear()
        self.world.pass_time(40)
        self.assertEqual(len(self.world.carriers(ADDRESS)), 1)

    def test_takeover(self) -> None:
        """In a takeover nobody is asked: what an agent carried is no other machine's."""
        hosts = self.three()
        self.world.tell(WEB)
        self.world.pass_time(2)
        first = self.carrier()
        for host in hosts:
            host.neighbours.foreign[ADDRESS] = MAC
        first.stop()
        self.world.pass_time(0.1)
        self.assertIsNot(self.carrier(), first)

    def test_put_back(self) -> None:
        """Nor is anybody asked when what this agent has carried is put back."""
        host = self.host()
        self.world.tell(WEB)
        self.world.pass_time(6)
        host.neighbours.foreign[ADDRESS] = MAC
        host.addresses.delete(ADDRESS)
        host.changed()
        self.world.pass_time(0.1)
        self.assertEqual(host.carried, {ADDRESS})

    def test_store_was_away(self) -> None:
        """What was carried when the store went away for longer than a TTL, a machine may have by now."""
        hosts = self.three()
        self.world.tell(WEB)
        self.world.pass_time(6)
        for store in self.stores.values():
            store.reachable = False
        self.world.pass_time(self.world.ttl + 1)
        for host in hosts:
            host.neighbours.foreign[ADDRESS] = MAC
            self.stores[host.name].reachable = True
        for _ in range(50):
            self.world.pass_time(0.1)
            self.assertEqual(self.world.carriers(ADDRESS), [])

    def test_contested(self) -> None:
        """
        An address that another machine asks for at the same time is asked for again after a silence, and a longer one,
        until nobody else does.
        """
        host = self.host()
        host.neighbours.rivals[ADDRESS] = MAC
        with capturedLogs() as events:
            self.world.tell(WEB)
            for seconds, rounds in ((0.08, 1), (0.02, 2), (0.16, 2), (0.02, 3)):
                self.world.pass_time(seconds)
                self.assertEqual((host.carried, host.neighbours.probed), (set(), [ADDRESS] * rounds))
            host.neighbours.rivals.clear()
            self.world.pass_time(1)
        self.assertEqual((host.carried, host.neighbours.probed), ({ADDRESS}, [ADDRESS] * 4))
        self.assertEqual(
            [line for line in said(events) if "asks" in line],
            [
                f"{ADDRESS}: another machine, with the MAC address 02:00:00:00:00:aa, asks for it as well; asking "
                "again in 0.09 s"
            ],
        )

    def slow(self, seconds: float) -> SimulatedHost:
        """A host with an agent that has run for a moment, whose store takes so long."""

        def store(agent_id: str) -> IClaimStore:
            inner = self.world.claims.store(agent_id, self.world.ttl)
            return DistantStore(inner, clock=self.world.clock, tries=[], delay=seconds)

        host = self.world.host(store)
        self.world.pass_time(4)
        self.world.tell(WEB)
        self.world.pass_time(0.05)
        self.assertEqual(host.neighbours.probed, [ADDRESS])
        return host

    def test_claimed_late(self) -> None:
        """An answer that is old by the time that the address is claimed does not count."""
        host = self.slow(0.8)
        host.neighbours.foreign[ADDRESS] = MAC
        self.world.pass_time(2)
        self.assertEqual(host.carried, set())

    def test_heard_before(self) -> None:
        """Nor does it count when a machine has said since that it has the address."""
        host = self.slow(0.3)
        host.neighbours.foreign[ADDRESS] = MAC
        host.heard(ADDRESS, MAC, INTERFACE)
        self.world.pass_time(1)
        self.assertEqual(host.carried, set())

    def test_claimed_by_another(self) -> None:
        """Nor when another agent has claimed the address meanwhile: that one may have found somebody who has it."""
        host = self.slow(0.1)
        another = self.world.claims.store("another", self.world.ttl)
        self.successResultOf(another.acquire(ADDRESS))
        host.neighbours.foreign[ADDRESS] = MAC
        self.world.pass_time(0.11)
        self.successResultOf(another.release(ADDRESS))
        self.world.pass_time(1)
        self.assertEqual(host.carried, set())

    def test_heard_later(self) -> None:
        """A machine that says later that it has the address is reported, and the address is announced anew."""
        host = self.host()
        self.world.tell(WEB)
        self.world.pass_time(10)
        announced = len(host.announcer.announced)
        with capturedLogs() as events:
            for _ in range(5):
                host.heard(ADDRESS, MAC, INTERFACE)
                host.heard(OTHER, MAC, INTERFACE)
                self.world.pass_time(0.05)
        self.assertEqual(
            said(events)[0],
            f"{ADDRESS}: another machine, with the MAC address 02:00:00:00:00:aa, says that it has this address too; "
            "announcing anew",
        )
        self.assertEqual(len([line for line in said(events) if "another machine" in line]), 1)
        self.assertGreater(len(host.announcer.announced), announced)
        self.assertEqual(host.carried, {ADDRESS})

    def test_two_at_once(self) -> None:
        """
        An address that another machine with a higher MAC address came to have at the same moment is left to it, and
        asked for again later.
        """
        host = self.host()
        self.world.tell(WEB)
        self.world.pass_time(0.5)
        with capturedLogs() as events:
            for _ in range(2):
                host.heard(ADDRESS, MAC, INTERFACE)
            self.world.pass_time(0.05)
        self.assertEqual((host.carried, self.holders()), (set(), {}))
        self.assertEqual(
            said(events),
            [
                f"{ADDRESS}: giving it up to another machine, with the MAC address 02:00:00:00:00:aa, which came to "
                "have it at the same moment: is that an agent with another claim store? Asking again in 10.0 s",
                f"{ADDRESS}: unassigned",
                f"{ADDRESS}: claim released",
            ],
        )
        host.neighbours.foreign[ADDRESS] = MAC
        for _ in range(30):
            self.world.pass_time(1)
            self.assertEqual(host.carried, set())
        host.neighbours.foreign.clear()
        self.world.pass_time(11)
        self.assertEqual(host.carried, {ADDRESS})

    def test_goes_on(self) -> None:
        """One with a lower MAC address is told that the address is taken. If it goes on, the address is left to it."""
        host = self.host()
        lower = bytes(6)
        self.world.tell(WEB)
        self.world.pass_time(0.5)
        for seconds in (0.1, 0.3, 0.2):
            host.heard(ADDRESS, lower, INTERFACE)
            self.world.pass_time(seconds)
            self.assertEqual(host.carried, {ADDRESS})
        host.heard(ADDRESS, lower, INTERFACE)
        self.world.pass_time(0.1)
        self.assertEqual((host.carried, self.holders()), (set(), {}))

    def test_taken_over(self) -> None:
        """What was taken over from another agent is new to nobody, and defended."""
        first, second = self.host(), self.host()
        first.tell(WEB)
        self.world.pass_time(2)
        second.tell(WEB)
        first.stop()
        self.world.pass_time(0.1)
        with capturedLogs() as events:
            second.heard(ADDRESS, MAC, INTERFACE)
            self.world.pass_time(0.1)
        self.assertEqual((second.carried, len(said(events))), ({ADDRESS}, 2))
        self.assertIn("says that it has this address too; announcing anew", said(events)[0])


class NameTests(AgentTestCase):
    """Two agents with one id is a mistake that does not go unnoticed."""

    def test_second(self) -> None:
        """The second one claims nothing, and refuses to run when the record of the first one does not end."""
        first = self.host()
        self.world.tell(WEB)
        self.world.pass_time(0.2)
        second = self.world.host(agent_id=first.name)
        second.tell(WEB, service("other", OTHER))
        self.world.pass_time(self.world.ttl)
        self.assertEqual((second.carried, second.refusals), (set(), []))
        self.world.pass_time(3)
        self.assertEqual((second.carried, len(second.refusals), first.refusals), (set(), 1, []))
        self.assertIn("another agent with the id 'node-1' runs on host node-1", second.refusals[0])
        stopped = second.stop()
        self.world.pass_time(0.1)
        self.successResultOf(stopped)
        self.assertEqual(first.carried, {ADDRESS})

    def test_moved(self) -> None:
        """An agent whose dead predecessor ran on another host waits for that one's record to end, and then runs."""
        first = self.host()
        self.world.tell(WEB)
        self.world.pass_time(0.2)
        first.kill()
        second = self.world.host(agent_id=first.name)
        second.tell(WEB)
        self.world.pass_time(self.world.ttl + 2)
        self.assertEqual((second.carried, second.refusals), ({ADDRESS}, []))

    def test_together(self) -> None:
        """Of two that start at the same moment, one runs."""
        hosts = [self.world.host(agent_id="twin") for _ in range(2)]
        for host in hosts:
            host.tell(WEB)
        self.world.pass_time(2 * self.world.ttl)
        self.assertEqual(sorted((len(host.carried), len(host.refusals)) for host in hosts), [(0, 1), (1, 0)])

    def test_claim_in_its_name(self) -> None:
        """A claim in its name that it has not made is another agent's: it is neither taken over nor given back."""
        another = self.world.claims.store("twin", self.world.ttl)
        self.successResultOf(another.acquire(ADDRESS))
        for _ in range(2):
            host = self.world.host(agent_id="twin")
            host.tell(WEB)
            self.world.pass_time(2)
            self.assertEqual(host.carried, set())
            stopped = host.stop()
            self.world.pass_time(1)
            self.successResultOf(stopped)
        self.assertEqual(self.successResultOf(another.renew({ADDRESS})), {ADDRESS: Granted(self.world.clock.seconds())})
        host = self.world.host(agent_id="twin")
        host.tell(WEB)
        self.world.pass_time(self.world.ttl + 1)
        self.assertEqual(host.carried, {ADDRESS})


class RepairTests(AgentTestCase):
    """What is changed by hand is put right."""

    def setUp(self) -> None:
        super().setUp()
        self.only = self.host()
        self.world.tell(WEB)
        self.world.pass_time(0.2)

    def test_address_deleted(self) -> None:
        """An address that somebody deletes is put back and announced."""
        self.world.pass_time(6)
        announced = len(self.only.announcer.announced)
        self.only.addresses.delete(ADDRESS)
        self.only.changed()
        self.world.pass_time(0.1)
        self.assertEqual(self.only.carried, {ADDRESS})
        self.assertEqual(len(self.only.announcer.announced), announced + 1)

    def test_permanent(self) -> None:
        """An address that somebody makes permanent gets its lifetime back."""
        self.only.addresses.make_permanent(ADDRESS)
        self.only.changed()
        self.world.pass_time(0.1)
        self.assertLess(self.only.addresses.read().assigned[ADDRESS], inf)

    def test_chain(self) -> None:
        """A chain that somebody changes is written anew within a heartbeat."""
        self.only.firewall.spoil()
        self.world.pass_time(self.world.ttl / 3 + 0.1)
        self.assertEqual(self.only.firewall.read(), frozenset({mark("web")}))

    def test_claim_deleted(self) -> None:
        """A claim that somebody deletes in the store is noticed at once: the address goes, and is claimed anew."""
        with capturedLogs() as events:
            self.successResultOf(self.world.claims.store(self.only.name, 10).release(ADDRESS))
            self.world.pass_time(0.2)
        self.assertEqual(
            [line for line in said(events) if line.startswith(str(ADDRESS))],
            [
                f"{ADDRESS}: the claim is lost; letting go",
                f"{ADDRESS}: unassigned",
                f"{ADDRESS}: claimed for web",
                f"{ADDRESS}: assigned",
                f"{ADDRESS}: announced",
            ],
        )
        self.assertEqual(self.holders(), {ADDRESS: self.only.name})
