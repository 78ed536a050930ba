"""Agents that leave, die, freeze, lose the network, and come back."""

from __future__ import annotations

import signal
import time

from tests.lab.laboratory import service

from .support import ADDRESS, AgentTestCase, CarriedTestCase, rule

EXIT_LIMIT = 7.0
"""Seconds. An exit takes 5 at most; the rest is for a busy machine."""


class OrderlyExitTests(CarriedTestCase):
    """An agent that is asked to go takes everything back first."""

    def _leaves(self, number: signal.Signals) -> None:
        self.carrying.signal(number)
        self.carrying.wait(EXIT_LIMIT)
        self.assert_untouched(self.carrier)
        self.assertNotIn(self.carrier.name, self.lab.cluster.claims().values())
        self.assertNotIn(self.carrier.name, self.known_agents())
        another = self.wait_for_another()
        self.lab.wait_until(
            lambda: self.lab.client.who_answers(ADDRESS) == another.name, f"the client to reach {another.name}"
        )
        self.wait_for_marks(another, rule())
        self.assert_one_carrier_at_a_time(ADDRESS)

    def test_sigterm(self) -> None:
        """Address, rules, chain, jump and claims are gone when the process is, and another host answers."""
        self._leaves(signal.SIGTERM)

    def test_sigint(self) -> None:
        """The same on SIGINT."""
        self._leaves(signal.SIGINT)

    def test_last_one(self) -> None:
        """When all agents have gone, nothing is left on any host, nor in etcd."""
        for agent in self.agents.values():
            agent.signal(signal.SIGTERM)
        for agent in self.agents.values():
            agent.wait(EXIT_LIMIT)
        for host in self.lab.hosts:
            self.assert_untouched(host)
        self.assertEqual(self.lab.cluster.nodes(), {})

    def test_not_carrying(self) -> None:
        """An agent that carries nothing leaves, and the carrier does not mind."""
        idle = next(host for host in self.lab.hosts if host is not self.carrier)
        self.agents[idle.name].terminate(EXIT_LIMIT)
        self.assert_untouched(idle)
        self.assertEqual(len(self.lab.ears.carriages(ADDRESS)), 1)


class HangingExitTests(CarriedTestCase):
    """An exit is short, also when something that it needs hangs."""

    options = ("--ttl", "4")

    def test_store_hangs(self) -> None:
        """While etcd is frozen, the agent leaves the host clean all the same."""
        etcd = self.lab.cluster.etcd
        assert etcd is not None
        self.addCleanup(etcd.resume)
        etcd.freeze()
        self.carrying.signal(signal.SIGTERM)
        self.carrying.wait(EXIT_LIMIT)
        self.assert_untouched(self.carrier)
        etcd.resume()
        self.wait_for_another()
        self.assert_one_carrier_at_a_time(ADDRESS)

    def test_cable_is_cut(self) -> None:
        """With no network at all, the agent leaves the host clean all the same, and another carries the address."""
        self.carrier.cut()
        self.carrying.signal(signal.SIGTERM)
        self.carrying.wait(EXIT_LIMIT)
        self.assert_untouched(self.carrier)
        self.wait_for_another()
        self.assert_one_carrier_at_a_time(ADDRESS)

    def test_server_hangs(self) -> None:
        """While the API server is frozen, the agent leaves in order."""
        api = self.lab.cluster.api
        assert api is not None
        self.addCleanup(api.resume)
        api.freeze()
        self.carrying.signal(signal.SIGTERM)
        self.carrying.wait(EXIT_LIMIT)
        self.assert_untouched(self.carrier)
        self.assertNotIn(self.carrier.name, self.lab.cluster.claims().values())


class FailureTests(CarriedTestCase):
    """Whatever happens to an agent, its address never has two carriers."""

    options = ("--ttl", "4")

    def test_killed(self) -> None:
        """The kernel takes the address of a dead agent away by itself, and then another agent carries it."""
        self.carrying.kill()
        self.wait_for_another()
        first, second = self.lab.ears.carriages(ADDRESS)
        self.assertEqual(first.host, self.carrier.name)
        assert first.until is not None
        self.assertLess(first.until, second.since)

    def test_host_dies(self) -> None:
        """The host is dead and unplugged: the client reaches another one."""
        self.carrier.cut()
        self.carrying.kill()
        another = self.wait_for_another()
        self.lab.wait_until(lambda: self.lab.client.who_answers(ADDRESS) == another.name, "the client to reach it")
        self.assert_one_carrier_at_a_time(ADDRESS)

    def test_frozen(self) -> None:
        """The kernel takes the address of a frozen agent away. When it goes on, it leaves the address alone."""
        self.carrying.freeze()
        another = self.wait_for_another()
        self.carrying.resume()
        self.wait_for_no_rule(self.carrier)
        self.stays_true(lambda: self.lab.carriers(ADDRESS) == [another], 3)
        self.assert_one_carrier_at_a_time(ADDRESS)

    def test_unplugged(self) -> None:
        """A host that lost the network loses the address; it comes back as one that carries nothing."""
        self.carrier.cut()
        another = self.wait_for_another()
        self.carrier.plug()
        self.wait_for_agents(self.carrier.name)
        self.stays_true(lambda: self.lab.carriers(ADDRESS) == [another], 2)
        self.assertEqual(self.lab.client.who_answers(ADDRESS), another.name)
        self.assert_one_carrier_at_a_time(ADDRESS)

    def test_store_frozen(self) -> None:
        """Without the claim store, the address goes when the hold ends, and comes when the store is back."""
        etcd = self.lab.cluster.etcd
        assert etcd is not None
        self.addCleanup(etcd.resume)
        etcd.freeze()
        self.lab.wait_until(lambda: not self.lab.carriers(ADDRESS), "the address to go")
        etcd.resume()
        self.lab.wait_for_carrier(ADDRESS)
        self.assert_one_carrier_at_a_time(ADDRESS)


class RestartTests(CarriedTestCase):
    """A restart is not an outage."""

    def _restarts(self) -> None:
        (before,) = self.lab.ears.carriages(ADDRESS)
        with self.lab.client.ping(ADDRESS) as pinger:
            pinger.wait_for_reply()
            self.carrying.kill()
            again = self.lab.start_agent(self.carrier, *self.options)
            self.agents[self.carrier.name] = again
            time.sleep(12)
            self.assertEqual(pinger.lost(), 0)
        self.assertIsNone(again.status)
        self.assertEqual(self.lab.ears.carriages(ADDRESS), [before])
        self.assertEqual(self.lab.cluster.claims(), {ADDRESS: self.carrier.name})

    def test_agent_comes_back_within_the_ttl(self) -> None:
        """It adopts its claim, its address and its rules: no ping is lost, no packet goes unmarked."""
        packets = ["iptables", "-t", "mangle", "-L", "KUBE-PUBLIC", "-v", "-x", "-n"]
        self.assertEqual(self.lab.client.who_answers(ADDRESS), self.carrier.name)
        counted = self.carrier.run(*packets).splitlines()[2].split()
        self.assertNotEqual(counted[0], "0")
        self._restarts()
        # The counters would start from zero if the rule had been written anew.
        self.assertEqual(self.carrier.run(*packets).splitlines()[2].split(), counted)

    def test_service_deleted_meanwhile(self) -> None:
        """What is no longer wanted goes when the agent is back."""
        self.carrying.kill()
        self.lab.cluster.delete("web")
        self.agents[self.carrier.name] = self.lab.start_agent(self.carrier, *self.options)
        self.wait_for_nobody(ADDRESS)
        self.wait_for_no_rule(self.carrier)
        self.assert_one_carrier_at_a_time(ADDRESS)


class SameIdTests(AgentTestCase):
    """Two agents with one id is a mistake that does not go unnoticed."""

    def test_second_one_refuses(self) -> None:
        """It ends with an exit status that is not 0, and says why; the first one goes on."""
        first, second, _ = self.lab.hosts
        one = self.lab.start_agent(first, "--id", "same")
        self.wait_for_agents("same")
        self.lab.cluster.create(service("web", [ADDRESS]))
        self.lab.wait_for_carrier(ADDRESS)
        two = self.lab.start_agent(second, "--id", "same")
        self.assertNotEqual(two.wait(20), 0)
        self.assertIn("same", two.output() + two.errors())
        self.assertIsNone(one.status)
        self.assert_untouched(second)
        self.assertEqual(self.lab.carriers(ADDRESS), [first])
