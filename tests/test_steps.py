"""What a step does is read from its effect, without doing it."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

from attrs import has
from effect import ComposedDispatcher, Effect, TypeDispatcher, base_dispatcher
from effect.testing import perform_sequence
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from txeffect import perform

from kiwi import steps
from kiwi.claims import intents as claims_intents
from kiwi.claims.intents import (
    AcquireClaim,
    DeregisterAgent,
    RegisterAgent,
    ReleaseClaim,
    RenewClaims,
    claims_dispatcher,
)
from kiwi.claims.memory import MemoryClaims
from kiwi.model import AgentRecord, Assignment, Mark, Placement, Protocol, ip
from kiwi.network import intents as network_intents
from kiwi.network.intents import (
    AssignAddresses,
    Network,
    ProbeNeighbours,
    ReadHost,
    ReadMarks,
    RemoveMarks,
    ReplaceMarks,
    SendAnnouncements,
    UnassignAddresses,
    network_dispatcher,
)
from kiwi.network.memory import MemoryAddresses, MemoryAnnouncer, MemoryFirewall, MemoryNeighbours
from kiwi.network.threads import immediately

ADDRESS = ip("192.168.1.41")
MARKS = frozenset({Mark(ADDRESS, Protocol.TCP, 8080, "web")})
ASSIGNMENTS = frozenset({Assignment(ADDRESS, 9.0, "em1")})
PLACEMENTS = frozenset({Placement(ADDRESS, "em1")})
RECORD = AgentRecord("me", "host", "here", "1")

INTENTS: list[tuple[steps.Step, object]] = [
    (steps.Acquire(ADDRESS), AcquireClaim(ADDRESS)),
    (steps.Renew(frozenset({ADDRESS})), RenewClaims(frozenset({ADDRESS}))),
    (steps.Release(ADDRESS), ReleaseClaim(ADDRESS)),
    (steps.Register(RECORD), RegisterAgent(RECORD)),
    (steps.Deregister(RECORD), DeregisterAgent(RECORD)),
    (steps.LookAtHost(), ReadHost()),
    (steps.Assign(ASSIGNMENTS), AssignAddresses(ASSIGNMENTS)),
    (steps.Unassign(frozenset({ADDRESS})), UnassignAddresses(frozenset({ADDRESS}))),
    (steps.Announce(ASSIGNMENTS), SendAnnouncements(ASSIGNMENTS)),
    (steps.Probe(PLACEMENTS, 0.03), ProbeNeighbours(PLACEMENTS, 0.03)),
    (steps.LookAtMarks(), ReadMarks()),
    (steps.MarkTraffic(MARKS), ReplaceMarks(MARKS)),
    (steps.Unmark(), RemoveMarks()),
]
"""Each step with the one thing that it does."""


def values_of(module: ModuleType) -> set[type]:
    """The frozen values that a module defines."""
    return {
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if value.__module__ == module.__name__ and has(value)
    }


class StepTests(SynchronousTestCase):
    def test_effects(self) -> None:
        """Each step is one intent, and its result is the intent's."""
        for step, intent in INTENTS:
            result = perform_sequence([(intent, lambda intent: "result")], step.as_effect())
            self.assertEqual(result, "result")

    def test_all(self) -> None:
        """Every step is spoken of above."""
        defined = {value for value in values_of(steps) if hasattr(value, "as_effect")}
        self.assertEqual(defined, {type(step) for step, _ in INTENTS})


class DispatcherTests(SynchronousTestCase):
    def dispatchers(self) -> tuple[TypeDispatcher, TypeDispatcher, MemoryFirewall]:
        clock = Clock()
        firewall = MemoryFirewall()
        network = Network(
            MemoryAddresses(["em1"], clock.seconds),
            firewall,
            MemoryAnnouncer(clock.seconds),
            MemoryNeighbours(),
            immediately,
            immediately,
            immediately,
        )
        return claims_dispatcher(MemoryClaims(clock).store("me", 10)), network_dispatcher(network), firewall

    def test_complete(self) -> None:
        """Every intent has a performer."""
        claims, network, _ = self.dispatchers()
        self.assertEqual(values_of(claims_intents), set(claims.mapping))
        self.assertEqual(values_of(network_intents) - {Network}, set(network.mapping))

    def test_performed(self) -> None:
        """Each step can be performed."""
        claims, network, firewall = self.dispatchers()
        dispatcher = ComposedDispatcher([base_dispatcher, claims, network])

        def done(effect: Effect) -> Any:
            return perform(dispatcher, effect)

        for step, _ in INTENTS:
            if isinstance(step, steps.Unmark):
                self.assertEqual(firewall.read(), MARKS)
            self.successResultOf(done(step.as_effect()))
        self.assertIsNone(firewall.read())
