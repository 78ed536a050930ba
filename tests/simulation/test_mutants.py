"""Tests of the simulation: it notices agents that make a mistake, and takes the right ones for right."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from .mutants import MUTANTS, AnnouncesTooLong
from .runs import run
from .test_scenarios import lost_while_its_thread_hangs
from .world import Mutation

SEEDS = range(1, 61)
"""In so many simulations each mistake must be noticed; most are in the first three."""


class MutantTests(SynchronousTestCase):
    """One mistake each."""

    def _assert_noticed(self, number: int) -> None:
        mutant = MUTANTS[number]
        for seed in SEEDS:
            violation = run(seed, mutation=mutant.mutation, leases=mutant.leases).violation
            if any(words in violation for words in mutant.noticed):
                return
        self.fail(f"nobody notices that an agent {mutant.name}")

    def test_announces_what_it_has_lost(self) -> None:
        """An agent announces an address that it has lost since, because it does not look at the clock again."""
        self.assertIn("announces", lost_while_its_thread_hangs(Mutation(converger=AnnouncesTooLong)))
        self.assertEqual(lost_while_its_thread_hangs(Mutation()), "")


def _test(number: int) -> None:
    def test(self: MutantTests) -> None:
        self._assert_noticed(number)

    name = MUTANTS[number].name
    test.__doc__ = f"An agent {name}."
    test.__name__ = "test_" + name.replace(" ", "_").replace("'", "")
    setattr(MutantTests, test.__name__, test)


for _number in range(len(MUTANTS)):
    _test(_number)
