"""
An etcd of three members that loses some of them, or agents that lose most of its members: no client notices what the
members agree about without those that are lost, and a member that is alone gives nothing away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from kiwi.model import Address, ip
from tests.fakes.etcd_process import ETCD_36
from tests.lab.laboratory import ETCD_PORT, Host, Lab, service
from tests.lab.pinging import Pinger
from tests.lab.processes import Process
from tests.lab.quorum import Member, Quorum

from .support import ADDRESS, AgentTestCase, wheel_etcd

ADDRESSES = [ADDRESS + number for number in range(3)]
LATER = [ADDRESS + number for number in range(3, 7)]


@cache
def quorum_lab(etcd: str) -> Lab:
    """The lab with three members of this etcd, which lives until the process ends."""
    lab = Lab().open()
    lab.cluster.start_quorum(etcd)
    lab.cluster.start_api()
    return lab


class QuorumTestCase(AgentTestCase):
    """
    Three agents, each of which knows all members and begins with another one, and three addresses of Services.

    @cvar etcd: the binary.
    @cvar store: the agents' C{--store}.
    """

    etcd = ETCD_36 or wheel_etcd()
    store = "etcd3"
    ttl = 8

    def setUp(self) -> None:
        super().setUp()
        self.agents = self.start_agents("--ttl", str(self.ttl), "--verbose")
        self.create(service("web", ADDRESSES))
        self.carriers = {address: self.lab.wait_for_carrier(address) for address in ADDRESSES}
        self.pingers = [self.ping(address) for address in ADDRESSES]

    def open_lab(self) -> Lab:
        return quorum_lab(self.etcd)

    def forget_lab(self) -> None:
        quorum_lab.cache_clear()

    def clear(self) -> None:
        for namespace, name in self.lab.cluster.services():
            self.lab.cluster.delete(name, namespace)
        self.quorum.revive()
        self.quorum.clear()

    @property
    def quorum(self) -> Quorum:
        quorum = self.lab.cluster.quorum
        assert quorum is not None
        return quorum

    def start_agent(self, host: Host, *options: str, store_port: int = ETCD_PORT) -> Process:
        endpoints = self.quorum.endpoints(self.lab.hosts.index(host))
        return self.lab.start_agent(host, "--store", self.store, *options, endpoints=endpoints)

    def known_agents(self) -> set[str]:
        return set(self._below("/kiwi/agents/"))

    def claims(self) -> Mapping[Address, str]:
        return {ip(name): agent for name, agent in self._below("/kiwi/publicips/").items()}

    def _below(self, folder: str) -> dict[str, str]:
        keys = self.quorum.keys(self.store)
        return {key.removeprefix(folder): value for key, value in keys.items() if key.startswith(folder)}

    def ping(self, address: Address) -> Pinger:
        pinger = self.lab.client.ping(address).start()
        pinger.wait_for_reply()
        return pinger

    def wait_for_heartbeat(self, *addresses: Address) -> None:
        """Wait until the lifetimes of these addresses are extended, as they are when their claims are confirmed."""
        known = len(self.lab.ears.changes)

        def extended() -> bool:
            news = {change.address for change in self.lab.ears.changes[known:] if change.present}
            return news >= set(addresses)

        self.lab.wait_until(extended, "lifetimes to be extended", 2 * self.ttl)

    def assert_carried_on(self, addresses: Sequence[Address] = ADDRESSES) -> None:
        """Each of these addresses has been with its carrier all the time, and has answered every ping."""
        for pinger in self.pingers:
            if pinger.address in addresses:
                self.assert_none_lost(pinger)
        for address in addresses:
            carriages = [(each.host, each.until) for each in self.lab.ears.carriages(address)]
            self.assertEqual(carriages, [(self.carriers[address].name, None)], self.lab.story())


class MembersTestCase(QuorumTestCase):
    """Members that are lost, one at a time."""

    def assert_goes_on(self) -> None:
        """Claims are confirmed, and addresses that are new get their carriers, while nobody notices anything."""
        self.create(service("later", LATER))
        expected = {**self.carriers, **{address: self.lab.wait_for_carrier(address) for address in LATER}}
        self.wait_for_heartbeat(*ADDRESSES)
        self.assertEqual(self.claims(), {address: host.name for address, host in expected.items()})
        self.carriers = expected
        self.assert_carried_on([*ADDRESSES, *LATER])


class LeaderTests(MembersTestCase):
    """The member that leads is killed."""

    def test_leader_killed(self) -> None:
        """The others elect one of them."""
        self.quorum.leader().kill()
        self.assert_goes_on()


class Etcd2LeaderTests(LeaderTests):
    """The same, with claims in etcd v2."""

    etcd = wheel_etcd()
    store = "etcd2"


class FollowerTests(MembersTestCase):
    """A member that does not lead is cut off."""

    def test_cut_off_from_members(self) -> None:
        """Agents reach it and it takes their requests, but it hears nothing from the others."""
        follower = self.quorum.follower()
        self.quorum.cut_from_peers(follower)
        self.assert_goes_on()
        self.assertFalse(follower.is_healthy())

    def test_cut_off_from_all(self) -> None:
        """What is sent to it is lost."""
        follower = self.quorum.follower()
        follower.host.cut_uplink()
        self.assert_goes_on()
        self.assertFalse(follower.is_healthy())


class RestartTests(MembersTestCase):
    """Members are started again."""

    def test_one_by_one(self) -> None:
        """
        Each of them in turn, the next one when the last one is well again. The one that leads is told to go, for which
        it takes its time; the others are killed.
        """
        leader = self.quorum.leader()
        for member in [leader, *self.quorum.others(leader)]:
            if member is leader:
                member.stop()
            else:
                member.kill()
            member.start()
            self.quorum.wait_until_healthy()
        self.assert_goes_on()


class MinorityTestCase(QuorumTestCase):
    """An agent that reaches only a member which reaches no other one, and carries something."""

    def setUp(self) -> None:
        super().setUp()
        self.lonely = self.carriers[ADDRESS]
        self.others = [host for host in self.lab.hosts if host is not self.lonely]
        self.lost = [address for address, carrier in self.carriers.items() if carrier is self.lonely]
        self.theirs = [address for address in ADDRESSES if address not in self.lost]

    def assert_moves_on(self) -> None:
        """What it has goes from there, and after that other agents carry it; nothing else moves."""
        names = {host.name for host in self.others}

        def are_taken_over() -> bool:
            return all(names & set(self.lab.ears.having(address)) for address in self.lost)

        self.lab.wait_until(are_taken_over, "other carriers", 3 * self.ttl)
        for address in self.lost:
            self.assert_one_carrier_at_a_time(address)
            first, second = self.lab.ears.carriages(address)
            self.assertEqual((first.host, second.until), (self.lonely.name, None))
            self.assertIn(second.host, names)
            self.wait_for_line(self.agents[self.lonely.name], str(address), "letting go")
        self.assert_carried_on(self.theirs)

    def assert_heals(self, heal: Callable[[], None]) -> None:
        """When all reach each other again, nothing moves, and the agent is one of them again."""
        carried = {address: self.lab.ears.carriages(address) for address in [*ADDRESSES, *LATER]}
        heal()
        self.wait_for_line(self.agents[self.lonely.name], "the claim store answers again")
        self.wait_for_agents(*self.agents)
        self.stays_true(lambda: {each: self.lab.ears.carriages(each) for each in carried} == carried, 1)


class FollowerAloneTests(MinorityTestCase):
    """The member is one that does not lead. The agent is still on the LAN and hears of Services."""

    def test_gives_nothing_away(self) -> None:
        """
        Of addresses that are new, the agent gets none, though it asks for some; others carry them all. What it had it
        lets go.
        """
        member = self.quorum.follower()
        self._cut(member)
        self.create(service("later", LATER))
        for address in LATER:
            self.assertIn(self.lab.wait_for_carrier(address), self.others)
        agent = self.agents[self.lonely.name]
        self.assertTrue([address for address in LATER if self.lines(agent, f"Acquire(address={address!r}")])
        self.assert_moves_on()
        self.assert_heals(self._heal)
        for address in LATER:
            self.assertEqual(len(self.lab.ears.carriages(address)), 1)

    def _cut(self, member: Member) -> None:
        self.quorum.cut_from_peers(member)
        for other in self.quorum.others(member):
            self.lonely.block(other.host.address, ETCD_PORT)
        for host in self.others:
            host.block(member.host.address, ETCD_PORT)

    def _heal(self) -> None:
        for host in self.lab.hosts:
            host.run("iptables", "-w", "-F")
        self.quorum.revive()


class LeaderAloneTests(MinorityTestCase):
    """
    The member is the one that leads; after the others have elected another one, it does not know that for a while, and
    before etcd 3.5.9 it confirms leases meanwhile and asks nobody. Each agent knows one member.
    """

    etcd = wheel_etcd()

    def start_agent(self, host: Host, *options: str, store_port: int = ETCD_PORT) -> Process:
        endpoints = [self._member(host).endpoint]
        return self.lab.start_agent(host, "--store", self.store, *options, endpoints=endpoints)

    def _member(self, host: Host) -> Member:
        return self.quorum.members[self.lab.hosts.index(host)]

    def test_leader_of_the_past(self) -> None:
        """
        Member and agent reach each other and nothing else; the member stands still until others have led for a while,
        and goes on right before the agent asks it to confirm what it has.
        """
        leader = self._member(self.lonely)
        self.quorum.make_leader(leader)
        self.wait_for_heartbeat(ADDRESS)
        confirmed = time.monotonic()
        for host in (leader.host, self.lonely):
            host.strand()
        leader.freeze()
        self.quorum.leader(self.quorum.others(leader))
        time.sleep(max(0.0, confirmed + 0.63 * self.ttl - time.monotonic()))
        leader.resume()
        self.assert_moves_on()
        (pinger,) = (pinger for pinger in self.pingers if pinger.address == ADDRESS)
        another = self.lab.ears.carriages(ADDRESS)[-1]
        pinger.wait_for_reply(another.since)
        self.assertEqual(self.claims()[ADDRESS], another.host)
        self.assert_heals(self._heal)

    def _heal(self) -> None:
        self.lonely.mend_uplink()
        self.quorum.revive()
