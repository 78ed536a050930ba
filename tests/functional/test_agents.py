"""Agents that are told to go."""

from __future__ import annotations

import signal
import time

from .support import CarriedTestCase, rule

OUTAGE_LIMIT = 1.0
"""Seconds without an answer at a hand-over. It takes milliseconds; the rest is for a busy machine."""

EXIT_LIMIT = 7.0
"""Seconds. An exit takes 5 at most; the rest is for a busy machine."""


class OrderlyExitTests(CarriedTestCase):
    """An agent that is asked to go takes everything back first."""

    def _leaves(self, number: signal.Signals) -> None:
        pinger = self.lab.client.ping(self.address).start()
        pinger.wait_for_reply()
        told = time.monotonic()
        self.carrying.signal(number)
        self.carrying.wait(EXIT_LIMIT)
        self.assert_untouched(self.carrier)
        self.assertNotIn(self.carrier.name, self.claims().values())
        self.assertNotIn(self.carrier.name, self.known_agents())
        another = self.wait_for_another()
        answered = pinger.wait_for_reply(self.lab.ears.carriages(self.address)[-1].since).received
        self.assertLess(pinger.outage(told, answered), OUTAGE_LIMIT)
        self.lab.wait_until(
            lambda: self.lab.client.who_answers(self.address) == another.name, f"the client to reach {another.name}"
        )
        self.wait_for_marks(another, rule(address=self.address))
        self.assert_one_carrier_at_a_time(self.address)

    def test_sigterm(self) -> None:
        """Address, rules, chain, jump and claims are gone when the process is, and another host answers at once."""
        self._leaves(signal.SIGTERM)

    def test_sigint(self) -> None:
        """The same on SIGINT."""
        self._leaves(signal.SIGINT)

    def test_last_one(self) -> None:
        """When all agents have gone, nothing is left on any host, nor in the claim store."""
        for agent in self.agents.values():
            agent.signal(signal.SIGTERM)
        for agent in self.agents.values():
            agent.wait(EXIT_LIMIT)
        for host in self.lab.hosts:
            self.assert_untouched(host)
        self.assertEqual(self.keys(), set())

    def test_not_carrying(self) -> None:
        """An agent that carries nothing leaves, and the carrier does not mind."""
        idle = next(host for host in self.lab.hosts if host is not self.carrier)
        self.agents[idle.name].terminate(EXIT_LIMIT)
        self.assert_untouched(idle)
        self.assertEqual(len(self.lab.ears.carriages(self.address)), 1)


class StoreHangsTests(CarriedTestCase):
    """An exit is short, also when the store hangs."""

    options = ("--ttl", "4")

    def test_store_hangs(self) -> None:
        """While it is frozen, the agent leaves the host clean all the same."""
        self.addCleanup(self.resume_store)
        self.freeze_store()
        self.carrying.signal(signal.SIGTERM)
        self.carrying.wait(EXIT_LIMIT)
        self.assert_untouched(self.carrier)
        self.resume_store()
        self.wait_for_another()
        self.assert_one_carrier_at_a_time(self.address)


class HangingExitTests(CarriedTestCase):
    """An exit is short, also when something that it needs hangs."""

    options = ("--ttl", "4")

    def test_cable_is_cut(self) -> None:
        """With no network at all, the agent leaves the host clean all the same, and another carries the address."""
        self.carrier.cut()
        self.carrying.signal(signal.SIGTERM)
        self.carrying.wait(EXIT_LIMIT)
        self.assert_untouched(self.carrier)
        self.wait_for_another()
        self.assert_one_carrier_at_a_time(self.address)

    def test_server_hangs(self) -> None:
        """While the API server is frozen, the agent leaves in order."""
        api = self.lab.cluster.api
        assert api is not None
        self.addCleanup(api.resume)
        api.freeze()
        self.carrying.signal(signal.SIGTERM)
        self.carrying.wait(EXIT_LIMIT)
        self.assert_untouched(self.carrier)
        self.assertNotIn(self.carrier.name, self.claims().values())
