"""The suite of claim stores, on the one in memory."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from kiwi.claims.interface import Granted
from kiwi.model import AgentRecord, Claims

from .claimstoretests import ONE, TWO, Listener, make_claim_store_tests
from .stages import MemoryStage


class MemoryClaimStoreTests(make_claim_store_tests(lambda case: MemoryStage())):  # type: ignore[misc]
    """The one in memory."""


class MemoryTests(TestCase):
    """What is known of this one exactly."""

    def setUp(self) -> None:
        self.stage = MemoryStage()
        self.clock = self.stage.world.clock
        self.clock.advance(100)

    def test_answers_at_once(self) -> None:
        """A request is answered within its call, and is granted from that moment on."""
        self.assertEqual(self.successResultOf(self.stage.store("a").acquire(ONE)), Granted(100.0))

    def test_expiry_to_the_moment(self) -> None:
        """A claim ends when its TTL is over, and not before."""
        store = self.stage.store("a", 10)
        store.acquire(ONE)
        listener = Listener()
        listener.listen(self, store)
        self.clock.advance(0)
        self.clock.advance(9.9)
        self.assertEqual(listener.heard, [Claims({ONE: "a"})])
        self.clock.advance(0.1)
        self.clock.advance(0)
        self.assertEqual(listener.heard, [Claims({ONE: "a"}), Claims()])

    def test_changes_of_one_call(self) -> None:
        """Changes that come together are told together, later, to everybody who watches."""
        store, listeners = self.stage.store("a"), [Listener(), Listener()]
        for listener in listeners:
            listener.listen(self, store)
        self.clock.advance(0)
        store.acquire(ONE)
        store.acquire(TWO)
        self.assertEqual([listener.heard for listener in listeners], [[Claims()]] * 2)
        self.clock.advance(0)
        self.assertEqual([listener.heard for listener in listeners], [[Claims(), Claims({ONE: "a", TWO: "a"})]] * 2)

    def test_nothing_is_left(self) -> None:
        """Whoever takes everything back leaves no call for later."""
        store, record = self.stage.store("a"), AgentRecord("a", "host", "place", "1")
        service = store.watch(lambda claims: None)
        service.startService()
        store.acquire(ONE)
        store.register(record)
        store.release(ONE)
        store.deregister(record)
        service.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
