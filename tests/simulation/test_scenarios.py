"""One fault at a time, and what a client would notice of it: how long an address has no carrier."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from kiwi.model import ip
from kiwi.network.addresses import preferred_lifetime

from .etcd3_servers import Etcd3Store
from .lease_servers import LeaseStore
from .schedules import KINDS, KINDS_OF, Happening
from .servers import KUBERNETES
from .transport import Request
from .world import ADDRESSES, AS_IT_IS, Mutation, SimulatedHost, Violation, World

ADDRESS = ADDRESSES[0]
STEP = 0.005


class Stage:
    """Three hosts that have run for a while, the first address and who carries it."""

    def __init__(
        self, ttl: int = 10, agents: int = 3, members: int = 1, mutation: Mutation = AS_IT_IS, backend: str = "etcd2"
    ) -> None:
        self.world = World("stage", ttl, members=members, mutation=mutation, backend=backend)
        for _ in range(agents):
            self.world.add_host().start()
        for number in range(3):
            self.world.kubernetes.put(f"service-{number}", [ADDRESSES[number]], 8000)

    def __enter__(self) -> Stage:
        self.world.__enter__()
        self.world.pass_time(3.0)
        return self

    def __exit__(self, *exception: object) -> None:
        self.world.__exit__(*exception)

    @property
    def carrier(self) -> SimulatedHost:
        (carrier,) = self.world.carriers(ADDRESS)
        return carrier

    def outage(self, seconds: float, without: Sequence[SimulatedHost] = ()) -> float:
        """
        Let time pass. The seconds in which nobody carried the address.

        @param without: hosts that do not count: the client does not reach them.
        """
        steps, missed = round(seconds / STEP), 0
        for _ in range(steps):
            self.world.pass_time(STEP)
            missed += not any(host not in without for host in self.world.carriers(ADDRESS))
        return missed * STEP

    def happen(self, kind: str, host: SimulatedHost | None = None, number: int = 0) -> Happening:
        """Something begins."""
        happening = Happening(self.world.timeline.now, kind, host.number if host else 0, 0.0, number)
        KINDS[kind].begin(self.world, happening)
        return happening

    def over(self, happening: Happening) -> None:
        """It ends."""
        KINDS[happening.kind].end(self.world, happening)


def lost_while_its_thread_hangs(mutation: Mutation) -> str:
    """What is wrong when the carrier's thread hangs before an announcement, for longer than its claim lasts."""
    stage = Stage(ttl=5, mutation=mutation)
    with stage.world:
        stage.world.pass_time(1.0)
        try:
            while not stage.world.carriers(ADDRESS):
                stage.world.pass_time(STEP)
            stage.world.pass_time(0.1)
            carrier = stage.carrier
            carrier.hang(20.0)
            # Its renewals do not matter to the thread.
            stage.happen("cut from the store", carrier)
            stage.world.pass_time(25.0)
        except Violation as wrong:
            return str(wrong)
    return ""


def cut_off_with_clocks_apart(mutation: Mutation) -> str:
    """What is wrong when the carrier, whose clock is slow, is cut from Leases, which others judge by fast clocks."""
    stage = Stage(ttl=80, mutation=mutation, backend="leases")
    with stage:
        world, carrier = stage.world, stage.carrier
        for host in world.hosts:
            clock, rate = host.clock, 0.99 if host is carrier else 1.01
            clock.offset, clock.rate = clock.seconds() - world.timeline.now * rate, rate
        try:
            world.pass_time(100.0)
            stage.happen("cut from the store", carrier)
            world.pass_time(90.0)
        except Violation as wrong:
            return str(wrong)
        assert stage.carrier is not carrier
    return ""


def deleted_by_hand_unheard(mutation: Mutation) -> str:
    """What is wrong when somebody deletes the Lease of a carrier that hears nothing of the store any more."""
    stage = Stage(mutation=mutation, backend="leases")
    with stage:
        world, carrier = stage.world, stage.carrier
        assert isinstance(world.store, LeaseStore)
        try:
            stage.happen("deaf to the store", carrier)
            world.store.delete_session(carrier.agent_id)
            world.pass_time(1.5 * world.ttl)
        except Violation as wrong:
            return str(wrong)
        assert stage.carrier is not carrier
    return ""


@define(eq=False)
class _Late:
    """Stands before a server, and keeps some requests for later."""

    world: World
    server: LeaseStore | Etcd3Store
    is_late: Callable[[Request], bool]
    name: str = "late"
    kept: list[Request] = field(factory=list)

    def accepts(self, place: str) -> bool:
        return self.server.accepts(place)

    def receive(self, request: Request) -> None:
        if self.is_late(request):
            self.kept.append(request)
        else:
            self.server.receive(request)

    def release(self) -> None:
        """Let them arrive."""
        for request in self.kept:
            self.server.receive(request)
        self.world.check()


def _deletes(request: Request) -> bool:
    """Whether it deletes a claim or a Lease."""
    return request.method == b"DELETE" or b'"success":[{"request_delete_range":' in request.content.getvalue()


def _before(world: World, is_late: Callable[[Request], bool] = _deletes) -> _Late:
    """From now on, this stands before the store."""
    assert isinstance(world.store, LeaseStore | Etcd3Store)
    late = _Late(world, world.store, is_late)
    world.network.servers.update(dict.fromkeys(world.store.places, late))
    return late


def deleted_after_another_took_it(mutation: Mutation) -> str:
    """What is wrong when a claim is given back by a request that arrives when another agent has the address."""
    stage = Stage(mutation=mutation, backend="etcd3")
    with stage:
        world, carrier = stage.world, stage.carrier
        late = _before(world)
        world.kubernetes.delete("service-0")
        world.pass_time(0.5)
        assert late.kept and not world.carriers(ADDRESS)
        carrier.kill()
        world.kubernetes.put("service-0", [ADDRESS], 8000)
        while not world.carriers(ADDRESS):
            world.pass_time(0.1)
        assert stage.carrier is not carrier
        try:
            late.release()
        except Violation as wrong:
            return str(wrong)
    return ""


def confirmed_by_a_leader_of_the_past(mutation: Mutation) -> str:
    """
    What is wrong when the leader is cut off from the other members, so that it does not notice, and the carrier asks it
    to keep its lease when there is another leader already; and then loses the store.
    """
    stage = Stage(ttl=20, mutation=mutation, members=3, backend="etcd3")
    with stage:
        world = stage.world
        assert isinstance(world.store, Etcd3Store)
        cluster = world.store.cluster
        leader = cluster.leader
        assert leader is not None
        if stage.carrier.number % 2 == 0:
            # It asks the last member first.
            leader = cluster.members[-1]
            cluster.elect(leader)
        _, confirmed = world.store.claims()[ADDRESS]
        while world.store.claims()[ADDRESS][1] == confirmed:
            world.pass_time(STEP)
        leader.cut_off(notices=60)
        try:
            world.pass_time(60.0)
        except Violation as wrong:
            return str(wrong)
        assert cluster.term > 2
    return ""


def lost_while_the_carrier_is_away(mutation: Mutation) -> str:
    """
    What is wrong when the store loses its data while the carrier is frozen, and cannot be reached; and an agent starts
    then that knows nothing of what was before, and would be the first who may have the address.
    """
    stage = Stage(mutation=mutation, backend="etcd3")
    with stage:
        world, first = stage.world, stage.carrier
        first.kill()
        world.pass_time(15.0)
        carrier = stage.carrier
        carrier.freeze()
        stage.happen("unplugged", carrier)
        try:
            stage.over(stage.happen("data lost"))
            world.pass_time(2.0)
            first.start()
            world.pass_time(15.0)
        except Violation as wrong:
            return str(wrong)
        assert stage.carrier is not carrier
    return ""


def revoked_after_it_was_adopted(mutation: Mutation) -> str:
    """What is wrong when an agent's last request arrives when its next life has gone on with its lease."""
    stage = Stage(agents=1, mutation=mutation, backend="etcd3")
    with stage:
        world, carrier = stage.world, stage.carrier
        late = _before(world, lambda request: request.path == b"/v3/lease/revoke")
        carrier.stop()
        while not late.kept:
            world.pass_time(STEP)
        carrier.kill()
        carrier.start()
        world.pass_time(3.0)
        assert stage.carrier is carrier
        try:
            late.release()
        except Violation as wrong:
            return str(wrong)
    return ""


def deleted_after_it_was_adopted(mutation: Mutation, backend: str = "leases") -> str:
    """What is wrong when a claim is given back by a request that arrives when the agent's next life carries on."""
    stage = Stage(mutation=mutation, backend=backend)
    with stage:
        world, carrier = stage.world, stage.carrier
        late = _before(world)
        world.kubernetes.delete("service-0")
        world.pass_time(0.5)
        assert late.kept and not world.carriers(ADDRESS)
        carrier.kill()
        world.kubernetes.put("service-0", [ADDRESS], 8000)
        carrier.start()
        world.pass_time(1.0)
        assert stage.carrier is carrier
        try:
            late.release()
        except Violation as wrong:
            return str(wrong)
    return ""


def deleted_when_it_is_back(mutation: Mutation) -> str:
    """What is wrong when the others delete the session of a carrier that confirms it in the last moment."""
    stage = Stage(mutation=mutation, backend="leases")
    with stage:
        world, carrier = stage.world, stage.carrier
        late = _before(world)
        cut = stage.happen("cut from the store", carrier)
        while not late.kept:
            world.pass_time(0.1)
        stage.over(cut)
        while not world.carriers(ADDRESS):
            world.pass_time(0.1)
        try:
            late.release()
            world.pass_time(5.0)
        except Violation as wrong:
            return str(wrong)
        assert stage.carrier is carrier
    return ""


class LongTests(SynchronousTestCase):
    """Lifetimes of minutes and more, for which the kernel's timer is coarse."""

    def test_long_lifetimes(self) -> None:
        """However long a TTL is, no kernel may keep an address for longer than its claim lasts."""
        for ttl in (90, 100, 101, 117, 120, 140, 500, 1100, 9000, 86400):
            with Stage(ttl) as stage:
                self.assertEqual(len(stage.world.carriers(ADDRESS)), 1)


class ScenarioTests(SynchronousTestCase):
    """What an operator is promised."""

    def stage(self, ttl: int = 10, agents: int = 3) -> Stage:
        stage = Stage(ttl, agents)
        stage.__enter__()
        self.addCleanup(stage.__exit__)
        return stage

    def assert_settled(self, stage: Stage) -> None:
        self.assertEqual(stage.world.unsettled(), [])

    def test_stopped(self) -> None:
        """A carrier that is stopped hands over in milliseconds, and leaves nothing."""
        stage = self.stage()
        first = stage.carrier
        first.stop()
        self.assertLess(stage.outage(2.0), 0.05)
        self.assertIsNot(stage.carrier, first)
        self.assertEqual((first.is_running, first.kernel.entries, first.kernel.marks), (False, {}, None))
        self.assert_settled(stage)

    def test_killed_and_back(self) -> None:
        """A carrier that is killed and started again within its TTL is not missed, and its address is not touched."""
        stage = self.stage()
        first = stage.carrier
        first.kill()
        missed = stage.outage(4.0)
        first.start()
        missed += stage.outage(20.0)
        self.assertEqual((missed, stage.carrier), (0, first))
        self.assert_settled(stage)

    def test_killed(self) -> None:
        """Of one that is killed for good, the address is carried again within a TTL and a second."""
        stage = self.stage()
        first = stage.carrier
        first.kill()
        missed = stage.outage(stage.world.ttl + 1.0)
        self.assertLess(missed, 2.5)
        self.assertIsNot(stage.carrier, first)

    def test_frozen(self) -> None:
        """A carrier that is frozen for three TTLs is a candidate like any other when it is continued."""
        stage = self.stage()
        first = stage.carrier
        first.freeze()
        missed = stage.outage(3.0 * stage.world.ttl)
        second = stage.carrier
        first.thaw()
        missed += stage.outage(10.0)
        self.assertLess(missed, 2.5)
        self.assertIs(stage.carrier, second)
        second.stop()
        stage.world.pass_time(1.0)
        self.assert_settled(stage)

    def test_dead_host(self) -> None:
        """A host that is dead and unplugged is missed for a TTL and 0.75 s, at most."""
        for ttl in (3, 10):
            with Stage(ttl) as stage:
                first = stage.carrier
                first.reboot()
                self.assertLess(stage.outage(ttl + 2.0), ttl + 0.75)
                self.assertIsNot(stage.carrier, first)

    def test_cable(self) -> None:
        """A host whose cable is cut lets go by itself, and the address stays where it is when the cable is back."""
        stage = self.stage()
        first = stage.carrier
        cut = stage.happen("unplugged", first)
        missed = stage.outage(stage.world.ttl + 2.0, without=[first])
        self.assertLess(missed, stage.world.ttl + 0.75)
        self.assertEqual(first.kernel.entries, {})
        second = stage.carrier
        stage.over(cut)
        self.assertEqual(stage.outage(20.0), 0)
        self.assertIs(stage.carrier, second)
        self.assert_settled(stage)

    def test_link(self) -> None:
        """Where the link goes down or is deleted, another agent carries the address within a second."""
        for kind in ("link down", "link deleted"):
            with Stage() as stage:
                first = stage.carrier
                down = stage.happen(kind, first)
                stage.world.pass_time(1.0)
                self.assertIsNot(stage.carrier, first)
                stage.over(down)
                stage.world.pass_time(5.0)
                self.assert_settled(stage)

    def test_cut_from_the_store(self) -> None:
        """A carrier that cannot reach the store is replaced."""
        stage = self.stage()
        first = stage.carrier
        stage.happen("cut from the store", first)
        self.assertLess(stage.outage(stage.world.ttl + 2.0), 2.5)
        self.assertIsNot(stage.carrier, first)

    def test_store_down(self) -> None:
        """While the store is down nobody carries anything after a TTL, and two seconds after its return all is well."""
        stage = self.stage()
        down = stage.happen("store down")
        stage.world.pass_time(stage.world.ttl)
        self.assertEqual(stage.world.carriers(ADDRESS), [])
        stage.world.pass_time(30.0)
        stage.over(down)
        stage.world.pass_time(2.0)
        self.assertEqual(len(stage.world.carriers(ADDRESS)), 1)

    def test_data_lost(self) -> None:
        """A store that comes back with nothing is filled again: the outage is under a second."""
        stage = self.stage()
        lost = stage.happen("data lost")
        missed = stage.outage(0.5)
        stage.over(lost)
        missed += stage.outage(15.0)
        self.assertLess(missed, 1.0)
        self.assert_settled(stage)

    def test_store_in_trouble(self) -> None:
        """A store that is slow, loses a third of its answers, or pauses for half a TTL is noticed by nobody."""
        troubles = (("slow store", 60.0), ("lossy store", 60.0), ("store paused", 5.0))
        for backend in KINDS_OF:
            for kind, seconds in troubles:
                with Stage(backend=backend) as stage:
                    first = stage.carrier
                    trouble = stage.happen(kind)
                    missed = stage.outage(seconds)
                    stage.over(trouble)
                    missed += stage.outage(10.0)
                    self.assertEqual((backend, kind, missed, stage.carrier), (backend, kind, 0, first))

    def test_restored_from_before_a_claim(self) -> None:
        """A store that comes back as it was before a claim, and knows its agent, has the claim made again."""
        for backend in ("etcd3", "leases"):
            with Stage(backend=backend) as stage:
                world = stage.world
                assert isinstance(world.store, Etcd3Store | LeaseStore)
                world.store.back_up()
                world.pass_time(20.0)
                world.kubernetes.put("later", [ADDRESSES[3]], 8000)
                while not world.carriers(ADDRESSES[3]):
                    world.pass_time(0.1)
                world.store.restore()
                world.judge.forgotten()
                world.pass_time(40.0)
                self.assertEqual(world.unsettled(), [], backend)

    def test_member_down(self) -> None:
        """The loss of one of two members of the store is noticed by nobody."""
        with Stage(members=2) as stage:
            down = stage.happen("member down")
            missed = stage.outage(30.0)
            stage.over(down)
            self.assertEqual(missed + stage.outage(10.0), 0)

    def test_kubernetes_in_trouble(self) -> None:
        """Nothing that Kubernetes does is noticed, but for a Service that is deleted."""
        for kind in (
            "Kubernetes down",
            "Kubernetes comes back empty",
            "Kubernetes hangs",
            "Kubernetes fails",
            "Kubernetes forgets the past",
            "Kubernetes ends watches",
        ):
            with Stage() as stage:
                first = stage.carrier
                trouble = stage.happen(kind)
                missed = stage.outage(3.0 if kind.endswith("empty") else 40.0)
                stage.over(trouble)
                missed += stage.outage(10.0)
                self.assertEqual((kind, missed, stage.carrier), (kind, 0, first))
                self.assert_settled(stage)

    def test_started_before_kubernetes(self) -> None:
        """An agent that is started while Kubernetes lists nothing learns of everything soon after it does."""
        with Stage() as stage:
            empty = stage.happen("Kubernetes comes back empty")
            first = stage.carrier
            for host in stage.world.hosts:
                host.kill()
                host.start()
            stage.world.pass_time(2.0)
            stage.over(empty)
            stage.world.pass_time(8.0)
            self.assertEqual(len(stage.world.carriers(ADDRESS)), 1)
            self.assertTrue(first.is_running)
            self.assert_settled(stage)

    def test_endpoints_move(self) -> None:
        """When its last endpoint goes, an address moves on in milliseconds to a host that has one."""
        stage = self.stage()
        kubernetes, first = stage.world.kubernetes, stage.carrier
        second = next(host for host in stage.world.hosts if host is not first)
        kubernetes.put_endpoints("service-0", [first.name])
        kubernetes.put("service-0", [ADDRESS], 8000, local=True)
        missed = stage.outage(5.0)
        self.assertEqual((missed, stage.carrier), (0, first))
        kubernetes.put_endpoints("service-0", [second.name])
        self.assertLess(stage.outage(5.0), 0.05)
        self.assertIs(stage.carrier, second)
        kubernetes.put_endpoints("service-0", [])
        stage.world.pass_time(0.5)
        self.assertEqual((stage.world.carriers(ADDRESS), ADDRESS in stage.world.holders()), ([], False))
        self.assert_settled(stage)

    def test_endpoints_not_known(self) -> None:
        """While an agent cannot see endpoints, it keeps what it carries, also when it is started again."""
        stage = self.stage()
        kubernetes, first = stage.world.kubernetes, stage.carrier
        kubernetes.put_endpoints("service-0", [first.name])
        kubernetes.put("service-0", [ADDRESS], 8000, local=True)
        missed = stage.outage(5.0)
        kubernetes.state.fail(403, path="/apis/discovery.k8s.io")
        for host in stage.world.hosts:
            host.kill()
            host.start()
        missed += stage.outage(3.0 * stage.world.ttl)
        self.assertEqual((missed, stage.carrier), (0, first))
        self.assert_settled(stage)

    def test_node_excluded(self) -> None:
        """A host whose Node is excluded or deleted hands over in milliseconds; nothing moves back when it is again."""
        for kind in ("node excluded", "node deleted"):
            with Stage() as stage:
                first = stage.carrier
                excluded = stage.happen(kind, first)
                self.assertLess(stage.outage(2.0), 0.05)
                self.assertEqual(first.kernel.entries, {})
                second = stage.carrier
                self.assert_settled(stage)
                stage.over(excluded)
                self.assertEqual((stage.outage(3.0 * stage.world.ttl), stage.carrier), (0, second))
                self.assert_settled(stage)

    def test_all_nodes_excluded(self) -> None:
        """When all Nodes are excluded, nothing is carried; as soon as one is not, it carries everything."""
        stage = self.stage()
        happenings = [stage.happen("node excluded", host) for host in stage.world.hosts]
        stage.world.pass_time(3.0)
        self.assertEqual(stage.world.holders(), {})
        self.assert_settled(stage)
        stage.over(happenings[1])
        stage.world.pass_time(2.0)
        self.assertIs(stage.carrier, stage.world.hosts[1])
        self.assert_settled(stage)

    def test_silent_kubernetes(self) -> None:
        """A watch whose connection is gone without a word is noticed when it has been silent for too long."""
        stage = self.stage()
        for host in stage.world.hosts:
            stage.world.network.forget(host.name, KUBERNETES)
        stage.world.kubernetes.delete("service-0")
        stage.world.pass_time(400.0)
        self.assertEqual(stage.world.carriers(ADDRESS), [])
        self.assert_settled(stage)

    def test_by_hand(self) -> None:
        """What somebody does to the address by hand is put right within a second."""
        stage = self.stage()
        kernel = stage.carrier.kernel
        kernel.delete(ADDRESS)
        stage.world.pass_time(1.0)
        self.assertIn(ADDRESS, kernel.entries)
        kernel.write(ADDRESS, float("inf"), float("inf"), by_hand=True)
        stage.world.pass_time(1.0)
        entry = kernel.entries[ADDRESS]
        self.assertEqual((entry.by_hand, entry.valid < stage.world.ttl), (False, True))
        self.assertEqual(entry.preferred, preferred_lifetime(int(entry.valid)))

    def test_chain_flushed(self) -> None:
        """A chain that somebody flushes is put right within a heartbeat."""
        stage = self.stage()
        marks = stage.carrier.kernel.marks
        stage.happen("chain flushed", stage.carrier)
        stage.world.pass_time(stage.world.ttl / 3 + 0.2)
        self.assertEqual(stage.carrier.kernel.marks, marks)

    def test_foreign(self) -> None:
        """An address that a machine has which is no agent is carried by nobody, until that machine is gone."""
        stage = self.stage()
        address, mac = ip("192.168.1.60"), bytes.fromhex("020000000099")
        stage.world.machines[address] = mac
        asked = sum(host.threads[2].calls for host in stage.world.hosts)
        stage.world.kubernetes.put("taken", [address], 8000)
        stage.world.pass_time(40.0)
        self.assertEqual((stage.world.carriers(address), address in stage.world.holders()), ([], False))
        self.assertLess(sum(host.threads[2].calls for host in stage.world.hosts) - asked, 30)
        del stage.world.machines[address]
        stage.world.pass_time(40.0)
        self.assertEqual(len(stage.world.carriers(address)), 1)
        self.assert_settled(stage)

    def test_own_address(self) -> None:
        """Addresses of a host's own are never touched there, nor carried elsewhere."""
        stage = self.stage()
        own = [interface.ip for interface in stage.world.hosts[1].kernel.own]
        stage.world.kubernetes.put("greedy", own, 8000)
        stage.world.pass_time(40.0)
        self.assertEqual([stage.world.carriers(address) for address in own], [[], []])
        self.assertEqual(stage.world.hosts[1].kernel.foreign, stage.world.hosts[1].kernel.own)

    def test_twin(self) -> None:
        """An agent with another one's id refuses to run, and the other one does not notice."""
        stage = self.stage(agents=4)
        first = stage.carrier
        twin = next(host for host in stage.world.hosts if host is not first and not host.kernel.entries)
        twin.stop()
        stage.world.pass_time(1.0)
        twin.start(first.name)
        self.assertEqual(stage.outage(2.0 * stage.world.ttl), 0)
        self.assertEqual((stage.carrier, first.refusals, len(twin.refusals)), (first, [], 1))
        self.assertFalse(twin.is_running)

    def test_twin_when_records_have_ended(self) -> None:
        """
        When the store is back after all records have ended, whoever registers first has the id. Neither of the two
        takes what the other one claims for its own.
        """
        for moment in (number * 0.03 for number in range(40)):
            stage = self.stage(ttl=5, agents=4)
            first = stage.carrier
            twin = next(host for host in stage.world.hosts if host is not first and not host.kernel.entries)
            twin.stop()
            stage.world.pass_time(1.0)
            down = stage.happen("store down")
            stage.world.pass_time(stage.world.ttl + 2.0 - moment)
            twin.start(first.name)
            stage.world.pass_time(moment)
            stage.over(down)
            stage.world.pass_time(2.0 * stage.world.ttl)
            self.assertEqual(len(first.refusals) + len(twin.refusals), 1, moment)
            self.assertEqual(len(stage.world.carriers(ADDRESS)), 1)

    def test_all_stopped(self) -> None:
        """When the last agent is stopped, nothing is left anywhere."""
        stage = self.stage()
        for host in stage.world.hosts:
            host.stop()
            stage.world.pass_time(1.0)
        self.assertEqual((stage.world.holders(), stage.world.agents()), ({}, set()))
        for host in stage.world.hosts:
            self.assertEqual((host.is_running, host.kernel.entries, host.kernel.marks), (False, {}, None))

    def test_spread(self) -> None:
        """Agents that start together share what there is."""
        world = World("spread")
        with world:
            for number in range(12):
                world.kubernetes.put(f"service-{number}", [ADDRESSES[number]], 8000)
            for _ in range(3):
                world.add_host().start()
            world.pass_time(5.0)
            self.assertEqual(world.unsettled(), [])
            shares = [len(host.kernel.entries) for host in world.hosts]
        # One that has 5 is not yet over its share of 4 by more than 2% and one.
        self.assertLessEqual(max(shares), 6)
