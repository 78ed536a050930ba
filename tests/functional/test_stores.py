"""A claim store or a Kubernetes API that is gone, slow, forgetful or silent, and the address that the agents carry."""

from __future__ import annotations

import time

from tests.lab.laboratory import PROXY_PORT, service
from tests.lab.proxy import LOSSY, SLOW

from .support import ADDRESS, OTHER, SLACK, FailureTestCase


class StoreTestCase(FailureTestCase):
    """Tests that take the store away: it is back at their end."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.bring_back_store)


class UnreachableTests(FailureTestCase):
    """The store is well, but its carrier's host cannot reach it."""

    def test_from_the_carrier_only(self) -> None:
        """
        The host lets go by itself before its claim ends, and another one takes over after that. When the store can be
        reached again, nothing moves.
        """
        failed = time.monotonic()
        self.cut_from_store(self.carrier)
        claim_ends = self.claim_ends(self.carrier)
        another = self.assert_taken_over(failed, self.ttl + 0.75)
        first, second = self.lab.ears.carriages(ADDRESS)
        assert first.until is not None
        self.assertLess(first.until, claim_ends)
        self.assertLess(claim_ends, second.since)

        healed = time.monotonic()
        self.connect_to_store(self.carrier)
        self.wait_for_line(self.carrying, "the claim store answers again")
        self.stays_true(lambda: self.lab.ears.having(ADDRESS) == [another.name], 1.5)
        self.assertEqual(self.lab.ears.carriages(ADDRESS), [first, second])
        self.assertEqual({heard.mac for heard in self.lab.ears.said(ADDRESS, healed)} - {another.mac()}, set())
        self.assert_none_lost(self.pinger, healed)


class DownTests(StoreTestCase):
    """The store is down for everybody, and comes back as it was."""

    ttl = 3

    def test_nobody_carries_and_then_somebody_does(self) -> None:
        """A TTL after the store has gone nobody has the address; within 2 s of its return one host has it."""
        failed = time.monotonic()
        self.kill_store()
        self.lab.wait_until(lambda: not self.lab.ears.having(ADDRESS), "the address to go")
        (carriage,) = self.lab.ears.carriages(ADDRESS)
        assert carriage.until is not None
        self.assertLess(carriage.until - failed, self.ttl)
        self.stays_true(lambda: not self.lab.ears.having(ADDRESS), failed + self.ttl + 1 - time.monotonic())

        self.start_store(keep=True)
        back = time.monotonic()
        carrier = self.lab.wait_for_carrier(ADDRESS)
        first, second = self.lab.ears.carriages(ADDRESS)
        self.assertEqual((first, second.host, second.until), (carriage, carrier.name, None))
        self.assertLess(second.since - back, 2 + SLACK)
        self.pinger.wait_for_reply(second.since)
        self.lab.wait_until(lambda: self.claims() == {ADDRESS: carrier.name}, "the claim")
        self.wait_for_agents(*self.agents)
        self.stays_true(lambda: self.lab.ears.having(ADDRESS) == [carrier.name], 1)


class ForgetfulTests(StoreTestCase):
    """The store comes back and has lost its data: everything that carries on is unknown to it."""

    ttl = 6

    def test_one_carrier_goes_on(self) -> None:
        """
        The others, who see first that nobody claims the address any more, leave it alone. As soon as the carrier can
        reach the store it has its claim again, and there is nearly no outage.
        """
        # Agents that have not seen for a while who carries the address would ask on the LAN first.
        time.sleep(1)
        self.wait_for_heartbeat()
        failed = time.monotonic()
        self.cut_from_store(self.carrier)
        self.kill_store()
        self.start_store()
        for host in self.others():
            self.wait_for_line(self.agents[host.name], "has lost its data")
        self.stays_true(lambda: self.lab.ears.having(ADDRESS) == [self.carrier.name], 0.7)
        self.assertNotIn(ADDRESS, self.claims())
        self.connect_to_store(self.carrier)
        self.lab.wait_until(lambda: ADDRESS in self.claims(), "a new claim")

        # For longer than the carrier of before can have the address without a claim.
        time.sleep(max(0.0, failed + self.ttl + 1 - time.monotonic()))
        (carrier,) = self.lab.ears.having(ADDRESS)
        self.assertEqual(self.claims(), {ADDRESS: carrier})
        self.assertLess(self.pinger.outage(failed, self.pinger.wait_for_reply(time.monotonic()).received), 1 + SLACK)
        self.assert_one_carrier_at_a_time(ADDRESS)
        self.wait_for_agents(*self.agents)


class NoOutageTestCase(StoreTestCase):
    """Whatever happens, the carrier goes on and every ping is answered."""

    def assert_nothing_happened(self) -> None:
        self.assert_none_lost(self.pinger)
        (carriage,) = self.lab.ears.carriages(ADDRESS)
        self.assertEqual((carriage.host, carriage.until), (self.carrier.name, None))
        self.assertEqual(self.claims()[ADDRESS], self.carrier.name)


class PausedTests(NoOutageTestCase):
    """The store does nothing for half a TTL."""

    ttl = 10

    def test_paused(self) -> None:
        """Nobody notices, also where that begins right before the carrier would have confirmed its claim."""
        self.wait_for_heartbeat()
        time.sleep(self.ttl / 3 - 0.2)
        self.freeze_store()
        time.sleep(self.ttl / 2)
        self.resume_store()
        self.wait_for_heartbeat()
        # What was late must not have been the beginning of an end.
        time.sleep(1.5)
        self.assert_nothing_happened()


class BadRepliesTestCase(NoOutageTestCase):
    """The agents reach the store through a proxy which spoils its replies."""

    store_port = PROXY_PORT

    def prepare(self) -> None:
        self.start_proxy()

    def assert_carries_another(self) -> None:
        """An address that nobody has had gets its one carrier, too."""
        self.create(service("other", [OTHER]))
        carrier = self.lab.wait_for_carrier(OTHER, 30)
        self.assertEqual(self.claims()[OTHER], carrier.name)


class SlowTests(BadRepliesTestCase):
    """Every reply of the store is 2 s late, and so is every event."""

    ttl = 10

    def test_slow(self) -> None:
        """For longer than a TTL, with several heartbeats."""
        start = time.monotonic()
        self.lab.cluster.behave(SLOW)
        self.assert_carries_another()
        time.sleep(max(0.0, start + 1.4 * self.ttl - time.monotonic()))
        self.assert_nothing_happened()
        self.assertEqual(len(self.lab.ears.carriages(OTHER)), 1)
        self.assertGreater(self.lab.cluster.fates()["late"], 20)


class LossyTests(BadRepliesTestCase):
    """30% of the store's replies are lost: some leave the connection silent, others broken."""

    def test_lossy(self) -> None:
        """For three TTLs, with nine heartbeats of each agent."""
        start = time.monotonic()
        self.lab.cluster.behave(LOSSY)
        self.assert_carries_another()
        time.sleep(max(0.0, start + 3 * self.ttl - time.monotonic()))
        self.assert_nothing_happened()
        self.assertEqual(len(self.lab.ears.carriages(OTHER)), 1)
        fates = self.lab.cluster.fates()
        self.assertGreater(min(fates["swallowed"], fates["dropped"]), 0)
        self.assertGreater(fates["swallowed"] + fates["dropped"], 5, fates)


class KubernetesTests(NoOutageTestCase):
    """The API server is down, comes back knowing nothing for a moment, and hangs."""

    def test_down_empty_and_hanging(self) -> None:
        """The address stays where it is; when the server is well again, the agents follow it."""
        api = self.lab.cluster.api
        assert api is not None
        api.kill()
        for agent in self.agents.values():
            self.wait_for_line(agent, "cannot follow Kubernetes")
        time.sleep(1)

        api = self.lab.cluster.start_api()
        self.wait_for_line(self.carrying, "lists no Service")
        time.sleep(2)
        self.create(service("web", [ADDRESS]))

        self.addCleanup(api.resume)
        api.freeze()
        time.sleep(self.ttl)
        api.resume()

        self.create(service("other", [OTHER]))
        self.lab.wait_for_carrier(OTHER)
        self.assert_nothing_happened()
