"""Tests of the simulation: it notices agents that make a mistake, and takes the right ones for right."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from .mutants import (
    MUTANTS,
    AnnouncesTooLong,
    BelievesAnyLeader,
    DeletesWhateverIsThere,
    EndsEarly,
    EndsWithItsLease,
    LeavesByRevoking,
    ReleasesWhateverIsThere,
    TakesLossesLightly,
    TrustsTheKeys,
    TrustsWhatItFinds,
    on_etcd3,
    on_leases,
)
from .runs import run
from .test_scenarios import (
    confirmed_by_a_leader_of_the_past,
    cut_off_with_clocks_apart,
    deleted_after_another_took_it,
    deleted_after_it_was_adopted,
    deleted_by_hand_unheard,
    deleted_when_it_is_back,
    lost_while_its_thread_hangs,
    lost_while_the_carrier_is_away,
    revoked_after_it_was_adopted,
)
from .world import Mutation

SEEDS = range(1, 61)
"""In so many simulations each mistake must be noticed; most are in the first three."""


class MutantTests(SynchronousTestCase):
    """One mistake each."""

    def _assert_noticed(self, number: int) -> None:
        mutant = MUTANTS[number]
        for seed in SEEDS:
            violation = run(seed, mutation=mutant.mutation, backend=mutant.backend).violation
            if any(words in violation for words in mutant.noticed):
                return
        self.fail(f"nobody notices that an agent {mutant.name}")

    def test_announces_what_it_has_lost(self) -> None:
        """An agent announces an address that it has lost since, because it does not look at the clock again."""
        self.assertIn("announces", lost_while_its_thread_hangs(Mutation(converger=AnnouncesTooLong)))
        self.assertEqual(lost_while_its_thread_hangs(Mutation()), "")

    def test_takes_at_once_what_somebody_deletes(self) -> None:
        """An agent takes a session for over as soon as its Lease is gone, whoever has deleted that."""
        self.assertIn("carriers", deleted_by_hand_unheard(on_leases(mirror=EndsWithItsLease)))
        self.assertEqual(deleted_by_hand_unheard(Mutation()), "")

    def test_ends_sessions_early(self) -> None:
        """An agent takes the hundredth off the TTL of others, and does not add it."""
        self.assertIn("has no claim", cut_off_with_clocks_apart(on_leases(mirror=EndsEarly)))
        self.assertEqual(cut_off_with_clocks_apart(Mutation()), "")

    def test_deletes_a_session_in_any_state(self) -> None:
        """An agent deletes the session of another one that has confirmed it since."""
        self.assertIn("has no claim", deleted_when_it_is_back(on_leases(requests=DeletesWhateverIsThere)))
        self.assertEqual(deleted_when_it_is_back(Mutation()), "")

    def test_adopts_claims_as_they_are(self) -> None:
        """An agent does not write claims again that an earlier life of it has made."""
        self.assertIn("has no claim", deleted_after_it_was_adopted(on_leases(store=TrustsWhatItFinds)))
        self.assertEqual(deleted_after_it_was_adopted(Mutation()), "")

    def test_adopts_keys_as_they_are(self) -> None:
        """The same, in etcd v3."""
        mutation = on_etcd3(store=TrustsTheKeys)
        self.assertIn("has no claim", deleted_after_it_was_adopted(mutation, "etcd3"))
        self.assertEqual(deleted_after_it_was_adopted(Mutation(), "etcd3"), "")

    def test_releases_whatever_is_there(self) -> None:
        """An agent deletes a claim in etcd v3 without comparing."""
        self.assertIn("has no claim", deleted_after_another_took_it(on_etcd3(store=ReleasesWhateverIsThere)))
        self.assertEqual(deleted_after_another_took_it(Mutation()), "")

    def test_leaves_by_revoking(self) -> None:
        """An agent revokes a lease with which its next life goes on."""
        self.assertIn("has no claim", revoked_after_it_was_adopted(on_etcd3(session=LeavesByRevoking)))
        self.assertEqual(revoked_after_it_was_adopted(Mutation()), "")

    def test_believes_any_leader(self) -> None:
        """An agent counts what a leader of the past has said, once a later one has answered something else."""
        self.assertIn("longer than", confirmed_by_a_leader_of_the_past(on_etcd3(session=BelievesAnyLeader)))
        self.assertEqual(confirmed_by_a_leader_of_the_past(Mutation()), "")

    def test_takes_losses_lightly(self) -> None:
        """An agent takes an etcd that has lost its data for one in which nothing was claimed."""
        self.assertIn("two carriers", lost_while_the_carrier_is_away(on_etcd3(store=TakesLossesLightly)))
        self.assertEqual(lost_while_the_carrier_is_away(Mutation()), "")


def _test(number: int) -> None:
    def test(self: MutantTests) -> None:
        self._assert_noticed(number)

    name = MUTANTS[number].name
    test.__doc__ = f"An agent {name}."
    test.__name__ = "test_" + name.replace(" ", "_").replace("'", "")
    setattr(MutantTests, test.__name__, test)


for _number in range(len(MUTANTS)):
    _test(_number)
